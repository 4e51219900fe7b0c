//! Cases made by hand.

use std::time::Duration;

use baton_core::plan::{
    Cause, Hindrance, Kind, Mistake, Node, NodeState, Plan, Policy, Server, Situation, plan, successions,
};

use crate::{applied, places};

fn nodes(count: usize) -> Vec<Node> {
    (1..=count).map(|n| Node::new(&format!("fs{n}"), 1.0)).collect()
}

fn done(nodes: Vec<Node>, servers: Vec<Server>) -> Plan {
    plan(&Situation { nodes, servers, ..Situation::default() }, &Policy::default()).unwrap()
}

fn steps(plan: &Plan) -> Vec<String> {
    let step = |s: &baton_core::plan::Step| format!("{} {} -> {}: {}", s.kind.name(), s.server, s.to, s.why);
    plan.steps.iter().map(step).collect()
}

fn reasons(plan: &Plan) -> Vec<String> {
    plan.unplaced.iter().map(|u| format!("{}: {u}", u.server)).collect()
}

#[test]
fn the_heaviest_is_placed_first_and_each_where_the_load_is_least() {
    let servers = [("a", 0.1), ("b", 0.5), ("c", 0.3), ("d", 0.3)];
    let plan = done(nodes(2), servers.map(|(n, l)| Server::new(n, l)).to_vec());
    assert_eq!(plan.highest_load, 0.6);
    assert_eq!(plan.lower_bound, 0.6);
    assert_eq!(
        steps(&plan),
        [
            "start b -> fs1: nobody has it; least loaded then (50.0 %)",
            "start c -> fs2: nobody has it; least loaded then (30.0 %)",
            "start d -> fs2: nobody has it; least loaded then (60.0 %)",
            "start a -> fs1: nobody has it; least loaded then (60.0 %)",
        ]
    );
    assert!(plan.steps.iter().all(|s| s.kind == Kind::Start && s.from.is_none()));
}

#[test]
fn a_larger_node_gets_more() {
    let mut all = nodes(2);
    all[1].capacity = 3.0;
    let servers = (0..40).map(|n| Server::new(&format!("vs{n}"), 0.05)).collect();
    let plan = done(all, servers);
    assert!((plan.highest_load - 0.5).abs() < 1e-9, "{}", plan.highest_load);
    assert_eq!(places(&plan).values().filter(|n| **n == "fs2").count(), 30);
}

#[test]
fn idle_ones_are_spread_by_count_and_never_moved_for_balance() {
    let servers: Vec<Server> = (0..9).map(|n| Server::new(&format!("vs{n}"), 0.0)).collect();
    let plan = done(nodes(3), servers.clone());
    for node in ["fs1", "fs2", "fs3"] {
        assert_eq!(places(&plan).values().filter(|n| **n == node).count(), 3);
    }
    assert_eq!((plan.highest_load, plan.lower_bound), (0.0, 0.0));
    let all_on_one = servers.into_iter().map(|s| s.on("fs1")).collect();
    assert_eq!(done(nodes(3), all_on_one).steps, []);
}

#[test]
fn a_hot_server_is_alone_and_the_others_are_even() {
    let mut servers = vec![Server::new("hot", 0.8).on("fs1")];
    servers.extend((0..4).map(|n| Server::new(&format!("vs{n}"), 0.1).on("fs1")));
    let plan = done(nodes(3), servers);
    assert_eq!((plan.highest_load, plan.lower_bound), (0.8, 0.8));
    // It moves itself, and two of the others: one move less than all others away from it.
    assert_eq!(plan.steps.len(), 3);
    let alone = places(&plan)["hot"];
    let mut on = ["fs1", "fs2", "fs3"].map(|node| places(&plan).values().filter(|n| **n == node).count());
    on.sort_unstable();
    assert_eq!((on, places(&plan).values().filter(|n| **n == alone).count()), ([1, 2, 2], 1));
}

#[test]
fn two_of_a_dead_node_go_to_two_and_priority_goes_first() {
    let mut all = nodes(3);
    all[0].state = NodeState::Dead;
    let low = Server { priority: 1, ..Server::new("low", 0.2) }.on("fs1");
    let plan = done(all, vec![low, Server::new("high", 0.1).on("fs1")]);
    assert_eq!(
        steps(&plan),
        [
            "takeover high -> fs3: its owner is dead; least loaded then (10.0 %)",
            "takeover low -> fs2: its owner is dead; least loaded then (20.0 %)",
        ]
    );
    assert_eq!(plan.steps[0].from.as_deref(), Some("fs1"));
}

#[test]
fn not_all_of_a_dead_node_go_to_the_one_that_is_idle() {
    let mut all = nodes(3);
    all[0].state = NodeState::Dead;
    let servers = vec![
        Server::new("a", 0.1).on("fs1"),
        Server::new("b", 0.05).on("fs1"),
        Server { migrate: false, ..Server::new("c", 0.5) }.on("fs2"),
    ];
    let plan = done(all, servers);
    assert_eq!(places(&plan)["a"], "fs3");
    assert_eq!(places(&plan)["b"], "fs2");
    assert!(steps(&plan)[1].contains("not all to one node"), "{:?}", steps(&plan));
}

#[test]
fn what_is_pinned_stays_also_with_a_dead_node() {
    let mut all = nodes(2);
    all[0].state = NodeState::Dead;
    all[1].state = NodeState::Draining;
    let pinned = |name: &str| Server { migrate: false, ..Server::new(name, 0.1) };
    let plan = done(all, vec![pinned("a").on("fs1"), pinned("b").on("fs2")]);
    assert_eq!(reasons(&plan), ["a: it may not leave fs1, which is dead"]);
    assert_eq!(places(&plan)["b"], "fs2");
    assert_eq!(plan.steps, []);
}

#[test]
fn a_drained_node_is_emptied_as_far_as_possible() {
    let mut all = nodes(3);
    all[0].state = NodeState::Draining;
    all[0].segments = vec!["lab".into()];
    let bound = Server { segments: vec!["lab".into()], ..Server::new("bound", 0.1) };
    let servers = vec![Server::new("a", 0.2).on("fs1"), Server::new("b", 0.1).on("fs1"), bound.on("fs1")];
    let plan = done(all, servers);
    assert_eq!(
        steps(&plan),
        [
            "move a -> fs2: its owner is draining; least loaded then (20.0 %)",
            "move b -> fs3: its owner is draining; least loaded then (10.0 %)",
        ]
    );
    assert_eq!(
        reasons(&plan),
        [
            "bound: it should leave fs1 and stays there: no node that may have it has a good port in segment lab"
        ]
    );
}

#[test]
fn what_a_silent_node_has_stays_with_it() {
    let mut all = nodes(2);
    all[0].state = NodeState::Unknown;
    let plan = done(all, vec![Server::new("a", 0.9).on("fs1"), Server::new("b", 0.1)]);
    assert_eq!(places(&plan)["a"], "fs1");
    assert_eq!(places(&plan)["b"], "fs2");
}

#[test]
fn reasons_say_what_is_missing() {
    let mut all = nodes(2);
    all[0].segments = vec!["lab".into()];
    all[1].storage = vec!["array".into()];
    let needs = |name: &str, segments: &[&str], storage: &[&str]| Server {
        segments: segments.iter().map(|s| s.to_string()).collect(),
        storage: storage.iter().map(|s| s.to_string()).collect(),
        ..Server::new(name, 0.1)
    };
    let servers = vec![
        needs("both", &["lab"], &["array"]),
        needs("segment", &["cad"], &[]),
        needs("unit", &[], &["tape"]),
        Server { never_with: vec!["y".into()], ..Server::new("x", 0.1) }.on("fs1"),
        Server { only_on: vec!["fs1".into()], migrate: false, ..Server::new("y", 0.1) },
        Server::new("z", 1.5),
    ];
    let plan = done(all.clone(), servers);
    assert_eq!(
        reasons(&plan),
        [
            "both: no node that may have it has all its segments and storage units",
            "segment: no node that may have it has a good port in segment cad",
            "unit: no node that may have it reaches storage unit tape",
            "z: its load of 1.5 fits on no node; fs1 has the most room, 0.9",
        ]
    );
    assert_eq!(steps(&plan)[0], "move x -> fs2: makes room for y; least loaded then (10.0 %)");
    all.iter_mut().for_each(|n| n.state = NodeState::Draining);
    let plan = done(all, vec![Server::new("a", 0.1)]);
    assert_eq!(reasons(&plan), ["a: no other node is up"]);
}

#[test]
fn with_too_little_room_the_higher_priority_gets_it() {
    let low = Server { priority: 1, ..Server::new("low", 0.7) };
    let plan = done(nodes(1), vec![low, Server::new("high", 0.6)]);
    assert_eq!(places(&plan)["high"], "fs1");
    assert!(matches!(plan.unplaced[0].hindrance, Hindrance::Capacity { .. }));
}

#[test]
fn one_is_moved_aside_where_another_would_find_no_place() {
    let servers =
        vec![Server::new("a", 0.3).on("fs1"), Server::new("b", 0.5).on("fs2"), Server::new("c", 0.8)];
    let plan = done(nodes(2), servers);
    assert_eq!(reasons(&plan), Vec::<String>::new());
    assert_eq!(plan.steps[0].why.cause, Cause::MakesRoom("c".into()));
    assert_eq!(places(&plan)["c"], "fs1");
}

#[test]
fn two_that_may_not_be_together_part_and_the_lesser_goes() {
    let low = Server { priority: 1, never_with: vec!["high".into()], ..Server::new("low", 0.1) };
    let plan = done(nodes(2), vec![low.on("fs1"), Server::new("high", 0.1).on("fs1")]);
    assert_eq!(steps(&plan), ["move low -> fs2: it may not be with high; least loaded then (10.0 %)"]);
}

#[test]
fn a_preferred_node_is_taken_unless_it_is_too_full() {
    let wants = |name: &str| Server { preferred_nodes: vec!["fs2".into()], ..Server::new(name, 0.3) };
    let plan = done(nodes(2), vec![wants("a"), wants("b")]);
    assert_eq!((places(&plan)["a"], places(&plan)["b"]), ("fs2", "fs1"));
    assert!(
        steps(&plan)[1].ends_with("preferred, and not too full (30.0 %)")
            || steps(&plan)[0].ends_with("preferred, and not too full (30.0 %)")
    );
}

#[test]
fn balance_starts_above_one_limit_and_stops_below_the_other() {
    let servers = |more: f64| {
        let of = |node: &'static str, load: f64| {
            (0..20).map(move |n| Server::new(&format!("{node}-{n:02}"), load / 20.0).on(node))
        };
        of("fs1", 0.5 * (1.0 + more)).chain(of("fs2", 0.5 * (1.0 - more))).collect::<Vec<_>>()
    };
    assert_eq!(done(nodes(2), servers(0.049)).steps, []);
    let plan_1 = done(nodes(2), servers(0.06));
    assert_eq!(plan_1.steps.len(), 1);
    assert!(plan_1.highest_load <= 0.51, "{}", plan_1.highest_load);
    // Once under way, it goes on to the lower limit.
    let under_way =
        Situation { nodes: nodes(2), servers: servers(0.04), balancing: true, ..Situation::default() };
    assert_eq!(plan(&under_way, &Policy::default()).unwrap().steps.len(), 1);
    let why = plan_1.steps[0].why.to_string();
    assert_eq!(why, "balance: the higher of the two from 53.0 % to 50.4 %");
}

#[test]
fn what_moved_rests_and_so_does_the_cluster() {
    let moved = |rested| Server { rested, ..Server::new("a", 0.3).on("fs1") };
    let seconds = |s| Some(Duration::from_secs(s));
    let with = |a, cluster| {
        let servers = vec![a, Server { migrate: false, ..Server::new("b", 0.3) }.on("fs1")];
        let situation = Situation { nodes: nodes(2), servers, rested: cluster, balancing: false };
        plan(&situation, &Policy::default()).unwrap().steps.len()
    };
    assert_eq!(with(moved(None), None), 1);
    assert_eq!(with(moved(seconds(599)), None), 0);
    assert_eq!(with(moved(seconds(600)), seconds(60)), 1);
    assert_eq!(with(moved(None), seconds(59)), 0);
}

#[test]
fn a_move_that_would_not_pay_is_not_made() {
    // Six hundredths less on the higher node for 10 minutes are worth 36; its clients would miss 0.06 for so many seconds.
    let cost = |seconds| {
        let a = Server { move_cost: Duration::from_secs(seconds), ..Server::new("a", 0.06) };
        let b = Server { migrate: false, ..Server::new("b", 0.3) };
        done(nodes(2), vec![a.on("fs1"), b.on("fs1")]).steps.len()
    };
    assert_eq!((cost(599), cost(601)), (1, 0));
}

#[test]
fn a_lightly_loaded_node_is_not_relieved() {
    let servers = vec![Server::new("a", 0.02).on("fs1"), Server::new("b", 0.02).on("fs1")];
    let situation = Situation { nodes: nodes(2), servers, ..Situation::default() };
    assert_eq!(plan(&situation, &Policy::default()).unwrap().steps.len(), 1);
    let quiet = Policy { quiet: 0.1, ..Policy::default() };
    assert_eq!(plan(&situation, &quiet).unwrap().steps, []);
    let off = Policy { balance: false, ..Policy::default() };
    assert_eq!(plan(&situation, &off).unwrap().steps, []);
}

#[test]
fn two_change_places_where_one_alone_is_too_much() {
    let servers = vec![
        Server::new("a", 0.5).on("fs1"),
        Server::new("b", 0.3).on("fs1"),
        Server::new("c", 0.4).on("fs2"),
        Server::new("d", 0.1).on("fs2"),
    ];
    let plan = done(nodes(2), servers);
    assert!((plan.highest_load - 0.7).abs() < 1e-9, "{plan:#?}");
    assert_eq!(plan.steps.len(), 2);
}

#[test]
fn successors_spread_a_node_and_come_in_order() {
    let mut servers: Vec<Server> = Vec::new();
    for node in ["fs1", "fs2", "fs3", "fs4"] {
        servers.extend((0..6).map(|n| Server::new(&format!("{node}-{n}"), 0.1).on(node)));
    }
    servers.push(Server { migrate: false, ..Server::new("pinned", 0.0) }.on("fs1"));
    let situation = Situation { nodes: nodes(4), servers, ..Situation::default() };
    let all = successions(&situation, &Policy::default()).unwrap();
    for dead in ["fs1", "fs2", "fs3", "fs4"] {
        for rank in 0..3 {
            let of = |node: &str| {
                let mine = all.iter().filter(|s| s.node.as_deref() == Some(dead) && s.server != "pinned");
                mine.filter(|s| s.successors[rank] == node).count()
            };
            let counts = ["fs1", "fs2", "fs3", "fs4"].map(of);
            assert_eq!(counts.iter().sum::<usize>(), 6);
            assert!(counts.iter().all(|c| *c <= 3), "{dead} {rank} {counts:?}");
        }
    }
    let pinned = all.iter().find(|s| s.server == "pinned").unwrap();
    assert_eq!(pinned.successors, Vec::<String>::new());
}

#[test]
fn a_successor_without_room_comes_last_not_out() {
    let mut all = nodes(3);
    all[1].capacity = 0.3;
    all[2].capacity = 0.2;
    let servers = vec![Server::new("a", 0.25).on("fs1")];
    let situation = Situation { nodes: all, servers, ..Situation::default() };
    let list = successions(&situation, &Policy::default()).unwrap();
    assert_eq!(list[0].successors, ["fs2", "fs3"]);
}

#[test]
fn what_nobody_has_is_in_good_hands_after_the_plan() {
    let situation = Situation {
        nodes: nodes(3),
        servers: (0..30).map(|n| Server::new(&format!("vs{n:02}"), 0.01 * f64::from(n))).collect(),
        ..Situation::default()
    };
    let first = plan(&situation, &Policy::default()).unwrap();
    let second = plan(&applied(&situation, &first), &Policy::default()).unwrap();
    assert_eq!(second.steps, []);
    assert_eq!(second.highest_before, first.highest_load);
}

#[test]
fn mistakes_are_named() {
    let check = |change: fn(&mut Situation)| {
        let mut situation =
            Situation { nodes: nodes(2), servers: vec![Server::new("a", 0.1)], ..Situation::default() };
        change(&mut situation);
        plan(&situation, &Policy::default()).unwrap_err().to_string()
    };
    assert_eq!(
        check(|s| s.nodes[1].name = "fs1".into()),
        "two nodes are called \"fs1\"; give each its own name"
    );
    assert!(
        check(|s| s.servers.push(Server::new("a", 1.0))).starts_with("two virtual servers are called \"a\"")
    );
    for capacity in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let situation = Situation { nodes: vec![Node::new("fs1", capacity)], ..Situation::default() };
        assert!(matches!(situation.check(), Err(Mistake::Capacity { .. })));
    }
    for load in [-0.1, f64::NAN, f64::INFINITY] {
        let situation = Situation { servers: vec![Server::new("a", load)], ..Situation::default() };
        assert!(matches!(situation.check(), Err(Mistake::Load { .. })));
    }
    assert!(check(|s| s.servers[0].owner = Some("x".into())).contains("owner names \"x\", which is no node"));
    assert!(
        check(|s| s.servers[0].preferred_nodes = vec!["x".into()]).contains("preferred_nodes names \"x\"")
    );
    assert!(check(|s| s.servers[0].only_on = vec!["x".into()]).contains("only_on names \"x\""));
    assert!(check(|s| s.servers[0].never_with = vec!["x".into()]).contains("which is no virtual server"));
    assert!(check(|s| s.servers[0].never_with = vec!["a".into()]).contains("names itself"));
    assert!(check(|s| s.servers[0].name = String::new()).contains("empty name"));
}
