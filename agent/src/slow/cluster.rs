//! How a node joins its cluster: what the store defines, this node's incarnation, and what the kernel still holds of an
//! earlier agent (lease.md, R2, R4, R10).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use baton_common::SipKey;
use baton_core::cluster::{Entry, Members, NodeRecord};
use baton_core::{ClusterStart, Config};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use super::{RunError, probe_key};
use crate::config::{
    ClusterConfig, Definitions, DefinitionsError, EtcdConfig, Fencing, Resources, StorageUnit,
};
use crate::fast::{Membership, StoreLink};
use crate::io::kernel::{Kernel, node_number};
use crate::secrets;
use crate::store::etcd::{self, Etcd, EtcdError, Known};

/// Requests under way to the store; a full channel fails them, and core asks again.
const REQUESTS: usize = 1024;
/// Inputs under way from the store; it waits.
const INPUTS: usize = 256;
/// How often a store that is not ready is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// In the state folder: what the store last defined, for an agent that is restarted while the store is lost.
const CACHE: &str = "cluster.json";

/// What a node starts with.
pub(super) struct Joined {
    pub config: Config,
    /// File systems and services of the virtual servers that have any.
    pub resources: Vec<Resources>,
    /// How nodes are fenced.
    pub fencing: Fencing,
    /// What nodes must reach.
    pub units: Vec<StorageUnit>,
    pub incarnation: u64,
    pub key: SipKey,
    /// `None`: it is alone.
    pub cluster: Option<Joining>,
}

/// When a node that goes on with new definitions may start anew: one after the other, in the order of their slots, for a
/// lease needs one live agent of each two. Everything is served on meanwhile.
pub(super) struct Turn {
    etcd: Etcd,
    node: String,
    known: Known,
    /// The members that go first.
    earlier: Vec<String>,
}

/// How long to wait for each of those that go first; one that is dead takes nothing up.
const EACH_TURN: Duration = Duration::from_secs(5);

impl Turn {
    /// Tells the others that this node has started with what it knows.
    pub(super) async fn is_over(&self) {
        if let Err(e) = self.etcd.set_adopted(&self.node, self.known.generation).await {
            tracing::warn!("the other nodes don't know that this one has taken up the definitions: {e}");
        }
    }

    /// Ends when it is this node's turn: those before it have started, or a while has gone by. A new member list is taken up by
    /// all at once, for nodes with different ones grant one another nothing.
    pub(super) async fn comes(&self) {
        let start = tokio::time::Instant::now();
        let patience = EACH_TURN * self.earlier.len() as u32;
        while start.elapsed() < patience {
            let members = self.etcd.members().await;
            if members.is_ok_and(|m| m.is_none_or(|(m, _)| m.version != self.known.members)) {
                return;
            }
            if let Ok(adopted) = self.etcd.adopted().await {
                let has = |node: &String| adopted.get(node).is_some_and(|g| *g > self.known.generation);
                if self.earlier.iter().all(has) {
                    return;
                }
            }
            tokio::time::sleep(ASK_AGAIN / 4).await;
        }
    }
}

/// The cluster's part of that.
pub(super) struct Joining {
    etcd: Etcd,
    /// Of the thread that waits: connections belong to the thread that made them.
    idle: Etcd,
    /// Of the thread that shares connections.
    connections: Etcd,
    known: Known,
    pub start: ClusterStart,
    pub membership: Membership,
}

/// What the store defines.
#[derive(Serialize, Deserialize)]
struct Defined {
    generation: u64,
    definitions: String,
    members: Members,
    /// What the nodes told of themselves.
    #[serde(default)]
    nodes: BTreeMap<String, NodeRecord>,
}

/// Waits for the store, and prepares the kernel programs. `None`: told to stop meanwhile.
pub(super) fn join(
    own: &Config,
    etcd_config: &EtcdConfig,
    cluster: &ClusterConfig,
    state: &Path,
    kernel: &mut Kernel,
) -> Result<Option<Joined>, RunError> {
    let key = probe_key::load_shared(&cluster.key_file)?;
    let etcd = Etcd::new(etcd_config)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Start)?;
    let joined = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Start)?;
        tokio::select! {
            _ = terminate.recv() => Ok(None),
            _ = interrupt.recv() => Ok(None),
            joined = prepare(own, &etcd, cluster, state, kernel) => joined.map(Some),
        }
    })?;
    // What the store told meanwhile is read again by the thread that serves it, on connections of its own.
    let (etcd, idle) = (Etcd::new(etcd_config)?, Etcd::new(etcd_config)?);
    let connections = Etcd::new(etcd_config)?;
    Ok(joined.map(|((config, definitions), incarnation, known, start, membership)| Joined {
        config,
        resources: definitions.resources,
        fencing: definitions.fencing,
        units: definitions.units,
        incarnation,
        key,
        cluster: Some(Joining { etcd, idle, connections, known, start, membership }),
    }))
}

async fn prepare(
    own: &Config,
    etcd: &Etcd,
    cluster: &ClusterConfig,
    state: &Path,
    kernel: &mut Kernel,
) -> Result<((Config, Definitions), u64, Known, ClusterStart, Membership), RunError> {
    let lease = kernel.lease()?;
    let lost_memory = lease.incarnation == 0 || lease.members == 0;
    let defined = defined(etcd, &state.join(CACHE), !lost_memory).await;
    let Defined { generation, definitions, members, nodes } = defined;
    let (definitions, _) = Definitions::parse(&definitions, "definitions")
        .map_err(|e| RunError::Unreadable { generation, error: e.to_string() })?;
    // Not refused: who changes the definitions would stop all nodes with it, and who can't fence can't take over.
    for exposed in secrets::exposed(&secrets::of_fencing(&definitions.fencing)) {
        tracing::error!("{exposed}");
    }
    let config = definitions.node_config(own)?;
    let slot = members.get(&own.node).map(|m| m.slot);
    let slot = slot.ok_or_else(|| DefinitionsError::Member { node: own.node.clone() })?;
    // Adopting another version is a new incarnation (R10), and so is a start without memory (R2).
    let same = lease.members == members.version && lease.length_ns == members.lease.as_nanos() as u64;
    let incarnation = match same && !lost_memory {
        true => lease.incarnation,
        false => persist(|| etcd.next_incarnation(&own.node, lease.incarnation)).await,
    };
    if lost_memory {
        persist(|| etcd.withdraw_promise(&own.node)).await;
    }
    let mut table = kernel.peer_table()?;
    for member in members.judged().filter(|m| m.slot != slot) {
        // Without memory nothing is granted to what may have been refused before (R4).
        let born = match lost_memory {
            true => persist(|| etcd.last_incarnation(&member.name)).await + 1,
            false => 0,
        };
        table.prepare(member.slot, node_number(&member.name), lost_memory, born)?;
    }
    let verdicts = table.verdicts(slot)?;
    let start = ClusterStart {
        members: members.clone(),
        nodes,
        witness: cluster.witness,
        lost_memory,
        new_list: lease.members != members.version,
        verdicts,
    };
    let known = Known { generation, members: members.version };
    Ok(((config, definitions), incarnation, known, start, Membership { table, members, slot }))
}

/// Does what the store last defined know what the node's own file names? Where nothing is known of that yet, it may.
pub(super) fn fits(own: &Config, state: &Path) -> Result<(), DefinitionsError> {
    let read = || serde_json::from_str::<Defined>(&std::fs::read_to_string(state.join(CACHE)).ok()?).ok();
    let parse = |defined: Defined| Definitions::parse(&defined.definitions, "definitions").ok();
    match read().and_then(parse) {
        Some((definitions, _)) => definitions.node_config(own).map(drop),
        None => Ok(()),
    }
}

/// What the store defines. Where it can't be reached and `cached` is permitted, what it last defined.
async fn defined(etcd: &Etcd, cache: &Path, cached: bool) -> Defined {
    let mut told = String::new();
    loop {
        let problem = match read(etcd).await {
            Ok(Some(defined)) => {
                let text = serde_json::to_string(&defined).unwrap_or_default();
                if let Err(e) = std::fs::write(cache, text) {
                    tracing::warn!("{}: {e}", cache.display());
                }
                return defined;
            }
            Ok(None) => {
                "the cluster has no definitions yet: run `baton apply FILE` on one of its nodes".to_owned()
            }
            Err(e) => {
                let read = || serde_json::from_str(&std::fs::read_to_string(cache).ok()?).ok();
                if cached && let Some(defined) = read() {
                    tracing::warn!("{e}; going on with what it last defined");
                    return defined;
                }
                e.to_string()
            }
        };
        if problem != told {
            tracing::warn!("waiting: {problem}");
            told = problem;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn read(etcd: &Etcd) -> Result<Option<Defined>, EtcdError> {
    let Some((members, _)) = etcd.members().await? else { return Ok(None) };
    let Some((generation, definitions)) = etcd.definitions().await? else { return Ok(None) };
    let nodes = etcd.load().await?.0.into_iter().filter_map(|c| match c.entry {
        Entry::Node(name, Some(node)) => Some((name, node)),
        _ => None,
    });
    Ok(Some(Defined { generation, definitions, members, nodes: nodes.collect() }))
}

/// Asks until there is an answer.
async fn persist<T>(ask: impl AsyncFn() -> Result<T, EtcdError>) -> T {
    let mut told = false;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(e) if !told => tracing::warn!("waiting: {e}"),
            Err(_) => {}
        }
        told = true;
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

impl Joining {
    /// Its turn to take up the next definitions.
    pub(super) fn turn(&self) -> Turn {
        let Membership { members, slot, .. } = &self.membership;
        let own = members.nodes.iter().find(|m| m.slot == *slot);
        let earlier = members.nodes.iter().filter(|m| m.slot < *slot);
        Turn {
            etcd: self.idle.clone(),
            node: own.map(|m| m.name.clone()).unwrap_or_default(),
            known: self.known,
            earlier: earlier.map(|m| m.name.clone()).collect(),
        }
    }

    /// The store, for the thread that shares connections, and the generation of the definitions that this node starts with.
    pub(super) fn sharing(&self) -> (Etcd, u64) {
        (self.connections.clone(), self.known.generation)
    }

    /// Starts the thread that keeps the store. `changed` is told when there is something that a run must start anew with.
    pub(super) fn spawn_store(
        &self,
        node: &str,
        changed: Arc<Notify>,
    ) -> io::Result<(StoreLink, JoinHandle<()>)> {
        let (requests, requests_rx) = mpsc::channel(REQUESTS);
        let (inputs_tx, inputs) = mpsc::channel(INPUTS);
        let news = etcd::News { known: self.known, changed };
        let thread = etcd::spawn(self.etcd.clone(), node.to_owned(), requests_rx, inputs_tx, news)?;
        Ok((StoreLink { requests, inputs }, thread))
    }
}
