//! Members come, go, and change, while everything is served.

use baton_lab::cluster::PORTS;
use baton_lab::wire::Mac;

use super::*;

/// Four nodes, the first three of which are members.
fn three_of_four(name: &str) -> Result<Cluster> {
    let mut spec = two_servers().nodes(4);
    spec.members = ["n1", "n2", "n3"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(name, spec)?;
    all_to(&cluster, "n1")?;
    Ok(cluster)
}

/// All records name the newest member list.
fn wait_final(cluster: &Cluster) -> Result<()> {
    let members = cluster.etcd.ctl(&["get", "--print-value-only", "/baton/lab/members"])?;
    let members: serde_json::Value = serde_json::from_slice(&members.stdout)?;
    for server in ["projects", "homes"] {
        cluster.wait_record(server, |r| r["members"] == members["version"] && r["released"].is_null())?;
    }
    Ok(())
}

#[test]
fn a_member_joins_serves_and_leaves_and_nothing_else_moves() -> Result<()> {
    let mut cluster = three_of_four("join")?;
    let judge = cluster.judge()?;
    cluster.spec().members.push("n4".to_owned());
    let said = cluster.apply()?;
    ensure!(said.contains("+ member n4"), "{said}");
    cluster.start_agent("n4", PORTS)?;
    wait_final(&cluster)?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n1")?;
    }
    quiet(&cluster, Duration::from_millis(500))?;
    // It can be used, and a majority of four is three.
    all_to(&cluster, "n4")?;
    // What it serves keeps it from leaving.
    cluster.spec().members.pop();
    let refused = cluster.apply().map_err(|e| format!("{e:?}")).err().unwrap_or_default();
    ensure!(refused.contains("baton drain n4"), "{refused}");
    cluster.done("n1", &["drain", "n4"])?;
    let before = cluster.wait_all_served()?;
    ensure!(before.values().all(|node| node != "n4"), "{before:?}");
    cluster.apply()?;
    wait_final(&cluster)?;
    let after = cluster.wait_all_served()?;
    ensure!(before == after, "moved: {before:?} -> {after:?}");
    // Three members again: two of them are a majority.
    let _dark = cluster.power_off("n1")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n2" || node == "n3")?;
    }
    never_two(judge)
}

#[test]
fn two_members_at_once_are_refused() -> Result<()> {
    let mut cluster = three_of_four("two-steps")?;
    cluster.spec().members.extend(["n4", "n5"].map(str::to_owned));
    let cluster = cluster;
    let judge = cluster.judge()?;
    // All but what nodes measure.
    let defined = || -> Result<Vec<u8>> {
        let mut all = cluster.etcd.ctl(&["get", "/baton/lab/", "/baton/lab/load/"])?.stdout;
        all.extend(cluster.etcd.ctl(&["get", "/baton/lab/load0", "/baton/lab0"])?.stdout);
        Ok(all)
    };
    let before = defined()?;
    let refused = cluster.apply().map_err(|e| format!("{e:?}")).err().unwrap_or_default();
    ensure!(refused.contains("2 members would change at once"), "{refused}");
    let after = defined()?;
    ensure!(before == after, "something was written");
    quiet(&cluster, Duration::from_millis(300))?;
    never_two(judge)
}

/// The master is a member, too, and may be the one that leaves.
#[test]
fn a_master_that_leaves_is_replaced() -> Result<()> {
    let mut cluster = three_of_four("master-leaves")?;
    cluster.spec().members.push("n4".to_owned());
    cluster.apply()?;
    cluster.start_agent("n4", PORTS)?;
    wait_final(&cluster)?;
    let judge = cluster.judge()?;
    let holds = |r: &serde_json::Value, wanted: &dyn Fn(&str) -> bool| {
        r["released"].is_null() && r["node"].as_str().is_some_and(wanted)
    };
    cluster.wait_record("@master", |r| holds(r, &|_| true))?;
    let master = cluster.record("@master")?["node"].as_str().unwrap_or_default().to_owned();
    cluster.done(&master, &["drain", &master])?;
    cluster.spec().members.retain(|m| *m != master);
    let node = cluster.spec().members[0].clone();
    let text = cluster.spec().definitions();
    // Nobody may prefer a node that is no member.
    let text = text.replace(&format!("{master:?}, "), "").replace(&format!(", {master:?}"), "");
    cluster.apply_text(&node, &text, &[])?;
    cluster.wait_record("@master", |r| holds(r, &|node| node != master))?;
    wait_final(&cluster)?;
    cluster.wait_all_served()?;
    never_two(judge)
}

#[test]
fn ports_with_another_address_or_name_go_on() -> Result<()> {
    let mut cluster = Cluster::start("ports", two_servers())?;
    all_to(&cluster, "n1")?;
    // Another address while it serves.
    for (port, mac) in [("p0", Mac([2, 9, 0, 0, 0, 1])), ("p1", Mac([2, 9, 0, 0, 0, 2]))] {
        cluster.alias(mac, "n1");
        let judge = cluster.judge()?;
        let set = cluster.lab.host("n1")?.run("ip", ["link", "set", port, "address", &mac.to_string()])?;
        ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
        for address in ADDRESSES {
            cluster.wait_held(ip(address), |node| node == "n1")?;
        }
        quiet(&cluster, Duration::from_millis(500))?;
        never_two(judge)?;
    }
    let judge = cluster.judge()?;
    // The others probe the new ones: they hear the node in the segment, and what it serves is not given up.
    quiet(&cluster, Duration::from_secs(1))?;
    // Another name: the node's own file is changed, and its agent started anew.
    cluster.agent_mut("n1")?.kill()?;
    let host = cluster.lab.host("n1")?;
    for step in [["p1", "down"], ["p1", "name"], ["q1", "up"]] {
        let [port, what] = step;
        let more: &[&str] = if what == "name" { &["q1"] } else { &[] };
        let done = host.run("ip", [&["link", "set", port, what], more].concat())?;
        ensure!(done.status.success(), "{step:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let mut ports = PORTS;
    ports[1].0 = "q1";
    cluster.start_agent("n1", ports)?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n1")?;
    }
    let good = |cluster: &Cluster| -> Result<bool> {
        Ok(cluster.agent("n1")?.port_status("q1")?["state"] == "good")
    };
    wait_until("the renamed port to be good", LONG, || good(&cluster).unwrap_or(false))?;
    quiet(&cluster, Duration::from_millis(500))?;
    never_two(judge)
}

/// A reboot: nothing that the kernel knew is left, and the node comes back as another incarnation.
#[test]
fn a_node_that_comes_back_as_another_incarnation_is_used_again() -> Result<()> {
    let mut cluster = Cluster::start("reboot", two_servers())?;
    all_to(&cluster, "n1")?;
    let incarnation = |cluster: &Cluster| -> Result<u64> {
        let output = cluster.etcd.ctl(&["get", "--print-value-only", "/baton/lab/incarnation/n1"])?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    };
    let judge = cluster.judge()?;
    let before = incarnation(&cluster)?;
    let dark = cluster.power_off("n1")?;
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    let served = cluster.wait_all_served()?;
    cluster.agent("n1")?.clean()?;
    drop(dark);
    cluster.etcd.start_again("n1")?;
    cluster.agent_mut("n1")?.start_again()?;
    cluster.agent("n2")?.wait_event("started", LONG, |_| true)?;
    let renewed = || incarnation(&cluster).is_ok_and(|now| now > before);
    wait_until("a new incarnation", LONG, renewed)?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(cluster.wait_all_served()? == served, "something moved when n1 came back");
    all_to(&cluster, "n1")?;
    never_two(judge)
}
