//! Days on which not only a cable breaks.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::agent::CONFIG_FILE;
use baton_lab::host::wait_until;
use baton_lab::{Agent, Cable, Process, baton_binary};
use ipnet::IpNet;
use nix::mount::{MsFlags, mount};

use crate::common::*;
use crate::restart::{replays, wait_started};

const BOTH: [&str; 2] = ["10.0.0.10/24", "fd00:10::10/64"];

#[test]
fn an_interface_that_is_absent_is_waited_for() -> Result<()> {
    let mut lab = lab("absent", 1, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH);
    let agent = serve(&lab, &config)?;
    agent.wait_event("interface_absent", LONG, |e| e["interface"] == "p1")?;
    let port = agent.port_status("p1")?;
    ensure!(port["state"] == "down" && port["present"] == false, "{port}");
    let p1 = lab.add_port("fs1", "p1", "office", Cable::EventsAtOnce)?.clone();
    wait_state(&agent, "p1", "good")?; // it never failed: no hold-down
    lab.port("fs1", "p0")?.cut()?;
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, &p1, LONG)?;
    }
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

#[test]
fn all_interfaces_are_absent_at_first() -> Result<()> {
    let mut lab = lab("none", 0, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH);
    let agent = Agent::start(lab.host("fs1")?, &config)?;
    wait_started(&agent, 1)?;
    let p0 = lab.add_port("fs1", "p0", "office", Cable::DelayedEvents)?.clone();
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, &p0, LONG)?;
    }
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

#[test]
fn a_second_agent_refuses() -> Result<()> {
    let lab = lab("second", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH);
    let mut agent = serve(&lab, &config)?;
    let before = lab.host("fs1")?.state()?;
    let second = agent.command(&["run"])?;
    ensure!(second.status.code() == Some(1), "{second:?}");
    // Warnings of the configuration may stand beside it.
    let said = stderr(&second);
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("baton: ")).collect();
    ensure!(lines.len() == 1 && lines[0].contains(&agent.process().pid().to_string()), "{said}");
    ensure!(before.difference(&lab.host("fs1")?.state()?).is_empty());
    agent.status()?;
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

/// Another program sits on a port: Baton says so and who, and goes on with the other port.
#[test]
fn xdp_is_taken_on_a_port() -> Result<()> {
    let lab = lab("taken", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH);
    let p0 = lab.port("fs1", "p0")?;
    let occupant = p0.occupy_xdp()?;
    let agent = serve(&lab, &config)?;
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, lab.port("fs1", "p1")?, LONG)?;
    }
    each_on_one_port(&lab, &config.addresses())?;
    let failed = agent.wait_event("effect_failed", LONG, |_| true)?;
    println!("event: {failed}\nlog: {}", agent.log());
    ensure!(failed["error"].as_str().is_some_and(|e| e.contains("p0")), "{failed}");
    // It is tried again every second, but not told every second.
    std::thread::sleep(Duration::from_secs(3));
    let times = agent.events()?.iter().filter(|e| e["event"] == "effect_failed").count();
    ensure!(times == 1, "told {times} times");
    ensure!(agent.log().contains("p0 already has an XDP program"), "{}", agent.log());
    let attached = agent.port_status("p0")?;
    ensure!(attached["state"] == "down" && attached["carrier"] == true, "{attached}");
    // The other program goes: the port is used.
    drop(occupant);
    wait_state(&agent, "p0", "good")?;
    lab.port("fs1", "p1")?.cut()?;
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, p0, LONG)?;
    }
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

#[test]
fn without_privileges_one_clear_line() -> Result<()> {
    let lab = lab("privileges", 2, Cable::EventsAtOnce)?;
    let config = config(2).server("projects", &BOTH);
    let node = lab.host("fs1")?;
    node.write(CONFIG_FILE, &config.text())?;
    let before = node.state()?;
    for lost in ["-all", "-net_admin", "-net_raw", "-bpf,-sys_admin"] {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", lost, "--inh-caps", lost]);
        command.arg(baton_binary()?).args(["--config", CONFIG_FILE, "run"]);
        let mut process = Process::spawn(node.namespaces(), command)?;
        let status = process.wait(LONG)?;
        let said = process.stderr();
        println!("{lost}: {status}: {said}");
        ensure!(status.code() == Some(1), "{lost}: {status}: {said}");
        let difference = before.difference(&node.state()?);
        ensure!(difference.is_empty(), "{lost}: {difference:#?}");
        // Warnings may come before it.
        let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("baton: ")).collect();
        ensure!(lines.len() == 1, "{lost}: {said}");
        ensure!(lines[0].contains("CAP_") || lines[0].contains("root"), "{lost}: {said}");
    }
    Ok(())
}

/// The disk under the state folder is full: failover works all the same, and so does a restart.
#[test]
fn the_disk_is_full() -> Result<()> {
    let lab = lab("full", 2, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    node.enter(|| {
        std::fs::create_dir_all("/var/lib/baton")?;
        mount(Some("tmpfs"), "/var/lib/baton", Some("tmpfs"), MsFlags::empty(), Some("size=8m"))
            .map_err(std::io::Error::from)
    })??;
    let config = config(2).server("projects", &BOTH);
    let mut agent = serve(&lab, &config)?;
    // Until there is no room for a byte.
    let filled = node.enter(|| {
        use std::io::Write;
        let mut file = std::fs::File::create("/var/lib/baton/filler")?;
        let mut size = 1 << 20;
        while size > 0 {
            match file.write_all(&vec![0; size]) {
                Ok(()) => {}
                Err(_) => size /= 2,
            }
        }
        file.metadata().map(|m| m.len())
    })??;
    println!("filled with {filled} bytes");
    let p0 = lab.port("fs1", "p0")?;
    p0.cut()?;
    for address in config.addresses() {
        wait_moved(&lab, address, p0)?;
    }
    each_on_one_port(&lab, &config.addresses())?;
    println!("log: {}", agent.log());
    agent.status()?;
    p0.restore()?;
    wait_state(&agent, "p0", "good")?;
    agent.kill()?;
    agent.start_again()?;
    let p1 = lab.port("fs1", "p1")?;
    p1.cut()?;
    for address in config.addresses() {
        agent.wait_served_by(client(&lab)?, address, p0, LONG)?;
    }
    println!("log: {}", agent.log());
    each_on_one_port(&lab, &config.addresses()).map(drop)
}

/// More changes than the kernel keeps for a reader that stands still: it reads everything again, and all is right.
#[test]
fn notifications_are_lost() -> Result<()> {
    let mut lab = lab("lost", 3, Cable::EventsAtOnce)?;
    lab.add_segment("other")?;
    let other = lab.add_port("fs1", "other", "other", Cable::EventsAtOnce)?.clone();
    let config =
        config(3).server("projects", &["10.0.0.10/24", "fd00:10::10/64", "10.0.0.11/24", "10.0.0.12/24"]);
    let mut agent = serve(&lab, &config)?;
    let addresses = config.addresses();
    let port = holder(&lab, addresses[2])?.clone();
    agent.process().pause()?;
    let theirs: IpNet = "192.168.77.1/24".parse()?;
    for _ in 0..20_000 {
        other.add_address(theirs)?;
        other.delete_address(theirs)?;
    }
    // These are lost among them: a port fails, an address is deleted, somebody takes one of ours, rules go.
    lab.port("fs1", "p0")?.cut()?;
    if port.interface() != "p0" {
        port.delete_address(IpNet::from(addresses[2]))?;
    }
    other.add_address("10.0.0.12/24".parse()?)?;
    let node = lab.host("fs1")?;
    for line in ["rule del from 10.0.0.0/24 table 9800", "route flush table 9800"] {
        crate::repair::iproute(node, line)?;
    }
    agent.process().resume()?;
    agent.wait_event("resynced", LONG, |_| true)?;
    agent.wait_event("address_conflict", LONG, |e| e["interface"] == "other")?;
    for address in &addresses {
        wait_moved(&lab, *address, lab.port("fs1", "p0")?)?;
        holder(&lab, *address)?;
    }
    other.delete_address("10.0.0.12/24".parse()?)?;
    agent.wait_event("address_conflict_over", LONG, |e| e["interface"] == "other")?;
    each_on_one_port(&lab, &addresses)?;
    let rules = || {
        crate::repair::iproute(node, "rule show").is_ok_and(|t| t.contains("from 10.0.0.0/24 lookup 9800"))
    };
    wait_until("the rule", LONG, rules)?;
    let routes =
        || crate::repair::iproute(node, "route show table 9800").is_ok_and(|t| t.contains("10.0.0.0/24"));
    wait_until("the routes", LONG, routes)?;
    replays(&agent)
}

/// Somebody else has the port of `/metrics`, and the socket's folder can't be made: what matters goes on.
#[test]
fn nobody_can_be_told_and_files_are_served() -> Result<()> {
    let lab = lab("mute", 2, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    let _taken =
        node.open("take the agent's port", || std::net::TcpListener::bind(baton_lab::agent::TELEMETRY))?;
    node.write("/run/baton", "a file, not a folder")?;
    let config = config(2).server("projects", &BOTH);
    let agent = serve(&lab, &config)?;
    let p0 = lab.port("fs1", "p0")?;
    p0.cut()?;
    for address in config.addresses() {
        wait_moved(&lab, address, p0)?;
    }
    println!("{}", agent.log());
    ensure!(agent.log().contains("9477"), "{}", agent.log());
    ensure!(agent.log().contains("/run/baton"), "{}", agent.log());
    each_on_one_port(&lab, &config.addresses()).map(drop)
}
