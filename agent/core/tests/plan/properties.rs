//! What holds for every situation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use baton_core::plan::{Kind, Node, NodeState, Policy, Server, Situation, Step, plan, successions};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use crate::{applied, merit};

const SEGMENTS: [&str; 3] = ["office", "lab", "cad"];
const UNITS: [&str; 2] = ["array-1", "array-2"];

fn names(of: &'static [&'static str], least: usize) -> impl Strategy<Value = Vec<String>> {
    let chosen = subsequence(of, least..=of.len());
    chosen.prop_map(|names| names.into_iter().map(str::to_owned).collect())
}

fn state() -> impl Strategy<Value = NodeState> {
    prop_oneof![
        8 => Just(NodeState::Up),
        1 => Just(NodeState::Draining),
        1 => Just(NodeState::Dead),
        1 => Just(NodeState::Unknown),
    ]
}

fn node(number: usize) -> impl Strategy<Value = Node> {
    let capacity = prop_oneof![Just(1.0), Just(2.0), 0.5..4.0f64];
    (capacity, names(&SEGMENTS, 1), names(&UNITS, 0), state()).prop_map(
        move |(capacity, segments, storage, state)| Node {
            name: format!("fs{number}"),
            capacity,
            segments,
            storage,
            state,
        },
    )
}

#[derive(Debug, Clone)]
struct Rough {
    load: f64,
    owner: Option<Index>,
    needs: (Vec<String>, Vec<String>),
    migrate: bool,
    priority: u32,
    preferred: Vec<Index>,
    apart: Vec<Index>,
    only: Vec<Index>,
    rested: Option<u64>,
}

fn rough() -> impl Strategy<Value = Rough> {
    let load = prop_oneof![1 => Just(0.0), 2 => Just(0.1), 6 => 0.0..0.5f64];
    let rare = |of| prop_oneof![3 => Just(Vec::new()), 1 => of];
    let few = || proptest::collection::vec(any::<Index>(), 0..3);
    (
        load,
        proptest::option::weighted(0.8, any::<Index>()),
        (rare(names(&SEGMENTS, 0).boxed()), rare(names(&UNITS, 0).boxed())),
        proptest::bool::weighted(0.9),
        prop_oneof![Just(100), 1..5u32],
        few(),
        prop_oneof![3 => Just(Vec::new()), 1 => few().boxed()],
        prop_oneof![5 => Just(Vec::new()), 1 => few().boxed()],
        proptest::option::of(0..2000u64),
    )
        .prop_map(|(load, owner, needs, migrate, priority, preferred, apart, only, rested)| Rough {
            load,
            owner,
            needs,
            migrate,
            priority,
            preferred,
            apart,
            only,
            rested,
        })
}

/// Anything at all: also what breaks constraints already.
fn situation() -> impl Strategy<Value = Situation> {
    let nodes = (1..7usize).prop_flat_map(|count| (0..count).map(node).collect::<Vec<_>>());
    (nodes, proptest::collection::vec(rough(), 0..40)).prop_map(|(nodes, roughs)| {
        let node = |i: &Index| i.get(&nodes).name.clone();
        let count = roughs.len();
        let server = |(number, r): (usize, &Rough)| Server {
            name: format!("vs{number:02}"),
            load: r.load,
            owner: r.owner.as_ref().map(node),
            segments: r.needs.0.clone(),
            storage: r.needs.1.clone(),
            migrate: r.migrate,
            priority: r.priority,
            preferred_nodes: r.preferred.iter().map(node).collect(),
            never_with: r
                .apart
                .iter()
                .map(|i| i.index(count))
                .filter(|other| *other != number)
                .map(|other| format!("vs{other:02}"))
                .collect(),
            only_on: r.only.iter().map(node).collect(),
            move_cost: Duration::from_secs(1),
            rested: r.rested.map(Duration::from_secs),
        };
        let servers = roughs.iter().enumerate().map(server).collect();
        Situation { nodes, servers, ..Situation::default() }
    })
}

/// A situation in which nothing is wrong but the loads: all nodes up, all virtual servers owned, and none that rests.
fn unbalanced() -> impl Strategy<Value = Situation> {
    situation().prop_map(|mut s| {
        for node in &mut s.nodes {
            node.state = NodeState::Up;
            node.capacity *= 20.0;
            node.segments = SEGMENTS.map(str::to_owned).to_vec();
            node.storage = UNITS.map(str::to_owned).to_vec();
        }
        let first = s.nodes[0].name.clone();
        for server in &mut s.servers {
            server.never_with.clear();
            server.only_on.clear();
            server.rested = None;
            server.owner.get_or_insert(first.clone());
        }
        s
    })
}

/// May that node have it, as far as nodes go?
fn is_able(node: &Node, server: &Server) -> bool {
    server.segments.iter().all(|s| node.segments.contains(s))
        && server.storage.iter().all(|s| node.storage.contains(s))
        && (server.only_on.is_empty() || server.only_on.contains(&node.name))
}

/// Makes the steps one by one and says what is wrong with each.
fn violations(situation: &Situation, steps: &[Step]) -> Vec<String> {
    let node = |name: &str| situation.nodes.iter().find(|n| n.name == name).expect("a node");
    let mut at: BTreeMap<&str, &str> = BTreeMap::new();
    for server in &situation.servers {
        if let Some(owner) = server.owner.as_deref().filter(|o| node(o).state != NodeState::Dead) {
            at.insert(&server.name, owner);
        }
    }
    let mut wrong = Vec::new();
    for step in steps {
        let server = situation.servers.iter().find(|s| s.name == step.server).expect("a server");
        let to = node(&step.to);
        let mut check = |good: bool, what: &str| {
            if !good {
                wrong.push(format!("{what}: {step:?}"));
            }
        };
        let from = at.get(server.name.as_str()).copied().or(server.owner.as_deref());
        check(from == step.from.as_deref(), "from another node");
        check(server.migrate || server.owner.is_none(), "pinned");
        check(to.state == NodeState::Up, "to a node that isn't up");
        check(is_able(to, server), "out of reach");
        if let Some(from) = at.get(server.name.as_str()) {
            check(node(from).state != NodeState::Unknown, "off a node that may serve it");
            check(step.kind == Kind::Move, "a living owner");
        }
        let apart = |other: &&Server| {
            other.never_with.contains(&server.name) || server.never_with.contains(&other.name)
        };
        let mut foes = situation.servers.iter().filter(apart);
        check(!foes.any(|f| at.get(f.name.as_str()) == Some(&step.to.as_str())), "never together");
        at.insert(&server.name, &step.to);
        let here = situation.servers.iter().filter(|s| at.get(s.name.as_str()) == Some(&step.to.as_str()));
        let load: f64 = here.map(|s| s.load).sum();
        check(load <= to.capacity * (1.0 + 1e-6), "beyond capacity");
    }
    wrong
}

fn shuffled<T: Clone>(list: &[T], by: &[Index]) -> Vec<T> {
    let mut list = list.to_vec();
    for (position, index) in by.iter().enumerate() {
        if let (false, true) = (list.is_empty(), position < list.len()) {
            let other = index.index(list.len());
            list.swap(position, other);
        }
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn every_step_is_permitted_when_it_is_its_turn(s in situation()) {
        let plan = plan(&s, &Policy::default()).unwrap();
        let wrong = violations(&s, &plan.steps);
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
        // Every virtual server is in one of the two lists, once, and where the steps lead.
        let placed: BTreeSet<_> = plan.placements.iter().map(|p| p.server.clone()).collect();
        let unplaced: BTreeSet<_> = plan.unplaced.iter().map(|u| u.server.clone()).collect();
        prop_assert_eq!(placed.len() + unplaced.len(), s.servers.len());
        prop_assert_eq!(plan.placements.len() + plan.unplaced.len(), s.servers.len());
        prop_assert!(placed.is_disjoint(&unplaced));
        let moved: BTreeMap<_, _> = plan.steps.iter().map(|t| (&t.server, &t.to)).collect();
        for p in &plan.placements {
            let owner = s.servers.iter().find(|x| x.name == p.server).unwrap().owner.as_ref();
            prop_assert_eq!(Some(&p.node), moved.get(&p.server).copied().or(owner));
        }
        prop_assert!(plan.highest_load >= plan.lower_bound - 1e-9);
        // Each is moved once at most.
        prop_assert_eq!(moved.len(), plan.steps.len());
    }

    #[test]
    fn what_is_placed_where_there_is_room_has_a_reason_not_to_be(s in situation()) {
        let plan = plan(&s, &Policy::default()).unwrap();
        let after = applied(&s, &plan);
        for u in plan.unplaced.iter().filter(|u| u.stays_on.is_none()) {
            let server = s.servers.iter().find(|x| x.name == u.server).unwrap();
            let owner = server.owner.as_ref().filter(|_| !server.migrate);
            for node in s.nodes.iter().filter(|n| n.state == NodeState::Up && is_able(n, server)) {
                let here = || after.servers.iter().filter(|x| {
                    let stays = plan.unplaced.iter().any(|u| u.server == x.name && u.stays_on.is_some());
                    let placed = plan.placements.iter().any(|p| p.server == x.name);
                    x.owner.as_ref() == Some(&node.name) && (placed || stays)
                });
                let load: f64 = here().map(|x| x.load).sum();
                let foe = here().any(|x| x.never_with.contains(&server.name) || server.never_with.contains(&x.name));
                prop_assert!(
                    owner.is_some() || foe || load + server.load > node.capacity,
                    "{} could be on {}: {}", server.name, node.name, u
                );
            }
        }
    }

    #[test]
    fn balance_is_never_worse_than_staying(s in unbalanced()) {
        let plan = plan(&s, &Policy::default()).unwrap();
        let (before, after) = (merit(&s), merit(&applied(&s, &plan)));
        if plan.steps.is_empty() {
            prop_assert_eq!(before, after);
        } else {
            let better = after.0 < before.0 - 1e-9 || (after.0 <= before.0 + 1e-9 && after.1 < before.1);
            prop_assert!(better, "{:?} -> {:?}", before, after);
        }
        prop_assert!((plan.highest_before - before.0).abs() < 1e-6);
        prop_assert!((plan.highest_load - after.0).abs() < 1e-6);
    }

    #[test]
    fn so_is_a_part_of_it(s in unbalanced(), at_once in 0..4usize) {
        let policy = Policy { at_once: Some(at_once), ..Policy::default() };
        let plan = plan(&s, &policy).unwrap();
        prop_assert!(plan.steps.len() <= at_once);
        let (before, after) = (merit(&s), merit(&applied(&s, &plan)));
        prop_assert!(after.0 <= before.0 + 1e-9, "{:?} -> {:?}", before, after);
        prop_assert!(plan.steps.is_empty() || after.0 < before.0 - 1e-9 || after.1 < before.1);
    }

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(s in unbalanced()) {
        let plan_1 = plan(&s, &Policy::default()).unwrap();
        let plan_2 = plan(&applied(&s, &plan_1), &Policy::default()).unwrap();
        prop_assert_eq!(&plan_2.steps, &vec![]);
        prop_assert_eq!(plan_1.placements, plan_2.placements);
    }

    #[test]
    fn it_comes_to_rest_whatever_there_is(s in situation()) {
        let mut now = s.clone();
        let mut rounds = 0;
        loop {
            let plan = plan(&now, &Policy::default()).unwrap();
            if plan.steps.is_empty() {
                break;
            }
            now = applied(&now, &plan);
            rounds += 1;
            prop_assert!(rounds <= 8, "{:#?}", plan.steps);
        }
    }

    #[test]
    fn the_order_of_the_input_changes_nothing(
        s in situation(),
        by in proptest::collection::vec(any::<Index>(), 40),
    ) {
        let mut other = s.clone();
        other.nodes = shuffled(&s.nodes, &by);
        other.servers = shuffled(&s.servers, &by);
        for server in &mut other.servers {
            server.never_with = shuffled(&server.never_with, &by);
            server.segments = shuffled(&server.segments, &by);
        }
        prop_assert_eq!(plan(&s, &Policy::default()), plan(&other, &Policy::default()));
        prop_assert_eq!(successions(&s, &Policy::default()), successions(&other, &Policy::default()));
    }

    #[test]
    fn whoever_dies_there_is_a_successor_and_there_are_several(s in situation()) {
        let all = successions(&s, &Policy::default()).unwrap();
        prop_assert_eq!(all.len(), s.servers.len());
        let node = |name: &str| s.nodes.iter().find(|n| n.name == name).unwrap();
        for succession in &all {
            let server = s.servers.iter().find(|x| x.name == succession.server).unwrap();
            let distinct: BTreeSet<_> = succession.successors.iter().collect();
            prop_assert_eq!(distinct.len(), succession.successors.len());
            for to in &succession.successors {
                prop_assert!(Some(to) != succession.node.as_ref());
                prop_assert!(node(to).state == NodeState::Up && is_able(node(to), server));
            }
            let foe = !server.never_with.is_empty() || s.servers.iter().any(|x| x.never_with.contains(&server.name));
            let others = s.nodes.iter().filter(|n| {
                n.state == NodeState::Up && Some(&n.name) != succession.node.as_ref() && is_able(n, server)
            });
            let stays = !server.migrate && server.owner.is_some();
            if stays {
                prop_assert_eq!(&succession.successors, &Vec::<String>::new());
            } else if !foe && succession.node.is_some() {
                prop_assert_eq!(succession.successors.len(), others.count().min(3));
            }
        }
    }

    #[test]
    fn after_any_death_the_survivors_are_balanced(s in unbalanced()) {
        let calm = applied(&s, &plan(&s, &Policy::default()).unwrap());
        let all = successions(&calm, &Policy::default()).unwrap();
        for dead in &calm.nodes {
            let mine: Vec<_> = all.iter().filter(|x| x.node.as_ref() == Some(&dead.name)).collect();
            let movable: Vec<_> = mine.iter().filter(|x| !x.successors.is_empty()).collect();
            if movable.len() >= 2 && calm.nodes.len() >= 3 {
                let firsts: BTreeSet<_> = movable.iter().map(|x| &x.successors[0]).collect();
                prop_assert!(firsts.len() >= 2, "all of {} go to {:?}", dead.name, firsts);
            }
            // Greedy placement: no survivor is higher than it was, unless by less than the last that it was given
            // was below the average of the survivors.
            let mut after = calm.clone();
            after.nodes.retain(|n| n.name != dead.name);
            for server in &mut after.servers {
                if server.owner.as_ref() == Some(&dead.name) {
                    server.owner = all.iter().find(|x| x.server == server.name).unwrap().successors.first().cloned();
                }
            }
            let capacity: f64 = after.nodes.iter().map(|n| n.capacity).sum();
            let load: f64 = after.servers.iter().filter(|x| x.owner.is_some()).map(|x| x.load).sum();
            let least = after.nodes.iter().map(|n| n.capacity).fold(f64::INFINITY, f64::min);
            let largest = calm.servers.iter().map(|x| x.load).fold(0.0, f64::max);
            let limit = (load / capacity * Policy::default().stop + 2.0 * largest / least).max(merit(&calm).0 + largest / least);
            prop_assert!(capacity == 0.0 || merit(&after).0 <= limit + 1e-9, "{:?} > {}", merit(&after), limit);
        }
    }

    #[test]
    fn many_small_ones_come_within_5_percent(
        loads in proptest::collection::vec(0.1..1.0f64, 120..200),
        capacities in proptest::collection::vec(1.0..2.0f64, 2..6),
        owners in proptest::collection::vec(proptest::option::of(any::<Index>()), 200),
    ) {
        let node = |(n, c): (usize, &f64)| Node::new(&format!("fs{n}"), c * 100.0);
        let nodes: Vec<Node> = capacities.iter().enumerate().map(node).collect();
        let servers = loads.iter().zip(&owners).enumerate().map(|(n, (load, owner))| Server {
            owner: owner.as_ref().map(|i| i.get(&nodes).name.clone()),
            ..Server::new(&format!("vs{n}"), *load)
        });
        let s = Situation { servers: servers.collect(), nodes, ..Situation::default() };
        let plan = plan(&s, &Policy::default()).unwrap();
        prop_assert!(plan.highest_load <= 1.05 * plan.lower_bound, "{} > {}", plan.highest_load, plan.lower_bound);
    }
}
