//! What the nodes of a cluster share through the store, as plain values. `lease.md` in the words of this module: a
//! [`Members`] is a version of the member list (rule R10), a [`Record`] is an owner record (R5, R6, R7, R9).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Reason, Time};

// Nodes of two versions may share a store while a cluster is upgraded. So of every record: what a version doesn't know it passes over,
// and what a version before didn't write has a default that means what that version meant. A record that is written by a node of the
// version before loses what that one doesn't know: a new field must be safe to lose.

/// One version of the member list, and the times that belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Counts up from 1 with every change.
    pub version: u32,
    /// Time between two probes of a path; 1 ms to 1 s.
    pub probe_interval: Duration,
    /// How long a grant lasts: L.
    pub lease: Duration,
    /// What rounding, and queueing behind the kernel programs, may take.
    pub slack: Duration,
    /// By how many parts in a million the rates of two nodes' clocks may differ: rho.
    pub rho_ppm: u32,
    /// The members, sorted by name.
    pub nodes: Vec<Member>,
    /// Those of the version before, where that had the same times, and at most one member more or less; otherwise nobody.
    /// Any majority of the one then meets any of the other: what was counted in it may be judged in this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Member>,
}

/// A member: a node with a vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name of the node.
    pub name: String,
    /// Its place in every node's tables, below `baton_common::MAX_MEMBERS`; kept for as long as it is a member.
    pub slot: u8,
}

impl Members {
    /// How many members are a majority.
    pub fn majority(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// D: how long nothing may have been heard before a member is called dead; L(1 + rho) + slack.
    pub fn silence(&self) -> Duration {
        self.lease + self.lease * self.rho_ppm / 1_000_000 + self.slack
    }

    /// The member of this name.
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.nodes.iter().find(|m| m.name == name)
    }

    /// The member that the version before had and this one has not, if there is one: it may still own something.
    pub fn departed(&self) -> Option<&Member> {
        self.before.iter().find(|m| self.get(&m.name).is_none())
    }

    /// Everybody who may be called dead: the members, and the one that has departed.
    pub fn judged(&self) -> impl Iterator<Item = &Member> {
        self.nodes.iter().chain(self.departed())
    }

    /// Do verdicts of a majority of this version's members end a lease that was counted in that version?
    pub fn judges(&self, version: u32) -> bool {
        version == self.version || (!self.before.is_empty() && version.checked_add(1) == Some(self.version))
    }
}

/// The master's record is one like those of virtual servers, with nothing to serve: taken by compare-and-swap, at once when a
/// majority calls the master dead, and what it writes is fenced by its epoch. No virtual server can have this name.
pub const MASTER: &str = "@master";

/// Who owns a virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the node.
    pub node: String,
    /// Its incarnation when it wrote this.
    pub incarnation: u64,
    /// Version of the member list that its lease is counted in, and verdicts against it.
    pub members: u32,
    /// How often ownership has changed hands, this take included.
    pub epoch: u64,
    /// Whom it was taken from, and as which incarnation, where a majority called that one dead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub taken_from: Option<(String, u64)>,
    /// Set: the node has released the virtual server, and serves it no more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub released: Option<Release>,
    /// Peers that answer for its addresses in segments that the node has lost (rule R12).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub via: Vec<Via>,
    /// Nodes where its file systems and services have failed since they last ran somewhere for a while, in that order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub failed_on: Vec<String>,
    /// Nodes, and their incarnations, that may still have its file systems mounted: each is to be fenced, or to say itself that
    /// it has not, before they are started.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unfenced: Vec<(String, u64)>,
}

impl Record {
    /// Of a node that has just taken the virtual server, and of nobody else.
    pub fn of(node: &str, incarnation: u64, members: u32, epoch: u64) -> Record {
        Record {
            node: node.to_owned(),
            incarnation,
            members,
            epoch,
            taken_from: None,
            released: None,
            via: Vec::new(),
            failed_on: Vec::new(),
            unfenced: Vec::new(),
        }
    }
}

/// A peer that answers for the addresses of one segment and routes to the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    /// The segment.
    pub segment: String,
    /// Name of the peer.
    pub node: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Version of the member list that its lease is counted in.
    pub members: u32,
    /// The segment between the two.
    pub over: String,
    /// How far it is.
    pub state: ViaState,
}

/// How far a peer is with answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViaState {
    /// The owner has stopped answering in the segment and asks the peer to.
    Asked,
    /// The peer has written this, and answers.
    Answering,
    /// The owner wants it to stop. The peer removes its entry when it has.
    Ending,
}

/// A release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Who is to take it. Others do only when it is dead, or lets a while go by.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
    /// Why it was released. A reason that only a later version knows says as much as that one was there.
    #[serde(deserialize_with = "known_reason")]
    pub reason: Reason,
    /// How long it took to stop its file systems and services, where it has any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stopping: Option<Duration>,
}

/// A release counts, whatever its reason: it is told, and nothing is decided by it.
fn known_reason<'de, D: Deserializer<'de>>(d: D) -> Result<Reason, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Told {
        Known(Reason),
        Unknown(serde::de::IgnoredAny),
    }
    Ok(match Told::deserialize(d)? {
        Told::Known(reason) => reason,
        Told::Unknown(_) => Reason::Administrator,
    })
}

/// What a node tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its incarnation.
    pub incarnation: u64,
    /// It has a vote and takes no virtual servers.
    pub witness: bool,
    /// What it can bear, in percent of an ordinary node.
    #[serde(default = "crate::config::hundred")]
    pub capacity_percent: u32,
    /// Its ports.
    pub ports: Vec<NodePort>,
    /// Storage units that it does not reach.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lost_units: Vec<String>,
    /// When it lost each of them, by its own clock: tells one loss from another.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub lost_at: BTreeMap<String, Time>,
    /// What it has read since another node said that it had lost it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub read_since: Vec<UnitRead>,
    /// Virtual servers with file systems or services that it owns and does not serve: how they are, in one word.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub unserved: BTreeMap<String, String>,
}

/// A storage unit was read after a node had said that it does not reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRead {
    /// The unit.
    pub unit: String,
    /// The node that has lost it,
    pub node: String,
    /// and when, by that node's clock.
    pub lost_at: Time,
}

impl Default for NodeRecord {
    fn default() -> Self {
        NodeRecord {
            incarnation: 0,
            witness: false,
            capacity_percent: 100,
            ports: Vec::new(),
            lost_units: Vec::new(),
            lost_at: BTreeMap::new(),
            read_since: Vec::new(),
            unserved: BTreeMap::new(),
        }
    }
}

/// What a node has measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// The virtual servers that it serves: their loads, in millionths of what an ordinary node can give.
    pub servers: BTreeMap<String, u32>,
    /// What is used of its processors and memory by something else than virtual servers, in millionths of what the node has.
    pub other: u32,
}

/// Somebody wants a virtual server to be on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Which node.
    pub to: String,
    /// Why: [`Reason::Administrator`] or [`Reason::Balance`].
    pub reason: Reason,
    /// Epoch of the master who wants it. Of another one than the present it is void.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub master: Option<u64>,
}

impl Wish {
    /// An administrator's.
    pub fn administrator(to: &str) -> Wish {
        Wish { to: to.to_owned(), reason: Reason::Administrator, master: None }
    }
}

/// A port of a node, for the others to probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodePort {
    /// Its number in probe frames: its interface index.
    pub number: u32,
    /// Its interface.
    pub interface: String,
    /// Its segment.
    pub segment: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Clients can be served by it, as far as is known.
    pub usable: bool,
    /// It hears ports of other members: the segment lives here.
    #[serde(default)]
    pub hears: bool,
}

/// One key of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// The member list.
    Members(Members),
    /// What a node tells of itself; `None`: the key is gone.
    Node(String, Option<NodeRecord>),
    /// The highest incarnation ever allotted to a node.
    Incarnation(String, u64),
    /// An owner record, by virtual server; `None`: it never had an owner.
    Record(String, Option<Record>),
    /// An administrator wants this node to be empty.
    Drain(String, bool),
    /// Somebody wants this virtual server to go to a node; `None`: no longer.
    Move(String, Option<Wish>),
    /// What a node has measured; `None`: the key is gone.
    Load(String, Option<NodeLoad>),
    /// The generation of the definitions that is in force.
    Generation(u64),
}

/// A key of the store, as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreChange {
    /// The revision that it was last changed in (etcd: mod_revision; of a key that is gone, that of its removal).
    pub revision: u64,
    /// The key and its value.
    pub entry: Entry,
}

/// What the store tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreInput {
    /// Every key there is, read linearizably. Keys known before that aren't among them are gone.
    All(Vec<StoreChange>),
    /// Keys that have changed, in the order of their revisions.
    Changed(Vec<StoreChange>),
    /// Our own write of an owner record succeeded (rule R6).
    Written {
        /// The virtual server.
        server: String,
        /// What was written.
        record: Record,
        /// The revision that it has now.
        revision: u64,
    },
    /// Our own write failed, or its outcome is not known: this is what the store held afterwards, read linearizably.
    NotWritten {
        /// The virtual server.
        server: String,
        /// Its record and the revision of that.
        current: Option<(Record, u64)>,
    },
    /// An incarnation was allotted to this node.
    Incarnation(u64),
    /// A request was not carried out, and never will be; or, a write of an owner record, may have been or may yet be: the
    /// store can't be reached.
    Failed(StoreRequest, String),
    /// Requests are answered, or not: no member of the store with a leader can be reached.
    Reachable(bool),
}

/// What is asked of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreRequest {
    /// Write an owner record if the key still has this revision (0: it must not exist). Answered by
    /// [`StoreInput::Written`], [`StoreInput::NotWritten`] or [`StoreInput::Failed`].
    Write {
        /// The virtual server.
        server: String,
        /// The revision.
        expected: u64,
        /// The record.
        record: Record,
    },
    /// Allot this node an incarnation higher than all before and than `above`. Answered by [`StoreInput::Incarnation`] or [`StoreInput::Failed`].
    NewIncarnation {
        /// See there.
        above: u64,
    },
    /// Tell the others of this node. The latest is what counts; it is sent again until it is there.
    Publish(NodeRecord),
    /// Tell the others what this node has measured. As [`StoreRequest::Publish`].
    PublishLoad(NodeLoad),
    /// The master wants a virtual server elsewhere: write that, if nobody else wants something, and the master's record still has
    /// this revision. Whether it was written is seen by [`Entry::Move`].
    Wish {
        /// The virtual server.
        server: String,
        /// Revision of the master's record.
        master: u64,
        /// What is wanted.
        wish: Wish,
    },
    /// A wish is fulfilled, or can't be: remove it, if it still has this revision.
    MoveDone {
        /// The virtual server.
        server: String,
        /// The revision.
        revision: u64,
    },
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
