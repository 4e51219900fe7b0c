//! Clients behind a router: replies leave by the bound port to the configured next hop, whichever port routing chose.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::{Agent, AgentConfig, Cable, Echo, HostSpec, Lab, Probe, Topology, Watcher, clock};

use crate::common::*;

const SERVED: [&str; 4] = ["10.0.0.10", "10.0.0.11", "fd00:10::10", "fd00:10::11"];

/// fs1 with two ports in the office; a router between the office and a far segment with a client.
fn routed() -> Result<Lab> {
    let router = HostSpec::new("router").ports("office", 1).ports("far", 1);
    let router = router.address("p0", "10.0.0.1/24").address("p0", "fd00:10::1/64");
    let router = router.address("p1", "10.9.0.1/24").address("p1", "fd00:99::1/64");
    let far =
        HostSpec::new("far").ports("far", 1).address("p0", "10.9.0.100/24").address("p0", "fd00:99::100/64");
    let client = HostSpec::new("client")
        .ports("office", 1)
        .address("p0", "10.0.0.100/24")
        .address("p0", "fd00:10::100/64");
    let node = HostSpec::new("fs1").ports("office", 2);
    let lab = Topology::new("routed").segment("office").segment("far");
    let lab = lab.host(router).host(far).host(client).host(node).build()?;
    let router = lab.host("router")?;
    router.set_sysctl("net/ipv4/ip_forward", "1")?;
    router.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let port = lab.port("far", "p0")?.index();
    let netlink = lab.host("far")?.netlink();
    netlink.set_route("10.0.0.0/24".parse()?, port, Some(ip("10.9.0.1")), 254)?;
    netlink.set_route("fd00:10::/64".parse()?, port, Some(ip("fd00:99::1")), 254)?;
    Ok(lab)
}

#[test]
fn replies_reach_clients_behind_the_gateway_by_the_bound_port() -> Result<()> {
    let lab = routed()?;
    let addresses = SERVED.map(|a| if a.contains(':') { format!("{a}/64") } else { format!("{a}/24") });
    let config = AgentConfig::new("fs1")
        .segment("office", &SUBNETS)
        .gateway(&["10.0.0.1", "fd00:10::1"])
        .port_failback("stay")
        .ports("office", &["p0", "p1"])
        .hold_down(Duration::from_millis(50), Duration::from_millis(400))
        .server("projects", &addresses.each_ref().map(String::as_str));
    let agent: Agent = serve(&lab, &config)?;
    let served = SERVED.map(ip);
    let _echoes: Vec<Echo> = served
        .iter()
        .map(|a| Echo::start(lab.host("fs1")?, SocketAddr::new(*a, 7), None))
        .collect::<Result<_, _>>()?;
    let probes: Vec<Probe> = served
        .iter()
        .map(|a| Probe::start(lab.host("far")?, SocketAddr::new(*a, 7), Duration::from_millis(2), None))
        .collect::<Result<_, _>>()?;
    let ports: Vec<_> = lab.ports().filter(|p| p.host().name() == "fs1").collect();
    for probe in &probes {
        probe.wait_for_replies(50, Duration::ZERO, LONG)?;
    }
    leaves_by_its_port(&lab, &served, &ports)?;

    // Twice round, so that every address has been on both ports, each emptied once: an interface that loses its last
    // IPv4 address loses its routes.
    for name in ["p0", "p1", "p0"] {
        let port = lab.port("fs1", name)?;
        let cut = port.cut()?;
        for (address, probe) in served.iter().zip(&probes) {
            probe
                .wait_for_replies(50, clock::now(), LONG)
                .with_context(|| format!("{address} without {name}"))?;
        }
        leaves_by_its_port(&lab, &served, &ports)?;
        port.restore()?;
        ensure!(clock::now() > cut);
        wait_state(&agent, name, "good")?;
    }
    Ok(())
}

/// Every address is answered for by one port, and its replies to the far client leave there and nowhere else.
fn leaves_by_its_port(lab: &Lab, served: &[IpAddr], ports: &[&baton_lab::Port]) -> Result<()> {
    let holders = served.iter().map(|a| holder(lab, *a)).collect::<Result<Vec<_>>>()?;
    let watcher = Watcher::everything(ports.iter().copied())?;
    std::thread::sleep(Duration::from_millis(200));
    for (address, holder) in served.iter().zip(holders) {
        let sent = watcher.sent_from(*address);
        let by: Vec<&str> = sent.keys().map(|k| &**k).collect();
        ensure!(
            by == [&**holder.switch_end()],
            "{address} leaves by {by:?}, is bound to {}",
            holder.switch_end()
        );
    }
    Ok(())
}

/// A question for a client's MAC address that was asked by a dead port must not keep replies waiting when it is back.
#[test]
fn unanswered_questions_of_a_dead_port_are_forgotten_when_it_returns() -> Result<()> {
    let lab = lab("unresolved", 2, Cable::EventsAtOnce)?;
    let agent = serve(&lab, &config(2).server("projects", &["10.0.0.10/24", "fd00:10::10/64"]))?;
    let (host, p0) = (lab.host("fs1")?, lab.port("fs1", "p0")?);
    p0.cut()?;
    wait_state(&agent, "p0", "down")?;
    let unresolved = [("10.0.0.77", "failed"), ("fd00:10::77", "failed")];
    for (address, state) in unresolved {
        let made = host.run("ip", ["neigh", "replace", address, "dev", "p0", "nud", state])?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let left = || -> Result<String> {
        let shown = host.run("ip", ["neigh", "show", "dev", "p0", "nud", "failed"])?;
        Ok(String::from_utf8_lossy(&shown.stdout).into_owned())
    };
    let before = left()?;
    ensure!(unresolved.iter().all(|(a, _)| before.contains(a)), "{before}");
    p0.restore()?;
    wait_state(&agent, "p0", "good")?;
    let after = left()?;
    ensure!(unresolved.iter().all(|(a, _)| !after.contains(a)), "{after}");
    Ok(())
}
