//! HTTP, read-only: `/metrics`, `/status.json`, and an index.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::{Metrics, Published};

/// Content type of `/metrics` (OpenMetrics 1.0).
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const INDEX: &str =
    "Baton\n\n/metrics      for Prometheus (OpenMetrics)\n/status.json  what `baton status --json` prints\n";

/// The pages.
pub fn router(metrics: Arc<Metrics>, published: Published) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/metrics", get(page_metrics).with_state(metrics))
        .route("/status.json", get(page_status).with_state(published))
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
