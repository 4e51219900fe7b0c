//! Whole effects where a node that may have a virtual server mounted is to be fenced. `a` is the node that is looked at.

use std::time::Duration;

use super::resources_world::*;
use super::tests::node;
use crate::cluster::{Entry, Record, Release, StoreInput, StoreRequest};
use crate::{Effect, EventKind, Input, Reason, ResourceState, StorageState};

impl World {
    /// The others call this one dead.
    pub(super) fn die(&mut self, about: u8) -> Vec<Effect> {
        let voters = [0, 1, 2].into_iter().filter(|v| *v != about);
        let mut said = voters.map(|voter| self.tell(Input::Verdict { voter, about, incarnation: 1 }));
        (said.next(), said.next()).1.expect("two voters")
    }

    fn answered(&mut self, node: &str, failed: Option<&str>) -> Vec<Effect> {
        let failed = failed.map(str::to_owned);
        self.tell(Input::Fenced { server: "vs".into(), node: node.into(), incarnation: 1, failed })
    }

    fn fenced(&self, node: &str, seconds: f64) -> Effect {
        self.event(EventKind::Fenced { server: "vs".into(), node: node.into(), seconds })
    }

    fn not_fenced(&self, node: &str, what: &str) -> Effect {
        self.event(EventKind::FenceFailed { server: "vs".into(), node: node.into(), what: what.into() })
    }

    pub(super) fn why(&self) -> Option<String> {
        self.machine.snapshot(self.now).virtual_servers[0].why.clone()
    }

    /// It has taken it from `b`, which is dead, and has that fenced.
    fn fencing() -> World {
        let mut world = World::idle_fenced(Record::of("b", 1, 1, 1));
        let effects = world.die(1);
        assert_eq!(effects.last(), Some(&world.write(taken(&["b"]))));
        let effects = world.written(taken(&["b"]));
        assert_eq!((&effects[0], effects.len()), (&entitle(Some(1)), 3), "and it says that it has taken it");
        assert_eq!(effects[2], fence("b"));
        world
    }
}

fn fence(node: &str) -> Effect {
    Effect::Fence { server: "vs".into(), node: node.into(), incarnation: 1 }
}

pub(super) fn entitle(incarnation: Option<u64>) -> Effect {
    Effect::Entitle { server: "vs".into(), incarnation }
}

pub(super) fn unfenced(nodes: &[&str], record: Record) -> Record {
    Record { unfenced: nodes.iter().map(|n| ((*n).to_owned(), 1)).collect(), ..record }
}

fn taken(nodes: &[&str]) -> Record {
    unfenced(nodes, Record { taken_from: Some(("b".into(), 1)), ..own(2) })
}

/// Released by `a` for `b` although it could not be stopped.
pub(super) fn stuck(reason: Reason, record: Record) -> Record {
    let released = Some(Release { next: Some("b".into()), reason, stopping: None });
    Record { released, ..record }
}

#[test]
fn it_is_taken_then_its_owner_is_fenced_then_that_is_written_then_it_is_started() {
    let mut world = World::fencing();
    assert_eq!((world.state().as_str(), world.why().as_deref()), ("starting", Some("to be fenced first: b")));
    assert_eq!(world.pass(3 * SECOND), [], "once");
    let effects = world.answered("b", None);
    assert_eq!(effects, [world.fenced("b", 3.0), world.write(taken(&[]))]);
    assert_eq!(world.hear(true), [], "not before that is written");
    assert_eq!(world.written(taken(&[])), [start_it()]);
    assert_eq!(world.why(), None);
    let effects = world.report(ResourceState::Running);
    assert_eq!(effects, [vec![world.started(0.0)], world.served(2)].concat());
}

#[test]
fn a_node_that_can_not_be_fenced_is_tried_again_and_nothing_is_started_or_given_up() {
    let mut world = World::fencing();
    for _ in 0..3 {
        let effects = world.answered("b", Some("no answer"));
        assert_eq!(effects, [world.not_fenced("b", "no answer")]);
        assert_eq!(world.state(), "failed");
        assert_eq!(world.why().as_deref(), Some("to be fenced first: b; b could not be: no answer"));
        assert_eq!(world.pass(Duration::from_millis(9999)), []);
        assert_eq!(world.pass(Duration::from_millis(1)), [fence("b")]);
    }
    let effects = world.answered("b", None);
    assert_eq!(effects, [world.fenced("b", 30.0), world.write(taken(&[]))]);
    assert_eq!(world.written(taken(&[])), [start_it()]);
}

#[test]
fn what_could_not_be_handed_on_has_failed() {
    let mut world = World::fencing();
    let effects = world.tell(Input::Failed(Box::new(fence("b")), "too much".into()));
    assert_eq!(effects.last(), Some(&world.not_fenced("b", "too much")));
    assert_eq!(world.pass(10 * SECOND), [fence("b")]);
}

#[test]
fn whoever_takes_it_keeps_the_list_and_adds_the_owner_that_has_not_released_it() {
    let mut world = World::idle_fenced(unfenced(&["c"], Record::of("b", 1, 1, 1)));
    let effects = world.die(1);
    assert_eq!(effects.last(), Some(&world.write(taken(&["c", "b"]))));
    let effects = world.written(taken(&["c", "b"]));
    assert_eq!(effects[2..], [fence("c"), fence("b")]);
    assert_eq!(world.answered("c", Some("no")), [world.not_fenced("c", "no")]);
    let effects = world.answered("b", None);
    assert_eq!(effects, [world.fenced("b", 0.0), world.write(taken(&["c"]))]);
    assert_eq!(world.written(taken(&["c"])), [], "a successor does not fence b again");
    assert_eq!(world.pass(10 * SECOND), [fence("c")]);
    let effects = world.answered("c", None);
    assert_eq!(effects, [world.fenced("c", 10.0), world.write(taken(&[]))]);
    assert_eq!(world.written(taken(&[])), [start_it()]);

    // One that has released it needn't be fenced; those before it do.
    for before in [&[][..], &["c"]] {
        let mut world = World::idle_fenced(Record::of("b", 1, 1, 1));
        let record = unfenced(before, released("b", 1, "a", Reason::Drain));
        let effects = world.changed(Entry::Record("vs".into(), Some(record)));
        assert_eq!(effects, [world.write(unfenced(before, own(2)))]);
        let effects = world.written(unfenced(before, own(2)));
        let next = if before.is_empty() { start_it() } else { fence("c") };
        assert_eq!(effects[2..], [next]);
    }
}

#[test]
fn where_nobody_needs_to_be_fenced_it_is_as_ever() {
    let mut world = World::idle(Record::of("b", 1, 1, 1));
    let effects = world.die(1);
    assert_eq!(effects.last(), Some(&world.write(taken(&[]))));
    let effects = world.written(taken(&[]));
    assert_eq!(effects[1..], [start_it()]);
}

#[test]
fn a_predecessor_that_comes_back_and_says_that_it_is_stopped_needs_no_fencing() {
    for answer in [None, Some("no answer")] {
        let mut world = World::fencing();
        let effects = world.changed(Entry::Record("vs".into(), Some(taken(&[]))));
        assert_eq!(effects, [world.write(taken(&[]))], "R6: touched again");
        assert_eq!(world.answered("b", answer), [], "nobody waits for it any more");
        assert_eq!(world.written(taken(&[])), [start_it()]);
    }
    // After it was fenced, while that is being written.
    let mut world = World::fencing();
    world.answered("b", None);
    let current = Some((taken(&[]), world.revision + 1));
    world.revision += 1;
    let effects = world.tell(Input::Store(StoreInput::NotWritten { server: "vs".into(), current }));
    assert_eq!(effects, [world.write(taken(&[]))]);
    assert_eq!(world.written(taken(&[])), [start_it()]);
}

#[test]
fn a_write_whose_answer_is_lost_starts_nothing_and_fences_nobody_again() {
    let mut world = World::fencing();
    let effects = world.answered("b", None);
    let Some(Effect::Store(request)) = effects.last().cloned() else { panic!("{effects:?}") };
    let failed = StoreInput::Failed(request.clone(), "no answer".into());
    world.tell(Input::Store(failed));
    assert_eq!(world.pass(Duration::from_millis(100)), [Effect::Store(request)]);
    assert_eq!(world.written(taken(&[])), [start_it()]);
}

#[test]
fn an_answer_of_an_earlier_ownership_does_not_count() {
    let mut world = World::fencing();
    // `b` gets it, has it mounted, and dies, all while the first order is still under way.
    let effects = world.changed(Entry::Record("vs".into(), Some(Record::of("b", 1, 1, 3))));
    assert_eq!(effects.first(), Some(&entitle(None)));
    let Some(Effect::Store(StoreRequest::Write { record, .. })) = effects.last() else {
        panic!("{effects:?}")
    };
    let record = record.clone();
    assert_eq!((record.epoch, &record.unfenced), (4, &vec![("b".to_owned(), 1)]));
    let effects = world.written(record.clone());
    assert!(!effects.contains(&fence("b")), "it is under way: {effects:?}");
    assert_eq!(world.answered("b", None), [fence("b")], "asked again");
    let effects = world.answered("b", None);
    assert_eq!(effects, [world.fenced("b", 0.0), world.write(Record { unfenced: Vec::new(), ..record })]);
}

#[test]
fn without_a_lease_nobody_is_fenced() {
    let mut world = World::idle_fenced(Record::of("b", 1, 1, 1));
    world.die(1);
    world.hear(false);
    let effects = world.written(taken(&["b"]));
    assert!(!effects.contains(&fence("b")), "{effects:?}");
    let effects = world.hear(true);
    assert_eq!(effects, [world.event(EventKind::LeaseBegins), fence("b")]);
    world.hear(false);
    let effects = world.answered("b", Some("no"));
    assert_eq!(effects, [world.not_fenced("b", "no")]);
    world.now = world.now + 20 * SECOND;
    assert_eq!(world.hear(false), []);
    let effects = world.hear(true);
    assert_eq!(effects, [world.event(EventKind::LeaseBegins), fence("b")]);
}

#[test]
fn what_is_to_be_fenced_first_is_moved_with_its_list() {
    let mut world = World::fencing();
    let effects = world.changed(Entry::Drain("a".into(), true));
    let draining = world.event(EventKind::Draining { node: "a".into() });
    let released = Some(Release { next: Some("c".into()), reason: Reason::Drain, stopping: None });
    let record = Record { released, ..taken(&["b"]) };
    let write = StoreRequest::Write { server: "vs".into(), expected: 2, record };
    let leaving = world.leaving("c", Reason::Drain);
    assert_eq!(effects, [draining, leaving, entitle(None), Effect::Store(write)]);
}

#[test]
fn one_in_the_list_says_when_it_is_stopped() {
    let theirs = || unfenced(&["a", "c"], Record::of("b", 1, 1, 2));
    let mut world = World::start(fenced(), false, true, Some(theirs()));
    assert_eq!(world.read, [world.event(EventKind::Deposed { server: "vs".into() }), stop()]);
    assert_eq!(world.report(ResourceState::StopFailed("busy".into())), [world.failed("busy")]);
    assert_eq!(world.pass(10 * SECOND), [], "not before");
    let shorter = || unfenced(&["c"], Record::of("b", 1, 1, 2));
    let write = |revision| {
        let (server, record) = ("vs".to_owned(), shorter());
        Effect::Store(StoreRequest::Write { server, expected: revision, record })
    };
    let effects = world.report(ResourceState::Stopped);
    assert_eq!(effects, [world.stopped(10.0), write(1)]);
    // The owner has touched it meanwhile.
    let current = Some((theirs(), 7));
    let effects = world.tell(Input::Store(StoreInput::NotWritten { server: "vs".into(), current }));
    assert_eq!(effects, [write(7)]);
    world.revision = 7;
    assert_eq!(world.written(shorter()), []);
    assert_eq!(world.pass(10 * SECOND), []);
}

#[test]
fn one_in_the_list_does_not_take_it_before_it_has_said_so() {
    let theirs = unfenced(&["a"], Record::of("b", 1, 1, 2));
    let mut world = World::start(fenced(), false, false, Some(theirs));
    let dead = world.die(1);
    assert_eq!(dead.len(), 2, "it may be mounted here: {dead:?}");
    let effects = world.report(ResourceState::Stopped);
    let shorter = Record::of("b", 1, 1, 2);
    assert_eq!(effects, [world.write(shorter.clone())]);
    let effects = world.written(shorter);
    let record = unfenced(&["b"], Record { taken_from: Some(("b".into(), 1)), ..own(3) });
    assert_eq!(effects, [world.write(record)]);
}

#[test]
fn what_has_failed_and_can_not_be_stopped_is_released_all_the_same() {
    for is_fenced in [true, false] {
        let definition = if is_fenced { fenced() } else { definition() };
        let mut world = World::start(definition, true, true, Some(own(1)));
        assert_eq!(world.started.contains(&entitle(Some(1))), is_fenced);
        world.report(ResourceState::Broken("nfsd hangs".into()));
        assert_eq!(world.cleared(), [stop(), world.leaving("b", Reason::ServiceFailed)]);
        let effects = world.report(ResourceState::StopFailed("the unmount hangs".into()));
        let list: &[&str] = if is_fenced { &["a"] } else { &[] };
        let record = unfenced(list, stuck(Reason::ServiceFailed, failed_on(&["a"], own(1))));
        let told = vec![world.failed("the unmount hangs")];
        let disowned = vec![entitle(None); usize::from(is_fenced)];
        assert_eq!(effects, [told, disowned, vec![world.write(record.clone())]].concat());
        assert_eq!(world.written(record.clone()), []);
        world.now = world.now + SECOND;
        let effects = world.report(ResourceState::Stopped);
        let shorter = Record { unfenced: Vec::new(), ..record };
        let said = vec![world.write(shorter); usize::from(is_fenced)];
        assert_eq!(effects, [vec![world.stopped(1.0)], said].concat());
    }
}

#[test]
fn what_can_not_be_stopped_is_drained_only_when_its_storage_is_lost() {
    let mut world = World::start(fenced(), true, true, Some(own(1)));
    world.changed(Entry::Drain("a".into(), true));
    assert_eq!(world.cleared(), [stop()]);
    world.report(ResourceState::StopFailed("busy".into()));
    assert_eq!(world.pass(100 * SECOND), []);
    world.tell(Input::Storage { unit: "array".into(), state: StorageState::Hung });
    assert_eq!(world.pass(Duration::from_millis(999)), []);
    let record = unfenced(&["a"], stuck(Reason::StorageLost, own(1)));
    let write = StoreRequest::Write { server: "vs".into(), expected: 1, record };
    assert_eq!(world.pass(Duration::from_millis(1)), [entitle(None), Effect::Store(write)]);
}

#[test]
fn what_hung_when_the_lease_was_gone_is_given_up_with_the_next_one() {
    let mut world = World::start(fenced(), true, true, Some(own(1)));
    world.hear(false);
    world.now = world.now + 2 * SECOND;
    assert_eq!(world.tell(Input::Wake), [unserved().to_vec(), vec![stop()]].concat());
    world.cleared();
    // Without a lease it is said already; who takes it then has a lease.
    let effects = world.report(ResourceState::StopFailed("busy".into()));
    let record = unfenced(&["a"], stuck(Reason::ServiceFailed, own(1)));
    let leaving = world.leaving("b", Reason::ServiceFailed);
    assert_eq!(effects, [world.failed("busy"), leaving, entitle(None), world.write(record)]);
}

#[test]
fn it_is_entitled_by_its_own_write_only_and_anew_as_another_incarnation() {
    // An agent restarts while they were being started.
    let mut world = World::start(fenced(), false, false, Some(own(1)));
    assert!(!world.started.contains(&entitle(Some(1))));
    assert_eq!(world.read, [world.write(own(1))]);
    assert_eq!(world.written(own(1)), [entitle(Some(1)), start_it()]);
    let mut world = World::start(fenced(), true, true, Some(own(1)));
    let second = Record { incarnation: 2, ..own(1) };
    let effects = world.tell(Input::Store(StoreInput::Incarnation(2)));
    assert_eq!(effects, [world.write(second.clone())]);
    let effects = world.written(second);
    let mark = Effect::Mark { server: "vs".into(), incarnation: Some(2) };
    assert_eq!(effects[..3], [Effect::Incarnation(2), mark, entitle(Some(2))]);
}

#[test]
fn a_deposed_owner_is_not_entitled_any_more() {
    let mut world = World::start(fenced(), true, true, Some(own(1)));
    let theirs = unfenced(&["a"], Record::of("b", 1, 1, 2));
    let effects = world.changed(Entry::Record("vs".into(), Some(theirs.clone())));
    let deposed = world.event(EventKind::Deposed { server: "vs".into() });
    assert_eq!(effects, [vec![deposed], unserved().to_vec(), vec![entitle(None), stop()]].concat());
    world.cleared();
    let effects = world.report(ResourceState::Stopped);
    let shorter = Record { unfenced: Vec::new(), ..theirs };
    assert_eq!(effects, [world.stopped(0.0), world.write(shorter)]);
}

#[test]
fn a_node_in_the_list_gets_nothing_and_others_show_what_they_wait_for() {
    let mut world = World::start(fenced(), true, true, Some(unfenced(&["b"], own(1))));
    // It was served before fencing was asked for: the list is of no use any more, and is left as it is.
    let effects = world.changed(Entry::Drain("a".into(), true));
    assert!(effects.contains(&world.leaving("c", Reason::Drain)), "{effects:?}");

    let theirs = unfenced(&["c"], Record::of("b", 1, 1, 2));
    let mut world = World::idle_fenced(theirs);
    world.changed(Entry::Node("c".into(), Some(node(true))));
    assert_eq!((world.state().as_str(), world.why().as_deref()), ("starting", Some("to be fenced first: c")));
}
