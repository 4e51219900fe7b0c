//! Where addresses go, when there is a choice, and when ports come back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::tcp::{Server, Transfer};
use baton_lab::{Agent, AgentConfig, Cable, Lab};

use crate::common::*;

/// Six addresses of one server on three ports.
fn six(failback: &str) -> AgentConfig {
    let addresses: Vec<String> = (10..16).map(|n| format!("10.0.0.{n}/24")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    AgentConfig::new("fs1")
        .segment("office", &SUBNETS)
        .port_failback(failback)
        .ports("office", &["p0", "p1", "p2"])
        .hold_down(Duration::from_millis(50), Duration::from_millis(400))
        .server("projects", &addresses)
}

/// Addresses by the port that answers for them on the wire.
fn by_port(lab: &Lab, addresses: &[IpAddr]) -> Result<BTreeMap<String, Vec<IpAddr>>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for (address, port) in addresses.iter().zip(each_on_one_port(lab, addresses)?) {
        all.entry(port).or_default().push(*address);
    }
    Ok(all)
}

fn counts(all: &BTreeMap<String, Vec<IpAddr>>) -> Vec<(&str, usize)> {
    all.iter().map(|(port, addresses)| (port.as_str(), addresses.len())).collect()
}

#[test]
fn heavy_addresses_of_a_failed_port_end_on_different_ports() -> Result<()> {
    let lab = lab("heavy", 3, Cable::EventsAtOnce)?;
    let config = six("stay");
    let agent = serve(&lab, &config)?;
    let before = by_port(&lab, &config.addresses())?;
    ensure!(counts(&before) == [("p0", 2), ("p1", 2), ("p2", 2)], "{before:?}");
    let heavy = before["p0"].clone();
    let mut running = Vec::new();
    for address in &heavy {
        let at = (*address, 7778).into();
        let server = Server::start(lab.host("fs1")?, at)?;
        running.push((Transfer::start(lab.host("client")?, at, Some(2_000_000))?, server));
    }
    wait_until("the traffic to be known", LONG, || {
        heavy.iter().all(|address| rate(&agent, *address).is_some_and(|rate| rate > 20_000))
    })?;
    let p0 = lab.port("fs1", "p0")?;
    p0.cut()?;
    for address in &heavy {
        wait_moved(&lab, *address, p0)?;
    }
    let after = by_port(&lab, &config.addresses())?;
    ensure!(counts(&after) == [("p1", 3), ("p2", 3)], "{after:?}");
    for addresses in after.values() {
        ensure!(addresses.iter().filter(|a| heavy.contains(a)).count() == 1, "{heavy:?} in {after:?}");
    }
    for (transfer, _) in &running {
        transfer.wait_for(100_000, LONG)?;
        ensure!(transfer.result().intact && transfer.result().ended.is_none());
    }
    Ok(())
}

/// Bytes a second of an address, by the agent's word.
fn rate(agent: &Agent, address: IpAddr) -> Option<u64> {
    let status = agent.status().ok()?;
    let servers = status["virtual_servers"].as_array()?;
    let mut addresses = servers.iter().filter_map(|s| s["addresses"].as_array()).flatten();
    addresses.find(|a| a["address"] == address.to_string())?["rate"].as_u64()
}

#[test]
fn a_port_that_returns_takes_its_share() -> Result<()> {
    let lab = lab("share", 3, Cable::EventsAtOnce)?;
    let config = six("spread");
    let agent = serve(&lab, &config)?;
    let p0 = lab.port("fs1", "p0")?;
    let moving = by_port(&lab, &config.addresses())?["p0"].clone();
    p0.cut()?;
    for address in &moving {
        wait_moved(&lab, *address, p0)?;
    }
    ensure!(counts(&by_port(&lab, &config.addresses())?) == [("p1", 3), ("p2", 3)]);
    p0.restore()?;
    agent.wait_event("failover", LONG, |e| e["reason"] == "port_failback")?;
    let shared = || by_port(&lab, &config.addresses());
    wait_until("the share of the port that is back", LONG, || {
        shared().is_ok_and(|all| counts(&all) == [("p0", 2), ("p1", 2), ("p2", 2)])
    })?;
    Ok(())
}

#[test]
fn a_port_that_returns_waits_when_addresses_stay() -> Result<()> {
    let lab = lab("stay", 3, Cable::EventsAtOnce)?;
    let config = six("stay");
    let agent = serve(&lab, &config)?;
    let p0 = lab.port("fs1", "p0")?;
    p0.cut()?;
    for address in &config.addresses() {
        wait_moved(&lab, *address, p0)?;
    }
    p0.restore()?;
    agent.wait_event("port", LONG, |e| e["interface"] == "p0" && e["from"] == "held" && e["to"] == "good")?;
    ensure!(counts(&by_port(&lab, &config.addresses())?) == [("p1", 3), ("p2", 3)]);
    // It is needed again, and there.
    lab.port("fs1", "p1")?.cut()?;
    lab.port("fs1", "p2")?.cut()?;
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, p0, LONG)?;
    }
    Ok(())
}

#[test]
fn hold_down_grows_with_flapping() -> Result<()> {
    const BASE: Duration = Duration::from_secs(60);
    let lab = lab("flapping", 2, Cable::EventsAtOnce)?;
    let config = config(2).hold_down(BASE, BASE * 100).server("projects", &["10.0.0.10/24"]);
    let agent = serve(&lab, &config)?;
    let address = config.addresses()[0];
    let flapping = holder(&lab, address)?;
    let mut other = None;
    for flaps in 1..=4u32 {
        flapping.cut()?;
        wait_state(&agent, flapping.interface(), "down")?;
        other = Some(wait_moved(&lab, address, flapping)?);
        flapping.restore()?;
        let held = wait_state(&agent, flapping.interface(), "held")?;
        ensure!(held["flaps"] == flaps, "{held}");
        let (left, whole) =
            (held["held_ms"].as_u64().unwrap_or(0), BASE.as_millis() as u64 * (1 << (flaps - 1)));
        // The first is 60 s, the others are more than half of what they began with: nothing to do with speed.
        ensure!(left <= whole && left > whole / 2, "{held}, of {whole}");
        ensure!(holder(&lab, address)?.mac() != flapping.mac(), "back before the hold-down is over");
    }
    // A held port is better than none.
    other.expect("another port").cut()?;
    agent.wait_served_by(client(&lab)?, address, flapping, LONG)?;
    wait_configured_once(&lab, address, flapping)
}

#[test]
fn a_held_port_is_used_again_when_its_time_is_over() -> Result<()> {
    let lab = lab("held", 2, Cable::EventsAtOnce)?;
    let config = config(2)
        .hold_down(Duration::from_millis(300), Duration::from_secs(5))
        .server("homes", &["10.0.0.10/24", "10.0.0.11/24"]);
    let agent = serve(&lab, &config)?;
    let addresses = config.addresses();
    let p0 = lab.port("fs1", "p0")?;
    p0.cut()?;
    for address in &addresses {
        wait_moved(&lab, *address, p0)?;
    }
    p0.restore()?;
    agent.wait_event("port", LONG, |e| e["interface"] == "p0" && e["to"] == "held")?;
    agent.wait_event("port", LONG, |e| e["interface"] == "p0" && e["from"] == "held" && e["to"] == "good")?;
    wait_until("one address on each port", LONG, || {
        by_port(&lab, &addresses).is_ok_and(|all| counts(&all) == [("p0", 1), ("p1", 1)])
    })?;
    Ok(())
}
