//! The thread of a virtual server: its resources in their order, and what is done when one of them fails.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baton_core::ResourceState;

use super::folder::{Folder, Identity, Record, Resource};
use super::namespace::Namespace;
use super::orders::{Order, Orders, Patience, Woken};
use super::process::Process;
use super::service::{self, Place};
use super::{Failure, Setup, filesystem};
use crate::config::{Fence, Filesystem, Resources, Service};
use crate::fast::netlink::{self, Requests};
use crate::fence::{Guard, Reservations};

/// A stop that has failed is tried again so often.
const STOP_AGAIN: Duration = Duration::from_secs(1);
/// File systems are looked at so often: a reading of /proc.
const LOOK: Duration = Duration::from_secs(1);
/// What an earlier agent left halfway is stopped when nothing has been ordered for it after so long.
const ABANDONED: Duration = Duration::from_secs(5);
/// A failure of a service counts for so long.
const FAILURES_COUNT_FOR: Duration = Duration::from_secs(600);
/// Each step of a stop takes so long at most when a storage unit hangs, and longer when it is missing or errs: the rest is left to
/// fencing.
const HURRIED: Duration = Duration::from_millis(300);
/// How long arming the watchdog, and telling the other nodes of it, may take; and between two looks.
const GUARDED: Duration = Duration::from_secs(20);
const GUARD_LOOK: Duration = Duration::from_millis(10);
/// How long nothing happens at most.
const IDLE: Duration = Duration::from_secs(60);

/// How the resources are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was ordered yet, or an order was given up for another one.
    Open,
    Running,
    Stopped,
    /// To be stopped, which has failed so far; what was told of it.
    Stopping(String),
    /// Not started, or broken; what was told.
    Failed,
}

/// A virtual server.
pub struct Server {
    name: String,
    node: String,
    /// What is to run, in order; a server that is no longer configured has nothing.
    wanted: Vec<Resource>,
    resources: Option<Resources>,
    folder: Folder,
    /// Where its mounts are, if not where the host's are.
    namespace: Namespace,
    hierarchy: Option<PathBuf>,
    ocf_root: PathBuf,
    guard: Arc<Guard>,
    /// Where its devices are to be reserved.
    reservations: Option<Reservations>,
    bus: Option<String>,
    orders: Arc<Orders>,
    /// Number of the order that was last taken.
    seen: u64,
    state: State,
    /// When each service is checked next, and when it failed, by its place.
    watches: Vec<Watch>,
    looked: Instant,
}

#[derive(Clone)]
struct Watch {
    next: Instant,
    failures: Vec<Instant>,
}

impl Server {
    /// The server as it was left by an earlier agent, if there was one; `resources`: what is configured. The calling thread is its own
    /// from now on: it may have left the host's mount namespace.
    ///
    /// # Errors
    /// The folder can't be written, or the mount namespace can't be entered.
    pub fn new(
        setup: &Setup,
        name: &str,
        resources: Option<&Resources>,
        folder: Folder,
        hierarchy: Option<PathBuf>,
        orders: Arc<Orders>,
    ) -> io::Result<Server> {
        let wanted: Vec<Resource> = resources.map_or(Vec::new(), |r| {
            let filesystems = r.filesystems.iter().cloned().map(Resource::Filesystem);
            filesystems.chain(r.services.iter().cloned().map(Resource::Service)).collect()
        });
        let others = setup.resources.iter().filter(|r| r.server != name).flat_map(|r| &r.filesystems);
        let namespace = Namespace::new(&setup.root, name, others.map(|fs| fs.mount.clone()).collect())?;
        let now = Instant::now();
        let mut server = Server {
            name: name.to_owned(),
            namespace,
            node: setup.node.clone(),
            watches: vec![Watch { next: now, failures: Vec::new() }; wanted.len()],
            wanted,
            resources: resources.cloned(),
            folder,
            hierarchy,
            ocf_root: setup.ocf_root.clone(),
            guard: setup.guard.clone(),
            reservations: setup
                .reservations
                .clone()
                .filter(|_| resources.is_some_and(|r| r.fence == Fence::ScsiPr)),
            bus: setup.bus.clone(),
            orders,
            seen: 0,
            state: State::Open,
            looked: now,
        };
        if server.all_run() {
            server.state = State::Running;
            server.adopt()?;
        }
        Ok(server)
    }

    /// Were all of its resources found running?
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Does certainly nothing of it run here?
    pub fn is_gone(&self) -> bool {
        let mounted = |wanted: &Resource| match wanted {
            Resource::Filesystem(fs) => filesystem::is_mounted(fs),
            Resource::Service(_) => false,
        };
        self.folder.records().is_empty() && !self.wanted.iter().any(mounted)
    }

    /// Is everything that is configured running, and nothing else, as far as can be told at once?
    fn all_run(&self) -> bool {
        let records = self.folder.records();
        let runs = |(place, wanted): (usize, &Resource)| {
            records.iter().find(|r| r.place == place).is_some_and(|r| self.runs(r, wanted))
        };
        !self.wanted.is_empty()
            && self.folder.identity().is_some()
            && records.len() == self.wanted.len()
            && self.wanted.iter().enumerate().all(runs)
    }

    fn runs(&self, record: &Record, wanted: &Resource) -> bool {
        record.started
            && record.resource.is_same(wanted)
            && match wanted {
                Resource::Filesystem(fs) => filesystem::is_mounted(fs),
                Resource::Service(wanted) => service::is_running(wanted, record),
            }
    }

    /// Goes on with what runs, under the limits that are configured now.
    fn adopt(&self) -> io::Result<()> {
        let identity = self.identify()?;
        if self.wanted.iter().any(|wanted| matches!(wanted, Resource::Service(_))) {
            self.reach_addresses(&identity);
        }
        for mut record in self.folder.records() {
            record.resource = self.wanted[record.place].clone();
            self.folder.write(&record)?;
        }
        Ok(())
    }

    fn identify(&self) -> io::Result<Identity> {
        let addresses = self.resources.as_ref().map_or(&[][..], |r| &r.addresses);
        let before = self.folder.identity().map_or(Vec::new(), |identity| identity.addresses);
        leave_addresses(before.iter().filter(|address| !addresses.contains(address)));
        self.folder.identify(addresses)
    }

    /// Carries out orders, and watches what runs, until it is told to leave.
    pub fn run(mut self, report: &dyn Fn(&str, ResourceState)) {
        if !self.folder.records().is_empty() && self.state != State::Running {
            self.wait_for_an_order();
        }
        loop {
            match self.orders.after(self.seen) {
                Some((_, Order::Leave)) => return,
                Some((number, Order::Start)) => {
                    self.seen = number;
                    let state = self.start_and_tell();
                    self.tell(report, state);
                }
                Some((number, Order::Stop)) => {
                    (self.seen, self.state) = (number, State::Open);
                    let state = self.stop_and_tell();
                    self.tell(report, state);
                }
                None => {
                    let state = self.watch();
                    self.tell(report, state);
                }
            }
        }
    }

    /// Core knows nothing of what was left halfway unless it wants it running. What it doesn't want doesn't stay mounted.
    fn wait_for_an_order(&mut self) {
        tracing::warn!("{}: an earlier agent has left some of its file systems or services", self.name);
        let wait = if self.resources.is_some() { ABANDONED } else { Duration::ZERO };
        if Patience::new(&self.orders, self.seen, None, wait).wait(&[]) == Woken::Late {
            tracing::warn!("{}: what is left of it is stopped", self.name);
            self.state = State::Stopping(String::new());
        }
    }

    /// Tells what is still true: another order may have come meanwhile, and then this is no answer to it.
    fn tell(&self, report: &dyn Fn(&str, ResourceState), state: Option<ResourceState>) {
        let Some(state) = state else { return };
        let unasked = self.seen == 0 && !matches!(state, ResourceState::Broken(_));
        if self.resources.is_some() && !unasked && self.orders.after(self.seen).is_none() {
            report(&self.name, state);
        }
    }

    fn start_and_tell(&mut self) -> Option<ResourceState> {
        match self.start_from(0) {
            Ok(()) => {
                let now = Instant::now();
                self.watches.iter_mut().for_each(|watch| watch.failures.clear());
                (self.state, self.looked) = (State::Running, now);
                self.check_later(now);
                Some(ResourceState::Running)
            }
            Err(Failure::Told) => {
                self.state = State::Open;
                None
            }
            Err(Failure::Failed(mut why)) => {
                tracing::warn!("{}: not started: {why}", self.name);
                self.state = State::Failed;
                if let Err(e) = self.stop_all() {
                    why += &format!("; and not undone: {e}");
                }
                Some(ResourceState::StartFailed(why))
            }
        }
    }

    fn stop_and_tell(&mut self) -> Option<ResourceState> {
        match self.stop_all() {
            Ok(()) => {
                self.state = State::Stopped;
                Some(ResourceState::Stopped)
            }
            Err(Failure::Told) => None,
            Err(Failure::Failed(why)) => {
                let told = self.state == State::Stopping(why.clone());
                self.state = State::Stopping(why.clone());
                if told {
                    return None;
                }
                tracing::error!("{}: not stopped, tried again each second: {why}", self.name);
                Some(ResourceState::StopFailed(why))
            }
        }
    }

    /// Starts what is wanted from this place on, and doesn't run.
    fn start_from(&self, first: usize) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::Failed(format!("{}: {e}", self.folder.path().display()));
        self.wait_for_the_guard()?;
        // Before there is anything that whoever cleans up must find.
        let identity = self.identify().map_err(failed)?;
        self.settle_in()?;
        self.stop_strangers()?;
        for place in first..self.wanted.len() {
            let wanted = self.wanted[place].clone();
            let records = self.folder.records();
            let runs = |record: &Record| record.place == place && self.runs(record, &wanted);
            if !records.iter().any(runs) {
                // What comes after it stands on it.
                self.stop_from(place)?;
                self.start_one(place, wanted, &identity)?;
            }
        }
        Ok(())
    }

    /// Where nothing of it runs: goes to where its mounts are to be.
    fn settle_in(&self) -> Result<(), Failure> {
        let wanted = self.resources.as_ref().is_some_and(|r| r.private_mounts);
        if wanted == self.namespace.is_inside() || !self.folder.records().is_empty() {
            return Ok(());
        }
        let done = if wanted { self.namespace.make() } else { self.namespace.remove() };
        done.map_err(|e| Failure::Failed(format!("its mount namespace: {e}")))
    }

    /// Stops what was started and is no longer wanted there, in reverse order, with all that comes after it.
    fn stop_strangers(&self) -> Result<(), Failure> {
        let is_strange =
            |record: &Record| !self.wanted.get(record.place).is_some_and(|w| record.resource.is_same(w));
        match self.folder.records().iter().find(|record| is_strange(record)) {
            Some(first) => self.stop_from(first.place),
            None => Ok(()),
        }
    }

    fn start_one(&self, place: usize, wanted: Resource, identity: &Identity) -> Result<(), Failure> {
        let name = wanted.name();
        let began = Instant::now();
        let mut record = self.folder.record(place, wanted.clone());
        let only_stop = |limit| Patience::new(&self.orders, self.seen, Some(Order::Stop), limit);
        let result = match &wanted {
            Resource::Filesystem(fs) => {
                let stuck = &mut record.clone();
                self.write(&record)?;
                self.reserve(fs, &only_stop(fs.start_limit))?;
                filesystem::start(fs, &only_stop(fs.start_limit), |process| {
                    stuck.process = Some(process);
                    self.remember(stuck);
                })
            }
            Resource::Service(service) => {
                self.reach_addresses(identity);
                let patience = only_stop(service.start_limit);
                self.place(identity).start(service, &mut record, &patience)
            }
        };
        match result {
            Ok(()) => {
                record.started = true;
                self.write(&record)?;
                tracing::info!("{}: {name} started in {:.3} s", self.name, began.elapsed().as_secs_f64());
                Ok(())
            }
            Err(e) if matches!(wanted, Resource::Filesystem(_)) => Err(e),
            Err(e) => Err(e.of(&name)),
        }
    }

    /// Nothing is started before it is certain that this node resets itself for it, where that is wanted.
    fn wait_for_the_guard(&self) -> Result<(), Failure> {
        let patience = Patience::new(&self.orders, self.seen, Some(Order::Stop), GUARDED);
        loop {
            match self.guard.start(&self.name) {
                Ok(()) => return Ok(()),
                Err(Some(why)) => return Err(Failure::Failed(why)),
                Err(None) if patience.pause(GUARD_LOOK) => {}
                Err(None) if patience.is_told() => return Err(Failure::Told),
                Err(None) => return Err(Failure::Failed("the watchdog is not armed yet".to_owned())),
            }
        }
    }

    /// Before it is mounted, makes sure that nobody else can write to its device, where that is wanted.
    fn reserve(&self, fs: &Filesystem, patience: &Patience<'_>) -> Result<(), Failure> {
        let Some(reservations) = &self.reservations else { return Ok(()) };
        if filesystem::is_mounted(fs) {
            return Ok(());
        }
        reservations.acquire(&fs.device, patience).map_err(|why| why.map_or(Failure::Told, Failure::Failed))
    }

    /// After it is unmounted. What is left would be taken away by whoever mounts it next.
    fn unreserve(&self, fs: &Filesystem, patience: &Patience<'_>) {
        let Some(reservations) = &self.reservations else { return };
        if let Err(Some(why)) = reservations.release(&fs.device, patience) {
            tracing::warn!("{}: its reservation is left: {why}", self.name);
        }
    }

    fn write(&self, record: &Record) -> Result<(), Failure> {
        let failed = |e| Failure::Failed(format!("{}: {e}", self.folder.path().display()));
        self.folder.write(record).map_err(failed)
    }

    fn remember(&self, record: &Record) {
        if let Err(e) = self.folder.write(record) {
            tracing::error!("{}: {e}", self.folder.path().display());
        }
    }

    fn place<'a>(&'a self, identity: &'a Identity) -> Place<'a> {
        Place {
            node: &self.node,
            server: &self.name,
            folder: &self.folder,
            identity,
            hierarchy: self.hierarchy.as_deref(),
            ocf_root: &self.ocf_root,
            bus: self.bus.as_deref(),
        }
    }

    /// Stops everything that was started, in reverse order, and what is mounted where its file systems belong. Also what can be
    /// stopped although something else can't. Only [`Order::Leave`] cuts it short.
    ///
    /// # Errors
    /// [`Failure`]: something of it still runs, or is mounted.
    pub fn stop_all(&self) -> Result<(), Failure> {
        self.stop_from(0)?;
        let left = self.namespace.remove();
        left.map_err(|e| Failure::Failed(format!("its mount namespace: {e}")))?;
        self.guard.stopped(&self.name);
        let Some(identity) = self.folder.identity() else { return Ok(()) };
        let place = self.place(&identity);
        place.remove_groups();
        leave_addresses(identity.addresses.iter());
        self.folder.remove();
        Ok(())
    }

    fn stop_from(&self, first: usize) -> Result<(), Failure> {
        let mut records = self.folder.records();
        records.retain(|record| record.place >= first);
        // What is mounted without a record: an agent could not write it, or somebody has done it by hand.
        for (place, wanted) in self.wanted.iter().enumerate().skip(first) {
            if let Resource::Filesystem(fs) = wanted
                && !records.iter().any(|record| record.place == place)
                && filesystem::is_mounted(fs)
            {
                records.push(self.folder.record(place, wanted.clone()));
            }
        }
        records.sort_by_key(|record| record.place);
        let identity = match (records.is_empty(), self.folder.identity()) {
            (true, _) => return Ok(()),
            (false, Some(identity)) => identity,
            (false, None) => self
                .identify()
                .map_err(|e| Failure::Failed(format!("{}: {e}", self.folder.path().display())))?,
        };
        let mut failed: Vec<String> = Vec::new();
        for record in records.into_iter().rev() {
            // A file system is not taken from under a service that could not be stopped, unless that holds it no more.
            match self.stop_one(record, &identity) {
                Ok(()) => {}
                Err(Failure::Told) => return Err(Failure::Told),
                Err(Failure::Failed(why)) => failed.push(why),
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Failure::Failed(failed.join("; "))) }
    }

    fn stop_one(&self, mut record: Record, identity: &Identity) -> Result<(), Failure> {
        let (name, began) = (record.resource.name(), Instant::now());
        let place = self.place(identity);
        let only_leave =
            |limit| Patience::new(&self.orders, self.seen, Some(Order::Leave), limit).hurried(HURRIED);
        if record.started {
            record.started = false;
            self.remember(&record);
        }
        match &record.resource {
            Resource::Filesystem(fs) => {
                if let Some(process) = record.process.filter(Process::is_alive) {
                    let text = format!("{name}: the kernel still hangs over it, as process {}", process.pid);
                    return Err(Failure::Failed(text));
                }
                let stuck = &mut record.clone();
                filesystem::stop(
                    fs,
                    &only_leave(fs.stop_limit),
                    || place.processes(),
                    |process| {
                        stuck.process = Some(process);
                        self.remember(stuck);
                    },
                )?;
                self.unreserve(fs, &only_leave(fs.stop_limit));
            }
            Resource::Service(service) => {
                let stopped = place.stop(service, &record, &only_leave(service.stop_limit));
                stopped.map_err(|e| e.of(&name))?;
            }
        }
        self.folder.forget(record.place);
        tracing::info!("{}: {name} stopped in {:.3} s", self.name, began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Lets the node reach the virtual server's addresses before any port has them, so that its services can be asked.
    fn reach_addresses(&self, identity: &Identity) {
        let changes = identity.addresses.iter().map(|a| netlink::add_local(*a));
        let failed = Requests::open().and_then(|mut requests| requests.apply(changes));
        match failed.map(|failed| failed.into_iter().next()) {
            Ok(None) => {}
            Ok(Some((_, e))) | Err(e) => {
                tracing::warn!("{}: its services can't be asked until it is served: {e}", self.name);
            }
        }
    }

    /// Waits for the next thing to do when nothing is ordered, and does it.
    fn watch(&mut self) -> Option<ResourceState> {
        match self.state.clone() {
            State::Open | State::Stopped | State::Failed => {
                self.any_order(IDLE).wait(&[]);
                None
            }
            State::Stopping(_) => {
                if self.any_order(STOP_AGAIN).wait(&[]) == Woken::Late {
                    self.stop_and_tell()
                } else {
                    None
                }
            }
            State::Running => self.watch_running(),
        }
    }

    fn any_order(&self, limit: Duration) -> Patience<'_> {
        Patience::new(&self.orders, self.seen, None, limit)
    }

    /// Watches what runs until something fails or is ordered.
    fn watch_running(&mut self) -> Option<ResourceState> {
        let records = self.folder.records();
        let (watched, fds): (Vec<&Record>, Vec<OwnedFd>) = records
            .iter()
            .filter_map(|record| Some((record, record.process.filter(|_| record.is_service())?)))
            // One that can't be opened has ended; its check is due at once, below.
            .filter_map(|(record, process)| Some((record, process.open().ok()?)))
            .unzip();
        let ended = records.iter().find(|record| {
            let process = record.process.filter(|_| record.is_service());
            process.is_some() && !watched.iter().any(|w| w.place == record.place)
        });
        if let Some(record) = ended {
            return self.check_one(record.place);
        }
        let now = Instant::now();
        let next = self.watches.iter().zip(&self.wanted).enumerate();
        let next = next.filter(|(_, (_, wanted))| matches!(wanted, Resource::Service(_)));
        let next = next.map(|(place, (watch, _))| (watch.next, place)).min();
        let has_filesystems = self.wanted.iter().any(|w| matches!(w, Resource::Filesystem(_)));
        let look = has_filesystems.then(|| self.looked + LOOK);
        if look.is_some_and(|at| at <= now) {
            self.looked = now;
            return self.look_at_filesystems();
        }
        if let Some((_, place)) = next.filter(|(at, _)| *at <= now) {
            return self.check_one(place);
        }
        let until = next.map(|(at, _)| at).into_iter().chain(look).min();
        let limit = until.map_or(IDLE, |at| at.saturating_duration_since(now));
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match self.any_order(limit).wait(&fds) {
            Woken::Ready(n) => {
                let place = watched[n].place;
                self.check_one(place)
            }
            Woken::Told | Woken::Late => None,
        }
    }

    /// A file system that is gone, or broken, is not mended in place: another node may see it whole.
    fn look_at_filesystems(&mut self) -> Option<ResourceState> {
        let trouble = self.wanted.iter().find_map(|wanted| match wanted {
            Resource::Filesystem(fs) => Some((wanted.name(), filesystem::trouble(fs)?)),
            Resource::Service(_) => None,
        });
        let (name, what) = trouble?;
        Some(self.broken(format!("{name} {what}")))
    }

    fn broken(&mut self, text: String) -> ResourceState {
        tracing::error!("{}: {text}", self.name);
        self.state = State::Failed;
        ResourceState::Broken(text)
    }

    /// Asks a service whether it works, and mends it in its place if it doesn't.
    fn check_one(&mut self, place: usize) -> Option<ResourceState> {
        let Resource::Service(service) = self.wanted[place].clone() else { return None };
        let record = self.folder.records().into_iter().find(|r| r.place == place);
        let checked = match (record, self.folder.identity()) {
            (Some(record), Some(identity)) => {
                let patience =
                    Patience::new(&self.orders, self.seen, Some(Order::Stop), service.monitor_limit);
                self.place(&identity).check(&service, &record, &patience)
            }
            _ => Err(Failure::Failed(format!("{} is gone", self.folder.path().display()))),
        };
        self.watches[place].next = Instant::now() + service.monitor_every;
        match checked {
            Ok(()) | Err(Failure::Told) => None,
            Err(Failure::Failed(why)) => self.mend(place, &service, why),
        }
    }

    /// Starts a service again, with those that come after it, as often as is permitted.
    fn mend(&mut self, place: usize, service: &Service, mut why: String) -> Option<ResourceState> {
        let name = self.wanted[place].name();
        loop {
            let now = Instant::now();
            let failures = &mut self.watches[place].failures;
            failures.retain(|at| now.duration_since(*at) < FAILURES_COUNT_FOR);
            failures.push(now);
            let restarts = failures.len() - 1;
            if restarts >= service.restarts as usize {
                let after = match restarts {
                    0 => String::new(),
                    n => format!(", after {n} restarts in place"),
                };
                return Some(self.broken(format!("{name}: {why}{after}")));
            }
            tracing::warn!("{}: {name}: {why}; it is started again", self.name);
            if let Err(e) = self.stop_from(place) {
                return match e {
                    Failure::Told => None,
                    Failure::Failed(e) => {
                        Some(self.broken(format!("{name}: {why}, and can't be stopped: {e}")))
                    }
                };
            }
            match self.start_from(place) {
                Ok(()) => {
                    self.check_later(Instant::now());
                    return None;
                }
                Err(Failure::Told) => {
                    self.state = State::Open;
                    return None;
                }
                Err(Failure::Failed(e)) => why = format!("not started: {e}"),
            }
        }
    }

    /// All services have just been found to work.
    fn check_later(&mut self, now: Instant) {
        for (watch, wanted) in self.watches.iter_mut().zip(&self.wanted) {
            if let Resource::Service(service) = wanted {
                watch.next = now + service.monitor_every;
            }
        }
    }
}

impl Record {
    fn is_service(&self) -> bool {
        matches!(self.resource, Resource::Service(_))
    }
}

/// Takes back what [`Server::reach_addresses`] did.
fn leave_addresses<'a>(addresses: impl Iterator<Item = &'a IpAddr>) {
    let changes: Vec<_> = addresses.map(|a| netlink::remove_local(*a)).collect();
    if changes.is_empty() {
        return;
    }
    let failed = Requests::open().and_then(|mut requests| requests.apply(changes));
    if let Ok(Some((_, e))) | Err(e) = failed.map(|failed| failed.into_iter().next()) {
        tracing::warn!("a route to an address could not be taken back: {e}");
    }
}
