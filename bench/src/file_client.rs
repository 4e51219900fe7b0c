//! `file-client`: how long an NFS client waits, and how many bytes it gets, when the node that serves it fails or gives the
//! server away; and the same with keepalived and scripts.
//!
//! A real client (libnfs, NFS version 3) reads, writes or makes files all the time, and checks what it reads. The stall is the
//! longest time between two of its answers that begins within a second of the fault; the longest one in the second before it
//! stands beside it. An error is no answer: when a path to the disk fails, the client asks again. The servers are nfs-ganesha on ext4
//! on a disk that two nodes share; nobody is fenced, but where a path hangs. Each run begins when all is well again.

mod baton;
mod keepalived;
mod table;
mod timeline;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::files::{ADDRESS, Disks, MOUNT, NODES};
use baton_lab::nfs::NfsClient;
use baton_lab::transfer::{Contents, Log, check_stable};
use baton_lab::{Host, Lab, Transfer, Work, clock};
use clap::{Args, ValueEnum};

use crate::report::{Key, Report, Row};
use crate::runs::{Outcome, Output, repeat};
use crate::{chart, html};
use timeline::Line;

/// Name of the benchmark.
const BENCH: &str = "file-client";
/// The client works for so long before the fault, and afterwards.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(2);
/// A stall that begins later than this after the fault is not the fault's.
const BEGINS: Duration = Duration::from_secs(1);
/// The same where a disk is to blame: it takes a while until that is found, and what is in memory is read on until then. Any stall of
/// the run is the fault's.
const AFTER_STORAGE: Duration = Duration::from_secs(5);
const BEGINS_STORAGE: Duration = Duration::from_secs(10);
/// Answers that show that it goes on.
const ANSWERS: usize = 20;
/// How long the client may wait at most.
const LIMIT: Duration = Duration::from_secs(60);
/// How scenarios end whose answers carry no bytes.
const METADATA: &str = "/metadata";
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
    /// Its path to the disk returns errors.
    StorageError,
    /// Its path to the disk answers nothing any more.
    StorageHang,
    /// It is drained; keepalived: stopped by its administrator.
    Drain,
    /// An administrator moves the virtual server.
    Move,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Cause::PortCut => "port_cut",
            Cause::AgentKilled => "agent_killed",
            Cause::ServiceKilled => "service_killed",
            Cause::PowerLoss => "power_loss",
            Cause::StorageError => "storage_error",
            Cause::StorageHang => "storage_hang",
            Cause::Drain => "drain",
            Cause::Move => "move",
        }
    }

    /// The disk is to blame: an error is what the client must expect.
    fn is_of_storage(self) -> bool {
        matches!(self, Cause::StorageError | Cause::StorageHang)
    }

    /// How long the client works on afterwards, and until when a stall is its own.
    fn times(self) -> (Duration, Duration) {
        if self.is_of_storage() { (AFTER_STORAGE, BEGINS_STORAGE) } else { (AFTER, BEGINS) }
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
    /// The same, and clients are not told that their connections are gone.
    BatonNoResets,
    /// keepalived, an advertisement every 10 ms: its fastest.
    #[value(name = "keepalived-10ms")]
    KeepalivedFast,
    /// The same, with XDP programs that let everything pass: what their being there costs in a lab.
    #[value(name = "keepalived-xdp")]
    KeepalivedXdp,
    /// keepalived, an advertisement every second: its default.
    Keepalived,
}

impl Name {
    fn name(self) -> &'static str {
        match self {
            Name::Baton => "baton",
            Name::BatonNoResets => "baton_no_resets",
            Name::KeepalivedFast => "keepalived_10ms",
            Name::KeepalivedXdp => "keepalived_xdp",
            Name::Keepalived => "keepalived",
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Name::Baton | Name::BatonNoResets)
    }

    /// Starts it, as it is to be for this cause.
    fn start(self, cause: Cause) -> Result<Box<dyn System>> {
        let fenced = cause == Cause::StorageHang;
        Ok(match self {
            Name::Baton => Box::new(baton::Baton::start(fenced, true)?),
            Name::BatonNoResets => Box::new(baton::Baton::start(fenced, false)?),
            Name::KeepalivedFast => Box::new(keepalived::Keepalived::start("0.01", false)?),
            Name::KeepalivedXdp => Box::new(keepalived::Keepalived::start("0.01", true)?),
            Name::Keepalived => Box::new(keepalived::Keepalived::start("1", false)?),
        })
    }
}

/// A system that stands and serves, with a client.
trait System {
    /// Its lab.
    fn lab(&self) -> &Lab;

    /// Its disk.
    fn disks(&self) -> &Disks;

    /// Why this can't be done to it as it stands.
    fn refuses(&self, cause: Cause) -> Option<&'static str>;

    /// Waits until all is well. Returns the node that serves.
    fn prepare(&mut self) -> Result<String>;

    /// Lets it happen to this node; returns when.
    fn strike(&mut self, cause: Cause, node: &str) -> Result<Duration>;

    /// Mends it.
    fn mend(&mut self, cause: Cause, node: &str) -> Result<()>;

    /// What it measured itself of a fault of the disk at `at`, which happened to this node.
    fn stages(&self, at: Duration, node: &str) -> Result<Vec<(&'static str, Duration)>> {
        let (_, _) = (at, node);
        Ok(Vec::new())
    }

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
    #[arg(long, value_delimiter = ',', default_value = "baton,baton-no-resets,keepalived-10ms,keepalived")]
    systems: Vec<Name>,
    /// Scenarios, with commas between them.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "port-cut,agent-killed,service-killed,power-loss,storage-error,storage-hang,drain,move"
    )]
    scenarios: Vec<Cause>,
    /// What the client does, with commas between them.
    #[arg(
        long,
        alias = "work",
        value_delimiter = ',',
        default_value = "read-64k,read-1m,write-64k,write-1m,metadata"
    )]
    works: Vec<Kind>,
    #[command(flatten)]
    output: Output,
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
    let rates: Vec<Row> = rates
        .into_iter()
        .map(|((scenario, metric, system), mut values)| {
            let unit = if scenario.ends_with(METADATA) { "1/s" } else { "B/s" };
            Row::of(BENCH, system, &scenario, metric, unit, &mut values)
        })
        .collect();
    let table = table::Table::of(&report);
    remarks.extend(table.remarks());
    println!("{}", report.table());
    for rate in &rates {
        let shown = timeline::shown(rate.p50, rate.unit);
        println!("{} | {} | {:<16} {shown:>12} (p50 of {})", rate.scenario, rate.metric, rate.system, rate.n);
    }
    println!("\n{}", table.text());
    remarks.iter().for_each(|remark| println!("{remark}"));
    let rows: Vec<Row> = report.rows().into_iter().chain(rates).collect();
    let body = || table.html() + &body(&report, &lines);
    arguments.output.write(&rows, || html::document("Files through failures", INTRO, &remarks, &body()))
}

const INTRO: &str = "How long an NFS client waits at a fault, and what it gets over time around it, at 0 s: the run with each \
    system's longest stall; all systems of a drawing to one scale. Below each, the stall over all runs in us. All systems in one \
    run on one machine, one after another.";

fn body(report: &Report, lines: &BTreeMap<String, BTreeMap<&'static str, Line>>) -> String {
    let rows = report.rows();
    let section = |(scenario, lines): (&String, &BTreeMap<&'static str, Line>)| {
        let is_shown = |row: &&Row| row.scenario == *scenario && row.metric == "client_stall";
        let of_scenario: Vec<&Row> = rows.iter().filter(is_shown).collect();
        let unit = if scenario.ends_with(METADATA) { "1/s" } else { "B/s" };
        let drawing = chart::timeline(scenario, timeline::SECONDS, &timeline::bands(lines, unit));
        html::section(scenario, &drawing, &html::table(&of_scenario))
    };
    lines.iter().map(section).collect()
}

/// Everything of one system.
fn measure(name: Name, arguments: &Arguments, findings: &mut Findings) -> Result<()> {
    let read = Contents { name: "/read".to_owned(), bytes: 16 << 20, seed: 1 };
    let mut system: Option<Box<dyn System>> = None;
    for &cause in &arguments.scenarios {
        if name.is_ours() && system.as_ref().is_some_and(|s| s.refuses(cause).is_some()) {
            system = None; // it is to be started in another way
        }
        if system.is_none() {
            system = Some(start(name, cause, &read)?);
        }
        if let Some(why) = system.as_ref().and_then(|s| s.refuses(cause)) {
            findings.remarks.push(format!("{}, {}: {why}", name.name(), cause.name()));
            continue;
        }
        for &kind in &arguments.works {
            let case = Case { name, cause, kind };
            let mut twice = 0;
            let failed = repeat(&case.name(), arguments.runs, |_| {
                // What is on the disk can't be relied on any more after a failure, or when it was mounted twice.
                let mut standing = match system.take() {
                    Some(standing) => standing,
                    None => start(name, cause, &read)?,
                };
                if case.run(&mut *standing, &read, findings)? {
                    twice += 1;
                } else {
                    system = Some(standing);
                }
                Ok(Outcome::Counts)
            });
            findings.remarks.extend(failed);
            if twice > 0 {
                let (case, runs) = (case.name(), arguments.runs);
                let remark =
                    format!("{case}: two nodes had the file system mounted in {twice} of {runs} runs");
                findings.remarks.push(remark);
            }
        }
    }
    Ok(())
}

/// Starts a system, with the file that is read.
fn start(name: Name, cause: Cause, read: &Contents) -> Result<Box<dyn System>> {
    let mut system = name.start(cause)?;
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
        let begin = if cause.is_of_storage() { Transfer::start_patient } else { Transfer::start };
        let transfer = begin(&client, contents, kind.work(), LIMIT)?;
        let steady = transfer.wait(ANSWERS, Duration::ZERO, LIMIT);
        steady.with_context(|| format!("before it{}", system.complaint()))?;
        std::thread::sleep(BEFORE);
        let at = system.strike(cause, &node)?;
        let went_on = transfer.wait(ANSWERS, at, LIMIT);
        let (after, begins) = cause.times();
        std::thread::sleep(after);
        let went_on = went_on.and_then(|()| transfer.wait(ANSWERS, clock::now(), LIMIT));
        let end = clock::now();
        let connections = connections(&client);
        let complaint = if went_on.is_err() { system.complaint() } else { String::new() };
        let log = transfer.stop();
        let story = system.story(at);
        let stages = if cause.is_of_storage() { system.stages(at, &node) } else { Ok(Vec::new()) };
        system.mend(cause, &node)?;
        went_on.with_context(|| format!("after it{complaint}"))?;
        ensure!(log.failed.is_none() && log.wrong.is_empty(), "{:?} {:?}", log.failed, log.wrong);
        let (_, doubles) = mounts.finish();
        ensure!(doubles.is_empty() || !name.is_ours(), "mounted twice: {doubles:?}");
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

        let (from, to) = stall_of(&log, at, end, begins);
        let stall = to.saturating_sub(from);
        let (quiet_from, quiet_to) = log.longest(at - BEFORE, at);
        if stall >= SLOW && name == Name::Baton {
            eprintln!(
                "SLOW: {}: {stall:.0?} without an answer, from {:.0?} after it; asked again {}, mounted again {}, errors {}{}\n{connections}",
                self.name(),
                from.saturating_sub(at),
                log.asked_again,
                log.mounted_again,
                log.errors,
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
        for (stage, time) in stages? {
            findings.report.record(key(stage), time)?;
        }
        let weigh = |(_, bytes): &(Duration, usize)| if kind == Kind::Metadata { 1.0 } else { *bytes as f64 };
        for (metric, from, to) in [("before", at - BEFORE, at), ("after", at, end)] {
            let within = log.answered.iter().filter(|(answered, _)| *answered > from && *answered <= to);
            let rate = within.map(weigh).sum::<f64>() / (to - from).as_secs_f64();
            findings.rates.entry((scenario.clone(), metric, name.name())).or_default().push(rate);
        }
        let line = Line::of(&log, at, stall, weigh);
        let lines = findings.lines.entry(scenario).or_default();
        if lines.get(name.name()).is_none_or(|known| known.stall < stall) {
            lines.insert(name.name(), line);
        }
        Ok(!doubles.is_empty())
    }
}

/// The longest time without an answer that begins this soon after the fault at `at`, or lasts then.
fn stall_of(log: &Log, at: Duration, end: Duration, begins: Duration) -> (Duration, Duration) {
    let last = log.answered.partition_point(|(answered, _)| *answered <= at).saturating_sub(1);
    let times = log.answered[last..].iter().map(|(answered, _)| *answered);
    let ends = times.clone().skip(1).chain([end]);
    let soon = times.zip(ends).filter(|(from, _)| *from <= at + begins);
    soon.max_by_key(|(from, to)| to.saturating_sub(*from)).unwrap_or((at, end))
}

/// How the client's connections are.
fn connections(client: &Host) -> String {
    let shown = client.run("ss", ["-tnio"]);
    shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
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
        assert_eq!(stall_of(&log, ms(1000), ms(4100), BEGINS), (ms(1410), ms(2900)));
        assert_eq!(stall_of(&log, ms(400), ms(4100), BEGINS), (ms(990), ms(1400)));
        assert_eq!(stall_of(&Log::default(), ms(1000), ms(4100), BEGINS), (ms(1000), ms(4100)));
    }
}
