//! `baton doctor` on a host with faults that were planted there.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use baton_lab::agent::CONFIG_FILE;
use baton_lab::{Cable, Lab, baton_binary};
use serde_json::Value;

use crate::common::*;

/// What it finds, and its exit status.
fn doctor(lab: &Lab) -> Result<(Vec<Value>, Option<i32>)> {
    let binary = baton_binary()?.display().to_string();
    let arguments = ["--config", CONFIG_FILE, "doctor", "--json"].map(str::to_owned);
    let output = lab.host("fs1")?.run(binary, arguments)?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| stderr(&output))?;
    Ok((report["findings"].as_array().cloned().unwrap_or_default(), output.status.code()))
}

/// The findings at this place with this level, of which one must have these words; returns what to do about it.
fn remedy(findings: &[Value], place: &str, level: &str, words: &str) -> Result<String> {
    let here = |f: &&Value| f["where"] == place && f["level"] == level;
    let found = findings.iter().filter(here).find(|f| f["what"].as_str().is_some_and(|w| w.contains(words)));
    let found = found.with_context(|| format!("no {level} of {place} with \"{words}\" in {findings:#?}"))?;
    Ok(found["remedy"].as_str().unwrap_or_default().to_owned())
}

fn absent(findings: &[Value], place: &str, level: &str) -> Result<()> {
    let found: Vec<_> = findings.iter().filter(|f| f["where"] == place && f["level"] == level).collect();
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}

#[test]
fn what_is_planted_is_found_with_and_without_an_agent_and_nothing_is_changed() -> Result<()> {
    let lab = lab("doctor", 2, Cable::EventsAtOnce)?;
    let host = lab.host("fs1")?;
    let good = config(2).server("projects", &["10.0.0.10/24", "fd00:10::10/64"]);
    // One port more than there is; and another manager of addresses.
    host.write(CONFIG_FILE, &config(3).server("projects", &["10.0.0.10/24"]).text())?;
    let folder = tempfile::tempdir()?;
    let keepalived = folder.path().join("keepalived");
    std::fs::copy("/bin/sleep", &keepalived)?;
    let mut command = Command::new(&keepalived);
    command.arg("1000");
    let other = host.spawn(command)?;
    let before = host.state()?;
    let (findings, status) = doctor(&lab)?;
    ensure!(status == Some(1), "{status:?}");
    ensure!(remedy(&findings, "port p2", "problem", "no such interface")?.contains("ip link"));
    let named = format!("keepalived runs here (process {})", other.pid());
    remedy(&findings, "other managers", "warning", &named)?;
    remedy(&findings, "agent", "note", "doesn't run")?;
    remedy(&findings, "kernel", "ok", "takes XDP and TC programs")?;
    remedy(&findings, "port p0", "ok", "veth, runs XDP programs")?;
    remedy(&findings, "settings", "note", "ipv4/conf/p0/arp_ignore = 1")?;
    remedy(&findings, "probe key", "note", "not there yet")?;
    ensure!(host.state()? == before, "the host was changed");
    drop(other);
    // With an agent that has set what it needs, and somebody who changes it.
    let agent = serve(&lab, &good)?;
    let (findings, status) = doctor(&lab)?;
    ensure!(status == Some(0), "{status:?}: {findings:#?}");
    remedy(&findings, "agent", "ok", "runs, version")?;
    remedy(&findings, "other managers", "ok", "none runs here")?;
    remedy(&findings, "settings", "ok", "as Baton needs them")?;
    remedy(&findings, "port p0", "ok", "runs the kernel programs")?;
    host.set_sysctl("net/ipv4/conf/p0/rp_filter", "1")?;
    host.set_sysctl("net/ipv4/conf/all/arp_ignore", "8")?;
    lab.port("fs1", "p1")?.cut()?;
    wait_state(&agent, "p1", "down")?;
    let (findings, status) = doctor(&lab)?;
    ensure!(status == Some(1), "{status:?}");
    remedy(&findings, "settings", "warning", "ipv4/conf/p0/rp_filter is 1, and Baton needs 2")?;
    remedy(&findings, "settings", "problem", "ipv4/conf/all/arp_ignore is 8")?;
    remedy(&findings, "port p1", "problem", "no carrier")?;
    remedy(&findings, "segment office", "warning", "one port left")?;
    absent(&findings, "port p0", "problem")
}

#[test]
fn a_store_that_does_not_answer_and_an_open_key_are_found() -> Result<()> {
    let lab = lab("doctorstore", 2, Cable::EventsAtOnce)?;
    let host = lab.host("fs1")?;
    let text = "[node]\nname = \"fs1\"\n[[port]]\ninterface = \"p0\"\nsegment = \"office\"\n\
        [store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\", \"http://10.99.9.9:2379\"]\n\
        [cluster]\nname = \"nas\"\nkey_file = \"/run/baton-lab/probe.key\"\n";
    host.write(CONFIG_FILE, text)?;
    host.write("/run/baton-lab/probe.key", "00112233445566778899aabbccddeeff\n")?;
    host.run("chmod", ["644", "/run/baton-lab/probe.key"])?;
    let (findings, status) = doctor(&lab)?;
    ensure!(status == Some(1), "{status:?}");
    for url in ["http://127.0.0.1:2379", "http://10.99.9.9:2379"] {
        ensure!(remedy(&findings, "store", "problem", url)?.contains("etcdctl"));
    }
    ensure!(remedy(&findings, "probe key", "problem", "mode 644").is_ok());
    host.run("chmod", ["600", "/run/baton-lab/probe.key"])?;
    let (findings, _) = doctor(&lab)?;
    ensure!(remedy(&findings, "probe key", "note", "fingerprint")?.contains("--key-fingerprint"));
    Ok(())
}
