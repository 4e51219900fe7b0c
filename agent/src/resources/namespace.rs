//! A mount namespace of a virtual server's own, where that is wanted: no other virtual server, and not the host, sees its file systems.
//!
//! The virtual server's thread is in it, and so is whatever that starts: what mounts and unmounts, services, and what checks and stops
//! them. It is kept by a bind mount of its file (namespaces(7)) below `/run/baton/.mounts`, so it outlives the agent, and the next
//! one's thread enters it again. It is there from the first start until everything is stopped.
//!
//! | mounts | are seen |
//! |---|---|
//! | the virtual server's | in its namespace alone |
//! | the host's, also those made later, where the host shares its mounts (as under systemd) | in it, too, until the host takes them away |
//! | other virtual servers', as far as they are there when it is made | not in it: they could not be unmounted where they belong |

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use nix::unistd::Pid;

use super::mountinfo;

/// Where they are kept, below [`super::ROOT`].
const KEPT: &str = ".mounts";
/// The calling thread's.
const OWN: &str = "/proc/thread-self/ns/mnt";

/// The folder for all of them is made and removed by one thread at a time.
static FOLDER: Mutex<()> = Mutex::new(());

/// The mount namespace of a virtual server; it belongs to one thread.
pub struct Namespace {
    folder: PathBuf,
    pin: PathBuf,
    /// The one that the thread was in before.
    host: File,
    /// Mount points of other virtual servers.
    hidden: Vec<PathBuf>,
    inside: Cell<bool>,
}

impl Namespace {
    /// That of a virtual server, which need not be there. The calling thread enters it where it is, and must not be the process's first one.
    ///
    /// # Errors
    /// It is there, and can't be entered.
    pub fn new(root: &Path, server: &str, hidden: Vec<PathBuf>) -> io::Result<Namespace> {
        let folder = root.join(KEPT);
        let pin = folder.join(server);
        let namespace = Namespace { folder, pin, host: File::open(OWN)?, hidden, inside: Cell::new(false) };
        if let Some(kept) = namespace.kept() {
            unshare(CloneFlags::CLONE_FS)?; // nobody else's root and working folder may change with it
            namespace.enter(&kept)?;
            namespace.inside.set(true);
        }
        Ok(namespace)
    }

    /// Is the thread in it?
    pub fn is_inside(&self) -> bool {
        self.inside.get()
    }

    /// Makes it, and enters it.
    ///
    /// # Errors
    /// The failed system call's; the thread is where it was.
    pub fn make(&self) -> io::Result<()> {
        if self.is_inside() {
            return Ok(());
        }
        // A namespace can be kept in an older one only (mount_namespaces(7)), and since Linux 6.18 the kernel goes by numbers of which
        // each processor has a row of its own: on the right one it is the younger one. The first namespace is the oldest everywhere.
        let me = Pid::from_raw(0);
        let before = sched_getaffinity(me)?;
        let mut made = self.make_here();
        for cpu in (0..CpuSet::count()).filter(|cpu| before.is_set(*cpu).unwrap_or(false)) {
            if made.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::EINVAL) {
                break;
            }
            let mut only = CpuSet::new();
            only.set(cpu)?;
            sched_setaffinity(me, &only)?;
            made = self.make_here();
        }
        sched_setaffinity(me, &before)?;
        made
    }

    fn make_here(&self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let made = self.furnish().and_then(|own| {
            self.enter(&self.host)?;
            self.keep(&own)?;
            self.enter(&own)
        });
        match made {
            Ok(()) => self.inside.set(true),
            // With its last thread it is gone.
            Err(_) => {
                self.enter(&self.host)?;
                self.release();
            }
        }
        made
    }

    /// Leaves it, and lets it go: nothing is mounted in it, and nobody is in it any more.
    ///
    /// # Errors
    /// The failed system call's.
    pub fn remove(&self) -> io::Result<()> {
        if self.is_inside() {
            self.enter(&self.host)?;
            self.inside.set(false);
            self.release();
        }
        Ok(())
    }

    fn kept(&self) -> Option<File> {
        let kept = File::open(&self.pin).ok()?;
        // Only the file is left where it was not this boot's.
        let is_one = fstatfs(kept.as_fd()).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC);
        is_one.then_some(kept)
    }

    fn enter(&self, namespace: &File) -> io::Result<()> {
        Ok(setns(namespace, CloneFlags::CLONE_NEWNS)?)
    }

    /// In the new namespace: nothing that is mounted or unmounted here is so elsewhere, and what is other virtual servers' is not here.
    fn furnish(&self) -> io::Result<File> {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        for point in &self.hidden {
            while mountinfo::at(&mountinfo::read()?, point).is_some() {
                umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
            }
        }
        File::open(OWN)
    }

    /// Keeps it from going with its last process. The mount that does so must not be seen by any other namespace, which would be one that
    /// keeps itself.
    fn keep(&self, own: &File) -> io::Result<()> {
        let none: Option<&str> = None;
        let _one = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&self.folder)?;
        let folder = self.folder.canonicalize()?;
        if mountinfo::at(&mountinfo::read()?, &folder).is_none() {
            mount(Some(&folder), &folder, none, MsFlags::MS_BIND, none)?;
        }
        mount(none, &folder, none, MsFlags::MS_PRIVATE, none)?;
        File::create(&self.pin)?;
        let source = format!("/proc/thread-self/fd/{}", own.as_raw_fd());
        Ok(mount(Some(source.as_str()), &self.pin, none, MsFlags::MS_BIND, none)?)
    }

    /// Takes away what keeps it; with the last one the folder.
    fn release(&self) {
        let _one = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = match umount2(&self.pin, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => fs::remove_file(&self.pin),
            Err(errno) => Err(errno.into()),
        };
        if let Err(e) = gone
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {e}", self.pin.display());
        }
        if fs::read_dir(&self.folder).is_ok_and(|mut left| left.next().is_none()) {
            let _ = umount2(&self.folder, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW); // it may be no mount
            let _ = fs::remove_dir(&self.folder); // empty, and in the way of nobody
        }
    }
}
