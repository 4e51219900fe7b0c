//! The program is replaced on one node after the other, while everything is served.
//!
//! With `BATON_PREVIOUS=/path/to/older/baton` nodes begin with that program, and are upgraded to this one; without it both are this
//! build. Which it was is printed.

use std::path::PathBuf;

use anyhow::Context;
use baton_lab::baton_binary;
use baton_lab::probe::{Echo, Probe};

use super::*;

/// Kernel objects are pinned here, in the host's own file system.
const PINS: &str = "/sys/fs/bpf/baton";

/// The program that is upgraded from.
fn previous() -> Result<PathBuf> {
    let Some(named) = std::env::var_os("BATON_PREVIOUS") else {
        println!("BATON_PREVIOUS is not set: the older program is this build, too");
        return Ok(baton_binary()?);
    };
    // The agents run in folders of their own.
    let path = std::path::absolute(&named)?;
    let said = std::process::Command::new(&path).arg("--version").output();
    let said = said.with_context(|| format!("BATON_PREVIOUS={}", path.display()))?;
    println!("the older program is {}: {}", path.display(), String::from_utf8_lossy(&said.stdout).trim());
    ensure!(said.status.success(), "{} --version: {}", path.display(), said.status);
    Ok(path)
}

/// Two virtual servers, on nodes that begin with this program; it may take a busy machine long to load the kernel programs.
fn from_program(program: PathBuf) -> ClusterSpec {
    let mut spec = two_servers();
    spec.grace = Duration::from_secs(10);
    spec.program = Some(program);
    spec
}

/// Ends a node's agent, lets something be done to what it left, and starts this program in its place, or another one.
fn replace(
    cluster: &mut Cluster,
    node: &str,
    program: PathBuf,
    meanwhile: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<()> {
    let starts = |cluster: &Cluster| -> Result<usize> {
        Ok(cluster.agent(node)?.events()?.iter().filter(|e| e["event"] == "started").count())
    };
    let had = starts(cluster)?;
    cluster.agent_mut(node)?.terminate(LONG)?;
    meanwhile(cluster)?;
    cluster.agent_mut(node)?.use_binary(&program);
    cluster.agent_mut(node)?.start_again()?;
    let back = wait_until("the agent to be back", LONG, || starts(cluster).is_ok_and(|now| now > had));
    back.with_context(|| cluster.logs())?;
    cluster.wait_all_up()?;
    quiet(cluster, Duration::from_millis(300))
}

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

/// Replaces the program of every node in turn, then restarts it with pins of another layout: nothing moves, nobody becomes another
/// incarnation, no datagram to any address is lost, and no two nodes ever answer.
#[test]
fn a_rolling_upgrade_moves_and_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start("rolling", from_program(previous()?))?;
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
            replace(&mut cluster, node, baton_binary()?, |cluster| match other_layout {
                true => pretend_other_layout(cluster, node),
                false => Ok(()),
            })?;
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

/// One node has this program, the other two the older one, and one of those loses its power; then the upgraded node goes back to the
/// older program.
#[test]
fn two_versions_in_one_cluster_hear_move_and_replace_one_another() -> Result<()> {
    let older = previous()?;
    let mut cluster = Cluster::start("versions", from_program(older.clone()))?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    replace(&mut cluster, "n1", baton_binary()?, |_| Ok(()))?;
    // From the newer to the older, and back, as either of them asks for it.
    for (asked, to) in [("n1", "n2"), ("n2", "n1"), ("n3", "n2"), ("n1", "n1")] {
        for server in ["projects", "homes"] {
            cluster.done(asked, &["move", server, "--to", to])?;
        }
        for address in ADDRESSES {
            cluster.wait_held(ip(address), |holder| holder == to)?;
        }
    }
    cluster.done("n3", &["drain", "n1"])?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |holder| holder != "n1")?;
    }
    cluster.done("n1", &["resume", "n1"])?;
    all_to(&cluster, "n1")?;
    replace(&mut cluster, "n1", older, |_| Ok(()))?;
    replace(&mut cluster, "n2", baton_binary()?, |_| Ok(()))?;
    // The older one dies: both versions, one vote each, call it dead.
    let _dark = cluster.power_off("n1")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |holder| holder != "n1")?;
    }
    never_two(judge)
}
