//! The slow side: everything that may wait. `disk` owns the store, the journal, the record and sysctls on a thread of its
//! own, so that a stalled disk stalls nobody who asks for status; so does `planner`, for it calculates; HTTP, the control
//! socket, the sampler and signals share the main thread.

pub mod clean;
mod cluster;
mod devices;
mod disk;
mod fences;
mod host;
mod planner;
mod ports;
pub mod probe_key;
pub mod record;
mod reload;
mod requests;
mod resources;
mod sample;
pub mod sysctl;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::config::{DefinitionsError, Fencing, Loaded, Resources, StoreKind};
use crate::confine;
use crate::connections;
use crate::control::{self, LockError};
use crate::fast::{self, FastError, Identity, Links, PathReader, Probing, Setup};
use crate::hooks::Hooks;
use crate::io::kernel::{Kernel, KernelError, node_number, promise_early};
use crate::journal::Journal;
use crate::store::etcd::EtcdError;
use crate::store::{FileStore, Store, StoreError};
use crate::telemetry::{self, Metrics, Published};
use cluster::Joined;
use probe_key::KeyError;
use reload::{Configuration, Reloading};

/// Records under way to the disk. A full channel drops records, counted, for the fast thread never waits.
const RECORDS: usize = 4096;
/// Events under way to the journal; a full channel drops events, counted.
const EVENTS: usize = 4096;
/// Plans that are asked for; a full channel fails them, and core asks again.
const PLANS: usize = 4;
/// Starts and stops of file systems and services that are asked for; a full channel fails them, and core asks again.
const RESOURCES: usize = 256;
/// Virtual servers whose connections are to be reset; a full channel does without, and core is told.
const RESETS: usize = 4096;
/// Nodes that are to be fenced; a full channel fails that, and core asks again.
const FENCES: usize = 256;
/// Other configurations that are asked for; who asks waits.
const RELOADS: usize = 4;
/// What the answer to who asked for a reload may take before the control socket is closed.
const ANSWERED: Duration = Duration::from_millis(50);
/// Inputs under way to core; the slow side waits.
const INPUTS: usize = 256;
/// Bytes; as much as a main thread has.
const STACK: usize = 8 << 20;

/// Why the agent could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Without these nothing works, and nothing has been touched.
    #[error("not permitted: without {missing}; run as root, or give the process these capabilities")]
    Privileges {
        /// Names of the missing capabilities.
        missing: String,
    },
    /// A folder or a file of the system can't be used.
    #[error("{path}: {error}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The key of the probe frames can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Another agent runs on this node, or its lock can't be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// etcd can't be used.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// What the cluster defines doesn't fit this node.
    #[error(transparent)]
    Definitions(#[from] DefinitionsError),
    /// What the cluster defines can't be read by this version.
    #[error("the cluster's definitions, generation {generation}: {error}")]
    Unreadable {
        /// Which generation.
        generation: u64,
        /// Why.
        error: String,
    },
    /// The kernel programs can't be used.
    #[error(transparent)]
    Kernel(Box<KernelError>),
    /// The fast thread could not start, or has failed.
    #[error(transparent)]
    Fast(#[from] FastError),
    /// The fast thread has panicked; its message is in the log.
    #[error("the fast thread has panicked; what it served stays served until the agent is back")]
    Panicked,
    /// Threads or signals are not to be had.
    #[error("starting: {0}")]
    Start(#[source] io::Error),
}

impl From<KernelError> for RunError {
    fn from(error: KernelError) -> RunError {
        RunError::Kernel(Box::new(error))
    }
}

/// Runs the agent until SIGTERM or SIGINT. What it serves stays served: the next agent takes it over. `file`: where the configuration
/// is read anew, when that is asked for.
///
/// # Errors
/// Everything that keeps it from starting; later, only a failure of the fast thread.
pub fn run(file: &Path, loaded: Loaded) -> Result<(), RunError> {
    hear_hangups()?;
    privileges()?;
    let state = &loaded.agent.paths.state;
    fs::create_dir_all(state).map_err(|error| RunError::Path { path: state.clone(), error })?;
    if let Some(dir) = loaded.agent.store.path.parent() {
        fs::create_dir_all(dir).map_err(|error| RunError::Path { path: dir.to_owned(), error })?;
    }
    // For the life of the process (lease.md, R8).
    let _lock = control::lock(state)?;
    let file = std::path::absolute(file).map_err(|error| RunError::Path { path: file.to_owned(), error })?;
    let mut configuration = Configuration::new(file, loaded);
    let mut hooks = start_hooks(configuration.loaded())?;
    configuration.is_confined = is_simple(configuration.loaded());
    if configuration.is_confined {
        confine::thread();
    }
    // New definitions are taken up as a restarted agent would: everything that is there is adopted. Each time by a thread that is not
    // confined yet, for the definitions may bring file systems and services.
    loop {
        let ended = thread::scope(|scope| {
            let run = thread::Builder::new().name("slow".into()).stack_size(STACK);
            let run = run.spawn_scoped(scope, || run_once(&mut configuration, &hooks));
            let run = run.map_err(RunError::Start)?;
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match ended {
            Ok(Ended::Stop) => return Ok(()),
            Ok(Ended::Anew) => {}
            Err(e) if configuration.falls_back(&e) => {}
            Err(e) => return Err(e),
        }
        if !hooks.are(&configuration.loaded().agent.hooks) {
            hooks = start_hooks(configuration.loaded())?;
        }
    }
}

fn start_hooks(loaded: &Loaded) -> Result<Hooks, RunError> {
    Hooks::start(&loaded.core.node, loaded.agent.hooks.clone()).map_err(RunError::Start)
}

/// From now on SIGHUP doesn't end the process, also while nobody waits for it: who has been heard once is (tokio never lets
/// go of a signal).
fn hear_hangups() -> Result<(), RunError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Start)?;
    runtime.block_on(async { signal(SignalKind::hangup()).map(drop) }).map_err(RunError::Start)
}

/// Nothing is ever to be mounted, started or fenced by this agent: its configuration has nothing of that, and nothing is left of an
/// earlier one.
fn is_simple(loaded: &Loaded) -> bool {
    needs_little(loaded)
        && crate::resources::found(Path::new(crate::resources::ROOT)).is_empty()
        && !fences::note().exists()
}

/// Its configuration names no programs, and nothing to be mounted.
fn needs_little(loaded: &Loaded) -> bool {
    let agent = &loaded.agent;
    agent.store.kind == StoreKind::File
        && agent.units.is_empty()
        && agent.hooks.is_empty()
        && agent.resources.iter().all(|r| r.filesystems.is_empty() && r.services.is_empty())
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The agent is to stop.
    Stop,
    /// The cluster has new definitions, or another member list; or the node's own configuration is another one.
    Anew,
}

fn run_once(configuration: &mut Configuration, hooks: &Hooks) -> Result<Ended, RunError> {
    let loaded = configuration.loaded().clone();
    let Loaded { core: config, agent, .. } = &loaded;
    let state = &agent.paths.state;
    let promises = Promises::start(agent.paths.bpffs.clone(), agent.agent_grace).map_err(RunError::Start)?;
    let mut store = FileStore::open(&agent.store.path)?;
    let mut kernel = Kernel::open(&agent.paths.bpffs)?;
    let joined = match (&agent.store.kind, &agent.cluster) {
        (StoreKind::Etcd(etcd), Some(own)) => match cluster::join(config, etcd, own, state, &mut kernel)? {
            Some(joined) => joined,
            None => return Ok(Ended::Stop),
        },
        _ => Joined {
            config: config.clone(),
            resources: agent.resources.clone(),
            fencing: Fencing::default(),
            units: agent.units.clone(),
            incarnation: store.next_incarnation(&boot_id()?)?,
            key: probe_key::load(state)?,
            cluster: None,
        },
    };
    let Joined { config, resources, fencing, units, incarnation, key, cluster } = joined;
    let kept = sysctl::with_below(config.ports.iter().map(|p| &p.interface));
    let has_services = resources.iter().any(|r| !r.services.is_empty());
    if let Err(e) = sysctl::restore(&mut store, &kept, has_services) {
        tracing::warn!("settings that are no longer needed could not be restored: {e}");
    }
    if has_services && let Err(e) = sysctl::prepare_for_services(&mut store) {
        tracing::error!("services may not start before their addresses are there: {e}");
    }
    // Where nobody else could take over, nobody would need to know.
    let tracked: BTreeMap<IpAddr, String> = match &cluster {
        Some(_) => tracked(&resources),
        None => BTreeMap::new(),
    };
    kernel.track(tracked.values().map(String::as_str))?;
    let reader = kernel.reader()?;
    let on_devices = requests::start(&mut kernel, &units);
    let identity = Identity { key, node: node_number(&config.node), incarnation };
    let (paths, named) = watch::channel(Vec::new());
    let table = kernel.path_table()?;
    let path_reader = PathReader { paths: named, stamps: table.stamps().clone() };
    let messages = kernel.logger()?;
    let changed = Arc::new(Notify::new());
    let turn = cluster.as_ref().map(cluster::Joining::turn);
    let sharing = cluster.as_ref().map(cluster::Joining::sharing);
    let (start, membership, store_link, store_thread) = match cluster {
        Some(cluster) => {
            let (link, thread) =
                cluster.spawn_store(&config.node, changed.clone()).map_err(RunError::Start)?;
            (Some(cluster.start), Some(cluster.membership), Some(link), Some(thread))
        }
        None => (None, None, None, None),
    };
    let probing = Probing { identity, table, paths, membership };

    let (publisher, published) = telemetry::channel();
    let publisher = Arc::new(publisher);
    let metrics = Arc::new(Metrics::with_hooks(published.clone(), hooks.runs()));
    let (inputs, inputs_rx) = mpsc::channel(INPUTS);
    let (records, records_rx) = mpsc::channel(RECORDS);
    let (events, events_rx) = mpsc::channel(EVENTS);
    let (plans, plans_rx) = mpsc::channel(PLANS);
    let (requests, requests_rx) = mpsc::channel(RESOURCES);
    let (reloads, reloads_rx) = mpsc::channel(RELOADS);
    let (calls, mut calls_rx) = mpsc::channel(RELOADS);
    let (stop, stop_rx) = oneshot::channel();
    let (ended, ended_rx) = oneshot::channel();
    let (ready, ready_rx) = oneshot::channel();

    let disk = disk::Disk {
        store: Box::new(store),
        incarnation,
        journal: Journal::new(state),
        state: state.clone(),
        has_services,
        inputs: inputs.clone(),
    };
    let journal_events = events.clone();
    let disk = disk
        .spawn(records_rx, events_rx, published.clone(), metrics.clone(), hooks.clone())
        .map_err(RunError::Start)?;
    let planner = planner::spawn(plans_rx, inputs.clone()).map_err(RunError::Start)?;
    let etcd = match &agent.store.kind {
        StoreKind::Etcd(etcd) => Some(etcd.clone()),
        StoreKind::File => None,
    };
    let protection = fences::Protection::new(&config.node, etcd, resources.clone(), fencing);
    let setup =
        resources::setup(&config.node, resources, protection.guard.clone(), protection.reservations());
    let (resources, running, hurry) =
        resources::spawn(&setup, requests_rx, inputs.clone()).map_err(RunError::Start)?;
    let (resets, sharing) = match sharing {
        Some((etcd, generation)) => {
            let (resets, requests) = mpsc::channel(RESETS);
            let setup = connections::Setup {
                node: config.node.clone(),
                addresses: tracked,
                generation,
                etcd,
                reader: kernel.connections()?,
                snapshot: published.snapshot.clone(),
                publisher: publisher.clone(),
                events: events.clone(),
                requests,
            };
            (Some(resets), Some(connections::spawn(setup).map_err(RunError::Start)?))
        }
        None => (None, None),
    };
    let (fences, fences_rx) = mpsc::channel(FENCES);
    let guard = protection.guard.clone();
    let protection = protection
        .start(agent.watchdog.clone(), kernel.lease_reader()?, fences_rx, inputs.clone())
        .map_err(RunError::Start)?;
    let probers = fences::watch_units(&units, &setup.resources, hurry, publisher.clone(), inputs.clone())
        .map_err(RunError::Start)?;
    let links = Links {
        inputs: inputs_rx,
        slow: records,
        events,
        publisher: publisher.clone(),
        plans,
        resources: requests,
        resets,
        fences,
        readers: probers.readers(),
        guard,
        reloads: reloads_rx,
        store: store_link,
        stop: stop_rx,
    };
    let (sampled, sampled_rx) = watch::channel(config.clone());
    let sampler = sample::Sampler::new(sampled_rx, reader, path_reader, on_devices, publisher, inputs);
    let setup = Setup { config, incarnation, cluster: start, running, grace: agent.agent_grace };
    let fast = fast::spawn(setup, kernel, probing, links, ready, ended).map_err(RunError::Start)?;

    // From here on it only talks and waits.
    confine::thread();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Start)?;
    let outcome = runtime.block_on(async {
        tokio::spawn(confine::report());
        let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Start)?;
        tokio::spawn(sampler.run());
        tokio::spawn(kernel_messages(messages));
        let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Start)?;
        let mut reloading = Reloading {
            fast: reloads,
            events: journal_events,
            sampled,
            metrics,
            published: published.clone(),
            http: None,
            tls: None,
            traces: None,
        };
        reloading.start_telemetry(&loaded).await;
        match control::bind(&agent.control) {
            Ok(listener) => {
                let server = control::Server::new(published.clone(), state.clone());
                tokio::spawn(server.with_reloads(calls).run(listener));
            }
            Err(e) => tracing::error!("{e}; the command line can't ask this agent"),
        }
        if ready_rx.await.is_ok() {
            configuration.has_started();
            notify(&[sd_notify::NotifyState::Ready]);
            if let Some(news) = configuration.news() {
                // A journal that can't keep up has more to tell than this.
                let _ = reloading.events.try_send(news);
            }
        }
        drop(promises); // the fast thread makes them
        tokio::spawn(watchdog(published.clone()));
        let mut ended = ended_rx;
        let mut news = std::pin::pin!(news(&changed, turn.as_ref()));
        loop {
            let asked = tokio::select! {
                _ = terminate.recv() => { tracing::info!("SIGTERM"); break },
                _ = interrupt.recv() => { tracing::info!("SIGINT"); break },
                _ = &mut ended => break, // the fast thread is gone: its result says why
                () = &mut news => {
                    tracing::info!("the cluster has new definitions or members");
                    return Ok(Ended::Anew);
                }
                Some(call) = calls_rx.recv() => Some(call),
                _ = hangup.recv() => None,
            };
            if reloading.reload(configuration, asked).await {
                // Whoever asked is answered by a task of its own.
                tokio::time::sleep(ANSWERED).await;
                return Ok(Ended::Anew);
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        Ok(Ended::Stop)
    });
    drop(stop);
    let fast = fast.join().map_err(|_| RunError::Panicked)?;
    drop(runtime); // ends the sampler, the last to hold a way to the disk thread
    // Whoever waits for a child that is being killed takes a moment, in which this node must not be given up.
    let promises = Promises::start(agent.paths.bpffs.clone(), agent.agent_grace);
    drop(probers);
    if resources.join().is_err() {
        tracing::error!("the thread of file systems and services has panicked");
    }
    drop(protection);
    drop(promises);
    if sharing.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!("the thread of connections has panicked; no client was told of a takeover since");
    }
    disk.join().map_err(|_| RunError::Panicked)?;
    if planner.join().is_err() {
        tracing::error!("the planner has panicked; nothing was planned since");
    }
    if let Some(thread) = store_thread {
        thread.join().map_err(|_| RunError::Panicked)?;
    }
    fast?;
    outcome
}

/// The addresses of virtual servers that have services, for clients are connected to these, unless they are not to be told.
fn tracked(resources: &[Resources]) -> BTreeMap<IpAddr, String> {
    let with_services = resources.iter().filter(|r| !r.services.is_empty() && r.reset_connections);
    with_services.flat_map(|r| r.addresses.iter().map(|a| (*a, r.server.clone()))).collect()
}

/// Tells that this node has started, and ends when there is something new in the cluster that it is its turn to take up.
async fn news(changed: &Notify, turn: Option<&cluster::Turn>) {
    if let Some(turn) = turn {
        turn.is_over().await;
    }
    changed.notified().await;
    if let Some(turn) = turn {
        turn.comes().await;
    }
}

/// Promises the kernel programs of an earlier agent, if there are any, that an agent is there, until the fast thread does:
/// loading takes a while on a busy machine, in which this node must not be given up. Ends when dropped.
struct Promises {
    stop: std::sync::mpsc::Sender<()>,
}

/// An agent that has not started after so long is given up all the same.
const STARTING_AT_MOST: Duration = Duration::from_secs(30);

impl Promises {
    fn start(bpffs: PathBuf, grace: Duration) -> io::Result<Promises> {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let promise = move || promise_early(&bpffs, fast::now() + grace);
        if let Err(e) = promise() {
            tracing::warn!("{e}");
        }
        let begin = fast::now();
        std::thread::Builder::new().name("promises".into()).spawn(move || {
            // A channel that is closed ends it; what could not be written is told above, or was there then.
            while stopped.recv_timeout(grace / 4) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                && fast::now().since(begin) < STARTING_AT_MOST
            {
                let _ = promise();
            }
        })?;
        Ok(Promises { stop })
    }
}

impl Drop for Promises {
    fn drop(&mut self) {
        let _ = self.stop.send(()); // it has ended by itself
    }
}

/// Hands the kernel programs' own messages to the log.
async fn kernel_messages(logger: EbpfLogger<&'static dyn log::Log>) {
    // SAFETY: the logger owns its ring buffer's descriptor, which stays the same and open until the logger is dropped.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match logger {
        Ok(logger) => logger,
        Err(e) => return tracing::warn!("the kernel programs' messages can't be read: {e}"),
    };
    while let Ok(mut guard) = logger.readable_mut().await {
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}

/// Are the capabilities there that nothing works without?
fn privileges() -> Result<(), RunError> {
    let path = PathBuf::from("/proc/thread-self/status");
    let missing = missing_capabilities().map_err(|error| RunError::Path { path, error })?;
    if missing.is_empty() { Ok(()) } else { Err(RunError::Privileges { missing: missing.join(", ") }) }
}

/// Those of the capabilities that nothing works without (capabilities(7)) which this thread lacks. CAP_SYS_ADMIN holds those
/// for BPF.
///
/// # Errors
/// `/proc/thread-self/status` can't be read.
pub fn missing_capabilities() -> io::Result<Vec<&'static str>> {
    const NEEDED: [(&str, u64); 4] = [
        ("CAP_NET_ADMIN", 1 << 12),
        ("CAP_NET_RAW", 1 << 13),
        ("CAP_PERFMON", 1 << 38 | SYS_ADMIN),
        ("CAP_BPF", 1 << 39 | SYS_ADMIN),
    ];
    const SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // What can't be read is left for the system calls to find out.
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Ok(Vec::new());
    };
    Ok(NEEDED.iter().filter(|(_, any)| effective & any == 0).map(|(name, _)| *name).collect())
}

/// Tells systemd that all is well for as long as the fast thread goes round.
async fn watchdog(published: Published) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        tokio::time::sleep(limit / 3).await;
        if published.age() < limit / 3 + telemetry::STALE_AFTER {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("sd_notify: {e}");
    }
}

fn boot_id() -> Result<String, RunError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    fs::read_to_string(&path).map(|s| s.trim().to_owned()).map_err(|error| RunError::Path { path, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_where_there_are_services_whose_clients_are_to_be_told() {
        let server = |number: u8, lines: &str| {
            format!(
                "[[virtual_server]]\nname = \"vs{number}\"\naddresses = [\"10.0.0.{number}/24\"]\n{lines}"
            )
        };
        let service = "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/bin/true\"]\n";
        let text = "[node]\nname = \"fs1\"\n[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\n\
                    [[segment]]\nname = \"office\"\nsubnets = [\"10.0.0.0/24\"]\n"
            .to_owned()
            + &server(1, "")
            + &server(2, service)
            + &server(3, &format!("reset_connections = false\n{service}"));
        let loaded = crate::config::parse(&text, "f").expect("good");
        let expected = (IpAddr::from([10, 0, 0, 2]), "vs2".to_owned());
        assert_eq!(tracked(&loaded.agent.resources), BTreeMap::from([expected]));
    }
}
