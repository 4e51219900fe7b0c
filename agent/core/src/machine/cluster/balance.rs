//! Balance: the master evens loads out while nothing else is going on.
//!
//! Every node tells what its virtual servers cost ([`NodeLoad`]). The master has a plan made of it now and then, outside of
//! core, for that takes a while. What the plan moves for balance is advice; or, where the policy is `on`, the master writes
//! it as wishes, one after the other, fenced by its own record. The owner carries a wish out like an administrator's, while the
//! master that made it is still the master. A virtual server that goes back to preferred nodes by itself is not moved away
//! from them, and one that costs next to nothing is not moved.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::Machine;
use super::Cluster;
use crate::cluster::{MASTER, NodeLoad, Record, StoreRequest, Wish};
use crate::config::{Balance, BalanceMode, Failback, VirtualServer};
use crate::plan::{Node, NodeState, Planning, Policy, Server, Situation};
use crate::{Effect, EventKind, PlannedMove, Reason, Time};

/// Time between two looks at the loads.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A plan that has not come after this long never will.
const PLANNED_WITHIN: Duration = Duration::from_secs(60);
/// A move that has not been made after this long is given up, and what was to follow.
const MOVED_WITHIN: Duration = Duration::from_secs(30);
/// What could be taken and has not been for so long keeps nothing else from being moved.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// What an idle virtual server counts, in millionths of a node: idle ones are spread by their number.
const IDLE: f64 = 1000.0;
const MILLION: f64 = 1e6;
/// What is lighter, in millionths of a node, is not worth moving for balance.
const LIGHT: u32 = 500;

/// What the master keeps of it; and every node, for it may become master.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Balancing {
    /// What each node has told.
    loads: BTreeMap<String, NodeLoad>,
    /// The load that was last told of each virtual server, in millionths.
    known: BTreeMap<String, u32>,
    /// What this node has told.
    told: Option<NodeLoad>,
    /// When each virtual server last got another owner.
    moved: BTreeMap<String, Time>,
    /// When a virtual server was last moved for balance, or this node became master and can't know.
    last: Option<Time>,
    /// This node was master when it last looked.
    in_charge: bool,
    /// Loads are being evened out, in several goes perhaps.
    under_way: bool,
    /// When a plan was asked for that has not come yet.
    asked: Option<Time>,
    looked: Option<Time>,
    /// What is to be moved, in order; the first one, where a wish for it was written: when.
    queue: VecDeque<PlannedMove>,
    wished: Option<Time>,
    /// What was last advised.
    advice: Vec<PlannedMove>,
}

impl Balancing {
    /// A node tells what it has measured.
    pub(super) fn told_by(&mut self, node: String, load: NodeLoad) {
        self.known.extend(load.servers.iter().map(|(server, load)| (server.clone(), *load)));
        self.loads.insert(node, load);
    }

    pub(super) fn forget(&mut self, node: &str) {
        self.loads.remove(node);
    }

    pub(super) fn forget_all(&mut self) {
        self.loads.clear();
    }

    /// What this node told is no longer in the store as it told it.
    pub(super) fn tell_again(&mut self) {
        self.told = None;
    }

    /// It may have another owner than before.
    pub(super) fn note_owner(&mut self, server: &str, before: &Record, after: &Record, now: Time) {
        if before.node != after.node {
            self.moved.insert(server.to_owned(), now);
        }
    }
}

impl Cluster {
    /// What a virtual server counts when others are given out: its load, and a little.
    pub(super) fn weight(&self, server: &str) -> f64 {
        (self.balancing.known.get(server).map_or(0.0, |l| f64::from(*l)) + IDLE) / MILLION
    }

    /// What a node can bear, an ordinary one being 1, without what something else takes of it.
    pub(super) fn capacity(&self, node: &str) -> f64 {
        let percent = self.nodes.get(node).map_or(100, |n| n.capacity_percent);
        let other = self.balancing.loads.get(node).map_or(0.0, |l| f64::from(l.other) / MILLION);
        (f64::from(percent) / 100.0 * (1.0 - other)).max(0.01)
    }

    /// Load of a node as the others know it, as a share of its capacity.
    pub(super) fn load_of(&self, node: &str) -> f64 {
        let load = self.balancing.loads.get(node);
        let servers: u64 = load.map_or(0, |l| l.servers.values().map(|l| u64::from(*l)).sum());
        (servers as f64 / MILLION / self.capacity(node)).min(1.0)
    }
}

impl Machine {
    /// Load of a virtual server as the nodes have told it, where they have.
    pub(in crate::machine) fn known_load(&self, server: &str) -> Option<f64> {
        let known = self.cluster.as_ref()?.balancing.known.get(server)?;
        Some(f64::from(*known) / MILLION)
    }

    /// Tells the others what this node has measured, if that is news.
    pub(in crate::machine) fn tell_load(&mut self) {
        let load = self.own_load();
        let Some(cluster) = self.cluster.as_mut().filter(|c| !c.witness) else { return };
        if cluster.balancing.told.as_ref().is_none_or(|told| load.is_news(told)) {
            cluster.balancing.told = Some(load.clone());
            self.out.push(Effect::Store(StoreRequest::PublishLoad(load)));
        }
    }

    /// Does the master that made this wish still rule, and is it to balance?
    pub(super) fn is_in_force(&self, wish: &Wish) -> bool {
        let mode = self.config.as_ref().map(|c| c.balance.mode);
        let master = self.cluster.as_ref().and_then(|c| c.records.get(MASTER));
        mode == Some(BalanceMode::On) && master.is_some_and(|(r, _)| wish.master == Some(r.epoch))
    }

    /// Revision and epoch of the master's record, if this node is the master and may write.
    fn mastership(&self) -> Option<(u64, u64)> {
        let cluster = self.cluster.as_ref()?;
        let (record, revision) = cluster.records.get(MASTER)?;
        let own = cluster.is_own(record) && record.incarnation == self.incarnation;
        let rules = own && cluster.has_lease() && cluster.reachable;
        rules.then_some((*revision, record.epoch))
    }

    /// Every second: goes on with what is to be moved, or looks whether something is.
    pub(in crate::machine) fn balance(&mut self) {
        let now = self.now;
        let mode = self.config.as_ref().map_or(BalanceMode::Off, |c| c.balance.mode);
        let master = self.mastership();
        let Some(cluster) = &mut self.cluster else { return };
        let balancing = &mut cluster.balancing;
        if mode == BalanceMode::Off || master.is_none() {
            balancing.in_charge = false;
            balancing.queue.clear();
            balancing.advice.clear();
            balancing.wished = None;
            return;
        }
        if !std::mem::replace(&mut balancing.in_charge, true) && mode == BalanceMode::On {
            // Another one may have moved something just now.
            balancing.last = Some(now);
        }
        if !balancing.queue.is_empty() {
            return self.move_next();
        }
        let rests = mode == BalanceMode::On
            && balancing.last.is_some_and(|t| now < t + self.policy().cluster_cooldown);
        let Some(cluster) = &mut self.cluster else { return };
        let balancing = &mut cluster.balancing;
        let waits = balancing.asked.is_some_and(|t| now < t + PLANNED_WITHIN);
        if rests || waits || balancing.looked.is_some_and(|t| now < t + LOOK_EVERY) || !self.is_calm() {
            return;
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.balancing.looked = Some(now);
            cluster.balancing.asked = Some(now);
        }
        self.out.push(Effect::Plan(Box::new(self.situation()), self.policy()));
    }

    /// Nothing is moving, and nothing is to be taken; what nobody has taken for a while nobody can.
    fn is_calm(&self) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        let stays_down =
            |name: &str| cluster.vacant.get(name).is_some_and(|since| self.now.since(*since) >= TAKEN_WITHIN);
        let held = |name: &str| {
            let record = cluster.records.get(name).map(|(r, _)| r);
            record.is_some_and(|r| r.released.is_none() && !cluster.is_dead(r))
        };
        cluster.wishes.is_empty()
            && cluster.leaving.is_empty()
            && self
                .servers
                .iter()
                .all(|s| (held(&s.name) || stays_down(&s.name)) && !cluster.writing.contains_key(&s.name))
    }

    /// The plan is there.
    pub(in crate::machine) fn planned(&mut self, moves: Vec<PlannedMove>) {
        let mode = self.config.as_ref().map_or(BalanceMode::Off, |c| c.balance.mode);
        let rules = self.mastership().is_some();
        let Some(cluster) = &mut self.cluster else { return };
        let balancing = &mut cluster.balancing;
        if balancing.asked.take().is_none() || !rules {
            return;
        }
        balancing.under_way = !moves.is_empty();
        match mode {
            BalanceMode::Off => {}
            BalanceMode::Advise => {
                let same = |a: &[PlannedMove], b: &[PlannedMove]| {
                    a.iter().map(|m| (&m.server, &m.to)).eq(b.iter().map(|m| (&m.server, &m.to)))
                };
                let news = !same(&balancing.advice, &moves);
                balancing.advice.clone_from(&moves);
                if news {
                    moves.into_iter().for_each(|m| self.tell_balance(m, false));
                }
            }
            BalanceMode::On => {
                balancing.queue = moves.into();
                self.move_next();
            }
        }
    }

    fn tell_balance(&mut self, planned: PlannedMove, moves: bool) {
        let PlannedMove { server, from, to, why, highest: (highest, highest_after) } = planned;
        self.event(EventKind::Balance { server, from, to, why, highest, highest_after, moves });
    }

    /// Sees to it that the first of what is to be moved is, and then the next. What can't be any more ends it all: there will be
    /// another plan.
    fn move_next(&mut self) {
        let now = self.now;
        let Some((revision, epoch)) = self.mastership() else { return };
        let Some(cluster) = &mut self.cluster else { return };
        let owner = |cluster: &Cluster, server: &str| {
            let record = cluster.records.get(server).map(|(r, _)| r)?;
            (record.released.is_none() && !cluster.is_dead(record)).then(|| record.node.clone())
        };
        if let (Some(wished), Some(first)) = (cluster.balancing.wished, cluster.balancing.queue.front()) {
            let made = owner(cluster, &first.server).as_ref() == Some(&first.to);
            if !made && now < wished + MOVED_WITHIN {
                return;
            }
            cluster.balancing.wished = None;
            cluster.balancing.queue.pop_front();
            if !made {
                cluster.balancing.queue.clear();
            }
        }
        let Some(next) = cluster.balancing.queue.front().cloned() else { return };
        let can = owner(cluster, &next.server).as_ref() == Some(&next.from)
            && cluster.fit(cluster.read).any(|n| n == next.to);
        if !can {
            cluster.balancing.queue.clear();
            return;
        }
        if !cluster.wishes.is_empty() {
            return; // an administrator's come first
        }
        cluster.balancing.wished = Some(now);
        cluster.balancing.last = Some(now);
        let wish = Wish { to: next.to.clone(), reason: Reason::Balance, master: Some(epoch) };
        let request = StoreRequest::Wish { server: next.server.clone(), master: revision, wish };
        self.tell_balance(next, true);
        self.out.push(Effect::Store(request));
    }

    /// What would even loads out, as the master last found.
    pub(in crate::machine) fn advice(&self) -> Vec<PlannedMove> {
        self.cluster.as_ref().map(|c| c.balancing.advice.clone()).unwrap_or_default()
    }

    /// What could be planned now.
    pub fn planning(&self) -> Planning {
        let mode = self.config.as_ref().map_or(BalanceMode::Off, |c| c.balance.mode);
        Planning { situation: self.situation(), policy: self.policy(), mode }
    }

    /// How the policy reads for the planner.
    fn policy(&self) -> Policy {
        let balance = self.config.as_ref().map(|c| c.balance.clone()).unwrap_or_default();
        let share = |percent: u32| f64::from(percent) / 100.0;
        let Balance { mode, start_percent, stop_percent, quiet_percent, at_once, .. } = balance;
        let Balance { server_cooldown, cluster_cooldown, horizon, .. } = balance;
        Policy {
            balance: mode != BalanceMode::Off,
            start: share(start_percent),
            stop: share(stop_percent),
            quiet: share(quiet_percent),
            at_once: Some(at_once as usize),
            // What goes back to its preferred node by itself has rested for no time, ever.
            server_cooldown: server_cooldown.max(Duration::from_nanos(1)),
            cluster_cooldown,
            horizon,
            ..Policy::default()
        }
    }

    /// What there is to plan, as far as this node knows. Loads are those that nodes have told, and a little more, so that idle virtual
    /// servers are spread by their number; without a cluster, those that this node has measured.
    fn situation(&self) -> Situation {
        let Some(config) = &self.config else { return Situation::default() };
        let Some(cluster) = &self.cluster else {
            let mut node = Node::new(&config.node, 1.0);
            node.storage = self.all_units().into_iter().collect();
            node.segments = self.segments().into_iter().filter(|s| self.has_usable_port(s)).collect();
            let servers = self.servers.iter().enumerate().filter_map(|(i, s)| {
                let definition = self.definition(&s.name)?;
                let owner = s.owner.map(|_| config.node.clone());
                Some(self.plan_server(definition, owner, self.measured_load(i) + IDLE / MILLION))
            });
            return Situation { servers: servers.collect(), nodes: vec![node], ..Situation::default() };
        };
        let units = self.all_units();
        let may_serve = |name: &str| !cluster.nodes.get(name).is_some_and(|n| n.witness);
        let members = cluster.members.nodes.iter().filter(|m| may_serve(&m.name));
        let nodes: Vec<Node> = members
            .map(|m| {
                let ports = cluster.nodes.get(&m.name).map(|n| n.ports.as_slice()).unwrap_or_default();
                let mut segments: Vec<String> =
                    ports.iter().filter(|p| p.usable).map(|p| p.segment.clone()).collect();
                segments.sort_unstable();
                segments.dedup();
                let state = cluster.node_state(&m.name, m.slot);
                let storage = units.iter().filter(|u| cluster.reaches_unit(&m.name, u)).cloned().collect();
                Node { segments, storage, state, ..Node::new(&m.name, cluster.capacity(&m.name)) }
            })
            .collect();
        let known = |name: &String| nodes.iter().any(|n| n.name == *name);
        let since = |at: Option<&Time>| at.map(|t| self.now.since(*t));
        let servers = config.servers.iter().map(|definition| {
            let record = cluster.records.get(&definition.name).map(|(r, _)| r);
            let owner = record.filter(|r| r.released.is_none()).map(|r| r.node.clone()).filter(known);
            let mut server = self.plan_server(definition, owner, cluster.weight(&definition.name));
            let at_home = server.owner.as_ref().is_some_and(|o| definition.preferred_nodes.contains(o));
            server.rested = match definition.failback {
                Failback::Immediate | Failback::Window(..) if at_home => Some(Duration::ZERO),
                _ if record.is_some_and(|r| !r.failed_on.is_empty()) => Some(Duration::ZERO),
                _ if cluster.balancing.known.get(&definition.name).is_none_or(|l| *l < LIGHT) => {
                    Some(Duration::ZERO)
                }
                _ => since(cluster.balancing.moved.get(&definition.name)),
            };
            server.preferred_nodes.retain(known);
            server.only_on.retain(known);
            // None of those that may have it is there: it stays where it is.
            server.migrate &= definition.only_on.is_empty() || !server.only_on.is_empty();
            server
        });
        Situation {
            servers: servers.collect(),
            rested: since(cluster.balancing.last.as_ref()),
            balancing: cluster.balancing.under_way,
            nodes,
        }
    }

    fn plan_server(&self, definition: &VirtualServer, owner: Option<String>, load: f64) -> Server {
        Server {
            owner,
            segments: self.segments_of(definition).into_iter().map(str::to_owned).collect(),
            storage: definition.storage_units.clone(),
            migrate: definition.migrate,
            priority: definition.priority,
            preferred_nodes: definition.preferred_nodes.clone(),
            never_with: definition.never_with.clone(),
            only_on: definition.only_on.clone(),
            ..Server::new(&definition.name, load)
        }
    }
}

impl Cluster {
    /// What is known of a node, in one word.
    pub(super) fn node_state(&self, name: &str, slot: u8) -> NodeState {
        let peer = self.reading.peers.iter().find(|p| p.slot == slot);
        let heard = slot == self.slot || peer.is_some_and(|p| self.is_heard(p, self.read));
        match heard {
            true if self.draining.contains(name) => NodeState::Draining,
            true => NodeState::Up,
            false => {
                let latest = peer.map_or(0, |p| self.latest(p));
                let dead = latest > 0 && self.accusers(slot, latest).count() >= self.members.majority();
                if dead { NodeState::Dead } else { NodeState::Unknown }
            }
        }
    }
}
