//! A real SMB client copies files to a virtual server and back through what happens to the node that serves it: what it was told is
//! stored has the right checksum at once and in the end.
//!
//! smbclient does not go on with a connection that has ended, so a copy that fails is made again, as a user would. It exits with
//! status 0 also when it has failed: only what it says, and what it reads back, counts.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use baton_lab::files::{self, FileCluster, MOUNT, NODES, SERVER};
use baton_lab::lun::Way;
use baton_lab::transfer::{CHECKSUM, Contents, checksum};
use baton_lab::{Host, Process, clock};

use super::midway::wish;
use super::watched::{Client, Watched};
use super::*;

/// Of each file.
const BYTES: u64 = 256 << 10;
/// Of a file that takes long, with a disk that does, too.
const LARGE: u64 = 32 << 20;
const SLOW: Way = Way::Slow(Duration::from_millis(20));
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

/// Starts smbclient, which gives an operation up after so many seconds.
fn smbclient(host: &Host, seconds: u64, command: &str) -> Result<Process> {
    let service = format!("//{}/files", files::ADDRESS);
    let mut smbclient = Command::new("smbclient");
    smbclient.args(["-s", "/dev/null", "-t", &seconds.to_string(), "-U", "guest%", &service, "-c", command]);
    Ok(host.spawn(smbclient)?)
}

/// Waits for its end. Has it done what this word stands for?
fn has_done(mut smbclient: Process, what: &str) -> Result<bool> {
    smbclient.wait(PATIENCE)?;
    let said = smbclient.stdout() + &smbclient.stderr();
    Ok(said.contains(what) && !said.contains("NT_STATUS"))
}

/// Starts to copy it to the server.
fn start_put(host: &Host, seconds: u64, contents: &Contents) -> Result<Process> {
    let source = format!("/run/lab/source-{}", contents.name);
    host.enter(|| {
        fs::create_dir_all("/run/lab")?;
        fs::write(&source, contents.at(0, 0, contents.bytes as usize))
    })??;
    smbclient(host, seconds, &format!("put {source} {}", contents.name))
}

/// Was it told that the file is stored?
fn put(host: &Host, contents: &Contents) -> Result<bool> {
    let done = has_done(start_put(host, 10, contents)?, "putting file");
    host.enter(|| fs::remove_file(format!("/run/lab/source-{}", contents.name)))??;
    done
}

/// The checksum of what is there; `None`: it can't be read as a whole.
fn get(host: &Host, name: &str) -> Result<Option<u64>> {
    let copy = format!("/run/lab/found-{name}");
    let done = has_done(smbclient(host, 10, &format!("get {name} {copy}"))?, "getting file")?;
    let found = host.enter(|| (fs::read(&copy).ok(), fs::remove_file(&copy)))?.0;
    Ok(found.filter(|_| done).map(|bytes| checksum(CHECKSUM, &bytes)))
}

impl Copier {
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
}

impl Client for Copier {
    fn spec(fence: &str, more: &str) -> ClusterSpec {
        files::smb_spec(fence, more)
    }

    fn start(files: &FileCluster) -> Result<Copier> {
        let host = files.client()?.clone();
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let worker = (host.clone(), stop.clone(), seen.clone());
        let thread = thread::spawn(move || {
            let (host, stop, seen) = worker;
            if let Err(error) = copy(&host, &stop, &seen) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).failed = Some(format!("{error:#}"));
            }
        });
        let copier = Copier { host, stop, seen, thread: Some(thread) };
        copier.wait(2, Duration::ZERO)?;
        Ok(copier)
    }

    fn goes_on(&self, at: Duration) -> Result<String> {
        self.wait(2, at)?;
        let stored = self.seen().stored;
        let after = stored.iter().find(|stored| **stored > at).copied().unwrap_or_default();
        Ok(format!("a copy was stored {:.0?} after it", after.saturating_sub(at)))
    }

    fn finish(mut self, _: &FileCluster) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            ensure!(thread.join().is_ok(), "the client has panicked");
        }
        let seen = self.seen();
        ensure!(seen.failed.is_none() && seen.wrong.is_empty(), "{:?} {:?}", seen.failed, seen.wrong);
        ensure!(!seen.stored.is_empty(), "nothing was stored");
        for contents in (0..seen.stored.len()).map(contents) {
            let (found, told) = (get(&self.host, &contents.name)?, contents.checksum());
            ensure!(found == Some(told), "{} of {}: {found:?}", contents.name, seen.stored.len());
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
    for contents in (0..).map(contents) {
        let told = contents.checksum();
        while !put(host, &contents)? {
            note(&|seen| seen.again += 1);
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        // It was told: it has to be there, however often the question has to be asked.
        let found = loop {
            match get(host, &contents.name)? {
                Some(found) => break found,
                None if stop.load(Ordering::Relaxed) => return Ok(()),
                None => thread::sleep(Duration::from_millis(20)),
            }
        };
        note(&|seen| {
            seen.stored.push(clock::now());
            if found != told {
                seen.wrong.push(format!("{}: {found:x} instead of {told:x}", contents.name));
            }
        });
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

/// A copy of a large file, whose client stands still in the middle of it; the disk is slow from now on.
fn stop_in_the_middle(watched: &Watched<Copier>) -> Result<(Contents, Process)> {
    let (owner, client) = (watched.files.owner()?, watched.files.client()?);
    let node = watched.files.cluster.lab.host(&owner)?;
    watched.files.disks.lun.set(&owner, SLOW)?;
    // One that is over before it can be stopped does not count.
    for number in 0..5 {
        let contents = Contents { name: format!("large-{number}"), bytes: LARGE, seed: number + 1000 };
        let file = format!("{MOUNT}/{}", contents.name);
        let stored = || node.enter(|| fs::metadata(&file).map_or(0, |data| data.len())).unwrap_or(0);
        let mut copying = start_put(client, 60, &contents)?;
        wait_until("some of it to be stored", PATIENCE, || {
            stored() > 0 || !matches!(copying.exited(), Ok(None))
        })?;
        if copying.exited()?.is_none() && copying.pause().is_ok() && (1..LARGE).contains(&stored()) {
            return Ok((contents, copying));
        }
    }
    anyhow::bail!("no copy could be stopped in the middle")
}

/// The same copy goes on to its end, over the same connection: smbclient makes no other one.
fn is_completed(host: &Host, contents: &Contents, copying: Process) -> Result<()> {
    copying.resume()?;
    ensure!(has_done(copying, "putting file")?, "the copy was not completed");
    let found = get(host, &contents.name)?;
    ensure!(found == Some(contents.checksum()), "{}: {found:?}", contents.name);
    Ok(())
}

#[test]
fn smb_files_are_there_when_their_node_loses_its_power() -> Result<()> {
    Watched::<Copier>::start("smb-power")?.loses_power()
}

#[test]
fn smb_files_are_there_when_they_are_moved_and_drained() -> Result<()> {
    Watched::<Copier>::start("smb-move")?.moves_and_drains()
}

#[test]
fn smb_files_are_there_when_their_server_is_killed() -> Result<()> {
    Watched::<Copier>::start("smb-service")?.has_its_server_killed()
}

#[test]
fn smb_files_are_there_when_a_path_to_the_disk_fails() -> Result<()> {
    let watched = Watched::<Copier>::start("smb-eio")?;
    let owner = watched.files.owner()?;
    let at = clock::now();
    watched.files.disks.lun.set(&owner, Way::Fails)?;
    watched.goes_on("a path that fails", at)?;
    let now = watched.files.owner()?;
    ensure!(now != owner, "{owner} serves on");
    watched.has_lost_storage(&owner)?;
    watched.wait_metric(&owner, "baton_storage_unit_errors_total", 1.0)?;
    watched.files.disks.lun.set(&owner, Way::Well)?;
    watched.finish()
}

#[test]
fn smb_files_are_there_when_a_path_to_the_disk_hangs() -> Result<()> {
    Watched::<Copier>::has_a_path_that_hangs("smb-hang")
}

/// Nothing is reset: a copy that is under way is completed.
#[test]
fn smb_copies_go_on_when_a_port_is_cut() -> Result<()> {
    let watched = Watched::<Copier>::start("smb-port")?;
    let (contents, copying) = stop_in_the_middle(&watched)?;
    let client = watched.files.client()?;
    watched.has_its_port_cut(|| is_completed(client, &contents, copying))?;
    watched.files.disks.lun.set("n1", Way::Well)?;
    watched.finish()
}

#[test]
fn smb_copies_go_on_when_the_agent_is_killed_in_the_middle_of_them() -> Result<()> {
    let mut watched = Watched::<Copier>::start("smb-agent")?;
    let (contents, copying) = stop_in_the_middle(&watched)?;
    let client = watched.files.client()?.clone();
    watched.has_its_agent_killed(|| Ok(copying.resume()?))?;
    is_completed(&client, &contents, copying)?;
    watched.files.disks.lun.set("n1", Way::Well)?;
    watched.finish()
}

/// First that of the node that it leaves, which stops it just now, and then that of the node that it is to come to, which has not taken
/// it yet. Who has it in the end depends on who is first.
#[test]
fn smb_files_are_there_when_an_agent_is_killed_in_the_middle_of_a_move() -> Result<()> {
    let mut watched = Watched::<Copier>::start("smb-midway")?;
    for leaving in [true, false] {
        let from = watched.files.wait_well()?;
        let to = if from == NODES[0] { NODES[1] } else { NODES[0] };
        let service = watched.files.service(&from)?;
        // It takes nothing until it is let go.
        watched.files.cluster.agent_mut(to)?.process().pause()?;
        let at = clock::now();
        wish(&watched.files.cluster, SERVER, to)?;
        wait_until("the server to be stopped", LONG, || has_ended(service))?;
        let victim = watched.files.cluster.agent_mut(if leaving { &from } else { to })?;
        victim.kill()?;
        victim.start_again()?;
        if leaving {
            watched.files.cluster.agent_mut(to)?.process().resume()?;
        }
        watched
            .goes_on(if leaving { "agent killed that stops it" } else { "agent killed that waits" }, at)?;
    }
    watched.finish()
}

/// Is this process gone, or a zombie that nobody has looked for yet?
fn has_ended(pid: i32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses (proc(5)).
    state.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}
