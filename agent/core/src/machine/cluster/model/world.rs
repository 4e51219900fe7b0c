//! The world that the real machine is tried in: up to five nodes, each with a clock, a stand-in of its kernel programs and an
//! agent, which is the real machine and a stand-in of its driver (`agent/src/fast`, `agent/src/slow/cluster.rs`); frames between
//! them; and the store. Time goes in ticks of 10 ms; what happens within a tick happens in the order of the steps.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::agent::Agent;
use super::kernel::{ENDLESS, Kernel, Lease, Peer, Said};
use super::rules::{Rules, Setting, config};
use super::store::{Store, Times};
use super::wire::Frame;
use super::work::Runs;
use crate::cluster::Members;
use crate::{
    Assigned, Attachment, ClusterStart, Effect, Found, IfIndex, Input, Link, PeerReading, PeerSample, Start,
    Time,
};

/// Nodes at most.
pub const MAX: usize = 5;
/// The virtual server.
pub const SERVER: &str = "vs";
/// Nanoseconds.
pub const TICK: u64 = 10_000_000;
/// Names of the nodes; their slots are their numbers.
pub const NAMES: [&str; MAX] = ["a", "b", "c", "d", "e"];
/// Clocks at the beginning, and after a reboot.
const EPOCH: u64 = 1000 * TICK;
const REBOOTED: u64 = EPOCH / 2;
/// How far ahead an agent promises to be there, ticks.
pub const GRACE: u64 = 8;
/// Core is shown its peers at least this often: by the driver.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `None`: no agent runs.
    pub agent: Option<Agent>,
    /// How many agents there have been.
    pub life: u32,
    /// The agent runs and is stopped (SIGSTOP, no processor time); its kernel goes on.
    pub stalled: bool,
    /// 0: it runs; 1: frozen, its clock goes on; 2: frozen with its clock.
    pub frozen: u8,
    pub clock: u64,
    pub kernel: Kernel,
    pub runs: Runs,
    /// The member list that the agent was last started with, as it keeps it for when the store is lost.
    pub members: Arc<Members>,
    /// Up to which revision the store's watch has told.
    pub told: u64,
    /// Since when probes were sent without a break.
    steady: u64,
    /// When core was last shown a reading.
    looked: u64,
    /// What the kernel reports and the agent has not read yet.
    pub reports: Vec<Said>,
    /// A reading that the agent has taken and core has not seen yet.
    reading: Option<Arc<PeerReading>>,
}

/// What can answer for the address on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its own virtual server.
    Owner,
}

/// The world.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// The rules that are kept.
    pub rules: Rules,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// No frame of the one is sent to the other.
    pub cut: [[bool; MAX]; MAX],
    /// Frames under way.
    pub frames: Vec<Frame>,
    /// The store.
    pub store: Store,
    /// Ownership has gone from one node to another.
    pub changed_hands: bool,
    witness: Option<usize>,
    /// The virtual server has file systems and services.
    pub has_resources: bool,
    /// Steps of a random walk, in which no state comes twice then; 0: it is none.
    pub steps: u32,
    /// How it went when all faults were over.
    pub outcome: Option<Result<(), String>>,
}

impl Eq for World {}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.steps.hash(state);
        if self.steps > 0 {
            return;
        }
        for node in &self.nodes {
            node.agent.as_ref().map(Agent::print).hash(state);
            (node.life, node.stalled, node.frozen, node.clock, &node.kernel, node.runs).hash(state);
            (node.members.version, node.told, node.steady, node.looked, &node.reports).hash(state);
        }
        (self.cut, &self.frames, &self.store).hash(state);
    }
}

impl World {
    /// Agents run on all members, node `a` is marked as incarnation 1, and nothing has been granted yet.
    pub fn new(setting: Setting) -> World {
        let Setting { rules, nodes: count, members, witness, times, resources: has_resources } = setting;
        let times = Times { slack: if rules.slack { times.slack } else { 0 }, ..times };
        let first: Vec<usize> = (0..members).collect();
        let store = Store::new(count, &first, times, witness);
        let node = |n: usize| {
            let mut kernel = Kernel::default();
            if n < members {
                kernel.lease = lease(&rules, n, 1, &store.members);
                kernel.mark = u64::from(n == 0);
                for other in (0..members).filter(|m| *m != n) {
                    kernel.peers[other].node = other + 1;
                }
            }
            Node {
                agent: None,
                life: 0,
                stalled: false,
                frozen: 0,
                clock: EPOCH,
                kernel,
                runs: if n == 0 && has_resources { Runs::All } else { Runs::Nothing },
                members: store.members.clone(),
                told: 0,
                steady: 0,
                looked: 0,
                reports: Vec::new(),
                reading: None,
            }
        };
        let nodes = (0..count).map(node).collect();
        let mut world = World {
            rules,
            nodes,
            cut: [[false; MAX]; MAX],
            frames: Vec::new(),
            store,
            changed_hands: false,
            witness,
            has_resources,
            steps: 0,
            outcome: None,
        };
        for n in first {
            world.start(n);
            world.watch(n);
        }
        world
    }

    /// How many nodes there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Has this node a vote only?
    pub fn is_witness(&self, n: usize) -> bool {
        self.witness == Some(n)
    }

    /// Does an agent run there, and do something?
    pub fn acts(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.agent.is_some() && !node.stalled && node.frozen == 0
    }

    /// Does an agent run there, whether it does something or not?
    pub fn runs(&self, n: usize) -> bool {
        self.nodes[n].agent.is_some()
    }

    /// The agent promises its kernel to be there.
    pub fn promise(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.kernel.promise = node.clock + GRACE * TICK;
    }

    /// An agent starts, by what the store defines.
    pub fn start(&mut self, n: usize) {
        let members = self.store.members.clone();
        self.launch(n, members);
    }

    /// May an agent start by what the store once defined, without the store?
    pub fn can_start_alone(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.kernel.lease.incarnation != 0 && node.kernel.lease.members == node.members.version
    }

    /// An agent starts without the store.
    pub fn start_alone(&mut self, n: usize) {
        let members = self.nodes[n].members.clone();
        self.launch(n, members);
    }

    /// As `slow::cluster::prepare` and `Driver::start` do.
    fn launch(&mut self, n: usize, members: Arc<Members>) {
        let rules = self.rules;
        let counters = self.store.counters;
        let held = &self.nodes[n].kernel.lease;
        let lost_memory = held.incarnation == 0 || held.members == 0;
        let wanted = lease(&rules, n, 0, &members);
        let same = held.members == members.version && held.length == wanted.length;
        let kept = (same || !rules.adopt_anew) && !lost_memory;
        let incarnation = if kept { held.incarnation } else { self.store.allot(n, held.incarnation) };

        let node = &mut self.nodes[n];
        let kernel = &mut node.kernel;
        for other in members.judged().map(|m| usize::from(m.slot)).filter(|m| *m != n) {
            if kernel.peers[other].node != other + 1 || lost_memory {
                let born = if lost_memory && rules.only_newer { counters[other] + 1 } else { 0 };
                kernel.peers[other] = Peer { node: other + 1, born, ..Peer::default() };
                kernel.verdicts[other] = [0; MAX];
                kernel.verdicts.iter_mut().for_each(|of| of[other] = 0);
            }
        }
        let of = |voter: usize, about: usize| match voter == n {
            true => kernel.peers[about].condemned,
            false => kernel.verdicts[voter][about],
        };
        let pairs = (0..MAX).flat_map(|voter| (0..MAX).map(move |about| (voter, about)));
        let verdicts: BTreeMap<(u8, u8), u64> =
            pairs.map(|(v, a)| ((v as u8, a as u8), of(v, a))).filter(|(_, upto)| *upto != 0).collect();
        if rules.mark_named && kernel.mark != incarnation {
            kernel.mark = 0;
        }
        let names = |is_so: bool| is_so.then(|| SERVER.to_owned()).into_iter().collect::<BTreeSet<_>>();
        let (marked, running) = (names(kernel.mark != 0), names(node.runs == Runs::All));
        let lease = Lease { incarnation, ..wanted };
        let says = |l: &Lease| (l.incarnation, l.length, l.members, l.needed);
        if says(&lease) != says(&kernel.lease) {
            kernel.lease = lease;
        }
        let bits = members.nodes.iter().map(|m| 1u8 << m.slot).filter(|bit| *bit != 1 << n);
        kernel.paths = bits.fold(0, |paths, bit| paths | bit);

        node.agent = Some(Agent::new());
        node.life += 1;
        node.stalled = false;
        node.told = 0;
        node.looked = 0;
        // The wait after lost memory is kept twice: by core, and by this.
        node.steady = if lost_memory && !rules.wait_after_loss { 0 } else { node.clock };
        node.members = members.clone();
        node.reading = None;
        node.reports.clear();
        self.promise(n);
        let cluster = ClusterStart {
            members: Members::clone(&members),
            nodes: self.store.node_records(),
            witness: self.is_witness(n),
            lost_memory: lost_memory && rules.wait_after_loss,
            new_list: false,
            verdicts,
        };
        let link = Link {
            ifindex: IfIndex(1),
            name: "p0".into(),
            up: true,
            carrier: true,
            mac: [2, 0, 0, 0, 0, n as u8],
        };
        let start = Start {
            config: config(n, self.has_resources),
            incarnation,
            found: Found { links: vec![link], addresses: Vec::new() },
            bound: BTreeMap::new(),
            marked,
            routed: BTreeSet::new(),
            running,
            cluster: Some(cluster),
        };
        self.input(n, Input::Start(Box::new(start)));
        if !rules.not_oneself {
            let machine = self.nodes[n].agent.as_mut().map(Agent::machine_mut);
            let cluster = machine.and_then(|m| m.cluster.as_mut());
            cluster.expect("it has just been started").counts_oneself = true;
        }
    }

    /// Hands the machine an input and carries out what it asks for.
    pub fn input(&mut self, n: usize, input: Input) {
        let now = Time(self.nodes[n].clock);
        let mut pending = vec![input];
        while !pending.is_empty() {
            let input = pending.remove(0);
            let Some(agent) = &mut self.nodes[n].agent else { return };
            for effect in agent.machine_mut().handle(now, input) {
                pending.extend(self.carry_out(n, effect));
            }
        }
    }

    fn carry_out(&mut self, n: usize, effect: Effect) -> Option<Input> {
        let rules = self.rules;
        let node = &mut self.nodes[n];
        match effect {
            Effect::Attach(ifindex, _) => Some(Input::Attached(ifindex, Attachment::Native)),
            Effect::RemoveAddress(ifindex, address) => {
                Some(Input::AddressRemoved(Assigned { ifindex, address, ours: true }))
            }
            Effect::Mark { incarnation: Some(incarnation), .. } => {
                node.kernel.mark = incarnation;
                None
            }
            Effect::Mark { server, incarnation: None } => {
                node.kernel.mark = 0;
                Some(Input::MarkCleared(server))
            }
            Effect::Incarnation(incarnation) => {
                node.kernel.lease = lease(&rules, n, incarnation, &node.members);
                None
            }
            Effect::Condemn { slot, incarnation } => {
                let silence = node.members.silence().as_nanos() as u64;
                let given = if usize::from(slot) == n {
                    true // only where rule R11 is off
                } else {
                    node.kernel.condemn(&rules, usize::from(slot), incarnation, silence, node.clock)
                };
                given.then_some(Input::Verdict { voter: n as u8, about: slot, incarnation })
            }
            Effect::Store(request) => {
                self.ask(n, request);
                None
            }
            Effect::Event(_)
            | Effect::Plan(..)
            | Effect::ResetConnections(_)
            | Effect::AddAddress(..)
            | Effect::Announce(..)
            | Effect::Steer { .. }
            | Effect::Route { .. }
            | Effect::Permit { .. }
            | Effect::Take(_)
            | Effect::Forget(_)
            | Effect::ForgetUnresolved(_)
            // Nothing here is fenced.
            | Effect::Fence { .. }
            | Effect::Entitle { .. }
            | Effect::ReadStorage { .. } => None,
            Effect::StartResources(_) => {
                node.runs = Runs::Starting;
                None
            }
            Effect::StopResources(_) => {
                node.runs = Runs::Stopping;
                None
            }
        }
    }

    /// What answers for the address on this node now.
    pub fn sources(&self, n: usize) -> impl Iterator<Item = Source> {
        let node = &self.nodes[n];
        let owner = node.frozen == 0 && node.kernel.permits(&self.rules, node.clock);
        owner.then_some(Source::Owner).into_iter()
    }

    /// Does this node answer for the address?
    pub fn serves(&self, n: usize) -> bool {
        self.sources(n).next().is_some()
    }

    /// How many nodes answer.
    pub fn servers(&self) -> usize {
        (0..self.count()).filter(|n| self.serves(*n)).count()
    }

    /// How things are, for whoever looks for the cause of a failure.
    pub fn summary(&self) -> String {
        let Store { record, members, counters, asked, answers, .. } = &self.store;
        let names = |m: &Members| m.nodes.iter().map(|m| m.name.as_str()).collect::<String>();
        let mut text = format!(
            "outcome {:?}\nrecord {record:?}\nmembers {} {}, counters {counters:?}\nasked {asked:?}\nanswers {answers:?}\n",
            self.outcome,
            members.version,
            names(members)
        );
        for (n, node) in self.nodes.iter().enumerate() {
            let Node { kernel, clock, frozen, stalled, members, steady, .. } = node;
            text += &format!(
                "{}: clock {clock} frozen {frozen} stalled {stalled} steady {steady} members {} {}\n  serves {}, mark {}, {:?}\n",
                NAMES[n],
                members.version,
                names(members),
                self.serves(n),
                kernel.mark,
                kernel.lease
            );
            for peer in kernel.peers.iter().filter(|p| p.node != 0) {
                text += &format!("  {peer:?}\n");
            }
            let cluster = node.agent.as_ref().and_then(|a| a.machine().cluster.as_ref());
            text += &format!("  {cluster:?}\n");
        }
        text
    }

    /// What an agent reads of its peers.
    fn reading(&self, n: usize) -> PeerReading {
        let node = &self.nodes[n];
        let time = |at: u64| (at != 0).then_some(Time(at));
        let latest = self.store.record.as_ref().map_or(0, |(r, _)| r.incarnation);
        let members = node.members.judged().map(|m| usize::from(m.slot)).filter(|m| *m != n);
        let sample = |p: usize| {
            let peer = &node.kernel.peers[p];
            let of = |incarnation: u64| peer.heard_of.get(&incarnation).copied();
            PeerSample {
                slot: p as u8,
                incarnation: peer.incarnation,
                heard: match self.rules.any_incarnation {
                    true => time(peer.heard),
                    false => of(latest.max(peer.incarnation)).map(Time),
                },
                answered: time(peer.answered),
                refuses: peer.refused,
            }
        };
        let mut peers: Vec<PeerSample> = members.map(sample).collect();
        if !self.rules.not_oneself {
            // Never heard by frames.
            let incarnation = node.kernel.lease.incarnation;
            peers.push(PeerSample {
                slot: n as u8,
                incarnation,
                heard: None,
                answered: None,
                refuses: false,
            });
        }
        PeerReading {
            peers,
            steady_since: Time(node.steady),
            lease: time(node.kernel.lease.deadline),
            ports: if node.kernel.paths == 0 {
                Vec::new()
            } else {
                vec![(IfIndex(1), time(node.kernel.any))]
            },
        }
    }

    /// The agent reads what its kernel reports, and what is heard of its peers, and shows core all of it.
    pub fn look(&mut self, n: usize) {
        self.read(n);
        self.think(n);
    }

    /// The agent reads.
    pub fn read(&mut self, n: usize) {
        let reading = self.reading(n);
        self.nodes[n].reading = Some(Arc::new(reading));
    }

    /// Core is shown what was read, perhaps a while ago.
    pub fn think(&mut self, n: usize) {
        self.promise(n);
        for (voter, about, incarnation) in std::mem::take(&mut self.nodes[n].reports) {
            self.input(n, Input::Verdict { voter: voter as u8, about: about as u8, incarnation });
        }
        if let Some(reading) = self.nodes[n].reading.take() {
            self.nodes[n].looked = self.nodes[n].clock;
            self.input(n, Input::Peers(PeerReading::clone(&reading)));
        }
        self.wake(n);
    }

    /// Has the agent read something that core has not seen?
    pub fn has_read(&self, n: usize) -> bool {
        self.nodes[n].reading.is_some()
    }

    /// The agent looks as the driver does: core is shown only what is news, or what it has not been shown for a while.
    pub fn look_if_news(&mut self, n: usize) {
        let reading = self.reading(n);
        let node = &self.nodes[n];
        let (now, looked) = (Time(node.clock), Time(node.looked));
        let news = node.agent.as_ref().is_some_and(|a| a.machine().is_peer_news(now, &reading));
        if news || now.since(looked) >= LOOK_EVERY {
            self.nodes[n].reading = Some(Arc::new(reading));
        }
        self.think(n);
    }

    fn wake(&mut self, n: usize) {
        let node = &self.nodes[n];
        let deadline = node.agent.as_ref().and_then(|a| a.machine().deadline());
        if deadline.is_some_and(|at| at.0 <= node.clock) {
            self.input(n, Input::Wake);
        }
    }

    /// Time goes on for all.
    pub fn tick(&mut self) {
        (0..self.count()).for_each(|n| self.tick_one(n, 1));
    }

    /// Time goes on for all, for one of them by so many ticks.
    pub fn tick_odd(&mut self, odd: usize, by: u64) {
        (0..self.count()).for_each(|n| self.tick_one(n, if n == odd { by } else { 1 }));
    }

    fn tick_one(&mut self, n: usize, by: u64) {
        if self.nodes[n].frozen != 2 {
            self.nodes[n].clock += by * TICK;
        }
        if self.acts(n) {
            self.promise(n);
        }
    }

    /// A tick in which all frames get through that can, and every agent looks.
    pub fn round(&mut self) {
        self.tick();
        for from in 0..self.count() {
            (0..self.count()).for_each(|to| self.exchange(from, to));
        }
        for n in 0..self.count() {
            if self.acts(n) {
                self.look_if_news(n);
            }
            if self.can_work(n) {
                self.work(n);
            }
        }
    }

    /// The agent is killed.
    pub fn crash(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.agent, node.stalled, node.reading) = (None, false, None);
        node.runs.interrupt();
        node.life += 1;
        if !self.rules.pinned {
            node.kernel.verdicts = [[0; MAX]; MAX];
            for peer in &mut node.kernel.peers {
                (peer.condemned, peer.heard) = (0, 0);
            }
        }
    }

    /// The agent is stopped; nothing else is.
    pub fn stall(&mut self, n: usize) {
        self.nodes[n].stalled = true;
    }

    /// It goes on, and notices that it has sent no probes meanwhile.
    pub fn resume(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.stalled, node.steady) = (false, node.clock);
        self.promise(n);
    }

    /// The node starts anew: all that its kernel held is lost, its clock begins again, and no agent runs yet.
    pub fn reboot(&mut self, n: usize) {
        self.crash(n);
        let node = &mut self.nodes[n];
        (node.frozen, node.clock, node.kernel, node.runs) = (0, REBOOTED, Kernel::default(), Runs::Nothing);
        node.reports.clear();
    }

    /// The whole node stands still; with `clock`, its clock too.
    pub fn freeze(&mut self, n: usize, clock: bool) {
        self.nodes[n].frozen = if clock { 2 } else { 1 };
    }

    /// It goes on.
    pub fn thaw(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.frozen, node.steady) = (0, node.clock);
    }

    /// Cuts the node off, both ways, or heals that.
    pub fn isolate(&mut self, n: usize, cut: bool) {
        for m in 0..self.count() {
            (self.cut[n][m], self.cut[m][n]) = (cut, cut);
        }
    }
}

/// The lease that a node starts with, without grants: by the driver.
fn lease(rules: &Rules, n: usize, incarnation: u64, members: &Members) -> Lease {
    let longer = if rules.same_lease || n != 0 { 0 } else { 4 * TICK };
    Lease {
        incarnation,
        deadline: if members.nodes.len() == 1 { ENDLESS } else { 0 },
        length: members.lease.as_nanos() as u64 + longer,
        void: 0,
        members: members.version,
        needed: members.majority() as u32 - 1,
        grants: [0; MAX],
    }
}
