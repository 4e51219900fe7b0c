//! Three nodes with Baton.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use baton_lab::cluster::{Cluster, ClusterSpec};
use baton_lab::etcd::Timers;
use baton_lab::files::valves;
use baton_lab::{Echo, Lab, Valve, clock};

use super::{Cause, Kind, System, VIP, echo};

/// The nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Writes to etcd that are timed before a move, and the time between two: as rare as those of a move.
const PUTS: usize = 5;
const PUT_EVERY: Duration = Duration::from_millis(10);
/// From the time when all are well until the next fault.
const REST: Duration = Duration::from_millis(300);
/// Within which all are well again.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cluster.
pub struct Baton {
    cluster: Cluster,
    valves: BTreeMap<String, Vec<Valve>>,
    /// Between each node and the other ones.
    partitions: BTreeMap<String, Valve>,
    _echoes: Vec<Echo>,
}

/// A cluster of this profile with these virtual servers.
pub fn cluster(kind: Kind, timers: Timers, servers: &[(String, String)]) -> Result<Cluster> {
    let (probe_interval, lease) = kind.profile().context("no profile of Baton")?;
    let mut spec = ClusterSpec::new();
    for (name, address) in servers {
        spec = spec.server(name, &[&format!("{address}/24")], "");
    }
    spec.timing =
        format!("probe_interval = \"{probe_interval}\"\nlease = \"{lease}\"\nhold_down = \"50ms\"\n");
    spec.timers = timers;
    Ok(Cluster::start("node-failover", spec)?)
}

/// Waits until every node sees every other one as up, and etcd's members agree on a leader.
pub fn wait_well(cluster: &Cluster) -> Result<()> {
    let end = clock::now() + PATIENCE;
    loop {
        let well = cluster.etcd.wait_healthy(PATIENCE).is_ok()
            && cluster.etcd.term(None).is_ok()
            && NODES.into_iter().all(|node| sees_all(cluster, node).unwrap_or(false));
        if well {
            return Ok(());
        }
        if clock::now() >= end {
            bail!("not all are well after {PATIENCE:?}{}{}", cluster.etcd.logs(), cluster.logs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn sees_all(cluster: &Cluster, node: &str) -> Result<bool> {
    let status = cluster.agent(node)?.status()?;
    let nodes = status["nodes"].as_array().context("no nodes in the status")?;
    let up = nodes.iter().filter(|n| n["state"] == "up").count();
    Ok(up == NODES.len() && status["quorum"] == true)
}

/// A node's master.
fn master(cluster: &Cluster) -> Result<String> {
    let status = cluster.agent(NODES[0])?.status()?;
    Ok(status["master"].as_str().context("no master")?.to_owned())
}

/// Everything on the node ends at once.
pub fn power_off(cluster: &mut Cluster, valves: &[Valve], node: &str) -> Result<()> {
    valves.iter().try_for_each(|valve| valve.close().map(drop))?;
    cluster.agent_mut(node)?.kill()?;
    Ok(cluster.etcd.kill(node)?)
}

/// It starts again.
pub fn power_on(cluster: &mut Cluster, valves: &[Valve], node: &str) -> Result<()> {
    valves.iter().try_for_each(Valve::open)?;
    cluster.etcd.start_again(node)?;
    Ok(cluster.agent_mut(node)?.start_again()?)
}

impl Baton {
    /// Starts it with this profile.
    pub fn start(kind: Kind, timers: Timers) -> Result<Baton> {
        let cluster = cluster(kind, timers, &[("bench".to_owned(), VIP.to_owned())])?;
        let all = NODES.map(|n| Ok((n.to_owned(), valves(&cluster.lab, n)?)));
        let valves = all.into_iter().collect::<Result<_>>()?;
        let between = NODES.map(|n| {
            let others: Vec<&str> = NODES.into_iter().filter(|o| *o != n).collect();
            Ok((n.to_owned(), cluster.lab.valve_between(n, &others)?))
        });
        let partitions = between.into_iter().collect::<Result<_>>()?;
        let echoes = NODES.map(|n| echo(cluster.lab.host(n)?)).into_iter().collect::<Result<_>>()?;
        Ok(Baton { cluster, valves, partitions, _echoes: echoes })
    }

    fn holder(&self) -> Result<String> {
        Ok(self.cluster.wait_held(VIP.parse()?, |_| true)?)
    }

    /// The node that the cause is to happen to.
    fn victim(&self, cause: Cause) -> Result<&'static str> {
        let (leader, master) = (self.cluster.etcd.leader()?, master(&self.cluster)?);
        let fits = |n: &&str| match cause {
            Cause::LeaderDies => *n == leader,
            Cause::MasterDies => *n == master,
            Cause::PowerLoss
            | Cause::AgentKilled
            | Cause::Unreachable
            | Cause::Partition
            | Cause::Drain
            | Cause::Move => *n != leader && *n != master,
        };
        NODES.into_iter().find(fits).context("no node fits")
    }
}

impl System for Baton {
    fn lab(&self) -> &Lab {
        &self.cluster.lab
    }

    fn has(&self, _: Cause) -> bool {
        true
    }

    fn prepare(&mut self, cause: Cause) -> Result<String> {
        wait_well(&self.cluster)?;
        let (leader, master) = (self.cluster.etcd.leader()?, master(&self.cluster)?);
        if leader == master && matches!(cause, Cause::LeaderDies | Cause::MasterDies) {
            let other = NODES.into_iter().find(|n| *n != master).context("no other node")?;
            self.cluster.etcd.move_leader(other)?;
            wait_well(&self.cluster)?;
        }
        let to = self.victim(cause)?;
        if self.holder()? != to {
            self.cluster.done(to, &["move", "bench", "--to", to])?;
            self.cluster.wait_held(VIP.parse()?, |node| node == to)?;
        }
        std::thread::sleep(REST);
        ensure!(self.victim(cause)? == to, "etcd's leader, or the master, has changed meanwhile");
        Ok(to.to_owned())
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<()> {
        match cause {
            Cause::PowerLoss | Cause::MasterDies | Cause::LeaderDies => {
                power_off(&mut self.cluster, &self.valves[node], node)?;
            }
            Cause::Unreachable => self.valves[node].iter().try_for_each(|valve| valve.close().map(drop))?,
            Cause::Partition => _ = self.partitions[node].close()?,
            Cause::AgentKilled => _ = self.cluster.agent_mut(node)?.kill()?,
            Cause::Drain => _ = self.cluster.done(node, &["drain", node])?,
            Cause::Move => {
                let to = NODES.into_iter().find(|n| *n != node).context("no other node")?;
                self.cluster.done(node, &["move", "bench", "--to", to])?;
            }
        }
        Ok(())
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        match cause {
            Cause::PowerLoss | Cause::MasterDies | Cause::LeaderDies => {
                power_on(&mut self.cluster, &self.valves[node], node)?;
            }
            Cause::Unreachable => self.valves[node].iter().try_for_each(Valve::open)?,
            Cause::Partition => self.partitions[node].open()?,
            Cause::AgentKilled => self.cluster.agent_mut(node)?.start_again()?,
            Cause::Drain => _ = self.cluster.done(node, &["resume", node])?,
            Cause::Move => {}
        }
        Ok(())
    }

    fn puts(&mut self) -> Result<Vec<Duration>> {
        let endpoints = self.cluster.etcd.endpoints("n1");
        self.cluster.lab.host("n1")?.enter(|| puts(&endpoints[..1]))?
    }

    fn term(&self, without: &str) -> Option<u64> {
        self.cluster.etcd.term(Some(without)).ok()
    }

    fn story(&self, at: Duration) -> String {
        let mut text = self.cluster.story(at);
        for (node, agent) in &self.cluster.agents {
            let log = agent.log();
            let lines: Vec<&str> = log.lines().collect();
            // Writing to a String can't fail.
            let _ = write!(text, "\n--- {node}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        text + &self.cluster.etcd.logs()
    }

    fn complaint(&self) -> String {
        self.cluster.logs()
    }
}

/// Times writes to the first member.
fn puts(endpoints: &[String]) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = etcd_client::Client::connect(endpoints, None).await?;
        client.put("/bench/put", "first", None).await?; // it makes the connection
        let mut times = Vec::new();
        for n in 0..PUTS {
            tokio::time::sleep(PUT_EVERY).await;
            let start = Instant::now();
            client.put("/bench/put", n.to_string(), None).await?;
            times.push(start.elapsed());
        }
        Ok(times)
    })
}
