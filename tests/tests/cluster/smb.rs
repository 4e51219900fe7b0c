//! A real SMB client copies files to a virtual server and back through what happens to the node that serves it: what it was told is
//! stored has the right checksum at once and in the end, the address is answered for by one node, and the file system is mounted on
//! one node.
//!
//! smbclient does not go on with a connection that has ended, so a copy that fails is made again, as a user would. It exits with
//! status 0 also when it has failed: only what it says, and what it reads back, counts.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use baton_lab::Host;
use baton_lab::clock;
use baton_lab::files::{self, FileCluster, NODES};
use baton_lab::lun::{MountWatch, Way};
use baton_lab::transfer::{CHECKSUM, Contents, checksum};

use super::*;

/// Of each file.
const BYTES: u64 = 256 << 10;
/// All that the client is patient for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the client has seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// When each copy was stored and read back: its number is its place.
    stored: Vec<Duration>,
    /// Copies that had to be made again.
    again: u64,
    /// What was read back and had another checksum.
    wrong: Vec<String>,
    /// What stopped it.
    failed: Option<String>,
}

/// A client that copies one file after the other.
struct Copier {
    host: Host,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

fn contents(number: usize) -> Contents {
    Contents { name: format!("file-{number}"), bytes: BYTES, seed: number as u64 + 1 }
}

fn name(number: usize) -> String {
    contents(number).name
}

/// Says what smbclient said.
fn smbclient(host: &Host, command: &str) -> Result<String> {
    let service = format!("//{}/files", files::ADDRESS);
    let arguments = ["-s", "/dev/null", "-t", "10", "-U", "guest%", &service, "-c", command];
    let done = host.run("smbclient", arguments)?;
    Ok(format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)))
}

/// Was it told that the file is stored?
fn put(host: &Host, number: usize) -> Result<bool> {
    let contents = contents(number);
    host.enter(|| {
        fs::create_dir_all("/run/lab")?;
        fs::write("/run/lab/source", contents.at(0, 0, BYTES as usize))
    })??;
    let said = smbclient(host, &format!("put /run/lab/source {}", name(number)))?;
    Ok(said.contains("putting file") && !said.contains("NT_STATUS"))
}

/// The checksum of what is there; `None`: it can't be read as a whole.
fn get(host: &Host, number: usize) -> Result<Option<u64>> {
    host.enter(|| drop(fs::remove_file("/run/lab/found")))?;
    let said = smbclient(host, &format!("get {} /run/lab/found", name(number)))?;
    if !said.contains("getting file") || said.contains("NT_STATUS") {
        return Ok(None);
    }
    let found = host.enter(|| fs::read("/run/lab/found").ok())?;
    Ok(found.map(|bytes| checksum(CHECKSUM, &bytes)))
}

impl Copier {
    fn start(host: &Host) -> Copier {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let worker = (host.clone(), stop.clone(), seen.clone());
        let thread = thread::spawn(move || {
            let (host, stop, seen) = worker;
            if let Err(error) = copy(&host, &stop, &seen) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).failed = Some(format!("{error:#}"));
            }
        });
        Copier { host: host.clone(), stop, seen, thread: Some(thread) }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many copies were stored that were begun after `since`.
    fn wait(&self, copies: usize, since: Duration) -> Result<()> {
        // One may have been under way.
        let enough = || {
            let seen = self.seen();
            seen.failed.is_some() || seen.stored.iter().filter(|at| **at > since).count() > copies
        };
        wait_until("copies", PATIENCE, enough).map_err(|e| anyhow::anyhow!("{e}: {:?}", self.seen()))?;
        ensure!(self.seen().failed.is_none(), "{:?}", self.seen());
        Ok(())
    }

    /// Ends it, and looks for everything that it was told is stored.
    fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            ensure!(thread.join().is_ok(), "the client has panicked");
        }
        let seen = self.seen();
        ensure!(seen.failed.is_none() && seen.wrong.is_empty(), "{:?} {:?}", seen.failed, seen.wrong);
        ensure!(!seen.stored.is_empty(), "nothing was stored");
        for number in 0..seen.stored.len() {
            let (found, told) = (get(&self.host, number)?, contents(number).checksum());
            ensure!(found == Some(told), "{} of {}: {found:?}", name(number), seen.stored.len());
        }
        println!(
            "{} files were stored and are there; {} copies were made again",
            seen.stored.len(),
            seen.again
        );
        Ok(())
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Copies one file after the other, each until it is stored and can be read back.
fn copy(host: &Host, stop: &AtomicBool, seen: &Mutex<Seen>) -> Result<()> {
    let note = |what: &dyn Fn(&mut Seen)| what(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    for number in 0.. {
        let told = contents(number).checksum();
        while !put(host, number)? {
            note(&|seen| seen.again += 1);
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        // It was told: it has to be there, however often the question has to be asked.
        let found = loop {
            match get(host, number)? {
                Some(found) => break found,
                None if stop.load(Ordering::Relaxed) => return Ok(()),
                None => thread::sleep(Duration::from_millis(20)),
            }
        };
        note(&|seen| {
            seen.stored.push(clock::now());
            if found != told {
                seen.wrong.push(format!("{}: {found:x} instead of {told:x}", name(number)));
            }
        });
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

/// A client that copies, and the judges.
struct Watched {
    files: FileCluster,
    copier: Copier,
    judge: Judge,
    mounts: MountWatch,
}

impl Watched {
    fn start(name: &str) -> Result<Watched> {
        let files = FileCluster::start(name, files::smb_spec())?;
        files.move_to("n1")?;
        let copier = Copier::start(files.client()?);
        copier.wait(2, Duration::ZERO)?;
        let (judge, mounts) = (files.cluster.judge()?, files.disks.lun.watch()?);
        // Nobody is called dead in the first two seconds of a member list.
        thread::sleep(Duration::from_secs(2));
        Ok(Watched { files, copier, judge, mounts })
    }

    /// The client goes on after `at`.
    fn goes_on(&self, what: &str, at: Duration) -> Result<()> {
        self.copier.wait(2, at).map_err(|e| anyhow::anyhow!("{what}: {e}{}", self.files.cluster.logs()))?;
        let stored = self.copier.seen().stored;
        let after = stored.iter().find(|stored| **stored > at).copied().unwrap_or_default();
        println!("{what}: a copy was stored {:.0?} after it", after.saturating_sub(at));
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let Watched { files, copier, judge, mounts } = self;
        copier.finish()?;
        let (looked, doubles) = mounts.finish();
        ensure!(looked > 50 && doubles.is_empty(), "{looked} looks, mounted twice: {doubles:?}");
        let owner = files.wait_well()?;
        ensure!(files.disks.mounted_on(&NODES)? == [owner], "mounted elsewhere");
        never_two(judge)
    }
}

#[test]
fn smb_files_are_there_when_their_node_loses_its_power() -> Result<()> {
    let mut watched = Watched::start("smb-power")?;
    for round in 1..=2 {
        let owner = watched.files.owner()?;
        let at = watched.files.power_off(&owner)?;
        watched.goes_on(&format!("power loss {round}"), at)?;
        watched.files.power_on(&owner)?;
        let now = watched.files.wait_well()?;
        ensure!(now != owner, "{owner} serves again");
    }
    watched.finish()
}

#[test]
fn smb_files_are_there_when_they_are_moved_drained_and_when_their_server_is_killed() -> Result<()> {
    let watched = Watched::start("smb-move")?;
    let at = clock::now();
    watched.files.move_to("n2")?;
    watched.goes_on("move", at)?;
    ensure!(watched.files.wait_well()? == "n2", "it is elsewhere");
    let at = clock::now();
    watched.files.cluster.done("n3", &["drain", "n2"])?;
    watched.goes_on("drain", at)?;
    watched.files.cluster.done("n3", &["resume", "n2"])?;
    ensure!(watched.files.wait_well()? == "n1", "it is elsewhere");
    let before = watched.files.service("n1")?;
    let at = watched.files.kill_service("n1")?;
    watched.goes_on("server killed", at)?;
    ensure!(watched.files.service("n1")? != before, "it was not killed");
    ensure!(watched.files.wait_well()? == "n1", "it has moved");
    watched.finish()
}

#[test]
fn smb_files_are_there_when_a_path_to_the_disk_fails() -> Result<()> {
    let watched = Watched::start("smb-eio")?;
    let owner = watched.files.owner()?;
    let at = clock::now();
    watched.files.disks.lun.set(&owner, Way::Fails)?;
    watched.goes_on("a path that fails", at)?;
    let now = watched.files.owner()?;
    ensure!(now != owner, "{owner} serves on");
    let left = |e: &serde_json::Value| e["event"] == "leaving" && e["reason"] == "storage_lost";
    let events = watched.files.cluster.agent(&owner)?.events()?;
    ensure!(events.iter().any(left), "{events:?}");
    watched.files.disks.lun.set(&owner, Way::Well)?;
    watched.finish()
}
