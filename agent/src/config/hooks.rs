//! `[[hook]]`: programs that are told of events.

use std::collections::HashMap;
use std::time::Duration;

use super::names::{name_is_good, unique};
use super::problem::Findings;
use super::reader::{At, Section, nearest, text_of};
use crate::hooks::{Hook, WORDS};

/// How long a program may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// Most hooks of a node: each has a thread.
const MOST: usize = 16;
const KEYS: &[&str] = &["name", "on", "run", "timeout"];

/// Reads all `[[hook]]`.
pub(super) fn read(root: &Section<'_, '_>, f: &mut Findings) -> Vec<Hook> {
    let sections = root.sections("hook", "[[hook]]", KEYS, f);
    if let Some(beyond) = sections.get(MOST) {
        f.error(
            beyond.at,
            "too many hooks",
            format!("configure at most {MOST}; one program may be told of many events"),
        );
    }
    let mut seen = HashMap::new();
    let mut hooks = Vec::new();
    for section in &sections {
        let Some((hook, at)) = read_one(section, f) else { continue };
        unique(&mut seen, &hook.name, at, f, || {
            let what = format!("two hooks are called \"{}\"", hook.name);
            (what, "give them different names: name = \"…\"".to_owned())
        });
        hooks.push(hook);
    }
    hooks
}

/// With the place of what it is called by.
fn read_one(s: &Section<'_, '_>, f: &mut Findings) -> Option<(Hook, usize)> {
    let name = s.text("name", f);
    let named = s.key("name").is_some();
    let on = words(s, f);
    let run = command(s, f);
    let timeout = s.duration("timeout", LIMITS, f);
    if let Some(name) = name.as_ref().filter(|n| !name_is_good(&n.value)) {
        let fix = "use up to 63 letters, digits, dots, hyphens and underscores";
        f.error(name.at, format!("hook name \"{}\"", name.value.escape_debug()), fix);
        return None;
    }
    if (named && name.is_none()) || (s.key("timeout").is_some() && timeout.is_none()) {
        return None; // reported
    }
    let (on, run) = (on?, run?);
    let program = run.first()?;
    let file_name = program.value.rsplit('/').next().unwrap_or_default().to_owned();
    let called = name.unwrap_or(At { value: file_name, at: program.at });
    if !name_is_good(&called.value) {
        let what = format!("the program's name, \"{}\", can't be the hook's", called.value.escape_debug());
        f.error(called.at, what, "give it another one: name = \"page\"");
        return None;
    }
    let run = run.into_iter().map(|argument| argument.value).collect();
    let timeout = timeout.map_or(TIMEOUT, |d| d.value);
    Some((Hook { name: called.value, on, run, timeout }, called.at))
}

/// The events.
fn words(s: &Section<'_, '_>, f: &mut Findings) -> Option<Vec<String>> {
    let example = "add on = [\"takeover\", \"port_failover\"], or on = [\"all\"]";
    if s.key("on").is_none() {
        f.error(s.at, "[[hook]] has no `on`: it would never run", example);
        return None;
    }
    let words = s.list("on", f, |value, called, f| text_of(value, called, "names of events in quotes", f))?;
    if words.value.is_empty() {
        if !s.has_items("on") {
            f.error(words.at, "`on` in [[hook]] is empty: it would never run", example);
        }
        return None;
    }
    let mut good = true;
    for word in words.value.iter().filter(|w| !WORDS.contains(&w.value.as_str())) {
        let fix = match nearest(&word.value, &WORDS) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("known are {}", WORDS.join(", ")),
        };
        f.error(word.at, format!("there is no event \"{}\"", word.value.escape_debug()), fix);
        good = false;
    }
    good.then(|| words.value.into_iter().map(|w| w.value).collect())
}

/// The program and its arguments.
fn command(s: &Section<'_, '_>, f: &mut Findings) -> Option<Vec<At<String>>> {
    let example = "add run = [\"/usr/local/sbin/tell\", \"argument\"]: a program and its arguments, no shell";
    if s.key("run").is_none() {
        f.error(s.at, "[[hook]] has no `run`", example);
        return None;
    }
    let run = s.list("run", f, |value, called, f| {
        text_of(value, called, "a program and its arguments in quotes", f)
    })?;
    let Some(program) = run.value.first() else {
        if !s.has_items("run") {
            f.error(run.at, "`run` in [[hook]] is empty", example);
        }
        return None;
    };
    if !program.value.starts_with('/') || program.value.ends_with('/') {
        let what = format!(
            "`run` in [[hook]] begins with \"{}\", not the path of a program",
            program.value.escape_debug()
        );
        f.error(program.at, what, "start it with /: nothing is looked up, and no shell is between");
        return None;
    }
    if let Some(bad) = run.value.iter().find(|argument| argument.value.contains('\0')) {
        f.error(bad.at, "`run` in [[hook]] has a character with the number 0", "remove it");
        return None;
    }
    Some(run.value)
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
