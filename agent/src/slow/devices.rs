//! What the block devices of file systems do: partitions and loop devices too, since sysfs keeps counters by device number.
//!
//! Nothing here waits for a disk: devices are looked up in devtmpfs, and counters are read from sysfs.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::Duration;

use baton_core::{Config, DeviceSample};

use crate::telemetry::{DeviceCounters, StorageCounters};

/// `/sys/dev/block/*/stat` counts sectors of so many bytes, whatever the device has.
const SECTOR: u64 = 512;

/// The devices that the configuration names.
pub(super) struct Devices {
    devices: Vec<Device>,
}

struct Device {
    /// Its name in the configuration: a path, most often a link.
    name: String,
    /// The virtual server whose file system is on it.
    server: String,
    /// That it can't be read has been said.
    told: bool,
}

/// A reading of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// Its device number. Another one is another device.
    number: u64,
    counters: StorageCounters,
}

impl Devices {
    pub(super) fn new(config: &Config) -> Devices {
        let device = |server: &str, name: &String| {
            let (name, server) = (name.clone(), server.to_owned());
            Device { name, server, told: false }
        };
        let of = |s: &baton_core::config::VirtualServer| {
            s.devices.iter().map(|name| device(&s.name, name)).collect::<Vec<_>>()
        };
        Devices { devices: config.servers.iter().flat_map(of).collect() }
    }

    /// The counters of those that are there, in the order of the configuration. Says once of each other one that it is not.
    pub(super) fn read(&mut self) -> Vec<(DeviceCounters, Counted)> {
        let read_one = |device: &mut Device| {
            let Device { name, server, told } = device;
            match read(name) {
                Ok(counted) => {
                    *told = false;
                    let (server, device) = (server.clone(), name.clone());
                    Some((DeviceCounters { server, device, counters: counted.counters }, counted))
                }
                Err(e) => {
                    if !std::mem::replace(told, true) {
                        tracing::warn!("{name} of {server}: {e}; its load is not measured");
                    }
                    None
                }
            }
        };
        self.devices.iter_mut().filter_map(read_one).collect()
    }
}

fn read(name: &str) -> io::Result<Counted> {
    let found = fs::metadata(name)?;
    if !found.file_type().is_block_device() {
        return Err(io::Error::other("not a block device"));
    }
    let number = found.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"))?;
    let counters = parse(&text).ok_or_else(|| io::Error::other("its counters can't be understood"))?;
    Ok(Counted { number, counters })
}

/// Documentation/block/stat.rst: I/Os, merges, sectors and ticks of reads, the same of writes, I/Os in flight, ticks with any
/// in flight, ticks of all I/Os together; then the four of discards, and I/Os and ticks of flushes. Ticks are milliseconds.
fn parse(stat: &str) -> Option<StorageCounters> {
    let numbers: Vec<u64> = stat.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [reads, _, sectors_read, _, writes, _, sectors_written, _, _, busy, waited, ref others @ ..] =
        numbers[..]
    else {
        return None;
    };
    // Their times are in the last one of the above, so they are counted too.
    let discards_and_flushes = [0, 4].iter().filter_map(|at| others.get(*at)).sum::<u64>();
    Some(StorageCounters {
        bytes: (sectors_read + sectors_written) * SECTOR,
        requests: reads + writes + discards_and_flushes,
        busy: Duration::from_millis(busy),
        waited: Duration::from_millis(waited),
    })
}

impl Counted {
    /// What it did since `before`. Nothing is known if it is another device, or has begun to count anew.
    pub(super) fn since(&self, before: &Counted) -> Option<DeviceSample> {
        if self.number != before.number {
            return None;
        }
        let (now, then) = (&self.counters, &before.counters);
        Some(DeviceSample {
            bytes: now.bytes.checked_sub(then.bytes)?,
            requests: now.requests.checked_sub(then.requests)?,
            busy: passed(then.busy, now.busy)?,
            waited: passed(then.waited, now.waited)?,
        })
    }
}

/// The kernel shows times as 32-bit milliseconds: they start from zero after 50 days, which many requests at a time have together
/// in less than one.
fn passed(before: Duration, after: Duration) -> Option<Duration> {
    let wrapped = |time: Duration| time.as_millis() as u32;
    let passed = wrapped(after).wrapping_sub(wrapped(before));
    (passed <= i32::MAX as u32).then_some(Duration::from_millis(passed.into()))
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
