//! Fencing with programs and devices of the test's own.

mod reservations;
pub(crate) use reservations::{key, sg_persist};
mod watchdogs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::config::{FenceAction, FenceAgent, Parameter};
use crate::testing::{LONG, script};

fn resources(server: &str, fence: Fence) -> Resources {
    Resources {
        server: server.to_owned(),
        addresses: Vec::new(),
        filesystems: Vec::new(),
        services: Vec::new(),
        fence,
        storage_units: Vec::new(),
        reset_connections: true,
        private_mounts: false,
    }
}

/// A node, "fs1", that has to do with "fs2".
struct World {
    folder: tempfile::TempDir,
    fencing: Fencing,
    resources: Vec<Resources>,
    promised: Option<Promise>,
    guard: Arc<Guard>,
}

impl World {
    fn new(fence: Fence) -> World {
        let resources = ["projects", "homes"].map(|server| resources(server, fence)).to_vec();
        let guard = Guard::new(["projects".to_owned()], &BTreeSet::new());
        guard.stopped("projects");
        let folder = tempfile::tempdir().expect("a folder");
        let fencing = Fencing { agents: Vec::new(), watchdog: Duration::from_secs(10) };
        World { folder, fencing, resources, promised: None, guard: Arc::new(guard) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Adds a fence agent: a script that runs in the test's folder.
    fn agent(&mut self, name: &str, level: u32, text: &str) -> &mut FenceAgent {
        let program = self.path(name);
        script(&program, &format!("cd {}\n{text}", self.folder.path().display()));
        self.fencing.agents.push(FenceAgent {
            node: "fs2".into(),
            program,
            parameters: BTreeMap::new(),
            action: FenceAction::Off,
            limit: LONG,
            level,
        });
        self.fencing.agents.last_mut().expect("just added")
    }

    fn fencer(&self) -> (Fencer, Receiver<(Request, Option<String>)>) {
        let (sender, reports) = channel();
        let sender = Mutex::new(sender);
        let promised = self.promised.clone();
        let setup = Setup {
            node: "fs1".into(),
            resources: self.resources.clone(),
            fencing: self.fencing.clone(),
            promised: Arc::new(move |node| match node {
                "fs3" => Err("the store does not answer".to_owned()),
                _ => Ok(promised.clone()),
            }),
            guard: self.guard.clone(),
            sg_persist: self.path("sg_persist"),
        };
        let report = move |request, failed| {
            let _ = lock(&sender).send((request, failed)); // the test is over
        };
        (Fencer::new(setup, Arc::new(report)).expect("a descriptor"), reports)
    }

    /// Fences a node for a virtual server; returns what went wrong.
    fn fence(&self, server: &str, node: &str) -> Option<String> {
        let (mut fencer, reports) = self.fencer();
        let request = request(server, node, 7);
        fencer.fence(request.clone());
        let (answered, failed) = reports.recv_timeout(LONG).expect("an answer");
        assert_eq!(answered, request);
        failed
    }
}

fn request(server: &str, node: &str, incarnation: u64) -> Request {
    Request { server: server.to_owned(), node: node.to_owned(), incarnation }
}

#[test]
fn an_agent_is_told_what_to_do_on_its_standard_input() {
    let mut world = World::new(Fence::Agent);
    let secret = world.path("secret");
    fs::write(&secret, "geheim\n").expect("written");
    let agent = world.agent("agent", 1, "cat > told; echo \"$# arguments\" > arguments; env > environment");
    agent.action = FenceAction::Reboot;
    let parameters = [("ip", Parameter::Text("10.1.0.1".into())), ("password", Parameter::File(secret))];
    agent.parameters = parameters.map(|(name, value)| (name.to_owned(), value)).into();
    assert_eq!(world.fence("projects", "fs2"), None);
    assert_eq!(world.text("told"), "action=reboot\nip=10.1.0.1\npassword=geheim\n");
    assert_eq!(world.text("arguments").trim(), "0 arguments");
    assert!(!world.text("environment").contains("geheim"));
}

#[test]
fn what_an_agent_says_is_told_without_its_secrets() {
    let mut world = World::new(Fence::Agent);
    let secret = world.path("secret");
    // Shown only in part where the line is cut, too.
    fs::write(&secret, "geheim".repeat(40)).expect("written");
    let agent = world.agent("agent", 1, "grep ^password; grep ^pass; cat >&2; cat secret; exit 1");
    let password = Parameter::File(secret.clone());
    let plain = Parameter::Text("klartext".into());
    agent.parameters = [("password".to_owned(), password), ("passwd".to_owned(), plain)].into();
    let why = world.fence("projects", "fs2").expect("it has failed");
    assert!(why.contains("exit status 1: …"), "{why}");
    assert!(!why.contains("geh") && !why.contains("klartext"), "{why}");
    fs::remove_file(&secret).expect("removed");
    let why = world.fence("projects", "fs2").expect("it has failed");
    assert!(why.contains("password") && why.contains("No such file"), "{why}");
    fs::write(&secret, "").expect("written");
    let why = world.fence("projects", "fs2").expect("it has failed");
    assert!(why.contains("it has not one line"), "{why}");
}

#[test]
fn an_agent_that_hangs_is_killed_and_nothing_is_fenced() {
    let mut world = World::new(Fence::Agent);
    let agent = world.agent("agent", 1, "echo $$ > pid; exec sleep 1000");
    agent.limit = Duration::from_millis(300);
    let why = world.fence("projects", "fs2").expect("it has failed");
    assert!(why.ends_with("it takes too long"), "{why}");
    let pid: i32 = world.text("pid").trim().parse().expect("a number");
    let process = crate::resources::process::Process::of(pid);
    assert!(process.is_none_or(|process| !process.is_alive()), "it still runs");
}

#[test]
fn without_an_agent_nobody_is_fenced() {
    let mut world = World::new(Fence::Agent);
    assert_eq!(world.fence("projects", "fs2").as_deref(), Some("there is no [[fence]] for fs2"));
    world.agent("agent", 1, "exit 0").program = "/nowhere/fence".into();
    let why = world.fence("projects", "fs2").expect("it has failed");
    assert!(why.starts_with("/nowhere/fence: it can't be started"), "{why}");
    let why = world.fence("nothing", "fs2").expect("it has failed");
    assert_eq!(why, "it has no file systems any more");
}

#[test]
fn all_agents_of_a_level_are_needed_and_others_are_tried_when_they_fail() {
    let mut world = World::new(Fence::Agent);
    world.agent("a", 1, "echo a >> log");
    world.agent("b", 1, "echo b >> log; test ! -e broken");
    world.agent("c", 2, "echo c >> log; test ! -e worse");
    assert_eq!(world.fence("projects", "fs2"), None);
    assert_eq!(world.text("log"), "a\nb\n");
    fs::write(world.path("broken"), "").expect("written");
    assert_eq!(world.fence("projects", "fs2"), None);
    assert_eq!(world.text("log"), "a\nb\na\nb\nc\n");
    fs::write(world.path("worse"), "").expect("written");
    let why = world.fence("projects", "fs2").expect("it has failed");
    assert!(why.contains("/b: exit status 1") && why.contains("/c: exit status 1"), "{why}");
}

#[test]
fn a_node_is_switched_off_once_for_all_that_it_had() {
    let mut world = World::new(Fence::Agent);
    world.agent("agent", 1, "echo x >> log; while test ! -e go; do sleep 0.01; done; test ! -e broken");
    let (mut fencer, reports) = world.fencer();
    let mut fence = |server: &str, incarnation| fencer.fence(request(server, "fs2", incarnation));
    let next = || reports.recv_timeout(LONG).expect("an answer");
    let runs = || world.text("log").lines().count();
    fence("projects", 7);
    while runs() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    fence("homes", 6);
    fs::write(world.path("go"), "").expect("written");
    let mut servers = [next(), next()].map(|(request, failed)| {
        assert_eq!(failed, None);
        request.server
    });
    servers.sort_unstable();
    assert_eq!(servers, ["homes", "projects"]);
    assert_eq!(runs(), 1);
    // It has come back since.
    fs::write(world.path("broken"), "").expect("written");
    fence("projects", 8);
    assert!(next().1.is_some());
    assert_eq!(runs(), 2);
    fence("projects", 8);
    assert!(next().1.is_some(), "what has failed is tried again");
    assert_eq!(runs(), 3);
    fence("homes", 7);
    assert_eq!((next().1.is_some(), runs()), (true, 4), "a failure proves nothing for earlier ones either");
    fs::remove_file(world.path("broken")).expect("removed");
    fence("projects", 8);
    assert_eq!((next().1, runs()), (None, 5));
    // One that is cut off from its storage may come back without a boot.
    fence("projects", 8);
    assert_eq!((next().1, runs()), (None, 6));
}

#[test]
fn a_node_never_switches_itself_off() {
    let mut world = World::new(Fence::Agent);
    world.agent("agent", 1, "echo x >> log").node = "fs1".into();
    assert_eq!(world.fence("projects", "fs1"), None);
    world.guard.start("projects").expect("nothing resets it");
    assert!(world.fence("projects", "fs1").is_some_and(|why| why.contains("still runs on this node")));
    assert_eq!(world.text("log"), "");
}

#[test]
fn whoever_accepts_corruption_is_not_kept_waiting() {
    assert_eq!(World::new(Fence::None).fence("projects", "fs2"), None);
}

#[test]
fn the_end_of_the_agent_ends_what_is_under_way() {
    let mut world = World::new(Fence::Agent);
    world.agent("agent", 1, "echo $$ > pid; sleep 1000");
    let (mut fencer, reports) = world.fencer();
    fencer.fence(request("projects", "fs2", 7));
    while world.text("pid").is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    drop(fencer);
    assert!(reports.try_recv().is_err(), "the next agent asks again");
}
