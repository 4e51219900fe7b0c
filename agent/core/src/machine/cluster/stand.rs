//! What worlds of three machines have in common: names, the member list, and a stand-in of the store with the record of one virtual
//! server, `vs`, which `a` owns at first. For tests.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ClusterStart;
use crate::cluster::{
    Entry, MASTER, Member, Members, NodeRecord, Record, StoreChange, StoreInput, StoreRequest,
};

pub(super) const N: usize = 3;
pub(super) const NAMES: [&str; N] = ["a", "b", "c"];

pub(super) fn members() -> Members {
    Members {
        version: 1,
        probe_interval: Duration::from_millis(10),
        lease: Duration::from_millis(50),
        slack: Duration::ZERO,
        rho_ppm: 0,
        nodes: NAMES.iter().zip(0..).map(|(name, slot)| Member { name: (*name).to_owned(), slot }).collect(),
        before: Vec::new(),
    }
}

pub(super) fn others(n: usize) -> impl Iterator<Item = usize> {
    (0..N).filter(move |m| *m != n)
}

/// What an agent starts with: the records of all nodes, and verdicts by voter and whom they are about.
pub(super) fn cluster_start<'a>(
    published: impl Iterator<Item = &'a NodeRecord>,
    verdicts: BTreeMap<(u8, u8), u64>,
) -> ClusterStart {
    let nodes = NAMES.iter().zip(published).map(|(name, record)| ((*name).to_owned(), record.clone()));
    ClusterStart {
        members: members(),
        nodes: nodes.collect(),
        witness: false,
        lost_memory: false,
        new_list: false,
        verdicts,
    }
}

/// The store.
pub(super) struct Store {
    /// The record, and its revision.
    pub(super) record: (Record, u64),
    /// Of the latest write.
    pub(super) revision: u64,
    /// Requests that have not arrived yet, with who asks, and in which life.
    pub(super) asked: Vec<(usize, u32, StoreRequest)>,
    /// Answers that have not arrived yet.
    pub(super) answers: Vec<(usize, u32, StoreInput)>,
}

impl Store {
    pub(super) fn new() -> Store {
        let (asked, answers) = Default::default();
        Store { record: (Record::of("a", 1, 1, 1), 1), revision: 1, asked, answers }
    }

    /// What it holds: the nodes' records, that of the virtual server, and a master that none of them is.
    pub(super) fn entries<'a>(&self, published: impl Iterator<Item = &'a NodeRecord>) -> Vec<StoreChange> {
        let node = |(record, name): (&NodeRecord, &str)| StoreChange {
            revision: 1,
            entry: Entry::Node(name.to_owned(), Some(record.clone())),
        };
        let mut all: Vec<StoreChange> = published.zip(NAMES).map(node).collect();
        let (record, revision) = self.record.clone();
        let elsewhere = Record { node: "z".into(), ..record.clone() };
        all.push(StoreChange { revision, entry: Entry::Record("vs".into(), Some(record)) });
        all.push(StoreChange { revision: 1, entry: Entry::Record(MASTER.into(), Some(elsewhere)) });
        all
    }

    /// Compares and swaps; returns the answer.
    pub(super) fn write(&mut self, server: String, expected: u64, record: Record) -> StoreInput {
        if self.record.1 != expected {
            return StoreInput::NotWritten { server, current: Some(self.record.clone()) };
        }
        self.revision += 1;
        self.record = (record.clone(), self.revision);
        StoreInput::Written { server, record, revision: self.revision }
    }
}
