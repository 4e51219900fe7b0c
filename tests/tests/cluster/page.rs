//! What an administrator does and sees with a real store: acting through the web page, and `baton doctor`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

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
