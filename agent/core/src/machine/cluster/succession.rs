//! Who is to have each virtual server: drawn from definitions, records and node records, which all nodes share, so that
//! all come to the same answer. Where one sees another picture (who is heard, for how long) turns keep them apart: the
//! second in line lets the first one have a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::Machine;
use super::Cluster;
use super::ownership::MASTER;
use crate::cluster::Record;
use crate::config::VirtualServer;
use crate::{Reason, Time};

/// How long each one in line lets the one before it have.
const TURN: Duration = Duration::from_millis(250);

/// This node's place in the succession of a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Successor {
    /// After how long this node takes it; `None`: never.
    pub turn: Option<Duration>,
}

impl Cluster {
    /// Nodes that could be given something now, as far as this node knows: members, no witnesses, heard or oneself, not called
    /// dead, not draining.
    pub(super) fn fit(&self, at: Time) -> impl Iterator<Item = &str> {
        let members = self.members.nodes.iter().filter(move |m| {
            let peer = self.reading.peers.iter().find(|p| p.slot == m.slot);
            let dead = |p| self.accusers(m.slot, self.latest(p)).count() >= self.members.majority();
            let alive = m.slot == self.slot || peer.is_some_and(|p| self.is_heard(p, at) && !dead(p));
            let node = self.nodes.get(&m.name);
            alive && node.is_some_and(|n| !n.witness) && !self.draining.contains(&m.name)
        });
        members.map(|m| m.name.as_str())
    }

    /// Has this node a usable port in each of these segments?
    pub(super) fn reaches(&self, node: &str, segments: &[&str]) -> bool {
        let ports = self.nodes.get(node).map(|n| n.ports.as_slice()).unwrap_or_default();
        segments.iter().all(|s| ports.iter().any(|p| p.usable && p.segment == *s))
    }
}

impl Machine {
    /// This node's place in the succession of every virtual server, by index; `None`: it is in good hands.
    pub(super) fn successions(&self) -> Vec<Option<Successor>> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let fit: Vec<&str> = cluster.fit(cluster.read).collect();
        let mut load: BTreeMap<&str, usize> = BTreeMap::new();
        let held = |r: &Record| r.released.is_none() && !cluster.is_dead(r);
        let records = || cluster.records.iter().filter(|(s, _)| *s != MASTER).map(|(_, (r, _))| r);
        // Owners whose virtual servers are being taken now. What has been taken from them so far counts as if it were still to be
        // given out: otherwise each successor would draw the line anew with every take that it sees.
        let dead = records().filter(|r| r.released.is_none() && cluster.is_dead(r));
        let dying: BTreeSet<(&str, u64)> = dead.map(|r| (r.node.as_str(), r.incarnation)).collect();
        let just_taken = |r: &Record| {
            r.taken_from
                .as_ref()
                .is_some_and(|(node, incarnation)| dying.contains(&(node.as_str(), *incarnation)))
        };
        for record in records().filter(|r| held(r) && !just_taken(r)) {
            *load.entry(record.node.as_str()).or_default() += 1;
        }
        let mut plan = Vec::new();
        for server in &self.servers {
            let record = cluster.records.get(&server.name).map(|(r, _)| r);
            let is_held = record.is_some_and(held);
            if is_held && !record.is_some_and(just_taken) {
                plan.push(None);
                continue;
            }
            let order = self.order(&server.name, &fit, &load);
            if let Some(first) = order.first() {
                *load.entry(first).or_default() += 1;
            }
            if is_held {
                plan.push(None);
                continue;
            }
            let place = order.iter().position(|n| *n == cluster.me);
            plan.push(Some(Successor { turn: place.map(|p| TURN * p as u32) }));
        }
        plan
    }

    /// The nodes that may have it, best first.
    fn order<'a>(&self, server: &str, fit: &[&'a str], load: &BTreeMap<&str, usize>) -> Vec<&'a str> {
        let (Some(cluster), Some(definition)) = (&self.cluster, self.definition(server)) else {
            return Vec::new();
        };
        let record = cluster.records.get(server).map(|(r, _)| r);
        let next = record.and_then(|r| r.released.as_ref()?.next.as_deref());
        let pinned_to = record.filter(|_| !definition.migrate).map(|r| r.node.as_str());
        let segments = self.segments_of(definition);
        let mut order: Vec<&str> = fit
            .iter()
            .copied()
            .filter(|n| cluster.reaches(n, &segments))
            .filter(|n| pinned_to.is_none_or(|owner| owner == *n || next == Some(*n)))
            .collect();
        order.sort_by_key(|n| {
            let preferred = definition.preferred_nodes.iter().position(|p| p == n).unwrap_or(usize::MAX);
            (next != Some(*n), preferred, load.get(n).copied().unwrap_or(0), *n)
        });
        order
    }

    pub(super) fn definition(&self, server: &str) -> Option<&VirtualServer> {
        self.config.as_ref()?.servers.iter().find(|s| s.name == server)
    }

    fn segments_of<'a>(&'a self, server: &VirtualServer) -> Vec<&'a str> {
        let Some(config) = &self.config else { return Vec::new() };
        let all = server.addresses.iter().filter_map(|a| config.segment_of(a.addr()));
        let mut names: Vec<&str> = all.map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Should this node give it up, for whom, and why?
    pub(super) fn give_up(&self, index: usize) -> Option<(String, Reason)> {
        let cluster = self.cluster.as_ref()?;
        let server = &self.servers[index].name;
        let definition = self.definition(server)?;
        let me = cluster.me.as_str();
        let fit: Vec<&str> = cluster.fit(cluster.read).filter(|n| *n != me).collect();
        let mut load: BTreeMap<&str, usize> = BTreeMap::new();
        for (server, (record, _)) in cluster.records.iter().filter(|(s, _)| *s != MASTER) {
            let leaves_for = record.released.as_ref().and_then(|r| r.next.as_ref());
            let holder = cluster.leaving.get(server).map(|(to, _)| to).or(leaves_for).unwrap_or(&record.node);
            *load.entry(holder.as_str()).or_default() += 1;
        }
        let segments = self.segments_of(definition);
        if let Some((to, _)) = cluster.wishes.get(server).filter(|(to, _)| to != me) {
            // Where that can't be, the other reasons count as ever.
            if fit.contains(&to.as_str()) && cluster.reaches(to, &segments) {
                return Some((to.clone(), Reason::Administrator));
            }
        }
        if !definition.migrate {
            return None;
        }
        let best = || self.order(server, &fit, &load).first().map(|n| (*n).to_owned());
        if cluster.draining.contains(me) {
            return best().map(|to| (to, Reason::Drain));
        }
        if !segments.iter().all(|s| self.has_usable_port(s)) {
            return best().map(|to| (to, Reason::NoGoodPort));
        }
        let to = self.failback(definition.failback, &definition.preferred_nodes, &segments);
        to.map(|to| (to, Reason::Failback))
    }
}
