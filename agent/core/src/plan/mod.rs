//! Which node has which virtual server: pure, without a clock, and the same whatever the order of its input.
//!
//! What is sought, in order: every constraint kept (pinned, segments, storage units, `never_with`, `only_on`, capacity, the
//! nodes' states); the lowest highest load, as a share of capacity; the smallest sum of squares; the fewest and cheapest moves;
//! preferences.
//!
//! [`plan()`] does, in this order:
//!
//! 1. what nobody has, or a dead node had, is placed: the heaviest first, each where the load is least then (`place`);
//! 2. what can't stay (draining node, lost reach, two that may not be together) goes elsewhere in the same way;
//! 3. if a node has more than [`Policy::start`] times its fair share, loads are evened out until all have less than
//!    [`Policy::stop`] times theirs (`balance`), and what need not have moved goes back (`fewest`);
//! 4. the steps are put in an order in which each is permitted (`order`).
//!
//! Capacity is a limit for plans. A takeover knows none: [`successions`] put a node that has no room last, not out, since too
//! much load is better than no service.

mod balance;
mod bound;
mod fewest;
mod input;
mod order;
mod outcome;
mod place;
mod problem;
mod state;
mod succession;

pub use input::{Mistake, Node, NodeState, Planning, Policy, Server, Situation};
pub use outcome::{
    Barrier, Cause, Choice, Hindrance, Kind, NodeLoad, Placement, Plan, Step, Succession, Unplaced, Why,
};

use balance::Rules;
use order::Ordered;
use place::Draft;
use problem::{NOWHERE, Problem};
use state::State;

/// What nobody had may be placed anew for nothing, so it comes closer to the fair share than what must be moved.
const CLOSE: f64 = 1.005;

/// Where everything is to be, and the steps that lead there.
pub fn plan(situation: &Situation, policy: &Policy) -> Result<Plan, Mistake> {
    situation.check()?;
    let problem = Problem::new(situation, policy);
    let mut placed = Draft::new(&problem);
    placed.place_all();
    let mut draft = placed.clone();
    even_out_new(&mut draft);
    even_out_all(&mut draft);
    draft.retry();
    if let Some(ordered) = order::order(&draft) {
        return Ok(finish(draft, ordered));
    }
    // With next to no room left, what is even can't always be reached one by one; what is placed comes first.
    if let Some(ordered) = order::order(&placed).or_else(|| order::by_log(&placed)) {
        return Ok(finish(placed, ordered));
    }
    let (ordered, out) = order::partly(&placed);
    placed.state = ordered.state.clone();
    for server in out {
        let hindrance = placed.hindrance(server);
        placed.unplaced.push((server, hindrance));
    }
    Ok(finish(placed, ordered))
}

/// Who is to take every virtual server when its node dies, or has died; by name.
pub fn successions(situation: &Situation, policy: &Policy) -> Result<Vec<Succession>, Mistake> {
    situation.check()?;
    let problem = Problem::new(situation, policy);
    let mut draft = Draft::new(&problem);
    draft.place_unserved();
    Ok(succession::named(&mut draft.state))
}

/// Only what nobody had is moved about.
fn even_out_new(draft: &mut Draft) {
    let problem = draft.state.problem;
    let new = |s: usize| problem.home[s] == NOWHERE && draft.state.at[s] != NOWHERE;
    let movable: Vec<bool> = (0..problem.servers.len()).map(new).collect();
    if movable.contains(&true) {
        let rules = Rules { movable: &movable, start: problem.policy.stop, stop: CLOSE, quiet: 0.0 };
        balance::even_out(draft, &rules);
    }
}

fn even_out_all(draft: &mut Draft) {
    let problem = draft.state.problem;
    let (policy, situation) = (problem.policy, problem.situation);
    if !policy.balance || situation.rested.is_some_and(|t| t < policy.cluster_cooldown) {
        return;
    }
    let may_move = |s: usize| {
        let at = draft.state.at[s];
        let rested = problem.servers[s].rested.is_none_or(|t| t >= policy.server_cooldown);
        let spread = matches!(draft.why[s], Some((_, Choice::Spread { .. })));
        at != NOWHERE && draft.state.takes(at) && !problem.is_pinned(s as u32) && rested && !spread
    };
    let movable: Vec<bool> = (0..problem.servers.len()).map(may_move).collect();
    let settled: Vec<bool> =
        movable.iter().enumerate().map(|(s, may)| *may && draft.state.at[s] == problem.home[s]).collect();
    let start = if situation.balancing { policy.stop } else { policy.start };
    let rules = Rules { movable: &movable, start, stop: policy.stop, quiet: policy.quiet };
    let before = draft.state.clone();
    // What has just been placed stays there, if the others alone can be evened out.
    let first = balance::even_out(draft, &Rules { movable: &settled, ..rules });
    let then = if settled == movable { None } else { balance::even_out(draft, &rules) };
    if let Some(fair) = then.or(first) {
        fewest::send_home(draft, &before, &rules, fair);
        fewest::search(draft, &before, &rules, fair);
    }
}

/// Not every step of the draft may have been made: what found no place in the draft may find one after those that were.
fn fill<'p>(draft: &mut Draft<'p>, ordered: &mut Ordered<'p>) {
    let problem = draft.state.problem;
    let nowhere = |u: &(u32, Hindrance)| {
        ordered.state.at[u.0 as usize] == NOWHERE && !matches!(u.1, Hindrance::Pinned { .. })
    };
    let (mut waiting, mut unplaced): (Vec<_>, Vec<_>) =
        std::mem::take(&mut draft.unplaced).into_iter().partition(nowhere);
    // What made room for another has left what it had to leave.
    unplaced.retain(|(server, _)| ordered.state.at[*server as usize] == draft.home(*server));
    waiting.sort_by_key(|u| (u32::MAX - problem.servers[u.0 as usize].priority, u.0));
    waiting.retain(|(server, _)| match ordered.state.best(*server, 0.0, false, |_| false) {
        Some(place) => !ordered.make(*server, place.node, &(draft.missing(*server), place.choice)),
        None => true,
    });
    draft.state = ordered.state.clone();
    unplaced.extend(waiting.into_iter().map(|(server, _)| (server, draft.hindrance(server))));
    unplaced.sort_by_key(|u| u.0);
    draft.unplaced = unplaced;
}

fn finish<'p>(mut draft: Draft<'p>, mut ordered: Ordered<'p>) -> Plan {
    let problem = draft.state.problem;
    fill(&mut draft, &mut ordered);
    for step in &mut ordered.steps {
        for loads in [&mut step.from_load, &mut step.to_load, &mut step.highest] {
            *loads = (tidy(loads.0), tidy(loads.1));
        }
    }
    let state = &ordered.state;
    let before = State::new(problem);
    let name = |n: u32| problem.nodes[n as usize].name.clone();
    let unplaced: Vec<Unplaced> = draft
        .unplaced
        .iter()
        .map(|(server, hindrance)| Unplaced {
            server: problem.servers[*server as usize].name.clone(),
            stays_on: Some(state.at[*server as usize]).filter(|n| *n != NOWHERE).map(name),
            hindrance: hindrance.clone(),
        })
        .collect();
    let mut has_place: Vec<bool> = state.at.iter().map(|at| *at != NOWHERE).collect();
    draft.unplaced.iter().for_each(|u| has_place[u.0 as usize] = false);
    let is_placed = |(server, _): &(usize, &u32)| has_place[*server];
    let placements = state
        .at
        .iter()
        .enumerate()
        .filter(is_placed)
        .map(|(server, at)| Placement { server: problem.servers[server].name.clone(), node: name(*at) });
    let nodes = (0..problem.nodes.len() as u32).map(|n| NodeLoad {
        name: name(n),
        before: tidy(before.level(n)),
        after: tidy(state.level(n)),
    });
    Plan {
        placements: placements.collect(),
        unplaced,
        nodes: nodes.collect(),
        highest_before: tidy(before.highest()),
        highest_load: tidy(state.highest()),
        lower_bound: tidy(bound::lower_bound(state)),
        steps: ordered.steps,
    }
}

/// Without the traces of rounded loads: to twelve digits.
fn tidy(figure: f64) -> f64 {
    if figure <= 0.0 {
        return 0.0;
    }
    let digits = 11 - figure.log10().floor() as i32;
    let scale = 10f64.powi(digits.clamp(-300, 300));
    (figure * scale).round() / scale
}
