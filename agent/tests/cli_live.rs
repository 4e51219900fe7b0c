//! The program against an agent's control socket: what it prints, and that it notices when the agent goes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use baton::config::ControlConfig;
use baton::control::{Server, bind};
use baton::journal::{Journal, Record};
use baton::telemetry::{Published, Publisher, boot_time, channel};
use baton_core::{Event, EventKind, Snapshot};
use nix::pty::{Winsize, openpty};
use tokio::sync::oneshot;

/// The slow side of an agent, in this process.
struct Agent {
    folder: tempfile::TempDir,
    publisher: Publisher,
    published: Published,
    /// Dropped or used, it ends the agent.
    stop: oneshot::Sender<()>,
}

impl Agent {
    fn start() -> Agent {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("sock");
        let text = format!("[control]\nsocket = {socket:?}\n[paths]\nstate = {:?}\n", folder.path());
        fs::write(folder.path().join("baton.toml"), text).expect("written");
        let (publisher, published) = channel();
        let server = Server::new(published.clone(), folder.path().to_owned());
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = bind(&ControlConfig { socket, group: "root".into() }).expect("bound");
                ready.send(()).expect("awaited");
                tokio::select! {
                    () = server.run(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().expect("bound");
        let agent = Agent { folder, publisher, published, stop };
        agent.show("fs1");
        agent
    }

    fn show(&self, node: &str) {
        let view = Snapshot { node: node.into(), incarnation: 7, quorum: true, ..Snapshot::default() };
        self.publisher.snapshot.send_replace(Arc::new(view));
    }

    fn happen(&self, epoch: u64) {
        let kind = EventKind::Serving { server: "p".into(), epoch };
        let record = Record::now(Event { at: boot_time(), failover: None, kind });
        Journal::new(self.folder.path()).append(&record).expect("written");
        self.published.tell(Arc::new(record));
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("baton.toml")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
        command.arg("--config").arg(self.config()).args(arguments).env_remove("RUST_LOG");
        command
    }
}

/// Killed and awaited at the end, also after a panic.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(mut command: Command) -> (Running, impl Iterator<Item = String>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let out = BufReader::new(child.stdout.take().expect("its output"));
    (Running(child), out.lines().map(|l| l.expect("UTF-8")))
}

#[test]
fn status_in_both_forms() {
    let agent = Agent::start();
    let plain = agent.command(&["status"]).output().expect("ran");
    assert!(plain.status.success() && plain.stderr.is_empty(), "{plain:?}");
    assert!(plain.stdout.starts_with(b"node fs1  incarnation 7  lease endless"), "{plain:?}");
    assert!(!plain.stdout.contains(&0x1b), "colour, though this is no terminal");
    let json = agent.command(&["status", "--json"]).output().expect("ran");
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((value["node"].as_str(), value["lease_ms"].is_null()), (Some("fs1"), true));
    assert_eq!(json.stdout.iter().filter(|b| **b == b'\n').count(), 1);
}

#[test]
fn a_watch_follows_and_ends_with_the_agent() {
    let agent = Agent::start();
    let (mut watch, lines) = start(agent.command(&["status", "--watch", "--json"]));
    let mut nodes = lines.map(|line| serde_json::from_str::<Snapshot>(&line).expect("JSON").node);
    assert_eq!(nodes.next().as_deref(), Some("fs1"));
    agent.show("fs2");
    assert!(nodes.any(|n| n == "fs2"));
    agent.stop.send(()).expect("running");
    assert_eq!(nodes.find(|n| n != "fs2"), None);
    let status = watch.0.wait().expect("ended");
    assert_eq!(status.code(), Some(1));
    let err = std::io::read_to_string(watch.0.stderr.take().expect("its errors")).expect("read");
    assert_eq!(err, "baton: the agent has gone; see `journalctl -u baton`\n");
}

#[test]
fn events_follow() {
    let agent = Agent::start();
    agent.happen(1);
    let all = agent.command(&["events"]).output().expect("ran");
    assert!(all.status.success() && all.stderr.is_empty(), "{all:?}");
    assert!(all.stdout.ends_with(b"Z  serving p, epoch 1\n"), "{all:?}");
    let (_follow, mut lines) = start(agent.command(&["events", "--follow", "--since", "1h"]));
    assert!(lines.next().expect("the past").ends_with("serving p, epoch 1"));
    for epoch in 2..5 {
        agent.happen(epoch);
        assert!(lines.next().expect("the present").ends_with(&format!("serving p, epoch {epoch}")));
    }
}

#[test]
fn top_draws_a_terminal_and_q_leaves_it() {
    let agent = Agent::start();
    agent.happen(5);
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).expect("a terminal");
    let mut command = agent.command(&["top"]);
    command.env("TERM", "xterm").stdin(pty.slave.try_clone().expect("a copy")).stdout(pty.slave);
    let mut top = Running(command.stderr(Stdio::piped()).spawn().expect("started"));
    // It holds the terminal's other end: with it open here, reading would never end.
    drop(command);
    let mut terminal = fs::File::from(pty.master);
    let mut reading = terminal.try_clone().expect("a copy");
    let (sender, drawn) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        // Linux ends a terminal that nobody holds with EIO.
        while let Ok(n @ 1..) = reading.read(&mut bytes) {
            if sender.send(String::from_utf8_lossy(&bytes[..n]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    // Words only: what is blank already is not drawn again, so there are no spaces between them.
    while !(seen.contains("fs1") && seen.contains("epoch")) {
        seen += &drawn.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|e| panic!("{e} after {seen:?}"));
    }
    terminal.write_all(b"q").expect("typed");
    while let Ok(more) = drawn.recv_timeout(Duration::from_secs(60)) {
        seen += &more;
    }
    assert!(top.0.wait().expect("ended").success());
    // Alternate screen on and off again (xterm, DECSET 1049).
    assert!(seen.contains("\x1b[?1049h") && seen.contains("\x1b[?1049l"), "{seen:?}");
}
