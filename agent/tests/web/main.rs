//! The web page in a real browser: what it shows in each state, and a picture of it below `target/web`.

mod browser;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baton::journal::{Journal, Record};
use baton::telemetry::{self, Action, Actions, Metrics};
use baton_core::{
    AddressView, Attachment, Event, EventKind, FailoverKind, Finding, NodePortView, NodeView, PathView,
    PortState, PortView, Reason, Rebinding, SegmentView, ServerView, Snapshot, Stage, Time, Watcher,
};
use browser::Browser;

fn port(interface: &str, state: PortState, reason: Option<Reason>) -> PortView {
    PortView {
        interface: interface.into(),
        segment: "office".into(),
        state,
        reason,
        carrier: state != PortState::Down,
        present: true,
        attachment: Some(Attachment::Native),
        held_ms: None,
        flaps: 0,
        addresses: usize::from(state == PortState::Good),
        rate: 0,
    }
}

fn server(name: &str, owner: &str, state: &str, address: &str, port: Option<&str>) -> ServerView {
    let address = address.parse().expect("an address");
    let port = port.map(str::to_owned);
    ServerView {
        name: name.into(),
        owner: Some(owner.into()),
        state: state.into(),
        epoch: 3,
        load: 0.31,
        priority: 100,
        why: None,
        rate: 41_000_000,
        addresses: vec![AddressView { address, port, via: None, rate: 41_000_000 }],
    }
}

fn node(name: &str, state: &str, load: f64) -> NodeView {
    let port = |interface: &str| NodePortView {
        interface: interface.into(),
        segment: "office".into(),
        usable: true,
    };
    let ports = vec![port("eth0"), port("eth1")];
    NodeView { name: name.into(), state: state.into(), load, witness: false, ports }
}

fn healthy() -> Snapshot {
    Snapshot {
        node: "fs1".into(),
        incarnation: 7,
        master: Some("fs2".into()),
        quorum: true,
        store: true,
        lease_ms: Some(48),
        nodes: vec![node("fs1", "up", 0.42), node("fs2", "up", 0.11), node("fs3", "up", 0.87)],
        ports: vec![port("eth0", PortState::Good, None), port("eth1", PortState::Good, None)],
        virtual_servers: vec![
            server("projects", "fs1", "serving", "10.0.0.10", Some("eth0")),
            server("homes", "fs1", "serving", "fd00:10::11", Some("eth1")),
            server("scans", "fs2", "serving", "10.0.0.12", None),
            server("archive", "fs3", "serving", "10.0.0.13", None),
        ],
        segments: vec![SegmentView { name: "office".into(), finding: Finding::Whole }],
        paths: vec![PathView {
            segment: "office".into(),
            from: "eth0".into(),
            to: "eth1".into(),
            heard: Some(true),
            heard_ms: Some(2),
            loss: Some(0.0),
            rtt_us: Some(41.0),
            echo: Some(Watcher::Kernel),
            timer: Watcher::Kernel,
        }],
        ..Snapshot::default()
    }
}

/// What a page shows.
struct Shown {
    address: std::net::SocketAddr,
    out: PathBuf,
    _state: tempfile::TempDir,
    /// Dropped: the server ends.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Shown {
    /// The page of an agent that lives, or whose fast thread has been silent for long enough.
    fn new(snapshot: Snapshot, events: Vec<Event>, lives: bool) -> Shown {
        Shown::with(snapshot, events, lives, None)
    }

    /// The same, with actions.
    fn with(snapshot: Snapshot, events: Vec<Event>, lives: bool, actions: Option<Actions>) -> Shown {
        let state = tempfile::tempdir().expect("a folder");
        let mut journal = Journal::new(state.path());
        for (n, event) in events.into_iter().enumerate() {
            let time = SystemTime::now() - Duration::from_secs(60) + Duration::from_millis(n as u64);
            journal.append(&Record { time, event }).expect("written");
        }
        let (publisher, published) = telemetry::channel();
        publisher.snapshot.send_replace(Arc::new(snapshot));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let folder = state.path().to_owned();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("taken");
                let metrics = Arc::new(Metrics::new(published.clone()));
                let beats = async {
                    loop {
                        if lives {
                            publisher.beat();
                        }
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                };
                tokio::select! {
                    _ = telemetry::serve(listener, metrics, published, folder, actions) => {}
                    () = beats => {}
                    _ = stopped => {}
                }
            });
        });
        if !lives {
            std::thread::sleep(telemetry::STALE_AFTER);
        }
        let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/web");
        std::fs::create_dir_all(&out).expect("a folder for pictures");
        Shown { address, out, _state: state, _stop: stop }
    }

    /// The text that a browser shows once it has this part; pictures of it: wide, and as on a telephone in the dark.
    fn look(&self, name: &str, part: &str) -> String {
        let url = format!("http://{}/", self.address);
        let mut browser = Browser::start();
        for (kind, size, dark) in [("telephone", (390, 2400), true), ("wide", (1280, 1400), false)] {
            browser.open(&url, size, dark);
            browser.wait_for(part);
            browser.picture(&self.out.join(format!("{name}-{kind}.png")));
        }
        let wide = browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth");
        assert_eq!(wide, "true", "wider than its window");
        browser.wait_for(part)
    }
}

/// An event that belongs to a failover.
fn of(failover: Option<u64>, kind: EventKind) -> Event {
    Event { at: Time(1), failover, kind }
}

fn begun(failover: u64) -> Event {
    let moves = vec![Rebinding {
        address: "10.0.0.10".parse().expect("an address"),
        from: Some("eth0".into()),
        to: "eth1".into(),
    }];
    of(Some(failover), EventKind::Failover { kind: FailoverKind::Port, reason: Reason::CarrierLost, moves })
}

fn done(failover: u64) -> Event {
    let stages = [
        (Stage::Detected, 31e-6),
        (Stage::Decided, 52e-6),
        (Stage::Bound, 98e-6),
        (Stage::Announced, 141e-6),
    ];
    let (kind, reason) = (FailoverKind::Port, Reason::CarrierLost);
    of(Some(failover), EventKind::FailoverDone { kind, reason, addresses: 1, stages: stages.into() })
}

/// Parts of the text that must be there, and some that must not.
fn expect(text: &str, there: &[&str], absent: &[&str]) {
    for part in there {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    for part in absent {
        assert!(!text.contains(part), "{part} in:\n{text}");
    }
}

#[test]
fn healthy_is_calm() {
    let text = Shown::new(healthy(), Vec::new(), true).look("healthy", "Nothing yet.");
    let there = [
        "live",
        "3 of 3 nodes up, 4 of 4 virtual servers serving",
        "as fs1 sees it",
        "fd00:10::11 on eth1",
        "41 MB/s",
    ];
    expect(&text, &there, &["OLD DATA", "✖", "▲"]);
}

#[test]
fn a_failed_port_and_its_failover_are_seen() {
    let mut snapshot = healthy();
    snapshot.ports[0] = port("eth0", PortState::Down, Some(Reason::CarrierLost));
    snapshot.virtual_servers[0] = server("projects", "fs1", "serving", "10.0.0.10", Some("eth1"));
    let lost = EventKind::Port {
        interface: "eth0".into(),
        segment: "office".into(),
        from: PortState::Good,
        to: PortState::Down,
        reason: Some(Reason::CarrierLost),
        evidence: None,
    };
    let page = Shown::new(snapshot, vec![of(Some(1), lost), begun(1), done(1)], true);
    let text = page.look("port-down", "port failover done after");
    let there = [
        "Port eth0 of fs1 is down: carrier lost.",
        "port failover done after 141 µs: carrier lost, 1 address",
        "bound after 98 µs",
        "10.0.0.10 on eth1",
        "4 of 4 virtual servers serving",
    ];
    expect(&text, &there, &["running", "OLD DATA"]);
}

#[test]
fn a_failover_that_is_running_is_seen() {
    let mut snapshot = healthy();
    snapshot.nodes[2].state = "dead".into();
    snapshot.virtual_servers[3] = server("archive", "fs1", "starting", "10.0.0.13", None);
    let dead = of(None, EventKind::NodeDead { node: "fs3".into(), incarnation: 4 });
    let text = Shown::new(snapshot, vec![dead, begun(2)], true).look("failover-running", "running");
    let there = [
        "fs3 is dead.",
        "archive is starting.",
        "2 of 3 nodes up, 3 of 4 virtual servers serving",
        "▲ running",
    ];
    expect(&text, &there, &["OLD DATA"]);
}

#[test]
fn a_lost_quorum_is_said_first() {
    let mut snapshot = healthy();
    snapshot.quorum = false;
    snapshot.store = false;
    snapshot.master = None;
    snapshot.lease_ms = Some(0);
    snapshot.nodes.iter_mut().skip(1).for_each(|n| n.state = "unknown".into());
    snapshot.virtual_servers.iter_mut().for_each(|s| s.state = "failed".into());
    let text =
        Shown::new(snapshot, vec![of(None, EventKind::LeaseOver)], true).look("no-quorum", "No quorum.");
    let there = ["The store does not answer.", "0 of 4 virtual servers serving", "projects is failed."];
    expect(&text, &there, &["OLD DATA"]);
    assert!(text.find("No quorum.") < text.find("projects is failed."), "{text}");
}

#[test]
fn old_data_is_called_old() {
    let text = Shown::new(healthy(), Vec::new(), false).look("stale", "OLD DATA");
    expect(&text, &["Its fast thread has been silent"], &["live\n"]);
}

/// When the agent itself is gone, what the page shows is old, and is called so.
#[test]
fn a_page_without_its_agent_says_so() {
    let page = Shown::new(healthy(), Vec::new(), true);
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", page.address), (1280, 1400), false);
    browser.wait_for("3 of 3 nodes up");
    let picture = page.out.join("agent-gone-wide.png");
    drop(page);
    browser.wait_for("OLD DATA: no connection for");
    browser.picture(&picture);
}

/// Everything can be reached by keyboard, the first thing being the way past the nodes.
#[test]
fn the_keyboard_is_enough() {
    let page = Shown::new(healthy(), vec![begun(1), done(1)], true);
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", page.address), (1280, 1400), false);
    browser.wait_for("port failover done after");
    let mut reached = Vec::new();
    for _ in 0..12 {
        browser.press("Tab", 9);
        reached.push(browser.evaluate(
            "document.activeElement.id || document.activeElement.className || document.activeElement.tagName",
        ));
    }
    for wanted in ["skip", "only", "SUMMARY", "ask-plan"] {
        assert!(reached.iter().any(|r| r == wanted), "{wanted} is not among {reached:?}");
    }
    assert_eq!(reached[0], "skip");
}

/// Names come from configuration files; whatever is in them is shown as text.
#[test]
fn names_are_text() {
    let mut snapshot = healthy();
    let name = r#"<img src=x onerror="document.title='broken in'">"#;
    snapshot.virtual_servers[0].name = name.into();
    let page = Shown::new(snapshot, Vec::new(), true);
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/", page.address), (1280, 1400), false);
    browser.wait_for(name);
    assert_eq!(browser.evaluate("document.images.length"), "0");
    assert!(!browser.evaluate("document.title").contains("broken in"));
}

/// Types into the field that has the focus.
fn fill(browser: &mut Browser, id: &str, text: &str) {
    browser.evaluate(&format!("document.getElementById({id:?}).value = {text:?}"));
}

fn submit(browser: &mut Browser, id: &str) {
    browser.evaluate(&format!("document.getElementById({id:?}).requestSubmit()"));
}

/// Who has the token moves and drains; the page keeps it nowhere that outlives it.
#[test]
fn with_the_token_the_page_acts_and_without_it_only_shows() {
    use std::os::unix::fs::PermissionsExt;
    let token = "correct-horse-battery";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, token).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = asked.clone();
    let act = move |action: &Action| {
        kept.lock().expect("whole").push(action.clone());
        match action {
            Action::Move { server, to } => Ok(format!("{server} is on {to}")),
            _ => Err("fs3 is not off, as far as anybody knows".to_owned()),
        }
    };
    let actions = Actions::new(Some(file), Arc::new(act));
    let page = Shown::with(healthy(), Vec::new(), true, Some(actions));
    let url = format!("http://{}/", page.address);
    let mut browser = Browser::start();
    browser.open(&url, (1280, 1600), false);
    browser.wait_for("Unlock");
    fill(&mut browser, "token", "wrong-wrong-wrong-wrong");
    submit(&mut browser, "unlock");
    browser.wait_for("Not unlocked: the token is wrong.");
    fill(&mut browser, "token", token);
    submit(&mut browser, "unlock");
    browser.wait_for("Unlocked.");
    fill(&mut browser, "server", "scans");
    fill(&mut browser, "node", "fs3");
    submit(&mut browser, "do");
    browser.wait_for("scans is on fs3");
    browser.picture(&page.out.join("act-wide.png"));
    browser.evaluate("const w = document.getElementById('what'); w.value = 'confirm_off'; w.dispatchEvent(new Event('change'))");
    browser.wait_for("I have seen that it is off");
    fill(&mut browser, "node", "fs3");
    browser.evaluate("document.getElementById('off').checked = true");
    submit(&mut browser, "do");
    browser.wait_for("fs3 is not off, as far as anybody knows");
    let wanted = [
        Action::Move { server: "scans".into(), to: "fs3".into() },
        Action::ConfirmOff { node: "fs3".into(), it_is_off: true },
    ];
    assert_eq!(*asked.lock().expect("whole"), wanted);
    // Nothing of it is kept by the browser: not for the next page, nor in this one once it is locked.
    let stored = "JSON.stringify([document.cookie, localStorage.length, sessionStorage.length, document.getElementById('token').value])";
    assert_eq!(browser.evaluate(stored), "[\"\",0,0,\"\"]");
    browser.open(&url, (390, 2600), true);
    browser.wait_for("Unlock");
    assert_eq!(browser.evaluate("document.getElementById('do').hidden"), "true");
    // An agent without a token shows no such thing.
    let page = Shown::new(healthy(), Vec::new(), true);
    browser.open(&format!("http://{}/", page.address), (1280, 1400), false);
    let text = browser.wait_for("3 of 3 nodes up");
    expect(&text, &["Compute the plan"], &["Unlock", "Token"]);
}
