//! What keeps file systems from being written by two nodes: reservations, a watchdog, and stops that must not take long.

use std::process::Command;

use baton_lab::LoopDevice;

use super::*;
use crate::fence::tests::{key, sg_persist};

/// A virtual server with a file system, of a node that has a fake sg_persist in this folder.
fn world(device: &LoopDevice, programs: &Path) -> World {
    let made = Command::new("mkfs.ext4").arg("-q").arg(device.path()).status().expect("mkfs.ext4");
    assert!(made.success());
    let path = device.path().to_owned();
    let mut world = World::with(false, |folder| {
        let filesystem = Filesystem {
            device: path,
            mount: folder.join("mount"),
            kind: "ext4".into(),
            options: String::new(),
            fsck: false,
            start_limit: LONG,
            stop_limit: LONG,
        };
        (vec![filesystem], Vec::new())
    });
    world.setup.resources[0].fence = Fence::ScsiPr;
    world.setup.reservations = Some(Reservations::new(&sg_persist(programs), "fs1"));
    world.again();
    world
}

fn is_mounted(world: &World) -> bool {
    filesystem::is_mounted(&world.setup.resources[0].filesystems[0])
}

#[test]
fn whoever_mounts_has_the_only_registration_and_gives_it_back() {
    private(|| {
        let device = LoopDevice::new(16 << 20).expect("a loop device");
        let programs = tempfile::tempdir().expect("a folder");
        let mut world = world(&device, programs.path());
        let keys = || fs::read_to_string(programs.path().join("keys")).unwrap_or_default();
        fs::write(programs.path().join("keys"), key("fs2") + "\n").expect("written");
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(keys(), key("fs1") + "\n");
        // Adopted, nothing is asked of the device.
        fs::write(programs.path().join("refuse"), "1\n2\n3\n").expect("written");
        world.again();
        assert_eq!(world.start(), ResourceState::Running);
        fs::remove_file(programs.path().join("refuse")).expect("removed");
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert_eq!(keys(), "");
        fs::write(programs.path().join("refuse"), "1\n2\n3\n4\n").expect("written");
        let why = start_failed(world.start());
        assert!(why.contains("Unit attention") && !is_mounted(&world), "{why}");
    });
}

#[test]
fn what_is_fenced_by_watchdog_starts_when_that_is_armed() {
    private(|| {
        let mut world = World::new(false, vec![foreground("exec sleep 1000")]);
        let name = world.server().to_owned();
        let guard = Arc::new(Guard::new([name.clone()], &[name.clone()].into()));
        world.setup.guard = guard.clone();
        world.again();
        assert!(!guard.runs(&name), "nothing of it was left");
        world.order(Order::Start);
        until("it is waited for", || guard.runs(&name));
        world.silent(Duration::from_millis(100));
        guard.set_armed(Err("no such device".to_owned()));
        assert_eq!(start_failed(world.next()), "no such device");
        assert!(!guard.runs(&name));
        guard.set_armed(Ok(()));
        assert_eq!(world.start(), ResourceState::Running);
        assert!(guard.runs(&name));
        // The next agent finds it.
        let guard = Arc::new(Guard::new([name.clone()], &[name.clone()].into()));
        world.setup.guard = guard.clone();
        world.again();
        assert!(guard.runs(&name) && world.running.contains(&name));
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(!guard.runs(&name));
    });
}

#[test]
fn a_stop_under_way_is_cut_short_when_a_unit_is_lost() {
    private(|| {
        let stubborn = "trap '' TERM; while true; do sleep 0.02; done";
        let long = Duration::from_secs(3600);
        let world = World::new(false, vec![Service { stop_limit: long, ..foreground(stubborn) }]);
        assert_eq!(world.start(), ResourceState::Running);
        world.order(Order::Stop);
        world.silent(Duration::from_millis(100));
        world.runner.as_ref().expect("threads").hurry().set(world.server(), Some(Haste::Hurry));
        assert_eq!(world.next(), ResourceState::Stopped);
    });
}
