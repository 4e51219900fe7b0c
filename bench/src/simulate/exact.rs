//! Exact answers to small cases, by integer programming: one binary variable for each virtual server on each node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_core::plan::Situation;
use good_lp::solvers::microlp::microlp;
use good_lp::{
    Expression, ProblemVariables, Solution, SolutionStatus, SolverModel, Variable, WithTimeLimit, variable,
};

use super::rivals::{Owners, owners};

/// A solver that has found no proof by then gives up, and the case is left out, which is said.
const PATIENCE: Duration = Duration::from_secs(20);

fn places(vars: &mut ProblemVariables, situation: &Situation) -> Vec<Vec<Variable>> {
    let binary = || variable().binary();
    let row = |vars: &mut ProblemVariables| situation.nodes.iter().map(|_| vars.add(binary())).collect();
    situation.servers.iter().map(|_| row(vars)).collect()
}

fn load_of(situation: &Situation, places: &[Vec<Variable>], node: usize) -> Expression {
    situation.servers.iter().zip(places).map(|(server, row)| server.load * row[node]).sum()
}

/// The lowest highest load that there is.
pub fn lowest(situation: &Situation) -> Result<Option<f64>> {
    let mut vars = ProblemVariables::new();
    let places = places(&mut vars, situation);
    let top = vars.add(variable().min(0.0));
    let mut model = vars.minimise(top).using(microlp).with_time_limit(PATIENCE.as_secs_f64());
    for row in &places {
        model = model.with(row.iter().sum::<Expression>().eq(1.0));
    }
    for (number, node) in situation.nodes.iter().enumerate() {
        model = model.with((load_of(situation, &places, number) - node.capacity * top).leq(0.0));
    }
    let solution = model.solve().context("solve for the lowest load")?;
    Ok(matches!(solution.status(), SolutionStatus::Optimal).then(|| solution.value(top)))
}

/// Owners after the fewest moves after which no node is above `level`.
pub fn fewest_moves(situation: &Situation, level: f64) -> Result<Option<Owners>> {
    let mut vars = ProblemVariables::new();
    let places = places(&mut vars, situation);
    let owners = owners(situation);
    let stay: Expression = places.iter().zip(&owners).map(|(row, owner)| row[*owner]).sum();
    let mut model = vars.maximise(stay).using(microlp).with_time_limit(PATIENCE.as_secs_f64());
    for row in &places {
        model = model.with(row.iter().sum::<Expression>().eq(1.0));
    }
    for (number, node) in situation.nodes.iter().enumerate() {
        model = model.with(load_of(situation, &places, number).leq(level * node.capacity + 1e-9));
    }
    let solution = model.solve().context("solve for the fewest moves")?;
    if !matches!(solution.status(), SolutionStatus::Optimal) {
        return Ok(None);
    }
    // The solver is checked rather than believed.
    let mut loads = vec![0.0; situation.nodes.len()];
    let mut after = Vec::new();
    for (server, row) in situation.servers.iter().zip(&places) {
        let node = (0..row.len())
            .find(|n| solution.value(row[*n]) > 0.5)
            .context("a virtual server without node")?;
        loads[node] += server.load;
        after.push(node);
    }
    let fits = loads.iter().zip(&situation.nodes).all(|(load, n)| load / n.capacity <= level + 1e-6);
    ensure!(fits, "the solver's answer breaks its own limits");
    Ok(Some(after))
}
