//! What is left in a node when Baton goes, and what of the administrator's was touched: nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::agent::CONFIG_FILE;
use baton_lab::{Agent, Cable, Lab, Watcher, clock};

use crate::common::*;
use crate::repair::iproute;

/// What an administrator has set up: addresses, rules, routes and settings, near to what Baton uses.
fn administrators(lab: &Lab) -> Result<()> {
    let node = lab.host("fs1")?;
    for line in [
        "address add 10.0.0.5/24 dev p0",
        "-6 address add fd00:10::5/64 dev p1 nodad",
        "address add 10.0.0.6/32 dev p1",
        "rule add from 10.0.0.0/24 table 77 priority 20000",
        "rule add from 10.9.0.0/16 table 77 priority 9800",
        "-6 rule add from fd00:10::/64 table 77 priority 20000",
        "route add 10.9.0.0/16 dev p1 table 77",
        "route add 192.168.5.0/24 dev p0",
        "route add 192.168.6.0/24 dev p0 table 9800",
        "-6 route add fd00:5::/64 dev p1",
    ] {
        iproute(node, line)?;
    }
    node.set_sysctl("net/ipv4/conf/p0/rp_filter", "1")?;
    node.set_sysctl("net/ipv4/conf/p1/arp_ignore", "2")?;
    node.set_sysctl("net/ipv4/conf/p0/arp_announce", "2")?;
    Ok(())
}

fn config2() -> baton_lab::AgentConfig {
    config(2).server("projects", &["10.0.0.10/24", "fd00:10::10/64"]).server("homes", &["10.0.0.11/24"])
}

/// Moves everything away from p0, back, and deletes one of Baton's addresses.
fn busy_life(lab: &Lab, agent: &Agent) -> Result<()> {
    let p0 = lab.port("fs1", "p0")?;
    p0.cut()?;
    for address in config2().addresses() {
        wait_moved(lab, address, p0)?;
    }
    p0.restore()?;
    wait_state(agent, "p0", "good")?;
    lab.port("fs1", "p1")?.cut()?;
    for address in config2().addresses() {
        agent.wait_served_by(client(lab)?, address, p0, LONG)?;
    }
    lab.port("fs1", "p1")?.restore()?;
    wait_state(agent, "p1", "good")?;
    Ok(())
}

#[test]
fn clean_takes_away_everything_and_nothing_else() -> Result<()> {
    for (name, killed) in [("clean", false), ("clean-killed", true)] {
        let lab = lab(name, 2, Cable::EventsAtOnce)?;
        administrators(&lab)?;
        let node = lab.host("fs1")?;
        let before = node.state()?;
        let mut agent = serve(&lab, &config2())?;
        let refused = agent.command(&["clean"])?;
        ensure!(refused.status.code() == Some(1), "{refused:?}");
        ensure!(stderr(&refused).contains(&agent.process().pid().to_string()), "{}", stderr(&refused));
        busy_life(&lab, &agent)?;
        if killed {
            agent.kill()?;
        } else {
            agent.terminate(LONG)?;
        }
        let watcher = Watcher::start(lab.ports())?;
        let cleaned = clock::now();
        agent.clean()?;
        let difference = before.difference(&node.state()?);
        ensure!(difference.is_empty(), "{name}: {difference:#?}");
        for address in config2().addresses() {
            ensure!(client(&lab)?.holders(address, WINDOW)?.is_empty(), "{address} still answers");
            let said: Vec<_> = watcher.answers(address).into_iter().filter(|a| a.at >= cleaned).collect();
            ensure!(said.is_empty(), "{said:?}");
        }
        // A second time there is nothing to do, and that is no error.
        agent.clean()?;
        ensure!(before.difference(&node.state()?).is_empty());
        // And Baton can come again.
        agent.start_again()?;
        for address in config2().addresses() {
            agent.wait_served(client(&lab)?, address, LONG)?;
        }
        each_on_one_port(&lab, &config2().addresses())?;
    }
    Ok(())
}

/// While it runs, moves and is restarted, too, the administrator's things stay as they are.
#[test]
fn what_is_the_administrators_stays_while_baton_runs() -> Result<()> {
    let lab = lab("admins", 2, Cable::EventsAtOnce)?;
    administrators(&lab)?;
    let node = lab.host("fs1")?;
    let before = node.state()?;
    let mut agent = serve(&lab, &config2())?;
    busy_life(&lab, &agent)?;
    agent.kill()?;
    agent.start_again()?;
    for address in config2().addresses() {
        agent.wait_served(client(&lab)?, address, LONG)?;
    }
    busy_life(&lab, &agent)?;
    let gone: Vec<String> =
        before.difference(&node.state()?).into_iter().filter(|line| line.starts_with('-')).collect();
    // What Baton needs of its ports, and nothing but that.
    let ours = [
        "arp_ignore",
        "arp_announce",
        "rp_filter",
        "ignore_routes_with_linkdown",
        "retrans_time",
        "retrans_time_ms",
    ];
    let settings = |line: &String| {
        let name = line.split(' ').nth(1).and_then(|path| path.strip_prefix("/proc/sys/net/ip"));
        name.is_some_and(|name| {
            let parts: Vec<&str> = name.split('/').collect();
            parts.len() == 4 && ["p0", "p1"].contains(&parts[2]) && ours.contains(&parts[3])
        })
    };
    let touched: Vec<_> = gone.into_iter().filter(|line| !settings(line)).collect();
    ensure!(touched.is_empty(), "{touched:#?}");
    Ok(())
}

/// Every mistake is told at once, with its place; nothing is touched, nothing is left.
#[test]
fn a_bad_configuration_touches_nothing() -> Result<()> {
    let lab = lab("mistakes", 2, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    let before = node.state()?;
    let good = config2().text();
    let bad = [
        ("unknown key", good.replace("[node]\n", "[node]\ncolour = \"red\"\n"), 1),
        ("address outside", good.replace("10.0.0.11/24", "10.7.0.11/24"), 1),
        ("port in no segment", good.replacen("segment = \"office\"", "segment = \"cellar\"", 1), 1),
        ("address of two servers", good.replace("10.0.0.11/24", "10.0.0.10/24"), 1),
        ("no unit", good.replace("hold_down = \"50ms\"", "hold_down = 50"), 1),
        ("not TOML", good.replace("[node]", "[node"), 1),
        (
            "three at once",
            good.replace("[node]\n", "[node]\ncolour = 1\n")
                .replace("10.0.0.11/24", "10.7.0.11/24")
                .replace("\"50ms\"", "\"soon\""),
            3,
        ),
        ("empty", String::new(), 1),
    ];
    for (what, text, count) in &bad {
        ensure!(*text != good, "{what}: nothing replaced");
        let mut agent = Agent::start_text(node, text)?;
        let status = agent.process().wait(LONG)?;
        ensure!(status.code() == Some(64), "{what}: {status}: {}", agent.log());
        let log = agent.log();
        let lines = log.lines().filter(|l| l.starts_with(&format!("{CONFIG_FILE}:"))).count();
        ensure!(lines >= *count, "{what}: {log}");
        let check = agent.command(&["check", CONFIG_FILE])?;
        ensure!(check.status.code() == Some(64) && stderr(&check) == log, "{what}: {}", stderr(&check));
        ensure!(before.difference(&node.state()?).is_empty(), "{what}");
        println!("{what}: {log}");
    }
    // With an agent at work, too: it goes on, and so does what it serves.
    let agent = serve(&lab, &config2())?;
    let ports = each_on_one_port(&lab, &config2().addresses())?;
    let during = node.state()?;
    node.write(CONFIG_FILE, &bad[0].1)?;
    let second = agent.command(&["run"])?;
    ensure!(second.status.code() == Some(64), "{second:?}");
    std::thread::sleep(Duration::from_millis(50));
    ensure!(during.difference(&node.state()?).is_empty());
    ensure!(each_on_one_port(&lab, &config2().addresses())? == ports);
    Ok(())
}
