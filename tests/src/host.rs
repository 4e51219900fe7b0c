//! A host of a lab: its namespaces, its netlink socket, and what one does in it.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::error::{Context, LabError};
use crate::namespace::{Namespaces, open_inside};
use crate::netlink::Netlink;
use crate::process::{self, Process};
use crate::state::{self, State};
use crate::wire::Mac;

/// A host. Cloning gives another handle to the same one; with the last handle it is gone, and all processes inside are killed.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    inside: Namespaces,
    netlink: Netlink,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Services outlive the agent that started them, and so they would outlive the host.
        self.inside.kill_all();
    }
}

impl Host {
    /// Makes a host with a loopback interface that is up, and nothing else.
    ///
    /// # Errors
    /// [`LabError::NotRoot`], or what failed.
    pub fn create(name: &str) -> Result<Host, LabError> {
        let inside = Namespaces::create(name)?;
        let netlink = Netlink::open(name, &inside)?;
        netlink.set_up(1, true)?; // lo has index 1 in every namespace
        Ok(Host(Arc::new(Inner { name: name.to_owned(), inside, netlink })))
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its netlink socket.
    pub fn netlink(&self) -> &Netlink {
        &self.0.netlink
    }

    /// Its namespaces.
    pub fn namespaces(&self) -> &Namespaces {
        &self.0.inside
    }

    /// Starts a process inside; see [`Process::spawn`].
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self, command: Command) -> Result<Process, LabError> {
        Process::spawn(&self.0.inside, command)
    }

    /// Runs a short command inside, to its end.
    ///
    /// # Errors
    /// When it can't be started; a failing command is not an error here.
    pub fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: S,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Output, LabError> {
        let mut command = Command::new(program);
        command.args(arguments);
        process::run(&self.0.inside, command)
    }

    /// Runs `work` on a fresh thread inside and returns its value; see [`Namespaces::enter`].
    ///
    /// # Errors
    /// When the thread can't enter.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.0.inside.enter(work)
    }

    /// Opens a socket or file inside, for use on any thread. `what` is for the error.
    ///
    /// # Errors
    /// What `open` says.
    pub fn open<T: Send>(
        &self,
        what: &str,
        open: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, LabError> {
        open_inside(&self.0.inside, what, open)
    }

    /// Writes a file inside, and the folders it needs. Meant for `/run` and `/var/lib`, which are the host's own.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &str, contents: &str) -> Result<(), LabError> {
        self.enter(|| {
            Path::new(path).parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(path, contents)
        })?
        .context(|| format!("write {path} in {}", self.name()))
    }

    /// As [`Host::write`]; the file is for its owner alone.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_secret(&self, path: &str, contents: &str) -> Result<(), LabError> {
        self.write(path, contents)?;
        self.enter(|| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)))?
            .context(|| format!("set the mode of {path} in {}", self.name()))
    }

    /// Sets a kernel parameter by its path below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel has none of that name or refuses the value.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<(), LabError> {
        let file = format!("/proc/sys/{path}");
        self.enter(|| std::fs::write(&file, value))?
            .context(|| format!("write {value} to {file} in {}", self.name()))
    }

    /// Reads a kernel parameter by its path below `/proc/sys`, without the end of the line.
    ///
    /// # Errors
    /// When the kernel has none of that name.
    pub fn sysctl(&self, path: &str) -> Result<String, LabError> {
        let file = format!("/proc/sys/{path}");
        let text = self.enter(|| std::fs::read_to_string(&file))?;
        Ok(text.context(|| format!("read {file} in {}", self.name()))?.trim_end().to_owned())
    }

    /// The hardware address that its neighbour table has for `address`.
    ///
    /// # Errors
    /// What netlink says.
    pub fn neighbour(&self, address: IpAddr) -> Result<Option<Mac>, LabError> {
        self.netlink().neighbour(address)
    }

    /// Everything in the host that an agent may leave behind, to compare before and after.
    ///
    /// # Errors
    /// What netlink says, or files that can't be read.
    pub fn state(&self) -> Result<State, LabError> {
        state::read(self)
    }
}

/// Asks `condition` every millisecond until it holds.
///
/// # Errors
/// [`LabError::Timeout`] with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<(), LabError> {
    let end = clock::now() + limit;
    while !condition() {
        if clock::now() >= end {
            return Err(LabError::Timeout { what: what.to_owned(), limit });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
