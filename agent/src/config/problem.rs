//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;

use toml_span::{Error, ErrorKind};

/// One thing that is wrong or doubtful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1. Of a string: its first character after the quote.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub fix: String,
}

/// Everything found in a file, sorted by position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Name of the file.
    pub file: String,
    /// The problems.
    pub list: Vec<Problem>,
}

impl Problems {
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// One line for each: `file:line:column: what is wrong; what to do`.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.list.iter().enumerate() {
            let end = if i + 1 == self.list.len() { "" } else { "\n" };
            write!(f, "{}:{}:{}: {}; {}{end}", self.file, p.line, p.column, p.what, p.fix)?;
        }
        Ok(())
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// The file can't be read.
    #[error("{file}: cannot be read: {source}; name the configuration with --config FILE, or write it there")]
    Read {
        /// Its name.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{0}")]
    Invalid(Problems),
}

/// Collects problems by byte offset while a file is being read.
#[derive(Default)]
pub(super) struct Findings {
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

/// Ordered by its offset first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    at: usize,
    what: String,
    /// Offset of the place it collides with.
    first: Option<usize>,
    fix: String,
}

impl Findings {
    pub(super) fn error(&mut self, at: usize, what: impl Into<String>, fix: impl Into<String>) {
        self.errors.push(Finding { at, what: what.into(), first: None, fix: fix.into() });
    }

    /// An error whose text ends with the line of an earlier place.
    pub(super) fn error_after(&mut self, at: usize, first: usize, what: String, fix: String) {
        self.errors.push(Finding { at, what, first: Some(first), fix });
    }

    pub(super) fn warn(&mut self, at: usize, what: impl Into<String>, fix: impl Into<String>) {
        self.warnings.push(Finding { at, what: what.into(), first: None, fix: fix.into() });
    }

    /// The text is not TOML. The parser stops there, so this is the only problem known.
    pub(super) fn syntax(&mut self, error: &Error, text: &str) {
        let lines = Lines::of(text);
        let line = |at: usize| lines.position(text, at).0;
        let (what, fix) = match &error.kind {
            ErrorKind::DuplicateKey { key, first } => (
                format!("`{key}` is set twice, first in line {}", line(first.start)),
                "remove one of the two",
            ),
            ErrorKind::DuplicateTable { name, first } => (
                format!("the section `{name}` is there twice, first in line {}", line(first.start)),
                "put its keys into one",
            ),
            ErrorKind::UnquotedString => ("a value without quotes".to_owned(), "write text as \"text\""),
            ErrorKind::InvalidNumber => (
                "not a number".to_owned(),
                "write text, durations, addresses and dates in quotes, as \"10ms\" or \"10.0.0.1\"",
            ),
            _ => {
                (format!("not valid TOML: {error}"), "correct this place first, the rest is read after that")
            }
        };
        self.error(error.span.start, what, fix);
    }

    /// (errors, warnings), each sorted by position.
    pub(super) fn sorted(self, text: &str, file: &str) -> (Problems, Problems) {
        let lines = Lines::of(text);
        let finish = |mut list: Vec<Finding>| {
            list.sort();
            list.dedup();
            let list = list
                .into_iter()
                .map(|Finding { at, mut what, first, fix }| {
                    let (line, column) = lines.position(text, at);
                    if let Some(first) = first {
                        what = format!("{what}, first in line {}", lines.position(text, first).0);
                    }
                    Problem { line, column, what: printed(&what), fix: printed(&fix) }
                })
                .collect();
            Problems { file: file.to_owned(), list }
        };
        (finish(self.errors), finish(self.warnings))
    }
}

/// Without control characters and line ends: each problem is one line.
fn printed(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_debug()),
            false => line.push(c),
        }
    }
    line
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        Lines(std::iter::once(0).chain(text.match_indices('\n').map(|(n, _)| n + 1)).collect())
    }

    /// Line and column (both from 1, columns in characters) of a byte offset.
    fn position(&self, text: &str, at: usize) -> (usize, usize) {
        let mut at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let line = self.0.partition_point(|start| *start <= at);
        (line, text[self.0[line - 1]..at].chars().count() + 1)
    }
}
