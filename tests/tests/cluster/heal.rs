//! After a partition exactly one owner announces again, and what clients and switches remember heals by itself.

use std::process::Output;

use baton_lab::{Blackhole, Watcher, clock};

use super::*;

/// Has this client learned where the addresses are? It asks as every host does.
fn learn(cluster: &Cluster, client: &str) -> Result<()> {
    for address in ADDRESSES {
        let answered = || ping(cluster, client, address).is_ok_and(|o| o.status.success());
        wait_until("an answer to a ping", LONG, answered)?;
    }
    Ok(())
}

fn ping(cluster: &Cluster, client: &str, address: &str) -> Result<Output> {
    Ok(cluster.lab.host(client)?.run("ping", ["-c", "1", "-W", "1", address])?)
}

/// The visitor is on the old owner's side of a partition, and hears nothing of the new owner. It asks nothing: the neighbour
/// entries that it has must be put right from outside.
fn heals(name: &str, cut: impl Fn(&Cluster) -> Result<Vec<Blackhole>>) -> Result<()> {
    let mut spec = two_servers();
    spec.clients.push("visitor".to_owned());
    let cluster = Cluster::start(name, spec)?;
    all_to(&cluster, "n1")?;
    learn(&cluster, "visitor")?;
    let judge = cluster.judge()?;
    let holes = cut(&cluster)?;
    let mut owners = Vec::new();
    for address in ADDRESSES {
        owners.push((ip(address), cluster.wait_held(ip(address), |node| node != "n1")?));
    }
    // The announcements of the takeover are over.
    std::thread::sleep(Duration::from_millis(1500));
    let visitor = cluster.lab.host("visitor")?;
    for (address, _) in &owners {
        let known = visitor.neighbour(*address)?.and_then(|mac| cluster.node_of(mac));
        ensure!(known == Some("n1"), "the visitor should still take n1 for {address}, and has {known:?}");
    }
    let watcher = Watcher::claims(cluster.lab.ports())?;
    let healed = clock::now();
    drop(holes);
    for (address, owner) in &owners {
        watcher.wait_for_announcement(*address, healed, LONG)?;
        let right = || {
            let known = visitor.neighbour(*address).ok().flatten();
            known.and_then(|mac| cluster.node_of(mac)) == Some(owner)
        };
        wait_until(&format!("the visitor to find {address} at {owner}"), LONG, right)?;
    }
    std::thread::sleep(Duration::from_millis(1200)); // the repetitions
    for (address, owner) in &owners {
        for said in watcher.announcements(*address, healed) {
            let by = cluster.node_of(said.mac);
            ensure!(by == Some(owner), "{by:?} announced {address}, which {owner} has");
        }
    }
    // What the switch knows of where they are is right, too.
    learn(&cluster, "visitor")?;
    quiet(&cluster, Duration::from_millis(300))?;
    never_two(judge)
}

#[test]
fn after_a_split_the_new_owner_announces_again() -> Result<()> {
    heals("heal", |cluster| {
        // The visitor first: it must not hear of what follows.
        let mut holes = cluster.split(&["visitor"], &["n2", "n3", "client"])?;
        holes.extend(cluster.split(&["n1"], &["n2", "n3", "client"])?);
        Ok(holes)
    })
}

/// The interconnect goes on: no member is ever out of touch, and no lease ends.
#[test]
fn after_a_split_of_the_clients_segment_alone_the_new_owner_announces_again() -> Result<()> {
    heals("heal-office", |cluster| {
        let there = ["n2", "n3", "client"];
        let mut holes = cluster.split(&["visitor"], &there)?;
        for a in cluster.ports("n1").filter(|p| p.segment() == "office") {
            for b in cluster.lab.ports().filter(|p| there.contains(&p.host().name())) {
                if b.segment() == "office" {
                    holes.extend([a.lose_from(b)?, b.lose_from(a)?]);
                }
            }
        }
        Ok(holes)
    })
}

/// Nobody could take over; the owner is the same as before.
#[test]
fn an_owner_that_has_its_majority_back_announces_again() -> Result<()> {
    let cluster = Cluster::start("heal-majority", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let all = [("n1", ["n2", "n3"]), ("n2", ["n1", "n3"]), ("n3", ["n1", "n2"])];
    let mut holes = Vec::new();
    for (node, others) in all {
        holes.extend(cluster.deafen(&[node], &others)?);
    }
    for address in ADDRESSES {
        wait_unserved(&cluster, ip(address))?;
    }
    std::thread::sleep(Duration::from_millis(1500));
    let watcher = Watcher::claims(cluster.lab.ports())?;
    let healed = clock::now();
    drop(holes);
    let held = cluster.wait_all_served()?;
    for (address, owner) in held {
        let said = watcher.wait_for_announcement(address, healed, LONG)?;
        let by = cluster.node_of(said.mac);
        ensure!(by == Some(owner.as_str()), "{by:?} announced {address}, which {owner} has");
    }
    never_two(judge)
}
