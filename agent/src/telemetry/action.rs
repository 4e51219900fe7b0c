//! What the web page may ask for beside showing: moving, draining, resuming, confirming that a node is off.
//!
//! `POST /action` takes one [`Action`] as JSON with `Authorization: Bearer TOKEN`, the token being what the file
//! `token_file` in `[telemetry]` holds, which only root may read. It is not in a cookie, so no other page can make a browser send
//! it. HTTP here is without TLS, so that only who comes from this node itself is answered: through an SSH tunnel, or a proxy
//! with TLS that runs here. Without `token_file` there are no actions.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};

use crate::secrets::{self, Exposed};

/// Shortest token, in bytes.
const LEAST: usize = 16;
/// Longest one.
const MOST: u64 = 1024;
/// Longest request, in bytes.
const REQUEST_MOST: usize = 4096;
/// How long whoever has a wrong token waits; one at a time.
const PENALTY: Duration = Duration::from_millis(500);

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Nothing: is the token good?
    Check {},
    /// As `baton move`.
    Move {
        /// The virtual server.
        server: String,
        /// The node.
        to: String,
    },
    /// As `baton drain`.
    Drain {
        /// The node.
        node: String,
    },
    /// As `baton resume`.
    Resume {
        /// The node.
        node: String,
    },
    /// As `baton confirm-off`.
    ConfirmOff {
        /// The node.
        node: String,
        /// Somebody has seen that it is off.
        it_is_off: bool,
    },
}

/// Does what is asked for, and says what came of it; may take its time.
pub type Act = dyn Fn(&Action) -> Result<String, String> + Send + Sync;

/// Who may ask, and who does it.
#[derive(Clone)]
pub struct Actions {
    token_file: PathBuf,
    act: Arc<Act>,
    /// One action at a time.
    acting: Arc<Semaphore>,
    /// One wrong token at a time.
    guessing: Arc<Semaphore>,
}

impl Actions {
    /// With the token in this file, which is read anew for each request.
    pub fn new(token_file: PathBuf, act: Arc<Act>) -> Actions {
        let (acting, guessing) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
        Actions { token_file, act, acting, guessing }
    }
}

/// What a page learns before it asks for a token.
#[derive(Serialize)]
struct May {
    /// There are actions, for whoever asks from there.
    actions: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
}

const NOT_CONFIGURED: &str = "token_file in [telemetry] is not set";
const FROM_AFAR: &str = "the token would cross the network unencrypted: ask from the node itself, through an SSH tunnel or a proxy with TLS";

/// The routes.
pub(super) fn router(actions: Option<Actions>) -> Router {
    let may = get(may).with_state(actions.is_some());
    let router = Router::new().route("/may.json", may);
    match actions {
        Some(actions) => {
            let act = post(act).layer(DefaultBodyLimit::max(REQUEST_MOST)).with_state(actions);
            router.route("/action", act)
        }
        None => router,
    }
}

fn is_near(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

async fn may(State(configured): State<bool>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    let why = match (configured, is_near(peer)) {
        (false, _) => Some(NOT_CONFIGURED),
        (true, false) => Some(FROM_AFAR),
        (true, true) => None,
    };
    ([(header::CACHE_CONTROL, "no-store")], Json(May { actions: why.is_none(), why })).into_response()
}

async fn act(
    State(actions): State<Actions>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !is_near(peer) {
        return (StatusCode::FORBIDDEN, FROM_AFAR).into_response();
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    let file = actions.token_file.clone();
    let token = match tokio::task::spawn_blocking(move || token(&file)).await {
        Ok(Ok(token)) => token,
        Ok(Err(error)) => {
            tracing::error!("{error}; nobody may act through the page");
            return (StatusCode::INTERNAL_SERVER_ERROR, "the token can't be read; the agent's log says why")
                .into_response();
        }
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(), // the runtime ends
    };
    if !same(&token, given.as_bytes()) {
        let _turn = actions.guessing.acquire().await;
        tokio::time::sleep(PENALTY).await;
        tracing::warn!(%peer, "a wrong token for an action on the page");
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "the token is wrong")
            .into_response();
    }
    let action: Action = match serde_json::from_slice(&body) {
        Ok(action) => action,
        Err(e) => return (StatusCode::BAD_REQUEST, format!("not an action: {e}")).into_response(),
    };
    if action == (Action::Check {}) {
        return StatusCode::NO_CONTENT.into_response();
    }
    let Ok(permit) = actions.acting.clone().try_acquire_owned() else {
        return (StatusCode::CONFLICT, "another one is under way; wait for its end").into_response();
    };
    tracing::info!(%peer, ?action, "asked for on the page");
    // Not one of the runtime's own threads: an agent that ends, or starts anew, would wait for it, and be given up meanwhile.
    let (told, done) = oneshot::channel();
    let thread = std::thread::Builder::new().name("action".into()).spawn(move || {
        let _permit = permit; // also when nobody waits any more
        let _ = told.send((actions.act)(&action));
    });
    if let Err(e) = thread {
        return (StatusCode::SERVICE_UNAVAILABLE, e.to_string()).into_response();
    }
    match done.await {
        Ok(Ok(said)) => said.into_response(),
        Ok(Err(why)) => (StatusCode::CONFLICT, why).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(), // it has panicked; its message is in the log
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("{path}: {source}; make it with `head -c32 /dev/urandom | base64`, mode 600")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Exposed(#[from] Exposed),
    #[error("{path}: a token has {LEAST} to {MOST} bytes; make it with `head -c32 /dev/urandom | base64`")]
    Length { path: PathBuf },
}

fn token(path: &Path) -> Result<Vec<u8>, TokenError> {
    let error = |source| TokenError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    secrets::guarded(path, "the page's token", &file.metadata().map_err(error)?)?;
    let mut token = Vec::new();
    file.take(MOST + 1).read_to_end(&mut token).map_err(error)?;
    let token = token.trim_ascii();
    match (LEAST..=MOST as usize).contains(&token.len()) {
        true => Ok(token.to_vec()),
        false => Err(TokenError::Length { path: path.to_owned() }),
    }
}

/// Takes as long for one that differs in its first byte as for one that differs in its last.
fn same(token: &[u8], given: &[u8]) -> bool {
    let differ = token.iter().zip(given).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    token.len() == given.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_are_the_same_or_not() {
        assert!(same(b"0123456789abcdef", b"0123456789abcdef"));
        for other in
            [&b""[..], b"0123456789abcde", b"0123456789abcdeg", b"1123456789abcdef", b"0123456789abcdef0"]
        {
            assert!(!same(b"0123456789abcdef", other));
        }
    }

    #[test]
    fn a_token_that_others_may_read_or_that_is_short_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        assert!(token(&file).unwrap_err().to_string().contains("urandom"));
        for (text, mode, part) in [
            ("0123456789abcdef\n", 0o644, "mode 644"),
            ("0123456789abcde\n", 0o600, "16 to 1024"),
            (&"x".repeat(2000), 0o600, "16 to 1024"),
        ] {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = token(&file).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        std::fs::write(&file, " 0123456789abcdef \n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(token(&file).unwrap(), b"0123456789abcdef");
    }

    #[test]
    fn near_is_this_node_only() {
        for (peer, near) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
            ("[fd00::1]:1", false),
        ] {
            assert_eq!(is_near(peer.parse().unwrap()), near, "{peer}");
        }
    }
}
