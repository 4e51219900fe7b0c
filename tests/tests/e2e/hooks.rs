//! Programs that are told of events, by the real agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Agent, Cable, Lab};

use crate::common::*;
use crate::restart::wait_started;

const SCRIPT: &str = "/run/baton-lab/hook.sh";

fn read(lab: &Lab, name: &str) -> String {
    let path = format!("/run/baton-lab/{name}");
    let read = lab.host("fs1").and_then(|host| host.enter(|| std::fs::read_to_string(path)));
    read.ok().and_then(Result::ok).unwrap_or_default()
}

fn runs(agent: &Agent, hook: &str, result: &str) -> Option<f64> {
    agent.metric("baton_hook_runs_total", &[("hook", hook), ("result", result)]).ok().flatten()
}

/// A hook is told of a failover once; an agent that is killed while it runs does not take it along, and the next agent neither
/// kills it nor runs it again. What hangs or is missing holds up no failover.
#[test]
fn a_hook_is_told_once_and_outlives_its_agent() -> Result<()> {
    let lab = lab("hooks", 2, Cable::EventsAtOnce)?;
    let host = lab.host("fs1")?;
    host.write(
        SCRIPT,
        "cat >> told\necho begun >> begun\nwhile [ ! -e go ]; do sleep 0.05; done\necho done >> done\n",
    )?;
    let hook = |name: &str, run: &str, timeout: &str| {
        format!("[[hook]]\nname = {name:?}\non = [\"port_failover\"]\nrun = {run}\ntimeout = {timeout:?}\n")
    };
    let text = config(2).server("projects", &["10.0.0.10/24"]).text()
        + &hook("page", "[\"/bin/sh\", \"-c\", \"cd /run/baton-lab && . ./hook.sh\"]", "60s")
        + &hook("hangs", "[\"/bin/sleep\", \"1000\"]", "200ms")
        + &hook("missing", "[\"/nonexistent/program\"]", "1s");
    let mut agent = Agent::start_text(host, &text)?;
    let address = ip("10.0.0.10");
    agent.wait_served(client(&lab)?, address, LONG)?;
    let old = holder(&lab, address)?;
    old.cut()?;
    let new = wait_moved(&lab, address, old)?;
    wait_until("the hook to begin", LONG, || read(&lab, "begun") == "begun\n")?;
    wait_until("the others to have failed", LONG, || {
        runs(&agent, "hangs", "timeout") == Some(1.0) && runs(&agent, "missing", "not_started") == Some(1.0)
    })?;
    // Killed while it runs.
    agent.kill()?;
    agent.start_again()?;
    wait_started(&agent, 2)?;
    agent.wait_served_by(client(&lab)?, address, new, LONG)?;
    ensure!(read(&lab, "done").is_empty(), "it has ended by itself");
    host.write("/run/baton-lab/go", "")?;
    wait_until("the hook to end in its own time", LONG, || read(&lab, "done") == "done\n")?;
    // The next failover is told by the next agent; the first one was told once.
    old.restore()?;
    wait_state(&agent, old.interface(), "good")?;
    new.cut()?;
    wait_moved(&lab, address, new)?;
    wait_until("the second run", LONG, || runs(&agent, "page", "ok").is_some_and(|n| n >= 1.0))?;
    let told: Vec<serde_json::Value> =
        read(&lab, "told").lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |from: &str| {
        let moved = |e: &&serde_json::Value| e["event"] == "failover" && e["moves"][0]["from"] == from;
        told.iter().filter(moved).count()
    };
    ensure!(of(old.interface()) >= 1 && of(new.interface()) == 1, "{told:#?}");
    let causes: Vec<_> = told.iter().filter(|e| e["reason"] == "carrier_lost").collect();
    ensure!(causes.len() == 2, "{told:#?}");
    ensure!(causes.iter().all(|e| e["node"] == "fs1" && e["sentence"].is_string()), "{told:#?}");
    std::thread::sleep(Duration::from_millis(50));
    ensure!(read(&lab, "begun").lines().count() == told.len(), "one run for each event");
    Ok(())
}
