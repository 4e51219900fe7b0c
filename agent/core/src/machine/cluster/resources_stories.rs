//! Three nodes and one virtual server with file systems and services; stand-ins of the store, of each node's kernel programs, of
//! what starts and stops, and of what fences. Starts and stops take their time, fail, or leave half of it; services break; nodes die,
//! are cut off, lose their agents or their storage, and come back; fencing fails; answers of the store are lost. Whatever the order
//! of things, the mark is on only while all runs, nothing is started while another node may still have it mounted, and in the
//! end somebody serves.

mod fences;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use self::fences::{Means, Order, UNIT};
use self::steps::step;
use super::super::Machine;
use super::stand::{N, NAMES, Store, cluster_start, others};
use crate::cluster::{
    Entry, MASTER, NodePort, NodeRecord, Record, StoreChange, StoreInput, StoreRequest, Wish,
};
use crate::config::{PortConfig, Segment, Timing, VirtualServer};
use crate::{
    Attachment, Config, Effect, Found, IfIndex, Input, Link, PeerReading, PeerSample, ResourceState, Start,
    Time,
};

const PORT: IfIndex = IfIndex(1);
const GRACE: Duration = super::resources::LEASE_GRACE;

/// What is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Real {
    Nothing,
    Half,
    All,
}

/// What is being done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Start,
    Stop,
}

/// A node: its machine, what its kernel programs hold, and what runs.
struct Node {
    machine: Option<Machine>,
    life: u32,
    incarnation: u64,
    mark: u64,
    real: Real,
    job: Option<Job>,
    /// Reports under way to core.
    reports: Vec<ResourceState>,
    /// It is gone for good.
    dead: bool,
    /// Nobody hears it, and it hears nobody, the store included.
    cut: bool,
    /// A majority calls it dead, up to this incarnation.
    condemned: u64,
    /// Since when its agent has known that it has no lease.
    unleased: Option<Time>,
    /// Its agent asks the store for nothing before this time.
    waits: Time,
    /// It was replaced while it may have run something.
    replaced: bool,
    /// It is kept from its storage.
    blocked: bool,
    /// Under which incarnation it may have something mounted, as its agent was told.
    entitled: Option<u64>,
    /// It reaches the storage unit.
    reaches: bool,
    /// It has been reset: its agent can't start before it reaches the store.
    booted: bool,
    told: u64,
    published: NodeRecord,
}

struct World {
    now: Time,
    means: Means,
    fences: Vec<Order>,
    nodes: Vec<Node>,
    store: Store,
    counters: [u64; N],
    wish: (Option<usize>, u64),
    draining: [bool; N],
}

fn config(node: usize, fenced: bool) -> Config {
    Config {
        ports: vec![PortConfig::new("p0", "office")],
        timing: Timing { announce_repeat: Vec::new(), ..Timing::default() },
        segments: vec![Segment::new("office", vec!["10.0.0.0/24".parse().expect("subnet")])],
        servers: vec![VirtualServer {
            has_resources: true,
            fenced,
            storage_units: vec![UNIT.into()],
            ..VirtualServer::new("vs", vec!["10.0.0.10/24".parse().expect("address")])
        }],
        ..Config::new(NAMES[node])
    }
}

fn mac(node: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, node as u8]
}

impl World {
    /// Everybody is up, and `a` serves.
    fn new(means: Means) -> World {
        let port = |n| NodePort {
            number: PORT.0,
            interface: "p0".into(),
            segment: "office".into(),
            mac: mac(n),
            usable: true,
            hears: true,
        };
        let node = |n| Node {
            machine: None,
            life: 0,
            incarnation: 1,
            mark: u64::from(n == 0),
            real: if n == 0 { Real::All } else { Real::Nothing },
            job: None,
            reports: Vec::new(),
            dead: false,
            cut: false,
            condemned: 0,
            unleased: None,
            waits: Time::default(),
            replaced: false,
            blocked: false,
            entitled: None,
            reaches: true,
            booted: false,
            told: 0,
            published: NodeRecord { incarnation: 1, ports: vec![port(n)], ..NodeRecord::default() },
        };
        let mut world = World {
            now: Time(1_000_000_000_000),
            means,
            fences: Vec::new(),
            nodes: (0..N).map(node).collect(),
            store: Store::new(),
            counters: [1; N],
            wish: (None, 1),
            draining: [false; N],
        };
        (0..N).for_each(|n| world.launch(n));
        world.finish();
        world
    }

    /// Is it heard, and does it hear, as the incarnation that it is?
    fn has_lease(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let together = others(n).any(|m| !self.nodes[m].cut && !self.nodes[m].dead);
        !node.cut && !node.dead && node.incarnation > node.condemned && together
    }

    fn serving(&self) -> Vec<usize> {
        let serves = |n: &usize| {
            let node = &self.nodes[*n];
            node.mark != 0 && node.mark == node.incarnation && self.has_lease(*n)
        };
        (0..N).filter(serves).collect()
    }

    fn launch(&mut self, n: usize) {
        let about = |m: usize| others(m).map(move |v| (v as u8, m as u8));
        let condemned = (0..N).filter(|m| self.nodes[*m].condemned > 0);
        let verdicts = condemned.flat_map(|m| about(m).map(move |pair| (pair, m)));
        let verdicts = verdicts.map(|(pair, m)| (pair, self.nodes[m].condemned)).collect();
        let cluster = cluster_start(self.nodes.iter().map(|node| &node.published), verdicts);
        let (now, fenced) = (self.now, self.is_fenced());
        let node = &mut self.nodes[n];
        node.machine = Some(Machine::new());
        node.life += 1;
        (node.unleased, node.told) = (Some(now), 0);
        if node.mark != node.incarnation {
            node.mark = 0;
        }
        let names = |is_so: bool| if is_so { BTreeSet::from(["vs".to_owned()]) } else { BTreeSet::new() };
        let link = Link { ifindex: PORT, name: "p0".into(), up: true, carrier: true, mac: mac(n) };
        let start = Start {
            config: config(n, fenced),
            incarnation: node.incarnation,
            found: Found { links: vec![link], addresses: Vec::new() },
            bound: BTreeMap::new(),
            marked: names(node.mark != 0),
            routed: BTreeSet::new(),
            running: names(node.real == Real::All),
            cluster: Some(cluster),
        };
        node.booted = false;
        self.input(n, Input::Start(Box::new(start)));
        self.set_storage(n, self.nodes[n].reaches);
        assert!(self.nodes[n].mark == 0 || self.nodes[n].real == Real::All, "marked, and nothing runs");
        self.watch(n);
        self.look(n);
    }

    /// The agent is killed. What runs goes on; what was being done stays undone.
    fn crash(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.machine, node.job, node.entitled) = (None, None, None);
        node.life += 1;
        node.reports.clear();
    }

    /// Power is lost, for good.
    fn kill(&mut self, n: usize) {
        self.crash(n);
        let node = &mut self.nodes[n];
        (node.dead, node.mark, node.real, node.blocked) = (true, 0, Real::Nothing, false);
    }

    /// Both others call it dead.
    fn condemn(&mut self, n: usize) {
        self.nodes[n].condemned = self.nodes[n].incarnation;
        let incarnation = self.nodes[n].incarnation;
        for to in others(n) {
            for voter in others(n) {
                let (voter, about) = (voter as u8, n as u8);
                self.input(to, Input::Verdict { voter, about, incarnation });
            }
        }
    }

    fn watch(&mut self, n: usize) {
        if self.nodes[n].cut || self.nodes[n].machine.is_none() {
            return;
        }
        self.nodes[n].told = self.store.revision;
        let mut all = self.store.entries(self.nodes.iter().map(|node| &node.published));
        let (wish, revision) = self.wish;
        let wish = wish.map(|to| Wish::administrator(NAMES[to]));
        all.push(StoreChange { revision, entry: Entry::Move("vs".into(), wish) });
        let drains = NAMES.iter().zip(self.draining);
        let drained = |(name, on): (&&str, bool)| Entry::Drain((*name).to_owned(), on);
        all.extend(drains.map(drained).map(|entry| StoreChange { revision: 1, entry }));
        self.input(n, Input::Store(StoreInput::All(all)));
    }

    fn look(&mut self, n: usize) {
        let now = self.now;
        let out = |p: usize| self.nodes[p].dead || self.nodes[p].cut;
        let refused = self.nodes[n].incarnation <= self.nodes[n].condemned;
        let peers = others(n).map(|p| {
            let heard = (!out(p) && !out(n)).then_some(now);
            let (slot, incarnation) = (p as u8, self.nodes[p].incarnation);
            PeerSample { slot, incarnation, heard, answered: heard, refuses: refused && heard.is_some() }
        });
        let reading = PeerReading {
            peers: peers.collect(),
            steady_since: now,
            lease: self.has_lease(n).then(|| now + Duration::from_millis(50)),
            ports: vec![(PORT, (!out(n)).then_some(now))],
        };
        let lease = reading.lease.is_some();
        let unleased = &mut self.nodes[n].unleased;
        *unleased = if lease { None } else { unleased.or(Some(now)) };
        self.input(n, Input::Peers(reading));
    }

    fn input(&mut self, n: usize, input: Input) {
        let mut pending = vec![input];
        while !pending.is_empty() {
            let input = pending.remove(0);
            let Some(machine) = &mut self.nodes[n].machine else { return };
            for effect in machine.handle(self.now, input) {
                pending.extend(self.carry_out(n, effect));
                assert!(self.serving().len() <= 1, "{:?} serve", self.serving());
            }
        }
        self.check(n);
        self.check_entitled();
    }

    fn carry_out(&mut self, n: usize, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Attach(ifindex, _) => return Some(Input::Attached(ifindex, Attachment::Native)),
            Effect::Mark { server, incarnation } => {
                let node = &mut self.nodes[n];
                node.mark = incarnation.unwrap_or(0);
                if incarnation.is_none() {
                    return Some(Input::MarkCleared(server));
                }
                let told = node.reports.iter().all(|r| !matches!(r, ResourceState::Running));
                assert!(node.job.is_none() && told, "marked while {:?}, {:?}", node.real, node.job);
                let broken = node.reports.iter().any(|r| matches!(r, ResourceState::Broken(_)));
                assert!(node.real == Real::All || broken, "marked, and {:?} runs", node.real);
            }
            Effect::StartResources(_) => self.begin_start(n),
            Effect::StopResources(_) => {
                let node = &mut self.nodes[n];
                assert_eq!(node.mark, 0, "stopped while it is marked");
                if node.job.replace(Job::Stop) == Some(Job::Start) && node.life.is_multiple_of(2) {
                    node.reports.push(ResourceState::StartFailed("given up".into()));
                }
            }
            Effect::Fence { node, incarnation, .. } => self.order_fence(n, node, incarnation),
            Effect::Entitle { incarnation, .. } => self.nodes[n].entitled = incarnation,
            Effect::ReadStorage { unit, asked } => {
                return self.nodes[n].reaches.then_some(Input::StorageRead { unit, asked });
            }
            Effect::Incarnation(incarnation) => self.nodes[n].incarnation = incarnation,
            Effect::Store(StoreRequest::Publish(record)) => self.nodes[n].published = record,
            Effect::Store(StoreRequest::Write { server, .. }) if server == MASTER => {}
            Effect::Store(request) => self.store.asked.push((n, self.nodes[n].life, request)),
            _ => {}
        }
        None
    }

    fn begin_start(&mut self, n: usize) {
        let (record, _) = &self.store.record;
        let condemned = self.nodes[n].condemned >= self.nodes[n].incarnation;
        let own = record.node == NAMES[n] && record.released.is_none();
        assert!(own || condemned, "{} starts what is {record:?}", NAMES[n]);
        if own {
            assert_eq!(record.unfenced, [], "started");
            self.check_start(n);
        } else if self.is_fenced() {
            // Its agent makes sure of the lease before it mounts anything.
            self.nodes[n].reports.push(ResourceState::StartFailed("no lease".into()));
            return;
        }
        assert!(self.nodes[n].reaches, "started without its storage");
        self.nodes[n].blocked = false;
        let node = &mut self.nodes[n];
        assert_eq!((node.mark, node.job), (0, None), "started");
        node.replaced = !own;
        (node.job, node.real) = (Some(Job::Start), Real::Half);
    }

    /// What is being done is done, or fails.
    fn work(&mut self, n: usize, well: bool) {
        let node = &mut self.nodes[n];
        let report = match (node.job, well) {
            (None, _) => return,
            (Some(Job::Start), true) => {
                node.real = Real::All;
                ResourceState::Running
            }
            (Some(Job::Start), false) => {
                node.real = if node.life.is_multiple_of(2) { Real::Half } else { Real::Nothing };
                ResourceState::StartFailed("it does not start".into())
            }
            (Some(Job::Stop), true) => {
                (node.real, node.replaced, node.blocked) = (Real::Nothing, false, false);
                ResourceState::Stopped
            }
            (Some(Job::Stop), false) => {
                node.real = if node.real == Real::Nothing { Real::Nothing } else { Real::Half };
                ResourceState::StopFailed("it does not stop".into())
            }
        };
        if node.job == Some(Job::Start) || well {
            node.job = None;
        }
        node.reports.push(report);
    }

    fn report(&mut self, n: usize) {
        if !self.nodes[n].reports.is_empty() {
            let state = self.nodes[n].reports.remove(0);
            self.input(n, Input::Resources { server: "vs".into(), state });
        }
    }

    /// A service dies, and can't be restarted.
    fn break_it(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.real == Real::All && node.job.is_none() {
            node.real = Real::Half;
            if node.machine.is_some() {
                node.reports.push(ResourceState::Broken("it is dead".into()));
            }
        }
    }

    fn land(&mut self, k: usize) {
        let (node, life, request) = self.store.asked[k].clone();
        if self.nodes[node].cut {
            return;
        }
        self.store.asked.remove(k);
        let answer = match request {
            StoreRequest::Write { server, expected, record } => {
                if self.store.record.1 == expected {
                    self.lands(node, &record);
                }
                self.store.write(server, expected, record)
            }
            StoreRequest::NewIncarnation { above } => {
                self.counters[node] = self.counters[node].max(above) + 1;
                StoreInput::Incarnation(self.counters[node])
            }
            StoreRequest::MoveDone { revision, .. } => {
                if self.wish.1 == revision {
                    self.store.revision += 1;
                    self.wish = (None, self.store.revision);
                }
                return;
            }
            request => StoreInput::Failed(request, "not here".into()),
        };
        self.store.answers.push((node, life, answer));
    }

    /// A write of the record is about to land, perhaps long after its sender has given it up.
    fn lands(&mut self, by: usize, record: &Record) {
        if record.released.is_some() && record.node == NAMES[by] {
            assert_eq!(self.nodes[by].mark, 0, "released: {record:?}");
        }
        self.check_unfenced(by, record);
        let owner = &self.store.record.0.node;
        if record.taken_from.is_some() && owner != NAMES[by] {
            let before = NAMES.iter().position(|name| name == owner).expect("a node");
            self.nodes[before].replaced = self.nodes[before].real != Real::Nothing;
        }
    }

    /// Its sender gives it up, and reads what there is; it may land yet.
    fn give_up(&mut self, k: usize) {
        let (node, life, request) = self.store.asked[k].clone();
        if self.nodes[node].life != life {
            return;
        }
        let cut = self.nodes[node].cut;
        let answer = match request {
            StoreRequest::Write { server, .. } if !cut => {
                StoreInput::NotWritten { server, current: Some(self.store.record.clone()) }
            }
            request => StoreInput::Failed(request, "no answer".into()),
        };
        // Whoever waits for it is of no life.
        self.store.asked[k].1 = 0;
        self.store.answers.push((node, life, answer));
    }

    fn deliver(&mut self, k: usize) {
        let (node, life, answer) = self.store.answers.remove(k);
        if self.nodes[node].life == life {
            if matches!(answer, StoreInput::Failed(..)) {
                self.nodes[node].waits = self.now + super::ASK_AGAIN;
            }
            self.input(node, Input::Store(answer));
        }
    }

    fn wake(&mut self) {
        for n in 0..N {
            let deadline = self.nodes[n].machine.as_ref().and_then(Machine::deadline);
            if deadline.is_some_and(|at| at <= self.now) {
                self.input(n, Input::Wake);
            }
        }
    }

    /// What must be so whenever an agent has been told something.
    fn check(&self, n: usize) {
        let node = &self.nodes[n];
        let idle = node.real == Real::Nothing || node.job == Some(Job::Stop) || node.machine.is_none();
        let under_way = self.store.asked.iter().any(|(m, life, _)| *m == n && *life == node.life)
            || self.store.answers.iter().any(|(m, life, _)| *m == n && *life == node.life);
        let stopped = node.reports.contains(&ResourceState::Stopped);
        let (record, _) = &self.store.record;
        let own = record.node == NAMES[n] && record.released.is_none();
        let waits = self.now < node.waits;
        if node.told == self.store.revision && !own && !under_way && !waits && !stopped && !node.cut {
            assert!(idle, "{} knows that it is not its own: {:?}", NAMES[n], node.real);
        }
        let long = node.unleased.is_some_and(|t| self.now >= t + GRACE);
        assert!(idle || !long, "{} has had no lease for long: {:?}", NAMES[n], node.real);
    }

    fn boot(&mut self, n: usize) {
        let node = &self.nodes[n];
        if node.machine.is_none() && !node.dead && !(node.booted && node.cut) {
            self.launch(n);
        }
    }

    /// Until nothing is left to be done; everything succeeds.
    fn finish(&mut self) {
        for _ in 0..50 {
            for n in 0..N {
                if self.nodes[n].booted {
                    self.boot(n);
                }
            }
            self.fence_all();
            self.now = self.now + Duration::from_secs(1);
            (0..N).for_each(|n| self.look(n));
            let mut k = 0;
            while k < self.store.asked.len() {
                let before = self.store.asked.len();
                self.land(k);
                k += usize::from(self.store.asked.len() == before);
            }
            while !self.store.answers.is_empty() {
                self.deliver(0);
            }
            for n in 0..N {
                self.work(n, true);
                while !self.nodes[n].reports.is_empty() {
                    self.report(n);
                }
            }
            (0..N).for_each(|n| self.watch(n));
            self.wake();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_it_runs_where_the_record_says_and_in_the_end_it_serves(
        means in prop::sample::select(vec![Means::None, Means::Power, Means::Keys, Means::Watchdog]),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(means);
        steps.into_iter().for_each(|step| world.step(step));
        world.draining = [false; N];
        for n in 0..N {
            world.nodes[n].cut = false;
            world.set_storage(n, true);
            if world.nodes[n].dead && world.nodes[n].condemned < world.nodes[n].incarnation {
                world.condemn(n);
            }
            world.boot(n);
        }
        (0..2).for_each(|_| world.finish());
        prop_assert_eq!(world.serving().len(), 1, "{:?}", world.store.record);
        for (n, node) in world.nodes.iter().enumerate() {
            let expected = if world.serving() == [n] { Real::All } else { Real::Nothing };
            prop_assert_eq!(node.real, expected, "{}", NAMES[n]);
        }
    }
}
