//! Rules of nftables that drop what Baton can't do without: ARP and neighbour discovery, by which clients find virtual IPs, and, where a
//! port lies on another interface, probe frames. XDP sees frames before nftables does, and probes are sent past it, so that a port of
//! its own hears and sends them whatever the rules are. Which services are let in is the administrator's business.
//!
//! Only what is certain is said: a chain that some such frames may pass is passed over.

use serde_json::Value;

use super::Port;

/// What a rule may drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    Arp,
    /// Somebody asks for an IPv6 address of this node.
    Solicit,
    /// This node answers.
    Advert,
    Probe,
}

/// A chain that drops all frames of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub what: String,
    pub remedy: String,
}

impl Frame {
    fn is_neighbour(self) -> bool {
        matches!(self, Frame::Solicit | Frame::Advert)
    }

    /// As `ether type` and `meta protocol` call it.
    fn ether(self) -> (&'static str, u64) {
        match self {
            Frame::Arp => ("arp", 0x0806),
            Frame::Solicit | Frame::Advert => ("ip6", 0x86dd),
            Frame::Probe => ("", baton_common::PROBE_ETHERTYPE as u64),
        }
    }

    /// As `icmpv6 type` calls it.
    fn icmp(self) -> (&'static str, u64) {
        match self {
            Frame::Solicit => ("nd-neighbor-solicit", 135),
            Frame::Advert => ("nd-neighbor-advert", 136),
            Frame::Arp | Frame::Probe => ("", u64::MAX),
        }
    }

    fn loss(self) -> &'static str {
        match self {
            Frame::Arp => "ARP: clients don't find virtual IPs that are IPv4",
            Frame::Solicit | Frame::Advert => {
                "neighbour discovery: clients don't find virtual IPs that are IPv6"
            }
            Frame::Probe => "frames of EtherType 0x88B5: ports don't hear one another",
        }
    }

    /// What a rule says that lets it pass.
    fn wanted(self, family: &str) -> &'static str {
        match self {
            Frame::Arp if family == "arp" => "accept",
            Frame::Arp => "ether type arp accept",
            Frame::Solicit | Frame::Advert => {
                "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
            }
            Frame::Probe => "ether type 0x88b5 accept",
        }
    }
}

/// What `nft -j list ruleset` says that drops what these ports need. `ipv6`: a segment here has IPv6 subnets.
pub(super) fn blocked(ruleset: &Value, ports: &[Port], ipv6: bool) -> Vec<Blocked> {
    let objects = ruleset["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let of = |kind: &'static str| objects.iter().filter_map(move |o| o.get(kind));
    let is_dormant = |chain: &Value| {
        of("table").any(|table| {
            table["family"] == chain["family"]
                && table["name"] == chain["table"]
                && words(&table["flags"]).contains(&"dormant")
        })
    };
    let mut all = Vec::new();
    for chain in of("chain").filter(|c| c.get("hook").is_some() && !is_dormant(c)) {
        let same = |key: &str, rule: &Value| rule[key] == chain[key];
        let is_of =
            |rule: &&Value| same("family", rule) && same("table", rule) && rule["chain"] == chain["name"];
        let rules: Vec<&Value> = of("rule").filter(is_of).collect();
        for frame in needed(chain, ports).iter().copied() {
            if (ipv6 || !frame.is_neighbour()) && drops(chain, &rules, frame) {
                let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
                let (family, table, name) = (text("family"), text("table"), text("name"));
                let what = format!("chain {name} of table {family} {table} drops {}", frame.loss());
                let wanted = frame.wanted(&family);
                let remedy = format!(
                    "run `nft insert rule {family} {table} {name} {wanted}`, and add that where the rules come from"
                );
                all.push(Blocked { what, remedy });
            }
        }
    }
    all
}

/// What must pass a chain for these ports to work.
fn needed(chain: &Value, ports: &[Port]) -> &'static [Frame] {
    let devices = words(&chain["dev"]);
    let is_port = ports.iter().any(|p| devices.contains(&p.interface.as_str()));
    let links = || ports.iter().filter_map(|p| p.link.as_ref());
    let is_below = links().any(|link| link.lower.iter().any(|below| devices.contains(&below.as_str())));
    let is_bridge = links().any(|link| link.driver.as_deref() == Some("bridge"));
    let text = |key: &str| chain[key].as_str().unwrap_or_default();
    match (text("family"), text("hook")) {
        ("arp", "input" | "output") => &[Frame::Arp],
        ("ip6" | "inet", "prerouting" | "input") => &[Frame::Solicit],
        ("ip6" | "inet", "output" | "postrouting") => &[Frame::Advert],
        ("netdev" | "inet", "ingress") if is_below => &[Frame::Arp, Frame::Solicit, Frame::Probe],
        ("netdev" | "inet", "ingress") if is_port => &[Frame::Arp, Frame::Solicit],
        ("netdev", "egress") if is_below => &[Frame::Arp, Frame::Advert, Frame::Probe],
        ("netdev", "egress") if is_port => &[Frame::Arp, Frame::Advert],
        ("bridge", "prerouting" | "input") if is_bridge => &[Frame::Arp, Frame::Solicit, Frame::Probe],
        ("bridge", "output" | "postrouting") if is_bridge => &[Frame::Arp, Frame::Advert, Frame::Probe],
        _ => &[],
    }
}

/// A text, or a list of texts.
fn words(value: &Value) -> Vec<&str> {
    match value {
        Value::String(word) => vec![word.as_str()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// What a rule does with a frame.
enum Does {
    /// Drops every such frame.
    Drops,
    /// May let one pass.
    MayPass,
    /// Leaves it to the next rule, or drops it.
    GoesOn,
}

/// All such frames are dropped by the chain, for certain.
fn drops(chain: &Value, rules: &[&Value], frame: Frame) -> bool {
    for rule in rules {
        let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        match one_rule(statements, frame) {
            Does::Drops => return true,
            Does::MayPass => return false,
            Does::GoesOn => {}
        }
    }
    chain["policy"] == "drop"
}

fn one_rule(statements: &[Value], frame: Frame) -> Does {
    let mut certain = true;
    for statement in statements {
        let Some((name, value)) = statement.as_object().and_then(|o| o.iter().next()) else {
            return Does::MayPass;
        };
        match name.as_str() {
            "match" => match matches(value, frame) {
                Some(true) => {}
                Some(false) => return Does::GoesOn,
                None => certain = false,
            },
            "counter" | "log" => {}
            "limit" | "quota" | "ct count" => certain = false,
            "drop" | "reject" if certain => return Does::Drops,
            "drop" | "reject" | "continue" => return Does::GoesOn,
            _ => return Does::MayPass,
        }
    }
    Does::GoesOn
}

/// Does such a frame match? `None`: some may, others not, or that isn't known here.
fn matches(value: &Value, frame: Frame) -> Option<bool> {
    const TRANSPORTS: [&str; 9] = ["tcp", "udp", "udplite", "sctp", "dccp", "esp", "ah", "comp", "th"];
    let (left, right) = (&value["left"], &value["right"]);
    let text = |of: &str, key: &str| left[of][key].as_str().unwrap_or_default();
    let is_equal = match (text("meta", "key"), text("payload", "protocol"), text("payload", "field")) {
        // Neighbour discovery is not tracked, and what isn't IP has no connections.
        _ if left["ct"]["key"] == "state" => is_one(right, &["untracked"], 64),
        ("iifname" | "iif" | "oifname" | "oif", ..) if right == "lo" => Some(false),
        ("protocol", ..) | (_, "ether", "type") => {
            let (word, number) = frame.ether();
            is_one(right, &[word], number)
        }
        ("l4proto", ..) | (_, "ip6", "nexthdr") => match frame.is_neighbour() {
            true => is_one(right, &["ipv6-icmp", "icmpv6"], 58),
            false => Some(false),
        },
        ("nfproto", ..) if frame.is_neighbour() => is_one(right, &["ipv6"], 10),
        (_, "icmpv6", "type") => {
            let (word, number) = frame.icmp();
            is_one(right, &[word], number)
        }
        (_, "icmpv6" | "ip6", _) => (!frame.is_neighbour()).then_some(false),
        (_, "arp", _) => (frame != Frame::Arp).then_some(false),
        (_, "ip" | "icmp" | "igmp", _) => Some(false),
        (_, protocol, _) if TRANSPORTS.contains(&protocol) => Some(false),
        _ => None,
    }?;
    match value["op"].as_str() {
        Some("==" | "in") => Some(is_equal),
        // Of a frame that has no such field nothing is true.
        Some("!=") if left["payload"]["protocol"] == "ether" || text("meta", "key") == "protocol" => {
            Some(!is_equal)
        }
        Some("!=") if text("payload", "field") == "type" && frame.is_neighbour() => Some(!is_equal),
        _ => None,
    }
}

/// Is it one of those on the right?
fn is_one(right: &Value, words: &[&str], number: u64) -> Option<bool> {
    let all = match right {
        Value::Array(all) => all.as_slice(),
        Value::Object(set) => set.get("set")?.as_array()?.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut known = true;
    for one in all {
        match one {
            Value::String(word) if words.contains(&word.as_str()) => return Some(true),
            Value::Number(n) if n.as_u64() == Some(number) => return Some(true),
            Value::String(_) | Value::Number(_) => {}
            // Ranges, prefixes, elements with time limits.
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => known = false,
        }
    }
    known.then_some(false)
}

#[cfg(test)]
#[path = "firewall_tests.rs"]
mod tests;
