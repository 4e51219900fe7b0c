//! The loop: reads the kernel's table, shares what has changed, follows what others share, resets.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use baton_common::{CONNECTION_ENDED, CONNECTION_RESET, Connection};
use baton_core::{Event, EventKind, Snapshot, Time};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until};

use super::codec::decode;
use super::send::{Sender, What};
use super::{Change, Current, Numbers, Setup, Shared};
use crate::fast::{ResetRequest, now};
use crate::io::kernel::{ConnectionReader, Ends, KernelError, Tracked};
use crate::store::etcd::{ConnectionNews, Etcd};
use crate::telemetry::{KeptConnections, Publisher};

/// The kernel's table is read so often,
const EVERY: Duration = Duration::from_secs(1);
/// and this long after somebody has come, for who comes may be unknown to the next owner till then; how often it is looked who has.
const LOOK: Duration = Duration::from_millis(20);
/// Between two times that it is read, and written of: at least this,
const GAP: Duration = Duration::from_millis(100);
/// and where that takes long, not before so many times as long have passed: it takes at most this part of a processor.
const SHARE: u32 = 100;
/// Most connections of a virtual server that are shared: those that have been heard of last.
const MOST: usize = 10_000;
/// One whose numbers have not changed for so long is silent.
const SILENT: Duration = Duration::from_secs(1);
/// A closed connection is forgotten after this long: until then its end may be acknowledged again (TIME_WAIT lasts 60 s).
const CLOSED: Duration = Duration::from_secs(65);
/// One that nothing was sent on for so long is forgotten: one of its ends may have vanished without a word.
const VANISHED: Duration = Duration::from_secs(24 * 3600);
/// When connections are reset, from when that is asked for: a client answers the tickles of the later rounds where those of the
/// first one got lost.
const ROUNDS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// So many connections are reset at once,
const BURST: usize = 64;
/// and the next ones this much later.
const PAUSE: Duration = Duration::from_millis(1);
/// How often a full queue is waited for, so long each.
const PATIENCE: u32 = 20;
/// The kernel programs' clock lags by up to 10 ms (HZ=100).
const COARSE: Duration = Duration::from_millis(10);
/// News of the store and ends of writes under way; they wait.
const NEWS: usize = 64;

/// What comes from the tasks that speak with the store.
enum News {
    Read(ConnectionNews),
    /// A write for this virtual server has ended. What the store holds now is read, never guessed.
    Written(String),
}

/// Resets of one virtual server under way.
struct Resets {
    request: ResetRequest,
    /// Since when,
    begun: Instant,
    /// and the next round.
    round: usize,
    /// Connections that this node knew before, and from the first round on those that the store held.
    former: BTreeMap<Ends, Numbers>,
}

pub(super) struct Keeper {
    node: String,
    addresses: BTreeMap<IpAddr, String>,
    generation: u64,
    etcd: Etcd,
    reader: ConnectionReader,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    publisher: Arc<Publisher>,
    events: mpsc::Sender<Event>,
    requests: mpsc::Receiver<ResetRequest>,
    /// What the store holds, by virtual server.
    shared: BTreeMap<String, Shared>,
    /// That is known: the store has been read.
    read: bool,
    /// Virtual servers of which something is being written.
    writing: BTreeSet<String>,
    /// How many connections had begun when all of them were last shared.
    made: u64,
    resets: Vec<Resets>,
    /// Virtual servers of which it was said that they have too many.
    told: BTreeSet<String>,
    failing: bool,
}

impl Keeper {
    pub fn new(setup: Setup) -> Keeper {
        let Setup { node, addresses, generation, etcd, reader, snapshot, publisher, events, requests } =
            setup;
        Keeper {
            node,
            addresses,
            generation,
            etcd,
            reader,
            snapshot,
            publisher,
            events,
            requests,
            shared: BTreeMap::new(),
            read: false,
            writing: BTreeSet::new(),
            made: 0,
            resets: Vec::new(),
            told: BTreeSet::new(),
            failing: false,
        }
    }

    pub async fn run(mut self) {
        let (tell, mut news) = mpsc::channel(NEWS);
        let (etcd, read) = (self.etcd.clone(), tell.clone());
        // Where there is nothing to keep, what is left from before goes, and that is all.
        let once = self.addresses.is_empty();
        spawn_local(async move {
            etcd.follow_connections(async |news| read.send(News::Read(news)).await.is_ok() && !once).await;
        });
        let (mut tick, mut due) = (Instant::now(), Instant::now());
        loop {
            let round = self.next_round();
            tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    Some(request) => self.begin(request),
                    None => return,
                },
                () = sleep_until(round.unwrap_or(tick)), if round.is_some() => self.round().await,
                Some(news) = news.recv() => self.hear(news),
                () = sleep_until(tick) => {
                    let now = Instant::now();
                    // Where that can't be told, they are found when it is time.
                    let made = self.reader.made().unwrap_or(self.made);
                    if now < due && made == self.made {
                        tick = now + LOOK;
                        continue;
                    }
                    let begun = processor_time();
                    if self.share(&tell, now >= due) {
                        self.made = made;
                    }
                    let took = processor_time().saturating_sub(begun);
                    if now >= due {
                        due = now + EVERY;
                    }
                    tick = now + GAP.max(took * SHARE);
                }
            }
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Read(ConnectionNews::All(all)) => {
                self.shared.clear();
                self.read = true;
                let mut strangers = BTreeSet::new();
                for (server, change) in all {
                    if !self.addresses.values().any(|known| *known == server) {
                        strangers.insert(server.clone());
                    }
                    self.note(&server, change);
                }
                strangers.into_iter().for_each(|server| self.forget(server));
            }
            News::Read(ConnectionNews::Changed(changes)) => {
                changes.into_iter().for_each(|(server, change)| self.note(&server, change));
            }
            News::Written(server) => {
                self.writing.remove(&server);
            }
        }
    }

    /// The store holds this.
    fn note(&mut self, server: &str, Change { bucket, value }: Change) {
        let content = value.map(|value| decode(&value));
        if content == Some(None) {
            tracing::warn!("connections of {server}, bucket {bucket}: not to be read by this version");
        }
        let shared = self.shared.entry(server.to_owned()).or_default();
        shared.set(bucket, content.flatten().unwrap_or_default());
    }

    /// What a virtual server has left that there is no more, or whose connections are no longer kept.
    fn forget(&mut self, server: String) {
        self.shared.remove(&server);
        let (etcd, generation) = (self.etcd.clone(), self.generation);
        spawn_local(async move {
            // Whoever starts next tries again.
            if let Err(e) = etcd.forget_connections(&server, generation).await {
                tracing::info!("connections of {server}, which is gone: {e}");
            }
        });
    }

    /// Reads the kernel's table and writes what has changed of the virtual servers that this node serves; of what has changed but
    /// numbers only `with_numbers`. `false`: something could not be written yet.
    fn share(&mut self, tell: &mpsc::Sender<News>, with_numbers: bool) -> bool {
        let snapshot = self.snapshot.borrow_and_update().clone();
        // Asked for before it was published that it is served: what the store holds is still to be reset.
        while let Ok(request) = self.requests.try_recv() {
            self.begin(request);
        }
        let served: BTreeSet<String> = self.served(&snapshot).map(str::to_owned).collect();
        if served.is_empty() {
            self.publisher.connections.send_replace(Arc::default());
            return true;
        }
        let Some(table) = self.table() else { return true };
        let mut by_server = self.sort(table);
        let (mut counts, mut all) = (Vec::new(), true);
        for server in &served {
            let mut current = by_server.remove(server).unwrap_or_default();
            let beyond = current.len().saturating_sub(MOST);
            if beyond > 0 {
                current.select_nth_unstable_by_key(MOST, |(sent_ns, _)| std::cmp::Reverse(*sent_ns));
                current.truncate(MOST);
                if self.told.insert(server.clone()) {
                    tracing::warn!(
                        "{server} has more than {MOST} connections: the others would not be reset after a takeover"
                    );
                }
            }
            counts.push(KeptConnections { server: server.clone(), kept: current.len(), beyond });
            // What the store holds is first to be known as what is to be reset.
            let resets = self.resets.iter().any(|r| r.request.server == *server && r.round == 0);
            if !self.read || resets || self.writing.contains(server) {
                all = false;
            } else {
                let current: Vec<Current> = current.into_iter().map(|(_, current)| current).collect();
                let changes = self.shared.entry(server.clone()).or_default().changes(&current, with_numbers);
                if !changes.is_empty() {
                    self.write(server.clone(), changes, tell.clone());
                }
            }
        }
        self.publisher.connections.send_replace(Arc::new(counts));
        all
    }

    fn write(&mut self, server: String, changes: Vec<Change>, tell: mpsc::Sender<News>) {
        self.writing.insert(server.clone());
        let (etcd, node) = (self.etcd.clone(), self.node.clone());
        spawn_local(async move {
            if let Err(e) = etcd.set_connections(&node, &server, &changes).await {
                tracing::debug!("connections of {server} are not shared: {e}");
            }
            let _ = tell.send(News::Written(server)).await; // nobody listens: shutting down
        });
    }

    /// The virtual servers whose connections are kept and that this node serves.
    fn served<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a str> {
        let served = snapshot.virtual_servers.iter().filter(|server| {
            server.owner.as_deref() == Some(self.node.as_str()) && server.state == "serving"
        });
        served.map(|server| server.name.as_str()).filter(|name| self.addresses.values().any(|s| s == name))
    }

    fn table(&mut self) -> Option<Vec<Tracked>> {
        match self.reader.read() {
            Ok(table) => {
                self.failing = false;
                Some(table)
            }
            Err(e) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(
                        "{e}; clients of a virtual server that fails over wait for as long as their TCP does"
                    );
                }
                None
            }
        }
    }

    /// Connections that are open, by virtual server, each with when something was last sent on it; what is over is forgotten.
    fn sort(&mut self, table: Vec<Tracked>) -> HashMap<String, Vec<(u64, Current)>> {
        let now = monotonic();
        let mut by_server: HashMap<String, Vec<(u64, Current)>> = HashMap::new();
        for Tracked { ends, state } in table {
            let age = now.saturating_sub(Duration::from_nanos(state.sent_ns));
            let over = is_over(&state);
            if (over && age > CLOSED) || age > VANISHED {
                self.remove(&ends);
                continue;
            }
            let Some(server) = self.addresses.get(&ends.server.ip()).filter(|_| !over) else { continue };
            let current = Current { ends, numbers: numbers(&state), silent: age >= SILENT };
            match by_server.get_mut(server) {
                Some(all) => all.push((state.sent_ns, current)),
                None => drop(by_server.insert(server.clone(), vec![(state.sent_ns, current)])),
            }
        }
        by_server
    }

    fn remove(&mut self, ends: &Ends) {
        let removed: Result<(), KernelError> = self.reader.remove(ends);
        if let Err(e) = removed {
            tracing::debug!("{e}");
        }
    }

    /// A virtual server is served here whose services have been started: what it had before is to be reset.
    fn begin(&mut self, request: ResetRequest) {
        if !self.addresses.values().any(|server| *server == request.server) {
            return;
        }
        self.resets.retain(|r| r.request.server != request.server);
        // What this node knows of it from before, perhaps of when it last had it.
        let mut former = BTreeMap::new();
        let before = before(request.served);
        for Tracked { ends, state } in self.table().unwrap_or_default() {
            if self.addresses.get(&ends.server.ip()) == Some(&request.server)
                && state.sent_ns < before.as_nanos() as u64
            {
                if !is_over(&state) {
                    former.insert(ends, numbers(&state));
                }
                self.remove(&ends);
            }
        }
        self.resets.push(Resets { request, begun: Instant::now(), round: 0, former });
    }

    /// When the next round is due.
    fn next_round(&self) -> Option<Instant> {
        self.resets.iter().filter_map(|r| Some(r.begun + *ROUNDS.get(r.round)?)).min()
    }

    /// One round of whatever is due first.
    async fn round(&mut self) {
        let due = |r: &Resets| ROUNDS.get(r.round).map(|after| r.begun + *after);
        let first = (0..self.resets.len()).min_by_key(|i| due(&self.resets[*i]));
        let Some(first) = first else { return };
        if self.has_left(&self.resets[first]) {
            self.resets.remove(first);
            return;
        }
        let list = self.to_reset(&self.resets[first]);
        self.resets[first].former.clone_from(&list);
        let since = before(self.resets[first].request.served);
        // Of a client that has come again, by the same port.
        let new: HashSet<Ends> = self
            .table()
            .unwrap_or_default()
            .into_iter()
            .filter(|t| t.state.sent_ns >= since.as_nanos() as u64)
            .map(|t| t.ends)
            .collect();
        let sent = reset(list.into_iter().filter(|(ends, _)| !new.contains(ends))).await;
        let resets = &mut self.resets[first];
        resets.round += 1;
        if resets.round == 1 && sent > 0 {
            let server = resets.request.server.clone();
            let failover = resets.request.failover;
            let (kind, after) = match failover {
                Some((_, kind, cause)) => (Some(kind), Some(now().since(cause).as_secs_f64())),
                None => (None, None),
            };
            let kind = EventKind::ConnectionsReset { server, connections: sent, kind, after };
            let event = Event { at: now(), failover: failover.and_then(|(number, ..)| number), kind };
            if self.events.try_send(event).is_err() {
                self.publisher.dropped_report();
            }
        }
        self.resets.retain(|r| r.round < ROUNDS.len());
    }

    /// Has it gone to another node meanwhile? That one's clients are none of ours. The kernel programs let nothing out then, but
    /// there is no need to try. What is published may be a moment old, at first.
    fn has_left(&self, resets: &Resets) -> bool {
        let snapshot = self.snapshot.borrow();
        let server = snapshot.virtual_servers.iter().find(|s| s.name == resets.request.server);
        resets.round > 0 && server.is_none_or(|s| s.owner.as_deref() != Some(self.node.as_str()))
    }

    /// What the virtual server had before, as far as this node knows.
    fn to_reset(&self, resets: &Resets) -> BTreeMap<Ends, Numbers> {
        let mut list = resets.former.clone();
        let here = |ends: &Ends| self.addresses.get(&ends.server.ip()) == Some(&resets.request.server);
        if let Some(shared) = self.shared.get(&resets.request.server) {
            list.extend(shared.all().filter(|(ends, _)| here(ends)));
        }
        list
    }
}

/// Sends a reset and a tickle to the client of each connection. Returns to how many.
async fn reset(list: impl Iterator<Item = (Ends, Numbers)>) -> usize {
    let mut sender = Sender::default();
    let (mut sent, mut told) = (0, false);
    for (index, (ends, numbers)) in list.enumerate() {
        if index % BURST == BURST - 1 {
            sleep(PAUSE).await;
        }
        for what in [What::Reset, What::Tickle] {
            let mut patience = PATIENCE;
            let outcome = loop {
                match sender.send(&ends, numbers, what) {
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && patience > 0 => {
                        patience -= 1;
                        sleep(PAUSE).await;
                    }
                    outcome => break outcome,
                }
            };
            match outcome {
                Ok(()) => sent += usize::from(what == What::Reset),
                Err(e) if !std::mem::replace(&mut told, true) => {
                    tracing::info!("{} is not told that its connection is gone: {e}", ends.client);
                }
                Err(_) => {}
            }
        }
    }
    sent
}

fn numbers(state: &Connection) -> Numbers {
    Numbers { server: state.next_of_server(), client: state.next_of_client() }
}

/// It is closed, or about to be.
fn is_over(state: &Connection) -> bool {
    state.flags & (CONNECTION_ENDED | CONNECTION_RESET) != 0
}

/// The time on the kernel programs' coarse clock before which nothing can have been sent that was sent after `time`, on the boot-time
/// clock.
fn before(time: Time) -> Duration {
    monotonic().saturating_sub(now().since(time) + COARSE)
}

fn monotonic() -> Duration {
    clock(ClockId::CLOCK_MONOTONIC)
}

fn processor_time() -> Duration {
    clock(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// These clocks exist on every kernel that Baton runs on.
fn clock(id: ClockId) -> Duration {
    clock_gettime(id).map(Duration::from).unwrap_or_default()
}
