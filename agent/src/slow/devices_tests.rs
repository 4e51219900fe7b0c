use std::os::unix::fs::symlink;

use baton_lab::LoopDevice;

use super::*;

/// A disk that has been read, written and flushed (Linux 6.18).
const STAT: &str = "  287635     9129 16705946  1017395   154168   194617 148329424   809587        0   115504  1846440   103618       37 105488672    19206     4765      250\n";

/// One without discards and flushes, as before Linux 4.18.
const OLD: &str =
    "       9       1      100       20        7        2       60       30        1        40       50\n";

fn counted(requests: u64, sectors: u64, busy: u64, waited: u64) -> Counted {
    let (busy, waited) = (Duration::from_millis(busy), Duration::from_millis(waited));
    Counted { number: 0x700, counters: StorageCounters { bytes: sectors * SECTOR, requests, busy, waited } }
}

#[test]
fn counters_are_read_from_the_line_of_sysfs() {
    let counters = StorageCounters {
        bytes: (16_705_946 + 148_329_424) * 512,
        requests: 287_635 + 154_168 + 103_618 + 4765,
        busy: Duration::from_millis(115_504),
        waited: Duration::from_millis(1_846_440),
    };
    assert_eq!(parse(STAT), Some(counters));
    let old = StorageCounters {
        bytes: 160 * 512,
        requests: 16,
        busy: Duration::from_millis(40),
        waited: Duration::from_millis(50),
    };
    assert_eq!(parse(OLD), Some(old));
}

#[test]
fn what_is_no_line_of_counters_is_nothing() {
    for text in ["", "1 2 3 4 5 6 7 8 9 10", "1 2 3 4 5 6 7 8 9 10 x", "-1 2 3 4 5 6 7 8 9 10 11"] {
        assert_eq!(parse(text), None, "{text}");
    }
}

#[test]
fn a_sample_is_what_was_done_since() {
    let (before, after) = (counted(100, 1000, 500, 700), counted(150, 1020, 900, 2700));
    let sample = DeviceSample {
        bytes: 20 * SECTOR,
        requests: 50,
        busy: Duration::from_millis(400),
        waited: Duration::from_millis(2000),
    };
    assert_eq!(after.since(&before), Some(sample));
    assert_eq!(after.since(&after), Some(DeviceSample::default()));
}

#[test]
fn another_device_and_one_that_counts_anew_are_left_out() {
    let before = counted(100, 1000, 500, 700);
    let other = Counted { number: 0x701, ..counted(150, 1020, 900, 2700) };
    assert_eq!(other.since(&before), None);
    for anew in [
        counted(99, 1020, 900, 2700),
        counted(150, 999, 900, 2700),
        counted(150, 1020, 499, 2700),
        counted(150, 1020, 900, 699),
    ] {
        assert_eq!(anew.since(&before), None, "{anew:?}");
    }
}

#[test]
fn times_go_on_over_their_32_bits() {
    let most = u64::from(u32::MAX);
    let (before, after) = (counted(100, 1000, most - 99, most), counted(150, 1020, 200, 0));
    let sample = after.since(&before).map(|s| (s.busy.as_millis(), s.waited.as_millis()));
    assert_eq!(sample, Some((300, 1)));
}

#[test]
fn a_loop_device_by_a_link_is_measured_and_a_device_that_changes_is_not() {
    const BYTES: usize = 1 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let [mut one, two] = [(); 2].map(|()| LoopDevice::new(4 << 20).expect("needs root"));
    let link = folder.path().join("link");
    symlink(one.path(), &link).expect("a link");
    let name = link.to_str().expect("text").to_owned();
    let mut devices = Devices { devices: vec![Device { name, server: "projects".into(), told: false }] };
    let mut read = || devices.read().pop().map(|(_, counted)| counted);

    let before = read().expect("it is there");
    one.write(BYTES).expect("written");
    let after = read().expect("it is there");
    let sample = after.since(&before).expect("a sample");
    // Whoever looks at new devices may read a little.
    assert!((BYTES as u64..2 * BYTES as u64).contains(&sample.bytes), "{sample:?}");
    assert!(sample.requests > 0, "{sample:?}");

    fs::remove_file(&link).expect("removed");
    assert_eq!(read(), None, "it is gone");
    symlink(two.path(), &link).expect("a link");
    assert_eq!(read().expect("it is back").since(&after), None, "it is another one");
    fs::remove_file(&link).expect("removed");
    fs::write(&link, "").expect("written");
    assert_eq!(read(), None, "a file is no device");
}
