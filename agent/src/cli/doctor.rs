//! `baton doctor`.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::path::Path;

use serde::Serialize;

use super::text::{Tint, count, one_line, tinted};
use super::{CliError, check};
use crate::config;
use crate::doctor::{Finding, Level, examine, gather};

/// What is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// As JSON, one line
    #[arg(long)]
    json: bool,
    /// What `baton doctor` on another node says of its probe key: they must be equal
    #[arg(long, value_name = "FINGERPRINT")]
    key_fingerprint: Option<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    node: &'a str,
    problems: usize,
    warnings: usize,
    findings: &'a [Finding],
}

pub(super) fn command(file: &Path, options: &Options) -> Result<(), CliError> {
    let loaded = config::load(file)?;
    let notes = check::remarks(&loaded);
    let facts = gather(&loaded, notes, options.key_fingerprint.clone());
    let facts = facts.map_err(|e| CliError::Other(format!("nothing can be asked: {e}")))?;
    let findings = examine(&facts);
    let number = |level: Level| findings.iter().filter(|f| f.level == level).count();
    let (problems, warnings) = (number(Level::Problem), number(Level::Warning));
    if options.json {
        let report = Report { node: &loaded.core.node, problems, warnings, findings: &findings };
        writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(stdout(), "{}", page(&findings, stdout().is_terminal()))?;
        writeln!(stdout(), "\n{}, {}", count(problems, "problem"), count(warnings, "warning"))?;
    }
    match problems {
        0 => Ok(()),
        _ => Err(CliError::Other(format!("{} found; each says what to do", count(problems, "problem")))),
    }
}

/// Place by place; what to do is indented below.
fn page(findings: &[Finding], colour: bool) -> String {
    let mut page = String::new();
    let mut place = "";
    for finding in findings {
        if finding.place != place {
            place = &finding.place;
            page += &format!("{}\n", tinted(&one_line(place), Tint::Heading, colour));
        }
        let tint = match finding.level {
            Level::Ok => Tint::Good,
            Level::Note => Tint::Plain,
            Level::Warning => Tint::Warning,
            Level::Problem => Tint::Bad,
        };
        let word = tinted(&format!("{:<7}", finding.level.word()), tint, colour);
        page += &format!("  {word}  {}\n", one_line(&finding.what));
        if !finding.remedy.is_empty() {
            page += &format!("           -> {}\n", one_line(&finding.remedy));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stand_once_and_remedies_below() {
        let finding = |level, place: &str, what: &str, remedy: &str| Finding {
            level,
            place: place.to_owned(),
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        };
        let findings = [
            finding(Level::Ok, "kernel", "is new", ""),
            finding(Level::Warning, "kernel", "is slow", "hurry\nit"),
            finding(Level::Problem, "port eth0", "is gone", "find it"),
        ];
        let wanted = "kernel\n  ok       is new\n  warning  is slow\n           -> hurry it\nport eth0\n  problem  is gone\n           -> find it\n";
        assert_eq!(page(&findings, false), wanted);
        assert!(page(&findings, true).contains("\x1b[1;31mproblem\x1b[0m"));
    }
}
