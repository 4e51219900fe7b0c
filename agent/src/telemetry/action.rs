//! What the web page may ask for beside showing: moving, draining, resuming, confirming that a node is off.
//!
//! `POST /action` takes one [`Action`] as JSON with `Authorization: Bearer TOKEN`, the token being what the file
//! `token_file` in `[telemetry]` holds, which only root may read. It is not in a cookie, so no other page can make a browser send
//! it. Without TLS only who comes from this node itself is answered: through an SSH tunnel, or a proxy with TLS that runs here.
//!
//! Who shows a certificate that the authority in `client_ca` has signed needs no token. A browser shows it for whatever page asks, so
//! that what is asked must be JSON by its header, which only this page can make a browser send, and must come from here if it says
//! where it comes from. Without `token_file` and `client_ca` there are no actions.

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

use super::tls::Peer;
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
    token_file: Option<PathBuf>,
    act: Arc<Act>,
    /// One action at a time.
    acting: Arc<Semaphore>,
    /// One wrong token at a time.
    guessing: Arc<Semaphore>,
}

impl Actions {
    /// For who has the token in this file, which is read anew for each request, or shows a certificate.
    pub fn new(token_file: Option<PathBuf>, act: Arc<Act>) -> Actions {
        let (acting, guessing) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
        Actions { token_file, act, acting, guessing }
    }
}

/// What a page learns before it asks for a token.
#[derive(Serialize)]
struct May {
    /// There are actions, for whoever asks from there.
    actions: bool,
    /// The certificate that was shown is enough, without a token.
    certificate: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
}

const NOT_CONFIGURED: &str = "neither token_file nor client_ca in [telemetry] is set";
const FROM_AFAR: &str = "the token would cross the network unencrypted: set tls_certificate and tls_key in [telemetry], or ask from the node itself, through an SSH tunnel or a proxy with TLS";
const NO_CERTIFICATE: &str = "this is for who shows a client certificate by the authority in client_ca";
const FROM_ELSEWHERE: &str = "with a certificate in place of a token it must have `Content-Type: application/json`, and come from this page";

/// The routes.
pub(super) fn router(actions: Option<Actions>) -> Router {
    let may = get(may).with_state(actions.clone());
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

/// The file with the token that this one may show, if no certificate does.
fn token_file<'a>(actions: &'a Actions, peer: &Peer) -> Result<&'a PathBuf, &'static str> {
    let file = actions.token_file.as_ref().ok_or(NO_CERTIFICATE)?;
    if peer.encrypted || is_near(peer.address) { Ok(file) } else { Err(FROM_AFAR) }
}

async fn may(State(actions): State<Option<Actions>>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    let certificate = actions.is_some() && peer.certificate.is_some();
    let why = match &actions {
        None => Some(NOT_CONFIGURED),
        Some(_) if certificate => None,
        Some(actions) => token_file(actions, &peer).err(),
    };
    let may = May { actions: why.is_none(), certificate, why };
    ([(header::CACHE_CONTROL, "no-store")], Json(may)).into_response()
}

/// Was it sent by this page, or by no page at all?
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let kind = text(header::CONTENT_TYPE).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let origin = text(header::ORIGIN).map(|origin| origin.strip_prefix("https://").unwrap_or_default());
    kind.eq_ignore_ascii_case("application/json")
        && origin.is_none_or(|origin| Some(origin) == text(header::HOST) && !origin.is_empty())
}

/// Who may act, for the log; or what who may not is answered.
async fn authorise(
    actions: &Actions,
    peer: &Peer,
    headers: &HeaderMap,
) -> Result<String, (StatusCode, &'static str)> {
    if let Some(name) = &peer.certificate {
        let is_from_here = is_from_here(headers);
        let by = || format!("the certificate of {name}");
        return is_from_here.then(by).ok_or((StatusCode::FORBIDDEN, FROM_ELSEWHERE));
    }
    let file = token_file(actions, peer).map_err(|why| (StatusCode::FORBIDDEN, why))?.clone();
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
    let token = match tokio::task::spawn_blocking(move || token(&file)).await {
        Ok(Ok(token)) => token,
        Ok(Err(error)) => {
            tracing::error!("{error}; nobody may act through the page");
            let said = "the token can't be read; the agent's log says why";
            return Err((StatusCode::INTERNAL_SERVER_ERROR, said));
        }
        Err(_) => return Err((StatusCode::SERVICE_UNAVAILABLE, "the agent ends")),
    };
    if !same(&token, given.as_bytes()) {
        let _turn = actions.guessing.acquire().await;
        tokio::time::sleep(PENALTY).await;
        tracing::warn!(peer = %peer.address, "a wrong token for an action on the page");
        return Err((StatusCode::UNAUTHORIZED, "the token is wrong"));
    }
    Ok("the token".to_owned())
}

async fn act(
    State(actions): State<Actions>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let by = match authorise(&actions, &peer, &headers).await {
        Ok(by) => by,
        Err((StatusCode::UNAUTHORIZED, why)) => {
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], why).into_response();
        }
        Err(refused) => return refused.into_response(),
    };
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
    tracing::info!(peer = %peer.address, by, ?action, "asked for on the page");
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
