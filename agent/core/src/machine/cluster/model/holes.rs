//! The fourteen holes of lease.md: each opens when its rule is not kept, and is closed when it is. `A` owns the virtual server,
//! `B` takes it where nothing else is said, `C` is the third. Rules are switched off in the stand-ins of kernel, driver and store,
//! or, where the machine keeps them, in the machine; what happens otherwise is the same.

use super::rules::{RULES, Rules, Setting};
use super::world::World;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const D: usize = 3;
const E: usize = 4;
/// L of lease.md in ticks, and D with all rules kept.
const LEASE: u64 = 5;
const SILENCE: u64 = 7;

fn pass(w: &mut World, ticks: u64) {
    (0..ticks).for_each(|_| w.tick());
}

fn look(w: &mut World, nodes: &[usize]) {
    nodes.iter().for_each(|n| w.look(*n));
}

/// Whatever was asked of the store is carried out and answered.
fn finish(w: &mut World) {
    while w.store.asked.len() + w.store.answers.len() > 0 {
        while !w.store.asked.is_empty() {
            w.land(0);
        }
        while !w.store.answers.is_empty() {
            w.deliver(0);
        }
    }
}

fn watch(w: &mut World, nodes: &[usize]) {
    for n in nodes {
        if w.has_news(*n) {
            w.watch(*n);
        }
    }
}

/// `taker` has a lease from `granter` and hears what the others say, and takes the server if it may.
fn take(w: &mut World, taker: usize, granter: usize) {
    w.meet(granter, taker);
    (0..w.count()).for_each(|n| w.exchange(n, taker));
    w.look(taker);
    finish(w);
}

/// The trace ends with two servers if the rule is broken, and not if it is kept. Three nodes, all members.
fn hole(broken: Rules, trace: impl Fn(&mut World)) {
    hole_of(Setting::new(3), broken, trace);
}

fn hole_of(setting: Setting, broken: Rules, trace: impl Fn(&mut World)) {
    let run = |rules| {
        let mut world = World::new(Setting { rules, ..setting });
        trace(&mut world);
        world.servers()
    };
    assert_eq!(run(broken), 2, "without the rule the hole must open");
    assert!(run(RULES) <= 1, "with the rule it must be closed");
}

#[test]
fn hole_1_a_clock_that_stood_still() {
    hole(Rules { clock_jump: false, ..RULES }, |w| {
        w.meet(C, A);
        w.meet(B, A);
        w.tick();
        assert!(w.serves(A));
        w.freeze(A, true);
        pass(w, SILENCE);
        look(w, &[B, C]);
        take(w, B, C);
        assert!(w.serves(B));
        w.thaw(A);
        // Until the first frame of a peer nothing can be known: outside the guarantee.
        w.exchange(C, A);
    });
}

#[test]
fn hole_2_no_slack_for_clocks_that_deviate() {
    hole(Rules { slack: false, ..RULES }, |w| {
        w.meet(B, A);
        w.tick_odd(A, 0);
        pass(w, LEASE - 1);
        look(w, &[B, C]);
        take(w, B, C);
    });
}

#[test]
fn hole_3_a_mark_without_a_name() {
    // It goes on as 2 because it adopts a version of the member list; its record still says 1.
    hole_of(Setting::new(4), Rules { mark_named: false, ..RULES }, |w| {
        pass(w, SILENCE);
        w.look(B);
        let rules = w.rules;
        assert!(w.store.apply(&rules, &[D]));
        [A, B, C].into_iter().for_each(|n| w.renew(n));
        watch(w, &[B, C]);
        for _ in 0..SILENCE {
            w.tick();
            w.meet(B, A);
        }
        w.look(C);
        take_while_one_asks(w);
    });
}

/// `B` takes; what others have asked of the store lands later.
fn take_while_one_asks(w: &mut World) {
    w.meet(C, B);
    w.look(B);
    while let Some(k) = w.store.asked.iter().position(|a| a.node == B) {
        w.land(k);
    }
    while let Some(k) = w.store.answers.iter().position(|(n, ..)| *n == B) {
        w.deliver(k);
    }
}

#[test]
fn hole_4_silence_of_one_incarnation_only() {
    hole(Rules { any_incarnation: false, ..RULES }, |w| {
        pass(w, SILENCE);
        w.meet(B, A);
        w.look(C);
        w.meet(C, A);
        w.look(A); // it is refused, and takes a new incarnation
        w.land(0);
        w.deliver(0);
        w.land(0); // written; the answer is still under way, and it serves as the old one
        watch(w, &[B, C]);
        look(w, &[B, C]);
        take_while_one_asks(w);
    });
}

#[test]
fn hole_5_a_verdict_that_a_restart_forgets() {
    hole(Rules { pinned: false, ..RULES }, |w| {
        pass(w, SILENCE);
        w.look(C);
        w.exchange(C, B);
        w.crash(C);
        w.start(C);
        w.meet(C, A);
        w.look(B);
        take(w, B, C);
    });
}

#[test]
fn hole_6_a_verdict_right_after_lost_memory() {
    hole(Rules { wait_after_loss: false, ..RULES }, |w| {
        pass(w, SILENCE);
        w.meet(C, A);
        w.look(B);
        w.reboot(C);
        w.start(C);
        w.watch(C);
        w.look(C);
        take(w, B, A);
    });
}

#[test]
fn hole_7_a_grant_after_lost_memory() {
    hole(Rules { only_newer: false, ..RULES }, |w| {
        pass(w, SILENCE);
        look(w, &[B, C]);
        take(w, B, C);
        w.reboot(C);
        w.start(C);
        w.meet(C, A);
    });
}

#[test]
fn hole_8_a_grant_from_the_future() {
    hole(Rules { past_only: false, ..RULES }, |w| {
        w.meet(B, A);
        w.probe(B, A, 0);
        w.reboot(A);
        w.start(A);
        w.watch(A);
        finish(w); // it writes its record as the new incarnation
        w.arrive(0, false);
        pass(w, SILENCE);
        watch(w, &[B, C]);
        look(w, &[B, C]);
        take(w, B, C);
    });
}

#[test]
fn hole_9_a_grant_between_the_look_and_the_verdict() {
    hole(Rules { one_step: false, ..RULES }, |w| {
        pass(w, SILENCE);
        w.look(C);
        w.read(B);
        w.meet(B, A);
        w.think(B);
        take(w, B, C);
    });
}

#[test]
fn hole_10_a_mark_after_a_read() {
    hole(Rules { own_write: false, ..RULES }, |w| {
        w.meet(B, A);
        w.meet(C, A);
        w.look(A);
        w.wish(Some(B));
        w.watch(A); // it gives the server up: mark off, release sent
        w.wish(None);
        w.watch(A);
        w.give_up(0);
        w.land(0);
        w.deliver(0);
        w.watch(B);
        take_while_one_asks(w);
    });
}

#[test]
fn hole_11_a_node_that_calls_itself_dead() {
    hole(Rules { not_oneself: false, ..RULES }, |w| {
        pass(w, SILENCE);
        look(w, &[A, C]);
        w.meet(A, B);
        take(w, B, C);
    });
}

#[test]
fn hole_12_three_members_at_once_and_an_endless_lease() {
    let alone = Setting { members: 1, ..Setting::new(3) };
    hole_of(alone, Rules { one_member: false, ..RULES }, |w| {
        let rules = w.rules;
        if !w.store.apply(&rules, &[B, C]) {
            assert!(w.store.apply(&rules, &[B]) && !w.store.apply(&rules, &[C]));
        }
        // A lags.
        for n in [B, C].into_iter().filter(|n| w.store.has_member(*n)).collect::<Vec<_>>() {
            w.start(n);
            w.watch(n);
        }
        pass(w, SILENCE);
        for n in [B, C] {
            if w.acts(n) {
                w.look(n);
            }
        }
        // What has lost its memory refuses what was there before: B takes another incarnation first.
        for _ in 0..3 {
            w.meet(C, B);
            if w.acts(B) {
                w.look(B);
            }
            finish(w);
        }
    });
}

/// Two halves of R10 close it, each by itself.
#[test]
fn hole_13_members_that_never_condemned_what_was_taken() {
    let both = Rules { adopt_anew: false, final_list: false, ..RULES };
    let trace = |w: &mut World| {
        let rules = w.rules;
        // D and E leave, and know nothing of what happens meanwhile.
        for n in [E, D] {
            if w.store.apply(&rules, &[n]) {
                renew(w, &[A, B, C, D, E]);
            }
        }
        // There and back again: A's record names this version.
        for to in [B, A] {
            w.wish(Some(to));
            settle(w, 12);
        }
        w.wish(None);
        settle(w, 2);
        assert!(w.serves(A));
        // A is cut off; B and C call it dead, and B takes.
        w.isolate(A, true);
        (0..12).for_each(|_| {
            w.round();
            finish_of(w, &[B, C]);
        });
        // The list grows; all adopt it, A at last and only now.
        for n in [D, E] {
            if w.store.apply(&rules, &[n]) {
                renew(w, &[B, C, D, E]);
                finish_of(w, &[B, C]);
            }
        }
        w.isolate(A, false);
        w.renew(A);
        for (voter, owner) in [(D, A), (E, A), (C, B), (D, B)] {
            w.meet(voter, owner);
        }
    };
    let five = Setting::new(5);
    hole_of(five, both, trace);
    for rules in [Rules { adopt_anew: true, ..both }, Rules { final_list: true, ..both }] {
        let mut w = World::new(Setting { rules, ..five });
        trace(&mut w);
        assert!(w.servers() <= 1, "{rules:?}");
    }
}

/// These nodes' agents start anew with the latest member list, or start, or end.
fn renew(w: &mut World, nodes: &[usize]) {
    for n in nodes {
        if w.runs(*n) {
            w.renew(*n);
        } else if w.store.has_member(*n) {
            w.start(*n);
        }
    }
}

/// So many rounds in which all is whole.
fn settle(w: &mut World, rounds: usize) {
    for _ in 0..rounds {
        w.round();
        finish(w);
        (0..w.count()).for_each(|n| watch(w, &[n]));
        finish(w);
    }
}

/// What these nodes have asked of the store is carried out and answered, and they are told.
fn finish_of(w: &mut World, nodes: &[usize]) {
    while let Some(k) = w.store.asked.iter().position(|a| nodes.contains(&a.node)) {
        w.land(k);
    }
    while let Some(k) = w.store.answers.iter().position(|(n, ..)| nodes.contains(n)) {
        w.deliver(k);
    }
    watch(w, nodes);
}

#[test]
fn hole_14_a_lease_that_is_longer_than_the_voters() {
    hole(Rules { same_lease: false, ..RULES }, |w| {
        w.meet(B, A);
        pass(w, SILENCE);
        look(w, &[B, C]);
        take(w, B, C);
    });
}

#[test]
fn a_dead_owner_is_replaced() {
    let mut w = World::new(Setting::new(3));
    w.meet(B, A);
    assert!(w.serves(A) && w.servers() == 1);
    w.freeze(A, false);
    pass(&mut w, SILENCE);
    look(&mut w, &[B, C]);
    take(&mut w, B, C);
    assert!(w.serves(B) && w.changed_hands);
    w.thaw(A);
    assert_eq!(w.servers(), 1);
}
