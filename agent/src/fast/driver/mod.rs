//! The driver: stamps inputs, asks core, carries out its effects in order (`effects`), and measures the stages of a failover
//! (`stages`); `reload` takes up another configuration.
//!
//! It runs on the fast thread and never waits for anything but its own sources: no disk, no store, no child process,
//! no log that may block. What the slow thread is to do goes there by a bounded channel.

mod effects;
mod reload;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use baton_common::{LEASE_ENDLESS, Lease, Verdict};
use baton_core::cluster::{Members, StoreInput, StoreRequest};
use baton_core::plan::{Policy, Situation};
use baton_core::{
    Assigned, ClusterStart, Config, Event, FailoverKind, Found, Hop, IfIndex, Input, Link, Machine,
    ProbePort, Start, Time,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::fast::announce::Announcer;
use crate::fast::carrier::CarrierReader;
use crate::fast::listen::{Heard, Listener};
use crate::fast::netlink::Requests;
use crate::fast::prober::{Prober, Probing};
use crate::fast::steering::Steering;
use crate::fast::{FastError, ResourceRequest, ToSlow};
use crate::fence;
use crate::io::kernel::{Kernel, Report};
use crate::storage::Readers;
use crate::telemetry::Publisher;
pub use reload::Reload;
use stages::{Takes, finished};

/// The snapshot is published at most this often.
const PUBLISH_EVERY: Duration = Duration::from_millis(50);
/// Steps between two checkpoints of the record; one that holds much counts more than once.
const CHECKPOINT_EVERY: u32 = 20_000;
/// The fast thread shows that it is alive at least this often.
const BEAT: Duration = Duration::from_millis(500);
/// Core is shown the path table at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the driver shares with the slow side.
pub struct Links {
    /// Inputs from the slow side. Bounded: it waits.
    pub inputs: mpsc::Receiver<Input>,
    /// To the disk. Bounded: a full channel drops records, counted, for the fast thread never waits.
    pub slow: mpsc::Sender<ToSlow>,
    /// To the journal. Bounded: a full channel drops events, counted.
    pub events: mpsc::Sender<Event>,
    /// The published view.
    pub publisher: Arc<Publisher>,
    /// To the planner. Bounded: what a full channel doesn't take has failed.
    pub plans: mpsc::Sender<PlanRequest>,
    /// To whoever starts and stops file systems and services. Bounded: what a full channel doesn't take has failed, and core asks
    /// again.
    pub resources: mpsc::Sender<ResourceRequest>,
    /// To whoever resets connections, in a cluster. Bounded: what a full channel doesn't take is not done, and core is told.
    pub resets: Option<mpsc::Sender<ResetRequest>>,
    /// To whoever fences nodes. Bounded: what a full channel doesn't take has failed, and core asks again.
    pub fences: mpsc::Sender<fence::Request>,
    /// Asks for reads of storage units.
    pub readers: Readers,
    /// What may run here, for whoever resets this node.
    pub guard: Arc<fence::Guard>,
    /// Other configurations, one at a time.
    pub reloads: mpsc::Receiver<Reload>,
    /// The store of a cluster.
    pub store: Option<StoreLink>,
    /// Closed: stop.
    pub stop: oneshot::Receiver<()>,
}

/// To and from the thread that keeps the store of a cluster.
pub struct StoreLink {
    /// Bounded: what a full channel doesn't take has failed, and core asks again.
    pub requests: mpsc::Sender<StoreRequest>,
    /// Bounded: it waits.
    pub inputs: mpsc::Receiver<StoreInput>,
}

/// What the planner is asked; answered by [`Input::Planned`].
#[derive(Debug)]
pub struct PlanRequest {
    /// The cluster as it is.
    pub situation: Box<Situation>,
    /// When to balance and how far.
    pub policy: Policy,
}

/// The connections of a virtual server are to be reset that were there before it was served here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetRequest {
    /// The virtual server.
    pub server: String,
    /// What was made after this is of now.
    pub served: Time,
    /// What brought it here: which failover, of what kind, and when that was caused. `None`: it was here before.
    pub failover: Option<(Option<u64>, FailoverKind, Time)>,
}

/// What the fast thread starts with.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// This node's incarnation.
    pub incarnation: u64,
    /// What is known of the cluster, if there is one; without it the lease has no end.
    pub cluster: Option<ClusterStart>,
    /// Virtual servers whose file systems and services all run.
    pub running: BTreeSet<String>,
    /// How far ahead the agent promises the kernel programs to be there.
    pub grace: Duration,
}

/// The fast thread's state.
pub struct Driver {
    config: Config,
    cluster: Option<Members>,
    grace: Duration,
    machine: Machine,
    kernel: Kernel,
    requests: Requests,
    listener: Listener,
    announcer: Announcer,
    carrier: CarrierReader,
    carriers: mpsc::UnboundedReceiver<(IfIndex, bool)>,
    steering: Steering,
    /// Segments that are reached by way of a peer.
    vias: BTreeMap<String, Hop>,
    prober: Prober,
    takes: Takes,
    /// When core was last told something.
    handled: Time,
    /// When core was last shown the path table,
    looked: Time,
    /// and what is heard of the other members.
    looked_at_peers: Time,
    /// When one of them is to be called dead, by the last reading.
    verdict_due: Option<Time>,
    interfaces: BTreeMap<IfIndex, Link>,
    watched: Vec<(IfIndex, String)>,
    /// Ports no longer: gone, or under another name. Still to be let go of.
    former: Vec<IfIndex>,
    pending: std::collections::VecDeque<Input>,
    links: Links,
    until_checkpoint: u32,
    published: Time,
    dirty: bool,
}

/// Boot-time clock: goes on while the machine sleeps, and is the one that kernel programs read.
pub fn now() -> Time {
    // CLOCK_BOOTTIME can't fail on any kernel that Baton runs on.
    let t =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Time::default() + t
}

impl Driver {
    /// Opens everything and hands core its first input. Must be called within the fast thread's runtime.
    pub fn start(
        setup: Setup,
        mut kernel: Kernel,
        probing: Probing,
        links: Links,
    ) -> Result<Driver, FastError> {
        let Setup { config, incarnation, cluster, running, grace } = setup;
        let vips: BTreeSet<IpAddr> =
            config.servers.iter().flat_map(|s| &s.addresses).map(|n| n.addr()).collect();
        let segments = config.segments.iter().map(|s| s.name.clone()).collect();
        let mut requests = Requests::open().map_err(FastError::Netlink)?;
        let mut listener = Listener::open(requests.port(), vips, segments).map_err(FastError::Netlink)?;
        let found = listener.ground(read_all(&mut requests).map_err(FastError::Netlink)?);
        let (sender, carriers) = mpsc::unbounded_channel();
        let names: Vec<&str> = config.servers.iter().map(|s| s.name.as_str()).collect();
        let marked = kernel.adopt_servers(&names, incarnation)?;
        let lease = lease(incarnation, cluster.as_ref().map(|c| &c.members));
        if !kernel.has_lease(&lease)? {
            kernel.set_lease(lease)?;
        }
        let bound = kernel.bound();
        let routed = kernel.routed()?;
        kernel.set_routing(cluster.is_some() && config.servers.iter().any(|s| s.reroute));
        let mut driver = Driver {
            machine: Machine::new(),
            kernel,
            requests,
            listener,
            announcer: Announcer::open().map_err(FastError::Packet)?,
            carrier: CarrierReader::start(sender).map_err(FastError::Thread)?,
            carriers,
            steering: Steering::default(),
            vias: BTreeMap::new(),
            prober: Prober::new(probing, &config)?,
            takes: Takes::default(),
            handled: Time::default(),
            looked: Time::default(),
            looked_at_peers: Time::default(),
            verdict_due: None,
            cluster: cluster.as_ref().map(|c| c.members.clone()),
            grace,
            interfaces: found.links.iter().map(|l| (l.ifindex, l.clone())).collect(),
            watched: Vec::new(),
            former: Vec::new(),
            pending: Default::default(),
            links,
            until_checkpoint: CHECKPOINT_EVERY,
            published: Time::default(),
            dirty: true,
            config: config.clone(),
        };
        driver.watch_carriers();
        driver.promise();
        driver.expect_peers(&found, cluster.as_ref())?;
        let start = Start { config, incarnation, found, bound, marked, routed, running, cluster };
        driver.take(Input::Start(Box::new(start)), now());
        driver.sweep().map_err(FastError::Netlink)?;
        // After their addresses have gone elsewhere.
        let ports = driver.watched.iter().map(|(ifindex, _)| *ifindex).collect();
        if let Err(e) = driver.kernel.detach_all_but(&ports) {
            tracing::warn!("former ports: {e}");
        }
        if let Err(e) = driver.kernel.finish_takeover() {
            tracing::warn!("what an agent of another version left: {e}");
        }
        driver.publish(now());
        Ok(driver)
    }

    /// Enters the paths from the other members before the programs are put on the ports: a node whose agent starts anew must
    /// not fall silent for the moment between.
    fn expect_peers(&mut self, found: &Found, cluster: Option<&ClusterStart>) -> Result<(), FastError> {
        let Some(ClusterStart { members, nodes, .. }) = cluster else { return Ok(()) };
        let peers = baton_core::peer_ports(members, &self.config.node, nodes);
        let own = self.config.ports.iter().filter_map(|port| {
            let link = found.links.iter().find(|l| l.name == port.interface && l.up && l.carrier)?;
            Some(ProbePort {
                ifindex: link.ifindex,
                interface: port.interface.clone(),
                segment: port.segment.clone(),
                mac: link.mac,
            })
        });
        let own: Vec<ProbePort> = own.collect();
        self.prober.expect_peers(&own, peers)
    }

    /// Runs until it is told to stop. Everything stays as it is: the kernel goes on serving.
    pub async fn run(mut self) -> Result<(), FastError> {
        let reports = self.kernel.reports()?;
        // SAFETY: `reports` owns its descriptor, which stays the same and open until `reports` is dropped.
        let reports = unsafe { AsyncFd::register_with_interest(reports, Interest::READABLE) };
        let mut reports = reports.map_err(|e| FastError::Reports(e.into()))?;
        loop {
            self.links.publisher.beat();
            let wait = self.wait();
            // Each branch only waits; what is there is read after it, so cancelling one loses nothing.
            tokio::select! {
                biased;
                ready = self.prober.ready() => {
                    ready.map_err(FastError::Timer)?;
                    self.promise();
                    self.prober.tick();
                    self.look_at_peers();
                    self.look();
                }
                ready = self.listener.readable() => {
                    ready.map_err(FastError::Netlink)?;
                    self.hear()?;
                }
                change = self.carriers.recv() => {
                    let cause = now();
                    if let Some((ifindex, carrier)) = change {
                        self.take(Input::Carrier(ifindex, carrier), cause);
                    }
                }
                ready = reports.readable_mut() => {
                    let mut guard = ready.map_err(FastError::Reports)?;
                    let cause = now();
                    let mut silence = false;
                    while let Some(report) = guard.get_inner_mut().next_report() {
                        match report {
                            Report::Claim(claim) => self.take(Input::Claim(claim), cause),
                            Report::Silence => silence = true,
                            Report::Verdict(Verdict { incarnation, voter, about }) => {
                                let (voter, about) = (voter as u8, about as u8);
                                self.take(Input::Verdict { voter, about, incarnation }, cause);
                            }
                        }
                    }
                    guard.clear_ready();
                    if silence {
                        self.look();
                    }
                }
                Some(input) = self.links.inputs.recv() => self.take(input, now()),
                Some(input) = from_store(&mut self.links.store) => self.take(Input::Store(input), now()),
                Some(reload) = self.links.reloads.recv() => self.reload(reload)?,
                _ = &mut self.links.stop => return Ok(()),
                () = tokio::time::sleep(wait) => {
                    let now = now();
                    if self.verdict_due.is_some_and(|d| d <= now) {
                        self.look_at_peers();
                    }
                    if self.machine.deadline().is_some_and(|d| d <= now) {
                        self.take(Input::Wake, now);
                    }
                }
            }
            self.promise();
            let now = now();
            if self.dirty && now.since(self.published) >= PUBLISH_EVERY {
                self.publish(now);
            }
        }
    }

    fn wait(&self) -> Duration {
        let now = now();
        let wake = self.machine.deadline().map_or(BEAT, |d| d.since(now));
        let publish = if self.dirty { (self.published + PUBLISH_EVERY).since(now) } else { BEAT };
        let verdict = self.verdict_due.map_or(BEAT, |d| d.since(now));
        wake.min(publish).min(verdict).min(BEAT).min(self.grace / 4)
    }

    /// Promises the kernel programs that the agent is there.
    fn promise(&mut self) {
        let until = now() + self.grace;
        if let Some(peers) = self.prober.peers() {
            peers.promise(until);
        }
    }

    /// Shows core what is heard of the other members, if that is news or has not been done for a while.
    fn look_at_peers(&mut self) {
        let lease = match self.kernel.lease() {
            Ok(lease) => (lease.deadline_ns != 0).then_some(Time(lease.deadline_ns)),
            Err(e) => return tracing::error!("{e}"),
        };
        let Some(reading) = self.prober.read_peers(lease) else { return };
        let now = now();
        if now.since(self.looked_at_peers) >= LOOK_EVERY || self.machine.is_peer_news(now, &reading) {
            self.looked_at_peers = now;
            // A member that is called dead was last heard then: the cause of what follows.
            let silent = self.machine.verdict_due(&reading).filter(|at| *at <= now);
            self.take(Input::Peers(reading.clone()), silent.unwrap_or(now));
        }
        self.verdict_due = self.machine.verdict_due(&reading).filter(|at| *at > now);
    }

    fn publish(&mut self, now: Time) {
        (self.published, self.dirty) = (now, false);
        self.links.publisher.snapshot.send_replace(Arc::new(self.machine.snapshot(now)));
    }

    fn tell(&mut self, message: ToSlow) {
        if self.links.slow.try_send(message).is_err() {
            self.links.publisher.dropped_input();
            self.until_checkpoint = 0; // the record has a gap: it must start anew behind it
        }
    }

    fn event(&self, event: Event) {
        if self.links.events.try_send(event).is_err() {
            self.links.publisher.dropped_report();
        }
    }

    /// Takes all that the kernel has told so far.
    fn hear(&mut self) -> Result<(), FastError> {
        let cause = now();
        match self.listener.read().map_err(FastError::Netlink)? {
            Heard::Inputs(inputs) => inputs.into_iter().for_each(|i| self.take(i, cause)),
            Heard::Lost => self.resync(cause)?,
        }
        Ok(())
    }

    fn resync(&mut self, cause: Time) -> Result<(), FastError> {
        let found = read_all(&mut self.requests).map_err(FastError::Netlink)?;
        let found = self.listener.ground(found);
        self.interfaces = found.links.iter().map(|l| (l.ifindex, l.clone())).collect();
        self.take(Input::Resync(found), cause);
        Ok(())
    }

    /// Hands an input to core and carries out what it asks for, and what follows from that.
    fn take(&mut self, input: Input, cause: Time) {
        self.pending.push_back(input);
        while let Some(input) = self.pending.pop_front() {
            self.note_interface(&input);
            let at = now();
            self.handled = at;
            let effects = self.machine.handle(at, input.clone());
            let decided = now();
            self.dirty = true;
            let stages = self.carry_out(&effects);
            if let Input::Link(link) = &input
                && self.watched.iter().any(|(ifindex, _)| *ifindex == link.ifindex)
            {
                self.carrier.look();
            }
            self.let_go();
            let done = finished(&effects, cause, at, decided, &stages);
            for done in done.into_iter().chain(self.takes.done(&effects, at, &stages)) {
                self.event(done);
            }
            self.probe_ports(&input);
            self.probe_peers(&input);
            if let Input::Sample(_) = &input {
                self.links.publisher.planning.send_replace(Arc::new(self.machine.planning()));
            }
            let weight = weight(&input);
            self.tell(ToSlow::Record { at, input: Box::new(input), effects });
            self.checkpoint(weight);
        }
    }

    /// Shows core the path table, if that is news or has not been done for a while.
    fn look(&mut self) {
        let now = now();
        let reading = self.prober.read();
        if now.since(self.looked) < LOOK_EVERY && !self.machine.is_news(now, reading) {
            return;
        }
        // What is silent has been since the first probe that nobody answered: earlier nobody could know.
        let silent = reading.paths.iter().filter(|p| p.unanswered > 1).filter_map(|p| p.waiting_since);
        let cause = silent.min().unwrap_or(now);
        let reading = reading.clone();
        self.looked = now;
        self.take(Input::Paths(reading), cause);
    }

    /// Puts the whole machine into the record now and then, and after a gap. `weight`: of the step since.
    fn checkpoint(&mut self, weight: u32) {
        match self.until_checkpoint.checked_sub(weight) {
            Some(left) => self.until_checkpoint = left,
            None => {
                self.until_checkpoint = CHECKPOINT_EVERY;
                self.tell(ToSlow::Checkpoint(Box::new(self.machine.clone())));
            }
        }
    }

    /// Keeps the driver's own picture of interfaces: who is watched for carrier, and who has which MAC address.
    fn note_interface(&mut self, input: &Input) {
        match input {
            Input::Link(link) => {
                self.interfaces.insert(link.ifindex, link.clone());
                if self.announcer.knows(link.ifindex) {
                    self.announcer.set_mac(link.ifindex, link.mac);
                }
                self.watch_carriers();
            }
            Input::LinkGone(ifindex) => {
                self.interfaces.remove(ifindex);
                self.watch_carriers();
            }
            Input::Resync(_) => self.watch_carriers(),
            _ => {}
        }
    }

    /// Probes the ports that there are now.
    fn probe_ports(&mut self, after: &Input) {
        if matches!(
            after,
            Input::Paths(_) | Input::Sample(_) | Input::Minute(_) | Input::Planned(_) | Input::Wake
        ) {
            return; // changes none
        }
        match self.prober.set_ports(self.machine.probe_ports()) {
            // Perhaps there is nothing left to probe, and so no other reading.
            Ok(true) => self.pending.push_back(Input::Paths(self.prober.read().clone())),
            Ok(false) => {}
            Err(e) => tracing::error!("probing between ports: {e}"),
        }
    }

    /// Probes the other members' ports as they are now, and tells them of this node's verdicts.
    fn probe_peers(&mut self, after: &Input) {
        match after {
            Input::Store(_) => {
                if let Err(e) = self.prober.set_peers(self.machine.peer_ports()) {
                    tracing::error!("probing other members: {e}");
                }
            }
            Input::Verdict { .. } | Input::Peers(_) => {
                let verdicts = self.machine.own_verdicts();
                if let Some(peers) = self.prober.peers()
                    && peers.set_verdicts(verdicts)
                {
                    self.prober.tell_peers();
                }
            }
            _ => {}
        }
    }

    /// Takes the programs off former ports, once their addresses have gone elsewhere.
    fn let_go(&mut self) {
        for ifindex in std::mem::take(&mut self.former) {
            self.announcer.forget(ifindex);
            if let Err(e) = self.kernel.detach(ifindex) {
                tracing::warn!("{e}");
            }
        }
    }

    fn watch_carriers(&mut self) {
        let ports = &self.config.ports;
        let watched: Vec<_> = self
            .interfaces
            .values()
            .filter(|l| ports.iter().any(|p| p.interface == l.name))
            .map(|l| (l.ifindex, l.name.clone()))
            .collect();
        if watched != self.watched {
            let left = self.watched.iter().map(|(i, _)| *i).filter(|i| !watched.iter().any(|(w, _)| w == i));
            self.former.extend(left);
            self.watched.clone_from(&watched);
            self.carrier.watch(watched);
        }
    }
}

/// The lease that this node starts with, without grants.
fn lease(incarnation: u64, members: Option<&Members>) -> Lease {
    let Some(members) = members else { return Lease::endless(incarnation) };
    Lease {
        length_ns: members.lease.as_nanos() as u64,
        members: members.version,
        needed: members.majority() as u32 - 1,
        ..Lease::until(incarnation, if members.nodes.len() == 1 { LEASE_ENDLESS } else { 0 })
    }
}

/// The next input of the store; never one where there is none.
async fn from_store(store: &mut Option<StoreLink>) -> Option<StoreInput> {
    match store {
        Some(store) => store.inputs.recv().await,
        None => std::future::pending().await,
    }
}

/// How many ordinary steps one takes up in the record.
fn weight(input: &Input) -> u32 {
    match input {
        Input::Paths(reading) => 1 + (reading.paths.len() + reading.targets.len()) as u32,
        _ => 1,
    }
}

fn read_all(requests: &mut Requests) -> io::Result<Found> {
    let links = requests.links()?;
    let addresses: Vec<Assigned> = requests.addresses()?;
    Ok(Found { links, addresses })
}
