//! The journal: every event as one JSON line in `events.jsonl`, bounded, kept across restarts.
//!
//! A file that has reached its limit becomes `events.jsonl.1`, replacing the one before. A disk that is full or gone
//! is reported once; events then still reach everyone who follows. Only the slow thread may use this module.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use baton_core::{Event, EventKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::mpsc;

use crate::hooks::Hooks;
use crate::telemetry::{Metrics, Published, boot_time};

/// Name of the current file in the state folder.
pub const FILE: &str = "events.jsonl";

/// Most bytes in one of the two files.
pub const LIMIT: u64 = 8 << 20;

/// An event with the wall-clock time it happened at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Wall clock, UTC, RFC 3339 with microseconds.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub time: SystemTime,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

fn write_time<S: Serializer>(time: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&humantime::format_rfc3339_micros(*time))
}

fn read_time<'de, D: Deserializer<'de>>(d: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(d)?;
    humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
}

impl Record {
    /// Dates an event that happened in this boot, by how long ago it was on the boot-time clock.
    pub fn now(event: Event) -> Self {
        let age = boot_time().since(event.at);
        let now = SystemTime::now();
        // Wall-clock times below that of a microsecond would not survive being written.
        let time = now.checked_sub(age).unwrap_or(now);
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
        Record { time: SystemTime::UNIX_EPOCH + Duration::from_micros(micros), event }
    }
}

/// Why the journal can't be written or read.
#[derive(Debug, thiserror::Error)]
#[error("journal {path}: cannot {operation}: {source}; check its folder and the space on it")]
pub struct JournalError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub operation: &'static str,
    /// Why not.
    pub source: io::Error,
}

/// The writing side.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    limit: u64,
    file: Option<File>,
    /// Bytes in the file.
    size: u64,
    /// The last write failed and may have left half a line.
    torn: bool,
}

impl Journal {
    /// A journal in the folder `state`; the file is made with the first event.
    pub fn new(state: &Path) -> Self {
        Journal::with_limit(state, LIMIT)
    }

    fn with_limit(state: &Path, limit: u64) -> Self {
        Journal { path: state.join(FILE), limit, file: None, size: 0, torn: false }
    }

    /// Appends one line.
    ///
    /// # Errors
    /// The file can't be opened, rotated or written. The next append tries everything again.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let mut line = Vec::new();
        if self.torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, record).map_err(|e| self.fail("write an event to it", e.into()))?;
        line.push(b'\n');
        self.open()?;
        if self.size > 0 && self.size + line.len() as u64 > self.limit {
            self.file = None;
            fs::rename(&self.path, older(&self.path)).map_err(|e| self.fail("rotate it", e))?;
            self.open()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        match file.write_all(&line) {
            Ok(()) => {
                self.size += line.len() as u64;
                self.torn = false;
                Ok(())
            }
            Err(e) => {
                self.torn = true;
                self.file = None;
                Err(self.fail("write to it", e))
            }
        }
    }

    fn open(&mut self) -> Result<(), JournalError> {
        if self.file.is_some() {
            return Ok(());
        }
        let open = || -> io::Result<(File, u64, bool)> {
            let mut file = OpenOptions::new().create(true).append(true).read(true).open(&self.path)?;
            let size = file.seek(SeekFrom::End(0))?;
            let mut last = [b'\n'];
            if size > 0 {
                file.seek(SeekFrom::End(-1))?;
                file.read_exact(&mut last)?;
            }
            Ok((file, size, last != [b'\n']))
        };
        let (mut file, mut size, torn) = open().map_err(|e| self.fail("open it", e))?;
        if torn && !self.torn {
            // An agent was killed in the middle of a line.
            file.write_all(b"\n").map_err(|e| self.fail("write to it", e))?;
            size += 1;
        }
        (self.file, self.size) = (Some(file), size);
        Ok(())
    }

    fn fail(&self, operation: &'static str, source: io::Error) -> JournalError {
        JournalError { path: self.path.clone(), operation, source }
    }
}

/// Writes every event that comes, counts it, and hands it on to hooks and to those who follow. Ends when the sending side is gone. To be run on the slow thread: it writes to the disk without further ado.
pub async fn run(
    mut events: mpsc::Receiver<Event>,
    mut journal: Journal,
    published: Published,
    metrics: Arc<Metrics>,
    hooks: Hooks,
) {
    let mut failing = false;
    while let Some(event) = events.recv().await {
        metrics.event(&event);
        if let EventKind::EffectFailed { effect, error } = &event.kind {
            tracing::error!(effect, "{error}");
        }
        let record = Arc::new(Record::now(event));
        match journal.append(&record) {
            Ok(()) if failing => {
                failing = false;
                tracing::warn!("the journal can be written again; the events between were not kept");
            }
            Ok(()) => {}
            Err(error) => {
                metrics.journal_error();
                if !failing {
                    failing = true;
                    tracing::error!("{error}; events are not kept until it can be written again");
                }
            }
        }
        hooks.tell(&record);
        published.tell(record);
    }
}

/// Which events somebody wants.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only from this time on.
    pub since: Option<SystemTime>,
    /// Only what concerns this virtual server, which has these addresses.
    pub server: Option<(String, BTreeSet<IpAddr>)>,
    /// The failovers, of the agent's life that is being read, that have passed: what is told of their end passes, too.
    pub failovers: Arc<Mutex<BTreeSet<u64>>>,
}

impl Filter {
    /// Is it one of them?
    pub fn passes(&self, record: &Record) -> bool {
        if self.since.is_some_and(|since| record.time < since) {
            return false;
        }
        let Some((name, addresses)) = &self.server else { return true };
        let mut failovers = self.failovers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = record.event.failover.is_some_and(|number| failovers.contains(&number));
        let passes = match &record.event.kind {
            EventKind::Serving { server, .. }
            | EventKind::Taken { server, .. }
            | EventKind::Leaving { server, .. }
            | EventKind::Balance { server, .. }
            | EventKind::Rerouting { server, .. }
            | EventKind::RerouteOver { server, .. }
            | EventKind::Routing { server, .. }
            | EventKind::RoutingOver { server, .. }
            | EventKind::ResourcesStarted { server, .. }
            | EventKind::ResourcesStopped { server, .. }
            | EventKind::ResourcesFailed { server, .. }
            | EventKind::ConnectionsReset { server, .. }
            | EventKind::Fenced { server, .. }
            | EventKind::FenceFailed { server, .. }
            | EventKind::StorageLostEverywhere { server, .. }
            | EventKind::Deposed { server } => server == name,
            EventKind::Failover { moves, .. } => moves.iter().any(|m| addresses.contains(&m.address)),
            EventKind::AddressDeleted { address, .. }
            | EventKind::AddressConflict { address, .. }
            | EventKind::AddressConflictOver { address, .. }
            | EventKind::ForeignClaim { address, .. } => addresses.contains(address),
            EventKind::FailoverDone { .. } => known,
            EventKind::Started { .. } => {
                failovers.clear(); // they are numbered from 1 again
                false
            }
            EventKind::InterfaceAbsent { .. }
            | EventKind::Port { .. }
            | EventKind::Segment { .. }
            | EventKind::TargetSilent { .. }
            | EventKind::TargetAnswers { .. }
            | EventKind::Stranded { .. }
            | EventKind::SteeringDeleted { .. }
            | EventKind::Storage { .. }
            | EventKind::Attached { .. }
            | EventKind::Verdict { .. }
            | EventKind::NodeDead { .. }
            | EventKind::LeaseBegins
            | EventKind::LeaseOver
            | EventKind::Master { .. }
            | EventKind::Incarnation { .. }
            | EventKind::StoreLost
            | EventKind::StoreBack
            | EventKind::Draining { .. }
            | EventKind::Resumed { .. }
            | EventKind::Reloaded { .. }
            | EventKind::ReloadRefused { .. }
            | EventKind::Resynced
            | EventKind::EffectFailed { .. } => false,
        };
        if let Some(number) = record.event.failover.filter(|_| passes) {
            failovers.insert(number);
        }
        passes
    }
}

/// Hands every record of the folder `state` that passes `keep` to `take`, oldest first, until that returns false.
/// Lines that are no records (half-written ones) are passed over. A folder without journal has none.
///
/// # Errors
/// A file is there but can't be read.
pub fn visit(
    state: &Path,
    keep: impl Fn(&Record) -> bool,
    mut take: impl FnMut(Record) -> bool,
) -> Result<(), JournalError> {
    let current = state.join(FILE);
    let fail = |path: &Path, source| JournalError { path: path.to_owned(), operation: "read it", source };
    let open = |path: &Path| match File::open(path) {
        Ok(file) => file.metadata().map(|m| Some((m.ino(), file))).map_err(|e| fail(path, e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(fail(path, e)),
    };
    // Both are opened before either is read, the current one first: if it is rotated meanwhile, it is there twice, and
    // nothing is missing.
    let newest = open(&current)?;
    let oldest = open(&older(&current))?.filter(|(inode, _)| newest.as_ref().is_none_or(|(n, _)| n != inode));
    for (_, file) in [oldest, newest].into_iter().flatten() {
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(|e| fail(&current, e))?;
            let Ok(record) = serde_json::from_slice::<Record>(&line) else { continue };
            if keep(&record) && !take(record) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The last `limit` records that pass `keep`, oldest first.
///
/// # Errors
/// As [`visit`].
pub fn read(state: &Path, limit: usize, keep: impl Fn(&Record) -> bool) -> Result<Vec<Record>, JournalError> {
    let mut kept = VecDeque::new();
    visit(state, keep, |record| {
        kept.push_back(record);
        if kept.len() > limit {
            kept.pop_front();
        }
        true
    })?;
    Ok(kept.into())
}

/// The last `n` records.
///
/// # Errors
/// As [`visit`].
pub fn tail(state: &Path, n: usize) -> Result<Vec<Record>, JournalError> {
    read(state, n, |_| true)
}

/// Every record from `time` on.
///
/// # Errors
/// As [`visit`].
pub fn since(state: &Path, time: SystemTime) -> Result<Vec<Record>, JournalError> {
    read(state, usize::MAX, |r| r.time >= time)
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
