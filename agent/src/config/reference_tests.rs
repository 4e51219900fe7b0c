use std::collections::BTreeSet;

use super::*;
use crate::config::{Definitions, parse};

/// No key is called so, and none is near to it.
const UNKNOWN: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";

/// The text of all errors; what was read, without warnings, where there is none.
fn read(part: &str, place: Place) -> Result<String, String> {
    let text = complete(part, place);
    let result = match place {
        Place::Node | Place::Member => parse(&text, "f").map(|l| format!("{:?} {:?}", l.core, l.agent)),
        Place::Common | Place::Cluster => Definitions::parse(&text, "f").map(|(d, _)| format!("{d:?}")),
    };
    result.map_err(|e| e.to_string())
}

fn with(section: &Section, line: &str) -> Result<String, String> {
    read(&format!("{}{line}\n", section.shape), section.place)
}

/// Each key, with its section.
fn keys() -> impl Iterator<Item = (&'static Section, &'static Key)> {
    SECTIONS.iter().flat_map(|s| s.keys.iter().map(move |k| (s, k)))
}

#[test]
fn every_shape_and_example_is_good() {
    for section in SECTIONS {
        with(section, "").unwrap_or_else(|e| panic!("{}: {e}", section.title));
        if !section.example.is_empty() {
            read(section.example, section.place).unwrap_or_else(|e| panic!("{}: {e}", section.title));
        }
    }
}

/// The reader names all keys that it knows when it meets one that it doesn't know.
#[test]
fn the_reader_knows_these_keys_and_no_others() {
    for section in SECTIONS {
        let refused = with(section, &format!("{UNKNOWN} = 1")).expect_err(section.title);
        let known =
            refused.lines().find_map(|l| l.split_once("; known are ")).unwrap_or_else(|| panic!("{refused}"));
        assert!(known.0.contains(UNKNOWN), "{refused}");
        let known: BTreeSet<&str> = known.1.split(", ").collect();
        let also = |s: &&Section| s.title == section.title || section.also.contains(&s.title);
        let documented: BTreeSet<&str> =
            SECTIONS.iter().filter(also).flat_map(|s| s.keys.iter().map(|k| k.name)).collect();
        assert_eq!(documented, known, "{}: document it in config/reference.rs", section.title);
    }
}

/// Every section that the reader knows is described.
#[test]
fn the_reader_knows_these_sections_and_no_others() {
    let refused = read(&format!("[{UNKNOWN}]\n"), Place::Node).expect_err("unknown");
    let known = refused.split_once("; known are ").unwrap_or_else(|| panic!("{refused}")).1;
    let known: BTreeSet<&str> = known.lines().next().unwrap_or("").split(", ").collect();
    let name =
        |title: &'static str| title.trim_start_matches('[').split([']', '.', ' ']).next().unwrap_or("");
    let documented: BTreeSet<&str> =
        SECTIONS.iter().filter(|s| s.title.starts_with('[')).map(|s| name(s.title)).collect();
    assert_eq!(documented, known);
}

#[test]
fn defaults_make_no_difference_when_they_are_written_out() {
    let mut tried = 0;
    for (section, key) in keys() {
        if let Is(value) = key.default {
            let without = with(section, "").expect("good");
            let line = format!("{} = {value}", key.name);
            let written = with(section, &line).unwrap_or_else(|e| panic!("{}: {line}: {e}", section.title));
            assert_eq!(written, without, "{}: {line}", section.title);
            tried += 1;
        }
    }
    assert!(tried > 60, "{tried}");
}

#[test]
fn keys_without_a_default_are_needed() {
    for (section, key) in keys() {
        let is_there = |line: &&str| line.trim_start().starts_with(&format!("{} = ", key.name));
        if let Required = key.default {
            let count = section.shape.lines().filter(is_there).count();
            assert!(count >= 1, "{}: {} is not in the shape", section.title, key.name);
            // Of two sections with such a key, the last one is meant.
            let mut lines: Vec<&str> = section.shape.lines().collect();
            let last = lines.iter().rposition(is_there).expect("there");
            lines.remove(last);
            let text = lines.join("\n");
            assert!(read(&text, section.place).is_err(), "{}: {} is not needed", section.title, key.name);
        }
    }
}

/// Limits and words are those that the reader tells.
#[test]
fn limits_and_words_are_the_readers() {
    let mut tried = 0;
    for (section, key) in keys() {
        let (line, wanted) = match key.value {
            Duration(limits) => ("\"900000days\"", format!("choose a value from {limits}")),
            Number(limits) => ("99999999999", format!("write a number from {limits}")),
            Word(words) => {
                let words: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
                ("\"zzzz\"", format!("write {}", words.join(" or ")))
            }
            Flag => ("7", "write true or false".to_owned()),
            Path => ("\"here\"", "start it with /".to_owned()),
            Text(_) | List(_) | Value::Section | Texts => continue,
        };
        // In place of the one that is there.
        let is_there = |l: &&str| l.starts_with(&format!("{} = ", key.name));
        let mut lines: Vec<&str> = section.shape.lines().collect();
        if let Some(last) = lines.iter().rposition(is_there) {
            lines.remove(last);
        }
        let text = format!("{}\n{} = {line}\n", lines.join("\n"), key.name);
        let refused = read(&text, section.place).expect_err(key.name);
        assert!(refused.contains(&wanted), "{}: {}: {wanted} is not in {refused}", section.title, key.name);
        tried += 1;
    }
    assert!(tried > 50, "{tried}");
}
