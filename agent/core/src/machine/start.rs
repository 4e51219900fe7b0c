//! The first input of an agent's life: what an earlier one left is adopted where it is still right.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::cluster::Cluster;
use super::load::Measured;
use super::ports::Port;
use super::resources::{Phase, Resources};
use super::{Machine, Server, Vip};
use crate::config::VirtualServer;
use crate::{Effect, EventKind, IfIndex, Start};

impl Machine {
    pub(super) fn start(&mut self, start: Start) {
        let Start { config, incarnation, found, bound, marked, routed, running, cluster } = start;
        let cluster = cluster.map(|c| Cluster::new(c, &config.node, self.now));
        *self = Machine { now: self.now, incarnation, cluster, ..Machine::default() };
        self.ports = config.ports.iter().map(Port::new).collect();
        self.names = found.links.iter().map(|l| (l.ifindex, l.name.clone())).collect();

        let mut servers: Vec<_> = config.servers.iter().collect();
        servers.sort_by_key(|s| (Reverse(s.priority), s.name.clone()));
        let mut unready = Vec::new();
        for (index, s) in servers.into_iter().enumerate() {
            let (name, priority) = (s.name.clone(), s.priority);
            let mut routing = BTreeSet::new();
            for address in s.addresses.iter().map(|n| n.addr()) {
                let segment = config.segment_of(address).map(|s| s.name.clone()).unwrap_or_default();
                if routed.contains(&address) && marked.contains(&name) {
                    routing.insert(segment.clone());
                }
                self.vips.insert(address, Vip { server: index, segment, port: None, rate: 0.0 });
            }
            let resources = s.has_resources.then(|| Resources::found(running.contains(&name), self.now));
            let ready = resources.as_ref().is_none_or(|r| r.phase() == Phase::Running);
            let adopted = marked.contains(&name) && routing.is_empty();
            if adopted && !ready {
                unready.push(index);
            }
            let marked = adopted && ready;
            let measured = Measured::default();
            self.servers.push(Server { name, priority, owner: None, marked, routing, measured, resources });
        }
        let known = |name: &&String| self.servers.iter().any(|s| s.name == **name && s.resources.is_some());
        let strangers: Vec<_> = running.iter().filter(|name| !known(name)).cloned().collect();
        self.out.extend(strangers.into_iter().map(Effect::StopResources));
        let timing = config.timing.clone();
        self.config = Some(config);
        self.repeats.set_schedule(timing.announce_repeat);

        for link in found.links {
            self.first_link(link);
        }
        self.assigned = found.addresses.iter().filter(|a| a.ours).map(|a| (a.address, a.ifindex)).collect();
        let adopted = self.adopt(&bound);
        for index in 0..self.servers.len() {
            if self.servers[index].marked {
                self.entitle(index, Some(incarnation));
            }
        }
        // What was served runs no more: it is started first.
        unready.into_iter().for_each(|index| self.withhold(index));
        for segment in self.segments() {
            self.steer(&segment);
        }
        for i in 0..if self.cluster.is_some() { 0 } else { self.servers.len() } {
            self.out.push(Effect::Take(self.servers[i].name.clone()));
        }
        for address in bound.into_keys().filter(|a| !self.vips.contains_key(a)).collect::<Vec<_>>() {
            self.out.push(Effect::Forget(address));
        }
        // What a served address has elsewhere, and what isn't a virtual IP any more. Of servers that are not served yet,
        // addresses stay until they are.
        let strangers: Vec<_> =
            self.assigned.iter().copied().filter(|(a, _)| !self.vips.contains_key(a)).collect();
        let removed = strangers.len();
        self.remove(strangers);
        self.event(EventKind::Started { incarnation, adopted, removed });
        found.addresses.iter().filter(|a| !a.ours).for_each(|a| self.address_added(*a));
        let absent: Vec<_> =
            self.ports.iter().filter(|p| p.ifindex().is_none()).map(|p| p.interface.clone()).collect();
        absent.into_iter().for_each(|interface| self.event(EventKind::InterfaceAbsent { interface }));
    }

    /// Takes over the bindings of an earlier agent, then, of what is served already, moves what is on ports that have
    /// failed meanwhile and completes what was left half done.
    fn adopt(&mut self, bound: &BTreeMap<IpAddr, IfIndex>) -> usize {
        let found: BTreeMap<IpAddr, IfIndex> = self.assigned.iter().copied().collect();
        let mut adopted = 0;
        let mut lost = Vec::new();
        // The kernel programs know better where an address belongs than the interfaces, which may hold it twice.
        for (address, ifindex) in found.iter().filter(|(a, _)| !bound.contains_key(a)).chain(bound) {
            let port = self.port_of(*ifindex);
            let Some(vip) = self.vips.get_mut(address) else { continue };
            // Another segment's: a peer answers for it.
            let server = &self.servers[vip.server].name;
            let reroutes = |s: &VirtualServer| s.name == *server && s.reroute;
            let away = self.config.iter().flat_map(|c| &c.servers).any(reroutes);
            if let Some(p) = port
                && (self.ports[p].segment == vip.segment || away)
            {
                vip.port = Some(p);
                adopted += usize::from(self.assigned.contains(&(*address, *ifindex)));
            } else if away && port.is_none() {
                lost.push(vip.server);
            }
        }
        // A peer may have been asked to answer, by a port that is gone now: only after a write of this agent's own is it
        // known that none does (lease.md, R6 and R12).
        if self.cluster.is_some() {
            lost.into_iter().for_each(|server| self.servers[server].marked = false);
        }
        self.serve_on();
        adopted
    }
}
