//! A watchdog of the test's own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::guard::Leased;
use super::super::watchdog::{Device, Open, Setup, Watchdog, disarm, noted};
use super::*;

/// What was done to the device, and what it does.
#[derive(Default)]
struct Fake {
    done: Mutex<Vec<String>>,
    /// It can't be set to less.
    least: AtomicU64,
}

impl Fake {
    fn add(&self, what: String) {
        lock(&self.done).push(what);
    }

    /// All but that it was fed.
    fn done(&self) -> Vec<String> {
        lock(&self.done).iter().filter(|what| *what != "fed").cloned().collect()
    }

    fn fed(&self) -> usize {
        lock(&self.done).iter().filter(|what| *what == "fed").count()
    }
}

struct Handle(Arc<Fake>);

impl Device for Handle {
    fn set(&mut self, seconds: u32) -> io::Result<u32> {
        let seconds = u64::from(seconds).max(self.0.least.load(Ordering::SeqCst));
        self.0.add(format!("set {seconds}"));
        Ok(seconds as u32)
    }

    fn feed(&mut self) -> io::Result<()> {
        self.0.add("fed".to_owned());
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        self.0.add("disarmed".to_owned());
        Ok(())
    }
}

/// A node with a watchdog, and a virtual server "a" that is fenced by it.
struct Node {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
    guard: Arc<Guard>,
    /// The incarnation that has a lease; 0: none.
    lease: Arc<AtomicU64>,
    /// Does the store answer?
    store: Arc<AtomicBool>,
}

impl Node {
    fn new() -> Node {
        let guard = Guard::new(["a".to_owned()], &["a".to_owned()].into());
        Node {
            folder: tempfile::tempdir().expect("a folder"),
            fake: Arc::default(),
            guard: Arc::new(guard),
            lease: Arc::new(AtomicU64::new(1)),
            store: Arc::new(AtomicBool::new(true)),
        }
    }

    fn note(&self) -> PathBuf {
        self.folder.path().join("run").join("watchdog.json")
    }

    fn agent(&self, seconds: u64, servers: &[&str]) -> Watchdog {
        let servers = servers.iter().map(|name| (*name).to_owned()).collect();
        let (fake, told, lease, store) =
            (self.fake.clone(), self.fake.clone(), self.lease.clone(), self.store.clone());
        let setup = Setup {
            open: Box::new(move || {
                fake.add("opened".to_owned());
                Ok(Box::new(Handle(fake.clone())) as Box<dyn Device>)
            }),
            path: "/dev/watchdog-of-a-test".into(),
            promise: Promise { seconds, servers },
            accepted: ["a".to_owned()].into(),
            note: self.note(),
            guard: self.guard.clone(),
            lease: Box::new(move || {
                let incarnation = lease.load(Ordering::SeqCst);
                Some(Leased { incarnation, valid: incarnation != 0 })
            }),
            tell: Arc::new(move |promise| match store.load(Ordering::SeqCst) {
                true => {
                    told.add(format!("told {} {:?}", promise.seconds, promise.servers));
                    Ok(())
                }
                false => Err("the store does not answer".to_owned()),
            }),
        };
        Watchdog::start(setup).expect("a thread")
    }

    fn until(&self, what: &str, is_so: impl Fn(&Node) -> bool) {
        let end = Instant::now() + LONG;
        while !is_so(self) {
            assert!(Instant::now() < end, "{what}: never; {:?}", lock(&self.fake.done));
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn until_armed(&self) {
        self.guard.entitle("a", Some(1));
        self.until("armed", |node| node.guard.start("a").is_ok());
    }

    fn until_fed(&self) {
        let before = self.fake.fed();
        self.until("fed", |node| node.fake.fed() > before);
    }

    /// It is not fed, however often it would have been.
    fn hungers(&self) {
        // One feeding may be under way.
        thread::sleep(Duration::from_millis(300));
        let before = self.fake.fed();
        thread::sleep(Duration::from_millis(500));
        assert_eq!(self.fake.fed(), before);
    }
}

#[test]
fn it_is_fed_while_what_runs_may_run() {
    let node = Node::new();
    node.guard.stopped("a");
    let watchdog = node.agent(1, &["a"]);
    node.until_armed();
    assert_eq!(node.fake.done(), ["opened", "set 1", "told 1 {\"a\"}", "set 1"]);
    node.until_fed();
    node.lease.store(0, Ordering::SeqCst);
    node.hungers();
    // A lease under another incarnation is no permission: another node may wait for the reset.
    node.lease.store(2, Ordering::SeqCst);
    node.hungers();
    node.guard.entitle("a", Some(2));
    node.until_fed();
    // Released although it could not be stopped.
    node.guard.entitle("a", None);
    node.hungers();
    node.guard.stopped("a");
    node.until_fed();
    node.lease.store(0, Ordering::SeqCst);
    node.until_fed();
    drop(watchdog);
    assert_eq!(node.fake.done().last().map(String::as_str), Some("disarmed"));
    assert_eq!(noted(&node.note()), None);
}

#[test]
fn an_agent_that_ends_leaves_it_armed_while_something_runs() {
    let node = Node::new();
    node.guard.stopped("a");
    let watchdog = node.agent(1, &["a"]);
    node.until_armed();
    node.until_fed();
    drop(watchdog);
    assert!(!node.fake.done().contains(&"disarmed".to_owned()));
    let servers = ["a".to_owned()].into();
    assert_eq!(noted(&node.note()), Some(Promise { seconds: 1, servers }));
    // The next one doesn't even open it before core has said that what runs may run.
    node.guard.entitle("a", None);
    let before = node.fake.done().len();
    let watchdog = node.agent(1, &["a"]);
    node.hungers();
    assert_eq!(node.fake.done().len(), before);
    node.guard.entitle("a", Some(1));
    node.until_fed();
    drop(watchdog);
    // Everything is stopped, and an administrator cleans up.
    let fake = node.fake.clone();
    let open: Open = Box::new(move || Ok(Box::new(Handle(fake.clone())) as Box<dyn Device>));
    for _ in 0..2 {
        disarm(&open, &node.note()).expect("disarmed");
    }
    assert_eq!(node.fake.done().iter().filter(|what| *what == "disarmed").count(), 1);
}

#[test]
fn nothing_starts_before_the_others_know() {
    let node = Node::new();
    node.guard.stopped("a");
    node.store.store(false, Ordering::SeqCst);
    let watchdog = node.agent(1, &["a"]);
    node.until_fed();
    assert_eq!(node.guard.start("a"), Err(None));
    node.store.store(true, Ordering::SeqCst);
    node.until_armed();
    drop(watchdog);
}

#[test]
fn a_longer_time_is_promised_before_it_is_set_and_a_shorter_one_after() {
    let node = Node::new();
    node.guard.stopped("a");
    let armed = |seconds| {
        let watchdog = node.agent(seconds, &["a"]);
        node.guard.entitle("a", Some(1));
        node.guard.start("a").ok();
        node.until("settled", |node| node.fake.done().len() == 4);
        node.until_fed();
        drop(watchdog);
        std::mem::take(&mut *lock(&node.fake.done))
            .into_iter()
            .filter(|what| what != "fed")
            .collect::<Vec<_>>()
    };
    assert_eq!(armed(2), ["opened", "set 2", "told 2 {\"a\"}", "set 2"]);
    assert_eq!(armed(3), ["opened", "set 2", "told 3 {\"a\"}", "set 3"]);
    assert_eq!(armed(1), ["opened", "set 1", "told 1 {\"a\"}", "set 1"]);
}

#[test]
fn what_takes_longer_than_promised_is_no_watchdog() {
    let node = Node::new();
    node.guard.stopped("a");
    node.fake.least.store(60, Ordering::SeqCst);
    let watchdog = node.agent(1, &["a"]);
    let refused = |node: &Node| match node.guard.start("a") {
        Err(Some(why)) => why.contains("it can't be set to 1 s, but takes 60 s"),
        Err(None) | Ok(()) => false,
    };
    node.guard.entitle("a", Some(1));
    node.until("refused", refused);
    drop(watchdog);
    assert_eq!(node.fake.done()[..3], ["opened", "set 60", "disarmed"]);
    assert_eq!(noted(&node.note()), None);
}

#[test]
fn what_needs_it_no_more_is_taken_from_the_promise_first() {
    let node = Node::new();
    node.guard.stopped("a");
    let watchdog = node.agent(1, &["a"]);
    node.until_armed();
    node.until_fed();
    drop(watchdog);
    // It goes on without fencing, so core says nothing of it any more.
    lock(&node.fake.done).clear();
    node.guard.entitle("a", None);
    let watchdog = node.agent(2, &[]);
    node.until("disarmed", |node| node.fake.done().contains(&"disarmed".to_owned()));
    let all = ["told 2 {}", "opened", "set 2", "told 2 {}", "set 2", "disarmed"];
    assert_eq!(node.fake.done(), all);
    assert_eq!(node.guard.forbids(None), None);
    drop(watchdog);
}

fn promise(seconds: u64) -> Promise {
    Promise { seconds, servers: ["projects".to_owned()].into() }
}

#[test]
fn whoever_waits_for_a_reset_waits_for_what_was_promised() {
    let mut world = World::new(Fence::Watchdog);
    let why = world.fence("projects", "fs2").expect("nothing was promised");
    assert_eq!(why, "fs2 has never promised that its watchdog resets it for projects");
    world.promised = Some(promise(0));
    let why = world.fence("homes", "fs2").expect("not for this one");
    assert!(why.contains("for homes"), "{why}");
    assert_eq!(world.fence("projects", "fs3").as_deref(), Some("the store does not answer"));
    let began = Instant::now();
    assert_eq!(world.fence("projects", "fs2"), None);
    assert!(began.elapsed() >= Duration::from_secs(1), "one second is for clocks");
}

#[test]
fn a_reset_takes_twice_the_time_and_what_clocks_may_be_wrong() {
    let orders = Orders::new().expect("an eventfd");
    let ended = |ago: u64| {
        let since = Instant::now() - Duration::from_secs(ago);
        orders.give(Order::Leave);
        let patience = patience(&orders, LONG);
        super::super::watchdog::wait(Some(promise(10)), &request("projects", "fs2", 7), since, &patience)
    };
    assert_eq!(ended(24), Ok(()));
    assert_eq!(ended(22), Err(None), "told to leave before that");
}
