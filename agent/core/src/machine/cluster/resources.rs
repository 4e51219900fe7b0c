//! File systems and services in a cluster: they run where the owner record says, and nowhere else.
//!
//! | the record names | and here they are | then |
//! |---|---|---|
//! | this node, written by this agent | stopped, or perhaps half started | started; served when they run |
//! | this node, not yet | | it is touched first (lease.md, R6) |
//! | this node, and it is given up | running, starting, unknown | mark off, confirmed; then stopped; then released (R7) |
//! | this node, and it is given up, as it fails here or its storage is lost | stopping has failed | released all the same, this node in the list of those to be fenced (`fencing`) |
//! | this node, and it is given up for another reason | stopping has failed | not released: nobody else may mount what is mounted here |
//! | this node, and others who may have them mounted | stopped | those are fenced first (`fencing`) |
//! | this node, where a storage unit is lost (`storage`) | stopped | not started |
//! | this node | failed | given up for a node where they have not failed; where there is none, tried here again and again |
//! | another node, or nobody | running, starting, unknown | stopped at once |
//! | whomever | running, starting, unknown, without a lease for [`LEASE_GRACE`] | stopped at once: they may be another node's |
//!
//! A node takes nothing that it has not stopped. The record carries where they have failed ([`Record::failed_on`]), so that they
//! don't go to and fro: whoever takes it keeps that list, and the owner clears it when they have run for a minute.

use std::time::Duration;

use super::super::resources::Phase;
use super::super::{Machine, Server};
use crate::cluster::{Record, Release};
use crate::{EventKind, Owner, Reason, Time};

/// A node that has had no lease for this long stops what it runs: a majority may have given it to another node. Shorter than that,
/// it may have been a hiccup of the network, and nobody has died.
pub(super) const LEASE_GRACE: Duration = Duration::from_secs(2);

impl Machine {
    /// The record names this node, and the mark is off.
    pub(super) fn settle_resources(&mut self, index: usize, record: Record, revision: u64) {
        let server = self.servers[index].name.clone();
        let leaving = self.cluster.as_ref().and_then(|c| c.leaving.get(&server).cloned());
        if let Some((next, reason)) = leaving {
            return self.release_when_stopped(index, (next, reason), record, revision);
        }
        if let Some((next, reason)) = self.give_up(index) {
            self.event(EventKind::Leaving { server: server.clone(), to: next.clone(), reason });
            if let Some(cluster) = &mut self.cluster {
                cluster.leaving.insert(server, (next.clone(), reason));
            }
            return self.release_when_stopped(index, (next, reason), record, revision);
        }
        let Some(cluster) = &self.cluster else { return };
        let failed_on = self.failed_on(index, &record);
        let unfenced = self.still_unfenced(index, &record);
        // Without the store it is tried here all the same.
        let has_failed = self.has_failed(index) && failed_on != record.failed_on && cluster.reachable;
        let is_news = has_failed || unfenced != record.unfenced;
        let may_mark = cluster.may_mark(&server, self.incarnation);
        let members = cluster.members.version;
        if !cluster.has_lease() {
            return;
        }
        if is_news || !may_mark {
            let record = Record { incarnation: self.incarnation, members, failed_on, unfenced, ..record };
            return self.write(server, revision, record);
        }
        self.servers[index].owner = Some(Owner { incarnation: record.incarnation, epoch: record.epoch });
        self.entitle(index, Some(record.incarnation));
        if !self.fence_first(index, &record) && !self.waits_for_storage(index) {
            self.start_and_serve(index);
        }
    }

    /// It is given up for another node, and the mark is off, confirmed.
    fn release_when_stopped(
        &mut self,
        index: usize,
        (next, reason): (String, Reason),
        record: Record,
        revision: u64,
    ) {
        let server = self.servers[index].name.clone();
        let Some(resources) = &self.servers[index].resources else { return };
        match resources.phase() {
            Phase::Unknown | Phase::Starting | Phase::Running => self.stop_resources(index),
            Phase::Stopping => {}
            Phase::Stuck => {
                let Some(reason) = self.releases_stuck(index, &next, reason) else { return };
                let released = Some(Release { next: Some(next), reason, stopping: None });
                let failed_on = self.failed_on(index, &record);
                let mut unfenced = self.still_unfenced(index, &record);
                let own = (record.node.clone(), record.incarnation);
                if self.is_fenced(&server) && !unfenced.contains(&own) {
                    unfenced.push(own);
                }
                self.entitle(index, None);
                self.write(server, revision, Record { released, failed_on, unfenced, ..record });
            }
            Phase::Stopped => {
                let released = Some(Release { next: Some(next), reason, stopping: resources.stopping() });
                let failed_on = self.failed_on(index, &record);
                let unfenced = self.still_unfenced(index, &record);
                self.entitle(index, None);
                self.write(server, revision, Record { released, failed_on, unfenced, ..record });
            }
        }
    }

    /// Is it released although it could not be stopped here, and for which reason? Where it fails here, or its storage is lost, waiting
    /// would leave it unserved for as long as that hangs; who takes it has this node fenced first. Whoever moves it for another reason
    /// can wait.
    fn releases_stuck(&self, index: usize, next: &str, reason: Reason) -> Option<Reason> {
        let definition = self.definition(&self.servers[index].name)?;
        match reason {
            Reason::StorageLost | Reason::ServiceFailed => Some(reason),
            _ => {
                let lost = self.is_storage_lost(definition) || self.is_storage_good_on(definition, next);
                lost.then_some(Reason::StorageLost)
            }
        }
    }

    /// Could it not be stopped here, while it is still this node's, for want of a lease perhaps? Whoever takes it has this node fenced.
    pub(super) fn hangs(&self, index: usize) -> bool {
        self.phase(index) == Some(Phase::Stuck) && self.is_fenced(&self.servers[index].name)
    }

    /// The record does not name this node: whatever runs is stopped, at once.
    pub(super) fn drop_resources(&mut self, index: usize) {
        self.entitle(index, None);
        let server = &mut self.servers[index];
        let Some(resources) = &mut server.resources else { return };
        resources.forget_failure();
        if let Some(cluster) = &mut self.cluster {
            cluster.leaving.remove(&server.name);
        }
        if resources.may_run() {
            self.stop_resources(index);
        }
    }

    /// What must not wait for the store, or for a change of the incarnation: what has failed is not served, and is stopped; and
    /// everything is, where there has been no lease for a while.
    pub(super) fn attend_to_resources(&mut self) {
        let now = self.now;
        let Some(lease) = self.cluster.as_ref().map(super::Cluster::has_lease) else { return };
        for index in 0..self.servers.len() {
            let Some(resources) = &mut self.servers[index].resources else { continue };
            let unleased = resources.unleased.take().unwrap_or(now);
            resources.unleased = (!lease).then_some(unleased);
            let long = !lease && now >= unleased + LEASE_GRACE;
            let (may_run, ready) = (resources.may_run(), resources.phase() == Phase::Running);
            let failed = resources.has_failed() && !ready;
            let Server { name, marked, .. } = &self.servers[index];
            let (marked, clearing) = (*marked, self.clearing.contains(name));
            if marked && (!ready || long) {
                self.withhold(index);
            }
            if may_run && (long || failed && !marked && !clearing) {
                self.stop_resources(index);
            }
        }
    }

    /// Where they have failed, as the record is to say.
    pub(super) fn failed_on(&self, index: usize, record: &Record) -> Vec<String> {
        let (Some(cluster), Some(resources)) = (&self.cluster, &self.servers[index].resources) else {
            return Vec::new(); // it has none any more
        };
        let mut nodes = record.failed_on.clone();
        if resources.has_failed() {
            if !nodes.contains(&cluster.me) {
                nodes.push(cluster.me.clone());
            }
        } else if resources.well_at().is_some_and(|t| t <= self.now) {
            nodes.clear();
        } else if resources.phase() == Phase::Running {
            nodes.retain(|n| *n != cluster.me);
        }
        nodes
    }

    /// When the next record can be cleared of failures, or something must stop for want of a lease.
    pub(super) fn cluster_resources_deadline(&self) -> Option<Time> {
        let cluster = self.cluster.as_ref()?;
        let own = self.servers.iter().filter_map(|s| Some((s, s.resources.as_ref()?)));
        let times = own.flat_map(|(server, resources)| {
            let record = cluster.records.get(&server.name).map(|(r, _)| r);
            let remembers = record.is_some_and(|r| cluster.is_own(r) && !r.failed_on.is_empty());
            let well = resources.well_at().filter(|_| remembers);
            [well, resources.unleased.map(|t| t + LEASE_GRACE)]
        });
        times.flatten().filter(|t| *t > self.now).min()
    }
}
