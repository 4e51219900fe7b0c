//! Names: what they may look like, and that each is there once and known.

use std::collections::HashMap;

use super::problem::Findings;
use super::reader::{At, nearest};

pub(super) fn name_is_good(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !matches!(name, "." | "..") // names are folders' names, too
}

pub(super) fn check_name(what: &str, name: &At<String>, f: &mut Findings) {
    if !name_is_good(&name.value) {
        f.error(
            name.at,
            format!("the name of a {what} can't be \"{}\"", name.value.escape_debug()),
            "use 1 to 63 letters, digits, dots, underscores and hyphens",
        );
    }
}

pub(super) fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a At<String>>, f: &mut Findings) {
    let mut seen = HashMap::new();
    for name in names {
        check_name(what, name, f);
        unique(&mut seen, &name.value, name.at, f, || {
            (format!("there are two {what}s \"{}\"", name.value), "rename or remove one of them".to_owned())
        });
    }
}

/// Reports `key` at its second place; its first is named by line.
pub(super) fn unique<K: std::hash::Hash + Eq + Clone>(
    seen: &mut HashMap<K, usize>,
    key: &K,
    at: usize,
    f: &mut Findings,
    say: impl FnOnce() -> (String, String),
) -> bool {
    if let Some(first) = seen.get(key) {
        let (what, fix) = say();
        f.error_after(at, *first, what, fix);
        return false;
    }
    seen.insert(key.clone(), at);
    true
}

/// What the kernel takes as a name (net/core/dev.c, dev_valid_name), without the loopback interface.
pub(super) fn check_interface(name: &At<String>, f: &mut Findings) {
    let n = &name.value;
    if n == "lo" {
        f.error(name.at, "\"lo\" can't be a port", "name an interface that clients use");
    } else if n.len() > 15 {
        f.error(name.at, format!("interface name \"{n}\" is too long"), "Linux allows 15 characters");
    } else if matches!(n.as_str(), "" | "." | "..")
        || n.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
    {
        f.error(
            name.at,
            format!("\"{}\" is no interface name", n.escape_debug()),
            "write it as `ip link` shows it, without @ and what follows",
        );
    }
}

/// What to do about a name that is none of those known: the nearest of them, if one was meant.
pub(super) fn meant(name: &str, known: &[&str], otherwise: impl Into<String>) -> String {
    match nearest(name, known) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => otherwise.into(),
    }
}
