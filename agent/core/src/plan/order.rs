//! The steps of a plan in an order in which each is permitted when it is its turn: first what nobody serves, by priority, then what
//! must leave, then balance, always from the node that is then the most loaded.

use super::outcome::{Cause, Choice, Kind, Step, Why};
use super::place::{Draft, heaviest_first};
use super::problem::{NOWHERE, Problem};
use super::state::{State, is_better};

/// Steps, and the state after them.
pub(super) struct Ordered<'p> {
    pub(super) state: State<'p>,
    pub(super) steps: Vec<Step>,
}

impl<'p> Ordered<'p> {
    fn new(problem: &'p Problem<'p>) -> Self {
        Ordered { state: State::new(problem), steps: Vec::new() }
    }

    /// Makes the step if it is permitted now.
    pub(super) fn make(&mut self, server: u32, to: u32, why: &(Cause, Choice)) -> bool {
        if !self.state.may_put(server, to) {
            return false;
        }
        let problem = self.state.problem;
        let (from, home) = (self.state.at[server as usize], problem.home[server as usize]);
        let level = |state: &State, n: u32| if n == NOWHERE { 0.0 } else { state.level(n) };
        let before = (level(&self.state, from), self.state.level(to), self.highest());
        self.state.put(server, to);
        let kind = match (home, from) {
            (NOWHERE, NOWHERE) => Kind::Start,
            (_, NOWHERE) => Kind::Takeover,
            (_, _) => Kind::Move,
        };
        let source = if from == NOWHERE { home } else { from };
        let (high, then) = (before.0.max(before.1), level(&self.state, from).max(self.state.level(to)));
        // What was found in one order may be made in another: the figures are those of now.
        let choice = match (&why.0, &why.1) {
            (Cause::Balance, _) if then < high => Choice::Evens { before: high, after: then },
            (_, choice) => choice.clone(),
        };
        self.steps.push(Step {
            server: problem.servers[server as usize].name.clone(),
            from: problem.nodes.get(source as usize).map(|n| n.name.clone()),
            to: problem.nodes[to as usize].name.clone(),
            kind,
            why: Why { cause: why.0.clone(), choice },
            from_load: (before.0, level(&self.state, from)),
            to_load: (before.1, self.state.level(to)),
            highest: (before.2, self.highest()),
        });
        true
    }

    fn highest(&self) -> f64 {
        let problem = self.state.problem;
        let top = self.state.lowest().last().map_or(0.0, |n| self.state.level(n));
        problem.not_up.iter().map(|n| self.state.level(*n)).fold(top, f64::max)
    }
}

/// A step to be made: the virtual server, its node, and why.
type Pending<'d> = (u32, u32, &'d (Cause, Choice));

/// The steps that lead to `draft`; `None` if no order was found for those that have to be made.
pub(super) fn order<'p>(draft: &Draft<'p>) -> Option<Ordered<'p>> {
    let (mut ordered, left, last) = must_be_made(draft, &vec![false; draft.why.len()]);
    if !left.is_empty() {
        return None;
    }
    balance(&mut ordered, last);
    Some(ordered)
}

/// As many of those that have to be made as there is an order for; what is left goes elsewhere, or stays and is returned.
pub(super) fn partly<'p>(draft: &Draft<'p>) -> (Ordered<'p>, Vec<u32>) {
    let problem = draft.state.problem;
    let mut kept = vec![false; problem.servers.len()];
    loop {
        let (mut ordered, left, _) = must_be_made(draft, &kept);
        let mut out = Vec::new();
        for (server, _, (cause, _)) in left {
            let place = ordered.state.best(server, 0.0, false, |_| false);
            match (place, cause) {
                (_, Cause::MakesRoom(_)) => {}
                (Some(place), _) => _ = ordered.make(server, place.node, &(cause.clone(), place.choice)),
                (None, _) => out.push(server),
            }
        }
        // What would make room for something that stays where it is stays, too.
        let stays = |name: &str| out.iter().any(|s| problem.servers[*s as usize].name == name);
        let in_vain = |step: &&Step| matches!(&step.why.cause, Cause::MakesRoom(name) if stays(name));
        let vain: Vec<&str> = ordered.steps.iter().filter(in_vain).map(|step| step.server.as_str()).collect();
        if vain.is_empty() {
            return (ordered, out);
        }
        for (server, kept) in kept.iter_mut().enumerate() {
            *kept |= vain.contains(&problem.servers[server].name.as_str());
        }
    }
}

/// `kept` (by virtual server) are not moved.
fn must_be_made<'d, 'p>(
    draft: &'d Draft<'p>,
    kept: &[bool],
) -> (Ordered<'p>, Vec<Pending<'d>>, Vec<Pending<'d>>) {
    let problem = draft.state.problem;
    let mut ordered = Ordered::new(problem);
    let (mut first, mut then, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for (server, to) in draft.state.at.iter().copied().enumerate() {
        if to == NOWHERE || to == ordered.state.at[server] || kept[server] {
            continue;
        }
        let Some(why) = &draft.why[server] else { continue };
        let list = match why.0 {
            Cause::Unowned | Cause::OwnerDead => &mut first,
            Cause::Drain | Cause::OutOfReach(_) | Cause::NeverWith(_) | Cause::MakesRoom(_) => &mut then,
            Cause::Balance => &mut last,
        };
        list.push((server as u32, to, why));
    }
    let priority = |s: u32| problem.servers[s as usize].priority;
    for list in [&mut first, &mut then, &mut last] {
        list.sort_by(|a, b| {
            priority(b.0).cmp(&priority(a.0)).then_with(|| heaviest_first(problem, a.0, b.0))
        });
    }
    while !first.is_empty() || !then.is_empty() {
        let before = ordered.steps.len();
        first.retain(|(server, to, why)| !ordered.make(*server, *to, why));
        then.retain(|(server, to, why)| !ordered.make(*server, *to, why));
        if ordered.steps.len() == before {
            break;
        }
    }
    first.append(&mut then);
    (ordered, first, last)
}

fn balance(ordered: &mut Ordered, list: Vec<Pending>) {
    let problem = ordered.state.problem;
    let mut waiting: Vec<Vec<Pending>> = vec![Vec::new(); problem.nodes.len()];
    let mut left = list.len();
    for item in list {
        waiting[ordered.state.at[item.0 as usize] as usize].push(item);
    }
    for items in &mut waiting {
        items.sort_by(|a, b| heaviest_first(problem, a.0, b.0));
    }
    let limit = problem.policy.at_once.unwrap_or(usize::MAX);
    let mut squares = ordered.state.squares();
    let mut made: Vec<(u32, u32)> = Vec::new();
    let (mut best, mut kept) = ((ordered.highest(), squares), 0);
    while left > 0 && made.len() < limit {
        let step = ordered.state.lowest().rev().find_map(|from| {
            let items = &mut waiting[from as usize];
            let position = items.iter().position(|i| ordered.state.may_put(i.0, i.1))?;
            Some((from, items.remove(position)))
        });
        let Some((from, (server, to, why))) = step else { break };
        let sum = |state: &State| [from, to].map(|n| state.level(n) * state.load(n)).iter().sum::<f64>();
        squares -= sum(&ordered.state);
        ordered.make(server, to, why);
        squares += sum(&ordered.state);
        made.push((server, from));
        left -= 1;
        let merit = (ordered.highest(), squares);
        if is_better(merit, best) {
            (best, kept) = (merit, made.len());
        }
    }
    if left == 0 {
        return;
    }
    // Not all could be made: those that led to the best state.
    for &(server, from) in made[kept..].iter().rev() {
        ordered.state.put(server, from);
        ordered.steps.pop();
    }
}

/// The steps in the order in which their ends were found; `None` if one is not permitted then.
pub(super) fn by_log<'p>(draft: &Draft<'p>) -> Option<Ordered<'p>> {
    let mut ordered = Ordered::new(draft.state.problem);
    let mut last = vec![usize::MAX; draft.why.len()];
    for (index, (server, _)) in draft.log.iter().enumerate() {
        last[*server as usize] = index;
    }
    for (index, &(server, to)) in draft.log.iter().enumerate() {
        let Some(why) = draft.why[server as usize].as_ref().filter(|_| last[server as usize] == index) else {
            continue;
        };
        if to != ordered.state.at[server as usize] && !ordered.make(server, to, why) {
            return None;
        }
    }
    Some(ordered)
}
