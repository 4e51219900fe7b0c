//! Who is to have each virtual server: drawn from definitions, records and node records, which all nodes share, so that
//! all come to the same answer. Where one sees another picture (who is heard, for how long) turns keep them apart: the
//! second in line lets the first one have a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::Machine;
use super::Cluster;
use crate::cluster::{MASTER, Record};
use crate::config::VirtualServer;
use crate::{Config, Reason, Time};

/// How long each one in line lets the one before it have.
const TURN: Duration = Duration::from_millis(250);
/// A node where file systems or services have failed lets those where they haven't have so much longer.
const FAILED_TURN: Duration = Duration::from_secs(5);

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

/// Who has what, while it is given out.
#[derive(Default)]
struct Hands<'a> {
    /// By node: shares of its capacity.
    load: BTreeMap<&'a str, f64>,
    /// By virtual server, where some may not be together.
    at: BTreeMap<&'a str, &'a str>,
}

/// A node that may have a virtual server.
struct Candidate<'a> {
    node: &'a str,
    /// The lower the better: those where its file systems and services have not failed, the one it was released for, then the
    /// preferred ones.
    rank: (bool, bool, usize),
}

/// From which of these owners it was taken.
fn taken_from<'a>(record: &'a Record, owners: &BTreeSet<(&'a str, u64)>) -> Option<(&'a str, u64)> {
    let (node, incarnation) = record.taken_from.as_ref()?;
    owners.get(&(node.as_str(), *incarnation)).copied()
}

impl<'a> Hands<'a> {
    fn give(&mut self, cluster: &Cluster, server: &'a str, node: &'a str, are_some_apart: bool) {
        *self.load.entry(node).or_default() += cluster.weight(server) / cluster.capacity(node);
        if are_some_apart {
            self.at.insert(server, node);
        }
    }
}

impl Machine {
    /// This node's place in the succession of every virtual server, by index; `None`: it is in good hands.
    pub(super) fn successions(&self) -> Vec<Option<Successor>> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let apart = self.are_some_apart();
        let fit: Vec<&str> = cluster.fit(cluster.read).collect();
        let mut hands = Hands::default();
        let held = |r: &Record| r.released.is_none() && !cluster.is_dead(r);
        let records = || cluster.records.iter().filter(|(s, _)| *s != MASTER).map(|(s, (r, _))| (s, r));
        // Owners whose virtual servers are being taken now. What has been taken from them so far counts as if it were still to be
        // given out: otherwise each successor would draw the line anew with every take that it sees.
        let dead = records().map(|(_, r)| r).filter(|r| r.released.is_none() && cluster.is_dead(r));
        let dying: BTreeSet<(&str, u64)> = dead.map(|r| (r.node.as_str(), r.incarnation)).collect();
        let just_taken = |r| taken_from(r, &dying);
        for (server, record) in records().filter(|(_, r)| held(r) && just_taken(r).is_none()) {
            hands.give(cluster, server, &record.node, apart);
        }
        let mut plan = Vec::new();
        let mut heirs: BTreeMap<(&str, u64), BTreeSet<&str>> = BTreeMap::new();
        for server in &self.servers {
            let record = cluster.records.get(&server.name).map(|(r, _)| r);
            let is_held = record.is_some_and(held);
            if is_held && record.and_then(just_taken).is_none() {
                plan.push(None);
                continue;
            }
            let mut order = self.order(&server.name, &fit, &hands);
            let owner = record.filter(|r| r.released.is_none()).and_then(|r| {
                just_taken(r).or_else(|| dying.get(&(r.node.as_str(), r.incarnation)).copied())
            });
            if let Some(owner) = owner {
                let heirs = heirs.entry(owner).or_default();
                // What one node had goes to two at least, where there are two.
                if let [first, second, ..] = &mut order[..]
                    && heirs.len() == 1
                    && heirs.contains(first.node)
                    && first.rank == second.rank
                {
                    std::mem::swap(first, second);
                }
                heirs.extend(order.first().map(|c| c.node));
            }
            if let Some(first) = order.first() {
                hands.give(cluster, &server.name, first.node, apart);
            }
            if is_held {
                plan.push(None);
                continue;
            }
            let place = order.iter().position(|c| c.node == cluster.me);
            let turn = |p: usize| {
                let has_failed = order[p].rank.0 && !order[0].rank.0;
                TURN * p as u32 + if has_failed { FAILED_TURN } else { Duration::ZERO }
            };
            plan.push(Some(Successor { turn: place.map(turn) }));
        }
        plan
    }

    /// Who has what, and will have what is moving.
    fn hands_now<'a>(&self, cluster: &'a Cluster) -> Hands<'a> {
        let apart = self.are_some_apart();
        let mut hands = Hands::default();
        for (server, (record, _)) in cluster.records.iter().filter(|(s, _)| *s != MASTER) {
            let leaves_for = record.released.as_ref().and_then(|r| r.next.as_ref());
            let holder = cluster.leaving.get(server).map(|(to, _)| to).or(leaves_for).unwrap_or(&record.node);
            hands.give(cluster, server, holder, apart);
        }
        hands
    }

    fn are_some_apart(&self) -> bool {
        self.config.as_ref().is_some_and(|c| c.servers.iter().any(|s| !s.never_with.is_empty()))
    }

    /// The nodes that may have it, best first.
    fn order<'a>(&self, server: &str, fit: &[&'a str], hands: &Hands) -> Vec<Candidate<'a>> {
        let (Some(cluster), Some(definition)) = (&self.cluster, self.definition(server)) else {
            return Vec::new();
        };
        let record = cluster.records.get(server).map(|(r, _)| r);
        let next = record.and_then(|r| r.released.as_ref()?.next.as_deref());
        let pinned_to = record.filter(|_| !definition.migrate).map(|r| r.node.as_str());
        let segments = self.segments_of(definition);
        let rank = |n: &str| {
            let preferred = definition.preferred_nodes.iter().position(|p| p == n).unwrap_or(usize::MAX);
            let has_failed = record.is_some_and(|r| r.failed_on.iter().any(|f| f == n));
            (has_failed && next != Some(n), next != Some(n), preferred)
        };
        let mut order: Vec<Candidate> = fit
            .iter()
            .filter(|n| cluster.reaches(n, &segments) && cluster.reaches_units(n, &definition.storage_units))
            .filter(|n| !cluster.is_unfenced(server, n))
            .filter(|n| pinned_to.is_none_or(|owner| owner == **n || next == Some(**n)))
            .filter(|n| definition.only_on.is_empty() || definition.only_on.iter().any(|o| o == **n))
            .filter(|n| self.apart_from(definition, n, hands).is_none())
            .map(|n| Candidate { node: n, rank: rank(n) })
            .collect();
        let load = |c: &Candidate| hands.load.get(c.node).copied().unwrap_or(0.0);
        order.sort_by(|a, b| {
            a.rank.cmp(&b.rank).then(load(a).total_cmp(&load(b))).then_with(|| a.node.cmp(b.node))
        });
        order
    }

    /// A virtual server on the node that this one may not be with.
    fn apart_from<'a>(&self, server: &VirtualServer, node: &str, hands: &Hands<'a>) -> Option<&'a str> {
        let there = hands.at.iter().filter(|(name, at)| **at == node && **name != server.name);
        let mut there = there.filter_map(|(name, _)| Some((*name, self.definition(name)?)));
        there.find(|(_, other)| Config::are_apart(server, other)).map(|(name, _)| name)
    }

    pub(super) fn definition(&self, server: &str) -> Option<&VirtualServer> {
        self.config.as_ref()?.servers.iter().find(|s| s.name == server)
    }

    pub(super) fn segments_of<'a>(&'a self, server: &VirtualServer) -> Vec<&'a str> {
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
        let fit = || cluster.fit(cluster.read).filter(|n| *n != me).collect::<Vec<&str>>();
        // Most have no reason to go: what all others have is looked at only for those that do, or that may not be with some.
        let hands = || self.hands_now(cluster);
        let apart = self.are_some_apart().then(hands);
        let is_apart = |node: &str| apart.as_ref().and_then(|h| self.apart_from(definition, node, h));
        let record = cluster.records.get(server).map(|(r, _)| r);
        let has_failed = |n: &str| record.is_some_and(|r| r.failed_on.iter().any(|f| f == n));
        let permitted = |n: &str| definition.only_on.is_empty() || definition.only_on.iter().any(|o| o == n);
        let segments = self.segments_of(definition);
        if let Some((wish, _)) = cluster.wishes.get(server).filter(|(w, _)| w.to != me) {
            // Where that can't be, the other reasons count as ever.
            let to = wish.to.as_str();
            if fit().contains(&to)
                && cluster.reaches(to, &segments)
                && cluster.reaches_units(to, &definition.storage_units)
                && !cluster.is_unfenced(server, to)
                && permitted(to)
                && is_apart(to).is_none()
                && (wish.master.is_none() || definition.migrate && self.is_in_force(wish) && !has_failed(to))
            {
                return Some((wish.to.clone(), wish.reason));
            }
        }
        if !definition.migrate {
            return None;
        }
        // Where it has failed it goes only if it has failed here too.
        let fails = self.has_failed(index) || self.hangs(index);
        let best = || {
            let first = self.order(server, &fit(), &hands()).first().map(|c| c.node)?;
            (fails || !has_failed(first)).then(|| first.to_owned())
        };
        if self.has_lost_storage(definition)
            && cluster.reachable
            && let Some(first) = self.order(server, &fit(), &hands()).first()
            && (self.is_storage_lost(definition) || self.is_storage_good_on(definition, first.node))
        {
            return Some((first.node.to_owned(), Reason::StorageLost));
        }
        // What fails for want of storage waits for what the others say of that.
        if fails
            && cluster.reachable
            && !self.is_storage_in_doubt(definition)
            && let Some(to) = best().filter(|to| !has_failed(to))
        {
            return Some((to, Reason::ServiceFailed));
        }
        if cluster.draining.contains(me) {
            return best().map(|to| (to, Reason::Drain));
        }
        if !segments.iter().all(|s| self.has_usable_port(s)) {
            return best().map(|to| (to, Reason::NoGoodPort));
        }
        // Of two that may not be together the one that comes later goes.
        let later = |other: &str| self.servers[..index].iter().any(|s| s.name == other);
        if !permitted(me) || is_apart(me).is_some_and(later) {
            return best().map(|to| (to, Reason::Constraint));
        }
        if !cluster.reachable {
            return None; // it could not be released
        }
        let to = self.failback(definition, &segments);
        to.filter(|to| permitted(to) && is_apart(to).is_none()).map(|to| (to, Reason::Failback))
    }
}
