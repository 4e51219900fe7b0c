//! Everything that can go wrong in a lab, with what was tried.

use std::io;
use std::path::PathBuf;

/// Why a lab operation failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The lab was started without root's capabilities.
    #[error("a lab needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN): run it as root")]
    NotRoot,
    /// A system call or file operation failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried, with its operands.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("netlink in {host}: {what}: {source}")]
    Netlink {
        /// Host or switch whose namespace was meant.
        host: String,
        /// The request.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No host, port or segment of that name in this lab.
    #[error("lab {lab} has no {what}")]
    Unknown {
        /// The lab.
        lab: String,
        /// What was looked for.
        what: String,
    },
    /// A name that the kernel would refuse for an interface, or one that is taken.
    #[error("bad name {name:?}: {why}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An address that does not parse or does not fit.
    #[error("bad address {text:?}: {why}")]
    BadAddress {
        /// The text or value given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The program that a lab should run is not there.
    #[error("{} does not exist: run `cargo build` first, or name the program in BATON_BIN", path.display())]
    NoBinary {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A process or a condition did not come in time.
    #[error("{what} did not happen within {} ms", limit.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: std::time::Duration,
    },
}

/// Adds what was tried to an I/O error.
pub(crate) trait Context<T> {
    /// Turns the error into [`LabError::System`] with `what`.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|error| LabError::System { what: what(), source: error.into() })
    }
}
