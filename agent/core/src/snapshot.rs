//! The published view of the machine: what `baton status --json` and `/status.json` show. Nothing flows back from it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Attachment, Finding, PlannedMove, Reason};

/// The whole view.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Name of this node.
    pub node: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Name of the master: without a cluster, this node.
    pub master: Option<String>,
    /// A majority of the cluster is connected; without a cluster always.
    pub quorum: bool,
    /// What is left of the lease, in milliseconds; `None`: endless.
    pub lease_ms: Option<u64>,
    /// The store answers; without a cluster always.
    pub store: bool,
    /// Every node.
    pub nodes: Vec<NodeView>,
    /// Every configured port of this node.
    pub ports: Vec<PortView>,
    /// Every virtual server.
    pub virtual_servers: Vec<ServerView>,
    /// What the paths of each segment say.
    pub segments: Vec<SegmentView>,
    /// Every path between ports of this node.
    pub paths: Vec<PathView>,
    /// Every probe target at every port.
    pub targets: Vec<TargetView>,
    /// Virtual IPs that an interface or a host outside Baton's care also holds.
    pub conflicts: Vec<ConflictView>,
    /// Storage units of which this node has been told.
    #[serde(default)]
    pub storage: Vec<StorageView>,
    /// Failovers and moves in this agent's life.
    pub failovers: u64,
    /// Moves that would even loads out, as this node found as master; they are not made (`mode = "advise"` in `[balance]`).
    #[serde(default)]
    pub advice: Vec<PlannedMove>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// `up`, `draining`, `dead` or `unknown`.
    pub state: String,
    /// 0 to 1 of capacity.
    pub load: f64,
    /// It has a vote and takes no virtual servers.
    #[serde(default)]
    pub witness: bool,
    /// Its ports, as it last told of them.
    #[serde(default)]
    pub ports: Vec<NodePortView>,
}

/// A port of any node, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePortView {
    /// Interface name.
    pub interface: String,
    /// Segment name.
    pub segment: String,
    /// Clients can be served by it, as far as its node knows.
    pub usable: bool,
}

/// State of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// Usable.
    Good,
    /// No carrier, administratively down, or no such interface.
    #[default]
    Down,
    /// Carrier, but nothing comes through.
    Silent,
    /// Loss or error rate above the limit.
    Degraded,
    /// Back, but inside its hold-down.
    Held,
}

impl PortState {
    /// All states, in the order of the metrics.
    pub const ALL: [PortState; 5] =
        [PortState::Good, PortState::Down, PortState::Silent, PortState::Degraded, PortState::Held];

    /// The word used in status, metrics and events.
    pub fn word(self) -> &'static str {
        match self {
            PortState::Good => "good",
            PortState::Down => "down",
            PortState::Silent => "silent",
            PortState::Degraded => "degraded",
            PortState::Held => "held",
        }
    }
}

/// A port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortView {
    /// Interface name.
    pub interface: String,
    /// Segment name.
    pub segment: String,
    /// Its verdict.
    pub state: PortState,
    /// Why it is down, silent or degraded; `attach_failed`: the events say why the kernel programs could not be put on it.
    pub reason: Option<Reason>,
    /// Does it have carrier?
    pub carrier: bool,
    /// Does the interface exist?
    pub present: bool,
    /// How the kernel programs sit on it; `None`: not (yet).
    pub attachment: Option<Attachment>,
    /// Milliseconds of hold-down left, for a held port.
    pub held_ms: Option<u64>,
    /// Failures that the hold-down still remembers.
    pub flaps: u32,
    /// Virtual IPs bound to it.
    pub addresses: usize,
    /// Bytes per second of the virtual IPs bound to it, both directions.
    pub rate: u64,
}

/// A segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentView {
    /// Name.
    pub name: String,
    /// What its paths say.
    pub finding: Finding,
}

/// Who does a thing that the kernel does where it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Watcher {
    /// The kernel programs, whatever the agent does.
    Kernel,
    /// The agent.
    Agent,
}

/// A path between two ports of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathView {
    /// Its segment.
    pub segment: String,
    /// The sending port.
    pub from: String,
    /// The receiving port.
    pub to: String,
    /// Is it heard? `None`: not known yet.
    pub heard: Option<bool>,
    /// Milliseconds since it was last heard, as of the last reading; `None`: never heard.
    pub heard_ms: Option<u64>,
    /// Lost share of its probes, 0 to 1, exponentially weighted; `None`: not known yet.
    pub loss: Option<f64>,
    /// The last round-trip time over it and the opposite path, in microseconds.
    pub rtt_us: Option<f64>,
    /// Who echoes its probes; `None`: nobody yet.
    pub echo: Option<Watcher>,
    /// Who watches for its silence.
    pub timer: Watcher,
}

/// A probe target as asked from one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    /// Its segment.
    pub segment: String,
    /// The asking port.
    pub port: String,
    /// The target.
    pub target: IpAddr,
    /// Does it answer? `None`: not known yet.
    pub answers: Option<bool>,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerView {
    /// Name.
    pub name: String,
    /// Node that owns it.
    pub owner: Option<String>,
    /// `serving`, `starting`, `stopping`, `stopped` or `failed`.
    pub state: String,
    /// Epoch of its owner record.
    pub epoch: u64,
    /// 0 to 1 of capacity.
    pub load: f64,
    /// Its priority.
    pub priority: u32,
    /// Bytes per second, both directions.
    pub rate: u64,
    /// Its addresses.
    pub addresses: Vec<AddressView>,
    /// Why it is not served, where that has to do with storage or with fencing, as far as this node knows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// A storage unit, as seen from this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StorageView {
    /// Name.
    pub unit: String,
    /// `good`, `missing`, `errors` or `hung`.
    pub state: String,
    /// More of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub what: Option<String>,
}

/// A virtual IP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddressView {
    /// The address.
    pub address: IpAddr,
    /// The port it is bound to.
    pub port: Option<String>,
    /// The node that answers for it in its segment and routes to the owner; `None`: the owner answers itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub via: Option<String>,
    /// Bytes per second, both directions.
    pub rate: u64,
}

/// A virtual IP that somebody else also holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConflictView {
    /// The virtual IP.
    pub address: IpAddr,
    /// Interface where it is configured too, or was claimed on.
    pub interface: String,
    /// MAC address of the foreign host; `None`: an interface of this node.
    pub mac: Option<String>,
}
