//! The machine: all state of one node, and what each input does to it.
//!
//! | a port that is | becomes | when |
//! |---|---|---|
//! | anything else | `Down` | it is not ok |
//! | `Down` | `Held`; `Good`, where it never failed before | it is ok |
//! | `Good`, `Held`, `Degraded` | `Silent` | it is to blame for the silence of paths |
//! | `Silent` | `Held` | it is proven to send and to receive |
//! | `Good` | `Degraded` | it loses frames, or counts errors |
//! | `Degraded` | `Good` | it has been clean for its hold-down |
//! | `Held` | `Good`; `Degraded`, where it loses frames or counts errors | its hold-down is over |
//!
//! A port is *ok* when its interface exists, is administratively up, has carrier by the last event **and** by the last
//! read, and carries the kernel programs. Whether an ok port is silent or degraded is drawn from the path table and from
//! error counters: `paths` has the rules and a table of cases. Addresses are on the best ports of their segment: good
//! before degraded before held; a silent one is the last resort where the others are down. When there is no better port
//! they stay where they are, for there is nothing to win.
//!
//! `ports` keeps port states, `paths` watches for silence and loss, `bind` moves addresses, `announce` repeats
//! announcements, `load` measures what virtual servers cost, `resources` has file systems and services started before
//! anything is served, `storage` knows which storage units are reached, `view` builds the snapshot.

mod announce;
mod bind;
mod cluster;
mod load;
mod paths;
mod ports;
mod reload;
#[cfg(test)]
mod reload_tests;
mod resources;
mod start;
mod storage;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Assigned, Claim, Config, Effect, Event, EventKind, Found, Hop, IfIndex, Input, Link, Owner, ProbePort,
    Reason, Time,
};

/// When something that could not be carried out is tried again.
const REPAIR_AFTER: Duration = Duration::from_secs(1);
/// A claim is answered by announcing again, at most once in this time (RFC 5227, DEFEND_INTERVAL).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// A foreign host that has not claimed an address for this long is no longer in conflict.
const CLAIM_EXPIRES: Duration = Duration::from_secs(60);
/// What fails in the same way all the time is told once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// An announcement that could not be sent is sent this much later.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(5);

/// All decisions of one node. See the crate and module documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    now: Time,
    config: Option<Config>,
    incarnation: u64,
    /// In the order of the configuration; their index is the port's number everywhere in core.
    ports: Vec<ports::Port>,
    /// In the order of taking: by priority, then name.
    servers: Vec<Server>,
    vips: BTreeMap<IpAddr, Vip>,
    /// Addresses that Baton has on an interface, as far as known: (address, interface).
    assigned: BTreeSet<(IpAddr, IfIndex)>,
    /// Removals of ours whose notification is still to come; any other removal is somebody else's.
    removing: Vec<(IpAddr, IfIndex)>,
    /// Addresses whose port the kernel programs could not be told.
    unpermitted: BTreeSet<IpAddr>,
    /// Names of all interfaces, to speak of them in events.
    names: BTreeMap<IfIndex, String>,
    /// What was last asked for, by segment: by which ports, or by which peer.
    steered: BTreeMap<String, (Vec<IfIndex>, Option<Hop>)>,
    /// Virtual IPs whose packets go on to their owner, and how.
    routed: BTreeMap<IpAddr, Hop>,
    watch: paths::Watch,
    cluster: Option<cluster::Cluster>,
    /// Virtual servers whose serving mark is not yet known to be off, where something waits for that.
    clearing: BTreeSet<String>,
    repeats: announce::Repeats,
    conflicts: Vec<Conflict>,
    repair_at: Option<Time>,
    /// Failures that were told not long ago: the effect, its error, when.
    told: BTreeMap<String, (String, Time)>,
    /// Storage units, as far as told.
    units: BTreeMap<String, storage::Unit>,
    /// How this node is used.
    host: load::Host,
    failovers: u64,
    #[serde(skip)]
    out: Vec<Effect>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Server {
    name: String,
    priority: u32,
    owner: Option<Owner>,
    /// Its serving mark is on, and all its addresses are served here.
    marked: bool,
    /// Its serving mark is on, and its addresses in these segments are answered for here and routed to the owner.
    routing: BTreeSet<String>,
    /// Its load here.
    measured: load::Measured,
    /// Its file systems and services, where it has any.
    resources: Option<resources::Resources>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Vip {
    /// Index into `servers`.
    server: usize,
    /// Segment name.
    segment: String,
    /// Index into `ports`. A port of another segment: a peer answers for the address and routes to it there.
    port: Option<usize>,
    /// Bytes per second, exponentially weighted over the time that has been sampled.
    rate: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Conflict {
    address: IpAddr,
    ifindex: IfIndex,
    mac: Option<[u8; 6]>,
    seen: Time,
    answered: Time,
}

impl Vip {
    /// What it weighs when addresses are spread: its traffic, and a little, so that idle ones are spread by count.
    fn weight(&self) -> u64 {
        self.rate as u64 + 1
    }
}

impl Machine {
    /// A machine that waits for [`Input::Start`].
    pub fn new() -> Machine {
        Machine::default()
    }

    /// Takes one input that happened at `now` and returns what is to be done, in order. `now` never goes back;
    /// one that does counts as the latest known.
    pub fn handle(&mut self, now: Time, input: Input) -> Vec<Effect> {
        self.now = self.now.max(now);
        match input {
            Input::Start(start) => self.start(*start),
            Input::Reload(reload) => self.reload(*reload),
            Input::Link(link) => self.link(link),
            Input::LinkGone(ifindex) => self.link_gone(ifindex),
            Input::Carrier(ifindex, carrier) => self.carrier_read(ifindex, carrier),
            Input::AddressAdded(assigned) => self.address_added(assigned),
            Input::AddressRemoved(assigned) => self.address_removed(assigned),
            Input::SteeringLost { segment, port } => self.steering_lost(&segment, port),
            Input::Resync(found) => self.resync(found),
            Input::Claim(claim) => self.claim(claim),
            Input::Attached(ifindex, attachment) => self.attached(ifindex, attachment),
            Input::Paths(reading) => self.paths_read(reading),
            Input::Sample(sample) => self.sample(&sample),
            Input::Owned(server, owner) => self.owned(&server, owner),
            Input::Peers(reading) => self.peers_read(reading),
            Input::Verdict { voter, about, incarnation } => self.verdict_given(voter, about, incarnation),
            Input::Store(input) => self.store(input),
            Input::Planned(moves) => self.planned(moves),
            Input::Minute(minute) => self.minute_of_day(minute),
            Input::MarkCleared(server) => self.mark_cleared(&server),
            Input::Resources { server, state } => self.resources_told(&server, state),
            Input::Fenced { server, node, incarnation, failed } => {
                self.fence_answered(server, node, incarnation, failed);
            }
            Input::Storage { unit, state } => self.storage_told(unit, state),
            Input::StorageRead { unit, asked } => self.storage_read(&unit, asked),
            Input::Failed(effect, error) => self.failed(*effect, error),
            Input::Wake => {}
        }
        self.due();
        self.settle();
        std::mem::take(&mut self.out)
    }

    /// The ports that are to be probed, in the order of the configuration.
    pub fn probe_ports(&self) -> Vec<ProbePort> {
        self.ports.iter().filter_map(ports::Port::probed).collect()
    }

    /// When [`Input::Wake`] is wanted; `None`: only when something happens.
    pub fn deadline(&self) -> Option<Time> {
        let holds = (0..self.ports.len()).filter_map(|p| self.ends_at(p));
        let conflicts = self.conflicts.iter().filter(|c| c.mac.is_some()).map(|c| c.seen + CLAIM_EXPIRES);
        let cluster = self.cluster_deadline();
        let resources = self.resources_deadline();
        let rest = self.repeats.next().into_iter().chain(self.repair_at).chain(cluster).chain(resources);
        holds.chain(conflicts).chain(rest).min()
    }

    /// Everything whose time has come.
    fn due(&mut self) {
        self.end_holds();
        self.announce_due();
        if self.repair_at.is_some_and(|t| t <= self.now) {
            self.repair_at = None;
            self.repair();
        }
        let now = self.now;
        self.conflicts.retain(|c| c.mac.is_none() || now < c.seen + CLAIM_EXPIRES);
    }

    fn event(&mut self, kind: EventKind) {
        self.event_of(None, kind);
    }

    fn event_of(&mut self, failover: Option<u64>, kind: EventKind) {
        self.out.push(Effect::Event(Event { at: self.now, failover, kind }));
    }

    fn interface(&self, ifindex: IfIndex) -> String {
        self.names.get(&ifindex).cloned().unwrap_or_else(|| format!("#{}", ifindex.0))
    }

    fn port_of(&self, ifindex: IfIndex) -> Option<usize> {
        self.ports.iter().position(|p| p.ifindex() == Some(ifindex))
    }

    /// The interface that an address is, or is to be, configured on: bound, served, and the interface exists.
    fn desired(&self, address: IpAddr) -> Option<IfIndex> {
        let vip = self.vips.get(&address)?;
        if !self.is_served(vip) {
            return None;
        }
        self.ports[vip.port?].ifindex()
    }

    /// This node serves the address, or answers for it and routes to its owner.
    fn is_served(&self, vip: &Vip) -> bool {
        let server = &self.servers[vip.server];
        server.marked || server.routing.contains(&vip.segment)
    }

    /// The address is bound to a port of another segment: a peer answers for it.
    fn is_away(&self, vip: &Vip) -> bool {
        vip.port.is_some_and(|p| self.ports[p].segment != vip.segment)
    }

    fn address_added(&mut self, a: Assigned) {
        // Ours is no news, and may be old news: it was asked for, and perhaps taken back since.
        if a.ours || !self.vips.contains_key(&a.address) {
            return;
        }
        let known = |c: &Conflict| c.mac.is_none() && c.address == a.address && c.ifindex == a.ifindex;
        if !self.conflicts.iter().any(known) {
            let (address, ifindex, now) = (a.address, a.ifindex, self.now);
            self.conflicts.push(Conflict { address, ifindex, mac: None, seen: now, answered: now });
            let interface = self.interface(ifindex);
            self.event(EventKind::AddressConflict { address, interface });
        }
    }

    fn address_removed(&mut self, a: Assigned) {
        let Assigned { ifindex, address, ours } = a;
        if !ours {
            let local = |c: &Conflict| c.mac.is_none() && c.address == address && c.ifindex == ifindex;
            if let Some(i) = self.conflicts.iter().position(local) {
                self.conflicts.remove(i);
                let interface = self.interface(ifindex);
                self.event(EventKind::AddressConflictOver { address, interface });
            }
            return;
        }
        if let Some(i) = self.removing.iter().position(|r| *r == (address, ifindex)) {
            self.removing.swap_remove(i);
            return;
        }
        if !self.assigned.remove(&(address, ifindex)) || self.desired(address) != Some(ifindex) {
            return;
        }
        // An interface that is down loses its IPv6 addresses by itself; they come back with it, or go elsewhere.
        if self.port_of(ifindex).is_some_and(|p| self.ports[p].is_up()) {
            self.put_back(address, ifindex);
        }
    }

    /// Configures and announces an address that somebody else removed.
    fn put_back(&mut self, address: IpAddr, ifindex: IfIndex) {
        self.add(address, ifindex);
        if address.is_ipv4() {
            self.steer_again(ifindex);
        }
        self.announce(address, ifindex);
        let interface = self.interface(ifindex);
        self.event(EventKind::AddressDeleted { address, interface });
    }

    fn add(&mut self, address: IpAddr, ifindex: IfIndex) {
        self.assigned.insert((address, ifindex));
        self.out.push(Effect::AddAddress(ifindex, address));
    }

    /// Removes addresses of ours from where they are.
    fn remove(&mut self, gone: Vec<(IpAddr, IfIndex)>) {
        let mut left = BTreeSet::new();
        for (address, ifindex) in gone {
            if self.assigned.remove(&(address, ifindex)) {
                self.removing.push((address, ifindex));
                self.out.push(Effect::RemoveAddress(ifindex, address));
                if address.is_ipv4() {
                    left.insert(ifindex);
                }
            }
        }
        left.retain(|left| !self.assigned.iter().any(|(a, i)| i == left && a.is_ipv4()));
        left.into_iter().for_each(|i| self.steer_again(i));
    }

    /// An interface that loses its last IPv4 address loses all its IPv4 routes, and the kernel tells nobody (fib_disable_ip,
    /// net/ipv4/fib_frontend.c): asks for them anew.
    fn steer_again(&mut self, ifindex: IfIndex) {
        let through = |ports: &[IfIndex], via: &Option<Hop>| {
            ports.contains(&ifindex) || via.is_some_and(|hop| hop.ifindex == ifindex)
        };
        let lost = self.steered.iter().filter(|(_, (ports, via))| through(ports, via));
        let again = lost.map(|(segment, (ports, via))| {
            let (segment, ports, via) = (segment.clone(), ports.clone(), *via);
            Effect::Steer { segment, ports, via }
        });
        self.out.extend(again);
    }

    fn claim(&mut self, claim: Claim) {
        let Claim { address, ifindex, mac } = claim;
        let Some(port) = self.desired(address).filter(|i| self.assigned.contains(&(address, *i))) else {
            return;
        };
        if self.port_of(port).is_none_or(|p| self.ports[p].rank() == 0) {
            return; // not answered for at present
        }
        if self.vips.get(&address).is_some_and(|v| self.is_away(v)) {
            return; // a peer answers for it: that is who claims it
        }
        let now = self.now;
        let known = |c: &&mut Conflict| c.address == address && c.mac == Some(mac);
        match self.conflicts.iter_mut().find(known) {
            Some(c) => {
                c.seen = now;
                if now < c.answered + DEFEND_INTERVAL {
                    return;
                }
                c.answered = now;
            }
            None => {
                self.conflicts.push(Conflict { address, ifindex, mac: Some(mac), seen: now, answered: now })
            }
        }
        self.out.push(Effect::Announce(port, address));
        let interface = self.interface(ifindex);
        self.event(EventKind::ForeignClaim { address, interface, mac: view::mac(mac) });
    }

    fn steering_lost(&mut self, segment: &str, port: Option<IfIndex>) {
        let Some((ports, via)) = self.steered.get(segment).cloned() else { return };
        if port.is_some_and(|p| !ports.contains(&p) && via.is_none_or(|hop| hop.ifindex != p)) {
            return; // a port that went down took its routes along
        }
        self.out.push(Effect::Steer { segment: segment.to_owned(), ports, via });
        self.event(EventKind::SteeringDeleted { segment: segment.to_owned() });
    }

    fn resync(&mut self, found: Found) {
        self.event(EventKind::Resynced);
        let gone: Vec<IfIndex> =
            self.names.keys().copied().filter(|i| !found.links.iter().any(|l| l.ifindex == *i)).collect();
        self.removing.clear();
        let before = std::mem::take(&mut self.assigned);
        self.assigned = found.addresses.iter().filter(|a| a.ours).map(|a| (a.address, a.ifindex)).collect();
        self.steered.clear();
        gone.into_iter().for_each(|i| self.link_gone(i));
        found.links.into_iter().for_each(|l| self.link(l));
        let local = |c: &Conflict| {
            c.mac.is_some()
                || found.addresses.iter().any(|a| (a.address, a.ifindex) == (c.address, c.ifindex))
        };
        self.conflicts.retain(local);
        found.addresses.iter().filter(|a| !a.ours).for_each(|a| self.address_added(*a));
        for address in self.vips.keys().copied().collect::<Vec<_>>() {
            let Some(ifindex) = self.desired(address) else { continue };
            if self.assigned.contains(&(address, ifindex)) {
                continue;
            }
            let port = self.port_of(ifindex).map(|p| &self.ports[p]);
            if before.contains(&(address, ifindex)) && port.is_some_and(|p| p.is_up()) {
                self.put_back(address, ifindex);
            } else if port.is_some_and(|p| p.rank() > 0) {
                self.permit(address);
                self.add(address, ifindex);
                self.announce(address, ifindex);
            }
        }
        self.remove_leftovers();
        self.segments().iter().for_each(|s| self.steer(s));
    }

    /// Removes addresses of ours that aren't virtual IPs, and virtual IPs from where they aren't bound once they are
    /// where they are.
    fn remove_leftovers(&mut self) {
        let left = |&(a, i): &(IpAddr, IfIndex)| match self.desired(a) {
            Some(here) => here != i && self.assigned.contains(&(a, here)),
            None => !self.vips.contains_key(&a),
        };
        let wrong: Vec<_> = self.assigned.iter().copied().filter(left).collect();
        self.remove(wrong);
    }

    fn owned(&mut self, name: &str, owner: Owner) {
        let Some(index) = self.servers.iter().position(|s| s.name == name) else { return };
        if owner.incarnation != self.incarnation {
            return; // an answer to an earlier life
        }
        self.servers[index].owner = Some(owner);
        if !self.servers[index].marked && self.servers[index].resources.is_some() {
            return; // served when its file systems and services run
        }
        if !self.servers[index].marked {
            self.serve(index);
        }
        self.event(EventKind::Serving { server: name.to_owned(), epoch: owner.epoch });
    }

    /// The kernel programs don't serve it any more.
    fn mark_cleared(&mut self, server: &str) {
        self.clearing.remove(server);
    }

    fn tell_failure(&mut self, effect: String, error: String) {
        let now = self.now;
        self.told.retain(|_, (_, at)| now < *at + TELL_AGAIN);
        if self.told.get(&effect).is_none_or(|(known, _)| *known != error) {
            self.told.insert(effect.clone(), (error.clone(), now));
            self.event(EventKind::EffectFailed { effect, error });
        }
    }

    fn failed(&mut self, effect: Effect, error: String) {
        let what = match &effect {
            Effect::Plan(..) => "plan for balance".to_owned(),
            other => format!("{other:?}"),
        };
        let reason = error.clone();
        self.tell_failure(what, error);
        match effect {
            Effect::Attach(ifindex, _) => self.attach_failed(ifindex),
            Effect::AddAddress(ifindex, address) => {
                self.assigned.remove(&(address, ifindex));
            }
            Effect::RemoveAddress(ifindex, address) => {
                // This one alone: that an earlier one is done may not have been heard yet.
                if let Some(i) = self.removing.iter().rposition(|r| *r == (address, ifindex)) {
                    self.removing.swap_remove(i);
                }
                if self.names.contains_key(&ifindex) {
                    self.assigned.insert((address, ifindex)); // `repair` tries again
                }
            }
            Effect::Steer { segment, .. } => {
                self.steered.remove(&segment);
            }
            Effect::Mark { server, incarnation: Some(_) } => {
                self.serve_later(&server);
                for server in self.servers.iter_mut().filter(|s| s.name == server) {
                    server.marked = false;
                    server.routing.clear();
                }
            }
            Effect::StartResources(server) => self.resources_unsent(&server, resources::Phase::Starting),
            Effect::StopResources(server) => self.resources_unsent(&server, resources::Phase::Stopping),
            Effect::Fence { server, node, incarnation } => {
                self.fence_answered(server, node, incarnation, Some(reason));
            }
            // A burst of many may overrun what the port can take.
            Effect::Announce(_, address) => self.repeats.soon(self.now + ANNOUNCE_AGAIN, address),
            Effect::Permit { address, .. } => {
                self.unpermitted.insert(address);
            }
            Effect::Route { address, .. } => {
                self.routed.remove(&address); // asked for again when the cluster is settled
            }
            Effect::Take(_)
            | Effect::Mark { .. }
            | Effect::Forget(_)
            | Effect::ForgetUnresolved(_)
            | Effect::Condemn { .. }
            | Effect::Incarnation(_)
            | Effect::Store(_)
            | Effect::Plan(..)
            | Effect::ResetConnections(_)
            | Effect::Entitle { .. }
            | Effect::ReadStorage { .. }
            | Effect::Event(_) => {}
        }
        self.repair_at.get_or_insert(self.now + REPAIR_AFTER);
    }

    /// Asks again for marks to be cleared where that is not confirmed.
    fn clear_marks_again(&mut self) {
        let again =
            self.clearing.iter().map(|server| Effect::Mark { server: server.clone(), incarnation: None });
        self.out.extend(again);
    }

    /// Asks again for whatever should be and is not.
    fn repair(&mut self) {
        for port in 0..self.ports.len() {
            self.attach_again(port);
        }
        for segment in self.segments() {
            self.steer(&segment);
        }
        self.clear_marks_again();
        self.ask_resources_again();
        for i in 0..if self.cluster.is_some() { 0 } else { self.servers.len() } {
            if self.servers[i].owner.is_none() {
                self.out.push(Effect::Take(self.servers[i].name.clone()));
            } else if !self.servers[i].marked && self.servers[i].resources.is_none() {
                self.serve(i);
            }
        }
        for address in std::mem::take(&mut self.unpermitted) {
            self.permit(address);
            self.repeats.soon(self.now, address);
        }
        for address in self.vips.keys().copied().collect::<Vec<_>>() {
            let Some(ifindex) = self.desired(address) else { continue };
            let port = self.vips[&address].port;
            if !self.assigned.contains(&(address, ifindex)) && port.is_some_and(|p| self.ports[p].is_up()) {
                self.permit(address);
                self.add(address, ifindex);
                self.announce(address, ifindex);
            }
        }
        self.remove_leftovers();
    }

    fn segments(&self) -> Vec<String> {
        self.config.iter().flat_map(|c| &c.segments).map(|s| s.name.clone()).collect()
    }

    fn link(&mut self, link: Link) {
        self.names.insert(link.ifindex, link.name.clone());
        self.port_link(link);
    }

    fn link_gone(&mut self, ifindex: IfIndex) {
        self.assigned.retain(|a| a.1 != ifindex);
        self.removing.retain(|r| r.1 != ifindex);
        let interface = self.interface(ifindex);
        self.names.remove(&ifindex);
        self.port_gone(ifindex, Reason::InterfaceGone);
        let over = |c: &Conflict| c.mac.is_none() && c.ifindex == ifindex;
        for conflict in self.conflicts.extract_if(.., |c| over(c)).collect::<Vec<_>>() {
            let (address, interface) = (conflict.address, interface.clone());
            self.event(EventKind::AddressConflictOver { address, interface });
        }
    }
}
