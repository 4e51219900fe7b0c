//! Whole effects where storage units are lost. `a` is the node that is looked at.

use std::time::Duration;

use super::fencing_tests::entitle;
use super::resources_world::*;
use super::tests::node;
use crate::cluster::{Entry, MASTER, NodeRecord, Record, StoreRequest, UnitRead, Wish};
use crate::config::{Failback, VirtualServer};
use crate::{Effect, Event, EventKind, Input, Reason, ResourceState, StorageState, Time};

impl World {
    fn storage(&mut self, state: StorageState) -> Vec<Effect> {
        self.tell(Input::Storage { unit: "array".into(), state })
    }

    fn unit(&self, state: &str, what: Option<&str>) -> Effect {
        let what = what.map(str::to_owned);
        self.event(EventKind::Storage { unit: "array".into(), state: state.into(), what })
    }

    fn lost_everywhere(&self) -> Effect {
        self.event(EventKind::StorageLostEverywhere { server: "vs".into(), unit: "array".into() })
    }

    /// Another node tells that it has read the unit since this one lost it at that time.
    fn reads(&mut self, name: &str, lost_at: Time) -> Vec<Effect> {
        let read_since = vec![UnitRead { unit: "array".into(), node: "a".into(), lost_at }];
        self.changed(Entry::Node(name.into(), Some(NodeRecord { read_since, ..node(true) })))
    }

    /// Another node tells that it has lost the unit at that time.
    fn loses(&mut self, name: &str, lost_at: Time) -> Vec<Effect> {
        let lost = ("array".to_owned(), lost_at);
        let record = NodeRecord { lost_units: vec!["array".into()], lost_at: [lost].into(), ..node(true) };
        self.changed(Entry::Node(name.into(), Some(record)))
    }

    /// Another node tells that it has lost the unit, or has it again.
    fn other(&mut self, name: &str, lost: bool) -> Vec<Effect> {
        let lost_units = if lost { vec!["array".into()] } else { Vec::new() };
        self.changed(Entry::Node(name.into(), Some(NodeRecord { lost_units, ..node(true) })))
    }

    fn fenced_serving() -> World {
        World::start(fenced(), true, true, Some(own(1)))
    }
}

fn goes_to(effects: &[Effect]) -> Option<(&str, Reason)> {
    effects.iter().find_map(|e| match e {
        Effect::Event(Event { kind: EventKind::Leaving { to, reason, .. }, .. }) => {
            Some((to.as_str(), *reason))
        }
        _ => None,
    })
}

const ALMOST: Duration = Duration::from_millis(999);
const REST: Duration = Duration::from_millis(1);

#[test]
fn what_has_lost_its_storage_goes_to_a_node_that_reaches_it() {
    let mut world = World::fenced_serving();
    let errors = StorageState::Errors("Input/output error".into());
    assert_eq!(world.storage(errors), [world.unit("errors", Some("Input/output error"))]);
    assert_eq!(world.storage(StorageState::Hung), [world.unit("hung", None)]);
    assert_eq!(world.storage(StorageState::Hung), [], "no news");
    assert_eq!(world.pass(ALMOST), [], "others may be about to say the same");
    let effects = world.pass(REST);
    assert_eq!(effects, [vec![world.leaving("b", Reason::StorageLost)], unserved().to_vec()].concat());
    assert_eq!(world.cleared(), [stop()]);
    let effects = world.report(ResourceState::Stopped);
    let record = released("a", 1, "b", Reason::StorageLost);
    let stopping = Some(Duration::ZERO);
    let release = record.released.map(|r| crate::cluster::Release { stopping, ..r });
    let record = Record { released: release, ..own(1) };
    assert_eq!(effects, [world.stopped(0.0), entitle(None), world.write(record)]);
}

#[test]
fn what_others_need_to_know_is_told() {
    let mut world = World::fenced_serving();
    world.published = None;
    let tell = |world: &mut World, state| {
        world.storage(state);
        world.published.take().map(|node| node.lost_units)
    };
    assert_eq!(tell(&mut world, StorageState::Good), None, "nobody has doubted it");
    assert_eq!(tell(&mut world, StorageState::Missing), Some(vec!["array".to_owned()]));
    assert_eq!(tell(&mut world, StorageState::Hung), None);
    assert_eq!(tell(&mut world, StorageState::Good), Some(Vec::new()));
    assert_eq!(world.pass(10 * SECOND), []);
}

#[test]
fn what_another_node_has_read_since_goes_there_at_once() {
    let mut world = World::fenced_serving();
    world.pass(SECOND);
    let lost_at = world.now;
    world.storage(StorageState::Hung);
    assert_eq!(
        world.published.clone().map(|node| node.lost_at),
        Some([("array".to_owned(), lost_at)].into())
    );
    assert_eq!(goes_to(&world.reads("c", lost_at)), None, "the best one has not said");
    assert_eq!(goes_to(&world.reads("b", Time(lost_at.0 - 1))), None, "that was another loss");
    let effects = world.reads("b", lost_at);
    assert_eq!(effects, [vec![world.leaving("b", Reason::StorageLost)], unserved().to_vec()].concat());
    assert_eq!(world.cleared(), [stop()]);
    // What could not be stopped is released all the same, for whoever takes it fences this node.
    let effects = world.report(ResourceState::StopFailed("it hangs".into()));
    let unfenced = vec![("a".to_owned(), 1)];
    let record = Record { unfenced, ..released("a", 1, "b", Reason::StorageLost) };
    let write = StoreRequest::Write { server: "vs".into(), expected: 1, record };
    assert_eq!(effects, [world.failed("it hangs"), entitle(None), Effect::Store(write)]);
}

/// It may have been slow for a moment, and be written to by two nodes.
#[test]
fn where_nobody_is_fenced_a_loss_has_to_last() {
    let mut world = World::start(VirtualServer { fenced: false, ..fenced() }, true, true, Some(own(1)));
    world.pass(SECOND);
    let lost_at = world.now;
    world.storage(StorageState::Hung);
    assert_eq!(goes_to(&world.reads("b", lost_at)), None);
    assert_eq!(goes_to(&world.pass(ALMOST)), None);
    assert_eq!(goes_to(&world.pass(REST)), Some(("b", Reason::StorageLost)));
}

#[test]
fn what_the_best_node_has_lost_too_goes_to_the_next_one_that_has_read_it() {
    let mut world = World::fenced_serving();
    world.storage(StorageState::Hung);
    let lost_at = world.now;
    assert_eq!(goes_to(&world.reads("c", lost_at)), None);
    assert_eq!(goes_to(&world.other("b", true)), Some(("c", Reason::StorageLost)));
}

#[test]
fn what_others_have_lost_is_read_for_them() {
    let mut world = World::fenced_serving();
    let read = |asked| vec![Effect::ReadStorage { unit: "array".into(), asked }];
    let answer = |world: &mut World, asked| {
        world.published = None;
        assert_eq!(world.tell(Input::StorageRead { unit: "array".into(), asked }), []);
        let read = |node: NodeRecord| node.read_since.into_iter().map(|r| (r.node, r.lost_at.0)).collect();
        world.published.take().map(read)
    };
    let first = world.now;
    assert_eq!(world.loses("b", Time(7)), read(first));
    assert_eq!(world.loses("b", Time(7)), [], "once");
    world.pass(SECOND);
    let second = world.now;
    assert_eq!(world.loses("c", Time(8)), read(second));
    assert_eq!(answer(&mut world, first), None, "it may have begun before c has said so");
    let both: Vec<(String, u64)> = vec![("b".into(), 7), ("c".into(), 8)];
    assert_eq!(answer(&mut world, second), Some(both));
    // A loss that is over, and another one.
    assert_eq!(world.other("b", false), []);
    assert_eq!(world.published.take().expect("told").read_since.len(), 1);
    assert_eq!(world.loses("b", Time(9)), read(second));
    assert_eq!(answer(&mut world, second), Some(vec![("c".into(), 8), ("b".into(), 9)]));
    // What this node has lost itself it has not read, and is not asked for.
    world.storage(StorageState::Hung);
    assert_eq!(world.published.take().expect("told").read_since, []);
    assert_eq!(world.loses("c", Time(10)), []);
    assert_eq!(answer(&mut world, second), None);
    let told = world.storage(StorageState::Good);
    assert!(told.contains(&read(second)[0]), "{told:?}");
}

#[test]
fn a_short_loss_moves_nothing() {
    let mut world = World::fenced_serving();
    world.storage(StorageState::Hung);
    assert_eq!(world.pass(ALMOST), []);
    assert_eq!(world.storage(StorageState::Good), [world.unit("good", None)]);
    assert_eq!(world.pass(10 * SECOND), []);
}

#[test]
fn the_best_one_that_reaches_it_gets_it() {
    let mut world = World::fenced_serving();
    world.other("b", true);
    world.storage(StorageState::Missing);
    assert_eq!(goes_to(&world.pass(SECOND)), Some(("c", Reason::StorageLost)));

    // Also one where it has failed: here it has no storage.
    let mut world = World::start(fenced(), true, true, Some(failed_on(&["b"], own(1))));
    world.other("c", true);
    world.storage(StorageState::Missing);
    assert_eq!(goes_to(&world.pass(SECOND)), Some(("b", Reason::StorageLost)));
}

#[test]
fn what_may_not_move_stays() {
    let mut world = World::start(VirtualServer { migrate: false, ..fenced() }, true, true, Some(own(1)));
    world.storage(StorageState::Hung);
    assert_eq!(world.pass(10 * SECOND), []);
}

#[test]
fn what_is_lost_everywhere_stays_and_that_is_said_once() {
    let mut world = World::fenced_serving();
    assert_eq!(world.storage(StorageState::Hung), [world.unit("hung", None)]);
    world.other("b", true);
    assert_eq!(world.pass(Duration::from_millis(900)), []);
    assert_eq!(world.other("c", true), [], "in time");
    assert_eq!(world.pass(Duration::from_millis(99)), []);
    let effects = world.pass(REST);
    assert_eq!(effects, [world.lost_everywhere()]);
    assert_eq!(world.pass(100 * SECOND), [], "once, and nothing stops");
    assert_eq!(world.state(), "serving");
    // What fails there is not carried to and fro.
    world.report(ResourceState::Broken("read-only".into()));
    let effects = world.cleared();
    assert_eq!(goes_to(&effects), None);
    assert_eq!(effects[0], stop());
    world.written(failed_on(&["a"], own(1)));
    world.report(ResourceState::Stopped);
    assert_eq!(world.pass(60 * SECOND), [], "nor started where there is no storage");
    assert_eq!(world.why().as_deref(), Some("storage unit array is hung here"));
    // One that reaches it again gets it.
    let effects = world.other("c", false);
    assert_eq!(goes_to(&effects), Some(("c", Reason::StorageLost)));
}

#[test]
fn what_fails_when_its_storage_goes_waits_for_what_others_say_of_it() {
    let mut world = World::fenced_serving();
    world.storage(StorageState::Hung);
    world.report(ResourceState::Broken("it hangs".into()));
    let effects = world.cleared();
    assert_eq!((goes_to(&effects), &effects[0]), (None, &stop()));
    world.written(failed_on(&["a"], own(1)));
    assert_eq!(goes_to(&world.pass(ALMOST)), None);
    assert_eq!(goes_to(&world.pass(REST)), Some(("b", Reason::StorageLost)));
}

#[test]
fn without_the_store_it_stays_for_it_could_not_be_released() {
    let mut world = World::fenced_serving();
    world.tell(Input::Store(crate::cluster::StoreInput::Reachable(false)));
    world.storage(StorageState::Hung);
    assert_eq!(world.pass(10 * SECOND), []);
    let effects = world.tell(Input::Store(crate::cluster::StoreInput::Reachable(true)));
    assert_eq!(goes_to(&effects), Some(("b", Reason::StorageLost)));
}

#[test]
fn nothing_goes_to_a_node_that_has_lost_it() {
    let mut world = World::fenced_serving();
    world.other("b", true);
    let wish = Wish::administrator("b");
    assert_eq!(world.changed(Entry::Move("vs".into(), Some(wish))), []);
    assert_eq!(goes_to(&world.changed(Entry::Drain("a".into(), true))), Some(("c", Reason::Drain)));

    // Nor back, before it has had it for a while.
    let home = VirtualServer { preferred_nodes: vec!["b".into()], failback: Failback::Immediate, ..fenced() };
    let mut world = World::start(home, true, true, Some(own(1)));
    world.other("b", true);
    assert_eq!(world.pass(60 * SECOND), []);
    assert_eq!(world.other("b", false), []);
    assert_eq!(world.pass(9 * SECOND), []);
    assert_eq!(goes_to(&world.pass(SECOND)), Some(("b", Reason::Failback)));
}

#[test]
fn nobody_takes_what_nobody_reaches() {
    for rules in [true, false] {
        let mut world = World::idle_fenced(Record::of("b", 1, 1, 1));
        if rules {
            world.changed(Entry::Record(MASTER.into(), Some(own(2))));
        }
        world.other("c", true);
        world.storage(StorageState::Missing);
        let effects = world.die(1);
        let said: Vec<Effect> = rules.then(|| world.lost_everywhere()).into_iter().collect();
        assert_eq!(effects[2..], said, "by the master");
        assert_eq!(world.pass(60 * SECOND), []);
        let why = "no node that may have it reaches storage unit array";
        assert_eq!((world.state().as_str(), world.why().as_deref()), ("failed", Some(why)));
        let effects = world.storage(StorageState::Good);
        assert_eq!(effects.len(), 2, "{effects:?}");
        assert!(
            matches!(&effects[1], Effect::Store(StoreRequest::Write { record, .. }) if record.node == "a")
        );
    }
}

#[test]
fn a_node_that_has_lost_it_is_in_no_succession() {
    let mut world = World::idle_fenced(Record::of("b", 1, 1, 1));
    world.storage(StorageState::Missing);
    world.die(1);
    assert_eq!(world.pass(60 * SECOND), [], "c is there to take it");
}

#[test]
fn what_has_no_storage_is_not_started() {
    let mut world = World::start(fenced(), false, false, Some(own(1)));
    world.other("b", true);
    world.other("c", true);
    world.storage(StorageState::Hung);
    assert_eq!(world.written(own(1)), [entitle(Some(1))]);
    let effects = world.pass(10 * SECOND);
    assert_eq!(effects.len(), 1, "lost everywhere: {effects:?}");
    assert_eq!(
        (world.state().as_str(), world.why().as_deref()),
        ("starting", Some("storage unit array is hung here"))
    );
    assert_eq!(world.storage(StorageState::Good), [world.unit("good", None), start_it()]);
}

#[test]
fn what_the_planner_is_told() {
    let mut world = World::fenced_serving();
    world.other("b", true);
    let situation = world.machine.planning().situation;
    let storage: Vec<(&str, &[String])> =
        situation.nodes.iter().map(|n| (n.name.as_str(), n.storage.as_slice())).collect();
    let array = ["array".to_owned()];
    assert_eq!(storage, [("a", &array[..]), ("b", &[]), ("c", &array)]);
    assert_eq!(situation.servers[0].storage, array);
}
