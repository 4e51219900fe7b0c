//! The store: the owner record, counters of incarnations, the member list, an administrator's wishes. What is asked of it may
//! land at any time, also after its sender has given it up, crashed or rebooted.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::agent::print;
use super::rules::Rules;
use super::world::{MAX, NAMES, SERVER, TICK, World};
use crate::Input;
use crate::cluster::{
    Entry, MASTER, Member, Members, NodeRecord, Record, StoreChange, StoreInput, StoreRequest, Wish,
};

/// Something asked of the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub node: usize,
    pub life: u32,
    /// The sender still waits for it.
    awaited: bool,
    request: StoreRequest,
}

/// What it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    pub record: Option<(Record, u64)>,
    pub counters: [u64; MAX],
    pub revision: u64,
    pub members: Arc<Members>,
    nodes: BTreeMap<usize, (Arc<NodeRecord>, u64)>,
    wish: (Option<usize>, u64),
    pub asked: Vec<Asked>,
    /// Answers under way: for whom, of which life.
    pub answers: Vec<(usize, u32, StoreInput)>,
}

impl Hash for Store {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.counters, self.revision, self.wish, self.members.version).hash(state);
        let nodes: Vec<&NodeRecord> = self.nodes.values().map(|(record, _)| &**record).collect();
        print(&(&self.record, nodes)).hash(state);
        for Asked { node, life, awaited, request } in &self.asked {
            (node, life, awaited, print(request)).hash(state);
        }
        for (node, life, answer) in &self.answers {
            (node, life, print(answer)).hash(state);
        }
    }
}

/// Times that belong to every version of the member list, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    pub lease: u64,
    pub slack: u64,
}

impl Store {
    /// `a` owns the virtual server, as its first incarnation.
    pub fn new(count: usize, members: &[usize], times: Times, witness: Option<usize>) -> Store {
        let ticks = |n: u64| std::time::Duration::from_nanos(n * TICK);
        let member = |n: &usize| Member { name: NAMES[*n].to_owned(), slot: *n as u8 };
        let members = Members {
            version: 1,
            probe_interval: ticks(1),
            lease: ticks(times.lease),
            slack: ticks(times.slack),
            rho_ppm: 0,
            nodes: members.iter().map(member).collect(),
            before: Vec::new(),
        };
        let node = |n: usize| {
            let ports = vec![crate::cluster::NodePort {
                number: 1,
                interface: "p0".into(),
                segment: "office".into(),
                mac: [2, 0, 0, 0, 0, n as u8],
                usable: true,
                hears: true,
            }];
            (
                n,
                (
                    Arc::new(NodeRecord {
                        incarnation: 1,
                        witness: witness == Some(n),
                        ports,
                        ..NodeRecord::default()
                    }),
                    1,
                ),
            )
        };
        let first = Record::of(NAMES[0], 1, 1, 1);
        let mut counters = [0; MAX];
        members.nodes.iter().for_each(|m| counters[usize::from(m.slot)] = 1);
        Store {
            record: Some((first, 1)),
            counters,
            revision: 1,
            members: Arc::new(members),
            nodes: (0..count).map(node).collect(),
            wish: (None, 1),
            asked: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Allots an incarnation.
    pub fn allot(&mut self, node: usize, above: u64) -> u64 {
        self.revision += 1;
        self.counters[node] = self.counters[node].max(above) + 1;
        self.counters[node]
    }

    /// What the nodes tell of themselves.
    pub fn node_records(&self) -> BTreeMap<String, NodeRecord> {
        self.nodes.iter().map(|(n, (r, _))| (NAMES[*n].to_owned(), NodeRecord::clone(r))).collect()
    }

    /// All keys that have changed since.
    fn since(&self, revision: u64) -> Vec<StoreChange> {
        let node = |(n, (record, revision)): (&usize, &(Arc<NodeRecord>, u64))| StoreChange {
            revision: *revision,
            entry: Entry::Node(NAMES[*n].to_owned(), Some(NodeRecord::clone(record))),
        };
        let mut all: Vec<StoreChange> = self.nodes.iter().map(node).collect();
        if let Some((record, revision)) = &self.record {
            let entry = Entry::Record(SERVER.into(), Some(record.clone()));
            all.push(StoreChange { revision: *revision, entry });
        }
        // Not of interest here, and always there.
        let master = Record::of("elsewhere", 1, 1, 1);
        all.push(StoreChange { revision: 1, entry: Entry::Record(MASTER.into(), Some(master)) });
        let (wish, at) = self.wish;
        let wish = wish.map(|to| Wish::administrator(NAMES[to]));
        all.push(StoreChange { revision: at, entry: Entry::Move(SERVER.into(), wish) });
        all.retain(|c| c.revision > revision);
        all.sort_by_key(|c| c.revision);
        all
    }

    /// `baton apply`: adds members to the list, or removes them. Refused where a rule of R10 says so.
    pub fn apply(&mut self, rules: &Rules, changed: &[usize]) -> bool {
        let one = changed.len() == 1 || !rules.one_member;
        let version = self.members.version;
        let is_final = self.record.as_ref().is_none_or(|(r, _)| r.members == version) || !rules.final_list;
        let mut next = Members::clone(&self.members);
        for n in changed {
            let before = next.nodes.len();
            next.nodes.retain(|m| m.name != NAMES[*n]);
            if next.nodes.len() == before {
                next.nodes.push(Member { name: NAMES[*n].to_owned(), slot: *n as u8 });
            }
        }
        if !one || !is_final || next.nodes.is_empty() {
            return false;
        }
        next.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        next.version += 1;
        next.before = self.members.nodes.clone();
        self.revision += 1;
        self.members = Arc::new(next);
        true
    }

    /// Is this node a member?
    pub fn has_member(&self, n: usize) -> bool {
        self.members.get(NAMES[n]).is_some()
    }
}

impl World {
    /// An agent's request; that it tells of itself is done at once.
    pub fn ask(&mut self, n: usize, request: StoreRequest) {
        match request {
            StoreRequest::Publish(record) => {
                self.store.revision += 1;
                self.store.nodes.insert(n, (Arc::new(record), self.store.revision));
            }
            // Nothing is measured here, so nothing is balanced.
            StoreRequest::PublishLoad(_) | StoreRequest::Wish { .. } => {}
            // The master's record is of no interest here: that request is never answered, and so not made again.
            StoreRequest::Write { server, .. } if server != SERVER => {}
            request => {
                let life = self.nodes[n].life;
                self.store.asked.push(Asked { node: n, life, awaited: true, request });
            }
        }
    }

    /// Is somebody waiting for it?
    pub fn is_awaited(&self, k: usize) -> bool {
        let asked = &self.store.asked[k];
        asked.awaited && self.nodes[asked.node].life == asked.life
    }

    /// A request is carried out by the store.
    pub fn land(&mut self, k: usize) {
        let store = &mut self.store;
        let Asked { node, life, awaited, request } = store.asked.remove(k);
        let answer = match request {
            StoreRequest::Write { server, expected, record } => {
                if server == SERVER && store.record.as_ref().map_or(0, |(_, r)| *r) == expected {
                    store.revision += 1;
                    let before = store.record.replace((record.clone(), store.revision));
                    self.changed_hands |= before.is_some_and(|(b, _)| b.node != record.node);
                    StoreInput::Written { server, record, revision: store.revision }
                } else {
                    StoreInput::NotWritten { server, current: store.record.clone() }
                }
            }
            StoreRequest::NewIncarnation { above } => StoreInput::Incarnation(store.allot(node, above)),
            StoreRequest::MoveDone { revision, .. } => {
                if store.wish.1 == revision {
                    store.revision += 1;
                    store.wish = (None, store.revision);
                }
                return;
            }
            StoreRequest::Publish(_) | StoreRequest::PublishLoad(_) | StoreRequest::Wish { .. } => return,
        };
        if awaited {
            store.answers.push((node, life, answer));
        }
    }

    /// The sender gives a request up, and reads what there is; the request may still land.
    pub fn give_up(&mut self, k: usize) {
        self.store.asked[k].awaited = false;
        let Asked { node, life, request, .. } = self.store.asked[k].clone();
        let answer = match request {
            StoreRequest::Write { server, record, .. } => {
                // The hole: what was read counts as if this process had written it.
                let own = |(r, _): &(Record, u64)| r.node == record.node && r.released.is_none();
                match self.store.record.clone().filter(own).filter(|_| !self.rules.own_write) {
                    Some((record, revision)) => StoreInput::Written { server, record, revision },
                    None => StoreInput::NotWritten { server, current: self.store.record.clone() },
                }
            }
            request => StoreInput::Failed(request, "no answer".to_owned()),
        };
        self.store.answers.push((node, life, answer));
    }

    /// May this answer be delivered now?
    pub fn can_deliver(&self, k: usize) -> bool {
        let node = self.store.answers[k].0;
        self.nodes[node].life != self.store.answers[k].1 || self.acts(node)
    }

    /// An answer reaches the agent that waits for it, if that still lives.
    pub fn deliver(&mut self, k: usize) {
        let (node, life, answer) = self.store.answers.remove(k);
        if self.nodes[node].life == life {
            self.input(node, Input::Store(answer));
        }
    }

    /// Is there news for the agent?
    pub fn has_news(&self, n: usize) -> bool {
        self.acts(n) && self.nodes[n].told < self.store.revision
    }

    /// The watch tells the agent what there is; a new one of everything.
    pub fn watch(&mut self, n: usize) {
        let changes = self.store.since(self.nodes[n].told);
        let first = self.nodes[n].told == 0;
        self.nodes[n].told = self.store.revision;
        match first {
            true => self.input(n, Input::Store(StoreInput::All(changes))),
            false => self.input(n, Input::Store(StoreInput::Changed(changes))),
        }
    }

    /// Has the agent been started with a member list that is not the latest?
    pub fn is_outdated(&self, n: usize) -> bool {
        self.acts(n) && self.nodes[n].members.version != self.store.members.version
    }

    /// It starts anew with the latest, or ends where this node is no member any more.
    pub fn renew(&mut self, n: usize) {
        self.crash(n);
        if self.store.has_member(n) {
            self.start(n);
        }
    }

    /// An administrator wants it there, or (`None`) no longer anywhere.
    pub fn wish(&mut self, to: Option<usize>) {
        self.store.revision += 1;
        self.store.wish = (to, self.store.revision);
    }
}
