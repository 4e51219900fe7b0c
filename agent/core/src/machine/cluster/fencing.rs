//! Fencing: nothing is started while another node may still have it mounted.
//!
//! The lease stops packets, not what a file system writes back. So the record of a fenced virtual server says who may still have it
//! mounted ([`Record::unfenced`]), and its owner starts nothing before that list is empty, by a write of its own.
//!
//! | who | when | the list |
//! |---|---|---|
//! | whoever takes it | its owner has not released it | and that owner, as the incarnation in the record |
//! | the owner | it releases what it could not stop | and itself |
//! | the owner | [`Effect::Fence`] has been answered: done | without that node |
//! | a node in it that does not own it | its agent has said: stopped | without itself |
//!
//! | the owner, with a lease and its own write behind it | then |
//! |---|---|
//! | somebody is in the list | asked to be fenced |
//! | that has failed | said, and asked again after [`FENCE_AGAIN`]; nothing is given up for it: another owner would have to do the same |
//! | that is done | written; then the next |
//! | the list is empty, as written by this process | started |
//!
//! Why that is safe: whoever starts it has written an empty list, by compare-and-swap. Before that, each earlier owner has released
//! it after it was stopped, or was in the list, and left it by being fenced as that incarnation, or by its own word that nothing is
//! mounted. A node that is out of the list mounts nothing before it owns the record again, which is another revision of it.
//! Only an answer to what was asked during this ownership counts: between two ownerships of this node the other one may have had
//! it mounted again. A node without a lease fences nobody: it may be the one that is cut off.
//!
//! [`Effect::Entitle`] follows the rules of the serving mark (lease.md, R5 to R7): it comes after this process's own write, with the
//! incarnation that the write carried; it goes before a release is sent; and as another incarnation it counts for nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::Machine;
use super::super::resources::Phase;
use super::Cluster;
use crate::cluster::Record;
use crate::{Effect, EventKind, Time};

/// A node that could not be fenced is tried again after this long.
pub(super) const FENCE_AGAIN: Duration = Duration::from_secs(10);

/// A node that this one has asked to be fenced, for a virtual server of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Fence {
    server: String,
    node: String,
    incarnation: u64,
    /// Epoch of the own record for which it was asked.
    epoch: u64,
    /// When it was first asked for.
    since: Time,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum State {
    Asked,
    Done,
    /// Why, and when it is tried again.
    Failed(String, Time),
}

impl Fence {
    fn is_of(&self, server: &str, node: &str, incarnation: u64) -> bool {
        self.server == server && self.node == node && self.incarnation == incarnation
    }
}

impl Cluster {
    /// Is it asked for what this record says, which is this node's?
    fn is_of_record(&self, fence: &Fence) -> bool {
        let listed = |r: &Record| r.unfenced.iter().any(|(n, i)| *n == fence.node && *i == fence.incarnation);
        let record = self.records.get(&fence.server).map(|(r, _)| r);
        record.is_some_and(|r| self.is_own(r) && r.epoch == fence.epoch && listed(r))
    }

    fn fence_of(&self, server: &str, (node, incarnation): &(String, u64)) -> Option<&Fence> {
        self.fences.iter().find(|f| f.is_of(server, node, *incarnation))
    }

    fn has_fenced(&self, server: &str, entry: &(String, u64)) -> bool {
        self.fence_of(server, entry).is_some_and(|f| f.state == State::Done && self.is_of_record(f))
    }

    /// Is this node known, or feared, to have the virtual server mounted? Then it is not given it.
    pub(super) fn is_unfenced(&self, server: &str, node: &str) -> bool {
        let record = self.records.get(server).map(|(r, _)| r);
        record.is_some_and(|r| r.unfenced.iter().any(|(n, _)| n == node))
    }

    /// Forgets what is of no use any more. What has been asked for is remembered until it is answered: it is not asked for twice.
    fn forget_fences(&mut self) {
        let fences = std::mem::take(&mut self.fences);
        let (kept, _): (Vec<Fence>, Vec<Fence>) =
            fences.into_iter().partition(|f| f.state == State::Asked || self.is_of_record(f));
        self.fences = kept;
    }
}

impl Machine {
    /// Must a node that may have it mounted be fenced before it is started here?
    pub(in crate::machine) fn is_fenced(&self, server: &str) -> bool {
        self.cluster.is_some() && self.definition(server).is_some_and(|d| d.fenced && d.has_resources)
    }

    /// Who may have it mounted when this node has taken it. It is not one of them: those are not in the succession.
    pub(super) fn unfenced_by_taking(&self, server: &str, before: Option<&Record>) -> Vec<(String, u64)> {
        let Some(before) = before.filter(|_| self.is_fenced(server)) else { return Vec::new() };
        let mut unfenced = before.unfenced.clone();
        let owner = (before.node.clone(), before.incarnation);
        if before.released.is_none() && !unfenced.contains(&owner) {
            unfenced.push(owner);
        }
        unfenced
    }

    /// Who may still have it mounted, as this node's own record is to say.
    pub(super) fn still_unfenced(&self, index: usize, record: &Record) -> Vec<(String, u64)> {
        let server = &self.servers[index].name;
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.is_fenced(server)) else {
            return Vec::new();
        };
        let done = |entry: &(String, u64)| match entry.0 == cluster.me {
            true => self.is_stopped(index),
            false => cluster.has_fenced(server, entry),
        };
        record.unfenced.iter().filter(|entry| !done(entry)).cloned().collect()
    }

    /// This node owns it, by its own write, and has a lease: has those fenced who may have it mounted. Returns whether that is still
    /// to be waited for.
    pub(super) fn fence_first(&mut self, index: usize, record: &Record) -> bool {
        let now = self.now;
        let server = self.servers[index].name.clone();
        if record.unfenced.is_empty() || !self.is_fenced(&server) {
            return false;
        }
        let Some(cluster) = &mut self.cluster else { return true };
        let mut own = false;
        for (node, incarnation) in &record.unfenced {
            if *node == cluster.me {
                own = true;
                continue;
            }
            let known = cluster.fences.iter_mut().find(|f| f.is_of(&server, node, *incarnation));
            match known {
                Some(Fence { state: State::Asked | State::Done, .. }) => continue,
                Some(Fence { state: State::Failed(_, again), .. }) if *again > now => continue,
                Some(fence) => fence.state = State::Asked,
                None => cluster.fences.push(Fence {
                    server: server.clone(),
                    node: node.clone(),
                    incarnation: *incarnation,
                    epoch: record.epoch,
                    since: now,
                    state: State::Asked,
                }),
            }
            let (server, node, incarnation) = (server.clone(), node.clone(), *incarnation);
            self.out.push(Effect::Fence { server, node, incarnation });
        }
        if own && self.servers[index].resources.as_ref().is_some_and(|r| r.may_run()) {
            self.stop_resources(index);
        }
        true
    }

    /// A node has been fenced, or could not be.
    pub(in crate::machine) fn fence_answered(
        &mut self,
        server: String,
        node: String,
        incarnation: u64,
        failed: Option<String>,
    ) {
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return };
        let asked = |f: &Fence| f.is_of(&server, &node, incarnation) && f.state == State::Asked;
        let Some(place) = cluster.fences.iter().position(asked) else { return };
        if !cluster.is_of_record(&cluster.fences[place]) {
            // Of an earlier ownership, or nobody waits for it any more.
            cluster.fences.remove(place);
            return;
        }
        let fence = &mut cluster.fences[place];
        match failed {
            None => {
                fence.state = State::Done;
                let seconds = now.since(fence.since).as_secs_f64();
                self.event(EventKind::Fenced { server, node, seconds });
            }
            Some(what) => {
                fence.state = State::Failed(what.clone(), now + FENCE_AGAIN);
                self.event(EventKind::FenceFailed { server, node, what });
            }
        }
    }

    /// The record is not this node's, and lists it: takes it out when nothing of it runs here. Its agent has said so since it started:
    /// before that nothing counts as stopped.
    pub(super) fn leave_unfenced(&mut self, index: usize) {
        let Some(cluster) = &self.cluster else { return };
        let server = self.servers[index].name.clone();
        let stopped = self.phase(index) == Some(Phase::Stopped);
        if !stopped || !cluster.is_unfenced(&server, &cluster.me) {
            return;
        }
        let Some((record, revision)) = cluster.records.get(&server).cloned() else { return };
        if cluster.is_own(&record) {
            return;
        }
        let mut unfenced = record.unfenced.clone();
        unfenced.retain(|(node, _)| *node != cluster.me);
        self.write(server, revision, Record { unfenced, ..record });
    }

    /// Tells under which incarnation a fenced virtual server may be mounted here, if that has changed.
    pub(in crate::machine) fn entitle(&mut self, index: usize, incarnation: Option<u64>) {
        let Some(resources) = &self.servers[index].resources else { return };
        let server = &self.servers[index].name;
        if resources.entitled == incarnation || !self.is_fenced(server) {
            return;
        }
        self.out.push(Effect::Entitle { server: server.clone(), incarnation });
        if let Some(resources) = &mut self.servers[index].resources {
            resources.entitled = incarnation;
        }
    }

    pub(super) fn settle_fences(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.forget_fences();
        }
    }

    /// When a node is next tried to be fenced.
    pub(super) fn fence_deadline(&self) -> Option<Time> {
        let again = self.cluster.iter().flat_map(|c| &c.fences).filter_map(|f| match f.state {
            State::Failed(_, again) => Some(again),
            State::Asked | State::Done => None,
        });
        again.filter(|t| *t > self.now).min()
    }

    /// Could a node not be fenced, for this node's virtual server?
    pub(in crate::machine) fn has_fence_failed(&self, server: &str) -> bool {
        let failed = |f: &Fence| matches!(f.state, State::Failed(..));
        self.fences_of(server).any(failed)
    }

    fn fences_of<'a>(&'a self, server: &'a str) -> impl Iterator<Item = &'a Fence> {
        let of =
            move |c: &'a Cluster| c.fences.iter().filter(move |f| f.server == server && c.is_of_record(f));
        self.cluster.iter().flat_map(of)
    }

    /// Why a virtual server is not served, where somebody is to be fenced first.
    pub(super) fn why_unfenced(&self, cluster: &Cluster, server: &str) -> Option<String> {
        let (record, _) = cluster.records.get(server).filter(|(r, _)| r.released.is_none())?;
        let names: Vec<&str> = record.unfenced.iter().map(|(node, _)| node.as_str()).collect();
        if names.is_empty() || !self.is_fenced(server) {
            return None;
        }
        let failed = self.fences_of(server).find_map(|f| match &f.state {
            State::Failed(what, _) => Some(format!("; {} could not be: {what}", f.node)),
            State::Asked | State::Done => None,
        });
        Some(format!("to be fenced first: {}{}", names.join(", "), failed.unwrap_or_default()))
    }
}
