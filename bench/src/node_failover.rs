//! `node-failover`: what a client loses when a node dies, is cut off, is drained or gives a virtual server away, and the same with
//! keepalived.
//!
//! Three nodes with etcd on each; the address goes from one to another. A client sends a probe every 200 us; its outage is the
//! longest time between two successive replies around the fault. The nodes of a system are all up all the time, and get a while to
//! recover between two runs. keepalived runs on two nodes of a lab of its own.

mod baton;
mod keepalived;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::{Direction, Host, Lab, Probe, Valve, clock};
use clap::{Args, ValueEnum};

use crate::html;
use crate::load::Load;
use crate::report::{Key, Report, microseconds};

/// The virtual IP.
pub const VIP: &str = "10.0.0.10";
/// The echo's UDP port.
pub const ECHO_PORT: u16 = 7777;
/// See [`crate::node::CLIENT_PRIORITY`].
pub const CLIENT_PRIORITY: i32 = 10;
/// Between two probes.
const INTERVAL: Duration = Duration::from_micros(200);
/// Replies after the failover that end the run.
const REPLIES: usize = 20;
/// How long a failover may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What happens to the node that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cause {
    /// All its links and processes end at once. It does not lead etcd.
    PowerLoss,
    /// The same, and it leads etcd.
    LeaderDies,
    /// Its agent is killed for good; the kernel lives.
    AgentKilled,
    /// No frame reaches it, and none leaves it; everything on it lives.
    Unreachable,
    /// It is drained.
    Drain,
    /// An administrator moves the virtual server.
    Move,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Cause::PowerLoss => "power_loss",
            Cause::LeaderDies => "etcd_leader_dies",
            Cause::AgentKilled => "agent_killed",
            Cause::Unreachable => "unreachable",
            Cause::Drain => "drain",
            Cause::Move => "move",
        }
    }
}

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Probes every 10 ms, a lease of 50 ms.
    Baton,
    /// Probes every 2 ms, a lease of 10 ms.
    BatonFast,
    /// keepalived, an advertisement every 10 ms: its fastest.
    #[value(name = "keepalived-10ms")]
    KeepalivedFast,
    /// keepalived, an advertisement every second: its default.
    Keepalived,
}

impl Kind {
    /// As in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Baton => "baton",
            Kind::BatonFast => "baton_fast",
            Kind::KeepalivedFast => "keepalived_10ms",
            Kind::Keepalived => "keepalived",
        }
    }

    fn start(self) -> Result<Box<dyn System>> {
        Ok(match self {
            Kind::Baton => Box::new(baton::Baton::start("10ms", "50ms")?),
            Kind::BatonFast => Box::new(baton::Baton::start("2ms", "10ms")?),
            Kind::KeepalivedFast => Box::new(keepalived::Keepalived::start("0.01")?),
            Kind::Keepalived => Box::new(keepalived::Keepalived::start("1")?),
        })
    }
}

/// A system that stands, with a client.
pub trait System {
    /// Its lab.
    fn lab(&self) -> &Lab;

    /// Does the cause make sense here?
    fn has(&self, cause: Cause) -> bool;

    /// Brings the address where the cause can happen to it, and waits until all is well. Returns the node.
    fn prepare(&mut self, cause: Cause) -> Result<String>;

    /// Lets it happen to this node.
    fn strike(&mut self, cause: Cause, node: &str) -> Result<()>;

    /// Mends it.
    fn mend(&mut self, cause: Cause, node: &str) -> Result<()>;

    /// The times that a write to etcd takes, where there is one.
    fn puts(&mut self) -> Result<Vec<Duration>> {
        Ok(Vec::new())
    }

    /// What to show when a run failed.
    fn complaint(&self) -> String;
}

/// What to measure.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Runs of each scenario, for each system and load.
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Systems, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "baton,baton-fast,keepalived-10ms,keepalived")]
    systems: Vec<Kind>,
    /// Scenarios, with commas between them.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "power-loss,leader-dies,agent-killed,unreachable,drain,move"
    )]
    scenarios: Vec<Cause>,
    /// Loads, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "idle,busy")]
    load: Vec<Load>,
    /// Write the rows to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page with the distributions to this file.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Measures and reports.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut report = Report::new("node-failover");
    let mut remarks = Vec::new();
    for &kind in &arguments.systems {
        let mut system = kind.start().with_context(|| format!("start {}", kind.name()))?;
        for &load in &arguments.load {
            let spinners = load.start(system.lab().host("client")?)?;
            let key = |scenario: &str, metric: &str| Key {
                scenario: scenario.to_owned(),
                load: load.name(),
                metric: metric.to_owned(),
                system: kind.name(),
            };
            for put in system.puts()? {
                report.record(key("etcd", "etcd_put"), put)?;
            }
            for &cause in &arguments.scenarios {
                if !system.has(cause) {
                    continue;
                }
                let mut failed = 0;
                for run in 0..arguments.runs {
                    match measure(&mut *system, cause) {
                        Ok(outage) => report.record(key(cause.name(), "client_outage"), outage)?,
                        Err(error) => {
                            failed += 1;
                            eprintln!("{} {} run {run}: {error:#}", kind.name(), cause.name());
                        }
                    }
                }
                if failed > 0 {
                    remarks.push(format!(
                        "FAILED: {}, {}, {}: {failed} of {} runs",
                        kind.name(),
                        cause.name(),
                        load.name(),
                        arguments.runs
                    ));
                }
            }
            drop(spinners);
        }
    }
    remarks.extend(judge(&report));
    println!("{}", report.table());
    remarks.iter().for_each(|remark| println!("{remark}"));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report.rows()).context("encode the rows")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &arguments.html {
        fs::write(path, html::page(&report, &remarks))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn measure(system: &mut dyn System, cause: Cause) -> Result<Duration> {
    let node = system.prepare(cause)?;
    let target: SocketAddr = (VIP.parse::<std::net::Ipv4Addr>()?, ECHO_PORT).into();
    let probe = Probe::start(system.lab().host("client")?, target, INTERVAL, Some(CLIENT_PRIORITY))?;
    let steady = probe.wait_for_replies(REPLIES, Duration::ZERO, LIMIT);
    steady.with_context(|| format!("before {} of {node}\n{}", cause.name(), system.complaint()))?;
    let at = clock::now();
    system.strike(cause, &node)?;
    // Until it has gone, replies may still come from the old one: wait for a silence to end, or for the move to be done.
    std::thread::sleep(Duration::from_millis(20));
    let done = clock::now();
    let mut outcome = Ok(());
    let mut since = done;
    // The longest gap is over when replies come again after all that the fault can do.
    for _ in 0..2 {
        outcome = probe.wait_for_replies(REPLIES, since, LIMIT);
        if outcome.is_err() {
            break;
        }
        std::thread::sleep(settle(cause));
        since = clock::now();
    }
    let outcome =
        outcome.with_context(|| format!("after {} of {node}\n{}", cause.name(), system.complaint()));
    let result = probe.stop();
    system.mend(cause, &node)?;
    outcome?;
    Ok(result.longest_gap(at, clock::now()).context("no replies around the fault")?.length())
}

/// How long the address may still be served after the cause.
fn settle(cause: Cause) -> Duration {
    match cause {
        Cause::AgentKilled => Duration::from_millis(2600), // the agent's grace, and the takeover
        Cause::PowerLoss | Cause::LeaderDies | Cause::Unreachable | Cause::Drain | Cause::Move => {
            Duration::from_millis(150)
        }
    }
}

/// Valves on every port of a node, open.
pub fn valves(lab: &Lab, node: &str) -> Result<Vec<Valve>> {
    let ports = lab.ports().filter(|port| port.host().name() == node);
    let both = ports.flat_map(|port| [port.valve(Direction::FromHost), port.valve(Direction::ToHost)]);
    Ok(both.collect::<Result<_, _>>()?)
}

/// Answers probes on this host, whenever it has the address.
pub fn echo(host: &Host) -> Result<baton_lab::Echo> {
    let address: std::net::Ipv4Addr = VIP.parse()?;
    Ok(baton_lab::Echo::start(host, (address, ECHO_PORT).into(), Some(CLIENT_PRIORITY))?)
}

/// Sentences on the figures that were to be reached.
fn judge(report: &Report) -> Vec<String> {
    let quantile = |system, scenario: &str, load, metric: &str, quantile| {
        let key = Key { scenario: scenario.to_owned(), load, metric: metric.to_owned(), system };
        report.get(&key).map(|h| microseconds(h.value_at_quantile(quantile)))
    };
    let mut remarks = Vec::new();
    for load in ["idle", "busy"] {
        let outage = |system, scenario: &str, q| quantile(system, scenario, load, "client_outage", q);
        let mut compare = |name: &str, ours: Option<f64>, limit: Option<f64>| {
            if let (Some(ours), Some(limit)) = (ours, limit) {
                let word = if ours <= limit { "reached" } else { "MISSED" };
                remarks.push(format!("{word}: {load}: {name}: {ours:.0} us (at most {limit:.0})"));
            }
        };
        let peer = outage("keepalived_10ms", "power_loss", 0.5);
        compare("fast, power loss, p50", outage("baton_fast", "power_loss", 0.5), peer.map(|p| 0.6 * p));
        compare("default, power loss, p99", outage("baton", "power_loss", 0.99), Some(100_000.0));
        for system in ["baton", "baton_fast"] {
            let put = quantile(system, "etcd", load, "etcd_put", 0.5);
            let name = format!("{system}, move, p50");
            compare(&name, outage(system, "move", 0.5), put.map(|p| 2.0 * p + 2000.0));
        }
    }
    remarks
}
