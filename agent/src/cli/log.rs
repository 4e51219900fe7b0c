//! Diagnostic output: to standard error, by a thread of its own, so that no thread of the agent ever waits for a
//! terminal or a pipe. Lines that don't fit into its queue are dropped and counted.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const QUEUE: usize = 1024;

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Waits, when dropped, until what was logged is written, for a second at most.
pub(super) struct Flush(SyncSender<Message>);

impl Drop for Flush {
    fn drop(&mut self) {
        let (done, wait) = sync_channel(1);
        if self.0.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(1));
        }
    }
}

/// Sets the log up: warnings and worse, unless RUST_LOG says otherwise. For people on a terminal, without time stamps
/// under systemd (its journal has them), else as JSON. The thread may be confined.
pub(super) fn init(confined: bool) -> Flush {
    let (filter, bad) = match std::env::var("RUST_LOG") {
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new("warn"), Some(error)),
        },
        Err(_) => (EnvFilter::new("warn"), None),
    };
    let (sender, receiver) = sync_channel(QUEUE);
    let lines = Lines { sender: sender.clone(), dropped: Arc::default() };
    let dropped = lines.dropped.clone();
    // Without that thread (out of processes) everything works but the log.
    let write = move || {
        if confined {
            crate::confine::thread();
        }
        write(&receiver, &dropped);
    };
    let _ = std::thread::Builder::new().name("log".to_owned()).spawn(write);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).with_target(false);
    let result = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().with_ansi(false).try_init()
    } else if io::stderr().is_terminal() {
        builder.try_init()
    } else {
        builder.json().try_init()
    };
    if let Err(error) = result {
        eprintln!("baton: no log: {error}");
    }
    if let Some(error) = bad {
        tracing::warn!(%error, "RUST_LOG is not a filter; warnings and errors are logged");
    }
    Flush(sender)
}

fn write(messages: &Receiver<Message>, dropped: &AtomicU64) {
    let mut out = io::stderr();
    for message in messages {
        // Nobody can be told that the log is gone.
        match message {
            Message::Line(line) => {
                let _ = out.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} log lines were dropped: standard error is too slow");
        }
    }
}

#[derive(Clone)]
struct Lines {
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// One line; sent when dropped.
struct Line {
    lines: Lines,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { lines: self.clone(), text: Vec::new() }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.lines.sender.try_send(Message::Line(std::mem::take(&mut self.text))).is_err() {
            self.lines.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
