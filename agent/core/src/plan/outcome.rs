//! What the planner answers, and how it explains itself.

use std::fmt;

/// A plan. All lists of names are sorted; steps stand in the order in which they are to be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Where every virtual server is in the end, but for those in `unplaced`. By name.
    pub placements: Vec<Placement>,
    /// The changes. Each is permitted when those before it have been made.
    pub steps: Vec<Step>,
    /// What can't be placed. By name.
    pub unplaced: Vec<Unplaced>,
    /// The nodes' loads before and after, as shares of capacity. By name.
    pub nodes: Vec<NodeLoad>,
    /// The highest of all nodes but the dead ones, before.
    pub highest_before: f64,
    /// The highest after.
    pub highest_load: f64,
    /// No plan can come below this: the fractional optimum (load split at will), or the largest single virtual server on the largest
    /// node that may have it.
    pub lower_bound: f64,
}

/// A virtual server and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The virtual server.
    pub server: String,
    /// The node.
    pub node: String,
}

/// The load of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeLoad {
    /// The node.
    pub name: String,
    /// Share of its capacity, before.
    pub before: f64,
    /// And after.
    pub after: f64,
}

/// How a virtual server gets its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nobody had it.
    Start,
    /// Its owner is dead.
    Takeover,
    /// Its owner gives it up for the new one.
    Move,
}

impl Kind {
    /// The word for people and files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Start => "start",
            Kind::Takeover => "takeover",
            Kind::Move => "move",
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The virtual server.
    pub server: String,
    /// Its node before.
    pub from: Option<String>,
    /// Its node after.
    pub to: String,
    /// How.
    pub kind: Kind,
    /// Why.
    pub why: Why,
    /// The load of `from` before and after this step, as shares of its capacity; 0 without one, and of a dead one.
    pub from_load: (f64, f64),
    /// The load of `to`.
    pub to_load: (f64, f64),
    /// The highest load of all nodes.
    pub highest: (f64, f64),
}

/// Why a step is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Why {
    /// Why it doesn't stay.
    pub cause: Cause,
    /// Why this node.
    pub choice: Choice,
}

/// Why a virtual server doesn't stay where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nobody owns it.
    Unowned,
    /// Its owner is dead.
    OwnerDead,
    /// Its owner is to be emptied.
    Drain,
    /// Its owner may not have it, or can't.
    OutOfReach(Barrier),
    /// Its owner has one that it may not be with.
    NeverWith(String),
    /// Another one would find no place.
    MakesRoom(String),
    /// Its owner has more than its share.
    Balance,
}

/// Why a node was chosen. Loads are shares of capacity.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// Of all that may have it, this one is the least loaded afterwards.
    LeastLoaded {
        /// Its load then.
        load: f64,
    },
    /// It is preferred, and not too full.
    Preferred {
        /// Its load then.
        load: f64,
    },
    /// Others of the same dead node go to the least loaded one already.
    Spread {
        /// Its load then.
        load: f64,
    },
    /// It evens out two nodes best.
    Evens {
        /// The higher of the two loads before.
        before: f64,
        /// And after.
        after: f64,
    },
    /// Together with a step the other way, it evens out two nodes.
    Swap {
        /// What goes the other way.
        with: String,
    },
}

/// What keeps a virtual server from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The node isn't among those that may have it.
    OnlyOn(Vec<String>),
    /// It has no good port in this segment.
    Segment(String),
    /// It doesn't reach this storage unit.
    Storage(String),
    /// Several at once.
    Reach,
}

/// A virtual server without a place.
#[derive(Clone, Debug, PartialEq)]
pub struct Unplaced {
    /// Its name.
    pub server: String,
    /// It should leave this node, and stays there.
    pub stays_on: Option<String>,
    /// Why.
    pub hindrance: Hindrance,
}

/// Why a virtual server finds no place.
#[derive(Clone, Debug, PartialEq)]
pub enum Hindrance {
    /// It may not leave its owner, which is dead.
    Pinned {
        /// Its owner.
        owner: String,
    },
    /// No node is up (but for the one it should leave).
    NoNode,
    /// No node is up that may have it and can.
    Barrier(Barrier),
    /// Each node that could have it has one that it may not be with.
    NeverWith {
        /// One of those.
        other: String,
        /// Its node.
        node: String,
    },
    /// It fits on none.
    Capacity {
        /// Its load.
        load: f64,
        /// The node with the most room of those that may have it.
        node: String,
        /// That room, in the same unit.
        room: f64,
    },
}

/// A share of capacity in percent, to a tenth.
pub(super) struct Percent(pub f64);

/// A number to six digits, without needless zeros.
struct Figure(f64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.6}", self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", self.0 * 100.0)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Unowned => write!(f, "nobody has it")?,
            Cause::OwnerDead => write!(f, "its owner is dead")?,
            Cause::Drain => write!(f, "its owner is draining")?,
            Cause::OutOfReach(barrier) => write!(f, "its owner {barrier}")?,
            Cause::NeverWith(other) => write!(f, "it may not be with {other}")?,
            Cause::MakesRoom(other) => write!(f, "makes room for {other}")?,
            Cause::Balance => write!(f, "balance")?,
        }
        match &self.choice {
            Choice::LeastLoaded { load } => write!(f, "; least loaded then ({})", Percent(*load)),
            Choice::Preferred { load } => write!(f, "; preferred, and not too full ({})", Percent(*load)),
            Choice::Spread { load } => write!(f, "; not all to one node ({})", Percent(*load)),
            Choice::Evens { before, after } => {
                write!(f, ": the higher of the two from {} to {}", Percent(*before), Percent(*after))
            }
            Choice::Swap { with } => write!(f, ": with {with}, which goes the other way"),
        }
    }
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Barrier::OnlyOn(nodes) => write!(f, "is not among those that may have it ({})", nodes.join(", ")),
            Barrier::Segment(segment) => write!(f, "has no good port in segment {segment}"),
            Barrier::Storage(unit) => write!(f, "doesn't reach storage unit {unit}"),
            Barrier::Reach => write!(f, "lacks a segment or storage unit"),
        }
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hindrance::Pinned { owner } => write!(f, "it may not leave {owner}, which is dead"),
            Hindrance::NoNode => write!(f, "no other node is up"),
            Hindrance::Barrier(Barrier::OnlyOn(nodes)) => {
                write!(f, "none of the nodes that may have it is up ({})", nodes.join(", "))
            }
            Hindrance::Barrier(Barrier::Segment(segment)) => {
                write!(f, "no node that may have it has a good port in segment {segment}")
            }
            Hindrance::Barrier(Barrier::Storage(unit)) => {
                write!(f, "no node that may have it reaches storage unit {unit}")
            }
            Hindrance::Barrier(Barrier::Reach) => {
                write!(f, "no node that may have it has all its segments and storage units")
            }
            Hindrance::NeverWith { other, node } => {
                write!(f, "each node that could have it has one it may not be with ({other} on {node})")
            }
            Hindrance::Capacity { load, node, room } => {
                let (load, room) = (Figure(*load), Figure(*room));
                write!(f, "its load of {load} fits on no node; {node} has the most room, {room}")
            }
        }
    }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.stays_on {
            Some(node) => write!(f, "it should leave {node} and stays there: {}", self.hindrance),
            None => self.hindrance.fmt(f),
        }
    }
}

/// Who takes a virtual server when its node dies, the first first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The virtual server.
    pub server: String,
    /// The node that has it, or is given it by the plan. `None`: it has no place.
    pub node: Option<String>,
    /// The others in order.
    pub successors: Vec<String>,
}
