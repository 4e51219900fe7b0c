//! The wall clock is set to and fro. The kernel has no namespaces for it, so the agents are shown a false one (libfaketime,
//! preloaded), with the clocks that only go forward left true. What it shows: nothing that an agent decides comes from the
//! wall clock. What it doesn't: etcd, which reads the clock past the C library, keeps the true one.

use super::*;

/// What an agent is told of the wall clock: an offset.
const FALSE_TIME: &str = "/run/baton-lab/false-time";

fn library() -> Result<String> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let mut files = places.iter().map(|place| format!("{place}/faketime/libfaketime.so.1"));
    let found = files.find(|file| std::path::Path::new(file).exists());
    found.ok_or_else(|| {
        anyhow::anyhow!("there is no libfaketime: install the package, or run make setup-test")
    })
}

fn step(cluster: &Cluster, node: &str, offset: &str) -> Result<()> {
    Ok(cluster.lab.host(node)?.write(FALSE_TIME, &format!("{offset}\n"))?)
}

#[test]
fn steps_of_the_wall_clock_move_nothing() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = LONG; // for the restart
    let mut cluster = Cluster::start("clock", spec)?;
    let library = library()?;
    for node in ["n1", "n2", "n3"] {
        step(&cluster, node, "+0")?;
        let agent = cluster.agent_mut(node)?;
        agent.set_environment(&[
            ("LD_PRELOAD", &library),
            ("FAKETIME_TIMESTAMP_FILE", FALSE_TIME),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ]);
        agent.kill()?;
        agent.start_again()?;
    }
    cluster.wait_all_up()?;
    all_to(&cluster, "n1")?;
    quiet(&cluster, Duration::from_millis(500))?;
    let judge = cluster.judge()?;
    // The owner's clock, a voter's, all of them; hours, years, and back.
    for (nodes, offset) in [
        (&["n1"][..], "+2h"),
        (&["n1"], "-3d"),
        (&["n2"], "+1d"),
        (&["n1", "n2", "n3"], "-400d"),
        (&["n1", "n2", "n3"], "+9y"),
    ] {
        nodes.iter().try_for_each(|node| step(&cluster, node, offset))?;
        quiet(&cluster, Duration::from_millis(700))?;
    }
    // They do live in that time,
    all_to(&cluster, "n2")?;
    let events = String::from_utf8_lossy(&cluster.agent("n2")?.command(&["events"])?.stdout).into_owned();
    let year = |line: &str| line.get(..4).and_then(|year| year.parse::<u32>().ok()).unwrap_or(0);
    let years: Vec<u32> = events.lines().map(year).filter(|y| *y > 0).collect();
    let spread = years.iter().max().zip(years.iter().min()).map_or(0, |(most, least)| most - least);
    ensure!(spread >= 8, "the agent has not seen the steps: {events}");
    // and a dead node is replaced in it, while the clock goes on to jump.
    let _dark = cluster.power_off("n2")?;
    step(&cluster, "n1", "-20d")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n2")?;
        step(&cluster, "n3", "+20d")?;
    }
    never_two(judge)
}
