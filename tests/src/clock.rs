//! One time line for everything that a lab sees: `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.

use std::time::Duration;

use nix::sched::CpuSet;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use nix::unistd::Pid;

/// The time now on `CLOCK_MONOTONIC`.
pub fn now() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Sleeps until `CLOCK_MONOTONIC` has reached `at`, not less.
pub fn sleep_until(at: Duration) {
    // An interrupted sleep is taken up again: the limit is absolute.
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at.into()).is_err() {
    }
}

/// The distance of `CLOCK_REALTIME` from `CLOCK_MONOTONIC`, exact to the time of one clock read (tens of ns).
/// The kernel stamps received packets with the former.
#[derive(Clone, Copy, Debug)]
pub struct RealtimeOffset(Duration);

impl RealtimeOffset {
    /// Reads both clocks. Sample anew when wall-clock steps matter.
    pub fn sample() -> RealtimeOffset {
        // The closest of a few bracketed readings: a preemption between two reads would falsify it.
        let reading = |_| {
            let (before, real, after) = (now(), read(ClockId::CLOCK_REALTIME), now());
            (after - before, real.saturating_sub(before + (after - before) / 2))
        };
        RealtimeOffset((0..5).map(reading).min().unwrap_or_default().1)
    }

    /// A `CLOCK_REALTIME` time on the monotonic line; zero when it lies before the boot.
    pub fn to_monotonic(self, real: Duration) -> Duration {
        real.saturating_sub(self.0)
    }
}

/// Gives the calling thread a SCHED_FIFO priority (1 to 99), or does nothing where that is not permitted.
/// Children inherit the policy unless it is reset (`SCHED_RESET_ON_FORK` is set here, so they don't).
pub fn try_fifo(priority: i32) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: pid 0 is the calling thread; the pointer is to a live, initialised struct.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &parameters) == 0 }
}

/// The number of CPUs that this process may use, at least 1.
pub fn cpus() -> usize {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0));
    let count = |set: CpuSet| (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count();
    allowed.map(count).unwrap_or(1).max(1)
}

fn read(clock: ClockId) -> Duration {
    // These clocks always exist; a failure cannot happen and would read as the boot.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// When there is no such CPU.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}
