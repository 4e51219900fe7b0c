//! This node's own incarnation, and when it takes a new one.
//!
//! A node that a peer refuses for ever, because that peer has called it dead or has lost its memory, takes a new
//! incarnation; so does one that finds a higher one in a record of its own. The records are written first, while the old
//! incarnation still serves; then the kernel programs are switched, and the marks set.

use serde::{Deserialize, Serialize};

use super::super::Machine;
use crate::cluster::{Record, StoreRequest};
use crate::{Effect, EventKind};

/// Where the change of an incarnation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    /// None is wanted.
    None,
    /// The store has been asked for a new one.
    Asked,
    /// This one was allotted and is being written into the records.
    To(u64),
}

impl Machine {
    /// Takes a new incarnation where one is needed.
    pub(super) fn change_incarnation(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        match cluster.incarnation {
            Change::None => {
                let named = cluster
                    .records
                    .values()
                    .filter(|(r, _)| r.node == cluster.me)
                    .map(|(r, _)| r.incarnation);
                let above = named.max().unwrap_or(0).max(self.incarnation);
                // Only once the accuser is heard again: a lasting cut must not make endless writes.
                let refused = cluster.reading.peers.iter().any(|p| {
                    p.refuses && cluster.is_heard(p, cluster.read) && p.answered > Some(cluster.switched)
                });
                if refused || above > self.incarnation {
                    cluster.incarnation = Change::Asked;
                    self.out.push(Effect::Store(StoreRequest::NewIncarnation { above }));
                }
            }
            Change::Asked => {}
            Change::To(incarnation) => self.write_incarnation(incarnation),
        }
    }

    pub(super) fn allotted(&mut self, incarnation: u64) {
        let current = self.incarnation;
        let Some(cluster) = &mut self.cluster else { return };
        cluster.incarnation = if incarnation > current { Change::To(incarnation) } else { Change::None };
    }

    /// Writes it into the records of what is served; when all name it, switches.
    fn write_incarnation(&mut self, incarnation: u64) {
        let Some(cluster) = &mut self.cluster else { return };
        let marked = self.servers.iter().filter(|s| s.marked).map(|s| s.name.clone());
        let mut waits = false;
        let mut writes = Vec::new();
        for server in marked {
            let Some((record, revision)) = cluster.records.get(&server) else { continue };
            if cluster.writing.contains_key(&server) {
                waits = true;
            } else if cluster.is_own(record) && record.incarnation < incarnation {
                waits = true;
                writes.push((server, *revision, Record { incarnation, ..record.clone() }));
            }
        }
        for (server, expected, record) in writes {
            self.write(server, expected, record);
        }
        if !waits {
            self.switch(incarnation);
        }
    }

    /// The kernel programs serve as this incarnation from now on; what was written with it is served on.
    fn switch(&mut self, incarnation: u64) {
        let from = std::mem::replace(&mut self.incarnation, incarnation);
        self.out.push(Effect::Incarnation(incarnation));
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return };
        cluster.incarnation = Change::None;
        cluster.switched = now;
        let (mut lost, mut kept) = (Vec::new(), Vec::new());
        for (index, server) in self.servers.iter().enumerate().filter(|(_, s)| s.marked) {
            if cluster.may_mark(&server.name, incarnation) {
                self.out.push(Effect::Mark { server: server.name.clone(), incarnation: Some(incarnation) });
                kept.push(index);
            } else {
                lost.push(index);
            }
        }
        kept.into_iter().for_each(|index| self.entitle(index, Some(incarnation)));
        lost.into_iter().for_each(|index| self.stop_serving(index));
        // As a router it writes itself into the record anew, and the mark goes on after that.
        let routing = (0..self.servers.len()).filter(|&i| !self.servers[i].routing.is_empty());
        routing.collect::<Vec<_>>().into_iter().for_each(|index| self.stop_routing(index));
        self.event(EventKind::Incarnation { from, to: incarnation });
    }
}
