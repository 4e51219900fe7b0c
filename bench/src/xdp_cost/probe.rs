//! A probe frame, from the check of its tag to the sealed echo, and an echo. Each run has a fresh sequence, so each is a
//! system call of its own: caches are as cold as that leaves them.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use baton::io::kernel::{Kernel, PathTable};
use baton_common::{
    PROBE_ETHERTYPE, PROBE_KIND_ECHO, PROBE_KIND_PROBE, PROBE_VERSION, Path, PathKey, ProbeConfig,
    ProbeFrame, SipKey,
};
use hdrhistogram::Histogram;

use super::{HERE, clone_program, raw};

const KEY: SipKey = SipKey::from_bytes(*b"0123456789abcdef");
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: u32 = 2;
const PEER_PORT: u32 = 9;
const INCARNATION: u64 = 7;
/// `XDP_DROP`, `XDP_TX`.
const DROP: i32 = 1;
const TX: i32 = 3;

/// Nanoseconds a frame: of the floor, in all, and above the floor's median.
pub struct Cost {
    /// What frames.
    pub name: &'static str,
    pub base: Histogram<u64>,
    pub total: Histogram<u64>,
    pub above: Histogram<u64>,
}

/// Measures probes and echoes, so many of each.
pub fn measure(kernel: &mut Kernel, frames: u32) -> Result<Vec<Cost>> {
    let mut table = kernel.path_table()?;
    table.identify(ProbeConfig { key: KEY, incarnation: INCARNATION, node: 1, reserved: 0 })?;
    enter(&mut table)?;
    let program = clone_program(kernel, "port_rx")?;
    let empty = raw::empty(raw::XDP).context("loading the empty program")?;
    let mut costs = Vec::new();
    for (name, kind, verdict) in [("probe", PROBE_KIND_PROBE, TX), ("echo of a probe", PROBE_KIND_ECHO, DROP)]
    {
        let histogram = || Histogram::new(3).context("making a histogram");
        let mut cost = Cost { name, base: histogram()?, total: histogram()?, above: histogram()? };
        for sequence in 1..=u64::from(frames) {
            let frame = frame(kind, sequence);
            let floor = raw::test_run(empty.as_fd(), &frame, 1).context("running the empty program")?;
            let run = raw::test_run(program.as_fd(), &frame, 1).context("running a program on a probe")?;
            ensure!(run.verdict == verdict, "verdict {} instead of {verdict}", run.verdict);
            cost.base.record(floor.per_packet.as_nanos() as u64)?;
            cost.total.record(run.per_packet.as_nanos() as u64)?;
        }
        let floor = cost.base.value_at_quantile(0.5);
        for value in cost.total.iter_recorded() {
            cost.above.record_n(value.value_iterated_to().saturating_sub(floor), value.count_at_value())?;
        }
        costs.push(cost);
    }
    Ok(costs)
}

fn enter(table: &mut PathTable) -> Result<()> {
    let key = PathKey { node: PEER, port: PEER_PORT, ifindex: HERE.0 };
    let path = Path::new(INCARNATION, 60_000_000_000, MAC, 0);
    table.add_path(key, path)?;
    Ok(())
}

fn frame(kind: u8, sequence: u64) -> [u8; baton_common::PROBE_LENGTH] {
    let now = baton::fast::now().0;
    let mut frame = ProbeFrame {
        destination: MAC,
        source: [2, 0, 0, 0, 0, 2],
        ethertype: PROBE_ETHERTYPE.to_be_bytes(),
        version: [PROBE_VERSION],
        kind: [kind],
        node: PEER.to_be_bytes(),
        port: PEER_PORT.to_be_bytes(),
        incarnation: INCARNATION.to_be_bytes(),
        sequence: sequence.to_be_bytes(),
        sent_ns: now.to_be_bytes(),
        returned_ns: now.to_be_bytes(),
        held_ns: [0; 4],
        returned_incarnation: (INCARNATION as u32).to_be_bytes(),
        ..ProbeFrame::default()
    };
    frame.seal(KEY);
    *frame.as_bytes()
}
