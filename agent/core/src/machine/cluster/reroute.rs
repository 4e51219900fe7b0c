//! Reroute (lease.md, rule R12): a node that has lost every port of a segment, and whose virtual server may not move, is reached
//! by way of a peer. The peer answers for the addresses there and hands their packets on over another segment; replies come
//! back the same way.
//!
//! The owner record names the peer, and its writes keep the order:
//!
//! | written | by | before that | after that |
//! |---|---|---|---|
//! | `asked` | the owner | its addresses are bound to a port of the segment between: it no longer answers in the lost one | |
//! | `answering` | the peer | | its mark goes on, and its lease rules like that of an owner |
//! | `ending` | the owner | a port of the segment is usable again | |
//! | removed | the peer | its mark is off, and the kernel has confirmed it | the owner answers there itself |
//! | removed | the owner | a majority calls the peer dead, as the incarnation that is named | the same |
//!
//! Before the owner answers in the segment itself again, its own write to the record must have been the last one: what it asked
//! of a peer before, or the agent before it, may be under way for long, and then fails.
//!
//! So at most one of the two answers in the segment. A peer that finds the owner dead, or that it can't do its part any more,
//! removes its entry too; nobody takes a virtual server whose record still names a peer that may answer.

use std::cmp::Reverse;
use std::time::Duration;

use super::super::Machine;
use super::super::ports::rank;
use super::Cluster;
use crate::cluster::{MASTER, Record, Via, ViaState};
use crate::{Effect, EventKind, Hop, PortState, Time};

/// After a peer has refused, one is asked again for the segment after this long: it sees things differently, and may for a while.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Cluster {
    /// Does a majority call this peer dead?
    pub(super) fn is_router_dead(&self, via: &Via) -> bool {
        let Some(peer) = self.members.judged().find(|m| m.name == via.node) else { return false };
        self.members.judges(via.members)
            && self.accusers(peer.slot, via.incarnation).count() >= self.members.majority()
    }

    /// May nobody answer by what this record says of peers?
    pub(super) fn is_unrouted(&self, record: &Record) -> bool {
        record.via.iter().all(|via| self.is_router_dead(via))
    }

    /// Notes segments where a peer that was asked has refused, from what the record of this node's server was and is.
    pub(super) fn note_refusals(&mut self, before: &Record, after: &Record, now: Time) {
        let asked = before.via.iter().filter(|v| v.state == ViaState::Asked);
        let refused = asked.filter(|v| !after.via.iter().any(|a| a.segment == v.segment));
        if self.is_own(after) {
            self.refused.extend(refused.map(|v| (v.segment.clone(), now)));
        }
    }

    fn is_mine(&self, via: &Via) -> bool {
        via.node == self.me
    }
}

impl Machine {
    /// The peer that answers, or is asked to, for this node's server in a segment.
    pub(in crate::machine) fn router_of(&self, server: &str, segment: &str) -> Option<String> {
        let (record, _) = self.cluster.as_ref()?.records.get(server)?;
        record.via.iter().find(|v| v.segment == segment).map(|v| v.node.clone())
    }

    /// Does a peer answer in the segment for this node's server?
    pub(in crate::machine) fn is_routed(&self, server: &str, segment: &str) -> bool {
        let record = self.cluster.as_ref().and_then(|c| c.records.get(server));
        let answers = |v: &Via| v.segment == segment && v.state == ViaState::Answering;
        record.is_some_and(|(r, _)| r.via.iter().any(answers))
    }

    /// The way to the peer that answers in a segment for this node's servers.
    pub(in crate::machine) fn hop_to_router(&self, segment: &str) -> Option<Hop> {
        let cluster = self.cluster.as_ref()?;
        let own = cluster.records.iter().filter(|(s, (r, _))| *s != MASTER && cluster.is_own(r));
        let mut vias = own.flat_map(|(_, (r, _))| &r.via).filter(|v| v.segment == segment);
        vias.find_map(|v| self.hop(&v.over, &v.node))
    }

    /// From a port of ours in this segment to one of that node.
    fn hop(&self, over: &str, node: &str) -> Option<Hop> {
        let cluster = self.cluster.as_ref()?;
        let port = self.port_over(over)?;
        let link = self.ports[port].link.as_ref()?;
        let theirs = cluster.nodes.get(node)?.ports.iter().filter(|p| p.segment == over);
        let to = theirs.filter(|p| p.usable).min_by_key(|p| (Reverse(p.hears), p.number))?;
        Some(Hop { ifindex: link.ifindex, from: link.mac, to: to.mac })
    }

    /// The best own port of a segment by which others are heard.
    fn port_over(&self, segment: &str) -> Option<usize> {
        let cluster = self.cluster.as_ref()?;
        let ports = (0..self.ports.len()).filter(|&p| self.ports[p].segment == segment);
        let usable = ports.filter(|&p| {
            let heard = self.ports[p].ifindex().is_some_and(|i| cluster.hears(i));
            self.ports[p].is_usable() && heard
        });
        usable.min_by_key(|&p| (Reverse(self.ports[p].rank()), p))
    }

    /// An agent that starts knows nothing of its peers yet; what the one before it arranged goes on.
    fn has_read_peers(&self) -> bool {
        self.cluster.as_ref().is_some_and(|c| !c.reading.ports.is_empty())
    }

    /// Does this node have a port in the segment that clients can be served by?
    pub(super) fn has_usable_port(&self, segment: &str) -> bool {
        !self.is_isolated(segment) && self.ports.iter().any(|p| p.segment == segment && p.is_usable())
    }

    /// ... and one that is worth to go back for?
    fn has_good_port(&self, segment: &str) -> bool {
        let good = |state| rank(state) >= rank(PortState::Degraded);
        !self.is_isolated(segment) && self.ports.iter().any(|p| p.segment == segment && good(p.state))
    }

    /// Segments of a virtual server, by index.
    fn served_segments(&self, index: usize) -> Vec<String> {
        let mut segments: Vec<String> =
            self.vips.values().filter(|v| v.server == index).map(|v| v.segment.clone()).collect();
        segments.sort_unstable();
        segments.dedup();
        segments
    }

    /// As the owner, for a virtual server that is served here: sees to it that it is answered for in every segment.
    pub(super) fn settle_reroute(&mut self, index: usize, record: &Record, revision: u64) {
        if !self.has_read_peers() {
            return;
        }
        let allowed = self.definition(&self.servers[index].name).is_some_and(|d| d.reroute);
        let mut next = record.clone();
        for segment in self.served_segments(index) {
            let via = record.via.iter().find(|v| v.segment == segment).cloned();
            match via {
                None if allowed && !self.has_usable_port(&segment) => {
                    let Some(via) = self.router_for(&segment) else { continue };
                    self.go_away(index, &via);
                    let server = self.servers[index].name.clone();
                    let (via_node, over) = (via.node.clone(), via.over.clone());
                    self.event(EventKind::Rerouting { server, segment, via: via_node, over });
                    next.via.push(via);
                }
                None if !self.is_away_in(index, &segment) || !self.has_usable_port(&segment) => {}
                None if self.has_own_write(index) => self.come_back(index, &segment),
                // An earlier request to a peer may still be under way, of this agent or the one before it: it fails once the
                // record has been written again.
                None => {
                    let server = self.servers[index].name.clone();
                    return self.write(server, revision, record.clone());
                }
                Some(via) => {
                    let Some(cluster) = &self.cluster else { return };
                    let reached = self.hop(&via.over, &via.node).is_some();
                    if cluster.is_router_dead(&via) {
                        next.via.retain(|v| v.segment != segment);
                    } else if via.state != ViaState::Ending && (!reached || self.has_good_port(&segment)) {
                        let ending = next.via.iter_mut().filter(|v| v.segment == segment);
                        ending.for_each(|v| v.state = ViaState::Ending);
                    } else {
                        self.go_away(index, &via); // perhaps by another port now
                    }
                }
            }
        }
        if next != *record {
            let server = self.servers[index].name.clone();
            self.write(server, revision, next);
        }
    }

    /// The peer to ask: the one that answers in the segment for another server of this node, for all replies go one way;
    /// otherwise the one with the least to do.
    fn router_for(&self, segment: &str) -> Option<Via> {
        let cluster = self.cluster.as_ref()?;
        if cluster.refused.get(segment).is_some_and(|t| self.now < *t + ASK_AGAIN) {
            return None;
        }
        let own = cluster.records.values().filter(|(r, _)| cluster.is_own(r)).flat_map(|(r, _)| &r.via);
        let used: Vec<&Via> = own.filter(|v| v.segment == segment && !cluster.is_router_dead(v)).collect();
        let held = |node: &str| cluster.records.values().filter(|(r, _)| r.node == node).count();
        let able = |node: &&str| *node != cluster.me && cluster.reaches(node, &[segment]);
        let mut nodes: Vec<&str> = cluster.fit(cluster.read).filter(able).collect();
        nodes.retain(|n| used.iter().all(|v| v.node == *n));
        nodes.sort_by_key(|n| (held(n), *n));
        let mut between = self.segments();
        between.retain(|s| s != segment && used.iter().all(|v| v.over == *s));
        let way = |node: &str| between.iter().find(|over| self.hop(over, node).is_some());
        let (node, over) = nodes.into_iter().find_map(|n| Some((n, way(n)?)))?;
        Some(Via {
            segment: segment.to_owned(),
            node: node.to_owned(),
            incarnation: cluster.nodes.get(node)?.incarnation,
            members: cluster.members.version,
            over: over.clone(),
            state: ViaState::Asked,
        })
    }

    /// Binds a server's addresses of a lost segment to a port of the segment between: from then on nobody is answered here.
    fn go_away(&mut self, index: usize, via: &Via) {
        let Some(port) = self.port_over(&via.over) else { return };
        let elsewhere = |v: &super::super::Vip| v.server == index && v.segment == via.segment;
        let moves: Vec<_> = self
            .vips
            .iter()
            .filter(|(_, v)| elsewhere(v) && v.port != Some(port))
            .map(|(address, _)| (*address, port))
            .collect();
        self.bind(&via.segment, &moves);
        self.steer(&via.segment);
    }

    /// Are addresses of the server in this segment bound to a port of another one?
    fn is_away_in(&self, index: usize, segment: &str) -> bool {
        self.vips.values().any(|v| v.server == index && v.segment == segment && self.is_away(v))
    }

    /// Has this process written the record last?
    fn has_own_write(&self, index: usize) -> bool {
        let server = &self.servers[index].name;
        self.cluster.as_ref().is_some_and(|c| c.may_mark(server, self.incarnation))
    }

    /// Binds them to a port of their own segment again, if they were away.
    fn come_back(&mut self, index: usize, segment: &str) {
        let away: Vec<_> = self
            .vips
            .iter()
            .filter(|(_, v)| v.server == index && v.segment == segment && self.is_away(v))
            .map(|(address, _)| *address)
            .collect();
        for address in away {
            if let Some(vip) = self.vips.get_mut(&address) {
                vip.port = None;
            }
        }
        let moves = self.better_ports(segment);
        self.bind(segment, &moves);
        let server = self.servers[index].name.clone();
        self.event(EventKind::RerouteOver { server, segment: segment.to_owned() });
    }

    /// As a peer, for a virtual server of another node: answers where its record asks for that, or stops. Returns whether there
    /// is something left to be done first.
    pub(super) fn settle_routing(&mut self, index: usize, record: &Record, revision: u64) -> bool {
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.has_read_peers()) else { return false };
        let owned = record.released.is_none() && !cluster.is_dead(record);
        let mine = |via: &&Via| cluster.is_mine(via);
        let able = |via: &&Via| {
            owned
                && via.state != ViaState::Ending
                && !cluster.draining.contains(&cluster.me)
                && self.has_usable_port(&via.segment)
                && self.hop(&via.over, &record.node).is_some()
        };
        let wanted: Vec<Via> = record.via.iter().filter(mine).filter(able).cloned().collect();
        let answers = |v: &Via| {
            v.state == ViaState::Answering
                && v.incarnation == self.incarnation
                && self.servers[index].routing.contains(&v.segment)
        };
        let all = wanted.iter().all(answers) && wanted.len() == self.servers[index].routing.len();
        if all && record.via.iter().filter(mine).count() == wanted.len() {
            self.route_on(index, record, &wanted);
            return false;
        }
        if !self.servers[index].routing.is_empty() {
            self.stop_routing(index);
            return true;
        }
        let (me, incarnation, members) = (cluster.me.clone(), self.incarnation, cluster.members.version);
        let mut next = record.clone();
        next.via.retain(|v| v.node != me || wanted.contains(v));
        for via in next.via.iter_mut().filter(|v| v.node == me) {
            (via.incarnation, via.members, via.state) = (incarnation, members, ViaState::Answering);
        }
        let server = self.servers[index].name.clone();
        self.write(server, revision, next);
        true
    }

    /// This node has written that it answers: now it does.
    pub(super) fn routing_written(&mut self, index: usize, record: &Record) {
        let Some(cluster) = &self.cluster else { return };
        let answers = |v: &&Via| {
            cluster.is_mine(v) && v.state == ViaState::Answering && v.incarnation == self.incarnation
        };
        let vias: Vec<Via> = record.via.iter().filter(answers).cloned().collect();
        if vias.is_empty() {
            return;
        }
        let server = self.servers[index].name.clone();
        // What an earlier life as the owner left bound in other segments isn't answered for.
        let others: Vec<_> = self
            .vips
            .iter_mut()
            .filter(|(_, v)| v.server == index && !vias.iter().any(|via| via.segment == v.segment))
            .map(|(address, v)| {
                v.port = None;
                *address
            })
            .collect();
        others.into_iter().for_each(|address| self.permit(address));
        self.servers[index].routing = vias.iter().map(|v| v.segment.clone()).collect();
        self.route_on(index, record, &vias);
        self.out.push(Effect::Mark { server: server.clone(), incarnation: Some(self.incarnation) });
        for via in vias {
            let moves = self.better_ports(&via.segment);
            self.bind(&via.segment, &moves);
            let owner = record.node.clone();
            self.event(EventKind::Routing { server: server.clone(), segment: via.segment, owner });
        }
    }

    /// Keeps the way to the owner as it is now.
    fn route_on(&mut self, index: usize, record: &Record, vias: &[Via]) {
        for via in vias {
            let Some(hop) = self.hop(&via.over, &record.node) else { continue };
            let routed = self.vips.iter().filter(|(_, v)| v.server == index && v.segment == via.segment);
            let stale: Vec<_> =
                routed.map(|(a, _)| *a).filter(|a| self.routed.get(a) != Some(&hop)).collect();
            for address in stale {
                self.routed.insert(address, hop);
                self.out.push(Effect::Route { address, to: Some(hop) });
            }
        }
    }

    /// Stops answering for another node's server. Its entry is removed when the kernel has confirmed that the mark is off.
    pub(super) fn stop_routing(&mut self, index: usize) {
        let server = self.servers[index].name.clone();
        let segments = std::mem::take(&mut self.servers[index].routing);
        self.stop_serving(index);
        self.clearing.insert(server.clone());
        let routed: Vec<_> = self.vips.iter().filter(|(_, v)| v.server == index).map(|(a, _)| *a).collect();
        for address in routed {
            self.routed.remove(&address);
            self.out.push(Effect::Route { address, to: None });
        }
        for segment in segments {
            self.event(EventKind::RoutingOver { server: server.clone(), segment });
        }
    }
}
