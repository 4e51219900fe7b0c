//! What an OCF resource agent says of itself (OCF Resource Agent API 1.1, "Metadata"): its parameters.

use std::collections::BTreeMap;

use roxmltree::{Document, Node, ParsingOptions};

/// Parameters that the library of all agents takes, whatever they say themselves: for debugging.
const OF_ALL: [&str; 2] = ["trace_ra", "trace_file"];
/// How many elements are read at most.
const MOST: u32 = 20_000;
/// Bytes of a description that are shown.
const SHOWN: usize = 120;

/// A parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Parameter {
    /// It must be given, and has no default.
    is_needed: bool,
    /// The name that it had before.
    obsoletes: Option<String>,
    /// What it is, in a few words.
    description: String,
}

/// The parameters of an agent, by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata(BTreeMap<String, Parameter>);

impl Metadata {
    /// Reads what the agent has printed; what it said beside it, before and after, is passed over.
    ///
    /// # Errors
    /// Why it can't be understood.
    pub fn parse(printed: &str) -> Result<Metadata, String> {
        const END: &str = "</resource-agent>";
        let start = printed.find("<resource-agent").ok_or("it prints no <resource-agent>")?;
        let end = printed.rfind(END).filter(|end| *end > start).ok_or("its <resource-agent> has no end")?;
        let text = &printed[start..end + END.len()];
        let options = ParsingOptions { nodes_limit: MOST, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options).map_err(|e| e.to_string())?;
        let parameters = document.root_element().children().filter(|node| node.has_tag_name("parameters"));
        let parameters = parameters.flat_map(|list| list.children().filter(|n| n.has_tag_name("parameter")));
        Ok(Metadata(parameters.filter_map(parameter).collect()))
    }

    /// What is wrong with parameters that are to be handed to it; nothing, if nothing is.
    pub fn complaints(&self, given: &BTreeMap<String, String>) -> Vec<String> {
        let former = |name: &String| self.0.values().any(|p| p.obsoletes.as_ref() == Some(name));
        let known =
            |name: &String| self.0.contains_key(name) || OF_ALL.contains(&name.as_str()) || former(name);
        let unknown = given.keys().filter(|name| !known(name)).map(|name| {
            let all: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("it has no parameter `{name}`; it has {}", all.join(", "))
        });
        let is_missing = |(name, parameter): &(&String, &Parameter)| {
            let former = parameter.obsoletes.as_ref().is_some_and(|former| given.contains_key(former));
            parameter.is_needed && !given.contains_key(*name) && !former
        };
        let missing =
            self.0.iter().filter(is_missing).map(|(name, parameter)| match &*parameter.description {
                "" => format!("it needs the parameter `{name}`"),
                description => format!("it needs the parameter `{name}` ({description})"),
            });
        unknown.chain(missing).collect()
    }
}

fn parameter(node: Node<'_, '_>) -> Option<(String, Parameter)> {
    let is_true = |value: &str| matches!(value, "1" | "true" | "yes");
    let child = |name: &str| node.children().find(|child| child.has_tag_name(name));
    let default = child("content").and_then(|content| content.attribute("default"));
    let required = node.attribute("required").is_some_and(is_true);
    let description = child("shortdesc").and_then(|text| text.text()).unwrap_or_default();
    let description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let parameter = Parameter {
        is_needed: required && default.is_none_or(str::is_empty),
        obsoletes: node.attribute("obsoletes").map(str::to_owned),
        description: description.chars().take(SHOWN).collect(),
    };
    Some((node.attribute("name")?.to_owned(), parameter))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form of the agents of the package resource-agents.
    const PRINTED: &str = r#"/usr/lib/ocf/lib/heartbeat/ocf-shellfuncs: a warning of the shell
<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd">
<resource-agent name="Filesystem" version="1.1">
<version>1.1</version>
<longdesc lang="en">Not a &lt;parameter name="other"&gt;.</longdesc>
<!-- <parameter name="hidden" required="1"/> -->
<parameters>
<parameter name="device" required="1">
<longdesc lang="en">The device.</longdesc>
<shortdesc lang="en">block
 device</shortdesc>
<content type="string" default="" />
</parameter>
<parameter name="directory" required="1" obsoletes="dir"><content type="string" /></parameter>
<parameter name="fast_stop" required="1"><content type="boolean" default="true" /></parameter>
<parameter name="options"><content type="string" default="" /></parameter>
</parameters>
<actions><action name="start" timeout="60s" /></actions>
</resource-agent>
"#;

    fn complaints(given: &[(&str, &str)]) -> Vec<String> {
        let given = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Metadata::parse(PRINTED).expect("understood").complaints(&given)
    }

    #[test]
    fn parameters_are_compared_with_what_it_takes() {
        let nothing: [&str; 0] = [];
        assert_eq!(complaints(&[("device", "/dev/a"), ("directory", "/srv/a")]), nothing);
        assert_eq!(complaints(&[("device", "/dev/a"), ("dir", "/srv/a"), ("trace_ra", "1")]), nothing);
        assert_eq!(
            complaints(&[("device", "/dev/a"), ("directoy", "/srv/a"), ("options", "ro")]),
            [
                "it has no parameter `directoy`; it has device, directory, fast_stop, options",
                "it needs the parameter `directory`"
            ]
        );
        assert_eq!(complaints(&[("directory", "/")]), ["it needs the parameter `device` (block device)"]);
        assert_eq!(complaints(&[("device", ""), ("directory", "")]), nothing, "empty is given");
    }

    #[test]
    fn what_is_no_metadata_is_told() {
        for (printed, expected) in [
            ("usage: agent {start|stop}", "it prints no <resource-agent>"),
            ("<resource-agent name=\"a\">", "its <resource-agent> has no end"),
            ("</resource-agent><resource-agent", "its <resource-agent> has no end"),
        ] {
            assert_eq!(Metadata::parse(printed), Err(expected.to_owned()));
        }
        assert!(Metadata::parse("<resource-agent><a></b></resource-agent>").is_err());
        let many = format!("<resource-agent>{}</resource-agent>", "<a/>".repeat(MOST as usize));
        assert!(Metadata::parse(&many).is_err());
        let none = Metadata::parse("<resource-agent name=\"a\"></resource-agent>").expect("understood");
        assert!(none.complaints(&BTreeMap::new()).is_empty());
    }
}
