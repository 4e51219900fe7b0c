//! Mount namespaces of virtual servers' own.

use baton_lab::LoopDevice;

use super::mounts::{device, filesystem, is_gone, mounted};
use super::*;

const OTHER: &str = "test-other-private";

/// Two virtual servers, each with a file system that nobody else is to see, and a service that looks for both.
struct Two {
    world: World,
    devices: [LoopDevice; 2],
}

impl Two {
    fn new() -> Two {
        let devices = [device(), device()];
        let paths = [devices[0].path().to_owned(), devices[1].path().to_owned()];
        let looker = |folder: &Path, own: &str, other: &str| {
            let folder = folder.display();
            foreground(&format!(
                "echo {own} > {folder}/{own}/of-{own}; until test -e {folder}/go; do sleep 0.02; done
                 ls {folder}/{own} {folder}/{other} > {folder}/seen-by-{own}; touch {folder}/told-{own}
                 while true; do sleep 0.1; done"
            ))
        };
        let mut world = World::with(false, |folder| {
            // There on the host, too: what is seen there is told.
            for name in ["mount", "other"] {
                fs::create_dir(folder.join(name)).expect("made");
            }
            (vec![filesystem(&paths[0], &folder.join("mount"))], vec![looker(folder, "mount", "other")])
        });
        let mut other = world.setup.resources[0].clone();
        other.server = OTHER.to_owned();
        other.addresses = vec!["192.0.2.2".parse().expect("an address")];
        other.filesystems = vec![filesystem(&paths[1], &world.file("other"))];
        other.services = vec![looker(world.folder.path(), "other", "mount")];
        world.setup.resources.push(other);
        world.setup.resources.iter_mut().for_each(|r| r.private_mounts = true);
        world.again();
        Two { world, devices }
    }

    fn both(&self, order: Order) {
        for resources in &self.world.setup.resources {
            self.world.runner.as_ref().expect("threads").order(&resources.server, order);
        }
    }

    fn start(&self) {
        self.both(Order::Start);
        assert_eq!(self.world.next(), ResourceState::Running);
        let other = Folder::new(&self.world.setup.root, OTHER).expect("a boot");
        let is_up = || other.records().iter().filter(|r| r.started).count() == 2;
        until("the other one", is_up);
    }

    fn kept(&self) -> usize {
        fs::read_dir(self.world.setup.root.join(".mounts")).map_or(0, Iterator::count)
    }

    /// As the host sees it.
    fn is_empty(&self, name: &str) -> bool {
        fs::read_dir(self.world.file(name)).expect("a folder").next().is_none()
    }

    fn are_gone(&self) -> bool {
        self.devices.iter().all(is_gone)
    }
}

#[test]
fn each_sees_its_own_file_system_and_the_host_sees_none() {
    private(|| {
        let mut two = Two::new();
        assert_eq!(two.kept(), 0, "before anything has been started");
        two.start();
        assert_eq!(two.kept(), 2);
        fs::write(two.world.file("go"), "").expect("written");
        until("both to have looked", || {
            ["mount", "other"].iter().all(|name| two.world.file(&format!("told-{name}")).exists())
        });
        for (own, other) in [("mount", "other"), ("other", "mount")] {
            let seen = two.world.text(&format!("seen-by-{own}"));
            assert!(seen.contains(&format!("of-{own}")), "{seen}");
            assert!(
                !seen.contains(&format!("of-{other}")) && seen.matches("lost+found").count() == 1,
                "{seen}"
            );
        }
        assert!(mounted(&two.world).is_none() && two.is_empty("mount") && two.is_empty("other"));
        assert!(!two.devices.iter().any(is_gone), "they are mounted somewhere");

        // The next agent goes on with them.
        let mains = two.world.mains();
        two.world.again();
        let both: BTreeSet<String> = two.world.setup.resources.iter().map(|r| r.server.clone()).collect();
        assert_eq!(two.world.running, both);
        assert_eq!(two.world.mains(), mains);
        // What dies is started again where its file system is.
        mains[0].signal(libc::SIGKILL);
        until("another one", || two.world.mains().first().is_some_and(|now| *now != mains[0]));
        assert!(two.is_empty("mount"));

        two.both(Order::Stop);
        assert_eq!(two.world.next(), ResourceState::Stopped);
        until("both to be gone", || two.are_gone() && two.kept() == 0);
        assert!(!two.world.setup.root.join(".mounts").exists());

        // And all of it again, for whoever cleans up.
        two.start();
        two.world.runner = None;
        assert_eq!(clean(&two.world.setup).expect("done"), Vec::<String>::new());
        assert!(two.are_gone() && !two.world.setup.root.join(".mounts").exists());
    });
}

/// Nobody is in it when the agent goes, and so it would be gone, and the file system with it.
#[test]
fn it_is_kept_without_a_process_in_it() {
    private(|| {
        let device = device();
        let path = device.path().to_owned();
        let mut world =
            World::with(false, |folder| (vec![filesystem(&path, &folder.join("mount"))], Vec::new()));
        world.setup.resources[0].private_mounts = true;
        world.again();
        assert_eq!(world.start(), ResourceState::Running);
        world.again();
        assert!(world.running.contains(world.server()) && mounted(&world).is_none() && !is_gone(&device));
        // One that is configured otherwise goes on, and is so when it is next started.
        world.setup.resources[0].private_mounts = false;
        world.again();
        assert!(world.running.contains(world.server()) && mounted(&world).is_none());
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(is_gone(&device));
        assert_eq!(world.start(), ResourceState::Running);
        assert!(mounted(&world).is_some());
        world.setup.resources[0].private_mounts = true;
        world.again();
        assert!(world.running.contains(world.server()) && mounted(&world).is_some());
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert_eq!(world.start(), ResourceState::Running);
        assert!(mounted(&world).is_none() && !is_gone(&device));
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(is_gone(&device));
    });
}
