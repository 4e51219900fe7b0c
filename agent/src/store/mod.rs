//! Ownership, incarnations and saved settings, behind one small trait.
//!
//! The slow thread alone talks to a store: every call may wait for a disk. A call either happens as a whole or not at
//! all, also when the process is killed in its middle. Nothing is decided here.

pub mod etcd;
mod file;

use std::collections::BTreeMap;
use std::path::PathBuf;

use baton_core::Owner;

pub use file::FileStore;

/// Definitions and ownership that outlive the agent.
pub trait Store: Send {
    /// The incarnation of this boot: the one already allotted to `boot_id` (/proc/sys/kernel/random/boot_id), or,
    /// for a boot not seen last, one higher than any before. Never 0.
    ///
    /// # Errors
    /// The store can't be read or written.
    fn next_incarnation(&mut self, boot_id: &str) -> Result<u64, StoreError>;

    /// Writes this node into the owner record of `server`, in one transaction. The first take has epoch 1; a take by
    /// the incarnation that already owns it (a touch) keeps the epoch; one by a higher incarnation raises it by one.
    ///
    /// # Errors
    /// [`StoreError::Stale`] if the record names a higher incarnation; or the store can't be read or written.
    fn take(&mut self, server: &str, incarnation: u64) -> Result<Owner, StoreError>;

    /// Every owner record, by virtual server.
    ///
    /// # Errors
    /// The store can't be read.
    fn owners(&self) -> Result<BTreeMap<String, Owner>, StoreError>;

    /// Keeps what a setting of the system was before Baton changed it, unless one is kept already. Returns whether it
    /// was kept now.
    ///
    /// # Errors
    /// The store can't be read or written.
    fn save_original(&mut self, key: &str, value: &str) -> Result<bool, StoreError>;

    /// Every kept original, by key.
    ///
    /// # Errors
    /// The store can't be read.
    fn originals(&self) -> Result<BTreeMap<String, String>, StoreError>;

    /// Forgets an original that has been restored; it is no error if there is none.
    ///
    /// # Errors
    /// The store can't be written.
    fn forget_original(&mut self, key: &str) -> Result<(), StoreError>;
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error(
        "store {path}: another process has it open; stop that agent, or give this one another `store.path`"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged, or no store at all.
    #[error(
        "store {path}: damaged or not a Baton store ({detail}); move it away: ownership and saved settings in it are lost, and the agent makes a new one"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// It was written by a version that this one can't read.
    #[error(
        "store {path}: written by another version of Baton (format {found}, this version reads {known}); install that version"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Format in the file.
        found: u64,
        /// Format this version reads.
        known: u64,
    },
    /// The disk is full.
    #[error("store {path}: no space left; free some on its file system")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error(
        "store {path}: cannot {operation}: {source}; check that its folder exists and that the agent may write there"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The record names a higher incarnation than the taker's.
    #[error(
        "virtual server \"{server}\" is owned by incarnation {owner}, this agent has {incarnation}; restart it so that it takes a higher one"
    )]
    Stale {
        /// The virtual server.
        server: String,
        /// Incarnation in the record.
        owner: u64,
        /// Incarnation of the taker.
        incarnation: u64,
    },
}
