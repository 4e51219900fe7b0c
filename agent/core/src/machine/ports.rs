//! Port states: what is known of each port, its verdict, and the hold-down of ports that come back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Machine;
use super::paths::{Health, error_health};
use crate::config::PortConfig;
use crate::{
    Attachment, Effect, EventKind, Evidence, IfIndex, Link, LinkErrors, PortState, ProbePort, Reason, Sample,
    Time,
};

/// A configured port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Port {
    pub interface: String,
    pub segment: String,
    pub state: PortState,
    /// As told by events.
    pub link: Option<Link>,
    /// As last read; `None`: not read since the interface appeared.
    read: Option<bool>,
    pub programs: Programs,
    /// Failures that the hold-down remembers.
    pub flaps: u32,
    /// Held: until when. Good after a hold: since when.
    pub since: Time,
    until: Time,
    /// Silent or degraded: why.
    pub verdict: Option<Reason>,
    /// Silent: when the silence of its paths in, and out, began. What came before shows nothing of them.
    pub silent_since: (Time, Time),
    /// By the losses of its paths it is to blame.
    pub lossy: bool,
    /// Its error counters say that it is bad.
    faulty: bool,
    /// Degraded: since when it is clean again.
    clean_since: Option<Time>,
    /// Since when readings prove that it receives,
    pub receives_since: Option<Time>,
    /// and that it sends.
    pub sends_since: Option<Time>,
    /// Its error counters in the last sample, where known.
    pub errors: Option<LinkErrors>,
    /// Bytes per second, where known.
    pub speed: Option<u64>,
}

/// Are the kernel programs on the port?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Programs {
    /// Asked for.
    Asked,
    /// They are.
    On(Attachment),
    /// They could not be put there.
    Refused,
}

impl Port {
    pub fn new(config: &PortConfig) -> Port {
        Port {
            interface: config.interface.clone(),
            segment: config.segment.clone(),
            state: PortState::Down,
            link: None,
            read: None,
            programs: Programs::Asked,
            flaps: 0,
            since: Time::default(),
            until: Time::default(),
            verdict: None,
            silent_since: Default::default(),
            lossy: false,
            faulty: false,
            clean_since: None,
            receives_since: None,
            sends_since: None,
            errors: None,
            speed: None,
        }
    }

    pub fn ifindex(&self) -> Option<IfIndex> {
        self.link.as_ref().map(|l| l.ifindex)
    }

    /// The interface exists and is administratively up: addresses and routes can be put on it.
    pub fn is_up(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.up)
    }

    pub fn has_carrier(&self) -> bool {
        self.link.as_ref().is_some_and(|l| l.up && l.carrier) && self.read != Some(false)
    }

    pub fn held_until(&self) -> Option<Time> {
        (self.state == PortState::Held).then_some(self.until)
    }

    /// What is wrong with the interface; `None`: it has carrier and the kernel programs. Verdicts from paths and counters
    /// come on top: see [`Port::reason`].
    pub fn fault(&self) -> Option<Reason> {
        match &self.link {
            None => Some(Reason::InterfaceGone),
            Some(l) if !l.up => Some(Reason::AdminDown),
            Some(_) if !self.has_carrier() => Some(Reason::CarrierLost),
            Some(_) if self.programs == Programs::Refused => Some(Reason::AttachFailed),
            Some(_) => None,
        }
    }

    /// The port as one that can be probed, if it can: up, with carrier, kernel programs and a MAC address.
    pub fn probed(&self) -> Option<ProbePort> {
        let link = self.link.as_ref().filter(|l| l.mac != [0; 6] && self.has_carrier())?;
        matches!(self.programs, Programs::On(_)).then(|| ProbePort {
            ifindex: link.ifindex,
            interface: self.interface.clone(),
            segment: self.segment.clone(),
            mac: link.mac,
        })
    }

    /// Why the port is worse than it could be.
    pub fn reason(&self) -> Option<Reason> {
        self.fault().or(self.verdict)
    }

    /// Clients can be served by it, as far as is known.
    pub fn is_usable(&self) -> bool {
        is_usable(self.state)
    }

    /// What `bad`, an earlier finding, is now. Between the limits it stays, and a degraded port is not clean there.
    pub fn is_still_bad(&self, bad: bool, health: Health) -> bool {
        match health {
            Health::Bad => true,
            Health::Between => bad || self.state == PortState::Degraded,
            Health::Clean => false,
        }
    }

    /// What would make it degraded.
    fn trouble(&self) -> Option<Reason> {
        match (self.lossy, self.faulty) {
            (true, _) => Some(Reason::Loss),
            (false, true) => Some(Reason::Errors),
            (false, false) => None,
        }
    }

    /// Forgets all verdicts that aren't of the interface itself.
    fn forget_verdicts(&mut self) {
        self.verdict = None;
        (self.lossy, self.faulty) = (false, false);
        (self.clean_since, self.receives_since, self.sends_since) = (None, None, None);
        self.errors = None;
    }

    /// Higher is better; 0: nothing can be put on it.
    pub fn rank(&self) -> u8 {
        rank(self.state)
    }
}

/// How good a port in this state is to have an address on: higher is better; 0: no use at all. A silent port is the last
/// resort where all others have no carrier: it may work again before that can be shown.
pub(super) fn rank(state: PortState) -> u8 {
    match state {
        PortState::Good => 4,
        PortState::Degraded => 3,
        PortState::Held => 2,
        PortState::Silent => 1,
        PortState::Down => 0,
    }
}

/// Clients can be served by a port in this state, as far as is known.
pub(super) fn is_usable(state: PortState) -> bool {
    rank(state) > rank(PortState::Silent)
}

impl Machine {
    /// At start: no hold-down, no events, and what is there is taken as it is.
    pub(super) fn first_link(&mut self, link: Link) {
        let Some(port) = self.ports.iter_mut().find(|p| p.interface == link.name) else { return };
        self.out.push(Effect::Attach(link.ifindex, link.name.clone()));
        port.link = Some(link);
        if port.fault().is_none() {
            port.state = PortState::Good;
            port.since = self.now;
        }
    }

    pub(super) fn port_link(&mut self, link: Link) {
        if let Some(renamed) = self.port_of(link.ifindex)
            && self.ports[renamed].interface != link.name
        {
            self.port_gone(link.ifindex, Reason::InterfaceGone);
        }
        let Some(p) = self.ports.iter().position(|p| p.interface == link.name) else { return };
        let old = self.ports[p].link.replace(link.clone());
        let new_interface = old.as_ref().is_none_or(|o| o.ifindex != link.ifindex);
        if new_interface {
            self.ports[p].read = None;
            self.ports[p].programs = Programs::Asked;
        }
        if new_interface || old.as_ref().is_some_and(|o| o.mac != link.mac) {
            self.out.push(Effect::Attach(link.ifindex, link.name.clone()));
        }
        if !new_interface && old.is_some_and(|o| o.mac != link.mac) {
            self.announce_port(p);
        }
        self.judge(p);
    }

    pub(super) fn port_gone(&mut self, ifindex: IfIndex, reason: Reason) {
        let Some(p) = self.port_of(ifindex) else { return };
        self.ports[p].link = None;
        self.ports[p].read = None;
        self.ports[p].speed = None;
        self.judge_for(p, Some(reason));
        // The kernel sets an interface down before it deletes it, so the verdict often speaks of that alone.
        let interface = self.ports[p].interface.clone();
        self.event(EventKind::InterfaceAbsent { interface });
    }

    pub(super) fn carrier_read(&mut self, ifindex: IfIndex, carrier: bool) {
        let Some(p) = self.port_of(ifindex) else { return };
        self.ports[p].read = Some(carrier);
        self.judge(p);
    }

    pub(super) fn attached(&mut self, ifindex: IfIndex, attachment: Attachment) {
        let Some(p) = self.port_of(ifindex) else { return };
        if self.ports[p].programs != Programs::On(attachment) {
            let interface = self.ports[p].interface.clone();
            self.event(EventKind::Attached { interface, mode: attachment });
        }
        self.ports[p].programs = Programs::On(attachment);
        self.judge(p);
    }

    pub(super) fn attach_failed(&mut self, ifindex: IfIndex) {
        let Some(p) = self.port_of(ifindex) else { return };
        self.ports[p].programs = Programs::Refused;
        self.judge(p);
    }

    pub(super) fn attach_again(&mut self, p: usize) {
        let port = &self.ports[p];
        if let (Programs::Refused, Some(ifindex)) = (port.programs, port.ifindex()) {
            self.out.push(Effect::Attach(ifindex, port.interface.clone()));
        }
    }

    /// When the hold-down of a port ends, or a degraded one has been clean for long enough.
    pub(super) fn ends_at(&self, p: usize) -> Option<Time> {
        let port = &self.ports[p];
        match port.state {
            PortState::Held => Some(port.until),
            PortState::Degraded => port.clean_since.map(|t| t + self.hold_down(p)),
            PortState::Good | PortState::Silent | PortState::Down => None,
        }
    }

    /// Ports whose hold-down is over, or that have been clean for as long, are good.
    pub(super) fn end_holds(&mut self) {
        for p in 0..self.ports.len() {
            if self.ends_at(p).is_some_and(|t| t <= self.now) {
                self.end_hold(p);
            }
        }
    }

    fn end_hold(&mut self, p: usize) {
        let from = self.ports[p].state;
        let trouble = self.ports[p].trouble();
        self.ports[p].verdict = trouble;
        self.ports[p].clean_since = None;
        self.ports[p].since = self.now;
        self.ports[p].state = if trouble.is_some() { PortState::Degraded } else { PortState::Good };
        self.port_improved(p, from);
        let evidence = trouble.map(|_| Box::new(self.last_evidence(p)));
        self.port_event(p, from, trouble, evidence);
    }

    fn judge(&mut self, p: usize) {
        let fault = self.ports[p].fault();
        self.judge_for(p, fault);
    }

    /// Draws the verdict for a port from its interface, and what follows from it.
    fn judge_for(&mut self, p: usize, fault: Option<Reason>) {
        let state = self.ports[p].state;
        match (state, fault) {
            (PortState::Down, None) => {
                self.hold(p);
                self.port_improved(p, state);
                self.port_event(p, state, None, None);
            }
            (PortState::Down, Some(_)) => self.port_unchanged(p),
            (PortState::Good | PortState::Held | PortState::Degraded | PortState::Silent, Some(reason)) => {
                self.fail(p, PortState::Down, reason);
                self.port_failed(p, state, reason);
                self.port_event(p, state, Some(reason), None);
            }
            (PortState::Good | PortState::Held | PortState::Degraded | PortState::Silent, None) => {}
        }
    }

    /// The port is worse: down, silent or degraded.
    pub(super) fn fail(&mut self, p: usize, to: PortState, reason: Reason) {
        let from = self.ports[p].state;
        // One failure, however it shows: what was silent may lose its carrier too, or be silent the other way as well.
        if from != PortState::Silent {
            self.remember_failure(p, from);
        }
        let port = &mut self.ports[p];
        port.state = to;
        port.clean_since = None;
        match to {
            PortState::Down => port.forget_verdicts(),
            _ => port.verdict = Some(reason),
        }
    }

    /// The port is back: held if it failed before, good at once if it never did.
    pub(super) fn hold(&mut self, p: usize) {
        let hold = self.hold_down(p);
        let now = self.now;
        let port = &mut self.ports[p];
        port.verdict = None;
        if hold.is_zero() {
            port.state = PortState::Good;
            port.since = now;
        } else {
            port.state = PortState::Held;
            port.until = now + hold;
        }
    }

    /// A degraded port is good again when nothing has been wrong with it for its whole hold-down.
    pub(super) fn count_clean_time(&mut self, p: usize) {
        let now = self.now;
        let port = &mut self.ports[p];
        if port.state == PortState::Degraded {
            port.clean_since = match port.trouble() {
                Some(_) => None,
                None => port.clean_since.or(Some(now)),
            };
        }
    }

    /// What the error counters in a sample say of each port.
    pub(super) fn weigh_errors(&mut self, sample: &Sample) {
        let mut failed = Vec::new();
        for p in 0..self.ports.len() {
            let port = &mut self.ports[p];
            let Some(errors) = port.ifindex().and_then(|i| sample.errors.get(&i)).copied() else { continue };
            port.errors = Some(errors);
            port.faulty = port.is_still_bad(port.faulty, error_health(&errors));
            if port.state == PortState::Good && port.faulty {
                self.fail(p, PortState::Degraded, Reason::Errors);
                failed.push((p, self.error_evidence(p, &errors)));
            }
            self.count_clean_time(p);
        }
        failed.iter().for_each(|&(p, _)| self.port_failed(p, PortState::Good, Reason::Errors));
        for (p, evidence) in failed {
            self.port_event(p, PortState::Good, Some(Reason::Errors), Some(Box::new(evidence)));
        }
    }

    fn timing(&self) -> (Duration, Duration) {
        self.config
            .as_ref()
            .map_or((Duration::ZERO, Duration::ZERO), |c| (c.timing.hold_down, c.timing.hold_down_max))
    }

    /// A failure after a long good time counts as the first; one within it makes the hold-down longer.
    fn remember_failure(&mut self, p: usize, state: PortState) {
        let (_, max) = self.timing();
        let now = self.now;
        let port = &mut self.ports[p];
        let stable = state == PortState::Good && now.since(port.since) >= max;
        port.flaps = if stable { 1 } else { port.flaps.saturating_add(1) };
    }

    /// How long a port that comes back now is held: `hold_down`, doubled for every failure but the first, at most
    /// `hold_down_max`; nothing for a port that never failed.
    fn hold_down(&self, p: usize) -> Duration {
        let (base, max) = self.timing();
        match self.ports[p].flaps {
            0 => Duration::ZERO,
            n => base.saturating_mul(1u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(max),
        }
    }

    /// Says that the port was in state `from` until now.
    pub(super) fn port_event(
        &mut self,
        p: usize,
        from: PortState,
        reason: Option<Reason>,
        evidence: Option<Box<Evidence>>,
    ) {
        let port = &self.ports[p];
        let (interface, segment, to) = (port.interface.clone(), port.segment.clone(), port.state);
        self.event(EventKind::Port { interface, segment, from, to, reason, evidence });
    }
}
