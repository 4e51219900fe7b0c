//! Several nodes with a real etcd: who serves what, whatever fails, judged by the wire.

mod apply;
mod balance;
mod campaign;
mod clock;
mod death;
mod failback;
mod fences;
mod files;
mod files_campaign;
mod heal;
mod membership;
mod midway;
mod moves;
mod page;
mod partition;
mod pause;
mod reroute;
mod resets;
mod secure;
mod smb;
mod store;
mod upgrade;
mod wakes;
mod watched;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::cluster::{Cluster, ClusterSpec, Judge};
use baton_lab::host::wait_until;

/// Long enough for everything that happens at all.
const LONG: Duration = Duration::from_secs(60);
/// Of the virtual servers of [`two_servers`].
const ADDRESSES: [&str; 3] = ["10.0.0.10", "fd00:10::10", "10.0.0.11"];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// Three nodes, two virtual servers that prefer the first one.
fn two_servers() -> ClusterSpec {
    ClusterSpec::new()
        .server(
            "projects",
            &["10.0.0.10/24", "fd00:10::10/64"],
            "priority = 200\npreferred_nodes = [\"n1\", \"n2\"]",
        )
        .server("homes", &["10.0.0.11/24"], "preferred_nodes = [\"n1\", \"n3\"]")
}

/// What `baton move` writes for a node.
fn wanted(to: &str) -> String {
    format!("{{\"to\":{to:?},\"reason\":\"administrator\"}}")
}

/// Brings everything to one node.
fn all_to(cluster: &Cluster, node: &str) -> Result<()> {
    for server in ["projects", "homes"] {
        cluster.done(node, &["move", server, "--to", node])?;
    }
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |holder| holder == node)?;
    }
    Ok(())
}

/// No address was ever answered for by two nodes.
fn never_two(judge: Judge) -> Result<()> {
    let seen = judge.finish();
    ensure!(seen.doubles.is_empty(), "two nodes answered: {:?}", seen.doubles);
    ensure!(seen.asked > 5, "the judge has asked {} times only", seen.asked);
    Ok(())
}

/// Lets time pass in which nothing must happen.
fn quiet(cluster: &Cluster, time: Duration) -> Result<()> {
    let before = cluster.wait_all_served()?;
    std::thread::sleep(time);
    let after = cluster.wait_all_served()?;
    ensure!(before == after, "moved without a cause: {before:?} -> {after:?}{}", cluster.logs());
    Ok(())
}

/// Waits until nobody answers for the address.
fn wait_unserved(cluster: &Cluster, address: IpAddr) -> Result<()> {
    let nobody = || cluster.holders(address).is_ok_and(|nodes| nodes.is_empty());
    Ok(wait_until("nobody to answer", LONG, nobody)?)
}

/// Waits until the address is on no interface of the node.
fn wait_unconfigured(cluster: &Cluster, node: &str, address: IpAddr) -> Result<()> {
    let host = cluster.lab.host(node)?;
    let gone =
        || host.netlink().addresses().is_ok_and(|all| !all.iter().any(|(_, net)| net.addr() == address));
    Ok(wait_until("the address to leave the node", LONG, gone)?)
}
