//! When a virtual server goes back to a node that it prefers, and when not.

use super::*;

/// A daily window, `from` and `to` so many hours from now, local time.
fn window(from: i32, to: i32) -> String {
    // SAFETY: both calls write to the structures that they are given, whole; all-zero ones are valid.
    let now = unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        let now = libc::time(std::ptr::null_mut());
        libc::localtime_r(&now, &mut local);
        local.tm_hour * 60 + local.tm_min
    };
    let text = |hours: i32| {
        let minute = (now + 60 * hours).rem_euclid(24 * 60);
        format!("{:02}:{:02}", minute / 60, minute % 60)
    };
    format!("{}-{}", text(from), text(to))
}

#[test]
fn what_may_go_back_in_a_window_goes_back_in_it_and_not_outside() -> Result<()> {
    let policy = |window: String| format!("preferred_nodes = [\"n1\"]\nfailback = {window:?}");
    let spec = ClusterSpec::new().server("inside", &["10.0.0.10/24"], &policy(window(-3, 3))).server(
        "outside",
        &["10.0.0.11/24"],
        &policy(window(6, 10)),
    );
    let cluster = Cluster::start("window", spec)?;
    cluster.done("n1", &["drain", "n1"])?;
    let judge = cluster.judge()?;
    cluster.wait_held(ip("10.0.0.10"), |node| node != "n1")?;
    let outside = cluster.wait_held(ip("10.0.0.11"), |node| node != "n1")?;
    cluster.done("n1", &["resume", "n1"])?;
    cluster.wait_held(ip("10.0.0.10"), |node| node == "n1")?;
    std::thread::sleep(Duration::from_secs(3));
    cluster.wait_held(ip("10.0.0.11"), |node| node == outside)?;
    let moved = |e: &serde_json::Value| e["server"] == "inside" && e["reason"] == "failback";
    cluster.agent("n1")?.wait_event("taken", LONG, moved)?;
    never_two(judge)
}

/// After one failure it would be back after 10 s. After four it is not.
#[test]
fn a_node_that_flaps_does_not_drag_its_servers_to_and_fro() -> Result<()> {
    let spec = ClusterSpec::new().server(
        "projects",
        &["10.0.0.10/24"],
        "preferred_nodes = [\"n1\", \"n2\"]\nfailback = \"immediate\"",
    );
    let cluster = Cluster::start("flapping", spec)?;
    // Brought there by hand: its owner may have seen n1 start after itself.
    cluster.done("n1", &["move", "projects", "--to", "n1"])?;
    let judge = cluster.judge()?;
    let up = |cluster: &Cluster, wanted: bool| {
        wait_until("n2 to see it", LONG, || {
            let status = cluster.agent("n2").and_then(|agent| agent.status()).unwrap_or_default();
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            nodes.iter().any(|n| n["name"] == "n1" && (n["state"] == "up") == wanted)
        })
    };
    for round in 0..4 {
        // In turn as a whole, and in the clients' segment alone.
        let cut = match round % 2 {
            0 => cluster.lab.lose_host("n1")?,
            _ => {
                let holes = cluster.ports("n1").filter(|p| p.segment() == "office").map(|p| p.lose_both());
                holes.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect()
            }
        };
        if round % 2 == 0 {
            up(&cluster, false)?;
        }
        cluster.wait_held(ip("10.0.0.10"), |node| node == "n2")?;
        std::thread::sleep(Duration::from_millis(700));
        drop(cut);
        up(&cluster, true)?;
        std::thread::sleep(Duration::from_millis(700));
    }
    let since = std::time::Instant::now();
    while since.elapsed() < Duration::from_secs(14) {
        cluster.wait_held(ip("10.0.0.10"), |_| true)?;
        ensure!(cluster.holders(ip("10.0.0.10"))? != ["n1"], "it went back to a node that flaps");
        std::thread::sleep(Duration::from_millis(100));
    }
    never_two(judge)
}
