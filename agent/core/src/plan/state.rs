//! Who is where, with the loads that follow from it.

use std::collections::BTreeSet;

use super::input::NodeState;
use super::outcome::Choice;
use super::problem::{NOWHERE, Problem};

/// Shares that differ by less are the same.
pub(super) const SAME: f64 = 1e-9;

/// An assignment of virtual servers to nodes.
#[derive(Clone, Debug)]
pub(super) struct State<'p> {
    pub(super) problem: &'p Problem<'p>,
    /// The node of each virtual server, or [`NOWHERE`].
    pub(super) at: Vec<u32>,
    load: Vec<f64>,
    /// Virtual servers of each node by load, then number.
    on: Vec<Vec<u32>>,
    /// Nodes that take virtual servers by load, then number. A load that isn't negative sorts by its bits.
    levels: BTreeSet<(u64, u32)>,
    takes: Vec<bool>,
}

/// The node to put something on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) node: u32,
    pub(super) choice: Choice,
}

impl<'p> State<'p> {
    /// Everything where it is now; what dead nodes had is nowhere.
    pub(super) fn new(problem: &'p Problem<'p>) -> State<'p> {
        let count = problem.nodes.len();
        let takes: Vec<bool> = problem.nodes.iter().map(|n| n.state == NodeState::Up).collect();
        let mut state = State {
            problem,
            at: vec![NOWHERE; problem.servers.len()],
            load: vec![0.0; count],
            on: vec![Vec::new(); count],
            levels: BTreeSet::new(),
            takes,
        };
        for (server, &home) in problem.home.iter().enumerate() {
            if home != NOWHERE && !problem.is(home, NodeState::Dead) {
                state.at[server] = home;
                state.load[home as usize] += problem.load[server];
                state.on[home as usize].push(server as u32);
            }
        }
        for on in &mut state.on {
            on.sort_unstable_by(|a, b| {
                problem.load[*a as usize].total_cmp(&problem.load[*b as usize]).then(a.cmp(b))
            });
        }
        state.levels = (0..count as u32).filter(|n| state.takes(*n)).map(|n| state.key(n)).collect();
        state
    }

    fn key(&self, node: u32) -> (u64, u32) {
        // Adding 0 makes of a negative zero a positive one.
        ((self.level(node) + 0.0).to_bits(), node)
    }

    /// Load as a share of capacity.
    pub(super) fn level(&self, node: u32) -> f64 {
        self.load[node as usize] / self.problem.capacity[node as usize]
    }

    /// The same with so much more (or less).
    pub(super) fn level_with(&self, node: u32, more: f64) -> f64 {
        (self.load[node as usize] + more) / self.problem.capacity[node as usize]
    }

    pub(super) fn load(&self, node: u32) -> f64 {
        self.load[node as usize]
    }

    /// What is on that node, lightest first.
    pub(super) fn on(&self, node: u32) -> &[u32] {
        &self.on[node as usize]
    }

    /// Nodes that take virtual servers, least loaded first.
    pub(super) fn lowest(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.levels.iter().map(|key| key.1)
    }

    pub(super) fn takes(&self, node: u32) -> bool {
        self.takes[node as usize]
    }

    /// The node takes nothing more, or again.
    pub(super) fn set_takes(&mut self, node: u32, takes: bool) {
        let key = self.key(node);
        self.takes[node as usize] = takes;
        if takes {
            self.levels.insert(key);
        } else {
            self.levels.remove(&key);
        }
    }

    /// Adds to the load of a node without a virtual server.
    pub(super) fn weigh(&mut self, node: u32, more: f64) {
        let key = self.key(node);
        let takes = self.takes(node) && self.levels.remove(&key);
        self.load[node as usize] += more;
        if takes {
            self.levels.insert(self.key(node));
        }
    }

    fn position(&self, server: u32, node: u32) -> Result<usize, usize> {
        let load = |s: u32| self.problem.load[s as usize];
        self.on[node as usize].binary_search_by(|s| load(*s).total_cmp(&load(server)).then(s.cmp(&server)))
    }

    /// Takes a virtual server off its node.
    pub(super) fn lift(&mut self, server: u32) {
        let node = std::mem::replace(&mut self.at[server as usize], NOWHERE);
        if node == NOWHERE {
            return;
        }
        self.weigh(node, -self.problem.load[server as usize]);
        if let Ok(position) = self.position(server, node) {
            self.on[node as usize].remove(position);
        }
    }

    /// Puts it on that node, off any other.
    pub(super) fn put(&mut self, server: u32, node: u32) {
        self.lift(server);
        self.at[server as usize] = node;
        self.weigh(node, self.problem.load[server as usize]);
        if let Err(position) = self.position(server, node) {
            self.on[node as usize].insert(position, server);
        }
    }

    /// Is so much more within the node's capacity?
    pub(super) fn has_room(&self, node: u32, more: f64) -> bool {
        let capacity = self.problem.capacity[node as usize];
        self.load[node as usize] + more <= capacity * (1.0 + SAME)
    }

    /// Those on that node that this one may not be with.
    pub(super) fn foes(&self, server: u32, node: u32) -> impl Iterator<Item = u32> {
        let apart = self.problem.apart(server).iter().copied();
        apart.filter(move |other| self.at[*other as usize] == node)
    }

    /// May that node be given it, room aside?
    pub(super) fn may(&self, server: u32, node: u32) -> bool {
        self.takes(node) && self.problem.is_able(server, node) && self.foes(server, node).next().is_none()
    }

    /// May that node be given it, and has it room?
    pub(super) fn may_put(&self, server: u32, node: u32) -> bool {
        self.may(server, node) && self.has_room(node, self.problem.load[server as usize])
    }

    /// The best node for something that is nowhere: a preferred one that is then not above `fair` (times
    /// [`super::Policy::stop`]); else the one that is least loaded then. With `overload`, capacity does not count.
    pub(super) fn best(
        &self,
        server: u32,
        fair: f64,
        overload: bool,
        excluded: impl Fn(u32) -> bool,
    ) -> Option<Place> {
        let load = self.problem.load[server as usize];
        let may = |n: u32| !excluded(n) && self.may(server, n) && (overload || self.has_room(n, load));
        for &node in self.problem.preferred(server) {
            let level = self.level_with(node, load);
            if may(node) && level <= fair * self.problem.policy.stop + SAME && self.has_room(node, load) {
                return Some(Place { node, choice: Choice::Preferred { load: level } });
            }
        }
        let node = if load <= self.problem.small { self.fewest(may) } else { self.least(load, may) }?;
        Some(Place { node, choice: Choice::LeastLoaded { load: self.level_with(node, load) } })
    }

    /// The node that is least loaded with so much more; of equals the one with the fewest virtual servers, the first by name.
    fn least(&self, load: f64, may: impl Fn(u32) -> bool) -> Option<u32> {
        let mut best: Option<(f64, usize, u32)> = None;
        let least_rise = load / self.problem.largest_capacity;
        for node in self.lowest() {
            if best.is_some_and(|b| self.level(node) + least_rise > b.0 + SAME) {
                break;
            }
            let found = (self.level_with(node, load), self.on[node as usize].len(), node);
            let better = |b: (f64, usize, u32)| {
                found.0 < b.0 - SAME || (found.0 <= b.0 + SAME && (found.1, found.2) < (b.1, b.2))
            };
            if best.is_none_or(better) && may(node) {
                best = Some(found);
            }
        }
        best.map(|b| b.2)
    }

    /// The node with the fewest virtual servers for its capacity; of equals the least loaded, the first by name.
    fn fewest(&self, may: impl Fn(u32) -> bool) -> Option<u32> {
        let count = |n: u32| self.on[n as usize].len() as f64 / self.problem.capacity[n as usize];
        self.lowest().filter(|n| may(*n)).min_by(|a, b| {
            let levels = || self.level(*a).total_cmp(&self.level(*b));
            count(*a).total_cmp(&count(*b)).then_with(levels).then(a.cmp(b))
        })
    }

    /// The highest level of all nodes.
    pub(super) fn highest(&self) -> f64 {
        (0..self.load.len() as u32).map(|n| self.level(n)).fold(0.0, f64::max)
    }

    /// What comes second: the sum of squared levels, each by its node's capacity.
    pub(super) fn squares(&self) -> f64 {
        (0..self.load.len() as u32).map(|n| self.level(n) * self.load(n)).sum()
    }

    /// Load and capacity of all nodes that take virtual servers.
    pub(super) fn totals(&self) -> (f64, f64) {
        let mut totals = (0.0, 0.0);
        for (node, _) in self.takes.iter().enumerate().filter(|(_, t)| **t) {
            totals.0 += self.load[node];
            totals.1 += self.problem.capacity[node];
        }
        totals
    }
}

/// How good a state is: the highest level, then the sum of squares.
pub(super) fn merit(state: &State) -> (f64, f64) {
    (state.highest(), state.squares())
}

pub(super) fn is_better(a: (f64, f64), b: (f64, f64)) -> bool {
    a.0 < b.0 - SAME || (a.0 <= b.0 + SAME && a.1 < b.1 * (1.0 - SAME))
}
