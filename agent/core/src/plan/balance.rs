//! Evening out: from the most loaded node down, one virtual server at a time goes to the node where the higher of the two comes
//! out lowest; where that is not possible, two change places. Each operation lowers the highest load of all, or leaves it and
//! lowers the sum of squares, so that it ends, and nothing is ever worse than it was. A node that no operation makes better is left
//! out, and the others are measured without it.

use super::outcome::{Cause, Choice};
use super::place::Draft;
use super::problem::Problem;
use super::state::{Place, SAME, State};

/// The least loaded nodes among which the best is chosen; only if none of them will do, others are looked at.
const TARGETS: usize = 16;
/// How far from the ideal load the other half of a swap is looked for.
const NEAR: usize = 4;
/// Among so many of equal load, the one that costs least to move is chosen.
const EQUALS: usize = 16;

/// One operation between two nodes, and the higher of their levels after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Operation {
    after: f64,
    from: u32,
    to: u32,
    goes: u32,
    /// What comes back, and whether it must come first.
    comes: Option<(u32, bool)>,
}

/// Who may be moved, and how far.
pub(super) struct Rules<'a> {
    pub(super) movable: &'a [bool],
    pub(super) start: f64,
    pub(super) stop: f64,
    /// Nodes below are never relieved.
    pub(super) quiet: f64,
}

impl Rules<'_> {
    fn may_move(&self, server: u32) -> bool {
        self.movable[server as usize]
    }
}

/// Nodes that nothing makes better, with what they had then.
struct Stuck {
    is: Vec<bool>,
    /// The node, its load, and whether it was higher than all others: if not, more may be permitted once it is.
    nodes: Vec<(u32, f64, bool)>,
    load: f64,
    capacity: f64,
}

impl Stuck {
    fn insert(&mut self, state: &State, node: u32) {
        self.is[node as usize] = true;
        self.nodes.push((node, state.load(node), is_alone_on_top(state, node)));
        self.load -= state.load(node);
        self.capacity -= state.problem.capacity[node as usize];
    }

    fn remove(&mut self, problem: &Problem, gone: impl Fn(u32, bool) -> bool) {
        let (is, load, capacity) = (&mut self.is, &mut self.load, &mut self.capacity);
        self.nodes.retain(|&(node, had, on_top)| {
            let stays = !gone(node, on_top);
            if !stays {
                is[node as usize] = false;
                *load += had;
                *capacity += problem.capacity[node as usize];
            }
            stays
        });
    }

    fn fair(&self) -> f64 {
        self.load / self.capacity
    }
}

/// Goes on until every node is below its share or stuck. Returns the fair level of those that are not stuck, if anything was done.
pub(super) fn even_out(draft: &mut Draft, rules: &Rules) -> Option<f64> {
    let problem = draft.state.problem;
    let (load, capacity) = draft.state.totals();
    let mut stuck = Stuck { is: vec![false; problem.nodes.len()], nodes: Vec::new(), load, capacity };
    let mut limit = rules.start;
    let mut done = false;
    loop {
        let highest = draft.state.lowest().rev().find(|n| !stuck.is[*n as usize]);
        let Some(node) = highest else { break };
        let level = draft.state.level(node);
        if level <= (limit * stuck.fair() * (1.0 + SAME)).max(rules.quiet) {
            break;
        }
        let Some(operation) = best(&draft.state, rules, node) else {
            stuck.insert(&draft.state, node);
            continue;
        };
        let changed = [operation.from, operation.to];
        stuck.remove(problem, |n, _| changed.contains(&n));
        apply(draft, &operation);
        (limit, done) = (rules.stop, true);
        let state = &draft.state;
        stuck.remove(problem, |n, on_top| {
            let rises = !on_top && is_alone_on_top(state, n);
            rises || changed.iter().any(|c| between(state, rules, n, *c).is_some())
        });
    }
    done.then(|| stuck.fair())
}

/// Would anything be done?
pub(super) fn is_even(state: &State, rules: &Rules) -> bool {
    let (load, capacity) = state.totals();
    let mut stuck = Stuck { is: vec![false; state.problem.nodes.len()], nodes: Vec::new(), load, capacity };
    for node in state.lowest().rev() {
        if state.level(node) <= (rules.start * stuck.fair() * (1.0 + SAME)).max(rules.quiet) {
            return true;
        }
        if best(state, rules, node).is_some() {
            return false;
        }
        stuck.insert(state, node);
    }
    true
}

fn apply(draft: &mut Draft, operation: &Operation) {
    let name = |s: u32| draft.state.problem.servers[s as usize].name.clone();
    let Operation { after, from, to, goes, comes } = *operation;
    let before = draft.state.level(from);
    let put = |draft: &mut Draft, server, node, choice| {
        draft.put(server, Place { node, choice }, Cause::Balance);
    };
    let Some((back, first)) = comes else {
        put(draft, goes, to, Choice::Evens { before, after });
        return;
    };
    let mut pair =
        [(goes, to, Choice::Swap { with: name(back) }), (back, from, Choice::Swap { with: name(goes) })];
    if first {
        pair.reverse();
    }
    for (server, node, choice) in pair {
        put(draft, server, node, choice);
    }
}

/// The best operation that relieves this node.
fn best(state: &State, rules: &Rules, from: u32) -> Option<Operation> {
    let lower = || state.lowest().take_while(|to| state.level(*to) < state.level(from));
    for kind in [shift, swap] {
        let mut best: Option<Operation> = None;
        for (looked, to) in lower().enumerate() {
            if looked >= TARGETS && best.is_some() {
                break;
            }
            // Two nodes can't come below their common level.
            let common = (state.load(from) + state.load(to))
                / (state.problem.capacity[from as usize] + state.problem.capacity[to as usize]);
            if best.is_some_and(|b| common >= b.after - SAME) {
                continue;
            }
            let found = kind(state, rules, from, to);
            if found.is_some_and(|f| best.is_none_or(|b| f.after < b.after - SAME)) {
                best = found;
            }
        }
        if best.is_some() {
            return best;
        }
    }
    None
}

fn between(state: &State, rules: &Rules, from: u32, to: u32) -> Option<Operation> {
    if from == to || state.level(to) >= state.level(from) {
        return None;
    }
    shift(state, rules, from, to).or_else(|| swap(state, rules, from, to))
}

/// What must go from one to the other to even them out.
fn ideal(state: &State, from: u32, to: u32) -> f64 {
    let capacity = |n: u32| state.problem.capacity[n as usize];
    (state.load(from) * capacity(to) - state.load(to) * capacity(from)) / (capacity(from) + capacity(to))
}

/// Is this node more loaded than every other?
fn is_alone_on_top(state: &State, node: u32) -> bool {
    let up = state.lowest().rev().find(|n| *n != node);
    state.problem.not_up.iter().copied().chain(up).all(|n| state.level(n) < state.level(node) * (1.0 - SAME))
}

/// What an operation asks of clients.
struct Price {
    /// Load of everything that moves.
    moved: f64,
    /// That, times how long its clients wait.
    cost: f64,
}

/// The higher level of the two when so much goes over; `None` if that is no better, or does not pay.
fn outcome(state: &State, (from, to): (u32, u32), load: f64, price: Price) -> Option<f64> {
    let policy = state.problem.policy;
    let before = state.level(from);
    let (low, high) = (state.level_with(from, -load), state.level_with(to, load));
    let after = low.max(high);
    let gain = (before - after) * state.problem.capacity[from as usize];
    if after >= before * (1.0 - SAME)
        || gain * policy.horizon.as_secs_f64() <= price.cost
        || gain < price.moved * policy.least_gain
    {
        return None;
    }
    let squares = before * state.load(from) + state.level(to) * state.load(to);
    let then = low * (state.load(from) - load) + high * (state.load(to) + load);
    (then < squares * (1.0 - SAME) || is_alone_on_top(state, from)).then_some(after)
}

fn price(problem: &Problem, servers: &[u32]) -> Price {
    let load = |s: &u32| problem.load[*s as usize];
    let wait = |s: &u32| problem.servers[*s as usize].move_cost.as_secs_f64();
    Price { moved: servers.iter().map(load).sum(), cost: servers.iter().map(|s| load(s) * wait(s)).sum() }
}

/// One goes over: of those just below and just above the ideal load, the better.
fn shift(state: &State, rules: &Rules, from: u32, to: u32) -> Option<Operation> {
    let problem = state.problem;
    let load = |s: &u32| problem.load[*s as usize];
    let on = state.on(from);
    let middle = on.partition_point(|s| load(s) <= ideal(state, from, to));
    let try_one = |s: &u32| {
        let may = rules.may_move(*s) && state.may_put(*s, to);
        let after = may.then(|| outcome(state, (from, to), load(s), price(problem, &[*s]))).flatten()?;
        Some(Operation { after, from, to, goes: *s, comes: None })
    };
    let below = on[..middle].iter().rev().find_map(try_one);
    // Ever heavier ones are ever worse: the first that may and isn't better ends it.
    let worth = |s: &&u32| state.level_with(to, load(s)) < state.level(from);
    let above = on[middle..].iter().take_while(worth).find_map(try_one);
    let better = match (below, above) {
        (Some(b), Some(a)) if a.after < b.after - SAME => Some(a),
        (Some(b), _) => Some(b),
        (None, a) => a,
    };
    better.map(|found| cheapest(state, found, try_one))
}

/// Of those of the same load: one that moves anyway, that costs least, that is preferred there or isn't here.
fn cheapest(state: &State, found: Operation, try_one: impl Fn(&u32) -> Option<Operation>) -> Operation {
    let problem = state.problem;
    let load = problem.load[found.goes as usize];
    let on = state.on(found.from);
    let first = on.partition_point(|s| problem.load[*s as usize] < load);
    let equals = on[first..].iter().take_while(|s| problem.load[**s as usize] == load).take(EQUALS);
    let price = |o: &Operation| {
        let server = o.goes;
        let place = |n: u32| problem.preferred(server).iter().position(|p| *p == n).unwrap_or(usize::MAX);
        let here = place(found.from) != usize::MAX;
        let stays = state.at[server as usize] == problem.home[server as usize];
        let worse = place(found.to) > place(found.from);
        (stays, problem.servers[server as usize].move_cost, worse, here, place(found.to), server)
    };
    equals.filter_map(try_one).min_by_key(price).unwrap_or(found)
}

/// Two change places, the heavier one going down; each must be permitted when it is its turn.
fn swap(state: &State, rules: &Rules, from: u32, to: u32) -> Option<Operation> {
    let problem = state.problem;
    let load = |s: u32| problem.load[s as usize];
    let ideal = ideal(state, from, to);
    let (mine, theirs) = (state.on(from), state.on(to));
    let mut best: Option<Operation> = None;
    for &goes in mine.iter().rev().filter(|s| rules.may_move(**s)) {
        if load(goes) <= problem.small || !state.may(goes, to) {
            continue;
        }
        let middle = theirs.partition_point(|s| load(*s) < load(goes) - ideal);
        let range = middle.saturating_sub(NEAR)..(middle + NEAR).min(theirs.len());
        for &back in &theirs[range] {
            let over = load(goes) - load(back);
            if over <= 0.0 || !rules.may_move(back) {
                continue;
            }
            let Some(after) = outcome(state, (from, to), over, price(problem, &[goes, back])) else {
                continue;
            };
            if best.is_some_and(|b| after >= b.after - SAME) || !state.may(back, from) {
                continue;
            }
            let first = if state.has_room(to, load(goes)) {
                false
            } else if state.has_room(from, load(back)) && state.has_room(to, over) {
                true
            } else {
                continue;
            };
            best = Some(Operation { after, from, to, goes, comes: Some((back, first)) });
        }
    }
    best
}
