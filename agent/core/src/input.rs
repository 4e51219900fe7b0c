//! What core is told. Every value is a validated fact that an I/O task took from the kernel, the store or a user;
//! the driver stamps it with the time and records it, so that a log of inputs replays bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{Members, NodeRecord, StoreInput};
use crate::{Config, Effect, LinkErrors, PeerReading, Reading, Time};

/// Kernel index of a network interface; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IfIndex(pub u32);

/// One fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The first input of an agent's life: configuration, and all that the kernel and the store hold now.
    Start(Box<Start>),
    /// The configuration file was changed and is to be in force from now on, while everything goes on.
    Reload(Box<Reload>),
    /// An interface is new or has changed (RTM_NEWLINK).
    Link(Link),
    /// An interface is gone (RTM_DELLINK).
    LinkGone(IfIndex),
    /// Carrier as read from the attribute of the interface. The event may come a second later.
    Carrier(IfIndex, bool),
    /// An address was configured on an interface (RTM_NEWADDR).
    AddressAdded(Assigned),
    /// An address was removed from an interface (RTM_DELADDR).
    AddressRemoved(Assigned),
    /// A routing rule (no port) or a route (its port) of ours was removed by somebody else.
    SteeringLost {
        /// The segment whose table it was.
        segment: String,
        /// The port of the route; `None`: a rule.
        port: Option<IfIndex>,
    },
    /// The kernel dropped notifications: this is a complete new reading of links and addresses.
    Resync(Found),
    /// A foreign host claims an address that we serve.
    Claim(Claim),
    /// Kernel programs and settings of a port are in place ([`Effect::Attach`] done).
    Attached(IfIndex, Attachment),
    /// What the path table holds.
    Paths(Reading),
    /// Traffic since the last sample.
    Sample(Sample),
    /// The store holds our own write: this node owns the virtual server (lease.md, rule R6).
    Owned(String, Owner),
    /// What is heard of the other members of the cluster.
    Peers(PeerReading),
    /// A member, by slot, calls another one dead; or this node does, and the kernel programs have confirmed it.
    Verdict {
        /// Who.
        voter: u8,
        /// Whom.
        about: u8,
        /// Up to this incarnation.
        incarnation: u64,
    },
    /// The store tells something.
    Store(StoreInput),
    /// The plan that [`Effect::Plan`] asked for.
    Planned(Vec<PlannedMove>),
    /// The minute of the day, 0 to 1439, local time: told at the start, and whenever it is another one.
    Minute(u16),
    /// The kernel programs don't serve this virtual server any more ([`Effect::Mark`] without an incarnation done).
    MarkCleared(String),
    /// How the file systems and services of a virtual server are here: the answer to [`Effect::StartResources`] or
    /// [`Effect::StopResources`], or that they have broken since.
    Resources {
        /// Its name.
        server: String,
        /// How they are.
        state: ResourceState,
    },
    /// The answer to [`Effect::Fence`].
    Fenced {
        /// The virtual server.
        server: String,
        /// The node.
        node: String,
        /// Its incarnation.
        incarnation: u64,
        /// What went wrong; `None`: it is fenced.
        failed: Option<String>,
    },
    /// How a storage unit is, as seen from this node: told at the start, and whenever that has changed. One of which nothing has been
    /// told counts as reached.
    Storage {
        /// Its name.
        unit: String,
        /// How it is.
        state: StorageState,
    },
    /// The answer to [`Effect::ReadStorage`].
    StorageRead {
        /// The unit.
        unit: String,
        /// As in the question.
        asked: Time,
    },
    /// An effect could not be carried out; the rest of its list was.
    Failed(Box<Effect>, String),
    /// The deadline that core asked for has come.
    Wake,
}

/// Content of [`Input::Start`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The validated configuration.
    pub config: Config,
    /// This node's incarnation.
    pub incarnation: u64,
    /// What the kernel holds.
    pub found: Found,
    /// Where an earlier agent of this boot left each virtual IP: the pinned map's view. Adopted where it is still right.
    pub bound: BTreeMap<IpAddr, IfIndex>,
    /// Virtual servers whose serving mark is on, under this incarnation: they may be adopted (lease.md, rule R6).
    pub marked: BTreeSet<String>,
    /// Virtual IPs whose packets go on to their owner: marked as by a router (rule R12).
    #[serde(default)]
    pub routed: BTreeSet<IpAddr>,
    /// Virtual servers whose file systems and services were all found running: an earlier agent started them.
    #[serde(default)]
    pub running: BTreeSet<String>,
    /// The cluster that this node is a member of.
    pub cluster: Option<ClusterStart>,
}

/// Content of [`Input::Reload`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// The validated configuration. It names the same node, and each virtual server that stays has the same file systems and
    /// services as before.
    pub config: Config,
    /// What the kernel holds now.
    pub found: Found,
    /// What is different, a line each; for the event.
    pub changes: Vec<String>,
}

/// What a member of a cluster starts with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStart {
    /// The member list.
    pub members: Members,
    /// What the nodes last told of themselves: whom to probe until the store has been read.
    pub nodes: BTreeMap<String, NodeRecord>,
    /// This node takes no virtual servers.
    pub witness: bool,
    /// The kernel held nothing of an earlier agent of this version: verdicts and receipts are forgotten (lease.md, R4).
    pub lost_memory: bool,
    /// The kernel was left with another version of the member list: so were the others, and they start anew as this node does.
    #[serde(default)]
    pub new_list: bool,
    /// Verdicts that the kernel holds: (voter, about), by slots.
    #[serde(with = "pairs")]
    pub verdicts: BTreeMap<(u8, u8), u64>,
}

/// How the file systems and services of a virtual server are on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceState {
    /// All have been started, and are well.
    Running,
    /// Nothing of them runs or is mounted here.
    Stopped,
    /// They could not be started, and why; nothing of them runs any more, as far as that could be undone.
    StartFailed(String),
    /// Something still runs or is mounted here, and why. Stopping it is tried again, and answered when it has succeeded.
    StopFailed(String),
    /// What ran is dead or hangs, as often as it was restarted in place: what, and why.
    Broken(String),
}

/// How a storage unit is, as seen from a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageState {
    /// It is read in time.
    Good,
    /// There is no such device.
    Missing,
    /// Reads fail, and how.
    Errors(String),
    /// A read is not answered in time.
    Hung,
}

impl StorageState {
    /// The word used in status and events.
    pub fn word(&self) -> &'static str {
        match self {
            StorageState::Good => "good",
            StorageState::Missing => "missing",
            StorageState::Errors(_) => "errors",
            StorageState::Hung => "hung",
        }
    }

    /// More of it, where there is more to say.
    pub fn what(&self) -> Option<&str> {
        match self {
            StorageState::Errors(what) => Some(what),
            StorageState::Good | StorageState::Missing | StorageState::Hung => None,
        }
    }

    /// Does this node reach it?
    pub fn is_good(&self) -> bool {
        *self == StorageState::Good
    }
}

/// What the sampler measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Length of the sample.
    pub over: Duration,
    /// What each virtual IP carried in that time. One that isn't here carried nothing.
    pub traffic: BTreeMap<IpAddr, Traffic>,
    /// The node's processors and memory, where they can be read.
    pub host: Option<HostSample>,
    /// What the block devices of file systems did, by their names in the configuration, where it is known.
    pub devices: BTreeMap<String, DeviceSample>,
    /// Speed of each port in bytes per second, where it is known.
    pub speed: BTreeMap<IfIndex, u64>,
    /// What each port counted in that time, where it is known.
    pub errors: BTreeMap<IfIndex, LinkErrors>,
}

/// Packets and bytes as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received and sent.
    pub packets: u64,
}

/// How a node's processors and memory were used in a sample, in thousandths of its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSample {
    /// Time that the processors worked, on the average of them (proc_stat(5), all but idle and iowait).
    pub cpu: u32,
    /// Time in which some work waited for a processor (Documentation/accounting/psi.rst).
    pub cpu_pressure: u32,
    /// Time in which some work waited for memory.
    pub memory_pressure: u32,
}

/// What a block device did in a sample (Documentation/block/stat.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSample {
    /// Bytes read and written.
    pub bytes: u64,
    /// Requests that were done.
    pub requests: u64,
    /// Time in which it had something to do.
    pub busy: Duration,
    /// Times of all requests together, from when they were queued.
    pub waited: Duration,
}

/// A move that a plan asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedMove {
    /// The virtual server.
    pub server: String,
    /// Its owner.
    pub from: String,
    /// Who is to have it.
    pub to: String,
    /// Why, in words.
    pub why: String,
    /// The highest load of any node before and after it, as shares of capacity.
    pub highest: (f64, f64),
}

/// A complete reading of the kernel's links and of the addresses that matter: those of ours and those equal to a virtual IP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All addresses that carry Baton's mark, and all that equal a configured virtual IP.
    pub addresses: Vec<Assigned>,
}

/// State of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its index.
    pub ifindex: IfIndex,
    /// Its name.
    pub name: String,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// Its MAC address; all zero where it has none of six bytes.
    pub mac: [u8; 6],
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// On which interface.
    pub ifindex: IfIndex,
    /// Which address.
    pub address: IpAddr,
    /// It carries Baton's mark (IFA_PROTO): an agent of this node made it.
    pub ours: bool,
}

/// A foreign host's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The virtual IP.
    pub address: IpAddr,
    /// Where it was heard.
    pub ifindex: IfIndex,
    /// Who claims it.
    pub mac: [u8; 6],
}

/// How the kernel programs sit on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachment {
    /// XDP in the driver, TC for what is sent.
    Native,
    /// XDP in the generic path: the driver refused it. Received packets are counted by TC.
    Generic,
    /// No XDP at all: received packets are counted and judged by TC ingress only.
    TcOnly,
}

/// An owner record, as written by this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Incarnation in the record.
    pub incarnation: u64,
    /// How often ownership has changed hands, this take included.
    pub epoch: u64,
}

/// Maps whose keys are no text, for JSON.
pub(crate) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(map: &BTreeMap<(u8, u8), u64>, s: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<(u8, u8), u64>, D::Error> {
        Ok(Vec::<((u8, u8), u64)>::deserialize(d)?.into_iter().collect())
    }
}
