//! Programs.

use super::*;

const SLEEP: &str = "exec sleep 1000";

/// Each test runs with control groups and without.
fn both(test: impl Fn(bool) + Sync) {
    for groups in [true, false] {
        private(|| test(groups));
    }
}

#[test]
fn a_service_is_started_and_stopped() {
    both(|groups| {
        let world = World::new(groups, vec![foreground(SLEEP)]);
        assert!(world.running.is_empty());
        assert_eq!(world.start(), ResourceState::Running);
        let [main] = world.mains()[..] else { panic!("one process") };
        assert!(main.is_alive() && world.processes() == [main]);
        // SAFETY: the call takes an integer and gives one.
        assert_eq!(unsafe { libc::getsid(main.pid) }, main.pid, "a session of its own");
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.mains(), [main], "it was not started again");
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(!main.is_alive() && !world.folder_of_server().path().exists());
        assert_eq!(world.stop(), ResourceState::Stopped, "where nothing runs");
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn control_groups_are_made_where_they_may_be_and_go_with_the_service() {
    let Some(hierarchy) = private(cgroup::hierarchy) else {
        panic!("this machine has no control groups of version 2");
    };
    private(|| {
        let world = World::new(true, vec![foreground(SLEEP)]);
        assert_eq!(world.start(), ResourceState::Running);
        let group = hierarchy.join("baton").join(world.server());
        assert_eq!(cgroup::members(&group), world.mains());
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(!group.exists());
    });
}

#[test]
fn services_start_in_order_and_stop_in_the_reverse_one() {
    private(|| {
        let note = |what: &str, more: &str| format!("echo {what} >> \"${{BATON_LOG:?}}\"; {more}");
        let world = World::with(true, |folder| {
            let log = folder.join("log").display().to_string();
            let service = |name: &str| {
                let start = format!("BATON_LOG={log}; {}", note(&format!("+{name}"), "true"));
                let stop = format!("BATON_LOG={log}; {}", note(&format!("-{name}"), "true"));
                commands(&start, &stop)
            };
            (Vec::new(), ["a", "b", "c"].map(service).to_vec())
        });
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert_eq!(
            world.text("log").split_whitespace().collect::<Vec<_>>(),
            ["+a", "+b", "+c", "-c", "-b", "-a"]
        );
    });
}

#[test]
fn its_programs_know_whose_they_are_and_reach_its_address() {
    private(|| {
        let world = World::with(true, |folder| {
            let told = "echo $BATON_NODE $BATON_SERVER; ip route get 192.0.2.1 | head -1";
            let start = format!("({told}) > {}; true", folder.join("told").display());
            (Vec::new(), vec![commands(&start, "true")])
        });
        std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip(8)");
        assert_eq!(world.start(), ResourceState::Running);
        let told = world.text("told");
        assert!(told.starts_with(&format!("fs1 {}\nlocal 192.0.2.1 dev lo", world.server())), "{told}");
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert_eq!(local_routes(), "");
    });
}

#[test]
fn it_runs_when_its_check_says_so() {
    private(|| {
        let world = World::with(true, |folder| {
            let ready = folder.join("ready").display().to_string();
            let service = foreground(&format!("sleep 0.3; touch {ready}; {SLEEP}"));
            (Vec::new(), vec![checked(service, &format!("test -e {ready}"))])
        });
        assert_eq!(world.start(), ResourceState::Running);
        assert!(world.file("ready").exists());
    });
}

#[test]
fn a_start_that_fails_is_undone_and_says_why() {
    both(|groups| {
        let after = "setsid sleep 1000 & echo no luck >&2; exit 3";
        for (service, expected) in [
            (
                checked(foreground("echo no luck; exit 3"), "false"),
                "it has ended: exit status 3; it said: no luck",
            ),
            (commands(after, "true"), "start: exit status 3: no luck"),
            (
                service(ServiceKind::Exec(Exec {
                    start: vec!["/nowhere".into()],
                    stop: None,
                    monitor: None,
                })),
                "start: it can't be started: No such file or directory (os error 2)",
            ),
        ] {
            let world = World::new(groups, vec![foreground(SLEEP), service]);
            let why = start_failed(world.start());
            assert!(why.ends_with(expected), "{why}");
            assert!(world.processes().is_empty() && !world.folder_of_server().path().exists());
            assert_eq!(world.stop(), ResourceState::Stopped);
        }
    });
}

#[test]
fn a_start_that_hangs_is_killed_after_its_limit() {
    both(|groups| {
        for (service, expected) in [
            (commands("trap '' TERM; setsid sleep 1000 & sleep 1000", "true"), "start: it takes too long"),
            (checked(foreground(SLEEP), "exit 9"), "it takes too long: exit status 9"),
        ] {
            // Enough for one check also on a busy machine.
            let limited = Service { start_limit: Duration::from_secs(2), ..service };
            let world = World::new(groups, vec![limited]);
            let why = start_failed(world.start());
            assert!(why.ends_with(expected), "{why}");
            assert!(world.processes().is_empty());
        }
    });
}

#[test]
fn a_stop_ends_a_start_that_is_under_way() {
    both(|groups| {
        let world = World::new(groups, vec![commands("sleep 1000", "true")]);
        world.order(Order::Start);
        until("the start", || !world.processes().is_empty());
        assert_eq!(world.stop(), ResourceState::Stopped, "and that is all that is told");
        assert!(world.processes().is_empty());
    });
}

#[test]
fn what_a_service_forks_ends_with_it() {
    both(|groups| {
        // A daemon of the old kind: its parent is gone, and it has a session of its own.
        let daemon = "setsid sh -c 'trap \"\" TERM; sleep 1000; sleep 1000' & sleep 0.1";
        for service in [commands(daemon, "true"), foreground(&format!("{daemon}; {SLEEP}"))] {
            let world = World::new(groups, vec![service]);
            assert_eq!(world.start(), ResourceState::Running);
            until("the daemon", || world.processes().len() >= 2);
            let all = world.processes();
            assert_eq!(world.stop(), ResourceState::Stopped);
            assert!(
                all.iter().all(|p| !p.is_alive()),
                "{:?}",
                all.iter().map(Process::name).collect::<Vec<_>>()
            );
        }
    });
}

#[test]
fn a_service_that_takes_no_notice_of_the_end_is_killed() {
    private(|| {
        let stubborn = Service {
            stop_limit: Duration::from_millis(300),
            ..foreground("trap '' TERM; while true; do sleep 0.1; done")
        };
        let world = World::new(true, vec![stubborn]);
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(world.processes().is_empty());
    });
}

#[test]
fn a_stop_that_fails_or_hangs_is_told_and_tried_again() {
    both(|groups| {
        for (bad, expected) in [("sleep 1000", "stop: it takes too long"), ("exit 4", "stop: exit status 4")]
        {
            let world = World::with(groups, |folder| {
                let good = folder.join("good").display().to_string();
                let stop = format!("test -e {good} || {bad}");
                let limit = Duration::from_millis(300);
                (Vec::new(), vec![Service { stop_limit: limit, ..commands("true", &stop) }])
            });
            assert_eq!(world.start(), ResourceState::Running);
            let why = stop_failed(world.stop());
            assert!(why.ends_with(expected), "{why}");
            world.silent(Duration::from_millis(1500)); // the same is not told again
            fs::write(world.file("good"), "").expect("written");
            assert_eq!(world.next(), ResourceState::Stopped);
        }
    });
}

#[test]
fn a_stop_that_fails_is_none_if_the_check_says_that_it_is_stopped() {
    private(|| {
        let service = checked(commands("true", "exit 1"), "exit 7");
        // Its start waits for the check, so the check must succeed once.
        let world = World::with(true, |folder| {
            let up = folder.join("up").display().to_string();
            let mut service = checked(service, &format!("test -e {up}"));
            if let ServiceKind::Exec(exec) = &mut service.kind {
                (exec.start, exec.stop) = (sh(&format!("touch {up}")), Some(sh(&format!("rm {up}; exit 1"))));
            }
            (Vec::new(), vec![service])
        });
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn one_that_dies_is_started_again_at_once() {
    private(|| {
        let world = World::new(true, vec![foreground(SLEEP), foreground(SLEEP)]);
        assert_eq!(world.start(), ResourceState::Running);
        let before = world.mains();
        before[0].signal(libc::SIGKILL);
        until("both again", || {
            let mains = world.mains();
            mains.len() == 2 && mains.iter().all(|p| p.is_alive() && !before.contains(p))
        });
        // One that dies while it is being started is another's failure.
        until("its start", || world.folder_of_server().records().iter().all(|record| record.started));
        // The one after it has been started anew with it, the one before one has not.
        let before = world.mains();
        before[1].signal(libc::SIGKILL);
        until("the second again", || {
            let mains = world.mains();
            mains.len() == 2 && mains[0] == before[0] && mains[1] != before[1] && mains[1].is_alive()
        });
        world.silent(Duration::from_millis(100));
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn one_that_dies_too_often_has_failed() {
    private(|| {
        let world = World::with(true, |folder| {
            let count = folder.join("count").display().to_string();
            let service = foreground(&format!("echo x >> {count}; sleep 0.2; echo tired; exit 5"));
            (Vec::new(), vec![Service { restarts: 2, ..service }])
        });
        assert_eq!(world.start(), ResourceState::Running);
        let why = broken(world.next());
        assert!(why.contains("exit status 5; it said: tired, after 2 restarts"), "{why}");
        assert_eq!(world.text("count").lines().count(), 3);
        world.silent(Duration::from_millis(300));
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn one_that_may_not_be_started_again_has_failed_at_once() {
    private(|| {
        let world = World::new(true, vec![Service { restarts: 0, ..foreground(SLEEP) }]);
        assert_eq!(world.start(), ResourceState::Running);
        world.mains()[0].signal(libc::SIGKILL);
        let why = broken(world.next());
        assert!(why.ends_with("it has ended: SIGKILL"), "{why}");
    });
}

#[test]
fn one_that_hangs_is_found_by_its_check_and_started_again() {
    both(|groups| {
        let world = World::with(groups, |folder| {
            let hangs = folder.join("hangs").display().to_string();
            let start = format!("rm -f {hangs}; {SLEEP}");
            let service = checked(foreground(&start), &format!("test -e {hangs} && sleep 1000; true"));
            let quick = Duration::from_millis(100);
            (Vec::new(), vec![Service { monitor_every: quick, monitor_limit: 3 * quick, ..service }])
        });
        assert_eq!(world.start(), ResourceState::Running);
        let before = world.mains();
        fs::write(world.file("hangs"), "").expect("written");
        until("another one", || world.mains().first().is_some_and(|p| !before.contains(p) && p.is_alive()));
        assert!(!before[0].is_alive());
        world.silent(Duration::from_millis(500));
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(world.processes().is_empty(), "no check is left over");
    });
}

#[test]
fn one_that_cannot_be_started_again_has_failed() {
    private(|| {
        let world = World::with(true, |folder| {
            let bad = folder.join("bad").display().to_string();
            let service = foreground(&format!("test -e {bad} && {{ echo broken; exit 2; }}; {SLEEP}"));
            (Vec::new(), vec![service])
        });
        assert_eq!(world.start(), ResourceState::Running);
        fs::write(world.file("bad"), "").expect("written");
        world.mains()[0].signal(libc::SIGKILL);
        let why = broken(world.next());
        assert!(
            why.contains("not started: ") && why.ends_with("it said: broken, after 3 restarts in place"),
            "{why}"
        );
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn a_server_without_resources_is_what_it_is_told_to_be() {
    private(|| {
        let (sender, reports) = channel();
        let setup = Setup {
            node: "fs1".into(),
            resources: Vec::new(),
            root: "/nowhere".into(),
            ocf_root: "/nowhere".into(),
            bus: None,
            groups: true,
            guard: Arc::new(Guard::new([], &BTreeSet::new())),
            reservations: None,
        };
        let report =
            move |server: &str, state| sender.send((server.to_owned(), state)).expect("the test waits");
        let (runner, running) = Runner::start(&setup, Arc::new(report)).expect("threads");
        assert!(running.is_empty());
        runner.order("other", Order::Start);
        runner.order("other", Order::Stop);
        assert_eq!(reports.recv().expect("told"), ("other".into(), ResourceState::Running));
        assert_eq!(reports.recv().expect("told"), ("other".into(), ResourceState::Stopped));
    });
}
