//! The snapshot: what is published of the machine.

use super::ports::Programs;
use super::resources::Resources;
use super::{Machine, Server, Vip};
use crate::{AddressView, ConflictView, NodePortView, NodeView, PortView, ServerView, Snapshot, Time};

impl Machine {
    /// The published view as of `now`.
    pub fn snapshot(&self, now: Time) -> Snapshot {
        let node = self.config.as_ref().map(|c| c.node.clone()).unwrap_or_default();
        let own_port = |p: &super::ports::Port| NodePortView {
            interface: p.interface.clone(),
            segment: p.segment.clone(),
            usable: p.is_usable(),
        };
        let alone = || {
            let ports = self.ports.iter().map(own_port).collect();
            let (name, state) = (node.clone(), "up".into());
            vec![NodeView { name, state, load: self.node_load(), witness: false, ports }]
        };
        let (quorum, lease_ms) = self.cluster_lease();
        Snapshot {
            incarnation: self.incarnation,
            master: if self.cluster.is_some() { self.cluster_master() } else { Some(node.clone()) },
            quorum,
            lease_ms,
            store: self.store_answers(),
            nodes: self.cluster_nodes(self.node_load()).unwrap_or_else(alone),
            ports: (0..self.ports.len()).map(|p| self.port_view(p, now)).collect(),
            virtual_servers: (0..self.servers.len()).map(|s| self.server_view(s, &node)).collect(),
            segments: self.segment_views(),
            paths: self.path_views(),
            targets: self.target_views(),
            conflicts: self.conflicts.iter().map(|c| self.conflict_view(c)).collect(),
            storage: self.storage_views(),
            failovers: self.failovers,
            advice: self.advice(),
            node,
        }
    }

    fn port_view(&self, p: usize, now: Time) -> PortView {
        let port = &self.ports[p];
        PortView {
            interface: port.interface.clone(),
            segment: port.segment.clone(),
            state: port.state,
            reason: port.reason(),
            carrier: port.has_carrier(),
            present: port.ifindex().is_some(),
            attachment: match port.programs {
                Programs::On(a) => Some(a),
                Programs::Asked | Programs::Refused => None,
            },
            held_ms: port.held_until().map(|t| t.since(now).as_millis() as u64),
            flaps: port.flaps,
            addresses: self.on_port(p).count(),
            rate: self.on_port(p).map(|v| v.rate as u64).sum(),
        }
    }

    fn on_port(&self, p: usize) -> impl Iterator<Item = &Vip> {
        self.vips.values().filter(move |v| v.port == Some(p) && self.is_served(v))
    }

    fn server_view(&self, index: usize, node: &str) -> ServerView {
        let server = &self.servers[index];
        let vips: Vec<_> = self.vips.iter().filter(|(_, v)| v.server == index).collect();
        let rate = vips.iter().map(|(_, v)| v.rate).sum::<f64>();
        let here = || self.server_state(server, &vips.iter().map(|(_, v)| *v).collect::<Vec<_>>());
        let alone = || (server.owner.map(|_| node.to_owned()), None, server.owner.map_or(0, |o| o.epoch));
        let (owner, state, epoch) = self.cluster_standing(&server.name).unwrap_or_else(alone);
        let state = state.unwrap_or_else(here);
        ServerView {
            name: server.name.clone(),
            owner,
            state: state.to_owned(),
            epoch,
            load: if server.marked {
                self.measured_load(index)
            } else {
                self.known_load(&server.name).unwrap_or(0.0)
            },
            priority: server.priority,
            rate: rate as u64,
            addresses: vips
                .iter()
                .map(|(a, v)| AddressView {
                    address: **a,
                    port: v.port.filter(|_| self.is_served(v)).map(|p| self.ports[p].interface.clone()),
                    via: self.router_of(&server.name, &v.segment),
                    rate: v.rate as u64,
                })
                .collect(),
            why: if state == "serving" { None } else { self.why_not(&server.name) },
        }
    }

    pub(super) fn server_state(&self, server: &Server, vips: &[&Vip]) -> &'static str {
        let usable = |v: &&Vip| {
            let answered = !self.is_away(v) || self.is_routed(&server.name, &v.segment);
            answered && v.port.is_some_and(|p| self.ports[p].is_usable())
        };
        match server.marked {
            false if self.has_fence_failed(&server.name) => "failed",
            false => server.resources.as_ref().map_or("starting", Resources::word),
            true if vips.iter().all(usable) => "serving",
            true => "failed",
        }
    }

    /// Load of this node, 0 to 1 of what it can bear.
    fn node_load(&self) -> f64 {
        let served = (0..self.servers.len()).filter(|i| self.servers[*i].marked);
        let servers: f64 = served.map(|i| self.measured_load(i)).sum();
        (servers / self.own_capacity() + self.other_load()).min(1.0)
    }

    fn conflict_view(&self, c: &super::Conflict) -> ConflictView {
        ConflictView { address: c.address, interface: self.interface(c.ifindex), mac: c.mac.map(mac) }
    }
}

/// aa:bb:cc:dd:ee:ff
pub(super) fn mac(m: [u8; 6]) -> String {
    m.map(|b| format!("{b:02x}")).join(":")
}
