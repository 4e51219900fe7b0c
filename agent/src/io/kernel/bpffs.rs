//! The folders on the BPF file system.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use baton_common::LAYOUT_VERSION;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::KernelError;
use super::attach::remove_links;

/// Source of a mount that Baton made, by which it is known again.
const MOUNT_SOURCE: &str = "baton";

/// Where the maps of this layout are pinned.
pub(super) fn maps_dir(dir: &Path) -> PathBuf {
    dir.join(format!("v{LAYOUT_VERSION}"))
}

/// Where the links are pinned.
pub(super) fn links_dir(dir: &Path) -> PathBuf {
    dir.join("links")
}

/// Makes the folders, on a BPF file system that is mounted if need be; returns that of the maps.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf, KernelError> {
    if !is_bpffs(dir) && !dir.parent().is_some_and(is_bpffs) {
        mount_bpffs(dir)?;
    }
    let maps_dir = maps_dir(dir);
    for folder in [dir, &maps_dir, &links_dir(dir)] {
        make_dir(folder)?;
    }
    Ok(maps_dir)
}

/// Mounts a BPF file system at the folder; where that can't be made (`/sys/fs/bpf/baton`, with nothing mounted below
/// `/sys/fs`), at its parent.
fn mount_bpffs(dir: &Path) -> Result<(), KernelError> {
    let existed = dir.exists();
    let made = fs::create_dir_all(dir);
    let point = match (&made, dir.parent()) {
        (Err(_), Some(parent)) if parent.is_dir() => parent,
        _ => dir,
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some(MOUNT_SOURCE), point, Some("bpf"), flags, Some("mode=0700"));
    mounted.map_err(|error| {
        if !existed {
            let _ = fs::remove_dir(dir); // best effort: what matters is why there is no mount
        }
        match error {
            Errno::EPERM => KernelError::Privilege { what: "mount a BPF file system" },
            error => KernelError::Bpffs { path: point.to_owned(), source: error.into() },
        }
    })
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}

pub(super) fn make_dir(path: &Path) -> Result<(), KernelError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(KernelError::Privilege { what: "write to the BPF file system" })
        }
        Err(source) => Err(KernelError::Pin { path: path.to_owned(), source }),
    }
}

/// Removes the maps of other layouts.
pub(super) fn remove_other_layouts(dir: &Path) -> Result<(), KernelError> {
    let this = maps_dir(dir);
    for path in layouts(dir)?.iter().filter(|path| **path != this) {
        remove_dir(path)?;
    }
    Ok(())
}

/// The folders of maps. The root of a BPF file system also has entries of the kernel's own.
pub(super) fn layouts(dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let mut paths = entries(dir)?;
    paths.retain(|path| {
        let version = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
        version.is_some_and(|version| version.parse::<u32>().is_ok())
    });
    Ok(paths)
}

/// Takes away everything that Baton made below the folder: links, and with them the programs on every port, maps, the
/// folders, and the mount if it is Baton's. It is no error if there is nothing.
///
/// # Errors
///
/// Missing privileges; something cannot be removed.
pub fn remove_all(bpffs_dir: &Path) -> Result<(), KernelError> {
    if !is_bpffs(bpffs_dir) {
        return Ok(());
    }
    remove_links(bpffs_dir)?;
    for path in layouts(bpffs_dir)?.iter().chain([&links_dir(bpffs_dir)]) {
        remove_dir(path)?;
    }
    if is_own_mount(bpffs_dir) && !holds_others(bpffs_dir)? {
        // Detached: whoever walks over the mount just now, or copies the mounts of this namespace, would make it busy.
        umount2(bpffs_dir, MntFlags::MNT_DETACH).map_err(|source| pin_error(bpffs_dir, source.into()))?;
    }
    match fs::remove_dir(bpffs_dir) {
        // A mount of the administrator's stays, and one that holds pins of others.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        Err(source) => Err(pin_error(bpffs_dir, source)),
        Ok(()) => Ok(()),
    }
}

/// Something is left that is neither Baton's nor one of the kernel's own entries at the root of a BPF file system.
fn holds_others(dir: &Path) -> Result<bool, KernelError> {
    let kernels = |path: &Path| path.extension().is_some_and(|extension| extension == "debug");
    Ok(entries(dir)?.iter().any(|path| !kernels(path)))
}

/// The folder itself is a mount point, of a file system that Baton mounted.
fn is_own_mount(dir: &Path) -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    // 36 35 98:0 / /mnt rw,noatime shared:1 - bpf baton rw,mode=700 (proc_pid_mountinfo(5))
    mounts.lines().any(|line| {
        let mut halves = line.splitn(2, " - ");
        let (first, second) = (halves.next().unwrap_or(""), halves.next().unwrap_or(""));
        first.split(' ').nth(4).is_some_and(|point| Path::new(point) == dir)
            && second.split(' ').take(2).eq(["bpf", MOUNT_SOURCE])
    })
}

/// Removes a folder of pins, which may hold further folders.
pub(super) fn remove_dir(dir: &Path) -> Result<(), KernelError> {
    for path in entries(dir)? {
        if path.is_dir() {
            remove_dir(&path)?;
        } else {
            remove_pin(&path)?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(pin_error(dir, source)),
        Ok(()) => Ok(()),
    }
}

/// Removes a pin; it is no error if it is gone.
pub(super) fn remove_pin(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(pin_error(path, source)),
        Ok(()) => Ok(()),
    }
}

/// What is in a folder, in order; nothing if it doesn't exist.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let listing = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(|source| pin_error(dir, source))?,
    };
    let mut paths = Vec::new();
    for entry in listing {
        paths.push(entry.map_err(|source| pin_error(dir, source))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn pin_error(path: &Path, source: io::Error) -> KernelError {
    KernelError::Pin { path: path.to_owned(), source }
}
