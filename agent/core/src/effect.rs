//! What core asks for: one ordered list per input, carried out in order by the driver.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::StoreRequest;
use crate::plan::{Policy, Situation};
use crate::{Event, IfIndex, Time};

/// The way to a node on the same link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Out by this port,
    pub ifindex: IfIndex,
    /// which has this MAC address,
    pub from: [u8; 6],
    /// to this one.
    pub to: [u8; 6],
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Put kernel programs and settings on a port; answered by [`crate::Input::Attached`] or [`crate::Input::Failed`].
    Attach(IfIndex, String),
    /// Make the segment's routes (one table, its ports in this order of preference) and rules (one per subnet).
    Steer {
        /// Name of the segment.
        segment: String,
        /// Ports to route by, most preferred first; those without carrier are skipped by the kernel.
        ports: Vec<IfIndex>,
        /// A peer that everything goes to, instead of the ports.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        via: Option<Hop>,
    },
    /// Hand the packets to an address on to its owner, instead of taking them in, and those from it, when they come from there,
    /// to their clients; `None`: no longer.
    Route {
        /// The virtual IP; permitted and marked like one that is served.
        address: IpAddr,
        /// To the owner.
        to: Option<Hop>,
    },
    /// Record this node as the owner; answered by [`crate::Input::Owned`].
    Take(String),
    /// Set or clear the serving mark of a virtual server, under this incarnation. Clearing is answered by
    /// [`crate::Input::MarkCleared`].
    Mark {
        /// Name of the virtual server.
        server: String,
        /// The incarnation its owner record carries; `None`: clear.
        incarnation: Option<u64>,
    },
    /// Tell the kernel programs which port the address is bound to: from now on only that port answers ARP and ND
    /// for it, and its replies leave there. `None`: no port.
    Permit {
        /// The virtual IP.
        address: IpAddr,
        /// Its virtual server.
        server: String,
        /// The port.
        port: Option<IfIndex>,
    },
    /// Remove the address from the kernel programs' maps: it is no longer a virtual IP.
    Forget(IpAddr),
    /// Configure the address (/32 or /128, no prefix route, no duplicate-address detection, Baton's mark).
    AddAddress(IfIndex, IpAddr),
    /// Remove the address that Baton configured; it is no error if it is gone. Not carried out, and reported as failed,
    /// when an [`Effect::AddAddress`] of the same address failed earlier in the list: an address never leaves its last
    /// interface.
    RemoveAddress(IfIndex, IpAddr),
    /// Remove the neighbour entries of a port that have not been resolved. A question that was asked while the port was
    /// dead would keep replies waiting for its next repetition.
    ForgetUnresolved(IfIndex),
    /// Send gratuitous ARP (request and reply form) or an unsolicited neighbour advertisement (override).
    Announce(IfIndex, IpAddr),
    /// Ask the kernel programs to call a member dead up to this incarnation, unless it was heard within D; answered by
    /// [`crate::Input::Verdict`] if it is so.
    Condemn {
        /// The member's slot.
        slot: u8,
        /// See there.
        incarnation: u64,
    },
    /// This node is another incarnation from now on: the kernel programs start a lease without grants, and probes carry it.
    Incarnation(u64),
    /// Ask the store for something.
    Store(StoreRequest),
    /// Plan which virtual servers are to move for balance, which takes a while; answered by [`crate::Input::Planned`].
    Plan(Box<Situation>, Policy),
    /// Start the file systems and services of a virtual server, in order. Answered by [`crate::Input::Resources`] once: running,
    /// or the start has failed. One that is under way is given up where [`Effect::StopResources`] follows.
    StartResources(String),
    /// Stop them, in reverse order; also what a start that failed, or was never finished, has left. Nothing is done where nothing
    /// runs. Answered by [`crate::Input::Resources`], after all answers to what was asked before: stopped at last, and that
    /// stopping has failed where it takes longer.
    StopResources(String),
    /// Reset the TCP connections that the virtual server had before its services were started here, on another node or on this
    /// one: its clients then find out at once. Those that were made since stay.
    ResetConnections(String),
    /// Make sure that what this incarnation of a node may have mounted for a virtual server is written no more: that node is reset or
    /// switched off, or kept from its storage. Answered by [`crate::Input::Fenced`] once, within a time limit.
    Fence {
        /// The virtual server.
        server: String,
        /// The node.
        node: String,
        /// Its incarnation when it owned the virtual server.
        incarnation: u64,
    },
    /// This node's own record of a fenced virtual server names this incarnation: nobody else starts it before a majority has called that
    /// incarnation dead, or it is released. `None`: somebody else may from now on, after fencing this node. What resets this node
    /// by itself, a watchdog, may be kept from that while the file systems may be mounted only so: while the kernel programs have
    /// this very incarnation, and it has a lease. Not told yet is as `None`.
    Entitle {
        /// The virtual server.
        server: String,
        /// See there.
        incarnation: Option<u64>,
    },
    /// Read a storage unit as soon as can be; answered by [`crate::Input::StorageRead`] when a read that began after this has succeeded,
    /// however long that takes.
    ReadStorage {
        /// The unit.
        unit: String,
        /// When this is asked for. Only the newest question about a unit is answered.
        asked: Time,
    },
    /// Tell the administrator; also the time line of a failover.
    Event(Event),
}
