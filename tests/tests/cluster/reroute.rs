//! A server that may not move is reached by way of a peer where its node has lost its ports.

use std::net::SocketAddr;

use baton_lab::{Echo, Probe};

use super::*;

const PORT: u16 = 7;
const EVERY: Duration = Duration::from_millis(5);

/// One server that stays on its node, and is answered for by others where that has lost its ports.
fn pinned() -> ClusterSpec {
    ClusterSpec::new().server(
        "pinned",
        &["10.0.0.10/24", "fd00:10::10/64"],
        "migrate = false\nreroute = true\npreferred_nodes = [\"n1\"]",
    )
}

struct Served {
    cluster: Cluster,
    _echoes: Vec<Echo>,
    probes: Vec<Probe>,
}

/// The cluster, with clients that ask both addresses all the time.
fn start(name: &str) -> Result<Served> {
    start_with(name, pinned())
}

fn start_with(name: &str, spec: ClusterSpec) -> Result<Served> {
    let cluster = Cluster::start(name, spec)?;
    cluster.done("n1", &["move", "pinned", "--to", "n1"])?;
    let (mut echoes, mut probes) = (Vec::new(), Vec::new());
    for address in ["10.0.0.10", "fd00:10::10"] {
        cluster.wait_held(ip(address), |node| node == "n1")?;
        let socket = SocketAddr::new(ip(address), PORT);
        // On the owner only: whoever else took the packets in would not answer.
        echoes.push(Echo::start(cluster.lab.host("n1")?, socket, None)?);
        probes.push(Probe::start(cluster.lab.host("client")?, socket, EVERY, None)?);
    }
    let served = Served { cluster, _echoes: echoes, probes };
    served.answered()?;
    Ok(served)
}

impl Served {
    /// Clients are answered from now on.
    fn answered(&self) -> Result<()> {
        for probe in &self.probes {
            let after = baton_lab::clock::now();
            probe
                .wait_for_replies(20, after, LONG)
                .map_err(|e| anyhow::anyhow!("{e}{}", self.cluster.logs()))?;
        }
        Ok(())
    }

    fn cut(&self) -> Result<()> {
        for port in ["p0", "p1"] {
            self.cluster.lab.port("n1", port)?.cut()?;
        }
        Ok(())
    }

    fn restore(&self) -> Result<()> {
        for port in ["p0", "p1"] {
            self.cluster.lab.port("n1", port)?.restore()?;
        }
        Ok(())
    }

    /// Waits until another node than `n1` answers for both addresses.
    fn wait_routed(&self, wanted: impl Fn(&str) -> bool + Copy) -> Result<String> {
        let node = self.cluster.wait_held(ip("10.0.0.10"), wanted)?;
        self.cluster.wait_held(ip("fd00:10::10"), |n| n == node)?;
        Ok(node)
    }

    /// The owner is, by status on every node.
    fn wait_owner(&self, owner: &str) -> Result<()> {
        for node in ["n1", "n2", "n3"] {
            let agent = self.cluster.agent(node)?;
            let owned = || {
                let status = agent.status().unwrap_or_default();
                status["virtual_servers"][0]["owner"] == owner
            };
            wait_until("the owner to be told", LONG, owned)?;
        }
        Ok(())
    }

    /// Ends an agent and starts it again, and the same peer answers all the time.
    fn restart(&mut self, node: &str, router: &str) -> Result<()> {
        self.cluster.agent_mut(node)?.kill()?;
        self.answered()?;
        self.cluster.agent_mut(node)?.start_again()?;
        let agent = self.cluster.agent(node)?;
        wait_until("the agent to have a lease", LONG, || {
            agent.status().is_ok_and(|s| s["quorum"] == true && s["store"] == true)
        })?;
        self.answered()?;
        self.wait_routed(|node| node == router)?;
        Ok(())
    }
}

#[test]
fn a_peer_routes_to_a_node_without_ports_and_stops_when_it_has_them_back() -> Result<()> {
    let served = start("reroute")?;
    let judge = served.cluster.judge()?;
    served.cut()?;
    let router = served.wait_routed(|node| node != "n1")?;
    served.answered()?;
    served.wait_owner("n1")?;
    let status = served.cluster.agent("n1")?.status()?;
    ensure!(status["virtual_servers"][0]["state"] == "serving", "{status}");
    ensure!(status["virtual_servers"][0]["addresses"][0]["via"] == router.as_str(), "{status}");
    served.restore()?;
    served.wait_routed(|node| node == "n1")?;
    served.answered()?;
    for node in ["n2", "n3"] {
        for address in ["10.0.0.10", "fd00:10::10"] {
            wait_unconfigured(&served.cluster, node, ip(address))?;
        }
    }
    never_two(judge)
}

/// The ports keep their carrier, and nothing comes through any more.
#[test]
fn a_node_whose_ports_are_silent_is_reached_by_way_of_a_peer() -> Result<()> {
    let served = start("reroute-silent")?;
    let judge = served.cluster.judge()?;
    let mut holes = Vec::new();
    for port in ["p0", "p1"] {
        holes.extend(served.cluster.lab.port("n1", port)?.lose_both()?);
    }
    served.wait_routed(|node| node != "n1")?;
    served.answered()?;
    drop(holes);
    served.wait_routed(|node| node == "n1")?;
    served.answered()?;
    never_two(judge)
}

#[test]
fn restarted_agents_go_on_routing() -> Result<()> {
    let mut spec = pinned();
    spec.grace = Duration::from_secs(20); // a test must not depend on how fast a busy machine starts a program
    let mut served = start_with("reroute-restart", spec)?;
    let judge = served.cluster.judge()?;
    served.cut()?;
    let router = served.wait_routed(|node| node != "n1")?;
    served.answered()?;
    served.restart(&router, &router)?;
    served.restart("n1", &router)?;
    served.restore()?;
    served.wait_routed(|node| node == "n1")?;
    served.answered()?;
    never_two(judge)
}

#[test]
fn a_dead_router_is_replaced_and_a_dead_owner_is_not() -> Result<()> {
    let mut served = start("reroute-death")?;
    let judge = served.cluster.judge()?;
    served.cut()?;
    let router = served.wait_routed(|node| node != "n1")?;
    served.answered()?;
    let dark = served.cluster.power_off(&router)?;
    let second = served.wait_routed(|node| node != "n1" && node != router)?;
    served.answered()?;
    drop(dark);
    served.cluster.etcd.start_again(&router)?;
    served.cluster.agent_mut(&router)?.start_again()?;
    served.cluster.etcd.wait_healthy(LONG)?;
    served.wait_routed(|node| node == second)?;
    // It stays with its node: when that dies the router stops too.
    let dark = served.cluster.lab.lose_host("n1")?;
    for address in ["10.0.0.10", "fd00:10::10"] {
        wait_unserved(&served.cluster, ip(address))?;
        wait_unconfigured(&served.cluster, &second, ip(address))?;
    }
    drop(dark);
    served.wait_routed(|node| node != "n1")?;
    served.answered()?;
    served.restore()?;
    served.wait_routed(|node| node == "n1")?;
    served.answered()?;
    never_two(judge)
}

/// Nothing of what the reroute needed is left on any node.
#[test]
fn a_reroute_leaves_nothing_behind() -> Result<()> {
    let served = start("reroute-traces")?;
    served.cut()?;
    let router = served.wait_routed(|node| node != "n1")?;
    served.answered()?;
    let marked = |node: &str| -> Result<usize> {
        let said = served.cluster.lab.host(node)?.run("ip", ["neigh", "show", "nud", "permanent"])?;
        Ok(String::from_utf8_lossy(&said.stdout).lines().filter(|l| l.contains("proto 98")).count())
    };
    ensure!(marked("n1")? == 2, "a next hop for each family on the owner: {}", marked("n1")?);
    served.restore()?;
    served.wait_routed(|node| node == "n1")?;
    served.answered()?;
    wait_until("the next hops to be removed", LONG, || marked("n1").is_ok_and(|n| n == 0))?;
    let routes =
        served.cluster.lab.host("n1")?.run("ip", ["route", "show", "table", "all", "proto", "98"])?;
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    ensure!(!routes.contains("169.254.98."), "{routes}");
    served.cluster.agent(&router)?.wait_event("routing_over", LONG, |e| e["server"] == "pinned")?;
    served.cluster.agent("n1")?.wait_event("reroute_over", LONG, |e| e["server"] == "pinned")?;
    Ok(())
}

#[test]
fn where_the_policy_is_off_nobody_answers() -> Result<()> {
    let spec =
        ClusterSpec::new().server("pinned", &["10.0.0.10/24"], "migrate = false\npreferred_nodes = [\"n1\"]");
    let cluster = Cluster::start("reroute-off", spec)?;
    cluster.done("n1", &["move", "pinned", "--to", "n1"])?;
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n1")?;
    for port in ["p0", "p1"] {
        cluster.lab.port("n1", port)?.cut()?;
    }
    wait_unserved(&cluster, ip("10.0.0.10"))?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(cluster.holders(ip("10.0.0.10"))?.is_empty(), "somebody answers");
    Ok(())
}
