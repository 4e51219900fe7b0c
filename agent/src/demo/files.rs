//! The third part of the demonstration: a client copies a file over NFS, and the node that serves it loses its power.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_core::EventKind;
use baton_lab::files::{self, ADDRESS, FileCluster, MOUNT};
use baton_lab::host::wait_until;
use baton_lab::nfs::{self, NfsClient};
use baton_lab::transfer::{CHECKSUM, Contents, checksum};
use baton_lab::{Host, clock};

use super::nodes::installed;
use super::{millis, say};
use crate::journal::Record;

/// Bytes of the file, and of a read.
const FILE: u64 = 48 << 20;
const CHUNK: u64 = 64 << 10;
/// Bytes in a second at most, so that there is something to be seen.
const RATE: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds the cluster, copies, breaks it, and compares.
pub(super) fn run() -> Result<()> {
    let missing: Vec<&str> =
        [("ganesha.nfsd", "nfs-ganesha nfs-ganesha-vfs"), ("rpcbind", "rpcbind"), ("mkfs.ext4", "e2fsprogs")]
            .into_iter()
            .filter_map(|(program, package)| (!installed(program)).then_some(package))
            .chain((!nfs::is_installed()).then_some("libnfs13"))
            .collect();
    if !missing.is_empty() {
        return say(&format!("the part with files needs more: apt-get install {}", missing.join(" ")));
    }
    say("")?;
    say(
        "two file servers and a witness; an ext4 file system on a disk that both reach; nfs-ganesha on one of them",
    )?;
    let mut files = FileCluster::start("demo-files", files::spec(""))?;
    // Nobody is called dead in the first two seconds of a member list.
    std::thread::sleep(Duration::from_secs(2));
    let contents = Contents { name: "/film".to_owned(), bytes: FILE, seed: 7 };
    let client = files.client()?.clone();
    client.enter(|| -> Result<()> {
        let mut client = NfsClient::mount(ADDRESS, MOUNT, PATIENCE)?;
        Ok(contents.write(&mut client, 0)?)
    })??;
    let owner = files.owner()?;
    say(&format!(
        "the client copies a file of {} MB from {ADDRESS}, which is served by {owner}",
        FILE >> 20
    ))?;

    let copied = AtomicU64::new(0);
    let (copy, at) = std::thread::scope(|scope| -> Result<(Copy, Duration)> {
        let work = scope.spawn(|| copy(&client, &contents, &copied));
        wait_until("a third of the file", PATIENCE, || {
            copied.load(Ordering::Relaxed) >= FILE / 3 || work.is_finished()
        })?;
        let at = files.power_off(&owner)?;
        let done = copied.load(Ordering::Relaxed) >> 20;
        say(&format!("{owner} loses its power, and its way to the disk, when {done} MB are copied"))?;
        let copy = work.join().map_err(|_| anyhow::anyhow!("the copy has panicked"))??;
        Ok((copy, at))
    })?;
    let wanted = contents.checksum();
    ensure!(copy.ended > at, "the copy was done before the power was lost");
    let equal = if copy.checksum == wanted { "as before" } else { "ANOTHER ONE" };
    say(&format!(
        "  client: {:.0} ms without a byte (longest before: {:.1} ms); {} MB copied; checksum {:016x}, {equal}",
        millis(copy.longest_after),
        millis(copy.longest_before),
        copy.bytes >> 20,
        copy.checksum
    ))?;
    ensure!(copy.checksum == wanted, "the copy is not what was written");
    let after = files.cluster.wait_held(ADDRESS, |node| node != owner)?;
    show_stages(&files, &after)?;
    say("done; the disk, its file system and the servers are gone")
}

/// What a copy saw.
struct Copy {
    checksum: u64,
    bytes: u64,
    ended: Duration,
    longest_before: Duration,
    longest_after: Duration,
}

/// Reads it all at a limited rate. The longest pause is that around the loss of power; the one before it, whatever came second.
fn copy(host: &Host, contents: &Contents, copied: &AtomicU64) -> Result<Copy> {
    host.enter(|| {
        let mut client = NfsClient::mount(ADDRESS, MOUNT, PATIENCE)?;
        let file = client.open(&contents.name, 0)?; // O_RDONLY
        let (start, mut sum, mut offset) = (clock::now(), CHECKSUM, 0);
        let mut waits = Vec::new();
        while offset < contents.bytes {
            let asked = clock::now();
            let data = client.read(&file, offset, CHUNK as usize)?;
            waits.push(clock::now().saturating_sub(asked));
            ensure!(!data.is_empty(), "the file ends at {offset}");
            sum = checksum(sum, &data);
            offset += data.len() as u64;
            copied.store(offset, Ordering::Relaxed);
            clock::sleep_until(start + Duration::from_nanos(offset * 1_000_000_000 / RATE).min(PATIENCE));
        }
        client.close(file)?;
        waits.sort();
        let nth = |n: usize| waits.iter().rev().nth(n).copied().unwrap_or_default();
        Ok(Copy {
            checksum: sum,
            bytes: offset,
            ended: clock::now(),
            longest_before: nth(1),
            longest_after: nth(0),
        })
    })?
    .context("copy the file")
}

/// What the new owner says of it.
fn show_stages(files: &FileCluster, node: &str) -> Result<()> {
    let events = files.cluster.done(node, &["events", "--json"])?;
    let records = events.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
    let mut done = records.filter_map(|r| match r.event.kind {
        EventKind::FailoverDone { stages, .. } => Some(stages),
        _ => None,
    });
    match done.next_back() {
        Some(stages) => {
            let mut all: Vec<_> = stages.into_iter().collect();
            all.sort_by(|a, b| a.1.total_cmp(&b.1));
            let all: Vec<String> = all
                .iter()
                .map(|(stage, seconds)| format!("{stage:?} {:.0}", seconds * 1e3).to_lowercase())
                .collect();
            say(&format!("  {node}, ms after the last sign of life: {}", all.join(", ")))
        }
        None => Ok(()),
    }
}
