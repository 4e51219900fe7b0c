use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use baton_core::{AddressView, Event, EventKind, ServerView, Snapshot, Time};

use super::*;
use crate::config::ControlConfig;
use crate::journal::{Journal, Record};
use crate::telemetry::{Published, Publisher, Status, VipCounters, channel};

/// A listening server with its publisher, in a folder of its own.
struct Lab {
    folder: tempfile::TempDir,
    publisher: Publisher,
    published: Published,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn config(folder: &Path) -> ControlConfig {
    ControlConfig { socket: folder.join("s"), group: "no-such-group-here".into() }
}

fn server_view(name: &str, address: &str) -> ServerView {
    let address = address.parse().expect("an address");
    ServerView {
        name: name.into(),
        owner: None,
        state: "serving".into(),
        epoch: 1,
        load: 0.0,
        priority: 100,
        rate: 0,
        addresses: vec![AddressView { address, port: None, via: None, rate: 0 }],
        why: None,
    }
}

impl Lab {
    fn start() -> Lab {
        let folder = tempfile::tempdir().expect("a folder");
        let (publisher, published) = channel();
        let listener = bind(&config(folder.path())).expect("bound");
        let server = Server::new(published.clone(), folder.path().to_owned());
        let lab = Lab { folder, publisher, published, task: tokio::spawn(server.run(listener)) };
        lab.show(1);
        lab
    }

    fn show(&self, incarnation: u64) {
        let virtual_servers = vec![server_view("p", "10.0.0.10"), server_view("q", "10.0.0.11")];
        self.publisher.snapshot.send_replace(Arc::new(Snapshot {
            incarnation,
            virtual_servers,
            ..Default::default()
        }));
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("s")
    }

    /// All answers to a request that has an end.
    async fn all(&self, request: Request) -> Result<Vec<String>, ClientError> {
        let socket = self.socket();
        blocking(move || ask(&socket, &request)?.collect()).await
    }

    /// Sends raw bytes, and what comes back.
    async fn raw(&self, bytes: Vec<u8>) -> String {
        use std::io::{Read, Write};
        let socket = self.socket();
        blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connected");
            stream.write_all(&bytes).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("answered");
            answer
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(f).await.expect("no panic")
}

fn serving(server: &str, epoch: u64) -> Record {
    let event =
        Event { at: Time(1), failover: None, kind: EventKind::Serving { server: server.into(), epoch } };
    Record::now(event)
}

fn epoch(line: &str) -> u64 {
    let record: Record = serde_json::from_str(line).expect("a record");
    match record.event.kind {
        EventKind::Serving { epoch, .. } => epoch,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn status_is_one_line() {
    let lab = Lab::start();
    let lines = lab.all(Request::Status(StatusRequest::default())).await.expect("answered");
    assert_eq!(lines.len(), 1);
    let status: Status = serde_json::from_str(&lines[0]).expect("a status");
    assert_eq!(status.snapshot.incarnation, 1);
    assert_eq!(lab.raw(b"{\"status\":{}}\n".to_vec()).await.lines().count(), 1);
}

#[tokio::test]
async fn a_watch_shows_every_state_it_settles_in_and_beats_without_one() {
    let lab = Lab::start();
    let socket = lab.socket();
    let (sender, mut lines) = tokio::sync::mpsc::channel(100);
    let reader = tokio::task::spawn_blocking(move || {
        for line in ask(&socket, &Request::Status(StatusRequest { watch: true })).expect("asked") {
            let Ok(line) = line else { return };
            let status: Status = serde_json::from_str(&line).expect("a status");
            if sender.blocking_send(status.snapshot.incarnation).is_err() {
                return;
            }
        }
    });
    assert_eq!(lines.recv().await, Some(1));
    // A burst is not told one by one, but its end is.
    for n in 2..=500 {
        lab.show(n);
        tokio::task::yield_now().await;
    }
    let mut told = Vec::new();
    while told.last() != Some(&500) {
        told.push(lines.recv().await.expect("a line"));
    }
    assert!(told.len() < 400, "{} lines for 499 changes", told.len());
    assert_eq!(lines.recv().await, Some(500), "a line without a change");
    drop(lines);
    drop(lab);
    reader.await.expect("no panic");
}

#[tokio::test]
async fn events_come_from_the_journal_and_then_live() {
    let lab = Lab::start();
    let mut journal = Journal::new(lab.folder.path());
    for n in 1..=5 {
        journal.append(&serving(if n % 2 == 0 { "p" } else { "q" }, n)).expect("written");
    }
    let all = lab.all(Request::Events(EventsRequest::default())).await.expect("answered");
    assert_eq!(all.iter().map(|l| epoch(l)).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let p = EventsRequest { server: Some("p".into()), limit: Some(1), ..Default::default() };
    assert_eq!(
        lab.all(Request::Events(p)).await.expect("answered").iter().map(|l| epoch(l)).collect::<Vec<_>>(),
        [4]
    );

    let socket = lab.socket();
    let (sender, mut lines) = tokio::sync::mpsc::channel(100);
    let follow = EventsRequest { follow: true, limit: Some(2), ..Default::default() };
    let reader = tokio::task::spawn_blocking(move || {
        for line in ask(&socket, &Request::Events(follow)).expect("asked") {
            let Ok(line) = line else { return };
            if sender.blocking_send(epoch(&line)).is_err() {
                return;
            }
        }
    });
    assert_eq!(lines.recv().await, Some(4));
    assert_eq!(lines.recv().await, Some(5));
    for n in 6..=8 {
        let record = serving("p", n);
        journal.append(&record).expect("written");
        lab.published.tell(Arc::new(record));
        assert_eq!(lines.recv().await, Some(n));
    }
    drop(lab);
    assert_eq!(lines.recv().await, None);
    reader.await.expect("no panic");
}

#[tokio::test]
async fn counters_are_a_line_each() {
    let lab = Lab::start();
    let counters = baton_common::Counters { rx_packets: 1, tx_bytes: 2, ..Default::default() };
    let vip = |a: &str| VipCounters { address: a.parse().expect("an address"), server: "p".into(), counters };
    lab.publisher.counters.send_replace(Arc::new(vec![vip("10.0.0.10"), vip("fd00::1")]));
    let lines = lab.all(Request::Counters(CountersRequest {})).await.expect("answered");
    let second: CountersLine = serde_json::from_str(&lines[1]).expect("counters");
    assert_eq!((lines.len(), second.address.to_string().as_str(), second.tx_bytes), (2, "fd00::1", 2));
}

#[tokio::test]
async fn bad_requests_get_one_clear_error_and_harm_nobody() {
    let lab = Lab::start();
    let long = [b"{\"status\":".to_vec(), vec![b' '; 1 << 17], b"\n".to_vec()].concat();
    for (request, expected) in [
        (&b"hello\n"[..], "not a request: "),
        (b"\n", "not a request: "),
        (b"{\"reboot\":{}}\n", "unknown variant `reboot`"),
        (b"{\"status\":{\"wacth\":true}}\n", "unknown field `wacth`"),
        (b"{\"events\":{\"since\":\"yesterday\"}}\n", "`since` is not a time"),
        (b"{\"events\":{\"server\":\"x\"}}\n", "there is no virtual server \\\"x\\\""),
        (b"\xff\xfe\n", "not a request: "),
    ] {
        let answer = lab.raw(request.to_vec()).await;
        assert!(answer.starts_with("{\"error\":\"") && answer.contains(expected), "{answer}");
        assert_eq!(answer.lines().count(), 1);
    }
    // Too long: the rest is never read, so the answer may be lost with the connection.
    let socket = lab.socket();
    blocking(move || {
        use std::io::Write;
        let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connected");
        let _ = stream.write_all(&long);
    })
    .await;
    assert_eq!(lab.all(Request::Status(StatusRequest::default())).await.expect("still there").len(), 1);
    let error =
        lab.all(Request::Events(EventsRequest { server: Some("x".into()), ..Default::default() })).await;
    assert!(matches!(error, Err(ClientError::Refused(_))), "{error:?}");
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    drop(std::os::unix::net::UnixListener::bind(&config.socket).expect("bound"));
    let gone = ask(&config.socket, &Request::Status(StatusRequest::default()));
    assert!(matches!(gone, Err(ClientError::NotRunning { .. })), "{gone:?}");
    let _live = bind(&config).expect("replaced");
    let mode = std::fs::metadata(&config.socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "no such group: for root alone");
    let second = bind(&config);
    assert!(matches!(second, Err(BindError::InUse { .. })), "{second:?}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 1, "nothing else is left there");
}

#[tokio::test]
async fn the_group_may_use_the_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = ControlConfig { socket: folder.path().join("deep/s"), group: "root".into() };
    let _live = bind(&config).expect("bound, its folder made");
    assert_eq!(std::fs::metadata(&config.socket).expect("there").permissions().mode() & 0o777, 0o660);
}

#[test]
fn one_agent_holds_the_lock() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("a/b");
    let first = lock(&state).expect("locked");
    let error = lock(&state).expect_err("held");
    let pid = std::process::id();
    assert!(matches!(error, LockError::Held { pid: Some(p) } if p == pid), "{error:?}");
    assert_eq!(error.to_string(), format!("another agent runs on this node (process {pid}); stop it first"));
    drop(first);
    lock(&state).expect("free again");
    std::fs::write(folder.path().join("file"), "").expect("written");
    let error = lock(&folder.path().join("file")).expect_err("no folder");
    assert!(error.to_string().contains("run as root, or choose another folder"), "{error}");
}

#[test]
fn nobody_there_is_said_in_one_line() {
    let error =
        ask(Path::new("/nonexistent/s"), &Request::Status(StatusRequest::default())).expect_err("nobody");
    assert_eq!(
        error.to_string(),
        "the agent isn't running (nothing listens on /nonexistent/s); start it with `systemctl start baton` or `baton run`"
    );
}
