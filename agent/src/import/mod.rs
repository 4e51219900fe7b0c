//! `baton import`: a configuration of Baton that comes near to what keepalived or CTDB was told.
//!
//! Nothing is guessed in silence: what was assumed, what Baton doesn't need and what it can't express is a [`Remark`] with its
//! line. What comes out passes `baton check`. Reads the named file, and those that it includes; touches nothing.
//!
//! | from | to |
//! |---|---|
//! | keepalived: a `vrrp_instance`, or all those of a `vrrp_sync_group` | a `[[virtual_server]]` |
//! | CTDB: a line of `public_addresses` | a `[[virtual_server]]` with one address |
//! | interfaces that addresses are on | `[[port]]` |
//! | interfaces and subnets that share an address | one `[[segment]]` |

mod ctdb;
mod keepalived;
mod model;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::path::Path;

use crate::config::{self, ConfigErrors};

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// keepalived.conf.
    Keepalived,
    /// CTDB's public_addresses.
    Ctdb,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The configuration; it passes every check.
    pub text: String,
    /// What is to be known of it, in the order of the lines.
    pub remarks: Vec<Remark>,
}

/// Something that was assumed, is not needed, or can't be expressed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// The file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// What is the matter, and what to do.
    pub what: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file can't be read.
    #[error("{file}: cannot be read: {source}; name keepalived.conf or CTDB's public_addresses")]
    Read {
        /// Its name.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// There is no address in it that could be served.
    #[error("{file}: there is no address in it that Baton could serve{}", listed(remarks))]
    Nothing {
        /// Its name.
        file: String,
        /// What was found instead.
        remarks: Vec<Remark>,
    },
    /// What would come out is not good.
    #[error("{file}: what comes out of it would be refused, and must be written by hand:\n{errors}")]
    Refused {
        /// The file that was read.
        file: String,
        /// Why.
        errors: ConfigErrors,
    },
}

fn listed(remarks: &[Remark]) -> String {
    remarks.iter().map(|r| format!("\n{r}")).collect()
}

/// Reads a file. Without `kind`, its content says what it is.
///
/// # Errors
/// It can't be read, or nothing good comes of it.
pub fn import(path: &Path, kind: Option<Kind>) -> Result<Imported, ImportError> {
    let file = path.display().to_string();
    match std::fs::read(path) {
        // Names and comments may be in any encoding; what is imported is ASCII.
        Ok(bytes) => translate(&String::from_utf8_lossy(&bytes), &file, kind),
        Err(source) => Err(ImportError::Read { file, source }),
    }
}

/// As [`import`], of this text.
///
/// # Errors
/// As [`import`].
pub fn translate(text: &str, file: &str, kind: Option<Kind>) -> Result<Imported, ImportError> {
    let mut remarks = Remarks::new(file);
    let model = match kind.unwrap_or_else(|| kind_of(text)) {
        Kind::Keepalived => keepalived::read(text, &mut remarks),
        Kind::Ctdb => ctdb::read(text, &mut remarks),
    };
    let text = model.text(&mut remarks);
    let mut remarks = remarks.list;
    remarks.sort_by(|a, b| (a.file != file, &a.file, a.line).cmp(&(b.file != file, &b.file, b.line)));
    remarks.dedup();
    let file = file.to_owned();
    let Some(text) = text else { return Err(ImportError::Nothing { file, remarks }) };
    match config::parse(&text, "imported") {
        Ok(_) => Ok(Imported { text, remarks }),
        Err(errors) => Err(ImportError::Refused { file, errors }),
    }
}

/// A line of CTDB's file begins with an address and its prefix length.
fn kind_of(text: &str) -> Kind {
    let first = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with(['#', '!']));
    let word = first.and_then(|line| line.split_whitespace().next());
    match word.map(str::parse::<ipnet::IpNet>) {
        Some(Ok(_)) => Kind::Ctdb,
        Some(Err(_)) | None => Kind::Keepalived,
    }
}

/// Remarks about the file that is being read.
struct Remarks {
    file: String,
    list: Vec<Remark>,
}

impl Remarks {
    fn new(file: &str) -> Remarks {
        Remarks { file: file.to_owned(), list: Vec::new() }
    }

    fn add(&mut self, place: &Place, what: impl Into<String>) {
        let file = place.file.clone().unwrap_or_else(|| self.file.clone());
        self.list.push(Remark { file, line: place.line, what: what.into() });
    }
}

/// Where something stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    /// The file, where it isn't the one that was named.
    file: Option<String>,
    line: usize,
}

/// A word of somebody else's file, as it may be shown.
fn shown(word: &str) -> String {
    word.escape_debug().to_string()
}
