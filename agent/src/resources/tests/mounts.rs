//! File systems on loop devices.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use baton_lab::LoopDevice;
use nix::mount::{MntFlags, umount, umount2};

use super::*;

/// FIFREEZE and FITHAW of linux/fs.h.
const FREEZE: libc::c_ulong = 0xc004_5877;
const THAW: libc::c_ulong = 0xc004_5878;

pub(super) fn device() -> LoopDevice {
    formatted(LoopDevice::new(16 << 20).expect("a loop device"))
}

fn formatted(device: LoopDevice) -> LoopDevice {
    let made = Command::new("mkfs.ext4").arg("-q").arg(device.path()).status().expect("mkfs.ext4");
    assert!(made.success());
    device
}

pub(super) fn filesystem(device: &Path, mount: &Path) -> Filesystem {
    Filesystem {
        device: device.to_owned(),
        mount: mount.to_owned(),
        kind: "ext4".into(),
        options: "noatime,nodev,errors=remount-ro".into(),
        fsck: true,
        start_limit: LONG,
        stop_limit: LONG,
    }
}

/// A virtual server with a file system at `mount` in the test's folder, and these services.
fn world(device: &LoopDevice, services: impl FnOnce(&Path) -> Vec<Service>) -> World {
    let path = device.path().to_owned();
    World::with(true, |folder| {
        let mount = folder.join("mount");
        let services = services(&mount);
        (vec![filesystem(&path, &mount)], services)
    })
}

pub(super) fn mounted(world: &World) -> Option<mountinfo::Mount> {
    let mounts = mountinfo::read().expect("readable");
    let point = world.folder.path().canonicalize().expect("there").join("mount");
    mountinfo::at(&mounts, &point).cloned()
}

/// Is the file system of this device gone from the kernel?
pub(super) fn is_gone(device: &LoopDevice) -> bool {
    let name = device.path().file_name().expect("a name").to_owned();
    !Path::new("/sys/fs/ext4").join(name).exists()
}

#[test]
fn it_is_checked_mounted_and_unmounted() {
    private(|| {
        let device = device();
        let mut world = world(&device, |_| Vec::new());
        assert_eq!(world.start(), ResourceState::Running);
        let found = mounted(&world).expect("mounted");
        assert!(found.options.contains("noatime") && found.options.contains("nodev"), "{found:?}");
        assert!(found.super_options.contains("errors=remount-ro"), "{found:?}");
        fs::write(world.file("mount/kept"), "x").expect("written");
        assert_eq!(world.start(), ResourceState::Running);
        world.again();
        assert!(world.running.contains(world.server()));
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(mounted(&world).is_none() && is_gone(&device));
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.text("mount/kept"), "x");
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn what_cannot_be_mounted_says_why() {
    private(|| {
        let device = device();
        let mut world = world(&device, |_| Vec::new());
        let good = world.setup.resources[0].filesystems[0].clone();
        let folder = world.folder.path().to_owned();
        let mut why = |change: &dyn Fn(&mut Filesystem)| {
            let mut changed = good.clone();
            change(&mut changed);
            world.setup.resources[0].filesystems[0] = changed;
            world.again();
            start_failed(world.start())
        };
        let said = why(&|fs| fs.device = "/dev/baton-nowhere".into());
        assert!(said.contains("the device: No such file"), "{said}");
        let said = why(&|fs| fs.device = "/dev/null".into());
        assert!(said.contains("it is no block device"), "{said}");
        let said = why(&|fs| fs.kind = "nofs".into());
        assert!(said.contains("fsck.nofs"), "{said}");
        let said = why(&|fs| (fs.kind, fs.fsck) = ("nofs".into(), false));
        assert!(said.contains("the kernel has no such type of file system"), "{said}");
        let said = why(&|fs| fs.options = "nonsense=1".into());
        assert!(said.contains("an option that it doesn't know"), "{said}");

        let device_path = device.path().display().to_string();
        let elsewhere = folder.join("elsewhere");
        fs::create_dir(&elsewhere).expect("made");
        let none: Option<&str> = None;
        mount(Some(device_path.as_str()), &elsewhere, Some("ext4"), MsFlags::empty(), none).expect("mounted");
        let said = why(&|_| {});
        assert!(said.contains("is mounted on") && said.contains("/etc/fstab"), "{said}");
        umount(&elsewhere).expect("unmounted");

        let point = folder.join("mount");
        mount(Some("other"), &point, Some("tmpfs"), MsFlags::empty(), none).expect("mounted");
        let said = why(&|_| {});
        assert!(said.contains("other is mounted there already"), "{said}");
        umount(&point).expect("unmounted");
        assert_eq!(why_none(&mut world, good.clone()), ResourceState::Running);
    });
}

fn why_none(world: &mut World, good: Filesystem) -> ResourceState {
    world.setup.resources[0].filesystems[0] = good;
    world.again();
    world.start()
}

#[test]
fn a_busy_one_names_its_holders_and_is_unmounted_when_they_are_gone() {
    private(|| {
        let device = device();
        let world = world(&device, |_| Vec::new());
        assert_eq!(world.start(), ResourceState::Running);
        let mut holder = Command::new("/bin/sleep");
        let mut holder = Guarded::start(holder.arg("1000").current_dir(world.file("mount")));
        let why = stop_failed(world.stop());
        let expected = format!("it is busy; sleep ({}): its working folder", holder.pid());
        assert!(why.ends_with(&expected), "{why}");
        assert!(mounted(&world).is_some());
        assert!(holder.0.try_wait().expect("asked").is_none(), "who is not its own is not killed");
        drop(holder);
        assert_eq!(world.next(), ResourceState::Stopped);
        assert!(mounted(&world).is_none());
    });
}

#[test]
fn what_its_services_left_behind_is_taken_from_them() {
    private(|| {
        let device = device();
        // It leaves its control group, as nothing does by itself, and keeps the mark in its environment.
        let world = world(&device, |mount| {
            let escape = "for g in /sys/fs/cgroup/unified /sys/fs/cgroup; do \
                          [ -e $g/cgroup.procs ] && echo $$ > $g/cgroup.procs && break; done";
            let daemon =
                format!("setsid sh -c '{escape}; cd {}; exec sleep 1000' & sleep 0.3", mount.display());
            vec![commands(&daemon, "true")]
        });
        assert_eq!(world.start(), ResourceState::Running);
        until("the daemon", || world.processes().len() == 1);
        let [daemon] = world.processes()[..] else { panic!("one daemon") };
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(!daemon.is_alive() && is_gone(&device));
    });
}

#[test]
fn a_mount_below_it_is_named() {
    private(|| {
        let device = device();
        let world = world(&device, |_| Vec::new());
        assert_eq!(world.start(), ResourceState::Running);
        let below = world.file("mount/below");
        fs::create_dir(&below).expect("made");
        let none: Option<&str> = None;
        mount(Some("other"), &below, Some("tmpfs"), MsFlags::empty(), none).expect("mounted");
        let why = stop_failed(world.stop());
        assert!(why.ends_with("mount/below is mounted below it"), "{why}");
        umount(&below).expect("unmounted");
        assert_eq!(world.next(), ResourceState::Stopped);
    });
}

#[test]
fn a_device_that_another_mount_namespace_holds_is_not_called_free() {
    private(|| {
        let device = device();
        let world = world(&device, |_| Vec::new());
        assert_eq!(world.start(), ResourceState::Running);
        let mut other = Command::new("unshare");
        let other = Guarded::start(other.args(["--mount", "--propagation", "private", "sleep", "1000"]));
        let own = fs::read_link("/proc/thread-self/ns/mnt").expect("readable");
        let theirs = format!("/proc/{}/ns/mnt", other.pid());
        until("its namespace", || fs::read_link(&theirs).is_ok_and(|theirs| theirs != own));
        until("its program", || Process::of(other.pid()).is_some_and(|p| p.name().starts_with("sleep")));
        let why = stop_failed(world.stop());
        let expected =
            format!("is unmounted, but still in use; sleep ({}): its mount namespace", other.pid());
        assert!(why.ends_with(&expected), "{why}");
        drop(other);
        assert_eq!(world.next(), ResourceState::Stopped);
        assert!(is_gone(&device));
    });
}

#[test]
fn one_that_is_unmounted_by_hand_is_broken() {
    private(|| {
        let device = device();
        let world = world(&device, |_| Vec::new());
        assert_eq!(world.start(), ResourceState::Running);
        umount(&world.file("mount")).expect("unmounted");
        let why = broken(world.next());
        assert!(why.ends_with("mount is no longer mounted"), "{why}");
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn one_that_turns_read_only_is_broken() {
    private(|| {
        let device = device();
        let world = world(&device, |_| Vec::new());
        assert_eq!(world.start(), ResourceState::Running);
        let none: Option<&str> = None;
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &world.file("mount"), none, read_only, none).expect("remounted");
        let why = broken(world.next());
        assert!(why.ends_with("has turned read-only after an error"), "{why}");
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

/// A file system that takes no writes until this is dropped.
struct Frozen(File);

impl Frozen {
    fn new(mount: &Path) -> Frozen {
        let root = File::open(mount).expect("a folder");
        // SAFETY: the request takes nothing.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), FREEZE, 0) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        Frozen(root)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: the request takes nothing. One that somebody else has thawed gives an error.
        unsafe { libc::ioctl(self.0.as_raw_fd(), THAW, 0) };
    }
}

/// A device that can be frozen: it lies in a file on another file system.
struct Freezer {
    upper: LoopDevice,
    folder: tempfile::TempDir,
    lower: LoopDevice,
}

impl Freezer {
    fn new() -> Freezer {
        let lower = formatted(LoopDevice::new(64 << 20).expect("a loop device"));
        let folder = tempfile::tempdir().expect("a folder");
        let none: Option<&str> = None;
        mount(Some(lower.path()), folder.path(), Some("ext4"), MsFlags::empty(), none).expect("mounted");
        let path = folder.path().join("disk");
        let file = File::options().create_new(true).read(true).write(true).open(path).expect("a file");
        file.set_len(16 << 20).expect("room");
        let upper = formatted(LoopDevice::over(&file).expect("a loop device"));
        Freezer { upper, folder, lower }
    }

    fn freeze(&self) -> Frozen {
        Frozen::new(self.folder.path())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // The device on it goes later; the folder would stay with something mounted on it.
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}

/// A mount that hangs is given up, and what comes of it later is taken back before anybody is told that it is stopped.
#[test]
fn a_mount_that_hangs_is_told_and_taken_back_when_it_comes_after_all() {
    private(|| {
        let freezer = Freezer::new();
        let mut world = world(&freezer.upper, |_| Vec::new());
        let filesystem = &mut world.setup.resources[0].filesystems[0];
        (filesystem.fsck, filesystem.start_limit) = (false, Duration::from_millis(500));
        world.again();
        let frozen = freezer.freeze();
        world.order(Order::Start);
        let told = world.reports.recv_timeout(LONG);
        let stuck = world.mains();
        let stopping = stop_failed(world.stop());
        drop(frozen);
        let why = start_failed(told.expect("a report"));
        assert!(why.contains("mount: it hangs in the kernel, as process"), "{why}");
        assert!(
            why.contains("; and not undone: ") && why.contains("the kernel still hangs over it"),
            "{why}"
        );
        assert!(stopping.contains("the kernel still hangs over it"), "{stopping}");
        assert_eq!(world.next(), ResourceState::Stopped);
        assert!(stuck.len() == 1 && !stuck[0].is_alive() && mounted(&world).is_none());
        assert!(is_gone(&freezer.upper));
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(freezer.folder.path().join("disk").exists() && !is_gone(&freezer.lower));
    });
}

/// An unmount that hangs has taken the file system out of sight already, and yet it is not called stopped.
#[test]
fn an_unmount_that_hangs_is_told_and_waited_for() {
    private(|| {
        let freezer = Freezer::new();
        let mut world = world(&freezer.upper, |_| Vec::new());
        world.setup.resources[0].filesystems[0].stop_limit = Duration::from_millis(500);
        world.again();
        assert_eq!(world.start(), ResourceState::Running);
        fs::write(world.file("mount/file"), vec![1; 1 << 20]).expect("written");
        let frozen = freezer.freeze();
        world.order(Order::Stop);
        let told = world.reports.recv_timeout(LONG);
        let stuck = world.mains();
        // Nor by an agent that comes now.
        world.again();
        world.order(Order::Stop);
        let again = world.reports.recv_timeout(LONG);
        drop(frozen);
        let why = stop_failed(told.expect("a report"));
        assert!(why.contains("unmount: it hangs in the kernel, as process"), "{why}");
        let why = stop_failed(again.expect("a report"));
        assert!(why.contains("the kernel still hangs over it"), "{why}");
        // What is told meanwhile depends on how busy the machine is.
        while world.next() != ResourceState::Stopped {}
        assert!(stuck.len() == 1 && !stuck[0].is_alive() && is_gone(&freezer.upper));
    });
}

/// What hangs on a unit that is lost here is left to fencing, soon.
#[test]
fn an_unmount_that_hangs_is_told_at_once_when_its_unit_is_lost() {
    private(|| {
        let freezer = Freezer::new();
        let mut world = world(&freezer.upper, |_| Vec::new());
        world.setup.resources[0].filesystems[0].stop_limit = Duration::from_secs(3600);
        world.again();
        assert_eq!(world.start(), ResourceState::Running);
        fs::write(world.file("mount/file"), vec![1; 1 << 20]).expect("written");
        let frozen = freezer.freeze();
        world.runner.as_ref().expect("threads").hurry().set(world.server(), Some(Haste::Hurry));
        world.order(Order::Stop);
        let told = world.reports.recv_timeout(LONG);
        drop(frozen);
        let why = stop_failed(told.expect("a report"));
        assert!(why.contains("unmount: it hangs in the kernel, as process"), "{why}");
        while world.next() != ResourceState::Stopped {}
    });
}

/// Of what is known to hang nothing is asked that it could not do: what waits for the device is left to fencing, what doesn't is killed.
#[test]
fn what_hangs_with_its_unit_is_neither_asked_nor_waited_for() {
    private(|| {
        let device = device();
        let world = world(&device, |mount| {
            let on_disk = format!("while true; do echo x > {}/file; sleep 0.02; done", mount.display());
            let long = Duration::from_secs(3600);
            let stubborn = "trap '' TERM; while true; do sleep 0.02; done";
            let services = [foreground(stubborn), foreground(&on_disk)];
            services.map(|service| Service { stop_limit: long, ..service }).to_vec()
        });
        assert_eq!(world.start(), ResourceState::Running);
        until("the file", || world.file("mount/file").exists());
        let frozen = Frozen::new(&world.file("mount"));
        let [stubborn, on_disk] = world.mains()[..] else { panic!("two processes") };
        until("it to hang", || on_disk.is_stuck());
        world.runner.as_ref().expect("threads").hurry().set(world.server(), Some(Haste::Hopeless));
        world.order(Order::Stop);
        let told = world.reports.recv_timeout(LONG);
        let (stuck, killed) = (on_disk.is_alive(), !stubborn.is_alive());
        drop(frozen);
        let why = stop_failed(told.expect("a report"));
        assert!(why.contains("can't be killed: it hangs in the kernel"), "{why}");
        assert!(stuck && killed, "what is not stuck is killed");
        while world.next() != ResourceState::Stopped {}
        assert!(!on_disk.is_alive() && is_gone(&device));
    });
}

/// A process that waits for a device can't be killed. That is said, and the file system is not called free, until it can.
#[test]
fn a_service_that_hangs_in_the_kernel_is_told_and_stopped_when_it_comes_back() {
    private(|| {
        let device = device();
        let world = world(&device, |mount| {
            let script = format!("while true; do echo x > {}/file; sleep 0.02; done", mount.display());
            vec![Service { stop_limit: Duration::from_millis(500), ..foreground(&script) }]
        });
        assert_eq!(world.start(), ResourceState::Running);
        until("the file", || world.file("mount/file").exists());
        let frozen = Frozen::new(&world.file("mount"));
        let [main] = world.mains()[..] else { panic!("one process") };
        until("it to hang", || main.is_stuck());
        world.order(Order::Stop);
        let told = world.reports.recv_timeout(LONG);
        drop(frozen);
        let why = stop_failed(told.expect("a report"));
        assert!(why.contains("can't be killed: it hangs in the kernel"), "{why}");
        // What is told meanwhile depends on who comes first.
        while world.next() != ResourceState::Stopped {}
        assert!(!main.is_alive() && is_gone(&device));
    });
}
