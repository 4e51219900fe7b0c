//! How others would place the same virtual servers: by count, and greedily from nothing.

use std::collections::BTreeMap;

use baton_core::plan::{Node, Server, Situation};

/// The node of each virtual server, by their order in the situation.
pub type Owners = Vec<usize>;

fn may(node: &Node, server: &Server) -> bool {
    server.segments.iter().all(|s| node.segments.contains(s))
        && server.storage.iter().all(|s| node.storage.contains(s))
}

/// The owners as they are.
pub fn owners(situation: &Situation) -> Owners {
    let numbers: BTreeMap<&str, usize> =
        situation.nodes.iter().enumerate().map(|(number, n)| (n.name.as_str(), number)).collect();
    let owner = |s: &Server| s.owner.as_deref().and_then(|o| numbers.get(o).copied()).unwrap_or(0);
    situation.servers.iter().map(owner).collect()
}

/// The highest load as a share of capacity.
pub fn highest(situation: &Situation, owners: &Owners) -> f64 {
    let mut loads = vec![0.0; situation.nodes.len()];
    for (server, owner) in situation.servers.iter().zip(owners) {
        loads[*owner] += server.load;
    }
    loads.iter().zip(&situation.nodes).map(|(load, n)| load / n.capacity).fold(0.0, f64::max)
}

/// The sum of squared levels, each by its node's capacity: what the planner lowers after the highest.
pub fn squares(situation: &Situation, owners: &Owners) -> f64 {
    let mut loads = vec![0.0; situation.nodes.len()];
    for (server, owner) in situation.servers.iter().zip(owners) {
        loads[*owner] += server.load;
    }
    loads.iter().zip(&situation.nodes).map(|(load, n)| load * load / n.capacity).sum()
}

/// How many have another owner.
pub fn moves(before: &Owners, after: &Owners) -> usize {
    before.iter().zip(after).filter(|(a, b)| a != b).count()
}

/// Like CTDB (LCP2 without its distances between addresses, and its deterministic and non-deterministic modes): as long as it lowers
/// the higher count, one goes from the node with the most to the one with the fewest. Loads and capacities don't count.
pub fn by_count(situation: &Situation) -> Owners {
    let mut owners = owners(situation);
    let mut on: Vec<Vec<usize>> = vec![Vec::new(); situation.nodes.len()];
    for (server, owner) in owners.iter().enumerate() {
        on[*owner].push(server);
    }
    let mut full = vec![false; on.len()];
    while let Some(from) = (0..on.len()).filter(|n| !full[*n]).max_by_key(|n| (on[*n].len(), on.len() - n)) {
        let mut targets: Vec<usize> = (0..on.len()).filter(|to| on[*to].len() + 1 < on[from].len()).collect();
        targets.sort_by_key(|to| (on[*to].len(), *to));
        let step = targets.into_iter().find_map(|to| {
            let able = |s: &usize| may(&situation.nodes[to], &situation.servers[*s]);
            on[from].iter().rposition(able).map(|position| (to, position))
        });
        match step {
            Some((to, position)) => {
                let server = on[from].remove(position);
                owners[server] = to;
                on[to].push(server);
            }
            None => full[from] = true,
        }
    }
    owners
}

/// Longest processing time first, from nothing: the best known simple greedy, which does not care who has what now.
pub fn greedy(situation: &Situation) -> Owners {
    let mut order: Vec<usize> = (0..situation.servers.len()).collect();
    order.sort_by(|a, b| situation.servers[*b].load.total_cmp(&situation.servers[*a].load).then(a.cmp(b)));
    let mut loads = vec![0.0; situation.nodes.len()];
    let mut owners = owners(situation);
    for server in order {
        let one = &situation.servers[server];
        let level = |n: usize| (loads[n] + one.load) / situation.nodes[n].capacity;
        let able = (0..loads.len()).filter(|n| may(&situation.nodes[*n], one));
        if let Some(node) = able.min_by(|a, b| level(*a).total_cmp(&level(*b)).then(a.cmp(b))) {
            loads[node] += one.load;
            owners[server] = node;
        }
    }
    owners
}
