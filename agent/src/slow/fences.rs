//! Between core and what keeps file systems from being written by two nodes: fencing, the watchdog, and the storage units.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use baton_core::{Input, StorageState};
use tokio::sync::mpsc;

use crate::config::{EtcdConfig, Fence, Fencing, Resources, StorageUnit};
use crate::fast;
use crate::fence::guard::Leased;
use crate::fence::watchdog::{self, Watchdog};
use crate::fence::{self, Fencer, Guard, Promise, Request, Reservations};
use crate::io::kernel::LeaseReader;
use crate::resources::{Haste, Hurry, ROOT};
use crate::storage::Probers;
use crate::store::etcd::{Etcd, EtcdError};
use crate::telemetry::Publisher;

/// sg_persist(8).
const SG_PERSIST: &str = "/usr/bin/sg_persist";
/// Below [`ROOT`].
const NOTE: &str = "watchdog.json";

/// Where it is noted that the watchdog is armed.
pub(super) fn note() -> PathBuf {
    Path::new(ROOT).join(NOTE)
}

/// What is known before anything has been started.
pub(super) struct Protection {
    node: String,
    etcd: Option<EtcdConfig>,
    resources: Vec<Resources>,
    fencing: Fencing,
    promise: Promise,
    note: PathBuf,
    /// What may run here.
    pub guard: Arc<Guard>,
}

/// The threads. Dropped: they end, when nobody can ask for fencing any more.
pub(super) struct Protecting {
    fences: Option<JoinHandle<()>>,
    _watchdog: Option<Watchdog>,
}

impl Protection {
    /// Without etcd the node is alone, and nobody is fenced.
    pub(super) fn new(
        node: &str,
        etcd: Option<EtcdConfig>,
        resources: Vec<Resources>,
        fencing: Fencing,
    ) -> Protection {
        let note = note();
        let by_watchdog = resources.iter().filter(|r| etcd.is_some() && r.fence == Fence::Watchdog);
        let servers: BTreeSet<String> = by_watchdog.map(|r| r.server.clone()).collect();
        // What an earlier agent has promised holds until the others know better.
        let before = watchdog::noted(&note).map_or(BTreeSet::new(), |promise| promise.servers);
        let known = resources.iter().map(|r| r.server.clone()).chain(before.iter().cloned());
        let known: BTreeSet<String> = known.collect();
        let guard = Arc::new(Guard::new(known, &servers.union(&before).cloned().collect()));
        let promise = Promise { seconds: fencing.watchdog.as_secs(), servers };
        Protection { node: node.to_owned(), etcd, resources, fencing, promise, note, guard }
    }

    /// For those who mount.
    pub(super) fn reservations(&self) -> Option<Reservations> {
        self.etcd.as_ref().map(|_| Reservations::new(Path::new(SG_PERSIST), &self.node))
    }

    /// Starts the threads.
    pub(super) fn start(
        self,
        device: PathBuf,
        lease: LeaseReader,
        mut requests: mpsc::Receiver<Request>,
        inputs: mpsc::Sender<Input>,
    ) -> io::Result<Protecting> {
        let Protection { node, etcd, resources, fencing, promise, note, guard } = self;
        let is_needed = !promise.servers.is_empty() || watchdog::noted(&note).is_some();
        let watchdog = match etcd.clone().filter(|_| is_needed) {
            None => None,
            Some(etcd) => {
                let node = node.clone();
                let tell =
                    move |promise: &Promise| ask(&etcd, async |etcd| etcd.set_promise(&node, promise).await);
                let accepted = resources.iter().filter(|r| r.fence == Fence::None);
                let setup = watchdog::Setup {
                    accepted: accepted.map(|r| r.server.clone()).collect(),
                    open: watchdog::kernel_device(device.clone()),
                    path: device,
                    promise,
                    note,
                    guard: guard.clone(),
                    lease: Box::new(move || {
                        let lease = lease.read().ok()?;
                        let valid = fast::now().0 < lease.deadline_ns;
                        Some(Leased { incarnation: lease.incarnation, valid })
                    }),
                    tell: Arc::new(tell),
                };
                Some(Watchdog::start(setup)?)
            }
        };
        let promised = move |node: &str| match &etcd {
            Some(etcd) => ask(etcd, async |etcd| etcd.promise(node).await),
            None => Ok(None),
        };
        let setup = fence::Setup {
            node,
            resources,
            fencing,
            promised: Arc::new(promised),
            guard,
            sg_persist: SG_PERSIST.into(),
        };
        let report = move |request: Request, failed: Option<String>| {
            let Request { server, node, incarnation } = request;
            // The fast thread is gone: so is the reason to answer.
            let _ = inputs.blocking_send(Input::Fenced { server, node, incarnation, failed });
        };
        let mut fencer = Fencer::new(setup, Arc::new(report))?;
        let fences = thread::Builder::new().name("fencing".into()).spawn(move || {
            while let Some(request) = requests.blocking_recv() {
                fencer.fence(request);
            }
        })?;
        Ok(Protecting { fences: Some(fences), _watchdog: watchdog })
    }
}

impl Drop for Protecting {
    fn drop(&mut self) {
        if self.fences.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that fences has panicked");
        }
    }
}

/// Asks etcd on the calling thread, which may wait: connections belong to the thread that made them.
fn ask<T>(config: &EtcdConfig, question: impl AsyncFn(&Etcd) -> Result<T, EtcdError>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let etcd = Etcd::new(config).map_err(|e| e.to_string())?;
    runtime.block_on(question(&etcd)).map_err(|e| e.to_string())
}

/// Starts to read the storage units. Core is told how they are, and what hangs on one that is lost is stopped in a hurry.
pub(super) fn watch_units(
    units: &[StorageUnit],
    resources: &[Resources],
    hurried: Hurry,
    publisher: Arc<Publisher>,
    inputs: mpsc::Sender<Input>,
) -> io::Result<Probers> {
    // What is given up with its file systems mounted is for its successor to fence; where it doesn't, giving up takes its time.
    let needs: Vec<(String, Vec<String>, bool)> = resources
        .iter()
        .map(|r| (r.server.clone(), r.storage_units.clone(), r.fence != Fence::None))
        .collect();
    let lost = Mutex::new(BTreeMap::new());
    let told = inputs.clone();
    let report = move |unit: &str, state: StorageState| {
        {
            let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
            match state.is_good() {
                true => lost.remove(unit),
                false => lost.insert(unit.to_owned(), state == StorageState::Hung),
            };
            for (server, units, is_fenced) in
                needs.iter().filter(|(_, units, _)| units.iter().any(|u| u == unit))
            {
                let mut lost = units.iter().filter_map(|unit| lost.get(unit).copied());
                let hurry = lost.clone().next().map(|_| match lost.any(|hangs| hangs) && *is_fenced {
                    true => Haste::Hopeless,
                    false => Haste::Hurry,
                });
                hurried.set(server, hurry);
            }
        }
        // The fast thread is gone: so is the reason to tell.
        let _ = inputs.blocking_send(Input::Storage { unit: unit.to_owned(), state });
    };
    let told = move |unit: &str, asked| {
        let _ = told.blocking_send(Input::StorageRead { unit: unit.to_owned(), asked });
    };
    let show = move |units| {
        publisher.units.send_replace(units);
    };
    Probers::start(units, &(Arc::new(report) as _), &(Arc::new(told) as _), &(Arc::new(show) as _))
}
