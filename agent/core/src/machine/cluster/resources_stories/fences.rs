//! Fencing and storage units in the stories.

use super::{N, NAMES, Node, Real, World, others};
use crate::cluster::Record;
use crate::{Input, StorageState};

/// The only unit there is.
pub(super) const UNIT: &str = "array";

/// How nodes are fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// Not at all: whoever says so has accepted that two may have it mounted.
    None,
    /// They are reset.
    Power,
    /// They are kept from their storage until they start something as the owner.
    Keys,
    /// Whoever has something mounted and is not entitled to it resets itself.
    Watchdog,
}

/// A node that is to be fenced.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    by: usize,
    life: u32,
    node: String,
    incarnation: u64,
    /// It has been carried out, well or not, and is to be answered.
    done: Option<bool>,
}

impl Node {
    /// May what it has mounted be written?
    pub fn may_write(&self) -> bool {
        self.real != Real::Nothing && !self.blocked
    }
}

impl World {
    pub fn is_fenced(&self) -> bool {
        self.means != Means::None
    }

    /// A node asks for one to be fenced.
    pub fn order_fence(&mut self, by: usize, node: String, incarnation: u64) {
        let life = self.nodes[by].life;
        assert!(self.is_fenced() && node != NAMES[by], "{} has {node} fenced", NAMES[by]);
        let same = |o: &&Order| (o.by, o.life, &o.node, o.incarnation) == (by, life, &node, incarnation);
        assert!(!self.fences.iter().any(|o| same(&o)), "asked for twice: {node}");
        self.fences.push(Order { by, life, node, incarnation, done: None });
    }

    /// An order is carried out, or fails.
    pub fn fence(&mut self, k: usize, well: bool) {
        if self.fences[k].done.is_some() {
            return;
        }
        self.fences[k].done = Some(well);
        let n = NAMES.iter().position(|name| *name == self.fences[k].node).expect("a node");
        if !well {
            return;
        }
        match self.means {
            Means::None => {}
            Means::Power => self.reset(n),
            Means::Keys => self.nodes[n].blocked = true,
            Means::Watchdog => {
                // Waited for; whoever was not reset had nothing mounted, or was entitled to it.
                if self.nodes[n].real != Real::Nothing && !self.is_fed(n) {
                    self.reset(n);
                }
            }
        }
    }

    /// Is its watchdog fed?
    fn is_fed(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        self.has_lease(n) && node.machine.is_some() && node.entitled == Some(node.incarnation)
    }

    /// Power is lost for a moment. The agent that starts then takes a new incarnation, from the store.
    pub fn reset(&mut self, n: usize) {
        self.crash(n);
        self.counters[n] += 1;
        let incarnation = self.counters[n];
        let node = &mut self.nodes[n];
        (node.mark, node.real, node.blocked) = (0, Real::Nothing, false);
        (node.incarnation, node.booted) = (incarnation, true);
    }

    /// What has been carried out is told to whoever asked for it.
    pub fn answer_fence(&mut self, k: usize) {
        let Some(well) = self.fences[k].done else { return };
        let Order { by, life, node, incarnation, .. } = self.fences.remove(k);
        if self.nodes[by].life == life {
            let failed = (!well).then(|| "no answer".to_owned());
            self.input(by, Input::Fenced { server: "vs".into(), node, incarnation, failed });
        }
    }

    pub fn fence_all(&mut self) {
        while !self.fences.is_empty() {
            self.fence(0, true);
            self.answer_fence(0);
        }
    }

    /// The unit is reached by this node, or not.
    pub fn set_storage(&mut self, n: usize, good: bool) {
        self.nodes[n].reaches = good;
        let state = if good { StorageState::Good } else { StorageState::Hung };
        self.input(n, Input::Storage { unit: UNIT.into(), state });
    }

    /// A node starts what is its own: nobody else may have it mounted.
    pub fn check_start(&self, n: usize) {
        for m in others(n) {
            let other = &self.nodes[m];
            let accepted = !self.is_fenced() && other.replaced;
            assert!(!other.may_write() || accepted, "{} runs it too", NAMES[m]);
        }
    }

    /// A write of the record lands that says who may have it mounted.
    pub fn check_unfenced(&mut self, by: usize, record: &Record) {
        let before = &self.store.record.0;
        let listed = |r: &Record, n: usize| r.unfenced.iter().any(|(name, _)| name == NAMES[n]);
        if !self.is_fenced() {
            assert_eq!(record.unfenced, []);
            if record.released.is_some() {
                self.nodes[by].replaced = self.nodes[by].real != Real::Nothing;
            }
            return;
        }
        for (n, name) in NAMES.iter().enumerate() {
            let left = listed(before, n) && !listed(record, n);
            assert!(!left || !self.nodes[n].may_write(), "{name} may still write: {record:?}");
        }
        let owner = NAMES.iter().position(|name| *name == before.node).expect("a node");
        if record.node != before.node && before.released.is_none() {
            assert!(listed(record, owner), "{record:?} was taken from {}", before.node);
        }
        if record.released.is_some() && before.released.is_none() && self.nodes[by].may_write() {
            assert!(listed(record, by), "released: {record:?}");
            assert_eq!(self.nodes[by].entitled, None, "released, and its watchdog is fed");
        }
    }

    /// Whoever may have it mounted and is to be fenced is not entitled to it.
    pub fn check_entitled(&self) {
        let (record, _) = &self.store.record;
        for n in (0..N).filter(|_| self.is_fenced()) {
            let listed = record.unfenced.iter().any(|(name, _)| name == NAMES[n]);
            let feeds = self.nodes[n].real != Real::Nothing && self.is_fed(n);
            assert!(!listed || !feeds, "{} is in {record:?}, and its watchdog is fed", NAMES[n]);
        }
    }
}
