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
}

/// A network interface that carries client traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    /// Name of the interface.
    pub interface: String,
    /// Name of its segment.
    pub segment: String,
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

/// What happens to addresses when a port is good again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortFailback {
    /// Addresses are spread over all good ports again.
    Spread,
    /// Addresses stay where they are; the port is used for the next failover.
    Stay,
}

/// Addresses (and later file systems and services) that are served together.
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

impl Config {
    /// The segment with a subnet that holds `address`.
    pub fn segment_of(&self, address: IpAddr) -> Option<&Segment> {
        self.segments.iter().find(|s| s.subnets.iter().any(|n| n.contains(&address)))
    }
}
