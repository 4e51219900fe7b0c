//! A stand-in for a segment and for the driver that probes it: ports that send or don't, cables that carry or don't. It
//! makes the readings that the path table would show, and hands over those that are news.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use baton_core::config::{PortConfig, Segment, Timing, VirtualServer};
use baton_core::{
    Attachment, Config, Effect, Event, EventKind, Finding, Found, IfIndex, Input, Link, Machine, Owner,
    PathSample, PortState, Reading, Reason, Start, TargetSample, Time,
};

pub const NAMES: [&str; 4] = ["a", "b", "c", "d"];
pub const TARGET: &str = "10.0.0.1";
pub const INTERVAL: Duration = Duration::from_millis(10);
const ROUTINE: Duration = Duration::from_secs(1);

pub fn ip(s: &str) -> IpAddr {
    s.parse().expect("an address")
}

pub fn ifindex(p: usize) -> IfIndex {
    IfIndex(11 + p as u32)
}

/// What is really so.
#[derive(Clone, Debug)]
pub struct Truth {
    pub receives: Vec<bool>,
    pub sends: Vec<bool>,
    /// Paths that are broken between ports that work.
    pub cut: BTreeSet<(usize, usize)>,
    /// The target is up.
    pub target: bool,
    /// Clients send to addresses at these ports.
    pub clients: BTreeSet<usize>,
    /// The target is asked in one of so many rounds.
    pub ask_in: Vec<u64>,
    /// Paths that lose probes: (k, n), k of n in a row, again and again.
    pub loses: BTreeMap<(usize, usize), (u64, u64)>,
}

impl Truth {
    pub fn carries(&self, from: usize, to: usize) -> bool {
        self.sends[from] && self.receives[to] && !self.cut.contains(&(from, to))
    }

    /// Port `p` neither sends nor receives.
    pub fn kill(&mut self, p: usize) {
        (self.sends[p], self.receives[p]) = (false, false);
    }
}

pub struct Net {
    pub machine: Machine,
    pub now: Time,
    pub truth: Truth,
    paths: BTreeMap<(usize, usize), PathSample>,
    targets: Vec<TargetSample>,
    unicast: BTreeMap<IfIndex, Time>,
    carrier: Vec<bool>,
    routine_at: Time,
    rounds: u64,
    interval: Duration,
    /// Everything that core was told, and what it asked for.
    pub told: Vec<(Time, Input, Vec<Effect>)>,
}

fn config(ports: usize, targets: bool, interval: Duration) -> Config {
    Config {
        ports: NAMES[..ports].iter().map(|n| PortConfig::new(n, "office")).collect(),
        timing: Timing { probe_interval: interval, announce_repeat: vec![], ..Timing::default() },
        segments: vec![Segment {
            probe_targets: if targets { vec![ip(TARGET)] } else { vec![] },
            ..Segment::new("office", vec!["10.0.0.0/24".parse().expect("a subnet")])
        }],
        servers: vec![VirtualServer {
            reroute: true,
            ..VirtualServer::new(
                "s",
                (0..ports).map(|p| format!("10.0.0.{}/24", 10 + p).parse().expect("an address")).collect(),
            )
        }],
        ..Config::new("fs1")
    }
}

fn link(p: usize, carrier: bool) -> Link {
    Link { ifindex: ifindex(p), name: NAMES[p].into(), up: true, carrier, mac: [2, 0, 0, 0, 0, p as u8] }
}

impl Net {
    /// So many ports, one address on each, a target or none; in perfect order for two seconds.
    pub fn new(ports: usize, targets: bool) -> Net {
        Net::with(ports, targets, true, INTERVAL)
    }

    /// The same; the target may be down, and another probe interval.
    pub fn with(ports: usize, targets: bool, up: bool, interval: Duration) -> Net {
        let all = |v| vec![v; ports];
        let mut net = Net {
            machine: Machine::new(),
            now: Time(1_000_000_000),
            truth: Truth {
                receives: all(true),
                sends: all(true),
                cut: BTreeSet::new(),
                target: up,
                clients: BTreeSet::new(),
                ask_in: vec![1; ports],
                loses: BTreeMap::new(),
            },
            paths: BTreeMap::new(),
            targets: Vec::new(),
            unicast: BTreeMap::new(),
            carrier: all(true),
            routine_at: Time(0),
            rounds: 0,
            interval,
            told: Vec::new(),
        };
        let start = Start {
            config: config(ports, targets, interval),
            incarnation: 7,
            found: Found { links: (0..ports).map(|p| link(p, true)).collect(), addresses: vec![] },
            bound: BTreeMap::new(),
            marked: BTreeSet::new(),
            routed: BTreeSet::new(),
            running: BTreeSet::new(),
            cluster: None,
        };
        net.tell(Input::Start(Box::new(start)));
        (0..ports).for_each(|p| drop(net.tell(Input::Attached(ifindex(p), Attachment::Native))));
        net.tell(Input::Owned("s".into(), Owner { incarnation: 7, epoch: 1 }));
        if targets {
            let target = |p| TargetSample {
                port: ifindex(p),
                target: ip(TARGET),
                answered: None,
                unanswered: 0,
                waiting_since: None,
                asked: 0,
                answers: 0,
            };
            net.targets = (0..ports).map(target).collect();
        }
        net.pass(Duration::from_secs(2));
        net
    }

    pub fn ports(&self) -> usize {
        self.carrier.len()
    }

    pub fn tell(&mut self, input: Input) -> Vec<Effect> {
        let effects = self.machine.handle(self.now, input.clone());
        self.told.push((self.now, input, effects.clone()));
        effects
    }

    pub fn has_target(&self) -> bool {
        !self.targets.is_empty()
    }

    pub fn had_clients(&self) -> bool {
        !self.unicast.is_empty()
    }

    pub fn has_carrier(&self, p: usize) -> bool {
        self.carrier[p]
    }

    pub fn set_carrier(&mut self, p: usize, carrier: bool) {
        self.carrier[p] = carrier;
        self.paths.retain(|k, _| k.0 != p && k.1 != p);
        self.tell(Input::Link(link(p, carrier)));
    }

    /// One round of probes.
    fn probe(&mut self) {
        let now = self.now;
        self.rounds += 1;
        for from in 0..self.ports() {
            for to in (0..self.ports()).filter(|&to| to != from) {
                if self.carrier[from] && self.carrier[to] {
                    let s = self.paths.entry((from, to)).or_insert_with(|| new_path(from, to));
                    let lost = self.truth.loses.get(&(from, to)).is_some_and(|(k, n)| s.sent % n < *k);
                    s.sent += 1;
                    if self.truth.carries(from, to) && !lost {
                        s.arrived += 1;
                        (s.heard, s.unanswered, s.waiting_since) = (Some(now), 0, None);
                    } else {
                        s.unanswered += 1;
                        s.waiting_since = s.waiting_since.or(Some(now));
                    }
                }
            }
        }
        for (p, t) in self.targets.iter_mut().enumerate() {
            if !self.rounds.is_multiple_of(self.truth.ask_in[p]) {
                continue;
            }
            t.asked += 1;
            if self.truth.target && self.carrier[p] && self.truth.sends[p] && self.truth.receives[p] {
                t.answers += 1;
                (t.answered, t.unanswered, t.waiting_since) = (Some(now), 0, None);
            } else {
                t.unanswered += 1;
                t.waiting_since = t.waiting_since.or(Some(now));
            }
        }
        for &p in &self.truth.clients {
            if self.truth.receives[p] && self.carrier[p] {
                self.unicast.insert(ifindex(p), now);
            }
        }
    }

    pub fn reading(&self) -> Reading {
        Reading {
            paths: self.paths.values().cloned().collect(),
            targets: self
                .targets
                .iter()
                .filter(|t| self.carrier[(t.port.0 - 11) as usize])
                .cloned()
                .collect(),
            unicast: self.unicast.clone(),
        }
    }

    /// One probe interval: probes go out, and an eighth of it later the table can be read.
    pub fn round(&mut self) -> Vec<Effect> {
        let mut effects = self.wake_until(self.now + self.interval * 7 / 8);
        self.probe();
        effects.extend(self.wake_until(self.now + self.interval / 8));
        effects
    }

    /// A round, and what the driver makes of it.
    pub fn step(&mut self) -> Vec<Effect> {
        let mut effects = self.round();
        let reading = self.reading();
        if self.machine.is_news(self.now, &reading) || self.routine_at <= self.now {
            self.routine_at = self.now + ROUTINE;
            effects.extend(self.tell(Input::Paths(reading)));
        }
        effects
    }

    fn wake_until(&mut self, end: Time) -> Vec<Effect> {
        let mut effects = Vec::new();
        while let Some(t) = self.machine.deadline().filter(|t| *t <= end) {
            self.now = self.now.max(t);
            effects.extend(self.tell(Input::Wake));
        }
        self.now = end;
        effects
    }

    pub fn pass(&mut self, d: Duration) -> Vec<Effect> {
        let end = self.now + d;
        let mut effects = Vec::new();
        while self.now < end {
            effects.extend(self.step());
        }
        effects
    }

    /// The effects of the first reading in the next second that is followed by any.
    pub fn next_effects(&mut self) -> Vec<Effect> {
        (0..100).map(|_| self.step()).find(|e| !e.is_empty()).unwrap_or_default()
    }

    /// The agent does nothing for a while; its rhythm is broken, so that it counts anew.
    pub fn stall(&mut self, d: Duration) {
        self.now = self.now + d;
        for s in self.paths.values_mut() {
            (s.unanswered, s.waiting_since) = (0, None);
        }
        for t in &mut self.targets {
            (t.unanswered, t.waiting_since) = (0, None);
        }
    }

    pub fn finding(&self) -> Finding {
        self.machine.snapshot(self.now).segments[0].finding
    }

    /// Every port's state and reason.
    pub fn states(&self) -> Vec<Verdict> {
        self.machine.snapshot(self.now).ports.iter().map(|p| (p.state, p.reason)).collect()
    }

    /// Where the addresses are: the number of a port for each.
    pub fn bound(&self) -> Vec<usize> {
        let view = self.machine.snapshot(self.now);
        let number = |n: &str| NAMES.iter().position(|x| *x == n).expect("a port of the model");
        view.virtual_servers[0].addresses.iter().map(|a| number(a.port.as_deref().expect("bound"))).collect()
    }

    pub fn failovers(&self) -> u64 {
        self.machine.snapshot(self.now).failovers
    }
}

fn new_path(from: usize, to: usize) -> PathSample {
    PathSample {
        from: ifindex(from),
        to: ifindex(to),
        heard: None,
        unanswered: 0,
        waiting_since: None,
        sent: 0,
        arrived: 0,
        echoes: 0,
        rtt: None,
        timed: true,
    }
}

pub fn events(effects: &[Effect]) -> Vec<EventKind> {
    let kind = |e: &Effect| if let Effect::Event(Event { kind, .. }) = e { Some(kind.clone()) } else { None };
    effects.iter().filter_map(kind).collect()
}

/// A port's state, and why it is not good.
pub type Verdict = (PortState, Option<Reason>);

pub const GOOD: Verdict = (PortState::Good, None);

pub fn silent(reason: Reason) -> Verdict {
    (PortState::Silent, Some(reason))
}

/// What is known half a second after a failure, and how often addresses moved.
pub fn after(net: &mut Net, fault: impl FnOnce(&mut Truth)) -> (Finding, Vec<Verdict>, u64) {
    fault(&mut net.truth);
    net.pass(Duration::from_millis(500));
    (net.finding(), net.states(), net.failovers())
}
