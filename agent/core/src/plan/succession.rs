//! Who takes what when a node dies, ahead of time. For every node: what it has is placed on the others as if it were dead, the
//! heaviest first, so that any one death leaves the survivors balanced, and what the dead one had goes to several. The second in
//! line is found the same way on top of that, and so on.

use super::outcome::Succession;
use super::place::{heaviest_first, spread};
use super::problem::{NOWHERE, Problem};
use super::state::State;

/// The successors of every virtual server, by number. `state` is as it was afterwards.
pub(super) fn all(state: &mut State) -> Vec<Vec<u32>> {
    let problem = state.problem;
    let mut lists = vec![Vec::new(); problem.servers.len()];
    for node in 0..problem.nodes.len() as u32 {
        let mut group: Vec<u32> = state.on(node).iter().copied().filter(|s| !problem.is_pinned(*s)).collect();
        if group.is_empty() {
            continue;
        }
        group.sort_by(|a, b| heaviest_first(problem, *a, *b));
        let took = state.takes(node);
        if took {
            state.set_takes(node, false);
        }
        of_group(state, &group, &mut lists);
        for &server in &group {
            state.put(server, node);
        }
        if took {
            state.set_takes(node, true);
        }
    }
    lists
}

/// The successors of what one node has; leaves it with the first of them.
fn of_group(state: &mut State, group: &[u32], lists: &mut [Vec<u32>]) {
    let problem = state.problem;
    group.iter().for_each(|s| state.lift(*s));
    let (load, capacity) = state.totals();
    let coming: f64 = group.iter().map(|s| problem.load[*s as usize]).sum();
    let fair = (load + coming) / capacity;
    for &server in group {
        // Too much load is better than no service: capacity only decides who comes first.
        let place =
            state.best(server, fair, false, |_| false).or_else(|| state.best(server, fair, true, |_| false));
        if let Some(place) = place {
            state.put(server, place.node);
        }
    }
    if let Some((server, place)) = spread(state, group) {
        state.put(server, place.node);
    }
    for &server in group {
        lists[server as usize].extend(Some(state.at[server as usize]).filter(|n| *n != NOWHERE));
    }
    let mut added: Vec<(u32, f64)> = Vec::new();
    for rank in 1..problem.policy.successors {
        for &server in group {
            let list = &mut lists[server as usize];
            if list.len() < rank {
                continue;
            }
            let other = |n: u32| list.contains(&n);
            let place =
                state.best(server, fair, false, other).or_else(|| state.best(server, fair, true, other));
            if let Some(place) = place {
                let load = problem.load[server as usize];
                list.push(place.node);
                state.weigh(place.node, load);
                added.push((place.node, load));
            }
        }
    }
    for (node, load) in added {
        state.weigh(node, -load);
    }
}

/// The same by name. What nobody owned has its planned node first, and so has what a dead node had.
pub(super) fn named(state: &mut State) -> Vec<Succession> {
    let problem: &Problem = state.problem;
    let name = |n: u32| problem.nodes[n as usize].name.clone();
    let lists = all(state);
    let servers = problem.servers.iter().zip(&state.at).zip(lists);
    servers
        .map(|((server, at), list)| Succession {
            server: server.name.clone(),
            node: Some(*at).filter(|n| *n != NOWHERE).map(name),
            successors: list.into_iter().map(name).collect(),
        })
        .collect()
}
