//! OCF resource agents, written here.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config::Ocf;

/// A virtual server with an agent that runs this script; parameters are handed to it.
fn world(script: &str, parameters: &[(&str, &str)]) -> World {
    let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let ocf = Ocf { provider: "baton".into(), agent: "Dummy".into(), parameters };
    let quick = Duration::from_millis(100);
    let service = Service { monitor_every: quick, restarts: 1, ..service(ServiceKind::Ocf(ocf)) };
    World::with(true, |folder| {
        let file = folder.join("ocf/resource.d/baton/Dummy");
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        let script = format!("#!/bin/sh\nhere={}\n{script}", folder.display());
        fs::write(&file, script).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
        (Vec::new(), vec![service])
    })
}

/// Does what it is asked, and fails as the files beside it say.
const AGENT: &str = r#"
echo "$1" >> $here/log
if [ -e $here/$1 ]; then echo "as told" >&2; exit $(cat $here/$1); fi
case "$1" in
start) env > $here/env; touch $here/up; setsid sleep 1000 & exit 0;;
stop) rm -f $here/up; exit 0;;
monitor) [ -e $here/up ] && exit 0; exit 7;;
esac
exit 3
"#;

#[test]
fn an_agent_is_started_watched_and_stopped() {
    private(|| {
        let world = world(AGENT, &[("device", "/dev/a b"), ("fast", "true")]);
        assert_eq!(world.start(), ResourceState::Running);
        let environment = world.text("env");
        let root = world.file("ocf").display().to_string();
        for line in [
            format!("OCF_ROOT={root}"),
            "OCF_RESKEY_device=/dev/a b".to_owned(),
            "OCF_RESKEY_fast=true".to_owned(),
            format!("OCF_RESOURCE_INSTANCE={}-Dummy", world.server()),
            "OCF_RESOURCE_TYPE=Dummy".to_owned(),
            "OCF_RESOURCE_PROVIDER=baton".to_owned(),
            format!("HA_RSCTMP={}/ocf", world.folder_of_server().path().display()),
        ] {
            assert!(environment.lines().any(|l| l == line), "{line} in\n{environment}");
        }
        until("checks", || world.text("log").matches("monitor").count() >= 3);
        let all = world.processes();
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(!world.file("up").exists() && all.iter().all(|p| !p.is_alive()));
    });
}

#[test]
fn every_exit_status_is_told_by_its_name() {
    private(|| {
        let world = world(AGENT, &[]);
        for (code, name) in [
            (1, "generic error (1)"),
            (2, "invalid arguments (2)"),
            (3, "action not implemented (3)"),
            (4, "insufficient privileges (4)"),
            (5, "not installed (5)"),
            (6, "not configured (6)"),
            (7, "not running (7)"),
            (8, "running as promoted (8)"),
            (9, "failed as promoted (9)"),
            (42, "exit status 42, which OCF doesn't know"),
            (190, "degraded (190)"),
            (191, "degraded as promoted (191)"),
        ] {
            fs::write(world.file("start"), code.to_string()).expect("written");
            let why = start_failed(world.start());
            assert_eq!(why, format!("baton/Dummy: start: {name}: as told"));
        }
    });
}

#[test]
fn a_monitor_is_understood() {
    private(|| {
        let world = world(AGENT, &[]);
        assert_eq!(world.start(), ResourceState::Running);
        for works in [0, 8, 190, 191] {
            fs::write(world.file("monitor"), works.to_string()).expect("written");
            let checks = world.text("log").matches("monitor").count();
            until("more checks", || world.text("log").matches("monitor").count() > checks + 1);
        }
        assert_eq!(world.text("log").matches("start").count(), 1);
        fs::write(world.file("monitor"), "7").expect("written");
        let why = broken(world.next());
        assert_eq!(why, "baton/Dummy: monitor: not running (7): as told, after 1 restarts in place");
        assert_eq!(world.text("log").matches("start").count(), 2, "once in place");
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn a_stop_is_understood() {
    private(|| {
        let world = world(AGENT, &[]);
        assert_eq!(world.start(), ResourceState::Running);
        fs::write(world.file("stop"), "1").expect("written");
        let why = stop_failed(world.stop());
        assert_eq!(why, "baton/Dummy: stop: generic error (1): as told");
        // Its monitor says that it is stopped, so it is.
        fs::remove_file(world.file("up")).expect("removed");
        assert_eq!(world.next(), ResourceState::Stopped);

        fs::remove_file(world.file("stop")).expect("removed");
        assert_eq!(world.start(), ResourceState::Running);
        fs::write(world.file("stop"), "7").expect("written");
        assert_eq!(world.stop(), ResourceState::Stopped, "it doesn't run");
    });
}

#[test]
fn an_agent_that_isnt_there_is_told() {
    private(|| {
        let world = world(AGENT, &[]);
        fs::remove_file(world.file("ocf/resource.d/baton/Dummy")).expect("removed");
        let why = start_failed(world.start());
        assert!(why.contains("is the package resource-agents installed?"), "{why}");
    });
}
