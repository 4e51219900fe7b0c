//! `baton plan`: what the planner would do, and why, without doing it.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stdout};
use std::path::{Path, PathBuf};

use baton_core::config::BalanceMode;
use baton_core::plan::{self, Cause, Kind, Node, NodeState, Plan, Planning, Server, Situation, Step};
use serde::{Deserialize, Serialize};

use super::CliError;
use super::status::PATIENCE;
use super::text::{Table, Tint, count, one_line, tinted};
use crate::control::{PlanRequest, Request, ask};

/// The description of a cluster that --trace reads, in JSON. Unknown keys are errors.
const FILE_HELP: &str = r#"The file of --trace is JSON; unknown keys are errors:

  {"nodes": [{"name": "fs1", "capacity": 1.0, "segments": ["office"], "storage": ["array-1"], "state": "up"}],
   "virtual_servers": [{"name": "projects", "load": 0.3, "owner": "fs1", "segments": ["office"],
     "storage": ["array-1"], "migrate": true, "priority": 100, "preferred_nodes": ["fs1"],
     "never_with": ["archive"], "only_on": ["fs1", "fs2"]}]}

A name, and a virtual server's load, must be there. Else: capacity 1 (load and capacity in one unit of your choice), no
segments, no storage, state "up" (or draining, dead, unknown), owner null, migrate true, priority 100, and no names in
preferred_nodes, never_with and only_on (all nodes).

Exit status: 0 everything has a place, 1 something has none (the plan is printed all the same), 64 a bad file."#;

/// Options of `plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = FILE_HELP)]
pub(super) struct Options {
    /// As JSON, one line
    #[arg(long)]
    json: bool,
    /// As if this node were dead
    #[arg(long, value_name = "NODE")]
    without: Option<String>,
    /// The cluster that this file describes, instead of the real one
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

pub(super) fn command(
    options: &Options,
    socket: impl FnOnce() -> Result<PathBuf, CliError>,
) -> Result<(), CliError> {
    let (mut planning, live) = match &options.trace {
        Some(file) => (Planning { situation: read(file)?, ..Planning::default() }, false),
        None => (ask_agent(&socket()?)?, true),
    };
    let Planning { situation, policy, mode } = &mut planning;
    if let Some(name) = &options.without {
        let Some(node) = situation.nodes.iter_mut().find(|n| n.name == *name) else {
            let names: Vec<&str> = situation.nodes.iter().map(|n| n.name.as_str()).collect();
            return Err(CliError::Other(format!(
                "there is no node \"{name}\"; there are {}",
                names.join(", ")
            )));
        };
        node.state = NodeState::Dead;
        // What is taken over is taken at once; balance comes later, if at all.
        policy.balance = false;
    }
    let plan = plan::plan(situation, policy).map_err(|e| CliError::Other(e.to_string()))?;
    if options.json {
        writeln!(stdout(), "{}", serde_json::to_string(&Answer::of(&plan))?)?;
    } else {
        let notes = if live { notes(*mode, &plan, options.without.is_some()) } else { Vec::new() };
        write!(stdout(), "{}", render(situation, &plan, stdout().is_terminal()))?;
        for note in notes {
            writeln!(stdout(), "{note}")?;
        }
    }
    if plan.unplaced.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = plan.unplaced.iter().map(|u| u.server.as_str()).collect();
    Err(CliError::Other(format!(
        "{} cannot be placed: {}; see the reasons in the plan",
        count(names.len(), "virtual server"),
        names.join(", ")
    )))
}

/// What the agent knows of the cluster.
fn ask_agent(socket: &Path) -> Result<Planning, CliError> {
    let mut answers = ask(socket, &Request::Plan(PlanRequest {}))?;
    answers.limit(Some(PATIENCE))?;
    let line = answers.next().ok_or_else(|| {
        CliError::Other("the agent has gone without an answer; see `journalctl -u baton`".to_owned())
    })??;
    whatever_rests(serde_json::from_str(&line)?).map_err(CliError::Other)
}

/// The plan as of now, whether balance is on or not, and whether the cluster rests after a move or not.
fn whatever_rests(mut planning: Planning) -> Result<Planning, String> {
    if planning.situation.nodes.is_empty() {
        return Err("the agent has not measured anything yet; ask again in a few seconds".to_owned());
    }
    planning.situation.rested = None;
    planning.policy.balance = true;
    Ok(planning)
}

/// What `baton plan --json` prints.
///
/// # Errors
/// Nothing has been measured yet, or the situation can't be planned.
pub(crate) fn as_json(planning: Planning) -> Result<String, String> {
    let Planning { situation, policy, .. } = whatever_rests(planning)?;
    let plan = plan::plan(&situation, &policy).map_err(|e| e.to_string())?;
    serde_json::to_string(&Answer::of(&plan)).map_err(|e| e.to_string())
}

/// What becomes of a plan for a living cluster.
fn notes(mode: BalanceMode, plan: &Plan, without: bool) -> Vec<&'static str> {
    let mut notes = Vec::new();
    if plan.steps.iter().any(|s| s.why.cause == Cause::Balance) {
        notes.push(match mode {
            BalanceMode::Off => {
                "Balance is off: make these moves with `baton move`, or set mode in [balance] with `baton apply`."
            }
            BalanceMode::Advise => {
                "Balance only advises: make these moves with `baton move`, or set mode = \"on\" in [balance]."
            }
            BalanceMode::On => "Balance is on: the master makes these moves when the cluster has rested.",
        });
    }
    if without {
        notes.push("This is what would be taken over if that node died now. Nothing has been done.");
    }
    if !notes.is_empty() {
        notes.insert(0, "");
    }
    notes
}

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trace {
    nodes: Vec<TraceNode>,
    virtual_servers: Vec<TraceServer>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceNode {
    name: String,
    #[serde(default = "one")]
    capacity: f64,
    #[serde(default)]
    segments: Vec<String>,
    #[serde(default)]
    storage: Vec<String>,
    #[serde(default)]
    state: TraceState,
}

fn one() -> f64 {
    1.0
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TraceState {
    #[default]
    Up,
    Draining,
    Dead,
    Unknown,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceServer {
    name: String,
    load: f64,
    #[serde(default)]
    owner: Option<String>,
    #[serde(default)]
    segments: Vec<String>,
    #[serde(default)]
    storage: Vec<String>,
    #[serde(default)]
    migrate: Option<bool>,
    #[serde(default)]
    priority: Option<u32>,
    #[serde(default)]
    preferred_nodes: Vec<String>,
    #[serde(default)]
    never_with: Vec<String>,
    #[serde(default)]
    only_on: Vec<String>,
}

impl From<TraceNode> for Node {
    fn from(node: TraceNode) -> Node {
        let state = match node.state {
            TraceState::Up => NodeState::Up,
            TraceState::Draining => NodeState::Draining,
            TraceState::Dead => NodeState::Dead,
            TraceState::Unknown => NodeState::Unknown,
        };
        let TraceNode { name, capacity, segments, storage, .. } = node;
        Node { name, capacity, segments, storage, state }
    }
}

impl From<TraceServer> for Server {
    fn from(server: TraceServer) -> Server {
        let default = Server::new("", 0.0);
        Server {
            name: server.name,
            load: server.load,
            owner: server.owner,
            segments: server.segments,
            storage: server.storage,
            migrate: server.migrate.unwrap_or(default.migrate),
            priority: server.priority.unwrap_or(default.priority),
            preferred_nodes: server.preferred_nodes,
            never_with: server.never_with,
            only_on: server.only_on,
            ..default
        }
    }
}

fn read(file: &Path) -> Result<Situation, CliError> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| {
        CliError::BadFile(format!("{shown}: cannot be read: {e}; name a file that describes a cluster"))
    })?;
    let trace: Trace = serde_json::from_str(&text).map_err(|e| CliError::BadFile(bad_json(file, &e)))?;
    let situation = Situation {
        nodes: trace.nodes.into_iter().map(Node::from).collect(),
        servers: trace.virtual_servers.into_iter().map(Server::from).collect(),
        ..Situation::default()
    };
    match situation.check() {
        Ok(()) => Ok(situation),
        Err(mistake) => Err(CliError::BadFile(one_line(&format!("{shown}: {mistake}")))),
    }
}

/// `file:line:column: what is wrong; what to do`, in one line.
fn bad_json(file: &Path, error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = error.to_string();
    let what = what.strip_suffix(&place).unwrap_or(&what);
    let fix = match error.classify() {
        serde_json::error::Category::Eof => "the file ends too early: complete it",
        serde_json::error::Category::Syntax => "correct the JSON at this place",
        serde_json::error::Category::Data | serde_json::error::Category::Io => {
            "`baton plan --help` shows which keys and values there are"
        }
    };
    one_line(&format!("{}:{}:{}: {what}; {fix}", file.display(), error.line(), error.column().max(1)))
}

/// What --json prints.
#[derive(Serialize)]
struct Answer<'a> {
    placements: Vec<Placed<'a>>,
    moves: Vec<Moved<'a>>,
    highest_load: f64,
    lower_bound: f64,
    unplaced: Vec<NotPlaced<'a>>,
}

#[derive(Serialize)]
struct Placed<'a> {
    virtual_server: &'a str,
    node: &'a str,
}

/// A virtual server that changes its owner; what nobody has is in the placements only.
#[derive(Serialize)]
struct Moved<'a> {
    virtual_server: &'a str,
    from: &'a str,
    to: &'a str,
    kind: &'static str,
    from_load: Change,
    to_load: Change,
    highest_load: Change,
    why: String,
}

#[derive(Serialize)]
struct Change {
    before: f64,
    after: f64,
}

#[derive(Serialize)]
struct NotPlaced<'a> {
    virtual_server: &'a str,
    reason: String,
}

impl<'a> Answer<'a> {
    fn of(plan: &'a Plan) -> Answer<'a> {
        let change = |(before, after): (f64, f64)| Change { before, after };
        let moved = |s: &'a Step| {
            Some(Moved {
                virtual_server: &s.server,
                from: s.from.as_deref()?,
                to: &s.to,
                kind: s.kind.name(),
                from_load: change(s.from_load),
                to_load: change(s.to_load),
                highest_load: change(s.highest),
                why: s.why.to_string(),
            })
        };
        Answer {
            placements: plan
                .placements
                .iter()
                .map(|p| Placed { virtual_server: &p.server, node: &p.node })
                .collect(),
            moves: plan.steps.iter().filter_map(moved).collect(),
            highest_load: plan.highest_load,
            lower_bound: plan.lower_bound,
            unplaced: plan
                .unplaced
                .iter()
                .map(|u| NotPlaced { virtual_server: &u.server, reason: u.to_string() })
                .collect(),
        }
    }
}

/// 0 to 1 as a percentage with a tenth: what a plan gains is often small.
fn percent(load: f64) -> String {
    format!("{:.1} %", load * 100.0)
}

fn change((before, after): (f64, f64)) -> String {
    format!("{} > {}", percent(before), percent(after))
}

/// The plan for people.
fn render(situation: &Situation, plan: &Plan, colour: bool) -> String {
    let mut out = String::new();
    let of = |kind| plan.steps.iter().filter(|s| s.kind == kind).count();
    let kinds = [Kind::Start, Kind::Takeover, Kind::Move].map(|k| (of(k), k));
    let all: Vec<String> = kinds.iter().filter(|(n, _)| *n > 0).map(|(n, k)| count(*n, k.name())).collect();
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "{}; highest node load {} before, {} after; no plan can come below {}",
        if all.is_empty() { "nothing to do".to_owned() } else { all.join(", ") },
        percent(plan.highest_before),
        percent(plan.highest_load),
        percent(plan.lower_bound)
    );
    let plain = |text: String| (text, Tint::Plain);
    if !plan.steps.is_empty() {
        out.push('\n');
        let headings = [
            ">STEP",
            "WHAT",
            "VIRTUAL SERVER",
            "FROM",
            "TO",
            ">LOAD OF FROM",
            ">LOAD OF TO",
            ">HIGHEST",
            "WHY",
        ];
        let mut table = Table::new(&headings);
        for (number, step) in plan.steps.iter().enumerate() {
            let from = step.from.as_deref();
            table.row([
                plain((number + 1).to_string()),
                plain(step.kind.name().to_owned()),
                plain(one_line(&step.server)),
                plain(one_line(from.unwrap_or("-"))),
                plain(one_line(&step.to)),
                plain(if step.kind == Kind::Move { change(step.from_load) } else { "-".to_owned() }),
                plain(change(step.to_load)),
                plain(change(step.highest)),
                plain(one_line(&step.why.to_string())),
            ]);
        }
        table.write(&mut out, colour);
    }
    out.push('\n');
    let mut table = Table::new(&["NODE", "STATE", ">BEFORE", ">AFTER"]);
    for node in &plan.nodes {
        let state =
            situation.nodes.iter().find(|n| n.name == node.name).map_or(NodeState::Unknown, |n| n.state);
        let tint = match state {
            NodeState::Up => Tint::Good,
            NodeState::Draining | NodeState::Unknown => Tint::Warning,
            NodeState::Dead => Tint::Bad,
        };
        table.row([
            plain(one_line(&node.name)),
            (state.name().to_owned(), tint),
            plain(percent(node.before)),
            plain(percent(node.after)),
        ]);
    }
    table.write(&mut out, colour);
    if !plan.unplaced.is_empty() {
        let _ = writeln!(out, "\n{}", tinted("CANNOT BE PLACED", Tint::Bad, colour));
        for u in &plan.unplaced {
            let _ = writeln!(out, "  {}: {}", one_line(&u.server), one_line(&u.to_string()));
        }
    }
    out
}
