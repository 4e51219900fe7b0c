//! Control groups, version 2: who belongs to a service, whatever it forks (Documentation/admin-guide/cgroup-v2.rst).
//!
//! Where there is none, or none may be made, a service's processes are known by a variable in their environment.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Mount};
use super::process::{self, Process};

/// How often a group is tried to be made.
const TRIES: u32 = 16;

/// Makes the group, with those above it.
///
/// # Errors
/// There is no such file system, or it may not be written.
pub fn make(group: &Path) -> io::Result<()> {
    // Those above it go with the last group below them, perhaps in this moment.
    let is_gone = |made: &io::Result<()>| made.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
    let mut tries = (0..TRIES).map(|_| fs::create_dir_all(group));
    tries.find(|made| !is_gone(made)).unwrap_or(Err(io::ErrorKind::NotFound.into()))?;
    // An ordinary folder has no such file.
    fs::metadata(group.join("cgroup.procs")).map(|_| ())
}

/// What a process that is about to be started enters the group by.
///
/// # Errors
/// The group is gone.
pub fn door(group: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(group.join("cgroup.procs"))
}

/// The living processes of a group and of those below it.
pub fn members(group: &Path) -> Vec<Process> {
    let mut found = process::listed_in(&group.join("cgroup.procs"));
    below(group).iter().for_each(|lower| found.extend(members(lower)));
    found
}

/// Removes a group without processes, and those below it.
pub fn remove(group: &Path) {
    below(group).iter().for_each(|lower| remove(lower));
    // One that is gone, or has processes after all, is left.
    let _ = fs::remove_dir(group);
}

fn below(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(folder).map(|entry| entry.path()).collect()
}

/// Where the hierarchy is mounted, if it can be reached there.
pub fn hierarchy() -> Option<PathBuf> {
    let mounts = mountinfo::read().ok()?;
    let reached = |m: &Mount| {
        let found = fs::metadata(&m.point).ok()?;
        let (major, minor) = (libc::major(found.dev()), libc::minor(found.dev()));
        ((major, minor) == m.device).then(|| m.point.clone())
    };
    mounts.iter().filter(|m| m.kind == "cgroup2" && m.root == Path::new("/")).find_map(reached)
}
