//! What an administrator asks for, and what a node does by itself while it lives.

use super::*;

#[test]
fn a_drained_node_is_empty_and_a_resumed_one_can_be_used() -> Result<()> {
    let cluster = Cluster::start("drain", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let said = cluster.done("n2", &["drain", "n1"])?;
    ensure!(said.contains("n1 is drained"), "{said}");
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n2")?;
    cluster.wait_held(ip("10.0.0.11"), |node| node == "n3")?;
    for address in ADDRESSES {
        wait_unconfigured(&cluster, "n1", ip(address))?;
    }
    cluster.done("n3", &["resume", "n1"])?;
    quiet(&cluster, Duration::from_millis(500))?;
    all_to(&cluster, "n1")?;
    never_two(judge)
}

#[test]
fn what_prefers_a_node_goes_back_to_it_when_it_may() -> Result<()> {
    let spec = ClusterSpec::new()
        .server("projects", &["10.0.0.10/24"], "preferred_nodes = [\"n1\"]\nfailback = \"immediate\"")
        .server("homes", &["10.0.0.11/24"], "preferred_nodes = [\"n1\"]");
    let cluster = Cluster::start("failback", spec)?;
    cluster.done("n1", &["drain", "n1"])?;
    let judge = cluster.judge()?;
    let homes = cluster.wait_held(ip("10.0.0.11"), |node| node != "n1")?;
    cluster.done("n1", &["resume", "n1"])?;
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n1")?;
    cluster.wait_held(ip("10.0.0.11"), |node| node == homes)?;
    never_two(judge)
}

#[test]
fn a_server_without_a_good_port_leaves() -> Result<()> {
    let cluster = Cluster::start("no-port", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    for port in ["p0", "p1"] {
        cluster.lab.port("n1", port)?.cut()?;
    }
    for address in ADDRESSES {
        let holder = cluster.wait_held(ip(address), |node| node != "n1")?;
        let taken = |e: &serde_json::Value| e["kind"] == "move" && e["reason"] == "no_good_port";
        cluster.agent(&holder)?.wait_event("taken", LONG, taken)?;
    }
    for port in ["p0", "p1"] {
        cluster.lab.port("n1", port)?.restore()?;
    }
    quiet(&cluster, Duration::from_secs(1))?;
    never_two(judge)
}

/// Both ports keep their carrier, and nothing comes through any more.
#[test]
fn a_server_whose_ports_are_all_silent_leaves() -> Result<()> {
    let cluster = Cluster::start("silent", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let mut holes = Vec::new();
    for port in ["p0", "p1"] {
        holes.extend(cluster.lab.port("n1", port)?.lose_both()?);
    }
    for address in ADDRESSES {
        let holder = cluster.wait_held(ip(address), |node| node != "n1")?;
        let taken = |e: &serde_json::Value| e["kind"] == "move" && e["reason"] == "no_good_port";
        cluster.agent(&holder)?.wait_event("taken", LONG, taken)?;
    }
    drop(holes);
    quiet(&cluster, Duration::from_secs(1))?;
    all_to(&cluster, "n1")?;
    never_two(judge)
}

/// When the switch of the segment dies, no node is better than another.
#[test]
fn a_dead_switch_moves_nothing() -> Result<()> {
    let cluster = Cluster::start("dead-switch", two_servers())?;
    all_to(&cluster, "n1")?;
    let off = cluster.lab.switch_off("office")?;
    std::thread::sleep(Duration::from_secs(2));
    drop(off);
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n1")?;
    }
    Ok(())
}

#[test]
fn a_pinned_server_stays_and_waits_for_its_node() -> Result<()> {
    let spec = ClusterSpec::new()
        .server("pinned", &["10.0.0.10/24"], "migrate = false\npreferred_nodes = [\"n1\"]")
        .server("homes", &["10.0.0.11/24"], "preferred_nodes = [\"n1\"]");
    let cluster = Cluster::start("pinned", spec)?;
    for server in ["pinned", "homes"] {
        cluster.done("n1", &["move", server, "--to", "n1"])?;
    }
    let judge = cluster.judge()?;
    let dark = cluster.lab.lose_host("n1")?;
    cluster.wait_held(ip("10.0.0.11"), |node| node != "n1")?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(cluster.holders(ip("10.0.0.10"))?.is_empty(), "the pinned server was taken");
    drop(dark);
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n1")?;
    never_two(judge)
}
