//! From a survey to what changes by it, and carrying that out.

use std::net::IpAddr;

use super::loss::Health;
use super::survey::{Look, Seat, Survey};
use crate::config::Segment;
use crate::machine::Machine;
use crate::machine::ports::Port;
use crate::{EventKind, Finding, PortState, Reason};

/// What a reading changes in one segment.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Decision {
    finding: Option<Finding>,
    /// Which ports, by number.
    ports: Vec<(usize, Verdict)>,
    /// Targets that answer (`true`) or no longer do.
    targets: Vec<(IpAddr, bool)>,
    /// A port begins or ceases to be proven: later verdicts depend on that.
    proof: bool,
}

/// What changes for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is silent, or is so in one more direction.
    Silent(Reason),
    /// It loses frames.
    Degraded(Reason),
    /// It has been silent, and works.
    Works,
}

impl Decision {
    pub fn is_empty(&self) -> bool {
        self.finding.is_none() && self.ports.is_empty() && self.targets.is_empty() && !self.proof
    }
}

/// What the port is silent in, now that it is to blame for `more` as well.
fn both(before: Option<Reason>, more: Reason) -> Reason {
    match before {
        None => more,
        Some(before) if before == more => more,
        Some(_) => Reason::Silent,
    }
}

/// What a survey and the losses say of a port; `None`: nothing new.
fn verdict(port: &Port, blame: Option<Reason>, proven: bool, health: Health) -> Option<Verdict> {
    match (port.state, blame) {
        (PortState::Down, _) => None,
        (PortState::Silent, _) if proven => Some(Verdict::Works),
        (PortState::Silent, Some(more)) => {
            let reason = both(port.verdict, more);
            (port.verdict != Some(reason)).then_some(Verdict::Silent(reason))
        }
        (PortState::Silent, None) => None,
        (PortState::Good | PortState::Held | PortState::Degraded, Some(reason)) => {
            Some(Verdict::Silent(reason))
        }
        (PortState::Good, None) if health == Health::Bad => Some(Verdict::Degraded(Reason::Loss)),
        (PortState::Good | PortState::Held | PortState::Degraded, None) => None,
    }
}

impl Machine {
    /// The segment's ports that have carrier and the kernel programs.
    fn taking_part<'a>(&'a self, segment: &'a str) -> impl Iterator<Item = Seat> + 'a {
        self.ports.iter().enumerate().filter_map(move |(p, port)| {
            let takes_part =
                port.segment == segment && port.fault().is_none() && port.state != PortState::Down;
            takes_part.then_some(Seat::new(p, port.ifindex()?, port))
        })
    }

    /// What the segment looks like before anything is decided.
    pub(super) fn survey(&self, segment: &str, look: &Look) -> Survey {
        Survey::new(look, self.taking_part(segment))
    }

    /// What this reading changes in a segment.
    pub(super) fn decide(&self, segment: &Segment, look: &Look) -> Decision {
        let mut survey = self.survey(&segment.name, look);
        let mut decision = Decision::default();
        let lossy = self.watch.losses.any_bad(look); // seldom, and dear to look into
        for s in 0..survey.seats.len() {
            let seat = survey.seats[s];
            let health = match lossy && self.ports[seat.port].state == PortState::Good {
                true => self.watch.losses.health(look, &survey, s),
                false => Health::Clean,
            };
            let verdict = verdict(&self.ports[seat.port], seat.blame(), seat.is_proven(), health);
            decision.ports.extend(verdict.map(|v| (seat.port, v)));
        }
        decision.proof = survey.seats.iter().any(Seat::is_proof_news);
        self.keep_the_last(&survey, &mut decision);
        for seat in &mut survey.seats {
            match decision.ports.iter().find(|d| d.0 == seat.port) {
                Some((_, Verdict::Silent(_))) => seat.silent = true,
                Some((_, Verdict::Works)) => seat.silent = false,
                Some((_, Verdict::Degraded(_))) | None => {}
            }
        }
        let known = self.watch.segments.get(&segment.name);
        let before = known.map_or(Finding::Unknown, |k| k.finding);
        decision.finding = survey.finding(look).filter(|f| *f != before);
        for &target in &segment.probe_targets {
            let before = known.and_then(|k| k.targets.get(&target)).copied();
            let now = target_answers(&survey, look, target, before);
            decision.targets.extend(now.filter(|n| Some(*n) != before).map(|n| (target, n)));
        }
        decision
    }

    /// When every port would be silent nobody is blamed: there would be nowhere to go, and rather than all ports something
    /// between them is broken (a switch that isolates its ports from one another).
    fn keep_the_last(&self, survey: &Survey, decision: &mut Decision) {
        let falls_silent =
            |p: usize| decision.ports.iter().any(|d| d.0 == p && matches!(d.1, Verdict::Silent(_)));
        let returns = |p: usize| decision.ports.contains(&(p, Verdict::Works));
        let stays = |s: &Seat| !falls_silent(s.port) && (!s.silent || returns(s.port));
        if !survey.seats.iter().any(stays) {
            decision.ports.retain(|&(p, v)| {
                !matches!(v, Verdict::Silent(_)) || self.ports[p].state == PortState::Silent
            });
        }
    }

    /// Carries out a decision: states first, so that no address goes to a port that is about to fail too; then what
    /// follows from them, then the events.
    pub(super) fn carry_out_decision(&mut self, segment: &str, decision: Decision, look: &Look) {
        if decision.is_empty() {
            return;
        }
        for seat in self.survey(segment, look).seats {
            if decision.ports.iter().any(|&(p, v)| p == seat.port && matches!(v, Verdict::Silent(_))) {
                self.ports[seat.port].silent_since = seat.silent_since();
            }
        }
        let mut changed: Vec<(usize, PortState, Verdict)> =
            decision.ports.iter().map(|&(p, v)| (p, self.set_verdict(p, v), v)).collect();
        changed.sort_by_key(|c| self.ports[c.0].rank()); // the worst gives a common failover its reason
        for &(p, from, v) in &changed {
            if let Verdict::Silent(reason) | Verdict::Degraded(reason) = v
                && from != self.ports[p].state
            {
                self.port_failed(p, from, reason);
            }
        }
        for &(p, from, _) in changed.iter().filter(|c| c.2 == Verdict::Works) {
            self.port_improved(p, from);
        }
        for &(p, from, v) in &changed {
            let (reason, losses) = match v {
                Verdict::Silent(reason) => (Some(reason), false),
                Verdict::Degraded(reason) => (Some(reason), true),
                Verdict::Works => (None, false),
            };
            let evidence = self.evidence(segment, look, losses);
            self.port_event(p, from, reason, Some(Box::new(evidence)));
        }
        if let Some(to) = decision.finding {
            let from = std::mem::replace(&mut self.known(segment).finding, to);
            let evidence = Box::new(self.evidence(segment, look, false));
            self.event(EventKind::Segment { segment: segment.to_owned(), from, to, evidence });
        }
        for (target, answers) in decision.targets {
            let before = self.known(segment).targets.insert(target, answers);
            let segment = segment.to_owned();
            match (before, answers) {
                (_, false) => self.event(EventKind::TargetSilent { segment, target }),
                (Some(false), true) => self.event(EventKind::TargetAnswers { segment, target }),
                (Some(true) | None, true) => {}
            }
        }
    }

    fn known(&mut self, segment: &str) -> &mut super::Known {
        self.watch.segments.entry(segment.to_owned()).or_default()
    }

    /// Sets a port's state and returns the one before.
    fn set_verdict(&mut self, p: usize, verdict: Verdict) -> PortState {
        let from = self.ports[p].state;
        match verdict {
            Verdict::Silent(reason) => self.fail(p, PortState::Silent, reason),
            Verdict::Degraded(reason) => self.fail(p, PortState::Degraded, reason),
            Verdict::Works => self.hold(p),
        }
        from
    }
}

/// Does the target answer anywhere in the segment? `None`: not known, or what was known still holds.
fn target_answers(survey: &Survey, look: &Look, target: IpAddr, before: Option<bool>) -> Option<bool> {
    let mut samples = look
        .reading
        .targets
        .iter()
        .filter(|t| t.target == target && survey.seat(t.port).is_some())
        .peekable();
    samples.peek()?;
    let mut missing = true;
    for t in samples {
        if look.answers(t) {
            return Some(true);
        }
        missing &= look.is_missing(t);
    }
    (before == Some(true) && missing && survey.ports_are_fine()).then_some(false)
}
