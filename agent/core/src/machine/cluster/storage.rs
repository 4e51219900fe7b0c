//! Storage units in a cluster: a virtual server is on a node that reaches all that it needs.
//!
//! | the unit is lost | then |
//! |---|---|
//! | here, and the best node that may have the virtual server has read it since | where it is fenced: given up for that one, by priority |
//! | here, for less than [`LOST_AFTER`], and that one has not | nothing yet: it may be about to say that it doesn't reach it either |
//! | here, for longer, and another node that may have it has not lost it, as far as told | given up for the best of these |
//! | on every node that may have it | it stays where it is, runs on if it runs, and is started nowhere: said once |
//! | here, and the virtual server may not migrate | it stays, and is not started before the unit is back |
//! | where its owner is dead, on all others | nobody takes it: said once, by the master |
//!
//! The others read a unit at once when one says that it has lost it, and say when that has succeeded
//! ([`crate::cluster::NodeRecord::read_since`]): a read that began after the loss was told, so what has gone for all is not taken for
//! what has gone for one. An answer counts for one loss, which its time tells from any other. Where nobody is fenced a loss has to last:
//! a node that was only slow for a moment, and gives its file systems up while it can't unmount them, would write to them beside its successor.
//!
//! A node tells what it has lost in its record ([`crate::cluster::NodeRecord::lost_units`]); what is not there it reaches. Where it has
//! lost a unit it is in no succession, and nothing is moved there.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::Machine;
use super::super::resources::Phase;
use super::Cluster;
use crate::cluster::UnitRead;
use crate::config::VirtualServer;
use crate::{Effect, EventKind, Time};

/// A node that has lost a storage unit waits so long for the others to say that they have, too, or that they have not. They look at it
/// at other times than this one, and one may see errors where the other sees nothing for a while.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(1);

/// A unit that another node says it has lost, which this one is asked to read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Read {
    of: UnitRead,
    asked: Time,
    done: bool,
}

impl Cluster {
    /// What this node has read since others said that they had lost it.
    pub(super) fn has_read(&self) -> Vec<UnitRead> {
        self.reads.iter().filter(|read| read.done).map(|read| read.of.clone()).collect()
    }

    /// Has this node read it since this one lost it?
    fn is_read_by(&self, node: &str, unit: &str, lost_at: Time) -> bool {
        let is_it = |read: &UnitRead| read.unit == unit && read.node == self.me && read.lost_at == lost_at;
        self.nodes.get(node).is_some_and(|n| n.read_since.iter().any(is_it))
    }

    /// Does this node reach all these units, as far as it has told?
    pub(super) fn reaches_units(&self, node: &str, units: &[String]) -> bool {
        units.iter().all(|unit| self.reaches_unit(node, unit))
    }

    pub(super) fn reaches_unit(&self, node: &str, unit: &str) -> bool {
        self.nodes.get(node).is_none_or(|n| !n.lost_units.iter().any(|lost| lost == unit))
    }

    /// Is it to be taken?
    fn is_free(&self, server: &str) -> bool {
        self.records.get(server).is_none_or(|(r, _)| r.released.is_some() || self.is_dead(r))
    }
}

impl Machine {
    /// Every unit that some virtual server needs.
    pub(super) fn all_units(&self) -> BTreeSet<String> {
        let servers = self.config.iter().flat_map(|c| &c.servers);
        servers.flat_map(|s| &s.storage_units).cloned().collect()
    }

    /// Since when a unit has been lost here that this virtual server needs; that of the first one.
    fn storage_lost(&self, definition: &VirtualServer) -> Option<Time> {
        definition.storage_units.iter().filter_map(|unit| self.lost_since(unit)).min()
    }

    /// Has this node lost a unit that the virtual server needs?
    pub(super) fn has_lost_storage(&self, definition: &VirtualServer) -> bool {
        self.storage_lost(definition).is_some()
    }

    /// Has this node lost a unit that the virtual server needs, for so long that the others would have said so of themselves?
    pub(super) fn is_storage_lost(&self, definition: &VirtualServer) -> bool {
        self.storage_lost(definition).is_some_and(|t| t + LOST_AFTER <= self.now)
    }

    /// Has this other node read whatever is lost here of what the virtual server needs, since it was lost? Counts only where this node is
    /// fenced before the other one starts it.
    pub(super) fn is_storage_good_on(&self, definition: &VirtualServer, node: &str) -> bool {
        let Some(cluster) = self.cluster.as_ref().filter(|_| definition.fenced) else { return false };
        let lost = definition.storage_units.iter().filter_map(|unit| Some((unit, self.lost_since(unit)?)));
        let mut lost = lost.peekable();
        lost.peek().is_some() && lost.all(|(unit, at)| cluster.is_read_by(node, unit, at))
    }

    /// Asks for a read of what others say that they have lost, once for each loss. What is lost here, too, is not asked for.
    pub(super) fn read_for_others(&mut self) {
        let now = self.now;
        let units = self.all_units();
        let Some(cluster) = &self.cluster else { return };
        if cluster.reads.is_empty() && cluster.nodes.values().all(|n| n.lost_at.is_empty()) {
            return;
        }
        let others = cluster.nodes.iter().filter(|(name, _)| **name != cluster.me);
        let losses = others.flat_map(|(name, node)| {
            let loss = |(unit, at): (&String, &Time)| UnitRead {
                unit: unit.clone(),
                node: name.clone(),
                lost_at: *at,
            };
            node.lost_at.iter().map(loss)
        });
        let here = |unit: &String| units.contains(unit) && self.lost_since(unit).is_none();
        let losses: Vec<UnitRead> = losses.filter(|loss| here(&loss.unit)).collect();
        let Some(cluster) = &mut self.cluster else { return };
        cluster.reads.retain(|read| losses.contains(&read.of));
        let mut asked = BTreeSet::new();
        for of in losses {
            if !cluster.reads.iter().any(|read| read.of == of) {
                asked.insert(of.unit.clone());
                cluster.reads.push(Read { of, asked: now, done: false });
            }
        }
        // The newest question is the one that is answered.
        cluster.reads.iter_mut().filter(|r| asked.contains(&r.of.unit)).for_each(|r| r.asked = now);
        self.out.extend(asked.into_iter().map(|unit| Effect::ReadStorage { unit, asked: now }));
    }

    /// A unit has been read, after this was asked for.
    pub(in crate::machine) fn storage_read(&mut self, unit: &str, asked: Time) {
        let reads = self.cluster.iter_mut().flat_map(|c| &mut c.reads);
        reads.filter(|r| r.of.unit == unit && r.asked <= asked).for_each(|r| r.done = true);
    }

    /// Has it just lost one?
    pub(super) fn is_storage_in_doubt(&self, definition: &VirtualServer) -> bool {
        self.storage_lost(definition).is_some_and(|t| t + LOST_AFTER > self.now)
    }

    /// They are not started where their storage is out of reach.
    pub(super) fn waits_for_storage(&self, index: usize) -> bool {
        let definition = self.definition(&self.servers[index].name);
        let lost = definition.is_some_and(|d| self.storage_lost(d).is_some());
        let starts = match self.phase(index) {
            Some(Phase::Stopped) => true,
            // What has failed is stopped first.
            Some(Phase::Unknown) => !self.has_failed(index),
            Some(Phase::Starting | Phase::Running | Phase::Stopping | Phase::Stuck) | None => false,
        };
        lost && starts
    }

    /// A unit that no node reaches that may have this virtual server.
    fn lost_everywhere<'a>(&self, cluster: &Cluster, definition: &'a VirtualServer) -> Option<&'a String> {
        let permitted = |n: &&str| definition.only_on.is_empty() || definition.only_on.iter().any(|o| o == n);
        let fit: Vec<&str> = cluster.fit(cluster.read).filter(permitted).collect();
        let lost = |unit: &&String| !fit.is_empty() && !fit.iter().any(|n| cluster.reaches_unit(n, unit));
        definition.storage_units.iter().find(lost)
    }

    /// Says once what is lost everywhere, of what this node owns, and as master of what nobody has.
    pub(super) fn tell_lost_everywhere(&mut self) {
        let (Some(cluster), Some(config)) = (&self.cluster, &self.config) else { return };
        let rules = self.cluster_master().as_ref() == Some(&cluster.me);
        let mut lost = Vec::new();
        let is_whole = cluster.nodes.values().all(|n| n.lost_units.is_empty());
        for definition in config.servers.iter().filter(|d| !is_whole && !d.storage_units.is_empty()) {
            let own = cluster.records.get(&definition.name).is_some_and(|(r, _)| cluster.is_own(r));
            let concerns =
                own && !self.is_storage_in_doubt(definition) || rules && cluster.is_free(&definition.name);
            let unit = self.lost_everywhere(cluster, definition).filter(|_| concerns);
            lost.extend(unit.map(|unit| (definition.name.clone(), unit.clone())));
        }
        let told = &cluster.told_lost;
        let news: Vec<_> = lost.iter().filter(|l| !told.contains(l)).cloned().collect();
        if let Some(cluster) = &mut self.cluster {
            cluster.told_lost = lost;
        }
        for (server, unit) in news {
            self.event(EventKind::StorageLostEverywhere { server, unit });
        }
    }

    /// When what this node has lost counts.
    pub(super) fn storage_deadline(&self) -> Option<Time> {
        let lost = self.units.keys().filter_map(|unit| self.lost_since(unit));
        lost.map(|t| t + LOST_AFTER).filter(|t| *t > self.now).min()
    }

    /// Why a virtual server is not served, where that is for want of storage.
    pub(super) fn why_no_storage(&self, cluster: &Cluster, server: &str) -> Option<String> {
        let definition = self.definition(server)?;
        let own = cluster.records.get(server).is_some_and(|(r, _)| cluster.is_own(r));
        let lost = || definition.storage_units.iter().find(|unit| self.lost_since(unit).is_some());
        if own && let Some(unit) = lost() {
            return Some(self.unit_in_words(unit));
        }
        let unit = self.lost_everywhere(cluster, definition).filter(|_| own || cluster.is_free(server))?;
        Some(format!("no node that may have it reaches storage unit {unit}"))
    }
}
