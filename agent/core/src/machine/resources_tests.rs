//! Every report in every phase, and a node without a cluster. `cluster::resources_tests` has nodes of a cluster.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::{Config, PortConfig, Segment, VirtualServer};
use crate::{Attachment, Event, Found, IfIndex, Input, Link, Owner, Start, StorageState, StorageView};

const PORT: IfIndex = IfIndex(1);
const S: Time = Time(1_000_000_000);

/// Whether that is a failure, too.
#[test]
fn every_report_in_every_phase() {
    use Phase::*;
    let phases = [Unknown, Stopped, Starting, Running, Stopping, Stuck];
    let ok = |phases: [Phase; 6]| phases.map(|phase| (phase, false));
    let failed = [
        (Unknown, true),
        (Stopped, false),
        (Unknown, true),
        (Unknown, true),
        (Stopping, false),
        (Stuck, false),
    ];
    let stuck = [(Stuck, true), (Stuck, true), (Stuck, true), (Stuck, true), (Stuck, false), (Stuck, false)];
    let mut stopped = ok([Stopped, Stopped, Starting, Stopped, Stopped, Stopped]);
    stopped[3].1 = true;
    let what = || "why".to_owned();
    let reports = [
        (ResourceState::Running, ok([Unknown, Unknown, Running, Running, Stopping, Stuck])),
        (ResourceState::Stopped, stopped),
        (ResourceState::StartFailed(what()), failed),
        (ResourceState::StopFailed(what()), stuck),
        (ResourceState::Broken(what()), failed),
    ];
    for (report, after) in reports {
        for (before, after) in phases.into_iter().zip(after) {
            let mut resources = Resources { phase: before, ..Resources::found(false, S) };
            resources.told(report.clone(), S, "vs");
            assert_eq!((resources.phase, resources.has_failed()), after, "{report:?} while {before:?}");
        }
    }
}

fn start() -> Start {
    let server = VirtualServer {
        has_resources: true,
        ..VirtualServer::new("vs", vec!["10.0.0.10/24".parse().expect("address")])
    };
    let config = Config {
        ports: vec![PortConfig::new("p0", "office")],
        segments: vec![Segment::new("office", vec!["10.0.0.0/24".parse().expect("subnet")])],
        servers: vec![server],
        ..Config::new("a")
    };
    let mac = [2, 0, 0, 0, 0, 1];
    let link = Link { ifindex: PORT, name: "p0".into(), up: true, carrier: true, mac };
    Start {
        config,
        incarnation: 7,
        found: Found { links: vec![link], addresses: Vec::new() },
        bound: BTreeMap::new(),
        marked: BTreeSet::new(),
        routed: BTreeSet::new(),
        running: BTreeSet::new(),
        cluster: None,
    }
}

fn owned() -> Input {
    Input::Owned("vs".into(), Owner { incarnation: 7, epoch: 1 })
}

fn told(state: ResourceState) -> Input {
    Input::Resources { server: "vs".into(), state }
}

fn event(at: Time, kind: EventKind) -> Effect {
    Effect::Event(Event { at, failover: None, kind })
}

fn mark(incarnation: Option<u64>) -> Effect {
    Effect::Mark { server: "vs".into(), incarnation }
}

fn state(machine: &Machine, at: Time) -> (Option<String>, String) {
    let view = machine.snapshot(at).virtual_servers.remove(0);
    (view.owner, view.state)
}

#[test]
fn a_lone_node_starts_serves_and_tries_again() {
    let started = |seconds| EventKind::ResourcesStarted { server: "vs".into(), seconds };
    let stopped = EventKind::ResourcesStopped { server: "vs".into(), seconds: 0.0 };
    let failed = |what: &str| EventKind::ResourcesFailed { server: "vs".into(), what: what.into() };
    let is = |word: &str| (Some("a".to_owned()), word.to_owned());
    let (begin, end) = (Effect::StartResources("vs".to_owned()), Effect::StopResources("vs".to_owned()));
    let address = "10.0.0.10".parse().expect("address");

    let mut m = Machine::new();
    assert!(m.handle(S, Input::Start(Box::new(start()))).contains(&Effect::Take("vs".into())));
    m.handle(S, Input::Attached(PORT, Attachment::Native));
    assert_eq!(m.handle(S, owned()), std::slice::from_ref(&begin));
    assert_eq!(state(&m, S), is("starting"));
    let no = told(ResourceState::StartFailed("no".into()));
    assert_eq!(m.handle(S, no.clone()), [event(S, failed("no")), end.clone()]);
    assert_eq!(m.handle(S, told(ResourceState::Stopped)), [event(S, stopped)]);
    assert_eq!(state(&m, S), is("failed"));
    let again = S + START_AGAIN;
    assert_eq!(m.deadline(), Some(again));
    assert_eq!(m.handle(again, Input::Wake), [begin]);

    let effects = m.handle(again, told(ResourceState::Running));
    let expected = [
        event(again, started(0.0)),
        mark(Some(7)),
        Effect::Permit { address, server: "vs".into(), port: Some(PORT) },
        Effect::AddAddress(PORT, address),
        Effect::Announce(PORT, address),
        event(again, EventKind::Serving { server: "vs".into(), epoch: 1 }),
        Effect::ResetConnections("vs".into()),
    ];
    assert_eq!(effects, expected);
    assert_eq!(state(&m, again), is("serving"));

    let effects = m.handle(again, told(ResourceState::Broken("dead".into())));
    let expected = [
        event(again, failed("dead")),
        mark(None),
        Effect::RemoveAddress(PORT, address),
        Effect::Steer { segment: "office".into(), ports: vec![PORT], via: None },
    ];
    assert_eq!(effects, expected);
    assert_eq!(m.handle(again, Input::MarkCleared("vs".into())), [end]);
    assert_eq!(state(&m, again), is("failed"));
}

#[test]
fn a_lone_node_whose_agent_restarts_goes_on_where_it_was() {
    for running in [true, false] {
        let mut start = start();
        let names = BTreeSet::from(["vs".to_owned()]);
        start.marked = names.clone();
        start.running = if running { names } else { BTreeSet::new() };
        let mut m = Machine::new();
        let effects = m.handle(S, Input::Start(Box::new(start)));
        assert_eq!(effects.contains(&mark(None)), !running);
        let serving = event(S, EventKind::Serving { server: "vs".into(), epoch: 1 });
        let effects = m.handle(S, owned());
        assert_eq!(effects, if running { vec![serving] } else { Vec::new() }, "until the mark is off");
        let effects = m.handle(S, Input::MarkCleared("vs".into()));
        let begin = Effect::StartResources("vs".to_owned());
        assert_eq!(effects, if running { Vec::new() } else { vec![begin] });
    }
}

#[test]
fn a_lone_node_tells_of_its_storage_and_does_nothing_about_it() {
    let mut start = start();
    for server in &mut start.config.servers {
        (server.fenced, server.storage_units) = (true, vec!["array".into()]);
    }
    let names = BTreeSet::from(["vs".to_owned()]);
    (start.marked, start.running) = (names.clone(), names);
    let mut m = Machine::new();
    let effects = m.handle(S, Input::Start(Box::new(start)));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Entitle { .. })), "nobody else could have it");
    m.handle(S, Input::Attached(PORT, Attachment::Native));
    m.handle(S, owned());
    let storage = |state| Input::Storage { unit: "array".into(), state };
    let said = |state: &str, what: Option<&str>| {
        let (state, what) = (state.to_owned(), what.map(str::to_owned));
        event(S, EventKind::Storage { unit: "array".into(), state, what })
    };
    assert_eq!(m.handle(S, storage(StorageState::Good)), [], "nobody has doubted it");
    let errors = StorageState::Errors("it is dead".into());
    assert_eq!(m.handle(S, storage(errors)), [said("errors", Some("it is dead"))]);
    let effects = m.handle(S + START_AGAIN, Input::Wake);
    assert!(effects.iter().all(|e| matches!(e, Effect::Announce(..))), "{effects:?}");
    let snapshot = m.snapshot(S);
    let view = StorageView { unit: "array".into(), state: "errors".into(), what: Some("it is dead".into()) };
    assert_eq!(snapshot.storage, [view]);
    assert_eq!(snapshot.virtual_servers[0].state, "serving");
    // It is started where that is to be tried.
    m.handle(S + START_AGAIN, told(ResourceState::Broken("dead".into())));
    m.handle(S + START_AGAIN, Input::MarkCleared("vs".into()));
    m.handle(S + START_AGAIN, told(ResourceState::Stopped));
    let effects = m.handle(S + 2 * START_AGAIN, Input::Wake);
    assert_eq!(effects, [Effect::StartResources("vs".to_owned())]);
}
