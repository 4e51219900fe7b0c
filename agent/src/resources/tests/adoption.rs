//! The agent goes; what it has started lives on.

use super::*;

#[test]
fn what_runs_is_adopted_and_watched_and_stopped() {
    for groups in [true, false] {
        private(|| {
            let services =
                vec![foreground("exec sleep 1000"), commands("setsid sleep 1000 & sleep 0.1", "true")];
            let mut world = World::new(groups, services);
            assert_eq!(world.start(), ResourceState::Running);
            let (before, all) = (world.mains(), world.processes());
            world.again();
            assert_eq!(world.running, BTreeSet::from([world.server().to_owned()]));
            world.silent(Duration::from_millis(300)); // core knows from the start
            assert_eq!(world.mains(), before);
            assert_eq!(world.start(), ResourceState::Running);
            assert_eq!(world.mains(), before, "nothing was started again");

            // It was not this agent's child, and yet its death is seen.
            before[0].signal(libc::SIGKILL);
            until("another one", || world.mains().first().is_some_and(|p| *p != before[0] && p.is_alive()));
            assert_eq!(world.stop(), ResourceState::Stopped);
            assert!(world.processes().is_empty() && all.iter().all(|p| !p.is_alive()));
        });
    }
}

#[test]
fn what_died_meanwhile_is_not_taken_for_running() {
    private(|| {
        let mut world = World::new(true, vec![foreground("exec sleep 1000"), foreground("exec sleep 1000")]);
        assert_eq!(world.start(), ResourceState::Running);
        let before = world.mains();
        world.runner = None;
        before[1].signal(libc::SIGKILL);
        until("its end", || !before[1].is_alive());
        world.again();
        assert!(world.running.is_empty());
        assert_eq!(world.start(), ResourceState::Running);
        let mains = world.mains();
        assert!(mains[0] == before[0] && mains[1] != before[1], "only that which had died is started");
    });
}

#[test]
fn what_is_left_halfway_is_stopped_if_nobody_wants_it() {
    private(|| {
        let mut world = World::new(true, vec![foreground("exec sleep 1000"), foreground("exec sleep 1000")]);
        assert_eq!(world.start(), ResourceState::Running);
        let before = world.mains();
        world.runner = None;
        before[1].signal(libc::SIGKILL);
        until("its end", || !before[1].is_alive());
        world.again();
        until("the end of the other one", || !before[0].is_alive());
        until("the end of its folder", || !world.folder_of_server().path().exists());
        world.silent(Duration::from_millis(100)); // nobody has asked
    });
}

#[test]
fn a_start_that_was_cut_short_is_made_again() {
    private(|| {
        let script = "trap '' TERM; echo x >> \"$COUNT\"; sleep 1000";
        let mut world = World::with(true, |folder| {
            let count = folder.join("count").display().to_string();
            (Vec::new(), vec![commands(&format!("COUNT={count}; {script}"), "true")])
        });
        world.order(Order::Start);
        until("the start", || world.text("count") == "x");
        let first = world.processes();
        world.runner = None;
        assert!(first.iter().all(|p| !p.is_alive()), "the thread ends its command before it leaves");
        let Some(resources) = world.setup.resources.first_mut() else { panic!("a server") };
        resources.services[0] = commands("true", "true");
        world.again();
        assert!(world.running.is_empty());
        assert_eq!(world.start(), ResourceState::Running);
    });
}

#[test]
fn what_is_no_longer_configured_is_stopped() {
    private(|| {
        let mut world = World::new(true, vec![foreground("exec sleep 1000")]);
        assert_eq!(world.start(), ResourceState::Running);
        let before = world.mains();
        let resources = std::mem::take(&mut world.setup.resources);
        world.runner = None;
        let (runner, running, _) = super::start(&world.setup);
        assert!(running.is_empty());
        until("its end", || !before[0].is_alive());
        drop(runner);
        world.setup.resources = resources;
    });
}

#[test]
fn another_configuration_is_another_service_but_other_limits_are_not() {
    private(|| {
        let mut world = World::new(true, vec![foreground("exec sleep 1000"), foreground("exec sleep 1001")]);
        assert_eq!(world.start(), ResourceState::Running);
        let before = world.mains();
        let mut services = world.setup.resources[0].services.clone();
        services[0].monitor_every = Duration::from_secs(7);
        services[1].restarts = 9;
        world.setup.resources[0].services = services.clone();
        world.again();
        assert!(!world.running.is_empty());
        let records = world.folder_of_server().records();
        let folder::Resource::Service(service) = &records[1].resource else { panic!("a service") };
        assert_eq!(service.restarts, 9);

        services[0] = foreground("exec sleep 1002");
        world.setup.resources[0].services = services;
        world.again();
        assert!(world.running.is_empty());
        assert_eq!(world.start(), ResourceState::Running);
        let after = world.mains();
        assert!(after.iter().all(|p| p.is_alive() && !before.contains(p)));
        assert!(before.iter().all(|p| !p.is_alive()), "what was configured before is stopped first");
    });
}

#[test]
fn other_addresses_are_reached_instead() {
    private(|| {
        std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip(8)");
        let mut world = World::new(true, vec![foreground("exec sleep 1000")]);
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(local_routes(), "local 192.0.2.1 dev lo scope host");
        world.setup.resources[0].addresses = vec!["192.0.2.2".parse().expect("an address")];
        world.again();
        assert!(!world.running.is_empty());
        assert_eq!(local_routes(), "local 192.0.2.2 dev lo scope host");
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert_eq!(local_routes(), "");
    });
}

#[test]
fn clean_stops_all() {
    private(|| {
        let mut world = World::new(true, vec![foreground("exec sleep 1000")]);
        assert_eq!(world.start(), ResourceState::Running);
        let before = world.mains();
        world.runner = None;
        assert_eq!(clean(&world.setup).expect("done"), Vec::<String>::new());
        assert!(!before[0].is_alive() && !world.folder_of_server().path().exists());
    });
}
