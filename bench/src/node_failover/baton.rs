//! Three nodes with Baton.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use baton_lab::cluster::{Cluster, ClusterSpec};
use baton_lab::{Echo, Lab, Valve};

use super::{Cause, System, VIP, echo, valves};

/// Writes to etcd that are timed.
const PUTS: usize = 50;
/// From the return of a node until the next run: it must have its lease, and etcd its member.
const REST: Duration = Duration::from_millis(700);

/// The cluster.
pub struct Baton {
    cluster: Cluster,
    valves: BTreeMap<String, Vec<Valve>>,
    _echoes: Vec<Echo>,
}

impl Baton {
    /// Starts it with these times.
    pub fn start(probe_interval: &str, lease: &str) -> Result<Baton> {
        let mut spec = ClusterSpec::new().server("bench", &[&format!("{VIP}/24")], "");
        spec.timing =
            format!("probe_interval = \"{probe_interval}\"\nlease = \"{lease}\"\nhold_down = \"50ms\"\n");
        let cluster = Cluster::start("node-failover", spec)?;
        let nodes = ["n1", "n2", "n3"];
        let valves = nodes.map(|n| Ok((n.to_owned(), valves(&cluster.lab, n)?)));
        let valves = valves.into_iter().collect::<Result<_>>()?;
        let echoes = nodes.map(|n| echo(cluster.lab.host(n)?)).into_iter().collect::<Result<_>>()?;
        Ok(Baton { cluster, valves, _echoes: echoes })
    }

    fn holder(&self) -> Result<String> {
        Ok(self.cluster.wait_held(VIP.parse()?, |_| true)?)
    }

    fn shut(&self, node: &str) -> Result<()> {
        Ok(self.valves[node].iter().try_for_each(|valve| valve.close().map(drop))?)
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
        self.cluster.etcd.wait_healthy(Duration::from_secs(20))?;
        let holder = self.holder()?;
        let mut leader = self.cluster.etcd.leader();
        for _ in 0..20 {
            if leader.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100)); // it is just being elected
            leader = self.cluster.etcd.leader();
        }
        let leader = leader?;
        let wants_leader = cause == Cause::LeaderDies;
        if (holder == leader) == wants_leader {
            return Ok(holder);
        }
        let to = ["n1", "n2", "n3"].into_iter().find(|n| (*n == leader) == wants_leader);
        let to = to.context("no node")?;
        self.cluster.done(to, &["move", "bench", "--to", to])?;
        self.cluster.wait_held(VIP.parse()?, |node| node == to)?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(to.to_owned())
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<()> {
        match cause {
            Cause::PowerLoss | Cause::LeaderDies => {
                self.shut(node)?;
                self.cluster.agent_mut(node)?.kill()?;
                self.cluster.etcd.kill(node)?;
            }
            Cause::Unreachable => self.shut(node)?,
            Cause::AgentKilled => _ = self.cluster.agent_mut(node)?.kill()?,
            Cause::Drain => _ = self.cluster.done(node, &["drain", node])?,
            Cause::Move => {
                let to = ["n1", "n2", "n3"].into_iter().find(|n| *n != node).context("no other node")?;
                self.cluster.done(node, &["move", "bench", "--to", to])?;
            }
        }
        Ok(())
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        self.valves[node].iter().try_for_each(Valve::open)?;
        match cause {
            Cause::PowerLoss | Cause::LeaderDies => {
                self.cluster.etcd.start_again(node)?;
                self.cluster.agent_mut(node)?.start_again()?;
            }
            Cause::AgentKilled => self.cluster.agent_mut(node)?.start_again()?,
            Cause::Drain => _ = self.cluster.done(node, &["resume", node])?,
            Cause::Unreachable | Cause::Move => {}
        }
        std::thread::sleep(REST);
        Ok(())
    }

    fn puts(&mut self) -> Result<Vec<Duration>> {
        let endpoints = self.cluster.etcd.endpoints("n1");
        self.cluster.lab.host("n1")?.enter(|| puts(&endpoints[..1]))?
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
        let mut times = Vec::new();
        for n in 0..PUTS {
            let start = Instant::now();
            client.put("/bench/put", n.to_string(), None).await?;
            times.push(start.elapsed());
        }
        Ok(times)
    })
}
