//! What the end-to-end tests share: one shape of lab, and the judgement of the wire.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::agent::{Agent, AgentConfig};
use baton_lab::host::wait_until;
use baton_lab::{AnswerKind, Cable, HostSpec, Kind, Lab, Mac, Port, Topology, Watcher, clock};

/// Long enough for everything that happens at all.
pub const LONG: Duration = Duration::from_secs(20);
/// How long a question stays open when all answers are wanted.
pub const WINDOW: Duration = Duration::from_millis(150);
/// The subnets of the one segment.
pub const SUBNETS: [&str; 2] = ["10.0.0.0/24", "fd00:10::/64"];

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// A client and a node `fs1` with `ports` ports in one segment.
pub fn lab(name: &str, ports: usize, cable: Cable) -> Result<Lab> {
    let node = match cable {
        Cable::EventsAtOnce => HostSpec::new("fs1").ports("office", ports),
        Cable::DelayedEvents => HostSpec::new("fs1").delayed_ports("office", ports),
    };
    let client = HostSpec::new("client")
        .ports("office", 1)
        .address("p0", "10.0.0.100/24")
        .address("p0", "fd00:10::100/64");
    let lab = Topology::new(name).segment("office").host(client).host(node).build()?;
    for host in ["client", "fs1"] {
        wait_until("duplicate-address detection to end", LONG, || settled(&lab, host).unwrap_or(false))?;
    }
    Ok(lab)
}

/// No address of the host is tentative. Until then a port doesn't ask for its neighbours' MAC addresses, and what waits
/// for them is lost beyond a hundred packets.
pub fn settled(lab: &Lab, host: &str) -> Result<bool> {
    const TENTATIVE: u32 = 0x40; // IFA_F_TENTATIVE
    let list = lab.host(host)?.enter(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"))??;
    let flags = list.lines().filter_map(|line| line.split_whitespace().nth(4));
    let mut flags = flags.filter_map(|flags| u32::from_str_radix(flags, 16).ok());
    // Every port has at least its link-local address.
    let ports = lab.ports().filter(|port| port.host().name() == host).count();
    let listed = list.lines().filter(|line| !line.ends_with(" lo")).count();
    Ok(listed >= ports && flags.all(|flags| flags & TENTATIVE == 0))
}

/// The node's configuration, without servers; the hold-down is short.
pub fn config(ports: usize) -> AgentConfig {
    let names: Vec<String> = (0..ports).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    AgentConfig::new("fs1")
        .segment("office", &SUBNETS)
        .ports("office", &names)
        .hold_down(Duration::from_millis(50), Duration::from_millis(400))
}

pub fn client(lab: &Lab) -> Result<&Port> {
    Ok(lab.port("client", "p0")?)
}

/// Starts the agent and waits until the wire answers for each of its addresses.
pub fn serve(lab: &Lab, config: &AgentConfig) -> Result<Agent> {
    let agent = Agent::start(lab.host("fs1")?, config)?;
    for address in config.addresses() {
        agent.wait_served(client(lab)?, address, LONG)?;
    }
    Ok(agent)
}

/// Exactly one hardware address answers; returns the node's port that has it.
///
/// A question that nobody answers is asked again: on a busy machine one may come late or be lost, above all at a macvlan,
/// which hands broadcasts on by a kernel thread of ordinary priority.
pub fn holder(lab: &Lab, address: IpAddr) -> Result<&Port> {
    let end = clock::now() + LONG;
    loop {
        let holders = client(lab)?.holders(address, WINDOW)?;
        ensure!(holders.len() <= 1, "{address} is answered for by {holders:?}");
        if let [holder] = holders[..] {
            return port_of(lab, holder);
        }
        ensure!(clock::now() < end, "nobody answers for {address}");
    }
}

pub fn port_of(lab: &Lab, mac: Mac) -> Result<&Port> {
    let mut ports = lab.ports().filter(|p| p.host().name() == "fs1");
    ports.find(|p| p.mac() == mac).with_context(|| format!("{mac} is not a port of fs1"))
}

/// The interface indexes of the node that have the address configured.
pub fn configured_on(lab: &Lab, address: IpAddr) -> Result<Vec<u32>> {
    let addresses = lab.host("fs1")?.netlink().addresses()?;
    Ok(addresses.iter().filter(|(_, net)| net.addr() == address).map(|(index, _)| *index).collect())
}

/// Waits until the address is configured on `port` alone.
pub fn wait_configured_once(lab: &Lab, address: IpAddr, port: &Port) -> Result<()> {
    let mut last = Vec::new();
    let once = || {
        last = configured_on(lab, address).unwrap_or_default();
        last == [port.index()]
    };
    let result = baton_lab::host::wait_until("the address on one interface", LONG, once);
    result.with_context(|| format!("{address} is on {last:?}, wanted {}", port.index()))
}

/// The forms of announcement that an address needs.
pub fn announcement_kinds(address: IpAddr) -> &'static [AnswerKind] {
    match address {
        IpAddr::V4(_) => &[AnswerKind::GratuitousRequest, AnswerKind::GratuitousReply],
        IpAddr::V6(_) => &[AnswerKind::UnsolicitedAdvertisement],
    }
}

/// Since `since` the address was announced in every form by its new port, and from the first of these on nobody else
/// stated in any way where it is.
pub fn announced_by_new_port_only(
    watcher: &Watcher,
    address: IpAddr,
    new: &Port,
    since: Duration,
) -> Result<()> {
    let mut said = watcher.answers(address);
    said.retain(|answer| answer.at >= since);
    for kind in announcement_kinds(address) {
        let by_new = said.iter().any(|a| a.kind == *kind && a.mac == new.mac());
        ensure!(by_new, "{address}: no {kind:?} in {said:?}");
    }
    let first = said.iter().position(|a| a.mac == new.mac()).unwrap_or(said.len());
    for answer in &said[first..] {
        ensure!(
            answer.mac == new.mac() && answer.switch_port == *new.switch_end(),
            "{address}: {answer:?} after the move to {} ({})",
            new.interface(),
            new.mac()
        );
    }
    // RFC 4861, 7.2.6: without the override flag, neighbours keep what they have.
    let overriding = watcher.frames().iter().all(|frame| match frame.kind {
        Kind::Advertisement { target, solicited: false, overrides, .. }
            if IpAddr::from(target) == address =>
        {
            overrides
        }
        _ => true,
    });
    ensure!(overriding, "{address}: an unsolicited advertisement without override");
    Ok(())
}

/// Every address is answered for by exactly one port, and configured on that one alone.
pub fn each_on_one_port(lab: &Lab, addresses: &[IpAddr]) -> Result<Vec<String>> {
    let mut ports = Vec::new();
    for address in addresses {
        let port = holder(lab, *address)?;
        wait_configured_once(lab, *address, port)?;
        ports.push(port.interface().to_owned());
    }
    Ok(ports)
}

/// Waits until the wire shows that the address has left `old`; returns the port that answers.
pub fn wait_moved<'a>(lab: &'a Lab, address: IpAddr, old: &Port) -> Result<&'a Port> {
    let end = clock::now() + LONG;
    let mut last = Vec::new();
    while clock::now() < end {
        last = client(lab)?.holders(address, Duration::from_millis(10))?;
        if let [mac] = last[..]
            && mac != old.mac()
        {
            return port_of(lab, mac);
        }
    }
    anyhow::bail!("{address} stayed on {} ({}): answered by {last:?}", old.interface(), old.mac())
}

/// Waits until the port has this state by the agent's word.
pub fn wait_state(agent: &Agent, interface: &str, state: &str) -> Result<serde_json::Value> {
    let end = clock::now() + LONG;
    loop {
        // One that has just been started may not be listening yet.
        let port = agent.port_status(interface);
        match port {
            Ok(port) if port["state"] == state => return Ok(port),
            other => ensure!(clock::now() < end, "{interface} is not {state}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Text of a finished command's standard error.
pub fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
