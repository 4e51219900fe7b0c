//! A machine of `a` that owns, or may own, one virtual server with file systems and services; its peers are `b` and `c`. For tests of
//! whole effects.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::tests::{ms, node, start};
use crate::cluster::{Entry, MASTER, NodeRecord, Record, Release, StoreChange, StoreInput, StoreRequest};
use crate::config::VirtualServer;
use crate::{
    Attachment, Effect, Event, EventKind, IfIndex, Input, Machine, PeerReading, PeerSample, Reason,
    ResourceState, Time,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const PORT: IfIndex = IfIndex(1);

/// A machine of `a`, and what the store last told it.
pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) now: Time,
    pub(super) revision: u64,
    /// What it last published of itself, since somebody looked.
    pub(super) published: Option<NodeRecord>,
    /// What it asked for when it was started,
    pub(super) started: Vec<Effect>,
    /// and when it had read the store.
    pub(super) read: Vec<Effect>,
}

pub(super) fn definition() -> VirtualServer {
    VirtualServer { has_resources: true, ..VirtualServer::new("vs", vec!["10.0.0.10/24".parse().unwrap()]) }
}

/// The same, where somebody who may have it mounted is to be fenced, on a storage unit.
pub(super) fn fenced() -> VirtualServer {
    VirtualServer { fenced: true, storage_units: vec!["array".into()], ..definition() }
}

pub(super) fn vip() -> IpAddr {
    IpAddr::from([10, 0, 0, 10])
}

impl World {
    /// An agent starts where this was left: the mark on, everything running, the record so.
    pub(super) fn start(
        definition: VirtualServer,
        marked: bool,
        running: bool,
        record: Option<Record>,
    ) -> World {
        let mut start = start();
        start.config.timing.announce_repeat = Vec::new();
        start.config.servers = vec![definition];
        let names = |is_so| if is_so { BTreeSet::from(["vs".to_owned()]) } else { BTreeSet::new() };
        (start.marked, start.running) = (names(marked), names(running));
        let mut machine = Machine::new();
        let started = machine.handle(ms(0), Input::Start(Box::new(start)));
        let mut world =
            World { machine, now: ms(0), revision: 1, published: None, started, read: Vec::new() };
        world.tell(Input::Attached(PORT, Attachment::Native));
        if marked && !running {
            world.tell(Input::MarkCleared("vs".into()));
        }
        world.hear(true);
        let nodes = ["b", "c"].map(|name| Entry::Node(name.into(), Some(node(true))));
        let records = [("vs", record), (MASTER, Some(Record::of("c", 1, 1, 1)))];
        let records = records.map(|(name, record)| Entry::Record(name.into(), record));
        let all = nodes.into_iter().chain(records).map(|entry| StoreChange { revision: 1, entry }).collect();
        let read = world.tell(Input::Store(StoreInput::All(all)));
        World { read, ..world }
    }

    /// It serves what it owns.
    pub(super) fn serving() -> World {
        World::start(definition(), true, true, Some(own(1)))
    }

    /// It owns nothing, and nothing runs; the record is this one.
    pub(super) fn idle(record: Record) -> World {
        let mut world = World::start(definition(), false, false, Some(record));
        assert_eq!(world.read, [stop()]);
        assert_eq!(world.report(ResourceState::Stopped), [], "nothing ran: that is no news");
        world
    }

    /// The same, where somebody is to be fenced first.
    pub(super) fn idle_fenced(record: Record) -> World {
        let mut world = World::start(fenced(), false, false, Some(record));
        assert_eq!(world.read, [stop()]);
        assert_eq!(world.report(ResourceState::Stopped), []);
        world
    }

    /// It has just taken it, and its file systems and services are being started.
    pub(super) fn starting() -> World {
        let mut world = World::idle(Record::of("b", 1, 1, 1));
        let mut effects =
            world.changed(Entry::Record("vs".into(), Some(released("b", 1, "a", Reason::Drain))));
        effects.extend(world.written(own(2)));
        assert!(effects.contains(&Effect::StartResources("vs".into())), "{effects:?}");
        world
    }

    /// What it asks for then, but for what it publishes of itself, which is kept.
    pub(super) fn tell(&mut self, input: Input) -> Vec<Effect> {
        let (published, effects): (Vec<Effect>, Vec<Effect>) = self
            .machine
            .handle(self.now, input)
            .into_iter()
            .partition(|e| matches!(e, Effect::Store(StoreRequest::Publish(_))));
        for effect in published {
            if let Effect::Store(StoreRequest::Publish(node)) = effect {
                self.published = Some(node);
            }
        }
        effects
    }

    pub(super) fn report(&mut self, state: ResourceState) -> Vec<Effect> {
        self.tell(Input::Resources { server: "vs".into(), state })
    }

    pub(super) fn cleared(&mut self) -> Vec<Effect> {
        self.tell(Input::MarkCleared("vs".into()))
    }

    pub(super) fn changed(&mut self, entry: Entry) -> Vec<Effect> {
        self.revision += 1;
        let change = StoreChange { revision: self.revision, entry };
        self.tell(Input::Store(StoreInput::Changed(vec![change])))
    }

    /// Our own write has succeeded.
    pub(super) fn written(&mut self, record: Record) -> Vec<Effect> {
        self.revision += 1;
        let revision = self.revision;
        self.tell(Input::Store(StoreInput::Written { server: "vs".into(), record, revision }))
    }

    /// The others are heard, and this node has a lease, or not.
    pub(super) fn hear(&mut self, lease: bool) -> Vec<Effect> {
        let at = self.now;
        let sample =
            |slot| PeerSample { slot, incarnation: 1, heard: Some(at), answered: Some(at), refuses: false };
        self.tell(Input::Peers(PeerReading {
            peers: vec![sample(1), sample(2)],
            steady_since: ms(0),
            lease: lease.then(|| at + Duration::from_millis(50)),
            ports: vec![(PORT, Some(at))],
        }))
    }

    /// So much time goes by, with a look at the others every second and at the end.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let end = self.now + time;
        let mut all = Vec::new();
        while self.now < end {
            let next = self.machine.deadline().unwrap_or(end).min(self.now + SECOND).min(end);
            self.now = next.max(self.now + Duration::from_millis(1));
            all.extend(self.hear(true));
        }
        all
    }

    pub(super) fn event(&self, kind: EventKind) -> Effect {
        Effect::Event(Event { at: self.now, failover: None, kind })
    }

    pub(super) fn failed(&self, what: &str) -> Effect {
        self.event(EventKind::ResourcesFailed { server: "vs".into(), what: what.into() })
    }

    pub(super) fn started(&self, seconds: f64) -> Effect {
        self.event(EventKind::ResourcesStarted { server: "vs".into(), seconds })
    }

    pub(super) fn stopped(&self, seconds: f64) -> Effect {
        self.event(EventKind::ResourcesStopped { server: "vs".into(), seconds })
    }

    pub(super) fn leaving(&self, to: &str, reason: Reason) -> Effect {
        self.event(EventKind::Leaving { server: "vs".into(), to: to.into(), reason })
    }

    pub(super) fn state(&self) -> String {
        self.machine.snapshot(self.now).virtual_servers[0].state.clone()
    }

    /// What is asked for when its mark goes on.
    pub(super) fn served(&self, epoch: u64) -> Vec<Effect> {
        vec![
            Effect::Mark { server: "vs".into(), incarnation: Some(1) },
            Effect::Permit { address: vip(), server: "vs".into(), port: Some(PORT) },
            Effect::AddAddress(PORT, vip()),
            Effect::Announce(PORT, vip()),
            self.event(EventKind::Serving { server: "vs".into(), epoch }),
            Effect::ResetConnections("vs".into()),
        ]
    }

    /// This is written over what the store last told.
    pub(super) fn write(&self, record: Record) -> Effect {
        Effect::Store(StoreRequest::Write { server: "vs".into(), expected: self.revision, record })
    }
}

pub(super) fn start_it() -> Effect {
    Effect::StartResources("vs".into())
}

pub(super) fn stop() -> Effect {
    Effect::StopResources("vs".into())
}

/// What is asked for when its mark goes off.
pub(super) fn unserved() -> [Effect; 3] {
    [
        Effect::Mark { server: "vs".into(), incarnation: None },
        Effect::RemoveAddress(PORT, vip()),
        Effect::Steer { segment: "office".into(), ports: vec![PORT], via: None },
    ]
}

pub(super) fn own(epoch: u64) -> Record {
    Record::of("a", 1, 1, epoch)
}

pub(super) fn released(node: &str, epoch: u64, to: &str, reason: Reason) -> Record {
    let released = Some(Release { next: Some(to.into()), reason, stopping: None });
    Record { released, ..Record::of(node, 1, 1, epoch) }
}

pub(super) fn failed_on(nodes: &[&str], record: Record) -> Record {
    Record { failed_on: nodes.iter().map(|n| (*n).to_owned()).collect(), ..record }
}

/// Released for the reason that it has failed, by `a`, where stopping took so long.
pub(super) fn given_up(to: &str, nodes: &[&str], epoch: u64, stopping: Duration) -> Record {
    let released =
        Some(Release { next: Some(to.into()), reason: Reason::ServiceFailed, stopping: Some(stopping) });
    failed_on(nodes, Record { released, ..own(epoch) })
}
