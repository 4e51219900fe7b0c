//! Storage units in a cluster: a virtual server is on a node that reaches all that it needs.
//!
//! | the unit is lost | then |
//! |---|---|
//! | here, for less than [`LOST_AFTER`] | nothing yet: others may be about to say that they don't reach it either |
//! | here, and another node that may have the virtual server reaches it | given up for the best of these, by priority |
//! | on every node that may have it | it stays where it is, runs on if it runs, and is started nowhere: said once |
//! | here, and the virtual server may not migrate | it stays, and is not started before the unit is back |
//! | where its owner is dead, on all others | nobody takes it: said once, by the master |
//!
//! A node tells what it has lost in its record ([`crate::cluster::NodeRecord::lost_units`]); what is not there it reaches. Where it has
//! lost a unit it is in no succession, and nothing is moved there.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::Machine;
use super::super::resources::Phase;
use super::Cluster;
use crate::config::VirtualServer;
use crate::{EventKind, Time};

/// A node that has lost a storage unit waits so long for the others to say that they have, too. They look at it at other times than
/// this one, and one may see errors where the other sees nothing for a while.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(1);

impl Cluster {
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

    /// Has this node lost a unit that the virtual server needs, for so long that the others would have said so of themselves?
    pub(super) fn is_storage_lost(&self, definition: &VirtualServer) -> bool {
        self.storage_lost(definition).is_some_and(|t| t + LOST_AFTER <= self.now)
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
