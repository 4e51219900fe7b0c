//! What tests of several modules need.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// For everything that happens at all.
pub const LONG: Duration = Duration::from_secs(60);

/// Waits until something is so.
///
/// # Panics
/// It isn't after [`LONG`].
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not after {LONG:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a file that somebody reads meanwhile: they see the old text or the new one.
///
/// # Panics
/// It can't be written.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(&new, path).expect("renamed");
}

/// Makes a shell script that may be executed at once.
///
/// Another process writes it: were it open for writing here, what another thread starts meanwhile would hold it open for a moment,
/// and execve(2) would refuse it with ETXTBSY.
///
/// # Panics
/// It can't be made.
pub fn script(path: &Path, text: &str) {
    let source = path.with_extension("source");
    fs::write(&source, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).expect("executable");
    let copied = Command::new("cp").arg("-p").args([&source, path]).status().expect("cp");
    assert!(copied.success(), "cp: {copied}");
    fs::remove_file(&source).expect("removed");
}
