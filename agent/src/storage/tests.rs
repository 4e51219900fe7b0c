//! Units that can be told how to behave: a file that this process itself serves through the kernel (FUSE), which answers, errs or
//! hangs; and a loop device.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, channel};

use baton_lab::LoopDevice;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;
use crate::testing::{LONG, until};

const ANSWERS: u8 = 0;
const ERRS: u8 = 1;
const HANGS: u8 = 2;

/// Bytes of the file that is served.
const BYTES: u64 = 1 << 20;
// Of linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

/// A file, mounted on a file of this name.
struct Served {
    point: PathBuf,
    mode: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(folder: &Path) -> Served {
        let point = folder.join("unit");
        File::create(&point).expect("a file");
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("unit"), &point, Some("fuse"), MsFlags::empty(), Some(options.as_str())).expect("mounted");
        let mode = Arc::new(AtomicU8::new(ANSWERS));
        let own = mode.clone();
        let thread = thread::spawn(move || serve(device, &own));
        Served { point, mode, thread: Some(thread) }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.set(ERRS);
        let unmounted = umount2(&self.point, MntFlags::MNT_DETACH);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            unmounted.expect("unmounted");
            ended.expect("a thread").expect("no panic");
        }
    }
}

/// Answers the kernel until it is unmounted. What hangs is answered when it is to hang no more.
fn serve(mut device: File, mode: &AtomicU8) {
    let mut request = vec![0u8; 1 << 18];
    loop {
        let read = match device.read(&mut request) {
            Ok(read) => read,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOENT)) => continue,
            Err(_) => return, // unmounted
        };
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().expect("eight bytes"));
        assert!(read >= 40);
        let (kind, unique) = (word(4), long(8));
        let mut answer = Vec::new();
        let mut error = 0;
        match kind {
            INIT => {
                answer.extend([7u32, 31, 131_072, 0].iter().flat_map(|w| w.to_ne_bytes()));
                answer.extend([16u16, 12].iter().flat_map(|w| w.to_ne_bytes()));
                answer.extend([131_072u32, 1].iter().flat_map(|w| w.to_ne_bytes()));
                answer.resize(64, 0);
            }
            GETATTR => {
                answer.extend([1u64, 0, 1, BYTES, BYTES / 512, 0, 0, 0].iter().flat_map(|w| w.to_ne_bytes()));
                answer.extend(
                    [0u32, 0, 0, libc::S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0]
                        .iter()
                        .flat_map(|w| w.to_ne_bytes()),
                );
            }
            OPEN => answer.extend([1u64, 1].iter().flat_map(|w| w.to_ne_bytes())), // past the cache
            READ => {
                while mode.load(Ordering::SeqCst) == HANGS {
                    thread::sleep(Duration::from_millis(2));
                }
                match mode.load(Ordering::SeqCst) {
                    ANSWERS => answer.resize(word(40 + 16) as usize, 7),
                    _ => error = -libc::EIO,
                }
            }
            RELEASE | FLUSH => {}
            FORGET | INTERRUPT => continue,
            LOOKUP => error = -libc::ENOENT,
            _ => error = -libc::ENOSYS,
        }
        let mut whole = Vec::new();
        whole.extend((16 + answer.len() as u32).to_ne_bytes());
        whole.extend(i32::to_ne_bytes(error));
        whole.extend(unique.to_ne_bytes());
        whole.extend(answer);
        if device.write(&whole).is_err() {
            continue; // given up meanwhile, or unmounted
        }
    }
}

/// The threads, and what they tell.
struct World {
    probers: Option<Probers>,
    reports: Receiver<StorageState>,
    told: Receiver<Time>,
    shown: Arc<Mutex<Arc<Vec<UnitStats>>>>,
}

impl World {
    fn new(device: &Path) -> World {
        let unit = StorageUnit {
            name: "array-1".into(),
            device: device.to_owned(),
            interval: Duration::from_millis(5),
            // What serves it may be late on a busy machine.
            limit: Duration::from_secs(2),
        };
        let (sender, reports) = channel();
        let sender = Mutex::new(sender);
        let report = move |unit: &str, state| {
            assert_eq!(unit, "array-1");
            let _ = sender.lock().expect("no panic").send(state); // the test is over
        };
        let shown = Arc::new(Mutex::new(Arc::default()));
        let board = shown.clone();
        let show = move |stats| *board.lock().expect("no panic") = stats;
        let (report, show): (Report, Show) = (Arc::new(report), Arc::new(show));
        let (sender, told) = channel();
        let sender = Mutex::new(sender);
        let tell = move |unit: &str, asked| {
            assert_eq!(unit, "array-1");
            let _ = sender.lock().expect("no panic").send(asked); // as above
        };
        let probers = Probers::start(&[unit], &report, &(Arc::new(tell) as _), &show).expect("threads");
        World { probers: Some(probers), reports, told, shown }
    }

    fn next(&self) -> StorageState {
        self.reports.recv_timeout(LONG).expect("a report")
    }

    fn stats(&self) -> UnitStats {
        self.shown.lock().expect("no panic")[0].clone()
    }

    /// Nothing is told for a while.
    fn silent(&self) {
        let told = self.reports.recv_timeout(Duration::from_millis(100));
        assert!(told.is_err(), "{told:?}");
    }
}

fn errors(state: StorageState) -> String {
    match state {
        StorageState::Errors(what) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_unit_that_errs_or_hangs_is_told_and_so_is_its_return() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::new(folder.path());
    let world = World::new(&served.point);
    assert_eq!(world.next(), StorageState::Good);
    world.silent();
    served.set(ERRS);
    assert_eq!(errors(world.next()), "I/O error");
    world.silent();
    served.set(ANSWERS);
    assert_eq!(world.next(), StorageState::Good);
    served.set(HANGS);
    assert_eq!(world.next(), StorageState::Hung);
    world.silent();
    let stats = world.stats();
    assert_eq!((stats.hangs, stats.state.as_ref()), (1, Some(&StorageState::Hung)));
    assert_eq!(stats.number, None, "a file is no device");
    assert!(stats.errors >= 3 && stats.took.iter().sum::<u64>() > 3 && !stats.cached, "{stats:?}");
    served.set(ANSWERS);
    assert_eq!(world.next(), StorageState::Good);
}

#[test]
fn a_read_that_was_asked_for_is_told_when_it_has_succeeded() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::new(folder.path());
    let world = World::new(&served.point);
    assert_eq!(world.next(), StorageState::Good);
    assert!(world.told.recv_timeout(Duration::from_millis(100)).is_err(), "nobody has asked");
    let readers = world.probers.as_ref().expect("threads").readers();
    readers.read("array-1", Time(1));
    readers.read("another", Time(9));
    assert_eq!(world.told.recv_timeout(LONG), Ok(Time(1)));
    served.set(HANGS);
    assert_eq!(world.next(), StorageState::Hung);
    readers.read("array-1", Time(3));
    readers.read("array-1", Time(2)); // the newest counts
    assert!(world.told.recv_timeout(Duration::from_millis(100)).is_err(), "it hangs");
    served.set(ERRS);
    assert_eq!(errors(world.next()), "I/O error");
    assert!(world.told.recv_timeout(Duration::from_millis(100)).is_err(), "it errs");
    served.set(ANSWERS);
    assert_eq!(world.told.recv_timeout(LONG), Ok(Time(3)));
    assert!(world.told.recv_timeout(Duration::from_millis(100)).is_err(), "once");
}

#[test]
fn a_child_that_hangs_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::new(folder.path());
    served.set(HANGS);
    let mut world = World::new(&served.point);
    assert_eq!(world.next(), StorageState::Hung);
    world.probers = None; // ends although the read is still under way
    served.set(ANSWERS);
}

#[test]
fn a_child_that_may_not_run_is_no_unit_that_hangs() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("unit");
    std::fs::write(&file, [0; 4096]).expect("written");
    let child = Child::start(&file).expect("a child");
    child.process().signal(libc::SIGSTOP);
    until("it is stopped", || child.process().state() == Some('T'));
    child.ask().expect("asked");
    assert!(child.waits_for_a_processor());
    child.process().signal(libc::SIGCONT);
    let orders = Orders::new().expect("an eventfd");
    let woken = Patience::new(&orders, 0, None, LONG).wait(&[child.as_fd()]);
    assert_eq!(woken, Woken::Ready(0));
    assert_eq!(child.answer().map(|answer| answer.outcome), Some(Outcome::Read));
    // It has told its answer before it waits for the next question.
    until("it waits", || !child.waits_for_a_processor());
}

#[test]
fn a_child_that_somebody_ends_is_started_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::new(folder.path());
    let world = World::new(&served.point);
    assert_eq!(world.next(), StorageState::Good);
    let is_ours = |pid: &i32| {
        let parent = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        parent.contains(&format!("PPid:\t{}\n", std::process::id()))
            && parent.starts_with("Name:\tbaton-storage")
    };
    // Also those of other tests, which go on likewise.
    let children: Vec<i32> = crate::resources::process::all().into_iter().filter(is_ours).collect();
    assert!(!children.is_empty());
    for pid in children {
        crate::resources::process::Process::of(pid).into_iter().for_each(|p| p.signal(libc::SIGKILL));
    }
    served.set(ERRS);
    assert_eq!(errors(world.next()), "I/O error");
}

#[test]
fn a_loop_device_is_read_past_the_cache_and_missed_when_it_is_gone() {
    let device = LoopDevice::new(1 << 20).expect("a loop device");
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("by-id");
    std::os::unix::fs::symlink(device.path(), &link).expect("a link");
    let world = World::new(&link);
    assert_eq!(world.next(), StorageState::Good);
    let stats = world.stats();
    assert!(!stats.cached);
    assert_eq!(stats.number, std::fs::metadata(device.path()).ok().map(|found| found.rdev()));
    std::fs::remove_file(&link).expect("removed");
    assert_eq!(world.next(), StorageState::Missing);
    std::os::unix::fs::symlink(device.path(), &link).expect("a link");
    assert_eq!(world.next(), StorageState::Good);
    // The device is there, and nothing is behind it.
    let empty = folder.path().join("empty");
    File::create(&empty).expect("a file");
    std::fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink(&empty, &link).expect("a link");
    assert_eq!(world.next(), StorageState::Missing);
}
