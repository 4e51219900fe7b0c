//! The documentation against the program: pages that are made of it, configurations in it, and links between its pages.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use baton::config::reference::{self, Place};
use baton::config::{Definitions, parse};
use baton::telemetry;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src")
}

/// Every page with its text, by its path below the folder.
fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    let mut folders = vec![folder()];
    while let Some(here) = folders.pop() {
        for entry in std::fs::read_dir(&here).expect("the folder of the documentation") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                let name = path.strip_prefix(folder()).expect("below").display().to_string();
                pages.push((name, std::fs::read_to_string(&path).expect("a page")));
            }
        }
    }
    pages.sort();
    assert!(pages.len() > 10, "{}", pages.len());
    pages
}

/// (info string, first line, text) of every fenced block.
fn blocks(text: &str) -> Vec<(String, usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, usize, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.2 += &format!("{line}\n"),
            (None, Some(info)) => open = Some((info.to_owned(), number + 1, String::new())),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

fn is_up_to_date(name: &str, page: &str, made: &str) {
    let is = std::fs::read_to_string(folder().join(name)).unwrap_or_default();
    assert!(
        is == made,
        "docs/src/{name} is not up to date: target/debug/baton reference {page} > docs/src/{name}"
    );
}

#[test]
fn the_pages_that_are_made_of_the_program_are_up_to_date() {
    is_up_to_date("configuration.md", "configuration", &reference::page());
    is_up_to_date("metrics.md", "metrics", &telemetry::reference::page());
}

#[test]
fn every_configuration_in_it_is_good() {
    let scratch = tempfile::tempdir().expect("a folder");
    let mut seen = 0;
    for (name, text) in pages() {
        for (info, line, block) in blocks(&text).into_iter().filter(|(info, ..)| info.starts_with("toml")) {
            let place = match info.as_str() {
                "toml" => Place::Node,
                "toml,node" => Place::Member,
                "toml,cluster" => Place::Cluster,
                _ => panic!("{name}:{line}: what is {info}?"),
            };
            let whole = reference::complete(&block, place);
            let errors = match place {
                Place::Node | Place::Member => parse(&whole, &name).err(),
                Place::Common | Place::Cluster => Definitions::parse(&whole, &name).err(),
            };
            assert!(errors.is_none(), "{name}:{line}: {}\n{whole}", errors.expect("some"));
            if place != Place::Cluster {
                // As somebody who has read it would.
                let file = scratch.path().join("baton.toml");
                std::fs::write(&file, &whole).expect("written");
                let check =
                    Command::new(env!("CARGO_BIN_EXE_baton")).arg("check").arg(&file).output().expect("ran");
                assert!(check.status.success(), "{name}:{line}: {check:?}");
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

/// What a page says that a file becomes is what it becomes: the first text block, and the configuration after it.
#[test]
fn what_is_imported_becomes_what_the_pages_say() {
    let scratch = tempfile::tempdir().expect("a folder");
    for name in ["from-keepalived.md", "from-ctdb.md"] {
        let text = std::fs::read_to_string(folder().join(name)).expect("a page");
        let blocks = blocks(&text);
        let of = |kind: &str| &blocks.iter().find(|(info, ..)| info == kind).expect("a block").2;
        let file = scratch.path().join(name);
        std::fs::write(&file, of("text")).expect("written");
        let output =
            Command::new(env!("CARGO_BIN_EXE_baton")).arg("import").arg(&file).output().expect("ran");
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8(output.stdout).expect("text");
        let lines = |text: &str| -> Vec<String> {
            text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(lines(&printed), lines(of("toml")), "{name}");
    }
}

#[test]
fn every_page_is_in_the_summary_once() {
    let summary = std::fs::read_to_string(folder().join("SUMMARY.md")).expect("the summary");
    let listed: Vec<String> = links(&summary).into_iter().map(|(_, to)| to).collect();
    let there: BTreeSet<String> = pages().into_iter().map(|(n, _)| n).filter(|n| n != "SUMMARY.md").collect();
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), there);
    assert_eq!(listed.len(), there.len(), "one is there twice");
}

/// Where the links of a page lead to, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let mut is_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        is_code ^= line.starts_with("```");
        if is_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            all.push((number, rest[..rest.find(')').unwrap_or(rest.len())].to_owned()));
        }
    }
    all
}

/// What mdBook makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter_map(|c| match c {
            c if c.is_alphanumeric() || matches!(c, '_' | '-') => Some(c),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let anchors = |text: &str| -> BTreeSet<String> {
        let headings = text.lines().filter(|l| l.starts_with('#'));
        headings.map(|l| anchor(l.trim_start_matches('#'))).collect()
    };
    let mut seen = 0;
    for (name, text) in pages() {
        let own = folder().join(&name);
        for (line, to) in links(&text) {
            if to.starts_with("https://") || to.starts_with("http://127.0.0.1:") {
                continue;
            }
            let (file, part) = to.split_once('#').unwrap_or((&to, ""));
            let target = if file.is_empty() { own.clone() } else { own.with_file_name("").join(file) };
            assert!(target.is_file(), "{name}:{line}: there is no {to}");
            let inside = target.canonicalize().expect("a path");
            let book = folder().canonicalize().expect("a path");
            assert!(inside.starts_with(book), "{name}:{line}: {to} is not part of the book");
            if !part.is_empty() {
                let text = std::fs::read_to_string(&target).expect("a page");
                assert!(anchors(&text).contains(part), "{name}:{line}: no heading for {to}");
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

/// Commands in it are commands that there are.
#[test]
fn every_command_in_it_is_one_of_batons() {
    let help = Command::new(env!("CARGO_BIN_EXE_baton")).arg("--help").output().expect("ran");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let list = help.split_once("Commands:").expect("a list").1;
    let list = list.split_once("Options:").expect("its end").0;
    let known: BTreeSet<&str> = list
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert!(known.contains("status"), "{help}");
    let mut seen = 0;
    for (name, text) in pages() {
        for (number, line) in (1..).zip(text.lines()) {
            for (at, what) in line.match_indices("`baton ") {
                let rest = &line[at + what.len()..];
                let word = rest.split(['`', ' ']).next().unwrap_or("");
                let is_hidden = word == "reference";
                assert!(known.contains(word) || is_hidden, "{name}:{number}: `baton {word}`");
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}
