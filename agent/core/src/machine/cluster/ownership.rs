//! Ownership: taking, touching, giving up.
//!
//! | the record names | and the mark here is | then |
//! |---|---|---|
//! | nobody | off | this node takes it when it is its turn |
//! | this node | on | it is served; or given up: mark off, confirmed, then released |
//! | this node | off | touched: written again with this incarnation; the mark goes on when that has succeeded |
//! | another node | on | mark off, addresses removed: it was taken from us |
//! | another node, dead | off | this node takes it when it is its turn |
//! | another node, alive | off | nothing |
//! | released | off | this node takes it when it is its turn |
//!
//! `reroute` has what is done when the record names a peer that answers in a segment, `resources` what is started before the mark
//! goes on, and stopped before the release, `fencing` who must not have it mounted then.

use std::time::Duration;

use super::super::Machine;
use super::Cluster;
use super::incarnation::Change;
use super::succession::Successor;
use crate::cluster::{MASTER, Record, Release, StoreRequest, Wish};
use crate::{Effect, EventKind, FailoverKind, Owner, Reason, TakeTimes};

impl Cluster {
    pub(super) fn is_own(&self, record: &Record) -> bool {
        record.node == self.me && record.released.is_none()
    }

    /// Has this process written the record with this incarnation, and nobody since (R6)?
    pub(super) fn may_mark(&self, server: &str, incarnation: u64) -> bool {
        let own = |(r, _): &(Record, u64)| self.is_own(r) && r.incarnation == incarnation;
        self.records.get(server).is_some_and(own) && self.touched.get(server) == Some(&incarnation)
    }
}

impl Machine {
    /// The store holds this record, or none, as of this revision.
    pub(super) fn learn(&mut self, server: &str, record: Option<(Record, u64)>, revision: u64) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.records.get(server).is_some_and(|(_, known)| *known >= revision) {
            return;
        }
        // Also our own writes come by here; `written` says so then, or has said so.
        cluster.touched.remove(server);
        cluster.vacant.remove(server);
        if let (Some((before, _)), Some((after, _))) = (cluster.records.get(server).cloned(), &record) {
            cluster.note_refusals(&before, after, self.now);
            cluster.balancing.note_owner(server, &before, after, self.now);
        }
        match record {
            Some(record) => cluster.records.insert(server.to_owned(), record),
            None => cluster.records.remove(server),
        };
    }

    pub(super) fn written(&mut self, server: &str, record: Record, revision: u64) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.writing.remove(server);
        if cluster.records.get(server).is_some_and(|(_, known)| *known > revision) {
            return; // and changed again since
        }
        let before = cluster.records.insert(server.to_owned(), (record.clone(), revision)).map(|(r, _)| r);
        cluster.vacant.remove(server);
        let before = before.filter(|b| *b != record).or_else(|| cluster.replaced.remove(server));
        cluster.replaced.remove(server);
        if let Some(before) = &before {
            cluster.balancing.note_owner(server, before, &record, self.now);
        }
        if record.node != cluster.me {
            // As a peer that routes.
            cluster.replaced.remove(server);
            if let Some(index) = self.servers.iter().position(|s| s.name == server) {
                self.routing_written(index, &record);
            }
            return;
        }
        if record.released.is_some() {
            cluster.touched.remove(server);
            let wish = cluster.wishes.get(server).cloned();
            if let Some((_, revision)) = wish {
                let server = server.to_owned();
                self.out.push(Effect::Store(StoreRequest::MoveDone { server, revision }));
            }
            return;
        }
        cluster.touched.insert(server.to_owned(), record.incarnation);
        if server == MASTER {
            self.event(EventKind::Master { epoch: record.epoch });
            return;
        }
        let Some(index) = self.servers.iter().position(|s| s.name == server) else { return };
        if record.incarnation != self.incarnation {
            return; // a change of incarnation is under way: it sets the mark
        }
        // A take whose answer was lost ends with the touch that follows.
        let taking = cluster.taking.remove(server);
        let taken = taking.is_some() || before.as_ref().is_none_or(|b| b.epoch != record.epoch);
        self.servers[index].owner = Some(Owner { incarnation: record.incarnation, epoch: record.epoch });
        self.entitle(index, Some(record.incarnation));
        // File systems and services are started first, if they don't run, when everything is settled.
        let serves = self.servers[index].resources.is_none();
        if serves {
            self.serve(index);
        }
        if taken {
            let (times, before) = taking.unwrap_or((TakeTimes::default(), before));
            let (kind, reason, from) = cause(before.as_ref());
            self.failovers += 1;
            let server = server.to_owned();
            let taken = EventKind::Taken { server, kind, reason, from, epoch: record.epoch, times };
            self.event_of(Some(self.failovers), taken);
        }
        if serves {
            self.event(EventKind::Serving { server: server.to_owned(), epoch: record.epoch });
        }
    }

    pub(super) fn not_written(&mut self, server: &str, current: Option<(Record, u64)>) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.writing.remove(server);
        cluster.touched.remove(server); // what was to be written may be yet
        let revision = current.as_ref().map_or(u64::MAX, |(_, r)| *r);
        self.learn(server, current, revision);
    }

    /// Writes an owner record, unless a write is under way.
    pub(super) fn write(&mut self, server: String, expected: u64, record: Record) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.writing.contains_key(&server) {
            return;
        }
        if let Some((before, _)) = cluster.records.get(&server) {
            cluster.replaced.insert(server.clone(), before.clone());
        }
        cluster.writing.insert(server.clone(), record.clone());
        self.out.push(Effect::Store(StoreRequest::Write { server, expected, record }));
    }

    /// Stops serving what this node may not own any more.
    pub(super) fn stop_serving(&mut self, index: usize) {
        self.servers[index].owner = None;
        self.unserve(index);
    }

    pub(super) fn settle_ownership(&mut self) {
        let Some(cluster) = &self.cluster else { return };
        let busy = cluster.incarnation != Change::None;
        let plan = self.successions();
        self.follow_fitness();
        if !busy {
            self.settle_mastership();
        }
        for index in 0..self.servers.len() {
            let server = self.servers[index].name.clone();
            let Some(cluster) = &self.cluster else { return };
            if cluster.writing.contains_key(&server) || self.clearing.contains(&server) {
                continue;
            }
            match cluster.records.get(&server).cloned() {
                Some((record, revision)) if cluster.is_own(&record) => {
                    if !busy {
                        self.settle_own(index, record, revision);
                    }
                }
                other => {
                    let marked = self.servers[index].marked;
                    let another = other.as_ref().is_some_and(|(r, _)| r.node != cluster.me);
                    if marked || another && self.is_at_work(index) {
                        self.event(EventKind::Deposed { server: server.clone() });
                    }
                    if marked {
                        self.stop_serving(index);
                    }
                    if self.servers[index].resources.is_some() {
                        self.drop_resources(index);
                        if marked {
                            self.clearing.insert(server);
                            continue;
                        }
                    }
                    match &other {
                        Some((record, revision))
                            if !busy && self.settle_routing(index, record, *revision) =>
                        {
                            continue;
                        }
                        // The mark of an incarnation that is about to end does no harm.
                        Some(_) => {}
                        None if !self.servers[index].routing.is_empty() => self.stop_routing(index),
                        None => {}
                    }
                    let able = self.is_stopped(index);
                    let successor = plan.get(index).cloned().flatten().filter(|_| able);
                    if !busy {
                        self.take_if_due(&server, other, successor);
                        self.leave_unfenced(index);
                    }
                }
            }
        }
    }

    /// Somebody is to be master: whoever comes first, of those that may be.
    fn settle_mastership(&mut self) {
        let Some(cluster) = &self.cluster else { return };
        if cluster.writing.contains_key(MASTER) || cluster.witness {
            return;
        }
        let current = cluster.records.get(MASTER).cloned();
        match current {
            Some((record, revision)) if cluster.is_own(&record) => {
                if record.incarnation < self.incarnation {
                    let members = cluster.members.version;
                    let record = Record { incarnation: self.incarnation, members, ..record };
                    self.write(MASTER.to_owned(), revision, record);
                }
            }
            other => self.take_if_due(MASTER, other, Some(Successor { turn: Some(Duration::ZERO) })),
        }
    }

    /// The record names this node: serve, or give it up.
    fn settle_own(&mut self, index: usize, record: Record, revision: u64) {
        let server = self.servers[index].name.clone();
        if self.servers[index].marked {
            self.wish_fulfilled(index);
            let Some((next, reason)) = self.give_up(index) else {
                let failed_on = self.failed_on(index, &record);
                if failed_on != record.failed_on {
                    self.write(server, revision, Record { failed_on, ..record });
                } else {
                    self.settle_reroute(index, &record, revision);
                }
                return;
            };
            self.event(EventKind::Leaving { server: server.clone(), to: next.clone(), reason });
            self.stop_serving(index);
            self.clearing.insert(server.clone()); // the release follows when the kernel has confirmed
            if let Some(cluster) = &mut self.cluster {
                cluster.leaving.insert(server, (next, reason));
            }
        } else if self.servers[index].resources.is_some() {
            self.settle_resources(index, record, revision);
        } else if let Some((next, reason)) = self.leaving(&server) {
            let released = Some(Release { next: Some(next), reason, stopping: None });
            self.write(server, revision, Record { released, ..record });
        } else {
            let version = self.cluster.as_ref().map_or(0, |c| c.members.version);
            let record = Record { incarnation: self.incarnation, members: version, ..record };
            self.write(server, revision, record);
        }
    }

    /// Removes a wish that this node should have what it has: whoever made it may be gone. And one for balance that can't be: the
    /// master makes another plan.
    fn wish_fulfilled(&mut self, index: usize) {
        let Some(cluster) = &self.cluster else { return };
        let Some((wish, _)) = cluster.wishes.get(&self.servers[index].name) else { return };
        let stays = wish.master.is_some() && self.give_up(index).is_none();
        let server = self.servers[index].name.as_str();
        let Some(cluster) = &mut self.cluster else { return };
        let over = |wish: &Wish| wish.to == cluster.me || stays;
        if cluster.wishes.get(server).is_some_and(|(wish, _)| over(wish))
            && let Some((_, revision)) = cluster.wishes.remove(server)
        {
            let server = server.to_owned();
            self.out.push(Effect::Store(StoreRequest::MoveDone { server, revision }));
        }
    }

    /// For whom it is being given up, if it is.
    fn leaving(&mut self, server: &str) -> Option<(String, Reason)> {
        self.cluster.as_mut()?.leaving.remove(server)
    }

    /// Takes it if this node is to, now.
    fn take_if_due(&mut self, server: &str, current: Option<(Record, u64)>, successor: Option<Successor>) {
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return };
        // Of a later version of the member list: this agent is about to start anew with it. A list change that is final must
        // stay so.
        if current.as_ref().is_some_and(|(r, _)| r.members > cluster.members.version) {
            return;
        }
        // A master that is no member any more is none.
        let gone = |r: &Record| server == MASTER && cluster.members.get(&r.node).is_none();
        let left = |r: &Record| r.released.is_some() || cluster.is_dead(r) || gone(r);
        let free = current.as_ref().is_none_or(|(r, _)| left(r) && cluster.is_unrouted(r));
        if !free {
            cluster.vacant.remove(server);
            cluster.taking.remove(server);
            return;
        }
        let since = *cluster.vacant.entry(server.to_owned()).or_insert(now);
        let lease = cluster.has_lease();
        let Some(turn) = successor.and_then(|s| s.turn) else { return };
        if since + turn > now {
            cluster.next_turn = cluster.next_turn.into_iter().chain([since + turn]).min();
            return;
        }
        if !lease {
            return;
        }
        let heard = current.as_ref().filter(|(r, _)| r.released.is_none()).and_then(|(r, _)| {
            let slot = cluster.members.get(&r.node)?.slot;
            cluster.reading.peers.iter().find(|p| p.slot == slot)?.heard
        });
        // Its owner began to stop it so long before it released it.
        let released = current.as_ref().and_then(|(r, _)| r.released.as_ref());
        let stopping = released.and_then(|r| r.stopping);
        let cause = heard.unwrap_or(since).min(since) - stopping.unwrap_or_default();
        let times = TakeTimes { cause, detected: since, decided: now, stopped: stopping.map(|_| since) };
        let before = current.as_ref().map(|(r, _)| r.clone());
        let taking = cluster.taking.entry(server.to_owned()).or_insert((times, None));
        (taking.0.decided, taking.1) = (now, before);
        let dead = current.as_ref().filter(|(r, _)| r.released.is_none());
        let taken_from = dead.map(|(r, _)| (r.node.clone(), r.incarnation));
        let failed_on = current.as_ref().map(|(r, _)| r.failed_on.clone()).unwrap_or_default();
        let unfenced = self.unfenced_by_taking(server, current.as_ref().map(|(r, _)| r));
        let Some(cluster) = &self.cluster else { return };
        let (epoch, expected) = current.map_or((0, 0), |(r, revision)| (r.epoch, revision));
        let record = Record::of(&cluster.me, self.incarnation, cluster.members.version, epoch + 1);
        let record = Record { taken_from, failed_on, unfenced, ..record };
        self.write(server.to_owned(), expected, record);
    }
}

/// Why it was taken, and from whom.
fn cause(before: Option<&Record>) -> (FailoverKind, Reason, Option<String>) {
    match before {
        None => (FailoverKind::Takeover, Reason::First, None),
        Some(Record { node, released: Some(release), .. }) => {
            (FailoverKind::Move, release.reason, Some(node.clone()))
        }
        Some(Record { node, released: None, .. }) => {
            (FailoverKind::Takeover, Reason::NodeDead, Some(node.clone()))
        }
    }
}
