//! Announcements are repeated, because one may be lost; many are paced, because a burst would be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::{Effect, IfIndex, Time};

/// At most this many addresses are announced again at once,
const BURST: usize = 64;
/// and the next ones this much later.
const PAUSE: Duration = Duration::from_millis(1);

/// Which address is to be announced again when.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Repeats {
    schedule: Vec<Duration>,
    due: BTreeSet<(Time, IpAddr)>,
    /// Of each address: first announced when, repeats already sent, next due when.
    state: BTreeMap<IpAddr, (Time, usize, Time)>,
    paused_until: Time,
}

impl Repeats {
    pub fn set_schedule(&mut self, mut schedule: Vec<Duration>) {
        schedule.sort();
        self.schedule = schedule;
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Time> {
        self.due.first().map(|d| d.0.max(self.paused_until))
    }

    /// The address has just been announced for the first time at its port.
    fn begin(&mut self, now: Time, address: IpAddr) {
        self.put(address, now, 0);
    }

    /// The address is to be announced soon, then on the schedule.
    pub fn soon(&mut self, now: Time, address: IpAddr) {
        self.drop(address);
        self.state.insert(address, (now, 0, now));
        self.due.insert((now, address));
    }

    fn put(&mut self, address: IpAddr, start: Time, sent: usize) {
        self.drop(address);
        if let Some(after) = self.schedule.get(sent) {
            let at = start + *after;
            self.state.insert(address, (start, sent, at));
            self.due.insert((at, address));
        }
    }

    /// It is not announced again.
    pub fn drop(&mut self, address: IpAddr) {
        if let Some((_, _, at)) = self.state.remove(&address) {
            self.due.remove(&(at, address));
        }
    }

    /// Takes those whose time has come, at most a burst.
    fn take(&mut self, now: Time) -> Vec<IpAddr> {
        if now < self.paused_until {
            return Vec::new();
        }
        let due: Vec<IpAddr> = self.due.iter().take_while(|d| d.0 <= now).take(BURST).map(|d| d.1).collect();
        for &address in &due {
            if let Some(&(start, sent, at)) = self.state.get(&address) {
                // `soon`: due at once, and its schedule is still whole.
                self.put(address, start, if at == start { sent } else { sent + 1 });
            }
        }
        if due.len() == BURST {
            self.paused_until = now + PAUSE;
        }
        due
    }
}

impl Machine {
    /// Announces an address on its new port, now and on the schedule.
    pub(super) fn announce(&mut self, address: IpAddr, ifindex: IfIndex) {
        self.out.push(Effect::Announce(ifindex, address));
        self.repeats.begin(self.now, address);
    }

    /// Announces all addresses of a port again: its MAC address has changed.
    pub(super) fn announce_port(&mut self, p: usize) {
        let bound: Vec<IpAddr> =
            self.vips.iter().filter(|(_, v)| v.port == Some(p)).map(|(a, _)| *a).collect();
        bound.into_iter().for_each(|a| self.repeats.soon(self.now, a));
    }

    pub(super) fn announce_due(&mut self) {
        for address in self.repeats.take(self.now) {
            let vip = self.vips.get(&address).filter(|v| !self.is_away(v));
            let usable = vip.and_then(|v| v.port).is_some_and(|p| self.ports[p].rank() > 0);
            let there = |i: &IfIndex| self.assigned.contains(&(address, *i));
            if let Some(ifindex) = self.desired(address).filter(|_| usable).filter(there) {
                self.out.push(Effect::Announce(ifindex, address));
            }
        }
    }
}
