//! Whole effect lists for each kind of input, with a virtual clock. Properties that hold for every sequence of inputs are
//! in `tests/properties.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::config::{PortConfig, PortFailback, Segment, Timing, VirtualServer};
use crate::{Attachment, FailoverKind, PortState, Rebinding, Start};
use crate::{Sample, Traffic};

pub(super) const A: IfIndex = IfIndex(11);
pub(super) const B: IfIndex = IfIndex(12);
pub(super) const C: IfIndex = IfIndex(13);

pub(super) fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

pub(super) fn config(ports: &[&str], servers: &[(&str, u32, &[&str])]) -> Config {
    Config {
        ports: ports.iter().map(|p| PortConfig::new(p, "office")).collect(),
        timing: Timing { announce_repeat: vec![Duration::from_millis(10)], ..Timing::default() },
        segments: vec![Segment::new(
            "office",
            vec!["10.0.0.0/24".parse().unwrap(), "fd00:10::/64".parse().unwrap()],
        )],
        servers: servers
            .iter()
            .map(|(name, priority, addresses)| VirtualServer {
                priority: *priority,
                reroute: true,
                ..VirtualServer::new(name, addresses.iter().map(|a| a.parse().unwrap()).collect())
            })
            .collect(),
        ..Config::new("fs1")
    }
}

fn received(rx_bytes: u64) -> Traffic {
    Traffic { rx_bytes, ..Traffic::default() }
}

pub(super) fn ours(ifindex: IfIndex, address: &str) -> Assigned {
    Assigned { ifindex, address: ip(address), ours: true }
}

pub(super) fn link(ifindex: IfIndex, name: &str) -> Link {
    Link { ifindex, name: name.into(), up: true, carrier: true, mac: [2, 0, 0, 0, 0, ifindex.0 as u8] }
}

pub(super) fn down(ifindex: IfIndex, name: &str) -> Link {
    Link { carrier: false, ..link(ifindex, name) }
}

pub(super) fn start(config: Config) -> Start {
    let indexes = [A, B, C];
    let links = config.ports.iter().zip(indexes).map(|(p, i)| link(i, &p.interface)).collect();
    Start {
        config,
        incarnation: 7,
        found: Found { links, addresses: vec![] },
        bound: BTreeMap::new(),
        marked: BTreeSet::new(),
        routed: BTreeSet::new(),
        running: BTreeSet::new(),
        cluster: None,
    }
}

pub(super) const OWNER: Owner = Owner { incarnation: 7, epoch: 1 };

/// A machine whose ports are attached and whose servers are served, at one second.
pub(super) fn serving(config: Config) -> Machine {
    let names: Vec<String> = config.servers.iter().map(|s| s.name.clone()).collect();
    let ports = config.ports.len();
    let mut m = Machine::new();
    m.handle(Time(0), Input::Start(Box::new(start(config))));
    for i in [A, B, C].into_iter().take(ports) {
        m.handle(Time(0), Input::Attached(i, Attachment::Native));
    }
    for name in names {
        m.handle(Time(0), Input::Owned(name, OWNER));
    }
    while m.deadline().is_some_and(|d| d < Time(1_000_000_000)) {
        let d = m.deadline().unwrap();
        m.handle(d, Input::Wake);
    }
    m.now = Time(1_000_000_000);
    m
}

/// Effects without the events.
pub(super) fn deeds(effects: Vec<Effect>) -> Vec<Effect> {
    effects.into_iter().filter(|e| !matches!(e, Effect::Event(_))).collect()
}

pub(super) fn events(effects: &[Effect]) -> Vec<&EventKind> {
    effects.iter().filter_map(|e| if let Effect::Event(e) = e { Some(&e.kind) } else { None }).collect()
}

pub(super) fn permit(address: &str, server: &str, port: IfIndex) -> Effect {
    Effect::Permit { address: ip(address), server: server.into(), port: Some(port) }
}

pub(super) fn steer(ports: &[IfIndex]) -> Effect {
    Effect::Steer { segment: "office".into(), ports: ports.to_vec(), via: None }
}

pub(super) const S: Time = Time(1_000_000_000);

#[test]
fn start_attaches_steers_and_takes_by_priority() {
    let mut m = Machine::new();
    let c = config(&["a", "b"], &[("low", 1, &["10.0.0.10/24"]), ("high", 2, &["10.0.0.11/24"])]);
    assert_eq!(
        deeds(m.handle(S, Input::Start(Box::new(start(c))))),
        [
            Effect::Attach(A, "a".into()),
            Effect::Attach(B, "b".into()),
            steer(&[A, B]),
            Effect::Take("high".into()),
            Effect::Take("low".into()),
        ]
    );
}

#[test]
fn serving_begins_with_the_mark_and_spreads_addresses() {
    let mut m = Machine::new();
    let c = config(&["a", "b"], &[("s", 1, &["10.0.0.10/24", "fd00:10::10/64"])]);
    m.handle(S, Input::Start(Box::new(start(c))));
    let effects = m.handle(S, Input::Owned("s".into(), OWNER));
    let served = EventKind::Serving { server: "s".into(), epoch: 1 };
    assert_eq!(
        effects,
        [
            Effect::Mark { server: "s".into(), incarnation: Some(7) },
            permit("10.0.0.10", "s", A),
            permit("fd00:10::10", "s", B),
            Effect::AddAddress(A, ip("10.0.0.10")),
            Effect::AddAddress(B, ip("fd00:10::10")),
            Effect::Announce(A, ip("10.0.0.10")),
            Effect::Announce(B, ip("fd00:10::10")),
            Effect::Event(Event { at: S, failover: None, kind: served }),
        ]
    );
    assert_eq!(m.deadline(), Some(S + Duration::from_millis(10)));
}

#[test]
fn a_lost_carrier_moves_the_address_before_it_leaves_the_old_port() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    let moved = EventKind::Failover {
        kind: FailoverKind::Port,
        reason: Reason::CarrierLost,
        moves: vec![Rebinding { address: ip("10.0.0.10"), from: Some("a".into()), to: "b".into() }],
    };
    let port = EventKind::Port {
        interface: "a".into(),
        segment: "office".into(),
        from: PortState::Good,
        to: PortState::Down,
        reason: Some(Reason::CarrierLost),
        evidence: None,
    };
    assert_eq!(
        m.handle(S, Input::Link(down(A, "a"))),
        [
            permit("10.0.0.10", "s", B),
            Effect::AddAddress(B, ip("10.0.0.10")),
            Effect::Announce(B, ip("10.0.0.10")),
            steer(&[B]),
            Effect::RemoveAddress(A, ip("10.0.0.10")),
            Effect::Event(Event { at: S, failover: Some(1), kind: moved }),
            Effect::Event(Event { at: S, failover: None, kind: port }),
        ]
    );
}

#[test]
fn the_read_and_the_event_of_one_loss_are_one_failover() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    assert!(!deeds(m.handle(S, Input::Carrier(A, false))).is_empty());
    assert_eq!(m.handle(S, Input::Link(down(A, "a"))), []);
    assert_eq!(m.failovers, 1);
    // The read is up again before the event is: not up yet.
    assert_eq!(m.handle(S, Input::Carrier(A, true)), []);
    assert_eq!(m.ports[0].state, PortState::Down);
    m.handle(S, Input::Link(link(A, "a")));
    assert_eq!(m.ports[0].state, PortState::Held);
}

#[test]
fn servers_of_higher_priority_go_first_and_busier_addresses_of_one_server_too() {
    let mut m = serving(config(
        &["a", "b"],
        &[("low", 1, &["10.0.0.10/24"]), ("high", 2, &["10.0.0.20/24", "10.0.0.21/24"])],
    ));
    m.handle(S, Input::Link(down(B, "b")));
    m.handle(S, Input::Link(link(B, "b")));
    let over = m.deadline().unwrap().max(S + Duration::from_secs(1));
    m.handle(over, Input::Wake);
    let traffic = BTreeMap::from([(ip("10.0.0.21"), received(1_000_000))]);
    m.handle(over, Input::Sample(Sample { over: Duration::from_secs(1), traffic, ..Sample::default() }));
    let effects = m.handle(over, Input::Link(down(A, "a")));
    let order: Vec<IpAddr> = effects
        .iter()
        .filter_map(|e| if let Effect::AddAddress(_, a) = e { Some(*a) } else { None })
        .collect();
    assert_eq!(order, [ip("10.0.0.21"), ip("10.0.0.20"), ip("10.0.0.10")]);
}

#[test]
fn the_addresses_of_a_failed_port_are_spread_by_their_traffic() {
    let mut m = serving(config(
        &["a", "b", "c"],
        &[("s", 1, &["10.0.0.10/24", "10.0.0.11/24", "10.0.0.12/24", "10.0.0.13/24"])],
    ));
    // Everything on a first.
    for (i, n) in [(B, "b"), (C, "c")] {
        m.handle(S, Input::Link(down(i, n)));
        m.handle(S, Input::Link(link(i, n)));
    }
    let over = S + Duration::from_secs(1);
    m.handle(over, Input::Wake);
    assert!(m.vips.values().all(|v| v.port == Some(0)));
    let bytes = [("10.0.0.10", 900), ("10.0.0.11", 500), ("10.0.0.12", 300), ("10.0.0.13", 100)];
    let traffic = bytes.into_iter().map(|(a, b)| (ip(a), received(b * 1_000_000))).collect();
    m.handle(over, Input::Sample(Sample { over: Duration::from_secs(30), traffic, ..Sample::default() }));
    m.handle(over, Input::Link(down(A, "a")));
    let port = |a| m.vips[&ip(a)].port;
    assert_eq!(
        ["10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13"].map(port),
        [Some(1), Some(2), Some(2), Some(2)]
    );
}

#[test]
fn the_hold_down_doubles_with_flapping_and_is_forgotten_after_a_long_good_time() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    let mut now = S;
    let mut holds = Vec::new();
    for _ in 0..8 {
        m.handle(now, Input::Link(down(B, "b")));
        m.handle(now, Input::Link(link(B, "b")));
        let until = m.ports[1].held_until().unwrap();
        holds.push(until.since(now).as_secs());
        now = until;
        m.handle(now, Input::Wake);
        assert_eq!(m.ports[1].state, PortState::Good);
    }
    assert_eq!(holds, [1, 2, 4, 8, 16, 32, 60, 60]);
    now = now + Duration::from_secs(60);
    m.handle(now, Input::Link(down(B, "b")));
    m.handle(now, Input::Link(link(B, "b")));
    assert_eq!(m.ports[1].held_until().unwrap().since(now).as_secs(), 1);
}

#[test]
fn a_held_port_is_used_when_there_is_no_other() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    m.handle(S, Input::Link(down(A, "a")));
    let effects = m.handle(S, Input::Link(down(B, "b")));
    assert!(events(&effects).contains(&&EventKind::Stranded { segment: "office".into() }));
    assert_eq!(m.vips[&ip("10.0.0.10")].port, Some(1), "nothing to win by moving");
    let effects = m.handle(S, Input::Link(link(A, "a")));
    assert_eq!(m.ports[0].state, PortState::Held);
    assert_eq!(
        deeds(effects),
        [
            Effect::ForgetUnresolved(A),
            permit("10.0.0.10", "s", A),
            Effect::AddAddress(A, ip("10.0.0.10")),
            Effect::Announce(A, ip("10.0.0.10")),
            steer(&[A]),
            Effect::RemoveAddress(B, ip("10.0.0.10")),
        ]
    );
}

#[test]
fn spread_takes_addresses_back_and_stay_does_not() {
    for (failback, on_a) in [(PortFailback::Spread, 2), (PortFailback::Stay, 0)] {
        let mut c = config(
            &["a", "b"],
            &[("s", 1, &["10.0.0.10/24", "10.0.0.11/24", "10.0.0.12/24", "10.0.0.13/24"])],
        );
        c.segments[0].port_failback = failback;
        let mut m = serving(c);
        m.handle(S, Input::Link(down(A, "a")));
        m.handle(S, Input::Link(link(A, "a")));
        assert_eq!(m.vips.values().filter(|v| v.port == Some(0)).count(), 0, "held");
        m.handle(S + Duration::from_secs(1), Input::Wake);
        assert_eq!(m.vips.values().filter(|v| v.port == Some(0)).count(), on_a);
    }
}

#[test]
fn an_address_that_somebody_removes_comes_back() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    let deleted = EventKind::AddressDeleted { address: ip("10.0.0.10"), interface: "a".into() };
    assert_eq!(
        m.handle(S, Input::AddressRemoved(ours(A, "10.0.0.10"))),
        [
            Effect::AddAddress(A, ip("10.0.0.10")),
            steer(&[A, B]), // the routes may have gone with it, unannounced
            Effect::Announce(A, ip("10.0.0.10")),
            Effect::Event(Event { at: S, failover: None, kind: deleted }),
        ]
    );
}

#[test]
fn our_own_removal_is_no_news_even_when_the_address_is_back_already() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    m.handle(S, Input::Link(down(A, "a")));
    m.handle(S, Input::Link(link(A, "a")));
    m.handle(S, Input::Link(down(B, "b")));
    assert_eq!(m.desired(ip("10.0.0.10")), Some(A));
    // Only now the notifications come.
    assert_eq!(m.handle(S, Input::AddressRemoved(ours(A, "10.0.0.10"))), []);
    assert_eq!(m.handle(S, Input::AddressRemoved(ours(B, "10.0.0.10"))), []);
}

#[test]
fn an_interface_set_down_loses_its_addresses_without_a_fight() {
    let mut m = serving(config(&["a"], &[("s", 1, &["fd00:10::10/64"])]));
    m.handle(S, Input::Link(Link { up: false, carrier: false, ..link(A, "a") }));
    assert_eq!(m.handle(S, Input::AddressRemoved(ours(A, "fd00:10::10"))), []);
    let effects = deeds(m.handle(S, Input::Link(link(A, "a"))));
    assert!(effects.contains(&Effect::AddAddress(A, ip("fd00:10::10"))), "{effects:?}");
    assert!(effects.contains(&steer(&[A])), "{effects:?}");
}

#[test]
fn a_restarted_agent_adopts_what_is_right_and_completes_what_is_not() {
    let c = config(&["a", "b"], &[("s", 1, &["10.0.0.10/24", "10.0.0.11/24"])]);
    let mut s = start(c);
    s.marked = ["s".to_string()].into();
    s.bound = [(ip("10.0.0.10"), A), (ip("10.0.0.11"), B), (ip("10.0.0.99"), B)].into();
    // The earlier agent was killed after it had permitted .11 on b and before it was configured there.
    s.found.addresses = vec![ours(A, "10.0.0.10"), ours(A, "10.0.0.11"), ours(B, "10.0.0.98")];
    let mut m = Machine::new();
    let effects = m.handle(S, Input::Start(Box::new(s)));
    let started = EventKind::Started { incarnation: 7, adopted: 1, removed: 1 };
    assert_eq!(
        effects,
        [
            Effect::Attach(A, "a".into()),
            Effect::Attach(B, "b".into()),
            permit("10.0.0.10", "s", A),
            permit("10.0.0.11", "s", B),
            Effect::AddAddress(B, ip("10.0.0.11")),
            Effect::RemoveAddress(A, ip("10.0.0.11")),
            steer(&[A, B]),
            Effect::Take("s".into()),
            Effect::Forget(ip("10.0.0.99")),
            Effect::RemoveAddress(B, ip("10.0.0.98")),
            Effect::Event(Event { at: S, failover: None, kind: started }),
            Effect::Announce(A, ip("10.0.0.10")),
            Effect::Announce(B, ip("10.0.0.11")),
        ]
    );
    let again = deeds(m.handle(S, Input::Owned("s".into(), OWNER)));
    assert_eq!(again, [], "already served");
}

#[test]
fn addresses_are_adopted_where_they_are_also_without_the_kernel_programs_memory() {
    let c = config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]);
    let mut s = start(c);
    s.found.addresses = vec![ours(B, "10.0.0.10")];
    let mut m = Machine::new();
    let effects = deeds(m.handle(S, Input::Start(Box::new(s))));
    assert!(!effects.iter().any(|e| matches!(e, Effect::RemoveAddress(..))), "{effects:?}");
    assert_eq!(
        deeds(m.handle(S, Input::Owned("s".into(), OWNER))),
        [
            Effect::Mark { server: "s".into(), incarnation: Some(7) },
            permit("10.0.0.10", "s", B),
            Effect::Announce(B, ip("10.0.0.10")),
        ]
    );
}

#[test]
fn a_restart_in_the_middle_of_a_failover_finishes_it() {
    let c = config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]);
    let mut s = start(c);
    s.marked = ["s".to_string()].into();
    s.bound = [(ip("10.0.0.10"), A)].into();
    s.found.addresses = vec![ours(A, "10.0.0.10")];
    s.found.links[0].carrier = false;
    let mut m = Machine::new();
    let effects = deeds(m.handle(S, Input::Start(Box::new(s))));
    assert_eq!(
        effects[2..6],
        [
            permit("10.0.0.10", "s", B),
            Effect::AddAddress(B, ip("10.0.0.10")),
            Effect::Announce(B, ip("10.0.0.10")),
            steer(&[B]),
        ]
    );
    assert!(effects.contains(&Effect::RemoveAddress(A, ip("10.0.0.10"))));
}

#[test]
fn conflicts_and_claims_are_told_once_and_answered_once() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    let other = Assigned { ifindex: B, address: ip("10.0.0.10"), ours: false };
    let effects = m.handle(S, Input::AddressAdded(other));
    assert_eq!(
        events(&effects),
        [&EventKind::AddressConflict { address: ip("10.0.0.10"), interface: "b".into() }]
    );
    assert_eq!(deeds(effects), [], "what Baton did not make is not touched");
    assert_eq!(m.handle(S, Input::AddressAdded(other)), []);
    let claim = Input::Claim(Claim { address: ip("10.0.0.10"), ifindex: A, mac: [6; 6] });
    assert_eq!(deeds(m.handle(S, claim.clone())), [Effect::Announce(A, ip("10.0.0.10"))]);
    assert_eq!(m.handle(S, claim.clone()), [], "at most once in ten seconds");
    assert_eq!(m.snapshot(S).conflicts.len(), 2);
    assert_eq!(deeds(m.handle(S + Duration::from_secs(10), claim)), [Effect::Announce(A, ip("10.0.0.10"))]);
    m.handle(S + Duration::from_secs(71), Input::AddressRemoved(other));
    assert_eq!(m.snapshot(S).conflicts, []);
}

#[test]
fn what_fails_is_told_and_tried_again() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    let effects = m.handle(S, Input::Link(down(A, "a")));
    let add = effects.iter().find(|e| matches!(e, Effect::AddAddress(..))).unwrap().clone();
    let effects = m.handle(S, Input::Failed(Box::new(add.clone()), "no buffer space".into()));
    assert!(matches!(events(&effects)[..], [EventKind::EffectFailed { .. }]));
    assert_eq!(m.deadline().map(|d| d <= S + REPAIR_AFTER), Some(true));
    let effects = m.handle(S + REPAIR_AFTER, Input::Wake);
    assert!(effects.contains(&add), "{effects:?}");
}

#[test]
fn an_announcement_that_could_not_be_sent_is_sent_soon() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    let announce = Effect::Announce(A, ip("10.0.0.10"));
    m.handle(S, Input::Failed(Box::new(announce.clone()), "no buffer space".into()));
    assert_eq!(m.deadline().map(|d| d <= S + ANNOUNCE_AGAIN), Some(true));
    assert_eq!(deeds(m.handle(S + ANNOUNCE_AGAIN, Input::Wake)), [announce]);
}

#[test]
fn a_port_without_kernel_programs_is_not_used() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    m.handle(S, Input::LinkGone(A));
    let back = IfIndex(21);
    let effects = m.handle(S, Input::Link(link(back, "a")));
    assert!(effects.contains(&Effect::Attach(back, "a".into())));
    let refused = Effect::Attach(back, "a".into());
    m.handle(S, Input::Failed(Box::new(refused.clone()), "EBUSY".into()));
    assert_eq!(m.ports[0].state, PortState::Down);
    let effects = m.handle(S + REPAIR_AFTER, Input::Wake);
    assert!(effects.contains(&refused), "tried again: {effects:?}");
    m.handle(S + REPAIR_AFTER, Input::Attached(back, Attachment::Generic));
    assert_eq!(m.ports[0].state, PortState::Held);
}

#[test]
fn steering_that_somebody_removed_is_renewed() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24"])]));
    let lost = |port| Input::SteeringLost { segment: "office".into(), port };
    assert_eq!(deeds(m.handle(S, lost(None))), [steer(&[A, B])]);
    assert_eq!(deeds(m.handle(S, lost(Some(B)))), [steer(&[A, B])]);
    m.handle(S, Input::Link(down(B, "b")));
    assert_eq!(m.handle(S, lost(Some(B))), [], "its routes went with it");
}

#[test]
fn lost_notifications_lead_to_the_truth() {
    let mut m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24", "10.0.0.11/24"])]));
    // Meanwhile b lost carrier, and somebody removed .10 from a.
    let found = Found { links: vec![link(A, "a"), down(B, "b")], addresses: vec![ours(B, "10.0.0.11")] };
    let effects = deeds(m.handle(S, Input::Resync(found)));
    assert_eq!(
        effects,
        [
            permit("10.0.0.11", "s", A),
            Effect::AddAddress(A, ip("10.0.0.11")),
            Effect::Announce(A, ip("10.0.0.11")),
            steer(&[A]),
            Effect::RemoveAddress(B, ip("10.0.0.11")),
            Effect::AddAddress(A, ip("10.0.0.10")),
            steer(&[A]),
            Effect::Announce(A, ip("10.0.0.10")),
        ]
    );
}

#[test]
fn a_thousand_addresses_move_in_chunks_and_their_repeats_are_paced() {
    let addresses: Vec<String> = (0..1000).map(|i| format!("10.0.{}.{}/16", i / 250, i % 250 + 1)).collect();
    let refs: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut c = config(&["a", "b"], &[("s", 1, &refs)]);
    c.segments[0].subnets = vec!["10.0.0.0/16".parse().unwrap()];
    let mut m = serving(c);
    m.handle(S, Input::Link(down(B, "b")));
    m.handle(S, Input::Link(link(B, "b")));
    m.handle(S + Duration::from_secs(1), Input::Wake);
    let t = S + Duration::from_secs(2);
    while m.deadline().is_some_and(|d| d < t) {
        m.handle(m.deadline().unwrap(), Input::Wake);
    }
    let effects = deeds(m.handle(t, Input::Link(down(A, "a"))));
    let kinds: Vec<_> =
        effects.chunk_by(|x, y| std::mem::discriminant(x) == std::mem::discriminant(y)).collect();
    assert_eq!(kinds.iter().take(3).map(|k| k.len()).collect::<Vec<_>>(), [32, 32, 32]);
    assert_eq!(kinds.last().unwrap().len(), 1000, "they leave the old port at the end");
    let mut announced = 0;
    let mut wakes = 0;
    while let Some(d) = m.deadline().filter(|d| *d < t + Duration::from_millis(500)) {
        let n = m.handle(d, Input::Wake).len();
        assert!(n <= 64);
        announced += n;
        wakes += 1;
    }
    assert_eq!((announced, wakes), (1000, 16));
}

#[test]
fn rates_are_right_from_the_first_sample_and_halve_in_thirty_seconds() {
    let mut m = serving(config(&["a"], &[("s", 1, &["10.0.0.10/24"])]));
    let second = Duration::from_secs(1);
    let traffic = BTreeMap::from([(ip("10.0.0.10"), received(1_000))]);
    m.handle(S, Input::Sample(Sample { over: second, traffic: traffic.clone(), ..Sample::default() }));
    assert_eq!(m.vips[&ip("10.0.0.10")].rate.round(), 1_000.0);
    for _ in 0..600 {
        m.handle(S, Input::Sample(Sample { over: second, traffic: traffic.clone(), ..Sample::default() }));
    }
    for _ in 0..30 {
        m.handle(S, Input::Sample(Sample { over: second, ..Sample::default() }));
    }
    assert_eq!(m.vips[&ip("10.0.0.10")].rate.round(), 500.0);
}

#[test]
fn the_same_inputs_give_the_same_effects_from_a_saved_machine() {
    let m = serving(config(&["a", "b"], &[("s", 1, &["10.0.0.10/24", "fd00:10::10/64"])]));
    let saved = serde_json::to_string(&m).unwrap();
    let mut restored: Machine = serde_json::from_str(&saved).unwrap();
    let mut m = m;
    for input in [Input::Link(down(A, "a")), Input::Link(link(A, "a")), Input::LinkGone(B), Input::Wake] {
        assert_eq!(m.handle(S, input.clone()), restored.handle(S, input));
    }
    assert_eq!(m, restored);
}
