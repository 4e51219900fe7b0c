//! `baton demo`: one file server with three ports and one client, in network namespaces; the real agent; cut cables;
//! and what the client saw; then three file servers (`nodes`), and files over NFS (`files`). With `--keep`, a cluster that stays
//! (`keep`). Everything lives in namespaces without names and ends with this process, also on Ctrl-C.

mod files;
mod keep;
mod nodes;
mod relay;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use baton_core::{EventKind, Snapshot, Stage};
use baton_lab::host::wait_until;
use baton_lab::{Direction, Echo, Host, HostSpec, Lab, Probe, Process, Topology, clock, tcp};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::journal::Record;

/// What the demonstration is to be.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// Only build a cluster, show its web page on this machine, and let it stay until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where the page of the first node is; those of the others are on the next ports
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9480", requires = "keep")]
    listen: SocketAddr,
    #[command(subcommand)]
    ask: Option<Ask>,
}

/// What the demonstration that is kept is told to do.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand, Serialize, Deserialize)]
pub enum Ask {
    /// Pull the cable of a port
    Cut {
        /// The node: n1, n2 or n3
        node: String,
        /// The port: p0 and p1 lead to the clients, p2 to the other nodes
        port: String,
    },
    /// Plug it in again
    Mend {
        /// The node
        node: String,
        /// The port
        port: String,
    },
    /// Take a node's power away: its links and all its processes end
    PowerOff {
        /// The node
        node: String,
    },
    /// Give it back
    PowerOn {
        /// The node
        node: String,
    },
    /// Run a command of baton on a node: status, events, plan, drain n1, ...
    At {
        /// The node
        node: String,
        /// The command with its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

const CONFIG: &str = r#"
[node]
name = "fs1"

[[port]]
interface = "p0"
segment = "office"

[[port]]
interface = "p1"
segment = "office"

[[port]]
interface = "p2"
segment = "office"

[timing]
hold_down = "500ms"
hold_down_max = "2s"

[[segment]]
name = "office"
subnets = ["10.77.0.0/24", "fd77::/64"]
probe_targets = ["10.77.0.50"]

[[virtual_server]]
name = "projects"
priority = 200
addresses = ["10.77.0.10/24", "fd77::10/64"]

[[virtual_server]]
name = "home"
addresses = ["10.77.0.20/24", "fd77::20/64"]
"#;
const CONFIG_FILE: &str = "/run/baton.toml";
const PORTS: usize = 3;
/// The address that the client uses.
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 10));
const PROBE_EVERY: Duration = Duration::from_micros(100);
/// 50 MB/s, so that the transfer leaves the processors something.
const TRANSFER_LIMIT: u64 = 50 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the demonstration, or tells the one that is kept what to do.
///
/// # Errors
/// The lab can't be built (it needs root), or an address is not served again in time; there is none that is kept, or it can't
/// do that.
pub fn run(options: &Options) -> Result<()> {
    match options {
        Options { ask: Some(what), .. } => keep::ask(what),
        Options { keep: true, listen, .. } => keep::run(*listen),
        Options { .. } => show(),
    }
}

fn show() -> Result<()> {
    say("a client, a switch and a file server with three ports, each in network namespaces of their own")?;
    let topology = Topology::new("demo")
        .segment("office")
        .host(
            HostSpec::new("client")
                .ports("office", 1)
                .address("p0", "10.77.0.50/24")
                .address("p0", "fd77::50/64"),
        )
        .host(HostSpec::new("fs1").ports("office", PORTS));
    let lab = topology.build()?;
    let demo = Demo::start(&lab)?;
    demo.show_status()?;
    say("the client sends a probe every 0.1 ms and reads 50 MB/s over TCP, both to 10.77.0.10")?;

    let holder = demo.holder()?;
    demo.fault(&format!("the switch end of {holder} goes down (it holds 10.77.0.10)"), || {
        lab.port("fs1", &holder)?.cut()
    })?;
    let second = demo.holder()?;
    demo.fault(&format!("the cable of {second}, too: one port is left"), || lab.port("fs1", &second)?.cut())?;
    demo.show_status()?;

    lab.port("fs1", &holder)?.restore()?;
    say(&format!("the cable of {holder} is back; the port is held for a while, then takes addresses again"))?;
    demo.wait_for_state(&holder, "good")?;
    let third = demo.holder()?;
    demo.fault(&format!("an administrator sets {third} down (ip link set {third} down)"), || {
        lab.port("fs1", &third)?.admin_down()
    })?;
    lab.port("fs1", &second)?.restore()?;
    lab.port("fs1", &third)?.admin_up()?;
    say("all cables are back")?;
    demo.wait_for_state(&second, "good")?;
    demo.wait_for_state(&third, "good")?;
    let fourth = demo.holder()?;
    demo.fault(&format!("somebody removes 10.77.0.10 from {fourth}"), || {
        let address = IpNet::new(ADDRESS, 32)
            .map_err(|e| baton_lab::LabError::BadAddress { text: ADDRESS.to_string(), why: e.to_string() })?;
        lab.port("fs1", &fourth)?.delete_address(address)
    })?;
    let fifth = demo.holder()?;
    let valve = lab.port("fs1", &fifth)?.valve(Direction::ToHost)?;
    demo.fault(&format!("the switch sends nothing to {fifth} any more; its link stays up"), || {
        valve.close()
    })?;
    demo.show_status()?;
    demo.finish()?;
    nodes::run()?;
    files::run()
}

struct Demo<'a> {
    host: &'a Host,
    program: String,
    agent: Process,
    probe: Probe,
    transfer: tcp::Transfer,
    server: tcp::Server,
    _echo: Echo,
    begun: Duration,
}

impl<'a> Demo<'a> {
    fn start(lab: &'a Lab) -> Result<Demo<'a>> {
        let (client, host) = (lab.host("client")?, lab.host("fs1")?);
        let program = std::env::current_exe().context("finding this program")?;
        let program = program.to_str().context("the path of this program is not text")?.to_owned();
        host.write(CONFIG_FILE, CONFIG)?;
        let mut command = Command::new(&program);
        command.args(["--config", CONFIG_FILE, "run"]);
        let mut agent = host.spawn(command)?;
        let echo = Echo::start(host, SocketAddr::new(ADDRESS, 7), None)?;
        let server = tcp::Server::start(host, SocketAddr::new(ADDRESS, 2049))?;

        // Only the wire says whether the address is served.
        let mut holders = 0;
        let served = wait_until("10.77.0.10 to be served", PATIENCE, || {
            let answer = lab.port("client", "p0").and_then(|p| p.holders(ADDRESS, Duration::from_millis(50)));
            holders = answer.map_or(0, |h| h.len());
            holders > 0
        });
        if served.is_err() {
            let status = agent.exited()?.map_or("still runs".to_owned(), |s| s.to_string());
            bail!("the agent serves nothing ({status}): {}", agent.stderr());
        }
        let probe = Probe::start(client, SocketAddr::new(ADDRESS, 7), PROBE_EVERY, None)?;
        let transfer = tcp::Transfer::start(client, SocketAddr::new(ADDRESS, 2049), Some(TRANSFER_LIMIT))?;
        probe.wait_for_replies(1000, Duration::ZERO, PATIENCE)?;
        let begun = clock::now();
        Ok(Demo { host, program, agent, probe, transfer, server, _echo: echo, begun })
    }

    /// Asks the running agent, as an administrator would.
    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let all = [&[self.program.as_str(), "--config", CONFIG_FILE], arguments].concat();
        let output = self.host.run(all[0], all[1..].iter().copied())?;
        if !output.status.success() {
            bail!("baton {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn snapshot(&self) -> Result<Snapshot> {
        Ok(serde_json::from_str(&self.ask(&["status", "--json"])?)?)
    }

    fn show_status(&self) -> Result<()> {
        say("$ baton status")?;
        let mut out = io::stdout().lock();
        self.ask(&["status"])?.lines().try_for_each(|line| writeln!(out, "             {line}"))?;
        Ok(())
    }

    /// The port that the client's address is bound to.
    fn holder(&self) -> Result<String> {
        let snapshot = self.snapshot()?;
        let mut addresses = snapshot.virtual_servers.into_iter().flat_map(|s| s.addresses);
        addresses.find(|a| a.address == ADDRESS).and_then(|a| a.port).context("10.77.0.10 is bound nowhere")
    }

    fn wait_for_state(&self, port: &str, state: &str) -> Result<()> {
        let good = |s: Snapshot| s.ports.iter().any(|p| p.interface == port && p.state.word() == state);
        wait_until(&format!("{port} to be {state}"), PATIENCE, || self.snapshot().is_ok_and(good))?;
        Ok(())
    }

    /// Breaks something, waits until the client is served again, and tells what it saw.
    fn fault(
        &self,
        what: &str,
        strike: impl FnOnce() -> Result<Duration, baton_lab::LabError>,
    ) -> Result<()> {
        // Something may have moved a moment ago; its wake must not be taken for this fault's.
        std::thread::sleep(Duration::from_millis(300));
        let before = self.transfer.result();
        let at = strike()?;
        self.say_at(at, what)?;
        std::thread::sleep(Duration::from_millis(300));
        self.probe
            .wait_for_replies(500, clock::now(), PATIENCE)
            .context("the client got no answer any more")?;
        let seen = self.probe.result();
        let (from, to) = (at, at + Duration::from_millis(250));
        let gap = seen.longest_gap(from, to).map_or(Duration::ZERO, |g| g.length());
        let usual =
            seen.longest_gap(at - Duration::from_millis(250), at).map_or(Duration::ZERO, |g| g.length());
        let lost = unanswered(&seen, from, to);
        let tcp = self.transfer.result();
        say(&format!(
            "  client: {:.2} ms without a reply (longest before, without a fault: {:.2} ms), {lost} probes lost",
            millis(gap),
            millis(usual)
        ))?;
        say(&format!(
            "  TCP: {}, {:.1} MB since",
            if tcp.reset() {
                "RESET"
            } else if tcp.intact {
                "no reset, every byte right"
            } else {
                "BROKEN"
            },
            (tcp.bytes - before.bytes) as f64 / 1e6
        ))?;
        self.show_stages()
    }

    fn show_stages(&self) -> Result<()> {
        let events = self.ask(&["events", "--json"])?;
        let records = events.lines().filter_map(|l| serde_json::from_str::<Record>(l).ok());
        let mut told = records.filter_map(|r| match r.event.kind {
            EventKind::FailoverDone { addresses, stages, .. } => Some((addresses, stages)),
            EventKind::AddressDeleted { .. } => Some((1, Default::default())),
            _ => None,
        });
        match told.next_back() {
            Some((addresses, stages)) if !stages.is_empty() => {
                let stage = |s: Stage| stages.get(&s).map_or(0.0, |seconds| seconds * 1e6);
                say(&format!(
                    "  agent: {addresses} addresses moved; after the first sign: decided {:.0} us, bound {:.0} us, announced {:.0} us",
                    stage(Stage::Decided),
                    stage(Stage::Bound),
                    stage(Stage::Announced)
                ))
            }
            Some(_) => say("  agent: put back and announced"),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<()> {
        let tcp = self.transfer.stop();
        let retransmitted: u32 = self.server.retransmissions().iter().sum();
        say(&format!(
            "the TCP connection of the first second is still the same: {:.0} MB, {}, {retransmitted} segments sent again",
            tcp.bytes as f64 / 1e6,
            if tcp.reset() { "RESET" } else { "no reset" }
        ))?;
        self.agent.terminate(PATIENCE)?;
        say("done with one node; its namespaces, agent and addresses are gone")
    }

    fn say_at(&self, at: Duration, what: &str) -> Result<()> {
        let since = at.saturating_sub(self.begun).as_secs_f64();
        Ok(writeln!(io::stdout(), "{since:>9.3} s  {what}")?)
    }
}

/// Probes sent in this time that were never answered.
fn unanswered(seen: &baton_lab::ProbeResult, from: Duration, to: Duration) -> usize {
    let sent = seen.sent.iter().enumerate().filter(|(_, at)| (from..to).contains(at)).map(|(n, _)| n as u64);
    let answered: std::collections::HashSet<u64> = seen.received.iter().map(|r| r.0).collect();
    sent.filter(|n| !answered.contains(n)).count()
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn say(what: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "             {what}")?)
}
