use baton_core::config::{BalanceMode, Failback, PortConfig};

use super::super::texts::{cluster_errors as errors, good_cluster};
use super::*;

const GOOD: &str = r#"[cluster]
members = ["fs2", "fs1", "fs3"]

[timing]
probe_interval = "2ms"
lease = "10ms"

[[segment]]
name = "office"
subnets = ["10.0.0.0/24"]

[[virtual_server]]
name = "projects"
addresses = ["10.0.0.10/24"]
preferred_nodes = ["fs1"]
failback = "immediate"
"#;

fn good(text: &str) -> Definitions {
    good_cluster(text).0
}

#[test]
fn a_cluster_file_is_read() {
    let d = good(GOOD);
    assert_eq!(d.members, ["fs2", "fs1", "fs3"]);
    assert_eq!((d.lease, d.slack), (Duration::from_millis(10), Duration::from_millis(1)));
    assert_eq!(d.timing.probe_interval, Duration::from_millis(2));
    assert_eq!(d.servers[0].failback, Failback::Immediate);
    assert_eq!(d.servers[0].preferred_nodes, ["fs1"]);
}

#[test]
fn what_is_wrong_is_said_once_and_where() {
    let cases = [
        ("members = [\"fs2\", \"fs1\", \"fs3\"]", "", "no `members` in [cluster]"),
        (
            "members = [\"fs2\", \"fs1\", \"fs3\"]",
            "members = [\"fs1\", \"fs2\"]",
            "two nodes without a third vote",
        ),
        (
            "members = [\"fs2\", \"fs1\", \"fs3\"]",
            "members = [\"fs1\", \"fs1\", \"fs3\"]",
            "two members \"fs1\"",
        ),
        ("[\"fs1\"]", "[\"fs9\"]", "preferred node \"fs9\" is no member"),
        ("[cluster]", "[node]\nname = \"fs1\"\n[cluster]", "`node` belongs to a node, not to the cluster"),
        ("[timing]", "[store]\nkind = \"file\"\n[timing]", "`store` belongs to a node"),
        ("members", "key_file = \"/k\"\nmembers", "`key_file` in [cluster] belongs to a node"),
        ("\"immediate\"", "\"soon\"", "`failback` in [[virtual_server]] is \"soon\""),
        ("lease = \"10ms\"", "lease = \"5ms\"\nslack = \"1us\"", "`slack`"),
    ];
    for (from, to, expected) in cases {
        let found = errors(&GOOD.replacen(from, to, 1));
        assert!(found.len() == 1 && found[0].contains(expected), "{to}: {found:?}");
    }
}

#[test]
fn a_reroute_without_a_way_is_doubted() {
    let text = GOOD.replace("preferred_nodes", "reroute = true\npreferred_nodes");
    let (definitions, warnings) = Definitions::parse(&text, "cluster.toml").expect("good");
    assert!(definitions.servers[0].reroute && !good(GOOD).servers[0].reroute);
    let warnings = warnings.to_string();
    assert!(warnings.contains("cluster.toml:13:9: `reroute` does nothing"), "{warnings}");
    let text = text + "\n[[segment]]\nname = \"back\"\nsubnets = [\"10.99.0.0/24\"]\n";
    let (_, warnings) = Definitions::parse(&text, "cluster.toml").expect("good");
    assert!(!warnings.to_string().contains("reroute"), "{warnings}");
}

#[test]
fn two_nodes_may_be_had_by_saying_so() {
    let text = GOOD.replace(
        "members = [\"fs2\", \"fs1\", \"fs3\"]",
        "members = [\"fs1\", \"fs2\"]\ntwo_nodes_never_take_over = true",
    );
    assert_eq!(good(&text).members.len(), 2);
}

#[test]
fn members_keep_their_slots_and_a_new_list_is_a_new_version() {
    let first = good(GOOD).member_list(None);
    let slots = |m: &Members| m.nodes.iter().map(|n| (n.name.clone(), n.slot)).collect::<Vec<_>>();
    assert_eq!(first.version, 1);
    assert_eq!(slots(&first), [("fs1".into(), 0), ("fs2".into(), 1), ("fs3".into(), 2)]);
    assert_eq!(good(GOOD).member_list(Some(&first)), first);

    let without = good(&GOOD.replace("\"fs2\", \"fs1\", \"fs3\"", "\"fs1\", \"fs3\", \"fs4\""))
        .member_list(Some(&first));
    assert_eq!(without.version, 2);
    assert_eq!(slots(&without), [("fs1".into(), 0), ("fs3".into(), 2), ("fs4".into(), 1)]);

    let slower = good(&GOOD.replace("10ms", "20ms")).member_list(Some(&first));
    assert_eq!((slower.version, slots(&slower)), (2, slots(&first)));

    // What was counted in the version before is judged in this one only where any two majorities of them meet, by the same times.
    let two = "[\"fs1\", \"fs3\"]\ntwo_nodes_never_take_over = true";
    let fewer = good(&GOOD.replace("[\"fs2\", \"fs1\", \"fs3\"]", two));
    let one_less = fewer.member_list(Some(&first));
    assert_eq!((one_less.version, &one_less.before), (2, &first.nodes));
    assert_eq!(one_less.departed().map(|m| m.name.as_str()), Some("fs2"));
    assert!(one_less.judges(2) && one_less.judges(1) && !one_less.judges(3));
    assert_eq!(fewer.member_list(Some(&one_less)), one_less);
    let back = good(GOOD).member_list(Some(&one_less));
    assert!(back.judges(3) && back.judges(2) && !back.judges(1) && back.departed().is_none());
    for other in [&first, &without, &slower] {
        assert!(other.before.is_empty() && !other.judges(other.version - 1));
    }
}

#[test]
fn a_node_must_be_a_member_and_its_segments_known() {
    let node = |name: &str, segment: &str| Config {
        ports: vec![PortConfig { speed_mbits: Some(2500), ..PortConfig::new("eth0", segment) }],
        capacity_percent: 250,
        ..Config::new(name)
    };
    let d = good(&(GOOD.to_owned() + "[balance]\nmode = \"on\"\n"));
    let config = d.node_config(&node("fs1", "office")).expect("fits");
    assert_eq!((&config.servers, &config.segments), (&d.servers, &d.segments));
    assert_eq!((config.balance.mode, &config.balance), (BalanceMode::On, &d.balance));
    assert_eq!((config.capacity_percent, config.ports[0].speed_mbits), (250, Some(2500)));
    assert!(d.node_config(&node("fs9", "office")).expect_err("no member").to_string().contains("no member"));
    let error = d.node_config(&node("fs1", "lab")).expect_err("no segment").to_string();
    assert!(error.contains("eth0") && error.contains("\"lab\" is not defined"), "{error}");
}

#[test]
fn the_difference_names_what_changes() {
    let old = good(GOOD);
    assert!(old.difference(Some(&old)).is_empty());
    let text = GOOD.replace("lease = \"10ms\"", "lease = \"20ms\"").replace("10.0.0.10/24", "10.0.0.11/24");
    let new = good(&(text + "\n[[virtual_server]]\nname = \"homes\"\naddresses = [\"10.0.0.12/24\"]\n"));
    let lines = new.difference(Some(&old));
    assert_eq!(
        lines,
        [
            "timing: lease 10ms -> 20ms",
            "timing: slack 1ms -> 2ms",
            "~ virtual server projects: - address 10.0.0.10/24, + address 10.0.0.11/24",
            "+ virtual server homes"
        ]
    );
    assert_eq!(old.difference(None).len(), 3 + 1 + 1);
}
