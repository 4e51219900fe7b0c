//! `baton reload`: the running agent reads its configuration file anew.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use super::CliError;
use crate::control::{How, ReloadAnswer, ReloadRequest, Request, ask};

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Shows what is different, and has it taken up unless `dry_run`.
pub(super) fn command(socket: &Path, dry_run: bool) -> Result<(), CliError> {
    let mut answers = ask(socket, &Request::Reload(ReloadRequest { dry_run }))?;
    answers.limit(Some(PATIENCE))?;
    let Some(line) = answers.next() else {
        return Err(CliError::Other("the agent ended meanwhile; see `journalctl -u baton`".to_owned()));
    };
    let ReloadAnswer { refused, how, changes } = serde_json::from_str(&line?)?;
    if let Some(error) = refused {
        return Err(CliError::BadFile(error));
    }
    let mut out = io::stdout().lock();
    for line in &changes {
        writeln!(out, "{line}")?;
    }
    let what = match (how, dry_run) {
        (How::Nothing, _) => "nothing is different",
        (How::InPlace, true) => {
            "nothing was changed (--dry-run); this would be changed, and nothing else touched"
        }
        (How::Anew, true) => {
            "nothing was changed (--dry-run); the agent would start anew with this, adopting what is served and what runs"
        }
        (How::InPlace, false) => "this is in force; nothing else was touched",
        (How::Anew, false) => "the agent starts anew with this, and adopts what is served and what runs",
    };
    writeln!(out, "{what}")?;
    Ok(())
}
