//! `file-client`: how long an NFS client waits, and how many bytes it gets, when the node that serves it fails or gives the
//! server away; and the same with keepalived and scripts.
//!
//! A real client (libnfs, NFS version 3) reads, writes or makes files all the time, and checks what it reads. The stall is the
//! longest time between two of its answers that begins within a second of the fault; the longest one in the second before it
//! stands beside it. The servers are nfs-ganesha on ext4 on a disk that two nodes share;
//! nobody is fenced. Each run begins when all is well again.

mod baton;
mod keepalived;
mod timeline;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::files::{ADDRESS, Disks, MOUNT, NODES};
use baton_lab::nfs::NfsClient;
use baton_lab::transfer::{Contents, Log, check_stable};
use baton_lab::{Host, Lab, Transfer, Work, clock};
use clap::{Args, ValueEnum};

use crate::html;
use crate::report::{Key, Report, Row};
use timeline::Line;

/// Name of the benchmark.
const BENCH: &str = "file-client";
/// The client works for so long before the fault, and afterwards.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(2);
/// A stall that begins later than this after the fault is not the fault's.
const BEGINS: Duration = Duration::from_secs(1);
/// Answers that show that it goes on.
const ANSWERS: usize = 20;
/// How long the client may wait at most.
const LIMIT: Duration = Duration::from_secs(60);
/// A longer stall of Baton's client is told of, step by step.
const SLOW: Duration = Duration::from_secs(1);
/// Until all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between the death of a process and its next start, where somebody starts it again.
pub const RESTART: Duration = Duration::from_millis(500);

/// What happens to the node that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cause {
    /// The port that has the address loses its carrier.
    PortCut,
    /// The agent is killed, and started again half a second later.
    AgentKilled,
    /// The NFS server is killed.
    ServiceKilled,
    /// It loses its power, and what it has not synced to the disk.
    PowerLoss,
    /// It is drained; keepalived: stopped by its administrator.
    Drain,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Cause::PortCut => "port_cut",
            Cause::AgentKilled => "agent_killed",
            Cause::ServiceKilled => "service_killed",
            Cause::PowerLoss => "power_loss",
            Cause::Drain => "drain",
        }
    }
}

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Reads of 64 KB.
    #[value(name = "read-64k")]
    Read64k,
    /// Reads of 1 MB.
    #[value(name = "read-1m")]
    Read1m,
    /// Writes of 64 KB, stable when they are answered.
    #[value(name = "write-64k")]
    Write64k,
    /// Writes of 1 MB, stable when they are answered.
    #[value(name = "write-1m")]
    Write1m,
    /// Makes, looks at and removes files.
    Metadata,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Read64k => "read_64k",
            Kind::Read1m => "read_1m",
            Kind::Write64k => "write_64k",
            Kind::Write1m => "write_1m",
            Kind::Metadata => "metadata",
        }
    }

    fn work(self) -> Work {
        let (small, large) = (64 << 10, 1 << 20);
        match self {
            Kind::Read64k => Work::Read { chunk: small },
            Kind::Read1m => Work::Read { chunk: large },
            Kind::Write64k => Work::Write { chunk: small },
            Kind::Write1m => Work::Write { chunk: large },
            Kind::Metadata => Work::Metadata,
        }
    }
}

/// A system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Probes every 10 ms, a lease of 50 ms.
    Baton,
    /// keepalived, an advertisement every 10 ms: its fastest.
    #[value(name = "keepalived-10ms")]
    KeepalivedFast,
    /// keepalived, an advertisement every second: its default.
    Keepalived,
}

impl Name {
    fn name(self) -> &'static str {
        match self {
            Name::Baton => "baton",
            Name::KeepalivedFast => "keepalived_10ms",
            Name::Keepalived => "keepalived",
        }
    }

    fn start(self) -> Result<Box<dyn System>> {
        Ok(match self {
            Name::Baton => Box::new(baton::Baton::start()?),
            Name::KeepalivedFast => Box::new(keepalived::Keepalived::start("0.01")?),
            Name::Keepalived => Box::new(keepalived::Keepalived::start("1")?),
        })
    }
}

/// A system that stands and serves, with a client.
trait System {
    /// Its lab.
    fn lab(&self) -> &Lab;

    /// Its disk.
    fn disks(&self) -> &Disks;

    /// Can this be done to it without mounting the file system twice?
    fn has(&self, cause: Cause) -> bool;

    /// Waits until all is well. Returns the node that serves.
    fn prepare(&mut self) -> Result<String>;

    /// Lets it happen to this node; returns when.
    fn strike(&mut self, cause: Cause, node: &str) -> Result<Duration>;

    /// Mends it.
    fn mend(&mut self, cause: Cause, node: &str) -> Result<()>;

    /// What the nodes did since `at`.
    fn story(&self, at: Duration) -> String {
        let _ = at;
        String::new()
    }

    /// What to show when a run failed.
    fn complaint(&self) -> String;
}

/// What to measure.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Runs of each scenario, for each system and kind of work.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Systems, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "baton,keepalived-10ms,keepalived")]
    systems: Vec<Name>,
    /// Scenarios, with commas between them.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "port-cut,agent-killed,service-killed,power-loss,drain"
    )]
    scenarios: Vec<Cause>,
    /// What the client does, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "read-64k,read-1m,write-64k,write-1m,metadata")]
    work: Vec<Kind>,
    /// Write the rows to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page with time lines and distributions to this file.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// What has been found.
struct Findings {
    report: Report,
    /// Bytes per second, by scenario, metric and system.
    rates: BTreeMap<(String, &'static str, &'static str), Vec<f64>>,
    /// The time line of the longest stall, by scenario and system.
    lines: BTreeMap<String, BTreeMap<&'static str, Line>>,
    remarks: Vec<String>,
}

/// Measures and reports.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut findings = Findings {
        report: Report::new(BENCH),
        rates: BTreeMap::new(),
        lines: BTreeMap::new(),
        remarks: Vec::new(),
    };
    for &name in &arguments.systems {
        // What has been found of the others is worth being shown.
        if let Err(error) = measure(name, arguments, &mut findings) {
            eprintln!("FAILED: {}: {error:#}", name.name());
            findings.remarks.push(format!("FAILED: {}: see above; what follows it is missing", name.name()));
        }
    }
    let Findings { report, rates, lines, mut remarks } = findings;
    remarks.extend(judge(&report));
    let rates: Vec<Row> = rates
        .into_iter()
        .map(|((scenario, metric, system), mut values)| {
            Row::of(BENCH, system, &scenario, metric, "B/s", &mut values)
        })
        .collect();
    println!("{}", report.table());
    for rate in &rates {
        println!(
            "{} | {} | {:<16} {:>10.1} MB/s (p50 of {})",
            rate.scenario,
            rate.metric,
            rate.system,
            rate.p50 / 1e6,
            rate.n
        );
    }
    remarks.iter().for_each(|remark| println!("{remark}"));
    if let Some(path) = &arguments.html {
        let page = html::document("Files through failures", INTRO, &remarks, &body(&report, &lines));
        fs::write(path, page).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &arguments.json {
        let rows: Vec<Row> = report.rows().into_iter().chain(rates).collect();
        let text = serde_json::to_string_pretty(&rows).context("encode the rows")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

const INTRO: &str = "What an NFS client gets over time, around a fault at 0 s: the run with each system's longest stall. Below, \
    the stall over all runs in us. All systems in one run on one machine, one after another.";

fn body(report: &Report, lines: &BTreeMap<String, BTreeMap<&'static str, Line>>) -> String {
    let rows = report.rows();
    let section = |(scenario, lines): (&String, &BTreeMap<&'static str, Line>)| {
        let of_scenario: Vec<&Row> = rows.iter().filter(|row| row.scenario == *scenario).collect();
        html::section(scenario, &timeline::draw(scenario, lines), &html::table(&of_scenario))
    };
    lines.iter().map(section).collect()
}

/// Everything of one system.
fn measure(name: Name, arguments: &Arguments, findings: &mut Findings) -> Result<()> {
    let read = Contents { name: "/read".to_owned(), bytes: 16 << 20, seed: 1 };
    let mut system = start(name, &read)?;
    for &cause in &arguments.scenarios {
        if !system.has(cause) {
            let text = "not done: two nodes would have the file system mounted";
            findings.remarks.push(format!("{}, {}: {text}", name.name(), cause.name()));
            continue;
        }
        for &kind in &arguments.work {
            let case = Case { name, cause, kind };
            let (mut failed, mut twice, runs) = (0, 0, arguments.runs);
            for run in 1..=runs {
                let double = case.run(&mut *system, &read, findings).unwrap_or_else(|error| {
                    failed += 1;
                    eprintln!("FAILED: {}, run {run}: {error:#}", case.name());
                    true
                });
                if double {
                    twice += 1;
                    // What is on the disk can't be relied on any more.
                    drop(system);
                    system = start(name, &read)?;
                }
            }
            let mut remark = |count: usize, what: &str| {
                if count > 0 {
                    findings.remarks.push(format!("{}: {what} in {count} of {runs} runs", case.name()));
                }
            };
            remark(failed, "FAILED");
            remark(twice - failed, "two nodes had the file system mounted");
        }
    }
    Ok(())
}

/// Starts a system, with the file that is read.
fn start(name: Name, read: &Contents) -> Result<Box<dyn System>> {
    let mut system = name.start()?;
    system.prepare()?;
    system.lab().host("client")?.enter(|| -> Result<()> {
        let mut client = NfsClient::mount(ADDRESS, MOUNT, LIMIT)?;
        Ok(read.write(&mut client, 0)?)
    })??;
    Ok(system)
}

/// A cause, to a system, while its client works.
#[derive(Clone, Copy)]
struct Case {
    name: Name,
    cause: Cause,
    kind: Kind,
}

impl Case {
    fn name(self) -> String {
        format!("{}, {}, {}", self.name.name(), self.cause.name(), self.kind.name())
    }

    /// Returns whether two nodes had the file system mounted at once, which is a failure of Baton's.
    fn run(self, system: &mut dyn System, read: &Contents, findings: &mut Findings) -> Result<bool> {
        let Case { name, cause, kind } = self;
        let node = system.prepare()?;
        let written = Contents { name: format!("/{}", kind.name()), bytes: 8 << 20, seed: 2 };
        let contents = if matches!(kind.work(), Work::Read { .. }) { read } else { &written };
        let client = system.lab().host("client")?.clone();
        let mounts = system.disks().lun.watch()?;
        let transfer = Transfer::start(&client, contents, kind.work(), LIMIT)?;
        let steady = transfer.wait(ANSWERS, Duration::ZERO, LIMIT);
        steady.with_context(|| format!("before it{}", system.complaint()))?;
        std::thread::sleep(BEFORE);
        let at = system.strike(cause, &node)?;
        let went_on = transfer.wait(ANSWERS, at, LIMIT);
        std::thread::sleep(AFTER);
        let went_on = went_on.and_then(|()| transfer.wait(ANSWERS, clock::now(), LIMIT));
        let end = clock::now();
        let connections = connections(&client);
        let complaint = if went_on.is_err() { system.complaint() } else { String::new() };
        let log = transfer.stop();
        let story = system.story(at);
        system.mend(cause, &node)?;
        went_on.with_context(|| format!("after it{complaint}"))?;
        ensure!(log.failed.is_none() && log.wrong.is_empty(), "{:?} {:?}", log.failed, log.wrong);
        let (_, doubles) = mounts.finish();
        ensure!(doubles.is_empty() || name != Name::Baton, "mounted twice: {doubles:?}");
        if let Work::Write { chunk } = kind.work() {
            system.prepare()?;
            let wrong = client.enter(|| -> Result<Vec<String>> {
                let mut client = NfsClient::mount(ADDRESS, MOUNT, LIMIT)?;
                Ok(check_stable(&mut client, contents, chunk, &log)?)
            })??;
            ensure!(
                wrong.is_empty(),
                "not there, though it was told to be stable: {wrong:?}; mounted twice: {doubles:?}"
            );
        }

        let (from, to) = stall_of(&log, at, end);
        let stall = to.saturating_sub(from);
        let (quiet_from, quiet_to) = log.longest(at - BEFORE, at);
        if stall >= SLOW && name == Name::Baton {
            eprintln!(
                "SLOW: {}: {stall:.0?} without an answer, from {:.0?} after it; asked again {}, mounted again {}{}\n{connections}",
                self.name(),
                from.saturating_sub(at),
                log.asked_again,
                log.mounted_again,
                story
            );
        }
        let scenario = format!("{}/{}", cause.name(), kind.name());
        let key = |metric: &str| Key {
            scenario: scenario.clone(),
            load: "idle",
            metric: metric.to_owned(),
            system: name.name(),
        };
        findings.report.record(key("client_stall"), stall)?;
        findings.report.record(key("longest_before"), quiet_to.saturating_sub(quiet_from))?;
        for (metric, from, to) in [("before", at - BEFORE, at), ("after", at, end)] {
            let rate = log.bytes(from, to) as f64 / (to - from).as_secs_f64();
            findings.rates.entry((scenario.clone(), metric, name.name())).or_default().push(rate);
        }
        let line = Line::of(&log, at, stall);
        let lines = findings.lines.entry(scenario).or_default();
        if lines.get(name.name()).is_none_or(|known| known.stall < stall) {
            lines.insert(name.name(), line);
        }
        Ok(!doubles.is_empty())
    }
}

/// The longest time without an answer that begins soon after the fault at `at`, or lasts then.
fn stall_of(log: &Log, at: Duration, end: Duration) -> (Duration, Duration) {
    let last = log.answered.partition_point(|(answered, _)| *answered <= at).saturating_sub(1);
    let times = log.answered[last..].iter().map(|(answered, _)| *answered);
    let ends = times.clone().skip(1).chain([end]);
    let soon = times.zip(ends).filter(|(from, _)| *from <= at + BEGINS);
    soon.max_by_key(|(from, to)| to.saturating_sub(*from)).unwrap_or((at, end))
}

/// How the client's connections are.
fn connections(client: &Host) -> String {
    let shown = client.run("ss", ["-tnio"]);
    shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Sentences on the figures that were to be reached.
fn judge(report: &Report) -> Vec<String> {
    let limit = |scenario: &str| match scenario.split_once('/')?.0 {
        "power_loss" => Some(1000.0),
        "port_cut" => Some(250.0),
        "drain" => Some(600.0),
        _ => None,
    };
    let is_ours = |row: &Row| row.system == "baton" && row.metric == "client_stall";
    let ours = report.rows().into_iter().filter(is_ours);
    let sentence = |row: Row| {
        let (limit, stall) = (limit(&row.scenario)?, row.p99 / 1e3);
        let word = if stall <= limit { "reached" } else { "MISSED" };
        Some(format!("{word}: {}: stall p99 {stall:.0} ms (at most {limit:.0}), n {}", row.scenario, row.n))
    };
    ours.filter_map(sentence).collect()
}

/// The nodes other than this one.
fn other(node: &str) -> &'static str {
    if node == NODES[0] { NODES[1] } else { NODES[0] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_the_faults_only_when_it_begins_with_it() {
        let ms = Duration::from_millis;
        let answered = [900, 990, 1400, 1410, 2900, 4000].map(|at| (ms(at), 1)).to_vec();
        let log = Log { answered, ..Log::default() };
        assert_eq!(stall_of(&log, ms(1000), ms(4100)), (ms(1410), ms(2900)));
        assert_eq!(stall_of(&log, ms(400), ms(4100)), (ms(990), ms(1400)));
        assert_eq!(stall_of(&Log::default(), ms(1000), ms(4100)), (ms(1000), ms(4100)));
    }
}
