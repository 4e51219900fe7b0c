//! A host's network and mount namespace, held by file descriptors only, and ways into them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::error::{Context, LabError};

/// A network namespace with a mount namespace that belongs to it.
///
/// Inside, `/sys` shows this network namespace, `/sys/fs/bpf` is an empty BPF file system, and `/run` and
/// `/var/lib` are empty and in memory. Everything else is the machine's, and what the machine unmounts disappears here too.
#[derive(Debug)]
pub struct Namespaces {
    name: String,
    network: OwnedFd,
    mount: OwnedFd,
}

impl Namespaces {
    /// Makes both. `name` is for threads and messages only.
    ///
    /// # Errors
    /// [`LabError::NotRoot`], or the system call that failed.
    pub fn create(name: &str) -> Result<Namespaces, LabError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        // A thread of its own: an unshared thread can't go back.
        let (network, mount) = on_thread(name, make)?.context(|| format!("make namespaces for {name}"))?;
        Ok(Namespaces { name: name.to_owned(), network, mount })
    }

    /// The network namespace, to move interfaces into.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// Runs `work` on a fresh thread inside, and waits for it. A panic in `work` goes on in the caller.
    ///
    /// # Errors
    /// When the thread can't be made or can't enter.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        on_thread(&self.name, || self.join_thread().map(|()| work()))?
            .context(|| format!("enter {}", self.name))
    }

    /// Kills all processes inside, until there are none.
    pub fn kill_all(&self) {
        for _ in 0..100 {
            let inside = self.processes();
            if inside.is_empty() {
                return;
            }
            for pid in inside {
                // One that has ended meanwhile is as good.
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The processes with this mount or network namespace, those that have ended and those that are this one left out. Services may
    /// have mount namespaces of their own.
    fn processes(&self) -> Vec<i32> {
        let link = |fd: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (Ok(mount), Ok(network)) = (link(&self.mount), link(&self.network)) else { return Vec::new() };
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let is = |pid: &i32, kind: &str, own: &std::path::Path| {
            fs::read_link(format!("/proc/{pid}/ns/{kind}")).is_ok_and(|theirs| theirs == own)
        };
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        let inside = |pid: &i32| {
            *pid != std::process::id() as i32 && (is(pid, "mnt", &mount) || is(pid, "net", &network))
        };
        pids.filter(inside).collect()
    }

    /// Descriptors that a child process can enter by, after `fork`.
    pub(crate) fn duplicate(&self) -> io::Result<Entry> {
        Ok(Entry { network: self.network.try_clone()?, mount: self.mount.try_clone()? })
    }

    fn join_thread(&self) -> io::Result<()> {
        join_thread(self.network.as_fd(), self.mount.as_fd())
    }
}

/// A second set of descriptors of [`Namespaces`].
#[derive(Debug)]
pub(crate) struct Entry {
    network: OwnedFd,
    mount: OwnedFd,
}

impl Entry {
    /// Moves the calling thread inside; only system calls, so it may be used between fork and exec.
    pub(crate) fn join_thread(&self) -> io::Result<()> {
        join_thread(self.network.as_fd(), self.mount.as_fd())
    }
}

fn join_thread(network: BorrowedFd, mount: BorrowedFd) -> io::Result<()> {
    setns(network, CloneFlags::CLONE_NEWNET)?;
    // The kernel refuses a mount namespace to a thread that shares root and working directory with others.
    unshare(CloneFlags::CLONE_FS)?;
    setns(mount, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}

fn make() -> io::Result<(OwnedFd, OwnedFd)> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    // Slave, not private: an unmount on the machine must not be held up by a lab.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), safe, none)?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), safe, none)?;
    for directory in ["/run", "/var/lib"] {
        mount(
            Some("tmpfs"),
            directory,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0755"),
        )?;
    }
    let open = |kind: &str| File::open(format!("/proc/thread-self/ns/{kind}")).map(OwnedFd::from);
    Ok((open("net")?, open("mnt")?))
}

/// Runs `work` on a fresh thread and hands its value, or its panic, to the caller.
fn on_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name(name.to_owned());
        let handle = builder.spawn_scoped(scope, work).context(|| "start a thread".into())?;
        handle.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

/// Opens something inside whose descriptor stays bound to the namespace: a socket can then be used by any thread.
pub(crate) fn open_inside<T: Send>(
    inside: &Namespaces,
    what: &str,
    open: impl FnOnce() -> io::Result<T> + Send,
) -> Result<T, LabError> {
    inside.enter(open)?.context(|| format!("{what} in {}", inside.name))
}
