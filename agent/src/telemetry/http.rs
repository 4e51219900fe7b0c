//! HTTP: `/metrics`, `/status.json`, and the web page. Read-only but for [`super::action`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::tls::{Peer, TlsListener};
use super::{Actions, Material, Metrics, Published, action, read_tls, web};
use crate::config::TelemetryTls;

/// Content type of `/metrics` (OpenMetrics 1.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Prometheus' own format, 0.0.4.
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Time between two attempts to listen.
const RETRY: Duration = Duration::from_secs(5);

/// The pages; the journal is in the folder `state`.
pub fn router(
    metrics: Arc<Metrics>,
    published: Published,
    state: PathBuf,
    actions: Option<Actions>,
) -> Router {
    web::router(published.clone(), state)
        .merge(action::router(actions))
        .route("/metrics", get(page_metrics).with_state(metrics))
        .route("/status.json", get(page_status).with_state(published))
}

/// What TLS is spoken with.
#[derive(Clone)]
pub struct Tls {
    /// The files.
    pub files: TelemetryTls,
    /// What was in them; `None`: they are to be read until they can be used.
    pub material: Option<Material>,
}

/// Serves the pages on `address` until dropped; with `tls` never without TLS. An address that can't be had, and certificates that
/// can't be used, are reported loudly and tried again: HTTP is not worth an agent that doesn't run.
pub async fn run(address: SocketAddr, router: Router, tls: Option<Tls>) {
    run_with(address, router, tls, RETRY).await;
}

pub(super) async fn run_with(address: SocketAddr, router: Router, tls: Option<Tls>, retry: Duration) {
    let mut told = false;
    loop {
        let served = async {
            let material = match &tls {
                Some(Tls { material: Some(material), .. }) => Some(material.clone()),
                Some(Tls { files, material: None }) => Some(read(files.clone()).await?),
                None => None,
            };
            let listener = TcpListener::bind(address).await?;
            told = false;
            serve_router(listener, router.clone(), material.as_ref()).await
        };
        let error = served.await.err().map_or_else(String::new, |e| e.to_string());
        if !told {
            told = true;
            tracing::error!(
                "telemetry.listen = {address}: {error}; no page and no metrics until it can be used"
            );
        }
        tokio::time::sleep(retry).await;
    }
}

async fn read(files: TelemetryTls) -> io::Result<Material> {
    tokio::task::spawn_blocking(move || read_tls(&files)).await?.map_err(io::Error::other)
}

/// Serves the pages on `listener` until dropped.
///
/// # Errors
/// As `axum::serve`: none is known to happen, failed accepts are retried.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    published: Published,
    state: PathBuf,
    actions: Option<Actions>,
) -> io::Result<()> {
    serve_router(listener, router(metrics, published, state, actions), None).await
}

async fn serve_router(listener: TcpListener, router: Router, tls: Option<&Material>) -> io::Result<()> {
    let service = router.into_make_service_with_connect_info::<Peer>();
    match tls {
        Some(material) => axum::serve(TlsListener::new(listener, material), service).await,
        None => axum::serve(listener, service).await,
    }
}

/// Whoever does not ask for OpenMetrics gets the older format, which everything reads.
async fn page_metrics(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let open = accepted.is_some_and(|accepted| accepted.contains("application/openmetrics-text"));
    match metrics.encode() {
        Ok(text) if open => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Ok(text) => ([(header::CONTENT_TYPE, PLAIN)], plain(&text)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// OpenMetrics in the older format: there a family has the name of its samples, an info is a gauge, and nothing says where the
/// page ends.
pub fn plain(openmetrics: &str) -> String {
    let kinds: HashMap<&str, &str> =
        openmetrics.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let called = |family: &str| match kinds.get(family) {
        Some(&"counter") => format!("{family}_total"),
        Some(&"info") => format!("{family}_info"),
        Some(_) | None => family.to_owned(),
    };
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let described = line.strip_prefix("# ").and_then(|rest| {
            let (what, rest) = rest.split_once(' ')?;
            let (family, is) = rest.split_once(' ')?;
            Some((what, family, is))
        });
        match described {
            Some(("HELP", family, help)) => text.push_str(&format!("# HELP {} {help}\n", called(family))),
            Some(("TYPE", family, kind)) => {
                let kind = match kind {
                    "info" | "stateset" => "gauge",
                    "unknown" => "untyped",
                    kind => kind,
                };
                text.push_str(&format!("# TYPE {} {kind}\n", called(family)));
            }
            Some(_) => {} // units are in the names
            None if line.starts_with('#') => {}
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

async fn page_status(State(published): State<Published>) -> Response {
    Json(published.status()).into_response()
}
