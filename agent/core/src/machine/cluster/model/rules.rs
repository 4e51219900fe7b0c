//! The rules of lease.md as switches, and what a world begins with.

use super::store::Times;
use super::world::{NAMES, SERVER};
use crate::Config;
use crate::config::{PortConfig, Segment, Timing, VirtualServer};

/// Which rules of lease.md are kept by what stands around the machine, or by the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// R1: a clock that stood still is noticed by the next frame, and all grants are void.
    pub clock_jump: bool,
    /// R1: D is longer than L by a slack.
    pub slack: bool,
    /// R2: a grant counts only for the incarnation it names and for a time that has been.
    pub past_only: bool,
    /// R3: verdict and decision to grant are one step.
    pub one_step: bool,
    /// R3: silence is counted from the last receipt of any incarnation.
    pub any_incarnation: bool,
    /// R3: verdicts and receipts outlive the agent.
    pub pinned: bool,
    /// R4: no verdict for D after memory was lost.
    pub wait_after_loss: bool,
    /// R4: after that, only incarnations that were not allotted yet are granted.
    pub only_newer: bool,
    /// R5: the mark names an incarnation.
    pub mark_named: bool,
    /// R6, R7: only an own write sets the mark.
    pub own_write: bool,
    /// R10: the list grows and shrinks by one member at a time,
    pub one_member: bool,
    /// and not before the step before is final;
    pub final_list: bool,
    /// to adopt a version is to take a new incarnation;
    pub adopt_anew: bool,
    /// all members have the same lease.
    pub same_lease: bool,
    /// R11: what a node says of itself is no verdict. Kept by the machine.
    pub not_oneself: bool,
}

/// All of them.
pub const RULES: Rules = Rules {
    clock_jump: true,
    slack: true,
    past_only: true,
    one_step: true,
    any_incarnation: true,
    pinned: true,
    wait_after_loss: true,
    only_newer: true,
    mark_named: true,
    own_write: true,
    one_member: true,
    final_list: true,
    adopt_anew: true,
    same_lease: true,
    not_oneself: true,
};

/// What a world begins with.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub rules: Rules,
    /// How many nodes there are,
    pub nodes: usize,
    /// and how many of them are members at first.
    pub members: usize,
    pub witness: Option<usize>,
    pub times: Times,
    /// The virtual server has file systems and services, which start and stop when they please.
    pub resources: bool,
}

impl Setting {
    /// So many nodes, all members, all rules kept.
    pub fn new(nodes: usize) -> Setting {
        let times = Times { lease: 5, slack: 2 };
        Setting { rules: RULES, nodes, members: nodes, witness: None, times, resources: false }
    }
}

/// The configuration of a node.
pub fn config(node: usize, has_resources: bool) -> Config {
    Config {
        ports: vec![PortConfig::new("p0", "office")],
        timing: Timing { announce_repeat: Vec::new(), ..Timing::default() },
        segments: vec![Segment::new("office", vec!["10.0.0.0/24".parse().expect("subnet")])],
        servers: vec![VirtualServer {
            preferred_nodes: vec!["b".into(), "c".into()],
            has_resources,
            ..VirtualServer::new(SERVER, vec!["10.0.0.10/24".parse().expect("address")])
        }],
        ..Config::new(NAMES[node])
    }
}
