//! Several nodes with a real etcd, and the judge of who serves what.
//!
//! Every node has two ports in the segment `office`, where the client is, and one in `back`, the interconnect, where etcd
//! speaks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::agent::{Agent, CONFIG_FILE};
use crate::error::LabError;
use crate::etcd::{Etcd, Security, Timers};
use crate::fault::Blackhole;
use crate::host::wait_until;
pub use crate::judge::{Judge, Seen};
use crate::port::Port;
use crate::process::baton_binary;
use crate::topology::{HostSpec, Lab, Topology};
use crate::wire::Mac;

/// The key of all nodes' probe frames.
const KEY_FILE: &str = "/run/baton-lab/probe.key";
/// The file for `baton apply`.
const DEFINITIONS: &str = "/run/baton-lab/cluster.toml";
/// Every node's ports and their segments.
pub const PORTS: [(&str, &str); 3] = [("p0", "office"), ("p1", "office"), ("p2", "back")];
/// Long enough for everything that happens at all.
const LONG: Duration = Duration::from_secs(90);

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Names of the nodes: all that there are hosts for.
    pub nodes: Vec<String>,
    /// Those of them that are members; empty: all. Agents of the others are not started.
    pub members: Vec<String>,
    /// On how many of the nodes, from the first one on, etcd runs.
    pub etcd_members: usize,
    /// How etcd is reached; `None`: by anybody, unencrypted.
    pub security: Option<Security>,
    /// Names of the clients in the segment `office`; the first one is the judge's.
    pub clients: Vec<String>,
    /// Last byte of the first client's addresses; the others count up from it.
    pub client_base: usize,
    /// Those of them that are witnesses.
    pub witnesses: Vec<String>,
    /// `[timing]`, as it stands in the file.
    pub timing: String,
    /// `[balance]`, as it stands in the file. All nodes share the processors and the memory of one machine, which say nothing of one
    /// of them: by default they don't count.
    pub balance: String,
    /// Speed of every port in Mbit/s, instead of what the interface says.
    pub speed_mbits: Option<u32>,
    /// Lines of each `[[virtual_server]]`: name and what follows.
    pub servers: Vec<(String, String)>,
    /// `agent_grace`.
    pub grace: Duration,
    /// etcd's timers.
    pub timers: Timers,
    /// The program that agents are started with, and commands given to, at first; `None`: [`crate::baton_binary`].
    pub program: Option<PathBuf>,
}

impl ClusterSpec {
    /// Three nodes without virtual servers, a lease of 50 ms.
    pub fn new() -> ClusterSpec {
        ClusterSpec {
            nodes: ["n1", "n2", "n3"].map(str::to_owned).to_vec(),
            members: Vec::new(),
            etcd_members: 3,
            security: None,
            clients: vec!["client".to_owned()],
            client_base: 100,
            witnesses: Vec::new(),
            timing: "probe_interval = \"10ms\"\nlease = \"50ms\"\nhold_down = \"100ms\"\n".to_owned(),
            balance: "cpu_percent = 0\nmemory_percent = 0\n".to_owned(),
            speed_mbits: None,
            servers: Vec::new(),
            grace: Duration::from_secs(2),
            timers: Timers::default(),
            program: None,
        }
    }

    /// Adds a virtual server with its addresses; `more` are further lines.
    pub fn server(mut self, name: &str, addresses: &[&str], more: &str) -> ClusterSpec {
        self.servers.push((name.to_owned(), format!("addresses = {addresses:?}\n{more}\n")));
        self
    }

    /// Nodes with this many names: `n1`, `n2` and so on.
    pub fn nodes(mut self, count: usize) -> ClusterSpec {
        self.nodes = (1..=count).map(|n| format!("n{n}")).collect();
        self
    }

    /// Names of the members.
    pub fn members(&self) -> &[String] {
        if self.members.is_empty() { &self.nodes } else { &self.members }
    }

    /// All addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let lists = self.servers.iter().filter_map(|(_, lines)| lines.split_once('[')?.1.split_once(']'));
        let texts = lists.flat_map(|(list, _)| list.split(','));
        let nets = texts.filter_map(|t| t.trim().trim_matches('"').parse::<ipnet::IpNet>().ok());
        nets.map(|n| n.addr()).collect()
    }

    /// The file for `baton apply`.
    pub fn definitions(&self) -> String {
        let mut text = format!("[cluster]\nmembers = {:?}\n", self.members());
        if self.members().len() == 2 {
            text.push_str("two_nodes_never_take_over = true\n");
        }
        text.push_str(&format!("\n[timing]\n{}\n", self.timing));
        text.push_str(&format!("\n[balance]\n{}\n", self.balance));
        text.push_str("\n[[segment]]\nname = \"office\"\nsubnets = [\"10.0.0.0/24\", \"fd00:10::/64\"]\n");
        text.push_str("\n[[segment]]\nname = \"back\"\nsubnets = [\"10.99.0.0/24\"]\n");
        for (name, lines) in &self.servers {
            text.push_str(&format!("\n[[virtual_server]]\nname = {name:?}\n{lines}"));
        }
        text
    }

    fn node_file(&self, node: &str, ports: [(&str, &str); 3], endpoints: &[String]) -> String {
        let mut text = format!("[node]\nname = {node:?}\nagent_grace = \"{}ms\"\n", self.grace.as_millis());
        for (port, segment) in ports {
            text.push_str(&format!("\n[[port]]\ninterface = {port:?}\nsegment = {segment:?}\n"));
            text.extend(self.speed_mbits.map(|speed| format!("speed_mbits = {speed}\n")));
        }
        let witness = self.witnesses.iter().any(|w| w == node);
        text.push_str(&format!("\n[store]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n"));
        text.push_str(&self.security.as_ref().map(Security::store_lines).unwrap_or_default());
        text.push_str(&format!(
            "\n[cluster]\nname = \"lab\"\nkey_file = {KEY_FILE:?}\nwitness = {witness}\n"
        ));
        text
    }
}

impl Default for ClusterSpec {
    fn default() -> Self {
        ClusterSpec::new()
    }
}

/// A standing cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Agents by node; those that were killed stay.
    pub agents: BTreeMap<String, Agent>,
    /// etcd, on the first nodes.
    pub etcd: Etcd,
    /// The lab; the client is the host `client`.
    pub lab: Lab,
    spec: ClusterSpec,
    /// Hardware addresses that nodes were given later.
    aliases: BTreeMap<Mac, String>,
}

impl Cluster {
    /// Builds it, applies the definitions, starts the agents, and waits until every address is answered for.
    ///
    /// # Errors
    /// What fails, with the agents' logs where an address is not answered for.
    pub fn start(name: &str, spec: ClusterSpec) -> Result<Cluster, LabError> {
        Cluster::start_prepared(name, spec, |_| Ok(()))
    }

    /// As [`Cluster::start`], with something done to the hosts before anything runs there.
    ///
    /// # Errors
    /// As [`Cluster::start`], and those of `prepare`.
    pub fn start_prepared(
        name: &str,
        spec: ClusterSpec,
        prepare: impl FnOnce(&Lab) -> Result<(), LabError>,
    ) -> Result<Cluster, LabError> {
        let mut topology = Topology::new(name).segment("office").segment("back");
        for (index, client) in spec.clients.iter().enumerate() {
            let host = HostSpec::new(client).ports("office", 1);
            let last = spec.client_base + index;
            let (four, six) = (format!("10.0.0.{last}/24"), format!("fd00:10::{last}/64"));
            topology = topology.host(host.address("p0", &four).address("p0", &six));
        }
        for (index, node) in spec.nodes.iter().enumerate() {
            let back = format!("10.99.0.{}/24", index + 1);
            topology =
                topology.host(HostSpec::new(node).ports("office", 2).ports("back", 1).address("p2", &back));
        }
        let mut lab = topology.build()?;
        for node in &spec.nodes {
            lab.carry_xdp_tx(node)?;
            lab.host(node)?.write_secret(KEY_FILE, "0123456789abcdef0123456789abcdef\n")?;
        }
        prepare(&lab)?;
        let addresses: Vec<String> = (1..=spec.etcd_members).map(|n| format!("10.99.0.{n}")).collect();
        let mut hosts = Vec::new();
        for (node, address) in spec.nodes.iter().zip(&addresses) {
            hosts.push((lab.host(node)?, address.as_str()));
        }
        for node in spec.nodes.iter().chain(&spec.clients) {
            if let Some(security) = &spec.security {
                security.write(lab.host(node)?)?;
            }
        }
        let etcd = Etcd::start_with(&hosts, spec.timers, spec.security.clone())?;
        let mut cluster = Cluster { agents: BTreeMap::new(), etcd, lab, spec, aliases: BTreeMap::new() };
        for node in cluster.spec.members().to_vec() {
            cluster.start_agent(&node, PORTS)?;
        }
        cluster.apply()?;
        cluster.wait_all_up()?;
        cluster.wait_all_served()?;
        Ok(cluster)
    }

    /// Waits until every agent has a lease and the store, and says that all nodes are up.
    ///
    /// # Errors
    /// [`LabError::Timeout`], with what the agents say.
    pub fn wait_all_up(&self) -> Result<(), LabError> {
        let well = |agent: &Agent| {
            let status = agent.status().unwrap_or_default();
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            let up = nodes.iter().all(|n| n["state"] == "up");
            !nodes.is_empty() && up && status["quorum"] == true && status["store"] == true
        };
        let all = || self.agents.values().all(well);
        wait_until("all nodes to be up", LONG, all).map_err(|_| {
            let what = format!("all nodes to be up{}", self.logs());
            LabError::Timeout { what, limit: LONG }
        })
    }

    /// Starts the agent of a node, with these ports and their segments: also of one that joins, or whose ports have changed.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_agent(&mut self, node: &str, ports: [(&str, &str); 3]) -> Result<(), LabError> {
        let file = self.spec.node_file(node, ports, &self.etcd.endpoints(node));
        self.agents.remove(node);
        let program = self.spec.program.clone().map_or_else(baton_binary, Ok)?;
        let agent = Agent::start_program(self.lab.host(node)?, &file, program)?;
        self.agents.insert(node.to_owned(), agent);
        Ok(())
    }

    /// What it is to be; changed, it can be applied again.
    pub fn spec(&mut self) -> &mut ClusterSpec {
        &mut self.spec
    }

    /// `baton apply` on the first node.
    ///
    /// # Errors
    /// When it fails.
    pub fn apply(&self) -> Result<String, LabError> {
        self.apply_text(&self.spec.nodes[0], &self.spec.definitions(), &[])
    }

    /// `baton apply` of this text on a node, with further arguments. Returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn apply_text(&self, node: &str, text: &str, more: &[&str]) -> Result<String, LabError> {
        self.lab.host(node)?.write(DEFINITIONS, text)?;
        self.done(node, &[&["apply", DEFINITIONS], more].concat())
    }

    /// Runs the program on a node, with its configuration. Returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn done(&self, node: &str, arguments: &[&str]) -> Result<String, LabError> {
        let output = self.agent(node)?.command(arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = format!(
            "baton {} ({CONFIG_FILE}): {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Err(LabError::System { what: text, source: std::io::Error::other("failed") })
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn agent(&self, node: &str) -> Result<&Agent, LabError> {
        self.agents.get(node).ok_or_else(|| self.unknown(node))
    }

    /// The agent of a node, to pause or kill.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn agent_mut(&mut self, node: &str) -> Result<&mut Agent, LabError> {
        let unknown = self.unknown(node);
        self.agents.get_mut(node).ok_or(unknown)
    }

    fn unknown(&self, node: &str) -> LabError {
        LabError::Unknown { lab: self.lab.name().to_owned(), what: format!("node {node}") }
    }

    /// The client's port.
    ///
    /// # Errors
    /// Never, once it stands.
    pub fn client(&self) -> Result<&Port, LabError> {
        self.lab.port(&self.spec.clients[0], "p0")
    }

    /// From now on this hardware address is that node's.
    pub fn alias(&mut self, mac: Mac, node: &str) {
        self.aliases.insert(mac, node.to_owned());
    }

    fn owners(&self) -> BTreeMap<Mac, String> {
        let ports = self.lab.ports().map(|p| (p.mac(), p.host().name().to_owned()));
        ports.chain(self.aliases.clone()).collect()
    }

    /// The ports of a node.
    pub fn ports<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Port> {
        self.lab.ports().filter(move |port| port.host().name() == node)
    }

    /// Which node has this hardware address.
    pub fn node_of(&self, mac: Mac) -> Option<&str> {
        if let Some(node) = self.aliases.get(&mac) {
            return Some(node);
        }
        self.lab.ports().find(|p| p.mac() == mac).map(|p| p.host().name())
    }

    /// The nodes that answer for an address, sorted.
    ///
    /// # Errors
    /// What the sockets say.
    pub fn holders(&self, address: IpAddr) -> Result<Vec<String>, LabError> {
        let macs = self.client()?.holders(address, Duration::from_millis(40))?;
        let mut nodes: Vec<String> =
            macs.into_iter().filter_map(|m| self.node_of(m)).map(str::to_owned).collect();
        nodes.sort();
        nodes.dedup();
        Ok(nodes)
    }

    /// Waits until exactly one node answers for the address, and `wanted` accepts it.
    ///
    /// # Errors
    /// [`LabError::Timeout`], with what was last seen and what the agents say.
    pub fn wait_held(&self, address: IpAddr, wanted: impl Fn(&str) -> bool) -> Result<String, LabError> {
        let mut last = Vec::new();
        let held = || {
            last = self.holders(address).unwrap_or_default();
            matches!(&last[..], [node] if wanted(node))
        };
        match wait_until("one node to answer", LONG, held) {
            Ok(()) => Ok(last.remove(0)),
            Err(_) => {
                let what = format!("{address} to be held as wanted (last by {last:?}){}", self.logs());
                Err(LabError::Timeout { what, limit: LONG })
            }
        }
    }

    /// Waits until every address is answered for by one node.
    ///
    /// # Errors
    /// As [`Cluster::wait_held`].
    pub fn wait_all_served(&self) -> Result<BTreeMap<IpAddr, String>, LabError> {
        let addresses = self.spec.addresses();
        addresses.into_iter().map(|a| Ok((a, self.wait_held(a, |_| true)?))).collect()
    }

    /// The ends of the agents' logs and journals.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (node, agent) in &self.agents {
            let events = agent.command(&["events"]).map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            for part in [agent.log(), events.unwrap_or_default()] {
                let lines: Vec<&str> = part.lines().collect();
                let end = lines[lines.len().saturating_sub(60)..].join("\n");
                text.push_str(&format!("\n--- {node}\n{end}"));
            }
        }
        text
    }

    /// What the agents noted since `at`, in the order of time, and where; also what those noted that were killed since.
    ///
    /// # Errors
    /// Those of [`Agent::events`].
    pub fn events_since(&self, at: Duration) -> Result<Vec<(Duration, String, Value)>, LabError> {
        let mut all = Vec::new();
        for (node, agent) in &self.agents {
            for event in agent.events()? {
                let time = Duration::from_nanos(event["at"].as_u64().unwrap_or_default());
                if time >= at {
                    all.push((time, node.clone(), event));
                }
            }
        }
        all.sort_by_key(|(time, ..)| *time);
        Ok(all)
    }

    /// The same, a line each, for people to read; empty where it can't be had.
    pub fn story(&self, at: Duration) -> String {
        let line = |(time, node, event): (Duration, String, Value)| {
            format!("\n  {:9.3} ms {node}: {event}", (time - at).as_secs_f64() * 1e3)
        };
        self.events_since(at).unwrap_or_default().into_iter().map(line).collect()
    }

    /// Everything that one of `these` hosts sends to one of `those` is lost; the other way it comes through.
    ///
    /// # Errors
    /// As [`Port::lose_from`].
    pub fn deafen(&self, those: &[&str], these: &[&str]) -> Result<Vec<Blackhole>, LabError> {
        let of = |hosts: &[&str]| {
            let ports = self.lab.ports().filter(|p| hosts.contains(&p.host().name()));
            ports.cloned().collect::<Vec<Port>>()
        };
        let mut holes = Vec::new();
        for to in of(those) {
            for from in of(these).iter().filter(|from| from.segment() == to.segment()) {
                holes.push(to.lose_from(from)?);
            }
        }
        Ok(holes)
    }

    /// Two parts of the network that don't hear one another.
    ///
    /// # Errors
    /// As [`Port::lose_from`].
    pub fn split(&self, these: &[&str], those: &[&str]) -> Result<Vec<Blackhole>, LabError> {
        let mut holes = self.deafen(these, those)?;
        holes.extend(self.deafen(those, these)?);
        Ok(holes)
    }

    /// The owner record of a virtual server, as the store has it; null if there is none.
    ///
    /// # Errors
    /// When the store can't be asked.
    pub fn record(&self, server: &str) -> Result<serde_json::Value, LabError> {
        let key = format!("/baton/lab/owner/{server}");
        let output = self.etcd.ctl(&["get", "--print-value-only", &key])?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// Waits until the owner record of a virtual server is as `wanted` has it.
    ///
    /// # Errors
    /// [`LabError::Timeout`] with the record.
    pub fn wait_record(
        &self,
        server: &str,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<(), LabError> {
        let mut last = serde_json::Value::Null;
        let as_wanted = || {
            last = self.record(server).unwrap_or_default();
            wanted(&last)
        };
        wait_until("the owner record", LONG, as_wanted).map_err(|_| LabError::Timeout {
            what: format!("the owner record of {server} to be as wanted (it is {last}){}", self.logs()),
            limit: LONG,
        })
    }

    /// Power loss: no frame of the node leaves or arrives any more, then everything on it is killed.
    ///
    /// # Errors
    /// What can't be cut or killed.
    pub fn power_off(&mut self, node: &str) -> Result<Vec<Blackhole>, LabError> {
        let cut = self.lab.lose_host(node)?;
        self.agent_mut(node)?.kill()?;
        self.etcd.kill(node)?;
        Ok(cut)
    }

    /// Watches from now on that no address is ever answered for by two nodes.
    ///
    /// # Errors
    /// When there is no client.
    pub fn judge(&self) -> Result<Judge, LabError> {
        Judge::start(self.client()?.clone(), self.spec.addresses(), self.owners())
    }
}
