//! What holds for every sequence of inputs. A small stand-in for the kernel carries out effects, sends the notifications
//! that the real one sends, late and in order, and refuses some requests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use baton_core::config::{PortConfig, PortFailback, Segment, VirtualServer};
use baton_core::{
    Assigned, Attachment, Claim, Config, Effect, Event, EventKind, Found, IfIndex, Input, Link, Machine,
    Owner, PortState, Reload, Sample, Start, Time, Traffic,
};
use proptest::prelude::*;

const PORTS: [(&str, &str); 4] = [("a", "office"), ("b", "office"), ("c", "office"), ("d", "lab")];

fn config(spread: bool) -> Config {
    let failback = if spread { PortFailback::Spread } else { PortFailback::Stay };
    let segment = |name: &str, subnets: &[&str]| Segment {
        port_failback: failback,
        ..Segment::new(name, subnets.iter().map(|s| s.parse().unwrap()).collect())
    };
    let server = |name: &str, priority, addresses: &[&str]| VirtualServer {
        priority,
        reroute: true,
        ..VirtualServer::new(name, addresses.iter().map(|s| s.parse().unwrap()).collect())
    };
    Config {
        ports: PORTS.iter().map(|(i, s)| PortConfig::new(i, s)).collect(),
        segments: vec![segment("office", &["10.0.0.0/24", "fd00:10::/64"]), segment("lab", &["10.1.0.0/24"])],
        servers: vec![
            server("one", 2, &["10.0.0.10/24", "10.0.0.11/24", "fd00:10::10/64"]),
            server("two", 1, &["10.0.0.20/24", "10.1.0.20/24"]),
        ],
        ..Config::new("fs1")
    }
}

/// Bits of a variant of the configuration: what is not there, or is there besides.
const NO_SECOND_SERVER: u8 = 1;
const NO_SECOND_ADDRESS: u8 = 2;
const NO_PORT_C: u8 = 4;
const THIRD_SERVER: u8 = 8;
const REHOMED: u8 = 16;
const NO_LAB: u8 = 32;
const VARIANTS: u8 = 64;

/// One of several configurations that the file may hold.
fn variant(spread: bool, bits: u8) -> Config {
    let mut c = config(spread);
    let has = |bit: u8| bits & bit != 0;
    if has(NO_SECOND_SERVER) {
        c.servers.retain(|s| s.name != "two");
    }
    if has(NO_SECOND_ADDRESS) || has(REHOMED) {
        c.servers[0].addresses.retain(|n| n.addr() != vips()[1]);
    }
    if has(NO_PORT_C) {
        c.ports.retain(|p| p.interface != "c");
    }
    if has(THIRD_SERVER) {
        let addresses = vec!["10.0.0.30/24".parse().unwrap()];
        c.servers.push(VirtualServer { priority: 3, ..VirtualServer::new("three", addresses) });
    }
    if has(REHOMED) && !has(NO_SECOND_SERVER) {
        c.servers[1].addresses.push("10.0.0.11/24".parse().unwrap());
    }
    if has(NO_LAB) {
        c.ports.retain(|p| p.segment != "lab");
        c.segments.retain(|s| s.name != "lab");
        c.servers.iter_mut().for_each(|s| s.addresses.retain(|n| n.addr() != vips()[4]));
    }
    c
}

fn vips() -> Vec<IpAddr> {
    config(true).servers.iter().flat_map(|s| s.addresses.clone()).map(|n| n.addr()).collect()
}

/// What happens to the node.
#[derive(Clone, Debug)]
enum Happening {
    Carrier(usize, bool),
    Read(usize, bool),
    Admin(usize, bool),
    Gone(usize),
    Returns(usize),
    Deleted(usize),
    Elsewhere(usize, usize),
    Claimed(usize),
    Traffic(usize, u32),
    Passes(u32),
    Deliver,
    RefuseNext,
    NotificationsLost,
    Restart,
    Reload(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let port = 0..PORTS.len();
    let vip = 0..5usize;
    prop_oneof![
        6 => (port.clone(), any::<bool>()).prop_map(|(p, c)| Carrier(p, c)),
        4 => (port.clone(), any::<bool>()).prop_map(|(p, c)| Read(p, c)),
        3 => (port.clone(), any::<bool>()).prop_map(|(p, c)| Admin(p, c)),
        2 => port.clone().prop_map(Gone),
        3 => port.clone().prop_map(Returns),
        2 => vip.clone().prop_map(Deleted),
        1 => (vip.clone(), port).prop_map(|(v, p)| Elsewhere(v, p)),
        1 => vip.clone().prop_map(Claimed),
        2 => (vip, any::<u32>()).prop_map(|(v, n)| Traffic(v, n)),
        4 => (0..5000u32).prop_map(Passes),
        6 => Just(Deliver),
        2 => Just(RefuseNext),
        1 => Just(NotificationsLost),
        1 => Just(Restart),
        2 => (0..VARIANTS).prop_map(Reload),
    ]
}

struct World {
    machine: Machine,
    now: Time,
    spread: bool,
    config: Config,
    links: BTreeMap<usize, Link>,
    next_index: u32,
    addresses: BTreeSet<(IpAddr, IfIndex)>,
    permits: BTreeMap<IpAddr, IfIndex>,
    marks: BTreeSet<String>,
    notifications: VecDeque<Input>,
    refuse: bool,
    /// Something was refused in this story.
    refused: bool,
    /// Everything that core was told, to be told again.
    told: Vec<(Time, Input, Vec<Effect>)>,
}

impl World {
    fn new(spread: bool) -> World {
        let mut w = World {
            machine: Machine::new(),
            now: Time(1_000_000_000),
            spread,
            config: config(spread),
            links: BTreeMap::new(),
            next_index: 10,
            addresses: BTreeSet::new(),
            permits: BTreeMap::new(),
            marks: BTreeSet::new(),
            notifications: VecDeque::new(),
            refuse: false,
            refused: false,
            told: Vec::new(),
        };
        (0..PORTS.len()).for_each(|p| w.new_link(p));
        w.start();
        w
    }

    fn new_link(&mut self, p: usize) {
        self.next_index += 1;
        let ifindex = IfIndex(self.next_index);
        let name = PORTS[p].0.to_string();
        let link = Link { ifindex, name, up: true, carrier: true, mac: [2, 0, 0, 0, 0, ifindex.0 as u8] };
        self.links.insert(p, link);
    }

    fn found(&self) -> Found {
        let assigned = |&(address, ifindex): &(IpAddr, IfIndex)| Assigned { ifindex, address, ours: true };
        Found {
            links: self.links.values().cloned().collect(),
            addresses: self.addresses.iter().map(assigned).collect(),
        }
    }

    fn start(&mut self) {
        self.machine = Machine::new();
        self.told.clear();
        self.notifications.clear();
        // The driver clears the marks of all others.
        self.marks.retain(|name| self.config.servers.iter().any(|s| s.name == *name));
        let start = Start {
            config: self.config.clone(),
            incarnation: 1,
            found: self.found(),
            bound: self.permits.clone(),
            marked: self.marks.clone(),
            routed: BTreeSet::new(),
            running: BTreeSet::new(),
            cluster: None,
        };
        self.tell(Input::Start(Box::new(start)));
    }

    fn tell(&mut self, input: Input) {
        let mut queue = VecDeque::from([input]);
        while let Some(input) = queue.pop_front() {
            let effects = self.machine.handle(self.now, input.clone());
            self.told.push((self.now, input, effects.clone()));
            let mut unbound = BTreeSet::new();
            for effect in effects {
                let answer = match &effect {
                    Effect::RemoveAddress(_, a) if unbound.contains(a) => {
                        Some(Input::Failed(Box::new(effect.clone()), "not added elsewhere".into()))
                    }
                    _ => self.carry_out(effect.clone()),
                };
                if let (Effect::AddAddress(_, a), Some(Input::Failed(..))) = (&effect, &answer) {
                    unbound.insert(*a);
                }
                queue.extend(answer);
            }
        }
    }

    fn exists(&self, ifindex: IfIndex) -> Option<&Link> {
        self.links.values().find(|l| l.ifindex == ifindex)
    }

    /// Does what the kernel and the store do, and returns their answer.
    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        let refused = |e: &Effect| Some(Input::Failed(Box::new(e.clone()), "refused".into()));
        if self.refuse && !matches!(effect, Effect::Event(_)) {
            self.refuse = false;
            self.refused = true;
            return refused(&effect);
        }
        match &effect {
            Effect::Attach(i, _) if self.exists(*i).is_none() => return refused(&effect),
            Effect::Attach(i, _) => return Some(Input::Attached(*i, Attachment::Native)),
            Effect::Take(s) => return Some(Input::Owned(s.clone(), Owner { incarnation: 1, epoch: 1 })),
            Effect::Mark { server, incarnation } => {
                match incarnation {
                    Some(_) => self.marks.insert(server.clone()),
                    None => self.marks.remove(server),
                };
            }
            Effect::Permit { address, port, .. } => {
                port.map(|p| self.permits.insert(*address, p));
            }
            Effect::Forget(address) => {
                self.permits.remove(address);
            }
            Effect::AddAddress(i, a) => {
                if self.exists(*i).is_none() {
                    return refused(&effect);
                }
                if self.addresses.insert((*a, *i)) {
                    let ours = Assigned { ifindex: *i, address: *a, ours: true };
                    self.notifications.push_back(Input::AddressAdded(ours));
                }
            }
            Effect::RemoveAddress(i, a) => {
                let elsewhere = self.addresses.iter().any(|(b, j)| b == a && j != i);
                // Core can't know what somebody else did a moment ago.
                let is_port = |l: &Link| self.config.ports.iter().any(|p| p.interface == l.name);
                let wanted = self.config.servers.iter().flat_map(|s| &s.addresses).any(|n| n.addr() == *a)
                    && self.exists(*i).is_some_and(is_port);
                assert!(elsewhere || self.removed_by_others() || !wanted, "{a} leaves its last interface");
                if self.addresses.remove(&(*a, *i)) {
                    self.notifications.push_back(Input::AddressRemoved(Assigned {
                        ifindex: *i,
                        address: *a,
                        ours: true,
                    }));
                } else {
                    return Some(Input::AddressRemoved(Assigned { ifindex: *i, address: *a, ours: true }));
                }
            }
            Effect::Announce(i, a) => {
                if self.refused {
                    return None; // the kernel programs may not have been told; they judge announcements too
                }
                assert_eq!(self.permits.get(a), Some(i), "announced where it is not permitted");
                if self.exists(*i).is_some() && !self.removed_by_others() {
                    assert!(self.addresses.contains(&(*a, *i)), "{a} announced where it is not configured");
                }
            }
            Effect::Steer { .. }
            | Effect::Route { .. }
            | Effect::ForgetUnresolved(_)
            | Effect::Condemn { .. }
            | Effect::Incarnation(_)
            | Effect::Store(_)
            | Effect::Plan(..)
            | Effect::StartResources(_)
            | Effect::StopResources(_)
            | Effect::ResetConnections(_)
            | Effect::Fence { .. }
            | Effect::Entitle { .. }
            | Effect::ReadStorage { .. }
            | Effect::Event(_) => {}
        }
        None
    }

    fn removed_by_others(&self) -> bool {
        self.notifications.iter().any(|n| matches!(n, Input::AddressRemoved(..) | Input::LinkGone(_)))
    }

    fn happens(&mut self, h: Happening) {
        match h {
            Happening::Carrier(p, carrier) => self.change(p, |l| l.carrier = carrier && l.up),
            Happening::Admin(p, up) => self.change(p, |l| (l.up, l.carrier) = (up, up)),
            Happening::Read(p, carrier) => {
                if let Some(i) = self.links.get(&p).map(|l| l.ifindex) {
                    self.tell(Input::Carrier(i, carrier));
                }
            }
            Happening::Gone(p) => {
                if let Some(l) = self.links.remove(&p) {
                    self.addresses.retain(|a| a.1 != l.ifindex);
                    self.notifications.push_back(Input::LinkGone(l.ifindex));
                }
            }
            Happening::Returns(p) => {
                if !self.links.contains_key(&p) {
                    self.new_link(p);
                    self.notifications.push_back(Input::Link(self.links[&p].clone()));
                }
            }
            Happening::Deleted(v) => {
                let vip = vips()[v];
                if let Some(a) = self.addresses.iter().copied().find(|a| a.0 == vip) {
                    self.addresses.remove(&a);
                    self.notifications.push_back(Input::AddressRemoved(Assigned {
                        ifindex: a.1,
                        address: a.0,
                        ours: true,
                    }));
                }
            }
            Happening::Elsewhere(v, p) => {
                if let Some(l) = self.links.get(&p)
                    && !self.addresses.contains(&(vips()[v], l.ifindex))
                {
                    let other = Assigned { ifindex: l.ifindex, address: vips()[v], ours: false };
                    self.notifications.push_back(Input::AddressAdded(other));
                }
            }
            Happening::Claimed(v) => {
                if let Some(l) = self.links.values().next() {
                    let claim = Claim { address: vips()[v], ifindex: l.ifindex, mac: [6; 6] };
                    self.tell(Input::Claim(claim));
                }
            }
            Happening::Traffic(v, bytes) => {
                let carried = Traffic { rx_bytes: u64::from(bytes), ..Traffic::default() };
                let traffic = BTreeMap::from([(vips()[v], carried)]);
                let over = Duration::from_secs(1);
                self.tell(Input::Sample(Sample { over, traffic, ..Sample::default() }));
            }
            Happening::Passes(ms) => self.pass(Duration::from_millis(u64::from(ms))),
            Happening::Deliver => self.deliver(),
            Happening::RefuseNext => self.refuse = true,
            Happening::NotificationsLost => {
                self.notifications.clear();
                self.tell(Input::Resync(self.found()));
            }
            Happening::Restart => self.start(),
            Happening::Reload(bits) => {
                self.deliver(); // the driver hears what is there before
                self.config = variant(self.spread, bits);
                let (config, found) = (self.config.clone(), self.found());
                let changes = vec![format!("variant {bits}")];
                self.tell(Input::Reload(Box::new(Reload { config, found, changes })));
            }
        }
    }

    fn change(&mut self, p: usize, f: impl FnOnce(&mut Link)) {
        if let Some(l) = self.links.get_mut(&p) {
            f(l);
            let l = l.clone();
            self.notifications.push_back(Input::Link(l));
        }
    }

    fn deliver(&mut self) {
        while let Some(n) = self.notifications.pop_front() {
            self.tell(n);
        }
    }

    fn pass(&mut self, d: Duration) {
        let end = self.now + d;
        for _ in 0..10_000 {
            match self.machine.deadline() {
                Some(t) if t <= end => {
                    self.now = self.now.max(t);
                    self.tell(Input::Wake);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Nothing happens any more, everything is delivered, nothing is refused, reads tell the truth.
    fn settle(&mut self) {
        self.refuse = false;
        self.deliver();
        for l in self.links.values().cloned().collect::<Vec<_>>() {
            self.tell(Input::Carrier(l.ifindex, l.up && l.carrier));
        }
        for _ in 0..3 {
            self.pass(Duration::from_secs(120));
            self.deliver();
        }
    }
}

/// Never on a bad port while a good one exists; only ports of its segment.
fn check_bindings(w: &World) {
    let view = w.machine.snapshot(w.now);
    let state = |i: &str| view.ports.iter().find(|p| p.interface == i).unwrap();
    for s in &view.virtual_servers {
        for a in &s.addresses {
            let Some(port) = a.port.as_deref().map(state) else { continue };
            let segment = config(true).segment_of(a.address).unwrap().name.clone();
            assert_eq!(port.segment, segment);
            let better = view.ports.iter().find(|p| p.segment == segment && p.state == PortState::Good);
            if let (PortState::Down, Some(better)) = (port.state, better) {
                panic!("{} is on {} although {} is good", a.address, port.interface, better.interface);
            }
        }
    }
}

/// Once settled: every served address is on exactly the port that core and the kernel programs name.
fn check_settled(w: &World) {
    let view = w.machine.snapshot(w.now);
    for s in &view.virtual_servers {
        for a in &s.addresses {
            let on: Vec<IfIndex> = w.addresses.iter().filter(|x| x.0 == a.address).map(|x| x.1).collect();
            let port = a.port.as_deref().and_then(|n| w.links.values().find(|l| l.name == n));
            let usable = port.is_some_and(|l| l.up && l.carrier);
            if usable {
                let port = port.unwrap().ifindex;
                assert_eq!(on, [port], "{} in the kernel", a.address);
                assert_eq!(w.permits.get(&a.address), Some(&port), "{} in the kernel programs", a.address);
            } else {
                assert!(on.len() <= 1, "{} is on {on:?}", a.address);
            }
            let segment = config(true).segment_of(a.address).unwrap().name.clone();
            let is_port = |name: &str| w.config.ports.iter().any(|p| p.interface == name);
            let any =
                w.links.iter().any(|(p, l)| PORTS[*p].1 == segment && is_port(&l.name) && l.up && l.carrier);
            assert!(usable || !any, "{} is not served although a port is fine", a.address);
        }
        assert_eq!(s.owner.as_deref(), Some("fs1"));
    }
    let wanted: BTreeSet<IpAddr> =
        w.config.servers.iter().flat_map(|s| &s.addresses).map(|n| n.addr()).collect();
    let shown: BTreeSet<IpAddr> =
        view.virtual_servers.iter().flat_map(|s| &s.addresses).map(|a| a.address).collect();
    assert_eq!(shown, wanted, "shown");
    assert!(w.addresses.iter().all(|(a, _)| wanted.contains(a)), "left on an interface: {:?}", w.addresses);
    // What could not be cleared is cleared by the next start.
    if !w.refused {
        assert!(w.permits.keys().all(|a| wanted.contains(a)), "left in the kernel programs: {:?}", w.permits);
        let served: BTreeSet<String> = w.config.servers.iter().map(|s| s.name.clone()).collect();
        assert_eq!(w.marks, served, "marks");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_where_they_belong(spread: bool, story in prop::collection::vec(happening(), 1..60)) {
        let mut w = World::new(spread);
        for h in story {
            w.happens(h);
            check_bindings(&w);
        }
        w.settle();
        check_bindings(&w);
        check_settled(&w);
    }

    #[test]
    fn nothing_is_done_without_a_cause(spread: bool, story in prop::collection::vec(happening(), 1..40)) {
        let mut w = World::new(spread);
        story.into_iter().for_each(|h| w.happens(h));
        w.settle();
        let now = w.now;
        prop_assert_eq!(w.machine.handle(now, Input::Wake), vec![]);
        for l in w.links.values().cloned().collect::<Vec<_>>() {
            prop_assert_eq!(w.machine.handle(now, Input::Link(l.clone())), vec![]);
            prop_assert_eq!(w.machine.handle(now, Input::Carrier(l.ifindex, l.up && l.carrier)), vec![]);
        }
        let known: Vec<_> = w.found().addresses;
        for a in known {
            prop_assert_eq!(w.machine.handle(now, Input::AddressAdded(a)), vec![]);
        }
    }

    #[test]
    fn the_same_inputs_give_the_same_effects(spread: bool, story in prop::collection::vec(happening(), 1..60)) {
        let mut w = World::new(spread);
        story.into_iter().for_each(|h| w.happens(h));
        let mut again = Machine::new();
        for (now, input, effects) in &w.told {
            let text = serde_json::to_string(&(now, input)).unwrap();
            let (now, input): (Time, Input) = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&again.handle(now, input), effects);
        }
        prop_assert_eq!(&again, &w.machine);
    }

    #[test]
    fn every_move_is_told_with_its_reason(spread: bool, story in prop::collection::vec(happening(), 1..60)) {
        let mut w = World::new(spread);
        story.into_iter().for_each(|h| w.happens(h));
        for (_, input, effects) in &w.told {
            let moved = effects.iter().any(|e| matches!(e, Effect::RemoveAddress(..)));
            let first = matches!(input, Input::Start(_) | Input::Reload(_) | Input::Owned(..) | Input::Resync(_) | Input::Wake);
            let told = |k: &EventKind| matches!(k, EventKind::Failover { .. } | EventKind::AddressDeleted { .. });
            let explained = effects.iter().any(|e| matches!(e, Effect::Event(Event { kind, .. }) if told(kind)));
            let completed = matches!(input, Input::Link(_) | Input::Carrier(..) | Input::Attached(..));
            prop_assert!(!moved || first || explained || completed, "{:?} -> {:?}", input, effects);
        }
    }
}
