//! Loads that change over time, and what each system makes of them. Every system begins with the same owners; once in a tick it sees
//! the loads and acts. What counts is the highest load *before* it acts: what clients have.

use std::time::{Duration, Instant};

use anyhow::Result;
use baton_core::plan::{self, Policy, Situation};

use super::generate::{Loads, Numbers, Shape};
use super::rivals::{self, Owners};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Every load rises and falls once a day, each at its own hour.
    Daily,
    /// One virtual server has thirty times its load from the second hour to the fourth.
    Hot,
    /// A fifth of the virtual servers has six times its load within ten minutes, and loses it over hours.
    Flash,
    /// Eight nodes more every half hour, from 8 to 64.
    Growing,
    /// Nothing changes.
    Constant,
    /// The daily course, with 1,000 nodes.
    Huge,
}

pub const ALL: [Course; 6] =
    [Course::Daily, Course::Hot, Course::Flash, Course::Growing, Course::Constant, Course::Huge];

pub const SYSTEMS: [&str; 4] = ["baton", "stay", "count", "lpt"];

/// What one system did with one course.
pub struct Outcome {
    pub system: &'static str,
    /// Hours, and highest load over lower bound.
    pub imbalance: Vec<(f64, f64)>,
    /// Moves by tick.
    pub moves: Vec<usize>,
    /// Microseconds of every decision.
    pub times: Vec<f64>,
}

impl Course {
    pub fn name(self) -> &'static str {
        match self {
            Course::Daily => "daily_5x200",
            Course::Hot => "hot_server_8x200",
            Course::Flash => "flash_crowd_16x400",
            Course::Growing => "growing_8_to_64x1000",
            Course::Constant => "constant_64x1000",
            Course::Huge => "daily_1000x20000",
        }
    }

    fn shape(self) -> Shape {
        let (nodes, servers, loads) = match self {
            Course::Daily => (5, 200, Loads::Exponential),
            Course::Hot => (8, 200, Loads::Exponential),
            Course::Flash => (16, 400, Loads::Uniform),
            Course::Growing => (64, 1000, Loads::Exponential),
            Course::Constant => (64, 1000, Loads::Exponential),
            Course::Huge => (1000, 20_000, Loads::Uniform),
        };
        Shape { nodes, servers, loads, mixed: self == Course::Growing, restricted: false }
    }

    pub fn tick(self) -> Duration {
        Duration::from_secs(if self == Course::Huge { 600 } else { 60 })
    }

    fn ticks(self) -> usize {
        match self {
            Course::Daily => 2 * 24 * 60,
            Course::Hot | Course::Flash => 6 * 60,
            Course::Growing => 5 * 60,
            Course::Constant => 2 * 60,
            Course::Huge => 12 * 6,
        }
    }

    /// How many virtual servers one balance may move: one in a hundred.
    pub fn at_once(self) -> usize {
        self.shape().servers / 100
    }

    fn nodes_at(self, hours: f64) -> usize {
        match self {
            Course::Growing => (8 + 8 * (hours * 2.0) as usize).min(64),
            Course::Daily | Course::Hot | Course::Flash | Course::Constant | Course::Huge => {
                self.shape().nodes
            }
        }
    }

    /// How many times its usual load a virtual server has. `luck` is its own, from 0 to 1.
    fn factor(self, server: usize, luck: f64, hours: f64) -> f64 {
        let wave = 0.6 + 0.4 * (std::f64::consts::TAU * (hours / 24.0 + luck)).sin();
        match self {
            Course::Daily | Course::Huge => wave,
            Course::Hot if server == 7 && (2.0..4.0).contains(&hours) => 30.0,
            Course::Flash if luck < 0.2 && hours >= 1.0 => {
                1.0 + 5.0 * ((hours - 1.0) * 6.0).min(1.0) * (1.0 - hours).exp()
            }
            // Much less at first, when there are few nodes.
            Course::Growing => 0.12,
            Course::Hot | Course::Flash | Course::Constant => 1.0,
        }
    }

    pub fn run(self) -> Result<Vec<Outcome>> {
        let mut usual = self.shape().make(11);
        let first = self.nodes_at(0.0);
        for (number, server) in usual.servers.iter_mut().enumerate() {
            // Those of the constant course keep their random owners: there has to be something to do.
            if self != Course::Constant {
                server.owner = Some(usual.nodes[number % first].name.clone());
            }
        }
        let mut numbers = Numbers::new(12);
        let luck: Vec<f64> = usual.servers.iter().map(|_| numbers.share()).collect();
        let start = rivals::owners(&usual);
        let mut outcomes: Vec<(Outcome, Owners)> = SYSTEMS
            .iter()
            .map(|system| {
                let empty = Outcome { system, imbalance: Vec::new(), moves: Vec::new(), times: Vec::new() };
                (empty, start.clone())
            })
            .collect();
        let mut moved: Vec<Option<usize>> = vec![None; usual.servers.len()];
        for tick in 0..self.ticks() {
            let hours = tick as f64 * self.tick().as_secs_f64() / 3600.0;
            let nodes = usual.nodes[..self.nodes_at(hours)].to_vec();
            let mut now = Situation { nodes, servers: usual.servers.clone(), ..Situation::default() };
            for (number, server) in now.servers.iter_mut().enumerate() {
                server.load *= self.factor(number, luck[number], hours);
                server.rested = moved[number].map(|then| self.tick() * (tick - then) as u32);
            }
            let mut bound = 0.0;
            for (outcome, owners) in &mut outcomes {
                for (server, owner) in now.servers.iter_mut().zip(owners.iter()) {
                    server.owner = Some(now.nodes[*owner].name.clone());
                }
                let before = rivals::highest(&now, owners);
                let watch = Instant::now();
                let after = match outcome.system {
                    "baton" => {
                        let policy = Policy { at_once: Some(self.at_once()), ..Policy::default() };
                        let plan = plan::plan(&now, &policy)?;
                        outcome.times.push(watch.elapsed().as_secs_f64() * 1e6);
                        bound = plan.lower_bound;
                        let mut after = owners.clone();
                        apply(&now, &plan, &mut after);
                        for (number, (old, new)) in owners.iter().zip(&after).enumerate() {
                            if old != new {
                                moved[number] = Some(tick);
                            }
                        }
                        after
                    }
                    "count" => rivals::by_count(&now),
                    "lpt" => rivals::greedy(&now),
                    _ => owners.clone(),
                };
                if outcome.system != "baton" {
                    outcome.times.push(watch.elapsed().as_secs_f64() * 1e6);
                }
                outcome.imbalance.push((hours, before / bound));
                outcome.moves.push(rivals::moves(owners, &after));
                *owners = after;
            }
        }
        Ok(outcomes.into_iter().map(|(outcome, _)| outcome).collect())
    }
}

/// Carries a plan out.
pub fn apply(situation: &Situation, plan: &plan::Plan, owners: &mut Owners) {
    let node = |name: &str| situation.nodes.iter().position(|n| n.name == name);
    let placed: std::collections::BTreeMap<&str, &str> =
        plan.placements.iter().map(|p| (p.server.as_str(), p.node.as_str())).collect();
    for (server, owner) in situation.servers.iter().zip(owners.iter_mut()) {
        let to = placed.get(server.name.as_str()).filter(|to| **to != situation.nodes[*owner].name);
        if let Some(to) = to.and_then(|to| node(to)) {
            *owner = to;
        }
    }
}
