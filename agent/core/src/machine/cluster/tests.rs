//! What a machine of a cluster does with what it reads. The model has the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::cluster::{
    Entry, Member, Members, NodePort, NodeRecord, Record, Release, StoreChange, StoreInput, StoreRequest,
};
use crate::config::{Config, Failback, PortConfig, Segment, VirtualServer};
use crate::{
    Attachment, ClusterStart, Effect, Event, EventKind, Found, IfIndex, Input, Link, Machine, PeerReading,
    PeerSample, Reason, Start, Time,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(super) fn ms(ms: u64) -> Time {
    Time(1_000_000_000_000) + Duration::from_millis(ms)
}

pub(super) fn node(hears: bool) -> NodeRecord {
    let port = NodePort {
        number: 1,
        interface: "p0".into(),
        segment: "office".into(),
        mac: MAC,
        usable: true,
        hears,
    };
    NodeRecord { incarnation: 1, ports: vec![port], ..NodeRecord::default() }
}

pub(super) fn start() -> Start {
    let member = |(name, slot): (&str, u8)| Member { name: name.into(), slot };
    let members = Members {
        version: 1,
        probe_interval: Duration::from_millis(10),
        lease: Duration::from_millis(50),
        slack: Duration::from_millis(5),
        rho_ppm: 0,
        nodes: [("a", 0), ("b", 1), ("c", 2)].map(member).to_vec(),
        before: Vec::new(),
    };
    let nodes = [("b".to_owned(), node(true)), ("c".to_owned(), node(false))];
    let cluster = ClusterStart {
        members,
        nodes: BTreeMap::from(nodes),
        witness: false,
        lost_memory: false,
        new_list: false,
        verdicts: BTreeMap::new(),
    };
    let config = Config {
        ports: vec![PortConfig::new("p0", "office")],
        segments: vec![Segment::new("office", vec!["10.0.0.0/24".parse().unwrap()])],
        ..Config::new("a")
    };
    let link = Link { ifindex: IfIndex(1), name: "p0".into(), up: true, carrier: true, mac: MAC };
    Start {
        config,
        incarnation: 1,
        found: Found { links: vec![link], addresses: Vec::new() },
        bound: BTreeMap::new(),
        marked: BTreeSet::new(),
        routed: BTreeSet::new(),
        running: BTreeSet::new(),
        cluster: Some(cluster),
    }
}

/// Is this node's port published as of use after the port itself has heard nobody for half a second, while it hears these nodes
/// some other way?
fn stays_usable(b: Option<Time>, c: Option<Time>) -> bool {
    let mut machine = Machine::new();
    machine.handle(ms(0), Input::Start(Box::new(start())));
    machine.handle(ms(0), Input::Attached(IfIndex(1), Attachment::Native));
    let mut usable = true;
    for at in (0..50).map(|n| ms(1000 + 10 * n)) {
        let now = |last: Option<Time>| Some(last.unwrap_or(at));
        let sample =
            |slot, answered| PeerSample { slot, incarnation: 1, heard: answered, answered, refuses: false };
        let reading = PeerReading {
            peers: vec![sample(1, now(b)), sample(2, now(c))],
            steady_since: ms(0),
            lease: Some(at + Duration::from_millis(50)),
            ports: vec![(IfIndex(1), None)],
        };
        for effect in machine.handle(at, Input::Peers(reading)) {
            if let Effect::Store(StoreRequest::Publish(node)) = effect {
                usable = node.ports.iter().all(|p| p.usable);
            }
        }
    }
    usable
}

#[test]
fn only_who_is_heard_can_say_that_a_segment_lives() {
    assert!(!stays_usable(None, None), "b is heard and hears the segment: this node's port is out of touch");
    assert!(stays_usable(Some(ms(10)), None), "b is gone; what it last told says nothing of now");
}

/// A machine that serves `vs`, which prefers `b` and may go back to it from 01:00 to 04:00; `b` has been well for 20 s.
fn serving_what_prefers_another() -> (Machine, Time) {
    let mut start = start();
    start.config.timing.announce_repeat = Vec::new();
    start.config.servers.push(VirtualServer {
        preferred_nodes: vec!["b".into()],
        failback: Failback::Window(60, 240),
        ..VirtualServer::new("vs", vec!["10.0.0.10/24".parse().unwrap()])
    });
    let mut machine = Machine::new();
    machine.handle(ms(0), Input::Start(Box::new(start)));
    machine.handle(ms(0), Input::Attached(IfIndex(1), Attachment::Native));
    let record = owned();
    let nodes =
        ["b", "c"].map(|name| StoreChange { revision: 1, entry: Entry::Node(name.into(), Some(node(true))) });
    let owner = |name: &str, record: Record| StoreChange {
        revision: 1,
        entry: Entry::Record(name.into(), Some(record)),
    };
    let master = owner("@master", Record { node: "c".into(), ..record.clone() });
    let all = nodes.into_iter().chain([master, owner("vs", record.clone())]).collect();
    let read = |at: Time| {
        let sample =
            |slot| PeerSample { slot, incarnation: 1, heard: Some(at), answered: Some(at), refuses: false };
        PeerReading {
            peers: vec![sample(1), sample(2)],
            steady_since: ms(0),
            lease: Some(at + Duration::from_millis(50)),
            ports: vec![(IfIndex(1), Some(at))],
        }
    };
    machine.handle(ms(1), Input::Peers(read(ms(1))));
    machine.handle(ms(2), Input::Store(StoreInput::All(all)));
    let written = StoreInput::Written { server: "vs".into(), record, revision: 2 };
    machine.handle(ms(3), Input::Store(written));
    let later = ms(20_000);
    machine.handle(later, Input::Peers(read(later)));
    (machine, later)
}

fn owned() -> Record {
    Record::of("a", 1, 1, 1)
}

#[test]
fn a_server_goes_back_when_the_window_opens_and_not_before() {
    let (mut machine, now) = serving_what_prefers_another();
    assert_eq!(machine.handle(now, Input::Minute(59)), []);
    let leaving = EventKind::Leaving { server: "vs".into(), to: "b".into(), reason: Reason::Failback };
    assert_eq!(
        machine.handle(now, Input::Minute(60)),
        [
            Effect::Event(Event { at: now, failover: None, kind: leaving }),
            Effect::Mark { server: "vs".into(), incarnation: None },
            Effect::RemoveAddress(IfIndex(1), "10.0.0.10".parse().unwrap()),
            Effect::Steer { segment: "office".into(), ports: vec![IfIndex(1)], via: None },
        ]
    );
    let released = Some(Release { next: Some("b".into()), reason: Reason::Failback, stopping: None });
    let release =
        StoreRequest::Write { server: "vs".into(), expected: 2, record: Record { released, ..owned() } };
    assert_eq!(machine.handle(now, Input::MarkCleared("vs".into())), [Effect::Store(release)]);
}

#[test]
fn a_server_stays_where_it_could_not_be_released() {
    let (mut machine, now) = serving_what_prefers_another();
    machine.handle(now, Input::Store(StoreInput::Reachable(false)));
    assert_eq!(machine.handle(now, Input::Minute(60)), []);
    let effects = machine.handle(now, Input::Store(StoreInput::Reachable(true)));
    assert!(effects.contains(&Effect::Mark { server: "vs".into(), incarnation: None }), "{effects:?}");
}

#[test]
fn a_server_stays_when_the_window_has_closed() {
    let (mut machine, now) = serving_what_prefers_another();
    assert_eq!(machine.handle(now, Input::Minute(240)), []);
}
