//! The thread that answers the agent's requests and tells it what changes.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use baton_core::cluster::{
    Entry, MASTER, NodeLoad, NodeRecord, Record, StoreChange, StoreInput, StoreRequest, Wish,
};
use etcd_client::{
    Compare, CompareOp, EventType, GetOptions, SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};
use serde::Serialize;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{Etcd, EtcdError, keys};

/// Priority of the thread: below the fast one, above everything ordinary.
const FIFO_PRIORITY: i32 = 10;
/// How often it is looked whether etcd answers, and whether the watch is behind.
const CHECK: Duration = Duration::from_millis(250);
/// Checks in a row that fail before etcd counts as lost.
const FAILURES: u32 = 2;
/// How long to wait before something that failed is tried again: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Writes of owner records under way at a time. More only wait for one another in etcd, until all of them have waited for
/// too long, are asked for again, and nothing gets done any more.
const WRITES: usize = 16;

/// What a run of the agent started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Generation of the definitions.
    pub generation: u64,
    /// Version of the member list.
    pub members: u32,
}

/// Told when the store defines something else.
pub struct News {
    /// What is known.
    pub known: Known,
    /// Told.
    pub changed: Arc<Notify>,
}

impl News {
    fn look(&self, changes: &[StoreChange]) {
        let is_new = |entry: &Entry| match entry {
            Entry::Generation(generation) => *generation != self.known.generation,
            Entry::Members(members) => members.version != self.known.members,
            _ => false,
        };
        if changes.iter().any(|c| is_new(&c.entry)) {
            self.changed.notify_one();
        }
    }
}

/// Serves requests and watches, on a thread of its own, until the request channel closes. The first input is a whole view of
/// the store.
///
/// # Errors
/// The thread or its runtime can't be had.
pub fn spawn(
    etcd: Etcd,
    node: String,
    requests: mpsc::Receiver<StoreRequest>,
    inputs: mpsc::Sender<StoreInput>,
    news: News,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("store".into()).spawn(move || {
        crate::confine::thread();
        // A takeover waits for it. Where that isn't permitted the fast thread has said so.
        let _ = crate::fast::realtime(FIFO_PRIORITY);
        LocalSet::new().block_on(&runtime, async {
            let (publish, published) = watch::channel(None);
            let (tell, told) = watch::channel(None);
            spawn_local(Watcher { etcd: etcd.clone(), inputs: inputs.clone(), reachable: true, news }.run());
            match (etcd.keys.node(&node), etcd.keys.load(&node)) {
                (Ok(record), Ok(load)) => {
                    spawn_local(publisher(etcd.clone(), record, published));
                    spawn_local(publisher(etcd.clone(), load, told));
                }
                (Err(e), _) | (_, Err(e)) => tracing::error!("{e}"),
            }
            serve(etcd, node, requests, inputs, (publish, tell)).await;
        });
    })
}

/// Each request goes its own way: several may be under way. Writes of owner records begin in the order in which they were
/// asked for: that of the priorities.
async fn serve(
    etcd: Etcd,
    node: String,
    mut requests: mpsc::Receiver<StoreRequest>,
    inputs: mpsc::Sender<StoreInput>,
    (publish, tell): (watch::Sender<Option<NodeRecord>>, watch::Sender<Option<NodeLoad>>),
) {
    let gate = Arc::new(Semaphore::new(WRITES));
    while let Some(request) = requests.recv().await {
        let (etcd, inputs, node) = (etcd.clone(), inputs.clone(), node.clone());
        match request {
            StoreRequest::Publish(record) => {
                publish.send_replace(Some(record));
            }
            StoreRequest::PublishLoad(load) => {
                tell.send_replace(Some(load));
            }
            StoreRequest::Wish { server, master, wish } => {
                spawn_local(async move {
                    if let Err(e) = make_wish(&etcd, &server, master, &wish).await {
                        let request = StoreRequest::Wish { server, master, wish };
                        let _ = inputs.send(StoreInput::Failed(request, e.to_string())).await;
                    }
                });
            }
            StoreRequest::Write { server, expected, record } => {
                let gate = gate.clone();
                spawn_local(async move {
                    let _permit = gate.acquire().await; // first come, first served; never closed
                    let input = write(&etcd, server, expected, record).await;
                    let _ = inputs.send(input).await; // nobody listens: shutting down
                });
            }
            StoreRequest::NewIncarnation { above } => {
                spawn_local(async move {
                    let input = match etcd.next_incarnation(&node, above).await {
                        Ok(incarnation) => StoreInput::Incarnation(incarnation),
                        Err(e) => StoreInput::Failed(StoreRequest::NewIncarnation { above }, e.to_string()),
                    };
                    let _ = inputs.send(input).await;
                });
            }
            StoreRequest::MoveDone { server, revision } => {
                spawn_local(async move {
                    if let Err(e) = move_done(&etcd, &server, revision).await {
                        let failed =
                            StoreInput::Failed(StoreRequest::MoveDone { server, revision }, e.to_string());
                        let _ = inputs.send(failed).await;
                    }
                });
            }
        }
    }
}

/// Writes an owner record. What became of an uncertain write is read, by its repetition, never guessed.
async fn write(etcd: &Etcd, server: String, expected: u64, record: Record) -> StoreInput {
    match try_write(etcd, &server, expected, &record).await {
        Ok(Written::At(revision)) => StoreInput::Written { server, record, revision },
        Ok(Written::Not(current)) => StoreInput::NotWritten { server, current },
        Err(e) => StoreInput::Failed(StoreRequest::Write { server, expected, record }, e.to_string()),
    }
}

enum Written {
    At(u64),
    Not(Option<(Record, u64)>),
}

async fn try_write(etcd: &Etcd, server: &str, expected: u64, record: &Record) -> Result<Written, EtcdError> {
    let key = etcd.keys.owner(server)?;
    let response = etcd.swap(&key, expected as i64, keys::json(record)).await?.value;
    if response.succeeded() {
        return Ok(Written::At(response.header().map_or(0, |h| h.revision()) as u64));
    }
    current(&key, super::read_by(&response)).map(Written::Not)
}

fn current(key: &str, kv: Option<(Vec<u8>, i64)>) -> Result<Option<(Record, u64)>, EtcdError> {
    let Some((value, revision)) = kv else { return Ok(None) };
    Ok(Some((super::parse(key, "owner record", &value)?, revision as u64)))
}

async fn move_done(etcd: &Etcd, server: &str, revision: u64) -> Result<(), EtcdError> {
    let key = etcd.keys.wish(server)?;
    let txn = Txn::new()
        .when([Compare::mod_revision(key.clone(), CompareOp::Equal, revision as i64)])
        .and_then([TxnOp::delete(key, None)]);
    etcd.endpoints.ask(async |mut client| client.txn(txn.clone()).await).await.map(|_| ())
}

/// A wish of the master's, fenced by its record; not where somebody else has one.
async fn make_wish(etcd: &Etcd, server: &str, master: u64, wish: &Wish) -> Result<(), EtcdError> {
    let (key, ruler) = (etcd.keys.wish(server)?, etcd.keys.owner(MASTER)?);
    let txn = Txn::new()
        .when([
            Compare::mod_revision(ruler, CompareOp::Equal, master as i64),
            Compare::version(key.clone(), CompareOp::Equal, 0),
        ])
        .and_then([TxnOp::put(key, keys::json(wish), None)]);
    etcd.endpoints.ask(async |mut client| client.txn(txn.clone()).await).await.map(|_| ())
}

/// Keeps a value of this node's in the store as it was last handed over.
async fn publisher<T: Serialize + Clone>(etcd: Etcd, key: String, mut values: watch::Receiver<Option<T>>) {
    while values.changed().await.is_ok() {
        let mut wait = BACKOFF.0;
        loop {
            let Some(value) = values.borrow_and_update().clone() else { break };
            match etcd.put(&key, keys::json(&value)).await {
                Ok(()) => break,
                Err(e) => tracing::warn!("{key} is not in the store yet: {e}"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }
}

/// Tells what the store holds, then what changes.
struct Watcher {
    etcd: Etcd,
    inputs: mpsc::Sender<StoreInput>,
    reachable: bool,
    news: News,
}

impl Watcher {
    async fn run(mut self) {
        let mut wait = BACKOFF.0;
        loop {
            match self.etcd.load().await {
                Ok((all, revision)) => {
                    wait = BACKOFF.0;
                    self.reached(true).await;
                    self.news.look(&all);
                    if self.inputs.send(StoreInput::All(all)).await.is_err() {
                        return;
                    }
                    if let Err(e) = self.follow(revision).await {
                        tracing::info!("watching etcd ended: {e}; reading everything again");
                    }
                }
                Err(e) => {
                    if self.reachable {
                        tracing::warn!("{e}");
                    }
                    self.reached(false).await;
                    sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF.1);
                }
            }
            if self.inputs.is_closed() {
                return;
            }
        }
    }

    async fn reached(&mut self, reachable: bool) {
        if std::mem::replace(&mut self.reachable, reachable) != reachable {
            let _ = self.inputs.send(StoreInput::Reachable(reachable)).await;
        }
    }

    /// Watches from this revision on, until the watch breaks or falls behind.
    async fn follow(&mut self, mut revision: i64) -> Result<(), String> {
        let (from, to) = self.etcd.keys.all();
        let options = WatchOptions::new().with_range(to).with_start_revision(revision + 1);
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let mut client = self.etcd.endpoints.first().await.map_err(|e| text(&e))?;
        let opened = tokio::time::timeout(Duration::from_secs(1), client.watch(from, Some(options))).await;
        let mut stream = opened.map_err(|e| text(&e))?.map_err(|e| text(&e))?;
        let mut checks = interval(CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut failures, mut behind) = (0, 0);
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(message) = message.map_err(|e| text(&e))? else { return Err("closed".to_owned()) };
                    if message.canceled() {
                        return Err(format!("cancelled: {}", message.cancel_reason()));
                    }
                    let changes: Vec<StoreChange> = message.events().iter().filter_map(|event| {
                        let kv = event.kv()?;
                        revision = revision.max(kv.mod_revision());
                        let value = (event.event_type() == EventType::Put).then(|| kv.value());
                        self.etcd.keys.change(kv.key(), value, kv.mod_revision())
                    }).collect();
                    self.news.look(&changes);
                    if !changes.is_empty() && self.inputs.send(StoreInput::Changed(changes)).await.is_err() {
                        return Ok(());
                    }
                }
                _ = checks.tick() => match self.newest().await {
                    Ok(newest) => {
                        failures = 0;
                        self.reached(true).await;
                        behind = if newest > revision { behind + 1 } else { 0 };
                        if behind > 1 {
                            return Err("it is behind".to_owned());
                        }
                    }
                    Err(e) => {
                        failures += 1;
                        if failures >= FAILURES {
                            self.reached(false).await;
                            return Err(e.to_string());
                        }
                    }
                },
            }
        }
    }

    /// The highest revision of any key that is watched, read linearizably.
    async fn newest(&self) -> Result<i64, EtcdError> {
        let (from, to) = self.etcd.keys.all();
        let options = GetOptions::new()
            .with_range(to)
            .with_sort(SortTarget::Mod, SortOrder::Descend)
            .with_limit(1)
            .with_keys_only();
        let read =
            self.etcd.endpoints.ask(async |mut client| client.get(from.clone(), Some(options.clone())).await);
        Ok(read.await?.kvs().first().map_or(0, |kv| kv.mod_revision()))
    }
}
