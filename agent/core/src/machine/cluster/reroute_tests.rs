//! Three nodes, of which `a` owns a pinned server with an address in `office`; `back` lies between them. Stand-ins of the store
//! and of each node's kernel programs; whatever the order of things, at most one node answers in `office`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::super::Machine;
use super::stand::{N, NAMES, Store, cluster_start, others};
use crate::cluster::{NodePort, NodeRecord, Record, StoreInput, StoreRequest, Via, ViaState};
use crate::config::{PortConfig, Segment, Timing, VirtualServer};
use crate::{
    Attachment, Config, Effect, Event, EventKind, Found, Hop, IfIndex, Input, Link, PeerReading, PeerSample,
    Start, Time,
};

const OFFICE: IfIndex = IfIndex(1);
const BACK: IfIndex = IfIndex(2);
const MS: u64 = 1_000_000;

fn vip() -> IpAddr {
    IpAddr::from([10, 0, 0, 10])
}

fn mac(node: usize, port: IfIndex) -> [u8; 6] {
    [2, 0, 0, 0, node as u8, port.0 as u8]
}

fn config(node: usize) -> Config {
    let segment = |name: &str, subnet: &str| Segment::new(name, vec![subnet.parse().expect("subnet")]);
    Config {
        ports: vec![PortConfig::new("p0", "office"), PortConfig::new("p1", "back")],
        timing: Timing { announce_repeat: Vec::new(), hold_down: Duration::ZERO, ..Timing::default() },
        segments: vec![segment("office", "10.0.0.0/24"), segment("back", "10.99.0.0/24")],
        servers: vec![VirtualServer {
            migrate: false,
            reroute: true,
            ..VirtualServer::new("vs", vec!["10.0.0.10/24".parse().expect("address")])
        }],
        ..Config::new(NAMES[node])
    }
}

/// A node: its machine, and what its kernel programs hold.
struct Node {
    machine: Option<Machine>,
    life: u32,
    incarnation: u64,
    mark: u64,
    bound: Option<IfIndex>,
    routed: Option<Hop>,
    carrier: bool,
    /// Its lease is over for good, and so is the node.
    dead: bool,
    told: u64,
    published: NodeRecord,
    events: Vec<EventKind>,
    deeds: Vec<Effect>,
}

struct World {
    now: Time,
    nodes: Vec<Node>,
    store: Store,
}

impl World {
    /// Everybody is up, and `a` serves.
    fn new() -> World {
        let ports = |n| {
            let port = |ifindex: IfIndex, name: &str, segment: &str| NodePort {
                number: ifindex.0,
                interface: name.into(),
                segment: segment.into(),
                mac: mac(n, ifindex),
                usable: true,
                hears: true,
            };
            vec![port(OFFICE, "p0", "office"), port(BACK, "p1", "back")]
        };
        let node = |n| Node {
            machine: None,
            life: 0,
            incarnation: 1,
            mark: u64::from(n == 0),
            bound: (n == 0).then_some(OFFICE),
            routed: None,
            carrier: true,
            dead: false,
            told: 0,
            published: NodeRecord { incarnation: 1, ports: ports(n), ..NodeRecord::default() },
            events: Vec::new(),
            deeds: Vec::new(),
        };
        let mut world =
            World { now: Time(1000 * MS), nodes: (0..N).map(node).collect(), store: Store::new() };
        (0..N).for_each(|n| world.launch(n));
        (0..N).for_each(|n| world.look(n));
        world.finish();
        world
    }

    fn launch(&mut self, n: usize) {
        let link = |ifindex: IfIndex, name: &str, carrier| Link {
            ifindex,
            name: name.into(),
            up: true,
            carrier,
            mac: mac(n, ifindex),
        };
        let node = &mut self.nodes[n];
        node.machine = Some(Machine::new());
        node.life += 1;
        let marked = node.mark != 0 && node.mark == node.incarnation;
        let dead = self.nodes.iter().enumerate().filter(|(_, other)| other.dead);
        let verdicts = dead.flat_map(|(about, _)| (0..N).map(move |v| ((v as u8, about as u8), 1)));
        let verdicts = verdicts.filter(|((v, about), _)| v != about).collect();
        let node = &self.nodes[n];
        let start = Start {
            config: config(n),
            incarnation: node.incarnation,
            found: Found {
                links: vec![link(OFFICE, "p0", node.carrier), link(BACK, "p1", true)],
                addresses: Vec::new(),
            },
            bound: node.bound.map(|port| (vip(), port)).into_iter().collect(),
            marked: if marked { BTreeSet::from(["vs".to_owned()]) } else { BTreeSet::new() },
            routed: node.routed.map(|_| vip()).into_iter().collect(),
            running: BTreeSet::new(),
            cluster: Some(cluster_start(self.nodes.iter().map(|node| &node.published), verdicts)),
        };
        self.input(n, Input::Start(Box::new(start)));
        self.watch(n);
        self.look(n);
    }

    fn watch(&mut self, n: usize) {
        self.nodes[n].told = self.store.revision;
        let entries = self.store.entries(self.nodes.iter().map(|node| &node.published));
        self.input(n, Input::Store(StoreInput::All(entries)));
    }

    /// All that live hear one another in `back`, and in `office` where both have carrier.
    fn look(&mut self, n: usize) {
        let now = self.now;
        let peers = others(n).map(|p| PeerSample {
            slot: p as u8,
            incarnation: 1,
            heard: (!self.nodes[p].dead).then_some(now),
            answered: (!self.nodes[p].dead).then_some(now),
            refuses: false,
        });
        let back = others(n).any(|p| !self.nodes[p].dead);
        let office = self.nodes[n].carrier && others(n).any(|p| !self.nodes[p].dead && self.nodes[p].carrier);
        let heard = |yes: bool| yes.then_some(now);
        let reading = PeerReading {
            peers: peers.collect(),
            steady_since: now,
            lease: (!self.nodes[n].dead).then_some(now + Duration::from_millis(50)),
            ports: vec![(OFFICE, heard(office)), (BACK, heard(back))],
        };
        self.input(n, Input::Peers(reading));
    }

    fn input(&mut self, n: usize, input: Input) {
        let mut pending = vec![input];
        while !pending.is_empty() {
            let input = pending.remove(0);
            if self.nodes[n].dead {
                return;
            }
            let Some(machine) = &mut self.nodes[n].machine else { return };
            for effect in machine.handle(self.now, input) {
                pending.extend(self.carry_out(n, effect));
                assert!(self.answering().len() <= 1, "{:?} answer", self.answering());
            }
        }
    }

    fn carry_out(&mut self, n: usize, effect: Effect) -> Option<Input> {
        let node = &mut self.nodes[n];
        node.deeds.push(effect.clone());
        match effect {
            Effect::Attach(ifindex, _) => return Some(Input::Attached(ifindex, Attachment::Native)),
            Effect::Mark { server, incarnation } => {
                node.mark = incarnation.unwrap_or(0);
                return incarnation.is_none().then_some(Input::MarkCleared(server));
            }
            Effect::Permit { port, .. } => node.bound = port,
            Effect::Route { to, .. } => node.routed = to,
            Effect::Store(StoreRequest::Publish(record)) => node.published = record,
            Effect::Store(request) => self.store.asked.push((n, node.life, request)),
            Effect::Event(Event { kind, .. }) => node.events.push(kind),
            _ => {}
        }
        None
    }

    /// Who answers in `office`.
    fn answering(&self) -> Vec<usize> {
        let answers = |n: &usize| {
            let node = &self.nodes[*n];
            !node.dead
                && node.mark != 0
                && node.mark == node.incarnation
                && node.bound == Some(OFFICE)
                && node.carrier
        };
        (0..N).filter(answers).collect()
    }

    fn land(&mut self, k: usize) {
        let (node, life, request) = self.store.asked.remove(k);
        let answer = match request {
            StoreRequest::Write { server, expected, record } if server == "vs" => {
                self.store.write(server, expected, record)
            }
            request => StoreInput::Failed(request, "not here".into()),
        };
        self.store.answers.push((node, life, answer));
    }

    fn deliver(&mut self, k: usize) {
        let (node, life, answer) = self.store.answers.remove(k);
        if self.nodes[node].life == life {
            self.input(node, Input::Store(answer));
        }
    }

    /// Until nothing is left to be done.
    fn finish(&mut self) {
        for _ in 0..60 {
            self.now = self.now + Duration::from_millis(30);
            while !self.store.asked.is_empty() {
                self.land(0);
            }
            while !self.store.answers.is_empty() {
                self.deliver(0);
            }
            (0..N).for_each(|n| self.watch(n));
            (0..N).for_each(|n| self.look(n));
            (0..N).for_each(|n| self.input(n, Input::Wake));
        }
    }

    fn carrier(&mut self, n: usize, carrier: bool) {
        self.nodes[n].carrier = carrier;
        let link = Link { ifindex: OFFICE, name: "p0".into(), up: true, carrier, mac: mac(n, OFFICE) };
        self.input(n, Input::Link(link));
    }

    /// The node is dead: its lease is over, and both others say so.
    fn kill(&mut self, n: usize) {
        self.nodes[n].dead = true;
        for to in others(n) {
            for voter in others(n) {
                self.input(to, Input::Verdict { voter: voter as u8, about: n as u8, incarnation: 1 });
            }
        }
    }

    fn crash(&mut self, n: usize) {
        self.nodes[n].machine = None;
        self.nodes[n].life += 1;
    }
}

fn hop(from: usize, to: usize) -> Hop {
    Hop { ifindex: BACK, from: mac(from, BACK), to: mac(to, BACK) }
}

fn via(node: &str, state: ViaState) -> Via {
    Via {
        segment: "office".into(),
        node: node.into(),
        incarnation: 1,
        members: 1,
        over: "back".into(),
        state,
    }
}

#[test]
fn the_owner_stops_answering_before_it_asks() {
    let mut world = World::new();
    assert_eq!(world.answering(), [0]);
    world.nodes[0].deeds.clear();
    world.carrier(0, false);
    let deeds = world.nodes[0].deeds.iter().filter(|e| !matches!(e, Effect::Event(_)));
    let deeds: Vec<&Effect> =
        deeds.filter(|e| !matches!(e, Effect::Store(StoreRequest::Publish(_)))).collect();
    let record = Record { via: vec![via("b", ViaState::Asked)], ..world.store.record.0.clone() };
    let expected = [
        Effect::Permit { address: vip(), server: "vs".into(), port: Some(BACK) },
        Effect::AddAddress(BACK, vip()),
        Effect::RemoveAddress(OFFICE, vip()),
        // The kernel drops an interface's routes with its last address.
        Effect::Steer { segment: "office".into(), ports: vec![OFFICE], via: None },
        Effect::Store(StoreRequest::Write { server: "vs".into(), expected: world.store.record.1, record }),
    ];
    assert_eq!(deeds, expected.iter().collect::<Vec<_>>());
}

#[test]
fn the_peer_answers_after_its_own_write_and_both_know_the_way() {
    let mut world = World::new();
    world.carrier(0, false);
    world.finish();
    assert_eq!(world.answering(), [1]);
    assert_eq!(world.store.record.0.via, [via("b", ViaState::Answering)]);
    assert_eq!(world.nodes[1].routed, Some(hop(1, 0)));
    let steered = Effect::Steer { segment: "office".into(), ports: Vec::new(), via: Some(hop(0, 1)) };
    assert!(world.nodes[0].deeds.contains(&steered));
    world.carrier(0, true);
    assert_eq!(world.answering(), [1], "until the peer has stopped");
    world.finish();
    assert_eq!(world.answering(), [0]);
    assert!(world.store.record.0.via.is_empty());
    assert_eq!(world.nodes[1].routed, None);
}

#[test]
fn a_dead_peer_is_replaced_and_an_owners_death_ends_it() {
    let mut world = World::new();
    world.carrier(0, false);
    world.finish();
    world.kill(1);
    world.finish();
    assert_eq!(world.answering(), [2]);
    world.kill(0);
    world.finish();
    assert_eq!(world.answering(), Vec::<usize>::new(), "pinned to the dead one");
    assert!(world.store.record.0.via.is_empty(), "so that others may take it one day");
}

/// What the owner asked of a peer, and got no answer to, may still land when a port of its own is back.
#[test]
fn a_request_that_lands_late_makes_no_second_one_answer() {
    let mut world = World::new();
    let wait = |world: &mut World| {
        world.now = world.now + Duration::from_millis(200);
        world.input(0, Input::Wake);
    };
    // Its own writes are the last ones.
    for carrier in [false, true] {
        world.carrier(0, carrier);
        world.finish();
    }
    world.carrier(0, false);
    wait(&mut world);
    let is_ask = |request: &StoreRequest| matches!(request, StoreRequest::Write { record, .. } if !record.via.is_empty());
    let ask = world.store.asked.iter().position(|(_, _, request)| is_ask(request)).expect("it asks");
    let (_, life, request) = &mut world.store.asked[ask];
    *life = 0; // nobody waits for its answer any more
    let failed = StoreInput::Failed(request.clone(), "no answer".into());
    world.input(0, Input::Store(failed));
    world.carrier(0, true);
    wait(&mut world);
    world.land(ask);
    world.watch(1);
    while !world.store.asked.is_empty() {
        world.land(0);
        (0..world.store.answers.len()).for_each(|_| world.deliver(0));
    }
    world.finish();
    assert_eq!(world.answering(), [0]);
}

#[test]
fn restarted_agents_keep_what_they_answer_for() {
    let mut world = World::new();
    world.carrier(0, false);
    world.finish();
    for n in [1, 0] {
        world.crash(n);
        world.launch(n);
        assert_eq!((world.answering(), world.nodes[1].mark), (vec![1], 1));
        world.finish();
        assert_eq!(world.answering(), [1]);
    }
    let again = |kind: &&EventKind| matches!(kind, EventKind::Routing { .. });
    assert_eq!(world.nodes[1].events.iter().filter(again).count(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Carrier(usize, bool),
    Land(usize),
    Deliver(usize),
    Watch(usize),
    Look(usize),
    Crash(usize),
    Launch(usize),
    Kill(usize),
    Pass(u64),
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..N, any::<bool>()).prop_map(|(n, up)| Step::Carrier(n, up)),
        6 => (0..4usize).prop_map(Step::Land),
        6 => (0..4usize).prop_map(Step::Deliver),
        6 => (0..N).prop_map(Step::Watch),
        4 => (0..N).prop_map(Step::Look),
        1 => (0..N).prop_map(Step::Crash),
        2 => (0..N).prop_map(Step::Launch),
        1 => (1..N).prop_map(Step::Kill),
        3 => (1..400u64).prop_map(Step::Pass),
        1 => Just(Step::Finish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// At most one node answers in the segment after every single effect; in the end somebody does, where somebody can.
    #[test]
    fn whatever_the_order_at_most_one_answers(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Carrier(n, up) => world.carrier(n, up),
                Step::Land(k) if k < world.store.asked.len() => world.land(k),
                Step::Deliver(k) if k < world.store.answers.len() => world.deliver(k),
                Step::Land(_) | Step::Deliver(_) => {}
                Step::Watch(n) => world.watch(n),
                Step::Look(n) => world.look(n),
                Step::Crash(n) => world.crash(n),
                Step::Launch(n) if world.nodes[n].machine.is_none() => world.launch(n),
                Step::Launch(_) => {}
                // One of the two: what is left is a majority.
                Step::Kill(n) if world.nodes.iter().all(|node| !node.dead) => world.kill(n),
                Step::Kill(_) => {}
                Step::Pass(ms) => world.now = world.now + Duration::from_millis(ms),
                Step::Finish => world.finish(),
            }
        }
        for n in 0..N {
            if world.nodes[n].machine.is_none() {
                world.launch(n);
            }
        }
        world.finish();
        let able = (0..N).any(|n| world.nodes[n].carrier && !world.nodes[n].dead);
        prop_assert_eq!(world.answering().len(), usize::from(able), "{:?} {:?}", world.store.record, world.answering());
        let owner = world.nodes[0].carrier;
        prop_assert!(!owner || world.answering() == [0], "the owner answers itself where it can");
    }
}
