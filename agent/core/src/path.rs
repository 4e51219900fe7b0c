//! What the path table tells: who has been heard where, and who has answered. Facts only; verdicts are in
//! `machine::paths`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{Members, NodeRecord};
use crate::{IfIndex, Time};

/// A reading of the path table: all of it, each time. It is taken when it would change a verdict
/// ([`crate::Machine::is_news`]), and once a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Every path between two ports of this node in one segment, both with carrier and kernel programs; sorted by (from, to).
    pub paths: Vec<PathSample>,
    /// Every probe target, as asked from every such port of its segment; sorted by (port, target).
    pub targets: Vec<TargetSample>,
    /// When each port last received a packet to a virtual IP. Ports that never did are left out.
    pub unicast: BTreeMap<IfIndex, Time>,
}

/// A port that is probed from the others of its segment: it has carrier and kernel programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePort {
    /// Its index.
    pub ifindex: IfIndex,
    /// Its name.
    pub interface: String,
    /// Its segment.
    pub segment: String,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// One path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathSample {
    /// The sending port.
    pub from: IfIndex,
    /// The receiving port.
    pub to: IfIndex,
    /// When the last frame came over it, a probe or an echo.
    pub heard: Option<Time>,
    /// Probes sent since then in an unbroken rhythm. After a stall of the sender counting starts anew: silence counts
    /// only against probes that were really sent. The last one may still be under way.
    pub unanswered: u32,
    /// When the first of these was sent.
    pub waiting_since: Option<Time>,
    /// Probes sent since the path exists.
    pub sent: u64,
    /// Probes that came.
    pub arrived: u64,
    /// Echoes of probes of the opposite path that came over this one.
    pub echoes: u64,
    /// The last round-trip time that was measured over it and the opposite path.
    pub rtt: Option<Duration>,
    /// The kernel's own timer watches it; otherwise the agent does.
    pub timed: bool,
}

/// One probe target, as asked from one port by ARP or neighbour solicitation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetSample {
    /// The asking port.
    pub port: IfIndex,
    /// The target.
    pub target: IpAddr,
    /// When the last answer came.
    pub answered: Option<Time>,
    /// Questions asked since then, in an unbroken rhythm as in [`PathSample::unanswered`].
    pub unanswered: u32,
    /// When the first of these was asked.
    pub waiting_since: Option<Time>,
    /// Questions asked since the pair exists.
    pub asked: u64,
    /// Answers that came. A question may have several answers, from hosts that fight over the address.
    pub answers: u64,
}

/// What an interface counts (rtnetlink, `rtnl_link_stats64`), since the last sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkErrors {
    /// Good packets received.
    pub rx_packets: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent because of the link.
    pub tx_errors: u64,
}

/// A port of another member of the cluster that is probed from this node's ports in the same segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPort {
    /// Its node.
    pub node: String,
    /// That member's slot,
    pub slot: u8,
    /// and incarnation, as far as the store tells.
    pub incarnation: u64,
    /// Its number in probe frames.
    pub number: u32,
    /// Its interface there.
    pub interface: String,
    /// Its segment.
    pub segment: String,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// Ports of the members other than `own` that are to be probed.
pub fn peer_ports(members: &Members, own: &str, nodes: &BTreeMap<String, NodeRecord>) -> Vec<PeerPort> {
    let others = members.nodes.iter().filter(|m| m.name != own);
    let ports = others.filter_map(|m| Some((m, nodes.get(&m.name)?))).flat_map(|(m, node)| {
        node.ports.iter().map(|p| PeerPort {
            node: m.name.clone(),
            slot: m.slot,
            incarnation: node.incarnation,
            number: p.number,
            interface: p.interface.clone(),
            segment: p.segment.clone(),
            mac: p.mac,
        })
    });
    ports.collect()
}

/// What is heard of the other members, all of them each time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerReading {
    /// One for each other member, and for one that the version before had and this one has not.
    pub peers: Vec<PeerSample>,
    /// Since when this node has probed without a break.
    pub steady_since: Time,
    /// When this node's lease ends, or ended; `None`: it has none yet.
    pub lease: Option<Time>,
    /// When each own port that is probed by other members last heard one of them; sorted by port.
    pub ports: Vec<(IfIndex, Option<Time>)>,
}

/// One other member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSample {
    /// Its slot.
    pub slot: u8,
    /// The highest incarnation that was heard; 0: none.
    pub incarnation: u64,
    /// When it was last heard, both ways, and granted a lease; any incarnation.
    pub heard: Option<Time>,
    /// When it was last heard, both ways.
    pub answered: Option<Time>,
    /// It will never grant this node's incarnation anything.
    pub refuses: bool,
}
