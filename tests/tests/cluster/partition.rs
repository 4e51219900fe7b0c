//! Nodes that are cut off.

use baton_lab::Direction;

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
