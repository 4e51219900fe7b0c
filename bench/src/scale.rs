//! What grows with the number of addresses, and what must not: 1,000 addresses that fail over together, replies from one
//! of 1,000 addresses beside replies from one of two, and what an idle agent costs.
//!
//! Replies are measured as round trips a second of a client that waits for each, from a server whose socket is bound to no
//! peer, so that every reply is routed: a cost that grew with the number of addresses would show. *rules* is the peer: a host
//! without Baton and with one routing rule an address, which is how such replies are commonly steered.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use baton_lab::agent::{Agent, AgentConfig};
use baton_lab::host::wait_until;
use baton_lab::{Echo, Host, HostSpec, Lab, Topology, Watcher, clock, tcp};
use ipnet::IpNet;

use crate::cpu;
use crate::report::Row;

const MANY: usize = 1000;
const PORT: u16 = 7;
const PATIENCE: Duration = Duration::from_secs(60);
/// One measurement of a rate; those of different hosts take turns.
const TURN: Duration = Duration::from_millis(400);

/// Options of `scale`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often each figure is taken
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Seconds for which the idle agent is watched
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
    /// Writes the rows there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs all of it and prints a table.
pub fn main(arguments: &Arguments) -> Result<()> {
    let mut rows = Vec::new();
    rows.extend(replies(arguments.runs)?);
    rows.extend(failover(arguments.runs)?);
    rows.extend(connections(arguments.runs)?);
    rows.extend(idle(arguments.idle_seconds)?);
    println!(
        "{:<12}{:<34}{:<26}{:>6}{:>12}{:>12}{:>12}",
        "system", "scenario", "metric", "n", "min", "p50", "max"
    );
    for r in &rows {
        let metric = format!("{} ({})", r.metric, r.unit);
        println!(
            "{:<12}{:<34}{metric:<26}{:>6}{:>12.2}{:>12.2}{:>12.2}",
            r.system, r.scenario, r.n, r.min, r.p50, r.max
        );
    }
    judge(&rows);
    if let Some(path) = &arguments.json {
        write(path, &rows)?;
    }
    Ok(())
}

fn write(path: &Path, rows: &[Row]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(rows).context("encode the rows")?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The figures that are to be reached.
fn judge(rows: &[Row]) {
    let p50 = |system: &str, scenario: &str, metric: &str| {
        rows.iter()
            .find(|r| (r.system, &*r.scenario, &*r.metric) == (system, scenario, metric))
            .map(|r| r.p50)
    };
    let say =
        |reached: bool, what: String| println!("{}: {what}", if reached { "reached" } else { "NOT reached" });
    for metric in ["round_trips", "tcp"] {
        for way in ["direct", "handed_over"] {
            let of = |n: &str| p50("baton", &format!("{way}_{n}"), metric);
            if let (Some(few), Some(many)) = (of("2"), of("1000")) {
                let ratio = many / few;
                say(
                    ratio >= 0.95,
                    format!("{metric} {way}, 1,000 addresses / 2: {ratio:.3} (at least 0.95)"),
                );
            }
        }
    }
    let last = rows.iter().find(|r| r.metric == "last_announced");
    if let Some(r) = last {
        say(
            r.p50 <= 50_000.0,
            format!(
                "last of 1,000 announced: p50 {:.1} ms, max {:.1} ms after the cut (at most 50 ms)",
                r.p50 / 1e3,
                r.max / 1e3
            ),
        );
    }
    let sent_again = rows.iter().find(|r| r.metric == "retransmissions");
    let resets = rows.iter().find(|r| r.metric == "resets");
    if let (Some(again), Some(resets)) = (sent_again, resets) {
        say(
            again.max <= 1.0 && resets.max == 0.0,
            format!(
                "established TCP: {} resets, segments sent again p50 {}, p90 {}, max {} (no reset, at most 1)",
                resets.max, again.p50, again.p90, again.max
            ),
        );
    }
    if let (Some(cpu), Some(rss)) = (p50("baton", "idle_100", "cpu"), p50("baton", "idle_100", "resident")) {
        say(cpu < 1.0, format!("idle agent: {cpu:.2} % of one core (under 1 %)"));
        say(rss < 40.0, format!("idle agent: {rss:.1} MiB resident (under 40 MiB)"));
    }
}

fn row(system: &'static str, scenario: &str, metric: &str, unit: &'static str, values: &mut [f64]) -> Row {
    Row::of("scale", system, scenario, metric, unit, values)
}

/// The first `count` addresses of a host's /18 of 10.0.0.0/8's first /16.
fn addresses(host: u8, count: usize) -> Vec<Ipv4Addr> {
    (0..count).map(|n| Ipv4Addr::new(10, 0, host * 64 + (n / 250) as u8, (n % 250) as u8 + 1)).collect()
}

fn config(name: &str, ports: &[&str], addresses: &[Ipv4Addr]) -> AgentConfig {
    let texts: Vec<String> = addresses.iter().map(|a| format!("{a}/16")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let hold = Duration::from_millis(5);
    let config = AgentConfig::new(name).segment("lab", &["10.0.0.0/16"]).port_failback("stay");
    config.ports("lab", ports).hold_down(hold, hold).server("bench", &texts)
}

/// Starts an agent and waits until the first and last address answer.
fn start(lab: &Lab, host: &str, ports: &[&str], all: &[Ipv4Addr]) -> Result<Agent> {
    let agent = Agent::start(lab.host(host)?, &config(host, ports, all))?;
    let client = lab.port("client", "p0")?;
    for address in [all.first(), all.last()].into_iter().flatten() {
        agent.wait_served(client, IpAddr::V4(*address), PATIENCE)?;
    }
    Ok(agent)
}

/// An address of this agent that is bound to `port`.
fn bound_to(agent: &Agent, port: &str) -> Result<IpAddr> {
    let status = agent.status()?;
    let servers = status["virtual_servers"].as_array().cloned().unwrap_or_default();
    let all = servers.iter().flat_map(|s| s["addresses"].as_array().cloned().unwrap_or_default());
    let found = all.into_iter().find(|a| a["port"] == port);
    let text = found
        .and_then(|a| a["address"].as_str().map(str::to_owned))
        .with_context(|| format!("nothing is on {port}"))?;
    text.parse().context("an address")
}

struct Target {
    system: &'static str,
    scenario: &'static str,
    address: IpAddr,
    trips: Vec<f64>,
    tcp: Vec<f64>,
    _echo: Echo,
    _server: tcp::Server,
}

impl Target {
    fn new(system: &'static str, scenario: &'static str, host: &Host, address: IpAddr) -> Result<Target> {
        let echo = Echo::start(host, SocketAddr::new(address, PORT), None)?;
        let server = tcp::Server::start(host, SocketAddr::new(address, 2049))?;
        Ok(Target {
            system,
            scenario,
            address,
            trips: Vec::new(),
            tcp: Vec::new(),
            _echo: echo,
            _server: server,
        })
    }
}

fn replies(runs: usize) -> Result<Vec<Row>> {
    let lab = Topology::new("replies")
        .segment("lab")
        .host(HostSpec::new("client").ports("lab", 1).address("p0", "10.0.255.1/16"))
        .host(HostSpec::new("few").ports("lab", 2))
        .host(HostSpec::new("many").ports("lab", 2))
        .host(HostSpec::new("rules").ports("lab", 2))
        .build()?;
    let few = start(&lab, "few", &["p0", "p1"], &addresses(0, 2))?;
    let many = start(&lab, "many", &["p0", "p1"], &addresses(1, MANY))?;
    let by_rules = rules(&lab, &addresses(2, MANY))?;
    let mut targets = vec![
        Target::new("baton", "direct_2", lab.host("few")?, bound_to(&few, "p0")?)?,
        Target::new("baton", "direct_1000", lab.host("many")?, bound_to(&many, "p0")?)?,
        Target::new("baton", "handed_over_2", lab.host("few")?, bound_to(&few, "p1")?)?,
        Target::new("baton", "handed_over_1000", lab.host("many")?, bound_to(&many, "p1")?)?,
        Target::new("rules", "rules_1000", lab.host("rules")?, by_rules)?,
    ];
    let client = lab.host("client")?;
    for _ in 0..runs {
        for target in &mut targets {
            target.trips.push(round_trips(client, target.address)?);
            target.tcp.push(transfer(client, target.address)?);
        }
    }
    let rows = targets.iter_mut().flat_map(|t| {
        let trips = row(t.system, t.scenario, "round_trips", "1/s", &mut t.trips);
        [trips, row(t.system, t.scenario, "tcp", "MB/s", &mut t.tcp)]
    });
    Ok(rows.collect())
}

/// The peer: every address on `p0`, with a rule of its own; returns the one with the last rule.
fn rules(lab: &Lab, all: &[Ipv4Addr]) -> Result<IpAddr> {
    const TABLE: u32 = 100;
    let (host, port) = (lab.host("rules")?, lab.port("rules", "p0")?);
    host.netlink().set_route("10.0.0.0/16".parse()?, port.index(), None, TABLE)?;
    for (n, address) in all.iter().enumerate() {
        let net = IpNet::new(IpAddr::V4(*address), 32)?;
        port.add_address(net)?;
        host.netlink().add_rule(net, TABLE, 1000 + n as u32)?;
    }
    all.last().map(|a| IpAddr::V4(*a)).context("no address")
}

/// Round trips a second, one after another.
fn round_trips(client: &Host, target: IpAddr) -> Result<f64> {
    let socket = client.open("open a socket", || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddr::new(target, PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    })?;
    let mut buffer = [0u8; 64];
    let begun = Instant::now();
    let mut trips = 0u32;
    while begun.elapsed() < TURN {
        socket.send(&[1; 16])?;
        if socket.recv(&mut buffer).is_ok() {
            trips += 1;
        }
    }
    if trips == 0 {
        bail!("no reply from {target}");
    }
    Ok(f64::from(trips) / begun.elapsed().as_secs_f64())
}

/// Megabytes a second of one TCP connection that the target sends on.
fn transfer(client: &Host, target: IpAddr) -> Result<f64> {
    let transfer = tcp::Transfer::start(client, SocketAddr::new(target, 2049), None)?;
    transfer.wait_for(1, PATIENCE)?;
    let (begun, before) = (Instant::now(), transfer.result().bytes);
    std::thread::sleep(TURN);
    let bytes = transfer.result().bytes - before;
    let rate = bytes as f64 / begun.elapsed().as_secs_f64() / 1e6;
    let seen = transfer.stop();
    if !seen.intact || seen.reset() {
        bail!("the transfer from {target} was not intact: {seen:?}");
    }
    Ok(rate)
}

/// 1,000 addresses on one port lose it together: when the first and the last of them are announced on the other, from the cut.
fn failover(runs: usize) -> Result<Vec<Row>> {
    let lab = Topology::new("many")
        .segment("lab")
        .host(HostSpec::new("client").ports("lab", 1).address("p0", "10.0.255.1/16"))
        .host(HostSpec::new("many").ports("lab", 2))
        .build()?;
    let all = addresses(1, MANY);
    let agent = start(&lab, "many", &["p0", "p1"], &all)?;
    let ports = [lab.port("many", "p0")?, lab.port("many", "p1")?];
    let wanted: BTreeSet<IpAddr> = all.iter().map(|a| IpAddr::V4(*a)).collect();
    let (mut first, mut last) = (Vec::new(), Vec::new());
    // The first cut only gathers all addresses on one port.
    for run in 0..=runs {
        let (dies, takes) = (ports[run % 2], ports[(run + 1) % 2]);
        let watcher = Watcher::start([takes])?;
        let at = dies.cut()?;
        let heard = || {
            let frames = wanted.iter().filter_map(|a| Some(watcher.announcements(*a, at).first()?.at));
            frames.map(|t| t.saturating_sub(at)).collect::<Vec<_>>()
        };
        let expected = if run == 0 { MANY / 2 } else { MANY };
        wait_until("all announcements", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(100));
            heard().len() >= expected
        })?;
        if run > 0 {
            let times = heard();
            let micros = |d: Option<&Duration>| d.map_or(0.0, |d| d.as_secs_f64() * 1e6);
            first.push(micros(times.iter().min()));
            last.push(micros(times.iter().max()));
        }
        dies.restore()?;
        // Held for a moment, then good: the next run needs it. Announcements of this run end after a second.
        wait_until("the port to be good", PATIENCE, || {
            agent.port_status(dies.interface()).is_ok_and(|p| p["state"] == "good")
        })?;
        let quiet = clock::now() + Duration::from_millis(1200);
        clock::sleep_until(quiet);
    }
    Ok(vec![
        row("baton", "thousand_addresses", "first_announced", "us", &mut first),
        row("baton", "thousand_addresses", "last_announced", "us", &mut last),
    ])
}

/// An established connection over which 20 MB/s are read while its address changes ports.
fn connections(runs: usize) -> Result<Vec<Row>> {
    const LIMIT: u64 = 20_000_000;
    let lab = Topology::new("connections")
        .segment("lab")
        .host(HostSpec::new("client").ports("lab", 1).address("p0", "10.0.255.1/16"))
        .host(HostSpec::new("tcp").ports("lab", 2))
        .build()?;
    let all = addresses(1, 1);
    let agent = start(&lab, "tcp", &["p0", "p1"], &all)?;
    let target = SocketAddr::new(IpAddr::V4(all[0]), 2049);
    let server = tcp::Server::start(lab.host("tcp")?, target)?;
    let (mut again, mut resets) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let transfer = tcp::Transfer::start(lab.host("client")?, target, Some(LIMIT))?;
        transfer.wait_for(LIMIT / 10, PATIENCE)?;
        let dies = lab.port("tcp", if bound_to(&agent, "p0").is_ok() { "p0" } else { "p1" })?;
        dies.cut()?;
        transfer.wait_for(LIMIT / 4, PATIENCE).context("the connection does not go on")?;
        let retransmitted = server.retransmissions().get(run).copied().context("no such connection")?;
        let seen = transfer.stop();
        again.push(f64::from(retransmitted));
        resets.push(f64::from(u8::from(seen.reset() || !seen.intact)));
        dies.restore()?;
        wait_until("the port to be good", PATIENCE, || {
            agent.port_status(dies.interface()).is_ok_and(|p| p["state"] == "good")
        })?;
    }
    Ok(vec![
        row("baton", "established_tcp", "retransmissions", "segments", &mut again),
        row("baton", "established_tcp", "resets", "connections", &mut resets),
    ])
}

/// What an agent with 3 ports and 100 addresses costs when nothing happens: with ports whose events come at once, and with
/// ordinary NICs, whose carrier is read each millisecond. The floor of the latter is a thread that only wakes so often.
fn idle(seconds: u64) -> Result<Vec<Row>> {
    let ports = ["p0", "p1", "p2"];
    let mut rows = Vec::new();
    for (scenario, ordinary) in [("idle_100", false), ("idle_100_ordinary_nics", true)] {
        let host = HostSpec::new("idle");
        let host = if ordinary { host.delayed_ports("lab", 3) } else { host.ports("lab", 3) };
        let lab = Topology::new("idle")
            .segment("lab")
            .host(HostSpec::new("client").ports("lab", 1).address("p0", "10.0.255.1/16"))
            .host(host)
            .build()?;
        let mut agent = start(&lab, "idle", &ports, &addresses(0, 100))?;
        std::thread::sleep(Duration::from_secs(3)); // the last announcements
        let pid = agent.process().pid();
        let cpu = || cpu::seconds(pid);
        let (begun, before) = (Instant::now(), cpu()?);
        std::thread::sleep(Duration::from_secs(seconds.max(1)));
        let share = (cpu()? - before) / begun.elapsed().as_secs_f64() * 100.0;
        rows.push(row("baton", scenario, "cpu", "%", &mut [share]));
        rows.push(row("baton", scenario, "resident", "MiB", &mut [resident(pid)?]));
    }
    let waker = std::thread::spawn(move || {
        let own = Path::new("/proc/thread-self/schedstat");
        let (begun, before) = (Instant::now(), cpu::run_time(own)?);
        while begun.elapsed() < Duration::from_secs(seconds.max(1)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        anyhow::Ok((cpu::run_time(own)? - before) / begun.elapsed().as_secs_f64() * 100.0)
    });
    let share = waker.join().map_err(|_| anyhow::anyhow!("the waking thread has panicked"))??;
    rows.push(row("floor", "waking_each_millisecond", "cpu", "%", &mut [share]));
    Ok(rows)
}

fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS")?;
    Ok(kib / 1024.0)
}
