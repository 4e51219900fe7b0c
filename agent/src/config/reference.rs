//! What every key of the configuration means: the page `configuration.md` of the documentation is made of this. Tests hold it
//! against the reader, both ways: the same keys, the same limits and words, and defaults that make no difference when they are
//! written out.

mod sections;

use std::fmt::Write as _;

pub use sections::SECTIONS;
use sections::SERVER;

/// In which file a section stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The node's own.
    Node,
    /// The node's own, where the store is etcd.
    Member,
    /// Where the store is etcd, the file for `baton apply`; else the node's own.
    Common,
    /// The file for `baton apply`.
    Cluster,
}

/// What may stand behind a key.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A text, and which.
    Text(&'static str),
    /// One of these texts.
    Word(&'static [&'static str]),
    /// A duration within limits, as the reader calls them.
    Duration(&'static str),
    /// A whole number within limits.
    Number(&'static str),
    /// True or false.
    Flag,
    /// An absolute path.
    Path,
    /// A list, and of what.
    List(&'static str),
    /// A table, or a list of tables: another section of this page.
    Section,
    /// A table of names and texts.
    Texts,
}

/// What holds without the key.
#[derive(Clone, Copy, Debug)]
pub enum Without {
    /// It must be there.
    Required,
    /// This, in words.
    Words(&'static str),
    /// This, as it would be written.
    Is(&'static str),
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What may stand there.
    pub value: Value,
    /// What holds without it.
    pub default: Without,
    /// What it does.
    pub what: &'static str,
}

/// A section.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// As it is written.
    pub title: &'static str,
    /// Which file.
    pub place: Place,
    /// What it is for.
    pub what: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
    /// Titles of sections whose keys may stand here too.
    pub also: &'static [&'static str],
    /// The section with what must be there; a key may be added at its end. What is missing of a whole file is [`complete`]d.
    pub shape: &'static str,
    /// An example; empty: the shape is one.
    pub example: &'static str,
}

use Value::{Duration, Flag, List, Number, Path, Text, Texts, Word};
use Without::{Is, Required, Words};

/// What may be missing around a fragment to make it a whole file.
const AROUND: [(&str, &[Place], &str); 6] = [
    ("[[port]]", &[Place::Node, Place::Member], "[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\n"),
    ("[store]", &[Place::Member], "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n"),
    ("[cluster]", &[Place::Member], "[cluster]\nkey_file = \"/etc/baton/probe.key\"\n"),
    ("[cluster]", &[Place::Cluster], "[cluster]\nmembers = [\"fs1\", \"fs2\", \"fs3\"]\n"),
    (
        "[[segment]]",
        &[Place::Node, Place::Cluster],
        "[[segment]]\nname = \"office\"\nsubnets = [\"10.0.0.0/24\", \"fd00:10::/64\"]\n",
    ),
    ("[[virtual_server]]", &[Place::Node, Place::Cluster], SERVER),
];

/// Makes a whole file of a part of one, for the place where it stands ([`Place::Common`]: the file for `baton apply`).
pub fn complete(part: &str, place: Place) -> String {
    let place = if place == Place::Common { Place::Cluster } else { place };
    let has = |header: &str| part.lines().any(|line| line.split('#').next().unwrap_or("").trim() == header);
    let mut text = String::new();
    for (header, places, lines) in AROUND {
        if places.contains(&place) && !has(header) {
            text.push_str(lines);
            text.push('\n');
        }
    }
    text + part
}

/// The page of the documentation.
pub fn page() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         <!-- Made by `baton reference configuration` from agent/src/config/reference.rs; tests compare them. Do not edit. -->\n\n\
         Every node has a file of its own, `/etc/baton/baton.toml`. `baton check` reads it and says what is wrong, with line and column,\n\
         all at once. Where the store is etcd, what is common to all nodes is in a second file, which any node writes to the store with\n\
         `baton apply` (`--dry-run` shows the difference first). A node that is alone has everything in its own.\n\n\
         Durations have a unit, as `\"10ms\"`, `\"2s\"` or `\"1min 30s\"`. Paths are absolute. A key without a default must be there.\n",
    );
    // Writing to a string can't fail.
    for section in SECTIONS {
        let place = match section.place {
            Place::Node => "In the node's own file.",
            Place::Member => "In the node's own file, where the store is etcd (`kind`, `path`: always).",
            Place::Common => "In the file for `baton apply` where the store is etcd, else in the node's own.",
            Place::Cluster => "In the file for `baton apply`.",
        };
        let place = if section.title.contains("[cluster]") {
            place.split(" (").next().unwrap_or(place)
        } else {
            place
        };
        let what = if section.what.is_empty() { String::new() } else { format!("{} ", section.what) };
        let _ = writeln!(
            text,
            "\n## {}\n\n{what}{place}\n\n| key | value | default | what |\n|---|---|---|---|",
            section.title
        );
        for k in section.keys {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} |",
                k.name,
                written(&k.value),
                held(&k.default),
                k.what
            );
        }
        let info = match section.place {
            Place::Node => "toml",
            Place::Member => "toml,node",
            Place::Common | Place::Cluster => "toml,cluster",
        };
        let example =
            if section.example.is_empty() { section.shape.to_owned() } else { section.example.to_owned() };
        let _ = writeln!(text, "\n```{info}\n{}\n```", example.trim_end());
    }
    text
}

fn written(value: &Value) -> String {
    match value {
        Text(which) => format!("text: {which}"),
        Word(words) => words.iter().map(|w| format!("`\"{w}\"`")).collect::<Vec<_>>().join(", "),
        Duration(limits) => format!("duration, {limits}"),
        Number(limits) => format!("number, {limits}"),
        Flag => "`true` or `false`".to_owned(),
        Path => "path".to_owned(),
        List(of) => format!("list: {of}"),
        Value::Section => "section".to_owned(),
        Texts => "table of texts".to_owned(),
    }
}

fn held(default: &Without) -> String {
    match default {
        Required => String::new(),
        Words(words) => (*words).to_owned(),
        Is(value) => format!("`{value}`"),
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
