//! What a reload asks for: whole lists of effects.

use std::time::Duration;

use super::tests::*;
use super::*;
use crate::config::{PortConfig, VirtualServer};
use crate::{FailoverKind, PortState, Reload};

/// Has the configuration read anew, with the kernel as the machine has made it.
fn reload(m: &mut Machine, config: Config) -> Vec<Effect> {
    let is_there = |(i, name): &(IfIndex, &str)| {
        m.names.contains_key(i) || config.ports.iter().any(|p| p.interface == *name)
    };
    let links = [(A, "a"), (B, "b"), (C, "c")].into_iter().filter(is_there);
    let links = links.map(|(i, name)| link(i, name)).collect();
    let addresses = m.assigned.iter().map(|&(address, ifindex)| Assigned { ifindex, address, ours: true });
    let found = Found { links, addresses: addresses.collect() };
    let reload = Reload { config, found, changes: vec!["a change".into()] };
    m.handle(S, Input::Reload(Box::new(reload)))
}

fn two() -> Config {
    config(&["a", "b"], &[("high", 2, &["10.0.0.10/24", "10.0.0.11/24"]), ("low", 1, &["10.0.0.12/24"])])
}

/// A machine that serves [`two`], and where its addresses are.
fn serving_two() -> (Machine, impl Fn(&str) -> IfIndex) {
    let m = serving(two());
    let ports: Vec<(IpAddr, IfIndex)> = m.vips.keys().map(|a| (*a, m.desired(*a).unwrap())).collect();
    (m, move |a: &str| ports.iter().find(|(b, _)| *b == ip(a)).unwrap().1)
}

fn told() -> Effect {
    Effect::Event(Event {
        at: S,
        failover: None,
        kind: EventKind::Reloaded { changes: vec!["a change".into()] },
    })
}

#[test]
fn the_same_configuration_asks_for_nothing() {
    let (mut m, _) = serving_two();
    let before = m.clone();
    assert_eq!(reload(&mut m, two()), [told()]);
    assert_eq!(m, before);
}

#[test]
fn an_address_that_is_gone_is_dropped_and_nothing_else() {
    let (mut m, port) = serving_two();
    let mut c = two();
    c.servers[0].addresses.pop();
    let on = port("10.0.0.11");
    let list = reload(&mut m, c);
    // Where it was the last IPv4 address of its port, the kernel has dropped the routes by that port.
    let again = Effect::Steer { segment: "office".into(), ports: vec![A, B], via: None };
    let steer = !["10.0.0.10", "10.0.0.12"].map(&port).contains(&on);
    let mut wanted = vec![Effect::RemoveAddress(on, ip("10.0.0.11"))];
    wanted.extend(steer.then_some(again));
    wanted.extend([Effect::Forget(ip("10.0.0.11")), told()]);
    assert_eq!(list, wanted);
}

#[test]
fn a_server_that_is_gone_is_dropped_with_its_addresses() {
    let (mut m, port) = serving_two();
    let mut c = two();
    c.servers.pop();
    let list = reload(&mut m, c);
    let mut wanted = vec![Effect::RemoveAddress(port("10.0.0.12"), ip("10.0.0.12"))];
    if !["10.0.0.10", "10.0.0.11"].map(&port).contains(&port("10.0.0.12")) {
        wanted.push(steer(&[A, B]));
    }
    let mark = Effect::Mark { server: "low".into(), incarnation: None };
    wanted.extend([Effect::Forget(ip("10.0.0.12")), mark, told()]);
    assert_eq!(list, wanted);
    assert_eq!(m.handle(S, Input::MarkCleared("low".into())), []);
}

#[test]
fn an_address_that_is_new_is_bound_to_the_port_with_less() {
    let mut m = serving(config(&["a", "b"], &[("one", 1, &["10.0.0.10/24"])]));
    let on = m.desired(ip("10.0.0.10")).unwrap();
    let other = if on == A { B } else { A };
    let list = reload(&mut m, config(&["a", "b"], &[("one", 1, &["10.0.0.10/24", "10.0.0.11/24"])]));
    assert_eq!(
        list,
        [
            permit("10.0.0.11", "one", other),
            Effect::AddAddress(other, ip("10.0.0.11")),
            Effect::Announce(other, ip("10.0.0.11")),
            told(),
        ]
    );
}

#[test]
fn a_server_that_is_new_is_taken_and_then_served() {
    let mut m = serving(config(&["a"], &[("one", 1, &["10.0.0.10/24"])]));
    let c = config(&["a"], &[("one", 1, &["10.0.0.10/24"]), ("new", 9, &["10.0.0.20/24"])]);
    assert_eq!(reload(&mut m, c), [Effect::Take("new".into()), told()]);
    assert_eq!(
        deeds(m.handle(S, Input::Owned("new".into(), OWNER))),
        [
            Effect::Mark { server: "new".into(), incarnation: Some(7) },
            permit("10.0.0.20", "new", A),
            Effect::AddAddress(A, ip("10.0.0.20")),
            Effect::Announce(A, ip("10.0.0.20")),
        ]
    );
}

#[test]
fn a_port_that_is_new_is_attached_and_nothing_moves_there() {
    let c = |ports: &[&str]| config(ports, &[("one", 1, &["10.0.0.10/24", "10.0.0.11/24", "10.0.0.12/24"])]);
    let mut m = serving(c(&["a", "b"]));
    assert_eq!(
        reload(&mut m, c(&["a", "b", "c"])),
        [Effect::Attach(C, "c".into()), steer(&[A, B, C]), told()]
    );
    assert_eq!(m.ports[2].state, PortState::Good);
}

#[test]
fn a_port_that_is_gone_is_left_and_that_is_no_failover() {
    let c = |ports: &[&str]| config(ports, &[("one", 1, &["10.0.0.10/24", "10.0.0.11/24"])]);
    let mut m = serving(c(&["a", "b"]));
    let left: Vec<IpAddr> = m.vips.keys().copied().filter(|a| m.desired(*a) == Some(B)).collect();
    let [moved] = left[..] else { panic!("{left:?}") };
    let list = reload(&mut m, c(&["a"]));
    assert_eq!(
        list,
        [
            permit(&moved.to_string(), "one", A),
            Effect::AddAddress(A, moved),
            Effect::Announce(A, moved),
            steer(&[A]),
            Effect::RemoveAddress(B, moved),
            told(),
        ]
    );
    assert_eq!(m.failovers, 0);
}

#[test]
fn the_last_port_of_a_segment_takes_its_addresses_along() {
    let mut c = config(&["a", "b"], &[("one", 1, &["10.0.0.10/24"]), ("lab", 1, &["10.1.0.10/24"])]);
    c.segments.push(crate::config::Segment::new("lab", vec!["10.1.0.0/24".parse().unwrap()]));
    c.ports[1] = PortConfig::new("b", "lab");
    let mut m = serving(c.clone());
    c.ports.pop();
    let list = deeds(reload(&mut m, c));
    assert_eq!(
        list,
        [
            Effect::Steer { segment: "lab".into(), ports: vec![], via: None },
            Effect::RemoveAddress(B, ip("10.1.0.10")),
        ]
    );
}

#[test]
fn other_times_and_priorities_count_from_now_on() {
    let (mut m, _) = serving_two();
    let mut c = two();
    c.timing.hold_down = Duration::from_secs(7);
    c.timing.announce_repeat = vec![Duration::from_millis(3)];
    c.servers[1].priority = 9;
    assert_eq!(reload(&mut m, c), [told()]);
    assert_eq!(m.servers[0].name, "low");
    assert!(m.vips.values().all(|v| m.servers[v.server].marked));
    // The first failure is held for as long as the new configuration says.
    m.handle(S, Input::Link(down(A, "a")));
    m.handle(S, Input::Link(link(A, "a")));
    assert_eq!(m.ports[0].held_until(), Some(S + Duration::from_secs(7)));
}

#[test]
fn a_segment_with_another_gateway_is_steered_anew() {
    let (mut m, _) = serving_two();
    let mut c = two();
    c.segments[0].gateway = vec![ip("10.0.0.1")];
    assert_eq!(reload(&mut m, c), [steer(&[A, B]), told()]);
}

/// A port that is held stays so, and addresses that have left it don't come back before their time.
#[test]
fn what_is_known_of_ports_is_kept() {
    let (mut m, _) = serving_two();
    m.handle(S, Input::Link(down(A, "a")));
    m.handle(S, Input::Link(link(A, "a")));
    let before = m.clone();
    let mut c = two();
    c.servers.push(VirtualServer::new("new", vec!["10.0.0.30/24".parse().unwrap()]));
    let list = deeds(reload(&mut m, c));
    assert_eq!(list, [Effect::Take("new".into())]);
    assert_eq!(m.ports, before.ports);
    assert_eq!(m.ports[0].state, PortState::Held);
}

#[test]
fn an_address_that_changes_its_server_stays_configured() {
    let (mut m, port) = serving_two();
    let mut c = two();
    let address = c.servers[0].addresses.pop().unwrap();
    c.servers[1].addresses.push(address);
    assert_eq!(reload(&mut m, c), [permit("10.0.0.11", "low", port("10.0.0.11")), told()]);
}

/// Also where its old one is gone: it is the new one's before the old one's mark goes off.
#[test]
fn an_address_whose_server_is_gone_may_be_another_ones() {
    let (mut m, port) = serving_two();
    let mut c = two();
    let low = c.servers.pop().unwrap();
    c.servers[0].addresses.extend(low.addresses);
    let mark = Effect::Mark { server: "low".into(), incarnation: None };
    assert_eq!(reload(&mut m, c), [permit("10.0.0.12", "high", port("10.0.0.12")), mark, told()]);
}

/// Every pair of configurations: nothing that is the same in both is touched, and none of it is a failover.
#[test]
fn what_is_the_same_is_never_touched() {
    let addresses = ["10.0.0.10/24", "10.0.0.11/24", "10.0.0.12/24"];
    let variant = |bits: usize| {
        let ports: &[&str] = if bits & 1 == 0 { &["a", "b"] } else { &["a", "b", "c"] };
        let one: Vec<&str> =
            addresses.iter().enumerate().filter(|(n, _)| bits & (2 << n) == 0).map(|(_, a)| *a).collect();
        let mut servers = vec![("base", 5, &["10.0.0.40/24"][..])];
        if !one.is_empty() {
            servers.push(("one", 1, &one[..]));
        }
        if bits & 16 != 0 {
            servers.push(("two", 9, &["10.0.0.20/24", "fd00:10::20/64"][..]));
        }
        config(ports, &servers)
    };
    for (old, new) in (0..32).flat_map(|o| (0..32).map(move |n| (o, n))) {
        let (before, after) = (variant(old), variant(new));
        let mut m = serving(before.clone());
        let c = m.clone();
        let list = reload(&mut m, after.clone());
        let stays = |a: &IpAddr| {
            let has = |c: &Config| c.servers.iter().any(|s| s.addresses.iter().any(|n| n.addr() == *a));
            let port = c.vips.get(a).and_then(|v| v.port).map(|p| &c.ports[p].interface);
            has(&before) && has(&after) && port.is_some_and(|p| after.ports.iter().any(|q| q.interface == *p))
        };
        for effect in &list {
            let touched = match effect {
                Effect::Permit { address, .. } | Effect::Forget(address) => stays(address),
                Effect::AddAddress(_, a) | Effect::RemoveAddress(_, a) | Effect::Announce(_, a) => stays(a),
                Effect::Mark { server, .. } | Effect::Take(server) => {
                    [&before, &after].iter().all(|c| c.servers.iter().any(|s| s.name == *server))
                }
                Effect::Attach(_, i) => before.ports.iter().any(|p| p.interface == *i),
                Effect::Event(e) => matches!(e.kind, EventKind::Failover { kind: FailoverKind::Port, .. }),
                _ => false,
            };
            assert!(!touched, "{old} -> {new}: {effect:?} of {list:?}");
        }
    }
}
