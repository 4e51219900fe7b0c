use std::time::Duration;

use baton_core::config::{Balance, BalanceMode};

use super::super::texts::{
    self, CLUSTER_WITH_TWO as CLUSTER, NODE_WITH_TWO as NODE, cluster_errors, errors, good,
    good_cluster as cluster,
};
use super::{KEYS, values};

/// `text` with lines after its first one that is `line`.
fn after(text: &str, line: &str, lines: &str) -> String {
    let line = format!("{line}\n");
    assert!(text.contains(&line), "no line {line}");
    text.replacen(&line, &format!("{line}{lines}\n"), 1)
}

/// [`NODE`] with a section `[balance]` in lines 15 and following.
fn balanced(lines: &str) -> String {
    format!("{NODE}[balance]\n{lines}\n")
}

/// Warnings, but for that of the only port.
fn warnings(text: &str) -> Vec<String> {
    texts::warnings(&good(text).warnings)
}

#[test]
fn what_is_not_said_is_the_default() {
    let loaded = good(NODE);
    assert_eq!(loaded.core.balance, Balance::default());
    assert_eq!(good(&balanced("")).core.balance, Balance::default());
    assert_eq!((loaded.core.capacity_percent, loaded.core.ports[0].speed_mbits), (100, None));
    let server = &loaded.core.servers[0];
    assert!(server.never_with.is_empty() && server.only_on.is_empty() && server.devices.is_empty());
    assert_eq!(cluster(CLUSTER).0.balance, Balance::default());
}

/// The README and the packaged file promise these, as text.
#[test]
fn the_defaults_are_those_documented() {
    let expected = [
        ("mode", "advise"),
        ("half_life", "30s"),
        ("start_percent", "150"),
        ("stop_percent", "110"),
        ("quiet_percent", "20"),
        ("at_once", "2"),
        ("server_cooldown", "30m"),
        ("cluster_cooldown", "5m"),
        ("horizon", "10m"),
        ("packets_per_second", "1000000"),
        ("network_percent", "100"),
        ("packets_percent", "100"),
        ("cpu_percent", "100"),
        ("memory_percent", "100"),
        ("storage_percent", "100"),
    ];
    assert_eq!(values(&Balance::default()), expected.map(|(k, v)| (k, v.to_owned())));
    assert_eq!(KEYS, expected.map(|(k, _)| k));
    let (packaged, readme) = (include_str!("../../baton.toml"), include_str!("../../../README.md"));
    for (key, value) in expected {
        let quoted = if value.parse::<u32>().is_ok() { value.to_owned() } else { format!("\"{value}\"") };
        assert!(packaged.contains(&format!("\n# {key} = {quoted} ")), "baton.toml: {key} = {quoted}");
        let row = readme.lines().find(|l| l.starts_with(&format!("| `{key}` | ")));
        assert!(row.is_some_and(|r| r.contains(&format!("| {quoted} |"))), "README: {key}, {quoted}");
    }
}

const OTHER: &str = r#"mode = "on"
half_life = "1h"
start_percent = 130
stop_percent = 101
quiet_percent = 0
at_once = 1
server_cooldown = "0s"
cluster_cooldown = "7days"
horizon = "1s"
packets_per_second = 1
network_percent = 1
packets_percent = 0
cpu_percent = 1000
memory_percent = 2
storage_percent = 30
"#;

#[test]
fn every_key_is_taken() {
    let expected = Balance {
        mode: BalanceMode::On,
        half_life: Duration::from_secs(3600),
        start_percent: 130,
        stop_percent: 101,
        quiet_percent: 0,
        at_once: 1,
        server_cooldown: Duration::ZERO,
        cluster_cooldown: Duration::from_secs(7 * 86_400),
        horizon: Duration::from_secs(1),
        packets_per_second: 1,
        network_percent: 1,
        packets_percent: 0,
        cpu_percent: 1000,
        memory_percent: 2,
        storage_percent: 30,
    };
    assert_eq!(good(&balanced(OTHER)).core.balance, expected);
    assert_eq!(cluster(&format!("{CLUSTER}[balance]\n{OTHER}")).0.balance, expected);
    // What the difference shows is what is written.
    for (key, value) in values(&expected) {
        assert!(
            OTHER.contains(&format!("{key} = {value}\n"))
                || OTHER.contains(&format!("{key} = \"{value}\"\n"))
        );
    }
    for (word, mode) in [("off", BalanceMode::Off), ("advise", BalanceMode::Advise)] {
        assert_eq!(good(&balanced(&format!("mode = \"{word}\""))).core.balance.mode, mode);
    }

    let text = after(NODE, "name = \"fs1\"", "capacity_percent = 10000");
    let text = after(&text, "interface = \"eth0\"", "speed_mbits = 25000");
    let text = after(&text, "name = \"projects\"", "never_with = [\"homes\"]\nonly_on = [\"fs2\", \"fs3\"]");
    let filesystem = |n: u32| {
        format!("[[virtual_server.filesystem]]\ndevice = \"/dev/d{n}\"\nmount = \"/srv/{n}\"\ntype = \"xfs\"")
    };
    let both = filesystem(1) + "\n" + &filesystem(2);
    let core = good(&after(&text, "addresses = [\"10.0.0.10/24\"]", &both)).core;
    assert_eq!((core.capacity_percent, core.ports[0].speed_mbits), (10_000, Some(25_000)));
    let server = &core.servers[0];
    assert_eq!(
        (&server.never_with[..], &server.only_on[..]),
        (&["homes".into()][..], &["fs2".into(), "fs3".into()][..])
    );
    assert_eq!(server.devices, ["/dev/d1", "/dev/d2"]);
    assert!(core.servers[1].devices.is_empty());
}

/// Lines of `[balance]` and the only error expected.
const SINGLE: &[(&str, &str)] = &[
    ("mod = \"on\"", "16:1: unknown key in [balance]: `mod`; did you mean `mode`?"),
    ("mode = \"auto\"", "16:9: `mode` in [balance] is \"auto\"; write \"off\" or \"advise\" or \"on\""),
    ("mode = true", "16:8: `mode` in [balance] is true or false; write text in quotes"),
    (
        "half_life = 30",
        "16:13: `half_life` in [balance] is a bare number; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    ("half_life = \"999ms\"", "16:14: `half_life` in [balance] is \"999ms\"; choose a value from 1s to 1h"),
    ("half_life = \"61m\"", "16:14: `half_life` in [balance] is \"61m\"; choose a value from 1s to 1h"),
    (
        "server_cooldown = \"8days\"",
        "16:20: `server_cooldown` in [balance] is \"8days\"; choose a value from 0s to 7days",
    ),
    (
        "cluster_cooldown = \"8days\"",
        "16:21: `cluster_cooldown` in [balance] is \"8days\"; choose a value from 0s to 7days",
    ),
    ("horizon = \"0s\"", "16:12: `horizon` in [balance] is \"0s\"; choose a value from 1s to 7days"),
    ("horizon = \"8days\"", "16:12: `horizon` in [balance] is \"8days\"; choose a value from 1s to 7days"),
    (
        "stop_percent = 100",
        "16:16: `stop_percent` in [balance] is 100; write a number from 101 to 4294967295",
    ),
    (
        "start_percent = 100\nstop_percent = 200",
        "16:17: `start_percent` in [balance] is 100; write a number from 101 to 4294967295",
    ),
    (
        "start_percent = 200.5",
        "16:17: `start_percent` in [balance] is a number with a fraction; write a whole number, without quotes",
    ),
    (
        "start_percent = 120\nstop_percent = 121",
        "16:17: `start_percent` (120) is below `stop_percent` (121); raise it, or lower `stop_percent`",
    ),
    (
        "start_percent = 105",
        "16:17: `start_percent` (105) is below `stop_percent` (110); raise it, or lower `stop_percent`",
    ),
    (
        "stop_percent = 151",
        "16:16: `start_percent` (150) is below `stop_percent` (151); raise it, or lower `stop_percent`",
    ),
    ("quiet_percent = 101", "16:17: `quiet_percent` in [balance] is 101; write a number from 0 to 100"),
    ("quiet_percent = -1", "16:17: `quiet_percent` in [balance] is -1; write a number from 0 to 100"),
    ("at_once = 0", "16:11: `at_once` in [balance] is 0; write a number from 1 to 4294967295"),
    (
        "packets_per_second = 0",
        "16:22: `packets_per_second` in [balance] is 0; write a number from 1 to 4294967295",
    ),
    (
        "packets_per_second = 4294967296",
        "16:22: `packets_per_second` in [balance] is 4294967296; write a number from 1 to 4294967295",
    ),
    (
        "network_percent = 1001",
        "16:19: `network_percent` in [balance] is 1001; write a number from 0 to 1000",
    ),
    (
        "packets_percent = 1001",
        "16:19: `packets_percent` in [balance] is 1001; write a number from 0 to 1000",
    ),
    ("cpu_percent = 1001", "16:15: `cpu_percent` in [balance] is 1001; write a number from 0 to 1000"),
    ("memory_percent = 1001", "16:18: `memory_percent` in [balance] is 1001; write a number from 0 to 1000"),
    (
        "storage_percent = 1001",
        "16:19: `storage_percent` in [balance] is 1001; write a number from 0 to 1000",
    ),
    (
        "cpu_percent = \"100\"",
        "16:16: `cpu_percent` in [balance] is a text; write a whole number, without quotes",
    ),
];

#[test]
fn every_error_is_found_at_its_place() {
    for (text, expected) in SINGLE {
        assert_eq!(errors(&balanced(text)), [*expected], "{text}");
    }
    assert_eq!(
        errors(&format!("{NODE}[[balance]]\n")),
        ["15:1: [balance] is there as a list; write [balance] once, in single brackets"]
    );
}

#[test]
fn something_must_weigh_unless_nothing_is_done() {
    let none =
        "network_percent = 0\npackets_percent = 0\ncpu_percent = 0\nmemory_percent = 0\nstorage_percent = 0";
    let blind = "all weights in [balance] are 0: there is no load to even out; \
                 raise one of them, or say mode = \"off\"";
    assert_eq!(errors(&balanced(none)), [format!("16:1: {blind}")]);
    assert_eq!(errors(&balanced(&format!("mode = \"on\"\n{none}"))), [format!("17:1: {blind}")]);
    assert_eq!(cluster_errors(&format!("{CLUSTER}[balance]\n{none}\n")), [format!("13:1: {blind}")]);
    assert_eq!(
        errors(&balanced(&format!("mode = \"of\"\n{none}"))),
        ["16:9: `mode` in [balance] is \"of\"; write \"off\" or \"advise\" or \"on\""]
    );
    good(&balanced(&format!("mode = \"off\"\n{none}")));
    for weight in none.lines() {
        good(&balanced(&none.replace(weight, &weight.replace('0', "1"))));
    }
}

#[test]
fn the_two_limits_may_be_one() {
    let balance = good(&balanced("start_percent = 110")).core.balance;
    assert_eq!((balance.start_percent, balance.stop_percent), (110, 110));
}

#[test]
fn what_a_node_and_its_port_can_do_has_limits() {
    let node = |line: &str| errors(&after(NODE, "name = \"fs1\"", line));
    for wrong in ["0", "10001"] {
        let expected =
            format!("3:20: `capacity_percent` in [node] is {wrong}; write a number from 1 to 10000");
        assert_eq!(node(&format!("capacity_percent = {wrong}")), [expected]);
    }
    assert_eq!(
        node("capacity_percent = \"all\""),
        ["3:21: `capacity_percent` in [node] is a text; write a whole number, without quotes"]
    );
    good(&after(NODE, "name = \"fs1\"", "capacity_percent = 1"));
    assert_eq!(
        errors(&after(NODE, "interface = \"eth0\"", "speed_mbits = 0")),
        ["5:15: `speed_mbits` in [[port]] is 0; write a number from 1 to 4294967295"]
    );
    assert_eq!(
        errors(&after(NODE, "interface = \"eth0\"", "speed_mbits = \"1G\"")),
        ["5:16: `speed_mbits` in [[port]] is a text; write a whole number, without quotes"]
    );
}

#[test]
fn what_is_kept_apart_is_known() {
    let at = "name = \"projects\"";
    for (names, expected) in [
        ("[\"home\"]", "there is no virtual server \"home\"; did you mean \"homes\"?"),
        ("[\"archive\"]", "there is no virtual server \"archive\"; add it, or remove it here"),
        ("[\"projects\"]", "`never_with` of virtual server \"projects\" names itself; remove the name"),
    ] {
        let line = format!("never_with = {names}");
        assert_eq!(errors(&after(NODE, at, &line)), [format!("11:16: {expected}")]);
        assert_eq!(cluster_errors(&after(CLUSTER, at, &line)), [format!("8:16: {expected}")]);
    }
    assert_eq!(
        cluster_errors(&after(CLUSTER, at, "never_with = \"homes\"")),
        ["8:15: `never_with` in [[virtual_server]] is a text; write a list in square brackets"]
    );
    assert_eq!(
        cluster_errors(&after(CLUSTER, at, "never_with = [1]")),
        ["8:15: `never_with` in [[virtual_server]] is a number; write names in quotes"]
    );
    let (definitions, warnings) = cluster(&after(CLUSTER, at, "never_with = [\"homes\"]"));
    assert_eq!(definitions.servers[0].never_with, ["homes"]);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn the_only_nodes_are_members() {
    let at = "name = \"projects\"";
    let found = |lines: &str| cluster_errors(&after(CLUSTER, at, lines));
    assert_eq!(
        found("only_on = [\"fs1\", \"fs22\"]"),
        ["8:20: node \"fs22\" is no member; did you mean \"fs2\"?"]
    );
    assert_eq!(
        found("only_on = [\"archive\"]"),
        ["8:13: node \"archive\" is no member; add it to `members`, or remove it here"]
    );
    assert_eq!(
        errors(&after(NODE, at, "only_on = [\"fs 1\"]")),
        [
            "11:13: the name of a node can't be \"fs 1\"; use 1 to 63 letters, digits, dots, underscores and hyphens"
        ]
    );
    assert_eq!(
        found("only_on = true"),
        ["8:11: `only_on` in [[virtual_server]] is true or false; write a list in square brackets"]
    );

    let lines = "only_on = [\"fs1\", \"fs2\"]\npreferred_nodes = [\"fs2\", \"fs3\"]";
    let (definitions, warnings) = cluster(&after(CLUSTER, at, lines));
    assert_eq!(definitions.servers[0].only_on, ["fs1", "fs2"]);
    assert_eq!(
        warnings,
        [
            "9:28: preferred node \"fs3\" is not in `only_on`, so it is never used; add it there, or remove it here"
        ]
    );
    for lines in ["preferred_nodes = [\"fs3\"]", "only_on = []\npreferred_nodes = [\"fs3\"]"] {
        assert_eq!(cluster(&after(CLUSTER, at, lines)).1, [""; 0], "{lines}");
    }
}

#[test]
fn a_node_that_is_alone_has_no_choice() {
    let at = "name = \"projects\"";
    let nothing = "does nothing with the store \"file\": this node has every virtual server; \
                   remove it, or make this node a member of a cluster";
    assert_eq!(
        warnings(&after(NODE, at, "never_with = [\"homes\"]\nonly_on = [\"fs2\"]")),
        [format!("11:16: `never_with` {nothing}"), format!("12:13: `only_on` {nothing}")]
    );
    assert_eq!(warnings(&after(NODE, at, "never_with = []\nonly_on = []")), [""; 0]);
}

#[test]
fn it_is_cluster_wide_where_there_is_a_cluster() {
    let node = "[node]\nname = \"fs1\"\n[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\nspeed_mbits = 1000\n\
                [store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n\
                [cluster]\nkey_file = \"/etc/baton/probe.key\"\n";
    assert_eq!(good(node).core.ports[0].speed_mbits, Some(1000));
    assert_eq!(
        errors(&format!("{node}[balance]\nmode = \"on\"\n")),
        [
            "12:2: `balance` is cluster-wide with the store \"etcd\"; put it into the file for `baton apply`, and remove it here"
        ]
    );
    for own in [
        "[node]\ncapacity_percent = 200\n",
        "[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\nspeed_mbits = 1\n",
    ] {
        let found = cluster_errors(&format!("{CLUSTER}{own}"));
        assert!(found.len() == 1 && found[0].contains("belongs to a node, not to the cluster"), "{found:?}");
    }
}

#[test]
fn the_difference_names_each_key() {
    let old = cluster(CLUSTER).0;
    let new =
        cluster(&format!("{CLUSTER}[balance]\nmode = \"on\"\nhalf_life = \"10s\"\nstop_percent = 120\n")).0;
    assert_eq!(
        new.difference(Some(&old)),
        ["balance: mode advise -> on", "balance: half_life 30s -> 10s", "balance: stop_percent 110 -> 120"]
    );
    assert_eq!(old.difference(Some(&new)).len(), 3);
    let all = cluster(&format!("{CLUSTER}[balance]\n{OTHER}")).0;
    assert_eq!(all.difference(Some(&old)).len(), KEYS.len(), "every key can be seen to change");
    assert!(new.difference(Some(&new)).is_empty());
    assert!(!new.difference(None).iter().any(|l| l.starts_with("balance")));

    let apart = cluster(&after(CLUSTER, "name = \"projects\"", "never_with = [\"homes\"]")).0;
    assert_eq!(apart.difference(Some(&old)), ["~ virtual server projects: never_with none -> homes"]);
}
