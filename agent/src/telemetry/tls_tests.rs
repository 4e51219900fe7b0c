use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::super::tests::published;
use super::super::{Action, Actions, Metrics, router};
use super::*;

/// A limit that no test reaches.
const LONG: Duration = Duration::from_secs(3600);
const DRAIN: &str = r#"{"drain":{"node":"fs1"}}"#;

/// Two authorities, `ca` and `other`; by the first the page's certificate, `page`, and one for people, `me`; by the second `stranger`.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for authority in ["ca", "other"] {
        let made = format!("-subj /CN={authority} -days 2 -x509 -out {authority}.pem");
        openssl(&folder, &format!("req {KEY} -keyout {authority}.key {made}"));
    }
    issue(&folder, "page", "ca");
    issue(&folder, "me", "ca");
    issue(&folder, "stranger", "other");
    folder
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn openssl(folder: &TempDir, arguments: &str) {
    let made = Command::new("openssl").args(arguments.split(' ')).current_dir(folder.path()).output();
    let made = made.expect("openssl; `make test` installs it");
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

/// A key and a certificate by this authority, in place of those that are there.
pub(crate) fn issue(folder: &TempDir, name: &str, authority: &str) {
    let more = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
    std::fs::write(folder.path().join("more"), more).expect("written");
    openssl(folder, &format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
    let by = format!("-CA {authority}.pem -CAkey {authority}.key -CAcreateserial");
    openssl(folder, &format!("x509 -req -in {name}.csr {by} -out {name}.pem -days 2 -extfile more"));
}

pub(crate) fn files(folder: &TempDir) -> TelemetryTls {
    let file = |name: &str| folder.path().join(name);
    TelemetryTls { certificate: file("page.pem"), key: file("page.key"), client_ca: Some(file("ca.pem")) }
}

/// A page that knows a token, what has been done on it, and where it is.
struct Served {
    address: SocketAddr,
    done: Arc<Mutex<Vec<Action>>>,
    server: tokio::task::JoinHandle<()>,
}

const TOKEN: &str = "0123456789abcdef";

async fn served(folder: &TempDir, limit: Duration) -> Served {
    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN).expect("written");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("set");
    let (_publisher, published) = published();
    let metrics = Arc::new(Metrics::new(published.clone()));
    let done: Arc<Mutex<Vec<Action>>> = Arc::default();
    let kept = done.clone();
    let act = move |action: &Action| {
        kept.lock().expect("whole").push(action.clone());
        Ok("done".to_owned())
    };
    let actions = Actions::new(Some(token), Arc::new(act));
    let router = router(metrics, published, folder.path().to_owned(), Some(actions));
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let address = tcp.local_addr().expect("an address");
    let material = read_tls(&files(folder)).expect("good files");
    let listener = TlsListener::with_limit(tcp, &material, limit);
    let server = tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<Peer>();
        axum::serve(listener, service).await.expect("served");
    });
    Served { address, done, server }
}

/// Connects with the certificate of this name, or none; believes the authority `ca`.
pub(crate) async fn connect(
    folder: &TempDir,
    address: SocketAddr,
    who: Option<&str>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let pem = |name: String| certificates("a", &folder.path().join(name)).expect("certificates");
    let mut roots = RootCertStore::empty();
    roots.add(pem("ca.pem".to_owned()).remove(0)).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(roots);
    let config = match who {
        Some(who) => {
            let key = PrivateKeyDer::from_pem_file(folder.path().join(format!("{who}.key"))).expect("a key");
            builder.with_client_auth_cert(pem(format!("{who}.pem")), key).expect("both")
        }
        None => builder.with_no_client_auth(),
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(Ipv4Addr::LOCALHOST);
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// The answer, or why there is none. With TLS 1.3 a client learns that it was refused when it reads.
async fn ask(folder: &TempDir, address: SocketAddr, who: Option<&str>, request: &str) -> io::Result<String> {
    let mut stream = connect(folder, address, who).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

fn post(headers: &str) -> String {
    let length = DRAIN.len();
    format!("POST /action HTTP/1.0\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{DRAIN}")
}

const JSON: &str = "Content-Type: application/json\r\n";

#[tokio::test]
async fn who_shows_a_certificate_may_act_and_who_shows_none_only_looks() {
    let folder = folder();
    let Served { address, done, server } = served(&folder, LONG).await;
    let answer = async |who, request: &str| ask(&folder, address, who, request).await.expect("an answer");
    // Whoever asks sees.
    for who in [None, Some("me")] {
        assert!(answer(who, &get("/metrics")).await.contains("baton_node_load"));
    }
    // Without a certificate there is the token, from anywhere, and nothing else.
    let may = answer(None, &get("/may.json")).await;
    assert!(may.contains(r#""actions":true,"certificate":false"#), "{may}");
    assert!(answer(None, &post(JSON)).await.starts_with("HTTP/1.0 401"));
    assert!(done.lock().expect("whole").is_empty());
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    assert!(answer(None, &post(&token)).await.starts_with("HTTP/1.0 200"));
    assert_eq!(std::mem::take(&mut *done.lock().expect("whole")).len(), 1);
    // With one no token is needed, but what another page makes a browser send is nothing.
    let may = answer(Some("me"), &get("/may.json")).await;
    assert!(may.contains(r#""actions":true,"certificate":true"#), "{may}");
    for headers in [
        "",
        "Content-Type: text/plain\r\n",
        &format!("{JSON}Origin: https://elsewhere\r\n"),
        &format!("{JSON}Origin: http://x\r\n"),
        &format!("{JSON}Origin: null\r\n"),
    ] {
        let answer = answer(Some("me"), &post(headers)).await;
        assert!(answer.starts_with("HTTP/1.0 403"), "{headers}: {answer}");
    }
    assert!(done.lock().expect("whole").is_empty());
    for headers in [JSON, &format!("{JSON}Origin: https://x\r\n")] {
        let answer = answer(Some("me"), &post(headers)).await;
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("done"), "{headers}: {answer}");
    }
    assert_eq!(done.lock().expect("whole").len(), 2);
    server.abort();
}

#[tokio::test]
async fn who_shows_another_certificate_or_speaks_no_tls_is_refused() {
    let folder = folder();
    let Served { address, done, server } = served(&folder, LONG).await;
    assert!(ask(&folder, address, Some("stranger"), &get("/")).await.is_err());
    assert!(ask(&folder, address, Some("stranger"), &post(JSON)).await.is_err());
    // Plain HTTP gets no answer that is HTTP.
    let mut plain = TcpStream::connect(address).await.expect("connected");
    plain.write_all(post(JSON).as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await; // an end or a reset
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    // All goes on.
    assert!(ask(&folder, address, Some("me"), &get("/")).await.expect("an answer").contains("200 OK"));
    assert!(done.lock().expect("whole").is_empty());
    server.abort();
}

#[tokio::test]
async fn handshakes_that_never_end_hold_up_nobody() {
    let folder = folder();
    let Served { address, server, .. } = served(&folder, LONG).await;
    let mut silent = Vec::new();
    for _ in 0..MOST + 10 {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    for _ in 0..3 {
        assert!(ask(&folder, address, None, &get("/")).await.expect("an answer").contains("200 OK"));
    }
    // The oldest has given way.
    let mut end = Vec::new();
    let _ = silent[0].read_to_end(&mut end).await; // an end or a reset
    assert!(end.is_empty(), "{end:?}");
    server.abort();
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_given_up() {
    let folder = folder();
    let Served { address, server, .. } = served(&folder, Duration::from_millis(20)).await;
    let mut silent = TcpStream::connect(address).await.expect("connected");
    let mut end = Vec::new();
    let _ = silent.read_to_end(&mut end).await; // an end or a reset
    assert!(end.is_empty(), "{end:?}");
    server.abort();
}

#[test]
fn files_that_can_t_be_used_are_refused_with_what_where_and_what_to_do() {
    let folder = folder();
    let good = files(&folder);
    let first = read_tls(&good).expect("good files");
    assert!(first == read_tls(&good).expect("good files"), "the same when read again");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("half"), "-----BEGIN CERTIFICATE-----\nMII\n").expect("written");
    std::fs::write(path("empty"), "").expect("written");
    std::fs::write(path("open.key"), std::fs::read(path("page.key")).expect("read")).expect("written");
    std::fs::set_permissions(path("open.key"), std::fs::Permissions::from_mode(0o640)).expect("set");
    std::fs::write(path("closed"), "no key").expect("written");
    std::fs::set_permissions(path("closed"), std::fs::Permissions::from_mode(0o600)).expect("set");
    let with = |certificate: &str, key: &str, authority: &str| TelemetryTls {
        certificate: path(certificate),
        key: path(key),
        client_ca: Some(path(authority)),
    };
    for (files, parts) in [
        (
            with("none", "page.key", "ca.pem"),
            ["telemetry.tls_certificate = ", "none: No such file", "must be there"],
        ),
        (
            with("empty", "page.key", "ca.pem"),
            ["telemetry.tls_certificate = ", "no certificate in it", "as PEM"],
        ),
        (with("half", "page.key", "ca.pem"), ["telemetry.tls_certificate = ", "is damaged", "as PEM"]),
        (with("page.pem", "open.key", "ca.pem"), ["`tls_key` in [telemetry]", "mode 640", "chmod 600"]),
        (with("page.pem", "closed", "ca.pem"), ["telemetry.tls_key = ", "no key in it", "as PEM"]),
        (with("page.pem", "me.key", "ca.pem"), ["me.key", "can't be used with", "the one for that key"]),
        (with("page.pem", "page.key", "empty"), ["telemetry.client_ca = ", "no certificate in it", "as PEM"]),
    ] {
        let error = read_tls(&files).err().expect("refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
    }
    issue(&folder, "page", "ca");
    assert!(first != read_tls(&good).expect("good files"), "another one when renewed");
}
