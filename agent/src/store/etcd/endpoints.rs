//! Whom to ask: the member that answered last, at first the local one. One that is slow or gone is passed over.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};

use tokio::sync::watch;

use super::EtcdError;
use crate::config::EtcdConfig;

/// How long a request waits for one member before it goes to the next one, round after round.
const PATIENCE: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(250),
];
/// No new round begins after this long, when an agent asks,
const LIMIT: Duration = Duration::from_secs(1);
/// and when somebody does who has time.
const PATIENT_LIMIT: Duration = Duration::from_secs(10);
/// The local member is preferred again after so long.
const BACK_HOME: Duration = Duration::from_secs(5);
/// A connection that has failed for so long is made anew.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// The members of etcd. Clones share what is known of them.
#[derive(Clone)]
pub(super) struct Endpoints {
    options: ConnectOptions,
    /// No new round begins after this long.
    limit: Duration,
    state: Arc<Mutex<State>>,
}

struct State {
    all: Vec<Endpoint>,
    /// Index of the one to ask first.
    first: usize,
    /// Since when it isn't the local one.
    away_since: Instant,
}

struct Endpoint {
    url: String,
    client: Option<Client>,
    /// A connection that is being made. It takes longer than one request may: with TLS and a password that etcd checks slowly
    /// on purpose, some hundred milliseconds.
    connecting: Option<watch::Receiver<Option<Result<Client, NoClient>>>>,
    failing_since: Option<Instant>,
}

/// Why there is no connection.
#[derive(Clone)]
struct NoClient {
    /// It was refused: the password is wrong.
    refused: bool,
    reason: String,
}

impl NoClient {
    fn outcome<T>(self) -> Outcome<T> {
        if self.refused { Outcome::Refused(self.reason) } else { Outcome::NotDone(self.reason) }
    }
}

/// What came of asking one member.
enum Outcome<T> {
    Done(T),
    /// It was not carried out.
    NotDone(String),
    /// It may have been.
    Unknown(String),
    /// It won't be anywhere.
    Refused(String),
}

impl Endpoints {
    pub fn new(config: &EtcdConfig) -> Result<Endpoints, EtcdError> {
        let read = |path: &std::path::Path| {
            fs::read(path).map_err(|source| EtcdError::File { path: path.to_owned(), source })
        };
        let mut options = ConnectOptions::new()
            .with_require_leader(true)
            .with_auto_token_refresh(true)
            .with_connect_timeout(Duration::from_millis(500))
            // etcd drops clients that ask more often than every 5 s (its `grpc-keepalive-min-time`).
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(2));
        if let Some(tls) = &config.tls {
            let mut tls_options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
            if let Some((certificate, key)) = &tls.identity {
                tls_options = tls_options.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(tls_options);
        }
        if let Some(credentials) = &config.credentials {
            let password = String::from_utf8_lossy(&read(&credentials.password_file)?).trim_end().to_owned();
            options = options.with_user(&credentials.user, password);
        }
        let endpoint =
            |url: &String| Endpoint { url: url.clone(), client: None, connecting: None, failing_since: None };
        let all = config.endpoints.iter().map(endpoint).collect();
        let state = State { all, first: 0, away_since: Instant::now() };
        Ok(Endpoints { options, limit: LIMIT, state: Arc::new(Mutex::new(state)) })
    }

    /// The same, for somebody who has time.
    pub fn patient(self) -> Endpoints {
        Endpoints { limit: PATIENT_LIMIT, ..self }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Indices, in the order in which they are to be asked.
    fn order(&self) -> Vec<usize> {
        let mut state = self.state();
        if state.first != 0 && state.away_since.elapsed() >= BACK_HOME {
            state.first = 0;
        }
        let (first, count) = (state.first, state.all.len());
        (0..count).map(|i| (first + i) % count).collect()
    }

    fn url(&self, index: usize) -> String {
        self.state().all[index].url.clone()
    }

    /// A connection to the one that is to be asked first; for watching.
    pub async fn first(&self) -> Result<Client, EtcdError> {
        let index = self.order().first().copied().unwrap_or(0);
        let client = self.client(index).await;
        client.map_err(|e| EtcdError::Unreachable { endpoints: self.url(index), last: e.reason })
    }

    /// The connection to this member. Who stops waiting for it leaves it to be made, for the next one.
    async fn client(&self, index: usize) -> Result<Client, NoClient> {
        let mut connecting = {
            let mut state = self.state();
            let endpoint = &mut state.all[index];
            if let Some(client) = &endpoint.client {
                return Ok(client.clone());
            }
            // The runtime of whoever began may be gone, and the attempt with it.
            let alive = endpoint.connecting.take().filter(|c| c.has_changed().is_ok());
            let connecting = alive.unwrap_or_else(|| {
                let (done, connecting) = watch::channel(None);
                let (url, options) = (endpoint.url.clone(), self.options.clone());
                tokio::spawn(async move {
                    let made = Client::connect([url], Some(options)).await;
                    let refused = |e: &Error| matches!(judge::<()>(e), Outcome::Refused(_));
                    let made = made.map_err(|e| NoClient { refused: refused(&e), reason: e.to_string() });
                    done.send_replace(Some(made));
                    done.closed().await; // until somebody has taken it
                });
                connecting
            });
            endpoint.connecting.insert(connecting).clone()
        };
        let made = connecting.wait_for(Option::is_some).await.ok().and_then(|made| (*made).clone());
        let made = made.unwrap_or_else(|| {
            Err(NoClient { refused: false, reason: "nobody makes the connection any more".to_owned() })
        });
        let mut state = self.state();
        state.all[index].connecting = None;
        if let Ok(client) = &made {
            state.all[index].client = Some(client.clone());
        }
        made
    }

    fn worked(&self, index: usize) {
        let mut state = self.state();
        state.all[index].failing_since = None;
        if state.first != index {
            (state.first, state.away_since) = (index, Instant::now());
        }
    }

    fn failed(&self, index: usize) {
        let mut state = self.state();
        let endpoint = &mut state.all[index];
        let since = *endpoint.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= RECONNECT_AFTER {
            (endpoint.client, endpoint.failing_since) = (None, None);
        }
    }

    async fn one<T>(
        &self,
        index: usize,
        patience: Duration,
        ask: &impl AsyncFn(Client) -> Result<T, Error>,
    ) -> Outcome<T> {
        let client = match tokio::time::timeout(patience, self.client(index)).await {
            Ok(Ok(client)) => client,
            Ok(Err(e)) => {
                self.failed(index);
                return e.outcome();
            }
            Err(_) => {
                self.failed(index);
                return Outcome::NotDone("no connection".to_owned());
            }
        };
        match tokio::time::timeout(patience, ask(client)).await {
            Ok(Ok(answer)) => {
                self.worked(index);
                Outcome::Done(answer)
            }
            Ok(Err(e)) => {
                tracing::debug!("etcd at {}: {e}", self.url(index));
                let outcome = judge(&e);
                if !matches!(outcome, Outcome::Refused(_)) {
                    self.failed(index);
                }
                outcome
            }
            Err(_) => {
                tracing::debug!("etcd at {}: no answer in {} ms", self.url(index), patience.as_millis());
                self.failed(index);
                Outcome::Unknown(format!("no answer in {} ms", patience.as_millis()))
            }
        }
    }

    /// Asks something that may be asked twice, of one after the other, until there is an answer or the limit has come.
    pub async fn ask<T>(&self, ask: impl AsyncFn(Client) -> Result<T, Error>) -> Result<T, EtcdError> {
        let mut last = String::new();
        for patience in rounds(self.limit) {
            for index in self.order() {
                match self.one(index, patience, &ask).await {
                    Outcome::Done(answer) => return Ok(answer),
                    Outcome::Refused(reason) => {
                        return Err(EtcdError::Refused { endpoint: self.url(index), reason });
                    }
                    Outcome::NotDone(e) | Outcome::Unknown(e) => last = e,
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(self.unreachable(last))
    }

    /// Asks something that must not be asked again once it may have been carried out. `None`: whether it was is not known.
    pub async fn ask_once<T>(
        &self,
        ask: impl AsyncFn(Client) -> Result<T, Error>,
    ) -> Result<Option<T>, EtcdError> {
        let mut last = String::new();
        for patience in rounds(self.limit) {
            for index in self.order() {
                match self.one(index, patience, &ask).await {
                    Outcome::Done(answer) => return Ok(Some(answer)),
                    Outcome::Refused(reason) => {
                        return Err(EtcdError::Refused { endpoint: self.url(index), reason });
                    }
                    Outcome::Unknown(_) => return Ok(None),
                    Outcome::NotDone(e) => last = e,
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(self.unreachable(last))
    }

    fn unreachable(&self, last: String) -> EtcdError {
        let urls: Vec<String> = self.state().all.iter().map(|e| e.url.clone()).collect();
        EtcdError::Unreachable { endpoints: urls.join(", "), last }
    }
}

/// How long to wait for each member, round after round, for about this long in all.
fn rounds(limit: Duration) -> impl Iterator<Item = Duration> {
    let start = Instant::now();
    let patience = PATIENCE.into_iter().chain(std::iter::repeat(PATIENCE[PATIENCE.len() - 1]));
    patience.take_while(move |_| start.elapsed() < limit)
}

/// What an error says of the request. gRPC codes: 3 invalid argument, 7 permission denied, 16 unauthenticated, 14
/// unavailable.
fn judge<T>(error: &Error) -> Outcome<T> {
    let text = error.to_string();
    match error {
        Error::GRpcStatus(status) => match status.code() as i32 {
            3 | 7 | 16 => Outcome::Refused(status.message().to_owned()),
            // A member that has no leader says so before it does anything.
            14 if status.message().contains("no leader") => Outcome::NotDone(text),
            _ => Outcome::Unknown(text),
        },
        Error::InvalidArgs(_) | Error::InvalidUri(_) => Outcome::Refused(text),
        _ => Outcome::Unknown(text),
    }
}
