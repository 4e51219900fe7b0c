//! The program is replaced on one node after the other, while everything is served.

use baton_lab::probe::{Echo, Probe};

use super::*;

/// Kernel objects are pinned here, in the host's own file system.
const PINS: &str = "/sys/fs/bpf/baton";

/// What an agent of another version would have left: the same maps under another layout's name.
fn pretend_other_layout(cluster: &Cluster, node: &str) -> Result<()> {
    let renamed = cluster.lab.host(node)?.enter(|| -> std::io::Result<bool> {
        for entry in std::fs::read_dir(PINS)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if name.strip_prefix('v').is_some_and(|version| version.parse::<u32>().is_ok()) {
                std::fs::rename(&path, path.with_file_name("v1"))?;
                return Ok(true);
            }
        }
        Ok(false)
    })??;
    ensure!(renamed, "{node} has pinned nothing in {PINS}");
    Ok(())
}

/// Restarts every node's agent in turn, then again with pins of another layout: nothing moves, nobody becomes another incarnation,
/// no datagram to any address is lost, and no two nodes ever answer.
#[test]
fn a_rolling_upgrade_moves_and_loses_nothing() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = Duration::from_secs(10); // however long a busy machine takes to load the programs
    let mut cluster = Cluster::start("rolling", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let incarnations = |cluster: &Cluster| -> Result<Vec<serde_json::Value>> {
        ["n1", "n2", "n3"].iter().map(|n| Ok(cluster.agent(n)?.status()?["incarnation"].clone())).collect()
    };
    let (before, lives) = (cluster.wait_all_served()?, incarnations(&cluster)?);
    let mut streams = Vec::new();
    for address in ADDRESSES {
        let target = (ip(address), 7777).into();
        let echo = Echo::start(cluster.lab.host("n1")?, target, None)?;
        let probe = Probe::start(cluster.lab.host("client")?, target, Duration::from_millis(2), None)?;
        probe.wait_for_replies(20, Duration::ZERO, LONG)?;
        streams.push((address, echo, probe));
    }
    for other_layout in [false, true] {
        for node in ["n1", "n2", "n3"] {
            let starts = |cluster: &Cluster| -> Result<usize> {
                Ok(cluster.agent(node)?.events()?.iter().filter(|e| e["event"] == "started").count())
            };
            let had = starts(&cluster)?;
            cluster.agent_mut(node)?.terminate(LONG)?;
            if other_layout {
                pretend_other_layout(&cluster, node)?;
            }
            cluster.agent_mut(node)?.start_again()?;
            wait_until("the agent to be back", LONG, || starts(&cluster).is_ok_and(|now| now > had))?;
            cluster.wait_all_up()?;
            quiet(&cluster, Duration::from_millis(300))?;
        }
    }
    ensure!(cluster.wait_all_served()? == before, "moved");
    let now = incarnations(&cluster)?;
    ensure!(now == lives, "incarnations: {lives:?} -> {now:?}{}", cluster.logs());
    for (address, echo, probe) in streams {
        let result = probe.drain(LONG);
        let (lost, sent) = (result.lost(), result.sent.len());
        ensure!(lost == 0, "{address}: {lost} of {sent} lost, {} echoed{}", echo.echoed(), cluster.logs());
    }
    never_two(judge)
}
