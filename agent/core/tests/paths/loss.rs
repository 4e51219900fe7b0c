//! Ports that lose frames or count errors.

use std::collections::BTreeMap;
use std::time::Duration;

use baton_core::{EventKind, Finding, Input, LinkErrors, PortState, Reason, Sample};

use crate::model::*;

const ALL_GOOD: [PortState; 3] = [PortState::Good; 3];

fn states(net: &Net) -> Vec<PortState> {
    net.states().into_iter().map(|s| s.0).collect()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Port 0 loses one frame in `n` that it receives.
fn receive_loss(net: &mut Net, n: u64) {
    let last = net.ports();
    net.truth.loses.extend((1..last).map(|from| ((from, 0), (1, n))));
}

fn sample(net: &mut Net, p: usize, errors: LinkErrors) -> Vec<EventKind> {
    let errors = BTreeMap::from([(ifindex(p), errors)]);
    events(&net.tell(Input::Sample(Sample { over: seconds(1), errors, ..Sample::default() })))
}

fn received(errors: u64, good: u64) -> LinkErrors {
    LinkErrors { rx_packets: good, rx_errors: errors, ..LinkErrors::default() }
}

#[test]
fn a_port_that_loses_what_it_receives_is_degraded_until_it_has_been_clean() {
    let mut net = Net::new(3, false);
    net.pass(seconds(5));
    receive_loss(&mut net, 20);
    let kinds = events(&net.pass(seconds(6)));
    let [EventKind::Failover { reason: Reason::Loss, .. }, EventKind::Port { reason, evidence, .. }] =
        &kinds[..]
    else {
        panic!("{kinds:?}");
    };
    assert_eq!(*reason, Some(Reason::Loss));
    let loss = &evidence.as_ref().expect("evidence").loss;
    assert_eq!(loss.len(), 6, "{loss:?}");
    assert!(
        loss[0].starts_with("a>b 0.0 %") && loss[2].starts_with("b>a ") && loss[2] != "b>a 0.0 %",
        "{loss:?}"
    );
    assert_eq!((net.finding(), states(&net)[0]), (Finding::Whole, PortState::Degraded));
    assert!(!net.bound().contains(&0));
    let view = net.machine.snapshot(net.now);
    assert_eq!(view.ports[0].reason, Some(Reason::Loss));
    let loss =
        view.paths.iter().find(|p| p.from == "b" && p.to == "a").and_then(|p| p.loss).expect("a known loss");
    assert!((0.02..0.06).contains(&loss), "{loss}");

    net.truth.loses.clear();
    net.pass(seconds(10));
    assert_eq!(states(&net)[0], PortState::Degraded, "not clean yet");
    net.pass(seconds(20));
    assert_eq!(states(&net), ALL_GOOD);
    assert_eq!(net.failovers(), 1);
}

#[test]
fn a_port_that_loses_what_it_sends_is_degraded() {
    let mut net = Net::new(3, false);
    net.truth.loses.extend([((0, 1), (1, 20)), ((0, 2), (1, 20))]);
    net.pass(seconds(15));
    assert_eq!(states(&net), [PortState::Degraded, PortState::Good, PortState::Good]);
}

#[test]
fn loss_that_tells_nothing_about_a_port_moves_nothing() {
    let mut two = Net::new(2, true);
    receive_loss(&mut two, 20);
    two.pass(seconds(15));
    assert_eq!(states(&two), [PortState::Good; 2], "two ports: can't be told");
    let mut one_path = Net::new(3, false);
    one_path.truth.loses.insert((1, 0), (1, 20));
    one_path.pass(seconds(15));
    assert_eq!(states(&one_path), ALL_GOOD, "one path only");
    let mut little = Net::new(3, false);
    receive_loss(&mut little, 100);
    little.pass(seconds(30));
    assert_eq!(states(&little), ALL_GOOD, "below the limit");
    let mut all = Net::new(3, false);
    let every = (0..3).flat_map(|f| (0..3).map(move |t| (f, t)));
    all.truth.loses.extend(every.map(|path| (path, (1, 20))));
    all.pass(seconds(15));
    assert_eq!((states(&all), all.failovers()), (ALL_GOOD.to_vec(), 0), "the segment loses");
}

#[test]
fn silence_is_not_loss() {
    let mut net = Net::new(3, false);
    net.pass(seconds(6));
    for _ in 0..3 {
        net.truth.kill(0);
        net.pass(Duration::from_millis(700));
        (net.truth.sends[0], net.truth.receives[0]) = (true, true);
        net.pass(seconds(5));
    }
    assert_eq!(states(&net), ALL_GOOD);
    let view = net.machine.snapshot(net.now);
    assert!(view.paths.iter().all(|p| p.loss.is_some_and(|l| l < 0.005)), "{:?}", view.paths);
}

#[test]
fn loss_that_comes_and_goes_moves_addresses_once() {
    let mut net = Net::new(3, false);
    let mut degraded_for = Vec::new();
    for _ in 0..4 {
        receive_loss(&mut net, 20);
        net.pass(seconds(10));
        assert_eq!(states(&net)[0], PortState::Degraded);
        net.truth.loses.clear();
        let from = net.now;
        while states(&net)[0] == PortState::Degraded {
            net.step();
        }
        degraded_for.push(net.now.since(from).as_secs());
    }
    assert_eq!(net.failovers(), 1);
    let longer: Vec<u64> = degraded_for.windows(2).map(|w| w[1] - w[0]).collect();
    assert_eq!(longer, [1, 2, 4], "the hold-down doubles: {degraded_for:?}");
}

#[test]
fn a_port_that_counts_errors_is_degraded_until_it_has_been_clean() {
    let mut net = Net::new(2, false);
    assert_eq!(sample(&mut net, 0, received(9, 91)), [], "too few to tell");
    assert_eq!(sample(&mut net, 0, received(10, 2000)), [], "too small a share");
    let kinds = sample(&mut net, 0, received(30, 970));
    let [EventKind::Failover { reason: Reason::Errors, .. }, EventKind::Port { reason, evidence, .. }] =
        &kinds[..]
    else {
        panic!("{kinds:?}");
    };
    assert_eq!(*reason, Some(Reason::Errors));
    assert_eq!(evidence.as_ref().expect("evidence").loss, ["a receive errors 3.0 %"]);
    assert_eq!(net.bound(), [1, 1]);
    for _ in 0..5 {
        net.pass(seconds(1));
        assert_eq!(sample(&mut net, 0, received(5, 995)), []);
    }
    assert_eq!(states(&net)[0], PortState::Degraded, "neither bad nor clean");
    net.pass(seconds(1));
    assert_eq!(sample(&mut net, 0, received(0, 1000)), []);
    net.pass(Duration::from_millis(500));
    assert_eq!(sample(&mut net, 0, received(5, 995)), []);
    net.pass(seconds(2));
    assert_eq!(states(&net)[0], PortState::Degraded, "not clean for the whole hold-down");
    assert_eq!(sample(&mut net, 0, received(0, 1000)), []);
    net.pass(seconds(2));
    assert_eq!((states(&net)[0], net.failovers()), (PortState::Good, 1));
}

#[test]
fn errors_of_what_is_sent_count_too() {
    let mut net = Net::new(2, false);
    let kinds = sample(&mut net, 0, LinkErrors { tx_packets: 900, tx_errors: 100, ..LinkErrors::default() });
    let evidence = kinds.iter().find_map(|k| match k {
        EventKind::Port { evidence, .. } => evidence.clone(),
        _ => None,
    });
    assert_eq!(evidence.expect("evidence").loss, ["a transmit errors 10.0 %"]);
}

#[test]
fn when_all_ports_are_degraded_nothing_moves() {
    let mut net = Net::new(2, false);
    let bad = received(100, 900);
    sample(&mut net, 0, bad);
    assert_eq!((net.bound(), net.failovers()), (vec![1, 1], 1));
    let kinds = sample(&mut net, 1, bad);
    assert!(matches!(kinds[..], [EventKind::Port { .. }]), "{kinds:?}");
    assert_eq!((net.bound(), net.failovers()), (vec![1, 1], 1));
    assert_eq!(states(&net), [PortState::Degraded; 2]);
}

#[test]
fn a_held_port_that_counts_errors_becomes_degraded_and_not_good() {
    let mut net = Net::new(2, false);
    net.set_carrier(0, false);
    net.set_carrier(0, true);
    assert_eq!(sample(&mut net, 0, received(100, 900)), []);
    assert_eq!(states(&net)[0], PortState::Held);
    let kinds = events(&net.pass(seconds(2)));
    let port = kinds.iter().find_map(|k| match k {
        EventKind::Port { to, reason, evidence, .. } => {
            Some((*to, *reason, evidence.clone().expect("evidence").loss))
        }
        _ => None,
    });
    let errors = vec!["a receive errors 10.0 %".to_string()];
    assert_eq!(port, Some((PortState::Degraded, Some(Reason::Errors), errors)));
}

#[test]
fn a_degraded_port_that_falls_silent_is_silent() {
    let mut net = Net::new(3, false);
    sample(&mut net, 0, received(100, 900));
    net.truth.kill(0);
    net.pass(Duration::from_millis(100));
    assert_eq!(net.states()[0], (PortState::Silent, Some(Reason::Silent)));
}

#[test]
fn one_probe_of_a_few_is_not_loss() {
    let mut net = Net::with(3, false, true, Duration::from_millis(200));
    net.pass(seconds(10));
    net.truth.receives[0] = false;
    net.step();
    net.truth.receives[0] = true;
    net.pass(seconds(10));
    let loss = net.machine.snapshot(net.now).paths.iter().filter_map(|p| p.loss).fold(0.0, f64::max);
    assert!(loss > 0.0);
    assert_eq!(net.told.iter().flat_map(|t| events(&t.2)).filter(is_port).count(), 0);
}

fn is_port(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Port { .. })
}

#[test]
fn a_probe_that_is_under_way_is_not_lost() {
    let mut net = Net::new(2, false);
    for second in 0..20 {
        for _ in 0..100 {
            net.round();
        }
        let mut reading = net.reading();
        // Every other time the next probes have just been sent.
        if second % 2 == 0 {
            for s in &mut reading.paths {
                (s.sent, s.unanswered, s.waiting_since) = (s.sent + 1, 1, Some(net.now));
            }
        }
        net.tell(Input::Paths(reading));
    }
    let loss: Vec<_> = net.machine.snapshot(net.now).paths.iter().map(|p| p.loss).collect();
    assert_eq!(loss, [Some(0.0); 2]);
}
