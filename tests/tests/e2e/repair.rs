//! What somebody else does to what Baton made, and what others claim.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Cable, Host, HostSpec, Lab, Watcher, clock, wire};
use ipnet::IpNet;

use crate::common::*;

const BOTH: [&str; 2] = ["10.0.0.10/24", "fd00:10::10/64"];

/// Runs ip(8) in a host.
pub fn iproute(host: &Host, arguments: &str) -> Result<String> {
    let output = host.run("ip", arguments.split_whitespace())?;
    ensure!(output.status.success(), "ip {arguments}: {}", stderr(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_deleted_address_comes_back() -> Result<()> {
    let lab = lab("deleted", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH);
    let agent = serve(&lab, &config)?;
    let watcher = Watcher::start(lab.ports())?;
    for address in config.addresses() {
        let port = holder(&lab, address)?;
        let deleted = port.delete_address(IpNet::from(address))?;
        watcher.wait_for_announcement(address, deleted, LONG)?;
        agent.wait_event("address_deleted", LONG, |e| {
            e["address"] == address.to_string() && e["interface"] == port.interface()
        })?;
        ensure!(holder(&lab, address)?.mac() == port.mac());
        wait_configured_once(&lab, address, port)?;
    }
    // Again and again: it comes back every time.
    let address = config.addresses()[0];
    let port = holder(&lab, address)?;
    for _ in 0..50 {
        wait_configured_once(&lab, address, port)?;
        port.delete_address(IpNet::from(address))?;
    }
    wait_configured_once(&lab, address, port)?;
    ensure!(holder(&lab, address)?.mac() == port.mac());
    ensure!(agent.status()?["failovers"] == 0);
    Ok(())
}

#[test]
fn all_addresses_of_an_interface_flushed() -> Result<()> {
    let lab = lab("flushed", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH).server("homes", &["10.0.0.11/24", "10.0.0.12/24"]);
    let agent = serve(&lab, &config)?;
    for interface in ["p0", "p1"] {
        // It may give up, for addresses come back faster than it looks.
        lab.host("fs1")?.run("ip", ["address", "flush", "dev", interface, "scope", "global"])?;
    }
    for address in config.addresses() {
        agent.wait_served(client(&lab)?, address, LONG)?;
        wait_configured_once(&lab, address, holder(&lab, address)?)?;
    }
    for failed in agent.events()?.iter().filter(|e| e["event"] == "effect_failed") {
        println!("{failed}");
    }
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

/// With its last IPv4 address an interface loses all its routes, and the kernel tells nobody.
#[test]
fn the_only_address_of_the_only_port() -> Result<()> {
    let lab = lab("only", 1, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    let first = config(1).server("projects", &["10.0.0.10/24"]);
    let mut agent = serve(&lab, &first)?;
    let p0 = lab.port("fs1", "p0")?;
    for _ in 0..5 {
        p0.delete_address(IpNet::from(first.addresses()[0]))?;
        agent.wait_served(client(&lab)?, first.addresses()[0], LONG)?;
        // Still there when all that follows is over.
        std::thread::sleep(Duration::from_millis(100));
        wait_configured_once(&lab, first.addresses()[0], p0)?;
        holder(&lab, first.addresses()[0])?;
    }
    // It gets another one by the configuration.
    for n in 20..23 {
        let next = config(1).server("projects", &[&format!("10.0.0.{n}/24")]);
        node.write(baton_lab::agent::CONFIG_FILE, &next.text())?;
        agent.terminate(LONG)?;
        agent.start_again()?;
        agent.wait_served(client(&lab)?, next.addresses()[0], LONG)?;
        crate::restart::wait_started(&agent, n as usize - 18)?;
        holder(&lab, next.addresses()[0])?;
    }
    ensure!(client(&lab)?.holders(first.addresses()[0], WINDOW)?.is_empty());
    Ok(())
}

#[test]
fn deleted_rules_and_routes_come_back() -> Result<()> {
    let lab = lab("steering", 2, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    let config = config(2).server("projects", &BOTH);
    let agent = serve(&lab, &config)?;
    let steering = || -> Result<Vec<String>> {
        let mut all = Vec::new();
        for family in ["-4", "-6"] {
            all.push(iproute(node, &format!("{family} rule show"))?);
            all.push(iproute(node, &format!("{family} route show table 9800"))?);
        }
        Ok(all)
    };
    let whole = steering()?;
    ensure!(whole.iter().all(|text| !text.is_empty()), "{whole:?}");
    let damages = [
        "-4 rule del from 10.0.0.0/24 table 9800",
        "-6 rule del from fd00:10::/64 table 9800",
        "-4 route del 10.0.0.0/24 dev p0 table 9800",
        "-6 route del fd00:10::/64 dev p1 table 9800",
        "-4 route flush table 9800",
        "-6 route flush table 9800",
    ];
    for (n, damage) in damages.iter().enumerate() {
        iproute(node, damage)?;
        let back = wait_until("rules and routes", LONG, || steering().is_ok_and(|now| now == whole));
        ensure!(back.is_ok(), "{damage}: wanted {whole:#?}, got {:#?}", steering()?);
        let events = || {
            agent.events().map_or(0, |all| all.iter().filter(|e| e["event"] == "steering_deleted").count())
        };
        wait_until("an event of each", LONG, || events() > n)?;
    }
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

#[test]
fn another_interface_with_one_of_our_addresses() -> Result<()> {
    let mut lab = lab("conflict", 2, Cable::EventsAtOnce)?;
    lab.add_segment("storage")?;
    let other = lab.add_port("fs1", "other", "storage", Cable::EventsAtOnce)?.clone();
    let config = config(2).server("projects", &BOTH);
    let agent = serve(&lab, &config)?;
    let conflicts = || agent.metric("baton_address_conflicts", &[]).ok().flatten();
    ensure!(conflicts() == Some(0.0), "{:?}", agent.metrics());
    for text in BOTH {
        let theirs: IpNet = text.parse()?;
        let address = theirs.addr();
        let here = holder(&lab, address)?.clone();
        let second = ["p0", "p1"].iter().find(|p| **p != here.interface()).expect("two ports");
        // On an interface that is none of Baton's business, on another port, and on the very port, as an address of its own.
        for on in [&other, lab.port("fs1", second)?] {
            on.add_address(theirs)?;
            let of_this = |e: &serde_json::Value| {
                e["address"] == address.to_string() && e["interface"] == on.interface()
            };
            agent.wait_event("address_conflict", LONG, of_this)?;
            wait_until("the metric", LONG, || conflicts() == Some(1.0))?;
            ensure!(holder(&lab, address)?.mac() == here.mac());
            ensure!(
                lab.host("fs1")?.netlink().addresses()?.contains(&(on.index(), theirs)),
                "theirs was taken"
            );
            on.delete_address(theirs)?;
            agent.wait_event("address_conflict_over", LONG, of_this)?;
            wait_until("the metric", LONG, || conflicts() == Some(0.0))?;
            ensure!(holder(&lab, address)?.mac() == here.mac());
        }
    }
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

/// A failover while somebody else has the address on the port that it goes to.
#[test]
fn an_address_moves_to_where_somebody_else_has_it() -> Result<()> {
    let lab = lab("theirs", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &["10.0.0.10/24"]);
    let agent = serve(&lab, &config)?;
    let address = config.addresses()[0];
    let old = holder(&lab, address)?;
    let new = lab.port("fs1", if old.interface() == "p0" { "p1" } else { "p0" })?;
    let theirs: IpNet = "10.0.0.10/24".parse()?;
    new.add_address(theirs)?;
    agent.wait_event("address_conflict", LONG, |e| e["interface"] == new.interface())?;
    old.cut()?;
    agent.wait_served_by(client(&lab)?, address, new, LONG)?;
    let addresses = lab.host("fs1")?.netlink().addresses()?;
    ensure!(addresses.contains(&(new.index(), theirs)), "{addresses:?}");
    // They take theirs away: ours is still served.
    new.delete_address(theirs)?;
    agent.wait_event("address_conflict_over", LONG, |e| e["interface"] == new.interface())?;
    ensure!(holder(&lab, address)?.mac() == new.mac());
    Ok(())
}

/// `lab` with another host in the segment.
fn with_rogue(name: &str) -> Result<Lab> {
    let mut lab = lab(name, 2, Cable::EventsAtOnce)?;
    let rogue = HostSpec::new("rogue")
        .ports("office", 1)
        .address("p0", "10.0.0.66/24")
        .address("p0", "fd00:10::66/64");
    lab.add_host(&rogue)?;
    Ok(lab)
}

#[test]
fn a_foreign_claim_is_answered_and_told() -> Result<()> {
    let lab = with_rogue("claim")?;
    let config = config(2).server("projects", &BOTH).timing("announce_repeat", "[\"10ms\"]");
    let agent = serve(&lab, &config)?;
    let rogue = lab.port("rogue", "p0")?;
    let watcher = Watcher::start(lab.ports())?;
    for (n, address) in config.addresses().into_iter().enumerate() {
        let port = holder(&lab, address)?.clone();
        let impostor = rogue.impersonate(address)?;
        let frame = match address {
            IpAddr::V4(address) => wire::arp_request(rogue.mac(), address, address),
            IpAddr::V6(address) => {
                let all_nodes = ("ff02::1".parse()?, wire::Mac([0x33, 0x33, 0, 0, 0, 1]));
                wire::neighbour_advertisement(rogue.mac(), address, all_nodes.1, all_nodes.0)
            }
        };
        let claimed = clock::now();
        rogue.send_frame(&frame)?;
        let answer = watcher.wait_for("our announcement after the claim", LONG, |frame| {
            frame.at > claimed
                && frame.from_host
                && frame.port == *port.switch_end()
                && states(&frame.kind, address)
        })?;
        ensure!(answer.source == port.mac());
        agent.wait_event("foreign_claim", LONG, |e| {
            e["address"] == address.to_string() && e["mac"] == rogue.mac().to_string()
        })?;
        let metric = |name: &str| agent.metric(name, &[]).ok().flatten();
        wait_until("the metrics", LONG, || {
            metric("baton_foreign_claims_total") == Some(n as f64 + 1.0)
                && metric("baton_address_conflicts") == Some(n as f64 + 1.0)
        })?;
        // Both answer as long as the impostor is there; ours does not give in.
        let holders = client(&lab)?.holders(address, WINDOW)?;
        ensure!(holders.contains(&port.mac()) && holders.contains(&rogue.mac()), "{holders:?}");
        drop(impostor);
        ensure!(holder(&lab, address)?.mac() == port.mac());
    }
    Ok(())
}

/// An announcement of the address.
fn states(kind: &wire::Kind, address: IpAddr) -> bool {
    match *kind {
        wire::Kind::Arp { sender, target, .. } => IpAddr::from(sender) == address && sender == target,
        wire::Kind::Advertisement { target, solicited, .. } => IpAddr::from(target) == address && !solicited,
        _ => false,
    }
}

/// A flood of claims neither silences the address nor makes the agent answer each.
#[test]
fn a_flood_of_claims() -> Result<()> {
    let lab = with_rogue("flood")?;
    let config = config(2).server("projects", &["10.0.0.10/24"]);
    let agent = serve(&lab, &config)?;
    let address = config.addresses()[0];
    let port = holder(&lab, address)?.clone();
    let (IpAddr::V4(v4), rogue) = (address, lab.port("rogue", "p0")?) else { unreachable!() };
    // Let the repeats of the start go by: they aren't answers to claims.
    std::thread::sleep(Duration::from_millis(1200));
    let watcher = Watcher::start(lab.ports())?;
    let socket = lab
        .host("rogue")?
        .open("a packet socket", || baton_lab::packet::PacketSocket::open(rogue.index()))?;
    let begun = clock::now();
    for n in 0..2000u32 {
        let [_, _, c, d] = n.to_be_bytes();
        let from = wire::Mac([2, 9, 9, 9, c, d]);
        socket.send(&wire::arp_reply(from, v4, wire::Mac::BROADCAST, v4))?;
    }
    agent.wait_event("foreign_claim", LONG, |_| true)?;
    ensure!(holder(&lab, address)?.mac() == port.mac());
    let answers = watcher.announcements(address, begun).iter().filter(|a| a.mac == port.mac()).count();
    println!("2000 claims in {:?}: {answers} announcements", clock::now() - begun);
    ensure!(answers < 200, "{answers} announcements for 2000 claims");
    Ok(())
}

/// Under another name an interface is not a port any more, and keeps nothing of Baton's.
#[test]
fn a_port_is_renamed_and_named_back() -> Result<()> {
    let lab = lab("renamed", 2, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    let config = config(2).server("projects", &BOTH).server("homes", &["10.0.0.11/24"]);
    let agent = serve(&lab, &config)?;
    let (p0, p1) = (lab.port("fs1", "p0")?, lab.port("fs1", "p1")?);
    iproute(node, "link set p0 down")?;
    iproute(node, "link set p0 name other0")?;
    agent.wait_event("interface_absent", LONG, |e| e["interface"] == "p0")?;
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, p1, LONG)?;
        wait_configured_once(&lab, address, p1)?;
    }
    wait_until("no program on it", LONG, || {
        node.state().is_ok_and(|state| !state.lines().any(|line| line == "XDP program on other0"))
    })?;
    iproute(node, "link set other0 name p0")?;
    iproute(node, "link set p0 up")?;
    wait_state(&agent, "p0", "good")?;
    p1.cut()?;
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, p0, LONG)?;
    }
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

/// A port that gets another MAC address announces its addresses with it, and takes its own word for nobody's claim.
#[test]
fn a_port_gets_another_mac_address() -> Result<()> {
    let lab = lab("mac", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH).server("homes", &["10.0.0.11/24"]);
    let agent = serve(&lab, &config)?;
    let watcher = Watcher::start(lab.ports())?;
    let address = config.addresses()[0];
    let port = holder(&lab, address)?;
    let new = wire::Mac([2, 7, 7, 7, 7, 7]);
    let changed = clock::now();
    iproute(lab.host("fs1")?, &format!("link set {} address {new}", port.interface()))?;
    watcher.wait_for("an announcement with the new MAC address", LONG, |frame| {
        frame.at >= changed && frame.from_host && frame.source == new && states(&frame.kind, address)
    })?;
    ensure!(client(&lab)?.holders(address, WINDOW)? == [new]);
    ensure!(agent.status()?["failovers"] == 0);
    ensure!(!agent.events()?.iter().any(|e| e["event"] == "foreign_claim"));
    Ok(())
}
