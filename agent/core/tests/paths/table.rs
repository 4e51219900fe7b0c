//! The table of cases, row by row.

use std::time::Duration;

use baton_core::{
    Effect, Event, EventKind, Evidence, FailoverKind, Finding, Input, PortState, Reason, Rebinding,
};

use crate::model::*;

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| s.to_string()).collect()
}

#[test]
fn in_perfect_order_nothing_happens() {
    for (ports, targets) in [(2, false), (2, true), (3, false), (4, true)] {
        let mut net = Net::new(ports, targets);
        assert_eq!(net.pass(Duration::from_secs(3)), []);
        assert_eq!((net.finding(), net.states()), (Finding::Whole, vec![GOOD; ports]));
    }
}

/// The whole list: the move as for a lost carrier, then the failover, the port and the segment, each with what it was
/// drawn from. Found with the third probe that stays away, an eighth of an interval after it was sent.
#[test]
fn a_port_that_receives_nothing_gives_up_its_address() {
    let mut net = Net::new(2, true);
    net.truth.receives[0] = false;
    let effects = net.next_effects();
    let at = net.now;
    let evidence = Evidence {
        silent: strings(&["b>a 31 ms"]),
        heard: strings(&["a>b"]),
        answered: strings(&["b 10.0.0.1"]),
        unanswered: strings(&["a 10.0.0.1"]),
        ..Evidence::default()
    };
    let (a, b, address) = (ifindex(0), ifindex(1), ip("10.0.0.10"));
    let moved = EventKind::Failover {
        kind: FailoverKind::Port,
        reason: Reason::ReceiveSilent,
        moves: vec![Rebinding { address, from: Some("a".into()), to: "b".into() }],
    };
    let port = EventKind::Port {
        interface: "a".into(),
        segment: "office".into(),
        from: PortState::Good,
        to: PortState::Silent,
        reason: Some(Reason::ReceiveSilent),
        evidence: Some(Box::new(evidence.clone())),
    };
    let segment = EventKind::Segment {
        segment: "office".into(),
        from: Finding::Whole,
        to: Finding::PortsSilent,
        evidence: Box::new(evidence),
    };
    let event = |failover, kind| Effect::Event(Event { at, failover, kind });
    assert_eq!(
        effects,
        [
            Effect::Permit { address, server: "s".into(), port: Some(b) },
            Effect::AddAddress(b, address),
            Effect::Announce(b, address),
            Effect::Steer { segment: "office".into(), ports: vec![b], via: None },
            Effect::RemoveAddress(a, address),
            event(Some(1), moved),
            event(None, port),
            event(None, segment),
        ]
    );
    assert_eq!(net.bound(), [1, 1]);
}

#[test]
fn with_a_target_two_ports_suffice_for_every_kind_of_silence() {
    type Fault = fn(&mut Truth);
    let kinds: [(Fault, Reason); 3] = [
        (|t| t.receives[0] = false, Reason::ReceiveSilent),
        (|t| t.sends[0] = false, Reason::TransmitSilent),
        (|t| t.kill(0), Reason::Silent),
    ];
    for (fault, reason) in kinds {
        let mut net = Net::new(2, true);
        assert_eq!(after(&mut net, fault), (Finding::PortsSilent, vec![silent(reason), GOOD], 1));
        assert_eq!(net.bound(), [1, 1]);
    }
}

#[test]
fn three_ports_suffice_without_a_target() {
    type Fault = fn(&mut Truth);
    let kinds: [(Fault, Reason); 3] = [
        (|t| t.receives[1] = false, Reason::ReceiveSilent),
        (|t| t.sends[1] = false, Reason::TransmitSilent),
        (|t| t.kill(1), Reason::Silent),
    ];
    for (fault, reason) in kinds {
        let mut net = Net::new(3, false);
        assert_eq!(after(&mut net, fault), (Finding::PortsSilent, vec![GOOD, silent(reason), GOOD], 1));
        assert!(!net.bound().contains(&1));
    }
}

#[test]
fn the_reason_widens_without_a_second_failover() {
    let mut net = Net::new(3, false);
    after(&mut net, |t| t.receives[0] = false);
    net.truth.sends[0] = false;
    let effects = net.next_effects();
    let kinds = events(&effects);
    assert!(
        matches!(
            &kinds[..],
            [EventKind::Port {
                from: PortState::Silent,
                to: PortState::Silent,
                reason: Some(Reason::Silent),
                ..
            }]
        ),
        "{kinds:?}"
    );
    assert_eq!(effects.len(), 1, "{effects:?}");
    assert_eq!(net.pass(Duration::from_secs(3)), []);
    assert_eq!(net.machine.snapshot(net.now).ports[0].flaps, 1);
}

#[test]
fn one_path_between_two_ports_that_work_is_nobodys_fault() {
    for cut in [vec![(2, 0)], vec![(2, 0), (0, 2)]] {
        let mut net = Net::new(3, false);
        let seen = after(&mut net, |t| t.cut.extend(cut));
        assert_eq!(seen, (Finding::PathsSilent, vec![GOOD; 3], 0));
    }
    let mut net = Net::new(2, true);
    assert_eq!(after(&mut net, |t| t.cut.extend([(1, 0)])), (Finding::PathsSilent, vec![GOOD; 2], 0));
}

#[test]
fn a_segment_that_is_gone_moves_nothing() {
    for (ports, targets) in [(2, false), (2, true), (3, true), (4, false)] {
        let mut net = Net::new(ports, targets);
        let seen = after(&mut net, |t| (0..ports).for_each(|p| t.kill(p)));
        assert_eq!(seen, (Finding::Gone, vec![GOOD; ports], 0), "{ports} ports, targets: {targets}");
        (0..ports).for_each(|p| (net.truth.sends[p], net.truth.receives[p]) = (true, true));
        net.pass(Duration::from_millis(100));
        assert_eq!((net.finding(), net.states()), (Finding::Whole, vec![GOOD; ports]));
    }
}

#[test]
fn a_target_that_is_gone_is_told_once_and_moves_nothing() {
    let mut net = Net::new(2, true);
    net.truth.target = false;
    let (segment, target) = ("office".to_string(), ip(TARGET));
    let silent = EventKind::TargetSilent { segment: segment.clone(), target };
    assert_eq!(events(&net.next_effects()), [silent]);
    assert_eq!(net.pass(Duration::from_secs(3)), []);
    assert_eq!((net.finding(), net.states()), (Finding::Whole, vec![GOOD; 2]));
    net.truth.target = true;
    assert_eq!(events(&net.next_effects()), [EventKind::TargetAnswers { segment, target }]);
    assert_eq!(net.pass(Duration::from_secs(3)), []);
}

#[test]
fn a_target_that_never_answered_is_no_evidence() {
    let mut net = Net::with(2, true, false, INTERVAL);
    assert!(net.machine.snapshot(net.now).targets.iter().all(|t| t.answers.is_none()));
    assert_eq!(after(&mut net, |t| t.receives[0] = false), (Finding::Undecided, vec![GOOD; 2], 0));
    // A third port makes it decidable, and its silence does not speak against anybody.
    let mut net = Net::with(3, true, false, INTERVAL);
    let seen = after(&mut net, |t| t.receives[0] = false);
    assert_eq!(seen, (Finding::PortsSilent, vec![silent(Reason::ReceiveSilent), GOOD, GOOD], 1));
}

#[test]
fn two_of_three_ports_are_bad_where_the_third_is_shown_to_work() {
    let both = |t: &mut Truth| (0..2).for_each(|p| t.kill(p));
    let mut net = Net::new(3, true);
    let seen = after(&mut net, both);
    assert_eq!(
        seen,
        (Finding::PortsSilent, vec![silent(Reason::Silent), silent(Reason::Silent), GOOD], 1),
        "a target answers at the third"
    );
    assert_eq!(net.bound(), [2, 2, 2]);

    let mut net = Net::new(3, false);
    assert_eq!(after(&mut net, both), (Finding::Gone, vec![GOOD; 3], 0), "nothing tells it from the others");
    net.truth.clients.insert(2);
    net.pass(Duration::from_millis(100));
    let blamed = silent(Reason::TransmitSilent);
    assert_eq!((net.finding(), net.states()), (Finding::PortsSilent, vec![blamed, blamed, GOOD]));
    assert_eq!(net.bound(), [2, 2, 2]);
}

#[test]
fn two_ports_without_a_target_are_undecided_until_clients_decide() {
    let mut net = Net::new(2, false);
    assert_eq!(after(&mut net, |t| t.sends[1] = false), (Finding::Undecided, vec![GOOD; 2], 0));
    net.truth.clients.insert(0);
    net.pass(Duration::from_millis(100));
    let seen = (net.finding(), net.states(), net.bound());
    assert_eq!(seen, (Finding::PortsSilent, vec![GOOD, silent(Reason::TransmitSilent)], vec![0, 0]));
    // Clients pause: nothing new.
    net.truth.clients.clear();
    assert_eq!(net.pass(Duration::from_secs(3)), []);
}

#[test]
fn what_clients_sent_before_the_silence_shows_nothing() {
    let mut net = Net::new(2, false);
    net.truth.clients.insert(0);
    net.pass(Duration::from_millis(50));
    net.truth.clients.clear();
    assert_eq!(after(&mut net, |t| t.receives[0] = false), (Finding::Undecided, vec![GOOD; 2], 0));
}

#[test]
fn ports_that_a_switch_isolates_from_one_another_are_not_blamed() {
    let mut net = Net::new(2, false);
    net.truth.clients.extend([0, 1]);
    let seen = after(&mut net, |t| t.cut.extend([(0, 1), (1, 0)]));
    assert_eq!(seen, (Finding::Undecided, vec![GOOD; 2], 0));
}

#[test]
fn a_dead_port_is_found_while_another_path_is_in_doubt() {
    let mut net = Net::new(4, false);
    // Two of three probes are lost between c and d: never silent, often doubtful.
    net.truth.loses.extend([((2, 3), (2, 3)), ((3, 2), (2, 3))]);
    net.truth.kill(0);
    let mut steps = 0;
    while net.states()[0].0 == PortState::Good {
        net.step();
        steps += 1;
        assert!(steps <= 4, "not found: {:?}", net.states());
    }
    assert_eq!(net.states()[1..], [GOOD; 3]);
}

#[test]
fn a_stalled_agent_blames_nobody() {
    let mut net = Net::new(3, true);
    for _ in 0..50 {
        net.step();
        net.stall(Duration::from_millis(37));
        net.step();
        net.stall(Duration::from_secs(5));
    }
    assert_eq!((net.finding(), net.states(), net.failovers()), (Finding::Whole, vec![GOOD; 3], 0));
}

#[test]
fn a_silent_port_that_works_again_is_held_first() {
    let mut net = Net::new(2, true);
    after(&mut net, |t| t.kill(0));
    (net.truth.sends[0], net.truth.receives[0]) = (true, true);
    let effects = net.next_effects();
    assert_eq!(effects[0], Effect::ForgetUnresolved(ifindex(0)));
    assert_eq!(net.states()[0], (PortState::Held, None));
    assert_eq!(net.bound(), [1, 1]);
    net.pass(Duration::from_secs(1));
    assert_eq!((net.finding(), net.states()), (Finding::Whole, vec![GOOD; 2]));
}

#[test]
fn one_direction_alone_does_not_bring_a_silent_port_back() {
    let mut net = Net::new(3, false);
    after(&mut net, |t| t.kill(0));
    let seen = after(&mut net, |t| t.sends[0] = true);
    assert_eq!(seen.1, vec![silent(Reason::Silent), GOOD, GOOD]);
}

#[test]
fn a_flapping_port_is_held_ever_longer_and_moves_addresses_once() {
    let mut net = Net::new(3, false);
    let mut held = Vec::new();
    for _ in 0..4 {
        after(&mut net, |t| t.kill(0));
        assert_eq!(net.states()[0].0, PortState::Silent);
        (net.truth.sends[0], net.truth.receives[0]) = (true, true);
        net.next_effects();
        held.push(net.machine.snapshot(net.now).ports[0].held_ms.expect("held") / 1000);
    }
    assert_eq!((held, net.failovers()), (vec![1, 2, 4, 8], 1));
}

#[test]
fn a_silent_port_that_loses_its_carrier_has_failed_once() {
    let mut net = Net::new(3, false);
    after(&mut net, |t| t.kill(0));
    net.set_carrier(0, false);
    net.pass(Duration::from_millis(100));
    assert_eq!(net.states()[0], (PortState::Down, Some(Reason::CarrierLost)));
    assert_eq!(net.finding(), Finding::Whole);
    assert_eq!((net.machine.snapshot(net.now).ports[0].flaps, net.failovers()), (1, 1));
}

#[test]
fn a_silent_port_is_the_last_resort() {
    let mut net = Net::new(2, true);
    after(&mut net, |t| t.kill(0));
    net.set_carrier(1, false);
    assert_eq!(net.bound(), [0, 0]);
    let stranded = |e: &EventKind| matches!(e, EventKind::Stranded { .. });
    assert!(events(&net.told.last().expect("told").2).iter().any(stranded));
    net.pass(Duration::from_millis(100));
    assert_eq!((net.finding(), net.states()[0]), (Finding::Unknown, silent(Reason::Silent)));
    let told = |net: &Net, what: fn(&EventKind) -> bool| {
        net.told.iter().flat_map(|t| events(&t.2)).filter(what).count()
    };
    assert_eq!(told(&net, |e| matches!(e, EventKind::TargetSilent { .. })), 0, "there is nobody to tell");
    // It loses its carrier too: it was of no use before.
    net.set_carrier(0, false);
    assert_eq!(told(&net, |e| matches!(e, EventKind::Stranded { .. })), 1);
    net.set_carrier(0, true);
    // It answers its target again.
    (net.truth.sends[0], net.truth.receives[0]) = (true, true);
    net.pass(Duration::from_secs(2));
    assert_eq!(net.states()[0], GOOD);
}

#[test]
fn a_port_that_returns_to_a_switch_that_does_not_forward_yet_gets_nothing() {
    let mut net = Net::new(2, true);
    net.set_carrier(0, false);
    net.pass(Duration::from_millis(100));
    net.truth.kill(0);
    net.set_carrier(0, true);
    net.pass(Duration::from_secs(5));
    assert_eq!((net.states()[0], net.bound()), (silent(Reason::Silent), vec![1, 1]));
    (net.truth.sends[0], net.truth.receives[0]) = (true, true);
    net.pass(Duration::from_secs(5));
    assert_eq!(net.states()[0], GOOD);
}

#[test]
fn the_view_shows_paths_and_targets_as_of_the_last_reading() {
    let mut net = Net::new(2, true);
    net.truth.receives[0] = false;
    net.next_effects();
    let view = net.machine.snapshot(net.now + Duration::from_secs(9));
    let paths: Vec<_> =
        view.paths.iter().map(|p| (p.from.as_str(), p.to.as_str(), p.heard, p.heard_ms)).collect();
    assert_eq!(paths, [("a", "b", Some(true), Some(1)), ("b", "a", Some(false), Some(31))]);
    let targets: Vec<_> = view.targets.iter().map(|t| (t.port.as_str(), t.answers)).collect();
    assert_eq!(targets, [("a", Some(false)), ("b", Some(true))]);
    assert_eq!(view.segments[0].finding, Finding::PortsSilent);
    assert_eq!(view.ports[0].reason, Some(Reason::ReceiveSilent));
    // Without its interface a port has no paths to show.
    net.tell(Input::LinkGone(ifindex(0)));
    assert_eq!(net.machine.snapshot(net.now).paths, []);
}
