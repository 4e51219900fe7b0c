//! What an administrator does and sees with a real store: acting through the web page, and `baton doctor`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use anyhow::Context;
use baton_lab::agent::CONFIG_FILE;
use serde_json::Value;

use super::*;

const TOKEN: &str = "correct-horse-battery";
const TOKEN_FILE: &str = "/run/baton-lab/token";

/// Asks the page of the second node from a node for an action; returns status and words.
fn act(cluster: &Cluster, from: &str, to: &str, token: &str, action: &str) -> Result<(u16, String)> {
    let to: SocketAddr = format!("{to}:9477").parse()?;
    let mut stream = cluster.lab.host(from)?.open("connect to the page", || {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(LONG))?;
        Ok(stream)
    })?;
    let head = format!("POST /action HTTP/1.0\r\nHost: {to}\r\nAuthorization: Bearer {token}\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{action}", action.len()).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, words) = answer.split_once("\r\n\r\n").context("an answer")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("a status")?;
    Ok((status, words.to_owned()))
}

/// What `baton doctor` finds on a node, and its exit status.
fn doctor(cluster: &Cluster, node: &str) -> Result<(Vec<Value>, Option<i32>)> {
    let output = cluster.agent(node)?.command(&["doctor", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((report["findings"].as_array().cloned().unwrap_or_default(), output.status.code()))
}

fn found(findings: &[Value], place: &str, level: &str, words: &str) -> Result<()> {
    let is = |f: &&Value| {
        f["where"] == place && f["level"] == level && f["what"].as_str().is_some_and(|w| w.contains(words))
    };
    ensure!(findings.iter().any(|f| is(&f)), "no {level} of {place} with \"{words}\" in {findings:#?}");
    Ok(())
}

#[test]
fn the_page_moves_for_who_has_the_token_and_doctor_finds_a_dead_member() -> Result<()> {
    let mut cluster = Cluster::start("page", two_servers())?;
    all_to(&cluster, "n1")?;
    let host = cluster.lab.host("n2")?;
    let text = host.enter(|| std::fs::read_to_string(CONFIG_FILE))??;
    let telemetry = format!("\n[telemetry]\nlisten = \"0.0.0.0:9477\"\ntoken_file = {TOKEN_FILE:?}\n");
    host.write(CONFIG_FILE, &(text + &telemetry))?;
    host.write_secret(TOKEN_FILE, TOKEN)?;
    cluster.agent_mut("n2")?.start_again()?;
    let judge = cluster.judge()?;
    wait_until("the page", LONG, || {
        act(&cluster, "n2", "127.0.0.1", TOKEN, "{\"check\":{}}").is_ok_and(|(status, _)| status == 204)
    })?;
    let to_n3 = "{\"move\":{\"server\":\"homes\",\"to\":\"n3\"}}";
    // Neither with a wrong token, nor over the network, whatever the token.
    ensure!(act(&cluster, "n2", "127.0.0.1", "correct-horse-batterx", to_n3)?.0 == 401);
    let (status, words) = act(&cluster, "n1", "10.99.0.2", TOKEN, to_n3)?;
    ensure!(status == 403 && words.contains("unencrypted"), "{status} {words}");
    quiet(&cluster, Duration::from_millis(500))?;
    let (status, words) = act(&cluster, "n2", "127.0.0.1", TOKEN, to_n3)?;
    ensure!((status, words.as_str()) == (200, "homes is on n3"), "{status} {words}");
    cluster.wait_held(ip(ADDRESSES[2]), |node| node == "n3")?;
    let (status, words) = act(&cluster, "n2", "127.0.0.1", TOKEN, "{\"drain\":{\"node\":\"n9\"}}")?;
    ensure!(status == 409 && words.contains("there is no node \"n9\""), "{status} {words}");
    let (status, words) = act(&cluster, "n2", "127.0.0.1", TOKEN, "{\"drain\":{\"node\":\"n1\"}}")?;
    ensure!((status, words.as_str()) == (200, "n1 is drained"), "{status} {words}");
    for address in &ADDRESSES[..2] {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    // A node that is well, and then without one member of its store.
    let (findings, status) = doctor(&cluster, "n2")?;
    ensure!(status == Some(0), "{findings:#?}");
    found(&findings, "store", "ok", "a member on this node is asked first")?;
    found(&findings, "store", "ok", "of the definitions fits this node")?;
    found(&findings, "store", "ok", "http://10.99.0.3:2379 answers: etcd 3.")?;
    found(&findings, "probe key", "note", "its fingerprint is")?;
    cluster.etcd.kill("n3")?;
    let (findings, status) = doctor(&cluster, "n2")?;
    ensure!(status == Some(1), "{findings:#?}");
    found(&findings, "store", "problem", "http://10.99.0.3:2379 does not answer")?;
    never_two(judge)
}

const PEOPLE: &str = "/run/baton-lab/people";

/// An authority, a certificate for the page and one for somebody, in a folder of the second node.
fn certificates(cluster: &Cluster) -> Result<()> {
    let host = cluster.lab.host("n2")?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let openssl = |arguments: String| -> Result<()> {
        let output = host.run("openssl", arguments.split(' '))?;
        ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let more = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
    host.write(&format!("{PEOPLE}/more"), more)?;
    openssl(format!("req -x509 {key} -keyout {PEOPLE}/ca.key -out {PEOPLE}/ca.pem -subj /CN=lab -days 2"))?;
    for name in ["page", "me"] {
        openssl(format!("req {key} -keyout {PEOPLE}/{name}.key -out {PEOPLE}/{name}.csr -subj /CN={name}"))?;
        let by = format!("-CA {PEOPLE}/ca.pem -CAkey {PEOPLE}/ca.key -CAcreateserial");
        openssl(format!(
            "x509 -req -in {PEOPLE}/{name}.csr {by} -out {PEOPLE}/{name}.pem -days 2 -extfile {PEOPLE}/more"
        ))?;
    }
    Ok(())
}

/// What the page of the second node answers by TLS, to who shows these.
fn ask_by_tls(cluster: &Cluster, who: &str, request: &str) -> Result<String> {
    let host = cluster.lab.host("n2")?;
    host.write("/run/baton-lab/request", request)?;
    // It ends when the page does.
    let asks = format!(
        "timeout 60 openssl s_client -quiet -verify_return_error -CAfile {PEOPLE}/ca.pem -connect 127.0.0.1:9477 {who} \
         < /run/baton-lab/request"
    );
    let output = host.run("sh", ["-c", &asks])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Takes one request on the second node, as a collector of traces does, and hands it over.
fn collector(cluster: &Cluster) -> Result<mpsc::Receiver<Vec<u8>>> {
    let host = cluster.lab.host("n2")?;
    let listener = host.open("a collector", || TcpListener::bind("127.0.0.1:4318"))?;
    let (tell, told) = mpsc::channel();
    let take = move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LONG))?;
        let (mut request, mut part) = (Vec::new(), [0; 4096]);
        loop {
            let number = stream.read(&mut part)?;
            request.extend_from_slice(&part[..number]);
            let text = String::from_utf8_lossy(&request).to_lowercase();
            let length = |head: &str| {
                head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok())
            };
            let head = request.windows(4).position(|w| w == b"\r\n\r\n");
            let whole = head.and_then(|head| Some(head + 4 + length(&text)?));
            if number == 0 || whole.is_some_and(|whole| request.len() >= whole) {
                break;
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        let _ = tell.send(request); // the test may have failed
        Ok(())
    };
    std::thread::spawn(take);
    Ok(told)
}

/// An agent that has given up its rights reads the files, speaks TLS, acts for who shows a certificate, and sends a trace of it.
#[test]
fn the_page_by_tls_moves_for_who_shows_a_certificate() -> Result<()> {
    let cluster = Cluster::start("page-tls", two_servers())?;
    all_to(&cluster, "n1")?;
    certificates(&cluster)?;
    let host = cluster.lab.host("n2")?;
    let text = host.enter(|| std::fs::read_to_string(CONFIG_FILE))??;
    let telemetry = format!(
        "\n[telemetry]\ntls_certificate = \"{PEOPLE}/page.pem\"\ntls_key = \"{PEOPLE}/page.key\"\nclient_ca = \"{PEOPLE}/ca.pem\"\notlp = \"http://127.0.0.1:4318\"\n"
    );
    host.write(CONFIG_FILE, &(text + &telemetry))?;
    let reloaded = cluster.agent("n2")?.command(&["reload"])?;
    ensure!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    let judge = cluster.judge()?;
    let traces = collector(&cluster)?;
    wait_until("the page", LONG, || {
        ask_by_tls(&cluster, "", "GET /status.json HTTP/1.0\r\n\r\n").is_ok_and(|a| a.contains("projects"))
    })?;
    let action = "{\"move\":{\"server\":\"homes\",\"to\":\"n2\"}}";
    let request = format!(
        "POST /action HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{action}",
        action.len()
    );
    let answer = ask_by_tls(&cluster, "", &request)?;
    ensure!(answer.starts_with("HTTP/1.0 403"), "{answer}");
    quiet(&cluster, Duration::from_millis(500))?;
    let mine = format!("-cert {PEOPLE}/me.pem -key {PEOPLE}/me.key");
    let answer = ask_by_tls(&cluster, &mine, &request)?;
    ensure!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("homes is on n2"), "{answer}");
    cluster.wait_held(ip(ADDRESSES[2]), |node| node == "n2")?;
    let trace = traces.recv_timeout(LONG)?;
    let text = String::from_utf8_lossy(&trace);
    ensure!(text.starts_with("POST /v1/traces HTTP/1.1"), "{text}");
    for part in ["move", "homes", "administrator", "announced", "n1", "n2"] {
        ensure!(text.contains(part), "no {part} in {text}");
    }
    wait_until("the trace to be counted", LONG, || {
        let metrics = ask_by_tls(&cluster, "", "GET /metrics HTTP/1.0\r\n\r\n").unwrap_or_default();
        let sent = metrics.lines().find_map(|l| l.strip_prefix("baton_otlp_spans_total{result=\"sent\"} "));
        sent.is_some_and(|sent| sent != "0")
    })?;
    let log = cluster.agent("n2")?.log();
    ensure!(!log.contains("refused, the last of them"), "a system call was refused: {log}");
    let (findings, _) = doctor(&cluster, "n2")?;
    found(&findings, "web page", "warning", "page.pem expires in 1 days")?;
    never_two(judge)
}
