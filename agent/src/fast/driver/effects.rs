//! Carries out what core asks for, in order.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use baton_core::cluster::{StoreInput, StoreRequest};
use baton_core::plan::{Policy, Situation};
use baton_core::{Assigned, Effect, Hop, IfIndex, Input};
use tokio::sync::mpsc::error::TrySendError;

use super::stages::Stages;
use super::{Driver, PlanRequest, ResetRequest, lease, now};
use crate::fast::netlink::{self, Change};
use crate::fast::steering::{self, Route, Rule, wanted};
use crate::fast::{FastError, ResourceRequest, ToSlow};
use crate::fence;

impl Driver {
    /// Carries out effects in order; neighbours of one kind go to the kernel together. Returns when the last address
    /// was bound and when the last was announced.
    pub(super) fn carry_out(&mut self, effects: &[Effect]) -> Stages {
        let mut stages = Stages::default();
        let mut unbound = BTreeSet::new(); // addresses that could not be added
        let mut rest = effects;
        while let Some(first) = rest.first() {
            let alike =
                rest.iter().take_while(|e| std::mem::discriminant(*e) == std::mem::discriminant(first));
            let (run, after) = rest.split_at(alike.count());
            match first {
                Effect::AddAddress(..) => {
                    self.change_addresses(run, &mut unbound);
                    stages.bound = Some(now());
                }
                Effect::RemoveAddress(..) => self.change_addresses(run, &mut unbound),
                Effect::Announce(..) => {
                    run.iter().for_each(|e| self.one(e));
                    stages.announced = Some(now());
                }
                Effect::Attach(..)
                | Effect::Steer { .. }
                | Effect::Route { .. }
                | Effect::Take(_)
                | Effect::Mark { .. }
                | Effect::Permit { .. }
                | Effect::Forget(_)
                | Effect::ForgetUnresolved(_)
                | Effect::Condemn { .. }
                | Effect::Incarnation(_)
                | Effect::Store(_)
                | Effect::Plan(..)
                | Effect::StartResources(_)
                | Effect::StopResources(_)
                | Effect::ResetConnections(_)
                | Effect::Fence { .. }
                | Effect::Entitle { .. }
                | Effect::ReadStorage { .. }
                | Effect::Event(_) => run.iter().for_each(|e| self.one(e)),
            }
            rest = after;
        }
        stages
    }

    fn one(&mut self, effect: &Effect) {
        let result = self.try_one(effect);
        if let Err(error) = result {
            self.failed(effect, error.to_string());
        }
    }

    fn failed(&mut self, effect: &Effect, error: String) {
        self.pending.push_back(Input::Failed(Box::new(effect.clone()), error));
    }

    fn try_one(&mut self, effect: &Effect) -> Result<(), FastError> {
        match effect {
            Effect::Attach(ifindex, interface) => self.attach(*ifindex, interface),
            Effect::Steer { segment, ports, via } => self.steer(segment, ports, *via),
            Effect::Route { address, to } => Ok(self.kernel.route(*address, *to)?),
            Effect::Take(server) => {
                self.tell(ToSlow::Take(server.clone()));
                Ok(())
            }
            Effect::Mark { server, incarnation } => self.mark(server, *incarnation),
            Effect::Condemn { slot, incarnation } => self.condemn(*slot, *incarnation),
            Effect::Incarnation(incarnation) => self.set_incarnation(*incarnation),
            Effect::Store(request) => {
                self.ask_store(request);
                Ok(())
            }
            Effect::Plan(situation, policy) => self.ask_planner(situation, *policy),
            Effect::StartResources(server) => self.ask_resources(ResourceRequest::Start(server.clone())),
            Effect::StopResources(server) => self.ask_resources(ResourceRequest::Stop(server.clone())),
            Effect::ResetConnections(server) => self.reset_connections(server),
            Effect::Fence { server, node, incarnation } => {
                let (server, node, incarnation) = (server.clone(), node.clone(), *incarnation);
                self.ask_fencing(fence::Request { server, node, incarnation });
                Ok(())
            }
            Effect::ReadStorage { unit, asked } => {
                self.links.readers.read(unit, *asked);
                Ok(())
            }
            // Here and now: what follows in this list may let another node start it.
            Effect::Entitle { server, incarnation } => {
                self.links.guard.entitle(server, *incarnation);
                Ok(())
            }
            Effect::Permit { address, server, port } => Ok(self.kernel.permit(*address, server, *port)?),
            Effect::Forget(address) => Ok(self.kernel.forget(*address)?),
            Effect::ForgetUnresolved(ifindex) => {
                self.requests.forget_unresolved(*ifindex).map_err(FastError::Netlink)
            }
            Effect::Announce(ifindex, address) => match self.announcer.announce(*ifindex, *address) {
                // The port went down in this very moment: its event is on its way.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENETDOWN | libc::ENODEV | libc::ENXIO)) => {
                    Ok(())
                }
                // The kernel programs let nothing out without a lease; when one begins core announces again.
                Err(e) if self.cluster.is_some() && e.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
                other => other.map_err(FastError::Packet),
            },
            Effect::Event(event) => {
                self.event(event.clone());
                Ok(())
            }
            Effect::AddAddress(..) | Effect::RemoveAddress(..) => {
                self.change_addresses(std::slice::from_ref(effect), &mut BTreeSet::new());
                Ok(())
            }
        }
    }

    /// Sets or clears a serving mark; that it is cleared is read back.
    fn mark(&mut self, server: &str, incarnation: Option<u64>) -> Result<(), FastError> {
        self.kernel.mark(server, incarnation)?;
        if incarnation.is_none() && self.kernel.is_unmarked(server)? {
            self.pending.push_back(Input::MarkCleared(server.to_owned()));
        }
        Ok(())
    }

    fn condemn(&mut self, slot: u8, incarnation: u64) -> Result<(), FastError> {
        let Some(members) = &self.cluster else { return Ok(()) };
        let own = members.get(&self.config.node).map_or(u8::MAX, |m| m.slot);
        let silence = members.silence().as_nanos() as u64;
        if self.kernel.condemn(slot, incarnation, silence)? {
            self.pending.push_back(Input::Verdict { voter: own, about: slot, incarnation });
        }
        Ok(())
    }

    fn set_incarnation(&mut self, incarnation: u64) -> Result<(), FastError> {
        self.kernel.set_lease(lease(incarnation, self.cluster.as_ref()))?;
        self.prober.set_incarnation(incarnation)?;
        self.prober.tell_peers();
        Ok(())
    }

    fn ask_store(&mut self, request: &StoreRequest) {
        let Some(store) = &self.links.store else { return };
        if store.requests.try_send(request.clone()).is_err() {
            let failed = StoreInput::Failed(request.clone(), "too many requests under way".to_owned());
            self.pending.push_back(Input::Store(failed));
        }
    }

    fn ask_planner(&mut self, situation: &Situation, policy: Policy) -> Result<(), FastError> {
        let request = PlanRequest { situation: Box::new(situation.clone()), policy };
        self.links.plans.try_send(request).map_err(|e| match e {
            TrySendError::Full(_) => FastError::PlannerBusy,
            TrySendError::Closed(_) => FastError::PlannerGone,
        })
    }

    fn ask_resources(&mut self, request: ResourceRequest) -> Result<(), FastError> {
        self.links.resources.try_send(request).map_err(|e| match e {
            TrySendError::Full(_) => FastError::ResourcesBusy,
            TrySendError::Closed(_) => FastError::ResourcesGone,
        })
    }

    /// The mark was set in the same list of effects: so nothing of now is older than that.
    fn reset_connections(&mut self, server: &str) -> Result<(), FastError> {
        let Some(resets) = &self.links.resets else { return Ok(()) };
        let failover = self.takes.cause(server);
        let request = ResetRequest { server: server.to_owned(), served: self.handled, failover };
        resets.try_send(request).map_err(|_| FastError::Resets)
    }

    fn ask_fencing(&mut self, request: fence::Request) {
        let failed = match self.links.fences.try_send(request.clone()) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => "too much is asked for",
            Err(TrySendError::Closed(_)) => "the thread that fences is gone; the log says why",
        };
        let fence::Request { server, node, incarnation } = request;
        let failed = Some(failed.to_owned());
        self.pending.push_back(Input::Fenced { server, node, incarnation, failed });
    }

    fn change_addresses(&mut self, effects: &[Effect], unbound: &mut BTreeSet<IpAddr>) {
        let keep = |e: &&Effect| matches!(e, Effect::RemoveAddress(_, a) if unbound.contains(a));
        let (kept, effects): (Vec<&Effect>, Vec<&Effect>) = effects.iter().partition(keep);
        for effect in kept {
            self.failed(effect, "not removed, for it could not be added elsewhere".into());
        }
        let changes = effects.iter().filter_map(|e| match e {
            Effect::AddAddress(ifindex, address) => Some(netlink::add_address(*ifindex, *address)),
            Effect::RemoveAddress(ifindex, address) => Some(netlink::remove_address(*ifindex, *address)),
            _ => None,
        });
        match self.requests.apply(changes) {
            Ok(failed) => {
                for (index, error) in failed {
                    match (effects[index], error.raw_os_error()) {
                        // Already gone: its notification came, or is coming, from whoever removed it.
                        (Effect::RemoveAddress(ifindex, address), Some(libc::EADDRNOTAVAIL)) => {
                            let gone = Assigned { ifindex: *ifindex, address: *address, ours: true };
                            self.pending.push_back(Input::AddressRemoved(gone));
                        }
                        (effect, _) => {
                            if let Effect::AddAddress(_, address) = effect {
                                unbound.insert(*address);
                            }
                            self.failed(effect, error.to_string());
                        }
                    }
                }
            }
            Err(error) => {
                for effect in effects {
                    if let Effect::AddAddress(_, address) = effect {
                        unbound.insert(*address);
                    }
                    self.failed(effect, error.to_string());
                }
            }
        }
    }

    fn attach(&mut self, ifindex: IfIndex, interface: &str) -> Result<(), FastError> {
        let Some(mac) = self.interfaces.get(&ifindex).map(|l| l.mac) else { return Ok(()) };
        self.tell(ToSlow::Prepare(interface.to_owned()));
        self.announcer.set_mac(ifindex, mac);
        let attachment = self.kernel.attach(ifindex, interface, mac)?;
        self.pending.push_back(Input::Attached(ifindex, attachment));
        Ok(())
    }

    fn steer(&mut self, segment: &str, ports: &[IfIndex], via: Option<Hop>) -> Result<(), FastError> {
        let Some(index) = self.config.segments.iter().position(|s| s.name == segment) else { return Ok(()) };
        let (mut routes, rules) = wanted(&self.config, index, ports);
        let mut changes: Vec<Change> = Vec::new();
        let hops = steering::next_hops(index);
        if let Some(hop) = via {
            routes = steering::routes_via(index, hop.ifindex);
            changes.extend(hops.map(|a| netlink::add_neighbour(hop.ifindex, a, hop.to)));
        }
        changes.extend(self.steering.changes(segment, routes, &rules));
        let before = match via {
            Some(hop) => self.vias.insert(segment.to_owned(), hop),
            None => self.vias.remove(segment),
        };
        if let Some(before) = before.filter(|b| via.is_none_or(|hop| hop.ifindex != b.ifindex)) {
            changes.extend(hops.map(|a| netlink::remove_neighbour(before.ifindex, a)));
        }
        let failed = self.requests.apply(changes).map_err(FastError::Netlink)?;
        match failed.into_iter().next() {
            Some((_, error)) => Err(FastError::Steer { segment: segment.to_owned(), error }),
            None => Ok(()),
        }
    }

    /// Removes routes and rules that an earlier agent made and that are not wanted now.
    pub(super) fn sweep(&mut self) -> io::Result<()> {
        let (routes, rules) = self.requests.marked()?;
        let wanted: Vec<Rule> =
            (0..self.config.segments.len()).flat_map(|i| wanted(&self.config, i, &[]).1).collect();
        // A segment that nothing was asked for is reached by way of a peer, which core learns later.
        let segments = self.config.segments.iter().enumerate();
        let waits = segments.filter(|(_, s)| self.steering.is_untouched(&s.name));
        let waits: Vec<u32> = waits.map(|(i, _)| steering::TABLE_BASE + i as u32).collect();
        let old = |r: &&Route| !self.steering.has(r) && !waits.contains(&r.table);
        let old_routes = routes.iter().filter(old).map(steering::remove_route);
        let old_rules = rules.iter().filter(|r| !wanted.contains(r)).map(steering::remove_rule);
        let mut changes: Vec<Change> = old_routes.chain(old_rules).collect();
        if waits.is_empty() {
            let kept = |ifindex: &IfIndex| self.vias.values().any(|hop| hop.ifindex == *ifindex);
            let neighbours = self.requests.marked_neighbours()?.into_iter().filter(|(i, _)| !kept(i));
            changes.extend(neighbours.map(|(ifindex, address)| netlink::remove_neighbour(ifindex, address)));
        }
        self.requests.apply(changes).map(|_| ())
    }
}
