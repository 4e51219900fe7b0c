//! Typed access to one TOML table: every getter reports what is wrong at its place and goes on.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml_span::value::{Table, Value, ValueInner};

use super::problem::Findings;

/// A value and the byte offset it starts at.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// The values without their places.
pub(super) fn values<T: Clone>(list: &[At<T>]) -> Vec<T> {
    list.iter().map(|v| v.value.clone()).collect()
}

/// A table with the keys it may have.
pub(super) struct Section<'a, 'de> {
    table: &'a Table<'de>,
    /// Offset of its header.
    pub(super) at: usize,
    name: &'static str,
}

impl<'a, 'de> Section<'a, 'de> {
    /// Opens a table and reports the keys it may not have; `None` (reported) if it is no table.
    pub(super) fn open(
        value: &'a Value<'de>,
        name: &'static str,
        known: &[&str],
        f: &mut Findings,
    ) -> Option<Self> {
        let Some(table) = value.as_table() else {
            f.error(
                value.span.start,
                format!("{name} is {}, not a section", kind(value)),
                "write it as a section",
            );
            return None;
        };
        let section = Section { table, at: value.span.start, name };
        section.check_keys(known, f);
        Some(section)
    }

    /// Reports the keys that it may not have.
    pub(super) fn check_keys(&self, known: &[&str], f: &mut Findings) {
        let name = self.name;
        for key in self.table.keys().filter(|k| !known.contains(&k.name.as_ref())) {
            let fix = match nearest(&key.name, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", known.join(", ")),
            };
            let place = if name.is_empty() { "section".to_owned() } else { format!("key in {name}") };
            f.error(key.span.start, format!("unknown {place}: `{}`", key.name), fix);
        }
    }

    /// Is the key there?
    pub(super) fn key(&self, key: &str) -> Option<usize> {
        self.table.get_key_value(key).map(|(k, _)| k.span.start)
    }

    /// Is the key a list with at least one item?
    pub(super) fn has_items(&self, key: &str) -> bool {
        self.table.get(key).and_then(|v| v.as_array()).is_some_and(|l| !l.is_empty())
    }

    /// An array of tables whose keys are not known here.
    pub(super) fn tables(&self, key: &str, name: &'static str, f: &mut Findings) -> Vec<Self> {
        let Some(value) = self.table.get(key) else { return Vec::new() };
        let Some(list) = value.as_array() else {
            f.error(
                value.span.start,
                format!("{name} is {}, not a list of sections", kind(value)),
                format!("write {name}, in double brackets"),
            );
            return Vec::new();
        };
        let mut open = |v: &'a Value<'de>| match v.as_table() {
            Some(table) => Some(Section { table, at: v.span.start, name }),
            None => {
                f.error(
                    v.span.start,
                    format!("{name} is {}, not a section", kind(v)),
                    "write it as a section",
                );
                None
            }
        };
        list.iter().filter_map(&mut open).collect()
    }

    /// A single sub-table.
    pub(super) fn section(
        &self,
        key: &str,
        name: &'static str,
        known: &[&str],
        f: &mut Findings,
    ) -> Option<Self> {
        let value = self.table.get(key)?;
        if value.as_array().is_some() {
            f.error(
                value.span.start,
                format!("{name} is there as a list"),
                format!("write {name} once, in single brackets"),
            );
            return None;
        }
        Section::open(value, name, known, f)
    }

    /// An array of tables (`[[name]]`); empty if absent.
    pub(super) fn sections(
        &self,
        key: &str,
        name: &'static str,
        known: &[&str],
        f: &mut Findings,
    ) -> Vec<Self> {
        match self.table.get(key) {
            None => Vec::new(),
            Some(value) => match value.as_array() {
                Some(list) => list.iter().filter_map(|v| Section::open(v, name, known, f)).collect(),
                None => {
                    f.error(
                        value.span.start,
                        format!("{name} is {}, not a list of sections", kind(value)),
                        format!("write {name}, in double brackets"),
                    );
                    Vec::new()
                }
            },
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str, f: &mut Findings) -> Option<At<String>> {
        let value = self.table.get(key)?;
        text_of(value, &self.called(key), "text in quotes", f)
    }

    /// As [`Self::text`], but its absence is reported too.
    pub(super) fn required(&self, key: &str, example: &str, f: &mut Findings) -> Option<At<String>> {
        if self.table.get(key).is_none() {
            f.error(self.at, format!("{} has no `{key}`", self.name), format!("add {key} = \"{example}\""));
            return None;
        }
        self.text(key, f)
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str, f: &mut Findings) -> Option<bool> {
        let value = self.table.get(key)?;
        value.as_bool().or_else(|| {
            wrong(value, &self.called(key), "true or false, without quotes", f);
            None
        })
    }

    /// A whole number from 0 to 2^32 - 1.
    pub(super) fn number(&self, key: &str, f: &mut Findings) -> Option<u32> {
        self.number_within(key, (0, u32::MAX), f).map(|n| n.value)
    }

    /// A whole number within limits.
    pub(super) fn number_within(
        &self,
        key: &str,
        (least, most): (u32, u32),
        f: &mut Findings,
    ) -> Option<At<u32>> {
        let value = self.table.get(key)?;
        let at = value.span.start;
        let Some(n) = value.as_integer() else {
            wrong(value, &self.called(key), "a whole number, without quotes", f);
            return None;
        };
        let number = u32::try_from(n).ok().filter(|n| (least..=most).contains(n));
        if number.is_none() {
            f.error(
                at,
                format!("{} is {n}", self.called(key)),
                format!("write a number from {least} to {most}"),
            );
        }
        number.map(|value| At { value, at })
    }

    /// One of some words.
    pub(super) fn word(&self, key: &str, words: &[&str], f: &mut Findings) -> Option<At<String>> {
        let text = self.text(key, f)?;
        if words.contains(&text.value.as_str()) {
            return Some(text);
        }
        let quoted: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
        f.error(
            text.at,
            format!("{} is \"{}\"", self.called(key), text.value),
            format!("write {}", quoted.join(" or ")),
        );
        None
    }

    /// A duration within limits.
    pub(super) fn duration(
        &self,
        key: &str,
        limits: (Duration, Duration),
        f: &mut Findings,
    ) -> Option<At<Duration>> {
        duration_of(self.table.get(key)?, &self.called(key), limits, f)
    }

    /// An absolute path.
    pub(super) fn path(&self, key: &str, f: &mut Findings) -> Option<At<PathBuf>> {
        let text = self.text(key, f)?;
        if !text.value.starts_with('/') || text.value.contains('\0') {
            f.error(
                text.at,
                format!("{} is \"{}\", not an absolute path", self.called(key), text.value),
                "start it with /",
            );
            return None;
        }
        Some(At { value: PathBuf::from(text.value), at: text.at })
    }

    /// A list, each item by `item`; items that are wrong are left out (and reported).
    pub(super) fn list<T>(
        &self,
        key: &str,
        f: &mut Findings,
        item: impl Fn(&Value<'de>, &str, &mut Findings) -> Option<T>,
    ) -> Option<At<Vec<T>>> {
        let value = self.table.get(key)?;
        let called = self.called(key);
        match value.as_array() {
            Some(list) => Some(At {
                value: list.iter().filter_map(|v| item(v, &called, f)).collect(),
                at: value.span.start,
            }),
            None => {
                wrong(value, &called, "a list in square brackets", f);
                None
            }
        }
    }

    /// A table of names and texts; numbers, true and false are texts too. Empty if absent, `None` (reported) if anything is wrong.
    pub(super) fn texts(&self, key: &str, f: &mut Findings) -> Option<Vec<At<(String, String)>>> {
        let Some(value) = self.table.get(key) else { return Some(Vec::new()) };
        let Some(table) = value.as_table() else {
            wrong(value, &self.called(key), "a table, as { name = \"value\" }", f);
            return None;
        };
        let mut texts = Vec::new();
        for (name, value) in table {
            let text = match value.as_ref() {
                ValueInner::String(text) => text.to_string(),
                ValueInner::Integer(n) => n.to_string(),
                ValueInner::Boolean(b) => b.to_string(),
                _ => {
                    wrong(value, &format!("`{}` in `{key}`", name.name), "a text in quotes", f);
                    return None;
                }
            };
            texts.push(At { value: (name.name.to_string(), text), at: name.span.start });
        }
        Some(texts)
    }

    fn called(&self, key: &str) -> String {
        format!("`{key}` in {}", self.name)
    }
}

/// A text item of a list.
pub(super) fn text_of(value: &Value<'_>, called: &str, wanted: &str, f: &mut Findings) -> Option<At<String>> {
    match value.as_str() {
        Some(s) => Some(At { value: s.to_owned(), at: value.span.start }),
        None => {
            wrong(value, called, wanted, f);
            None
        }
    }
}

/// A duration with its unit, within limits.
pub(super) fn duration_of(
    value: &Value<'_>,
    called: &str,
    (least, most): (Duration, Duration),
    f: &mut Findings,
) -> Option<At<Duration>> {
    let at = value.span.start;
    let unit = "write a number with a unit in quotes, as \"10ms\" or \"2s\"";
    if matches!(value.as_ref(), ValueInner::Integer(_) | ValueInner::Float(_)) {
        f.error(at, format!("{called} is a bare number"), unit);
        return None;
    }
    let text = text_of(value, called, "a duration in quotes, as \"10ms\"", f)?;
    let parsed = if text.value.trim().parse::<f64>().is_ok() {
        None
    } else {
        humantime::parse_duration(&text.value).ok()
    };
    let Some(d) = parsed else {
        f.error(at, format!("{called} is \"{}\", not a duration", text.value), unit);
        return None;
    };
    if d < least || d > most {
        let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
        f.error(
            at,
            format!("{called} is \"{}\"", text.value),
            format!("choose a value from {least} to {most}"),
        );
        return None;
    }
    Some(At { value: d, at })
}

/// An IP address without prefix length.
pub(super) fn ip_of(value: &Value<'_>, called: &str, f: &mut Findings) -> Option<At<IpAddr>> {
    let text = text_of(value, called, "addresses in quotes", f)?;
    match text.value.parse::<IpAddr>() {
        Ok(ip) => Some(At { value: ip, at: text.at }),
        Err(_) => {
            let fix = match text.value.parse::<IpNet>() {
                Ok(net) => format!("leave the prefix length out: \"{}\"", net.addr()),
                Err(_) => "write an IPv4 or IPv6 address, as \"10.0.0.1\" or \"fd00:10::1\"".to_owned(),
            };
            f.error(text.at, format!("{called} has \"{}\", not an IP address", text.value), fix);
            None
        }
    }
}

/// An IP address or subnet with prefix length.
pub(super) fn net_of(value: &Value<'_>, called: &str, f: &mut Findings) -> Option<At<IpNet>> {
    let text = text_of(value, called, "text in quotes, as \"10.0.0.10/24\"", f)?;
    match text.value.parse::<IpNet>() {
        Ok(net) => Some(At { value: net, at: text.at }),
        Err(_) => {
            let (what, fix) = match text.value.parse::<IpAddr>() {
                Ok(ip) => {
                    let prefix = if ip.is_ipv4() { 24 } else { 64 };
                    (
                        "an address without its prefix length",
                        format!("add that of its subnet, as \"{ip}/{prefix}\""),
                    )
                }
                Err(_) => (
                    "not an address with a prefix length",
                    "write it as \"10.0.0.10/24\" or \"fd00:10::10/64\"".to_owned(),
                ),
            };
            f.error(text.at, format!("{called} has \"{}\", {what}", text.value), fix);
            None
        }
    }
}

fn wrong(value: &Value<'_>, called: &str, wanted: &str, f: &mut Findings) {
    f.error(value.span.start, format!("{called} is {}", kind(value)), format!("write {wanted}"));
}

fn kind(value: &Value<'_>) -> &'static str {
    match value.as_ref() {
        ValueInner::String(_) => "a text",
        ValueInner::Integer(_) => "a number",
        ValueInner::Float(_) => "a number with a fraction",
        ValueInner::Boolean(_) => "true or false",
        ValueInner::Array(_) => "a list",
        ValueInner::Table(_) => "a section",
    }
}

/// Much longer than any known word.
const LONGEST_WORD: usize = 100;

/// The known word nearest to `word`, if it is near enough to be meant.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let length = word.chars().count();
    if length > LONGEST_WORD {
        return None; // nobody has misspelt one of ours so, and distances take time
    }
    let limit = if length < 4 { 1 } else { (length / 3).max(2) };
    known.iter().map(|k| (distance(word, k), *k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k)
}

/// Levenshtein's distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
