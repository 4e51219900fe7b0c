//! Nodes that are cut off.

use baton_lab::{Blackhole, Direction, LabError};

use super::*;

#[test]
fn a_node_that_is_cut_off_is_replaced_and_comes_back_without_a_double() -> Result<()> {
    let cluster = Cluster::start("cut-off", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let cut = cluster.lab.lose_host("n1")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    drop(cut);
    quiet(&cluster, Duration::from_secs(1))?;
    for address in ADDRESSES {
        wait_unconfigured(&cluster, "n1", ip(address))?;
    }
    all_to(&cluster, "n1")?;
    never_two(judge)
}

/// The owner is heard and hears nothing, or the other way round.
fn one_way(name: &str, direction: Direction) -> Result<()> {
    let cluster = Cluster::start(name, two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let ports = cluster.lab.ports().filter(|port| port.host().name() == "n1");
    let cut = ports.map(|port| port.lose(direction)).collect::<Result<Vec<_>, _>>()?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    drop(cut);
    quiet(&cluster, Duration::from_secs(1))?;
    all_to(&cluster, "n1")?;
    never_two(judge)
}

#[test]
fn an_owner_that_only_sends_is_replaced() -> Result<()> {
    one_way("deaf", Direction::ToHost)
}

#[test]
fn an_owner_that_only_receives_is_replaced() -> Result<()> {
    one_way("mute", Direction::FromHost)
}

#[test]
fn without_a_majority_nobody_serves_and_with_it_all_is_as_before() -> Result<()> {
    let cluster = Cluster::start("no-majority", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let cuts = [cluster.lab.lose_host("n2")?, cluster.lab.lose_host("n3")?];
    for address in ADDRESSES {
        wait_unserved(&cluster, ip(address))?;
    }
    drop(cuts);
    cluster.wait_all_served()?;
    quiet(&cluster, Duration::from_secs(1))?;
    never_two(judge)
}

/// One pair of nodes that don't hear one another, or one of them not the other, is not enough for anything.
#[test]
fn what_only_one_pair_of_nodes_has_lost_moves_nothing() -> Result<()> {
    let cluster = Cluster::start("pair", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    for (those, these) in [(&["n1"], &["n2"]), (&["n2"], &["n1"])] {
        let cut = cluster.deafen(those, these)?;
        quiet(&cluster, Duration::from_secs(1))?;
        drop(cut);
        quiet(&cluster, Duration::from_millis(500))?;
    }
    let cut = cluster.split(&["n1"], &["n2"])?;
    quiet(&cluster, Duration::from_secs(1))?;
    drop(cut);
    quiet(&cluster, Duration::from_millis(500))?;
    all_to(&cluster, "n2")?;
    never_two(judge)
}

/// The client hears the old owner as well as the new one: the old one must be silent before the new one speaks.
fn cut_from_its_peers(name: &str, cut: impl Fn(&Cluster) -> Result<Vec<Blackhole>, LabError>) -> Result<()> {
    let cluster = Cluster::start(name, two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let holes = cut(&cluster)?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    quiet(&cluster, Duration::from_millis(500))?;
    drop(holes);
    quiet(&cluster, Duration::from_secs(1))?;
    for address in ADDRESSES {
        wait_unconfigured(&cluster, "n1", ip(address))?;
    }
    all_to(&cluster, "n1")?;
    never_two(judge)
}

#[test]
fn an_owner_that_clients_reach_and_peers_do_not_is_replaced() -> Result<()> {
    cut_from_its_peers("peers-lost", |cluster| cluster.split(&["n1"], &["n2", "n3"]))
}

#[test]
fn an_owner_that_peers_do_not_hear_is_replaced() -> Result<()> {
    cut_from_its_peers("peers-deaf", |cluster| cluster.deafen(&["n2", "n3"], &["n1"]))
}

#[test]
fn an_owner_that_does_not_hear_its_peers_is_replaced() -> Result<()> {
    cut_from_its_peers("owner-deaf", |cluster| cluster.deafen(&["n1"], &["n2", "n3"]))
}

/// Nobody but that client knows of it.
#[test]
fn an_owner_that_one_client_does_not_reach_stays() -> Result<()> {
    let cluster = Cluster::start("client-lost", two_servers())?;
    all_to(&cluster, "n1")?;
    // Who has it, and since which change of hands; a hiccup of the machine may cost an incarnation.
    let owners = || {
        let record = |server| cluster.record(server).unwrap_or_default();
        ["projects", "homes"].map(record).map(|r| (r["node"].clone(), r["epoch"].clone()))
    };
    let before = owners();
    let judge = cluster.judge()?;
    let cut = cluster.split(&["n1"], &["client"])?;
    for address in ADDRESSES {
        wait_unserved(&cluster, ip(address))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    drop(cut);
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n1")?;
    }
    let after = owners();
    ensure!(before == after && before[0].0 == "n1", "{before:?} -> {after:?}");
    never_two(judge)
}
