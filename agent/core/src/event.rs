//! Events: every decision and everything an administrator must know, with its cause.

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
        /// Why.
        reason: String,
    },
    /// Addresses go to other ports.
    Failover {
        /// `port`.
        kind: FailoverKind,
        /// Why.
        reason: String,
        /// Every address that moves: from which port, to which.
        moves: Vec<Rebinding>,
    },
    /// No usable port is left for an address.
    Stranded {
        /// The virtual IP.
        address: IpAddr,
        /// Its virtual server.
        server: String,
        /// Its segment.
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

/// Kind of a failover, as in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverKind {
    /// Bindings change inside a node because a port failed.
    Port,
    /// Bindings change inside a node by choice: a port is good again.
    PortFailback,
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
