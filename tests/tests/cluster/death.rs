//! A node dies.

use super::*;

#[test]
fn a_dead_node_is_replaced() -> Result<()> {
    let mut cluster = Cluster::start("death", two_servers())?;
    all_to(&cluster, "n1")?;
    quiet(&cluster, Duration::from_millis(500))?;
    let judge = cluster.judge()?;
    let _dark = cluster.power_off("n1")?;
    for address in ["10.0.0.10", "fd00:10::10"] {
        cluster.wait_held(ip(address), |node| node == "n2")?;
    }
    cluster.wait_held(ip("10.0.0.11"), |node| node == "n3")?;
    never_two(judge)
}
