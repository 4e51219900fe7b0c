//! `silent-port`: a port with carrier that no longer receives, sends, or both.
//!
//! A client sends datagrams to an address of a node with three ports; it is the segment's probe target, too. In every run
//! the switch begins to drop what the address's port sends, or what it is sent, at a random phase. The outage is the
//! longest time between two successive replies around that; detection is from the drop to the agent's verdict.
//!
//! A witness on every CPU, ahead of everything else, measures how late it is woken. Runs in which the machine itself
//! stalled are kept apart (`client_outage_stalled`), with the longest stall of each as evidence.

mod cost;
mod stress;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::agent::{Agent, AgentConfig};
use baton_lab::fault::Direction;
use baton_lab::host::wait_until;
use baton_lab::{Echo, HostSpec, Lab, Port, Probe, Topology, Valve, Watcher, clock};
use serde_json::Value;

use crate::report::Row;
use crate::run::Phase;
use crate::witness::Witness;

const SUBNET: &str = "10.77.0.0/16";
const CLIENT: &str = "10.77.0.100";
const ECHO_PORT: u16 = 7777;
const NODE: &str = "fs1";
/// Between two datagrams of the client.
const DATAGRAMS: Duration = Duration::from_micros(200);
/// SCHED_FIFO priority of client and echo.
const PRIORITY: i32 = 10;
const PATIENCE: Duration = Duration::from_secs(20);
/// Replies that begin and end a run.
const REPLIES: usize = 30;
/// So many runs in a row may fail.
const FAILURES: usize = 3;

/// Options of `silent-port`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Runs for each interval and kind of silence
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Probe intervals in milliseconds, with commas between them
    #[arg(long, value_delimiter = ',', default_value = "1,3,10")]
    intervals: Vec<u64>,
    /// Minutes of stress, in which every verdict is false; 0: none
    #[arg(long, default_value_t = 10)]
    stress: u64,
    /// Seconds for each figure of what watching costs; 0: none
    #[arg(long, default_value_t = 10)]
    cost_seconds: u64,
    /// Write the rows to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the port no longer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    Receive,
    Transmit,
    Both,
}

impl Silence {
    const ALL: [Silence; 3] = [Silence::Receive, Silence::Transmit, Silence::Both];

    fn name(self) -> &'static str {
        match self {
            Silence::Receive => "receive",
            Silence::Transmit => "transmit",
            Silence::Both => "both",
        }
    }

    fn prepare(self, port: &Port) -> Result<Vec<Valve>> {
        let directions: &[Direction] = match self {
            Silence::Receive => &[Direction::ToHost],
            Silence::Transmit => &[Direction::FromHost],
            Silence::Both => &[Direction::ToHost, Direction::FromHost],
        };
        directions.iter().map(|d| port.valve(*d).context("prepare to drop frames")).collect()
    }
}

/// Measures and reports.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut rows = Vec::new();
    let mut remarks = Vec::new();
    if arguments.runs > 0 {
        for &interval in &arguments.intervals {
            outages(Duration::from_millis(interval), arguments.runs, &mut rows, &mut remarks)?;
        }
    }
    if arguments.cost_seconds > 0 {
        rows.extend(cost::measure(&arguments.intervals, Duration::from_secs(arguments.cost_seconds))?);
    }
    if arguments.stress > 0 {
        rows.extend(stress::measure(Duration::from_secs(60 * arguments.stress), &mut remarks)?);
    }
    print(&rows);
    remarks.extend(judge(&rows));
    remarks.iter().for_each(|remark| println!("{remark}"));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("encode the rows")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn print(rows: &[Row]) {
    println!(
        "{:<22}{:<34}{:>7}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "scenario", "metric", "n", "min", "p50", "p90", "p99", "max"
    );
    for r in rows {
        let metric = format!("{} ({})", r.metric, r.unit);
        println!(
            "{:<22}{metric:<34}{:>7}{:>11.1}{:>11.1}{:>11.1}{:>11.1}{:>11.1}",
            r.scenario, r.n, r.min, r.p50, r.p90, r.p99, r.max
        );
    }
}

/// The figures that are to be reached.
fn judge(rows: &[Row]) -> Vec<String> {
    let find =
        |scenario: &str, metric: &str| rows.iter().find(|r| r.scenario == scenario && r.metric == metric);
    let say = |reached: bool, what: String| format!("{}: {what}", if reached { "reached" } else { "MISSED" });
    let mut remarks = Vec::new();
    for (interval, limit) in [(10, 45_000.0), (1, 8_000.0)] {
        for silence in Silence::ALL {
            if let Some(r) = find(&format!("{}_{interval}ms", silence.name()), "client_outage") {
                let what = format!("{}: outage p99 {:.0} us (at most {limit:.0} us)", r.scenario, r.p99);
                remarks.push(say(r.p99 <= limit, what));
            }
        }
    }
    if let Some(r) = find("stress_10ms", "false_verdicts") {
        remarks.push(say(r.max == 0.0, format!("{} false verdicts under stress (none)", r.max)));
    }
    if let Some(r) = find("4_ports_10ms", "cpu") {
        remarks.push(say(r.p50 < 1.0, format!("4 ports at 10 ms: {:.2} % of one core (under 1 %)", r.p50)));
    }
    remarks
}

/// A node with so many ports, and its client, which is the probe target.
struct Stand {
    lab: Lab,
    agent: Agent,
    vip: IpAddr,
    _echo: Echo,
}

impl Stand {
    fn new(ports: usize, interval: Duration) -> Result<Stand> {
        let client = format!("{CLIENT}/16");
        let lab = Topology::new("silent")
            .segment("lab")
            .host(HostSpec::new("client").ports("lab", 1).address("p0", &client))
            .host(HostSpec::new(NODE).ports("lab", ports))
            .build()?;
        let names: Vec<String> = (0..ports).map(|n| format!("p{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let hold = Duration::from_millis(20);
        let config = AgentConfig::new(NODE)
            .segment("lab", &[SUBNET])
            .port_failback("stay")
            .probe_targets(&[CLIENT])
            .ports("lab", &names)
            .timing("probe_interval", &format!("\"{}ms\"", interval.as_millis()))
            .hold_down(hold, hold)
            .server("bench", &["10.77.1.10/16"]);
        let agent = Agent::start(lab.host(NODE)?, &config)?;
        let vip = config.addresses()[0];
        agent.wait_served(lab.port("client", "p0")?, vip, PATIENCE)?;
        let echo = Echo::start(lab.host(NODE)?, SocketAddr::new(vip, ECHO_PORT), Some(PRIORITY))?;
        let stand = Stand { lab, agent, vip, _echo: echo };
        stand.wait_whole()?;
        Ok(stand)
    }

    /// Waits until all paths are heard and all ports are good.
    fn wait_whole(&self) -> Result<()> {
        let whole = || {
            let status = self.agent.status().unwrap_or_default();
            let ports = status["ports"].as_array().cloned().unwrap_or_default();
            status["segments"][0]["finding"] == "whole" && ports.iter().all(|p| p["state"] == "good")
        };
        wait_until("all ports to be good", PATIENCE, whole).with_context(|| self.agent.log())
    }

    /// The port that the address is on.
    fn holder(&self) -> Result<&Port> {
        let status = self.agent.status()?;
        let port = status["virtual_servers"][0]["addresses"][0]["port"].as_str().unwrap_or_default();
        Ok(self.lab.port(NODE, port)?)
    }

    fn probe(&self) -> Result<Probe> {
        let target = SocketAddr::new(self.vip, ECHO_PORT);
        let probe = Probe::start(self.lab.host("client")?, target, DATAGRAMS, Some(PRIORITY))?;
        probe.wait_for_replies(REPLIES, Duration::ZERO, PATIENCE).with_context(|| self.agent.log())?;
        Ok(probe)
    }
}

/// What one run measured.
struct Sample {
    outage: Duration,
    detection: Duration,
    /// The longest stall of the machine around it.
    stall: Duration,
    /// From the cut to the first announcement by another port.
    announced: Duration,
    /// The agent's events since.
    events: Vec<Value>,
}

impl Sample {
    /// What there is to know of a run that took longer than the interval explains.
    fn slow(&self, scenario: &str, run: usize) -> String {
        let Sample { outage, detection, stall, announced, events } = self;
        let mut text = format!(
            "SLOW: {scenario}, run {run}: outage {outage:?}, detection {detection:?}, announced {announced:?}, stall {stall:?}"
        );
        for event in events {
            text += &format!("\n  {event}");
        }
        text
    }
}

/// All kinds of silence at one interval.
fn outages(interval: Duration, runs: usize, rows: &mut Vec<Row>, remarks: &mut Vec<String>) -> Result<()> {
    let stand = Stand::new(3, interval)?;
    let witness = Witness::start()?;
    let mut phase = Phase::new();
    for silence in Silence::ALL {
        let scenario = format!("{}_{}ms", silence.name(), interval.as_millis());
        let (mut outage, mut detection, mut stalled, mut stalls) = (vec![], vec![], vec![], vec![]);
        let mut in_a_row = 0;
        for run in 0..runs {
            let sample = match measure(&stand, silence, interval, &witness, &mut phase) {
                Ok(sample) => sample,
                Err(error) if in_a_row + 1 < FAILURES => {
                    in_a_row += 1;
                    remarks.push(format!("FAILED: {scenario}, run {run}: {error:#}"));
                    continue;
                }
                Err(error) => return Err(error.context(format!("{FAILURES} runs in a row failed"))),
            };
            in_a_row = 0;
            let us = |d: Duration| d.as_secs_f64() * 1e6;
            if sample.stall > stall_limit(interval) {
                stalled.push(us(sample.outage));
                stalls.push(us(sample.stall));
            } else {
                if sample.outage > 4 * interval + Duration::from_millis(4) {
                    remarks.push(sample.slow(&scenario, run));
                }
                outage.push(us(sample.outage));
                detection.push(us(sample.detection));
            }
        }
        let all = [
            ("client_outage", outage),
            ("detection", detection),
            ("client_outage_stalled", stalled),
            ("stall", stalls),
        ];
        for (metric, mut values) in all {
            if !values.is_empty() {
                rows.push(Row::of("silent-port", "baton", &scenario, metric, "us", &mut values));
            }
        }
    }
    Ok(())
}

/// A machine that was away for longer spoils what is measured at this interval.
fn stall_limit(interval: Duration) -> Duration {
    interval.max(Duration::from_millis(2))
}

/// Silences the port that holds the address and measures; the port works again afterwards in any case.
fn measure(
    stand: &Stand,
    silence: Silence,
    interval: Duration,
    witness: &Witness,
    phase: &mut Phase,
) -> Result<Sample> {
    let port = stand.holder()?;
    let others = stand.lab.ports().filter(|p| p.host().name() == NODE && p.index() != port.index());
    let watcher = Watcher::claims(others)?;
    let valves = silence.prepare(port)?;
    let probe = stand.probe()?;
    clock::sleep_until(clock::now() + 2 * interval + phase.below(interval));
    let cut = clock::now();
    valves.iter().try_for_each(|valve| valve.close().map(drop))?;
    let announced = watcher.wait_for_announcement(stand.vip, cut, PATIENCE);
    let announced = announced.with_context(|| stand.agent.log())?;
    probe.wait_for_replies(REPLIES, announced.at, PATIENCE).context("no replies by the new port")?;
    let result = probe.stop();
    let gap = result.longest_gap(cut, clock::now()).context("no replies around the silence")?;
    let stall = witness.longest(cut, gap.to).max(result.pause_at_ends(&gap));
    drop(valves);
    stand.wait_whole()?;
    let is_new = |e: &Value| e["at"].as_u64().is_some_and(|at| Duration::from_nanos(at) >= cut);
    let events: Vec<Value> = stand.agent.events()?.into_iter().filter(is_new).collect();
    let detection = verdict_at(&events, port.interface())?.saturating_sub(cut);
    Ok(Sample { outage: gap.length(), detection, stall, announced: announced.at - cut, events })
}

/// When the agent called the port silent.
fn verdict_at(events: &[Value], interface: &str) -> Result<Duration> {
    let is_verdict = |e: &&Value| e["event"] == "port" && e["interface"] == interface && e["to"] == "silent";
    let at = events.iter().find(is_verdict).and_then(|e| e["at"].as_u64());
    at.map(Duration::from_nanos)
        .with_context(|| format!("the agent has no verdict on {interface}: {events:?}"))
}
