//! The store is lost, in part or as a whole.

use super::*;

#[test]
fn a_new_leader_of_the_store_moves_nothing() -> Result<()> {
    let mut cluster = Cluster::start("store-leader", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let leader = cluster.etcd.leader()?;
    cluster.etcd.kill(&leader)?;
    quiet(&cluster, Duration::from_secs(1))?;
    all_to(&cluster, "n2")?;
    cluster.etcd.start_again(&leader)?;
    quiet(&cluster, Duration::from_secs(1))?;
    never_two(judge)
}

#[test]
fn without_the_store_what_is_served_stays_served_and_nothing_is_taken() -> Result<()> {
    let mut cluster = Cluster::start("store-quorum", two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    for node in ["n2", "n3"] {
        cluster.etcd.kill(node)?;
    }
    cluster.agent("n1")?.wait_event("store_lost", LONG, |_| true)?;
    quiet(&cluster, Duration::from_secs(2))?;
    // An agent that is restarted meanwhile goes on with what there was.
    cluster.agent_mut("n1")?.kill()?;
    cluster.agent_mut("n1")?.start_again()?;
    quiet(&cluster, Duration::from_secs(1))?;
    // A node that dies now is not replaced,
    let dark = cluster.lab.lose_host("n1")?;
    for address in ADDRESSES {
        wait_unserved(&cluster, ip(address))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    for address in ADDRESSES {
        ensure!(cluster.holders(ip(address))?.is_empty(), "{address} was taken without a store");
    }
    // until the store is back.
    for node in ["n2", "n3"] {
        cluster.etcd.start_again(node)?;
    }
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    drop(dark);
    quiet(&cluster, Duration::from_secs(1))?;
    cluster.agent("n2")?.wait_event("store_back", LONG, |_| true)?;
    never_two(judge)
}
