//! The ground for ports that fail with carrier: a node with addresses of both families under watch, a host to ask, and
//! a client that streams to every address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::agent::{Agent, AgentConfig};
use baton_lab::host::wait_until;
use baton_lab::probe::{Echo, Probe};
use baton_lab::{Device, HostSpec, Lab, Port, Topology, Watcher, clock};
use serde_json::Value;

use crate::common::{self, LONG, SUBNETS, WINDOW, holder, ip, settled};

/// What the node serves.
pub const SERVED: [&str; 6] =
    ["10.0.0.10/24", "fd00:10::10/64", "10.0.0.11/24", "fd00:10::11/64", "10.0.0.12/24", "fd00:10::12/64"];
/// The addresses of the host `gw`.
pub const TARGETS: [&str; 2] = ["10.0.0.1", "fd00:10::1"];
/// Many probe intervals: what is to come has come.
pub const A_WHILE: Duration = Duration::from_millis(700);

/// A standing lab with an agent that serves.
pub struct Ground {
    pub lab: Lab,
    pub agent: Agent,
    pub watcher: Watcher,
    pub addresses: Vec<IpAddr>,
    streams: Vec<(Echo, Probe)>,
}

/// The configuration with `ports` ports, `gw` to ask if `targets`, and addresses that stay where they are.
pub fn config(ports: usize, targets: bool) -> AgentConfig {
    config_with(ports, targets, "stay")
}

/// As [`config`], with another `port_failback`.
pub fn config_with(ports: usize, targets: bool, failback: &str) -> AgentConfig {
    let names: Vec<String> = (0..ports).map(|n| format!("p{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let config = AgentConfig::new("fs1").segment("office", &SUBNETS).port_failback(failback);
    let config = if targets { config.probe_targets(&TARGETS) } else { config };
    config
        .ports("office", &names)
        .hold_down(Duration::from_millis(50), Duration::from_millis(400))
        .server("projects", &SERVED)
}

pub fn lab(name: &str, ports: usize, device: Device) -> Result<Lab> {
    let client = HostSpec::new("client")
        .ports("office", 1)
        .address("p0", "10.0.0.100/24")
        .address("p0", "fd00:10::100/64");
    let gw =
        HostSpec::new("gw").ports("office", 1).address("p0", "10.0.0.1/24").address("p0", "fd00:10::1/64");
    let node = HostSpec::new("fs1").ports_on("office", ports, device);
    let mut lab = Topology::new(name).segment("office").host(client).host(gw).host(node).build()?;
    lab.carry_xdp_tx("fs1")?;
    for host in ["client", "gw", "fs1"] {
        wait_until("duplicate-address detection to end", LONG, || settled(&lab, host).unwrap_or(false))?;
    }
    Ok(lab)
}

impl Ground {
    /// Stands when every address is served and every path is heard (and every target answers).
    pub fn new(name: &str, ports: usize, device: Device, config: &AgentConfig) -> Result<Ground> {
        Ground::on(lab(name, ports, device)?, config)
    }

    pub fn on(lab: Lab, config: &AgentConfig) -> Result<Ground> {
        let watcher = Watcher::claims(lab.ports())?;
        let agent = common::serve(&lab, config)?;
        let addresses = config.addresses();
        let ground = Ground { lab, agent, watcher, addresses, streams: Vec::new() };
        ground.wait_finding("whole")?;
        let targets = config.text().contains("probe_targets");
        wait_until("answers of the targets", LONG, || {
            let status = ground.agent.status().unwrap_or_default();
            let answers = |t: &Value| t["answers"] == true;
            let list = status["targets"].as_array().cloned().unwrap_or_default();
            list.iter().all(answers) && list.is_empty() != targets
        })
        .with_context(|| format!("{}", ground.agent.status().unwrap_or_default()["targets"]))?;
        Ok(ground)
    }

    /// The client streams to every address from now on.
    pub fn with_traffic(mut self) -> Result<Ground> {
        for &address in &self.addresses {
            let echo = Echo::start(self.lab.host("fs1")?, (address, 7777).into(), None)?;
            let interval = Duration::from_millis(5);
            let probe = Probe::start(self.lab.host("client")?, (address, 7777).into(), interval, None)?;
            probe.wait_for_replies(10, Duration::ZERO, LONG)?;
            self.streams.push((echo, probe));
        }
        Ok(self)
    }

    /// Every stream gets replies again, after `since`.
    pub fn clients_go_on(&self, since: Duration) -> Result<()> {
        for ((_, probe), address) in self.streams.iter().zip(&self.addresses) {
            probe.wait_for_replies(20, since, LONG).with_context(|| format!("client of {address}"))?;
        }
        Ok(())
    }

    pub fn port(&self, name: &str) -> Result<&Port> {
        Ok(self.lab.port("fs1", name)?)
    }

    /// Which port answers for each address; exactly one does.
    pub fn holders(&self) -> Result<BTreeMap<IpAddr, String>> {
        let of = |address: &IpAddr| Ok((*address, holder(&self.lab, *address)?.interface().to_owned()));
        self.addresses.iter().map(of).collect()
    }

    /// The addresses that `port` answers for.
    pub fn on_port(&self, port: &str) -> Result<Vec<IpAddr>> {
        let holders = self.holders()?;
        Ok(holders.into_iter().filter(|(_, holder)| holder == port).map(|(address, _)| address).collect())
    }

    /// Every cable has carrier, and the agent says so.
    pub fn carrier_everywhere(&self) -> Result<()> {
        for port in self.lab.ports() {
            let path = format!("/sys/class/net/{}/carrier", port.interface());
            let carrier = port.host().enter(|| std::fs::read_to_string(path))??;
            ensure!(carrier.trim() == "1", "{} lost carrier", port.switch_end());
        }
        let status = self.agent.status()?;
        let ports = status["ports"].as_array().context("ports")?;
        ensure!(ports.iter().all(|port| port["carrier"] == true), "{}", status["ports"]);
        Ok(())
    }

    pub fn state(&self, port: &str) -> Result<String> {
        Ok(self.agent.port_status(port)?["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Every port is good.
    pub fn all_good(&self) -> Result<()> {
        let status = self.agent.status()?;
        let ports = status["ports"].as_array().context("ports")?;
        ensure!(ports.iter().all(|port| port["state"] == "good"), "{}", status["ports"]);
        Ok(())
    }

    /// Waits until the agent says this of the segment.
    pub fn wait_finding(&self, finding: &str) -> Result<()> {
        let end = clock::now() + LONG;
        loop {
            let status = self.agent.status();
            match &status {
                Ok(status) if status["segments"][0]["finding"] == finding => return Ok(()),
                _ => ensure!(clock::now() < end, "finding is not {finding}: {status:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A mark in the list of events.
    pub fn mark(&self) -> Result<usize> {
        Ok(self.agent.events()?.len())
    }

    /// The events of these kinds since a mark.
    pub fn events_since(&self, mark: usize, kinds: &[&str]) -> Result<Vec<Value>> {
        let of_kind = |event: &Value| event["event"].as_str().is_some_and(|kind| kinds.contains(&kind));
        Ok(self.agent.events()?.into_iter().skip(mark).filter(of_kind).collect())
    }

    /// Nothing has been decided since a mark: no port changed, nothing moved.
    pub fn no_verdict_since(&self, mark: usize) -> Result<()> {
        let events = self.events_since(mark, &["port", "failover", "stranded"])?;
        ensure!(events.is_empty(), "{events:#?}");
        Ok(())
    }

    /// There was exactly one failover since a mark, for this reason, of these addresses away from `port`.
    pub fn one_failover_since(&self, mark: usize, reason: &str, port: &str, moved: &[IpAddr]) -> Result<()> {
        let events = self.events_since(mark, &["failover"])?;
        ensure!(events.len() == 1, "{events:#?}");
        ensure!(events[0]["reason"] == reason, "{}", events[0]);
        let moves = events[0]["moves"].as_array().context("moves")?;
        let addresses = moves.iter().filter_map(|m| m["address"].as_str().map(ip));
        let mut addresses: Vec<IpAddr> = addresses.collect();
        addresses.sort();
        ensure!(addresses == moved && moves.iter().all(|m| m["from"] == port), "{}", events[0]);
        Ok(())
    }

    /// From `since` on no host's statement on the wire says that one of `addresses` is at `port`, and nothing is sent from there
    /// by it.
    pub fn never_claims(&self, port: &Port, addresses: &[IpAddr], since: Duration) -> Result<()> {
        for address in addresses {
            let said = self.watcher.answers(*address);
            let late: Vec<_> = said.iter().filter(|a| a.at >= since && a.mac == port.mac()).collect();
            ensure!(late.is_empty(), "{address} at {}: {late:?}", port.interface());
        }
        Ok(())
    }

    /// For a while every address is answered for by the port in `holders`.
    pub fn stay(&self, holders: &BTreeMap<IpAddr, String>) -> Result<()> {
        let end = clock::now() + A_WHILE;
        while clock::now() < end {
            ensure!(&self.holders()? == holders, "{:?} was {holders:?}", self.holders()?);
        }
        Ok(())
    }

    /// Nobody answers the client for `address`.
    pub fn is_lost(&self, address: IpAddr) -> Result<()> {
        let heard = common::client(&self.lab)?.holders(address, WINDOW)?;
        ensure!(heard.is_empty(), "{address} is answered for by {heard:?}");
        Ok(())
    }
}
