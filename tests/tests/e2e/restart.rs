//! The agent ends, in every way, and comes back; the kernel goes on serving meanwhile.
//!
//! A restarted agent loads its kernel programs anew and swaps them into the links that are there, so every restart here
//! is an upgrade of the programs as well.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::probe::{Echo, Probe};
use baton_lab::{Agent, Cable, Lab, clock};

use crate::common::*;

/// Sum of received and sent packets of an address by `/metrics`.
fn packets(agent: &Agent, address: IpAddr) -> Option<(u64, u64)> {
    let text = agent.metrics().ok()?;
    let address = address.to_string();
    let of = |direction| {
        let labels = [("address", address.as_str()), ("direction", direction)];
        baton_lab::agent::metric(&text, "baton_vip_packets_total", &labels).map(|n| n as u64)
    };
    Some((of("rx")?, of("tx")?))
}

/// Waits until the agent has started for the `n`th time and answers.
pub fn wait_started(agent: &Agent, n: usize) -> Result<()> {
    let started =
        |events: Vec<serde_json::Value>| events.iter().filter(|e| e["event"] == "started").count() >= n;
    wait_until("the start of the next agent", LONG, || {
        agent.status().is_ok() && agent.events().is_ok_and(started)
    })?;
    Ok(())
}

/// Restarts the agent `times` times with `end` while datagrams go to each address at a millisecond's pace: none is lost,
/// all are counted, both ways.
fn restarts_without_loss(
    name: &str,
    times: usize,
    mut end: impl FnMut(&mut Agent) -> Result<()>,
) -> Result<()> {
    let lab = lab(name, 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &["10.0.0.10/24", "fd00:10::10/64"]);
    let mut agent = serve(&lab, &config)?;
    let addresses = config.addresses();
    let before = each_on_one_port(&lab, &addresses)?;
    let mut streams = Vec::new();
    for address in &addresses {
        let target = (*address, 7777).into();
        let echo = Echo::start(lab.host("fs1")?, target, None)?;
        let probe = Probe::start(lab.host("client")?, target, Duration::from_millis(1), None)?;
        probe.wait_for_replies(20, Duration::ZERO, LONG)?;
        streams.push((*address, echo, probe));
    }
    let mut last = vec![(0, 0); addresses.len()];
    for n in 1..=times {
        end(&mut agent)?;
        let ended = clock::now();
        for (_, _, probe) in &streams {
            probe.wait_for_replies(20, ended, LONG)?; // the kernel serves alone
        }
        agent.start_again()?;
        wait_started(&agent, n + 1)?;
        let started = clock::now();
        for ((address, _, probe), last) in streams.iter().zip(&mut last) {
            probe.wait_for_replies(20, started, LONG)?;
            let mut now = None;
            wait_until("counters", LONG, || {
                now = packets(&agent, *address);
                now.is_some()
            })?;
            let now = now.expect("counters");
            ensure!(now.0 >= last.0 && now.1 >= last.1, "{address}: {last:?}, then {now:?}");
            *last = now;
        }
    }
    for (address, echo, probe) in streams {
        let result = probe.drain(LONG);
        let sent = result.sent.len() as u64;
        ensure!(result.lost() == 0, "{address}: {} of {sent} lost", result.lost());
        let all = |counted: (u64, u64)| counted == (sent, sent);
        wait_until("every packet counted", LONG, || packets(&agent, address).is_some_and(all)).map_err(
            |e| {
                anyhow::anyhow!(
                    "{e}: sent {sent}, echoed {}, counted {:?}",
                    echo.echoed(),
                    packets(&agent, address)
                )
            },
        )?;
        ensure!(echo.echoed() == sent, "{address}: {} of {sent} echoed", echo.echoed());
    }
    ensure!(each_on_one_port(&lab, &addresses)? == before, "a restart moved an address");
    ensure!(agent.status()?["failovers"] == 0);
    Ok(())
}

#[test]
fn clean_restart_loses_nothing() -> Result<()> {
    restarts_without_loss("restart", 3, |agent| {
        let status = agent.terminate(LONG)?;
        ensure!(status.success(), "{status}: {}", agent.log());
        Ok(())
    })
}

#[test]
fn killed_and_restarted_loses_nothing() -> Result<()> {
    restarts_without_loss("kill", 3, |agent| {
        agent.kill()?;
        Ok(())
    })
}

/// Everything on the wire and in the node is as it should be, whatever happened before.
fn converges(lab: &Lab, agent: &Agent, addresses: &[IpAddr], cut: &str) -> Result<()> {
    let gone = lab.port("fs1", cut)?;
    for address in addresses {
        agent.wait_served(client(lab)?, *address, LONG)?;
    }
    for address in addresses {
        let port = wait_moved(lab, *address, gone)?;
        wait_configured_once(lab, *address, port)?;
    }
    let ports = each_on_one_port(lab, addresses)?;
    ensure!(!ports.iter().any(|port| port == cut), "{ports:?} after {cut} was cut");
    Ok(())
}

#[test]
fn a_port_fails_while_no_agent_runs() -> Result<()> {
    let lab = lab("absent-agent", 3, Cable::EventsAtOnce)?;
    let config = config(3).server("projects", &["10.0.0.10/24", "fd00:10::10/64", "10.0.0.11/24"]);
    let mut agent = serve(&lab, &config)?;
    agent.kill()?;
    lab.port("fs1", "p0")?.cut()?;
    agent.start_again()?;
    converges(&lab, &agent, &config.addresses(), "p0")?;
    agent.kill()?;
    lab.port("fs1", "p1")?.delete()?;
    agent.start_again()?;
    converges(&lab, &agent, &config.addresses(), "p0")?;
    ensure!(each_on_one_port(&lab, &config.addresses())? == ["p2"; 3]);
    agent.kill()?;
    lab.port("fs1", "p2")?.admin_down()?;
    lab.port("fs1", "p0")?.restore()?;
    agent.start_again()?;
    converges(&lab, &agent, &config.addresses(), "p2")
}

/// Killed at any point of a failover, within 2 ms of its cause; the delay is printed, to be tried again.
#[test]
fn killed_in_the_middle_of_a_failover() -> Result<()> {
    const ROUNDS: usize = 30;
    let lab = lab("middle", 3, Cable::EventsAtOnce)?;
    let config = config(3)
        .server("projects", &["10.0.0.10/24", "fd00:10::10/64"])
        .server("homes", &["10.0.0.11/24", "fd00:10::11/64", "10.0.0.12/24", "10.0.0.13/24"]);
    let addresses = config.addresses();
    let mut agent = serve(&lab, &config)?;
    let steering = || -> Result<Vec<String>> {
        let state = lab.host("fs1")?.state()?;
        Ok(state
            .lines()
            .filter(|l| l.starts_with("rule") || l.starts_with("pin"))
            .map(str::to_owned)
            .collect())
    };
    let before = steering()?;
    let names = ["p0", "p1", "p2"];
    for round in 0..ROUNDS {
        let name = names[round % 3];
        let port = lab.port("fs1", name)?;
        let delay = Duration::from_nanos(u64::from(clock::now().subsec_nanos()) * 2_654_435_761 % 2_000_000);
        let cut = port.cut()?;
        clock::sleep_until(cut + delay);
        agent.kill()?;
        println!("round {round}: {name} cut, killed after {delay:?}");
        agent.start_again()?;
        converges(&lab, &agent, &addresses, name)?;
        let after = steering()?;
        ensure!(after == before, "round {round}, {delay:?}: {before:#?} became {after:#?}");
        port.restore()?;
        wait_state(&agent, name, "good")?;
    }
    replays(&agent)
}

/// What was recorded gives the same effects again.
pub fn replays(agent: &Agent) -> Result<()> {
    // The record is written by a thread of its own, a moment later.
    let mut output = agent.command(&["replay", "/var/lib/baton/inputs.jsonl"])?;
    for _ in 0..50 {
        if output.status.success() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
        output = agent.command(&["replay", "/var/lib/baton/inputs.jsonl"])?;
    }
    anyhow::bail!("{}: {}", output.status, stderr(&output))
}

#[test]
fn stopped_while_a_port_fails() -> Result<()> {
    let lab = lab("stopped", 3, Cable::EventsAtOnce)?;
    let config = config(3).server("projects", &["10.0.0.10/24", "fd00:10::10/64", "10.0.0.11/24"]);
    let addresses = config.addresses();
    let mut agent = serve(&lab, &config)?;
    for (round, name) in ["p0", "p1", "p2", "p0"].into_iter().enumerate() {
        let port = lab.port("fs1", name)?;
        agent.process().pause()?;
        port.cut()?;
        std::thread::sleep(Duration::from_millis(50 * round as u64));
        agent.process().resume()?;
        converges(&lab, &agent, &addresses, name)?;
        // Back before the agent looks: nothing may be lost for good.
        agent.process().pause()?;
        port.restore()?;
        port.cut()?;
        port.restore()?;
        agent.process().resume()?;
        wait_state(&agent, name, "good")?;
        each_on_one_port(&lab, &addresses)?;
    }
    replays(&agent)
}

/// A new configuration takes what it no longer holds away, and serves what is new.
#[test]
fn restarted_with_another_configuration() -> Result<()> {
    let lab = lab("reconfigured", 3, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    let first = config(3).server("projects", &["10.0.0.10/24", "fd00:10::10/64", "10.0.0.11/24"]);
    let mut agent = serve(&lab, &first)?;
    agent.terminate(LONG)?;
    let without = node.state()?;
    let second =
        config(2).server("projects", &["10.0.0.10/24"]).server("new", &["10.0.0.20/24", "10.0.0.21/24"]);
    node.write(baton_lab::agent::CONFIG_FILE, &second.text())?;
    // Unplugged, as a port that is no longer used: the kernel would answer there for any address of the node.
    lab.port("fs1", "p2")?.cut()?;
    agent.start_again()?;
    for address in second.addresses() {
        agent.wait_served(client(&lab)?, address, LONG)?;
    }
    let ports = each_on_one_port(&lab, &second.addresses())?;
    ensure!(!ports.iter().any(|p| p == "p2"), "{ports:?}");
    for old in ["fd00:10::10", "10.0.0.11"] {
        ensure!(client(&lab)?.holders(ip(old), WINDOW)?.is_empty(), "{old} still answers");
        ensure!(configured_on(&lab, ip(old))?.is_empty(), "{old} is still there");
    }
    let state = node.state()?;
    ensure!(!state.lines().any(|l| l == "XDP program on p2"), "the former port keeps its program");
    ensure!(node.sysctl("net/ipv4/conf/p2/arp_ignore")? == "0", "the former port keeps its settings");
    ensure!(without != state);
    Ok(())
}
