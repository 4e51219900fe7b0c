//! One run: a stream of probes, a cut at a random phase, and what the client and the wire say of it.

use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::host::wait_until;
use baton_lab::{Lab, Port, Probe, clock};

use crate::node::{CLIENT_PRIORITY, Node};

/// Between two probes.
pub const INTERVAL: Duration = Duration::from_micros(100);
/// The stream runs for this long before the cut; the longest gap in it is the baseline.
const BASELINE: Duration = Duration::from_millis(15);
/// Replies after the failover that end the run.
const REPLIES: usize = 30;
/// How long a failover may take.
const LIMIT: Duration = Duration::from_secs(8);
/// A client that did not send for so long at either end of its outage, or whose baseline gap was so long, has stalled:
/// what it saw says more of the machine than of the system.
const STALL: Duration = Duration::from_millis(1);

/// What one run measured.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Longest time between two successive replies around the cut.
    pub outage: Duration,
    /// The same before the cut.
    pub baseline: Duration,
    /// From the cut (before the system call) to the kernel's event, if there was one.
    pub cut_to_event: Option<Duration>,
    /// From the event to the first announcement on the wire; zero when the system was faster than the event.
    pub event_to_announcement: Option<Duration>,
    /// From the cut to the first announcement on the wire.
    pub cut_to_announcement: Duration,
    /// The client itself stalled; see [`STALL`].
    pub stalled: bool,
}

/// Random delays, not for secrets (xorshift64).
#[derive(Debug)]
pub struct Phase(u64);

impl Phase {
    /// Seeded by the clock.
    pub fn new() -> Phase {
        Phase(clock::now().as_nanos() as u64 | 1)
    }

    /// Less than this.
    pub fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_nanos(self.0 % limit.as_nanos().max(1) as u64)
    }
}

/// Cuts the port that holds the address and measures; restores the port in any case.
pub fn measure(lab: &Lab, node: &Node, phase: &mut Phase) -> Result<Sample> {
    let port = node.known_holder(lab)?;
    let probe = Probe::start(lab.host("client")?, node.target(), INTERVAL, Some(CLIENT_PRIORITY))?;
    probe.wait_for_replies(REPLIES, Duration::ZERO, LIMIT).with_context(|| node.diagnosis(lab))?;
    let steady = clock::now();
    clock::sleep_until(steady + BASELINE + phase.below(10 * INTERVAL));
    node.carrier.forget();
    node.watcher.forget();
    let cut = port.cut()?;
    let sample = observe(node, port, probe, steady, cut);
    let sample = sample.with_context(|| node.diagnosis(lab));
    port.restore()?;
    let back = || node.carrier.first(port.index(), true, cut).is_some();
    // Late for a delayed event; the next cut is of the other port, which is why it is no error.
    let _ = wait_until("the carrier's return", Duration::from_millis(50), back);
    // The next run is to measure the node, not a switch that does not forward yet.
    wait_until("the switch to forward", LIMIT, || port.forwards().unwrap_or(false))?;
    std::thread::sleep(node.system.recovery());
    sample.with_context(|| format!("{} after a cut of {}", node.kind.name(), port.interface()))
}

fn observe(node: &Node, port: &Port, probe: Probe, steady: Duration, cut: Duration) -> Result<Sample> {
    let announced = node.watcher.wait_for_announcement(node.vip(), cut, LIMIT)?;
    probe.wait_for_replies(REPLIES, announced.at, LIMIT)?;
    // A reply may overtake the announcement's stamp; wait a little for the event's reader, too.
    let event = || node.carrier.first(port.index(), false, cut);
    let _ = wait_until("the event", Duration::from_millis(20), || event().is_some());
    let result = probe.stop();
    let end = clock::now();
    let gap = result.longest_gap(cut, end).context("no replies around the cut")?;
    let baseline = result.longest_gap_within(steady, cut).context("no replies before the cut")?.length();
    let pause = result.pause_at_ends(&gap);
    let event = event();
    Ok(Sample {
        outage: gap.length(),
        baseline,
        cut_to_event: event.map(|at| at - cut),
        event_to_announcement: event.map(|at| announced.at.saturating_sub(at)),
        cut_to_announcement: announced.at - cut,
        stalled: baseline > STALL || pause > STALL,
    })
}
