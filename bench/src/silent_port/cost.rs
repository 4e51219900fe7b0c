//! What watching costs: processor time of the agent by ports and interval, and nanoseconds a probe in XDP.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::Stand;
use crate::cpu;
use crate::report::Row;

const PORTS: [usize; 3] = [2, 4, 8];
/// What the agent does after its start is over by then.
const SETTLE: Duration = Duration::from_secs(3);

/// Measures all combinations.
pub fn measure(intervals: &[u64], over: Duration) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for ports in PORTS {
        for &interval in intervals {
            let scenario = format!("{ports}_ports_{interval}ms");
            let mut stand = Stand::new(ports, Duration::from_millis(interval))?;
            std::thread::sleep(SETTLE);
            let pid = stand.agent.process().pid();
            let (begun, before) = (Instant::now(), cpu::seconds(pid)?);
            std::thread::sleep(over);
            let share = (cpu::seconds(pid)? - before) / begun.elapsed().as_secs_f64() * 100.0;
            rows.push(row(&scenario, "cpu", "% of a core", share));
            // The clock is read around every run from here on, so this comes last.
            let per_probe = nanoseconds_per_run(over)?;
            rows.push(row(&scenario, "xdp_probe", "ns", per_probe));
        }
    }
    Ok(rows)
}

/// Mean time of a run of `port_rx`, while nothing but probes comes in: every other one is a probe, which is answered, and
/// every other one an echo, where the switch carries them. Reading the clock is included.
fn nanoseconds_per_run(over: Duration) -> Result<f64> {
    let _on = enable_stats(Stats::RunTime).context("have the kernel measure programs")?;
    let (time, runs) = runs()?;
    std::thread::sleep(over);
    let (time_after, runs_after) = self::runs()?;
    Ok((time_after - time).as_nanos() as f64 / ((runs_after - runs) as f64).max(1.0))
}

/// Time and number of runs of all `port_rx` there are.
fn runs() -> Result<(Duration, u64)> {
    let mut sum = (Duration::ZERO, 0);
    for program in loaded_programs() {
        let program = program.context("list the programs")?;
        if program.name() == b"port_rx" {
            sum.0 += program.run_time();
            sum.1 += program.run_count();
        }
    }
    Ok(sum)
}

fn row(scenario: &str, metric: &str, unit: &'static str, value: f64) -> Row {
    Row::of("silent-port", "baton", scenario, metric, unit, &mut [value])
}
