//! Hooks: programs that are told of events.
//!
//! Each hook has a queue and a thread that takes one event after the other from it, so that a hook sees events in order and one
//! that hangs holds up nobody else. A queue that is full drops events, counted. A program runs at most once for an event: what
//! is in a queue when the agent ends is lost.
//!
//! A program gets the event as JSON on its standard input, an environment of its own and no shell. It has a session of its own
//! and no pipe to the agent: when the agent is killed it goes on, and nobody who comes later takes it for a leftover. Its limit
//! is then kept by the kernel (alarm(2)).

mod run;
#[cfg(test)]
mod tests;
mod words;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use baton_core::{Event, EventKind, FailoverKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde::Serialize;

use crate::cli::sentence;
use crate::journal::Record;

pub use words::WORDS;

/// Events that wait for a hook; more are dropped.
const QUEUE: usize = 64;
/// Programs that run at the same time, of all hooks together.
const AT_ONCE: usize = 4;

/// `[[hook]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its name in metrics and in the log: that of its program, unless it is given.
    pub name: String,
    /// Of what it is told: [`WORDS`].
    pub on: Vec<String>,
    /// The program and its arguments; the program's path is absolute.
    pub run: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// How many runs there were, by hook and result: `ok`, `failed`, `timeout`, `not_started`, `dropped`.
pub type Runs = Family<RunLabels, Counter>;

/// Labels of `baton_hook_runs_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RunLabels {
    hook: String,
    result: &'static str,
}

/// All hooks, ready to be told. Clones share them.
#[derive(Clone, Default)]
pub struct Hooks {
    node: Arc<str>,
    all: Vec<Queue>,
    runs: Runs,
}

/// The way to a hook's thread.
#[derive(Clone)]
struct Queue {
    hook: Arc<Hook>,
    jobs: SyncSender<Job>,
    /// It was full, and that has been said.
    full: Arc<AtomicBool>,
}

/// An event for a hook.
struct Job {
    event: &'static str,
    json: Vec<u8>,
}

/// What a program reads.
#[derive(Serialize)]
struct Told<'a> {
    node: &'a str,
    sentence: String,
    #[serde(flatten)]
    record: &'a Record,
}

impl Hooks {
    /// Starts a thread for each.
    ///
    /// # Errors
    /// A thread can't be started.
    pub fn start(node: &str, hooks: Vec<Hook>) -> io::Result<Hooks> {
        let runs = Runs::default();
        let room = Arc::new(Room::default());
        let mut all = Vec::new();
        for hook in hooks {
            let hook = Arc::new(hook);
            // There from the start: what begins at one never shows as an increase.
            for result in ["ok", "failed", "timeout", "not_started", "dropped"] {
                drop(runs.get_or_create(&RunLabels { hook: hook.name.clone(), result }));
            }
            let (sender, jobs) = sync_channel(QUEUE);
            let (own, runs, room, node) = (hook.clone(), runs.clone(), room.clone(), node.to_owned());
            thread::Builder::new()
                .name("hook".into())
                .spawn(move || work(&own, &node, &jobs, &runs, &room))?;
            all.push(Queue { hook, jobs: sender, full: Arc::default() });
        }
        Ok(Hooks { node: node.into(), all, runs })
    }

    /// Are they these?
    pub fn are(&self, hooks: &[Hook]) -> bool {
        self.all.iter().map(|queue| &*queue.hook).eq(hooks)
    }

    /// How many runs there were.
    pub fn runs(&self) -> Runs {
        self.runs.clone()
    }

    /// Tells those who want to know. Never waits.
    pub fn tell(&self, record: &Record) {
        let wanted = |hook: &Hook| hook.on.iter().any(|word| is_meant(word, &record.event));
        for queue in self.all.iter().filter(|queue| wanted(&queue.hook)) {
            let told = Told { node: &self.node, sentence: sentence(&record.event), record };
            let Ok(mut json) = serde_json::to_vec(&told) else { continue };
            json.push(b'\n');
            match queue.jobs.try_send(Job { event: words::of(&record.event.kind), json }) {
                Ok(()) => queue.full.store(false, Ordering::Relaxed),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    count(&self.runs, &queue.hook, "dropped");
                    // Once until there is room again: many events come together.
                    if !queue.full.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            hook = queue.hook.name,
                            "its queue is full: it is not told of some events"
                        );
                    }
                }
            }
        }
    }
}

fn count(runs: &Runs, hook: &Hook, result: &'static str) {
    runs.get_or_create(&RunLabels { hook: hook.name.clone(), result }).inc();
}

/// Is this event one of those that the word means?
fn is_meant(word: &str, event: &Event) -> bool {
    let kind = match &event.kind {
        EventKind::Failover { kind, .. } | EventKind::Taken { kind, .. } => Some(*kind),
        _ => None,
    };
    match word {
        "all" => true,
        "port_failover" => kind == Some(FailoverKind::Port),
        "takeover" => kind == Some(FailoverKind::Takeover),
        "move" => kind == Some(FailoverKind::Move),
        word => word == words::of(&event.kind),
    }
}

/// Takes one event after the other.
fn work(hook: &Hook, node: &str, jobs: &Receiver<Job>, runs: &Runs, room: &Room) {
    while let Ok(job) = jobs.recv() {
        let ended = room.enter(|| run::run(hook, node, job.event, &job.json));
        let (result, said) = match ended {
            Ok(()) => ("ok", None),
            Err(fault) => (fault.result(), Some(fault.to_string())),
        };
        count(runs, hook, result);
        if let Some(said) = said {
            tracing::warn!(hook = hook.name, event = job.event, "{said}");
        }
    }
}

/// Lets in so many at a time.
#[derive(Default)]
struct Room {
    inside: Mutex<usize>,
    left: Condvar,
}

impl Room {
    fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |inside: &mut usize| *inside >= AT_ONCE;
        *self.left.wait_while(inside, full).unwrap_or_else(PoisonError::into_inner) += 1;
        let done = work();
        *self.inside.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.left.notify_one();
        done
    }
}

/// Why a hook's program can't be started as it stands, as far as that can be seen; for `baton doctor`.
pub fn complaint(hook: &Hook) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let path = PathBuf::from(hook.run.first()?);
    let data = match std::fs::metadata(&path) {
        Ok(data) => data,
        Err(e) => return Some(format!("{}: {e}", path.display())),
    };
    let mode = data.mode();
    if !data.is_file() || mode & 0o111 == 0 {
        return Some(format!("{} is no program (mode {:03o})", path.display(), mode & 0o777));
    }
    (mode & 0o022 != 0 || data.uid() != 0)
        .then(|| format!("{} can be changed by others than root, and runs as root", path.display()))
}
