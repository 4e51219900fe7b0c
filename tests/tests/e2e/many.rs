//! A thousand addresses on a port that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::packet::PacketSocket;
use baton_lab::{Agent, AgentConfig, HostSpec, Lab, Port, Topology, Watcher, clock, wire};

use crate::common::*;
use crate::restart::wait_started;

const COUNT: u32 = 1000;

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 0)) + n)
}

/// Asks for every address at once and collects who answers, until each is answered for by `port` at least, then for a while longer.
fn all_held_by(lab: &Lab, port: &Port) -> Result<()> {
    let client = client(lab)?;
    let socket = lab.host("client")?.open("a packet socket", || PacketSocket::open(client.index()))?;
    let own = Ipv4Addr::new(10, 0, 255, 100);
    let mut holders = BTreeMap::<_, BTreeSet<_>>::new();
    let end = clock::now() + LONG;
    loop {
        let missing: Vec<Ipv4Addr> = (0..COUNT)
            .map(address)
            .filter(|a| !holders.get(a).is_some_and(|macs: &BTreeSet<_>| macs.contains(&port.mac())))
            .collect();
        if missing.is_empty() {
            break;
        }
        ensure!(
            clock::now() < end,
            "{} are not answered for by {}: {missing:?}",
            missing.len(),
            port.interface()
        );
        for chunk in missing.chunks(50) {
            for address in chunk {
                socket.send(&wire::arp_request(client.mac(), own, *address))?;
            }
            collect(&socket, &mut holders, Duration::from_millis(10))?;
        }
    }
    // Once more, for those who answer beside: afresh, for a move may have been under way.
    holders.clear();
    for n in 0..COUNT {
        socket.send(&wire::arp_request(client.mac(), own, address(n)))?;
        if n % 50 == 49 {
            collect(&socket, &mut holders, Duration::from_millis(10))?;
        }
    }
    collect(&socket, &mut holders, WINDOW)?;
    let others: Vec<_> = holders.iter().filter(|(_, macs)| macs.iter().any(|m| *m != port.mac())).collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}

fn collect(
    socket: &PacketSocket,
    holders: &mut BTreeMap<Ipv4Addr, BTreeSet<wire::Mac>>,
    window: Duration,
) -> Result<()> {
    let offset = clock::RealtimeOffset::sample();
    let end = clock::now() + window;
    while let Some(left) = end.checked_sub(clock::now()) {
        socket.wait(left)?;
        while let Some(received) = socket.receive(offset)? {
            let kind = wire::decode(&received.bytes).map(|(_, _, kind)| kind);
            if let Some(wire::Kind::Arp { reply: true, sender, sender_mac, .. }) = kind
                && !received.outgoing
            {
                holders.entry(sender).or_default().insert(sender_mac);
            }
        }
    }
    Ok(())
}

#[test]
fn a_thousand_addresses_fail_over_together() -> Result<()> {
    let lab = Topology::new("thousand")
        .segment("office")
        .host(HostSpec::new("client").ports("office", 1).address("p0", "10.0.255.100/16"))
        .host(HostSpec::new("fs1").ports("office", 2))
        .build()?;
    let texts: Vec<String> = (0..COUNT).map(|n| format!("{}/16", address(n))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = AgentConfig::new("fs1")
        .segment("office", &["10.0.0.0/16"])
        .port_failback("stay")
        .ports("office", &["p0", "p1"])
        .hold_down(Duration::from_millis(50), Duration::from_millis(400))
        .server("projects", &texts);
    // All on p0, for at first there is no other.
    let (p0, p1) = (lab.port("fs1", "p0")?, lab.port("fs1", "p1")?);
    p1.cut()?;
    let agent = Agent::start(lab.host("fs1")?, &config)?;
    all_held_by(&lab, p0)?;
    p1.restore()?;
    wait_state(&agent, "p1", "good")?;
    wait_until("all on p0", LONG, || agent.port_status("p0").is_ok_and(|p| p["addresses"] == COUNT))?;

    let watcher = Watcher::start([p0, p1])?;
    let cut = p0.cut()?;
    all_held_by(&lab, p1)?;
    let once: BTreeMap<IpAddr, Duration> = report(&watcher, p1, cut);
    let silent: Vec<_> = (0..COUNT).map(address).filter(|a| !once.contains_key(&IpAddr::from(*a))).collect();
    ensure!(silent.is_empty(), "{} were not announced in both forms: {silent:?}", silent.len());
    let mut on = BTreeMap::<IpAddr, Vec<u32>>::new();
    wait_until("each configured once", LONG, || {
        on.clear();
        for (index, net) in lab.host("fs1").and_then(|h| h.netlink().addresses()).unwrap_or_default() {
            on.entry(net.addr()).or_default().push(index);
        }
        (0..COUNT).all(|n| on.get(&address(n).into()).is_some_and(|all| *all == [p1.index()]))
    })?;
    let failed = agent.events()?.into_iter().filter(|e| e["event"] == "effect_failed").count();
    ensure!(failed == 0, "{failed} effects failed");
    ensure!(agent.metric("baton_dropped_inputs_total", &[])? == Some(0.0), "inputs were dropped");

    // An agent that is killed and comes back finds them all.
    let mut agent = agent;
    agent.kill()?;
    agent.start_again()?;
    wait_started(&agent, 2)?;
    all_held_by(&lab, p1)?;
    ensure!(agent.status()?["failovers"] == 0);
    agent.terminate(LONG)?;
    println!("{}", agent.clean()?);
    let left = lab.host("fs1")?.netlink().addresses()?.iter().filter(|(_, net)| net.addr().is_ipv4()).count();
    ensure!(left == 1, "{left} IPv4 addresses are left, not only that of lo");
    Ok(())
}

/// When each address had been announced in both forms by `port`; prints the pace.
fn report(watcher: &Watcher, port: &Port, cut: Duration) -> BTreeMap<IpAddr, Duration> {
    let mut forms = BTreeMap::<Ipv4Addr, BTreeMap<bool, Duration>>::new();
    let mut times = Vec::new();
    for frame in watcher.frames() {
        if let wire::Kind::Arp { reply, sender_mac, sender, target, .. } = frame.kind
            && frame.from_host
            && frame.at >= cut
            && sender == target
            && sender_mac == port.mac()
        {
            times.push(frame.at);
            forms.entry(sender).or_default().entry(reply).or_insert(frame.at);
        }
    }
    let both: BTreeMap<IpAddr, Duration> = forms
        .into_iter()
        .filter(|(_, forms)| forms.len() == 2)
        .filter_map(|(a, forms)| Some((a.into(), *forms.values().max()?)))
        .collect();
    let since = |at: Option<&Duration>| at.map_or(Duration::ZERO, |at| at.saturating_sub(cut));
    // The busiest millisecond.
    let peak = times
        .iter()
        .enumerate()
        .map(|(n, at)| times[n..].iter().take_while(|t| **t < *at + Duration::from_millis(1)).count());
    println!(
        "{} announcements of {} addresses; the first {:?} after the cut, each once in both forms after {:?}, the last seen {:?}; at most {} in a millisecond",
        times.len(),
        both.len(),
        since(times.first()),
        since(both.values().max()),
        since(times.last()),
        peak.max().unwrap_or(0)
    );
    both
}
