//! SCSI-3 persistent reservations (SPC-4, 5.13), by sg_persist(8).
//!
//! Each node has a key. Whoever has the file systems of a virtual server mounted is registered with its key at their devices, alone,
//! and there is a reservation of the type "write exclusive, registrants only": the device refuses what anybody else writes. A node is
//! fenced by taking its registration away (PREEMPT AND ABORT, which also ends what it had under way). Why that is enough:
//!
//! - A node mounts only after it has registered, has taken every other registration away, and has then seen that it is the only one
//!   and that the reservation is in force. From then on nobody else writes, before somebody else registers; and that one takes this
//!   node's registration away before it mounts. So at any time one node at most writes, and each mounts what the one before it left:
//!   as after a loss of power. That holds whatever a node believes, and however late it does what it once was asked to.
//! - Nobody registers but to mount or to fence, and only the owner of the virtual server is asked to.
//! - It is looked at afterwards whether the registration is gone and the reservation in force. Otherwise fencing has failed.
//!
//! A device that forgets registrations when it loses power lets everybody write until somebody registers again; most arrays keep
//! them. A reservation is of the whole unit, never of a partition, so a unit belongs to one virtual server.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::io::kernel::name_hash;
use crate::resources::command::{Command, Done, Fault};
use crate::resources::orders::Patience;
use crate::resources::process::Ended;

/// How long all of it may take.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// Tries of a command: the first one after somebody else has changed something is refused with a unit attention.
const TRIES: usize = 3;
/// "Write exclusive, registrants only".
const TYPE: &str = "--prout-type=5";

/// What this node does with reservations.
#[derive(Clone, Debug)]
pub struct Reservations {
    program: PathBuf,
    node: String,
}

/// What a device says.
#[derive(Debug, PartialEq, Eq)]
struct State {
    /// Keys that are registered.
    keys: Vec<u64>,
    /// Is the reservation in force that is wanted? `None`: there is none at all.
    reserved: Option<bool>,
}

/// The key of a node; never 0, which is none.
fn key(node: &str) -> u64 {
    name_hash(node).max(1)
}

/// What has gone wrong; `None`: something else was ordered.
type Outcome<T> = Result<T, Option<String>>;

impl Reservations {
    /// Of a node, by this program.
    pub fn new(program: &Path, node: &str) -> Reservations {
        Reservations { program: program.to_owned(), node: node.to_owned() }
    }

    /// Keeps a node from writing to these devices.
    ///
    /// # Errors
    /// Why that is not certain; `None`: something else was ordered.
    pub fn fence<'a>(
        &self,
        devices: impl Iterator<Item = &'a Path>,
        node: &str,
        patience: &Patience<'_>,
    ) -> Outcome<()> {
        devices.into_iter().try_for_each(|device| self.own(device, Some(node), patience))
    }

    /// Registers this node at a device, and makes sure that nobody else may write to it: before it is mounted.
    ///
    /// # Errors
    /// Why that is not so; `None`: something else was ordered.
    pub fn acquire(&self, device: &Path, patience: &Patience<'_>) -> Outcome<()> {
        self.own(device, None, patience)
    }

    /// Gives that up, after it is unmounted. The reservation ends with the last registration.
    ///
    /// # Errors
    /// As [`Reservations::acquire`].
    pub fn release(&self, device: &Path, patience: &Patience<'_>) -> Outcome<()> {
        let own = key(&self.node);
        if !self.state(device, patience)?.keys.contains(&own) {
            return Ok(());
        }
        let own = format!("--param-rk={own:#x}");
        self.ask(device, &["--out", "--register", &own, "--param-sark=0"], patience).map(drop)
    }

    /// Registered, the reservation in force, and without the registration of this node; of any other one, where none is named.
    fn own(&self, device: &Path, without: Option<&str>, patience: &Patience<'_>) -> Outcome<()> {
        check(device).map_err(|why| Some(format!("{}: {why}", device.display())))?;
        let own = key(&self.node);
        let (rk, sark) = (format!("--param-rk={own:#x}"), format!("--param-sark={own:#x}"));
        self.ask(device, &["--out", "--register-ignore", &sark], patience)?;
        let is_other = |k: &u64| match without {
            Some(node) => *k == key(node) && *k != own,
            None => *k != own,
        };
        for other in self.state(device, patience)?.keys.into_iter().filter(|k| is_other(k)) {
            let other = format!("--param-sark={other:#x}");
            self.ask(device, &["--out", "--preempt-abort", &rk, &other, TYPE], patience)?;
        }
        if self.state(device, patience)?.reserved.is_none() {
            self.ask(device, &["--out", "--reserve", &rk, TYPE], patience)?;
        }
        let State { keys, reserved } = self.state(device, patience)?;
        let failed = |why: &str| Err(Some(format!("{}: {why}", device.display())));
        if !keys.contains(&own) {
            return failed("this node's registration is gone again: another one has taken it away");
        }
        if keys.iter().any(is_other) {
            return failed("a registration that was taken away is still there");
        }
        match reserved {
            Some(true) => Ok(()),
            Some(false) => failed("there is a reservation of another type; remove it with sg_persist"),
            None => failed("there is no reservation although one was made"),
        }
    }

    fn state(&self, device: &Path, patience: &Patience<'_>) -> Outcome<State> {
        let unclear =
            |text: &str| Some(format!("{}: {} is not understood", device.display(), text.escape_debug()));
        let text = self.ask(device, &["--in", "--read-keys"], patience)?;
        let keys = keys(&text).ok_or_else(|| unclear(&text))?;
        let text = self.ask(device, &["--in", "--read-reservation"], patience)?;
        let reserved = reservation(&text).ok_or_else(|| unclear(&text))?;
        Ok(State { keys, reserved })
    }

    /// Runs the program; returns its output.
    fn ask(&self, device: &Path, what: &[&str], patience: &Patience<'_>) -> Outcome<String> {
        let mut argv = vec![self.program.display().to_string(), "--no-inquiry".to_owned()];
        argv.extend(what.iter().map(|word| (*word).to_owned()));
        argv.push(device.display().to_string());
        let command = Command { argv: &argv, variables: &[], group: None, input: &[] };
        let failed = |why: String| format!("{}: {} {}: {why}", device.display(), argv[0], what[1]);
        let mut last = String::new();
        for _ in 0..TRIES {
            match command.read(patience) {
                Ok((Done { ended: Ended::Exit(0), .. }, text)) => return Ok(text),
                Ok((done, _)) => last = done.why(),
                Err(Fault::Told) => return Err(None),
                Err(fault) => return Err(Some(failed(fault.to_string()))),
            }
        }
        Err(Some(failed(last)))
    }
}

/// Can there be a reservation of it?
fn check(device: &Path) -> Result<(), String> {
    let found = fs::metadata(device).map_err(|e| e.to_string())?;
    if !found.file_type().is_block_device() {
        return Err("it is no block device".to_owned());
    }
    let number = (libc::major(found.rdev()), libc::minor(found.rdev()));
    let sysfs = PathBuf::from(format!("/sys/dev/block/{}:{}", number.0, number.1));
    if sysfs.join("partition").exists() {
        return Err("it is a partition, and a reservation is of the whole unit; put the file system on that"
            .to_owned());
    }
    if sysfs.join("dm").exists() {
        return Err(
            "it is a device-mapper device, which sg_persist reaches by one of its paths only; this version can't reserve those"
                .to_owned(),
        );
    }
    Ok(())
}

/// What sg_persist prints for --read-keys: a line for each key, indented, as "0x123abc". `None`: something else.
fn keys(text: &str) -> Option<Vec<u64>> {
    if text.contains("there are NO registered") {
        return Some(Vec::new());
    }
    let (_, list) = text.split_once("reservation key")?;
    let lines = list.lines().skip(1).map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| u64::from_str_radix(line.strip_prefix("0x")?, 16).ok()).collect()
}

/// What it prints for --read-reservation: is there one of the type that is wanted? `Some(None)`: there is none; `None`:
/// something else.
fn reservation(text: &str) -> Option<Option<bool>> {
    if text.contains("there is NO reservation held") {
        return Some(None);
    }
    let (_, kind) = text.split_once("type:")?;
    Some(Some(kind.lines().next()?.trim() == "Write Exclusive, registrants only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sg_persist_prints_is_understood() {
        // Of sg3-utils 1.46.
        let none = "  PR generation=0x0, there are NO registered reservation keys\n";
        assert_eq!(keys(none), Some(Vec::new()));
        let two = "  PR generation=0x4, 2 registered reservation keys follow:\n    0x123abc\n    0xffffffffffffffff\n";
        assert_eq!(keys(two), Some(vec![0x12_3abc, u64::MAX]));
        let one = "  PR generation=0x2, 1 registered reservation key follows:\n    0x1\n";
        assert_eq!(keys(one), Some(vec![1]));
        assert_eq!(keys("persistent reserve in: not ready"), None);
        assert_eq!(keys("  PR generation=0x2, 1 registered reservation key follows:\n    what?\n"), None);
        let none = "  PR generation=0x0, there is NO reservation held\n";
        assert_eq!(reservation(none), Some(None));
        let held = |kind: &str| {
            format!(
                "  PR generation=0x4, Reservation follows:\n    Key=0x1\n    scope: LU_SCOPE,  type: {kind}\n"
            )
        };
        assert_eq!(reservation(&held("Write Exclusive, registrants only")), Some(Some(true)));
        assert_eq!(reservation(&held("Write Exclusive, all registrants")), Some(Some(false)));
        assert_eq!(reservation("?"), None);
    }

    #[test]
    fn a_node_has_its_key() {
        assert_ne!(key("fs1"), key("fs2"));
        assert_eq!(key("fs1"), key("fs1"));
    }
}
