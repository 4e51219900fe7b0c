//! The answering side.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baton_core::Snapshot;
use nix::unistd::{Group, chown};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{CountersLine, ErrorLine, EventsRequest, REQUEST_MAX, ReloadAnswer, ReloadRequest, Request};
use crate::config::ControlConfig;
use crate::journal::{self, Filter, JournalError, Record};
use crate::telemetry::Published;

/// Most connections at a time; more wait in the socket's queue.
const CONNECTIONS: usize = 64;
/// How long a client may take to ask, and to take a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Least time between two lines of a watch.
const WATCH_LEAST: Duration = Duration::from_millis(100);
/// Most time between two lines of a watch: by them the client sees that the agent lives.
const WATCH_MOST: Duration = Duration::from_secs(1);
/// Most events from the journal if the request names neither a time nor a limit.
const EVENTS_DEFAULT: usize = 1000;
/// Most events that a limit may ask for: they are all in memory at a time.
const EVENTS_MOST: usize = 10_000;
/// Events remembered as told when following begins.
const SEEN: usize = 64;

/// Why the socket can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent listens on it.
    #[error("{socket}: another agent listens on it; stop it, or give this one another `control.socket`")]
    InUse {
        /// The socket.
        socket: PathBuf,
    },
    /// It can't be made.
    #[error(
        "{socket}: cannot make this socket: {source}; run as root and make its folder, or choose another `control.socket`"
    )]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Makes the socket: mode 0660, for the group in `config` if there is one of that name, else for root alone. A socket
/// that nobody listens on any more is replaced. To be called within a runtime.
///
/// # Errors
/// Somebody listens on it, or it can't be made.
pub fn bind(config: &ControlConfig) -> Result<UnixListener, BindError> {
    let socket = &config.socket;
    let fail = |source| BindError::Io { socket: socket.clone(), source };
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(BindError::InUse { socket: socket.clone() });
    }
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    // Made under another name, so that it is never there with wrong permissions, nor gone for a moment.
    let making = making(socket);
    let made = || {
        match std::fs::remove_file(&making) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&making)?;
        // A group that isn't there, or may not be used (without CAP_CHOWN), leaves the socket to root.
        let group = Group::from_name(&config.group).ok().flatten();
        let given = group.is_some_and(|group| match chown(&making, None, Some(group.gid)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(group = config.group, %error, "only root may use the control socket");
                false
            }
        });
        let mode = if given { 0o660 } else { 0o600 };
        std::fs::set_permissions(&making, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&making, socket)?;
        Ok(listener)
    };
    made().map_err(|e| {
        let _ = std::fs::remove_file(&making);
        fail(e)
    })
}

/// A name beside the socket's, not longer than it (the longest path is not long).
fn making(socket: &Path) -> PathBuf {
    socket.with_file_name(format!(".{}", std::process::id()))
}

/// The configuration is to be read anew.
#[derive(Debug)]
pub struct ReloadCall {
    /// Only to say what would change.
    pub dry_run: bool,
    /// For who asks.
    pub answer: oneshot::Sender<ReloadAnswer>,
}

/// Answers requests.
#[derive(Clone, Debug)]
pub struct Server {
    published: Published,
    state: PathBuf,
    reloads: Option<mpsc::Sender<ReloadCall>>,
}

impl Server {
    /// A server of what is published, and of the journal in the folder `state`.
    pub fn new(published: Published, state: PathBuf) -> Self {
        Server { published, state, reloads: None }
    }

    /// Hands on who wants the configuration to be read anew.
    pub fn with_reloads(self, reloads: mpsc::Sender<ReloadCall>) -> Self {
        Server { reloads: Some(reloads), ..self }
    }

    /// Serves for ever. Dropping the future ends every connection.
    pub async fn run(self, listener: UnixListener) {
        let mut open = JoinSet::new();
        loop {
            while open.len() >= CONNECTIONS {
                open.join_next().await;
            }
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let server = self.clone();
                        open.spawn(async move { server.connection(stream).await });
                    }
                    Err(error) => {
                        // Out of descriptors: they come back.
                        tracing::warn!(%error, "the control socket can't accept");
                        sleep(WATCH_LEAST).await;
                    }
                },
                Some(_) = open.join_next() => {}
            }
        }
    }

    async fn connection(self, stream: UnixStream) {
        // What the kernel knows of who is at the other end (unix(7), SO_PEERCRED).
        let user = stream.peer_cred().map(|c| c.uid()).ok();
        let (read, write) = stream.into_split();
        let mut client = Client { read: BufReader::new(read), write };
        // Whatever goes wrong is the client's own doing: it has gone, or doesn't read.
        let result: io::Result<()> = async {
            match client.request().await? {
                Ok(Request::Status(r)) if r.watch => self.watch(&mut client).await,
                Ok(Request::Status(_)) => client.line(&self.published.status()).await,
                Ok(Request::Events(r)) => self.events(r, &mut client).await,
                Ok(Request::Counters(_)) => self.counters(&mut client).await,
                Ok(Request::Plan(_)) => {
                    let planning = self.published.planning.borrow().clone();
                    client.line(&*planning).await
                }
                Ok(Request::Reload(r)) => self.reload(r, user, &mut client).await,
                Err(error) => client.line(&ErrorLine { error }).await,
            }
        }
        .await;
        if let Err(error) = result {
            tracing::debug!(%error, "control connection ended");
        }
    }

    async fn reload(&self, request: ReloadRequest, user: Option<u32>, client: &mut Client) -> io::Result<()> {
        let may = user.is_some_and(|user| user == 0 || user == nix::unistd::geteuid().as_raw());
        if !request.dry_run && !may {
            let error =
                "only root may have the configuration taken up; ask with --dry-run, or as root".to_owned();
            return client.line(&ErrorLine { error }).await;
        }
        let (answer, answered) = oneshot::channel();
        let call = ReloadCall { dry_run: request.dry_run, answer };
        let sent = match &self.reloads {
            Some(reloads) => reloads.send(call).await.is_ok(),
            None => false,
        };
        match answered.await {
            Ok(answer) if sent => client.line(&answer).await,
            _ => {
                let error = "the agent is stopping or starting anew; ask again".to_owned();
                client.line(&ErrorLine { error }).await
            }
        }
    }

    async fn watch(&self, client: &mut Client) -> io::Result<()> {
        let mut changes = self.published.snapshot.clone();
        loop {
            changes.mark_unchanged();
            let sent = Instant::now();
            client.line(&self.published.status()).await?;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(sent + WATCH_MOST) => {}
                () = client.gone() => return Ok(()),
            }
            sleep_until(sent + WATCH_LEAST).await;
        }
    }

    async fn events(&self, request: EventsRequest, client: &mut Client) -> io::Result<()> {
        let since = match request.since.as_deref().map(humantime::parse_rfc3339_weak).transpose() {
            Ok(since) => since,
            Err(e) => {
                let error = format!("`since` is not a time: {e}; write it as 2026-01-31T12:00:00Z");
                return client.line(&ErrorLine { error }).await;
            }
        };
        let filter = match self.filter(since, request.server.clone()) {
            Ok(filter) => Arc::new(filter),
            Err(error) => return client.line(&ErrorLine { error }).await,
        };
        let mut live = self.published.events();
        // Events that came between subscribing and reading are in both.
        let mut seen = VecDeque::new();
        let mut past = self.past(&request, since.is_some(), filter.clone());
        while let Some(next) = past.recv().await {
            match next {
                Ok(record) => {
                    client.line(&record).await?;
                    seen.push_back(record);
                    if seen.len() > SEEN {
                        seen.pop_front();
                    }
                }
                Err(error) => return client.line(&ErrorLine { error: error.to_string() }).await,
            }
        }
        if !request.follow {
            return Ok(());
        }
        loop {
            tokio::select! {
                next = live.recv() => match next {
                    Ok(record) if !filter.passes(&record) || seen.contains(&*record) => {}
                    Ok(record) => client.line(&*record).await?,
                    Err(RecvError::Lagged(n)) => {
                        let error = format!("{n} events were too fast for this connection; read them with `baton events --since`");
                        return client.line(&ErrorLine { error }).await;
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = client.gone() => return Ok(()),
            }
        }
    }

    /// What the journal holds, read by a thread that may wait for the disk and goes no faster than the client.
    fn past(
        &self,
        request: &EventsRequest,
        all: bool,
        filter: Arc<Filter>,
    ) -> mpsc::Receiver<Result<Record, JournalError>> {
        let (sender, receiver) = mpsc::channel(64);
        let (state, limit) = (self.state.clone(), request.limit);
        tokio::task::spawn_blocking(move || {
            let keep = |record: &Record| filter.passes(record);
            let send = |record| sender.blocking_send(Ok(record)).is_ok();
            let result = match limit {
                None if all => journal::visit(&state, keep, send),
                _ => journal::read(&state, limit.unwrap_or(EVENTS_DEFAULT).min(EVENTS_MOST), keep)
                    .map(|list| list.into_iter().all(send))
                    .map(|_| ()),
            };
            if let Err(error) = result {
                let _ = sender.blocking_send(Err(error));
            }
        });
        receiver
    }

    fn filter(&self, since: Option<SystemTime>, server: Option<String>) -> Result<Filter, String> {
        let Some(name) = server else { return Ok(Filter { since, ..Filter::default() }) };
        let view = self.published.snapshot.borrow();
        match addresses_of(&view, &name) {
            Some(addresses) => Ok(Filter { since, server: Some((name, addresses)), ..Filter::default() }),
            None => Err(format!("there is no virtual server \"{name}\"; `baton status` lists them")),
        }
    }

    async fn counters(&self, client: &mut Client) -> io::Result<()> {
        let all = self.published.counters.borrow().clone();
        for vip in all.iter() {
            let c = vip.counters;
            let line = CountersLine {
                address: vip.address,
                virtual_server: vip.server.clone(),
                rx_packets: c.rx_packets,
                rx_bytes: c.rx_bytes,
                tx_packets: c.tx_packets,
                tx_bytes: c.tx_bytes,
                rx_dropped: c.rx_dropped,
                tx_dropped: c.tx_dropped,
                other_port: c.other_port,
            };
            client.line(&line).await?;
        }
        Ok(())
    }
}

fn addresses_of(view: &Snapshot, server: &str) -> Option<BTreeSet<IpAddr>> {
    let server = view.virtual_servers.iter().find(|s| s.name == server)?;
    Some(server.addresses.iter().map(|a| a.address).collect())
}

struct Client {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Client {
    /// The request, or what to answer instead.
    async fn request(&mut self) -> io::Result<Result<Request, String>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.read).take(REQUEST_MAX);
        timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
        if line.len() as u64 == REQUEST_MAX && line.last() != Some(&b'\n') {
            return Ok(Err(format!("the request is longer than {REQUEST_MAX} bytes; send one JSON line")));
        }
        Ok(serde_json::from_slice(&line)
            .map_err(|e| format!("not a request: {e}; send one of {{\"status\":{{}}}}, {{\"events\":{{}}}}, {{\"counters\":{{}}}}, {{\"plan\":{{}}}}")))
    }

    async fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        timeout(PATIENCE, self.write.write_all(&line)).await?
    }

    /// Waits until the client has gone. Cancel safe: what it still sends is ignored anyway.
    async fn gone(&mut self) {
        let mut ignored = [0; 64];
        while !matches!(self.read.read(&mut ignored).await, Ok(0) | Err(_)) {}
    }
}
