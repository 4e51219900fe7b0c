//! A real NFS client reads and writes through what happens to the node that serves it.

use baton_lab::clock;
use baton_lab::files::{self, FileCluster, MOUNT};
use baton_lab::lun::Way;
use baton_lab::nfs::NfsClient;
use baton_lab::transfer::{Contents, Log, check_stable};
use baton_lab::{Transfer, Work};

use super::watched::{Client, Watched};
use super::*;

/// Bytes of a read or write.
const CHUNK: usize = 64 << 10;
/// All that the client is patient for: its own retransmissions may take long.
const PATIENCE: Duration = Duration::from_secs(180);

/// Clients that read and write.
struct Nfs {
    reader: Transfer,
    writer: Transfer,
    written: Contents,
}

fn contents(name: &str, seed: u64) -> Contents {
    Contents { name: format!("/{name}"), bytes: 4 << 20, seed }
}

impl Client for Nfs {
    fn spec(fence: &str, more: &str) -> ClusterSpec {
        files::fenced_spec(fence, more)
    }

    fn start(files: &FileCluster) -> Result<Nfs> {
        let (read, written) = (contents("read", 1), contents("written", 2));
        files.client()?.enter(|| -> Result<()> {
            let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
            Ok(read.write(&mut client, 0)?)
        })??;
        let reader = Transfer::start(files.client()?, &read, Work::Read { chunk: CHUNK }, PATIENCE)?;
        let writer = Transfer::start(files.client()?, &written, Work::Write { chunk: CHUNK }, PATIENCE)?;
        reader.wait(50, Duration::ZERO, PATIENCE)?;
        writer.wait(50, Duration::ZERO, PATIENCE)?;
        Ok(Nfs { reader, writer, written })
    }

    fn goes_on(&self, at: Duration) -> Result<String> {
        for (name, transfer) in [("reader", &self.reader), ("writer", &self.writer)] {
            transfer.wait(20, at, PATIENCE).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
        }
        let now = clock::now();
        let waited = |transfer: &Transfer| {
            let log = transfer.log();
            let (from, to) = log.longest(at, now);
            format!(
                "{:.0?} (so far asked again {}, mounted again {})",
                to.saturating_sub(from),
                log.asked_again,
                log.mounted_again
            )
        };
        Ok(format!("the reader waited for {}, the writer for {}", waited(&self.reader), waited(&self.writer)))
    }

    fn finish(self, files: &FileCluster) -> Result<()> {
        let Nfs { reader, writer, written } = self;
        let (read, wrote) = (reader.stop(), writer.stop());
        for (name, log) in [("reader", &read), ("writer", &wrote)] {
            ensure!(log.failed.is_none() && log.wrong.is_empty(), "{name}: {:?} {:?}", log.failed, log.wrong);
            ensure!(!log.answered.is_empty(), "{name}: nothing was answered");
        }
        is_stable(files, &written, &wrote)
    }
}

/// What the writer was told is stable is there.
fn is_stable(files: &FileCluster, written: &Contents, wrote: &Log) -> Result<()> {
    let wrong = files.client()?.enter(|| -> Result<Vec<String>> {
        let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
        Ok(check_stable(&mut client, written, CHUNK, wrote)?)
    })??;
    ensure!(wrong.is_empty(), "not there: {wrong:?}");
    Ok(())
}

/// The node's path to the disk returns errors, and the other node's does not. The server tells its clients of errors that it gets, so
/// theirs is to ask again; what they were told is stable is there.
#[test]
fn files_are_served_elsewhere_when_a_path_to_the_disk_fails() -> Result<()> {
    let watched = Watched::<Nfs>::start("files-eio")?;
    let owner = watched.files.owner()?;
    watched.files.disks.lun.set(&owner, Way::Fails)?;
    wait_until("another node to serve", LONG, || watched.files.owner().is_ok_and(|now| now != owner))?;
    watched.has_lost_storage(&owner)?;
    let Watched { files, client: Nfs { reader, writer, written }, judges } = watched;
    let (read, wrote) = (reader.stop(), writer.stop());
    ensure!(read.wrong.is_empty() && wrote.wrong.is_empty(), "{:?} {:?}", read.wrong, wrote.wrong);
    is_stable(&files, &written, &wrote)?;
    let again = Nfs::start(&files)?;
    files.disks.lun.set(&owner, Way::Well)?;
    again.finish(&files)?;
    judges.finish(&files)
}

#[test]
fn files_are_served_on_when_a_path_to_the_disk_hangs() -> Result<()> {
    Watched::<Nfs>::has_a_path_that_hangs("files-hang")
}

#[test]
fn files_are_served_on_when_their_node_loses_its_power() -> Result<()> {
    Watched::<Nfs>::start("files-power")?.loses_power()
}

#[test]
fn files_are_served_on_when_they_are_moved_and_when_their_node_is_drained() -> Result<()> {
    Watched::<Nfs>::start("files-move")?.moves_and_drains()
}

#[test]
fn files_are_served_on_when_the_server_is_killed() -> Result<()> {
    Watched::<Nfs>::start("files-service")?.has_its_server_killed()
}

#[test]
fn files_are_served_on_when_the_agent_is_killed_and_started_again() -> Result<()> {
    let mut watched = Watched::<Nfs>::start("files-agent")?;
    watched.has_its_agent_killed(|| Ok(()))?;
    watched.finish()
}

#[test]
fn files_are_served_on_when_a_port_is_cut() -> Result<()> {
    let watched = Watched::<Nfs>::start("files-port")?;
    watched.has_its_port_cut(|| Ok(()))?;
    watched.finish()
}

/// A file is there when its client was told that it was made, and gone when it was told that it was removed: version 3 of NFS
/// has no COMMIT for that (RFC 1813, 4.8).
#[test]
fn files_that_were_made_and_removed_are_so_after_a_power_loss() -> Result<()> {
    let mut files = FileCluster::start("files-made", files::spec(""))?;
    // Nobody is called dead in the first two seconds of a member list.
    std::thread::sleep(Duration::from_secs(2));
    let client = files.client()?.clone();
    let (made, removed): (Vec<String>, Vec<String>) =
        (0..5).map(|n| (format!("/made-{n}"), format!("/removed-{n}"))).unzip();
    let made_until = client.enter(|| -> Result<Duration> {
        let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
        for name in &removed {
            let file = client.create(name)?;
            client.write(&file, 0, b"contents")?;
            client.sync(&file)?;
            client.close(file)?;
        }
        for (name, other) in made.iter().zip(&removed) {
            let file = client.create(name)?;
            client.close(file)?;
            client.remove(other)?;
        }
        Ok(clock::now())
    })??;
    let owner = files.owner()?;
    let at = files.power_off(&owner)?;
    println!("power lost {:.1?} after the last answer", at - made_until);
    files.cluster.wait_held(files::ADDRESS, |node| node != owner)?;
    client.enter(|| -> Result<()> {
        let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
        for name in &made {
            ensure!(client.size(name).is_ok(), "{name} is not there");
        }
        for name in &removed {
            ensure!(client.size(name).is_err(), "{name} is there again");
        }
        Ok(())
    })?
}
