//! An address leaves a port that fails, in every way that a port fails, and its clients go on.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::clock;
use baton_lab::probe::{Echo, Probe};
use baton_lab::tcp::{Server, Transfer};
use baton_lab::{Agent, Cable, Kind, Lab, LabError, Port, Watcher};

use crate::common::*;

/// A lab after a failover.
struct Moved {
    lab: Lab,
    agent: Agent,
    address: IpAddr,
    old: Port,
}

/// Breaks the port that an address is on with `fail` (which returns when), while a transfer and a probe stream run to
/// it; the wire must show one clean move, and the clients go on.
fn address_moves(
    name: &str,
    cable: Cable,
    address: &str,
    fail: impl FnOnce(&Port) -> Result<Duration, LabError>,
) -> Result<Moved> {
    let lab = lab(name, 3, cable)?;
    let node = lab.host("fs1")?;
    let prefix = if address.contains(':') { 64 } else { 24 };
    let agent = serve(&lab, &config(3).server("projects", &[&format!("{address}/{prefix}")]))?;
    let address: IpAddr = ip(address);
    let old = holder(&lab, address)?.clone();
    let _echo = Echo::start(node, (address, 7777).into(), None)?;
    let server = Server::start(node, (address, 7778).into())?;
    let probe = Probe::start(lab.host("client")?, (address, 7777).into(), Duration::from_millis(1), None)?;
    let transfer = Transfer::start(lab.host("client")?, (address, 7778).into(), Some(10_000_000))?;
    probe.wait_for_replies(50, Duration::ZERO, LONG)?;
    transfer.wait_for(1_000_000, LONG)?;
    let watcher = Watcher::start(lab.ports())?;

    let failed = fail(&old)?;
    watcher.wait_for_announcement(address, failed, LONG)?;
    let announced = clock::now();
    probe.wait_for_replies(50, announced, LONG)?;
    transfer.wait_for(1_000_000, LONG)?;

    let new = holder(&lab, address)?.clone();
    ensure!(new.mac() != old.mac(), "still on {}", old.interface());
    wait_configured_once(&lab, address, &new)?;
    announced_by_new_port_only(&watcher, address, &new, failed)?;
    let seen = transfer.stop();
    ensure!(seen.intact && seen.ended.is_none(), "{seen:?}");
    let trouble = watcher.tcp_trouble(address);
    ensure!(trouble.resets == 0, "{trouble:?}");
    // Replies leave by the new port, and by no third one.
    let ways = watcher.sent_from(address);
    ensure!(ways.contains_key(new.switch_end()), "{ways:?}");
    ensure!(ways.keys().all(|way| way == new.switch_end() || way == old.switch_end()), "{ways:?}");
    let result = probe.stop();
    let gap = result.longest_gap(failed, clock::now()).map(|gap| gap.length());
    println!(
        "{name}: {} of {} lost, longest gap {gap:?}, {trouble:?}, retransmitted {:?}",
        result.lost(),
        result.sent.len(),
        server.retransmissions()
    );
    ensure!(watcher.lost() == 0, "the watcher missed frames");
    Ok(Moved { lab, agent, address, old })
}

#[test]
fn carrier_lost_event_at_once() -> Result<()> {
    address_moves("carrier4", Cable::EventsAtOnce, "10.0.0.10", Port::cut).map(drop)
}

#[test]
fn carrier_lost_event_delayed_by_linkwatch() -> Result<()> {
    address_moves("linkwatch4", Cable::DelayedEvents, "10.0.0.10", Port::cut).map(drop)
}

#[test]
fn carrier_lost_ipv6_event_at_once() -> Result<()> {
    address_moves("carrier6", Cable::EventsAtOnce, "fd00:10::10", Port::cut).map(drop)
}

#[test]
fn carrier_lost_ipv6_event_delayed_by_linkwatch() -> Result<()> {
    address_moves("linkwatch6", Cable::DelayedEvents, "fd00:10::10", Port::cut).map(drop)
}

#[test]
fn administratively_down() -> Result<()> {
    address_moves("admin4", Cable::EventsAtOnce, "10.0.0.10", Port::admin_down).map(drop)
}

/// The kernel takes the IPv6 addresses away by itself when an interface goes down.
#[test]
fn administratively_down_ipv6() -> Result<()> {
    let Moved { lab, agent, address, old } =
        address_moves("admin6", Cable::DelayedEvents, "fd00:10::10", Port::admin_down)?;
    let deleted = agent.events()?.into_iter().filter(|e| e["event"] == "address_deleted").count();
    ensure!(deleted == 0, "taken for a deletion by somebody");
    old.admin_up()?;
    wait_state(&agent, old.interface(), "good")?;
    each_on_one_port(&lab, &[address])?;
    Ok(())
}

#[test]
fn cable_pulled_out_with_its_far_end() -> Result<()> {
    let pull = |port: &Port| port.switches().netlink().delete_link(port.switch_index());
    address_moves("peer4", Cable::EventsAtOnce, "10.0.0.10", pull).map(drop)
}

/// A deleted interface that comes back is held, then used again, with the programs on it.
#[test]
fn interface_deleted_and_made_again() -> Result<()> {
    for (name, address) in [("delete4", "10.0.0.10"), ("delete6", "fd00:10::10")] {
        let Moved { mut lab, agent, address, old } =
            address_moves(name, Cable::EventsAtOnce, address, Port::delete)?;
        let of_old = |event: &serde_json::Value| event["interface"] == old.interface();
        agent.wait_event("interface_absent", LONG, of_old)?;
        let again = lab.add_port("fs1", old.interface(), "office", Cable::EventsAtOnce)?.clone();
        agent.wait_event("port", LONG, |e| of_old(e) && e["to"] == "held")?;
        agent.wait_event("port", LONG, |e| of_old(e) && e["from"] == "held" && e["to"] == "good")?;
        // The others fail: now it must serve.
        for port in ["p0", "p1", "p2"].into_iter().filter(|p| *p != old.interface()) {
            lab.port("fs1", port)?.cut()?;
        }
        agent.wait_served_by(client(&lab)?, address, &again, LONG)?;
        ensure!(each_on_one_port(&lab, &[address])? == [old.interface()]);
        let program = format!("XDP program on {}", old.interface());
        let state = lab.host("fs1")?.state()?;
        ensure!(state.lines().any(|line| line == program), "{name}: no {program}");
        ensure!(agent.events()?.iter().filter(|e| e["event"] == "attached" && of_old(e)).count() == 2);
    }
    Ok(())
}

#[test]
fn four_addresses_of_two_servers() -> Result<()> {
    let lab = lab("four", 3, Cable::EventsAtOnce)?;
    let config = config(3)
        .server("projects", &["10.0.0.10/24", "fd00:10::10/64"])
        .server("homes", &["10.0.0.11/24", "fd00:10::11/64"]);
    let addresses = config.addresses();
    let watcher = Watcher::start(lab.ports())?;
    let agent = serve(&lab, &config)?;
    each_on_one_port(&lab, &addresses)?;
    ensure!(no_duplicate_address_detection(&watcher, &addresses));
    ensure!(tentative(&lab)?.is_empty());
    // One port after the other fails; all four answer as long as one is left, each on one port.
    for name in ["p1", "p0"] {
        let port = lab.port("fs1", name)?;
        let bound: Vec<IpAddr> = addresses
            .iter()
            .copied()
            .filter(|a| holder(&lab, *a).is_ok_and(|h| h.mac() == port.mac()))
            .collect();
        let failed = port.cut()?;
        for address in &bound {
            let new = wait_moved(&lab, *address, port)?;
            wait_configured_once(&lab, *address, new)?;
            announced_by_new_port_only(&watcher, *address, new, failed)?;
        }
        let ports = each_on_one_port(&lab, &addresses)?;
        ensure!(!ports.iter().any(|p| p == name), "{ports:?}");
        ensure!(tentative(&lab)?.is_empty());
    }
    ensure!(each_on_one_port(&lab, &addresses)? == ["p2"; 4]);
    ensure!(no_duplicate_address_detection(&watcher, &addresses));
    // What the agent says agrees with the wire.
    let status = agent.status()?;
    for server in status["virtual_servers"].as_array().into_iter().flatten() {
        ensure!(server["state"] == "serving" && server["owner"] == "fs1", "{server}");
        let ports: Vec<_> =
            server["addresses"].as_array().into_iter().flatten().map(|a| &a["port"]).collect();
        ensure!(ports == ["p2", "p2"], "{server}");
    }
    Ok(())
}

/// Nobody asked for one of the addresses from `::` (RFC 4862, 5.4.2).
fn no_duplicate_address_detection(watcher: &Watcher, addresses: &[IpAddr]) -> bool {
    !watcher.frames().iter().any(|frame| match frame.kind {
        Kind::Solicitation { source, target } => {
            source.is_unspecified() && addresses.contains(&IpAddr::from(target))
        }
        _ => false,
    })
}

/// Addresses of the node, but link-local ones, that the kernel does not use yet.
fn tentative(lab: &Lab) -> Result<Vec<String>> {
    let output = lab.host("fs1")?.run("ip", ["-6", "address", "show", "scope", "global", "tentative"])?;
    ensure!(output.status.success(), "{}", stderr(&output));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn all_ports_of_a_segment_down_and_one_returns() -> Result<()> {
    let lab = lab("stranded", 2, Cable::EventsAtOnce)?;
    let config = config(2)
        .hold_down(Duration::from_secs(600), Duration::from_secs(600))
        .server("projects", &["10.0.0.10/24", "fd00:10::10/64"]);
    let addresses = config.addresses();
    let agent = serve(&lab, &config)?;
    lab.port("fs1", "p0")?.cut()?;
    for address in &addresses {
        wait_moved(&lab, *address, lab.port("fs1", "p0")?)?;
    }
    lab.port("fs1", "p1")?.cut()?;
    agent.wait_event("stranded", LONG, |e| e["segment"] == "office")?;
    for address in &addresses {
        ensure!(client(&lab)?.holders(*address, WINDOW)?.is_empty());
        wait_configured_once(&lab, *address, lab.port("fs1", "p1")?)?; // nothing moves
    }
    // The first that returns serves at once, hold-down or not.
    let back = lab.port("fs1", "p0")?;
    back.restore()?;
    for address in &addresses {
        agent.wait_served_by(client(&lab)?, *address, back, LONG)?;
    }
    ensure!(each_on_one_port(&lab, &addresses)? == ["p0", "p0"]);
    ensure!(agent.port_status("p0")?["state"] == "held");
    Ok(())
}
