//! Units of systemd. None runs here: one that is made in this file answers on a bus of its own, and its unit has real processes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use zbus::{Connection, OwnedObjectPath};

use super::*;
use crate::config::Unit;

const NAME: &str = "test.service";
const UNIT: &str = "/org/freedesktop/systemd1/unit/test_2eservice";
const MANAGER: &str = "/org/freedesktop/systemd1";

/// What comes of the next start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Works,
    /// The job ends with this word.
    Fails(&'static str),
    /// It is done, and so is the process.
    Ends,
    /// The job doesn't end.
    Hangs,
}

/// The unit as systemd sees it.
struct Seen {
    load: &'static str,
    state: &'static str,
    result: &'static str,
    file: &'static str,
    next: Next,
    /// It does not end before it is killed.
    is_deaf: bool,
    main: Option<Guarded>,
    /// What was called, in order.
    calls: Vec<String>,
    jobs: u32,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Seen>>);

impl Shared {
    fn get(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called(&self, what: &str) -> usize {
        self.get().calls.iter().filter(|call| *call == what).count()
    }

    fn pid(&self) -> i32 {
        self.get().main.as_ref().map_or(0, Guarded::pid)
    }
}

impl Seen {
    fn run(&mut self) {
        self.main = Some(Guarded::start(std::process::Command::new("/bin/sleep").arg("1000")));
        (self.state, self.result) = ("active", "success");
    }

    fn job(&mut self, call: String) -> (u32, OwnedObjectPath) {
        self.calls.push(call);
        self.jobs += 1;
        (self.jobs, path(&format!("{MANAGER}/job/{}", self.jobs)))
    }
}

fn path(text: &str) -> OwnedObjectPath {
    OwnedObjectPath::try_from(text).expect("a path")
}

/// Tells that a job has ended.
async fn removed(connection: &Connection, (number, job): &(u32, OwnedObjectPath), result: &str) {
    let interface = "org.freedesktop.systemd1.Manager";
    let body = (*number, job, NAME, result);
    let none: Option<&str> = None;
    connection.emit_signal(none, MANAGER, interface, "JobRemoved", &body).await.expect("told");
}

struct Manager(Shared);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn load_unit(&self, name: &str) -> OwnedObjectPath {
        assert_eq!(name, NAME);
        path(UNIT)
    }

    fn subscribe(&self) {}

    fn reset_failed_unit(&self, _name: &str) {
        let mut seen = self.0.get();
        seen.calls.push("reset".to_owned());
        seen.state = "inactive";
    }

    async fn start_unit(
        &self,
        _name: &str,
        mode: &str,
        #[zbus(connection)] bus: &Connection,
    ) -> OwnedObjectPath {
        let (job, result) = {
            let mut seen = self.0.get();
            let job = seen.job(format!("start {mode}"));
            let result = match seen.next {
                Next::Works => {
                    seen.run();
                    Some("done")
                }
                Next::Fails(word) => {
                    (seen.state, seen.result) = ("failed", "exit-code");
                    Some(word)
                }
                Next::Ends => Some("done"),
                Next::Hangs => {
                    seen.state = "activating";
                    None
                }
            };
            (job, result)
        };
        // The end of the job comes before its number: nothing forbids that.
        if let Some(result) = result {
            removed(bus, &job, result).await;
        }
        job.1
    }

    async fn stop_unit(
        &self,
        _name: &str,
        mode: &str,
        #[zbus(connection)] bus: &Connection,
    ) -> OwnedObjectPath {
        let (job, hangs) = {
            let mut seen = self.0.get();
            let hangs = seen.is_deaf && seen.main.is_some();
            if hangs {
                seen.state = "deactivating";
            } else {
                seen.main = None;
                seen.state = if seen.state == "failed" { "failed" } else { "inactive" };
            }
            (seen.job(format!("stop {mode}")), hangs)
        };
        if !hangs {
            // Another job's end is none of this one's.
            removed(bus, &(0, path(&format!("{MANAGER}/job/0"))), "canceled").await;
            removed(bus, &job, "done").await;
        }
        job.1
    }

    fn kill_unit(&self, _name: &str, whom: &str, signal: i32) {
        let mut seen = self.0.get();
        seen.calls.push(format!("kill {whom} {signal}"));
        seen.main = None;
        seen.state = "failed";
    }
}

struct UnitObject(Shared);

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl UnitObject {
    #[zbus(property)]
    fn load_state(&self) -> String {
        self.0.get().load.to_owned()
    }

    #[zbus(property)]
    fn active_state(&self) -> String {
        self.0.get().state.to_owned()
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.0.get().state.replace("active", "running")
    }

    #[zbus(property)]
    fn unit_file_state(&self) -> String {
        self.0.get().file.to_owned()
    }
}

struct ServiceObject(Shared);

#[zbus::interface(name = "org.freedesktop.systemd1.Service")]
impl ServiceObject {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.0.pid() as u32
    }

    #[zbus(property)]
    fn result(&self) -> String {
        self.0.get().result.to_owned()
    }
}

/// systemd on a bus of its own. Dropped: both end, and so does its unit.
struct Systemd {
    shared: Shared,
    _bus: Guarded,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Systemd {
    fn start(folder: &Path) -> Systemd {
        let socket = folder.join("bus");
        let file = folder.join("bus.conf");
        let text = format!(
            "<busconfig><type>custom</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>",
            socket.display()
        );
        fs::write(&file, text).expect("written");
        let mut daemon = std::process::Command::new("dbus-daemon");
        let bus = Guarded::start(daemon.arg("--nofork").arg(format!("--config-file={}", file.display())));
        until("the bus", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        let seen = Seen {
            load: "loaded",
            state: "inactive",
            result: "success",
            file: "static",
            next: Next::Works,
            is_deaf: false,
            main: None,
            calls: Vec::new(),
            jobs: 0,
        };
        let shared = Shared(Arc::new(Mutex::new(seen)));
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = channel();
        let (served, address) = (shared.clone(), format!("unix:path={}", socket.display()));
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let builder = zbus::connection::Builder::address(address.as_str())
                    .serve_at(MANAGER, Manager(served.clone()))
                    .serve_at(UNIT, UnitObject(served.clone()))
                    .serve_at(UNIT, ServiceObject(served.clone()))
                    .name("org.freedesktop.systemd1");
                let _connection = builder.build().await.expect("a bus");
                ready.send(()).expect("the test waits");
                tokio::select! {
                    _ = ended => {}
                    () = notice(&served) => {}
                }
            });
        });
        is_ready.recv_timeout(LONG).expect("systemd");
        Systemd { shared, _bus: bus, end: Some(end), thread: Some(thread) }
    }
}

/// Notices processes that have ended.
async fn notice(shared: &Shared) {
    loop {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let mut seen = shared.get();
        let ended = seen.main.as_mut().is_some_and(|main| matches!(main.0.try_wait(), Ok(Some(_))));
        if ended {
            seen.main = None;
            (seen.state, seen.result) = ("failed", "signal");
        }
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.end.take().map(|end| end.send(()));
        let _ = self.thread.take().map(thread::JoinHandle::join);
        self.shared.get().main = None;
    }
}

/// systemd, and a virtual server with its unit.
fn world(change: impl FnOnce(Service) -> Service) -> (Systemd, World) {
    let mut systemd = None;
    let unit = change(service(ServiceKind::Systemd(Unit { unit: NAME.into() })));
    let world = World::with(false, |folder| {
        systemd = Some(Systemd::start(folder));
        (Vec::new(), vec![unit])
    });
    (systemd.expect("started"), world)
}

#[test]
fn a_unit_is_started_adopted_and_stopped() {
    private(|| {
        let (systemd, mut world) = world(|unit| Service { monitor_every: Duration::from_millis(20), ..unit });
        let systemd = &systemd.shared;
        assert_eq!(world.start(), ResourceState::Running);
        let process = systemd.pid();
        assert_eq!(world.mains().iter().map(|p| p.pid).collect::<Vec<_>>(), [process]);
        world.again();
        assert!(world.running.contains(world.server()));
        world.silent(Duration::from_millis(100));
        assert_eq!((systemd.pid(), systemd.get().calls.clone()), (process, vec!["start replace".to_owned()]));
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert_eq!((systemd.pid(), systemd.get().state), (0, "inactive"));
        assert_eq!(systemd.called("stop replace"), 1);
        // Once more, from a failure of its past.
        systemd.get().state = "failed";
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(systemd.called("reset"), 1);
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn one_that_somebody_else_has_started_is_left_alone() {
    private(|| {
        let (systemd, world) = world(|unit| unit);
        let systemd = &systemd.shared;
        for state in ["active", "activating", "deactivating", "reloading"] {
            systemd.get().run();
            systemd.get().state = state;
            let why = start_failed(world.start());
            let expected = format!(
                "{NAME}: {NAME} is {state}, and Baton has not started it: stop it, and keep others from starting it \
                 (`systemctl disable --now {NAME}`)"
            );
            assert_eq!(why, expected);
            assert_eq!(world.stop(), ResourceState::Stopped);
            assert!(clean(&world.setup).expect("cleaned").is_empty());
            assert!(systemd.pid() > 0 && systemd.get().state == state && systemd.get().calls.is_empty());
        }
        systemd.get().main = None;
        systemd.get().state = "inactive";
        assert_eq!(world.start(), ResourceState::Running);
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn one_that_dies_is_started_again_at_once() {
    private(|| {
        let (systemd, world) = world(|unit| Service { restarts: 1, ..unit });
        let systemd = &systemd.shared;
        assert_eq!(world.start(), ResourceState::Running);
        let first = Process::of(systemd.pid()).expect("it runs");
        first.signal(libc::SIGKILL);
        until("another one", || systemd.called("start replace") == 2 && !world.mains().contains(&first));
        until("its process", || world.mains().iter().any(|p| p.pid == systemd.pid()));
        Process::of(systemd.pid()).expect("it runs").signal(libc::SIGKILL);
        let why = broken(world.next());
        assert_eq!(why, format!("{NAME}: it is failed (failed, signal), after 1 restarts in place"));
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn one_that_systemd_itself_starts_again_goes_on() {
    private(|| {
        let (systemd, world) = world(|unit| unit);
        let systemd = &systemd.shared;
        assert_eq!(world.start(), ResourceState::Running);
        let first = systemd.pid();
        // It never leaves the state in which it works.
        systemd.get().run();
        until("its process", || world.mains().iter().any(|p| p.pid == systemd.pid() && p.pid != first));
        assert_eq!(systemd.get().calls, ["start replace"]);
        assert_eq!(world.stop(), ResourceState::Stopped);
    });
}

#[test]
fn what_comes_of_a_start_is_told() {
    private(|| {
        let (systemd, world) = world(|unit| unit);
        let systemd = &systemd.shared;
        for (load, next, expected) in [
            ("loaded", Next::Fails("failed"), "start: failed: failed (failed, exit-code)"),
            ("loaded", Next::Fails("dependency"), "start: dependency: failed (failed, exit-code)"),
            ("loaded", Next::Ends, "it has ended: inactive (inrunning, exit-code)"),
            ("not-found", Next::Works, "systemd knows no unit test.service"),
            ("masked", Next::Works, "test.service is masked: `systemctl unmask test.service`"),
            (
                "bad-setting",
                Next::Works,
                "systemd can't load test.service: bad-setting; `systemctl status test.service`",
            ),
        ] {
            (systemd.get().load, systemd.get().next) = (load, next);
            assert_eq!(start_failed(world.start()), format!("{NAME}: {expected}"));
        }
        assert_eq!(systemd.pid(), 0);
    });
}

#[test]
fn a_start_that_hangs_is_taken_back() {
    private(|| {
        let (systemd, world) = world(|unit| Service { start_limit: Duration::from_secs(2), ..unit });
        let systemd = &systemd.shared;
        systemd.get().next = Next::Hangs;
        assert_eq!(start_failed(world.start()), format!("{NAME}: it takes too long"));
        assert_eq!(systemd.get().state, "inactive");
        // A stop needn't wait for the limit.
        world.order(Order::Start);
        until("another start", || systemd.called("start replace") == 2);
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert_eq!(systemd.called("stop replace"), 2);
    });
}

#[test]
fn one_that_doesnt_stop_is_killed() {
    private(|| {
        let (systemd, world) = world(|unit| Service { stop_limit: Duration::from_secs(2), ..unit });
        let systemd = &systemd.shared;
        systemd.get().is_deaf = true;
        assert_eq!(world.start(), ResourceState::Running);
        let process = Process::of(systemd.pid()).expect("it runs");
        assert_eq!(world.stop(), ResourceState::Stopped);
        assert!(!process.is_alive());
        assert_eq!(systemd.get().calls, ["start replace", "stop replace", "kill all 9", "stop replace"]);
    });
}

#[test]
fn a_bus_that_isnt_there_is_told() {
    private(|| {
        let unit = service(ServiceKind::Systemd(Unit { unit: NAME.into() }));
        let world = World::new(false, vec![unit]);
        let why = start_failed(world.start());
        assert!(why.starts_with(&format!("{NAME}: the system bus can't be reached: ")), "{why}");
    });
}
