//! The validated configuration as plain values. Parsing, defaults and error messages with line and column
//! are the agent's business; what arrives here has passed every check.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Everything that core needs to know of a node's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Name of this node, unique in its cluster.
    pub node: String,
    /// Its ports, in the order of the file; an interface appears once.
    pub ports: Vec<PortConfig>,
    /// The time limits.
    pub timing: Timing,
    /// The client subnets; every port and every virtual IP belongs to one of them.
    pub segments: Vec<Segment>,
    /// The virtual servers, in the order of the file.
    pub servers: Vec<VirtualServer>,
    /// How load is measured and evened out.
    #[serde(default)]
    pub balance: Balance,
    /// What this node can bear, in percent of an ordinary one of its cluster; 1 to 10,000.
    #[serde(default = "hundred")]
    pub capacity_percent: u32,
}

pub(crate) fn hundred() -> u32 {
    100
}

/// A network interface that carries client traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    /// Name of the interface.
    pub interface: String,
    /// Name of its segment.
    pub segment: String,
    /// What it can carry in each direction, in Mbit/s, where the interface doesn't say so, or says it wrongly; above 0.
    #[serde(default)]
    pub speed_mbits: Option<u32>,
}

/// Time limits; cluster-wide where there is a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Time between two probes of a path; 1 ms to 1 s.
    pub probe_interval: Duration,
    /// How long a port that came back is held before it is used again, the first time.
    pub hold_down: Duration,
    /// Most that the hold-down grows to: it doubles with every failure until the port has been good for this long.
    pub hold_down_max: Duration,
    /// When announcements are repeated, counted from the first.
    pub announce_repeat: Vec<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            probe_interval: Duration::from_millis(10),
            hold_down: Duration::from_secs(1),
            hold_down_max: Duration::from_secs(60),
            announce_repeat: [10, 100, 1000].map(Duration::from_millis).to_vec(),
        }
    }
}

/// One client subnet or layer-2 broadcast domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Name.
    pub name: String,
    /// Its subnets; those of different segments don't overlap.
    pub subnets: Vec<IpNet>,
    /// Next hop for clients outside the subnets: at most one of each family.
    pub gateway: Vec<IpAddr>,
    /// Hosts to ask by ARP or neighbour solicitation from each port whether the segment is alive: those configured and the
    /// gateways, sorted, each once.
    pub probe_targets: Vec<IpAddr>,
    /// What happens when a port is good again.
    pub port_failback: PortFailback,
}

/// How load is measured, and whether virtual servers move only to even it out; cluster-wide.
///
/// The load of a virtual server is its largest share of any one thing that a node has (its dominant share: Ghodsi et al., Dominant
/// Resource Fairness, NSDI 2011), each multiplied by its weight. So what is scarce decides, and 1 is a node that has no more to
/// give.
///
/// At most `at_once` virtual servers move in one go, and goes are `cluster_cooldown` apart; so at most `at_once` × 24 h /
/// `cluster_cooldown` moves are made for balance in a day (576 by default), and of one virtual server at most 24 h /
/// `server_cooldown` (48 by default), whatever the load does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// What is done when loads are uneven.
    pub mode: BalanceMode,
    /// Half-life of measured loads; 1 s to 1 h. Bursts that are shorter move nothing.
    pub half_life: Duration,
    /// A node is relieved when its load is above so many percent of its fair share; at least `stop_percent`. Half as much again is
    /// felt by clients, a tenth is not.
    pub start_percent: u32,
    /// And then until all are below so many percent of theirs; above 100.
    pub stop_percent: u32,
    /// A node with a load below so many percent of its capacity is never relieved: it has enough to give; 0 to 100.
    pub quiet_percent: u32,
    /// Virtual servers that may move in one go; above 0.
    pub at_once: u32,
    /// A virtual server that has moved, for whatever reason, rests for so long.
    pub server_cooldown: Duration,
    /// After moves for balance nothing else is moved for balance for so long.
    pub cluster_cooldown: Duration,
    /// A move must pay within this time: see [`crate::plan::Policy::horizon`].
    pub horizon: Duration,
    /// Packets per second, both directions together, that an ordinary node can handle; above 0. A million is what a few cores do with
    /// small packets.
    pub packets_per_second: u32,
    /// Weight in percent of the bytes that are sent or received, whichever are more, against the speed of the ports. 100: a
    /// port that is full is full.
    pub network_percent: u32,
    /// Weight of packets against `packets_per_second`. 100: many small requests fill a node as a few large ones do.
    pub packets_percent: u32,
    /// Weight of the time that the processors work, and of that which work waits for them (pressure stall information), shared
    /// among the virtual servers by their packets. 100: file services work where their packets arrive.
    pub cpu_percent: u32,
    /// Weight of the time in which work waits for memory, shared in the same way. 100: what waits is late.
    pub memory_percent: u32,
    /// Weight of the time in which the devices of its file systems are busy, the busiest one. 100; less for devices
    /// that do much at a time (arrays, NVMe), which are busy long before they are full.
    pub storage_percent: u32,
}

impl Default for Balance {
    fn default() -> Self {
        Balance {
            mode: BalanceMode::Advise,
            half_life: Duration::from_secs(30),
            start_percent: 150,
            stop_percent: 110,
            quiet_percent: 20,
            at_once: 2,
            server_cooldown: Duration::from_secs(1800),
            cluster_cooldown: Duration::from_secs(300),
            horizon: Duration::from_secs(600),
            packets_per_second: 1_000_000,
            network_percent: 100,
            packets_percent: 100,
            cpu_percent: 100,
            memory_percent: 100,
            storage_percent: 100,
        }
    }
}

/// What is done when loads are uneven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalanceMode {
    /// Nothing.
    Off,
    /// It is said what would help: by an event, by a metric, and by `baton plan`.
    #[default]
    Advise,
    /// Virtual servers move.
    On,
}

/// What happens to addresses when a port is good again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortFailback {
    /// Addresses are spread over all good ports again.
    Spread,
    /// Addresses stay where they are; the port is used for the next failover.
    Stay,
}

/// Addresses, file systems and services that are served together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServer {
    /// Name, unique in the cluster.
    pub name: String,
    /// Higher goes first. Default 100.
    pub priority: u32,
    /// May it be moved off a failed node?
    pub migrate: bool,
    /// Nodes to be on, best first.
    pub preferred_nodes: Vec<String>,
    /// When it goes back to a preferred node.
    pub failback: Failback,
    /// May a peer route to it where this node has lost every port of a segment?
    pub reroute: bool,
    /// Virtual servers that may not be on the same node, said on either side.
    #[serde(default)]
    pub never_with: Vec<String>,
    /// The only nodes that may have it; empty: all.
    #[serde(default)]
    pub only_on: Vec<String>,
    /// Block devices of its file systems, whose work is part of its load.
    #[serde(default)]
    pub devices: Vec<String>,
    /// It has file systems or services, which are started before its addresses are served.
    #[serde(default)]
    pub has_resources: bool,
    /// A node that may still have its file systems mounted must be fenced before they are started on another one.
    #[serde(default)]
    pub fenced: bool,
    /// Storage units that its file systems live on: only a node that reaches them all may have it.
    #[serde(default)]
    pub storage_units: Vec<String>,
    /// Its addresses and the prefix length of their subnet; the prefix is for the reader, bound is /32 or /128.
    pub addresses: Vec<IpNet>,
}

/// When a virtual server goes back to a preferred node that has recovered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failback {
    /// When an administrator says so.
    #[default]
    Manual,
    /// Soon.
    Immediate,
    /// Daily between these minutes of the day, local time, the first one included; may span midnight.
    Window(u16, u16),
}

impl PortConfig {
    /// A port of this segment, with the speed that the interface says.
    pub fn new(interface: &str, segment: &str) -> PortConfig {
        PortConfig { interface: interface.to_owned(), segment: segment.to_owned(), speed_mbits: None }
    }
}

impl Segment {
    /// A segment with nothing but subnets.
    pub fn new(name: &str, subnets: Vec<IpNet>) -> Segment {
        Segment {
            name: name.to_owned(),
            subnets,
            gateway: Vec::new(),
            probe_targets: Vec::new(),
            port_failback: PortFailback::Stay,
        }
    }
}

impl VirtualServer {
    /// A virtual server with nothing but addresses, and the defaults of the configuration file.
    pub fn new(name: &str, addresses: Vec<IpNet>) -> VirtualServer {
        VirtualServer {
            name: name.to_owned(),
            priority: 100,
            migrate: true,
            preferred_nodes: Vec::new(),
            failback: Failback::default(),
            reroute: false,
            never_with: Vec::new(),
            only_on: Vec::new(),
            devices: Vec::new(),
            has_resources: false,
            fenced: false,
            storage_units: Vec::new(),
            addresses,
        }
    }
}

impl Config {
    /// The configuration of an ordinary node without ports, in which nothing is defined.
    pub fn new(node: &str) -> Config {
        Config {
            node: node.to_owned(),
            ports: Vec::new(),
            timing: Timing::default(),
            segments: Vec::new(),
            servers: Vec::new(),
            balance: Balance::default(),
            capacity_percent: 100,
        }
    }

    /// May these two virtual servers not be on the same node?
    pub fn are_apart(a: &VirtualServer, b: &VirtualServer) -> bool {
        a.never_with.contains(&b.name) || b.never_with.contains(&a.name)
    }

    /// The segment with a subnet that holds `address`.
    pub fn segment_of(&self, address: IpAddr) -> Option<&Segment> {
        self.segments.iter().find(|s| s.subnets.iter().any(|n| n.contains(&address)))
    }
}
