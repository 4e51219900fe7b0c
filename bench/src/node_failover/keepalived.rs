//! Two nodes with keepalived: the plain arrangement, one instance, one address.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton_lab::{Echo, HostSpec, Lab, Process, Topology, Valve, clock};

use super::{Cause, System, VIP, echo, valves};

const CONFIGURATION: &str = "/run/keepalived.conf";
const NODES: [&str; 2] = ["k1", "k2"];

/// The two of them.
pub struct Keepalived {
    lab: Lab,
    advert: &'static str,
    processes: BTreeMap<String, Process>,
    valves: BTreeMap<String, Vec<Valve>>,
    /// Between the two.
    partition: Valve,
    _echoes: Vec<Echo>,
}

impl Keepalived {
    /// Starts them with this interval of advertisements, seconds.
    pub fn start(advert: &'static str) -> Result<Keepalived> {
        let client = HostSpec::new("client").ports("office", 1).address("p0", "10.0.0.100/24");
        let mut topology = Topology::new("keepalived").segment("office").host(client);
        for (node, address) in NODES.into_iter().zip(["10.0.0.1/24", "10.0.0.2/24"]) {
            topology = topology.host(HostSpec::new(node).ports("office", 1).address("p0", address));
        }
        let lab = topology.build()?;
        let valves = NODES.map(|n| Ok((n.to_owned(), valves(&lab, n)?)));
        let valves = valves.into_iter().collect::<Result<_>>()?;
        let partition = lab.valve_between(NODES[0], &NODES[1..])?;
        let echoes = NODES.map(|n| echo(lab.host(n)?)).into_iter().collect::<Result<_>>()?;
        let mut system =
            Keepalived { lab, advert, processes: BTreeMap::new(), valves, partition, _echoes: echoes };
        NODES.into_iter().try_for_each(|node| system.run(node))?;
        Ok(system)
    }

    fn run(&mut self, node: &str) -> Result<()> {
        let host = self.lab.host(node)?;
        let priority = if node == NODES[0] { 101 } else { 100 };
        let text = format!(
            "global_defs {{\n    vrrp_rt_priority 50\n    vrrp_no_swap\n}}\nvrrp_instance bench {{\n    interface p0\n    \
             state BACKUP\n    nopreempt\n    virtual_router_id 77\n    priority {priority}\n    advert_int {}\n    version 3\n    \
             virtual_ipaddress {{\n        {VIP}/24 dev p0\n    }}\n}}\n",
            self.advert
        );
        host.write(CONFIGURATION, &text)?;
        let mut command = Command::new("keepalived");
        command.args(["--dont-fork", "--no-syslog", "--log-console", "--vrrp", "--use-file", CONFIGURATION]);
        command.args(["--pid", "/run/keepalived.pid", "--vrrp_pid", "/run/vrrp.pid"]);
        let process = host.spawn(command).context("keepalived is Debian's: apt-get install keepalived")?;
        self.processes.insert(node.to_owned(), process);
        Ok(())
    }

    fn kill(&mut self, node: &str) -> Result<()> {
        if let Some(mut process) = self.processes.remove(node) {
            process.kill()?;
        }
        Ok(())
    }

    /// A machine that starts has no address; the killed daemon left it.
    fn forget(&self, node: &str) -> Result<()> {
        self.lab.port(node, "p0")?.delete_address(format!("{VIP}/24").parse()?)?;
        self.lab.host(node)?.run("rm", ["-f", "/run/keepalived.pid", "/run/vrrp.pid"])?;
        Ok(())
    }

    fn while_settling(&self) -> Duration {
        Duration::from_millis(if self.advert == "1" { 5000 } else { 700 })
    }
}

impl System for Keepalived {
    fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A killed daemon, or a cut between the two, leaves the address on both nodes: there is no outage to measure.
    fn has(&self, cause: Cause) -> bool {
        matches!(cause, Cause::PowerLoss | Cause::Unreachable | Cause::Drain)
    }

    fn prepare(&mut self, _: Cause) -> Result<String> {
        let end = clock::now() + Duration::from_secs(20);
        let mut last = Vec::new();
        while clock::now() < end {
            last = self.lab.port("client", "p0")?.holders(VIP.parse()?, Duration::from_millis(30))?;
            if let [mac] = last[..]
                && let Some(port) = self.lab.ports().find(|p| p.mac() == mac)
            {
                return Ok(port.host().name().to_owned());
            }
        }
        bail!("not one node answers, but {last:?}{}", self.complaint())
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<()> {
        if cause == Cause::Drain {
            let process = self.processes.get_mut(node).context("no keepalived")?;
            process.terminate(Duration::from_secs(5))?;
            return Ok(());
        }
        self.valves[node].iter().try_for_each(|valve| valve.close().map(drop))?;
        if cause == Cause::PowerLoss {
            self.kill(node)?;
        }
        Ok(())
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        if cause == Cause::PowerLoss {
            self.forget(node)?;
        }
        self.valves[node].iter().try_for_each(Valve::open)?;
        if matches!(cause, Cause::PowerLoss | Cause::Drain) {
            self.run(node)?;
        }
        std::thread::sleep(self.while_settling());
        Ok(())
    }

    fn answering(&mut self, cause: Cause) -> Result<Option<usize>> {
        if !matches!(cause, Cause::AgentKilled | Cause::Partition) {
            return Ok(None);
        }
        let node = self.prepare(cause)?;
        if cause == Cause::Partition {
            self.partition.close()?;
        } else {
            self.kill(&node)?;
        }
        std::thread::sleep(self.while_settling());
        let answering = self.lab.port("client", "p0")?.holders(VIP.parse()?, Duration::from_millis(30))?;
        if cause == Cause::Partition {
            self.partition.open()?;
        } else {
            self.forget(&node)?;
            self.run(&node)?;
        }
        std::thread::sleep(self.while_settling());
        ensure!(!answering.is_empty(), "nobody answers{}", self.complaint());
        Ok(Some(answering.len()))
    }

    fn complaint(&self) -> String {
        self.processes.values().map(|p| p.stderr() + &p.stdout()).collect()
    }
}
