//! Who keeps a file system from being unmounted.
//!
//! Only /proc is read, never the file system itself: it may hang.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::mountinfo;
use super::process::{self, Process};

/// A process that holds a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub process: Process,
    /// By what.
    pub how: &'static str,
}

/// So many are named; the others are counted.
const NAMED: usize = 5;

/// The processes that use the file system on this device, mounted here: each once, by the first thing found.
pub fn find(point: &Path, device: (u32, u32)) -> Vec<Holder> {
    let own = namespace("thread-self");
    let mut seen: HashSet<PathBuf> = own.iter().cloned().collect();
    let mut found = Vec::new();
    for pid in process::all() {
        let Some(process) = Process::of(pid).filter(Process::is_alive) else { continue };
        if let Some(how) = used_by(pid, point, device) {
            found.push(Holder { process, how });
        } else if let Some(other) = namespace(&pid.to_string())
            // Every namespace has many processes with the same mounts.
            && seen.insert(other)
            && is_mounted_for(pid, device)
        {
            found.push(Holder { process, how: "its mount namespace" });
        }
    }
    found
}

fn used_by(pid: i32, point: &Path, device: (u32, u32)) -> Option<&'static str> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let leads_there = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(point));
    let ways = [("cwd", "its working folder"), ("root", "its root"), ("exe", "its program")];
    if let Some((_, how)) = ways.iter().find(|(link, _)| leads_there(&folder.join(link))) {
        return Some(how);
    }
    let open = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    if open.into_iter().any(|entry| leads_there(&entry.path())) {
        return Some("an open file");
    }
    // ADDRESS PERMISSIONS OFFSET DEVICE INODE PATH, the device in hexadecimal (proc(5)).
    let number = format!("{:02x}:{:02x}", device.0, device.1);
    let maps = fs::read(folder.join("maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    let mapped = maps.lines().any(|line| line.split_whitespace().nth(3) == Some(&number));
    mapped.then_some("a mapped file")
}

fn namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

fn is_mounted_for(pid: i32, device: (u32, u32)) -> bool {
    let text = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mountinfo::parse(&String::from_utf8_lossy(&text)).iter().any(|m| m.device == device)
}

/// "smbd (712): an open file; bash (99): its working folder".
pub fn describe(holders: &[Holder]) -> String {
    let one = |holder: &Holder| format!("{}: {}", holder.process.name(), holder.how);
    let mut text = holders.iter().take(NAMED).map(one).collect::<Vec<_>>().join("; ");
    if holders.len() > NAMED {
        text += &format!("; and {} more", holders.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::super::tests::Guarded;
    use super::*;

    #[test]
    fn working_folders_files_and_maps_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().canonicalize().expect("there");
        fs::write(path.join("file"), "x").expect("written");
        let device = (u32::MAX, u32::MAX); // nothing is mapped from there
        assert_eq!(find(&path, device), []);
        let start = Guarded::start;
        let inside = start(Command::new("/bin/sleep").arg("1000").current_dir(&path));
        let reader = start(
            Command::new("/bin/sh").arg("-c").arg(format!("exec 7<{}/file; sleep 60 & wait", path.display())),
        );
        let how = |pid| find(&path, device).iter().find(|h| h.process.pid == pid).map(|h| h.how);
        let wait = |pid, wanted| {
            assert!((0..1000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                how(pid) == Some(wanted)
            }));
        };
        wait(inside.pid(), "its working folder");
        wait(reader.pid(), "an open file");
        // The shell's child has its file, too.
        let mut found = Vec::new();
        assert!((0..1000).any(|_| {
            found = find(&path, device);
            found.len() == 3
        }));
        assert!(describe(&found).contains(&format!("sleep ({}): its working folder", inside.pid())));
        for holder in found {
            holder.process.signal(libc::SIGKILL);
        }
        drop((inside, reader));

        let number = fs::metadata("/bin/sleep").expect("there").dev();
        let device = (libc::major(number), libc::minor(number));
        let other = start(Command::new("/bin/sleep").arg("1000"));
        let mapped = || {
            let held = find(Path::new("/nowhere"), device);
            held.iter().any(|h| h.process.pid == other.pid() && h.how == "a mapped file")
        };
        let tries = (0..1000).any(|_| mapped());
        drop(other);
        assert!(tries, "its program is mapped");
    }
}
