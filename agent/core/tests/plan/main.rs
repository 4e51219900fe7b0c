//! The planner: what it does in cases made by hand, and what holds in all.

mod properties;
mod table;

use std::collections::BTreeMap;

use baton_core::plan::{NodeState, Plan, Situation};

/// The node of every placed virtual server.
pub fn places(plan: &Plan) -> BTreeMap<&str, &str> {
    plan.placements.iter().map(|p| (p.server.as_str(), p.node.as_str())).collect()
}

/// The situation after the plan was carried out: what it placed has its node; what it could not place and nobody serves has none.
pub fn applied(situation: &Situation, plan: &Plan) -> Situation {
    let mut after = situation.clone();
    for server in &mut after.servers {
        if let Some(placed) = plan.placements.iter().find(|p| p.server == server.name) {
            server.owner = Some(placed.node.clone());
        }
    }
    after
}

/// The highest load and the sum of squares of the owners as they are.
pub fn merit(situation: &Situation) -> (f64, f64) {
    let alive = situation.nodes.iter().filter(|n| n.state != NodeState::Dead);
    let levels = alive.map(|n| {
        let here = situation.servers.iter().filter(|s| s.owner.as_ref() == Some(&n.name));
        (here.map(|s| s.load).sum::<f64>() / n.capacity, n.capacity)
    });
    levels.fold((0.0, 0.0), |(highest, squares): (f64, f64), (level, capacity)| {
        (highest.max(level), squares + level * level * capacity)
    })
}
