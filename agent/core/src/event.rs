//! Events: every decision and everything an administrator must know, with its cause.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{PortState, Time};

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Boot-time clock.
    pub at: Time,
    /// Number of the failover or move it belongs to; counts up from 1 in an agent's life.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failover: Option<u64>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The agent has started.
    Started {
        /// Its incarnation.
        incarnation: u64,
        /// Addresses found where an earlier agent bound them.
        adopted: usize,
        /// Addresses of ours found that the configuration does not know; removed.
        removed: usize,
    },
    /// Another configuration is in force, without a restart.
    Reloaded {
        /// What is different, a line each.
        changes: Vec<String>,
    },
    /// The configuration was to be read anew and was refused: everything is as it was.
    ReloadRefused {
        /// Why, with line, column and what to do.
        error: String,
    },
    /// A configured interface does not exist; Baton waits for it.
    InterfaceAbsent {
        /// Its name.
        interface: String,
    },
    /// A port's state has changed.
    Port {
        /// Its interface.
        interface: String,
        /// Its segment.
        segment: String,
        /// State before.
        from: PortState,
        /// State now.
        to: PortState,
        /// Why, if it is worse.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        reason: Option<Reason>,
        /// What the verdict was drawn from, where it was drawn from probes or counters.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        evidence: Option<Box<Evidence>>,
    },
    /// What the paths of a segment say has changed.
    Segment {
        /// Its name.
        segment: String,
        /// What they said before.
        from: Finding,
        /// What they say now.
        to: Finding,
        /// From what.
        evidence: Box<Evidence>,
    },
    /// A probe target no longer answers at any port of its segment, while the ports hear one another.
    TargetSilent {
        /// The segment.
        segment: String,
        /// The target.
        target: IpAddr,
    },
    /// It answers again.
    TargetAnswers {
        /// The segment.
        segment: String,
        /// The target.
        target: IpAddr,
    },
    /// Addresses go to other ports.
    Failover {
        /// Of what kind.
        kind: FailoverKind,
        /// Why.
        reason: Reason,
        /// Every address that moves: from which port, to which.
        moves: Vec<Rebinding>,
    },
    /// The moves of a failover are done. Added by the driver: the times are measured, not decided.
    FailoverDone {
        /// Of what kind.
        kind: FailoverKind,
        /// Why.
        reason: Reason,
        /// How many addresses moved.
        addresses: usize,
        /// Seconds since the cause, by stage, each when its last address had passed it.
        stages: BTreeMap<Stage, f64>,
    },
    /// A segment has no usable port left: its addresses stay where they are until one returns, or go to a silent port from
    /// one that is down.
    Stranded {
        /// The segment.
        segment: String,
    },
    /// Somebody removed an address that Baton serves; it has been put back.
    AddressDeleted {
        /// The virtual IP.
        address: IpAddr,
        /// From which port.
        interface: String,
    },
    /// Somebody removed a rule or a route that Baton needs; it has been put back.
    SteeringDeleted {
        /// Its segment.
        segment: String,
    },
    /// A virtual IP is configured on another interface of this node as well, not by Baton.
    AddressConflict {
        /// The virtual IP.
        address: IpAddr,
        /// That interface (its index where the name isn't known).
        interface: String,
    },
    /// The conflicting configuration is gone.
    AddressConflictOver {
        /// The virtual IP.
        address: IpAddr,
        /// That interface.
        interface: String,
    },
    /// A foreign host claims a virtual IP that this node serves; it has been announced again.
    ForeignClaim {
        /// The virtual IP.
        address: IpAddr,
        /// Where it was heard.
        interface: String,
        /// Who claims it, as aa:bb:cc:dd:ee:ff.
        mac: String,
    },
    /// Kernel programs sit on a port.
    Attached {
        /// Its interface.
        interface: String,
        /// How.
        mode: crate::Attachment,
    },
    /// This node serves a virtual server.
    Serving {
        /// Its name.
        server: String,
        /// Epoch of its owner record.
        epoch: u64,
    },
    /// A member calls another one dead.
    Verdict {
        /// Whom.
        node: String,
        /// Up to this incarnation.
        incarnation: u64,
        /// Who.
        by: String,
    },
    /// A majority calls a node dead: what it owned may be taken.
    NodeDead {
        /// Which.
        node: String,
        /// Up to this incarnation.
        incarnation: u64,
    },
    /// This node has taken a virtual server.
    Taken {
        /// Its name.
        server: String,
        /// Takeover or move.
        kind: FailoverKind,
        /// Why.
        reason: Reason,
        /// Who had it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        from: Option<String>,
        /// Epoch of its owner record.
        epoch: u64,
        /// When what began.
        times: TakeTimes,
    },
    /// This node gives a virtual server up.
    Leaving {
        /// Its name.
        server: String,
        /// For whom.
        to: String,
        /// Why.
        reason: Reason,
    },
    /// The master has found that moving a virtual server would even loads out.
    Balance {
        /// Which.
        server: String,
        /// Its owner.
        from: String,
        /// The node that has more to give.
        to: String,
        /// Why, in words.
        why: String,
        /// The highest load of any node now, as a share of its capacity.
        highest: f64,
        /// And after the move.
        highest_after: f64,
        /// It is being moved; otherwise this is advice.
        moves: bool,
    },
    /// A virtual server that this node served was taken by another one.
    Deposed {
        /// Its name.
        server: String,
    },
    /// The file systems and services of a virtual server run.
    ResourcesStarted {
        /// Its name.
        server: String,
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// They are stopped.
    ResourcesStopped {
        /// Its name.
        server: String,
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// They can't be started or stopped, or are broken.
    ResourcesFailed {
        /// Its name.
        server: String,
        /// What, and why.
        what: String,
    },
    /// The clients of a virtual server that was started here have been told that their connections are gone. Added by the agent,
    /// after the first round.
    ConnectionsReset {
        /// Its name.
        server: String,
        /// How many connections.
        connections: usize,
        /// What brought it here; `None`: it was here before.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        kind: Option<FailoverKind>,
        /// Seconds since the cause of that.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        after: Option<f64>,
    },
    /// A node that may have had the file systems of a virtual server mounted has been fenced.
    Fenced {
        /// The virtual server.
        server: String,
        /// The node.
        node: String,
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// It could not be fenced: nothing is started. That is tried again.
    FenceFailed {
        /// The virtual server.
        server: String,
        /// The node.
        node: String,
        /// What went wrong.
        what: String,
    },
    /// A storage unit is reached no more from this node, or again.
    Storage {
        /// Its name.
        unit: String,
        /// `good`, `missing`, `errors` or `hung`.
        state: String,
        /// More of it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        what: Option<String>,
    },
    /// No node that may have this virtual server reaches a storage unit that it needs: it stays where it is, or with nobody.
    StorageLostEverywhere {
        /// The virtual server.
        server: String,
        /// The unit.
        unit: String,
    },
    /// This node has no usable port left in a segment of a virtual server that may not move, and asks a peer to answer there
    /// and to route to it.
    Rerouting {
        /// The virtual server.
        server: String,
        /// The segment.
        segment: String,
        /// The peer.
        via: String,
        /// The segment between the two.
        over: String,
    },
    /// This node answers in a segment for a virtual server of another node, and routes to it.
    Routing {
        /// The virtual server.
        server: String,
        /// The segment.
        segment: String,
        /// Its owner.
        owner: String,
    },
    /// This node no longer does.
    RoutingOver {
        /// The virtual server.
        server: String,
        /// The segment.
        segment: String,
    },
    /// This node answers in the segment again itself.
    RerouteOver {
        /// The virtual server.
        server: String,
        /// The segment.
        segment: String,
    },
    /// This node has a lease: it may serve what it owns.
    LeaseBegins,
    /// This node's lease has run out: no majority grants it one, and the kernel programs serve nothing.
    LeaseOver,
    /// This node is the master: it plans for all.
    Master {
        /// Epoch of the master's record.
        epoch: u64,
    },
    /// This node goes on as another incarnation.
    Incarnation {
        /// The old one.
        from: u64,
        /// The new one.
        to: u64,
    },
    /// The store does not answer: what is served stays served, and nothing new is taken.
    StoreLost,
    /// The store answers again.
    StoreBack,
    /// A node is to be empty.
    Draining {
        /// Which.
        node: String,
    },
    /// A node may be used again.
    Resumed {
        /// Which.
        node: String,
    },
    /// Notifications were lost; links and addresses have been read again.
    Resynced,
    /// An effect failed.
    EffectFailed {
        /// Which.
        effect: String,
        /// Why.
        error: String,
    },
}

/// What the paths of a segment, all together, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Nothing yet, or there is nothing to watch: fewer than two usable ports.
    #[default]
    Unknown,
    /// Every path is heard.
    Whole,
    /// The silent paths are those of the ports that are silent.
    PortsSilent,
    /// Some paths are silent, but every port has been shown to send and to receive: nobody is to blame.
    PathsSilent,
    /// Some paths are silent, and it can't be told which port is to blame. Nothing moves.
    Undecided,
    /// Every path is silent and nothing shows that any port works: the segment itself is gone. Nothing moves.
    Gone,
}

impl Finding {
    /// All findings, in the order of the metrics.
    pub const ALL: [Finding; 6] = [
        Finding::Unknown,
        Finding::Whole,
        Finding::PortsSilent,
        Finding::PathsSilent,
        Finding::Undecided,
        Finding::Gone,
    ];

    /// The word used in status and events.
    pub fn word(self) -> &'static str {
        match self {
            Finding::Unknown => "unknown",
            Finding::Whole => "whole",
            Finding::PortsSilent => "ports_silent",
            Finding::PathsSilent => "paths_silent",
            Finding::Undecided => "undecided",
            Finding::Gone => "gone",
        }
    }
}

/// What a verdict was drawn from, for people. Ports by name; times in milliseconds before the verdict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Silent paths, as `eth0>eth1 33 ms`: last heard so long ago (`never` where it never was).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub silent: Vec<String>,
    /// Paths that are heard, as `eth1>eth2`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub heard: Vec<String>,
    /// Targets that answer, as `eth1 10.0.0.1`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub answered: Vec<String>,
    /// Targets that don't.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unanswered: Vec<String>,
    /// Ports that received clients' packets since the silence began.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unicast: Vec<String>,
    /// Lost shares, as `eth0>eth1 5.1 %` or `eth0 receive errors 3.0 %`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub loss: Vec<String>,
}

/// Kind of a failover, as in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverKind {
    /// Bindings change inside a node.
    Port,
    /// A virtual server starts on another node because its owner is dead, or because nobody had it.
    Takeover,
    /// A virtual server was released by its owner, then started on another node.
    Move,
}

/// Why addresses move, as in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The port lost carrier.
    CarrierLost,
    /// The port was set down by an administrator.
    AdminDown,
    /// The interface is gone.
    InterfaceGone,
    /// The kernel programs could not be put on the port.
    AttachFailed,
    /// The port, with carrier, neither sends nor receives.
    Silent,
    /// The port, with carrier, receives nothing.
    ReceiveSilent,
    /// The port, with carrier, sends nothing.
    TransmitSilent,
    /// The port loses frames.
    Loss,
    /// The port counts errors.
    Errors,
    /// Addresses without a usable port, or on a held one, find a better port.
    PortReturned,
    /// A port is good again and takes its share (`port_failback = "spread"`).
    PortFailback,
    /// A majority calls the owner dead.
    NodeDead,
    /// The owner has no usable port left in a segment of the virtual server.
    NoGoodPort,
    /// The owner is to be empty.
    Drain,
    /// An administrator wants it there.
    Administrator,
    /// A preferred node is back.
    Failback,
    /// It evens loads out.
    Balance,
    /// The definitions don't permit it on its node (`only_on`, `never_with`).
    Constraint,
    /// Its file systems or services can't be started on its node, or are broken there.
    ServiceFailed,
    /// Its node does not reach a storage unit that it needs.
    StorageLost,
    /// Nobody ever owned it.
    First,
}

impl Reason {
    /// The word used in metrics and events.
    pub fn word(self) -> &'static str {
        match self {
            Reason::CarrierLost => "carrier_lost",
            Reason::AdminDown => "admin_down",
            Reason::InterfaceGone => "interface_gone",
            Reason::AttachFailed => "attach_failed",
            Reason::Silent => "silent",
            Reason::ReceiveSilent => "receive_silent",
            Reason::TransmitSilent => "transmit_silent",
            Reason::Loss => "loss",
            Reason::Errors => "errors",
            Reason::PortReturned => "port_returned",
            Reason::PortFailback => "port_failback",
            Reason::NodeDead => "node_dead",
            Reason::NoGoodPort => "no_good_port",
            Reason::Drain => "drain",
            Reason::Administrator => "administrator",
            Reason::Failback => "failback",
            Reason::Balance => "balance",
            Reason::Constraint => "constraint",
            Reason::ServiceFailed => "service_failed",
            Reason::StorageLost => "storage_lost",
            Reason::First => "first",
        }
    }
}

/// Stage of a failover, as in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The cause has been read and understood.
    Detected,
    /// Core has decided.
    Decided,
    /// Its owner has stopped its file systems and services.
    Stopped,
    /// The owner record is this node's.
    Taken,
    /// Every node that may have had its file systems mounted is fenced.
    Fenced,
    /// Its file systems and services run here.
    Started,
    /// Every address is on its new port.
    Bound,
    /// Every address has been announced there once.
    Announced,
    /// Clients have been told that their connections are gone.
    Reset,
}

impl Stage {
    /// The word used in metrics and events.
    pub fn word(self) -> &'static str {
        match self {
            Stage::Detected => "detected",
            Stage::Decided => "decided",
            Stage::Stopped => "stopped",
            Stage::Taken => "taken",
            Stage::Fenced => "fenced",
            Stage::Started => "started",
            Stage::Bound => "bound",
            Stage::Announced => "announced",
            Stage::Reset => "reset",
        }
    }
}

/// The first stages of taking a virtual server, on this node's boot-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeTimes {
    /// When its dead owner was last heard; or its release was seen, and as much earlier as it took the owner to stop it.
    pub cause: Time,
    /// When it could be taken: a majority called the owner dead, or the release was seen.
    pub detected: Time,
    /// When this node asked for it.
    pub decided: Time,
    /// When its owner had stopped its file systems and services, where there was something to stop.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stopped: Option<Time>,
}

/// One address goes from a port to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebinding {
    /// The virtual IP.
    pub address: IpAddr,
    /// The port it was bound to.
    pub from: Option<String>,
    /// The port it is bound to now.
    pub to: String,
}
