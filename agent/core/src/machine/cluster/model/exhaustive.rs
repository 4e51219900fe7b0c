//! Not at random: every course of a few ticks, and every order of a few steps where it matters most.

use std::sync::Arc;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::rules::Setting;
use super::store::Times;
use super::world::World;
use super::{Budget, Cluster, NEVER_TWO};

/// What a tick is like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Fine,
    /// Nothing gets through to or from this node.
    Isolated(usize),
    /// What the one sends does not reach the other.
    OneWay(usize, usize),
    /// This node stands still.
    Frozen(usize),
    /// This node's agent does.
    Stalled(usize),
    /// This node's agent is killed, and starts anew in the next tick.
    Killed(usize),
    /// This node loses its memory, and starts anew in the next tick.
    Rebooted(usize),
}

/// What the store does in a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Desk {
    Answers,
    /// It carries out what it is asked, and nobody hears of it.
    Silent,
    Closed,
}

/// Every course of so many ticks.
struct Courses {
    start: World,
    ticks: u32,
}

/// A world, and how many ticks of it have gone by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Course(Arc<World>, u32);

impl Model for Courses {
    type State = Course;
    type Action = (Weather, Desk);

    fn init_states(&self) -> Vec<Course> {
        vec![Course(Arc::new(self.start.clone()), 0)]
    }

    fn actions(&self, Course(world, ticks): &Course, out: &mut Vec<(Weather, Desk)>) {
        if *ticks == self.ticks {
            return;
        }
        let all = 0..world.count();
        let one_way =
            all.clone().flat_map(|a| (0..3).filter(move |b| *b != a).map(move |b| Weather::OneWay(a, b)));
        let weather = [Weather::Fine, Weather::Frozen(0), Weather::Stalled(0), Weather::Killed(1)];
        let memory = [Weather::Rebooted(0), Weather::Rebooted(1)].into_iter().filter(|_| *ticks < 2);
        let weather = weather.into_iter().chain(memory).chain(all.map(Weather::Isolated)).chain(one_way);
        out.extend(weather.flat_map(|w| [Desk::Answers, Desk::Silent, Desk::Closed].map(|d| (w, d))));
    }

    fn next_state(&self, Course(world, ticks): &Course, (weather, desk): (Weather, Desk)) -> Option<Course> {
        let mut world = World::clone(world);
        for n in 0..world.count() {
            world.isolate(n, false);
        }
        for n in 0..world.count() {
            if world.nodes[n].frozen != 0 && weather != Weather::Frozen(n) {
                world.thaw(n);
            }
            if world.nodes[n].stalled && weather != Weather::Stalled(n) {
                world.resume(n);
            }
            if !world.runs(n) {
                world.start(n);
            }
        }
        match weather {
            Weather::Fine => {}
            Weather::Isolated(n) => world.isolate(n, true),
            Weather::OneWay(from, to) => world.cut[from][to] = true,
            Weather::Frozen(n) => world.freeze(n, false),
            Weather::Stalled(n) => world.stall(n),
            Weather::Killed(n) => world.crash(n),
            Weather::Rebooted(n) => world.reboot(n),
        }
        world.round();
        if desk != Desk::Closed {
            (0..world.store.asked.len()).for_each(|_| world.land(0));
        }
        if desk == Desk::Answers {
            while let Some(k) = (0..world.store.answers.len()).find(|k| world.can_deliver(*k)) {
                world.deliver(k);
            }
            for n in 0..world.count() {
                if world.has_news(n) {
                    world.watch(n);
                }
            }
        }
        Some(Course(Arc::new(world), ticks + 1))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TWO, |_, Course(world, _): &Course| world.servers() <= 1),
            Property::sometimes("served by another node", |_, Course(world, _): &Course| {
                (1..world.count()).any(|n| world.serves(n))
            }),
        ]
    }
}

/// Clocks are exact here, and times as short as they can be.
fn short() -> Setting {
    Setting { times: Times { lease: 2, slack: 0 }, ..Setting::new(3) }
}

fn courses(setting: Setting, ticks: u32) {
    let mut start = World::new(setting);
    (0..2).for_each(|_| start.round());
    assert!(start.serves(0));
    let checker = Courses { start, ticks }
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(2)
        .spawn_bfs()
        .join();
    if let Some(path) = checker.discovery(NEVER_TWO) {
        let end = path.last_state().0.summary();
        panic!("two serve after {:?}\n{end}", path.into_actions());
    }
    println!("{} courses, {} states", checker.state_count(), checker.unique_state_count());
    assert!(checker.discovery("served by another node").is_some());
}

#[test]
fn every_course_of_a_few_ticks() {
    courses(short(), 4);
}

/// From this world on every order of so many steps.
fn orders(start: World, budget: Budget, steps: usize) -> usize {
    let checker = Cluster { start, budget }
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .threads(2)
        .target_max_depth(steps + 1)
        .spawn_bfs()
        .join();
    if let Some(path) = checker.discovery(NEVER_TWO) {
        let end = path.last_state().0.summary();
        panic!("two serve after {:?}\n{end}", path.into_actions());
    }
    println!("{} steps, {} states", checker.state_count(), checker.unique_state_count());
    checker.unique_state_count()
}

const NOTHING: Budget = Budget {
    odd_ticks: 0,
    doubles: 0,
    crashes: 0,
    stalls: 0,
    reboots: 0,
    freezes: 0,
    cuts: 0,
    wishes: 0,
    members: 0,
};

/// The owner comes back in the very moment in which the others are about to call it dead, and one of them to take over.
#[test]
fn every_order_of_steps_around_a_takeover() {
    let mut start = World::new(short());
    (0..2).for_each(|_| start.round());
    start.isolate(0, true);
    (0..2).for_each(|_| start.round());
    start.isolate(0, false);
    assert!(orders(start, Budget { doubles: 1, crashes: 1, ..NOTHING }, 3) > 1000);
}

/// One has called it dead; a release is under way as well.
#[test]
fn every_order_of_steps_around_a_move() {
    let mut start = World::new(short());
    (0..3).for_each(|_| start.round());
    start.wish(Some(1));
    start.watch(0);
    start.land(0);
    start.isolate(0, true);
    start.tick();
    assert!(orders(start, Budget { doubles: 1, crashes: 1, ..NOTHING }, 3) > 1000);
}
