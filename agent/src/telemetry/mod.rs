//! What the agent shows: the published state, metrics and HTTP.
//!
//! Everything here runs on the slow thread and only reads what the fast one has published; nothing flows back. What the page may
//! ask for goes through the store, as the command line does.

mod action;
mod collect;
mod http;
mod metrics;
pub mod reference;
mod stages;
#[cfg(test)]
mod tests;
mod tls;
mod traces;
mod web;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use baton_common::{Counters, Diagnostics, RTT_BUCKETS};
use baton_core::plan::Planning;
use baton_core::{HostSample, Snapshot, StorageState, Time};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::journal::Record;

pub use action::{Act, Action, Actions};
pub use http::{Tls, plain, router, run, serve};
pub use metrics::Metrics;
#[cfg(test)]
pub(crate) use tls::tests as tls_tests;
pub use tls::{Material, TlsError, read_tls};
pub use traces::trace;

/// Events that a slow reader may lag behind before it misses some (it is told how many).
const EVENT_BACKLOG: usize = 1024;

/// Published data older than this is called stale.
pub const STALE_AFTER: Duration = Duration::from_secs(3);

/// Traffic of one virtual IP, all CPUs together, since it is known to the kernel programs.
#[derive(Clone, Debug, PartialEq)]
pub struct VipCounters {
    /// The virtual IP.
    pub address: IpAddr,
    /// Its virtual server.
    pub server: String,
    /// The sums.
    pub counters: Counters,
}

/// Round-trip times of a path between two ports, since it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStats {
    /// Its segment.
    pub segment: String,
    /// Interface name of the sending port.
    pub from: String,
    /// Interface name of the receiving port.
    pub to: String,
    /// How many there were of which length: bucket k counts those of at most 2^k microseconds that are in no lower one,
    /// the last one all that are longer.
    pub rtt: [u64; RTT_BUCKETS],
    /// Their sum, nanoseconds.
    pub rtt_sum_ns: u64,
}

/// What the block device of a file system has done since it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCounters {
    /// The virtual server.
    pub server: String,
    /// The device, as the configuration names it.
    pub device: String,
    /// The sums.
    pub counters: StorageCounters,
}

/// The counters of a block device (Documentation/block/stat.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageCounters {
    /// Bytes read and written.
    pub bytes: u64,
    /// Requests that were done: reads, writes, discards and flushes.
    pub requests: u64,
    /// Time in which it had something to do; the kernel starts from zero after 50 days.
    pub busy: Duration,
    /// Times of all requests together, from when they were queued; likewise.
    pub waited: Duration,
}

/// TCP connections of a virtual server that this node serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptConnections {
    /// The virtual server.
    pub server: String,
    /// Those that the other nodes are told of.
    pub kept: usize,
    /// More than that.
    pub beyond: usize,
}

/// What was measured of a storage unit, since the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitStats {
    /// Its name.
    pub unit: String,
    /// What is read.
    pub device: String,
    /// Its number, where it is a block device that could be opened.
    pub number: Option<u64>,
    /// How it is; `None`: not known yet.
    pub state: Option<StorageState>,
    /// The cache may have answered.
    pub cached: bool,
    /// Reads that have failed.
    pub errors: u64,
    /// How often it hung.
    pub hangs: u64,
    /// How many reads took how long: as in [`PathStats::rtt`].
    pub took: [u64; RTT_BUCKETS],
    /// Their sum, nanoseconds.
    pub took_sum_ns: u64,
}

impl UnitStats {
    /// Of one that has not been read yet.
    pub fn new(unit: &str, device: &str) -> UnitStats {
        let (unit, device) = (unit.to_owned(), device.to_owned());
        let took = [0; RTT_BUCKETS];
        UnitStats {
            unit,
            device,
            number: None,
            state: None,
            cached: false,
            errors: 0,
            hangs: 0,
            took,
            took_sum_ns: 0,
        }
    }

    /// Counts a read.
    pub fn read(&mut self, took: Duration) {
        let is_in = |k: &usize| k + 1 == RTT_BUCKETS || took <= Duration::from_micros(1 << k);
        let bucket = (0..RTT_BUCKETS).find(is_in).unwrap_or(RTT_BUCKETS - 1);
        self.took[bucket] += 1;
        self.took_sum_ns += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / 1024);
    }

    /// Does it hang, as far as is known?
    pub fn is_hung(&self) -> bool {
        self.state == Some(StorageState::Hung)
    }
}

/// What the block devices of a storage unit do, whoever asks them to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitRequests {
    /// Name of the unit.
    pub unit: String,
    /// Its device, as in [`UnitStats`].
    pub device: String,
    /// Requests that are done, well or not, since the agent runs.
    pub completed: u64,
    /// Those that have failed.
    pub errors: u64,
    /// Requests that are not done yet.
    pub in_flight: u64,
    /// How old the oldest of them is; zero where there is none.
    pub oldest: Duration,
}

/// The reading side: cheap to clone.
#[derive(Clone, Debug)]
pub struct Published {
    /// The machine's view.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Traffic by virtual IP.
    pub counters: watch::Receiver<Arc<Vec<VipCounters>>>,
    /// What the kernel programs saw that belongs to no virtual IP, all ports and CPUs together.
    pub diagnostics: watch::Receiver<Diagnostics>,
    /// Round-trip times by path.
    pub paths: watch::Receiver<Arc<Vec<PathStats>>>,
    /// What could be planned.
    pub planning: watch::Receiver<Arc<Planning>>,
    /// How busy the host was in the last sample, where it is known.
    pub host: watch::Receiver<Option<HostSample>>,
    /// What the block devices have done.
    pub devices: watch::Receiver<Arc<Vec<DeviceCounters>>>,
    /// TCP connections of the virtual servers that this node serves.
    pub connections: watch::Receiver<Arc<Vec<KeptConnections>>>,
    /// What was measured of the storage units.
    pub units: watch::Receiver<Arc<Vec<UnitStats>>>,
    /// What the block devices of the storage units do.
    pub requests: watch::Receiver<Arc<Vec<UnitRequests>>>,
    /// Every event, once it is in the journal.
    events: broadcast::Sender<Arc<Record>>,
    shared: Arc<Shared>,
}

/// The writing side. None of its methods waits, allocates much or takes a contended lock.
#[derive(Debug)]
pub struct Publisher {
    /// The machine's view, after every change.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// Traffic by virtual IP, after every sample.
    pub counters: watch::Sender<Arc<Vec<VipCounters>>>,
    /// Diagnostics, after every sample.
    pub diagnostics: watch::Sender<Diagnostics>,
    /// Round-trip times by path, after every sample.
    pub paths: watch::Sender<Arc<Vec<PathStats>>>,
    /// What could be planned, after every sample.
    pub planning: watch::Sender<Arc<Planning>>,
    /// How busy the host was, after every sample.
    pub host: watch::Sender<Option<HostSample>>,
    /// What the block devices have done, after every sample.
    pub devices: watch::Sender<Arc<Vec<DeviceCounters>>>,
    /// TCP connections, whenever they were read.
    pub connections: watch::Sender<Arc<Vec<KeptConnections>>>,
    /// What was measured of the storage units, after every read.
    pub units: watch::Sender<Arc<Vec<UnitStats>>>,
    /// What the block devices of the storage units do, after every sample.
    pub requests: watch::Sender<Arc<Vec<UnitRequests>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Boot-time clock of the last [`Publisher::beat`], nanoseconds.
    beat: AtomicU64,
    dropped_inputs: AtomicU64,
    dropped_reports: AtomicU64,
}

/// Makes both sides.
pub fn channel() -> (Publisher, Published) {
    let shared = Arc::new(Shared::default());
    let (snapshot, snapshot_rx) = watch::channel(Arc::default());
    let (counters, counters_rx) = watch::channel(Arc::default());
    let (diagnostics, diagnostics_rx) = watch::channel(Diagnostics::default());
    let (paths, paths_rx) = watch::channel(Arc::default());
    let (planning, planning_rx) = watch::channel(Arc::default());
    let (host, host_rx) = watch::channel(None);
    let (devices, devices_rx) = watch::channel(Arc::default());
    let (connections, connections_rx) = watch::channel(Arc::default());
    let (units, units_rx) = watch::channel(Arc::default());
    let (requests, requests_rx) = watch::channel(Arc::default());
    let (events, _) = broadcast::channel(EVENT_BACKLOG);
    let publisher = Publisher {
        snapshot,
        counters,
        diagnostics,
        paths,
        planning,
        host,
        devices,
        connections,
        units,
        requests,
        shared: shared.clone(),
    };
    let published = Published {
        snapshot: snapshot_rx,
        counters: counters_rx,
        diagnostics: diagnostics_rx,
        paths: paths_rx,
        planning: planning_rx,
        host: host_rx,
        devices: devices_rx,
        connections: connections_rx,
        units: units_rx,
        requests: requests_rx,
        events,
        shared,
    };
    publisher.beat();
    (publisher, published)
}

impl Publisher {
    /// Says that the fast thread is alive; to be called at least once a second. What it publishes counts as fresh for
    /// [`STALE_AFTER`] from then on.
    pub fn beat(&self) {
        self.shared.beat.store(boot_time().0, Ordering::Relaxed);
    }

    /// Counts a step of the input record that was dropped because a channel was full.
    pub fn dropped_input(&self) {
        self.shared.dropped_inputs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event that was dropped because the slow thread didn't keep up.
    pub fn dropped_report(&self) {
        self.shared.dropped_reports.fetch_add(1, Ordering::Relaxed);
    }
}

impl Published {
    /// What status shows now.
    pub fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            age_ms: u64::try_from(self.age().as_millis()).unwrap_or(u64::MAX),
            snapshot: (**self.snapshot.borrow()).clone(),
        }
    }

    /// Time since the fast thread was last known to be alive.
    pub fn age(&self) -> Duration {
        boot_time().since(Time(self.shared.beat.load(Ordering::Relaxed)))
    }

    /// Steps of the input record dropped because a channel was full.
    pub fn dropped_inputs(&self) -> u64 {
        self.shared.dropped_inputs.load(Ordering::Relaxed)
    }

    /// Events dropped because the slow thread didn't keep up.
    pub fn dropped_reports(&self) -> u64 {
        self.shared.dropped_reports.load(Ordering::Relaxed)
    }

    /// Every event from now on.
    pub fn events(&self) -> broadcast::Receiver<Arc<Record>> {
        self.events.subscribe()
    }

    /// Hands an event to everyone who follows. It is no error if nobody does.
    pub fn tell(&self, record: Arc<Record>) {
        let _ = self.events.send(record);
    }
}

/// `baton status --json` and `/status.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Milliseconds since the agent's fast thread was last known to be alive.
    pub age_ms: u64,
    /// The machine's view.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

impl Status {
    /// Must the reader be warned that this may no longer be true?
    pub fn stale(&self) -> bool {
        u128::from(self.age_ms) >= STALE_AFTER.as_millis()
    }
}

/// The boot-time clock, which core's times are of.
pub fn boot_time() -> Time {
    // The clock exists on every kernel since 2.6.39; a failure would read as time zero.
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Time::default() + now
}
