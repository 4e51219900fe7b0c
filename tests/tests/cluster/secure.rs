//! etcd with TLS, client certificates and passwords; members of it that hang or are gone; a history that was compacted.

use std::process::Command;

use baton_lab::etcd::{PASSWORD, Security};

use super::*;

/// An authority and one certificate by it, for all.
fn certificates() -> Result<Security> {
    let folder = tempfile::tempdir()?;
    let run = |arguments: &str| -> Result<()> {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(folder.path()).output()?;
        ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let addresses: Vec<String> = (1..=5).map(|n| format!("IP:10.99.0.{n}")).collect();
    let names = format!("subjectAltName=IP:127.0.0.1,{}\n", addresses.join(","));
    std::fs::write(folder.path().join("more"), names + "extendedKeyUsage=serverAuth,clientAuth\n")?;
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=lab -days 2"))?;
    run(&format!("req {key} -keyout me.key -out me.csr -subj /CN=node"))?;
    run("x509 -req -in me.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out me.pem -days 2 -extfile more")?;
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name));
    Ok(Security { ca: read("ca.pem")?, certificate: read("me.pem")?, key: read("me.key")? })
}

/// Every word that must not be told: the password, the key's lines, the key of the probe frames.
fn secrets(cluster: &Cluster, security: &Security) -> Result<Vec<String>> {
    let key_file = || std::fs::read_to_string("/run/baton-lab/probe.key");
    let probe_key = cluster.lab.host("n1")?.enter(key_file)??.trim().to_owned();
    ensure!(probe_key.len() == 32, "the key of the probe frames has another form: {probe_key}");
    let lines = security.key.lines().filter(|line| line.len() > 20 && !line.starts_with('-'));
    let mut secrets: Vec<String> = lines.map(str::to_owned).collect();
    ensure!(!secrets.is_empty(), "the key has no lines");
    secrets.extend([PASSWORD.to_owned(), probe_key.to_uppercase(), probe_key]);
    Ok(secrets)
}

/// Everything in the files of a folder and below.
fn contents(folder: &std::path::Path, all: &mut Vec<(String, String)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            contents(&entry.path(), all)?;
        } else if kind.is_file() {
            let text = String::from_utf8_lossy(&std::fs::read(entry.path())?).into_owned();
            all.push((entry.path().display().to_string(), text));
        }
    }
    Ok(())
}

/// No command, log, file, metric or page of a node tells one of these.
fn tells_no_secret(cluster: &Cluster, node: &str, secrets: &[String]) -> Result<()> {
    let agent = cluster.agent(node)?;
    let mut all = vec![("the log".to_owned(), agent.log()), ("the metrics".to_owned(), agent.metrics()?)];
    let commands: [&[&str]; 9] = [
        &["status", "--json"],
        &["status"],
        &["events", "--json"],
        &["events"],
        &["plan", "--json"],
        &["doctor", "--json"],
        &["check"],
        &["reload", "--dry-run"],
        &["replay", "/var/lib/baton/inputs.jsonl"],
    ];
    for arguments in commands {
        let output = agent.command(arguments)?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(said.iter().any(|said| !said.is_empty()), "baton {arguments:?} says nothing");
        all.push((format!("baton {arguments:?}"), said.concat()));
    }
    let files = agent.host().enter(|| {
        let mut all = Vec::new();
        contents("/var/lib/baton".as_ref(), &mut all).map(|()| all)
    })??;
    ensure!(files.len() > 1, "there are no files: {files:?}");
    all.extend(files);
    for (place, text) in all {
        let told = secrets.iter().find(|secret| text.contains(secret.as_str()));
        ensure!(told.is_none(), "{node}: {place} tells {told:?}");
    }
    Ok(())
}

#[test]
fn a_store_with_certificates_and_passwords_is_as_good_as_one_without() -> Result<()> {
    let mut spec = two_servers();
    let security = certificates()?;
    spec.security = Some(security.clone());
    let mut cluster = Cluster::start("secure", spec)?;
    let judge = cluster.judge()?;
    all_to(&cluster, "n1")?;
    // What a member of etcd has forgotten of who is who is asked again.
    for node in ["n1", "n2", "n3"] {
        cluster.etcd.kill(node)?;
        cluster.etcd.start_again(node)?;
        cluster.etcd.wait_healthy(LONG)?;
    }
    quiet(&cluster, Duration::from_secs(1))?;
    all_to(&cluster, "n2")?;
    let _dark = cluster.power_off("n2")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n2")?;
    }
    // Without the password nothing is to be had, and that is said.
    cluster.lab.host("n3")?.write("/run/baton-lab/tls/password", "wrong\n")?;
    let output = cluster.agent("n3")?.command(&["drain", "n3"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{:?}: {said}", output.status);
    ensure!(said.contains("authentication failed"), "{said}");
    cluster.lab.host("n3")?.write("/run/baton-lab/tls/password", &format!("{PASSWORD}\n"))?;
    let secrets = secrets(&cluster, &security)?;
    for node in ["n1", "n3"] {
        tells_no_secret(&cluster, node, &secrets)?;
    }
    never_two(judge)
}

/// The agent asks its own member first. That one hangs, or is dead, when the agent is to take over.
#[test]
fn a_local_member_of_the_store_that_hangs_or_is_gone_is_passed_over() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = Duration::from_millis(700);
    let mut cluster = Cluster::start("hangs", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    let hung = |cluster: &mut Cluster, node: &str, resume: bool| -> Result<()> {
        let member = cluster.etcd.member(node)?.as_ref();
        let member = member.ok_or_else(|| anyhow::anyhow!("no member on {node}"))?;
        let done = if resume { member.resume() } else { member.pause() };
        Ok(done?)
    };
    // It accepts connections, and answers nothing. What it was asked it does when it goes on: too late to count.
    hung(&mut cluster, "n2", false)?;
    cluster.agent_mut("n1")?.kill()?;
    for address in &ADDRESSES[..2] {
        cluster.wait_held(ip(address), |node| node == "n2")?;
    }
    cluster.wait_held(ip(ADDRESSES[2]), |node| node == "n3")?;
    hung(&mut cluster, "n2", true)?;
    cluster.agent_mut("n1")?.start_again()?;
    quiet(&cluster, Duration::from_secs(1))?;
    all_to(&cluster, "n1")?;
    cluster.etcd.kill("n3")?;
    cluster.agent_mut("n1")?.kill()?;
    cluster.wait_held(ip(ADDRESSES[2]), |node| node == "n3")?;
    cluster.wait_held(ip(ADDRESSES[0]), |node| node == "n2")?;
    never_two(judge)
}

/// While an agent and its member of the store stand still, what they have not seen is compacted away.
#[test]
fn an_agent_that_has_missed_a_compacted_history_reads_everything_again() -> Result<()> {
    let mut spec = two_servers();
    spec.grace = LONG;
    let mut cluster = Cluster::start("compacted", spec)?;
    all_to(&cluster, "n1")?;
    let judge = cluster.judge()?;
    // Without its member, which would tell it everything later, in order.
    cluster.agent_mut("n2")?.process().pause()?;
    cluster.etcd.kill("n2")?;
    cluster.etcd.wait_healthy(LONG)?; // it may have been the leader
    let put = |key: &str, value: &str| -> Result<u64> {
        let output = cluster.etcd.ctl(&["put", "-w", "json", &format!("/baton/lab/{key}"), value])?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(answer["header"]["revision"].as_u64().unwrap_or_default())
    };
    put("drain/n3", "1")?;
    for _ in 0..50 {
        put("drain/nobody", "1")?;
    }
    let revision = put("move/homes", &wanted("n2"))?;
    let done = cluster.etcd.ctl(&["compact", &revision.to_string()])?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    cluster.etcd.start_again("n2")?;
    cluster.agent_mut("n2")?.process().resume()?;
    // It learns that it is to have this one,
    cluster.wait_held(ip(ADDRESSES[2]), |node| node == "n2")?;
    // and that n3 is drained: when n1 goes, it takes what is left.
    let draining = |status: serde_json::Value| {
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().any(|n| n["name"] == "n3" && n["state"] == "draining")
    };
    wait_until("n2 to know that n3 is drained", LONG, || {
        cluster.agent("n2").and_then(|agent| agent.status()).is_ok_and(draining)
    })?;
    let _dark = cluster.lab.lose_host("n1")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n2")?;
    }
    never_two(judge)
}
