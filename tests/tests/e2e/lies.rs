//! Frames that lie: forged, replayed, cut, of another version or of nobody known. They change nothing and are counted.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_common::{
    PROBE_ETHERTYPE, PROBE_KIND_ECHO, PROBE_KIND_PROBE, PROBE_LENGTH, PROBE_VERSION, ProbeFrame, SipKey,
    parse_probe,
};
use baton_lab::capture::Captured;
use baton_lab::host::wait_until;
use baton_lab::{Device, Direction, Foreign, Port, clock, wire};

use crate::common::*;
use crate::ground::{A_WHILE, Ground, TARGETS, config, lab};

const KEY_FILE: &str = "/var/lib/baton/probe.key";
const KEY: u128 = 0x000102030405060708090a0b0c0d0e0f;
const OTHER_KEY: u128 = 0x0f0e0d0c0b0a09080706050403020100;
const REASONS: [&str; 5] = ["truncated", "version", "forged", "replayed", "unknown"];
/// So many of each lie.
const TIMES: usize = 50;

fn key(digits: u128) -> SipKey {
    SipKey::from_bytes(digits.to_be_bytes())
}

/// As [`Ground::new`], with [`KEY`].
fn ground(name: &str, targets: bool) -> Result<Ground> {
    let lab = lab(name, 3, Device::Veth)?;
    let node = lab.host("fs1")?;
    node.write(KEY_FILE, &format!("{KEY:032x}\n"))?;
    node.enter(|| std::fs::set_permissions(KEY_FILE, std::fs::Permissions::from_mode(0o600)))??;
    Ground::on(lab, &config(3, targets))
}

/// The frames of one kind that go from one port to another, for a while.
fn frames(ground: &Ground, from: &str, to: &str, kind: u8) -> Result<Vec<ProbeFrame>> {
    let (from, to) = (ground.port(from)?, ground.port(to)?);
    let mut capture = to.capture_at_switch(PROBE_ETHERTYPE)?;
    std::thread::sleep(A_WHILE);
    let parsed = |seen: Captured| {
        let frame = parse_probe(&seen.bytes, key(KEY)).ok()?;
        let wanted = !seen.from_host && frame.source == from.mac().0 && frame.kind == [kind];
        (wanted && frame.destination == to.mac().0).then_some(frame)
    };
    let frames: Vec<ProbeFrame> = capture.take()?.into_iter().filter_map(parsed).collect();
    ensure!(
        frames.len() > 10,
        "{} frames of kind {kind} from {} to {}",
        frames.len(),
        from.interface(),
        to.interface()
    );
    Ok(frames)
}

/// The same frame with other contents and a right tag for them.
fn altered(frame: &ProbeFrame, key: SipKey, alter: impl FnOnce(&mut ProbeFrame)) -> ProbeFrame {
    let mut altered = *frame;
    alter(&mut altered);
    altered.seal(key);
    altered
}

fn refused(ground: &Ground) -> Result<[f64; 5]> {
    let text = ground.agent.metrics()?;
    let of =
        |reason| baton_lab::agent::metric(&text, "baton_probe_frames_refused_total", &[("reason", reason)]);
    let mut counts = [0.0; 5];
    for (count, reason) in counts.iter_mut().zip(REASONS) {
        *count = of(reason).with_context(|| format!("no count of {reason}"))?;
    }
    Ok(counts)
}

/// A frame that a port is handed, and under which reason it must be counted; `None`: under none, as it is not for this port.
type Lie<'a> = (&'a Port, Vec<u8>, Option<&'static str>);

/// Waits until the counts are those before and what `more` says.
fn counted(ground: &Ground, before: [f64; 5], more: impl Fn(&str) -> usize) -> Result<()> {
    let wanted: Vec<f64> = before.iter().zip(REASONS).map(|(count, r)| count + more(r) as f64).collect();
    let as_wanted = || refused(ground).is_ok_and(|counts| counts[..] == wanted[..]);
    let reached = wait_until("the counts", LONG, as_wanted);
    reached.with_context(|| format!("{:?}, wanted {wanted:?} of {REASONS:?}", refused(ground)))?;
    std::thread::sleep(Duration::from_secs(2)); // two samples
    ensure!(as_wanted(), "{:?}, wanted {wanted:?} of {REASONS:?}", refused(ground));
    Ok(())
}

/// All these lies, each told many times, change nothing, and are counted for what they are.
fn change_nothing(ground: &Ground, lies: &[Lie]) -> Result<()> {
    let (mark, before, holders) = (ground.mark()?, refused(ground)?, ground.holders()?);
    for (port, frame, _) in lies {
        port.send_to_host(&[frame.as_slice(); TIMES])?;
    }
    let of = |reason: &str| lies.iter().filter(|lie| lie.2 == Some(reason)).count();
    counted(ground, before, |reason| of(reason) * TIMES)?;
    let told = ground.agent.events()?.split_off(mark);
    ensure!(told.is_empty(), "{told:#?}");
    ground.all_good()?;
    ensure!(ground.holders()? == holders);
    Ok(())
}

/// Everything that can be wrong with a frame from p0 to `p1`.
fn lies_about<'a>(frame: &ProbeFrame, p1: &'a Port, p2: &'a Port) -> Vec<Lie<'a>> {
    // Any change without the key; of the kind: into the other one.
    let changed = [0, 6, 15, 16, 20, 24, 32, 40, 48, 56, 60, 64, 72, 80, 88, 96, 100, 101, 102, 104, 111]
        .map(|byte| {
            let mut bytes = *frame.as_bytes();
            bytes[byte] ^= if byte == 15 { 3 } else { 1 };
            (p1, bytes.to_vec(), Some("forged"))
        });
    let cut = [14, 60, PROBE_LENGTH - 1].map(|to| (p1, frame.as_bytes()[..to].to_vec(), Some("truncated")));
    let far = (u64::from_be_bytes(frame.sequence) + 1_000_000).to_be_bytes();
    let other_life = (u64::from_be_bytes(frame.incarnation) - 1).to_be_bytes();
    let right = key(KEY);
    let sealed = [
        // As it was, old by now: to its port, and to another.
        (p1, *frame, Some("replayed")),
        (p2, *frame, None),
        // New, by somebody with another key.
        (p1, altered(frame, key(OTHER_KEY), |f| f.sequence = far), Some("forged")),
        // Right tags, wrong otherwise.
        (p1, altered(frame, right, |f| f.version = [PROBE_VERSION + 1]), Some("version")),
        (p1, altered(frame, right, |f| f.version = [0]), Some("version")),
        (p1, altered(frame, right, |f| f.kind = [3]), Some("version")),
        (p1, altered(frame, right, |f| f.node = [0; 4]), Some("unknown")),
        (p1, altered(frame, right, |f| f.port = [0xff; 4]), Some("unknown")),
        (p1, altered(frame, right, |f| (f.sequence, f.incarnation) = (far, other_life)), Some("replayed")),
    ];
    let sealed = sealed.map(|(port, frame, reason)| (port, frame.as_bytes().to_vec(), reason));
    changed.into_iter().chain(cut).chain(sealed).collect()
}

#[test]
fn every_lie_is_counted_and_changes_nothing() -> Result<()> {
    let ground = ground("lies", false)?;
    let (p1, p2) = (ground.port("p1")?, ground.port("p2")?);
    for kind in [PROBE_KIND_PROBE, PROBE_KIND_ECHO] {
        let frame = *frames(&ground, "p0", "p1", kind)?.first().context("a frame")?;
        change_nothing(&ground, &lies_about(&frame, p1, p2))?;
    }
    // It was the frames that were wrong: the paths are as they were.
    ground.wait_finding("whole")?;
    ground.carrier_everywhere()
}

/// What an earlier agent sent does not count for a later one.
#[test]
fn frames_of_an_earlier_life_are_replays() -> Result<()> {
    let mut ground = ground("life", false)?;
    let probe = *frames(&ground, "p0", "p1", PROBE_KIND_PROBE)?.last().context("a probe")?;
    ground.agent.kill()?;
    ground.agent.start_again()?;
    wait_until("the new agent", LONG, || ground.agent.status().is_ok())?;
    ground.wait_finding("whole")?;
    let probe = probe.as_bytes().to_vec();
    change_nothing(&ground, &[(ground.port("p1")?, probe, Some("replayed"))])
}

/// All that a port once said is said again, in order, while it is dead: it stays dead.
#[test]
fn replays_dont_revive_a_dead_port() -> Result<()> {
    let ground = ground("revive", false)?;
    let mut old = Vec::new();
    for to in ["p1", "p2"] {
        for kind in [PROBE_KIND_PROBE, PROBE_KIND_ECHO] {
            old.extend(frames(&ground, "p0", to, kind)?.into_iter().map(|frame| (to, frame)));
        }
    }
    let bad = ground.port("p0")?.clone();
    let moved = ground.on_port("p0")?;
    let mark = ground.mark()?;
    let fault = bad.lose_both()?;
    wait_state(&ground.agent, "p0", "silent")?;
    for &address in &moved {
        wait_moved(&ground.lab, address, &bad)?;
    }
    let (since, holders) = (clock::now(), ground.holders()?);
    let before = refused(&ground)?;
    for _ in 0..5 {
        for to in ["p1", "p2"] {
            let frames = old.iter().filter(|(port, _)| *port == to).map(|(_, frame)| &frame.as_bytes()[..]);
            ground.port(to)?.send_to_host(&frames.collect::<Vec<_>>())?;
        }
        ensure!(ground.state("p0")? == "silent");
    }
    counted(&ground, before, |reason| if reason == "replayed" { 5 * old.len() } else { 0 })?;
    ensure!(ground.state("p0")? == "silent");
    ensure!(ground.holders()? == holders);
    ground.never_claims(&bad, &ground.addresses, since)?;
    let states = ground.events_since(mark, &["port"])?;
    ensure!(states.iter().all(|e| e["to"] == "silent"), "{states:#?}");
    ensure!(ground.events_since(mark, &["failover"])?.len() == 1);
    drop(fault);
    wait_state(&ground.agent, "p0", "good").map(drop)
}

/// A port hears plenty, but nothing that was meant for it: it is found as if it heard nothing.
fn noise_is_no_evidence(
    ground: &Ground,
    noise: impl FnOnce(&Port) -> Result<Vec<baton_lab::Storm>>,
) -> Result<()> {
    let bad = ground.port("p0")?.clone();
    let moved = ground.on_port("p0")?;
    let storms = noise(&bad)?;
    let mut heard = bad.capture_in_host(0x0806)?;
    heard.wait_for(LONG, |frame| !frame.from_host)?;
    ground.all_good()?;
    let mark = ground.mark()?;
    // The gateway, where there is one to ask, must not answer; what it says by itself gets through.
    let fault = (
        bad.lose_from(ground.port("p1")?)?,
        bad.lose_from(ground.port("p2")?)?,
        ground.lab.port("gw", "p0")?.lose(Direction::ToHost)?,
    );
    let event = ground.agent.wait_event("port", LONG, |e| e["to"] == "silent")?;
    ensure!(event["interface"] == "p0" && event["reason"] == "receive_silent", "{event}");
    for &address in &moved {
        wait_moved(&ground.lab, address, &bad)?;
    }
    heard.take()?;
    heard.wait_for(LONG, |frame| !frame.from_host)?; // still does
    std::thread::sleep(A_WHILE);
    ensure!(ground.state("p0")? == "silent");
    ground.one_failover_since(mark, "receive_silent", "p0", &moved)?;
    ground.carrier_everywhere()?;
    drop(storms);
    drop(fault);
    wait_state(&ground.agent, "p0", "good").map(drop)
}

#[test]
fn a_storm_of_broadcasts_does_not_keep_a_silent_port_good() -> Result<()> {
    let ground = ground("storm", false)?;
    noise_is_no_evidence(&ground, |bad| {
        let client = client(&ground.lab)?;
        let interval = Duration::from_millis(2);
        let target = "10.0.0.200".parse()?;
        Ok(vec![
            client.storm(Foreign::Arp { target }, 5, interval)?,
            client.storm(Foreign::Rubbish { to: bad.mac() }, 5, interval)?,
        ])
    })
}

#[test]
fn what_a_target_says_unasked_is_no_answer() -> Result<()> {
    let ground = ground("unasked", true)?;
    noise_is_no_evidence(&ground, |_| {
        let gw = ground.lab.port("gw", "p0")?;
        let unasked = wire::gratuitous_arp(gw.mac(), TARGETS[0].parse()?).to_vec();
        Ok(vec![gw.storm(Foreign::Frames(unasked), 2, Duration::from_millis(2))?])
    })
}

/// A storm of foreign frames, at a port that is well, costs no verdict.
#[test]
fn a_storm_at_a_good_port_costs_no_verdict() -> Result<()> {
    let ground = ground("calm", true)?.with_traffic()?;
    let (holders, mark) = (ground.holders()?, ground.mark()?);
    let before = refused(&ground)?;
    let client = client(&ground.lab)?;
    let bad = ground.port("p0")?;
    let interval = Duration::from_millis(1);
    let storms = [
        client.storm(Foreign::Rubbish { to: bad.mac() }, 10, interval)?,
        client.storm(Foreign::Arp { target: "10.0.0.200".parse()? }, 5, interval)?,
    ];
    for _ in 0..5 {
        ground.stay(&holders)?;
    }
    ground.no_verdict_since(mark)?;
    ground.all_good()?;
    drop(storms);
    let after = refused(&ground)?;
    ensure!(after[0] > before[0] && after[1] > before[1], "{after:?}, {before:?}");
    ground.clients_go_on(clock::now())
}

/// Users of packet captures in the host don't see what comes: only what the agent sends, if that.
#[test]
fn probes_that_come_are_not_seen_in_the_host() -> Result<()> {
    let ground = ground("capture", false)?;
    let port = ground.port("p1")?;
    let (mut wire, mut host) =
        (port.capture_at_switch(PROBE_ETHERTYPE)?, port.capture_in_host(PROBE_ETHERTYPE)?);
    std::thread::sleep(A_WHILE);
    let came = wire.take()?.iter().filter(|frame| !frame.from_host).count();
    ensure!(came > 50, "{came} came");
    let seen = host.take()?;
    let noise: Vec<_> = seen.iter().filter(|frame| !frame.from_host).collect();
    ensure!(noise.is_empty(), "{} of {came} were seen, as {:?}", noise.len(), noise.first());
    Ok(())
}
