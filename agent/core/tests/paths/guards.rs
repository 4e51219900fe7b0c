//! Each guard against a wrong verdict, by a case that needs it.

use std::time::Duration;

use baton_core::{EventKind, Finding, Input, PortState, Reason};

use crate::model::*;

#[test]
fn a_port_is_not_blamed_before_its_target_had_the_time_to_answer() {
    let mut net = Net::new(2, true);
    net.truth.ask_in[0] = 20;
    let seen = after(&mut net, |t| t.cut.extend([(1, 0)]));
    assert_eq!(seen.1, [GOOD; 2]);
    let blamed = net.told.iter().flat_map(|t| events(&t.2)).any(|e| matches!(e, EventKind::Failover { .. }));
    assert!(!blamed);
}

#[test]
fn what_a_target_answered_before_the_silence_shows_nothing() {
    let mut net = Net::new(2, true);
    net.truth.ask_in = vec![40; 2];
    net.pass(Duration::from_millis(400));
    (0..2).for_each(|p| net.truth.kill(p));
    net.pass(Duration::from_millis(100));
    assert_eq!((net.finding(), net.states()), (Finding::Gone, vec![GOOD; 2]));
}

#[test]
fn when_the_segment_goes_after_a_port_it_is_gone() {
    let mut net = Net::new(2, true);
    after(&mut net, |t| t.kill(0));
    let seen = after(&mut net, |t| t.kill(1));
    assert_eq!(seen, (Finding::Gone, vec![silent(Reason::Silent), GOOD], 1));
}

#[test]
fn a_port_with_a_path_in_doubt_is_not_blamed() {
    let mut net = Net::new(3, false);
    let seen = after(&mut net, |t| {
        t.cut.insert((1, 0));
        t.loses.insert((2, 0), (2, 3));
    });
    assert_eq!((seen.1, seen.2), (vec![GOOD; 3], 0));
}

#[test]
fn two_lost_probes_are_no_silence_however_long_ago() {
    let mut net = Net::new(3, false);
    net.truth.kill(0);
    net.step();
    net.step();
    // The agent sends nothing for a while, and reads all the same.
    net.now = net.now + Duration::from_millis(500);
    let reading = net.reading();
    assert!(!net.machine.is_news(net.now, &reading));
    assert_eq!(net.tell(Input::Paths(reading)), []);
}

#[test]
fn a_port_that_recovers_is_no_witness_at_once() {
    let mut net = Net::new(3, false);
    after(&mut net, |t| (t.sends[0], t.sends[2]) = (false, false));
    // The first probe of a comes to c, but is lost on its way to b.
    net.truth.sends[0] = true;
    net.truth.cut.insert((0, 1));
    net.step();
    net.truth.cut.clear();
    assert_eq!(net.states()[1], GOOD);
    net.pass(Duration::from_millis(100));
    assert_eq!(net.states()[1], GOOD);
}

#[test]
fn a_port_that_has_failed_since_is_no_witness() {
    let mut net = Net::new(3, false);
    net.truth.clients.insert(2);
    after(&mut net, |t| (t.sends[0], t.sends[1]) = (false, false));
    net.truth.receives[2] = false;
    net.truth.sends[0] = true;
    net.pass(Duration::from_millis(50));
    assert_eq!(net.states()[0].0, PortState::Held);
    net.truth.receives[1] = false;
    net.pass(Duration::from_millis(100));
    assert_eq!(
        net.states()[0].0,
        PortState::Held,
        "what c heard from clients was before a fell silent again"
    );
}

#[test]
fn clients_that_come_between_two_lost_probes_show_nothing_about_the_third() {
    let mut net = Net::new(2, false);
    net.truth.clients.insert(0);
    net.pass(Duration::from_secs(1));
    net.truth.cut.insert((1, 0));
    net.step();
    net.step();
    net.truth.cut.clear();
    let seen = after(&mut net, |t| t.receives[0] = false);
    assert_eq!(seen.1, [GOOD; 2]);
}
