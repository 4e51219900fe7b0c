//! Load is measured, and virtual servers move by it, with and without a failure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use baton_lab::Storm;
use serde_json::Value;

use super::*;

const MS: Duration = Duration::from_millis(1);
/// Datagrams of a kilobyte; at a port of 100 Mbit/s, each one a millisecond is 8 % of it.
const LENGTH: usize = 1000;
/// Longer than the cluster rests after a move, and than a plan takes to come about.
const SEVERAL_LOOKS: Duration = Duration::from_secs(25);
const SERVERS: [(&str, &str); 4] =
    [("hot", "10.0.0.10"), ("warm", "10.0.0.11"), ("cool", "10.0.0.12"), ("cold", "10.0.0.13")];

fn spec(mode: &str, preferred: [&str; 4]) -> ClusterSpec {
    let mut spec = ClusterSpec::new();
    for ((server, address), node) in SERVERS.iter().zip(preferred) {
        let more = format!("preferred_nodes = [{node:?}]");
        spec = spec.server(server, &[&format!("{address}/24")], &more);
    }
    spec.speed_mbits = Some(100);
    spec.balance.push_str(&format!(
        "mode = {mode:?}\nhalf_life = \"2s\"\nquiet_percent = 1\nserver_cooldown = \"10s\"\n\
         cluster_cooldown = \"10s\"\n"
    ));
    spec
}

/// Brings every virtual server to its node.
fn place(cluster: &Cluster, nodes: [&str; 4]) -> Result<()> {
    for ((server, address), node) in SERVERS.iter().zip(nodes) {
        cluster.done("n1", &["move", server, "--to", node])?;
        cluster.wait_held(ip(address), |holder| holder == node)?;
    }
    Ok(())
}

/// A client sends so many kilobytes a millisecond to this virtual server.
fn load(cluster: &Cluster, server: &str, kilobytes: usize) -> Result<Storm> {
    let (_, address) = SERVERS.iter().find(|(name, _)| *name == server).expect("one of them");
    let client = cluster.client()?.host().clone();
    Ok(client.stream(SocketAddr::new(ip(address), 9), LENGTH, kilobytes, MS)?)
}

/// The moves for balance that `baton plan` asks for.
fn planned(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let plan: Value = serde_json::from_str(&cluster.done("n2", &["plan", "--json"])?)?;
    let moves = plan["moves"].as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Ok(moves.iter().map(|m| (text(&m["virtual_server"]), text(&m["to"]))).collect())
}

/// Loads of virtual servers, as a node's status has them.
fn loads(cluster: &Cluster, node: &str) -> Result<BTreeMap<String, f64>> {
    let status = cluster.agent(node)?.status()?;
    let servers = status["virtual_servers"].as_array().cloned().unwrap_or_default();
    let one = |s: &Value| Some((s["name"].as_str()?.to_owned(), s["load"].as_f64()?));
    Ok(servers.iter().filter_map(one).collect())
}

fn events(cluster: &Cluster, kind: &str) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for agent in cluster.agents.values() {
        all.extend(agent.events()?.into_iter().filter(|e| e["event"] == kind));
    }
    Ok(all)
}

/// The metric of moves for balance, of all nodes together.
fn moved(cluster: &Cluster) -> Result<f64> {
    let labels = [("kind", "move"), ("reason", "balance")];
    let one = |a: &baton_lab::Agent| Ok(a.metric("baton_failovers_total", &labels)?.unwrap_or(0.0));
    cluster.agents.values().map(one).sum()
}

/// One node has a hot and a warm virtual server: the warm one goes, as the plan says, by itself, and then there is rest.
#[test]
fn the_cluster_evens_load_out_by_itself_and_rests() -> Result<()> {
    let start = ["n1", "n1", "n2", "n3"];
    let mut cluster = Cluster::start("balance", spec("off", start))?;
    place(&cluster, start)?;
    let judge = cluster.judge()?;
    let streams = [load(&cluster, "hot", 4)?, load(&cluster, "warm", 2)?, load(&cluster, "cool", 1)?];
    // The master lets the cluster rest first: time enough for what is planned to be what is measured in the end.
    cluster.spec().balance = spec("on", start).balance;
    cluster.apply()?;
    let mut plan = Vec::new();
    let wanted = [("warm".to_owned(), "n3".to_owned())];
    wait_until("the plan", LONG, || {
        plan = planned(&cluster).unwrap_or_default();
        plan == wanted
    })
    .map_err(|e| anyhow::anyhow!("{e}: {plan:?}"))?;
    cluster.wait_held(ip("10.0.0.11"), |node| node == "n3")?;
    // Every node knows of every load.
    for node in ["n1", "n2", "n3"] {
        let close = |loads: &BTreeMap<String, f64>| {
            let between =
                |name: &str, least, most| loads.get(name).is_some_and(|l| (least..most).contains(l));
            between("hot", 0.1, 0.9) && loads["hot"] > loads["warm"] && loads["warm"] > loads["cool"]
        };
        wait_until("loads", LONG, || loads(&cluster, node).is_ok_and(|l| close(&l)))?;
    }
    quiet(&cluster, SEVERAL_LOOKS)?;
    ensure!(planned(&cluster)?.is_empty(), "there is nothing more to do");
    let told = events(&cluster, "balance")?;
    let [told] = &told[..] else { anyhow::bail!("{told:#?}") };
    ensure!(told["server"] == "warm" && told["to"] == "n3" && told["moves"] == true, "{told}");
    ensure!(told["highest_after"].as_f64() < told["highest"].as_f64(), "{told}");
    let taken = events(&cluster, "taken")?;
    let taken: Vec<&Value> = taken.iter().filter(|e| e["reason"] == "balance").collect();
    ensure!(taken.len() == 1 && taken[0]["server"] == "warm" && taken[0]["kind"] == "move", "{taken:#?}");
    ensure!(moved(&cluster)? == 1.0, "{}", moved(&cluster)?);
    drop(streams);
    never_two(judge)
}

/// The same where it is only advised.
#[test]
fn advice_is_given_and_nothing_moves() -> Result<()> {
    let start = ["n1", "n1", "n2", "n3"];
    let cluster = Cluster::start("advise", spec("advise", start))?;
    place(&cluster, start)?;
    let _streams = [load(&cluster, "hot", 4)?, load(&cluster, "warm", 2)?];
    let advised = || {
        let mut masters = cluster
            .agents
            .values()
            .filter_map(|a| a.metric("baton_balance_advised_moves", &[]).ok().flatten());
        masters.any(|n| n == 1.0)
    };
    wait_until("advice", LONG, advised)?;
    quiet(&cluster, SEVERAL_LOOKS)?;
    let told = events(&cluster, "balance")?;
    ensure!(!told.is_empty() && told.iter().all(|e| e["moves"] == false), "{told:#?}");
    let text = cluster.done("n1", &["plan"])?;
    ensure!(text.contains("Balance only advises"), "{text}");
    ensure!(moved(&cluster)? == 0.0);
    Ok(())
}

/// Of three virtual servers of a dead node most go to the node with next to nothing to do, and one does not; as
/// `baton plan --without` said.
#[test]
fn a_dead_nodes_servers_go_by_load_and_to_two_nodes() -> Result<()> {
    let start = ["n2", "n1", "n1", "n1"];
    let mut cluster = Cluster::start("load-heirs", spec("off", start))?;
    place(&cluster, start)?;
    let _streams = [load(&cluster, "hot", 5)?, load(&cluster, "warm", 1)?];
    let known = || {
        let all = loads(&cluster, "n3").unwrap_or_default();
        let load = |name| all.get(name).copied().unwrap_or(0.0);
        load("hot") > 0.1 && load("warm") > 0.02 && load("warm") < load("hot") / 2.0
    };
    wait_until("loads", LONG, known)?;
    let plan: Value = serde_json::from_str(&cluster.done("n3", &["plan", "--without", "n1", "--json"])?)?;
    let heirs: Vec<&str> =
        plan["moves"].as_array().into_iter().flatten().filter_map(|m| m["to"].as_str()).collect();
    ensure!(heirs.len() == 3 && heirs.contains(&"n2") && heirs.contains(&"n3"), "{plan}");
    let judge = cluster.judge()?;
    let _dark = cluster.power_off("n1")?;
    let mut holders = Vec::new();
    for (_, address) in &SERVERS[1..] {
        holders.push(cluster.wait_held(ip(address), |node| node != "n1")?);
    }
    let of = |node: &str| holders.iter().filter(|h| *h == node).count();
    ensure!((of("n2"), of("n3")) == (1, 2), "{holders:?}{}", cluster.logs());
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n2")?;
    never_two(judge)
}

/// What may not be together parts, and a node that may not have it is not asked.
#[test]
fn servers_that_may_not_be_together_are_kept_apart() -> Result<()> {
    let spec = ClusterSpec::new()
        .server("projects", &["10.0.0.10/24"], "preferred_nodes = [\"n1\"]\nnever_with = [\"homes\"]")
        .server("homes", &["10.0.0.11/24"], "only_on = [\"n1\", \"n2\"]");
    let mut cluster = Cluster::start("apart", spec)?;
    for (server, node) in [("projects", "n3"), ("homes", "n2"), ("projects", "n1")] {
        cluster.done("n1", &["move", server, "--to", node])?;
    }
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n1")?;
    cluster.wait_held(ip("10.0.0.11"), |node| node == "n2")?;
    let refused = cluster.done("n1", &["move", "homes", "--to", "n3"]).map_err(|e| format!("{e:?}"));
    ensure!(refused.as_ref().is_err_and(|e| e.contains("only_on")), "{refused:?}");
    let judge = cluster.judge()?;
    let _dark = cluster.power_off("n1")?;
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n3")?;
    cluster.wait_held(ip("10.0.0.11"), |node| node == "n2")?;
    never_two(judge)
}
