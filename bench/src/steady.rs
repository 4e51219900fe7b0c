//! `steady`: verdicts, takeovers and moves without a cause, while the machine has no time: two spinning processes for every
//! processor, a SCHED_FIFO process above the agents on one of them, and threads that set a timer every 50 us.
//!
//! Three nodes with Baton, each of which serves an address, and beside them keepalived with an advertisement every 10 ms, under
//! the same stress at the same time. It is counted on the wire, for both alike: how often an address was announced by another
//! node than before; and by what Baton's agents noted. Witnesses on every processor say for how long it ran not even the most urgent
//! thread: the machine stood still, or the kernel throttled real-time work, because of the SCHED_FIFO process.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::cluster::{Cluster, ClusterSpec};
use baton_lab::etcd::Timers;
use baton_lab::{Lab, Mac, Process, Watcher, clock};
use serde_json::Value;

use crate::load::{self, Load};
use crate::node_failover::keepalived::Keepalived;
use crate::node_failover::{Cause, Kind, System, VIP};
use crate::report::Row;
use crate::witness::Witness;

/// The virtual servers, and the node that each is to be on.
const SERVERS: [(&str, &str, &str); 3] =
    [("one", "10.0.0.10", "n1"), ("two", "10.0.0.11", "n2"), ("three", "10.0.0.12", "n3")];
/// Above the agents' 49 and keepalived's 50.
const HOG_PRIORITY: i32 = 60;
/// Threads that set timers.
const TIMERS: usize = 4;
/// How often the wire is read.
const EVERY: Duration = Duration::from_millis(500);
/// From the start of everything until the stress begins.
const REST: Duration = Duration::from_secs(2);
/// Steps of the tale that is told of a false verdict.
const STORY: usize = 60;

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Minutes of stress for each profile
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Profiles of Baton, with commas between them
    #[arg(long, value_delimiter = ',', default_value = "baton,baton-fast")]
    systems: Vec<Kind>,
    /// Leave out the SCHED_FIFO process above the agents
    #[arg(long)]
    no_hog: bool,
    /// Nice value of etcd's processes
    #[arg(long, default_value_t = -20, allow_negative_numbers = true)]
    etcd_nice: i32,
    /// Write the rows to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures and reports.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut rows = Vec::new();
    let mut remarks = Vec::new();
    for &kind in &arguments.systems {
        stress(kind, arguments, &mut rows, &mut remarks)?;
    }
    for row in &rows {
        println!("{:<18}{:<24}{:<26}{:>12.1} {}", row.system, row.scenario, row.metric, row.p50, row.unit);
    }
    remarks.iter().for_each(|remark| println!("{remark}"));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows).context("encode the rows")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Who announces what, and how often that changes.
struct Wire {
    watcher: Watcher,
    holders: BTreeMap<IpAddr, Mac>,
    changes: usize,
}

impl Wire {
    /// `holders`: who has each address now.
    fn new(lab: &Lab, segment: &str, holders: BTreeMap<IpAddr, Mac>) -> Result<Wire> {
        let nodes = lab.ports().filter(|p| p.segment() == segment && p.host().name() != "client");
        Ok(Wire { watcher: Watcher::claims(nodes)?, holders, changes: 0 })
    }

    /// Counts what came since the last time. Addresses of one node may go from one of its ports to another.
    fn read(&mut self, lab: &Lab) {
        let host = |mac: Mac| lab.ports().find(|p| p.mac() == mac).map(|p| p.host().name());
        let frames = self.watcher.frames();
        self.watcher.forget();
        for (address, holder) in &mut self.holders {
            for answer in frames.iter().filter_map(|f| Watcher::answer(f, *address)) {
                if host(answer.mac) != host(*holder) {
                    (*holder, self.changes) = (answer.mac, self.changes + 1);
                }
            }
        }
    }
}

fn holder(lab: &Lab, address: IpAddr) -> Result<Mac> {
    let all = lab.port("client", "p0")?.holders(address, Duration::from_millis(50))?;
    ensure!(all.len() == 1, "{address}: {all:?} answer");
    Ok(all[0])
}

/// Starts what takes the machine's time; it ends when the processes are dropped.
fn start_stress(lab: &Lab, hog: bool) -> Result<Vec<Process>> {
    let host = lab.host("client")?;
    let mut all = Load::Busy.start(host)?;
    all.push(load::timers(host, TIMERS)?);
    if hog {
        all.push(load::hog(host, clock::cpus() - 1, HOG_PRIORITY)?);
    }
    Ok(all)
}

fn stress(kind: Kind, arguments: &Arguments, rows: &mut Vec<Row>, remarks: &mut Vec<String>) -> Result<()> {
    let (probe_interval, lease) = kind.profile().context("steady is for Baton's profiles")?;
    let mut spec = ClusterSpec::new();
    for (name, address, node) in SERVERS {
        spec = spec.server(name, &[&format!("{address}/24")], &format!("preferred_nodes = [{node:?}]"));
    }
    spec.timing = format!("probe_interval = \"{probe_interval}\"\nlease = \"{lease}\"\n");
    spec.timers = Timers { nice: arguments.etcd_nice, ..Timers::default() };
    let cluster = Cluster::start("steady", spec)?;
    for (name, address, node) in SERVERS {
        if cluster.wait_held(address.parse()?, |_| true)? != node {
            cluster.done(node, &["move", name, "--to", node])?;
        }
    }
    let mut keepalived = Keepalived::start("0.01")?;
    keepalived.prepare(Cause::PowerLoss)?;
    std::thread::sleep(REST);
    let holders = SERVERS.map(|(_, address, _)| {
        let address: IpAddr = address.parse()?;
        Ok((address, holder(&cluster.lab, address)?))
    });
    let mut ours = Wire::new(&cluster.lab, "office", holders.into_iter().collect::<Result<_>>()?)?;
    let vip: IpAddr = VIP.parse()?;
    let peer_holder = BTreeMap::from([(vip, holder(keepalived.lab(), vip)?)]);
    let mut peers = Wire::new(keepalived.lab(), "office", peer_holder)?;
    let witness = Witness::start()?;
    let judge = cluster.judge()?;
    let begun = clock::now();
    let end = begun + Duration::from_secs_f64(60.0 * arguments.minutes);
    let stress = start_stress(&cluster.lab, !arguments.no_hog)?;
    while clock::now() < end {
        std::thread::sleep(EVERY);
        ours.read(&cluster.lab);
        peers.read(keepalived.lab());
    }
    drop(stress);
    std::thread::sleep(REST);
    ours.read(&cluster.lab);
    peers.read(keepalived.lab());
    let over = clock::now() - begun;
    let seen = judge.finish();
    let events = cluster.events_since(begun)?;
    let count = |kinds: &[&str]| events.iter().filter(|(_, _, e)| is(e, kinds)).count() as f64;
    let ports = events.iter().filter(|(_, _, e)| is_port_verdict(e)).count() as f64;
    let stall = witness.longest(begun, clock::now());
    let silence = witness.longer_than(humane(lease)?);
    let mut add = |system, metric: &str, unit, value: f64| {
        let row = Row::of("steady", system, "cpu_and_timers", metric, unit, &mut [value]);
        rows.push(Row { load: "busy", ..row });
    };
    let name = kind.name();
    add(name, "takeovers_on_the_wire", "count", ours.changes as f64);
    add(name, "false_verdicts", "count", count(&["verdict", "node_dead"]));
    add(name, "false_takeovers", "count", count(&["taken", "leaving", "deposed"]));
    add(name, "port_verdicts", "count", ports);
    add(name, "leases_lost", "count", count(&["lease_over"]));
    add(name, "double_answers", "count", seen.doubles.len() as f64);
    add(name, "questions", "count", seen.asked as f64);
    add(name, "minutes", "min", over.as_secs_f64() / 60.0);
    add(name, "longest_stall", "us", stall.as_secs_f64() * 1e6);
    add(name, "stalls_over_the_lease", "count", silence as f64);
    let beside = if kind == Kind::BatonFast { "keepalived_10ms_beside_fast" } else { "keepalived_10ms" };
    add(beside, "takeovers_on_the_wire", "count", peers.changes as f64);
    let wrong = ours.changes as f64 + count(&["verdict", "node_dead", "taken", "leaving", "deposed"]) + ports;
    let word = if wrong == 0.0 && seen.doubles.is_empty() { "reached" } else { "MISSED" };
    remarks.push(format!(
        "{word}: {name}: {:.1} minutes of stress: {} takeovers on the wire (keepalived beside it: {}), {} verdicts, {} takeovers \
         or moves, {ports} port verdicts, {} double answers; a processor ran nothing urgent for {stall:.1?} at most, \
         {silence} times for longer than the lease",
        over.as_secs_f64() / 60.0,
        ours.changes,
        peers.changes,
        count(&["verdict", "node_dead"]),
        count(&["taken", "leaving", "deposed"]),
        seen.doubles.len()
    ));
    let story = events.iter().filter(|(_, _, e)| {
        is_port_verdict(e) || is(e, &["verdict", "node_dead", "taken", "leaving", "deposed", "lease_over"])
    });
    for (at, node, event) in story.take(STORY) {
        let near = witness.longest(at.saturating_sub(Duration::from_millis(200)), *at);
        let after = (*at - begun).as_secs_f64();
        remarks.push(format!(
            "  {after:9.3} s {node}: {event} (a processor ran nothing urgent for {near:.1?} just before)"
        ));
    }
    Ok(())
}

fn is(event: &Value, kinds: &[&str]) -> bool {
    event["event"].as_str().is_some_and(|kind| kinds.contains(&kind))
}

fn is_port_verdict(event: &Value) -> bool {
    match event["event"].as_str() {
        Some("port") => event["to"] != "good" && event["to"] != "held",
        Some("failover") => true,
        _ => false,
    }
}

/// A time as in the configuration, whole milliseconds.
fn humane(text: &str) -> Result<Duration> {
    let number = text.strip_suffix("ms").context("no milliseconds")?;
    Ok(Duration::from_millis(number.parse()?))
}
