//! An address leaves a port that fails, in every way that a port fails, and its clients go on.

mod common;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::clock;
use baton_lab::probe::{Echo, Probe};
use baton_lab::tcp::{Server, Transfer};
use baton_lab::{Cable, Lab, Port, Watcher};
use common::*;

/// Breaks the port that an address is on with `fail` (which returns when), while a transfer and a probe stream run to
/// it; the wire must show one clean move, and the clients go on.
fn address_moves(
    name: &str,
    cable: Cable,
    address: &str,
    fail: impl FnOnce(&Port) -> Result<Duration>,
) -> Result<Lab> {
    let lab = lab(name, 3, cable)?;
    let node = lab.host("fs1")?;
    let prefix = if address.contains(':') { 64 } else { 24 };
    let agent = serve(&lab, &config(3).server("projects", &[&format!("{address}/{prefix}")]))?;
    let address: IpAddr = ip(address);
    let old = holder(&lab, address)?.clone();
    let _echo = Echo::start(node, (address, 7777).into(), None)?;
    let server = Server::start(node, (address, 7778).into())?;
    let probe = Probe::start(lab.host("client")?, (address, 7777).into(), Duration::from_millis(1), None)?;
    let transfer = Transfer::start(lab.host("client")?, (address, 7778).into(), Some(10_000_000))?;
    probe.wait_for_replies(50, Duration::ZERO, LONG)?;
    transfer.wait_for(1_000_000, LONG)?;
    let watcher = Watcher::start(lab.ports())?;

    let failed = fail(&old)?;
    watcher.wait_for_announcement(address, failed, LONG)?;
    let announced = clock::now();
    probe.wait_for_replies(50, announced, LONG)?;
    transfer.wait_for(1_000_000, LONG)?;

    let new = holder(&lab, address)?.clone();
    ensure!(new.mac() != old.mac(), "still on {}", old.interface());
    wait_configured_once(&lab, address, &new)?;
    announced_by_new_port_only(&watcher, address, &new, failed)?;
    let seen = transfer.stop();
    ensure!(seen.intact && seen.ended.is_none(), "{seen:?}");
    let trouble = watcher.tcp_trouble(address);
    ensure!(trouble.resets == 0, "{trouble:?}");
    // Replies leave by the new port, and by no third one.
    let ways = watcher.sent_from(address);
    ensure!(ways.contains_key(new.switch_end()), "{ways:?}");
    ensure!(ways.keys().all(|way| way == new.switch_end() || way == old.switch_end()), "{ways:?}");
    let result = probe.stop();
    let gap = result.longest_gap(failed, clock::now()).map(|gap| gap.length());
    println!(
        "{name}: lost {} of {}, longest gap {gap:?}, {trouble:?}, {:?}",
        result.lost(),
        result.sent.len(),
        server.retransmissions()
    );
    ensure!(watcher.lost() == 0, "the watcher missed frames");
    drop(agent);
    Ok(lab)
}

#[test]
fn carrier_lost_at_the_switch_event_at_once() -> Result<()> {
    address_moves("carrier4", Cable::EventsAtOnce, "10.0.0.10", |port| Ok(port.cut()?)).map(drop)
}

#[test]
fn carrier_lost_at_the_switch_event_delayed() -> Result<()> {
    address_moves("linkwatch4", Cable::DelayedEvents, "10.0.0.10", |port| Ok(port.cut()?)).map(drop)
}
