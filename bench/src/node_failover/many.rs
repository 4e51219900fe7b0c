//! 100 virtual servers on a node that dies: from the verdict, and from the fault, until the last address has been announced by
//! one of the other nodes. Afterwards each one is asked for, and exactly one node must answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::cluster::Cluster;
use baton_lab::etcd::Timers;
use baton_lab::files::valves;
use baton_lab::{Valve, Watcher, clock};

use super::baton::{NODES, cluster, power_off, power_on, wait_well};
use super::{Arguments, CLIENT_SEGMENT, Findings, Kind, LIMIT};
use crate::runs::{Outcome, repeat};

/// As in the rows.
pub const SCENARIO: &str = "hundred_servers";
const SERVERS: u8 = 100;
/// From the time when all are well until the next fault.
const REST: Duration = Duration::from_millis(500);
/// All addresses were back within so long: the figure to reach.
const LIMIT_AFTER_VERDICT: Duration = Duration::from_millis(250);

/// What one run measured.
struct Sample {
    after_verdict: Duration,
    after_fault: Duration,
    /// From the fault to the verdict.
    verdict: Duration,
    /// How many each of the other nodes took.
    taken: Vec<usize>,
}

fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (0..SERVERS).map(|n| Ipv4Addr::new(10, 0, 0, 110 + n))
}

/// All runs with this profile.
pub fn measure(kind: Kind, timers: Timers, arguments: &Arguments, findings: &mut Findings) -> Result<()> {
    let servers: Vec<(String, String)> =
        addresses().enumerate().map(|(n, a)| (format!("server-{n:03}"), a.to_string())).collect();
    let mut cluster = cluster(kind, timers, &servers)?;
    let all = NODES.map(|n| Ok((n.to_owned(), valves(&cluster.lab, n)?)));
    let valves: BTreeMap<String, Vec<Valve>> = all.into_iter().collect::<Result<_>>()?;
    for &load in &arguments.load {
        let _spinners = load.start(cluster.lab.host("client")?)?;
        let name = format!("{}, {SCENARIO}, {}", kind.name(), load.name());
        let failed = repeat(&name, arguments.many, |run| {
            let sample = death(&mut cluster, &valves)?;
            let times = [
                ("back_after_verdict", sample.after_verdict),
                ("back_after_fault", sample.after_fault),
                ("verdict", sample.verdict),
            ];
            for (metric, time) in times {
                findings.record(kind, load, SCENARIO, metric, time)?;
            }
            let spread = sample.taken.iter().max().zip(sample.taken.iter().min());
            if spread.is_none_or(|(most, least)| most - least > 1) {
                let taken = sample.taken;
                findings.remarks.push(format!("{}: run {run}: spread as {taken:?}", kind.name()));
            }
            Ok(Outcome::Counts)
        });
        findings.remarks.extend(failed);
    }
    Ok(())
}

/// Brings everything to one node, which does not lead etcd, and kills it.
fn death(cluster: &mut Cluster, valves: &BTreeMap<String, Vec<Valve>>) -> Result<Sample> {
    wait_well(cluster)?;
    let leader = cluster.etcd.leader()?;
    let victim = NODES.into_iter().find(|n| *n != leader).context("no node")?;
    let others: Vec<&str> = NODES.into_iter().filter(|n| *n != victim).collect();
    for node in &others {
        cluster.done(node, &["drain", node])?;
    }
    for node in &others {
        cluster.done(node, &["resume", node])?;
    }
    for address in addresses() {
        cluster.wait_held(address.into(), |node| node == victim)?;
    }
    wait_well(cluster)?;
    std::thread::sleep(REST);
    ensure!(cluster.etcd.leader()? == leader, "etcd has elected meanwhile");
    let ports =
        cluster.lab.ports().filter(|p| p.segment() == CLIENT_SEGMENT && others.contains(&p.host().name()));
    let watcher = Watcher::claims(ports)?;
    let at = clock::now();
    power_off(cluster, &valves[victim], victim)?;
    let sample = observe(cluster, &watcher, &others, victim, at).with_context(|| cluster.logs());
    power_on(cluster, &valves[victim], victim)?;
    sample
}

fn observe(
    cluster: &Cluster,
    watcher: &Watcher,
    others: &[&str],
    victim: &str,
    at: Duration,
) -> Result<Sample> {
    let mut last = at;
    let mut taken = vec![0; others.len()];
    for address in addresses() {
        let first = watcher.wait_for_announcement(address.into(), at, LIMIT)?;
        last = last.max(first.at);
        let node = cluster.node_of(first.mac).context("announced by nobody")?;
        let index = others.iter().position(|o| *o == node).context("announced by a dead node")?;
        taken[index] += 1;
    }
    ensure!(watcher.lost() == 0, "the watcher has lost {} frames", watcher.lost());
    let client = cluster.client()?;
    for address in addresses() {
        let holders = client.holders(IpAddr::V4(address), Duration::from_millis(10))?;
        ensure!(holders.len() == 1, "{address}: {} nodes answer", holders.len());
    }
    let events = cluster.events_since(at)?;
    let dead = events.iter().find(|(_, _, e)| e["event"] == "node_dead" && e["node"] == victim);
    let (verdict, ..) = dead.context("nobody has called it dead")?;
    let sample = Sample {
        after_verdict: last.saturating_sub(*verdict),
        after_fault: last - at,
        verdict: *verdict - at,
        taken,
    };
    if sample.after_verdict > LIMIT_AFTER_VERDICT {
        eprintln!("SLOW: {SCENARIO}: {:.1?} after the verdict", sample.after_verdict);
        for (time, node, event) in events {
            eprintln!("  {:9.3} ms {node}: {event}", (time - at).as_secs_f64() * 1e3);
        }
    }
    Ok(sample)
}
