//! One agent per node: an exclusive lock on a file in the state folder, let go by the kernel when its holder ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock; held until dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

/// Why this agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one runs.
    #[error("another agent runs on this node{}; stop it first", holder(*pid))]
    Held {
        /// Its process, if it has written it down.
        pid: Option<u32>,
    },
    /// The folder or file can't be made.
    #[error("{path}: cannot {operation}: {source}; run as root, or choose another folder as `paths.state`")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Takes the lock, making the state folder if need be (for root alone).
///
/// # Errors
/// Another agent holds it, or folder or file can't be made.
pub fn lock(state: &Path) -> Result<Lock, LockError> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(state).map_err(|source| LockError::Io {
        path: state.to_owned(),
        operation: "make this folder",
        source,
    })?;
    let path = state.join("lock");
    let fail = |operation| {
        let path = path.clone();
        move |source| LockError::Io { path, operation, source }
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o640)
        .open(&path)
        .map_err(fail("open it"))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(LockError::Held { pid });
        }
        Err((_, errno)) => return Err(fail("lock it")(errno.into())),
    };
    // Only for the message of the next one: a full disk must not keep an agent from running.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(Lock(lock))
}
