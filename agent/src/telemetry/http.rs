//! HTTP, read-only: `/metrics`, `/status.json`, and an index.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::{Metrics, Published};

/// Content type of `/metrics` (OpenMetrics 1.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Time between two attempts to listen.
const RETRY: Duration = Duration::from_secs(5);

const INDEX: &str =
    "Baton\n\n/metrics      for Prometheus (OpenMetrics)\n/status.json  what `baton status --json` prints\n";

/// The pages.
pub fn router(metrics: Arc<Metrics>, published: Published) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/metrics", get(page_metrics).with_state(metrics))
        .route("/status.json", get(page_status).with_state(published))
}

/// Serves the pages on `address` until dropped. An address that can't be had is reported loudly and tried again: HTTP
/// is not worth an agent that doesn't run.
pub async fn run(address: SocketAddr, metrics: Arc<Metrics>, published: Published) {
    run_with(address, metrics, published, RETRY).await;
}

pub(super) async fn run_with(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    published: Published,
    retry: Duration,
) {
    let mut told = false;
    loop {
        let served = async {
            let listener = TcpListener::bind(address).await?;
            told = false;
            serve(listener, metrics.clone(), published.clone()).await
        };
        let error = served.await.err().map_or_else(String::new, |e| e.to_string());
        if !told {
            told = true;
            tracing::error!("telemetry.listen = {address}: {error}; no metrics until it can be used");
        }
        tokio::time::sleep(retry).await;
    }
}

/// Serves the pages on `listener` until dropped.
///
/// # Errors
/// As `axum::serve`: none is known to happen, failed accepts are retried.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, published: Published) -> io::Result<()> {
    axum::serve(listener, router(metrics, published)).await
}

async fn page_metrics(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn page_status(State(published): State<Published>) -> Response {
    Json(published.status()).into_response()
}
