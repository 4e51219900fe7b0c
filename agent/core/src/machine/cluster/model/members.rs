//! The member list changes while members die.

use super::rules::Setting;
use super::world::World;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const D: usize = 3;

fn apply(w: &mut World, n: usize) {
    let rules = w.rules;
    assert!(w.store.apply(&rules, &[n]));
}

/// These nodes are whole, and no others.
fn calm(w: &mut World, nodes: &[usize]) -> Result<(), String> {
    w.calm(nodes.iter().fold(0, |set, n| set | 1 << n));
    w.outcome.clone().expect("there is one")
}

#[test]
fn an_owner_that_dies_before_it_adopts_a_new_list_is_replaced() {
    let mut w = World::new(Setting { members: 3, ..Setting::new(4) });
    (0..3).for_each(|_| w.round());
    apply(&mut w, D);
    w.freeze(A, false);
    // Its record names the version before. All three others are needed: of four members, three are a majority.
    assert_eq!(calm(&mut w, &[B, C, D]), Ok(()));
    let (record, _) = w.store.record.clone().expect("there is one");
    assert_eq!((record.node.as_str(), record.members), ("b", 2));
}

#[test]
fn an_owner_that_is_no_member_any_more_is_replaced() {
    let mut w = World::new(Setting::new(3));
    (0..3).for_each(|_| w.round());
    apply(&mut w, A);
    assert_eq!(calm(&mut w, &[B, C]), Ok(()));
    assert!(w.serves(B) && !w.serves(A));
}

#[test]
fn the_last_of_two_members_replaces_the_other() {
    let mut w = World::new(Setting::new(2));
    (0..3).for_each(|_| w.round());
    apply(&mut w, A);
    assert_eq!(calm(&mut w, &[B]), Ok(()));
    assert!(w.serves(B));
}

#[test]
fn of_two_versions_back_nothing_is_judged() {
    let mut w = World::new(Setting { members: 3, ..Setting::new(5) });
    w.rules.final_list = false;
    (0..3).for_each(|_| w.round());
    apply(&mut w, D);
    apply(&mut w, 4);
    w.freeze(A, false);
    assert!(calm(&mut w, &[B, C, D, 4]).is_err());
    assert!(!w.changed_hands);
}

#[test]
fn an_agent_that_lags_does_not_take_what_a_later_list_is_counted_in() {
    let mut w = World::new(Setting { members: 3, ..Setting::new(4) });
    (0..3).for_each(|_| w.round());
    apply(&mut w, D);
    w.renew(A);
    w.watch(A);
    while !w.store.asked.is_empty() {
        w.land(0); // it names the new version now
    }
    while !w.store.answers.is_empty() {
        w.deliver(0);
    }
    w.wish(Some(B));
    // A releases as soon as somebody is there to take it; with a reading of then, B is.
    w.renew(B);
    for _ in 0..4 {
        w.meet(A, B);
        [A, B].into_iter().for_each(|n| w.look(n));
    }
    for n in [A, B] {
        w.watch(n);
    }
    while !w.store.asked.is_empty() {
        w.land(0);
    }
    let (record, _) = w.store.record.clone().expect("there is one");
    assert!(record.released.is_some() && record.members == 2, "{record:?}");
    // C still runs with the old list, and hears of it.
    w.watch(C);
    for _ in 0..100 {
        w.tick();
        w.look(C);
    }
    assert!(w.store.asked.iter().all(|a| a.node != C));
}
