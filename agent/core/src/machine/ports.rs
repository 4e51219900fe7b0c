//! Port states: what is known of each port, its verdict, and the hold-down of ports that come back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::config::PortConfig;
use crate::{Attachment, Effect, EventKind, IfIndex, Link, PortState, ProbePort, Reason, Time};

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

    /// Why the port can't be used; `None`: it can.
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

    /// Higher is better; 0: unusable.
    pub fn rank(&self) -> u8 {
        rank(self.state)
    }
}

/// How good a port in this state is to have an address on: higher is better; 0: unusable.
pub(super) fn rank(state: PortState) -> u8 {
    match state {
        PortState::Good => 3,
        PortState::Degraded => 2,
        PortState::Held => 1,
        PortState::Silent | PortState::Down => 0,
    }
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

    /// Ports whose hold-down is over are good.
    pub(super) fn end_holds(&mut self) {
        for p in 0..self.ports.len() {
            if self.ports[p].held_until().is_some_and(|t| t <= self.now) {
                self.ports[p].state = PortState::Good;
                self.ports[p].since = self.now;
                self.port_improved(p, PortState::Held);
                self.port_event(p, PortState::Held, None);
            }
        }
    }

    fn judge(&mut self, p: usize) {
        let fault = self.ports[p].fault();
        self.judge_for(p, fault);
    }

    /// Draws the verdict for a port, and what follows from it.
    fn judge_for(&mut self, p: usize, fault: Option<Reason>) {
        let state = self.ports[p].state;
        match (state, fault) {
            (PortState::Down, None) => {
                let hold = self.hold_down(p);
                if hold.is_zero() {
                    self.ports[p].state = PortState::Good;
                    self.ports[p].since = self.now;
                } else {
                    self.ports[p].state = PortState::Held;
                    self.ports[p].until = self.now + hold;
                }
                self.port_improved(p, state);
                self.port_event(p, state, None);
            }
            (PortState::Down, Some(_)) => self.port_unchanged(p),
            (PortState::Good | PortState::Held | PortState::Degraded | PortState::Silent, Some(reason)) => {
                self.remember_failure(p, state);
                self.ports[p].state = PortState::Down;
                self.port_failed(p, reason);
                self.port_event(p, state, Some(reason));
            }
            (PortState::Good | PortState::Held | PortState::Degraded | PortState::Silent, None) => {}
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
    fn port_event(&mut self, p: usize, from: PortState, reason: Option<Reason>) {
        let port = &self.ports[p];
        let (interface, segment, to) = (port.interface.clone(), port.segment.clone(), port.state);
        self.event(EventKind::Port { interface, segment, from, to, reason, evidence: None });
    }
}
