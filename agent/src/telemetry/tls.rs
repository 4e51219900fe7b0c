//! TLS for HTTP: version 1.3 alone, by rustls and *ring*, as towards etcd.
//!
//! Files are read when HTTP begins to be served and at every reload. Handshakes run in tasks of the slow thread, each for a limited
//! time, and a limited number at once: of more, the oldest gives way, so that who only opens connections shuts nobody out. Nobody
//! resumes a session: who shows a certificate shows it each time.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, version};
use tokio_rustls::server::TlsStream;

use crate::config::TelemetryTls;
use crate::doctor::certificate;
use crate::secrets::{self, Exposed};

/// How long a handshake may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Most handshakes at once.
const MOST: usize = 64;
/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// Why TLS can't be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("telemetry.{key} = {path}: {source}; it must be there and belong to root")]
    File {
        /// Whose.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key is not this node's alone.
    #[error(transparent)]
    Open(#[from] Exposed),
    /// A file holds something else.
    #[error("telemetry.{key} = {path}: {why}; put {wanted} there, as PEM")]
    Content {
        /// Whose.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What is to be there.
        wanted: &'static str,
    },
    /// The files don't go together.
    #[error(
        "telemetry.tls_certificate = {certificate} can't be used with tls_key = {key}: {source}; the first certificate in it must be the one \
         for that key"
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What was in the files.
#[derive(Clone)]
pub struct Material {
    read: Arc<Contents>,
    config: Arc<ServerConfig>,
}

impl PartialEq for Material {
    /// The same certificates and the same key.
    fn eq(&self, other: &Material) -> bool {
        self.read == other.read
    }
}

#[derive(PartialEq)]
struct Contents {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Option<Vec<CertificateDer<'static>>>,
}

/// Reads and checks the files; waits for the disk.
///
/// # Errors
/// A file can't be read or holds something else, others may read the key, or they don't go together.
pub fn read_tls(files: &TelemetryTls) -> Result<Material, TlsError> {
    let read = Contents {
        certificates: certificates("tls_certificate", &files.certificate)?,
        key: key(&files.key)?,
        authorities: files.client_ca.as_deref().map(|file| certificates("client_ca", file)).transpose()?,
    };
    let provider = Arc::new(ring::default_provider());
    let pair = |source| {
        let (certificate, key) = (files.certificate.clone(), files.key.clone());
        TlsError::Pair { certificate, key, source }
    };
    let verifier = match (&files.client_ca, &read.authorities) {
        (Some(file), Some(authorities)) => {
            let refused = |why: String| TlsError::Content {
                key: "client_ca",
                path: file.clone(),
                why,
                wanted: "the certificate of an authority",
            };
            let mut roots = RootCertStore::empty();
            for authority in authorities {
                roots.add(authority.clone()).map_err(|e| refused(e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            verifier.allow_unauthenticated().build().map_err(|e| refused(e.to_string()))?
        }
        _ => WebPkiClientVerifier::no_client_auth(),
    };
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&version::TLS13]).map_err(pair)?;
    let builder = builder.with_client_cert_verifier(verifier);
    let config = builder.with_single_cert(read.certificates.clone(), read.key.clone_key());
    let mut config = config.map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Material { read: Arc::new(read), config: Arc::new(config) })
}

/// A file's content, and what else is known of it.
fn bytes(key: &'static str, path: &Path) -> Result<(Vec<u8>, Metadata), TlsError> {
    let error = |source| TlsError::File { key, path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(error)?;
    Ok((bytes, metadata))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why| TlsError::Content { key, path: path.to_owned(), why, wanted: "a certificate" };
    let (pem, _) = bytes(key, path)?;
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(content("there is no certificate in it".to_owned())),
        Ok(all) => Ok(all),
        Err(e) => Err(content(format!("a certificate is damaged: {e}"))),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let (pem, metadata) = bytes("tls_key", path)?;
    secrets::guarded(path, secrets::PAGE_KEY, &metadata)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| TlsError::Content {
        key: "tls_key",
        path: path.to_owned(),
        why: match e {
            pem::Error::NoItemsFound => {
                "there is no key in it that can be used (without a password)".to_owned()
            }
            other => format!("the key is damaged: {other}"),
        },
        wanted: "the key of tls_certificate",
    })
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// From where.
    pub(super) address: SocketAddr,
    /// Nobody on the way can read what is said.
    pub(super) encrypted: bool,
    /// The name in the certificate that was shown, which is by `client_ca`.
    pub(super) certificate: Option<String>,
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Peer {
        Peer { address: *stream.remote_addr(), encrypted: false, certificate: None }
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Peer {
        let (_, session) = stream.io().get_ref();
        let shown = session.peer_certificates().and_then(|shown| shown.first());
        let certificate = shown
            .map(|der| certificate::common_name(der).unwrap_or_else(|| "nobody in particular".to_owned()));
        Peer { address: *stream.remote_addr(), encrypted: true, certificate }
    }
}

/// Connections whose handshake is done.
pub(super) struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    limit: Duration,
    /// Handshakes under way.
    shaking: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
    /// The same, the oldest first.
    order: VecDeque<AbortHandle>,
}

impl TlsListener {
    pub(super) fn new(tcp: TcpListener, material: &Material) -> TlsListener {
        TlsListener::with_limit(tcp, material, LIMIT)
    }

    /// With another limit for a handshake.
    pub(super) fn with_limit(tcp: TcpListener, material: &Material, limit: Duration) -> TlsListener {
        let acceptor = TlsAcceptor::from(material.config.clone());
        TlsListener { tcp, acceptor, limit, shaking: JoinSet::new(), order: VecDeque::new() }
    }

    fn shake(&mut self, stream: TcpStream, peer: SocketAddr) {
        self.order.retain(|handshake| !handshake.is_finished());
        if self.order.len() >= MOST
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
        }
        let shaken = timeout(self.limit, self.acceptor.accept(stream));
        let handshake = self.shaking.spawn(async move {
            match shaken.await {
                Ok(Ok(stream)) => Some((stream, peer)),
                // Whoever scans ports would fill the log.
                Ok(Err(error)) => {
                    tracing::debug!(%peer, "no TLS: {error}");
                    None
                }
                Err(_) => {
                    tracing::debug!(%peer, "no TLS: the handshake takes too long");
                    None
                }
            }
        });
        self.order.push_back(handshake);
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TlsStream<TcpStream>, SocketAddr) {
        loop {
            tokio::select! {
                Some(shaken) = self.shaking.join_next() => if let Ok(Some(ready)) = shaken {
                    return ready;
                },
                (stream, peer) = Listener::accept(&mut self.tcp) => self.shake(stream, peer),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
pub(crate) mod tests;
