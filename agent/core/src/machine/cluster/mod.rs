//! Who serves what in a cluster (lease.md): verdicts on other members, ownership, and this node's own incarnation.
//!
//! After every input [`Machine::settle`] looks at everything that is known and asks for what should be and is neither so
//! nor under way. It may run at any time and any number of times.
//!
//! | rule of lease.md | where it is kept | why that is safe |
//! |---|---|---|
//! | R1 clocks | `ebpf/src/member.rs`; D is [`Members::silence`] | A's lease ends L after a frame that B received later than that; B waits for L(1 + rho) and slack from the receipt. So B's wait ends after the lease, by whichever clock. |
//! | R2 incarnations | kernel; the store allots them (`store::etcd::next_incarnation`); `incarnation` | A grant made to an earlier life names another incarnation, and none is allotted twice, so it can't prolong a later one. |
//! | R3 verdicts | `verdicts` asks when nothing was heard for D; the kernel program `condemn` decides, in one step; then it counts | After it the kernel grants nothing up to that incarnation, and what it granted before has run out. Both are pinned, so a verdict is as true after a restart. |
//! | R4 lost memory | `verdicts`: none for D after a start that found no memory; `born` in the kernel | Whatever was granted before has run out after D. Whatever may have been called dead before was allotted before, and is granted nothing. |
//! | R5 mark | `ebpf/src/permission.rs`; `agent/src/io/kernel` clears a mark of another incarnation at start | A record names the incarnation that verdicts are about. As any other one this node serves nothing, so calling that one dead is enough. |
//! | R6 mark on | `ownership`: only when our own write is answered with success, with the incarnation that it carried; `resources`: or later, when file systems and services run, while that write is still the last one that may have been made | What was read may be about to change by a write of our own that is under way; what was written by compare-and-swap can be changed only by us, or after verdicts against the incarnation that it names. |
//! | R7 release | `ownership`, `resources`: sent when the mark is known to be off and nothing runs or is mounted, or this node is in the list of those to be fenced first (`fencing`); after it, a touch is needed to serve again | Whoever takes after a release finds nobody serving, and a release that lands late lands on a revision that no mark was set for. |
//! | R8 one agent | `agent/src/control/lock.rs`, for the life of the process | Two agents could each count the other's writes as their own. The master's record is one of those below and decides nothing of ownership. |
//! | R9 take | `ownership`: compare-and-swap on the revision whose incarnation a majority calls dead | That majority meets every majority that could grant the lease in a node that never will again. The revision says that the record still names the incarnation that they have called dead. |
//! | R10 members | records are judged in the version that they name or the one after it ([`Members::judges`]); `baton apply` changes one member at a time, and not before the last change is final; adopting a version is a new incarnation (`agent/src/slow/cluster.rs`), and frames of others are neither heard nor granted | Majorities of two lists that differ by one member meet, as majorities of one list do. Of lists further apart, or with other times, nothing is judged. An agent that lags takes nothing that a later list is counted in, so what is final stays so. |
//! | R11 oneself | `verdicts`: of other members only | A node hears itself by no frames and grants itself for ever: its own verdict would be no promise to grant nothing. |
//! | R12 routers | `reroute` keeps the order of writes, marks and bindings; the peer's own lease and mark in its kernel | The owner has stopped answering in the segment before the peer can be named, and the peer has stopped, confirmed, before its entry goes, or is as dead as an owner must be. Nobody takes while a peer may answer. |
//!
//! Safety is tried by the model (`model`, a test), rule by rule, and so is that service comes back where it can.
//!
//! `succession` says who takes what; it is drawn from what every node knows, so that all come to the same answer, and
//! where they don't the compare-and-swap decides. `resources` says when file systems and services run, `fencing` who must not have
//! them mounted then, `storage` which nodes reach them, `balance` evens loads out, `failback` says when something goes back, `heal` what is announced again after
//! a partition.

mod balance;
#[cfg(test)]
mod balance_tests;
mod failback;
mod fencing;
#[cfg(test)]
mod fencing_tests;
mod heal;
mod incarnation;
#[cfg(test)]
mod model;
mod ownership;
mod reroute;
#[cfg(test)]
mod reroute_tests;
mod resources;
#[cfg(test)]
mod resources_stories;
#[cfg(test)]
mod resources_tests;
#[cfg(test)]
mod resources_world;
#[cfg(test)]
mod stand;
mod storage;
#[cfg(test)]
mod storage_tests;
mod succession;
#[cfg(test)]
mod tests;
mod verdicts;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::cluster::{
    Entry, Members, NodePort, NodeRecord, Record, StoreChange, StoreInput, StoreRequest, Wish,
};
use crate::{
    ClusterStart, Effect, EventKind, IfIndex, PeerPort, PeerReading, PeerSample, Reason, TakeTimes, Time,
};

/// A request that the store could not answer is made again after this long.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// After a change of the member list nobody is called dead for so long: agents start anew with it, some later than others.
const NEW_LIST: Duration = Duration::from_secs(2);
/// A node that hears nobody in a segment waits so long for the others to say that they don't either.
const ISOLATED_AFTER: Duration = Duration::from_millis(200);

/// What is known of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cluster {
    members: Members,
    /// This node's name,
    me: String,
    /// and slot.
    slot: u8,
    witness: bool,
    /// The store has been read as a whole.
    loaded: bool,
    /// It answers.
    reachable: bool,
    nodes: BTreeMap<String, NodeRecord>,
    /// Owner records with their revisions.
    records: BTreeMap<String, (Record, u64)>,
    draining: BTreeSet<String>,
    /// Virtual servers that somebody wants elsewhere, and the revision of the wish.
    wishes: BTreeMap<String, (Wish, u64)>,
    /// (voter, about), by slots: dead up to this incarnation.
    #[serde(with = "crate::input::pairs")]
    verdicts: BTreeMap<(u8, u8), u64>,
    /// No verdict of ours before this time.
    mute_until: Time,
    reading: PeerReading,
    read: Time,
    /// Writes of owner records under way.
    writing: BTreeMap<String, Record>,
    /// Virtual servers that are being given up: for whom, and why.
    leaving: BTreeMap<String, (String, Reason)>,
    /// Since when each virtual server could be taken.
    vacant: BTreeMap<String, Time>,
    /// How far this node is with taking them, and their records before.
    taking: BTreeMap<String, (TakeTimes, Option<Record>)>,
    /// With which incarnation this process last wrote each owner record, where nobody has written it since (R6).
    touched: BTreeMap<String, u64>,
    incarnation: incarnation::Change,
    /// When the incarnation last changed.
    switched: Time,
    published: Option<NodeRecord>,
    /// How each other node has been in each segment, as far as this node knows.
    fitness: BTreeMap<String, BTreeMap<String, failback::Fitness>>,
    /// And with each storage unit.
    unit_fitness: BTreeMap<String, BTreeMap<String, failback::Fitness>>,
    /// How each virtual server has been on nodes where its file systems or services have failed.
    fared: BTreeMap<String, BTreeMap<String, failback::Fitness>>,
    /// Minute of the day, local time, as last told.
    minute: Option<u16>,
    /// Segments that this node is out of touch with while others are not: since when.
    isolated_since: BTreeMap<String, Time>,
    had_lease: bool,
    /// When a peer last refused to answer in a segment.
    refused: BTreeMap<String, Time>,
    ask_again: Option<Time>,
    /// When this node's turn to take something comes next, or another one is fit for a failback.
    next_turn: Option<Time>,
    /// What the records were before a write that is under way.
    replaced: BTreeMap<String, Record>,
    balancing: balance::Balancing,
    /// Whom this node has asked to be fenced.
    fences: Vec<fencing::Fence>,
    /// Virtual servers, and a unit of each that no node reaches, as told.
    told_lost: Vec<(String, String)>,
    /// Storage units that others have lost, which this node reads for them.
    reads: Vec<storage::Read>,
    /// The model breaks rule R11 with it.
    #[cfg(test)]
    counts_oneself: bool,
}

impl Cluster {
    pub(super) fn new(start: ClusterStart, node: &str, now: Time) -> Cluster {
        let ClusterStart { members, nodes, witness, lost_memory, new_list, verdicts } = start;
        let slot = members.get(node).map_or(u8::MAX, |m| m.slot);
        let silence = if lost_memory { members.silence() } else { Duration::ZERO };
        let mute_until = now + if new_list { silence.max(NEW_LIST) } else { silence };
        Cluster {
            me: node.to_owned(),
            slot,
            witness,
            loaded: false,
            reachable: true,
            nodes,
            records: BTreeMap::new(),
            draining: BTreeSet::new(),
            wishes: BTreeMap::new(),
            verdicts,
            mute_until,
            reading: PeerReading::default(),
            read: now,
            writing: BTreeMap::new(),
            leaving: BTreeMap::new(),
            vacant: BTreeMap::new(),
            taking: BTreeMap::new(),
            touched: BTreeMap::new(),
            incarnation: incarnation::Change::None,
            switched: Time::default(),
            published: None,
            fitness: BTreeMap::new(),
            unit_fitness: BTreeMap::new(),
            fared: BTreeMap::new(),
            minute: None,
            isolated_since: BTreeMap::new(),
            had_lease: false,
            refused: BTreeMap::new(),
            ask_again: None,
            next_turn: None,
            replaced: BTreeMap::new(),
            balancing: balance::Balancing::default(),
            fences: Vec::new(),
            told_lost: Vec::new(),
            reads: Vec::new(),
            #[cfg(test)]
            counts_oneself: false,
            members,
        }
    }

    /// Has this node a lease? The driver tells when that changes.
    fn has_lease(&self) -> bool {
        self.members.nodes.len() == 1 || self.had_lease
    }

    /// Was this member heard, both ways, within D of `at`?
    fn is_heard(&self, peer: &PeerSample, at: Time) -> bool {
        peer.answered.is_some_and(|t| at.since(t) < self.members.silence())
    }

    /// Has this own port heard a port of another member lately?
    fn hears(&self, port: IfIndex) -> bool {
        let heard = self.reading.ports.iter().find(|(p, _)| *p == port).and_then(|(_, at)| *at);
        heard.is_some_and(|at| self.read.since(at) < self.members.silence())
    }

    /// Do other nodes hear one another in this segment? Of those that this node does not hear by any segment nothing is
    /// known: what they last told of themselves says nothing of now.
    fn lives_elsewhere(&self, segment: &str) -> bool {
        let heard = self.reading.peers.iter().filter(|p| self.is_heard(p, self.read));
        let others = heard.filter_map(|p| self.members.nodes.iter().find(|m| m.slot == p.slot));
        let mut ports = others.filter_map(|m| self.nodes.get(&m.name)).flat_map(|node| &node.ports);
        ports.any(|p| p.segment == segment && p.usable && p.hears)
    }

    fn name(&self, slot: u8) -> String {
        let member = self.members.judged().find(|m| m.slot == slot);
        member.map_or_else(|| format!("#{slot}"), |m| m.name.clone())
    }
}

impl Machine {
    /// Ports of other members that are to be probed.
    pub fn peer_ports(&self) -> Vec<PeerPort> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        crate::path::peer_ports(&cluster.members, &cluster.me, &cluster.nodes)
    }

    /// This node's own verdicts that the others are to know: whom, by slot, up to which incarnation.
    pub fn own_verdicts(&self) -> Vec<(u8, u64)> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let peers = cluster.reading.peers.iter();
        let verdicts = peers.map(|p| (p.slot, cluster.verdict(cluster.slot, p.slot), cluster.latest(p)));
        let fresh = verdicts.filter(|&(_, verdict, latest)| verdict != 0 && verdict >= latest);
        fresh.map(|(slot, verdict, _)| (slot, verdict)).collect()
    }

    pub(super) fn peers_read(&mut self, reading: PeerReading) {
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return };
        let before = std::mem::replace(&mut cluster.reading, reading);
        let read = std::mem::replace(&mut cluster.read, now);
        let has = cluster.reading.lease.is_some_and(|end| now < end);
        let changed = has != std::mem::replace(&mut cluster.had_lease, has);
        if changed {
            self.event(if has { EventKind::LeaseBegins } else { EventKind::LeaseOver });
        }
        self.announce_to_returned(&before, read, has && changed);
    }

    pub(super) fn store(&mut self, input: StoreInput) {
        match input {
            StoreInput::All(changes) => {
                let Some(cluster) = &mut self.cluster else { return };
                cluster.loaded = true;
                let before = std::mem::take(&mut cluster.records);
                let touched = cluster.touched.clone();
                cluster.nodes.clear();
                cluster.draining.clear();
                cluster.wishes.clear();
                cluster.balancing.forget_all();
                changes.into_iter().for_each(|c| self.store_changed(c));
                // What was read later than this view is not undone by it.
                let Some(cluster) = &mut self.cluster else { return };
                cluster.nodes.extend(cluster.published.clone().map(|node| (cluster.me.clone(), node)));
                for (server, (record, revision)) in before {
                    // Nobody has written since.
                    if cluster.records.get(&server).is_none_or(|(_, r)| *r <= revision)
                        && let Some(incarnation) = touched.get(&server)
                    {
                        cluster.touched.insert(server.clone(), *incarnation);
                    }
                    if cluster.records.get(&server).is_none_or(|(_, r)| *r < revision) {
                        cluster.records.insert(server, (record, revision));
                    }
                }
            }
            StoreInput::Changed(changes) => changes.into_iter().for_each(|c| self.store_changed(c)),
            StoreInput::Written { server, record, revision } => self.written(&server, record, revision),
            StoreInput::NotWritten { server, current } => self.not_written(&server, current),
            StoreInput::Incarnation(incarnation) => self.allotted(incarnation),
            StoreInput::Failed(request, error) => self.store_failed(request, error),
            StoreInput::Reachable(reachable) => {
                let Some(cluster) = &mut self.cluster else { return };
                if std::mem::replace(&mut cluster.reachable, reachable) != reachable {
                    self.event(if reachable { EventKind::StoreBack } else { EventKind::StoreLost });
                }
            }
        }
    }

    fn store_changed(&mut self, change: StoreChange) {
        let Some(cluster) = &mut self.cluster else { return };
        let StoreChange { revision, entry } = change;
        match entry {
            Entry::Node(name, Some(node)) => {
                if name != cluster.me {
                    let before = cluster.nodes.insert(name, node.clone());
                    self.announce_to_node(before.as_ref(), &node);
                } else if cluster.published.as_ref() != Some(&node) {
                    // An older write of ours may land after a newer one: what others read must be what is.
                    cluster.published = None;
                }
            }
            Entry::Node(name, None) => {
                if name == cluster.me {
                    cluster.published = None;
                } else {
                    cluster.nodes.remove(&name);
                }
            }
            Entry::Record(server, record) => self.learn(&server, record.map(|r| (r, revision)), revision),
            Entry::Drain(node, true) => {
                if cluster.draining.insert(node.clone()) {
                    self.event(EventKind::Draining { node });
                }
            }
            Entry::Drain(node, false) => {
                if cluster.draining.remove(&node) {
                    self.event(EventKind::Resumed { node });
                }
            }
            Entry::Move(server, Some(to)) => {
                cluster.wishes.insert(server, (to, revision));
            }
            Entry::Load(node, Some(load)) => cluster.balancing.told_by(node, load),
            Entry::Load(node, None) => {
                cluster.balancing.forget(&node);
                if node == cluster.me {
                    cluster.balancing.tell_again();
                }
            }
            Entry::Move(server, None) => {
                cluster.wishes.remove(&server);
            }
            // The agent starts anew with these.
            Entry::Members(_) | Entry::Generation(_) | Entry::Incarnation(..) => {}
        }
    }

    fn store_failed(&mut self, request: StoreRequest, error: String) {
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return };
        cluster.ask_again.get_or_insert(now + ASK_AGAIN);
        let what = match request {
            StoreRequest::Write { server, .. } => {
                cluster.writing.remove(&server);
                cluster.touched.remove(&server); // what was to be written may be yet
                format!("write the owner record of {server}")
            }
            StoreRequest::NewIncarnation { .. } => {
                cluster.incarnation = incarnation::Change::None;
                "take a new incarnation".to_owned()
            }
            StoreRequest::Publish(_) => "publish this node's record".to_owned(),
            StoreRequest::PublishLoad(_) => {
                cluster.balancing.tell_again();
                "publish this node's load".to_owned()
            }
            StoreRequest::Wish { server, .. } => format!("ask for a move of {server}"),
            StoreRequest::MoveDone { server, .. } => format!("remove the wish to move {server}"),
        };
        self.tell_failure(what, error);
    }

    /// Asks for whatever should be and is neither so nor under way.
    pub(super) fn settle(&mut self) {
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return self.settle_alone() };
        if cluster.ask_again.is_some_and(|t| t <= now) {
            cluster.ask_again = None;
        }
        self.give_verdicts();
        self.follow_segments();
        self.read_for_others();
        self.publish_node();
        self.attend_to_resources();
        if self.cluster.as_ref().is_none_or(|c| !c.loaded || c.ask_again.is_some()) {
            return;
        }
        self.change_incarnation();
        self.settle_fences();
        self.settle_ownership();
        self.tell_lost_everywhere();
    }

    /// When something is due that no input will tell of.
    pub(super) fn cluster_deadline(&self) -> Option<Time> {
        let cluster = self.cluster.as_ref()?;
        let isolated = cluster.isolated_since.values().map(|t| *t + ISOLATED_AFTER).filter(|t| *t > self.now);
        let routers = cluster.refused.values().map(|t| *t + reroute::ASK_AGAIN);
        let routers = routers.filter(|t| *t > self.now);
        let resources = self.cluster_resources_deadline();
        let turns = cluster.ask_again.into_iter().chain(cluster.next_turn).chain(resources);
        let turns = turns.chain(self.fence_deadline()).chain(self.storage_deadline());
        turns.chain(isolated).chain(routers).min()
    }

    fn publish_node(&mut self) {
        let node = NodeRecord {
            incarnation: self.incarnation,
            witness: self.cluster.as_ref().is_some_and(|c| c.witness),
            capacity_percent: self.config.as_ref().map_or(100, |c| c.capacity_percent),
            ports: self.ports.iter().filter_map(|p| self.node_port(p)).collect(),
            lost_units: self.lost_units(),
            lost_at: self.lost_at(),
            read_since: self.cluster.as_ref().map_or(Vec::new(), Cluster::has_read),
            unserved: self.unserved(),
        };
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.published.as_ref() != Some(&node) {
            cluster.published = Some(node.clone());
            cluster.nodes.insert(cluster.me.clone(), node.clone());
            self.out.push(Effect::Store(StoreRequest::Publish(node)));
        }
    }

    fn node_port(&self, port: &super::ports::Port) -> Option<NodePort> {
        let link = port.link.as_ref().filter(|l| l.mac != [0; 6])?;
        Some(NodePort {
            number: link.ifindex.0,
            interface: port.interface.clone(),
            segment: port.segment.clone(),
            mac: link.mac,
            usable: port.is_usable() && !self.is_isolated(&port.segment),
            hears: self.cluster.as_ref().is_some_and(|c| c.hears(link.ifindex)),
        })
    }

    /// Has this node been out of touch with a segment for a while, in which others hear one another? Its own ports can't tell that
    /// from a switch that is dead.
    pub(super) fn is_isolated(&self, segment: &str) -> bool {
        let since = self.cluster.as_ref().and_then(|c| c.isolated_since.get(segment));
        since.is_some_and(|t| *t + ISOLATED_AFTER <= self.now)
    }

    /// Keeps since when this node is out of touch with which segments.
    fn follow_segments(&mut self) {
        let now = self.now;
        let segments = self.segments();
        let Some(cluster) = &mut self.cluster else { return };
        for segment in segments {
            let own =
                self.ports.iter().filter(|p| p.segment == segment).filter_map(super::ports::Port::ifindex);
            let probed: Vec<_> = own.filter(|i| cluster.reading.ports.iter().any(|(p, _)| p == i)).collect();
            let out_of_touch = cluster.has_lease()
                && !probed.is_empty()
                && !probed.iter().any(|i| cluster.hears(*i))
                && cluster.lives_elsewhere(&segment);
            if out_of_touch {
                cluster.isolated_since.entry(segment).or_insert(now);
            } else {
                cluster.isolated_since.remove(&segment);
            }
        }
    }
}
