//! `baton apply`: what is wrong changes nothing, what is only looked at changes nothing, and of two at once one counts.

use super::*;

/// Everything in the store.
fn all(cluster: &Cluster) -> Result<Vec<u8>> {
    let output = cluster.etcd.ctl(&["get", "--prefix", "/baton/lab/"])?;
    ensure!(output.status.success() && !output.stdout.is_empty(), "the store can't be read");
    Ok(output.stdout)
}

fn value(cluster: &Cluster, key: &str) -> Result<String> {
    let output = cluster.etcd.ctl(&["get", "--print-value-only", &format!("/baton/lab/{key}")])?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[test]
fn what_is_invalid_or_only_tried_changes_nothing() -> Result<()> {
    let mut cluster = Cluster::start("apply", two_servers())?;
    all_to(&cluster, "n1")?;
    quiet(&cluster, Duration::from_millis(500))?;
    let judge = cluster.judge()?;
    let good = cluster.spec().definitions();
    let before = all(&cluster)?;

    let wrong = good.replace("10.0.0.11/24", "10.7.0.11/24");
    let refused = cluster.agent("n2")?;
    cluster.lab.host("n2")?.write("/run/baton-lab/wrong.toml", &wrong)?;
    let output = refused.command(&["apply", "/run/baton-lab/wrong.toml"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(64), "{:?}: {said}", output.status);
    ensure!(said.contains("10.7.0.11"), "{said}");
    ensure!(all(&cluster)? == before, "an invalid file has changed something");

    let more = good.clone() + "\n[[virtual_server]]\nname = \"scans\"\naddresses = [\"10.0.0.12/24\"]\n";
    let said = cluster.apply_text("n2", &more, &["--dry-run"])?;
    ensure!(said.contains("+ virtual server scans") && said.contains("nothing was changed"), "{said}");
    ensure!(all(&cluster)? == before, "--dry-run has changed something");

    let said = cluster.apply_text("n3", &more, &[])?;
    ensure!(said.contains("+ virtual server scans"), "{said}");
    cluster.wait_held(ip("10.0.0.12"), |_| true)?;
    let said = cluster.apply_text("n1", &more, &[])?;
    ensure!(said.contains("nothing to do"), "{said}");
    // What was there has not moved, and a virtual server that is taken away is served no more.
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n1")?;
    }
    cluster.apply_text("n1", &good, &[])?;
    wait_unserved(&cluster, ip("10.0.0.12"))?;
    for node in ["n1", "n2", "n3"] {
        wait_unconfigured(&cluster, node, ip("10.0.0.12"))?;
    }
    for address in ADDRESSES {
        cluster.wait_held(ip(address), |node| node == "n1")?;
    }
    never_two(judge)
}

/// Whoever is told that it is done finds its own words in force, whole, until the next one.
#[test]
fn of_two_at_once_what_is_done_is_in_force_and_the_other_is_told() -> Result<()> {
    let mut cluster = Cluster::start("apply-twice", two_servers())?;
    let judge = cluster.judge()?;
    let base = cluster.spec().definitions();
    for round in 0..6 {
        let text = |who: &str| format!("{base}\n# {who} in round {round} {}\n", "x".repeat(100_000));
        let before: u64 = value(&cluster, "generation")?.parse()?;
        let apply = |node: &'static str| {
            let (cluster, text) = (&cluster, text(node));
            move || cluster.apply_text(node, &text, &[]).is_ok()
        };
        let (two, three) = std::thread::scope(|s| {
            let (two, three) = (s.spawn(apply("n2")), s.spawn(apply("n3")));
            (two.join().unwrap_or(false), three.join().unwrap_or(false))
        });
        let after: u64 = value(&cluster, "generation")?.parse()?;
        let done = u64::from(two) + u64::from(three);
        ensure!(done >= 1 && after == before + done, "{done} were done, generation {before} -> {after}");
        let stored = value(&cluster, &format!("definitions/{after:020}/000000"))?;
        let is = |node: &str| stored.trim_end() == text(node).trim_end();
        ensure!((two && is("n2")) || (three && is("n3")), "in force is what nobody was told is done");
    }
    cluster.wait_all_served()?;
    never_two(judge)
}
