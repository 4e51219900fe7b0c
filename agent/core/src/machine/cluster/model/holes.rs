//! The fourteen holes of lease.md: each opens when its rule is not kept, and is closed when it is. `A` owns the virtual server,
//! `B` takes it where nothing else is said, `C` is the third.

use super::world::{RULES, Rules, World};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
/// D, with all rules kept: a lease of two ticks and two of slack.
const D: u64 = 4;

fn pass(w: &mut World, ticks: u64) {
    (0..ticks).for_each(|_| w.tick());
}

/// Whatever was asked of the store is carried out and answered.
fn finish(w: &mut World) {
    while w.requests() + w.replies() > 0 {
        while w.requests() > 0 {
            w.land(0);
        }
        while w.replies() > 0 {
            w.deliver(0);
        }
    }
}

/// `taker` has a lease from `granter`, and takes the server if it may.
fn take(w: &mut World, taker: usize, granter: usize) {
    w.exchange(granter, taker);
    w.look(taker);
    (0..3).filter(|n| *n != taker).for_each(|n| w.say(n, taker));
    finish(w);
}

/// The trace ends with two servers if the rule is broken, and not if it is kept.
fn hole(broken: Rules, trace: impl Fn(&mut World)) {
    let run = |rules| {
        let mut world = World::new(rules, false);
        trace(&mut world);
        world.servers()
    };
    assert_eq!(run(broken), 2, "without the rule the hole must open");
    assert!(run(RULES) <= 1, "with the rule it must be closed");
}

#[test]
fn hole_1_a_clock_that_stood_still() {
    hole(Rules { clock_jump: false, ..RULES }, |w| {
        w.exchange(B, A);
        assert!(w.serves(A));
        w.freeze(A, true);
        pass(w, D);
        [B, C].into_iter().for_each(|n| w.look(n));
        take(w, B, C);
        w.thaw(A);
        // Until the first frame of a peer nothing can be known: outside the guarantee.
        w.exchange(C, A);
    });
}

#[test]
fn hole_2_no_slack_for_clocks_that_deviate() {
    hole(Rules { slack: 0, ..RULES }, |w| {
        w.exchange(B, A);
        w.tick_odd(A, 0);
        w.tick();
        [B, C].into_iter().for_each(|n| w.look(n));
        take(w, B, C);
    });
}

#[test]
fn hole_3_a_mark_without_a_name() {
    hole(Rules { mark_named: false, ..RULES }, |w| {
        pass(w, D);
        w.look(B);
        w.force_incarnation(A, 2);
        w.exchange(B, A);
        w.look(C);
        take(w, B, C);
    });
}

#[test]
fn hole_4_silence_of_one_incarnation_only() {
    hole(Rules { any_incarnation: false, ..RULES }, |w| {
        pass(w, D);
        w.exchange(B, A);
        w.look(C);
        w.exchange(C, A);
        w.look(A); // it is refused, and takes a new incarnation
        w.land(0);
        w.deliver(0);
        w.land(0); // written; the answer is still under way, and it serves as the old one
        [B, C].into_iter().for_each(|n| w.watch(n));
        [B, C].into_iter().for_each(|n| w.look(n));
        w.exchange(C, B);
        w.look(B);
        w.say(C, B);
        let answers = w.replies();
        while w.requests() > 0 {
            w.land(0);
        }
        while w.replies() > answers {
            w.deliver(answers);
        }
    });
}

#[test]
fn hole_5_a_verdict_that_a_restart_forgets() {
    hole(Rules { pinned: false, ..RULES }, |w| {
        pass(w, D);
        w.look(C);
        w.say(C, B);
        w.crash(C);
        w.start(C);
        w.exchange(C, A);
        w.look(B);
        take(w, B, C);
    });
}

#[test]
fn hole_6_a_verdict_right_after_lost_memory() {
    hole(Rules { wait_after_loss: false, ..RULES }, |w| {
        pass(w, D);
        w.exchange(C, A);
        w.look(B);
        w.reboot(C);
        w.look(C);
        take(w, B, A);
    });
}

#[test]
fn hole_7_a_grant_after_lost_memory() {
    hole(Rules { only_newer: false, ..RULES }, |w| {
        pass(w, D);
        [B, C].into_iter().for_each(|n| w.look(n));
        take(w, B, C);
        w.reboot(C);
        w.exchange(C, A);
    });
}

#[test]
fn hole_8_a_grant_from_the_future() {
    hole(Rules { past_only: false, ..RULES }, |w| {
        let then = w.clock(A);
        w.reboot(A);
        finish(w); // it writes its record as the new incarnation
        w.late_grant(B, A, 1, then);
        pass(w, D);
        [B, C].into_iter().for_each(|n| w.watch(n));
        [B, C].into_iter().for_each(|n| w.look(n));
        take(w, B, C);
    });
}

#[test]
fn hole_9_a_grant_between_the_look_and_the_verdict() {
    hole(Rules { one_step: false, ..RULES }, |w| {
        pass(w, D);
        w.look(C);
        w.look_and(B, |w| w.exchange(B, A));
        take(w, B, C);
    });
}

#[test]
fn hole_10_a_mark_after_a_read() {
    hole(Rules { own_write: false, ..RULES }, |w| {
        w.exchange(B, A);
        w.exchange(C, A);
        w.look(A);
        w.wish(B);
        w.watch(A); // it gives the server up: mark off, release sent
        w.unwish();
        w.watch(A);
        w.give_up(0);
        w.land(0);
        w.deliver(0);
        w.watch(B);
        w.exchange(C, B);
        w.look(B);
        while w.requests() > 0 {
            w.land(0);
        }
        while w.replies() > 0 {
            w.deliver(0);
        }
    });
}

#[test]
fn hole_11_a_node_that_calls_itself_dead() {
    let run = |broken: bool| {
        let mut w = World::new(RULES, false);
        if broken {
            w.count_oneself(B);
        }
        pass(&mut w, D);
        w.exchange(C, A);
        w.look(B);
        w.tell(B, A, A, 1);
        take(&mut w, B, C);
        w.servers()
    };
    assert_eq!((run(true), run(false)), (2, 1));
}

#[test]
fn hole_12_three_members_at_once_and_an_endless_lease() {
    let run = |broken: bool| {
        let mut w = World::new(RULES, false);
        w.endless(A);
        w.grow(broken);
        w.next_version(&[B, C]);
        pass(&mut w, D);
        [B, C].into_iter().for_each(|n| w.look(n));
        take(&mut w, B, C);
        w.servers()
    };
    assert_eq!((run(true), run(false)), (2, 1));
}

#[test]
fn hole_13_members_that_never_condemned_what_was_taken() {
    let run = |broken: bool| {
        let mut w = World::new(RULES, false);
        pass(&mut w, D);
        [B, C].into_iter().for_each(|n| w.look(n));
        take(&mut w, B, C);
        // The list has grown. Adopting it is a new incarnation, which A can't write into a record that is B's.
        if !broken {
            w.force_incarnation(A, 2);
        }
        let now = w.clock(A);
        [B, C].into_iter().for_each(|new_member| w.late_grant(new_member, A, 1, now));
        w.servers()
    };
    assert_eq!((run(true), run(false)), (2, 1));
}

#[test]
fn hole_14_a_lease_that_is_longer_than_the_voters() {
    hole(Rules { same_lease: false, ..RULES }, |w| {
        w.exchange(B, A);
        pass(w, D);
        [B, C].into_iter().for_each(|n| w.look(n));
        take(w, B, C);
    });
}

#[test]
fn a_dead_owner_is_replaced() {
    let mut w = World::new(RULES, false);
    w.exchange(B, A);
    assert!(w.serves(A) && w.servers() == 1);
    w.freeze(A, false);
    pass(&mut w, D);
    [B, C].into_iter().for_each(|n| w.look(n));
    take(&mut w, B, C);
    assert!(w.serves(B) && w.changed_hands);
    w.thaw(A);
    assert_eq!(w.servers(), 1);
}
