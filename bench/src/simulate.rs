//! The planner on made-up loads. *stay* never moves anything; *count* spreads by number, as CTDB and most others do; *lpt* is the
//! greedy that places the heaviest first, from nothing each time, whatever that moves. The lower bound is the fractional optimum
//! or the largest single virtual server. Needs no root.

mod course;
mod exact;
mod generate;
mod rivals;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use baton_core::plan::{self, Policy, Situation};

use crate::report::Row;
use crate::{chart, html};
use course::{ALL, Course, Outcome};
use generate::{Loads, Shape};

/// Options of `simulate`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often each time is taken
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// How many clusters of each shape are made
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Writes the rows there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page with curves there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Everything found out.
#[derive(Default)]
struct Findings {
    rows: Vec<Row>,
    remarks: Vec<String>,
}

impl Findings {
    fn row(
        &mut self,
        system: &'static str,
        scenario: &str,
        metric: &str,
        unit: &'static str,
        values: &mut [f64],
    ) {
        if !values.is_empty() {
            self.rows.push(Row::of("simulate", system, scenario, metric, unit, values));
        }
    }

    fn judge(&mut self, reached: bool, what: String) {
        let word = if reached { "reached" } else { "MISSED" };
        self.remarks.push(format!("{word}: {what}"));
    }
}

/// Runs all of it.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut found = Findings::default();
    speed(&mut found, arguments.runs)?;
    growth(&mut found)?;
    shapes(&mut found, arguments.seeds)?;
    small(&mut found, 4 * arguments.seeds)?;
    let mut curves = String::new();
    for course in ALL {
        curves += &follow(&mut found, course)?;
    }
    print!("{}", table(&found.rows));
    found.remarks.iter().for_each(|remark| println!("{remark}"));
    if let Some(path) = &arguments.json {
        write(path, &serde_json::to_string_pretty(&found.rows).context("encode the rows")?)?;
    }
    if let Some(path) = &arguments.html {
        let intro = "Left: the highest node load over the lower bound, before each decision. Right: moves made so far. \
            stay moves nothing, count spreads by number, lpt places everything anew each time.";
        let others = found.rows.iter().filter(|r| ALL.iter().all(|c| c.name() != r.scenario));
        let all = html::section("All else", "", &pre(&table(&others.cloned().collect::<Vec<_>>())));
        write(path, &html::document("Planner", intro, &found.remarks, &(curves + &all)))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn pre(text: &str) -> String {
    format!("<pre>{}</pre>", html::escape(text))
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<36}{:<28}{:<8}{:>6}{:>12}{:>12}{:>12}{:>12}\n",
        "scenario", "metric", "system", "n", "min", "p50", "p99", "max"
    );
    for r in rows {
        let metric = format!("{} ({})", r.metric, r.unit);
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "{:<36}{metric:<28}{:<8}{:>6}{:>12.3}{:>12.3}{:>12.3}{:>12.3}",
            r.scenario, r.system, r.n, r.min, r.p50, r.p99, r.max
        );
    }
    text
}

/// Microseconds for one plan and the successions of all.
fn once(situation: &Situation) -> Result<f64> {
    let watch = Instant::now();
    let plan = plan::plan(situation, &Policy::default())?;
    let successions = plan::successions(situation, &Policy::default())?;
    let time = watch.elapsed().as_secs_f64() * 1e6;
    std::hint::black_box((plan, successions));
    Ok(time)
}

fn median(situation: &Situation, runs: usize) -> Result<f64> {
    let mut times = (0..runs).map(|_| once(situation)).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    times.get(runs / 2).copied().context("at least one run")
}

fn shape(nodes: usize, servers: usize, loads: Loads) -> Shape {
    Shape { nodes, servers, loads, mixed: false, restricted: false }
}

fn speed(found: &mut Findings, runs: usize) -> Result<()> {
    for (nodes, servers, limit) in [(5, 900, Some(2.0)), (64, 1000, Some(20.0)), (1000, 20_000, None)] {
        let shape = shape(nodes, servers, Loads::Exponential);
        for owned in [true, false] {
            let mut situation = shape.make(1);
            if !owned {
                situation.servers.iter_mut().for_each(|s| s.owner = None);
            }
            let scenario = format!("{nodes}x{servers}_{}", if owned { "balance" } else { "from_nothing" });
            let mut times = (0..runs).map(|_| once(&situation)).collect::<Result<Vec<f64>>>()?;
            found.row("baton", &scenario, "plan_and_successions", "us", &mut times);
            let (p50, max) = (times[times.len() / 2] / 1e3, times[times.len() - 1] / 1e3);
            if let Some(limit) = limit {
                let what = format!(
                    "{scenario}, planned with successions: p50 {p50:.2} ms, max {max:.2} ms (at most {limit} ms)"
                );
                found.judge(p50 <= limit, what);
            }
        }
    }
    Ok(())
}

/// The slope of a straight line through logarithms (least squares).
fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let product: f64 = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    product / logs.iter().map(|p| (p.0 - x) * (p.0 - x)).sum::<f64>()
}

fn growth(found: &mut Findings) -> Result<()> {
    let sizes = [1000, 2000, 4000, 8000, 16_000, 32_000];
    for (name, nodes_of) in
        [("64_nodes", (|_| 64) as fn(usize) -> usize), ("20_servers_a_node", |servers| servers / 20)]
    {
        let mut points = Vec::new();
        for servers in sizes {
            let situation = shape(nodes_of(servers), servers, Loads::Exponential).make(2);
            let time = median(&situation, 5)?;
            found.row(
                "baton",
                &format!("growth_{name}_{servers}"),
                "plan_and_successions",
                "us",
                &mut [time],
            );
            points.push((servers as f64, time));
        }
        let slope = exponent(&points);
        found.row("baton", &format!("growth_{name}"), "growth_exponent", "exponent", &mut [slope]);
        let what =
            format!("{name}, 1,000 to 32,000 servers: time grows with exponent {slope:.2} (at most 1.3)");
        found.judge(slope <= 1.3, what);
    }
    Ok(())
}

/// The same clusters for all systems.
fn shapes(found: &mut Findings, seeds: u64) -> Result<()> {
    let mut worst: (f64, String) = (0.0, String::new());
    let (mut fine, mut all) = (0, 0);
    for (nodes, servers) in [(3, 60), (5, 900), (16, 400), (64, 1000), (64, 4000), (1000, 20_000)] {
        for loads in [Loads::Uniform, Loads::Exponential, Loads::Heavy] {
            for (mixed, restricted) in [(false, false), (true, false), (false, true), (true, true)] {
                let shape = Shape { nodes, servers, loads, mixed, restricted };
                let seeds = if nodes == 1000 { 1 } else { seeds };
                let mut of: Vec<(&'static str, [Vec<f64>; 3])> =
                    ["baton", "count", "lpt"].map(|s| (s, Default::default())).to_vec();
                let mut deaths = Vec::new();
                for seed in 0..seeds {
                    let situation = shape.make(100 + seed);
                    let plan = plan::plan(&situation, &Policy::default())?;
                    all += 1;
                    if Shape::is_fine(&situation) {
                        fine += 1;
                        let ratio = plan.highest_load / plan.lower_bound;
                        if ratio > worst.0 {
                            worst = (ratio, shape.name());
                        }
                    }
                    let before = rivals::owners(&situation);
                    for (system, [highest, moves, times]) in &mut of {
                        let watch = Instant::now();
                        let after = match *system {
                            "baton" => {
                                let plan = plan::plan(&situation, &Policy::default())?;
                                times.push(watch.elapsed().as_secs_f64() * 1e6);
                                let mut after = before.clone();
                                course::apply(&situation, &plan, &mut after);
                                after
                            }
                            "count" => rivals::by_count(&situation),
                            _ => rivals::greedy(&situation),
                        };
                        if *system != "baton" {
                            times.push(watch.elapsed().as_secs_f64() * 1e6);
                        }
                        highest.push(rivals::highest(&situation, &after) / plan.lower_bound);
                        moves.push(rivals::moves(&before, &after) as f64);
                    }
                    if nodes <= 64 && !restricted {
                        deaths.extend(after_deaths(&situation, &plan)?);
                    }
                }
                for (system, [highest, moves, times]) in &mut of {
                    found.row(system, &shape.name(), "highest_over_bound", "ratio", highest);
                    found.row(system, &shape.name(), "moves", "moves", moves);
                    found.row(system, &shape.name(), "time", "us", times);
                }
                found.row("baton", &shape.name(), "after_any_death", "ratio", &mut deaths);
            }
        }
    }
    let what = format!(
        "highest load over lower bound, the worst of {fine} clusters with enough small servers (of {all}): {:.4}, {} \
         (at most 1.05)",
        worst.0, worst.1
    );
    found.judge(worst.0 <= 1.05, what);
    Ok(())
}

/// The survivors' highest load over their own lower bound, for the death of each node, when the first successors take over.
fn after_deaths(situation: &Situation, plan: &plan::Plan) -> Result<Vec<f64>> {
    let mut calm = situation.clone();
    let mut owners = rivals::owners(situation);
    course::apply(situation, plan, &mut owners);
    for (server, owner) in calm.servers.iter_mut().zip(&owners) {
        server.owner = Some(calm.nodes[*owner].name.clone());
    }
    let lists = plan::successions(&calm, &Policy::default())?;
    let first: std::collections::BTreeMap<&str, &str> =
        lists.iter().filter_map(|s| Some((s.server.as_str(), s.successors.first()?.as_str()))).collect();
    let mut ratios = Vec::new();
    for dead in &situation.nodes {
        let mut after = calm.clone();
        after.nodes.retain(|n| n.name != dead.name);
        for server in after.servers.iter_mut().filter(|s| s.owner.as_ref() == Some(&dead.name)) {
            server.owner = first.get(server.name.as_str()).map(|n| (*n).to_owned());
        }
        let still = Policy { balance: false, ..Policy::default() };
        let seen = plan::plan(&after, &still)?;
        ratios.push(seen.highest_before / seen.lower_bound);
    }
    Ok(ratios)
}

/// Against exact answers.
fn small(found: &mut Findings, seeds: u64) -> Result<()> {
    let (mut ours, mut theirs, mut unsolved, mut unjustified, mut above) = (0, 0, 0, 0, Vec::new());
    for (nodes, servers) in [(3, 9), (3, 12), (4, 12)] {
        for loads in [Loads::Uniform, Loads::Exponential] {
            let shape = shape(nodes, servers, loads);
            let (mut moves, mut levels) = (Vec::new(), Vec::new());
            for seed in 0..seeds {
                let situation = shape.make(500 + seed);
                let plan = plan::plan(&situation, &Policy::default())?;
                match exact::fewest_moves(&situation, plan.highest_load)? {
                    Some(exact) => {
                        let before = rivals::owners(&situation);
                        let mut after = before.clone();
                        course::apply(&situation, &plan, &mut after);
                        let (own, fewest) = (plan.steps.len(), rivals::moves(&before, &exact));
                        ours += own;
                        theirs += fewest;
                        moves.push(own as f64 - fewest as f64);
                        if own as f64 > 1.2 * fewest as f64 {
                            above.push(format!("{own} for {fewest}"));
                            // The sum of squares comes before the number of moves.
                            let uneven = rivals::squares(&situation, &exact)
                                > rivals::squares(&situation, &after) * (1.0 + 1e-9);
                            unjustified += usize::from(!uneven);
                        }
                    }
                    None => unsolved += 1,
                }
                match exact::lowest(&situation)? {
                    Some(lowest) => levels.push(plan.highest_load / lowest),
                    None => unsolved += 1,
                }
            }
            found.row("baton", &format!("small_{}", shape.name()), "moves_above_exact", "moves", &mut moves);
            found.row(
                "baton",
                &format!("small_{}", shape.name()),
                "highest_over_exact",
                "ratio",
                &mut levels,
            );
        }
    }
    let what = format!(
        "small cases, all moves: {ours}, the fewest that come to the same highest load: {theirs} (at most 20 % more); single cases \
         above that: {} ({}), of which the exact answer has no higher sum of squares in {unjustified}; {unsolved} without an exact \
         answer in time",
        above.len(),
        above.join(", "),
    );
    found.judge(ours as f64 <= 1.2 * theirs as f64 && unjustified == 0, what);
    Ok(())
}

fn follow(found: &mut Findings, course: Course) -> Result<String> {
    let mut outcomes = course.run()?;
    for outcome in &mut outcomes {
        let mut imbalance: Vec<f64> = outcome.imbalance.iter().map(|p| p.1).collect();
        found.row(outcome.system, course.name(), "highest_over_bound", "ratio", &mut imbalance);
        let total: usize = outcome.moves.iter().sum();
        found.row(outcome.system, course.name(), "moves", "moves", &mut [total as f64]);
        found.row(outcome.system, course.name(), "time", "us", &mut outcome.times);
    }
    let ours = &outcomes[0];
    match course {
        Course::Constant => {
            let late: usize = ours.moves[ours.moves.len() / 2..].iter().sum();
            let last = ours.moves.iter().rposition(|m| *m > 0).map_or(0, |tick| tick + 1);
            let what = format!(
                "constant load: {late} moves in the second half of {} ticks, the last in tick {last} (none)",
                ours.moves.len()
            );
            found.judge(late == 0, what);
        }
        Course::Daily => {
            let day = ours.moves.len() / 2;
            let most = [&ours.moves[..day], &ours.moves[day..]].map(|d| d.iter().sum::<usize>());
            let bound = course.at_once() * day;
            let what = format!(
                "daily cycle: {} and {} moves a day (the rule: at most {} at once, once in {} s: {bound} a day)",
                most[0],
                most[1],
                course.at_once(),
                course.tick().as_secs()
            );
            found.judge(most.iter().all(|m| *m <= bound), what);
        }
        Course::Hot | Course::Flash | Course::Growing | Course::Huge => {}
    }
    Ok(drawing(course, &outcomes, &found.rows))
}

fn drawing(course: Course, outcomes: &[Outcome], rows: &[Row]) -> String {
    let sums: Vec<Vec<(f64, f64)>> = outcomes
        .iter()
        .map(|o| {
            let mut sum = 0;
            let steps = o.imbalance.iter().zip(&o.moves);
            steps
                .map(|((hours, _), moves)| {
                    sum += moves;
                    (*hours, sum as f64)
                })
                .collect()
        })
        .collect();
    let levels: Vec<(&str, &[(f64, f64)])> =
        outcomes.iter().map(|o| (o.system, o.imbalance.as_slice())).collect();
    // The greedy moves nearly everything each time: beside it nothing else would be seen.
    let moves: Vec<(&str, &[(f64, f64)])> = outcomes
        .iter()
        .zip(&sums)
        .filter(|(o, _)| o.system != "lpt")
        .map(|(o, sum)| (o.system, sum.as_slice()))
        .collect();
    let drawings = chart::curves("highest load over lower bound", 1.0, &levels)
        + &chart::curves("moves without lpt's", 0.0, &moves);
    let of_course: Vec<Row> = rows.iter().filter(|r| r.scenario == course.name()).cloned().collect();
    html::section(course.name(), &drawings, &pre(&table(&of_course)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_law_has_its_exponent() {
        let points: Vec<(f64, f64)> = (1..6).map(|n| (f64::from(n), 3.0 * f64::from(n).powf(1.25))).collect();
        assert!((exponent(&points) - 1.25).abs() < 1e-9);
    }

    #[test]
    fn the_exact_solver_knows_a_case_done_by_hand() {
        use baton_core::plan::{Node, Server};
        let nodes = vec![Node::new("a", 1.0), Node::new("b", 1.0)];
        let loads = [0.5, 0.4, 0.3, 0.2, 0.2];
        let servers = loads.iter().enumerate().map(|(n, l)| Server::new(&format!("s{n}"), *l).on("a"));
        let situation = Situation { servers: servers.collect(), nodes, ..Situation::default() };
        let lowest = exact::lowest(&situation).unwrap().unwrap();
        assert!((lowest - 0.8).abs() < 1e-6, "{lowest}");
        let fewest = |level| {
            let after = exact::fewest_moves(&situation, level).unwrap().unwrap();
            rivals::moves(&rivals::owners(&situation), &after)
        };
        assert_eq!((fewest(0.8), fewest(2.0)), (2, 0));
        let greedy = rivals::highest(&situation, &rivals::greedy(&situation));
        assert!((greedy - 0.9).abs() < 1e-9, "{greedy}");
        assert_eq!(rivals::moves(&rivals::owners(&situation), &rivals::by_count(&situation)), 2);
    }
}
