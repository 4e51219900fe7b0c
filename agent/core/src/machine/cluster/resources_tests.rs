//! Whole effects where a virtual server has file systems and services. `a` is the node that is looked at, `b` and `c` are its
//! peers. What holds in whatever order things happen is in `resources_stories`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::resources_world::*;
use super::tests::{ms, node, start};
use crate::cluster::{Entry, NodeRecord, Record, Release, StoreInput, StoreRequest, Wish};
use crate::config::{Failback, VirtualServer};
use crate::{Effect, Event, EventKind, FailoverKind, Input, Machine, Reason, ResourceState, TakeTimes};

#[test]
fn it_is_taken_then_started_then_served() {
    let mut world = World::idle(Record::of("b", 1, 1, 1));
    let stopping = Some(Duration::from_millis(300));
    let release = Some(Release { next: Some("a".into()), reason: Reason::Drain, stopping });
    let effects = world
        .changed(Entry::Record("vs".into(), Some(Record { released: release, ..Record::of("b", 1, 1, 1) })));
    let seen = world.now;
    assert_eq!(effects, [world.write(own(2))]);
    world.now = world.now + Duration::from_millis(5);
    let times = TakeTimes {
        cause: seen - Duration::from_millis(300),
        detected: seen,
        decided: seen,
        stopped: Some(seen),
    };
    let taken = EventKind::Taken {
        server: "vs".into(),
        kind: FailoverKind::Move,
        reason: Reason::Drain,
        from: Some("b".into()),
        epoch: 2,
        times,
    };
    let taken = Effect::Event(Event { at: world.now, failover: Some(1), kind: taken });
    assert_eq!(world.written(own(2)), [taken, start_it()]);
    assert_eq!(world.state(), "starting");
    assert_eq!(world.hear(true), [], "it is under way");
    world.now = world.now + 2 * SECOND;
    world.hear(true);
    let effects = world.report(ResourceState::Running);
    assert_eq!(effects, [vec![world.started(2.0)], world.served(2)].concat());
    assert_eq!(world.state(), "serving");
}

#[test]
fn nothing_is_taken_that_has_not_been_stopped_here() {
    let mut world =
        World::start(definition(), false, false, Some(released("b", 1, "a", Reason::Administrator)));
    assert_eq!(world.read, [stop()], "half of it may run: who knows what an earlier agent left");
    assert_eq!(world.report(ResourceState::StopFailed("busy".into())), [world.failed("busy")]);
    let taken = world.report(ResourceState::Stopped);
    assert_eq!(taken, [world.write(own(2))]);
}

#[test]
fn where_it_can_not_be_started_it_is_given_up() {
    let mut world = World::starting();
    let effects = world.report(ResourceState::StartFailed("no such device".into()));
    let leaving = world.leaving("b", Reason::ServiceFailed);
    assert_eq!(effects, [world.failed("no such device"), stop(), leaving]);
    assert_eq!(world.state(), "stopping");
    world.now = world.now + SECOND;
    let effects = world.report(ResourceState::Stopped);
    assert_eq!(effects, [world.stopped(1.0), world.write(given_up("b", &["a"], 2, SECOND))]);
    let effects = world.written(given_up("b", &["a"], 2, SECOND));
    assert_eq!(effects, []);
}

#[test]
fn where_nobody_else_can_have_it_it_is_tried_again_and_told_once() {
    let mut world = World::starting();
    // They have failed there since it last ran.
    let effects = world.changed(Entry::Record("vs".into(), Some(failed_on(&["c", "b"], own(2)))));
    assert_eq!(effects, [world.write(failed_on(&["c", "b"], own(2)))], "R6: touched again");
    assert_eq!(world.written(failed_on(&["c", "b"], own(2))), []);
    let all = failed_on(&["c", "b", "a"], own(2));
    let effects = world.report(ResourceState::StartFailed("no".into()));
    assert_eq!(effects, [world.failed("no"), stop(), world.write(all.clone())]);
    assert_eq!(world.written(all.clone()), []);
    assert_eq!(world.report(ResourceState::Stopped), [world.stopped(0.0)]);
    assert_eq!(world.state(), "failed");

    assert_eq!(world.pass(29 * SECOND), []);
    assert_eq!(world.pass(SECOND), [start_it()]);
    assert_eq!(world.state(), "failed");
    assert_eq!(world.report(ResourceState::StartFailed("still no".into())), [stop()]);
    world.report(ResourceState::Stopped);
    assert_eq!(world.pass(30 * SECOND), [start_it()]);

    // It runs at last; then the record says so, at once of this node, and after a minute of the others.
    let effects = world.report(ResourceState::Running);
    assert_eq!(effects, [vec![world.started(0.0)], world.served(2)].concat());
    let others = failed_on(&["c", "b"], own(2));
    assert_eq!(world.hear(true), [world.write(others.clone())]);
    assert_eq!(world.written(others), []);
    assert_eq!(world.pass(59 * SECOND), []);
    assert_eq!(world.pass(SECOND), [world.write(own(2))]);
    assert_eq!(world.written(own(2)), []);
    assert_eq!(world.state(), "serving");
}

#[test]
fn another_node_that_comes_gets_what_fails_here() {
    let mut world = World::starting();
    world.changed(Entry::Drain("b".into(), true));
    world.changed(Entry::Drain("c".into(), true));
    let effects = world.report(ResourceState::StartFailed("no".into()));
    let record = failed_on(&["a"], own(2));
    let write = StoreRequest::Write { server: "vs".into(), expected: 3, record };
    assert_eq!(effects, [world.failed("no"), stop(), Effect::Store(write)]);
    world.written(failed_on(&["a"], own(2)));
    world.report(ResourceState::Stopped);
    let revision = world.revision;
    let effects = world.changed(Entry::Drain("c".into(), false));
    let release = StoreRequest::Write {
        server: "vs".into(),
        expected: revision,
        record: given_up("c", &["a"], 2, Duration::ZERO),
    };
    let resumed = world.event(EventKind::Resumed { node: "c".into() });
    assert_eq!(effects, [resumed, world.leaving("c", Reason::ServiceFailed), Effect::Store(release)]);
}

#[test]
fn what_breaks_is_given_up_in_order() {
    let mut world = World::serving();
    let effects = world.report(ResourceState::Broken("nfsd hangs".into()));
    assert_eq!(effects, [vec![world.failed("nfsd hangs")], unserved().to_vec()].concat());
    assert_eq!(world.hear(true), [], "until the kernel has confirmed");
    assert_eq!(world.cleared(), [stop(), world.leaving("b", Reason::ServiceFailed)]);
    assert_eq!(world.hear(true), [], "until it is stopped");
    let effects = world.report(ResourceState::Stopped);
    assert_eq!(effects, [world.stopped(0.0), world.write(given_up("b", &["a"], 1, Duration::ZERO))]);
}

#[test]
fn what_breaks_where_nobody_else_can_have_it_is_started_again_at_once_if_it_had_run_for_long() {
    for (ran, waits) in [(59, 30), (60, 0)] {
        let mut world = World::serving();
        world.pass(ran * SECOND);
        world.changed(Entry::Drain("b".into(), true));
        world.changed(Entry::Drain("c".into(), true));
        let revision = 1;
        let effects = world.report(ResourceState::Broken("dead".into()));
        assert_eq!(effects, [vec![world.failed("dead")], unserved().to_vec()].concat());
        let record = failed_on(&["a"], own(1));
        let write = StoreRequest::Write { server: "vs".into(), expected: revision, record: record.clone() };
        assert_eq!(world.cleared(), [stop(), Effect::Store(write)]);
        world.written(record);
        let effects = world.report(ResourceState::Stopped);
        let again = vec![start_it(); usize::from(waits == 0)];
        assert_eq!(effects, [vec![world.stopped(0.0)], again].concat());
        if waits > 0 {
            assert_eq!(world.pass((waits - 1) * SECOND), []);
            assert_eq!(world.pass(SECOND), [start_it()]);
        }
        let effects = world.report(ResourceState::Running);
        assert_eq!(effects, [vec![world.started(0.0)], world.served(1)].concat());
    }
}

#[test]
fn without_the_store_what_breaks_is_tried_again_here() {
    let mut world = World::starting();
    world.report(ResourceState::Running);
    world.pass(60 * SECOND);
    let lost = world.event(EventKind::StoreLost);
    assert_eq!(world.tell(Input::Store(StoreInput::Reachable(false))), [lost]);
    world.report(ResourceState::Broken("dead".into()));
    assert_eq!(world.cleared(), [stop()]);
    assert_eq!(world.report(ResourceState::Stopped), [world.stopped(0.0), start_it()]);
    let effects = world.report(ResourceState::Running);
    assert_eq!(effects, [vec![world.started(0.0)], world.served(2)].concat());
}

#[test]
fn a_drained_node_releases_it_when_all_is_stopped_however_long_that_takes() {
    let mut world = World::serving();
    let effects = world.changed(Entry::Drain("a".into(), true));
    let draining = world.event(EventKind::Draining { node: "a".into() });
    let begins = vec![draining, world.leaving("b", Reason::Drain)];
    assert_eq!(effects, [begins, unserved().to_vec()].concat());
    assert_eq!(world.cleared(), [stop()]);
    assert_eq!(world.state(), "stopping");
    world.now = world.now + SECOND;
    let effects = world.report(ResourceState::StopFailed("/srv is busy".into()));
    assert_eq!(effects, [world.failed("/srv is busy")]);
    assert_eq!(world.state(), "failed");
    assert_eq!(world.report(ResourceState::StopFailed("/srv is still busy".into())), []);
    assert_eq!(world.pass(100 * SECOND), [], "not released: nobody else may mount what is mounted here");
    let effects = world.report(ResourceState::Stopped);
    let stopping = Some(101 * SECOND);
    let release = Some(Release { next: Some("b".into()), reason: Reason::Drain, stopping });
    let release = StoreRequest::Write {
        server: "vs".into(),
        expected: 1,
        record: Record { released: release, ..own(1) },
    };
    assert_eq!(effects, [world.stopped(101.0), Effect::Store(release)]);
}

#[test]
fn a_release_that_fails_is_sent_again_and_nothing_is_started_meanwhile() {
    let mut world = World::serving();
    world.changed(Entry::Drain("a".into(), true));
    world.cleared();
    let effects = world.report(ResourceState::Stopped);
    let Some(Effect::Store(request)) = effects.last() else { panic!("{effects:?}") };
    world.tell(Input::Store(StoreInput::Failed(request.clone(), "no answer".into())));
    assert_eq!(world.pass(Duration::from_millis(100)), [Effect::Store(request.clone())]);
    let current = Some((own(1), 1));
    let effects = world.tell(Input::Store(StoreInput::NotWritten { server: "vs".into(), current }));
    assert_eq!(effects, [Effect::Store(request.clone())], "the first one may land yet, and does no harm");
}

#[test]
fn a_drain_while_it_starts_is_not_kept_waiting() {
    let mut world = World::starting();
    let effects = world.changed(Entry::Drain("a".into(), true));
    let draining = world.event(EventKind::Draining { node: "a".into() });
    assert_eq!(effects, [draining, world.leaving("b", Reason::Drain), stop()]);
    assert_eq!(world.report(ResourceState::Running), [], "of the start that was given up");
    assert_eq!(world.report(ResourceState::Stopped).len(), 2);
}

#[test]
fn a_deposed_owner_stops_at_once_whatever_it_is_about() {
    let taken = || Entry::Record("vs".into(), Some(Record::of("b", 1, 1, 3)));
    let mut world = World::starting();
    let effects = world.changed(taken());
    let deposed = world.event(EventKind::Deposed { server: "vs".into() });
    assert_eq!(effects, [deposed, stop()]);
    assert_eq!(world.report(ResourceState::StartFailed("given up".into())), []);
    assert_eq!(world.report(ResourceState::Stopped), [world.stopped(0.0)]);

    let mut world = World::serving();
    let effects = world.changed(taken());
    let deposed = world.event(EventKind::Deposed { server: "vs".into() });
    assert_eq!(effects, [vec![deposed], unserved().to_vec(), vec![stop()]].concat());
    assert_eq!(world.cleared(), []);
    assert_eq!(world.report(ResourceState::Stopped), [world.stopped(0.0)]);
}

#[test]
fn without_a_lease_all_stops_after_a_while_and_starts_again_with_one() {
    let mut world = World::serving();
    assert_eq!(world.hear(false), [world.event(EventKind::LeaseOver)]);
    let grace = world.now + 2 * SECOND;
    assert_eq!(world.machine.deadline(), Some(grace));
    world.now = grace - Duration::from_millis(1);
    assert_eq!(world.hear(false), []);
    world.now = grace;
    assert_eq!(world.tell(Input::Wake), [unserved().to_vec(), vec![stop()]].concat());
    assert_eq!(world.cleared(), []);
    assert_eq!(world.report(ResourceState::Stopped), [world.stopped(0.0)]);
    assert_eq!(world.state(), "failed");
    world.now = world.now + 10 * SECOND;
    let effects = world.hear(true);
    assert_eq!(effects, [world.event(EventKind::LeaseBegins), world.write(own(1))], "touched first");
    assert_eq!(world.written(own(1)), [start_it()]);
    let effects = world.report(ResourceState::Running);
    assert_eq!(effects, [vec![world.started(0.0)], world.served(1)].concat());
}

#[test]
fn a_short_loss_of_the_lease_stops_nothing() {
    let mut world = World::serving();
    world.hear(false);
    world.now = world.now + Duration::from_millis(1900);
    world.hear(true);
    world.now = world.now + 10 * SECOND;
    assert_eq!(world.hear(true), []);
}

#[test]
fn a_restarted_agent_goes_on_where_it_was() {
    let marks = |world: &World| world.started.iter().filter(|e| matches!(e, Effect::Mark { .. })).count();
    let touch = |world: &World| vec![world.write(own(1))];

    let world = World::start(definition(), true, true, Some(own(1)));
    assert_eq!((marks(&world), world.state().as_str()), (0, "serving"));
    assert_eq!(world.read, [Effect::Announce(PORT, vip())]);
    let shown = world.machine.snapshot(world.now).virtual_servers.remove(0);
    assert_eq!(
        (shown.owner.as_deref(), shown.epoch),
        (Some("a"), 1),
        "it wrote nothing, and knows it all the same"
    );

    // It was about to be served, or this node has another incarnation now. Clients of what runs on may be connected to it.
    let mut world = World::start(definition(), false, true, Some(own(1)));
    assert_eq!(world.read, touch(&world));
    let effects = world.written(own(1));
    let mut served = world.served(1);
    assert_eq!(served.pop(), Some(Effect::ResetConnections("vs".into())));
    assert_eq!(effects, served);

    // Half of it was started; the same, where services died with the agent.
    for marked in [false, true] {
        let mut world = World::start(definition(), marked, false, Some(own(1)));
        let off = Effect::Mark { server: "vs".into(), incarnation: None };
        assert_eq!(world.started.contains(&off), marked);
        assert_eq!(world.read, touch(&world));
        assert_eq!(world.written(own(1)), [start_it()]);
        let effects = world.report(ResourceState::Running);
        assert_eq!(effects, [vec![world.started(0.0)], world.served(1)].concat());
    }

    // Another node has it.
    let mut world = World::start(definition(), false, true, Some(Record::of("b", 1, 1, 2)));
    assert_eq!(world.read, [world.event(EventKind::Deposed { server: "vs".into() }), stop()]);
    assert_eq!(world.report(ResourceState::Stopped), [world.stopped(0.0)]);

    // Nobody knows it.
    let stranger = VirtualServer { name: "other".into(), ..definition() };
    let world = World::start(stranger, false, true, None);
    assert!(world.started.contains(&stop()));
}

#[test]
fn a_mark_waits_for_the_kernels_word_that_it_is_off() {
    let mut start = start();
    start.config.servers = vec![definition()];
    start.marked = BTreeSet::from(["vs".to_owned()]);
    let mut machine = Machine::new();
    machine.handle(ms(0), Input::Start(Box::new(start)));
    let mark = Effect::Mark { server: "vs".into(), incarnation: None };
    machine.handle(ms(0), Input::Failed(Box::new(mark.clone()), "no".into()));
    assert!(machine.handle(ms(1000), Input::Wake).contains(&mark));
}

#[test]
fn it_does_not_go_where_it_has_failed_but_by_an_administrators_wish() {
    let serving = |nodes: &[&str], more: fn(VirtualServer) -> VirtualServer| {
        World::start(more(definition()), true, true, Some(failed_on(nodes, own(1))))
    };
    let goes_to = |effects: &[Effect]| {
        effects.iter().find_map(|e| match e {
            Effect::Event(Event { kind: EventKind::Leaving { to, .. }, .. }) => Some(to.clone()),
            _ => None,
        })
    };
    let as_is: fn(VirtualServer) -> VirtualServer = |s| s;
    let drain = |nodes: &[&str]| {
        let mut world = serving(nodes, as_is);
        goes_to(&world.changed(Entry::Drain("a".into(), true)))
    };
    assert_eq!(drain(&[]).as_deref(), Some("b"));
    assert_eq!(drain(&["b"]).as_deref(), Some("c"));
    assert_eq!(drain(&["b", "c"]), None, "it runs here, and there it may not");
    let breaks = |nodes: &[&str]| {
        let mut world = serving(nodes, as_is);
        world.report(ResourceState::Broken("no".into()));
        goes_to(&world.cleared())
    };
    assert_eq!(breaks(&["b"]).as_deref(), Some("c"));
    assert_eq!(breaks(&["b", "c"]), None);

    let wish = Wish::administrator("b");
    let effects = serving(&["b"], as_is).changed(Entry::Move("vs".into(), Some(wish)));
    assert_eq!(goes_to(&effects).as_deref(), Some("b"));
    // A preferred node gets it back when the failure has been forgotten for a while; longer after each one.
    let mut world = serving(&["b"], |s| VirtualServer {
        preferred_nodes: vec!["b".into()],
        failback: Failback::Immediate,
        ..s
    });
    assert_eq!(goes_to(&world.pass(59 * SECOND)), None);
    world.pass(SECOND);
    world.written(own(1));
    assert_eq!(goes_to(&world.pass(9 * SECOND)), None);
    assert_eq!(goes_to(&world.pass(SECOND)).as_deref(), Some("b"));
}

#[test]
fn a_node_where_it_has_failed_takes_it_last_and_late() {
    for (nodes, after) in [(&["b"][..], 0), (&["a"], 5500), (&["a", "b", "c"], 500)] {
        let mut world = World::idle(Record::of("b", 1, 1, 1));
        // For a node that is not there to take it.
        let record = failed_on(nodes, released("b", 1, "z", Reason::ServiceFailed));
        let mut waited = 0;
        let mut effects = world.changed(Entry::Record("vs".into(), Some(record.clone())));
        // Nobody has a load yet: a, b, c is the order among equals.
        while effects.is_empty() && waited < 10_000 {
            waited += 100;
            effects = world.pass(Duration::from_millis(100));
        }
        let after = if nodes.len() == 3 { 0 } else { after };
        assert_eq!(waited, after, "{nodes:?}");
        assert_eq!(effects, [world.write(failed_on(nodes, own(2)))], "and keeps the list");
    }
}

#[test]
fn what_could_not_be_handed_on_is_asked_for_again() {
    let mut world = World::starting();
    world.tell(Input::Failed(Box::new(start_it()), "too much".into()));
    assert_eq!(world.pass(SECOND), [start_it()]);
    world.changed(Entry::Drain("a".into(), true));
    world.tell(Input::Failed(Box::new(stop()), "too much".into()));
    assert_eq!(world.pass(SECOND), [stop()]);
}

#[test]
fn a_mark_that_can_not_be_set_is_set_later() {
    let mut world = World::starting();
    world.report(ResourceState::Running);
    let mark = Effect::Mark { server: "vs".into(), incarnation: Some(1) };
    let effects = world.tell(Input::Failed(Box::new(mark.clone()), "no".into()));
    assert!(!effects.contains(&mark), "{effects:?}");
    assert!(world.pass(SECOND).contains(&mark));
}

#[test]
fn a_start_is_not_served_after_a_write_whose_outcome_is_not_known() {
    let mut world = World::starting();
    world.report(ResourceState::StartFailed("no".into()));
    world.report(ResourceState::Stopped);
    // The release: what the store holds afterwards is what it held before, but it may land yet.
    let current = Some((own(2), world.revision));
    let input = Input::Store(StoreInput::NotWritten { server: "vs".into(), current });
    let effects = world.tell(input);
    assert!(
        matches!(&effects[..], [Effect::Store(StoreRequest::Write { record, .. })] if record.released.is_some())
    );
    assert_eq!(world.pass(60 * SECOND), [], "it waits for that answer, and starts nothing");
}

#[test]
fn others_are_told_and_show_what_its_owner_does_not_serve_yet() {
    let unserved = |world: &mut World| {
        world.hear(true);
        let told = world.published.take().map(|node| node.unserved.into_iter().collect::<Vec<_>>());
        told.map(|all| all.into_iter().map(|(server, how)| format!("{server} {how}")).collect::<Vec<_>>())
    };
    let mut world = World::starting();
    assert_eq!(unserved(&mut world), Some(vec!["vs starting".to_owned()]));
    assert_eq!(unserved(&mut world), None, "no news");
    world.report(ResourceState::Running);
    assert_eq!(unserved(&mut world), Some(Vec::new()));
    world.report(ResourceState::Broken("no answer".into()));
    assert_eq!(unserved(&mut world), Some(vec!["vs failed".to_owned()]));

    let mut world = World::idle(Record::of("b", 1, 1, 1));
    assert_eq!(world.state(), "serving");
    for how in ["starting", "failed", "stopping"] {
        let unserved = [("vs".to_owned(), how.to_owned())].into();
        world.changed(Entry::Node("b".into(), Some(NodeRecord { unserved, ..node(true) })));
        assert_eq!(world.state(), how);
    }
    world.changed(Entry::Node("b".into(), Some(node(true))));
    assert_eq!(world.state(), "serving");
}
