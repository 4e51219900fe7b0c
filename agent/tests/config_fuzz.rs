//! Configurations that somebody has spoiled: nothing panics, and every refusal says where, what, and what to do.
//!
//! `BATON_FUZZ_SECONDS=600` makes it go on for so long (`make fuzz`).

use std::path::Path;
use std::time::{Duration, Instant};

use baton::config::{self, ConfigErrors, Definitions, Problems};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A node's file with everything.
const NODE: &str = include_str!("everything.toml");

/// A member's file.
const MEMBER: &str = r#"[node]
name = "fs1"
[[port]]
interface = "eth0"
segment = "office"
[store]
kind = "etcd"
endpoints = ["https://127.0.0.1:2379", "https://10.0.0.2:2379"]
tls = { ca = "/etc/baton/ca.pem", certificate = "/etc/baton/me.pem", key = "/etc/baton/me.key" }
credentials = { user = "baton", password_file = "/etc/baton/password" }
[cluster]
name = "nas"
key_file = "/etc/baton/probe.key"
witness = false
"#;

/// The file of `baton apply`.
const CLUSTER: &str = r#"[cluster]
members = ["fs1", "fs2", "fs3"]
[timing]
lease = "50ms"
slack = "5ms"
watchdog = "10s"
[balance]
mode = "advise"
half_life = "30s"
start_percent = 150
[[segment]]
name = "office"
subnets = ["10.0.0.0/24"]
[[virtual_server]]
name = "homes"
addresses = ["10.0.0.11/24"]
preferred_nodes = ["fs1", "fs2"]
never_with = ["scans"]
fence = "agent"
[[virtual_server.filesystem]]
device = "/dev/disk/by-id/b"
mount = "/srv/homes"
type = "ext4"
[[virtual_server]]
name = "scans"
only_on = ["fs2", "fs3"]
addresses = ["10.0.0.12/24"]
[[fence]]
node = "fs1"
agent = "fence_ipmilan"
parameters = { ip = "192.168.0.1", password_file = "/etc/baton/ipmi" }
[[fence]]
node = "fs2"
agent = "fence_ipmilan"
parameters = { ip = "192.168.0.2" }
[[fence]]
node = "fs3"
agent = "fence_ipmilan"
parameters = { ip = "192.168.0.3" }
"#;

/// What is put in place of something else.
const TOKENS: [&str; 44] = [
    "0",
    "-1",
    "1",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "4294967296",
    "1e400",
    "nan",
    "-inf",
    "0x7f",
    "1_0",
    "3.14",
    "true",
    "false",
    "\"\"",
    "\"10ms\"",
    "\"-5s\"",
    "\"99999999999999999999y\"",
    "\"1us\"",
    "\"0.5s\"",
    "\"10.0.0.0/33\"",
    "\"10.0.0.0/0\"",
    "\"::/0\"",
    "\"255.255.255.255\"",
    "\"fe80::1/64\"",
    "\"/\"",
    "\"../x\"",
    "\"\\u0000\"",
    "\"\\n\"",
    "\"é\\t\u{202e}\"",
    "\"[\"",
    "[]",
    "[[]]",
    "[1, \"a\", true]",
    "{}",
    "{ a = 1 }",
    "{ a = { b = [1] } }",
    "1979-05-27T07:32:00Z",
    "'''x\n'''",
    "[node]",
    "[[port]]",
    "virtual_server.x = 1\n",
    "#",
];

/// What somebody did to a file. Places are taken modulo what there is.
#[derive(Clone, Debug)]
enum Change {
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
    Token(usize, usize),
    SwapTokens(usize, usize),
    Repeat(usize, usize),
    RemoveLine(usize),
    SwapLines(usize, usize),
    Cut(usize),
    Nest(usize, usize, usize),
    Long(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || any::<u16>().prop_map(usize::from);
    prop_oneof![
        2 => (at(), 1..20_usize).prop_map(|(at, n)| Change::Remove(at, n)),
        2 => (at(), vec(any::<u8>(), 1..6)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        6 => (at(), at()).prop_map(|(at, which)| Change::Token(at, which)),
        3 => (at(), at()).prop_map(|(a, b)| Change::SwapTokens(a, b)),
        3 => (at(), at()).prop_map(|(a, b)| Change::Repeat(a, b)),
        3 => at().prop_map(Change::RemoveLine),
        2 => (at(), at()).prop_map(|(a, b)| Change::SwapLines(a, b)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), 0..3_usize, size(5000)).prop_map(|(at, kind, depth)| Change::Nest(at, kind, depth)),
        1 => (at(), size(70_000)).prop_map(|(at, length)| Change::Long(at, length)),
    ]
}

/// Seldom very large: that takes time.
fn size(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![15 => 1..150_usize, 1 => 150..most]
}

/// Words, texts in quotes, spaces, and every other character by itself.
fn tokens(text: &[u8]) -> Vec<Vec<u8>> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.') || b >= 0x80;
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    let mut quoted = false;
    for &byte in text {
        let joins = tokens.last().is_some_and(|last| quoted || (word(byte) && last.iter().all(|b| word(*b))));
        match tokens.last_mut().filter(|_| joins) {
            Some(last) => last.push(byte),
            None => tokens.push(vec![byte]),
        }
        if byte == b'"' {
            quoted = !quoted;
        }
    }
    tokens
}

impl Change {
    fn apply(&self, text: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        let place = |at: usize| at % text.len();
        let lines = || text.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
        match self {
            Change::Remove(at, n) => {
                let from = place(*at);
                let to = (from + n).min(text.len());
                text.drain(from..to);
            }
            Change::Insert(at, bytes) => {
                let at = place(*at);
                text.splice(at..at, bytes.iter().copied());
            }
            Change::Token(at, which) => {
                let mut all = tokens(text);
                let at = at % all.len();
                all[at] = TOKENS[which % TOKENS.len()].as_bytes().to_vec();
                *text = all.concat();
            }
            Change::SwapTokens(a, b) => {
                let mut all = tokens(text);
                let length = all.len();
                all.swap(a % length, b % length);
                *text = all.concat();
            }
            Change::Repeat(from, to) => {
                let mut all = lines();
                let line = all[from % all.len()].clone();
                let to = to % all.len();
                all.insert(to, line);
                *text = all.concat();
            }
            Change::RemoveLine(at) => {
                let mut all = lines();
                let at = at % all.len();
                all.remove(at);
                *text = all.concat();
            }
            Change::SwapLines(a, b) => {
                let mut all = lines();
                let length = all.len();
                all.swap(a % length, b % length);
                *text = all.concat();
            }
            Change::Cut(at) => {
                let at = place(*at);
                text.truncate(at);
            }
            Change::Nest(at, kind, depth) => {
                let at = place(*at);
                let deep = match kind {
                    0 => "[".repeat(*depth),
                    1 => "{ a = ".repeat(*depth),
                    _ => "a.".repeat(*depth),
                };
                text.splice(at..at, deep.into_bytes());
            }
            Change::Long(at, length) => {
                let mut all = tokens(text);
                let at = at % all.len();
                all[at] = format!("\"{}\"", "x".repeat(*length)).into_bytes();
                *text = all.concat();
            }
        }
    }
}

/// Each problem has a place that there is, and says what and what to do, on one line.
fn is_good_refusal(problems: &Problems, bytes: &[u8]) -> Result<(), TestCaseError> {
    prop_assert!(!problems.is_empty(), "refused without a word");
    let lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
    for problem in &problems.list {
        prop_assert!((1..=lines.len()).contains(&problem.line), "{problem:?} of {} lines", lines.len());
        let length = String::from_utf8_lossy(lines[problem.line - 1]).chars().count();
        prop_assert!((1..=length + 1).contains(&problem.column), "{problem:?} in a line of {length}");
        prop_assert!(!problem.what.trim().is_empty() && !problem.fix.trim().is_empty(), "{problem:?}");
        let printed = |text: &str| !text.chars().any(char::is_control);
        prop_assert!(printed(&problem.what) && printed(&problem.fix), "{problem:?}");
    }
    prop_assert_eq!(problems.to_string().lines().count(), problems.list.len());
    Ok(())
}

/// Is it accepted?
fn read(file: &Path, bytes: &[u8]) -> Result<bool, TestCaseError> {
    std::fs::write(file, bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let refused = |error: ConfigErrors| match error {
        ConfigErrors::Invalid(problems) => is_good_refusal(&problems, bytes),
        ConfigErrors::Read { .. } => Err(TestCaseError::fail(format!("can't be read: {error}"))),
    };
    let node = config::load(file).map(drop).map_err(refused);
    let cluster = Definitions::load(file).map(drop).map_err(refused);
    let places = config::places(file).map(drop).map_err(refused);
    let accepted = node.is_ok() || cluster.is_ok();
    for outcome in [node, cluster, places] {
        outcome.or_else(|checked| checked)?;
    }
    Ok(accepted)
}

#[test]
fn the_files_that_are_spoiled_are_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("f");
    for text in [NODE, MEMBER] {
        std::fs::write(&file, text).expect("written");
        config::load(&file).unwrap_or_else(|e| panic!("{e}"));
    }
    std::fs::write(&file, CLUSTER).expect("written");
    Definitions::load(&file).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_spoiled_file_is_refused_with_place_and_remedy_and_never_panics() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("f");
    let seconds = std::env::var("BATON_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let long = seconds.map(Duration::from_secs);
    let begin = Instant::now();
    let (mut all, mut accepted) = (0_u64, 0_u64);
    loop {
        // What is found is shown, not written into the source.
        let config = Config { failure_persistence: None, ..Config::default() };
        let given = (0..3_usize, vec(change(), 1..5));
        let counts = std::cell::Cell::new((0_u64, 0_u64));
        let result = TestRunner::new(config).run(&given, |(which, changes)| {
            let mut text = [NODE, MEMBER, CLUSTER][which].as_bytes().to_vec();
            changes.iter().for_each(|change| change.apply(&mut text));
            let good = read(&file, &text)?;
            let (all, accepted) = counts.get();
            counts.set((all + 1, accepted + u64::from(good)));
            Ok(())
        });
        if let Err(e) = result {
            panic!("{e}");
        }
        (all, accepted) = (all + counts.get().0, accepted + counts.get().1);
        if long.is_none_or(|long| begin.elapsed() >= long) {
            break;
        }
    }
    println!("{all} files, of which {accepted} were accepted, in {} s", begin.elapsed().as_secs());
    // Neither all nor none: or the changes would change nothing, or too much.
    assert!(accepted > 0 && accepted < all, "{accepted} of {all}");
}

/// Not only near to what is good.
#[test]
fn any_bytes_are_refused_or_taken_but_never_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("f");
    let config = Config { failure_persistence: None, ..Config::default() };
    let pieces = prop_oneof![
        vec(any::<u8>(), 0..8),
        (0..TOKENS.len()).prop_map(|n| TOKENS[n].as_bytes().to_vec()),
        proptest::sample::select(vec![
            "\n",
            " = ",
            ",",
            "[",
            "]",
            "\"",
            "node",
            "port",
            "segment",
            "name",
            "addresses"
        ])
        .prop_map(|t| t.as_bytes().to_vec()),
    ];
    let result =
        TestRunner::new(config).run(&vec(pieces, 0..40), |pieces| read(&file, &pieces.concat()).map(drop));
    if let Err(e) = result {
        panic!("{e}");
    }
}

#[test]
fn a_file_that_is_no_text_says_where_it_stops_being_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("f");
    std::fs::write(&file, b"[node]\nname = \"fs\xff1\"\n").expect("written");
    let error = config::load(&file).expect_err("no text").to_string();
    assert!(error.contains(":2:11: "), "{error}");
    assert!(error.contains("UTF-8"), "{error}");
    assert_eq!(error, Definitions::load(&file).expect_err("no text").to_string());
    assert_eq!(error, config::places(&file).expect_err("no text").to_string());
}
