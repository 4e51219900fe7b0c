//! A node for what has none, and another for what can't stay: the heaviest first, each on the node that is least loaded then
//! (longest processing time first). Where that leaves something out, those of higher priority go first, and one that is in the
//! way may be moved aside.

use super::input::NodeState;
use super::outcome::{Barrier, Cause, Choice, Hindrance};
use super::problem::{NOWHERE, Problem, barrier};
use super::state::{Place, State};

/// How many nodes, and how many virtual servers on each, are tried to make room.
const NODES_TRIED: usize = 16;
const SERVERS_TRIED: usize = 8;

/// A state with the reasons for what was changed.
#[derive(Clone, Debug)]
pub(super) struct Draft<'p> {
    pub(super) state: State<'p>,
    /// By virtual server: why it doesn't stay, and why it goes where it goes.
    pub(super) why: Vec<Option<(Cause, Choice)>>,
    /// Every change in the order in which it was made.
    pub(super) log: Vec<(u32, u32)>,
    /// What has no place, what it should leave, and why.
    pub(super) unplaced: Vec<(u32, Hindrance)>,
}

impl<'p> Draft<'p> {
    pub(super) fn new(problem: &'p Problem<'p>) -> Draft<'p> {
        Draft {
            state: State::new(problem),
            why: vec![None; problem.servers.len()],
            log: Vec::new(),
            unplaced: Vec::new(),
        }
    }

    pub(super) fn put(&mut self, server: u32, place: Place, cause: Cause) {
        self.state.put(server, place.node);
        self.log.push((server, place.node));
        let cause = self.why[server as usize].take().map_or(cause, |(first, _)| first);
        self.why[server as usize] = Some((cause, place.choice));
    }

    /// Places all that is nowhere, then all that must leave.
    pub(super) fn place_all(&mut self) {
        self.place_unserved();
        let leaving = self.must_leave();
        self.place(leaving);
        self.retry();
    }

    /// Tries again what found no place: others may have gone out of its way since.
    pub(super) fn retry(&mut self) {
        let problem = self.state.problem;
        let mut list = std::mem::take(&mut self.unplaced);
        list.sort_by_key(|u| (u32::MAX - problem.servers[u.0 as usize].priority, u.0));
        for (server, hindrance) in list {
            let pinned = matches!(hindrance, Hindrance::Pinned { .. });
            if pinned || self.state.at[server as usize] != NOWHERE {
                self.unplaced.push((server, hindrance));
                continue;
            }
            let cause = self.missing(server);
            if let Some(place) = self.state.best(server, 0.0, false, |_| false) {
                self.put(server, place, cause);
            } else if !self.make_room(server, &cause, 0.0) {
                self.unplaced.push((server, self.hindrance(server)));
            }
        }
        self.unplaced.sort_by_key(|u| u.0);
    }

    /// Where something is before the plan; what a dead node had is nowhere.
    pub(super) fn home(&self, server: u32) -> u32 {
        let problem = self.state.problem;
        let home = problem.home[server as usize];
        if problem.is(home, NodeState::Dead) { NOWHERE } else { home }
    }

    /// Why something is nowhere.
    pub(super) fn missing(&self, server: u32) -> Cause {
        match self.state.problem.home[server as usize] {
            NOWHERE => Cause::Unowned,
            _ => Cause::OwnerDead,
        }
    }

    /// Places all that is nowhere.
    pub(super) fn place_unserved(&mut self) {
        let problem = self.state.problem;
        let mut unserved = Vec::new();
        for server in 0..problem.servers.len() as u32 {
            let home = problem.home[server as usize];
            if home == NOWHERE {
                unserved.push((server, Cause::Unowned));
            } else if !problem.is(home, NodeState::Dead) {
                continue;
            } else if problem.is_pinned(server) {
                let owner = problem.nodes[home as usize].name.clone();
                self.unplaced.push((server, Hindrance::Pinned { owner }));
            } else {
                unserved.push((server, Cause::OwnerDead));
            }
        }
        self.place(unserved);
        self.spread_dead();
    }

    /// Virtual servers that can't stay with a living owner.
    fn must_leave(&self) -> Vec<(u32, Cause)> {
        let problem = self.state.problem;
        let mut order: Vec<u32> = (0..problem.servers.len() as u32)
            .filter(|s| self.state.at[*s as usize] != NOWHERE)
            .filter(|s| !problem.is(self.state.at[*s as usize], NodeState::Unknown))
            .collect();
        // Of two that may not be together the pinned one stays, then the one of higher priority.
        order.sort_by_key(|s| (!problem.is_pinned(*s), u32::MAX - problem.servers[*s as usize].priority, *s));
        let mut stays = vec![false; problem.servers.len()];
        let mut leaving = Vec::new();
        for server in order {
            let home = self.state.at[server as usize];
            let mut foes = self.state.foes(server, home).filter(|f| stays[*f as usize]);
            let (node, definition) = (problem.nodes[home as usize], problem.servers[server as usize]);
            let cause = if problem.is_pinned(server) {
                None
            } else if node.state == NodeState::Draining {
                Some(Cause::Drain)
            } else if let Some(barrier) = barrier(node, definition) {
                Some(Cause::OutOfReach(barrier))
            } else {
                foes.next().map(|foe| Cause::NeverWith(problem.servers[foe as usize].name.clone()))
            };
            match cause {
                Some(cause) => leaving.push((server, cause)),
                None => stays[server as usize] = true,
            }
        }
        leaving
    }

    fn place(&mut self, mut group: Vec<(u32, Cause)>) {
        if group.is_empty() {
            return;
        }
        let problem = self.state.problem;
        let priority = |s: u32| problem.servers[s as usize].priority;
        let fair = self.fair(group.iter().map(|g| g.0));
        group.sort_by(|a, b| heaviest_first(problem, a.0, b.0));
        let before = self.clone_if(group.iter().any(|g| priority(g.0) != priority(group[0].0)));
        let complete = self.attempt(&group, fair);
        if let (false, Some(before)) = (complete, before) {
            *self = before;
            group.sort_by_key(|g| u32::MAX - priority(g.0)); // stable: the heaviest first among equals
            self.attempt(&group, fair);
        }
    }

    fn clone_if(&self, needed: bool) -> Option<Draft<'p>> {
        needed.then(|| self.clone())
    }

    /// What every node would have if load could be split, with these placed too; or the largest of these.
    fn fair(&self, group: impl Iterator<Item = u32> + Clone) -> f64 {
        let problem = self.state.problem;
        let (load, capacity) = self.state.totals();
        let coming = group.clone().filter(|s| {
            let at = self.state.at[*s as usize];
            at == NOWHERE || !self.state.takes(at)
        });
        let coming: f64 = coming.map(|s| problem.load[s as usize]).sum();
        let largest = group.map(|s| problem.load[s as usize]).fold(0.0, f64::max);
        ((load + coming) / capacity).max(largest / problem.largest_capacity)
    }

    /// Is everything placed?
    fn attempt(&mut self, group: &[(u32, Cause)], fair: f64) -> bool {
        let mut complete = true;
        for (server, cause) in group {
            let (server, home) = (*server, self.state.at[*server as usize]);
            self.state.lift(server);
            let place = self.state.best(server, fair, false, |_| false);
            if let Some(place) = place {
                self.put(server, place, cause.clone());
            } else if !self.make_room(server, cause, fair) {
                complete = false;
                self.unplaced.push((server, self.hindrance(server)));
                if home != NOWHERE {
                    self.state.put(server, home);
                }
            }
        }
        complete
    }

    /// Moves one virtual server aside that is in the way of this one, and places this one.
    fn make_room(&mut self, server: u32, cause: &Cause, fair: f64) -> bool {
        let problem = self.state.problem;
        let load = problem.load[server as usize];
        let able: Vec<u32> =
            self.state.lowest().filter(|n| problem.is_able(server, *n)).take(NODES_TRIED).collect();
        for node in able {
            let foes: Vec<u32> = self.state.foes(server, node).collect();
            let need = self.state.load(node) + load - problem.capacity[node as usize];
            let in_the_way: Vec<u32> = match foes.len() {
                0 => {
                    let enough = |s: &&u32| problem.load[**s as usize] >= need;
                    self.state.on(node).iter().filter(enough).take(SERVERS_TRIED).copied().collect()
                }
                1 => foes,
                _ => continue,
            };
            for other in in_the_way.into_iter().filter(|o| !problem.is_pinned(*o)) {
                self.state.lift(other);
                let place = match self.state.may_put(server, node) {
                    true => self.state.best(other, fair, false, |n| n == node),
                    false => None,
                };
                match place {
                    Some(place) => {
                        let name = problem.servers[server as usize].name.clone();
                        self.put(other, place, Cause::MakesRoom(name));
                        let choice = Choice::LeastLoaded { load: self.state.level_with(node, load) };
                        self.put(server, Place { node, choice }, cause.clone());
                        return true;
                    }
                    None => self.state.put(other, node),
                }
            }
        }
        false
    }

    /// Two or more of one dead node don't all go to the same one.
    fn spread_dead(&mut self) {
        let problem = self.state.problem;
        let mut groups: Vec<Vec<u32>> = vec![Vec::new(); problem.nodes.len()];
        for (server, &home) in problem.home.iter().enumerate() {
            if problem.is(home, NodeState::Dead) && self.state.at[server] != NOWHERE {
                groups[home as usize].push(server as u32);
            }
        }
        for mut group in groups {
            group.sort_by(|a, b| heaviest_first(problem, *a, *b));
            if let Some((server, place)) = spread(&self.state, &group) {
                self.put(server, place, Cause::OwnerDead);
            }
        }
    }

    /// Why does this one find no place?
    pub(super) fn hindrance(&self, server: u32) -> Hindrance {
        let problem = self.state.problem;
        let definition = problem.servers[server as usize];
        let mut nodes: Vec<u32> = self.state.lowest().collect();
        if nodes.is_empty() {
            return Hindrance::NoNode;
        }
        let barriers = |n: &u32| barrier(problem.nodes[*n as usize], definition);
        let allowed = |n: &u32| {
            let name = &problem.nodes[*n as usize].name;
            definition.only_on.is_empty() || definition.only_on.contains(name)
        };
        nodes.retain(allowed);
        if nodes.is_empty() {
            let mut only = definition.only_on.clone();
            only.sort();
            return Hindrance::Barrier(Barrier::OnlyOn(only));
        }
        let lacks = |has: &dyn Fn(u32) -> bool| !nodes.iter().any(|n| has(*n));
        let segment = definition
            .segments
            .iter()
            .filter(|s| lacks(&|n| problem.nodes[n as usize].segments.contains(s)))
            .min()
            .map(|s| Barrier::Segment(s.clone()));
        let unit = definition
            .storage
            .iter()
            .filter(|s| lacks(&|n| problem.nodes[n as usize].storage.contains(s)))
            .min()
            .map(|s| Barrier::Storage(s.clone()));
        if let Some(barrier) = segment.or(unit) {
            return Hindrance::Barrier(barrier);
        }
        nodes.retain(|n| barriers(n).is_none());
        let Some(first) = nodes.first().copied() else { return Hindrance::Barrier(Barrier::Reach) };
        let foe = self.state.foes(server, first).next();
        nodes.retain(|n| self.state.foes(server, *n).next().is_none());
        let room = |n: u32| problem.capacity[n as usize] - self.state.load(n);
        match (nodes.iter().copied().max_by(|a, b| room(*a).total_cmp(&room(*b)).then(b.cmp(a))), foe) {
            (None, Some(foe)) => Hindrance::NeverWith {
                other: problem.servers[foe as usize].name.clone(),
                node: problem.nodes[first as usize].name.clone(),
            },
            (None, None) => Hindrance::NoNode,
            (Some(node), _) => Hindrance::Capacity {
                load: definition.load,
                node: problem.nodes[node as usize].name.clone(),
                room: room(node).max(0.0),
            },
        }
    }
}

/// By load, then by name.
pub(super) fn heaviest_first(problem: &Problem, a: u32, b: u32) -> std::cmp::Ordering {
    problem.load[b as usize].total_cmp(&problem.load[a as usize]).then(a.cmp(&b))
}

/// If all of `group` (heaviest first) are on one node: the lightest that can be elsewhere, and where.
pub(super) fn spread(state: &State, group: &[u32]) -> Option<(u32, Place)> {
    let first = group.first().map(|s| state.at[*s as usize])?;
    if group.len() < 2 || group.iter().any(|s| state.at[*s as usize] != first) {
        return None;
    }
    group.iter().rev().find_map(|server| {
        let place = state.best(*server, 0.0, false, |n| n == first)?;
        let load = state.level_with(place.node, state.problem.load[*server as usize]);
        Some((*server, Place { choice: Choice::Spread { load }, ..place }))
    })
}
