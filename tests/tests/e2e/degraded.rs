//! Ports that work badly or come and go: moved away from once, and not trusted again at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Device, Direction, Port, clock};
use serde_json::Value;

use crate::common::*;
use crate::ground::{A_WHILE, Ground, config, config_with};

/// Losses are measured over seconds, and forgotten over tens of seconds.
const LONGER: Duration = Duration::from_secs(120);

/// A port is degraded by `fail`: its addresses leave it once, and come back only when it has been clean for its hold-down.
fn degraded(
    ground: &Ground,
    reason: &str,
    told: &str,
    hold_down: Duration,
    fail: impl FnOnce(&Port) -> Result<Box<dyn std::any::Any>>,
) -> Result<()> {
    let bad = ground.port("p0")?.clone();
    let moved = ground.on_port("p0")?;
    ensure!(!moved.is_empty());
    let mark = ground.mark()?;
    let fault = fail(&bad)?;
    let is_p0 = |e: &Value| e["interface"] == "p0";
    let event = ground.agent.wait_event("port", LONGER, |e| is_p0(e) && e["to"] == "degraded")?;
    ensure!(event["reason"] == reason && event["from"] == "good", "{event}");
    let loss = event["evidence"]["loss"].as_array().context("evidence")?;
    ensure!(loss.iter().any(|text| text.as_str().is_some_and(|text| text.contains(told))), "{event}");
    for &address in &moved {
        let new = wait_moved(&ground.lab, address, &bad)?;
        wait_configured_once(&ground.lab, address, new)?;
    }
    let holders = ground.holders()?;
    // While it lasts, nothing moves any more.
    for _ in 0..6 {
        ground.stay(&holders)?;
    }
    ground.one_failover_since(mark, reason, "p0", &moved)?;
    ensure!(ground.state("p0")? == "degraded");
    ground.carrier_everywhere()?;

    let healed = ground.agent.events()?.len();
    let healed_at = clock::now();
    drop(fault);
    ground.agent.wait_event("port", LONGER, |e| is_p0(e) && e["from"] == "degraded" && e["to"] == "good")?;
    ensure!(clock::now() >= healed_at + hold_down, "back before its hold-down");
    wait_until("addresses on it again", LONG, || ground.on_port("p0").is_ok_and(|a| !a.is_empty()))?;
    let failovers = ground.events_since(healed, &["failover"])?;
    ensure!(failovers.len() == 1 && failovers[0]["reason"] == "port_failback", "{failovers:#?}");
    ground.clients_go_on(clock::now())
}

#[test]
fn a_port_loses_frames() -> Result<()> {
    let hold_down = Duration::from_secs(2);
    let config = config_with(3, false, "spread").hold_down(hold_down, hold_down);
    let ground = Ground::new("loss", 3, Device::Veth, &config)?.with_traffic()?;
    let fail = |port: &Port| Ok(Box::new(port.lose_share(Direction::ToHost, 8)?) as Box<dyn std::any::Any>);
    degraded(&ground, "loss", ">p0", hold_down, fail)
}

#[test]
fn a_port_loses_frames_that_it_sends() -> Result<()> {
    let hold_down = Duration::from_secs(2);
    let config = config_with(3, false, "spread").hold_down(hold_down, hold_down);
    let ground = Ground::new("losstx", 3, Device::Veth, &config)?.with_traffic()?;
    let fail = |port: &Port| Ok(Box::new(port.lose_share(Direction::FromHost, 8)?) as Box<dyn std::any::Any>);
    degraded(&ground, "loss", "p0>", hold_down, fail)
}

#[test]
fn a_port_counts_errors() -> Result<()> {
    let hold_down = Duration::from_secs(2);
    let config = config_with(3, false, "spread").hold_down(hold_down, hold_down);
    let ground = Ground::new("errors", 3, Device::Vxlan, &config)?.with_traffic()?;
    let fail = |port: &Port| Ok(Box::new(port.spoil(5, Duration::from_millis(5))?) as Box<dyn std::any::Any>);
    degraded(&ground, "errors", "p0 receive errors", hold_down, fail)
}

/// Every time it takes longer until the port is trusted, so the number of moves is bounded.
#[test]
fn a_port_comes_and_goes() -> Result<()> {
    const FLAPS: usize = 12;
    let (first, most) = (Duration::from_millis(100), Duration::from_secs(60));
    let config = config_with(3, true, "spread").hold_down(first, most);
    let ground = Ground::new("flaps", 3, Device::Veth, &config)?.with_traffic()?;
    let bad = ground.port("p0")?.clone();
    let mark = ground.mark()?;
    for _ in 0..FLAPS {
        let fault = bad.lose_both()?;
        wait_state(&ground.agent, "p0", "silent")?;
        drop(fault);
        wait_until("the end of silence", LONG, || ground.state("p0").is_ok_and(|s| s != "silent"))?;
        // Long enough for the first few hold-downs to end.
        std::thread::sleep(first * 4);
    }
    ground.carrier_everywhere()?;
    let port = ground.agent.port_status("p0")?;
    ensure!(port["state"] == "held" && port["flaps"].as_u64() >= Some(FLAPS as u64), "{port}");
    ensure!(port["held_ms"].as_u64().is_some_and(|ms| ms > 30_000), "{port}");
    // Held for 0.1, 0.2, 0.4 s, ... : after the first four at most it goes away again before it is trusted.
    let failovers = ground.events_since(mark, &["failover"])?;
    let away = failovers.iter().filter(|e| e["reason"] != "port_failback").count();
    ensure!((1..=4).contains(&away) && failovers.len() <= 2 * away, "{failovers:#?}");
    ensure!(ground.on_port("p0")?.is_empty());
    ground.clients_go_on(clock::now())
}

/// One frame lost now and then is no reason.
#[test]
fn a_port_that_loses_a_frame_now_and_then_is_good() -> Result<()> {
    let ground = Ground::new("seldom", 3, Device::Veth, &config(3, false))?.with_traffic()?;
    let (holders, mark) = (ground.holders()?, ground.mark()?);
    let _hole = ground.port("p0")?.lose_share(Direction::ToHost, 1)?;
    std::thread::sleep(A_WHILE * 5);
    ground.stay(&holders)?;
    ground.no_verdict_since(mark)?;
    ground.all_good()
}
