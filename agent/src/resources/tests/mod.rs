//! Real processes and file systems, in namespaces of their own.

mod adoption;
mod exec;
mod mounts;
mod ocf_agents;
mod private_mounts;
mod protection;
mod systemd_units;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::process::Process;
use super::*;
use crate::config::{Exec, Fence, Filesystem, Service, ServiceKind};
use crate::testing::{LONG, replace, script, until};

/// Runs a test with mounts and a network of its own, which its threads and children have too.
fn private<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
            test()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The routes by which the node reaches addresses of virtual servers as its own.
fn local_routes() -> String {
    let shown =
        std::process::Command::new("ip").args(["route", "show", "table", "local", "proto", "98"]).output();
    String::from_utf8_lossy(&shown.expect("ip(8)").stdout).trim_end().to_owned()
}

/// A child of the test. Dropped: killed.
pub(super) struct Guarded(pub(super) std::process::Child);

impl Guarded {
    /// Starts it; it keeps nothing of the test's own input and output open.
    pub(super) fn start(command: &mut std::process::Command) -> Guarded {
        use std::process::Stdio;
        Guarded(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("started"))
    }

    pub(super) fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended, and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The threads, what they told, and a folder for the test's own files.
struct World {
    folder: tempfile::TempDir,
    setup: Setup,
    runner: Option<Runner>,
    reports: Receiver<ResourceState>,
    /// Found running when the threads were last started.
    running: BTreeSet<String>,
}

impl World {
    /// With a virtual server, "projects", that has these services.
    fn new(groups: bool, services: Vec<Service>) -> World {
        World::with(groups, |_| (Vec::new(), services))
    }

    /// The same with what is made with the test's folder.
    fn with(groups: bool, make: impl FnOnce(&Path) -> (Vec<Filesystem>, Vec<Service>)) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let (filesystems, services) = make(folder.path());
        // A name of its own, for control groups are the whole machine's.
        let server = format!("test-{}", folder.path().file_name().and_then(|n| n.to_str()).expect("a name"));
        let server = server.replace("/", "-");
        let addresses = vec!["192.0.2.1".parse().expect("an address")];
        let setup = Setup {
            node: "fs1".into(),
            resources: vec![Resources {
                server,
                addresses,
                filesystems,
                services,
                fence: Fence::None,
                storage_units: Vec::new(),
                reset_connections: true,
                private_mounts: false,
            }],
            root: folder.path().join("run"),
            ocf_root: folder.path().join("ocf"),
            bus: Some(format!("unix:path={}/bus", folder.path().display())),
            groups,
            guard: Arc::new(Guard::new([], &BTreeSet::new())),
            reservations: None,
        };
        let (runner, running, reports) = start(&setup);
        World { folder, setup, runner: Some(runner), reports, running }
    }

    fn server(&self) -> &str {
        &self.setup.resources[0].server
    }

    /// A file of the test.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn order(&self, order: Order) {
        self.runner.as_ref().expect("threads").order(self.server(), order);
    }

    /// The next thing that is told.
    fn next(&self) -> ResourceState {
        self.reports.recv_timeout(LONG).expect("a report")
    }

    /// Nothing is told for a while.
    fn silent(&self, length: Duration) {
        let told = self.reports.recv_timeout(length);
        assert!(told.is_err(), "{told:?}");
    }

    fn start(&self) -> ResourceState {
        self.order(Order::Start);
        self.next()
    }

    fn stop(&self) -> ResourceState {
        self.order(Order::Stop);
        self.next()
    }

    /// The agent goes and another one comes.
    fn again(&mut self) {
        self.runner = None;
        let (runner, running, reports) = start(&self.setup);
        (self.runner, self.running, self.reports) = (Some(runner), running, reports);
    }

    fn folder_of_server(&self) -> Folder {
        Folder::new(&self.setup.root, self.server()).expect("a boot")
    }

    /// The living processes of the virtual server.
    fn processes(&self) -> Vec<Process> {
        let identity = self.folder_of_server().identity();
        identity.map_or(Vec::new(), |i| process::with_variable(&format!("BATON_RUN={}", i.token)))
    }

    /// The processes that are services, by their places.
    fn mains(&self) -> Vec<Process> {
        self.folder_of_server().records().iter().filter_map(|r| r.process).collect()
    }

    /// What a program has written, without the end of the line.
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default().trim_end().to_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.runner = None;
        for process in self.processes() {
            process.signal(libc::SIGKILL);
        }
        let left = clean(&self.setup).unwrap_or_default();
        if let Some(hierarchy) = cgroup::hierarchy() {
            let group = hierarchy.join("baton").join(self.server());
            cgroup::members(&group).iter().for_each(|process| process.signal(libc::SIGKILL));
            cgroup::remove(&group);
            let _ = fs::remove_dir(hierarchy.join("baton")); // another test may have one
        }
        if !left.is_empty() && !thread::panicking() {
            panic!("left behind: {left:?}");
        }
    }
}

fn start(setup: &Setup) -> (Runner, BTreeSet<String>, Receiver<ResourceState>) {
    let (sender, reports) = channel();
    let all: Vec<String> = setup.resources.iter().map(|r| r.server.clone()).collect();
    let report = move |server: &str, state: ResourceState| {
        let place = all.iter().position(|name| name == server).expect("one of them");
        if place == 0 {
            let _ = sender.send(state); // the test is over
        }
    };
    let (runner, running) = Runner::start(setup, Arc::new(report)).expect("threads");
    (runner, running, reports)
}

/// A script.
fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

fn service(kind: ServiceKind) -> Service {
    Service {
        kind,
        start_limit: LONG,
        stop_limit: LONG,
        monitor_every: LONG,
        monitor_limit: LONG,
        restarts: 3,
    }
}

/// A service in the foreground.
fn foreground(script: &str) -> Service {
    service(ServiceKind::Exec(Exec { start: sh(script), stop: None, monitor: None }))
}

/// A service that commands start and stop.
fn commands(start: &str, stop: &str) -> Service {
    service(ServiceKind::Exec(Exec { start: sh(start), stop: Some(sh(stop)), monitor: None }))
}

/// The same, with a check.
fn checked(mut of: Service, monitor: &str) -> Service {
    if let ServiceKind::Exec(exec) = &mut of.kind {
        exec.monitor = Some(sh(monitor));
    }
    of
}

fn start_failed(state: ResourceState) -> String {
    match state {
        ResourceState::StartFailed(why) => why,
        other => panic!("{other:?}"),
    }
}

fn stop_failed(state: ResourceState) -> String {
    match state {
        ResourceState::StopFailed(why) => why,
        other => panic!("{other:?}"),
    }
}

fn broken(state: ResourceState) -> String {
    match state {
        ResourceState::Broken(why) => why,
        other => panic!("{other:?}"),
    }
}
