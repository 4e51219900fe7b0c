//! `node-failover`: what a client loses when a node dies, is cut off, is drained or gives a virtual server away, and the same with
//! keepalived.
//!
//! Three nodes with etcd on each; the address goes from one to another. A client sends a probe every 200 us. A run is over when
//! another node has announced the address and has answered for a while; the outage is the longest time between two successive
//! replies from the fault until then. The nodes of a system are all up all the time; the next run begins when all are well again
//! and all of etcd's members agree on a leader. keepalived runs on two nodes of a lab of its own.
//!
//! The floor, for the death of etcd's leader, is etcd alone: from the death until somebody can write.

pub mod baton;
mod election;
pub mod keepalived;
mod many;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::etcd::Timers;
use baton_lab::{Host, Lab, Probe, Watcher, clock};
use clap::{Args, ValueEnum};

use crate::html;
use crate::load::Load;
use crate::report::{Key, Report, Row, microseconds};
use crate::runs::{Outcome, Output, repeat};
use crate::witness::Witness;

/// The virtual IP.
pub const VIP: &str = "10.0.0.10";
/// The echo's UDP port.
pub const ECHO_PORT: u16 = 7777;
/// See [`crate::node::CLIENT_PRIORITY`].
pub const CLIENT_PRIORITY: i32 = 10;
/// Where the client is.
pub const CLIENT_SEGMENT: &str = "office";
/// Between two probes.
const INTERVAL: Duration = Duration::from_micros(200);
/// Replies after the failover that end the run.
const REPLIES: usize = 20;
/// How long a failover may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the new node is watched: what goes wrong afterwards belongs to the run, too.
const SETTLE: Duration = Duration::from_millis(150);
/// A client that did not send for so long, and for a quarter of its outage, has stalled.
const STALL: Duration = Duration::from_millis(1);
/// An announcement and the end of the outage that it ends are no further apart.
const NEAR: Duration = Duration::from_millis(5);

/// What happens to the node that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cause {
    /// All its links and processes end at once. It leads neither etcd nor the cluster.
    PowerLoss,
    /// The same, and it is the master.
    MasterDies,
    /// The same, and it leads etcd.
    LeaderDies,
    /// Its agent is killed for good; the kernel lives.
    AgentKilled,
    /// No frame reaches it, and none leaves it; everything on it lives.
    Unreachable,
    /// It is cut off from the other nodes and their etcd, and the client still reaches it.
    Partition,
    /// It is drained; keepalived: stopped by its administrator.
    Drain,
    /// An administrator moves the virtual server.
    Move,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Cause::PowerLoss => "power_loss",
            Cause::MasterDies => "master_dies",
            Cause::LeaderDies => "etcd_leader_dies",
            Cause::AgentKilled => "agent_killed",
            Cause::Unreachable => "unreachable",
            Cause::Partition => "partition",
            Cause::Drain => "drain",
            Cause::Move => "move",
        }
    }

    /// A run that takes longer is told of, step by step.
    fn slow_from(self, kind: Kind) -> Duration {
        Duration::from_millis(match self {
            _ if kind == Kind::Keepalived => 5000,
            Cause::PowerLoss
            | Cause::MasterDies
            | Cause::AgentKilled
            | Cause::Unreachable
            | Cause::Partition => {
                if kind == Kind::Baton {
                    80
                } else {
                    40
                }
            }
            Cause::LeaderDies => 400,
            Cause::Drain | Cause::Move => 20,
        })
    }
}

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// etcd alone.
    Floor,
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
            Kind::Floor => "floor",
            Kind::Baton => "baton",
            Kind::BatonFast => "baton_fast",
            Kind::KeepalivedFast => "keepalived_10ms",
            Kind::Keepalived => "keepalived",
        }
    }

    /// Probe interval and lease of Baton's profiles.
    pub fn profile(self) -> Option<(&'static str, &'static str)> {
        match self {
            Kind::Baton => Some(("10ms", "50ms")),
            Kind::BatonFast => Some(("2ms", "10ms")),
            Kind::Floor | Kind::KeepalivedFast | Kind::Keepalived => None,
        }
    }

    /// `None`: it does not serve an address.
    fn start(self, timers: Timers) -> Result<Option<Box<dyn System>>> {
        Ok(match self {
            Kind::Floor => None,
            Kind::Baton | Kind::BatonFast => Some(Box::new(baton::Baton::start(self, timers)?)),
            Kind::KeepalivedFast => Some(Box::new(keepalived::Keepalived::start("0.01")?)),
            Kind::Keepalived => Some(Box::new(keepalived::Keepalived::start("1")?)),
        })
    }
}

/// A system that stands, with a client.
pub trait System {
    /// Its lab.
    fn lab(&self) -> &Lab;

    /// Can an outage by this cause be measured here?
    fn has(&self, cause: Cause) -> bool;

    /// Brings the address where the cause can happen to it, and waits until all is well. Returns the node.
    fn prepare(&mut self, cause: Cause) -> Result<String>;

    /// Lets it happen to this node.
    fn strike(&mut self, cause: Cause, node: &str) -> Result<()>;

    /// Mends it.
    fn mend(&mut self, cause: Cause, node: &str) -> Result<()>;

    /// How long writes to etcd take now, where there is one.
    fn puts(&mut self) -> Result<Vec<Duration>> {
        Ok(Vec::new())
    }

    /// Counts the elections that etcd has held, where there is one and its members agree, but for that of one node.
    fn term(&self, without: &str) -> Option<u64> {
        let _ = without;
        None
    }

    /// What the nodes did since `at`.
    fn story(&self, at: Duration) -> String {
        let _ = at;
        String::new()
    }

    /// Causes after which two nodes answer: there is no outage to measure. Returns how many do.
    fn answering(&mut self, cause: Cause) -> Result<Option<usize>> {
        let _ = cause;
        Ok(None)
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
    #[arg(long, value_delimiter = ',', default_value = "floor,baton,baton-fast,keepalived-10ms,keepalived")]
    systems: Vec<Kind>,
    /// Scenarios, with commas between them.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "power-loss,master-dies,leader-dies,agent-killed,unreachable,partition,drain,move"
    )]
    scenarios: Vec<Cause>,
    /// Loads, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "idle,busy")]
    load: Vec<Load>,
    /// Runs with 100 virtual servers on the node that dies, for each profile and load; 0: none.
    #[arg(long, default_value_t = 10)]
    many: usize,
    /// Nice value of etcd's processes.
    #[arg(long, default_value_t = -20, allow_negative_numbers = true)]
    etcd_nice: i32,
    #[command(flatten)]
    output: Output,
}

/// What has been found.
struct Findings {
    report: Report,
    /// Rows of other units.
    rows: Vec<Row>,
    remarks: Vec<String>,
}

impl Findings {
    fn record(
        &mut self,
        kind: Kind,
        load: Load,
        scenario: &str,
        metric: &str,
        value: Duration,
    ) -> Result<()> {
        let (scenario, metric) = (scenario.to_owned(), metric.to_owned());
        self.report.record(Key { scenario, load: load.name(), metric, system: kind.name() }, value)
    }
}

/// Measures and reports.
pub fn main(arguments: &Arguments) -> Result<()> {
    let timers = Timers { nice: arguments.etcd_nice, ..Timers::default() };
    let mut findings =
        Findings { report: Report::new("node-failover"), rows: Vec::new(), remarks: Vec::new() };
    let witness = Witness::start()?;
    for &kind in &arguments.systems {
        // What has been found of the others is worth being shown.
        if let Err(error) = measure(kind, timers, arguments, &witness, &mut findings) {
            eprintln!("FAILED: {}: {error:#}", kind.name());
            findings.remarks.push(format!("FAILED: {}: see above; what follows it is missing", kind.name()));
        }
    }
    let Findings { report, rows: more, mut remarks } = findings;
    remarks.extend(judge(&report));
    println!("{}", report.table());
    remarks.iter().for_each(|remark| println!("{remark}"));
    let rows: Vec<Row> = report.rows().into_iter().chain(more).collect();
    arguments.output.write(&rows, || html::page(&report, &remarks))
}

/// Everything of one system.
fn measure(
    kind: Kind,
    timers: Timers,
    arguments: &Arguments,
    witness: &Witness,
    findings: &mut Findings,
) -> Result<()> {
    match kind.start(timers)? {
        Some(mut system) => {
            for &load in &arguments.load {
                let _spinners = load.start(system.lab().host("client")?)?;
                for &cause in &arguments.scenarios {
                    let case = Case { kind, load, cause };
                    case.measure(&mut *system, arguments.runs, witness, findings)?;
                }
            }
        }
        None if arguments.scenarios.contains(&Cause::LeaderDies) => {
            election::measure(timers, arguments, findings)?;
        }
        None => {}
    }
    if arguments.many > 0 && kind.profile().is_some() {
        many::measure(kind, timers, arguments, findings)?;
    }
    Ok(())
}

/// A cause, to a system, under a load.
#[derive(Clone, Copy)]
struct Case {
    kind: Kind,
    load: Load,
    cause: Cause,
}

/// What one run measured.
struct Sample {
    outage: Duration,
    /// From the fault to the first announcement by another node.
    announced: Duration,
    /// etcd held an election meanwhile.
    elected: bool,
    /// The client itself did not send for a good part of it: that says nothing of the system.
    stalled: bool,
}

impl Case {
    fn name(self) -> String {
        format!("{}, {}, {}", self.kind.name(), self.cause.name(), self.load.name())
    }

    /// All runs.
    fn measure(
        self,
        system: &mut dyn System,
        runs: usize,
        witness: &Witness,
        findings: &mut Findings,
    ) -> Result<()> {
        let Case { kind, load, cause } = self;
        if !system.has(cause) {
            if load == Load::Idle
                && let Some(nodes) = system.answering(cause)?
            {
                findings.remarks.push(format!("{}: {nodes} nodes answer for the address", self.name()));
                let mut values = [nodes as f64];
                let row = |v: &mut [f64]| {
                    Row::of("node-failover", kind.name(), cause.name(), "answering_nodes", "count", v)
                };
                findings.rows.push(row(&mut values));
            }
            return Ok(());
        }
        let mut elections = Vec::new();
        let failed = repeat(&self.name(), runs, |_| {
            if cause == Cause::Move {
                for put in system.puts()? {
                    findings.record(kind, load, "etcd", "etcd_put", put)?;
                }
            }
            let sample = self.run(system, witness)?;
            if sample.stalled {
                findings.record(kind, load, cause.name(), "client_outage_stalled", sample.outage)?;
                return Ok(Outcome::Void);
            }
            findings.record(kind, load, cause.name(), "client_outage", sample.outage)?;
            findings.record(kind, load, cause.name(), "announced", sample.announced)?;
            if sample.elected && cause != Cause::LeaderDies {
                elections.push(sample.outage);
            }
            Ok(Outcome::Counts)
        });
        findings.remarks.extend(failed);
        if !elections.is_empty() {
            let (name, count) = (self.name(), elections.len());
            findings.remarks.push(format!(
                "{name}: in {count} of {runs} runs etcd elected, though its leader was well: {elections:.1?}"
            ));
        }
        Ok(())
    }

    fn run(self, system: &mut dyn System, witness: &Witness) -> Result<Sample> {
        let Case { cause, .. } = self;
        let node = system.prepare(cause)?;
        let before = system.term(&node);
        let target: SocketAddr = (VIP.parse::<std::net::Ipv4Addr>()?, ECHO_PORT).into();
        let client = system.lab().host("client")?;
        let others = system.lab().ports().filter(|p| {
            p.segment() == CLIENT_SEGMENT && ![node.as_str(), client.name()].contains(&p.host().name())
        });
        let watcher = Watcher::claims(others)?;
        let probe = Probe::start(client, target, INTERVAL, Some(CLIENT_PRIORITY))?;
        let steady = probe.wait_for_replies(REPLIES, Duration::ZERO, LIMIT);
        steady.with_context(|| format!("before {} of {node}\n{}", cause.name(), system.complaint()))?;
        let at = clock::now();
        system.strike(cause, &node)?;
        let seen = observe(system.lab(), &watcher, &probe, at)
            .with_context(|| format!("after {} of {node}\n{}", cause.name(), system.complaint()));
        let result = probe.stop();
        let end = clock::now();
        if let Ok(announced) = &seen
            && let Some(gap) = result.longest_gap(at, end)
            && gap.length() >= cause.slow_from(self.kind)
        {
            let (stall, own) = (witness.longest(at, gap.to), result.pause_at_ends(&gap));
            eprintln!(
                "SLOW: {} of {node}: {:.1?} without a reply, from {:.1?} to {:.1?} after it; announced after {:.1?}; \
                 etcd's term {before:?} to {:?}; the machine stalled for {stall:.1?}, the client paused for {own:.1?}{}",
                self.name(),
                gap.length(),
                gap.from.saturating_sub(at),
                gap.to - at,
                *announced - at,
                system.term(&node),
                system.story(at)
            );
        }
        let after = system.term(&node);
        system.mend(cause, &node)?;
        let announced = seen?;
        let gap = result.longest_gap(at, end).context("no replies around the fault")?;
        let stalled = result.pause_at_ends(&gap) > STALL.max(gap.length() / 4);
        let around = gap.from <= announced + NEAR && gap.to + NEAR >= announced;
        ensure!(around || stalled, "the longest silence, {gap:?}, is not at the announcement, {announced:?}");
        Ok(Sample { outage: gap.length(), announced: announced - at, elected: before != after, stalled })
    }
}

/// Waits until another node has announced the address and serves; returns when it announced it.
fn observe(lab: &Lab, watcher: &Watcher, probe: &Probe, at: Duration) -> Result<Duration> {
    let address: IpAddr = VIP.parse()?;
    let announced = watcher.wait_for_announcement(address, at, LIMIT)?.at;
    probe.wait_for_replies(REPLIES, announced, LIMIT)?;
    std::thread::sleep(SETTLE);
    probe.wait_for_replies(REPLIES, clock::now(), LIMIT)?;
    let holders = lab.port("client", "p0")?.holders(address, Duration::from_millis(20))?;
    ensure!(holders.len() == 1, "{} nodes answer: {holders:?}", holders.len());
    Ok(announced)
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
            let name = format!("{system}, 100 servers, from the verdict, max");
            let back = quantile(system, many::SCENARIO, load, "back_after_verdict", 1.0);
            compare(&name, back, Some(250_000.0));
        }
        for system in ["baton", "baton_fast"] {
            for (word, q) in [("p50", 0.5), ("p90", 0.9)] {
                let floor = quantile("floor", "etcd_leader_dies", load, "etcd_election", q);
                let ours = outage(system, "etcd_leader_dies", q);
                if let (Some(floor), Some(ours)) = (floor, ours) {
                    let more = ours - floor;
                    // The tenth is what two samples of random election times differ by; then the take itself.
                    let verdict = if more <= floor / 10.0 + 2000.0 { "reached" } else { "MISSED" };
                    remarks.push(format!(
                        "{verdict}: {load}: {system}, etcd's leader dies, {word}: {ours:.0} us, {more:.0} more than etcd's own \
                         election (at most {:.0})",
                        floor / 10.0 + 2000.0
                    ));
                }
            }
        }
    }
    remarks
}
