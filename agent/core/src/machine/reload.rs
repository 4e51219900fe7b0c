//! [`Input::Reload`](crate::Input::Reload): another configuration, while everything runs.
//!
//! Nothing is asked for that concerns what is the same in both: no address is added, announced or removed, no port gets its programs
//! again. Ports, virtual servers and addresses that stay keep all that is known of them; a port is the same while its interface and its
//! segment are, a virtual server while its name is. What else happens, in this order:
//!
//! | in the new configuration | what follows |
//! |---|---|
//! | a virtual server is gone | its mark goes off, its addresses are removed and forgotten |
//! | an address is gone | it is removed and forgotten |
//! | a port is new | it gets the programs; good at once where it has carrier, and used for what has no port, or a worse one |
//! | a port is gone | its addresses go to another port of the segment; where there is none they have no port |
//! | an address is new | bound and announced where its virtual server is served |
//! | a virtual server is new | taken, then served |
//! | a segment has other subnets or gateways | its routes and rules are made anew |
//! | times, priorities and limits | count from now on; what runs already ends as it began |
//!
//! None of this is a failover. A port that is new is not used for what another good port serves: nothing moves that need not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::load::Measured;
use super::ports::Port;
use super::resources::Resources;
use super::{Machine, Server, Vip};
use crate::config::{Segment, VirtualServer};
use crate::{Config, Effect, EventKind, Found, IfIndex, Reload};

impl Machine {
    pub(super) fn reload(&mut self, reload: Reload) {
        let Reload { config, found, changes } = reload;
        // A member of a cluster takes up its definitions with a start.
        let Some(before) = self.config.clone().filter(|_| self.cluster.is_none()) else { return };
        self.drop_addresses(&config);
        let new_ports = self.change_ports(&config);
        self.change_servers(&config);
        self.repeats.set_schedule(config.timing.announce_repeat.clone());
        let place = |c: &Config, name: &str| c.segments.iter().position(|s| s.name == name);
        // Each has a routing table by its place.
        let same = |name: &str| {
            place(&before, name) == place(&config, name)
                && segment(&before, name).map(shape) == segment(&config, name).map(shape)
        };
        self.steered.retain(|name, _| same(name));
        self.watch.retain_segments(|name| segment(&config, name).is_some());
        self.config = Some(config);

        self.read_links(&found, &new_ports);
        for segment in self.segments() {
            let moves = self.better_ports(&segment);
            self.bind(&segment, &moves);
        }
        for segment in self.segments() {
            self.steer(&segment);
        }
        self.leave_former_ports();
        let unowned = self.servers.iter().filter(|s| s.owner.is_none());
        let is_new = |s: &&Server| !before.servers.iter().any(|b| b.name == s.name);
        let takes: Vec<_> = unowned.filter(is_new).map(|s| Effect::Take(s.name.clone())).collect();
        self.out.extend(takes);
        self.event(EventKind::Reloaded { changes });
        found.addresses.iter().filter(|a| !a.ours).for_each(|a| self.address_added(*a));
        let absent = self.ports.iter().filter(|p| p.ifindex().is_none() && new_ports.contains(&p.interface));
        let absent: Vec<_> = absent.map(|p| p.interface.clone()).collect();
        absent.into_iter().for_each(|interface| self.event(EventKind::InterfaceAbsent { interface }));
    }

    /// Virtual servers that are no more are served no more. Their addresses are gone, or another's, by now.
    fn drop_servers(&mut self, gone: Vec<Server>) {
        for server in gone {
            if server.resources.is_some() {
                self.out.push(Effect::StopResources(server.name.clone()));
            }
            self.out.push(Effect::Mark { server: server.name, incarnation: None });
        }
    }

    /// Addresses that are no more are taken away from their interfaces, then from the kernel programs.
    fn drop_addresses(&mut self, config: &Config) {
        let wanted = |address: &IpAddr| config.servers.iter().any(|s| has(s, *address));
        let gone: Vec<IpAddr> = self.vips.keys().copied().filter(|a| !wanted(a)).collect();
        let there: Vec<_> = self.assigned.iter().copied().filter(|(a, _)| gone.contains(a)).collect();
        self.remove(there);
        for address in gone {
            self.vips.remove(&address);
            self.repeats.drop(address);
            self.unpermitted.remove(&address);
            self.conflicts.retain(|c| c.address != address);
            self.out.push(Effect::Forget(address));
        }
    }

    /// Ports that stay keep their state. Returns the interfaces of those that are new.
    fn change_ports(&mut self, config: &Config) -> BTreeSet<String> {
        let before = std::mem::take(&mut self.ports);
        let mut new = BTreeSet::new();
        for port in &config.ports {
            let same = |b: &&Port| b.interface == port.interface && b.segment == port.segment;
            self.ports.push(before.iter().find(same).cloned().unwrap_or_else(|| {
                new.insert(port.interface.clone());
                Port::new(port)
            }));
        }
        let same = |b: &Port, p: &Port| b.interface == p.interface && b.segment == p.segment;
        let now: Vec<Option<usize>> =
            before.iter().map(|b| self.ports.iter().position(|p| same(b, p))).collect();
        self.vips.values_mut().for_each(|vip| vip.port = vip.port.and_then(|p| now[p]));
        new
    }

    /// Virtual servers in their new order, with their addresses.
    fn change_servers(&mut self, config: &Config) {
        let before = std::mem::take(&mut self.servers);
        let of: BTreeMap<IpAddr, String> =
            self.vips.iter().map(|(a, v)| (*a, before[v.server].name.clone())).collect();
        let mut known: BTreeMap<String, Server> = before.into_iter().map(|s| (s.name.clone(), s)).collect();
        let mut wanted: Vec<&VirtualServer> = config.servers.iter().collect();
        wanted.sort_by_key(|s| (Reverse(s.priority), s.name.clone()));
        let mut rehomed = Vec::new();
        for (index, server) in wanted.into_iter().enumerate() {
            for address in server.addresses.iter().map(|n| n.addr()) {
                let segment = config.segment_of(address).map(|s| s.name.clone()).unwrap_or_default();
                let vip = self.vips.entry(address).or_insert(Vip {
                    server: index,
                    segment: segment.clone(),
                    port: None,
                    rate: 0.0,
                });
                vip.server = index;
                if vip.segment != segment {
                    (vip.segment, vip.port) = (segment, None);
                }
                if of.get(&address).is_some_and(|before| *before != server.name) && vip.port.is_some() {
                    rehomed.push(address);
                }
            }
            let now = self.now;
            let new = || Server {
                name: server.name.clone(),
                priority: server.priority,
                owner: None,
                marked: false,
                routing: BTreeSet::new(),
                measured: Measured::default(),
                resources: server.has_resources.then(|| Resources::found(false, now)),
            };
            let server_now = known.remove(&server.name).unwrap_or_else(new);
            self.servers.push(Server { priority: server.priority, ..server_now });
        }
        rehomed.into_iter().for_each(|address| self.permit(address));
        self.drop_servers(known.into_values().collect());
    }

    /// What the interfaces are now. A port that is new is taken as it is found.
    fn read_links(&mut self, found: &Found, new: &BTreeSet<String>) {
        let exists = |i: &IfIndex| found.links.iter().any(|l| l.ifindex == *i);
        let gone: Vec<IfIndex> = self.names.keys().copied().filter(|i| !exists(i)).collect();
        gone.into_iter().for_each(|i| self.link_gone(i));
        for link in found.links.iter().cloned() {
            if new.contains(&link.name) {
                self.names.insert(link.ifindex, link.name.clone());
                self.first_link(link);
            } else {
                self.link(link);
            }
        }
    }

    /// Nothing of ours stays on an interface that is a port no more.
    fn leave_former_ports(&mut self) {
        let ports: BTreeSet<IfIndex> = self.ports.iter().filter_map(Port::ifindex).collect();
        let left: Vec<_> = self.assigned.iter().copied().filter(|(_, i)| !ports.contains(i)).collect();
        self.remove(left);
    }
}

fn segment<'a>(config: &'a Config, name: &str) -> Option<&'a Segment> {
    config.segments.iter().find(|s| s.name == name)
}

/// What its routes and rules are made of.
fn shape(segment: &Segment) -> (&[ipnet::IpNet], &[IpAddr]) {
    (&segment.subnets, &segment.gateway)
}

fn has(server: &VirtualServer, address: IpAddr) -> bool {
    server.addresses.iter().any(|n| n.addr() == address)
}
