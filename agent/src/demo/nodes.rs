//! The second part of the demonstration: three file servers with etcd, one of which fails in several ways.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use baton_core::EventKind;
use baton_lab::cluster::{Cluster, ClusterSpec};
use baton_lab::host::wait_until;
use baton_lab::{Echo, Probe, clock};

use super::{millis, say};
use crate::journal::Record;

/// The address that the client uses.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10));
/// The address of the other virtual server.
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 20));
const PORT: u16 = 7;
const PROBE_EVERY: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(20);
const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Builds the cluster, breaks it, and tells what the client saw.
pub(super) fn run() -> Result<()> {
    if !installed("etcd") || !installed("etcdctl") {
        return say("the part with several nodes needs etcd: apt-get install etcd-server etcd-client");
    }
    say("")?;
    say(
        "three file servers with two ports for clients and one for the interconnect each, and etcd on all three",
    )?;
    let mut spec = ClusterSpec::new()
        .server(
            "projects",
            &["10.0.0.10/24", "fd00:10::10/64"],
            "priority = 200\npreferred_nodes = [\"n1\", \"n2\"]",
        )
        .server("home", &["10.0.0.20/24"], "preferred_nodes = [\"n1\", \"n3\"]");
    spec.balance
        .push_str("mode = \"on\"\nhalf_life = \"2s\"\nserver_cooldown = \"5s\"\ncluster_cooldown = \"5s\"\n");
    spec.speed_mbits = Some(100);
    let mut demo = Demo::start(spec)?;
    for server in ["projects", "home"] {
        demo.cluster.done("n1", &["move", server, "--to", "n1"])?;
    }
    demo.show_status("n2")?;

    demo.fault("both cables of n1 to the clients are pulled", |cluster| {
        ["p0", "p1"].iter().try_for_each(|port| cluster.lab.port("n1", port)?.cut().map(drop))?;
        Ok(())
    })?;
    for port in ["p0", "p1"] {
        demo.cluster.lab.port("n1", port)?.restore()?;
    }
    demo.settle()?;
    demo.move_to("n1")?;

    let mut dark = Vec::new();
    demo.fault("n1 is cut off from everybody, and goes on running", |cluster| {
        dark = cluster.lab.lose_host("n1")?;
        Ok(())
    })?;
    drop(dark);
    say("  the cut is mended; n1 finds that it was replaced, and lets go of the addresses")?;
    demo.settle()?;
    demo.move_to("n1")?;

    let mut dark = Vec::new();
    demo.fault("n1 loses its power: all links and processes end", |cluster| {
        dark = cluster.power_off("n1")?;
        Ok(())
    })?;
    demo.show_status("n2")?;
    drop(dark);
    demo.cluster.etcd.start_again("n1")?;
    demo.cluster.agent_mut("n1")?.start_again()?;
    demo.cluster.etcd.wait_healthy(PATIENCE)?;
    demo.settle()?;

    let holder = demo.holder()?;
    demo.fault(&format!("$ baton drain {holder}"), |cluster| {
        cluster.done(&holder, &["drain", &holder])?;
        Ok(())
    })?;
    demo.cluster.done(&holder, &["resume", &holder])?;
    demo.settle()?;
    demo.balance()?;
    say("done; namespaces, agents, etcd and addresses are gone")
}

pub(super) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// What a command printed.
fn show(node: &str, command: &str, text: &str) -> Result<()> {
    say(&format!("{node} $ baton {command}"))?;
    let mut out = io::stdout().lock();
    text.lines().try_for_each(|line| writeln!(out, "             {line}"))?;
    Ok(())
}

struct Demo {
    probe: Probe,
    _echoes: Vec<Echo>,
    cluster: Cluster,
}

impl Demo {
    fn start(spec: ClusterSpec) -> Result<Demo> {
        let cluster = Cluster::start("demo-nodes", spec)?;
        let mut echoes = Vec::new();
        for node in NODES {
            echoes.push(Echo::start(cluster.lab.host(node)?, SocketAddr::new(ADDRESS, PORT), None)?);
        }
        let client = cluster.lab.host("client")?;
        let probe = Probe::start(client, SocketAddr::new(ADDRESS, PORT), PROBE_EVERY, None)?;
        probe.wait_for_replies(200, Duration::ZERO, PATIENCE)?;
        Ok(Demo { probe, _echoes: echoes, cluster })
    }

    fn holder(&self) -> Result<String> {
        Ok(self.cluster.wait_held(ADDRESS, |_| true)?)
    }

    fn move_to(&self, node: &str) -> Result<()> {
        for server in ["projects", "home"] {
            self.cluster.done(node, &["move", server, "--to", node])?;
        }
        self.settle()
    }

    /// Nothing fails, but one client makes much more work than all others.
    fn balance(&mut self) -> Result<()> {
        self.move_to("n1")?;
        let mut stream = None;
        self.fault(
            "a client writes 8 MB a second to home, on the same node; its ports carry 25",
            |cluster| {
                let client = cluster.lab.host("client")?;
                stream =
                    Some(client.stream(SocketAddr::new(HOME, PORT), 1000, 8, Duration::from_millis(1))?);
                let (mut plan, mut seen) = (String::new(), false);
                // The cluster may carry it out before it can be asked for it.
                wait_until("a plan", PATIENCE, || {
                    plan = cluster.done("n2", &["plan"]).unwrap_or_default();
                    seen = plan.contains("projects");
                    seen || cluster.holders(ADDRESS).is_ok_and(|nodes| nodes.iter().any(|n| n != "n1"))
                })
                .with_context(|| format!("the last plan was:\n{plan}"))?;
                if seen { show("n2", "plan", &plan) } else { Ok(()) }
            },
        )?;
        drop(stream);
        self.show_status("n2")
    }

    /// Until what was broken is whole again, and has been for a moment.
    fn settle(&self) -> Result<()> {
        std::thread::sleep(Duration::from_millis(700));
        self.cluster.wait_all_served()?;
        Ok(())
    }

    fn show_status(&self, node: &str) -> Result<()> {
        show(node, "status", &self.cluster.done(node, &["status"])?)
    }

    /// Breaks something, waits until the client is served again, and tells what it saw.
    fn fault(&mut self, what: &str, strike: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
        let before = self.holder()?;
        let at = clock::now();
        say(&format!("{what} ({before} holds 10.0.0.10)"))?;
        strike(&mut self.cluster)?;
        let after = self.cluster.wait_held(ADDRESS, |node| node != before)?;
        self.probe
            .wait_for_replies(200, clock::now(), PATIENCE)
            .context("the client got no answer any more")?;
        let gap = self.probe.result().longest_gap(at, clock::now()).map_or(Duration::ZERO, |g| g.length());
        say(&format!("  client: {:.1} ms without a reply; {after} answers now", millis(gap)))?;
        self.show_taken(&after)
    }

    /// What the new owner says of it.
    fn show_taken(&self, node: &str) -> Result<()> {
        let events = self.cluster.done(node, &["events", "--json"])?;
        let records = events.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok());
        let mut taken = records.filter_map(|r| match r.event.kind {
            EventKind::Taken { server, kind, reason, epoch, .. } if server == "projects" => {
                Some((kind, reason, epoch))
            }
            _ => None,
        });
        match taken.next_back() {
            Some((kind, reason, epoch)) => {
                let kind = format!("{kind:?}").to_lowercase();
                say(&format!(
                    "  {node}: {kind} of projects, {}, epoch {epoch}",
                    reason.word().replace('_', " ")
                ))
            }
            None => Ok(()),
        }
    }
}
