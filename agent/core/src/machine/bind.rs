//! Bindings: which port every address is on, and the effects that bring it there.
//!
//! For each address, in this order: the kernel programs learn the new port (from then on only that port answers for
//! it, and its replies leave there), the address is configured on the new port, it is announced, and only at the end
//! it leaves the old port, so that sockets and connections never see it gone. Effects come in chunks, so that with a
//! thousand addresses the first is not kept waiting for the last.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::load::Measured;
use super::ports::{is_usable, rank};
use super::{Machine, Vip};
use crate::config::PortFailback;
use crate::spread::{Bin, assign, even_out};
use crate::{Effect, EventKind, FailoverKind, Hop, IfIndex, PortState, Reason, Rebinding};

/// Addresses that are bound together before they are announced together.
const CHUNK: usize = 32;

impl Machine {
    /// A port is worse than it was in state `from`.
    pub(super) fn port_failed(&mut self, p: usize, from: PortState, reason: Reason) {
        let segment = self.ports[p].segment.clone();
        let stranded = is_usable(from)
            && !self.in_segment(&segment).any(|p| self.ports[p].is_usable())
            && self.vips.values().any(|v| v.port == Some(p));
        let moves = self.better_ports(&segment);
        self.carry_out(&segment, &moves, reason);
        if stranded {
            self.event(EventKind::Stranded { segment });
        }
    }

    /// A port is usable, or better than it was.
    pub(super) fn port_improved(&mut self, p: usize, from: PortState) {
        if !is_usable(from) {
            self.out.extend(self.ports[p].ifindex().map(Effect::ForgetUnresolved));
            self.complete(p, None);
        }
        let segment = self.ports[p].segment.clone();
        let moves = self.better_ports(&segment);
        self.carry_out(&segment, &moves, Reason::PortReturned);
        let spread = self.config.as_ref().and_then(|c| c.segments.iter().find(|s| s.name == segment));
        if self.ports[p].state == PortState::Good
            && spread.is_some_and(|s| s.port_failback == PortFailback::Spread)
        {
            let moves = self.evened_out(&segment);
            self.carry_out(&segment, &moves, Reason::PortFailback);
        }
    }

    /// Nothing new about a port, but its interface may have come up or gone down: that changes what can be routed by.
    pub(super) fn port_unchanged(&mut self, p: usize) {
        let segment = self.ports[p].segment.clone();
        self.steer(&segment);
    }

    /// Starts serving: the mark goes on, and every address of the server gets a port, is configured and announced.
    pub(super) fn serve(&mut self, index: usize) {
        if !self.servers[index].marked {
            let server = self.servers[index].name.clone();
            self.servers[index].marked = true;
            self.servers[index].routing.clear();
            self.servers[index].measured = Measured::inherited(self.known_load(&server));
            self.out.push(Effect::Mark { server, incarnation: Some(self.incarnation) });
        }
        for p in 0..self.ports.len() {
            self.complete(p, Some(index));
        }
        for segment in self.segments() {
            let moves = self.better_ports(&segment);
            self.bind(&segment, &moves);
        }
    }

    /// Stops serving: the mark goes off, and the addresses go.
    pub(super) fn unserve(&mut self, index: usize) {
        let server = self.servers[index].name.clone();
        self.servers[index].marked = false;
        self.out.push(Effect::Mark { server, incarnation: None });
        let mut gone = Vec::new();
        for (address, vip) in self.vips.iter_mut().filter(|(_, v)| v.server == index) {
            vip.port = None;
            gone.extend(self.assigned.iter().copied().filter(|(a, _)| a == address));
        }
        self.remove(gone);
        self.segments().iter().for_each(|s| self.steer(s));
    }

    /// Goes on serving what an earlier agent served: completes it, and moves it off ports that have failed meanwhile.
    pub(super) fn serve_on(&mut self) {
        for p in 0..self.ports.len() {
            self.complete(p, None);
        }
        for segment in self.segments() {
            let moves = self.better_ports(&segment);
            let left = moves.iter().find_map(|(a, _)| self.vips[a].port);
            match left.and_then(|p| self.ports[p].fault()) {
                Some(reason) => self.carry_out(&segment, &moves, reason),
                None => self.bind(&segment, &moves),
            }
        }
    }

    /// Every served address (`of` one server, or of all) that is bound to this port is there, announced, and nowhere else.
    fn complete(&mut self, p: usize, of: Option<usize>) {
        let Some(ifindex) = self.ports[p].ifindex().filter(|_| self.ports[p].rank() > 0) else { return };
        let bound: Vec<IpAddr> = self
            .vips
            .iter()
            .filter(|(_, v)| v.port == Some(p) && self.is_served(v))
            .filter(|(_, v)| of.is_none_or(|s| s == v.server))
            .map(|(a, _)| *a)
            .collect();
        for &address in &bound {
            self.permit(address);
            if !self.assigned.contains(&(address, ifindex)) {
                self.add(address, ifindex);
            }
            self.repeats.soon(self.now, address);
        }
        self.remove(bound.into_iter().flat_map(|a| self.elsewhere(a, ifindex)).collect());
    }

    /// Served addresses whose port is worse than the best of their segment, and the port each should go to. Those that are
    /// reached by way of a peer stay there.
    pub(super) fn better_ports(&self, segment: &str) -> Vec<(IpAddr, usize)> {
        let best = self.in_segment(segment).map(|p| self.ports[p].rank()).max().unwrap_or(0);
        if best == 0 {
            return Vec::new();
        }
        let worse = |v: &Vip| v.port.is_none_or(|p| self.ports[p].rank() < best && !self.is_away(v));
        let items: Vec<(IpAddr, u64)> = self
            .vips
            .iter()
            .filter(|(_, v)| v.segment == segment && self.is_served(v) && worse(v))
            .map(|(a, v)| (*a, v.weight()))
            .collect();
        if items.is_empty() {
            return Vec::new();
        }
        let mut moves = assign(&items, &mut self.bins(segment, best));
        moves.sort_by_key(|(a, _)| {
            let vip = &self.vips[a];
            (vip.server, Reverse(vip.weight()), *a)
        });
        moves
    }

    /// The moves that even out the good ports of a segment.
    fn evened_out(&self, segment: &str) -> Vec<(IpAddr, usize)> {
        let mut bins = self.bins(segment, rank(PortState::Good));
        let items: Vec<(IpAddr, u64, usize)> = self
            .vips
            .iter()
            .filter(|(_, v)| v.segment == segment && self.is_served(v))
            .filter_map(|(a, v)| v.port.map(|p| (*a, v.weight(), p)))
            .filter(|&(_, _, p)| bins.iter().any(|b| b.port == p))
            .collect();
        even_out(&items, &mut bins)
    }

    /// The segment's ports of this rank, with what they carry.
    fn bins(&self, segment: &str, rank: u8) -> Vec<Bin> {
        let load = |p| self.vips.values().filter(|v| v.port == Some(p)).map(|v| v.weight()).sum();
        self.in_segment(segment)
            .filter(|&p| self.ports[p].rank() == rank)
            .map(|port| Bin { port, load: load(port) })
            .collect()
    }

    fn in_segment<'a>(&'a self, segment: &'a str) -> impl Iterator<Item = usize> + 'a {
        (0..self.ports.len()).filter(move |&p| self.ports[p].segment == segment)
    }

    /// Moves addresses and says so.
    fn carry_out(&mut self, segment: &str, moves: &[(IpAddr, usize)], reason: Reason) {
        if moves.is_empty() {
            self.steer(segment);
            return;
        }
        let name = |m: &Machine, p: usize| m.ports[p].interface.clone();
        let rebindings = moves
            .iter()
            .map(|&(address, to)| Rebinding {
                address,
                from: self.vips[&address].port.map(|p| name(self, p)),
                to: name(self, to),
            })
            .collect();
        self.bind(segment, moves);
        self.failovers += 1;
        let kind = EventKind::Failover { kind: FailoverKind::Port, reason, moves: rebindings };
        self.event_of(Some(self.failovers), kind);
    }

    /// Brings addresses to their new ports, which all exist.
    pub(super) fn bind(&mut self, segment: &str, moves: &[(IpAddr, usize)]) {
        for chunk in moves.chunks(CHUNK) {
            let to: Vec<(IpAddr, IfIndex)> = chunk
                .iter()
                .filter_map(|&(address, p)| {
                    self.vips.get_mut(&address)?.port = Some(p);
                    Some((address, self.ports[p].ifindex()?))
                })
                .collect();
            to.iter().for_each(|&(a, _)| self.permit(a));
            for &(address, ifindex) in &to {
                if !self.assigned.contains(&(address, ifindex)) {
                    self.add(address, ifindex);
                }
            }
            for &(address, ifindex) in &to {
                if !self.vips.get(&address).is_some_and(|v| self.is_away(v)) {
                    self.announce(address, ifindex);
                }
            }
            self.steer(segment); // once: the second time nothing has changed
        }
        let now = moves.iter().filter_map(|&(address, p)| Some((address, self.ports[p].ifindex()?)));
        self.remove(now.flat_map(|(address, ifindex)| self.elsewhere(address, ifindex)).collect());
    }

    pub(super) fn permit(&mut self, address: IpAddr) {
        let Some(vip) = self.vips.get(&address) else { return };
        let server = self.servers[vip.server].name.clone();
        let port = vip.port.and_then(|p| self.ports[p].ifindex());
        self.out.push(Effect::Permit { address, server, port });
    }

    /// Where an address is besides here.
    fn elsewhere(&self, address: IpAddr, here: IfIndex) -> impl Iterator<Item = (IpAddr, IfIndex)> + use<'_> {
        let all = (address, IfIndex(0))..=(address, IfIndex(u32::MAX));
        self.assigned.range(all).copied().filter(move |a| a.1 != here)
    }

    /// Asks for the segment's routes if they are to change: the usable ports, best first; where there are none, all
    /// that can hold a route; where a peer answers in the segment, that peer.
    pub(super) fn steer(&mut self, segment: &str) {
        if self.vips.values().any(|v| v.segment == segment && self.is_served(v) && self.is_away(v)) {
            // An agent that starts doesn't know the peer yet; the routes of the one before it are still right.
            if let Some(hop) = self.hop_to_router(segment) {
                self.steer_by(segment, Vec::new(), Some(hop));
            }
            return;
        }
        let mut order: Vec<usize> = self.in_segment(segment).filter(|&p| self.ports[p].is_usable()).collect();
        if order.is_empty() {
            order = self.in_segment(segment).filter(|&p| self.ports[p].is_up()).collect();
        }
        order.sort_by_key(|&p| Reverse(self.ports[p].rank()));
        let ports: Vec<IfIndex> = order.iter().filter_map(|&p| self.ports[p].ifindex()).collect();
        self.steer_by(segment, ports, None);
    }

    fn steer_by(&mut self, segment: &str, ports: Vec<IfIndex>, via: Option<Hop>) {
        let wanted = (ports, via);
        if self.steered.get(segment) != Some(&wanted) {
            let (ports, via) = wanted.clone();
            self.steered.insert(segment.to_owned(), wanted);
            self.out.push(Effect::Steer { segment: segment.to_owned(), ports, via });
        }
    }
}
