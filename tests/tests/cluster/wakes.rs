//! A whole node stands still, is replaced, and wakes up. Kernel programs can't be stopped: all cables are cut for as long.

use super::*;

/// What goes on first.
#[derive(Clone, Copy, PartialEq)]
enum First {
    Cables,
    Agent,
    Store,
}

fn wakes(name: &str, order: [First; 3]) -> Result<()> {
    let mut cluster = Cluster::start(name, two_servers())?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let still = |cluster: &mut Cluster, agent: bool, go: bool| -> Result<()> {
        let process = match agent {
            true => cluster.agent_mut("n1")?.process(),
            false => cluster.etcd.member("n1")?.as_mut().ok_or_else(|| anyhow::anyhow!("no member"))?,
        };
        let done = if go { process.resume() } else { process.pause() };
        Ok(done?)
    };
    still(&mut cluster, true, false)?;
    still(&mut cluster, false, false)?;
    let mut cut = cluster.lab.lose_host("n1")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    let served = cluster.wait_all_served()?;
    for first in order {
        match first {
            First::Cables => cut.clear(),
            First::Agent => still(&mut cluster, true, true)?,
            First::Store => still(&mut cluster, false, true)?,
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    ensure!(cluster.wait_all_served()? == served, "something moved when n1 woke up{}", cluster.logs());
    for address in ADDRESSES {
        wait_unconfigured(&cluster, "n1", ip(address))?;
    }
    quiet(&cluster, Duration::from_millis(500))?;
    all_to(&cluster, "n1")?;
    never_two(judge)
}

#[test]
fn a_node_that_wakes_up_with_its_cables_first_serves_nothing() -> Result<()> {
    wakes("wakes-cables", [First::Cables, First::Store, First::Agent])
}

#[test]
fn a_node_that_wakes_up_with_its_agent_first_serves_nothing() -> Result<()> {
    wakes("wakes-agent", [First::Agent, First::Cables, First::Store])
}

#[test]
fn a_node_that_wakes_up_with_its_store_first_serves_nothing() -> Result<()> {
    wakes("wakes-store", [First::Store, First::Agent, First::Cables])
}
