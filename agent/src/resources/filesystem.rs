//! The driver of file systems: mount(2) and umount2(2), in processes that may hang.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::Failure;
use super::command::{self, Command, Fault, in_child};
use super::holders;
use super::mountinfo::{self, Mount};
use super::orders::Patience;
use super::process::{Ended, Process};
use crate::config::Filesystem;

/// Between two tries to unmount what is busy, and how many there are before it is said.
const AGAIN: (Duration, usize) = (Duration::from_millis(40), 5);
/// Between SIGTERM and SIGKILL for what the services left behind.
const GENTLY: Duration = Duration::from_millis(300);
/// MS_NOSYMFOLLOW of linux/mount.h.
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// What is at the mount point.
enum Found {
    Nothing,
    Own(Mount),
    Other(Mount),
}

/// Is it mounted, from its device, at its place?
pub fn is_mounted(fs: &Filesystem) -> bool {
    matches!(look(fs), Ok(Found::Own(_)))
}

/// What is wrong with it, where it is to be mounted; `None`: nothing.
pub fn trouble(fs: &Filesystem) -> Option<String> {
    match look(fs) {
        Ok(Found::Own(mount)) => mount.is_damaged(is_read_only(fs)).map(str::to_owned),
        Ok(Found::Nothing) => Some("is no longer mounted".to_owned()),
        Ok(Found::Other(other)) => Some(format!("is hidden by {}", other.source.display())),
        Err(e) => Some(format!("can't be looked at: {e}")),
    }
}

fn look(fs: &Filesystem) -> io::Result<Found> {
    let Some(point) = point(fs) else { return Ok(Found::Nothing) };
    let mounts = mountinfo::read()?;
    Ok(match mountinfo::at(&mounts, &point) {
        None => Found::Nothing,
        Some(found) if is_of(fs, found) && found.root == Path::new("/") => Found::Own(found.clone()),
        Some(found) => Found::Other(found.clone()),
    })
}

/// The mount point as the kernel calls it. It is not looked into itself: it may hang. `None`: its parent isn't there.
fn point(fs: &Filesystem) -> Option<PathBuf> {
    let parent = fs.mount.parent()?.canonicalize().ok()?;
    Some(parent.join(fs.mount.file_name()?))
}

/// Is this mounted from its device? Some file systems have device numbers of their own, and a device may be gone.
fn is_of(fs: &Filesystem, found: &Mount) -> bool {
    let same_path = found.source == fs.device || fs.device.canonicalize().is_ok_and(|d| d == found.source);
    same_path || number(&fs.device) == Some(found.device)
}

fn number(device: &Path) -> Option<(u32, u32)> {
    let found = fs::metadata(device).ok().filter(|found| found.file_type().is_block_device())?;
    Some((libc::major(found.rdev()), libc::minor(found.rdev())))
}

/// Checks it, if that is wanted, and mounts it.
///
/// # Errors
/// [`Failure`]; it is not mounted then, unless the kernel still hangs over it.
pub fn start(fs: &Filesystem, patience: &Patience<'_>, stuck: impl FnOnce(Process)) -> Result<(), Failure> {
    let what = || format!("{} on {}", fs.device.display(), fs.mount.display());
    let failed = |why: String| Err(Failure::Failed(format!("{}: {why}", what())));
    match look(fs) {
        Ok(Found::Own(_)) => return Ok(()),
        Ok(Found::Nothing) => {}
        Ok(Found::Other(other)) => {
            return failed(format!("{} is mounted there already; unmount it", other.source.display()));
        }
        Err(e) => return failed(e.to_string()),
    }
    match fs::metadata(&fs.device) {
        Ok(found) if found.file_type().is_block_device() => {}
        Ok(_) => return failed("it is no block device".to_owned()),
        Err(e) => return failed(format!("the device: {e}")),
    }
    let mounts = mountinfo::read().unwrap_or_default();
    if let Some(elsewhere) = mounts.iter().find(|m| is_of(fs, m)) {
        let place = elsewhere.point.display();
        return failed(format!(
            "it is mounted on {place} already; unmount it, and take it out of /etc/fstab"
        ));
    }
    match fs::symlink_metadata(&fs.mount) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return failed("the mount point is no folder".to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Err(e) = fs::create_dir_all(&fs.mount) {
                return failed(format!("the mount point: {e}"));
            }
        }
        Err(e) => return failed(format!("the mount point: {e}")),
    }
    if fs.fsck {
        check(fs, patience)?;
    }
    let (flags, data) = flags(&fs.options);
    let text = |path: &Path| {
        use std::os::unix::ffi::OsStrExt;
        std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
    };
    let (device, point) = (text(&fs.device), text(&fs.mount));
    let (kind, data) = (text(Path::new(&fs.kind)), text(Path::new(&data)));
    let mounted = in_child(patience, || {
        forget_cached(&device);
        mount(Some(&*device), &*point, Some(&*kind), flags, Some(&*data))
    });
    match mounted {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) => failed(format!("mount: {}{}", errno.desc(), hint(errno))),
        Err(Fault::Told) => Err(Failure::Told),
        Err(fault) => {
            let text = format!("mount: {fault}");
            if let Fault::Stuck(process) = fault {
                stuck(process);
            }
            failed(text)
        }
    }
}

mod ioctl {
    // BLKFLSBUF of linux/fs.h
    nix::ioctl_none!(flush_buffers, 0x12, 97);
}

/// What the kernel still has of a device may be older than what another node has written since. Whoever looks at the device now and
/// then (a probe, udev) may have kept that from being forgotten when it was unmounted here.
fn forget_cached(device: &std::ffi::CStr) {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    if let Ok(device) = open(device, flags, Mode::empty()) {
        // SAFETY: takes no argument. Where it fails, mount(2) will tell what is wrong with the device.
        let _ = unsafe { ioctl::flush_buffers(device.as_raw_fd()) };
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EBUSY => ": somebody else uses the device",
        Errno::ENODEV => ": the kernel has no such type of file system",
        Errno::EINVAL => {
            ": no file system of this type on it, or an option that it doesn't know; see the kernel's log"
        }
        Errno::EUCLEAN | Errno::EBADMSG => ": it is damaged; check it with fsck",
        Errno::EPERM => ": the agent needs CAP_SYS_ADMIN in the host's mount namespace",
        _ => "",
    }
}

/// fsck(8): 0 is clean, 1 corrected.
fn check(fs: &Filesystem, patience: &Patience<'_>) -> Result<(), Failure> {
    let argv = [format!("fsck.{}", fs.kind), "-p".to_owned(), fs.device.display().to_string()];
    let done = Command { argv: &argv, variables: &[], group: None, input: &[] }.run(patience);
    let what = format!("fsck.{} -p {}", fs.kind, fs.device.display());
    match done {
        Ok(done) if matches!(done.ended, Ended::Exit(0 | 1)) => Ok(()),
        Ok(done) => Err(Failure::Failed(format!("{what}: {}", done.why()))),
        Err(fault) => Err(Failure::from(fault).of(&what)),
    }
}

/// Unmounts it. What the virtual server's own processes hold is taken from them; `own` finds these.
///
/// # Errors
/// [`Failure`]; it is, or may be, still mounted then.
pub fn stop(
    fs: &Filesystem,
    patience: &Patience<'_>,
    own: impl Fn() -> Vec<Process>,
    stuck: impl FnOnce(Process),
) -> Result<(), Failure> {
    let result = unmount(fs, patience, own).and_then(|()| release(fs, patience));
    result.map_err(|fault| match fault {
        Trouble::Failed(why) => Failure::Failed(format!("{}: {why}", fs.mount.display())),
        Trouble::Fault(Fault::Told) => Failure::Told,
        Trouble::Fault(fault) => {
            let text = format!("{}: unmount: {fault}", fs.mount.display());
            if let Fault::Stuck(process) = fault {
                stuck(process);
            }
            Failure::Failed(text)
        }
    })
}

enum Trouble {
    Failed(String),
    Fault(Fault),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::Fault(fault)
    }
}

fn unmount(fs: &Filesystem, patience: &Patience<'_>, own: impl Fn() -> Vec<Process>) -> Result<(), Trouble> {
    use std::os::unix::ffi::OsStrExt;
    let mut tries = 0;
    loop {
        let mount = match look(fs) {
            Ok(Found::Nothing) => return Ok(()),
            Ok(Found::Own(mount)) => mount,
            // Below it may be ours. Whoever mounted this has to take it away.
            Ok(Found::Other(other)) if lies_below(fs) => {
                return Err(Trouble::Failed(format!("{} is mounted over it", other.source.display())));
            }
            Ok(Found::Other(_)) => return Ok(()),
            Err(e) => return Err(Trouble::Failed(e.to_string())),
        };
        let point = std::ffi::CString::new(mount.point.as_os_str().as_bytes()).unwrap_or_default();
        match in_child(&patience.unless_hopeless(), || umount2(&*point, MntFlags::UMOUNT_NOFOLLOW))? {
            Ok(()) => continue, // it may have been mounted more than once
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(Trouble::Failed(format!("unmount: {}", errno.desc()))),
        }
        tries += 1;
        let holders = holders::find(&mount.point, mount.device);
        let left_behind: Vec<Process> = {
            let own = own();
            holders.iter().map(|h| h.process).filter(|p| own.contains(p)).collect()
        };
        if !left_behind.is_empty() {
            let living = || left_behind.iter().copied().filter(Process::is_alive).collect();
            let remaining = command::end(living, GENTLY, patience);
            if !remaining.is_empty() && patience.is_hopeless() {
                return Err(Trouble::Failed(format!("it is busy; {}", who(&holders, &mount.point))));
            }
        } else if tries >= AGAIN.1 || !patience.pause(AGAIN.0) {
            if patience.is_told() {
                return Err(Fault::Told.into());
            }
            return Err(Trouble::Failed(format!("it is busy; {}", who(&holders, &mount.point))));
        }
    }
}

/// Who, in words.
fn who(holders: &[holders::Holder], point: &Path) -> String {
    let mounts = mountinfo::read().unwrap_or_default();
    let below = mounts.iter().find(|m| m.point != point && m.point.starts_with(point));
    match (holders, below) {
        ([], Some(below)) => format!("{} is mounted below it", below.point.display()),
        ([], None) => {
            "no process holds it: look for exports, swap files and loop devices that are on it".to_owned()
        }
        (some, _) => holders::describe(some),
    }
}

/// Is its device mounted at its place, under something else?
fn lies_below(fs: &Filesystem) -> bool {
    let mounts = mountinfo::read().unwrap_or_default();
    point(fs).is_some_and(|point| mounts.iter().any(|m| m.point == point && is_of(fs, m)))
}

/// Makes sure that nobody on this node uses the device: it could still be mounted in another mount namespace.
fn release(fs: &Filesystem, patience: &Patience<'_>) -> Result<(), Trouble> {
    use std::os::unix::ffi::OsStrExt;
    let device = std::ffi::CString::new(fs.device.as_os_str().as_bytes()).unwrap_or_default();
    let claim = || {
        let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        open(&*device, flags, Mode::empty()).map(drop)
    };
    for _ in 0..AGAIN.1 {
        match in_child(patience, claim)? {
            Err(Errno::EBUSY) => {}
            // What is gone is used by nobody; other errors say nothing about its use.
            Ok(()) | Err(_) => return Ok(()),
        }
        if !patience.pause(AGAIN.0) {
            break;
        }
    }
    if patience.is_told() {
        return Err(Fault::Told.into());
    }
    let holders = number(&fs.device).map(|n| holders::find(&fs.mount, n)).unwrap_or_default();
    let who = if holders.is_empty() { "nobody is found".to_owned() } else { holders::describe(&holders) };
    Err(Trouble::Failed(format!("{} is unmounted, but still in use; {who}", fs.device.display())))
}

fn is_read_only(fs: &Filesystem) -> bool {
    flags(&fs.options).0.contains(MsFlags::MS_RDONLY)
}

/// What mount(8) makes of options: the kernel's flags, and what is left for the file system.
fn flags(options: &str) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "lazytime" => flags |= MsFlags::MS_LAZYTIME,
            "nosymfollow" => flags |= NOSYMFOLLOW,
            "silent" => flags |= MsFlags::MS_SILENT,
            // The defaults, and words for /etc/fstab.
            "defaults" | "rw" | "suid" | "dev" | "exec" | "async" | "auto" | "noauto" | "nofail"
            | "_netdev" | "user" | "nouser" | "users" | "owner" | "group" => {}
            other if other.starts_with("x-") || other.starts_with("X-") || other.starts_with("comment=") => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
#[path = "filesystem_tests.rs"]
mod tests;
