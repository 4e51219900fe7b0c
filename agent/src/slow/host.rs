//! How busy the node is: its processors, and what work waits for.

use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use baton_core::HostSample;

/// Enough of `/proc/stat` for its first line: a word and ten numbers.
const FIRST_LINE: usize = 256;

/// What the kernel has counted since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostCounters {
    processors: Processors,
    /// Time in which some work waited for a processor, microseconds.
    cpu_pressure: u64,
    /// Time in which some work waited for memory, microseconds.
    memory_pressure: u64,
}

/// Times of all processors together, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Processors {
    worked: u64,
    /// Idle and iowait. The kernel's figure may go back a little (proc_stat(5)).
    idle: u64,
}

/// Reads what there is; `None` without `/proc/stat`.
pub(super) fn read() -> Option<HostCounters> {
    let mut start = [0; FIRST_LINE];
    let length = File::open("/proc/stat").ok()?.read(&mut start).ok()?;
    Some(HostCounters {
        processors: processors(&String::from_utf8_lossy(&start[..length]))?,
        cpu_pressure: pressure("/proc/pressure/cpu"),
        memory_pressure: pressure("/proc/pressure/memory"),
    })
}

/// A kernel without pressure stall information counts nothing.
fn pressure(file: &str) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| waited(&text)).unwrap_or(0)
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. What follows, the guests' share, is part
/// of user and nice. Steal counts as work: others have had that time, and this node can't.
fn processors(stat: &str) -> Option<Processors> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let numbers: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = numbers[..] else { return None };
    Some(Processors { worked: user + nice + system + irq + softirq + steal, idle: idle + iowait })
}

/// The total of the line `some` (Documentation/accounting/psi.rst), microseconds.
fn waited(pressure: &str) -> Option<u64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
}

impl HostCounters {
    /// What was counted in the time since `before`; nothing if the processors' times went back (one was taken out) or stood still.
    pub(super) fn since(&self, before: &HostCounters, over: Duration) -> Option<HostSample> {
        let worked = self.processors.worked.checked_sub(before.processors.worked)?;
        let idle = self.processors.idle.saturating_sub(before.processors.idle);
        let share = |waited: u64, waited_before: u64| {
            let waited = Duration::from_micros(waited.saturating_sub(waited_before));
            // The two readings are not taken in one moment: so it may be a little more than all.
            (waited.as_nanos() * 1000 / over.as_nanos().max(1)).min(1000) as u32
        };
        Some(HostSample {
            cpu: (worked * 1000).checked_div(worked + idle)? as u32,
            cpu_pressure: share(self.cpu_pressure, before.cpu_pressure),
            memory_pressure: share(self.memory_pressure, before.memory_pressure),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  850622 456956 464200 534096 2167 0 29356 925 100 7
cpu0 409432 234093 238547 271305 614 0 14824 470 100 7
cpu1 441189 222862 225652 262790 1552 0 14532 454 0 0
intr 63114071 0 6 0 0 0 0
";
    const PRESSURE: &str = "some avg10=88.83 avg60=57.42 avg300=24.53 total=5826341184
full avg10=0.00 avg60=0.00 avg300=0.00 total=2189774
";

    fn counters(worked: u64, idle: u64, cpu_pressure: u64, memory_pressure: u64) -> HostCounters {
        HostCounters { processors: Processors { worked, idle }, cpu_pressure, memory_pressure }
    }

    #[test]
    fn the_first_line_is_all_processors_and_guests_are_not_counted_twice() {
        let worked = 850_622 + 456_956 + 464_200 + 29_356 + 925;
        assert_eq!(processors(STAT), Some(Processors { worked, idle: 534_096 + 2167 }));
    }

    #[test]
    fn what_is_no_stat_is_nothing() {
        for text in ["", "cpu  1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu  1 2 3 x 5 6 7 8"] {
            assert_eq!(processors(text), None, "{text}");
        }
    }

    #[test]
    fn of_pressure_the_line_some_counts() {
        assert_eq!(waited(PRESSURE), Some(5_826_341_184));
        assert_eq!(waited("full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"), None);
        assert_eq!(waited(""), None);
    }

    #[test]
    fn shares_are_thousandths_of_the_time_since() {
        let (before, after) = (counters(1000, 1000, 5_000_000, 0), counters(1150, 1050, 5_500_000, 1_000));
        let second = Duration::from_secs(1);
        let sample = HostSample { cpu: 750, cpu_pressure: 500, memory_pressure: 1 };
        assert_eq!(after.since(&before, second), Some(sample));
        let halves = HostSample { cpu: 750, cpu_pressure: 250, memory_pressure: 0 };
        assert_eq!(after.since(&before, 2 * second), Some(halves));
    }

    #[test]
    fn there_is_never_more_than_all() {
        let sample =
            counters(10, 0, 1_010_000, 1_010_000).since(&counters(0, 0, 0, 0), Duration::from_secs(1));
        assert_eq!(sample, Some(HostSample { cpu: 1000, cpu_pressure: 1000, memory_pressure: 1000 }));
    }

    #[test]
    fn times_that_went_back_are_left_out_but_for_a_little_of_iowait() {
        let second = Duration::from_secs(1);
        assert_eq!(counters(9, 50, 0, 0).since(&counters(10, 20, 0, 0), second), None);
        assert_eq!(counters(10, 20, 0, 0).since(&counters(10, 20, 0, 0), second), None, "too short to tell");
        let idle_back = counters(20, 19, 0, 0).since(&counters(10, 20, 0, 0), second);
        assert_eq!(idle_back.map(|s| s.cpu), Some(1000));
    }

    #[test]
    fn this_host_can_be_read() {
        let before = read().expect("/proc/stat");
        while read().expect("/proc/stat").processors == before.processors {
            std::thread::sleep(Duration::from_millis(1));
        }
        let after = read().expect("/proc/stat");
        let sample = after.since(&before, Duration::from_secs(1)).expect("a sample");
        assert!(sample.cpu <= 1000, "{sample:?}");
    }
}
