//! Several nodes with a real etcd, and the judge of who serves what.
//!
//! Every node has two ports in the segment `office`, where the client is, and one in `back`, the interconnect, where etcd
//! speaks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::agent::{Agent, CONFIG_FILE};
use crate::clock;
use crate::error::LabError;
use crate::etcd::{Etcd, Timers};
use crate::fault::Blackhole;
use crate::host::wait_until;
use crate::port::Port;
use crate::topology::{HostSpec, Lab, Topology};
use crate::wire::Mac;

/// The key of all nodes' probe frames.
const KEY_FILE: &str = "/run/baton-lab/probe.key";
/// The file for `baton apply`.
const DEFINITIONS: &str = "/run/baton-lab/cluster.toml";
/// Long enough for everything that happens at all.
const LONG: Duration = Duration::from_secs(30);

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Those of them that are witnesses.
    pub witnesses: Vec<String>,
    /// `[timing]`, as it stands in the file.
    pub timing: String,
    /// Lines of each `[[virtual_server]]`: name and what follows.
    pub servers: Vec<(String, String)>,
    /// `agent_grace`.
    pub grace: Duration,
    /// etcd's timers.
    pub timers: Timers,
}

impl ClusterSpec {
    /// Three nodes without virtual servers, a lease of 50 ms.
    pub fn new() -> ClusterSpec {
        ClusterSpec {
            nodes: ["n1", "n2", "n3"].map(str::to_owned).to_vec(),
            witnesses: Vec::new(),
            timing: "probe_interval = \"10ms\"\nlease = \"50ms\"\nhold_down = \"100ms\"\n".to_owned(),
            servers: Vec::new(),
            grace: Duration::from_secs(2),
            timers: Timers::default(),
        }
    }

    /// Adds a virtual server with its addresses; `more` are further lines.
    pub fn server(mut self, name: &str, addresses: &[&str], more: &str) -> ClusterSpec {
        self.servers.push((name.to_owned(), format!("addresses = {addresses:?}\n{more}\n")));
        self
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
        let mut text = format!("[cluster]\nmembers = {:?}\n", self.nodes);
        if self.nodes.len() == 2 {
            text.push_str("two_nodes_never_take_over = true\n");
        }
        text.push_str(&format!("\n[timing]\n{}\n", self.timing));
        text.push_str("\n[[segment]]\nname = \"office\"\nsubnets = [\"10.0.0.0/24\", \"fd00:10::/64\"]\n");
        text.push_str("\n[[segment]]\nname = \"back\"\nsubnets = [\"10.99.0.0/24\"]\n");
        for (name, lines) in &self.servers {
            text.push_str(&format!("\n[[virtual_server]]\nname = {name:?}\n{lines}"));
        }
        text
    }

    fn node_file(&self, node: &str, endpoints: &[String]) -> String {
        let mut text = format!("[node]\nname = {node:?}\nagent_grace = \"{}ms\"\n", self.grace.as_millis());
        for (port, segment) in [("p0", "office"), ("p1", "office"), ("p2", "back")] {
            text.push_str(&format!("\n[[port]]\ninterface = {port:?}\nsegment = {segment:?}\n"));
        }
        let witness = self.witnesses.iter().any(|w| w == node);
        text.push_str(&format!("\n[store]\nkind = \"etcd\"\nendpoints = {endpoints:?}\n"));
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
    /// etcd, on the first three nodes.
    pub etcd: Etcd,
    /// The lab; the client is the host `client`.
    pub lab: Lab,
    spec: ClusterSpec,
}

impl Cluster {
    /// Builds it, applies the definitions, starts the agents, and waits until every address is answered for.
    ///
    /// # Errors
    /// What fails, with the agents' logs where an address is not answered for.
    pub fn start(name: &str, spec: ClusterSpec) -> Result<Cluster, LabError> {
        let mut topology = Topology::new(name).segment("office").segment("back");
        let client = HostSpec::new("client")
            .ports("office", 1)
            .address("p0", "10.0.0.100/24")
            .address("p0", "fd00:10::100/64");
        topology = topology.host(client);
        for (index, node) in spec.nodes.iter().enumerate() {
            let back = format!("10.99.0.{}/24", index + 1);
            topology =
                topology.host(HostSpec::new(node).ports("office", 2).ports("back", 1).address("p2", &back));
        }
        let mut lab = topology.build()?;
        for node in &spec.nodes {
            lab.carry_xdp_tx(node)?;
            lab.host(node)?.write(KEY_FILE, "0123456789abcdef0123456789abcdef\n")?;
            let chmod = lab.host(node)?.run("chmod", ["600", KEY_FILE])?;
            debug_assert!(chmod.status.success());
        }
        let addresses: Vec<String> = (1..=3).map(|n| format!("10.99.0.{n}")).collect();
        let mut hosts = Vec::new();
        for (node, address) in spec.nodes.iter().zip(&addresses) {
            hosts.push((lab.host(node)?, address.as_str()));
        }
        let etcd = Etcd::start(&hosts, spec.timers)?;
        let mut cluster = Cluster { agents: BTreeMap::new(), etcd, lab, spec };
        for node in cluster.spec.nodes.clone() {
            let file = cluster.spec.node_file(&node, &cluster.etcd.endpoints(&node));
            let agent = Agent::start_text(cluster.lab.host(&node)?, &file)?;
            cluster.agents.insert(node, agent);
        }
        cluster.apply()?;
        cluster.wait_all_served()?;
        Ok(cluster)
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
        let node = &self.spec.nodes[0];
        self.lab.host(node)?.write(DEFINITIONS, &self.spec.definitions())?;
        self.done(node, &["apply", DEFINITIONS])
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
        self.lab.port("client", "p0")
    }

    /// Which node has this hardware address.
    pub fn node_of(&self, mac: Mac) -> Option<&str> {
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
        let owners = self.lab.ports().map(|p| (p.mac(), p.host().name().to_owned())).collect();
        Judge::start(self.client()?.clone(), self.spec.addresses(), owners)
    }
}

/// Asks for every address all the time. Two nodes that answer the same question both served when it came: it is a broadcast,
/// and they answer at once.
#[derive(Debug)]
pub struct Judge {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What the judge has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Questions asked.
    pub asked: u64,
    /// Addresses that two nodes answered for, when, and which.
    pub doubles: Vec<(Duration, IpAddr, Vec<String>)>,
    /// For each address, the longest time without an answer: from when, for how long.
    pub gaps: BTreeMap<IpAddr, (Duration, Duration)>,
    /// Who answered last for each address, and when.
    pub last: BTreeMap<IpAddr, (String, Duration)>,
}

impl Judge {
    fn start(port: Port, addresses: Vec<IpAddr>, owners: BTreeMap<Mac, String>) -> Result<Judge, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stopped, noted) = (stop.clone(), seen.clone());
        let thread = std::thread::Builder::new().name("judge".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for address in &addresses {
                    let at = clock::now();
                    let Ok(macs) = port.holders(*address, Duration::from_millis(4)) else { continue };
                    let mut nodes: Vec<String> = macs.iter().filter_map(|m| owners.get(m)).cloned().collect();
                    nodes.sort();
                    nodes.dedup();
                    noted.lock().unwrap_or_else(PoisonError::into_inner).note(at, *address, nodes);
                }
            }
        });
        let thread =
            thread.map_err(|source| LabError::System { what: "start the judge".to_owned(), source })?;
        Ok(Judge { stop, seen, thread: Some(thread) })
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it.
    pub fn finish(mut self) -> Seen {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it has been printed
        }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        self.end();
    }
}

impl Seen {
    fn note(&mut self, at: Duration, address: IpAddr, nodes: Vec<String>) {
        self.asked += 1;
        if nodes.len() > 1 {
            self.doubles.push((at, address, nodes.clone()));
        }
        let Some(node) = nodes.into_iter().next() else { return };
        if let Some((_, before)) = self.last.insert(address, (node, at)) {
            let gap = at.saturating_sub(before);
            let longest = self.gaps.entry(address).or_insert((before, gap));
            if gap > longest.1 {
                *longest = (before, gap);
            }
        }
    }
}
