//! The agent of the owner stands still, or is gone.

use super::*;

/// Long enough for a takeover that must not happen.
const QUIET: Duration = Duration::from_millis(600);

#[test]
fn a_short_pause_of_the_agent_moves_nothing() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = Duration::from_secs(10); // shorter is the pause, however long a busy machine takes to look around in it
    let mut cluster = Cluster::start("pause-short", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    cluster.agent_mut("n1")?.process().pause()?;
    quiet(&cluster, QUIET)?;
    cluster.agent_mut("n1")?.process().resume()?;
    quiet(&cluster, QUIET)?;
    never_two(judge)
}

#[test]
fn a_long_pause_is_a_takeover_and_its_end_changes_nothing() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = Duration::from_millis(500);
    let mut cluster = Cluster::start("pause-long", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    cluster.agent_mut("n1")?.process().pause()?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    cluster.agent_mut("n1")?.process().resume()?;
    quiet(&cluster, QUIET)?;
    // It learns what has become of it, and lets go of the addresses.
    for address in ADDRESSES {
        wait_unconfigured(&cluster, "n1", ip(address))?;
    }
    // And it can be used again.
    all_to(&cluster, "n1")?;
    never_two(judge)
}

#[test]
fn a_killed_agent_that_comes_back_moves_nothing() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = Duration::from_secs(10); // a test must not depend on how fast a busy machine starts a program
    let mut cluster = Cluster::start("kill-back", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    for _ in 0..3 {
        cluster.agent_mut("n1")?.kill()?;
        quiet(&cluster, Duration::from_millis(200))?;
        cluster.agent_mut("n1")?.start_again()?;
        quiet(&cluster, QUIET)?;
    }
    // The one that came back is in charge of what the one before it took.
    all_to(&cluster, "n2")?;
    never_two(judge)
}

#[test]
fn a_killed_agent_that_stays_away_is_replaced() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = Duration::from_millis(500);
    let mut cluster = Cluster::start("kill-away", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    cluster.agent_mut("n1")?.kill()?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    cluster.agent_mut("n1")?.start_again()?;
    quiet(&cluster, QUIET)?;
    all_to(&cluster, "n1")?;
    never_two(judge)
}
