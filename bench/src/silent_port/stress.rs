//! False verdicts: a node whose ports all work, on a machine that has no time, under storms of foreign frames.

use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::{Foreign, clock};
use serde_json::Value;

use super::{CLIENT, NODE, Stand};
use crate::load::{self, Load};
use crate::report::Row;
use crate::witness::Witness;

const INTERVAL: Duration = Duration::from_millis(10);
const PORTS: usize = 4;
/// Above the agent's 49.
const HOG_PRIORITY: i32 = 60;
/// Frames in a burst, and time between two bursts, of each storm.
const BURST: usize = 20;
const EVERY: Duration = Duration::from_millis(2);

/// Stresses for so long; every verdict is false.
pub fn measure(over: Duration, remarks: &mut Vec<String>) -> Result<Vec<Row>> {
    let stand = Stand::new(PORTS, INTERVAL)?;
    let before = verdicts(&stand)?.len();
    let client = stand.lab.port("client", "p0")?;
    let host = stand.lab.host("client")?;
    let witness = Witness::start()?;
    let begun = clock::now();
    let target = CLIENT.parse().context("the client's address")?;
    let mut storms = vec![client.storm(Foreign::Arp { target }, BURST, EVERY)?];
    for port in stand.lab.ports().filter(|p| p.host().name() == NODE) {
        storms.push(client.storm(Foreign::Rubbish { to: port.mac() }, BURST, EVERY)?);
    }
    let spinners = Load::Busy.start(host)?;
    let hog = load::hog(host, clock::cpus() - 1, HOG_PRIORITY)?;
    std::thread::sleep(over);
    drop((spinners, hog));
    let frames: u64 = storms.iter().map(|s| s.sent()).sum();
    drop(storms);
    let seen = verdicts(&stand).with_context(|| stand.agent.log())?;
    for event in &seen[before..] {
        remarks.push(format!("FALSE VERDICT: {event}"));
    }
    let stall = witness.longest(begun, clock::now());
    let row = |metric, unit, value: f64| Row {
        load: "busy",
        ..Row::of("silent-port", "baton", "stress_10ms", metric, unit, &mut [value])
    };
    Ok(vec![
        row("false_verdicts", "count", (seen.len() - before) as f64),
        row("minutes", "min", over.as_secs_f64() / 60.0),
        row("foreign_frames", "count", frames as f64),
        row("longest_stall", "us", stall.as_secs_f64() * 1e6),
    ])
}

/// All events that call a port or a segment anything but well.
fn verdicts(stand: &Stand) -> Result<Vec<Value>> {
    let is_verdict = |e: &Value| match e["event"].as_str() {
        Some("port") => e["to"] != "good" && e["to"] != "held",
        Some("segment") => e["to"] != "whole",
        Some("target_silent" | "failover") => true,
        _ => false,
    };
    Ok(stand.agent.events()?.into_iter().filter(is_verdict).collect())
}
