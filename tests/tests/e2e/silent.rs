//! Ports that keep their carrier and don't send, don't receive, or neither: which ones are found, and what is left alone.

use std::any::Any;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Device, Direction, LabError, Port, clock};
use serde_json::Value;

use crate::common::*;
use crate::ground::{A_WHILE, Ground, TARGETS, config, config_with, lab};
use crate::restart::replays;

type Fault = Box<dyn Any>;

fn keep<T: 'static>(fault: Result<T, LabError>) -> Result<Fault> {
    Ok(Box::new(fault?))
}

/// Some texts of an evidence list.
fn listed(event: &Value, list: &str) -> Vec<String> {
    let texts = event["evidence"][list].as_array();
    texts.into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// A port turns silent by `fail`: its addresses, and no others, go to good ports at once, and stay there when it heals.
fn one_port_turns_silent(
    ground: Ground,
    reason: &str,
    fail: impl FnOnce(&Port) -> Result<Fault>,
) -> Result<()> {
    let ground = ground.with_traffic()?;
    let before = ground.holders()?;
    let bad = ground.port("p0")?.clone();
    let moved = ground.on_port("p0")?;
    ensure!(
        !moved.is_empty() && moved.iter().any(IpAddr::is_ipv4) && moved.iter().any(IpAddr::is_ipv6),
        "{before:?}"
    );
    let mark = ground.mark()?;

    let failed = clock::now();
    let fault = fail(&bad)?;
    for &address in &moved {
        let new = wait_moved(&ground.lab, address, &bad)?;
        wait_configured_once(&ground.lab, address, new)?;
        announced_by_new_port_only(&ground.watcher, address, new, failed)?;
    }
    ground.clients_go_on(clock::now())?;
    ground.carrier_everywhere()?;
    let event = ground.agent.wait_event("port", LONG, |e| e["interface"] == "p0" && e["to"] == "silent")?;
    ensure!(event["from"] == "good", "{event}");
    let verdicts = ground.events_since(mark, &["port"])?;
    ensure!(verdicts.iter().all(|e| e["interface"] == "p0" && e["to"] == "silent"), "{verdicts:#?}");
    ensure!(verdicts.last().is_some_and(|e| e["reason"] == reason), "{verdicts:#?}");
    let silent = listed(&event, "silent");
    ensure!(!silent.is_empty() && silent.iter().all(|path| path.contains("p0")), "{event}");
    ground.wait_finding("ports_silent")?;
    ground.one_failover_since(mark, event["reason"].as_str().unwrap_or_default(), "p0", &moved)?;
    let settled = ground.holders()?;
    for (address, port) in &settled {
        ensure!(moved.contains(address) || before[address] == *port, "{address} moved, too");
    }

    drop(fault);
    wait_state(&ground.agent, "p0", "good")?;
    ground.wait_finding("whole")?;
    ground.stay(&settled)?;
    ground.one_failover_since(mark, event["reason"].as_str().unwrap_or_default(), "p0", &moved)?;
    ground.never_claims(&bad, &moved, clock::now() - A_WHILE)?;
    ensure!(ground.watcher.lost() == 0, "the watcher missed frames");
    replays(&ground.agent)
}

fn three(name: &str, device: Device) -> Result<Ground> {
    Ground::new(name, 3, device, &config(3, false))
}

#[test]
fn a_port_receives_nothing() -> Result<()> {
    let fail = |port: &Port| keep(port.lose(Direction::ToHost));
    one_port_turns_silent(three("receive", Device::Veth)?, "receive_silent", fail)
}

#[test]
fn a_port_sends_nothing() -> Result<()> {
    let fail = |port: &Port| keep(port.lose(Direction::FromHost));
    one_port_turns_silent(three("transmit", Device::Veth)?, "transmit_silent", fail)
}

#[test]
fn a_port_neither_sends_nor_receives() -> Result<()> {
    one_port_turns_silent(three("neither", Device::Veth)?, "silent", |port| keep(port.lose_both()))
}

#[test]
fn a_port_is_no_longer_in_its_segment() -> Result<()> {
    one_port_turns_silent(three("left", Device::Veth)?, "silent", |port| keep(port.leave_bridge()))
}

#[test]
fn a_macvlan_receives_nothing() -> Result<()> {
    let lab = lab("macvlan", 3, Device::Macvlan)?;
    for port in ["p0", "p1", "p2"] {
        lab.host("fs1")?.set_sysctl(&format!("net/ipv4/conf/{port}u/arp_ignore"), "1")?;
    }
    let fail = |port: &Port| keep(port.lose(Direction::ToHost));
    one_port_turns_silent(Ground::on(lab, &config(3, false))?, "receive_silent", fail)
}

/// The interface below a macvlan gets every broadcast, too, and by default Linux answers ARP for any address of the host.
#[test]
fn the_interface_below_a_macvlan_does_not_answer() -> Result<()> {
    let ground = three("below", Device::Macvlan)?;
    ground.holders().map(drop)
}

#[test]
fn a_bridge_receives_nothing() -> Result<()> {
    let fail = |port: &Port| keep(port.lose(Direction::ToHost));
    one_port_turns_silent(three("bridge", Device::Bridge)?, "receive_silent", fail)
}

#[test]
fn one_of_two_ports_receives_nothing_and_a_target_tells() -> Result<()> {
    let ground = Ground::new("twor", 2, Device::Veth, &config(2, true))?;
    one_port_turns_silent(ground, "receive_silent", |port| keep(port.lose(Direction::ToHost)))
}

#[test]
fn one_of_two_ports_sends_nothing_and_a_target_tells() -> Result<()> {
    let ground = Ground::new("twot", 2, Device::Veth, &config(2, true))?;
    one_port_turns_silent(ground, "transmit_silent", |port| keep(port.lose(Direction::FromHost)))
}

#[test]
fn one_of_two_ports_is_dead_and_a_target_tells() -> Result<()> {
    let ground = Ground::new("twob", 2, Device::Veth, &config(2, true))?;
    one_port_turns_silent(ground, "silent", |port| keep(port.lose_both()))
}

/// What clients still send to the other port shows that it receives, so it is this one that doesn't send.
#[test]
fn one_of_two_ports_sends_nothing_and_clients_tell() -> Result<()> {
    let ground = Ground::new("twoc", 2, Device::Veth, &config(2, false))?;
    one_port_turns_silent(ground, "transmit_silent", |port| keep(port.lose(Direction::FromHost)))
}

#[test]
fn two_of_three_ports_are_dead_and_a_target_tells() -> Result<()> {
    let ground = Ground::new("twothree", 3, Device::Veth, &config(3, true))?.with_traffic()?;
    let third = ground.port("p2")?.clone();
    let (p0, p1) = (ground.port("p0")?.clone(), ground.port("p1")?.clone());
    let moved = [ground.on_port("p0")?, ground.on_port("p1")?].concat();
    let failed = clock::now();
    let faults = (p0.lose_both()?, p1.lose_both()?);
    for &address in &ground.addresses {
        ground.agent.wait_served_by(client(&ground.lab)?, address, &third, LONG)?;
        wait_configured_once(&ground.lab, address, &third)?;
    }
    for &address in &moved {
        announced_by_new_port_only(&ground.watcher, address, &third, failed)?;
    }
    ground.clients_go_on(clock::now())?;
    for port in ["p0", "p1"] {
        wait_state(&ground.agent, port, "silent")?;
    }
    ensure!(ground.state("p2")? == "good");
    ground.carrier_everywhere()?;
    drop(faults);
    for port in ["p0", "p1"] {
        wait_state(&ground.agent, port, "good")?;
    }
    ground.wait_finding("whole")?;
    ensure!(ground.holders()?.values().all(|port| port == "p2"), "{:?}", ground.holders()?);
    Ok(())
}

/// `fail` is noticed as this finding, and nothing moves, then and when it heals.
fn nothing_moves(ground: &Ground, finding: &str, fail: impl FnOnce() -> Result<Fault>) -> Result<()> {
    let before = ground.holders()?;
    let mark = ground.mark()?;
    let fault = fail()?;
    ground.wait_finding(finding)?;
    let event = ground.agent.wait_event("segment", LONG, |e| e["to"] == finding)?;
    ensure!(!listed(&event, "silent").is_empty(), "{event}");
    std::thread::sleep(A_WHILE);
    ground.no_verdict_since(mark)?;
    ground.all_good()?;
    ground.carrier_everywhere()?;
    for (&address, port) in &before {
        ensure!(configured_on(&ground.lab, address)? == [ground.port(port)?.index()], "{address} moved");
    }
    drop(fault);
    ground.wait_finding("whole")?;
    ground.stay(&before)?;
    ground.no_verdict_since(mark)
}

#[test]
fn two_of_three_ports_dont_hear_one_another_one_way() -> Result<()> {
    let ground = three("pair", Device::Veth)?.with_traffic()?;
    let (p0, p1) = (ground.port("p0")?, ground.port("p1")?);
    nothing_moves(&ground, "paths_silent", || keep(p1.lose_from(p0)))?;
    ground.clients_go_on(clock::now())
}

#[test]
fn the_whole_segment_is_gone() -> Result<()> {
    for (name, targets) in [("gone", false), ("goneasked", true)] {
        let ground = Ground::new(name, 3, Device::Veth, &config(3, targets))?;
        nothing_moves(&ground, "gone", || keep(ground.lab.switch_off("office")))?;
    }
    Ok(())
}

#[test]
fn a_target_is_gone_and_the_ports_are_fine() -> Result<()> {
    let ground = Ground::new("target", 3, Device::Veth, &config(3, true))?.with_traffic()?;
    let before = ground.holders()?;
    let mark = ground.mark()?;
    let fault = ground.lab.lose_host("gw")?;
    for target in TARGETS {
        ground.agent.wait_event("target_silent", LONG, |e| e["target"] == target)?;
    }
    ground.stay(&before)?;
    ground.all_good()?;
    drop(fault);
    for target in TARGETS {
        ground.agent.wait_event("target_answers", LONG, |e| e["target"] == target)?;
    }
    ground.clients_go_on(clock::now())?;
    ground.no_verdict_since(mark)?;
    ensure!(ground.events_since(mark, &["target_silent"])?.len() == TARGETS.len());
    ground.carrier_everywhere()
}

/// With two ports and nobody else to ask it can't be told whether one does not send or the other does not receive.
/// What clients had at the port that is really dead is lost until somebody looks; the other's goes on.
#[test]
fn one_of_two_ports_is_half_dead_and_nobody_can_tell() -> Result<()> {
    let ground = Ground::new("undecided", 2, Device::Veth, &config(2, false))?;
    let (p0, p1) = (ground.port("p0")?, ground.port("p1")?);
    nothing_moves(&ground, "undecided", || {
        let fault = p1.lose_from(p0);
        std::thread::sleep(A_WHILE);
        ground.stay(&ground.holders()?)?; // all served
        keep(fault)
    })?;
    let (on_p0, on_p1) = (ground.on_port("p0")?, ground.on_port("p1")?);
    nothing_moves(&ground, "undecided", || {
        let fault = p1.lose(Direction::ToHost);
        ground.wait_finding("undecided")?;
        for &address in &on_p0 {
            ensure!(holder(&ground.lab, address)?.interface() == "p0");
        }
        on_p1.iter().try_for_each(|&address| ground.is_lost(address))?;
        keep(fault)
    })
}

/// With one port left there is nothing to watch, and nobody is shown what was true before.
#[test]
fn one_port_is_left() -> Result<()> {
    let ground = Ground::new("left", 2, Device::Veth, &config(2, false))?;
    ground.port("p1")?.cut()?;
    ground.wait_finding("unknown")?;
    let paths = ground.agent.status()?["paths"].clone();
    ensure!(paths.as_array().is_some_and(Vec::is_empty), "{paths}");
    ground.port("p1")?.restore()?;
    ground.wait_finding("whole")
}

/// An agent that comes back while a port is silent leaves it alone, however it ended.
#[test]
fn the_agent_returns_while_a_port_is_silent() -> Result<()> {
    for (name, kill) in [("killed", true), ("restarted", false)] {
        let config = config_with(3, true, "spread");
        let mut ground = Ground::new(name, 3, Device::Veth, &config)?;
        let bad = ground.port("p0")?.clone();
        let moved = ground.on_port("p0")?;
        let fault = bad.lose(Direction::ToHost)?;
        for &address in &moved {
            wait_moved(&ground.lab, address, &bad)?;
        }
        wait_state(&ground.agent, "p0", "silent")?;
        let before = ground.holders()?;
        let since = clock::now();
        match kill {
            true => ground.agent.kill()?,
            false => ground.agent.terminate(LONG)?,
        };
        ground.agent.start_again()?;
        wait_state(&ground.agent, "p0", "silent")?;
        std::thread::sleep(A_WHILE);
        ensure!(ground.holders()? == before, "{name}: {:?} was {before:?}", ground.holders()?);
        ground.never_claims(&bad, &ground.addresses, since)?;
        drop(fault);
        wait_state(&ground.agent, "p0", "good")?;
        wait_until("addresses on it again", LONG, || ground.on_port("p0").is_ok_and(|a| !a.is_empty()))?;
    }
    Ok(())
}

/// An agent that stood still has asked nothing meanwhile. That is no sign of life of a port that is silent.
#[test]
fn a_silent_port_is_not_trusted_because_the_agent_stood_still() -> Result<()> {
    let config = config_with(3, true, "spread");
    let mut ground = Ground::new("still", 3, Device::Veth, &config)?.with_traffic()?;
    let bad = ground.port("p0")?.clone();
    let fault = bad.lose(Direction::ToHost)?;
    wait_state(&ground.agent, "p0", "silent")?;
    // At first, when what was heard before the silence is not old yet.
    let (mark, since) = (ground.mark()?, clock::now());
    for pause in [60, 60, 60, 60, 60, 60, 200, 1000] {
        ground.agent.process().pause()?;
        std::thread::sleep(Duration::from_millis(pause));
        ground.agent.process().resume()?;
        std::thread::sleep(Duration::from_millis(60));
    }
    std::thread::sleep(A_WHILE);
    let revived = ground.events_since(mark, &["port", "failover"])?;
    ensure!(revived.is_empty(), "{revived:#?}");
    ensure!(ground.on_port("p0")?.is_empty());
    ground.never_claims(&bad, &ground.addresses, since)?;
    drop(fault);
    wait_state(&ground.agent, "p0", "good").map(drop)
}

#[test]
fn an_agent_that_stood_still_draws_no_verdict() -> Result<()> {
    let mut ground = Ground::new("stood", 3, Device::Veth, &config(3, true))?.with_traffic()?;
    let before = ground.holders()?;
    let mark = ground.mark()?;
    for _ in 0..3 {
        ground.agent.process().pause()?;
        std::thread::sleep(Duration::from_secs(1));
        ground.agent.process().resume()?;
        ground.stay(&before)?;
    }
    ground.no_verdict_since(mark)?;
    let told = ground.events_since(mark, &["segment", "target_silent"])?;
    ensure!(told.is_empty(), "{told:#?}");
    ground.all_good()?;
    ground.clients_go_on(clock::now())
}
