//! A node dies.

use baton_lab::etcd::Timers;
use baton_lab::{Blackhole, Watcher};

use super::*;

#[test]
fn a_dead_node_is_replaced() -> Result<()> {
    let mut cluster = Cluster::start("death", two_servers())?;
    all_to(&cluster, "n1")?;
    quiet(&cluster, Duration::from_millis(500))?;
    let judge = cluster.judge()?;
    let _dark = cluster.power_off("n1")?;
    for address in ["10.0.0.10", "fd00:10::10"] {
        cluster.wait_held(ip(address), |node| node == "n2")?;
    }
    cluster.wait_held(ip("10.0.0.11"), |node| node == "n3")?;
    never_two(judge)
}

/// Cuts these nodes off at one moment, then kills all that runs there.
fn all_at_once(cluster: &mut Cluster, nodes: &[&str]) -> Result<Vec<Blackhole>> {
    let mut dark = Vec::new();
    for node in nodes {
        dark.extend(cluster.lab.lose_host(node)?);
    }
    for node in nodes {
        dark.extend(cluster.power_off(node)?);
    }
    Ok(dark)
}

#[test]
fn two_of_five_nodes_that_die_at_once_are_replaced() -> Result<()> {
    let mut spec = ClusterSpec::new()
        .nodes(5)
        .server("projects", &["10.0.0.10/24", "fd00:10::10/64"], "preferred_nodes = [\"n1\"]")
        .server("homes", &["10.0.0.11/24"], "preferred_nodes = [\"n2\"]")
        .server("scans", &["10.0.0.12/24"], "preferred_nodes = [\"n3\"]");
    spec.etcd_members = 5;
    let mut cluster = Cluster::start("two-of-five", spec)?;
    for (server, node) in [("projects", "n1"), ("homes", "n2"), ("scans", "n3")] {
        cluster.done(node, &["move", server, "--to", node])?;
    }
    let judge = cluster.judge()?;
    let _dark = all_at_once(&mut cluster, &["n1", "n2"])?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1" && node != "n2")?;
    }
    cluster.wait_held(ip("10.0.0.12"), |node| node == "n3")?;
    never_two(judge)
}

#[test]
fn of_three_nodes_the_last_one_alone_serves_nothing_and_two_serve_all() -> Result<()> {
    let mut cluster = Cluster::start("two-of-three", two_servers())?;
    all_to(&cluster, "n1")?;
    cluster.done("n1", &["move", "homes", "--to", "n3"])?;
    let judge = cluster.judge()?;
    let dark = all_at_once(&mut cluster, &["n1", "n2"])?;
    for address in ADDRESSES {
        wait_unserved(&cluster, ip(address))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    for address in ADDRESSES {
        ensure!(cluster.holders(ip(address))?.is_empty(), "{address} is served without a majority");
    }
    // One of the two comes back; the node that owned most stays away.
    let (back, _stays_dark): (Vec<_>, Vec<_>) = dark.into_iter().partition(|hole| hole.host() == "n2");
    drop(back);
    cluster.etcd.start_again("n2")?;
    cluster.agent_mut("n2")?.start_again()?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    never_two(judge)
}

#[test]
fn a_witness_votes_and_never_serves() -> Result<()> {
    let mut spec = two_servers();
    spec.witnesses = vec!["n3".to_owned()];
    let mut cluster = Cluster::start("witness", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let _dark = cluster.power_off("n1")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n2")?;
    }
    // The only other node can serve no more. The witness has good ports, and takes nothing all the same.
    for port in ["p0", "p1"] {
        cluster.lab.port("n2", port)?.cut()?;
    }
    for address in ADDRESSES {
        wait_unserved(&cluster, ip(address))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    for address in ADDRESSES {
        ensure!(cluster.holders(ip(address))?.is_empty(), "{address} is served by a witness");
    }
    for port in ["p0", "p1"] {
        cluster.lab.port("n2", port)?.restore()?;
    }
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n2")?;
    }
    never_two(judge)
}

/// Also one whose virtual servers have IPv6 addresses alone.
#[test]
fn a_server_with_ipv6_alone_is_moved_and_taken_over() -> Result<()> {
    let spec = ClusterSpec::new().server("six", &["fd00:10::16/64"], "preferred_nodes = [\"n1\", \"n2\"]");
    let mut cluster = Cluster::start("six", spec)?;
    let address = ip("fd00:10::16");
    let judge = cluster.judge()?;
    for node in ["n3", "n1"] {
        cluster.done("n2", &["move", "six", "--to", node])?;
        cluster.wait_held(address, |holder| holder == node)?;
    }
    let watcher = Watcher::claims(cluster.ports("n2"))?;
    let _dark = cluster.power_off("n1")?;
    let since = baton_lab::clock::now();
    cluster.wait_held(address, |node| node == "n2")?;
    watcher.wait_for_announcement(address, since, LONG)?;
    never_two(judge)
}

/// Spread over the survivors, and what has the higher priority first: of fifty to take at once only some are written at a time.
#[test]
fn a_hundred_servers_of_a_dead_node_all_come_back_by_priority() -> Result<()> {
    let mut spec = ClusterSpec::new();
    for n in 0..100 {
        let address = format!("10.0.0.{}/24", 101 + n);
        let priority = match n {
            0..10 => 1,
            90.. => 900,
            _ => 100,
        };
        let more = &format!("preferred_nodes = [\"n1\"]\npriority = {priority}");
        spec = spec.server(&format!("vs{n}"), &[&address], more);
    }
    spec.client_base = 10;
    spec.timers = Timers { heartbeat: 50, election: 500, ..spec.timers }; // a hundred writes at once may keep a busy machine's etcd for a while
    let mut cluster = Cluster::start("hundred", spec)?;
    // Those that another node took first, for n1 was not there yet.
    for n in 0..100 {
        let server = format!("vs{n}");
        if cluster.record(&server)?["node"] != "n1" {
            cluster.done("n1", &["move", &server, "--to", "n1"])?;
        }
    }
    // Were it the leader of the store too, the first writes would find none, and the next in line would be as early.
    if cluster.etcd.leader()? == "n1" {
        cluster.etcd.move_leader("n2")?;
    }
    let judge = cluster.judge()?;
    let _dark = cluster.power_off("n1")?;
    let held = cluster.wait_all_served()?;
    ensure!(held.len() == 100, "{} addresses", held.len());
    ensure!(held.values().all(|node| node != "n1"), "{held:?}");
    let on_n2 = held.values().filter(|node| *node == "n2").count();
    // Evenly, but for what one of them was late for: the other one, second in line, takes that after a while.
    ensure!((20..=80).contains(&on_n2), "not spread over the survivors: {on_n2} of 100 on n2");
    // Each began with what is first in line. A single write may have to be made again, which is why only the first ones count.
    let (mut first, mut last) = (0, 0);
    for node in ["n2", "n3"] {
        let events = cluster.agent(node)?.events()?;
        let from_the_dead =
            |e: &&serde_json::Value| e["event"] == "taken" && e["reason"] == "node_dead" && e["from"] == "n1";
        let number = |e: &serde_json::Value| e["server"].as_str()?.strip_prefix("vs")?.parse::<usize>().ok();
        let taken: Vec<usize> = events.iter().filter(from_the_dead).filter_map(number).collect();
        let (high, low) = (taken.iter().position(|n| *n >= 90), taken.iter().position(|n| *n < 10));
        ensure!(high.zip(low).is_none_or(|(high, low)| high < low), "{node} took them as {taken:?}");
        first += taken.iter().filter(|n| **n >= 90).count();
        last += taken.iter().filter(|n| **n < 10).count();
    }
    ensure!((first, last) == (10, 10), "{first}, {last}");
    never_two(judge)
}
