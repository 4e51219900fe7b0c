//! The configuration changes under traffic, and so does the program: the wire says what clients lose. What is not changed
//! loses nothing, and is not announced again; what is removed is gone, alone.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::agent::{AgentConfig, CONFIG_FILE};
use baton_lab::host::wait_until;
use baton_lab::probe::{Echo, Probe};
use baton_lab::{Agent, Cable, Lab, Watcher, clock};
use nix::sys::signal::Signal;

use crate::common::*;
use crate::restart::{replays, wait_started};

/// Datagrams in a test, over all addresses: enough that a loss of a few milliseconds anywhere is seen.
const PROBES: usize = 200_000;
/// Time between two datagrams to one address.
const PACE: Duration = Duration::from_millis(1);

/// A stream of datagrams to each of several addresses, and who returns them.
struct Streams(Vec<(IpAddr, Echo, Probe)>);

impl Streams {
    fn start(lab: &Lab, addresses: &[IpAddr]) -> Result<Streams> {
        let mut streams = Vec::new();
        for address in addresses {
            let target = (*address, 7777).into();
            let echo = Echo::start(lab.host("fs1")?, target, None)?;
            let probe = Probe::start(lab.host("client")?, target, PACE, None)?;
            probe.wait_for_replies(20, Duration::ZERO, LONG)?;
            streams.push((*address, echo, probe));
        }
        Ok(Streams(streams))
    }

    fn sent(&self) -> usize {
        self.0.iter().map(|(.., probe)| probe.sent()).sum()
    }

    /// Every stream goes on.
    fn go_on(&self) -> Result<()> {
        let now = clock::now();
        for (.., probe) in &self.0 {
            probe.wait_for_replies(20, now, LONG)?;
        }
        Ok(())
    }

    /// Ends them: nothing was lost. Returns how many datagrams there were.
    fn lost_nothing(self) -> Result<usize> {
        let mut all = 0;
        for (address, echo, probe) in self.0 {
            let result = probe.drain(LONG);
            let sent = result.sent.len();
            ensure!(
                result.lost() == 0,
                "{address}: {} of {sent} lost, {} echoed; the longest pause {:?}",
                result.lost(),
                echo.echoed(),
                result.longest_gap(Duration::ZERO, Duration::MAX)
            );
            all += sent;
        }
        Ok(all)
    }
}

/// What is served all the time.
fn base() -> AgentConfig {
    config(2)
        .server("projects", &["10.0.0.10/24", "fd00:10::10/64"])
        .server("homes", &["10.0.0.11/24", "fd00:10::11/64"])
}

/// `baton reload` with this file; returns what it printed.
fn reload(agent: &Agent, config: &AgentConfig) -> Result<String> {
    agent.host().write(CONFIG_FILE, &config.text())?;
    let output = agent.command(&["reload"])?;
    ensure!(output.status.success(), "{}: {}", output.status, stderr(&output));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn count(agent: &Agent, kind: &str) -> Result<usize> {
    Ok(agent.events()?.iter().filter(|e| e["event"] == kind).count())
}

/// Two hundred thousand datagrams while all kinds of other things change, by command and by signal.
#[test]
fn reloads_lose_nothing_of_what_they_do_not_change() -> Result<()> {
    let lab = lab("reload", 3, Cable::EventsAtOnce)?;
    // Unplugged: while it is no port of Baton's, the kernel would answer there for any address of the node.
    lab.port("fs1", "p2")?.cut()?;
    let mut agent = serve(&lab, &base())?;
    let addresses = base().addresses();
    let before = each_on_one_port(&lab, &addresses)?;
    let streams = Streams::start(&lab, &addresses)?;
    let watcher = Watcher::claims([client(&lab)?])?;
    let since = clock::now();
    let others = [
        base().server("new", &["10.0.0.20/24", "fd00:10::20/64"]),
        base().server("new", &["10.0.0.20/24"]),
        base().server("new", &["10.0.0.20/24"]).ports("office", &["p2"]),
        base().server("new", &["10.0.0.21/24"]).ports("office", &["p2"]),
        base()
            .server("new", &["10.0.0.21/24"])
            .hold_down(Duration::from_millis(70), Duration::from_millis(700)),
        base().segment("lab", &["10.9.0.0/24"]),
        base(),
    ];
    let mut reloads = 0;
    while streams.sent() < PROBES {
        let next = &others[reloads % others.len()];
        if reloads % 2 == 0 {
            let said = reload(&agent, next)?;
            ensure!(said.ends_with("this is in force; nothing else was touched\n"), "{said}");
        } else {
            lab.host("fs1")?.write(CONFIG_FILE, &next.text())?;
            agent.process().signal(Signal::SIGHUP)?;
        }
        reloads += 1;
        wait_until("the reload", LONG, || count(&agent, "reloaded").is_ok_and(|n| n >= reloads))?;
        for address in next.addresses() {
            agent.wait_served(client(&lab)?, address, LONG)?;
        }
        streams.go_on()?;
        ensure!(agent.command(&["reload", "--dry-run"])?.stdout.starts_with(b"nothing is different"));
    }
    let announced: Vec<_> = addresses.iter().flat_map(|a| watcher.announcements(*a, since)).collect();
    ensure!(announced.is_empty(), "announced again: {announced:?}");
    ensure!(each_on_one_port(&lab, &addresses)? == before, "a reload moved an address");
    let sent = streams.lost_nothing()?;
    println!("{sent} datagrams over {reloads} reloads, none lost");
    ensure!(sent >= PROBES);
    ensure!(agent.status()?["failovers"] == 0);
    ensure!(count(&agent, "started")? == 1, "a reload started the agent anew");
    ensure!(agent.metric("baton_reloads_total", &[])? == Some(reloads as f64));
    replays(&agent)
}

/// Two hundred thousand datagrams while the agent is ended, by SIGTERM and by SIGKILL in turn, and started again: each start
/// loads its programs anew, as a new version does.
#[test]
fn restarts_lose_nothing() -> Result<()> {
    let lab = lab("upgrade", 2, Cable::EventsAtOnce)?;
    let mut agent = serve(&lab, &base())?;
    let addresses = base().addresses();
    let before = each_on_one_port(&lab, &addresses)?;
    let streams = Streams::start(&lab, &addresses)?;
    let mut restarts = 0;
    while streams.sent() < PROBES {
        match restarts % 2 {
            0 => ensure!(agent.terminate(LONG)?.success(), "{}", agent.log()),
            _ => drop(agent.kill()?),
        }
        restarts += 1;
        streams.go_on()?; // the kernel serves alone
        agent.start_again()?;
        wait_started(&agent, restarts + 1)?;
        streams.go_on()?;
    }
    ensure!(each_on_one_port(&lab, &addresses)? == before, "a restart moved an address");
    let sent = streams.lost_nothing()?;
    println!("{sent} datagrams over {restarts} restarts, none lost");
    ensure!(sent >= PROBES);
    ensure!(agent.status()?["failovers"] == 0);
    Ok(())
}

/// One address of a virtual server is removed: it is gone, and its neighbours on the same server, port and family lose nothing.
#[test]
fn removing_an_address_drops_just_that_one() -> Result<()> {
    let lab = lab("drop-one", 1, Cable::EventsAtOnce)?;
    let with =
        config(1).server("projects", &["10.0.0.10/24", "10.0.0.11/24", "fd00:10::10/64", "fd00:10::11/64"]);
    let without = config(1).server("projects", &["10.0.0.10/24", "fd00:10::10/64"]);
    let agent = serve(&lab, &with)?;
    let streams = Streams::start(&lab, &without.addresses())?;
    let shown = {
        agent.host().write(CONFIG_FILE, &without.text())?;
        String::from_utf8_lossy(&agent.command(&["reload", "--dry-run"])?.stdout).into_owned()
    };
    let line = "~ virtual server projects: - address 10.0.0.11/24, - address fd00:10::11/64";
    ensure!(shown.lines().next() == Some(line), "{shown}");
    ensure!(configured_on(&lab, ip("10.0.0.11"))?.len() == 1, "a dry run changed something");
    ensure!(reload(&agent, &without)?.lines().next() == Some(line));
    for gone in ["10.0.0.11", "fd00:10::11"] {
        ensure!(client(&lab)?.holders(ip(gone), WINDOW)?.is_empty(), "{gone} still answers");
        ensure!(configured_on(&lab, ip(gone))?.is_empty(), "{gone} is still there");
    }
    streams.go_on()?;
    // And back.
    reload(&agent, &with)?;
    for address in with.addresses() {
        agent.wait_served(client(&lab)?, address, LONG)?;
    }
    streams.go_on()?;
    streams.lost_nothing()?;
    Ok(())
}

/// A file with a mistake, or with what can't be changed, is refused as a whole: by the command with its place and what to do, by a
/// signal in events and metrics. Everything is as it was.
#[test]
fn what_is_refused_changes_nothing() -> Result<()> {
    let lab = lab("refused", 2, Cable::EventsAtOnce)?;
    let node = lab.host("fs1")?;
    let mut agent = serve(&lab, &base())?;
    let before = node.state()?;
    // It also removes an address: none of it may come to pass.
    let text = config(2).server("projects", &["10.0.0.10/24"]).text();
    let bad = [
        (text.replace("\"office\"\n\n[[port]]", "\"ofice\"\n\n[[port]]"), "ofice"),
        (text.replace("name = \"fs1\"", "name = \"fs2\""), "can't be changed while the agent runs"),
        (text.replace("10.0.0.10/24", "10.0.0.10/33"), "10.0.0.10/33"),
    ];
    for (n, (text, word)) in bad.iter().enumerate() {
        node.write(CONFIG_FILE, text)?;
        for arguments in [&["reload", "--dry-run"][..], &["reload"]] {
            let output = agent.command(arguments)?;
            let error = stderr(&output);
            ensure!(output.status.code() == Some(64), "{}: {error}", output.status);
            let place = error.split(':').skip(1).take(2).all(|number| number.parse::<u32>().is_ok());
            ensure!(place && error.contains(word) && error.contains("; "), "{error}");
        }
        agent.process().signal(Signal::SIGHUP)?;
        let refused = 2 * (n + 1);
        wait_until("the refusals", LONG, || count(&agent, "reload_refused").is_ok_and(|c| c == refused))?;
        ensure!(agent.metric("baton_reload_failures_total", &[])? == Some(refused as f64));
        ensure!(agent.metric("baton_reload_successful", &[])? == Some(0.0));
        ensure!(node.state()? == before, "a refused reload changed something");
    }
    node.write(CONFIG_FILE, &base().text())?;
    ensure!(reload(&agent, &base())?.starts_with("nothing is different"));
    wait_until("the event", LONG, || count(&agent, "reloaded").is_ok_and(|c| c == 1))?;
    ensure!(agent.metric("baton_reload_successful", &[])? == Some(1.0));
    ensure!(node.state()? == before);
    Ok(())
}

/// `telemetry.listen` moves, and back.
#[test]
fn metrics_are_served_elsewhere() -> Result<()> {
    let lab = lab("elsewhere", 2, Cable::EventsAtOnce)?;
    let agent = serve(&lab, &base())?;
    let text = format!("[telemetry]\nlisten = \"127.0.0.1:9478\"\n{}", base().text());
    agent.host().write(CONFIG_FILE, &text)?;
    let output = agent.command(&["reload"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("telemetry.listen 127.0.0.1:9477 -> 127.0.0.1:9478"), "{said} {}", stderr(&output));
    ensure!(agent.metrics().is_err(), "still served at the old address");
    reload(&agent, &base())?;
    wait_until("the metrics", LONG, || agent.metrics().is_ok())?;
    Ok(())
}
