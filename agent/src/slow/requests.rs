//! Requests to the block devices of storage units, as the kernel's tracepoints show them: what whoever uses a unit sees of it, beside
//! what the reads of [`crate::storage`] see. They are shown, and decide nothing.
//!
//! Nothing here waits for a disk: devices are looked up by number in sysfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton_common::device_number;
use baton_core::StorageState;

use crate::config::StorageUnit;
use crate::fast;
use crate::io::kernel::{Kernel, RequestReader, Requests};
use crate::telemetry::{UnitRequests, UnitStats};

/// Devices by number.
const SYSFS: &str = "/sys/dev/block";
/// Devices are made of devices, but not of that many in a row.
const DEEPEST: u32 = 8;

/// Reads them once a second.
pub(super) struct RequestSampler {
    reader: RequestReader,
    /// That they can't be read has been said.
    failing: bool,
    /// Units of which it has been said that they are no block devices.
    told: BTreeSet<String>,
}

/// Begins to watch, where there are units. Where that can't be done it is said, and all else is as it was.
pub(super) fn start(kernel: &mut Kernel, units: &[StorageUnit]) -> Option<RequestSampler> {
    if units.is_empty() {
        return None;
    }
    let reader = kernel.requests().inspect_err(|e| {
        tracing::warn!("requests to the devices of storage units are not watched: {e}");
    });
    Some(RequestSampler { reader: reader.ok()?, failing: false, told: BTreeSet::new() })
}

impl RequestSampler {
    /// What the devices of these units do, where they are block devices. Says once of each other one that it isn't.
    pub(super) fn read(&mut self, units: &[UnitStats]) -> Vec<UnitRequests> {
        let sysfs = Path::new(SYSFS);
        let mut devices = BTreeMap::new();
        for unit in units {
            if let Some(number) = unit.number {
                let number = (libc::major(number), libc::minor(number));
                devices.insert(&unit.unit, disks(sysfs, number, DEEPEST));
            } else if unit.state == Some(StorageState::Good) && self.told.insert(unit.unit.clone()) {
                let (unit, device) = (&unit.unit, &unit.device);
                tracing::info!(
                    "storage unit {unit}: {device} is no block device: its requests are not watched"
                );
            }
        }
        let all = devices.values().flatten().map(|(major, minor)| device_number(*major, *minor)).collect();
        let is_idle = |device: u32| is_idle(sysfs, (device >> 20, device & 0xf_ffff));
        let read = match self.reader.read(&all, is_idle) {
            Ok(read) => {
                self.failing = false;
                read
            }
            Err(e) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("requests to the devices of storage units: {e}");
                }
                return Vec::new();
            }
        };
        let now_ns = fast::now().0;
        let shown = |unit: &UnitStats| {
            let disks = devices.get(&unit.unit)?;
            let of_each = disks.iter().filter_map(|(major, minor)| read.get(&device_number(*major, *minor)));
            let Requests { completed, errors, in_flight, oldest_ns } = of_each.fold(Requests::default(), sum);
            let oldest = oldest_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
            Some(UnitRequests {
                unit: unit.unit.clone(),
                device: unit.device.clone(),
                completed,
                errors,
                in_flight,
                oldest: Duration::from_nanos(oldest),
            })
        };
        units.iter().filter_map(shown).collect()
    }
}

fn sum(one: Requests, other: &Requests) -> Requests {
    Requests {
        completed: one.completed + other.completed,
        errors: one.errors + other.errors,
        in_flight: one.in_flight + other.in_flight,
        oldest_ns: one.oldest_ns.into_iter().chain(other.oldest_ns).min(),
    }
}

type Number = (u32, u32);

fn folder(sysfs: &Path, (major, minor): Number) -> PathBuf {
    sysfs.join(format!("{major}:{minor}"))
}

/// The disks that have the requests of a device: the whole one of a partition, and those that a device is made of (LVM, RAID, multipath).
fn disks(sysfs: &Path, number: Number, deepest: u32) -> BTreeSet<Number> {
    let mut folder = folder(sysfs, number);
    let mut disk = number;
    if folder.join("partition").exists() {
        folder.push(".."); // of the link's target
        disk = read_number(&folder).unwrap_or(number);
    }
    let below = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
    let below: Vec<Number> = below.filter_map(|entry| read_number(&entry.path())).collect();
    match deepest.checked_sub(1) {
        Some(deepest) if !below.is_empty() => {
            below.into_iter().flat_map(|number| disks(sysfs, number, deepest)).collect()
        }
        _ => BTreeSet::from([disk]),
    }
}

/// The number of the device that has this folder.
fn read_number(folder: &Path) -> Option<Number> {
    let text = fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The kernel says that nothing of the disk is in flight (it doesn't know where it is told not to count).
fn is_idle(sysfs: &Path, disk: Number) -> bool {
    let folder = folder(sysfs, disk);
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    let in_flight = read("inflight");
    let mut words = in_flight.split_whitespace().peekable();
    words.peek().is_some() && words.all(|word| word == "0") && read("queue/iostats").trim() == "1"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Folders as in /sys: a disk with a partition, and a device that is made of that and of another disk.
    fn sysfs() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let device = |path: &str, number: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.join("slaves")).expect("made");
            fs::write(path.join("dev"), format!("{number}\n")).expect("written");
            symlink(&path, root.join(number)).expect("a link");
        };
        device("sda", "8:0");
        device("sda/sda1", "8:1");
        fs::write(root.join("sda/sda1/partition"), "1\n").expect("written");
        fs::remove_dir(root.join("sda/sda1/slaves")).expect("removed"); // partitions have none
        device("sdb", "8:16");
        device("dm-0", "253:0");
        symlink(root.join("sda/sda1"), root.join("dm-0/slaves/sda1")).expect("a link");
        symlink(root.join("sdb"), root.join("dm-0/slaves/sdb")).expect("a link");
        folder
    }

    #[test]
    fn requests_are_those_of_the_disks_below() {
        let folder = sysfs();
        let found = |number| disks(folder.path(), number, DEEPEST).into_iter().collect::<Vec<_>>();
        assert_eq!(found((8, 0)), [(8, 0)]);
        assert_eq!(found((8, 1)), [(8, 0)]);
        assert_eq!(found((253, 0)), [(8, 0), (8, 16)]);
        assert_eq!(found((7, 0)), [(7, 0)], "sysfs may lack it");
        symlink(folder.path().join("dm-0"), folder.path().join("dm-0/slaves/dm-0")).expect("a link");
        assert_eq!(found((253, 0))[..2], [(8, 0), (8, 16)], "it ends");
    }

    #[test]
    fn a_disk_is_idle_where_the_kernel_counts_and_has_counted_none() {
        let folder = sysfs();
        let disk = folder.path().join("sda");
        fs::create_dir(disk.join("queue")).expect("made");
        let idle = |in_flight: &str, counts: &str| {
            fs::write(disk.join("inflight"), in_flight).expect("written");
            fs::write(disk.join("queue/iostats"), counts).expect("written");
            is_idle(folder.path(), (8, 0))
        };
        assert!(idle("       0        0\n", "1\n"));
        assert!(!idle("       0        1\n", "1\n"));
        assert!(!idle("       0        0\n", "0\n"), "it does not count");
        assert!(!idle("", "1\n"));
        assert!(!is_idle(folder.path(), (8, 16)), "not known");
    }

    #[test]
    fn devices_of_a_unit_are_added_up() {
        let requests =
            |completed, errors, in_flight, oldest_ns| Requests { completed, errors, in_flight, oldest_ns };
        let both = sum(requests(1, 2, 3, Some(7)), &requests(10, 20, 30, Some(5)));
        assert_eq!(both, requests(11, 22, 33, Some(5)));
        assert_eq!(sum(Requests::default(), &requests(0, 0, 1, Some(9))).oldest_ns, Some(9));
    }
}
