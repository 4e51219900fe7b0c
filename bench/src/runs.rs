//! What benchmarks have in common: runs, of which some may fail, and the files that the figures go to.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::report::Row;

/// What has come of a run that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It counts.
    Counts,
    /// It says nothing of the system: one more is done for it, as long as there are not more such runs than were asked for.
    Void,
}

/// Does so many runs. One that fails is told of, and does not end it. Returns a remark when some did.
pub fn repeat(name: &str, runs: usize, mut one: impl FnMut(usize) -> Result<Outcome>) -> Option<String> {
    let (mut failed, mut void) = (0, 0);
    let mut run = 0;
    while run < runs {
        run += 1;
        match one(run) {
            Ok(Outcome::Counts) => {}
            Ok(Outcome::Void) => {
                void += 1;
                run -= usize::from(void <= runs);
            }
            Err(error) => {
                failed += 1;
                eprintln!("FAILED: {name}, run {run}: {error:#}");
            }
        }
    }
    (failed > 0).then(|| format!("FAILED: {name}: {failed} of {runs} runs"))
}

/// Where the figures go to, besides the terminal.
#[derive(Args, Debug)]
pub struct Output {
    /// Write the rows to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page with drawings to this file.
    #[arg(long)]
    html: Option<PathBuf>,
}

impl Output {
    /// Writes what is asked for.
    pub fn write(&self, rows: &[Row], page: impl FnOnce() -> String) -> Result<()> {
        let write = |path: &PathBuf, text: String| {
            fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        if let Some(path) = &self.html {
            write(path, page())?;
        }
        if let Some(path) = &self.json {
            write(path, serde_json::to_string_pretty(rows).context("encode the rows")?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_failed_run_ends_nothing_and_a_void_one_is_done_again() {
        let mut done = Vec::new();
        let remark = repeat("it", 4, |run| {
            done.push(run);
            match done.len() {
                1 => bail!("no"),
                3 => Ok(Outcome::Void),
                _ => Ok(Outcome::Counts),
            }
        });
        assert_eq!(done, [1, 2, 3, 3, 4]);
        assert_eq!(remark.as_deref(), Some("FAILED: it: 1 of 4 runs"));
    }

    #[test]
    fn runs_that_are_all_void_come_to_an_end() {
        let mut done = 0;
        let remark = repeat("it", 3, |_| {
            done += 1;
            Ok(Outcome::Void)
        });
        assert_eq!((done, remark), (6, None));
    }
}
