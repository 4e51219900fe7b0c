//! A situation by numbers: nodes and virtual servers in the order of their names, so that the order in which they were given
//! changes nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use super::input::{Node, NodeState, Policy, Server, Situation};
use super::outcome::Barrier;

/// No node.
pub(super) const NOWHERE: u32 = u32::MAX;

/// A set of nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Nodes(Vec<u64>);

impl Nodes {
    fn none(count: usize) -> Nodes {
        Nodes(vec![0; count.div_ceil(64)])
    }

    fn insert(&mut self, node: usize) {
        self.0[node / 64] |= 1 << (node % 64);
    }

    pub(super) fn has(&self, node: u32) -> bool {
        self.0[node as usize / 64] >> (node % 64) & 1 == 1
    }

    pub(super) fn is_within(&self, other: &Nodes) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & !b == 0)
    }
}

/// Lists of numbers by index, in one piece of memory.
#[derive(Debug)]
struct Lists {
    all: Vec<u32>,
    of: Vec<Range<u32>>,
}

impl Lists {
    fn of(lists: impl Iterator<Item = impl Iterator<Item = u32>>) -> Lists {
        let (mut all, mut of) = (Vec::new(), Vec::new());
        for list in lists {
            let start = all.len() as u32;
            all.extend(list);
            of.push(start..all.len() as u32);
        }
        Lists { all, of }
    }

    fn get(&self, index: u32) -> &[u32] {
        let range = &self.of[index as usize];
        &self.all[range.start as usize..range.end as usize]
    }
}

/// The situation, numbered.
#[derive(Debug)]
pub(super) struct Problem<'a> {
    pub(super) situation: &'a Situation,
    pub(super) policy: &'a Policy,
    pub(super) nodes: Vec<&'a Node>,
    pub(super) servers: Vec<&'a Server>,
    pub(super) capacity: Vec<f64>,
    pub(super) largest_capacity: f64,
    /// Nodes that aren't up.
    pub(super) not_up: Vec<u32>,
    /// The loads, rounded so that sums of them are exact: what is added and taken away again leaves nothing behind, in any order.
    pub(super) load: Vec<f64>,
    /// Loads up to this are next to nothing: they are spread by count.
    pub(super) small: f64,
    /// The owners, or [`NOWHERE`].
    pub(super) home: Vec<u32>,
    /// By virtual server: which of `classes` it belongs to.
    pub(super) class: Vec<u32>,
    /// Nodes that reach what a virtual server needs and that it may be on, whatever their state.
    pub(super) classes: Vec<Nodes>,
    apart: Lists,
    preferred: Lists,
}

/// What decides which nodes can have a virtual server.
type Needs<'a> = (&'a [String], &'a [String], &'a [String]);

fn needs(server: &Server) -> Needs<'_> {
    (&server.segments, &server.storage, &server.only_on)
}

impl<'a> Problem<'a> {
    /// Numbers a situation without mistakes.
    pub(super) fn new(situation: &'a Situation, policy: &'a Policy) -> Problem<'a> {
        let mut nodes: Vec<&Node> = situation.nodes.iter().collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut servers: Vec<&Server> = situation.servers.iter().collect();
        servers.sort_by(|a, b| a.name.cmp(&b.name));
        let node = |name: &str| {
            let found = nodes.binary_search_by(|n| n.name.as_str().cmp(name));
            found.map_or(NOWHERE, |n| n as u32)
        };
        let server = |name: &String| servers.binary_search_by(|s| s.name.cmp(name)).ok().map(|s| s as u32);

        let mut by_needs: BTreeMap<Needs, u32> = BTreeMap::new();
        let mut classes = Vec::new();
        let mut class = Vec::with_capacity(servers.len());
        for s in &servers {
            let number = *by_needs.entry(needs(s)).or_insert_with(|| {
                let mut able = Nodes::none(nodes.len());
                let reaching = nodes.iter().enumerate().filter(|(_, n)| barrier(n, s).is_none());
                reaching.for_each(|(n, _)| able.insert(n));
                classes.push(able);
                classes.len() as u32 - 1
            });
            class.push(number);
        }

        let mut pairs: Vec<(u32, u32)> = Vec::new();
        for (a, s) in servers.iter().enumerate() {
            let others = s.never_with.iter().filter_map(server);
            pairs.extend(others.flat_map(|b| [(a as u32, b), (b, a as u32)]));
        }
        pairs.sort_unstable();
        pairs.dedup();
        let mut rest = pairs.as_slice();
        let apart = Lists::of((0..servers.len() as u32).map(|a| {
            let (mine, others) = rest.split_at(rest.partition_point(|p| p.0 <= a));
            rest = others;
            mine.iter().map(|p| p.1)
        }));
        let preferred = Lists::of(servers.iter().map(|s| s.preferred_nodes.iter().map(|n| node(n))));

        let load = exact(servers.iter().map(|s| s.load));
        let total: f64 = load.iter().sum();
        Problem {
            situation,
            policy,
            capacity: nodes.iter().map(|n| n.capacity).collect(),
            largest_capacity: nodes.iter().map(|n| n.capacity).fold(0.0, f64::max),
            not_up: (0..nodes.len() as u32).filter(|n| nodes[*n as usize].state != NodeState::Up).collect(),
            small: total / (1000 * servers.len().max(1)) as f64,
            home: servers.iter().map(|s| s.owner.as_deref().map_or(NOWHERE, node)).collect(),
            load,
            class,
            classes,
            apart,
            preferred,
            nodes,
            servers,
        }
    }

    /// Those that may not be with this one.
    pub(super) fn apart(&self, server: u32) -> &[u32] {
        self.apart.get(server)
    }

    pub(super) fn preferred(&self, server: u32) -> &[u32] {
        self.preferred.get(server)
    }

    /// Can that node have it, as far as reach goes?
    pub(super) fn is_able(&self, server: u32, node: u32) -> bool {
        self.classes[self.class[server as usize] as usize].has(node)
    }

    pub(super) fn is(&self, node: u32, state: NodeState) -> bool {
        node != NOWHERE && self.nodes[node as usize].state == state
    }

    /// It has an owner that it may not leave.
    pub(super) fn is_pinned(&self, server: u32) -> bool {
        self.home[server as usize] != NOWHERE && !self.servers[server as usize].migrate
    }
}

/// What keeps this virtual server from that node? Of several, the first by name.
pub(super) fn barrier(node: &Node, server: &Server) -> Option<Barrier> {
    if !server.only_on.is_empty() && !server.only_on.contains(&node.name) {
        let mut nodes = server.only_on.clone();
        nodes.sort();
        return Some(Barrier::OnlyOn(nodes));
    }
    let segment = server.segments.iter().filter(|s| !node.segments.contains(s)).min();
    let storage = || server.storage.iter().filter(|s| !node.storage.contains(s)).min();
    segment.map(|s| Barrier::Segment(s.clone())).or_else(|| storage().map(|s| Barrier::Storage(s.clone())))
}

/// Rounds to multiples of one power of two that is so large that all sums fit into a float's 53 bits.
fn exact(loads: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let (most, count) = loads.clone().fold((0.0f64, 0u32), |(most, count), load| (most.max(load), count + 1));
    if most <= 0.0 {
        return vec![0.0; count as usize];
    }
    let exponent = (most * f64::from(count)).log2().ceil() as i32 - 50;
    let unit = 2f64.powi(exponent);
    loads.map(|load| (load / unit).round() * unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_in_any_order() {
        let loads = exact((0..1000).map(|n| 0.1 + f64::from(n) / 7.0));
        let forwards: f64 = loads.iter().sum();
        let backwards: f64 = loads.iter().rev().sum();
        assert_eq!(forwards, backwards);
        let rest = loads.iter().fold(forwards, |sum, load| sum - load);
        assert_eq!(rest, 0.0);
        assert!((loads[7] - 1.1).abs() < 1e-9);
    }
}
