//! `baton replay`: a recorded input log, decided again.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use baton_core::{Effect, Input};

use super::CliError;
use crate::slow::record;

/// Prints every step: when, what core was told, and what it asks for. Fails where that differs from the record.
pub(super) fn command(file: &Path) -> Result<(), CliError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    let replayed = record::replay(file, |line, at, input, effects| {
        if written.is_ok() && !(effects.is_empty() && routine(input)) {
            written = step(&mut out, line, &at.to_string(), input, effects);
        }
    })
    .map_err(|e| CliError::Other(e.to_string()))?;
    written?;
    if replayed.skipped > 0 {
        writeln!(out, "{} steps before the first checkpoint could not be replayed", replayed.skipped)?;
    }
    match replayed.different.first() {
        None => writeln!(out, "{} steps replayed: the same effects, every one", replayed.steps)?,
        Some(first) => {
            out.flush()?;
            let (n, of) = (replayed.different.len(), replayed.steps);
            return Err(CliError::Other(format!(
                "{n} of {of} steps gave other effects than recorded, the first in line {first}; was the log written by another version?"
            )));
        }
    }
    Ok(out.flush()?)
}

/// Inputs that come all the time and are of no interest when nothing follows from them.
fn routine(input: &Input) -> bool {
    matches!(input, Input::Sample(_) | Input::Minute(_) | Input::Wake)
}

fn step(out: &mut impl Write, line: usize, at: &str, input: &Input, effects: &[Effect]) -> io::Result<()> {
    match input {
        Input::Start(s) => writeln!(
            out,
            "{line:>6}  {at}  start: node {}, incarnation {}, {} addresses adopted",
            s.config.node,
            s.incarnation,
            s.bound.len()
        )?,
        other => writeln!(out, "{line:>6}  {at}  {other:?}")?,
    }
    effects.iter().try_for_each(|e| match e {
        Effect::Event(e) => writeln!(out, "{:>24}* {:?}", "", e.kind),
        other => writeln!(out, "{:>24}> {other:?}", ""),
    })
}
