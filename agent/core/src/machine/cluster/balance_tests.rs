//! Whole effects of balance, and who gets what by load. `a` is the node that is looked at, `b` and `c` are its peers.

use std::collections::BTreeMap;
use std::time::Duration;

use super::tests::{ms, node, start};
use crate::cluster::{Entry, MASTER, NodeLoad, Record, Release, StoreChange, StoreInput, StoreRequest, Wish};
use crate::config::{BalanceMode, VirtualServer};
use crate::{
    Attachment, Effect, EventKind, IfIndex, Input, Machine, PeerReading, PeerSample, PlannedMove, Reason,
    Sample, Time, Traffic,
};

const SECOND: Duration = Duration::from_secs(1);

/// A machine of `a`, and a store that answers at once.
struct World {
    machine: Machine,
    now: Time,
    revision: u64,
}

fn reading(at: Time, b: Time) -> PeerReading {
    let sample = |slot, heard| PeerSample {
        slot,
        incarnation: 1,
        heard: Some(heard),
        answered: Some(heard),
        refuses: false,
    };
    PeerReading {
        peers: vec![sample(1, b), sample(2, at)],
        steady_since: ms(0),
        lease: Some(at + Duration::from_millis(50)),
        ports: vec![(IfIndex(1), Some(at))],
    }
}

impl World {
    /// These virtual servers with their owners, and this master.
    fn new(mode: BalanceMode, servers: &[(VirtualServer, &str)], master: &str) -> World {
        let mut start = start();
        start.config.timing.announce_repeat = Vec::new();
        start.config.balance.mode = mode;
        start.config.servers = servers.iter().map(|(s, _)| s.clone()).collect();
        let mut machine = Machine::new();
        machine.handle(ms(0), Input::Start(Box::new(start)));
        machine.handle(ms(0), Input::Attached(IfIndex(1), Attachment::Native));
        let mut world = World { machine, now: ms(1), revision: 1 };
        world.hear(world.now);
        let nodes = ["b", "c"].map(|name| Entry::Node(name.into(), Some(node(true))));
        let records = servers.iter().map(|(s, owner)| (s.name.as_str(), *owner)).chain([(MASTER, master)]);
        let records =
            records.map(|(name, owner)| Entry::Record(name.into(), Some(Record::of(owner, 1, 1, 1))));
        let all = nodes.into_iter().chain(records).map(|entry| StoreChange { revision: 1, entry }).collect();
        let asked = world.tell(Input::Store(StoreInput::All(all)));
        world.answer(&asked);
        world
    }

    fn tell(&mut self, input: Input) -> Vec<Effect> {
        self.machine.handle(self.now, input)
    }

    /// The store does what it is asked.
    fn answer(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Store(StoreRequest::Write { server, record, .. }) = effect {
                self.revision += 1;
                let (server, record, revision) = (server.clone(), record.clone(), self.revision);
                let effects = self.tell(Input::Store(StoreInput::Written { server, record, revision }));
                self.answer(&effects);
            }
        }
    }

    fn hear(&mut self, b: Time) -> Vec<Effect> {
        self.tell(Input::Peers(reading(self.now, b)))
    }

    fn changed(&mut self, entry: Entry) -> Vec<Effect> {
        self.revision += 1;
        let change = StoreChange { revision: self.revision, entry };
        self.tell(Input::Store(StoreInput::Changed(vec![change])))
    }

    /// A node tells what its servers cost, in percent.
    fn load(&mut self, node: &str, servers: &[(&str, u32)]) {
        let servers = servers.iter().map(|(name, percent)| ((*name).to_owned(), percent * 10_000)).collect();
        self.changed(Entry::Load(node.into(), Some(NodeLoad { servers, other: 0 })));
    }

    /// Some seconds go by, with a sample each.
    fn pass(&mut self, seconds: u32) -> Vec<Effect> {
        let mut all = Vec::new();
        for _ in 0..seconds {
            self.now = self.now + SECOND;
            all.extend(self.hear(self.now));
            all.extend(self.tell(Input::Sample(Sample { over: SECOND, ..Sample::default() })));
        }
        all
    }
}

fn server(name: &str) -> VirtualServer {
    let last = 10 + u32::from(name.as_bytes()[0] - b'a');
    VirtualServer::new(name, vec![format!("10.0.0.{last}/24").parse().unwrap()])
}

fn planned(server: &str, from: &str, to: &str) -> PlannedMove {
    let highest = (0.8, 0.5);
    PlannedMove { server: server.into(), from: from.into(), to: to.into(), why: "evens".into(), highest }
}

fn plans(effects: &[Effect]) -> usize {
    effects.iter().filter(|e| matches!(e, Effect::Plan(..))).count()
}

fn wishes(effects: &[Effect]) -> Vec<&StoreRequest> {
    let store = effects.iter().filter_map(|e| if let Effect::Store(r) = e { Some(r) } else { None });
    store.filter(|r| matches!(r, StoreRequest::Wish { .. } | StoreRequest::MoveDone { .. })).collect()
}

fn balance_events(effects: &[Effect]) -> Vec<(&str, bool)> {
    let told = |e: &'_ Effect| match e {
        Effect::Event(event) => match &event.kind {
            EventKind::Balance { server, moves, .. } => Some((server.clone(), *moves)),
            _ => None,
        },
        _ => None,
    };
    effects.iter().filter_map(told).map(|(s, m)| (String::leak(s) as &str, m)).collect()
}

fn two_of_b() -> Vec<(VirtualServer, &'static str)> {
    vec![(server("x"), "b"), (server("y"), "b"), (server("z"), "a")]
}

#[test]
fn the_master_plans_now_and_then_and_only_the_master() {
    let mut world = World::new(BalanceMode::Advise, &two_of_b(), "a");
    assert_eq!(plans(&world.pass(1)), 1);
    assert_eq!(plans(&world.pass(30)), 0, "the plan has not come yet");
    assert_eq!(world.tell(Input::Planned(Vec::new())), []);
    assert_eq!(plans(&world.pass(1)), 1);
    let mut world = World::new(BalanceMode::Advise, &two_of_b(), "c");
    assert_eq!(plans(&world.pass(30)), 0);
    let mut world = World::new(BalanceMode::Off, &two_of_b(), "a");
    assert_eq!(plans(&world.pass(30)), 0);
}

#[test]
fn advice_is_told_once_until_it_is_another() {
    let mut world = World::new(BalanceMode::Advise, &two_of_b(), "a");
    let mut told = Vec::new();
    for to in ["c", "c", "a", "c"] {
        world.pass(6);
        let effects = world.tell(Input::Planned(vec![planned("x", "b", to)]));
        assert_eq!(wishes(&effects), Vec::<&StoreRequest>::new());
        told.push(balance_events(&effects).len());
        assert_eq!(world.machine.snapshot(world.now).advice.len(), 1);
    }
    assert_eq!(told, [1, 0, 1, 1]);
    world.pass(6);
    world.tell(Input::Planned(Vec::new()));
    assert_eq!(world.machine.snapshot(world.now).advice, []);
}

#[test]
fn moves_are_made_one_after_the_other_fenced_by_the_masters_record_and_then_the_cluster_rests() {
    let mut world = World::new(BalanceMode::On, &two_of_b(), "a");
    assert_eq!(plans(&world.pass(300)), 0, "another master may have moved something just before");
    assert_eq!(plans(&world.pass(1)), 1);
    let both = vec![planned("x", "b", "c"), planned("y", "b", "a")];
    let effects = world.tell(Input::Planned(both));
    let wish = |to: &str| Wish { to: to.into(), reason: Reason::Balance, master: Some(1) };
    let master = 1;
    let asked = |s: &str, to: &str| StoreRequest::Wish { server: s.into(), master, wish: wish(to) };
    assert_eq!(wishes(&effects), [&asked("x", "c")]);
    assert_eq!(balance_events(&effects), [("x", true)]);

    world.changed(Entry::Move("x".into(), Some(wish("c"))));
    assert_eq!(wishes(&world.pass(3)), Vec::<&StoreRequest>::new(), "the first one is under way");
    world.changed(Entry::Move("x".into(), None));
    world.changed(Entry::Record("x".into(), Some(Record::of("c", 1, 1, 2))));
    assert_eq!(wishes(&world.pass(1)), [&asked("y", "a")]);
    let touch = world.changed(Entry::Record("y".into(), Some(Record::of("a", 1, 1, 2))));
    world.answer(&touch);
    let effects = world.pass(299);
    assert_eq!((plans(&effects), wishes(&effects).len()), (0, 0), "the cluster rests");
    assert_eq!(plans(&world.pass(6)), 1);
}

#[test]
fn a_move_that_is_not_made_ends_what_was_to_follow() {
    let mut world = World::new(BalanceMode::On, &two_of_b(), "a");
    world.pass(301);
    world.tell(Input::Planned(vec![planned("x", "b", "c"), planned("y", "b", "a")]));
    assert_eq!(wishes(&world.pass(120)), Vec::<&StoreRequest>::new());
}

#[test]
fn nothing_is_planned_while_something_is_to_be_taken_or_moved() {
    let mut world = World::new(BalanceMode::Advise, &two_of_b(), "a");
    world.changed(Entry::Move("x".into(), Some(Wish::administrator("c"))));
    assert_eq!(plans(&world.pass(20)), 0);
    world.changed(Entry::Move("x".into(), None));
    let released = Some(Release { next: Some("c".into()), reason: Reason::Drain, stopping: None });
    world.changed(Entry::Record("x".into(), Some(Record { released, ..Record::of("b", 1, 1, 1) })));
    assert_eq!(plans(&world.tell(Input::Sample(Sample { over: SECOND, ..Sample::default() }))), 0);
    world.changed(Entry::Record("x".into(), Some(Record::of("c", 1, 1, 2))));
    assert_eq!(plans(&world.pass(1)), 1);
}

#[test]
fn what_nobody_can_take_keeps_nothing_else_from_being_evened_out() {
    let pinned = VirtualServer { migrate: false, ..server("p") };
    let mut world = World::new(BalanceMode::Advise, &[(server("x"), "a"), (pinned, "b")], "a");
    world.pass(1);
    world.tell(Input::Planned(Vec::new()));
    b_dies(&mut world);
    let mut plans_of = |seconds| {
        let mut all = 0;
        for _ in 0..seconds {
            world.now = world.now + SECOND;
            let b = ms(0);
            world.hear(b);
            all += plans(&world.tell(Input::Sample(Sample { over: SECOND, ..Sample::default() })));
        }
        all
    };
    assert_eq!(plans_of(50), 0, "somebody may take it yet");
    assert_eq!(plans_of(20), 1);
}

/// `a` owns `x`, and the master, `c`, wants it on `b`.
fn wished(mode: BalanceMode, wish: &Wish) -> Vec<Effect> {
    let mut world = World::new(mode, &[(server("x"), "a")], "c");
    world.pass(2);
    world.changed(Entry::Move("x".into(), Some(wish.clone())))
}

#[test]
fn the_owner_carries_out_what_the_present_master_wants_and_drops_what_an_earlier_one_wanted() {
    let wish = |master| Wish { to: "b".into(), reason: Reason::Balance, master: Some(master) };
    let leaves = |effects: &[Effect]| {
        effects.iter().any(|e| {
            matches!(e, Effect::Event(event) if matches!(&event.kind,
                EventKind::Leaving { to, reason: Reason::Balance, .. } if to == "b"))
        })
    };
    assert!(leaves(&wished(BalanceMode::On, &wish(1))));
    for (mode, master) in [(BalanceMode::On, 7), (BalanceMode::Advise, 1), (BalanceMode::Off, 1)] {
        let effects = wished(mode, &wish(master));
        let done = StoreRequest::MoveDone { server: "x".into(), revision: 3 };
        assert!(!leaves(&effects), "{mode:?}, {master}");
        assert_eq!(wishes(&effects), [&done], "{mode:?}, {master}");
    }
}

/// A majority calls `b` dead.
fn b_dies(world: &mut World) -> Vec<Effect> {
    world.now = world.now + SECOND;
    let now = world.now;
    world.hear(now);
    world.now = now + Duration::from_millis(100);
    let mut effects = world.hear(now);
    for (voter, about) in [(0, 1), (2, 1)] {
        effects.extend(world.tell(Input::Verdict { voter, about, incarnation: 1 }));
    }
    effects
}

/// Who gets what when `b` is dead, as `a` sees it: what it takes at once.
fn heirs(servers: &[(VirtualServer, &str)], loads: &[(&str, &[(&str, u32)])]) -> Vec<String> {
    let mut world = World::new(BalanceMode::Off, servers, "c");
    for (node, servers) in loads {
        world.load(node, servers);
    }
    let effects = b_dies(&mut world);
    let taken = effects.into_iter().filter_map(|e| match e {
        Effect::Store(StoreRequest::Write { server, record, .. }) if record.epoch == 2 => Some(server),
        _ => None,
    });
    taken.filter(|s| s != MASTER).collect()
}

/// The store has written the take, and nobody heard so: it is read, touched, and told like any other.
#[test]
fn a_take_whose_answer_was_lost_is_told_all_the_same() {
    let only = VirtualServer { only_on: vec!["a".into(), "b".into()], ..server("x") };
    let mut world = World::new(BalanceMode::Off, &[(only, "b")], "c");
    let asked = b_dies(&mut world);
    let take = asked.iter().find_map(|e| match e {
        Effect::Store(StoreRequest::Write { record, .. }) => Some(record.clone()),
        _ => None,
    });
    let current = take.map(|record| (record, 70));
    world.revision = 70;
    let touch = world.tell(Input::Store(StoreInput::NotWritten { server: "x".into(), current }));
    let [Effect::Store(StoreRequest::Write { server, expected: 70, record })] = &touch[..] else {
        panic!("{touch:?}")
    };
    let (server, record, revision) = (server.clone(), record.clone(), 71);
    let told = world.tell(Input::Store(StoreInput::Written { server, record, revision }));
    let taken = told.iter().find_map(|e| match e {
        Effect::Event(event) => match &event.kind {
            EventKind::Taken { reason, from, epoch, .. } => Some((*reason, from.clone(), *epoch)),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(taken, Some((Reason::NodeDead, Some("b".into()), 2)), "{told:?}");
}

#[test]
fn a_dead_nodes_servers_go_where_load_is_least_and_two_of_them_to_two_nodes() {
    let of_b = [(server("x"), "b"), (server("y"), "b")];
    let with = |more: &[(VirtualServer, &'static str)]| [&of_b[..], more].concat();
    // c has next to nothing: by load alone it would get both.
    let servers = with(&[(server("m"), "a"), (server("n"), "c")]);
    let loads: [(&str, &[_]); 3] = [("a", &[("m", 60)]), ("b", &[("x", 10), ("y", 10)]), ("c", &[("n", 1)])];
    assert_eq!(heirs(&servers, &loads), ["y"]);
    // The heavier one, first in line, goes to the node with less to do, whatever their numbers.
    let servers = with(&[(server("m"), "a"), (server("n"), "c"), (server("o"), "c"), (server("p"), "c")]);
    let loads: [(&str, &[_]); 3] =
        [("a", &[("m", 60)]), ("b", &[("x", 30), ("y", 10)]), ("c", &[("n", 1), ("o", 1), ("p", 1)])];
    assert_eq!(heirs(&servers, &loads), ["y"]);
    let loads: [(&str, &[_]); 3] =
        [("a", &[("m", 1)]), ("b", &[("x", 30), ("y", 10)]), ("c", &[("n", 20), ("o", 20), ("p", 20)])];
    assert_eq!(heirs(&servers, &loads), ["x"]);
}

#[test]
fn what_may_not_be_together_is_not_taken_together() {
    let apart = VirtualServer { never_with: vec!["m".into()], ..server("x") };
    let servers = [(apart, "b"), (server("m"), "a"), (server("n"), "c")];
    let loads: [(&str, &[_]); 2] = [("a", &[]), ("c", &[("n", 90)])];
    assert_eq!(heirs(&servers, &loads), Vec::<String>::new());
    let only = VirtualServer { only_on: vec!["b".into(), "a".into()], ..server("x") };
    let servers = [(only, "b"), (server("m"), "a"), (server("n"), "c")];
    let loads: [(&str, &[_]); 2] = [("a", &[("m", 90)]), ("c", &[])];
    assert_eq!(heirs(&servers, &loads), ["x"]);
}

#[test]
fn a_load_that_comes_along_counts_until_this_node_has_measured_enough() {
    let mut world = World::new(BalanceMode::Off, &[(server("x"), "b")], "c");
    world.load("b", &[("x", 40)]);
    world.pass(1);
    let released = Some(Release { next: Some("a".into()), reason: Reason::Balance, stopping: None });
    let asked =
        world.changed(Entry::Record("x".into(), Some(Record { released, ..Record::of("b", 1, 1, 1) })));
    world.answer(&asked);
    let load = |world: &World| world.machine.snapshot(world.now).virtual_servers[0].load;
    assert_eq!(load(&world), 0.4);
    world.pass(30);
    assert!((load(&world) - 0.2).abs() < 1e-9, "half of it after a half-life: {}", load(&world));
}

/// What each resource makes of a virtual server: a port of 100 bytes per second, a thousandth of its packets, and so on.
#[test]
fn the_scarcest_thing_decides() {
    let mut world = World::new(BalanceMode::Off, &[(server("x"), "a"), (server("y"), "a")], "c");
    let address = |last: u8| std::net::IpAddr::from([10, 0, 0, last]);
    let mut measure = |rx_bytes, tx_bytes, packets, cpu| {
        let traffic = BTreeMap::from([
            (address(33), Traffic { rx_bytes, tx_bytes, packets }),
            (address(34), Traffic { packets: 1000, ..Traffic::default() }),
        ]);
        let host = Some(crate::HostSample { cpu, ..crate::HostSample::default() });
        let speed = BTreeMap::from([(IfIndex(1), 1_000_000)]);
        for _ in 0..3000 {
            world.now = world.now + SECOND;
            world.hear(world.now);
            let (traffic, speed) = (traffic.clone(), speed.clone());
            world.tell(Input::Sample(Sample { over: SECOND, traffic, host, speed, ..Sample::default() }));
        }
        let load = world.machine.snapshot(world.now).virtual_servers[0].load;
        (load * 1000.0).round() / 1000.0
    };
    assert_eq!(measure(300_000, 100_000, 3000, 0), 0.3, "the busier direction of the port");
    assert_eq!(measure(100_000, 400_000, 3000, 0), 0.4);
    assert_eq!(measure(100_000, 400_000, 500_000, 0), 0.5, "half of a million packets");
    assert_eq!(
        measure(100_000, 400_000, 9000, 1000),
        0.9,
        "its part of all packets is its part of the processors"
    );
    assert_eq!(measure(0, 0, 0, 1000), 0.0);
}

#[test]
fn loads_are_told_when_they_have_changed_and_not_all_the_time() {
    let mut world = World::new(BalanceMode::Off, &[(server("x"), "a")], "c");
    let told = |effects: &[Effect]| {
        effects.iter().filter(|e| matches!(e, Effect::Store(StoreRequest::PublishLoad(_)))).count()
    };
    assert_eq!(told(&world.pass(1)), 1);
    assert_eq!(told(&world.pass(100)), 0);
    // The key is gone: somebody removed it.
    world.changed(Entry::Load("a".into(), None));
    assert_eq!(told(&world.pass(2)), 1);
}
