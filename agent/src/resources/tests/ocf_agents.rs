//! OCF resource agents, written here.

use super::*;
use crate::config::Ocf;

/// A virtual server with an agent that runs this script; parameters are handed to it.
fn world(text: &str, parameters: &[(&str, &str)]) -> World {
    world_with(text, parameters, |service| service)
}

fn world_with(text: &str, parameters: &[(&str, &str)], change: impl FnOnce(Service) -> Service) -> World {
    let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let ocf = Ocf { provider: "baton".into(), agent: "Dummy".into(), parameters };
    let quick = Duration::from_millis(100);
    let service = change(Service { monitor_every: quick, restarts: 1, ..service(ServiceKind::Ocf(ocf)) });
    World::with(true, |folder| {
        let file = folder.join("ocf/resource.d/baton/Dummy");
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        script(&file, &format!("here={}\n{text}", folder.display()));
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
            replace(&world.file("start"), &code.to_string());
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
            replace(&world.file("monitor"), &works.to_string());
            let checks = world.text("log").matches("monitor").count();
            until("more checks", || world.text("log").matches("monitor").count() > checks + 1);
        }
        assert_eq!(world.text("log").matches("start").count(), 1);
        replace(&world.file("monitor"), "7");
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
        replace(&world.file("stop"), "1");
        let why = stop_failed(world.stop());
        assert_eq!(why, "baton/Dummy: stop: generic error (1): as told");
        // Its monitor says that it is stopped, so it is.
        fs::remove_file(world.file("up")).expect("removed");
        assert_eq!(world.next(), ResourceState::Stopped);

        fs::remove_file(world.file("stop")).expect("removed");
        assert_eq!(world.start(), ResourceState::Running);
        replace(&world.file("stop"), "7");
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

/// Says which parameters it takes, and where.
const DESCRIBED: &str = r#"
if [ "$1" = meta-data ]; then
  echo "a warning" >&2
  echo '<?xml version="1.0"?><!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd"><resource-agent name="Dummy"><parameters>'
  echo '<parameter name="device" required="1"><shortdesc>block device</shortdesc><content type="string"/></parameter>'
  echo '<parameter name="options"><content type="string" default=""/></parameter></parameters></resource-agent>'
  exit 0
fi
"#;

#[test]
fn parameters_that_an_agent_doesnt_take_are_told() {
    private(|| {
        for (parameters, expected) in [
            (&[("options", "ro")][..], "it needs the parameter `device` (block device)"),
            (
                &[("device", "/dev/a"), ("optoins", "ro")],
                "it has no parameter `optoins`; it has device, options",
            ),
        ] {
            let world = world(&format!("{DESCRIBED}{AGENT}"), parameters);
            assert_eq!(start_failed(world.start()), format!("baton/Dummy: {expected}"));
            assert!(!world.file("log").exists(), "it was neither started nor stopped");
            assert_eq!(world.stop(), ResourceState::Stopped);
        }
        let world = world(&format!("{DESCRIBED}{AGENT}"), &[("device", "/dev/a")]);
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn an_agent_that_doesnt_describe_itself_is_taken_at_its_word() {
    private(|| {
        for says in ["exit 3", "echo usage; exit 0", "sleep 1000"] {
            let described = format!("[ \"$1\" = meta-data ] && {{ {says}; }}\n{AGENT}");
            let limited =
                |service| Service { monitor_limit: Duration::from_secs(2), monitor_every: LONG, ..service };
            let world = world_with(&described, &[("anything", "at all")], limited);
            assert_eq!(world.start(), ResourceState::Running, "{says}");
            assert_eq!(world.stop(), ResourceState::Stopped);
        }
    });
}

#[test]
fn a_stop_that_fails_where_nothing_is_installed_is_one() {
    private(|| {
        let world = world(AGENT, &[]);
        assert_eq!(world.start(), ResourceState::Running);
        replace(&world.file("stop"), "5");
        replace(&world.file("monitor"), "5");
        let told = world.stop();
        // Its monitor may have failed before the stop was ordered.
        let told = if matches!(told, ResourceState::Broken(_)) { world.next() } else { told };
        assert_eq!(told, ResourceState::Stopped);
    });
}

#[test]
fn a_configuration_is_checked_with_the_agents_that_are_here() {
    let described = world(&format!("{DESCRIBED}{AGENT}"), &[("options", "ro")]);
    let silent = world(AGENT, &[("anything", "at all")]);
    let check = |world: &World| check_agents(&world.setup.resources, &world.setup.ocf_root);
    let expected =
        format!("{}: baton/Dummy: it needs the parameter `device` (block device)", described.server());
    assert_eq!(check(&described), [expected]);
    assert!(check(&silent).is_empty());
    fs::remove_file(described.file("ocf/resource.d/baton/Dummy")).expect("removed");
    assert!(check(&described).is_empty(), "it isn't installed");
}
