//! The record of everything core was told and asked for, bounded, and its replay.
//!
//! One JSON value a line: a checkpoint (the whole machine) or a step (time, input, effects). Core is deterministic, so
//! a replay from any checkpoint gives the same effects; where it doesn't, core has changed since, or is wrong.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use baton_core::{Effect, Input, Machine, Time};
use serde::{Deserialize, Serialize};

/// A file is closed when it is longer than this and the next checkpoint comes; one older file is kept.
const ROTATE_BYTES: u64 = 8 << 20;
/// File name in the state directory; the older one ends in `.1`.
pub const FILE: &str = "inputs.jsonl";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Machine(Box<Machine>),
    Step { at: Time, input: Box<Input>, effects: Vec<Effect> },
}

/// Writes the record.
pub struct Recorder {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Recorder {
    /// Goes on with the record in this directory.
    pub fn open(state: &Path) -> io::Result<Recorder> {
        let path = state.join(FILE);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Recorder { path, file, bytes })
    }

    /// Writes a checkpoint; a full file is put aside first.
    pub fn checkpoint(&mut self, machine: Box<Machine>) -> io::Result<()> {
        if self.bytes > ROTATE_BYTES {
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            self.bytes = 0;
        }
        self.write(&Line::Machine(machine))
    }

    /// Writes a step.
    pub fn step(&mut self, at: Time, input: Input, effects: Vec<Effect>) -> io::Result<()> {
        self.write(&Line::Step { at, input: Box::new(input), effects })
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.file.write_all(&bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// What a replay found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Steps that were replayed.
    pub steps: usize,
    /// Steps before the first checkpoint, which can't be replayed.
    pub skipped: usize,
    /// Lines whose effects came out differently.
    pub different: Vec<usize>,
}

/// Why a record can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It can't be read.
    #[error("{path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A line isn't one of a record.
    #[error("{path}:{line}: not a line of a record: {error}")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        error: serde_json::Error,
    },
}

/// Replays a record and shows each step to `show`: its line, its time, what core was told, and what it asks for now.
pub fn replay(
    path: &Path,
    mut show: impl FnMut(usize, Time, &Input, &[Effect]),
) -> Result<Replayed, ReplayError> {
    let read = |error| ReplayError::Read { path: path.to_owned(), error };
    let mut machine: Option<Box<Machine>> = None;
    let mut replayed = Replayed::default();
    let mut lines = BufReader::new(File::open(path).map_err(read)?).lines().enumerate().peekable();
    while let Some((index, text)) = lines.next() {
        let line = index + 1;
        let text = text.map_err(read)?;
        let parsed = match serde_json::from_str(&text) {
            Ok(parsed) => parsed,
            // The agent was killed while it wrote its last line.
            Err(_) if lines.peek().is_none() => break,
            Err(error) => return Err(ReplayError::Line { path: path.to_owned(), line, error }),
        };
        match parsed {
            Line::Machine(m) => machine = Some(m),
            Line::Step { at, input, effects } => {
                // An agent's first input makes a machine whole, whatever was before.
                if machine.is_none() && matches!(*input, Input::Start(_)) {
                    machine = Some(Box::default());
                }
                let Some(machine) = machine.as_mut() else {
                    replayed.skipped += 1;
                    continue;
                };
                let again = machine.handle(at, (*input).clone());
                show(line, at, &input, &again);
                replayed.steps += 1;
                if again != effects {
                    replayed.different.push(line);
                }
            }
        }
    }
    Ok(replayed)
}
