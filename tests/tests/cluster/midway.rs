//! Somebody dies in the middle of a move. "In the middle" is no matter of luck: an agent that stands still does its part only
//! when it is let go.

use super::*;

/// Long enough that a paused agent is not given up.
const PATIENT: Duration = Duration::from_secs(20);

fn start(name: &str) -> Result<Cluster> {
    let mut spec = two_servers();
    spec.grace = PATIENT;
    let cluster = Cluster::start(name, spec)?;
    all_to(&cluster, "n1")?;
    Ok(cluster)
}

/// A key of the store, as `baton move` and `baton drain` write it, without waiting for what follows.
fn put(cluster: &Cluster, key: &str, value: &str) -> Result<()> {
    let done = cluster.etcd.ctl(&["put", &format!("/baton/lab/{key}"), value])?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

pub(super) fn wish(cluster: &Cluster, server: &str, to: &str) -> Result<()> {
    put(cluster, &format!("move/{server}"), &wanted(to))
}

/// The source has released everything, and nobody has taken it yet: the agents of the others stand still, and the source is
/// drained, so that it takes nothing back.
fn to_the_middle(cluster: &mut Cluster, source: &str, target: &str) -> Result<()> {
    for node in ["n1", "n2", "n3"] {
        if node != source {
            cluster.agent_mut(node)?.process().pause()?;
        }
    }
    wish(cluster, "projects", target)?;
    put(cluster, &format!("drain/{source}"), "1")?;
    cluster.wait_record("projects", |record| record["released"]["next"] == target)?;
    cluster.wait_record("homes", |record| !record["released"].is_null())?;
    for address in ADDRESSES {
        wait_unserved(cluster, ip(address))?;
    }
    Ok(())
}

fn served_by(cluster: &Cluster, server: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let addresses: &[&str] = if server == "homes" { &ADDRESSES[2..] } else { &ADDRESSES[..2] };
    for address in addresses {
        cluster.wait_held(ip(address), &wanted)?;
    }
    Ok(())
}

#[test]
fn the_target_dies_after_the_release() -> Result<()> {
    let mut cluster = start("target-dies")?;
    let judge = cluster.judge()?;
    to_the_middle(&mut cluster, "n1", "n2")?;
    let _dark = cluster.power_off("n2")?;
    cluster.agent_mut("n3")?.process().resume()?;
    served_by(&cluster, "projects", |node| node == "n3")?;
    served_by(&cluster, "homes", |node| node == "n3")?;
    never_two(judge)
}

#[test]
fn the_source_dies_after_the_release() -> Result<()> {
    let mut cluster = start("source-dies")?;
    let judge = cluster.judge()?;
    to_the_middle(&mut cluster, "n1", "n2")?;
    let _dark = cluster.power_off("n1")?;
    for node in ["n2", "n3"] {
        cluster.agent_mut(node)?.process().resume()?;
    }
    served_by(&cluster, "projects", |node| node != "n1")?;
    served_by(&cluster, "homes", |node| node != "n1")?;
    never_two(judge)
}

#[test]
fn the_source_dies_before_the_release() -> Result<()> {
    let mut cluster = start("source-dies-early")?;
    let judge = cluster.judge()?;
    cluster.agent_mut("n1")?.process().pause()?;
    wish(&cluster, "projects", "n3")?;
    wish(&cluster, "homes", "n2")?;
    let _dark = cluster.power_off("n1")?;
    // Whoever took it gives it to the node that it was wanted on, and the wish is gone then.
    served_by(&cluster, "projects", |node| node == "n3")?;
    served_by(&cluster, "homes", |node| node == "n2")?;
    let gone = || {
        let left = cluster.etcd.ctl(&["get", "--prefix", "--keys-only", "/baton/lab/move/"]);
        left.is_ok_and(|o| o.status.success() && o.stdout.is_empty())
    };
    wait_until("the wishes to be removed", LONG, gone)?;
    never_two(judge)
}

#[test]
fn the_master_dies_while_a_server_is_moved() -> Result<()> {
    let mut cluster = start("master-dies")?;
    let master = || {
        let record = cluster.record("@master").unwrap_or_default();
        record["node"].as_str().map(str::to_owned)
    };
    wait_until("a master", LONG, || master().is_some())?;
    let master = master().unwrap_or_default();
    // From and to the nodes that aren't master.
    let others: Vec<&str> = ["n1", "n2", "n3"].into_iter().filter(|n| *n != master).collect();
    let (source, target) = (others[0], others[1]);
    all_to(&cluster, source)?;
    let judge = cluster.judge()?;
    to_the_middle(&mut cluster, source, target)?;
    let _dark = cluster.power_off(&master)?;
    cluster.agent_mut(target)?.process().resume()?;
    served_by(&cluster, "projects", |node| node == target)?;
    served_by(&cluster, "homes", |node| node == target)?;
    cluster.wait_record("@master", |record| {
        record["node"].as_str().is_some_and(|node| node != master) && record["released"].is_null()
    })?;
    // And the cluster can still be told what to do.
    cluster.done(source, &["resume", source])?;
    all_to(&cluster, source)?;
    never_two(judge)
}
