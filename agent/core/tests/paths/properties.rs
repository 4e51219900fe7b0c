//! What holds for every story: ports fail one way or both, in any order, targets and clients come and go, probes are
//! lost, the agent stalls.

use std::time::Duration;

use baton_core::{Effect, Event, EventKind, Finding, Input, Machine, PortState, Reason, Snapshot, Time};
use proptest::prelude::*;

use crate::model::*;

/// Rounds after which everything has shown that can: three lost probes, and the worst pattern of loss;
const SHOWN: u64 = 12;
/// and where a client's packet still speaks for a port that failed after it.
const SHOWN_WITH_CLIENTS: u64 = 110;

#[derive(Clone, Debug)]
enum Happening {
    Receives(usize, bool),
    Sends(usize, bool),
    Cut(usize, usize, bool),
    Loses(usize, usize, u64),
    Target(bool),
    Clients(usize, bool),
    Carrier(usize, bool),
    Stalls(u64),
    Passes(u8),
}

fn happening(cuts: bool) -> impl Strategy<Value = Happening> {
    use Happening::*;
    let port = 0..4usize;
    let yes = any::<bool>();
    prop_oneof![
        4 => (port.clone(), yes).prop_map(|(p, v)| Receives(p, v)),
        4 => (port.clone(), yes).prop_map(|(p, v)| Sends(p, v)),
        if cuts { 3 } else { 0 } => (port.clone(), port.clone(), yes).prop_map(|(a, b, v)| Cut(a, b, v)),
        1 => (port.clone(), port.clone(), 0..7u64).prop_map(|(a, b, n)| Loses(a, b, n)),
        2 => yes.prop_map(Target),
        3 => (port.clone(), yes).prop_map(|(p, v)| Clients(p, v)),
        1 => (port, yes).prop_map(|(p, v)| Carrier(p, v)),
        1 => (1..3000u64).prop_map(Stalls),
        6 => (1..8u8).prop_map(Passes),
        2 => Just(Passes(110)),
    ]
}

fn story(cuts: bool) -> impl Strategy<Value = Vec<Happening>> {
    prop::collection::vec(happening(cuts), 1..40)
}

/// A story as it goes, with the rounds in which each port last failed to receive, and to send.
struct Tale {
    net: Net,
    /// Only ports fail, so that whoever is blamed must have failed.
    exact: bool,
    round: u64,
    deaf: Vec<Option<u64>>,
    mute: Vec<Option<u64>>,
    no_target: Option<u64>,
    /// The last time anything happened.
    changed: u64,
}

impl Tale {
    fn new(ports: usize, targets: bool, exact: bool) -> Tale {
        let never = vec![None; ports];
        Tale {
            exact,
            net: Net::new(ports, targets),
            round: 0,
            deaf: never.clone(),
            mute: never,
            no_target: None,
            changed: 0,
        }
    }

    fn happens(&mut self, h: &Happening) {
        let n = self.net.ports();
        let truth = &mut self.net.truth;
        match *h {
            Happening::Receives(p, v) => truth.receives[p % n] = v,
            Happening::Sends(p, v) => truth.sends[p % n] = v,
            Happening::Cut(a, b, true) => drop(truth.cut.insert((a % n, b % n))),
            Happening::Cut(a, b, false) => drop(truth.cut.remove(&(a % n, b % n))),
            Happening::Loses(a, b, 0..3) => drop(truth.loses.remove(&(a % n, b % n))),
            Happening::Loses(a, b, of) => {
                // Two in a row and then a failure look like a longer failure: not where blame is to be exact.
                let in_a_row = if self.exact { 1 } else { 2 };
                truth.loses.insert((a % n, b % n), (in_a_row, of));
            }
            Happening::Target(v) => truth.target = v,
            Happening::Clients(p, true) => drop(truth.clients.insert(p % n)),
            Happening::Clients(p, false) => drop(truth.clients.remove(&(p % n))),
            Happening::Carrier(p, v) => self.net.set_carrier(p % n, v),
            Happening::Stalls(ms) => self.net.stall(Duration::from_millis(ms)),
            Happening::Passes(rounds) => return (0..rounds).for_each(|_| self.step()),
        }
        self.changed = self.round;
        self.check_bindings();
    }

    /// A round whose reading is handed over, news or not.
    fn step(&mut self) {
        self.round += 1;
        self.net.round();
        let now = Some(self.round);
        for p in 0..self.net.ports() {
            if !self.net.truth.receives[p] {
                self.deaf[p] = now;
            }
            if !self.net.truth.sends[p] {
                self.mute[p] = now;
            }
        }
        if !self.net.truth.target {
            self.no_target = now;
        }
        let reading = self.net.reading();
        let is_news = self.net.machine.is_news(self.net.now, &reading);
        let before = self.net.machine.snapshot(self.net.now);
        let effects = self.net.tell(Input::Paths(reading.clone()));
        let after = self.net.machine.snapshot(self.net.now);
        if !is_news {
            assert_eq!((verdicts(&before), &effects), (verdicts(&after), &vec![]), "was no news");
        }
        assert!(!self.net.machine.is_news(self.net.now, &reading), "news once");
        self.check_blame(&effects);
        self.check_bindings();
    }

    /// Was it so in one of the rounds that a verdict of now can be drawn from?
    fn lately(&self, at: Option<u64>) -> bool {
        at.is_some_and(|at| at + 3 >= self.round)
    }

    /// A port that is newly found silent has really failed, in that direction.
    fn check_blame(&self, effects: &[Effect]) {
        for e in effects {
            let Effect::Event(Event { kind: EventKind::Port { interface, from, to, reason, .. }, .. }) = e
            else {
                continue;
            };
            if *to != PortState::Silent || *from == PortState::Silent {
                continue;
            }
            let p = NAMES.iter().position(|n| n == interface).expect("a port of the model");
            let (deaf, mute) = (self.lately(self.deaf[p]), self.lately(self.mute[p]));
            let has_target = self.net.has_target() && !self.lately(self.no_target);
            assert!(deaf || mute || !has_target, "{interface} answers its target");
            if self.exact {
                let right = match reason {
                    Some(Reason::Silent) => deaf && mute,
                    Some(Reason::ReceiveSilent) => deaf,
                    Some(Reason::TransmitSilent) => mute,
                    _ => false,
                };
                assert!(right, "{interface} is blamed: {reason:?}; deaf: {deaf}, mute: {mute}");
            }
        }
    }

    /// Never on a bad port while a good one exists.
    fn check_bindings(&self) {
        let states = self.net.states();
        let good = states.iter().any(|s| s.0 == PortState::Good);
        for p in self.net.bound() {
            assert!(
                !good || states[p].0 != PortState::Silent && states[p].0 != PortState::Down,
                "{states:?}"
            );
        }
    }

    fn shown_after(&self) -> u64 {
        if self.net.had_clients() { SHOWN_WITH_CLIENTS } else { SHOWN }
    }

    /// Once everything has shown: ports are silent if and only if they fail, wherever that can be told.
    fn check_shown(&self) {
        let truth = &self.net.truth;
        let works = |p: usize| self.net.has_carrier(p) && truth.receives[p] && truth.sends[p];
        let working: Vec<usize> = (0..self.net.ports()).filter(|&p| works(p)).collect();
        let states = self.net.states();
        let witness = working.len() > 1 || !working.is_empty() && self.net.has_target() && truth.target;
        for p in (0..self.net.ports()).filter(|&p| self.net.has_carrier(p)) {
            if works(p) && working.len() > 1 {
                assert_ne!(states[p].0, PortState::Silent, "{} works", NAMES[p]);
            }
            if !works(p) && witness {
                let reasons: &[Reason] = match (truth.receives[p], truth.sends[p]) {
                    (false, true) => &[Reason::ReceiveSilent, Reason::Silent],
                    (true, false) => &[Reason::TransmitSilent, Reason::Silent],
                    _ => &[Reason::Silent],
                };
                assert_eq!(states[p].0, PortState::Silent, "{} has failed", NAMES[p]);
                assert!(states[p].1.is_some_and(|r| reasons.contains(&r)), "{}: {:?}", NAMES[p], states[p]);
            }
        }
        let part: usize = (0..self.net.ports()).filter(|&p| self.net.has_carrier(p)).count();
        if part > 1 && working.len() == part {
            assert_eq!(self.net.finding(), Finding::Whole);
        } else if part > 1 && witness {
            assert_eq!(self.net.finding(), Finding::PortsSilent);
        }
    }
}

/// All that a reading may change.
fn verdicts(view: &Snapshot) -> (Vec<(PortState, Option<Reason>)>, Vec<Finding>) {
    (
        view.ports.iter().map(|p| (p.state, p.reason)).collect(),
        view.segments.iter().map(|s| s.finding).collect(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_is_blamed_has_failed_and_who_has_failed_is_found(
        ports in 2..=4usize, targets: bool, story in story(false)
    ) {
        let mut tale = Tale::new(ports, targets, true);
        for h in &story {
            tale.happens(h);
            if tale.round >= tale.changed + tale.shown_after() && tale.net.truth.loses.is_empty() {
                tale.check_shown();
            }
        }
        tale.net.truth.loses.clear();
        (0..tale.shown_after()).for_each(|_| tale.step());
        tale.check_shown();
    }

    #[test]
    fn with_broken_paths_too_no_address_is_left_on_a_silent_port(
        ports in 2..=4usize, targets: bool, story in story(true)
    ) {
        let mut tale = Tale::new(ports, targets, false);
        story.iter().for_each(|h| tale.happens(h));
    }

    #[test]
    fn the_same_inputs_give_the_same_effects(ports in 2..=4usize, targets: bool, story in story(true)) {
        let mut tale = Tale::new(ports, targets, false);
        story.iter().for_each(|h| tale.happens(h));
        let mut again = Machine::new();
        for (now, input, effects) in &tale.net.told {
            let text = serde_json::to_string(&(now, input)).expect("an input is written");
            let (now, input): (Time, Input) = serde_json::from_str(&text).expect("and read again");
            prop_assert_eq!(&again.handle(now, input), effects);
        }
        prop_assert_eq!(&again, &tale.net.machine);
    }
}
