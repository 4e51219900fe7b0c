//! Fewer moves to the same end. What was moved goes back where that does no harm; and of a small cluster all ways with fewer moves
//! are tried, within a budget that is counted, not timed.

use super::balance::{Rules, is_even};
use super::outcome::{Cause, Choice};
use super::place::Draft;
use super::problem::NOWHERE;
use super::state::{SAME, State, is_better, merit};

/// Clusters up to this size are searched.
const NODES: usize = 8;
const SERVERS: usize = 64;
/// More moves than this are not worth a search.
const MOVES: usize = 8;
/// How many changes are tried in all.
const BUDGET: u32 = 5000;

fn moved(draft: &Draft) -> Vec<u32> {
    let problem = draft.state.problem;
    let is_moved = |s: &u32| {
        let server = *s as usize;
        let balanced = matches!(draft.why[server], Some((Cause::Balance, _)));
        balanced && draft.state.at[server] != problem.home[server]
    };
    (0..problem.servers.len() as u32).filter(is_moved).collect()
}

/// Sends home what may as well be there: all nodes stay within their share, and nothing is left to do.
pub(super) fn send_home(draft: &mut Draft, before: &State, rules: &Rules, fair: f64) {
    let problem = draft.state.problem;
    let mut order = moved(draft);
    order.sort_by(|a, b| problem.load[*a as usize].total_cmp(&problem.load[*b as usize]).then(a.cmp(b)));
    let mut state = draft.state.clone();
    let mut sent = Vec::new();
    for server in order {
        let home = problem.home[server as usize];
        let level = state.level_with(home, problem.load[server as usize]);
        if level <= rules.stop * fair && state.may_put(server, home) {
            state.put(server, home);
            sent.push(server);
        }
    }
    if !sent.is_empty() && is_better(merit(&state), merit(before)) && is_even(&state, rules) {
        draft.state = state;
        sent.into_iter().for_each(|s| draft.why[s as usize] = None);
    }
}

/// A search for fewer moves from `before`, where everything is at home, that come as far as those that led to `draft`.
pub(super) fn search(draft: &mut Draft, before: &State, rules: &Rules, fair: f64) {
    let problem = draft.state.problem;
    let most = moved(draft).len();
    let at_home = before.at.iter().zip(&problem.home).all(|(at, home)| at == home || *at == NOWHERE);
    if !(2..=MOVES).contains(&most)
        || before.lowest().count() > NODES
        || problem.servers.len() > SERVERS
        || !at_home
    {
        return;
    }
    let highest = |state: &State| state.lowest().last().map_or(0.0, |n| state.level(n));
    let goal = (rules.stop * fair).max(highest(&draft.state)) + SAME;
    let mut search = Search {
        state: before.clone(),
        rules,
        goal,
        before: merit(before),
        budget: BUDGET,
        path: Vec::with_capacity(most),
    };
    for depth in 1..most {
        if search.go(depth) {
            for server in moved(draft) {
                draft.state.put(server, problem.home[server as usize]);
                draft.why[server as usize] = None;
            }
            for &(server, node, choice) in &search.path {
                draft.state.put(server, node);
                draft.why[server as usize] =
                    Some((Cause::Balance, Choice::Evens { before: choice.0, after: choice.1 }));
            }
            return;
        }
    }
}

struct Search<'s, 'p> {
    state: State<'p>,
    rules: &'s Rules<'s>,
    goal: f64,
    before: (f64, f64),
    budget: u32,
    /// Virtual server, its new node, and the higher level of the two nodes before and after.
    path: Vec<(u32, u32, (f64, f64))>,
}

impl Search<'_, '_> {
    /// Is the goal reached with so many moves more?
    fn go(&mut self, depth: usize) -> bool {
        let problem = self.state.problem;
        let over: Vec<u32> =
            self.state.lowest().rev().take_while(|n| self.state.level(*n) > self.goal).collect();
        let Some(&from) = over.first() else {
            return is_better(merit(&self.state), self.before) && is_even(&self.state, self.rules);
        };
        let needed: usize = over.iter().map(|n| self.needed(*n)).sum();
        if needed > depth {
            return false;
        }
        let going: Vec<u32> = self.state.on(from).iter().rev().copied().collect();
        let targets: Vec<u32> = self.state.lowest().filter(|n| *n != from).collect();
        for server in going.into_iter().filter(|s| self.rules.movable[*s as usize]) {
            let load = problem.load[server as usize];
            if load <= problem.small || self.path.iter().any(|p| p.0 == server) {
                continue;
            }
            for &to in &targets {
                let after = (self.state.level_with(from, -load), self.state.level_with(to, load));
                let last = depth == 1 && after.0.max(after.1) > self.goal;
                if last || !self.state.may_put(server, to) {
                    continue;
                }
                if self.budget == 0 {
                    return false;
                }
                self.budget -= 1;
                self.path.push((server, to, (self.state.level(from), after.0.max(after.1))));
                self.state.put(server, to);
                if self.go(depth - 1) {
                    return true;
                }
                self.state.put(server, from);
                self.path.pop();
            }
        }
        false
    }

    /// So many must leave that node at least.
    fn needed(&self, node: u32) -> usize {
        let problem = self.state.problem;
        let mut over = self.state.load(node) - self.goal * problem.capacity[node as usize];
        let mut count = 0;
        for server in self.state.on(node).iter().rev().filter(|s| self.rules.movable[**s as usize]) {
            if over <= 0.0 {
                break;
            }
            over -= problem.load[*server as usize];
            count += 1;
        }
        if over > 0.0 { usize::MAX / NODES / 2 } else { count }
    }
}
