//! After a partition: whoever serves an address announces it again, so that stale neighbours and switch tables heal.
//!
//! | what is seen | what is announced again |
//! |---|---|
//! | this node's lease begins | all that it serves |
//! | a member is heard that was not heard before | all that it serves |
//! | an own port hears a member's port, and heard none before | what it serves in that port's segment |
//! | a port of another node hears others, and heard none before | what it serves in that port's segment |
//!
//! Only the owner has anything to announce, and the kernel programs let it out only while its lease lasts.

use std::net::IpAddr;

use super::super::Machine;
use super::Cluster;
use crate::cluster::NodeRecord;
use crate::{PeerReading, Time};

impl Cluster {
    /// Was one of these members, heard by the last reading, not heard by this one before it?
    fn is_peer_back(&self, before: &PeerReading, read: Time) -> bool {
        self.reading.peers.iter().any(|p| {
            let known = before.peers.iter().find(|k| k.slot == p.slot);
            self.is_heard(p, self.read) && !known.is_some_and(|k| self.is_heard(k, read))
        })
    }
}

impl Machine {
    /// Announces what those should know again who hear this node, or one another, again since the reading before.
    pub(super) fn announce_to_returned(&mut self, before: &PeerReading, read: Time, lease_begins: bool) {
        let Some(cluster) = &self.cluster else { return };
        if lease_begins || cluster.is_peer_back(before, read) {
            return self.announce_again(|_| true);
        }
        let silence = cluster.members.silence();
        let heard = |ports: &[(crate::IfIndex, Option<Time>)], port, at: Time| {
            let last = ports.iter().find(|(p, _)| *p == port).and_then(|(_, last)| *last);
            last.is_some_and(|t| at.since(t) < silence)
        };
        let back =
            |port| heard(&cluster.reading.ports, port, cluster.read) && !heard(&before.ports, port, read);
        let ports = self.ports.iter().filter(|p| p.ifindex().is_some_and(back));
        let segments: Vec<String> = ports.map(|p| p.segment.clone()).collect();
        self.announce_again(|segment| segments.iter().any(|s| s == segment));
    }

    /// The same, where another node tells that it hears others in a segment again.
    pub(super) fn announce_to_node(&mut self, before: Option<&NodeRecord>, node: &NodeRecord) {
        let heard = |interface: &str| {
            before.is_some_and(|b| b.ports.iter().any(|p| p.interface == interface && p.hears))
        };
        let back = node.ports.iter().filter(|p| p.hears && !heard(&p.interface));
        let segments: Vec<&str> = back.map(|p| p.segment.as_str()).collect();
        self.announce_again(|segment| segments.contains(&segment));
    }

    /// Announces what is served in such segments soon, and on the schedule.
    fn announce_again(&mut self, wanted: impl Fn(&str) -> bool) {
        let served = self.vips.iter().filter(|(_, v)| self.is_served(v) && wanted(&v.segment));
        let addresses: Vec<IpAddr> = served.map(|(a, _)| *a).collect();
        let now = self.now;
        addresses.into_iter().for_each(|a| self.repeats.soon(now, a));
    }
}
