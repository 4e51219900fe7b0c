//! The floor for the death of etcd's leader: etcd alone, with the same timers. From the death until a write to another member
//! succeeds; writes begin every 2 ms, and the first one that ends counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::etcd::{Etcd, Timers};
use baton_lab::files::valves;
use baton_lab::host::wait_until;
use baton_lab::{Host, HostSpec, Lab, Topology, Valve, clock};
use tokio::task::LocalSet;

use super::{Arguments, Cause, Findings, Kind, LIMIT};
use crate::runs::{Outcome, repeat};

const MEMBERS: [(&str, &str); 3] = [("e1", "10.99.0.1"), ("e2", "10.99.0.2"), ("e3", "10.99.0.3")];
/// Between two writes to a member.
const EVERY: Duration = Duration::from_millis(2);
/// From the time when all agree on a leader until the next death.
const REST: Duration = Duration::from_millis(300);

/// Kills the leader again and again.
pub fn measure(timers: Timers, arguments: &Arguments, findings: &mut Findings) -> Result<()> {
    let mut topology = Topology::new("election").segment("back").host(HostSpec::new("client"));
    for (name, address) in MEMBERS {
        let host = HostSpec::new(name).ports("back", 1).address("p0", &format!("{address}/24"));
        topology = topology.host(host);
    }
    let lab = topology.build()?;
    let mut hosts = Vec::new();
    for (name, address) in MEMBERS {
        hosts.push((lab.host(name)?, address));
    }
    let mut etcd = Etcd::start(&hosts, timers)?;
    for &load in &arguments.load {
        let _spinners = load.start(lab.host("client")?)?;
        let name = format!("etcd's election, {}", load.name());
        let failed = repeat(&name, arguments.runs, |_| {
            let time = death(&lab, &mut etcd)?;
            findings.record(Kind::Floor, load, Cause::LeaderDies.name(), "etcd_election", time)?;
            Ok(Outcome::Counts)
        });
        findings.remarks.extend(failed);
    }
    Ok(())
}

/// One death of the leader.
fn death(lab: &Lab, etcd: &mut Etcd) -> Result<Duration> {
    let mut last = None;
    let agreed = wait_until("a leader that all agree on", LIMIT, || {
        last = etcd.term(None).ok();
        last.is_some()
    });
    agreed.with_context(|| etcd.logs())?;
    std::thread::sleep(REST);
    let leader = etcd.leader()?;
    let valves = valves(lab, &leader)?;
    let others = MEMBERS.into_iter().filter(|(name, _)| *name != leader);
    let writers = others.map(|(name, _)| Ok((lab.host(name)?, etcd.endpoints(name)[0].clone())));
    let writers: Vec<(&Host, String)> = writers.collect::<Result<_>>()?;
    let (stop, done) = (AtomicBool::new(false), Arc::new(Mutex::new(Vec::new())));
    let time = std::thread::scope(|scope| {
        for (host, endpoint) in &writers {
            scope.spawn(|| match host.enter(|| write(endpoint, &stop, &done)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("a writer of {}: {error:#}", host.name()),
                Err(error) => eprintln!("a writer of {}: {error}", host.name()),
            });
        }
        let time = strike(etcd, &leader, &valves, &done);
        stop.store(true, Ordering::Relaxed);
        time
    });
    valves.iter().try_for_each(Valve::open)?;
    etcd.start_again(&leader)?;
    time
}

/// Cuts the leader off, kills it, and waits for the first write.
fn strike(etcd: &mut Etcd, leader: &str, valves: &[Valve], done: &Mutex<Vec<Write>>) -> Result<Duration> {
    let first = |since: Duration| {
        let done = done.lock().unwrap_or_else(PoisonError::into_inner);
        done.iter().filter(|w| w.begun >= since).map(|w| w.ended).min()
    };
    wait_until("writes to succeed", LIMIT, || first(Duration::ZERO).is_some())?;
    std::thread::sleep(Duration::from_millis(20));
    let at = clock::now();
    valves.iter().try_for_each(|valve| valve.close().map(drop))?;
    let cut = clock::now();
    etcd.kill(leader)?;
    // What is under way to the leader when it dies is lost; what began after that needs a new one.
    wait_until("a write after the election", LIMIT, || first(cut).is_some())?;
    Ok(first(cut).context("no write")? - at)
}

/// A write that succeeded.
struct Write {
    begun: Duration,
    ended: Duration,
}

fn write(endpoint: &str, stop: &AtomicBool, done: &Arc<Mutex<Vec<Write>>>) -> Result<()> {
    clock::try_fifo(super::CLIENT_PRIORITY);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let client = etcd_client::Client::connect([endpoint], None).await?;
        while !stop.load(Ordering::Relaxed) {
            let (mut client, done) = (client.clone(), done.clone());
            tokio::task::spawn_local(async move {
                let begun = clock::now();
                // One that is lost with the old leader fails, or is dropped with the runtime.
                if client.put("/bench/election", "1", None).await.is_ok() {
                    let write = Write { begun, ended: clock::now() };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(write);
                }
            });
            tokio::time::sleep(EVERY).await;
        }
        Ok(())
    })
}
