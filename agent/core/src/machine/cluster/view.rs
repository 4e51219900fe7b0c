//! What is published of the cluster.

use std::collections::BTreeMap;

use super::super::resources::Phase;
use super::super::{Machine, Server};
use super::Cluster;
use crate::cluster::{MASTER, Member, NodePort};
use crate::plan::NodeState;
use crate::{NodePortView, NodeView};

impl Cluster {
    /// Node that owns a virtual server, how it is there, as far as this node knows, and the epoch.
    fn standing(&self, server: &str) -> (Option<String>, &'static str, u64) {
        let Some((record, _)) = self.records.get(server) else { return (None, "stopped", 0) };
        if record.released.is_some() {
            return (None, "starting", record.epoch);
        }
        if self.is_dead(record) {
            return (Some(record.node.clone()), "failed", record.epoch); // however its next incarnation is
        }
        let slot = self.members.get(&record.node).map(|m| m.slot);
        let state = match slot.map(|slot| self.node_state(&record.node, slot)) {
            // The owner, too: nobody else can have it.
            Some(NodeState::Up | NodeState::Draining) if record.failed_on.contains(&record.node) => "failed",
            Some(NodeState::Up | NodeState::Draining) if !record.unfenced.is_empty() => "starting",
            Some(NodeState::Up | NodeState::Draining) => self.told_of(server, &record.node),
            Some(NodeState::Dead | NodeState::Unknown) | None => "failed",
        };
        (Some(record.node.clone()), state, record.epoch)
    }

    /// How its owner tells that it is.
    fn told_of(&self, server: &str, owner: &str) -> &'static str {
        let told = self.nodes.get(owner).and_then(|node| node.unserved.get(server));
        match told.map(String::as_str) {
            None => "serving",
            Some("stopping") => "stopping",
            Some("failed") => "failed",
            Some(_) => "starting",
        }
    }
}

impl Machine {
    pub(in crate::machine) fn cluster_master(&self) -> Option<String> {
        let cluster = self.cluster.as_ref()?;
        let (record, _) = cluster.records.get(MASTER)?;
        let in_charge = record.released.is_none() && !cluster.is_dead(record);
        in_charge.then(|| record.node.clone())
    }

    /// A majority is connected, and what is left of the lease, as of the last reading.
    pub(in crate::machine) fn cluster_lease(&self) -> (bool, Option<u64>) {
        let Some(cluster) = &self.cluster else { return (true, None) };
        if cluster.members.nodes.len() == 1 {
            return (true, None);
        }
        let left = cluster.reading.lease.unwrap_or_default().since(cluster.read);
        (cluster.has_lease(), Some(left.as_millis() as u64))
    }

    pub(in crate::machine) fn cluster_nodes(&self, own_load: f64) -> Option<Vec<NodeView>> {
        let cluster = self.cluster.as_ref()?;
        let port = |p: &NodePort| NodePortView {
            interface: p.interface.clone(),
            segment: p.segment.clone(),
            usable: p.usable,
        };
        let view = |m: &Member| {
            let record = cluster.nodes.get(&m.name);
            NodeView {
                name: m.name.clone(),
                state: cluster.node_state(&m.name, m.slot).name().to_owned(),
                load: if m.slot == cluster.slot { own_load } else { cluster.load_of(&m.name) },
                witness: record.is_some_and(|r| r.witness),
                ports: record.map(|r| r.ports.iter().map(port).collect()).unwrap_or_default(),
            }
        };
        Some(cluster.members.nodes.iter().map(view).collect())
    }

    /// What this node owns and does not serve, where it has file systems or services: how it is. The others can't tell otherwise.
    pub(super) fn unserved(&self) -> BTreeMap<String, String> {
        let Some(cluster) = &self.cluster else { return BTreeMap::new() };
        let own = |server: &&Server| {
            let record = cluster.records.get(&server.name).map(|(r, _)| r);
            let owns = record.is_some_and(|r| cluster.is_own(r) && r.released.is_none());
            owns && server.resources.is_some() && !server.marked
        };
        let how = |server: &Server| (server.name.clone(), self.server_state(server, &[]).to_owned());
        self.servers.iter().filter(own).map(how).collect()
    }

    /// Owner, state and epoch of a virtual server, the state only where it isn't this node's to serve; `None`: there is no cluster.
    pub(in crate::machine) fn cluster_standing(
        &self,
        server: &str,
    ) -> Option<(Option<String>, Option<&'static str>, u64)> {
        let cluster = self.cluster.as_ref()?;
        if cluster.leaving.contains_key(server) {
            let is_stuck = |i| self.phase(i) == Some(Phase::Stuck);
            let stuck = self.servers.iter().position(|s| s.name == server).is_some_and(is_stuck);
            let state = if stuck { "failed" } else { "stopping" };
            return Some((Some(cluster.me.clone()), Some(state), cluster.standing(server).2));
        }
        let (owner, state, epoch) = cluster.standing(server);
        let state = match &owner {
            Some(owner) if *owner == cluster.me && cluster.has_lease() => None,
            Some(owner) if *owner == cluster.me => Some("failed"),
            Some(_) | None => Some(state),
        };
        Some((owner, state, epoch))
    }

    /// Why a virtual server that is not served isn't, where that has to do with fencing or storage.
    pub(in crate::machine) fn why_not(&self, server: &str) -> Option<String> {
        let cluster = self.cluster.as_ref()?;
        self.why_unfenced(cluster, server).or_else(|| self.why_no_storage(cluster, server))
    }

    /// The store answers, and has been read.
    pub(in crate::machine) fn store_answers(&self) -> bool {
        self.cluster.as_ref().is_none_or(|c| c.reachable && c.loaded)
    }
}
