//! The world that the real machine is tried in: three nodes, each with the machine and a stand-in of its kernel programs, and
//! the store. Time goes in ticks of 10 ms.
//!
//! An exchange of frames between an owner and a voter is one step: an echo that comes late, or a probe delivered late, is
//! never worse than the same one taken at once, because grants are counted from the owner's own time, and a late receipt only
//! delays the voter's verdict. Loss is the step not taken, a partition no steps at all, delay and duplication are old grants
//! that stay. What is asked of the store may land at any time, also after its sender has given it up, crashed or rebooted.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::super::super::Machine;
use super::super::MASTER;
use crate::cluster::{Entry, Member, Members, NodeRecord, Record, StoreChange, StoreInput, StoreRequest};
use crate::config::{PortConfig, PortFailback, Segment, Timing, VirtualServer};
use crate::{
    Assigned, Attachment, ClusterStart, Config, Effect, Found, IfIndex, Input, Link, PeerReading, PeerSample,
    Start, Time,
};

/// Nodes.
pub const N: usize = 3;
/// The virtual server.
pub const SERVER: &str = "vs";
const TICK: u64 = 10_000_000;
const EPOCH: u64 = 1000;
const NAMES: [&str; N] = ["a", "b", "c"];

/// Which rules of lease.md are kept by what stands around the machine, or by the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// R1: a clock that stood still is noticed by the next frame, and all grants are void.
    pub clock_jump: bool,
    /// R1: slack, so many ticks.
    pub slack: u64,
    /// R2: a grant counts only for a time that has been.
    pub past_only: bool,
    /// R3: verdict and decision to grant are one step.
    pub one_step: bool,
    /// R3: silence is counted from the last receipt of any incarnation.
    pub any_incarnation: bool,
    /// R3: verdicts and receipts outlive the agent.
    pub pinned: bool,
    /// R4: no verdict for D after memory was lost.
    pub wait_after_loss: bool,
    /// R4: after that, only incarnations that were not allotted yet are granted.
    pub only_newer: bool,
    /// R5: the mark names an incarnation.
    pub mark_named: bool,
    /// R6, R7: only an own write sets the mark.
    pub own_write: bool,
    /// R10: all members have the same lease.
    pub same_lease: bool,
}

/// All of them.
pub const RULES: Rules = Rules {
    clock_jump: true,
    slack: 2,
    past_only: true,
    one_step: true,
    any_incarnation: true,
    pinned: true,
    wait_after_loss: true,
    only_newer: true,
    mark_named: true,
    own_write: true,
    same_lease: true,
};

/// What a node's kernel knows of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    incarnation: u64,
    heard: Option<u64>,
    heard_of: BTreeMap<u64, u64>,
    answered: Option<u64>,
    condemned: u64,
    born: u64,
    refused: bool,
    verdicts: [u64; N],
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `None`: no agent runs.
    pub machine: Option<Machine>,
    life: u32,
    /// 0: it runs; 1: frozen, its clock goes on; 2: frozen with its clock.
    pub frozen: u8,
    clock: u64,
    incarnation: u64,
    mark: u64,
    /// By voter: for which incarnation, from which time of this node on.
    grants: [(u64, u64); N],
    jumped: bool,
    peers: [Peer; N],
    told: u64,
    /// No frame gets through, either way.
    pub cut: bool,
}

/// Something asked of the store.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    node: usize,
    life: u32,
    /// The sender still waits for it.
    awaited: bool,
    request: StoreRequest,
}

/// The world.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// The rules that are kept.
    pub rules: Rules,
    /// The nodes.
    pub nodes: Vec<Node>,
    record: Option<(Record, u64)>,
    counters: [u64; N],
    revision: u64,
    records: BTreeMap<usize, NodeRecord>,
    wish: Option<(usize, u64)>,
    asked: Vec<Asked>,
    answers: Vec<(usize, u32, StoreInput)>,
    lease: u64,
    version: u32,
    /// Ownership has gone from one node to another.
    pub changed_hands: bool,
}

impl Eq for World {}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for node in &self.nodes {
            let text = node.machine.as_ref().and_then(|m| serde_json::to_string(m).ok());
            text.hash(state);
            (node.life, node.frozen, node.clock, node.incarnation, node.mark, node.grants).hash(state);
            (node.jumped, &node.peers, node.told, node.cut).hash(state);
        }
        format!("{:?}{:?}{:?}", self.record, self.asked, self.answers).hash(state);
        (self.counters, self.revision, self.wish).hash(state);
    }
}

fn members(rules: &Rules, lease: u64, version: u32) -> Members {
    Members {
        version,
        probe_interval: Duration::from_millis(10),
        lease: Duration::from_nanos(lease * TICK),
        slack: Duration::from_nanos(rules.slack * TICK),
        rho_ppm: 0,
        nodes: NAMES.iter().zip(0..).map(|(name, slot)| Member { name: (*name).to_owned(), slot }).collect(),
        before: Vec::new(),
    }
}

fn config(node: usize) -> Config {
    Config {
        node: NAMES[node].to_owned(),
        ports: vec![PortConfig { interface: "p0".into(), segment: "office".into() }],
        timing: Timing { announce_repeat: Vec::new(), ..Timing::default() },
        segments: vec![Segment {
            name: "office".into(),
            subnets: vec!["10.0.0.0/24".parse().expect("subnet")],
            gateway: Vec::new(),
            probe_targets: Vec::new(),
            port_failback: PortFailback::Stay,
        }],
        servers: vec![VirtualServer {
            name: SERVER.into(),
            priority: 100,
            migrate: true,
            preferred_nodes: vec!["b".into(), "c".into()],
            failback: Default::default(),
            reroute: false,
            addresses: vec!["10.0.0.10/24".parse().expect("address")],
        }],
    }
}

impl World {
    /// Everybody is up and knows everybody, node `a` serves as incarnation 1, and nothing has been granted yet.
    pub fn new(rules: Rules, witness: bool) -> World {
        let node = |_| Node {
            machine: None,
            life: 0,
            frozen: 0,
            clock: EPOCH,
            incarnation: 1,
            mark: 0,
            grants: [(0, 0); N],
            jumped: false,
            peers: Default::default(),
            told: 0,
            cut: false,
        };
        let first = Record { node: NAMES[0].into(), incarnation: 1, members: 1, epoch: 1, released: None };
        let mut world = World {
            rules,
            nodes: (0..N).map(node).collect(),
            record: Some((first, 1)),
            counters: [1; N],
            revision: 1,
            records: BTreeMap::new(),
            wish: None,
            asked: Vec::new(),
            answers: Vec::new(),
            lease: 2,
            version: 1,
            changed_hands: false,
        };
        world.nodes[0].mark = 1;
        for n in 0..N {
            let ports = vec![crate::cluster::NodePort {
                number: 1,
                interface: "p0".into(),
                segment: "office".into(),
                mac: [2, 0, 0, 0, 0, n as u8],
                usable: true,
                hears: true,
            }];
            world.records.insert(n, NodeRecord { incarnation: 1, witness: witness && n == 2, ports });
        }
        for n in 0..N {
            world.launch(n, false, witness && n == 2);
        }
        world
    }

    fn d(&self) -> u64 {
        self.lease + self.rules.slack
    }

    fn now(&self, n: usize) -> Time {
        Time(self.nodes[n].clock * TICK)
    }

    fn launch(&mut self, n: usize, lost_memory: bool, witness: bool) {
        let node = &mut self.nodes[n];
        node.machine = Some(Machine::new());
        node.life += 1;
        node.told = 0;
        let verdicts = (0..N as u8)
            .flat_map(|about| {
                let peer = &node.peers[usize::from(about)];
                let own = ((n as u8, about), peer.condemned);
                let others = (0..N as u8).filter(|v| usize::from(*v) != n);
                others.map(move |v| ((v, about), peer.verdicts[usize::from(v)])).chain([own])
            })
            .filter(|(_, incarnation)| *incarnation != 0)
            .collect();
        let marked = if node.mark != 0 && node.mark == node.incarnation {
            BTreeSet::from([SERVER.to_owned()])
        } else {
            BTreeSet::new()
        };
        let cluster = ClusterStart {
            members: members(&self.rules, self.lease, self.version),
            nodes: self.records.iter().map(|(n, r)| (NAMES[*n].to_owned(), r.clone())).collect(),
            witness,
            lost_memory: lost_memory && self.rules.wait_after_loss,
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
            config: config(n),
            incarnation: node.incarnation,
            found: Found { links: vec![link], addresses: Vec::new() },
            bound: BTreeMap::new(),
            marked,
            cluster: Some(cluster),
        };
        self.input(n, Input::Start(Box::new(start)));
        self.input(n, Input::Store(StoreInput::All(self.everything())));
        self.nodes[n].told = self.revision;
    }

    fn everything(&self) -> Vec<StoreChange> {
        let node = |(n, r): (&usize, &NodeRecord)| StoreChange {
            revision: 1,
            entry: Entry::Node(NAMES[*n].to_owned(), Some(r.clone())),
        };
        let mut all: Vec<StoreChange> = self.records.iter().map(node).collect();
        if let Some((record, revision)) = &self.record {
            all.push(StoreChange {
                revision: *revision,
                entry: Entry::Record(SERVER.into(), Some(record.clone())),
            });
        }
        // Not of interest here, and always there.
        let master =
            Record { node: "elsewhere".into(), incarnation: 1, members: 1, epoch: 1, released: None };
        all.push(StoreChange { revision: 1, entry: Entry::Record(MASTER.into(), Some(master)) });
        let wish = self.wish.map(|(to, _)| NAMES[to].to_owned());
        all.push(StoreChange { revision: self.revision, entry: Entry::Move(SERVER.into(), wish) });
        all
    }

    /// Hands the machine an input and carries out what it asks for.
    fn input(&mut self, n: usize, input: Input) {
        let now = self.now(n);
        let mut pending = vec![input];
        while !pending.is_empty() {
            let input = pending.remove(0);
            let Some(machine) = &mut self.nodes[n].machine else { return };
            for effect in machine.handle(now, input) {
                pending.extend(self.carry_out(n, effect));
            }
        }
    }

    fn carry_out(&mut self, n: usize, effect: Effect) -> Option<Input> {
        let d = self.d();
        let rules = self.rules;
        let node = &mut self.nodes[n];
        match effect {
            Effect::Attach(ifindex, _) => Some(Input::Attached(ifindex, Attachment::Native)),
            Effect::RemoveAddress(ifindex, address) => {
                Some(Input::AddressRemoved(Assigned { ifindex, address, ours: true }))
            }
            Effect::Mark { incarnation: Some(incarnation), .. } => {
                node.mark = incarnation;
                None
            }
            Effect::Mark { server, incarnation: None } => {
                node.mark = 0;
                Some(Input::MarkCleared(server))
            }
            Effect::Incarnation(incarnation) => {
                node.incarnation = incarnation;
                node.grants = [(0, 0); N];
                if !rules.mark_named && node.mark != 0 {
                    node.mark = incarnation; // a mark without a name goes on
                }
                None
            }
            Effect::Condemn { slot, incarnation } => {
                let peer = &mut node.peers[usize::from(slot)];
                let last =
                    if rules.any_incarnation { peer.heard } else { peer.heard_of.get(&incarnation).copied() };
                if rules.one_step && last.is_some_and(|at| node.clock - at < d) {
                    return None;
                }
                peer.condemned = peer.condemned.max(incarnation);
                Some(Input::Verdict { voter: n as u8, about: slot, incarnation })
            }
            Effect::Store(StoreRequest::Publish(_) | StoreRequest::MoveDone { .. }) => None,
            Effect::Store(request) => {
                self.asked.push(Asked { node: n, life: node.life, awaited: true, request });
                None
            }
            _ => None,
        }
    }

    /// Does this node's kernel answer for the address?
    pub fn serves(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let named = !self.rules.mark_named || node.mark == node.incarnation;
        node.frozen == 0 && node.mark != 0 && named && self.grants(n) >= N / 2
    }

    fn grants(&self, n: usize) -> usize {
        let node = &self.nodes[n];
        let lease = if self.rules.same_lease { self.lease } else { self.lease + 4 };
        let valid = |(incarnation, from): &(u64, u64)| {
            *incarnation == node.incarnation && *from != 0 && node.clock < from.saturating_add(lease)
        };
        node.grants.iter().filter(|g| valid(g)).count()
    }

    /// How many nodes answer.
    pub fn servers(&self) -> usize {
        (0..N).filter(|n| self.serves(*n)).count()
    }

    fn refuses(&self, voter: usize, owner: usize) -> bool {
        let peer = &self.nodes[voter].peers[owner];
        let incarnation = self.nodes[owner].incarnation;
        incarnation <= peer.condemned || (self.rules.only_newer && incarnation < peer.born)
    }

    /// May frames go between them? Both kernels must run, and neither be cut off.
    pub fn can_exchange(&self, voter: usize, owner: usize) -> bool {
        let there = |n: usize| self.nodes[n].frozen == 0 && !self.nodes[n].cut;
        voter != owner && there(voter) && there(owner)
    }

    /// A tick in which all frames get through that can, and every agent looks and says what it has to say.
    pub fn round(&mut self) {
        self.tick();
        let pairs = (0..N).flat_map(|v| (0..N).map(move |o| (v, o)));
        let pairs: Vec<(usize, usize)> = pairs.filter(|(v, o)| self.can_exchange(*v, *o)).collect();
        pairs.iter().for_each(|(voter, owner)| self.exchange(*voter, *owner));
        let agents: Vec<usize> =
            (0..N).filter(|n| self.nodes[*n].machine.is_some() && self.nodes[*n].frozen == 0).collect();
        agents.iter().for_each(|n| self.look(*n));
        for (from, to) in pairs {
            if agents.contains(&to) {
                self.say(from, to);
            }
        }
    }

    /// A frame of `owner` reaches `voter`, and the answer comes back.
    pub fn exchange(&mut self, voter: usize, owner: usize) {
        let refuses = self.refuses(voter, owner);
        let (incarnation, from) = (self.nodes[owner].incarnation, self.nodes[owner].clock);
        let clock = self.nodes[voter].clock;
        let peer = &mut self.nodes[voter].peers[owner];
        peer.incarnation = peer.incarnation.max(incarnation);
        peer.answered = Some(clock);
        if !refuses {
            peer.heard = Some(clock);
            peer.heard_of.insert(incarnation, clock);
        }
        let other = self.nodes[voter].incarnation;
        let node = &mut self.nodes[owner];
        if std::mem::take(&mut node.jumped) && self.rules.clock_jump {
            node.grants = [(0, 0); N];
        } else if !refuses {
            node.grants[voter] = node.grants[voter].max((incarnation, from));
        }
        let back = &mut node.peers[voter];
        back.incarnation = back.incarnation.max(other);
        back.answered = Some(node.clock);
        back.refused = refuses;
    }

    /// A grant from before, for a time and an incarnation of then, comes late.
    pub fn late_grant(&mut self, voter: usize, owner: usize, incarnation: u64, from: u64) {
        let past_only = self.rules.past_only;
        let node = &mut self.nodes[owner];
        if !past_only || (node.incarnation == incarnation && from <= node.clock) {
            node.grants[voter] = (node.incarnation, from);
        }
    }

    /// `from` tells `to` of its verdicts.
    pub fn say(&mut self, from: usize, to: usize) {
        for about in 0..N {
            let incarnation = self.nodes[from].peers[about].condemned;
            let known = &mut self.nodes[to].peers[about].verdicts[from];
            if incarnation > *known {
                *known = incarnation;
                let (voter, about) = (from as u8, about as u8);
                self.input(to, Input::Verdict { voter, about, incarnation });
            }
        }
    }

    /// Is there something to say?
    pub fn has_to_say(&self, from: usize, to: usize) -> bool {
        self.can_exchange(from, to)
            && (0..N).any(|a| self.nodes[from].peers[a].condemned > self.nodes[to].peers[a].verdicts[from])
    }

    /// The agent looks at its peers and its lease.
    pub fn look(&mut self, n: usize) {
        let reading = self.reading(n);
        self.input(n, Input::Peers(reading));
    }

    /// The same, and something happens between the look and what follows from it.
    pub fn look_and(&mut self, n: usize, meanwhile: impl FnOnce(&mut World)) {
        let reading = self.reading(n);
        meanwhile(self);
        self.input(n, Input::Peers(reading));
    }

    fn reading(&self, n: usize) -> PeerReading {
        let node = &self.nodes[n];
        let latest = self.record.as_ref().map_or(0, |(r, _)| r.incarnation);
        let time = |at: u64| Time(at * TICK);
        let peers = (0..N).filter(|p| *p != n).map(|p| {
            let peer = &node.peers[p];
            PeerSample {
                slot: p as u8,
                incarnation: peer.incarnation,
                heard: match self.rules.any_incarnation {
                    true => peer.heard.map(time),
                    false => peer.heard_of.get(&latest.max(peer.incarnation)).copied().map(time),
                },
                answered: peer.answered.map(time),
                refuses: peer.refused,
            }
        });
        let lease = (self.grants(n) >= N / 2).then(|| time(node.clock + 1));
        PeerReading { peers: peers.collect(), steady_since: Time(0), lease, ports: Vec::new() }
    }

    /// Time goes on for all.
    pub fn tick(&mut self) {
        (0..N).for_each(|n| self.tick_one(n, 1));
    }

    /// Time goes on for all, for one of them by so many ticks.
    pub fn tick_odd(&mut self, odd: usize, by: u64) {
        (0..N).for_each(|n| self.tick_one(n, if n == odd { by } else { 1 }));
    }

    fn tick_one(&mut self, n: usize, by: u64) {
        if self.nodes[n].frozen != 2 {
            self.nodes[n].clock += by;
        }
    }

    /// Requests under way.
    pub fn requests(&self) -> usize {
        self.asked.len()
    }

    /// Is somebody waiting for it?
    pub fn awaited(&self, k: usize) -> bool {
        self.asked[k].awaited && self.nodes[self.asked[k].node].life == self.asked[k].life
    }

    /// A request is carried out by the store.
    pub fn land(&mut self, k: usize) {
        let Asked { node, life, awaited, request } = self.asked.remove(k);
        let answer = match request {
            StoreRequest::Write { server, expected, record } => {
                if server == SERVER && self.record.as_ref().map_or(0, |(_, r)| *r) == expected {
                    self.revision += 1;
                    let before = self.record.replace((record.clone(), self.revision));
                    self.changed_hands |= before.is_some_and(|(b, _)| b.node != record.node);
                    StoreInput::Written { server, record, revision: self.revision }
                } else {
                    StoreInput::NotWritten { server, current: self.record.clone() }
                }
            }
            StoreRequest::NewIncarnation { above } => {
                self.counters[node] = self.counters[node].max(above) + 1;
                StoreInput::Incarnation(self.counters[node])
            }
            StoreRequest::Publish(_) | StoreRequest::MoveDone { .. } => return,
        };
        if awaited {
            self.answers.push((node, life, answer));
        }
    }

    /// The sender gives a request up, and reads what there is; the request may still land.
    pub fn give_up(&mut self, k: usize) {
        self.asked[k].awaited = false;
        let Asked { node, life, request, .. } = self.asked[k].clone();
        let answer = match request {
            StoreRequest::Write { server, record, .. } => {
                // The hole: what was read counts as if this process had written it.
                let own = |(r, _): &(Record, u64)| r.node == record.node && r.released.is_none();
                match self.record.clone().filter(own).filter(|_| !self.rules.own_write) {
                    Some((record, revision)) => StoreInput::Written { server, record, revision },
                    None => StoreInput::NotWritten { server, current: self.record.clone() },
                }
            }
            request => StoreInput::Failed(request, "no answer".to_owned()),
        };
        self.answers.push((node, life, answer));
    }

    /// Answers under way.
    pub fn replies(&self) -> usize {
        self.answers.len()
    }

    /// May it be delivered now?
    pub fn can_deliver(&self, k: usize) -> bool {
        self.nodes[self.answers[k].0].frozen == 0
    }

    /// An answer reaches the agent that waits for it, if that still lives.
    pub fn deliver(&mut self, k: usize) {
        let (node, life, answer) = self.answers.remove(k);
        if self.nodes[node].life == life {
            self.input(node, Input::Store(answer));
        }
    }

    /// Is there news for the agent?
    pub fn has_news(&self, n: usize) -> bool {
        self.nodes[n].machine.is_some() && self.nodes[n].frozen == 0 && self.nodes[n].told < self.revision
    }

    /// The watch tells the agent what there is.
    pub fn watch(&mut self, n: usize) {
        self.nodes[n].told = self.revision;
        self.input(n, Input::Store(StoreInput::Changed(self.everything())));
    }

    /// The agent is killed.
    pub fn crash(&mut self, n: usize) {
        self.nodes[n].machine = None;
        self.nodes[n].life += 1;
        if !self.rules.pinned {
            for peer in &mut self.nodes[n].peers {
                (peer.condemned, peer.verdicts) = (0, [0; N]);
            }
        }
    }

    /// It starts again.
    pub fn start(&mut self, n: usize) {
        self.launch(n, false, false);
    }

    /// The machine starts anew: all that its kernel held is lost, and its clock begins again.
    pub fn reboot(&mut self, n: usize) {
        self.counters[n] += 1;
        let counters = self.counters;
        let node = &mut self.nodes[n];
        (node.machine, node.frozen, node.mark, node.grants) = (None, 0, 0, [(0, 0); N]);
        node.incarnation = counters[n];
        node.clock = EPOCH / 2;
        node.peers = Default::default();
        for (peer, counter) in node.peers.iter_mut().zip(counters) {
            peer.born = counter + 1;
        }
        self.launch(n, true, false);
    }

    /// The whole node stands still; with `clock`, its clock too.
    pub fn freeze(&mut self, n: usize, clock: bool) {
        self.nodes[n].frozen = if clock { 2 } else { 1 };
    }

    /// It goes on.
    pub fn thaw(&mut self, n: usize) {
        self.nodes[n].jumped = self.nodes[n].frozen == 2;
        self.nodes[n].frozen = 0;
    }

    /// An administrator wants it there.
    pub fn wish(&mut self, to: usize) {
        self.revision += 1;
        self.wish = Some((to, self.revision));
    }

    /// And then does not.
    pub fn unwish(&mut self) {
        self.revision += 1;
        self.wish = None;
    }

    /// The node goes on as another incarnation for a reason of its own, such as another record.
    pub fn force_incarnation(&mut self, n: usize, incarnation: u64) {
        let _ = self.carry_out(n, Effect::Incarnation(incarnation));
    }

    /// A verdict is told, whoever gave it.
    pub fn tell(&mut self, to: usize, voter: usize, about: usize, incarnation: u64) {
        let (voter, about) = (voter as u8, about as u8);
        self.input(to, Input::Verdict { voter, about, incarnation });
    }

    /// This node's machine counts a node's verdict about itself.
    pub fn count_oneself(&mut self, n: usize) {
        let cluster = self.nodes[n].machine.as_mut().and_then(|m| m.cluster.as_mut());
        cluster.expect("it runs").counts_oneself = true;
    }

    /// The agents of these nodes start anew with the next version of the member list.
    pub fn next_version(&mut self, nodes: &[usize]) {
        self.version += 1;
        for n in nodes {
            self.crash(*n);
            self.start(*n);
        }
    }

    /// The member list is about to have a next version. `at_once`: the record is counted in it before its owner has adopted it.
    pub fn grow(&mut self, at_once: bool) {
        if let Some((record, _)) = self.record.as_mut().filter(|_| at_once) {
            record.members = self.version + 1;
        }
    }

    /// A lease that never ends, as a lone node has.
    pub fn endless(&mut self, n: usize) {
        self.nodes[n].grants = [(self.nodes[n].incarnation, u64::MAX / 2); N];
    }

    /// Clock of a node, ticks.
    pub fn clock(&self, n: usize) -> u64 {
        self.nodes[n].clock
    }
}
