//! The busy machine: two spinning processes for every CPU, at ordinary priority.

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use baton_lab::{Host, Process, clock};
use clap::ValueEnum;
use serde::Serialize;

/// Between two timers of a thread that sets them.
const TICK: Duration = Duration::from_micros(50);

/// What else the machine does during a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// Nothing of ours.
    Idle,
    /// Two spinning processes for every CPU.
    Busy,
}

impl Load {
    /// As in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Load::Idle => "idle",
            Load::Busy => "busy",
        }
    }

    /// Starts it; it ends when the processes are dropped. `host` only holds them.
    pub fn start(self, host: &Host) -> Result<Vec<Process>> {
        let count = match self {
            Load::Idle => 0,
            Load::Busy => 2 * clock::cpus(),
        };
        let program = std::env::current_exe().context("find the running program")?;
        let spinner = || {
            let mut command = Command::new(&program);
            command.arg("spin");
            host.spawn(command)
        };
        Ok((0..count).map(|_| spinner()).collect::<Result<_, _>>()?)
    }
}

/// How to spin.
#[derive(clap::Args, Debug)]
pub struct Spin {
    /// On this CPU only
    #[arg(long)]
    cpu: Option<usize>,
    /// With this SCHED_FIFO priority
    #[arg(long)]
    fifo: Option<i32>,
    /// Instead of spinning: so many threads that set a timer for every 50 us
    #[arg(long)]
    timers: Option<usize>,
}

/// Starts a process that spins on one CPU ahead of everything below this SCHED_FIFO priority, as far as the kernel's
/// throttling of real-time work lets it.
pub fn hog(host: &Host, cpu: usize, priority: i32) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe().context("find the running program")?);
    command.args(["spin", "--cpu", &cpu.to_string(), "--fifo", &priority.to_string()]);
    Ok(host.spawn(command)?)
}

/// Starts a process with so many threads that set a timer for every 50 us.
pub fn timers(host: &Host, threads: usize) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe().context("find the running program")?);
    command.args(["spin", "--timers", &threads.to_string()]);
    Ok(host.spawn(command)?)
}

/// Sets a timer again and again. The kernel may put off the timers of ordinary threads, to join them with others: not these.
fn tick() -> ! {
    let _ = nix::sys::prctl::set_timerslack(1); // never refused
    loop {
        clock::sleep_until(clock::now() + TICK);
    }
}

/// One spinning process.
pub fn spin(how: &Spin) -> Result<()> {
    how.cpu.map(clock::pin).transpose().context("stay on one CPU")?;
    if how.fifo.is_some_and(|priority| !clock::try_fifo(priority)) {
        bail!("SCHED_FIFO is refused");
    }
    if let Some(threads) = how.timers {
        for _ in 1..threads {
            std::thread::spawn(tick);
        }
        tick();
    }
    let mut number = 0u64;
    loop {
        number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}
