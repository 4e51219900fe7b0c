//! What the planner is told, and what is wrong with it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::BalanceMode;

/// The cluster as it is: what there is to plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Situation {
    /// The nodes, in any order.
    pub nodes: Vec<Node>,
    /// The virtual servers, in any order.
    pub servers: Vec<Server>,
    /// Time since the last balance move in the cluster; `None`: there was none.
    pub rested: Option<Duration>,
    /// A balance is under way: it goes on until nodes are below [`Policy::stop`], and needs not be above
    /// [`Policy::start`] again.
    pub balancing: bool,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It may be given virtual servers.
    #[default]
    Up,
    /// It serves, is given nothing, and is to be emptied.
    Draining,
    /// A majority has called it dead: what it had is free to take.
    Dead,
    /// Not heard, and not called dead: what it has stays with it, and it is given nothing.
    Unknown,
}

impl NodeState {
    /// The word for people and files.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Up => "up",
            NodeState::Draining => "draining",
            NodeState::Dead => "dead",
            NodeState::Unknown => "unknown",
        }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name, unique.
    pub name: String,
    /// The load it can bear at most, in the unit of [`Server::load`]; above 0. Nothing is planned beyond it.
    pub capacity: f64,
    /// Segments in which it has a good port.
    pub segments: Vec<String>,
    /// Storage units that it reaches.
    pub storage: Vec<String>,
    /// What is known of it.
    pub state: NodeState,
}

impl Node {
    /// A node that is up.
    pub fn new(name: &str, capacity: f64) -> Node {
        Node {
            name: name.to_owned(),
            capacity,
            segments: Vec::new(),
            storage: Vec::new(),
            state: NodeState::Up,
        }
    }
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its name, unique.
    pub name: String,
    /// What it costs a node; 0 or more.
    pub load: f64,
    /// The node that has it.
    pub owner: Option<String>,
    /// Segments that its node must have a good port in.
    pub segments: Vec<String>,
    /// Storage units that its node must reach.
    pub storage: Vec<String>,
    /// `false`: it stays with its owner, whatever happens.
    pub migrate: bool,
    /// The higher is served first, and gets the room if there is not enough.
    pub priority: u32,
    /// Nodes that are taken if that makes none too full, best first.
    pub preferred_nodes: Vec<String>,
    /// Virtual servers that may not be on the same node. It is enough to say it on one side.
    pub never_with: Vec<String>,
    /// The only nodes that may have it; empty: all.
    pub only_on: Vec<String>,
    /// How long its clients wait when it moves.
    pub move_cost: Duration,
    /// Time since it was last moved; `None`: never, or long ago.
    pub rested: Option<Duration>,
}

impl Server {
    /// A server that any node may have, and nobody owns.
    pub fn new(name: &str, load: f64) -> Server {
        Server {
            name: name.to_owned(),
            load,
            owner: None,
            segments: Vec::new(),
            storage: Vec::new(),
            migrate: true,
            priority: 100,
            preferred_nodes: Vec::new(),
            never_with: Vec::new(),
            only_on: Vec::new(),
            move_cost: Duration::from_secs(1),
            rested: None,
        }
    }

    /// The same with an owner.
    pub fn on(self, node: &str) -> Server {
        Server { owner: Some(node.to_owned()), ..self }
    }
}

/// When to balance and how far.
///
/// At most `at_once` virtual servers move in one balance, and balances are `cluster_cooldown` apart; so at most
/// `at_once` × 24 h / `cluster_cooldown` moves are made for balance in a day, and of one virtual server at most
/// 24 h / `server_cooldown`, whatever the load does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Are virtual servers moved only to even loads out?
    pub balance: bool,
    /// A node is relieved when its load is above this many times the fair one. The fair load is what all nodes would have if
    /// load could be split at will, those left out that no move makes better (a node with one hot virtual server).
    pub start: f64,
    /// And then until all are below this many times the fair one.
    pub stop: f64,
    /// A node with a lower load than this share of its capacity is never relieved.
    pub quiet: f64,
    /// How many virtual servers one balance may move; `None`: as many as it takes.
    pub at_once: Option<usize>,
    /// A virtual server that moved rests for so long.
    pub server_cooldown: Duration,
    /// After a balance move the cluster rests for so long.
    pub cluster_cooldown: Duration,
    /// A move pays if what it takes off the higher of its two nodes, for this long, is more than what its clients
    /// miss while it moves ([`Server::load`] for [`Server::move_cost`]).
    pub horizon: Duration,
    /// How many successors each virtual server has, where there are so many nodes.
    pub successors: usize,
}

/// What is planned for a living cluster, and by which policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Planning {
    /// The cluster, as far as the node knows.
    pub situation: Situation,
    /// When to balance and how far.
    pub policy: Policy,
    /// Whether that is done.
    pub mode: BalanceMode,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            balance: true,
            start: 1.05,
            stop: 1.02,
            quiet: 0.0,
            at_once: None,
            server_cooldown: Duration::from_secs(600),
            cluster_cooldown: Duration::from_secs(60),
            horizon: Duration::from_secs(600),
            successors: 3,
        }
    }
}

/// The largest load and capacity that are calculated with.
const MOST: f64 = 1e12;
/// The smallest capacity.
const LEAST: f64 = 1e-6;

/// What is wrong with a situation, and what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Mistake {
    /// Two nodes have one name.
    #[error("two nodes are called \"{0}\"; give each its own name")]
    NodeTwice(String),
    /// Two virtual servers have one name.
    #[error("two virtual servers are called \"{0}\"; give each its own name")]
    ServerTwice(String),
    /// A name is empty.
    #[error("a {0} has an empty name; give it one")]
    Nameless(&'static str),
    /// A capacity that can't be.
    #[error("node \"{node}\": its capacity is {capacity}; it must be a number from {LEAST} to {MOST}")]
    Capacity {
        /// The node.
        node: String,
        /// What was said.
        capacity: f64,
    },
    /// A load that can't be.
    #[error("virtual server \"{server}\": its load is {load}; it must be a number from 0 to {MOST}")]
    Load {
        /// The virtual server.
        server: String,
        /// What was said.
        load: f64,
    },
    /// A node that isn't there.
    #[error(
        "virtual server \"{server}\": {key} names \"{node}\", which is no node; add the node, or remove the name"
    )]
    NoNode {
        /// The virtual server.
        server: String,
        /// Where: `owner`, `preferred_nodes` or `only_on`.
        key: &'static str,
        /// The name.
        node: String,
    },
    /// A virtual server that isn't there.
    #[error(
        "virtual server \"{server}\": never_with names \"{other}\", which is no virtual server; add it, or remove the name"
    )]
    NoServer {
        /// The virtual server.
        server: String,
        /// The name.
        other: String,
    },
    /// It may not be where it is itself.
    #[error("virtual server \"{0}\": never_with names itself; remove the name")]
    NeverWithItself(String),
}

impl Situation {
    /// The first mistake, if there is one.
    pub fn check(&self) -> Result<(), Mistake> {
        let mut nodes = BTreeMap::new();
        for node in &self.nodes {
            if node.name.is_empty() {
                return Err(Mistake::Nameless("node"));
            }
            if nodes.insert(node.name.as_str(), ()).is_some() {
                return Err(Mistake::NodeTwice(node.name.clone()));
            }
            if !(LEAST..=MOST).contains(&node.capacity) {
                return Err(Mistake::Capacity { node: node.name.clone(), capacity: node.capacity });
            }
        }
        let mut servers = BTreeMap::new();
        for server in &self.servers {
            if server.name.is_empty() {
                return Err(Mistake::Nameless("virtual server"));
            }
            if servers.insert(server.name.as_str(), ()).is_some() {
                return Err(Mistake::ServerTwice(server.name.clone()));
            }
            if !(0.0..=MOST).contains(&server.load) {
                return Err(Mistake::Load { server: server.name.clone(), load: server.load });
            }
        }
        for server in &self.servers {
            let lists = [
                ("owner", server.owner.as_slice()),
                ("preferred_nodes", &server.preferred_nodes),
                ("only_on", &server.only_on),
            ];
            for (key, names) in lists {
                if let Some(node) = names.iter().find(|n| !nodes.contains_key(n.as_str())) {
                    return Err(Mistake::NoNode { server: server.name.clone(), key, node: node.clone() });
                }
            }
            if let Some(other) = server.never_with.iter().find(|n| !servers.contains_key(n.as_str())) {
                return Err(Mistake::NoServer { server: server.name.clone(), other: other.clone() });
            }
            if server.never_with.contains(&server.name) {
                return Err(Mistake::NeverWithItself(server.name.clone()));
            }
        }
        Ok(())
    }
}
