//! The model: the real machine in a world where everything may be lost, late, twice, stopped or forgotten. Never do two nodes
//! serve one address; and where a majority is connected and a permitted member is good, one does before long.
//!
//! | file | what |
//! |---|---|
//! | `rules` | the rules of lease.md as switches; what a world begins with |
//! | `world` | nodes: clock, kernel, agent with the real machine; what may befall them |
//! | `agent` | the real machine as a part of a state |
//! | `kernel` | stand-in of the kernel programs |
//! | `wire` | frames, each a value that may be late, lost or doubled |
//! | `store` | stand-in of etcd, and of `baton apply` where it changes the member list |
//! | `work` | stand-in of what starts and stops file systems and services |
//! | `live` | all faults are over: who serves? |
//! | `exhaustive` | every course of a few ticks |
//! | `members` | the member list changes: directed tests |
//! | `holes` | the fourteen holes of lease.md: each opens without its rule |
//!
//! The random search below is repeatable, and short enough for every run of the tests; `BATON_MODEL_STATES` makes it longer
//! (10,000,000 for an afternoon).

mod agent;
mod exhaustive;
mod holes;
mod kernel;
mod live;
mod members;
mod rules;
mod store;
mod wire;
mod work;
mod world;

use stateright::{Checker, Chooser, HasDiscoveries, Model, Property};

use rules::{RULES, Rules, Setting};
use world::World;

/// What may happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Time goes on, and whatever is whole works.
    Round,
    Tick,
    TickOdd(usize, u64),
    /// A probe and its echo, both at once.
    Exchange(usize, usize),
    /// A probe that tells of the verdict with this number.
    Probe(usize, usize, usize),
    Arrive(usize),
    Twice(usize),
    Lose(usize),
    Look(usize),
    Read(usize),
    Think(usize),
    /// What is being started or stopped is.
    Work(usize),
    Land(usize),
    GiveUp(usize),
    Deliver(usize),
    Watch(usize),
    Crash(usize),
    Start(usize),
    StartAlone(usize),
    Stall(usize),
    Resume(usize),
    Reboot(usize),
    Freeze(usize),
    Thaw(usize),
    Cut(usize, usize),
    Heal(usize, usize),
    Isolate(usize),
    Rejoin(usize),
    Wish(Option<usize>),
    /// The node becomes a member, or is one no longer.
    Apply(usize),
    Renew(usize),
    /// No more faults among these nodes.
    Calm(u8),
    CalmWithCuts(u8),
}

/// How much of what may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    odd_ticks: u8,
    doubles: u8,
    crashes: u8,
    stalls: u8,
    reboots: u8,
    freezes: u8,
    cuts: u8,
    wishes: u8,
    members: u8,
}

struct Cluster {
    start: World,
    budget: Budget,
}

impl Model for Cluster {
    type State = (World, Budget);
    type Action = Step;

    fn init_states(&self) -> Vec<Self::State> {
        vec![(self.start.clone(), self.budget)]
    }

    fn actions(&self, (world, budget): &Self::State, out: &mut Vec<Step>) {
        if world.outcome.is_some() {
            return;
        }
        out.extend([Step::Round, Step::Tick]);
        for n in 0..world.count() {
            node_steps(world, budget, n, out);
        }
        for k in 0..world.frames.len() {
            out.push(Step::Lose(k));
            if world.can_arrive(k) {
                out.push(Step::Arrive(k));
                if budget.doubles > 0 {
                    out.push(Step::Twice(k));
                }
            }
        }
        for k in 0..world.store.asked.len() {
            out.push(Step::Land(k));
            if world.is_awaited(k) {
                out.push(Step::GiveUp(k));
            }
        }
        out.extend((0..world.store.answers.len()).filter(|k| world.can_deliver(*k)).map(Step::Deliver));
        if budget.wishes > 0 {
            out.extend((0..world.count()).map(|n| Step::Wish(Some(n))).chain([Step::Wish(None)]));
        }
        if world.steps == 0 {
            return; // not a walk
        }
        let sets = 1u8..1 << world.count();
        out.extend(sets.clone().filter(|set| world.can_serve(*set, false)).map(Step::Calm));
        if world.count() <= 3 {
            out.extend(sets.filter(|set| world.can_serve(*set, true)).map(Step::CalmWithCuts));
        }
    }

    fn next_state(&self, (world, budget): &Self::State, step: Step) -> Option<Self::State> {
        let (mut world, mut budget) = (world.clone(), *budget);
        budget.spend(&step);
        world.step(step)?;
        if world.steps > 0 {
            world.steps += 1;
        }
        Some((world, budget))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TWO, |_, (world, _): &Self::State| world.servers() <= 1),
            Property::always(READY, |_, (world, _): &Self::State| !world.serves_unready()),
            Property::always(LIVES, |_, (world, _): &Self::State| !matches!(world.outcome, Some(Err(_)))),
            Property::sometimes("served", |_, (world, _): &Self::State| world.servers() == 1),
            Property::sometimes("served by another node", |_, (world, _): &Self::State| {
                world.changed_hands && (1..world.count()).any(|n| world.serves(n))
            }),
            Property::sometimes("settled", |_, (world, _): &Self::State| world.outcome == Some(Ok(()))),
        ]
    }
}

const NEVER_TWO: &str = "never two";
const READY: &str = "marked only while all runs";
const LIVES: &str = "served where it can be";

fn node_steps(world: &World, budget: &Budget, n: usize, out: &mut Vec<Step>) {
    let node = &world.nodes[n];
    if budget.odd_ticks > 0 && node.frozen == 0 {
        out.extend([Step::TickOdd(n, 0), Step::TickOdd(n, 2)]);
    }
    let others = || (0..world.count()).filter(move |m| *m != n);
    for m in others() {
        if world.cut[n][m] {
            out.push(Step::Heal(n, m));
        } else if budget.cuts > 0 {
            out.push(Step::Cut(n, m));
        }
    }
    if others().all(|m| world.cut[n][m] && world.cut[m][n]) {
        out.push(Step::Rejoin(n));
    } else if budget.cuts > 0 {
        out.push(Step::Isolate(n));
    }
    if budget.reboots > 0 {
        out.push(Step::Reboot(n));
    }
    if budget.members > 0 {
        out.push(Step::Apply(n));
    }
    if node.frozen != 0 {
        out.push(Step::Thaw(n));
        return;
    }
    if budget.freezes > 0 {
        out.push(Step::Freeze(n));
    }
    if node.agent.is_none() {
        if world.store.has_member(n) {
            out.push(Step::Start(n));
        }
        if world.can_start_alone(n) {
            out.push(Step::StartAlone(n));
        }
        return;
    }
    if budget.crashes > 0 {
        out.push(Step::Crash(n));
    }
    if node.stalled {
        out.push(Step::Resume(n));
        return;
    }
    if budget.stalls > 0 {
        out.push(Step::Stall(n));
    }
    out.extend([Step::Look(n), Step::Read(n)]);
    if world.has_read(n) {
        out.push(Step::Think(n));
    }
    if world.can_work(n) {
        out.push(Step::Work(n));
    }
    if world.has_news(n) {
        out.push(Step::Watch(n));
    }
    if world.is_outdated(n) {
        out.push(Step::Renew(n));
    }
    let told = world.told_verdicts(n).len();
    for m in others().filter(|m| world.can_probe(n, *m)) {
        out.push(Step::Exchange(n, m));
        out.extend((0..told).map(|which| Step::Probe(n, m, which)));
    }
}

impl Budget {
    fn spend(&mut self, step: &Step) {
        match step {
            Step::TickOdd(..) => self.odd_ticks -= 1,
            Step::Twice(_) => self.doubles -= 1,
            Step::Crash(_) => self.crashes -= 1,
            Step::Stall(_) => self.stalls -= 1,
            Step::Reboot(_) => self.reboots -= 1,
            Step::Freeze(_) => self.freezes -= 1,
            Step::Cut(..) | Step::Isolate(_) => self.cuts -= 1,
            Step::Wish(_) => self.wishes -= 1,
            Step::Apply(_) => self.members -= 1,
            _ => {}
        }
    }
}

impl World {
    /// Takes one step. `None`: it is refused.
    pub fn step(&mut self, step: Step) -> Option<()> {
        match step {
            Step::Round => self.round(),
            Step::Tick => self.tick(),
            Step::TickOdd(n, by) => self.tick_odd(n, by),
            Step::Exchange(from, to) => self.exchange(from, to),
            Step::Probe(from, to, which) => self.probe(from, to, which),
            Step::Arrive(k) => self.arrive(k, false),
            Step::Twice(k) => self.arrive(k, true),
            Step::Lose(k) => self.lose(k),
            Step::Look(n) => self.look(n),
            Step::Read(n) => self.read(n),
            Step::Think(n) => self.think(n),
            Step::Work(n) => self.work(n),
            Step::Land(k) => self.land(k),
            Step::GiveUp(k) => self.give_up(k),
            Step::Deliver(k) => self.deliver(k),
            Step::Watch(n) => self.watch(n),
            Step::Crash(n) => self.crash(n),
            Step::Start(n) => self.start(n),
            Step::StartAlone(n) => self.start_alone(n),
            Step::Stall(n) => self.stall(n),
            Step::Resume(n) => self.resume(n),
            Step::Reboot(n) => self.reboot(n),
            Step::Freeze(n) => self.freeze(n, false),
            Step::Thaw(n) => self.thaw(n),
            Step::Cut(from, to) => self.cut[from][to] = true,
            Step::Heal(from, to) => self.cut[from][to] = false,
            Step::Isolate(n) => self.isolate(n, true),
            Step::Rejoin(n) => self.isolate(n, false),
            Step::Wish(to) => self.wish(to),
            Step::Apply(n) => {
                let rules = self.rules;
                return self.store.apply(&rules, &[n]).then_some(());
            }
            Step::Renew(n) => self.renew(n),
            Step::Calm(inside) => self.calm(inside),
            Step::CalmWithCuts(inside) => self.calm_with_cuts(inside),
        }
        Some(())
    }
}

const BUDGET: Budget = Budget {
    odd_ticks: 2,
    doubles: 2,
    crashes: 2,
    stalls: 2,
    reboots: 1,
    freezes: 2,
    cuts: 3,
    wishes: 1,
    members: 0,
};

/// Chooses by kind first: nearly half of the steps let time go on, so that faults have their consequences; the store is seldom
/// slow; most frames get through at once.
#[derive(Clone)]
struct Walker;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Round,
    Store,
    Frame,
    Agent,
    Fault,
    End,
}

fn class(step: &Step) -> Class {
    match step {
        Step::Round => Class::Round,
        Step::Land(_) | Step::Deliver(_) | Step::Watch(_) | Step::Renew(_) => Class::Store,
        Step::Exchange(..) | Step::Probe(..) | Step::Arrive(_) | Step::Twice(_) | Step::Lose(_) => {
            Class::Frame
        }
        Step::Look(_) | Step::Read(_) | Step::Think(_) | Step::Work(_) => Class::Agent,
        Step::Start(_) | Step::StartAlone(_) => Class::Agent,
        Step::Calm(_) | Step::CalmWithCuts(_) => Class::End,
        _ => Class::Fault,
    }
}

impl Chooser<Cluster> for Walker {
    type State = u64;

    fn new_state(&self, seed: u64) -> u64 {
        seed
    }

    fn choose_initial_state(&self, _: &mut u64, _: &[(World, Budget)]) -> usize {
        0
    }

    fn choose_action(&self, state: &mut u64, (world, _): &(World, Budget), actions: &[Step]) -> usize {
        let kind = match random(state) % 100 {
            0..42 => Class::Round,
            42..64 => Class::Store,
            64..76 => Class::Frame,
            76..86 => Class::Agent,
            86..99 => Class::Fault,
            _ if world.steps > 20 => Class::End,
            _ => Class::Round,
        };
        let fitting: Vec<usize> = (0..actions.len()).filter(|i| class(&actions[*i]) == kind).collect();
        match fitting.len() {
            0 => (random(state) % actions.len() as u64) as usize,
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

/// Walks at random until so many states were seen, or something is found.
fn wander(setting: Setting, budget: Budget, seed: u64, count: usize) -> impl Checker<Cluster> {
    let mut start = World::new(setting);
    start.steps = 1;
    Cluster { start, budget }
        .checker()
        .target_state_count(count)
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(1)
        .target_max_depth(160)
        .spawn_simulation(seed, Walker)
        .join()
}

/// Walks at random, and finds nothing.
fn walk(setting: Setting, budget: Budget, seed: u64, count: usize) {
    let checker = wander(setting, budget, seed, count);
    for property in [NEVER_TWO, READY, LIVES] {
        if let Some(path) = checker.discovery(property) {
            let world = &path.last_state().0;
            let end = world.summary();
            let steps: Vec<String> = path.into_actions().iter().map(|a| format!("{a:?}")).collect();
            panic!("not {property:?} after: {}\n{end}", steps.join("; "));
        }
    }
    println!("{} states", checker.state_count());
    for property in ["served", "served by another node", "settled"] {
        assert!(checker.discovery(property).is_some(), "never {property}");
    }
}

#[test]
fn three_nodes() {
    walk(Setting::new(3), BUDGET, 1, states(400_000));
}

#[test]
fn two_nodes_and_a_witness() {
    walk(Setting { witness: Some(2), ..Setting::new(3) }, BUDGET, 2, states(400_000));
}

#[test]
fn three_nodes_with_services_that_are_started_and_stopped() {
    walk(Setting { resources: true, ..Setting::new(3) }, BUDGET, 7, states(400_000));
}

#[test]
fn five_nodes() {
    walk(Setting::new(5), BUDGET, 3, states(200_000));
}

#[test]
fn one_node_that_becomes_three() {
    let setting = Setting { members: 1, ..Setting::new(3) };
    walk(setting, Budget { members: 5, ..BUDGET }, 4, states(400_000));
}

#[test]
fn three_nodes_of_five_that_come_and_go() {
    let setting = Setting { members: 3, ..Setting::new(5) };
    walk(setting, Budget { members: 5, ..BUDGET }, 5, states(200_000));
}

/// The walk is no blunt tool: where one of these rules is not kept, it finds two servers by itself.
#[test]
fn a_walk_finds_what_a_missing_rule_permits() {
    let missing = [
        Rules { slack: false, ..RULES },
        Rules { past_only: false, ..RULES },
        Rules { pinned: false, ..RULES },
        Rules { wait_after_loss: false, ..RULES },
        Rules { only_newer: false, ..RULES },
        Rules { same_lease: false, ..RULES },
        Rules { not_oneself: false, ..RULES },
    ];
    for rules in missing {
        let checker = wander(Setting { rules, ..Setting::new(3) }, BUDGET, 6, 2_000_000);
        assert!(
            checker.discovery(NEVER_TWO).is_some(),
            "not found in {} states: {rules:?}",
            checker.state_count()
        );
    }
}
