//! Whom to ask: the local member first. One that is slow or gone is not waited for: after a while the next one is asked the
//! same as well, and whoever answers first counts. So a takeover waits neither for the member on the node that died, nor, where
//! that one led etcd, for a request that was lost on the way to it: one of those that follow finds the new leader.
//!
//! What is asked may so be carried out although nobody says so, and be asked again then. A compare-and-swap bears that: once it
//! was carried out it fails, and its answer says what is there.

use std::collections::VecDeque;
use std::fs;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::{Instant, timeout};

use tokio::sync::watch;

use super::EtcdError;
use crate::config::EtcdConfig;
use crate::doctor::Member;

/// A member that has answered nothing for so long is not waited for: at first,
const FIRST_GAP: Duration = Duration::from_millis(20);
/// and later.
const GAP: Duration = Duration::from_millis(10);
/// Between two requests that are made again while nobody answers anything: of many that wait, one at a time tries. At first,
/// while an election may be under way,
const TURN: Duration = Duration::from_millis(5);
const ELECTION: Duration = Duration::from_secs(1);
/// and later: an etcd that is being started needs the processors, too.
const LATER_TURN: Duration = Duration::from_millis(50);
/// A request is lost where its member has answered one that began so much later.
const OVERTAKEN: Duration = Duration::from_millis(2);
/// A request that gets no answer for so long is made again, even where its member answers others.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often a request that waits looks.
const LOOK: Duration = Duration::from_millis(2);
/// How long a request goes on, when an agent asks,
const LIMIT: Duration = Duration::from_secs(1);
/// and when somebody does who has time.
const PATIENT_LIMIT: Duration = Duration::from_secs(10);
/// A member that did not answer is asked last for so long.
const AVOIDED: Duration = Duration::from_secs(2);
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
    /// The local one first.
    all: Vec<Endpoint>,
    /// When a request was last made again while nobody answered.
    turn: Option<Instant>,
    /// When any member last answered.
    heard: Instant,
}

struct Endpoint {
    url: String,
    client: Option<Client>,
    /// A connection that is being made. It takes longer than one request may: with TLS and a password that etcd checks slowly
    /// on purpose, some hundred milliseconds.
    connecting: Option<watch::Receiver<Option<Result<Client, NoClient>>>>,
    /// When it last answered anything,
    answered: Option<Instant>,
    /// and when the latest request that it has answered began.
    newest: Option<Instant>,
    /// When it last failed to, unless it has answered since,
    failed: Option<Instant>,
    /// and since when.
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
    /// It was not carried out: that member has no leader.
    Leaderless(String),
    /// It was not carried out.
    NotDone(String),
    /// It may have been.
    Unknown(String),
    /// It won't be anywhere.
    Refused(String),
}

/// An answer.
pub(super) struct Answer<T> {
    pub value: T,
    /// Nobody else has been asked the same who may have carried it out.
    pub sole: bool,
}

/// A request to one member, under way.
struct Attempt<'a, T> {
    index: usize,
    begun: Instant,
    outcome: Pin<Box<dyn Future<Output = Outcome<T>> + 'a>>,
}

impl Endpoints {
    pub fn new(config: &EtcdConfig) -> Result<Endpoints, EtcdError> {
        let options = options(config)?;
        let endpoint = |url: &String| Endpoint {
            url: url.clone(),
            client: None,
            connecting: None,
            answered: None,
            newest: None,
            failed: None,
            failing_since: None,
        };
        let all = config.endpoints.iter().map(endpoint).collect();
        let state = State { all, turn: None, heard: Instant::now() };
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
    fn order(&self) -> VecDeque<usize> {
        let state = self.state();
        let avoided = |i: &usize| state.all[*i].failed.is_some_and(|t| t.elapsed() < AVOIDED);
        let (later, first): (Vec<usize>, Vec<usize>) = (0..state.all.len()).partition(avoided);
        first.into_iter().chain(later).collect()
    }

    fn url(&self, index: usize) -> String {
        self.state().all[index].url.clone()
    }

    /// A connection to the one that is to be asked first; for watching.
    pub async fn first(&self) -> Result<Client, EtcdError> {
        let index = self.order().front().copied().unwrap_or(0);
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

    fn worked(&self, index: usize, begun: Instant) {
        let mut state = self.state();
        state.heard = Instant::now();
        let endpoint = &mut state.all[index];
        (endpoint.answered, endpoint.failed, endpoint.failing_since) = (Some(Instant::now()), None, None);
        endpoint.newest = endpoint.newest.max(Some(begun));
    }

    fn failed(&self, index: usize) {
        let now = Instant::now();
        let mut state = self.state();
        let endpoint = &mut state.all[index];
        endpoint.failed = Some(now);
        let since = *endpoint.failing_since.get_or_insert(now);
        if now - since >= RECONNECT_AFTER {
            (endpoint.client, endpoint.failing_since) = (None, None);
        }
    }

    /// Is a request to be made again now, which was last made to this member at `begun`? `waits`: that is still under way.
    /// `fresh`: there is a member that has not been asked yet in this round.
    fn again(&self, index: usize, begun: Instant, waits: bool, fresh: bool, gap: Duration) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        let member = &state.all[index];
        if waits {
            let lost = member.newest > Some(begun + OVERTAKEN);
            if lost || (fresh && member.failed > Some(begun)) {
                return true;
            }
            let answered = member.answered.map_or(begun, |t| t.clamp(begun, begun + PATIENCE));
            if now < answered + gap {
                return false; // where many ask much it may take a while
            }
        } else if fresh || state.all.iter().any(|m| m.newest > Some(begun)) {
            return true; // all could not, and somebody can now
        }
        let between = if now < state.heard + ELECTION { TURN } else { LATER_TURN };
        if state.turn.is_some_and(|t| now < t + between) {
            return false;
        }
        state.turn = Some(now);
        true
    }

    async fn one<T>(&self, index: usize, ask: &impl AsyncFn(Client) -> Result<T, Error>) -> Outcome<T> {
        let client = match self.client(index).await {
            Ok(client) => client,
            Err(e) => return e.outcome(),
        };
        match ask(client).await {
            Ok(answer) => Outcome::Done(answer),
            Err(e) => {
                tracing::debug!("etcd at {}: {e}", self.url(index));
                judge(&e)
            }
        }
    }

    /// Asks one after the other until there is an answer: for about a second.
    pub async fn ask<T>(&self, ask: impl AsyncFn(Client) -> Result<T, Error>) -> Result<T, EtcdError> {
        self.ask_all(ask).await.map(|answer| answer.value)
    }

    /// As [`Endpoints::ask`], and says whether the same may have been carried out before.
    pub async fn ask_all<T>(
        &self,
        ask: impl AsyncFn(Client) -> Result<T, Error>,
    ) -> Result<Answer<T>, EtcdError> {
        let begun = Instant::now();
        let mut order = self.order();
        let mut attempts: Vec<Attempt<'_, T>> = Vec::new();
        let mut latest: Option<(usize, Instant)> = None;
        // Of those that have ended without an answer.
        let (mut may_be_done, mut last) = (false, "no answer".to_owned());
        let mut gap = FIRST_GAP;
        loop {
            let now = Instant::now();
            if now - begun >= self.limit {
                attempts.iter().for_each(|a| self.failed(a.index));
                return Err(self.unreachable(last));
            }
            let go = latest.is_none_or(|(index, at)| {
                let waits = attempts.last().is_some_and(|a| a.begun == at);
                self.again(index, at, waits, !order.is_empty(), gap)
            });
            if go {
                if latest.is_some() {
                    gap = GAP;
                }
                if order.is_empty() {
                    order = self.order();
                }
                let index = order.pop_front().unwrap_or_default();
                attempts.push(Attempt { index, begun: now, outcome: Box::pin(self.one(index, &ask)) });
                latest = Some((index, now));
            }
            let ended = timeout(LOOK, first_of(&mut attempts)).await;
            let Ok((index, began, outcome)) = ended else { continue };
            match outcome {
                Outcome::Done(value) => {
                    self.worked(index, began);
                    for late in attempts.iter().filter(|a| a.begun < began && a.index != index) {
                        tracing::debug!("etcd at {}: no answer yet", self.url(late.index));
                        self.failed(late.index);
                    }
                    return Ok(Answer { value, sole: attempts.is_empty() && !may_be_done });
                }
                Outcome::Refused(reason) => {
                    return Err(EtcdError::Refused { endpoint: self.url(index), reason });
                }
                Outcome::Leaderless(e) => last = e,
                Outcome::NotDone(e) => {
                    self.failed(index);
                    last = e;
                }
                Outcome::Unknown(e) => {
                    self.failed(index);
                    (last, may_be_done) = (e, true);
                }
            }
        }
    }

    fn unreachable(&self, last: String) -> EtcdError {
        let urls: Vec<String> = self.state().all.iter().map(|e| e.url.clone()).collect();
        EtcdError::Unreachable { endpoints: urls.join(", "), last }
    }
}

/// How members are spoken to.
fn options(config: &EtcdConfig) -> Result<ConnectOptions, EtcdError> {
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
    Ok(options)
}

/// Asks one member, and nobody else, how it is: for `baton doctor`.
///
/// # Errors
/// A file can't be read; it does not answer.
pub async fn ask_member(config: &EtcdConfig, url: &str) -> Result<Member, EtcdError> {
    let unreachable = |e: Error| EtcdError::Member { reason: e.to_string() };
    let mut client = Client::connect([url], Some(options(config)?)).await.map_err(unreachable)?;
    let begun = std::time::Instant::now();
    let status = client.status().await.map_err(unreachable)?;
    let member = Member {
        version: status.version().to_owned(),
        has_leader: status.leader() != 0,
        cluster: status.header().map_or(0, |h| h.cluster_id()),
        errors: status.errors().to_vec(),
        size: u64::try_from(status.db_size()).unwrap_or(0),
        took: Duration::ZERO,
    };
    Ok(member.after(begun))
}

/// The first one that ends: of which member, since when, and how. The others go on when this is called again.
async fn first_of<T>(attempts: &mut Vec<Attempt<'_, T>>) -> (usize, Instant, Outcome<T>) {
    std::future::poll_fn(|context| {
        for at in 0..attempts.len() {
            if let Poll::Ready(outcome) = attempts[at].outcome.as_mut().poll(context) {
                let ended = attempts.remove(at);
                return Poll::Ready((ended.index, ended.begun, outcome));
            }
        }
        Poll::Pending
    })
    .await
}

/// What an error says of the request. gRPC codes: 3 invalid argument, 7 permission denied, 16 unauthenticated, 14
/// unavailable.
fn judge<T>(error: &Error) -> Outcome<T> {
    let text = error.to_string();
    match error {
        Error::GRpcStatus(status) => match status.code() as i32 {
            3 | 7 | 16 => Outcome::Refused(status.message().to_owned()),
            // A member that has no leader says so before it does anything.
            14 if status.message().contains("no leader") => Outcome::Leaderless(text),
            _ => Outcome::Unknown(text),
        },
        Error::InvalidArgs(_) | Error::InvalidUri(_) => Outcome::Refused(text),
        _ => Outcome::Unknown(text),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Three members at addresses where nobody is: only what is asked decides.
    fn endpoints() -> Endpoints {
        let url = |n| format!("http://127.0.0.1:{n}");
        let endpoints = (1..=3).map(url).collect();
        let config = EtcdConfig { endpoints, tls: None, credentials: None, cluster: "c".to_owned() };
        Endpoints::new(&config).unwrap()
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn an_answer_of_the_first_is_sole() {
        let endpoints = endpoints();
        let answer = run(endpoints.ask_all(async |_| Ok(7))).unwrap();
        assert_eq!((answer.value, answer.sole), (7, true));
        assert_eq!(endpoints.order(), [0, 1, 2]);
    }

    #[test]
    fn one_that_does_not_answer_is_not_waited_for_and_asked_last_from_then_on() {
        let endpoints = endpoints();
        let asked = Cell::new(0);
        let ask = async |_: Client| {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => std::future::pending().await,
                n => Ok(n),
            }
        };
        let answer = run(endpoints.ask_all(ask)).unwrap();
        assert_eq!((answer.value, answer.sole), (2, false), "the first one may have carried it out");
        assert_eq!(endpoints.order(), [1, 2, 0]);
    }

    #[test]
    fn what_is_refused_is_asked_nobody_else() {
        let asked = Cell::new(0);
        let ask = async |_: Client| {
            asked.set(asked.get() + 1);
            Err::<(), _>(Error::InvalidArgs("no".to_owned()))
        };
        let answer = run(endpoints().ask(ask));
        assert!(matches!(answer, Err(EtcdError::Refused { .. })));
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn all_are_asked_again_until_one_can() {
        let asked = Cell::new(0);
        let ask = async |_: Client| {
            asked.set(asked.get() + 1);
            match asked.get() {
                n if n < 8 => Err(Error::WatchError("broken".to_owned())),
                n => Ok(n),
            }
        };
        let answer = run(endpoints().ask_all(ask)).unwrap();
        assert_eq!((answer.value, answer.sole), (8, false));
    }

    /// One hangs and the others refuse at once: asking them again and again without a pause would leave them no time to start.
    #[test]
    fn members_that_cannot_are_asked_again_with_pauses() {
        let asked = Cell::new(0);
        let ask = async |_: Client| {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => std::future::pending().await,
                _ => Err::<(), _>(Error::WatchError("not yet".to_owned())),
            }
        };
        let answer = run(endpoints().ask(ask));
        assert!(matches!(answer, Err(EtcdError::Unreachable { .. })));
        assert!(asked.get() < 1000, "asked {} times in a second", asked.get());
    }

    #[test]
    fn it_ends_when_nobody_answers() {
        let answer = run(endpoints().ask(async |_| std::future::pending::<Result<(), Error>>().await));
        assert!(matches!(answer, Err(EtcdError::Unreachable { .. })));
    }
}
