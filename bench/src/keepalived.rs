//! keepalived (Debian's package): how it is started, and its plain arrangement, two nodes with one instance for one address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::files::valves;
use baton_lab::{Host, HostSpec, Lab, Process, Topology, Valve};

const CONFIGURATION: &str = "/run/keepalived.conf";
/// The address of a [`Pair`].
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10));
/// The port of its nodes.
pub const PORT: &str = "p0";

/// Starts it in this host with this configuration.
pub fn start(host: &Host, configuration: &str) -> Result<Process> {
    host.write(CONFIGURATION, configuration)?;
    let mut command = Command::new("keepalived");
    // Without a syslog daemon it would write to /dev/console, which may be slow enough to stop a CPU for milliseconds.
    command.args(["--dont-fork", "--no-syslog", "--log-console", "--vrrp", "--use-file", CONFIGURATION]);
    command.args(["--pid", "/run/keepalived.pid", "--vrrp_pid", "/run/vrrp.pid"]);
    host.spawn(command).context("keepalived is Debian's: apt-get install keepalived")
}

/// What the configuration of a [`Pair`] says besides.
#[derive(Clone, Debug, Default)]
pub struct More {
    /// Lines in `global_defs`.
    pub global: String,
    /// Sections before that of the instance.
    pub sections: String,
    /// Lines in the instance.
    pub instance: String,
}

/// Two nodes, and a client.
pub struct Pair {
    /// Their lab.
    pub lab: Lab,
    nodes: [&'static str; 2],
    advert: &'static str,
    more: More,
    processes: BTreeMap<String, Process>,
    valves: BTreeMap<String, Vec<Valve>>,
}

impl Pair {
    /// Two that are called so, with this interval of advertisements in seconds. Nothing runs on them yet.
    pub fn new(nodes: [&'static str; 2], advert: &'static str, more: More) -> Result<Pair> {
        let client = HostSpec::new("client").ports("office", 1).address("p0", "10.0.0.100/24");
        let mut topology = Topology::new("keepalived").segment("office").host(client);
        for (node, address) in nodes.into_iter().zip(["10.0.0.1/24", "10.0.0.2/24"]) {
            topology = topology.host(HostSpec::new(node).ports("office", 1).address(PORT, address));
        }
        let lab = topology.build()?;
        let valves = nodes.map(|n| Ok((n.to_owned(), valves(&lab, n)?)));
        let valves = valves.into_iter().collect::<Result<_>>()?;
        Ok(Pair { lab, nodes, advert, more, processes: BTreeMap::new(), valves })
    }

    /// Starts it on both.
    pub fn run_all(&mut self) -> Result<()> {
        self.nodes.into_iter().try_for_each(|node| self.run(node))
    }

    /// Starts it on this node.
    pub fn run(&mut self, node: &str) -> Result<()> {
        let priority = if node == self.nodes[0] { 101 } else { 100 };
        let More { global, sections, instance } = &self.more;
        let advert = self.advert;
        let text = format!(
            "global_defs {{\n    vrrp_rt_priority 50\n    vrrp_no_swap\n{global}}}\n{sections}vrrp_instance bench {{\n    \
             interface {PORT}\n    state BACKUP\n    nopreempt\n    virtual_router_id 77\n    priority {priority}\n    \
             advert_int {advert}\n    version 3\n    virtual_ipaddress {{\n        {ADDRESS}/24 dev {PORT}\n    }}\n{instance}}}\n"
        );
        let process = start(self.lab.host(node)?, &text)?;
        self.processes.insert(node.to_owned(), process);
        Ok(())
    }

    /// Does it run on both?
    pub fn is_whole(&self) -> bool {
        self.processes.len() == self.nodes.len()
    }

    /// Its daemon is killed.
    pub fn kill(&mut self, node: &str) -> Result<()> {
        if let Some(mut process) = self.processes.remove(node) {
            process.kill()?;
        }
        Ok(())
    }

    /// Its administrator stops it.
    pub fn stop(&mut self, node: &str) -> Result<()> {
        let mut process = self.processes.remove(node).context("no keepalived")?;
        process.terminate(Duration::from_secs(10))?;
        Ok(())
    }

    /// A machine that starts has no address; the killed daemon left it.
    pub fn forget(&self, node: &str) -> Result<()> {
        self.lab.port(node, PORT)?.delete_address(format!("{ADDRESS}/24").parse()?)?;
        self.lab.host(node)?.run("rm", ["-f", "/run/keepalived.pid", "/run/vrrp.pid"])?;
        Ok(())
    }

    /// No frame reaches the node, and none leaves it.
    pub fn cut_off(&self, node: &str) -> Result<()> {
        self.valves[node].iter().try_for_each(|valve| Ok(valve.close().map(drop)?))
    }

    /// They do again.
    pub fn reconnect(&self, node: &str) -> Result<()> {
        self.valves[node].iter().try_for_each(|valve| Ok(valve.open()?))
    }

    /// The one node that answers for the address.
    pub fn holder(&self) -> Result<Option<String>> {
        let macs = self.answering()?;
        let [mac] = macs[..] else { return Ok(None) };
        Ok(self.lab.ports().find(|p| p.mac() == mac).map(|p| p.host().name().to_owned()))
    }

    /// Who answers for the address.
    pub fn answering(&self) -> Result<Vec<baton_lab::Mac>> {
        Ok(self.lab.port("client", "p0")?.holders(ADDRESS, Duration::from_millis(30))?)
    }

    /// How long it takes at most until one that has started, or hears the other one again, knows what it is.
    pub fn settling(&self) -> Duration {
        Duration::from_millis(if self.advert == "1" { 4000 } else { 700 })
    }

    /// What the daemons say.
    pub fn complaint(&self) -> String {
        self.processes.values().map(|p| p.stderr() + &p.stdout()).collect()
    }
}
