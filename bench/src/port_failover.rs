//! `port-failover`: a client, a switch, and a node for every system, all up at the same time; the systems take turns.
//!
//! In every run the switch's end of the port that holds the address goes down at a random phase of a stream of probes,
//! one every 100 us. The client's outage is the longest time between two successive replies around that. Runs in which
//! the client itself stalled are kept apart (`client_outage_stalled`), and so are none lost: `client_outage` and those add up to all runs.
//! The scenario with delayed events has the same systems on cables whose events the kernel holds back; the floor stays out of it, as it
//! has nothing but the event.

use std::time::Duration;

use anyhow::Result;
use baton_lab::{HostSpec, Lab, Topology};
use clap::{Args, ValueEnum};

use crate::html;
use crate::load::Load;
use crate::node::{self, Node};
use crate::report::{Key, Report, microseconds};
use crate::run::{Phase, Sample, measure};
use crate::runs::Output;
use crate::system::{Kind, Place};

/// The table is void when the floor needs longer than this, at the median and idle, from event to announcement: then the machine is not
/// one to measure on.
const FLOOR_LIMIT: Duration = Duration::from_micros(80);
/// keepalived needs a while until a port that came back may be used again; it gets fewer runs.
const KEEPALIVED_SHARE: usize = 10;
/// So many runs in a row may fail.
const FAILURES: usize = 3;

/// How the ports are cabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The kernel reports the loss of carrier at once.
    #[value(name = "at-once")]
    CarrierEventAtOnce,
    /// The kernel may keep the event for up to a second, as with an ordinary NIC.
    #[value(name = "delayed")]
    CarrierEventDelayed,
}

impl Scenario {
    /// As in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::CarrierEventAtOnce => "carrier_event_at_once",
            Scenario::CarrierEventDelayed => "carrier_event_delayed",
        }
    }
}

/// What to measure.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Runs of floor and baton for each load; keepalived, in both arrangements, gets a tenth.
    #[arg(long, default_value_t = 1000)]
    runs: usize,
    /// Systems, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "floor,baton,keepalived,keepalived-ports")]
    systems: Vec<Kind>,
    /// Scenarios, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "at-once,delayed")]
    scenarios: Vec<Scenario>,
    /// Loads, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = "idle,busy")]
    load: Vec<Load>,
    #[command(flatten)]
    output: Output,
}

/// Measures and reports.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut report = Report::new("port-failover");
    let mut remarks = Vec::new();
    for &scenario in &arguments.scenarios {
        remarks.extend(measure_scenario(arguments, scenario, &mut report)?);
    }
    remarks.extend(judge(&report));
    println!("{}", report.table());
    remarks.iter().for_each(|remark| println!("{remark}"));
    arguments.output.write(&report.rows(), || html::page(&report, &remarks))
}

/// One scenario in a lab of its own: with held-back events in the kernel, a busy machine reports others late, too.
fn measure_scenario(arguments: &Arguments, scenario: Scenario, report: &mut Report) -> Result<Vec<String>> {
    let mut remarks = Vec::new();
    let (lab, nodes) = stand(&arguments.systems, scenario)?;
    for &load in &arguments.load {
        if nodes.is_empty() {
            break;
        }
        let spinners = load.start(lab.host("client")?)?;
        remarks.extend(take_turns(&lab, &nodes, load, arguments.runs, report)?);
        drop(spinners);
    }
    for node in &nodes {
        for (stage, histogram) in node.system.stages()? {
            let metric = format!("stage_{stage}");
            report.add(Key { load: "all", ..key(node, Load::Idle, &metric) }, histogram);
        }
    }
    Ok(remarks)
}

/// Builds the lab and starts everything in it.
fn stand(systems: &[Kind], scenario: Scenario) -> Result<(Lab, Vec<Node>)> {
    // The others know nothing but the event: delayed, they are as late as that.
    let takes_part = |kind: &&Kind| scenario == Scenario::CarrierEventAtOnce || **kind == Kind::Baton;
    let places: Vec<(Kind, Place)> = systems
        .iter()
        .filter(takes_part)
        .zip(1..)
        .map(|(kind, number)| (*kind, Place::new(number, *kind, node::cable(scenario))))
        .collect();
    let client = HostSpec::new("client").ports("lab", 1).address("p0", node::CLIENT);
    let topology = Topology::new("bench").segment("lab").segment("vrrp").host(client);
    let lab = places.iter().fold(topology, |topology, (_, place)| topology.host(place.spec())).build()?;
    let start = |(kind, place)| Node::start(&lab, kind, scenario, place);
    let nodes = places.into_iter().map(start).collect::<Result<_>>()?;
    Ok((lab, nodes))
}

/// Lets the nodes take turns, run by run; returns remarks on runs that failed.
fn take_turns(
    lab: &Lab,
    nodes: &[Node],
    load: Load,
    runs: usize,
    report: &mut Report,
) -> Result<Vec<String>> {
    let mut phase = Phase::new();
    let mut failures = vec![(0, 0); nodes.len()]; // in a row, in all
    for run in 0..runs {
        for (node, (in_a_row, in_all)) in nodes.iter().zip(&mut failures) {
            if matches!(node.kind, Kind::Keepalived | Kind::KeepalivedPorts) && run % KEEPALIVED_SHARE != 0 {
                continue;
            }
            match measure(lab, node, &mut phase) {
                Ok(sample) => {
                    *in_a_row = 0;
                    record(report, node, load, &sample)?;
                }
                Err(error) => {
                    *in_a_row += 1;
                    *in_all += 1;
                    eprintln!("run {run}: {error:#}");
                    if *in_a_row == FAILURES {
                        return Err(error.context(format!("{FAILURES} runs in a row failed")));
                    }
                }
            }
        }
    }
    let counted = nodes.iter().zip(failures).filter(|(_, (_, in_all))| *in_all > 0);
    Ok(counted
        .map(|(node, (_, in_all))| {
            let (system, scenario, load) = (node.kind.name(), node.scenario.name(), load.name());
            format!("FAILED: {system}, {scenario}, {load}: {in_all} of {runs} runs without a failover")
        })
        .collect())
}

fn record(report: &mut Report, node: &Node, load: Load, sample: &Sample) -> Result<()> {
    let outage = if sample.stalled { "client_outage_stalled" } else { "client_outage" };
    report.record(key(node, load, outage), sample.outage)?;
    report.record(key(node, load, "client_baseline_gap"), sample.baseline)?;
    report.record(key(node, load, "cut_to_announcement"), sample.cut_to_announcement)?;
    for (metric, value) in
        [("cut_to_event", sample.cut_to_event), ("event_to_announcement", sample.event_to_announcement)]
    {
        if let Some(value) = value {
            report.record(key(node, load, metric), value)?;
        }
    }
    Ok(())
}

fn key(node: &Node, load: Load, metric: &str) -> Key {
    let scenario = node.scenario.name().to_owned();
    Key { scenario, load: load.name(), metric: metric.to_owned(), system: node.kind.name() }
}

/// Sentences on the figures that were to be reached.
fn judge(report: &Report) -> Vec<String> {
    let quantile = |scenario: Scenario, load, metric: &str, system, quantile| {
        let key = Key { scenario: scenario.name().into(), load, metric: metric.into(), system };
        report.get(&key).map(|histogram| microseconds(histogram.value_at_quantile(quantile)))
    };
    let at_once = Scenario::CarrierEventAtOnce;
    let mut remarks = Vec::new();
    if let Some(floor) = quantile(at_once, "idle", "event_to_announcement", "floor", 0.5)
        && floor > FLOOR_LIMIT.as_micros() as f64
    {
        let limit = FLOOR_LIMIT.as_micros();
        remarks.push(format!(
            "VOID: the floor itself needs {floor} us from event to announcement (limit {limit} us): this machine is too slow or too busy now"
        ));
    }
    for load in ["idle", "busy"] {
        let outage = |system, q| quantile(at_once, load, "client_outage", system, q);
        let mut compare = |name: &str, ours: Option<f64>, other: Option<f64>, limit: f64| {
            if let (Some(ours), Some(other)) = (ours, other) {
                let ratio = ours / other.max(0.1);
                let word = if ratio <= limit { "reached" } else { "MISSED" };
                remarks.push(format!(
                    "{word}: {load}: {name}: {ours} / {other} us = {ratio:.2} (at most {limit})"
                ));
            }
        };
        compare("outage p50, baton / floor", outage("baton", 0.5), outage("floor", 0.5), 1.3);
        compare("outage p99, baton / floor", outage("baton", 0.99), outage("floor", 0.99), 1.5);
        for peer in ["keepalived", "keepalived_ports"] {
            let name = format!("outage p50, baton / {peer}");
            compare(&name, outage("baton", 0.5), outage(peer, 0.5), 0.2);
        }
        let delayed = quantile(Scenario::CarrierEventDelayed, load, "client_outage", "baton", 0.5);
        let allowed = outage("floor", 0.5).map(|floor| floor + 1200.0);
        compare("outage p50, baton delayed / floor + 1.2 ms", delayed, allowed, 1.0);
        if load == "idle" {
            let announced = quantile(at_once, load, "event_to_announcement", "baton", 0.5);
            compare("event to announcement p50, baton / 150 us", announced, Some(150.0), 1.0);
        }
    }
    remarks
}
