//! The web page: what this node knows of the cluster, live. All assets are in the program. What it may ask for beside showing is
//! in [`super::action`].
//!
//! `/live` is a stream of server-sent events (WHATWG HTML, section 9.2): `told`, the journal's last entries and then each
//! new one, with its sentence; `status`, what `/status.json` shows, after every change, and once a second at least;
//! `missed`, how many events a reader that is too slow did not get. `/plan.json` is what `baton plan --json` prints.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use baton_core::EventKind;
use baton_core::plan::Planning;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::Published;
use super::stages::{Interval, intervals};
use crate::cli;
use crate::journal::{self, Record};

/// Most pages that are kept up to date at a time.
const READERS: usize = 32;
/// Events of the journal that a page begins with.
const HISTORY: usize = 200;
/// Least time between two statuses.
const LEAST: Duration = Duration::from_millis(250);
/// Most time between two statuses: by them the page sees that the agent lives.
const MOST: Duration = Duration::from_secs(1);
/// How long a reader may take to take something.
const PATIENCE: Duration = Duration::from_secs(10);

const ASSETS: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("web/index.html")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("web/page.js")),
    ("/page.css", "text/css; charset=utf-8", include_str!("web/page.css")),
];

/// Nothing from elsewhere is loaded, and no other page can frame this one.
const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// What the page is made of.
#[derive(Clone)]
pub(super) struct Page {
    published: Published,
    /// The folder of the journal.
    state: PathBuf,
    readers: Arc<Semaphore>,
    /// One plan at a time: it takes a processor for a while.
    planner: Arc<Semaphore>,
}

/// The routes.
pub(super) fn router(published: Published, state: PathBuf) -> Router {
    let (readers, planner) = (Arc::new(Semaphore::new(READERS)), Arc::new(Semaphore::new(1)));
    let page = Page { published, state, readers, planner };
    let live = Router::new().route("/live", get(live)).route("/plan.json", get(plan)).with_state(page);
    ASSETS
        .iter()
        .fold(live, |router, (path, kind, text)| router.route(path, get(|| async { (headers(kind), *text) })))
}

fn headers(kind: &'static str) -> [(HeaderName, HeaderValue); 5] {
    [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
}

async fn live(State(page): State<Page>) -> Response {
    let Ok(permit) = page.readers.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open; close some\n").into_response();
    };
    let (reader, stream) = mpsc::channel(16);
    tokio::spawn(feed(page, reader, permit));
    ([(header::CACHE_CONTROL, "no-store")], Sse::new(ReceiverStream::new(stream))).into_response()
}

type Reader = mpsc::Sender<Result<Event, Infallible>>;

/// An event of the journal, what it says, and where it tells of the stages of a failover, these one after the other.
#[derive(Serialize)]
struct Told<'a> {
    sentence: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    intervals: Vec<Interval>,
    #[serde(flatten)]
    record: &'a Record,
}

/// Ends when the reader has gone, or takes nothing for too long.
async fn feed(page: Page, reader: Reader, _permit: OwnedSemaphorePermit) {
    // Followed before the journal is read: what comes meanwhile comes twice, and the page knows it by its time.
    let mut events = page.published.events();
    let mut snapshot = page.published.snapshot.clone();
    let read = tokio::task::spawn_blocking(move || journal::tail(&page.state, HISTORY)).await;
    let history = match read {
        Ok(Ok(history)) => history,
        Ok(Err(error)) => {
            tracing::warn!("{error}");
            Vec::new()
        }
        Err(_) => Vec::new(), // the runtime ends
    };
    for record in &history {
        if !tell(&reader, record).await {
            return;
        }
    }
    let mut last = Instant::now();
    let mut due = last;
    loop {
        let goes_on = tokio::select! {
            () = sleep_until(due) => {
                last = Instant::now();
                due = last + MOST;
                send(&reader, "status", &page.published.status()).await
            }
            changed = snapshot.changed() => {
                due = due.min(last + LEAST);
                changed.is_ok()
            }
            event = events.recv() => match event {
                Ok(record) => tell(&reader, &record).await,
                Err(RecvError::Lagged(missed)) => send(&reader, "missed", &missed).await,
                Err(RecvError::Closed) => false,
            },
        };
        if !goes_on {
            return;
        }
    }
}

async fn tell(reader: &Reader, record: &Record) -> bool {
    let intervals = match &record.event.kind {
        EventKind::FailoverDone { stages, .. } => intervals(stages),
        _ => Vec::new(),
    };
    send(reader, "told", &Told { sentence: cli::sentence(&record.event), intervals, record }).await
}

async fn send(reader: &Reader, kind: &str, what: &impl Serialize) -> bool {
    let Ok(event) = Event::default().event(kind).json_data(what) else { return false };
    matches!(timeout(PATIENCE, reader.send(Ok(event))).await, Ok(Ok(())))
}

async fn plan(State(page): State<Page>) -> Response {
    let Ok(_permit) = page.planner.acquire().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let planning = Planning::clone(&page.published.planning.borrow());
    let planned = tokio::task::spawn_blocking(move || cli::plan_as_json(planning)).await;
    match planned {
        Ok(Ok(json)) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Ok(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
