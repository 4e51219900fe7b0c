//! The model: the real machine in a world where everything may be lost, late, twice, stopped or forgotten. Never do two nodes
//! serve one address.
//!
//! The search is random but repeatable, and short enough for every run of the tests; `BATON_MODEL_STATES` makes it longer
//! (10,000,000 for an afternoon). [`holes`] has the fourteen holes of lease.md.

mod holes;
mod world;

use stateright::{Checker, Chooser, HasDiscoveries, Model, Property};

use world::{N, RULES, Rules, World};

/// What may happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Time goes on, and whatever is whole works.
    Round,
    Tick,
    TickOdd(usize, u64),
    Exchange(usize, usize),
    Say(usize, usize),
    Look(usize),
    Land(usize),
    GiveUp(usize),
    Deliver(usize),
    Watch(usize),
    Crash(usize),
    Start(usize),
    Reboot(usize),
    Freeze(usize),
    Thaw(usize),
    Cut(usize),
    Heal(usize),
    Wish(usize),
}

/// How much of what may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    odd_ticks: u8,
    crashes: u8,
    reboots: u8,
    freezes: u8,
    cuts: u8,
    wishes: u8,
}

struct Cluster {
    rules: Rules,
    witness: bool,
    budget: Budget,
}

impl Model for Cluster {
    type State = (World, Budget);
    type Action = Step;

    fn init_states(&self) -> Vec<Self::State> {
        vec![(World::new(self.rules, self.witness), self.budget.clone())]
    }

    fn actions(&self, (world, budget): &Self::State, out: &mut Vec<Step>) {
        out.extend([Step::Round, Step::Tick]);
        let nodes = 0..N;
        for n in nodes.clone() {
            let node = &world.nodes[n];
            if budget.odd_ticks > 0 && node.frozen == 0 {
                out.extend([Step::TickOdd(n, 0), Step::TickOdd(n, 2)]);
            }
            if node.cut {
                out.push(Step::Heal(n));
            } else if budget.cuts > 0 {
                out.push(Step::Cut(n));
            }
            if budget.reboots > 0 {
                out.push(Step::Reboot(n));
            }
            if node.frozen != 0 {
                out.push(Step::Thaw(n));
                continue;
            }
            if budget.freezes > 0 {
                out.push(Step::Freeze(n));
            }
            if node.machine.is_none() {
                out.push(Step::Start(n));
            } else {
                out.push(Step::Look(n));
                if budget.crashes > 0 {
                    out.push(Step::Crash(n));
                }
            }
            if world.has_news(n) {
                out.push(Step::Watch(n));
            }
            for m in nodes.clone().filter(|m| world.can_exchange(n, *m)) {
                out.push(Step::Exchange(n, m));
                if world.has_to_say(n, m) && world.nodes[m].machine.is_some() {
                    out.push(Step::Say(n, m));
                }
            }
        }
        for k in 0..world.requests() {
            out.push(Step::Land(k));
            if world.awaited(k) {
                out.push(Step::GiveUp(k));
            }
        }
        out.extend((0..world.replies()).filter(|k| world.can_deliver(*k)).map(Step::Deliver));
        if budget.wishes > 0 {
            out.extend(nodes.map(Step::Wish));
        }
    }

    fn next_state(&self, (world, budget): &Self::State, step: Step) -> Option<Self::State> {
        let (mut world, mut budget) = (world.clone(), budget.clone());
        match step {
            Step::Round => world.round(),
            Step::Tick => world.tick(),
            Step::TickOdd(n, by) => {
                budget.odd_ticks -= 1;
                world.tick_odd(n, by);
            }
            Step::Exchange(voter, owner) => world.exchange(voter, owner),
            Step::Say(from, to) => world.say(from, to),
            Step::Look(n) => world.look(n),
            Step::Land(k) => world.land(k),
            Step::GiveUp(k) => world.give_up(k),
            Step::Deliver(k) => world.deliver(k),
            Step::Watch(n) => world.watch(n),
            Step::Crash(n) => {
                budget.crashes -= 1;
                world.crash(n);
            }
            Step::Start(n) => world.start(n),
            Step::Reboot(n) => {
                budget.reboots -= 1;
                world.reboot(n);
            }
            Step::Freeze(n) => {
                budget.freezes -= 1;
                world.freeze(n, false);
            }
            Step::Thaw(n) => world.thaw(n),
            Step::Cut(n) => {
                budget.cuts -= 1;
                world.nodes[n].cut = true;
            }
            Step::Heal(n) => world.nodes[n].cut = false,
            Step::Wish(n) => {
                budget.wishes -= 1;
                world.wish(n);
            }
        }
        Some((world, budget))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two", |_, (world, _): &Self::State| world.servers() <= 1),
            Property::sometimes("served", |_, (world, _): &Self::State| world.servers() == 1),
            Property::sometimes("served by another node", |_, (world, _): &Self::State| {
                world.changed_hands && (1..N).any(|n| world.serves(n))
            }),
        ]
    }
}

const BUDGET: Budget = Budget { odd_ticks: 2, crashes: 2, reboots: 1, freezes: 2, cuts: 3, wishes: 1 };

/// Chooses by kind first: half of the steps let time go on, so that faults have their consequences; the store is seldom slow; the
/// rest is anything.
#[derive(Clone)]
struct Walker;

impl Chooser<Cluster> for Walker {
    type State = u64;

    fn new_state(&self, seed: u64) -> u64 {
        seed
    }

    fn choose_initial_state(&self, _: &mut u64, _: &[(World, Budget)]) -> usize {
        0
    }

    fn choose_action(&self, state: &mut u64, _: &(World, Budget), actions: &[Step]) -> usize {
        let store = |a: &Step| matches!(a, Step::Land(_) | Step::Deliver(_) | Step::Watch(_));
        let kind: fn(&Step) -> bool = match random(state) % 10 {
            0..5 => |a| *a == Step::Round,
            5..8 => store,
            _ => |_| true,
        };
        let fitting: Vec<usize> = (0..actions.len()).filter(|i| kind(&actions[*i])).collect();
        match fitting.len() {
            0 => 0, // there is always a round
            n => fitting[(random(state) % n as u64) as usize],
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn states(default: usize) -> usize {
    std::env::var("BATON_MODEL_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Walks at random until so many states were seen.
fn walk(rules: Rules, witness: bool, seed: u64, count: usize) -> Vec<&'static str> {
    let checker = Cluster { rules, witness, budget: BUDGET }
        .checker()
        .target_state_count(count)
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(2)
        .target_max_depth(150)
        .spawn_simulation(seed, Walker)
        .join();
    if let Some(path) = checker.discovery("never two") {
        let steps: Vec<String> = path.into_actions().iter().map(|a| format!("{a:?}")).collect();
        panic!("two nodes serve after: {}", steps.join("; "));
    }
    checker.discoveries().into_keys().collect()
}

#[test]
fn never_two_with_three_nodes() {
    let found = walk(RULES, false, 1, states(60_000));
    assert!(found.contains(&"served") && found.contains(&"served by another node"), "{found:?}");
}

#[test]
fn never_two_with_two_nodes_and_a_witness() {
    let found = walk(RULES, true, 2, states(60_000));
    assert!(found.contains(&"served") && found.contains(&"served by another node"), "{found:?}");
}
