use std::time::Duration;

use baton_core::config::PortFailback;

use super::texts::{NODE_WITH_GATEWAY as GOOD, errors, good, said as warnings, warnings as other_warnings};
use super::{Loaded, TelemetryTls, parse};

/// Replaces line `n` (from 1) of [`GOOD`].
fn with_line(n: usize, line: &str) -> String {
    GOOD.lines()
        .enumerate()
        .map(|(i, l)| if i + 1 == n { line } else { l })
        .fold(String::new(), |t, l| t + l + "\n")
}

#[test]
fn a_small_file_gets_the_defaults() {
    let Loaded { core, agent, warnings } = good(GOOD);
    assert!(other_warnings(&warnings).is_empty(), "{warnings}");
    assert_eq!(core.node, "fs1");
    assert_eq!(core.timing, Default::default());
    assert_eq!(core.segments[0].port_failback, PortFailback::Spread);
    assert_eq!((core.servers[0].priority, core.servers[0].migrate), (100, true));
    assert_eq!(core.servers[0].addresses[1].to_string(), "fd00:10::10/64");
    assert_eq!(agent.agent_grace, Duration::from_secs(2));
    assert_eq!(agent.store.path.to_str(), Some("/var/lib/baton/baton.db"));
    assert_eq!(agent.control.socket.to_str(), Some("/run/baton/baton.sock"));
    assert_eq!(agent.paths.bpffs.to_str(), Some("/sys/fs/bpf/baton"));
    assert_eq!(agent.telemetry.listen.map(|l| l.to_string()).as_deref(), Some("127.0.0.1:9477"));
    assert_eq!(
        (core.timing.probe_interval, agent.lease),
        (Duration::from_millis(10), Duration::from_millis(50))
    );
}

#[test]
fn every_key_is_taken() {
    let loaded = good(include_str!("../../tests/everything.toml"));
    assert_eq!(loaded.core.timing.hold_down, Duration::ZERO);
    assert_eq!(loaded.core.timing.hold_down_max, Duration::from_secs(90));
    assert_eq!(loaded.core.timing.announce_repeat.len(), 2);
    assert_eq!(loaded.core.segments[0].port_failback, PortFailback::Stay);
    assert_eq!((loaded.core.servers[0].priority, loaded.core.servers[0].migrate), (7, false));
    assert_eq!(loaded.core.segments[0].probe_targets.len(), 2, "one of them is the gateway");
    assert_eq!(loaded.agent.store.path.to_str(), Some("/x/db"));
    assert_eq!(other_warnings(&loaded.warnings), [""; 0]);
    let [resources] = &loaded.agent.resources[..] else { panic!("one server has resources") };
    assert_eq!((resources.filesystems.len(), resources.services.len()), (1, 1));
}

#[test]
fn the_state_folder_holds_the_store_and_http_can_be_off() {
    let loaded = good(&format!("{GOOD}[paths]\nstate = \"/s\"\n[telemetry]\nlisten = \"off\"\n"));
    assert_eq!(loaded.agent.store.path.to_str(), Some("/s/baton.db"));
    assert_eq!(loaded.agent.telemetry.listen, None);
}

#[test]
fn the_packaged_example_is_good() {
    let loaded = good(include_str!("../../baton.toml"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    // What is commented out is the default: with the marks removed it is the same, but for what has none.
    let text = include_str!("../../baton.toml");
    let bare: String = text
        .lines()
        .map(|l| match l.strip_prefix("# ") {
            Some(rest)
                if rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) =>
            {
                rest
            }
            _ => l,
        })
        .fold(String::new(), |t, l| t + l + "\n");
    let full = good(&bare);
    let mut core = full.core;
    for server in &mut core.servers {
        server.preferred_nodes.clear();
        server.devices.clear();
        server.has_resources = false;
    }
    core.ports.iter_mut().for_each(|port| port.speed_mbits = None);
    core.segments
        .iter_mut()
        .zip(&loaded.core.segments)
        .for_each(|(f, l)| f.probe_targets.clone_from(&l.probe_targets));
    assert_eq!(core, loaded.core);
    let mut agent = full.agent;
    let [resources] = &std::mem::take(&mut agent.resources)[..] else { panic!("a server with resources") };
    let (filesystem, service) = (&resources.filesystems[0], &resources.services[0]);
    let seconds = Duration::from_secs;
    assert_eq!(
        (filesystem.start_limit, filesystem.stop_limit, filesystem.fsck),
        (seconds(30), seconds(30), false)
    );
    assert_eq!((service.start_limit, service.stop_limit), (seconds(30), seconds(30)));
    assert_eq!(
        (service.monitor_every, service.monitor_limit, service.restarts),
        (seconds(10), seconds(10), 3)
    );
    assert_eq!(std::mem::take(&mut agent.hooks)[0].timeout, seconds(10));
    agent.telemetry.token_file = None;
    agent.telemetry.tls = None;
    agent.telemetry.otlp = None;
    assert_eq!(agent, loaded.agent);
}

/// Line of [`GOOD`] to replace, its new text, and the only error expected.
const SINGLE: &[(usize, &str, &str)] = &[
    // Keys and types.
    (2, "nmae = \"fs1\"", "2:1: unknown key in [node]: `nmae`; did you mean `name`?"),
    (
        2,
        "colour = 1",
        "2:1: unknown key in [node]: `colour`; known are name, agent_grace, capacity_percent, watchdog",
    ),
    (2, "[pathes]", "2:2: unknown section: `pathes`; did you mean `paths`?"),
    (2, "name = 5", "2:8: `name` in [node] is a number; write text in quotes"),
    (2, "name = [\"a\"]", "2:8: `name` in [node] is a list; write text in quotes"),
    (1, "[[node]]", "1:1: [node] is there as a list; write [node] once, in single brackets"),
    (4, "interface = true", "4:13: `interface` in [[port]] is true or false; write text in quotes"),
    (4, "", "3:1: [[port]] has no `interface`; add interface = \"eth0\""),
    (
        12,
        "addresses = \"10.0.0.10/24\"",
        "12:14: `addresses` in [[virtual_server]] is a text; write a list in square brackets",
    ),
    (
        12,
        "addresses = [1]",
        "12:14: `addresses` in [[virtual_server]] is a number; write text in quotes, as \"10.0.0.10/24\"",
    ),
    (12, "addresses = []", "12:13: [[virtual_server]] has no address; add addresses = [\"10.0.0.10/24\"]"),
    (12, "", "10:1: [[virtual_server]] has no address; add addresses = [\"10.0.0.10/24\"]"),
    // Durations.
    (
        2,
        "name = \"a\"\nagent_grace = 2",
        "3:15: `agent_grace` in [node] is a bare number; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    (
        2,
        "name = \"a\"\nagent_grace = 2.5",
        "3:15: `agent_grace` in [node] is a bare number; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    (
        2,
        "name = \"a\"\nagent_grace = \"2\"",
        "3:16: `agent_grace` in [node] is \"2\", not a duration; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    (
        2,
        "name = \"a\"\nagent_grace = \"0\"",
        "3:16: `agent_grace` in [node] is \"0\", not a duration; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    (
        2,
        "name = \"a\"\nagent_grace = \"2 parsecs\"",
        "3:16: `agent_grace` in [node] is \"2 parsecs\", not a duration; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    (
        2,
        "name = \"a\"\nagent_grace = \"1ms\"",
        "3:16: `agent_grace` in [node] is \"1ms\"; choose a value from 100ms to 1m",
    ),
    (
        1,
        "[timing]\nhold_down = \"2m\"\n[node]",
        "2:14: `hold_down` (2m) is longer than `hold_down_max` (1m); lower it, or raise `hold_down_max`",
    ),
    (
        1,
        "[timing]\nhold_down_max = \"10ms\"\n[node]",
        "2:18: `hold_down` (1s) is longer than `hold_down_max` (10ms); lower it, or raise `hold_down_max`",
    ),
    (
        1,
        "[timing]\nprobe_interval = \"40ms\"\n[node]",
        "2:19: `lease` (50ms) is shorter than two of `probe_interval` (40ms); raise it, or lower `probe_interval`: else one lost probe ends it",
    ),
    (
        1,
        "[timing]\nannounce_repeat = [\"1s\", \"1s\"]\n[node]",
        "2:27: `announce_repeat` is not in order: 1s after 1s; write the times after the first announcement, rising",
    ),
    (
        1,
        "[timing]\nannounce_repeat = [\"1s\", 5]\n[node]",
        "2:26: `announce_repeat` in [timing] is a bare number; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    // Names.
    (
        2,
        "name = \"fs 1\"",
        "2:9: the name of a node can't be \"fs 1\"; use 1 to 63 letters, digits, dots, underscores and hyphens",
    ),
    (
        2,
        "name = \"\"",
        "2:8: the name of a node can't be \"\"; use 1 to 63 letters, digits, dots, underscores and hyphens",
    ),
    (
        11,
        "name = \"projekté\"",
        "11:9: the name of a virtual server can't be \"projekté\"; use 1 to 63 letters, digits, dots, underscores and hyphens",
    ),
    (
        4,
        "interface = \"sixteencharacter\"",
        "4:14: interface name \"sixteencharacter\" is too long; Linux allows 15 characters",
    ),
    (
        4,
        "interface = \"eth0/1\"",
        "4:14: \"eth0/1\" is no interface name; write it as `ip link` shows it, without @ and what follows",
    ),
    (4, "interface = \"lo\"", "4:14: \"lo\" can't be a port; name an interface that clients use"),
    (5, "segment = \"ofice\"", "5:12: there is no segment \"ofice\"; did you mean \"office\"?"),
    (5, "segment = \"lab\"", "5:12: there is no segment \"lab\"; add a [[segment]] with name = \"lab\""),
    // Twice.
    (
        5,
        "segment = \"office\"\n[[port]]\ninterface = \"eth0\"\nsegment = \"office\"",
        "7:14: interface \"eth0\" is there twice, first in line 4; remove one of the two",
    ),
    (
        9,
        "[[segment]]\nname = \"office\"\nsubnets = [\"10.9.0.0/24\"]",
        "10:9: there are two segments \"office\", first in line 7; rename or remove one of them",
    ),
    (
        12,
        "addresses = [\"10.0.0.10/24\"]\n[[virtual_server]]\nname = \"projects\"\naddresses = [\"10.0.0.11/24\"]",
        "14:9: there are two virtual servers \"projects\", first in line 11; rename or remove one of them",
    ),
    (
        12,
        "addresses = [\"10.0.0.10/24\", \"10.0.0.10/24\"]",
        "12:31: address 10.0.0.10 is there twice, first in line 12; an address belongs to one virtual server, once",
    ),
    (
        12,
        "addresses = [\"fd00:10::a/64\", \"fd00:0010:0:0:0:0::000A/64\"]",
        "12:32: address fd00:10::a is there twice, first in line 12; an address belongs to one virtual server, once",
    ),
    (
        12,
        "addresses = [\"10.0.0.10/24\"]\n[[virtual_server]]\nname = \"b\"\naddresses = [\"10.0.0.10/24\"]",
        "15:15: address 10.0.0.10 is there twice, first in line 12; an address belongs to one virtual server, once",
    ),
    // Subnets.
    (
        6,
        "[[segment]]\nname = \"b\"\nsubnets = [\"10.0.0.128/25\"]\n[[segment]]",
        "11:13: 10.0.0.0/24 overlaps with 10.0.0.128/25 of segment \"b\", first in line 8; let every client address lie in one subnet only",
    ),
    (
        8,
        "subnets = [\"10.0.0.0/24\", \"fd00:10::/64\", \"10.0.0.0/24\"]",
        "8:44: 10.0.0.0/24 overlaps with 10.0.0.0/24 of this segment, first in line 8; let every client address lie in one subnet only",
    ),
    (
        8,
        "subnets = [\"10.0.0.5/24\", \"fd00:10::/64\"]",
        "8:13: 10.0.0.5/24 is an address in a subnet, not a subnet; write 10.0.0.0/24",
    ),
    (
        8,
        "subnets = [\"10.0.0.0/24\", \"fd00:10::/64\", \"fe80::/64\"]",
        "8:44: fe80::/64 is link-local, the same on every segment; write a routed subnet",
    ),
    (
        8,
        "subnets = [\"10.0.0.0/24\", \"fd00:10::/64\", \"224.0.0.0/8\"]",
        "8:44: 224.0.0.0/8 is a multicast address; write the subnet that clients are in",
    ),
    (
        8,
        "subnets = [\"10.0.0.0/24\", \"fd00:10::/64\", \"10.1.0.0\"]",
        "8:44: `subnets` in [[segment]] has \"10.1.0.0\", an address without its prefix length; add that of its subnet, as \"10.1.0.0/24\"",
    ),
    // Gateways and targets.
    (
        9,
        "gateway = [\"10.0.1.1\"]",
        "9:13: gateway 10.0.1.1 is in no subnet of segment \"office\"; correct it, or add its subnet to `subnets`",
    ),
    (
        9,
        "gateway = [\"10.0.0.1\", \"10.0.0.2\"]",
        "9:25: segment \"office\" has two IPv4 gateways, first in line 9; leave one of each family",
    ),
    (
        9,
        "gateway = [\"10.0.0.1/24\"]",
        "9:13: `gateway` in [[segment]] has \"10.0.0.1/24\", not an IP address; leave the prefix length out: \"10.0.0.1\"",
    ),
    (
        9,
        "probe_targets = [\"10.0.9.1\"]",
        "9:19: probe target 10.0.9.1 is in no subnet of segment \"office\"; correct it, or add its subnet to `subnets`",
    ),
    // Addresses.
    (
        12,
        "addresses = [\"10.0.9.10/24\"]",
        "12:15: address 10.0.9.10 is in no segment's subnets; correct it, or add its subnet to a [[segment]]",
    ),
    (
        12,
        "addresses = [\"10.0.0.10\"]",
        "12:15: `addresses` in [[virtual_server]] has \"10.0.0.10\", an address without its prefix length; add that of its subnet, as \"10.0.0.10/24\"",
    ),
    (
        12,
        "addresses = [\"10.0.0.10/33\"]",
        "12:15: `addresses` in [[virtual_server]] has \"10.0.0.10/33\", not an address with a prefix length; write it as \"10.0.0.10/24\" or \"fd00:10::10/64\"",
    ),
    (
        12,
        "addresses = [\"10.0.0.10/16\"]",
        "12:15: the prefix length of 10.0.0.10/16 is not that of its subnet 10.0.0.0/24; write 10.0.0.10/24",
    ),
    (
        12,
        "addresses = [\"10.0.0.0/24\"]",
        "12:15: 10.0.0.0 is the network address of 10.0.0.0/24; choose another address of the subnet",
    ),
    (
        12,
        "addresses = [\"10.0.0.255/24\"]",
        "12:15: 10.0.0.255 is the broadcast address of 10.0.0.0/24; choose another address of the subnet",
    ),
    (
        12,
        "addresses = [\"fd00:10::/64\"]",
        "12:15: fd00:10:: is the subnet-router anycast address (RFC 4291, 2.6.1) of fd00:10::/64; choose another address of the subnet",
    ),
    (
        12,
        "addresses = [\"10.0.0.1/24\"]",
        "12:15: 10.0.0.1 is a gateway as well; choose an address that no other host has",
    ),
    (
        12,
        "addresses = [\"224.0.0.1/24\"]",
        "12:15: address 224.0.0.1 is a multicast address; write an address of a client subnet",
    ),
    (
        12,
        "addresses = [\"127.0.0.1/8\"]",
        "12:15: address 127.0.0.1 is a loopback address; write an address of a client subnet",
    ),
    (
        12,
        "addresses = [\"::/64\"]",
        "12:15: address :: is the unspecified address; write an address of a client subnet",
    ),
    (
        12,
        "addresses = [\"::ffff:10.0.0.10/120\"]",
        "12:15: address ::ffff:10.0.0.10 is an IPv4 address in IPv6 notation; write an address of a client subnet",
    ),
    (
        12,
        "addresses = [\"fe80::1/64\"]",
        "12:15: address fe80::1 is link-local; write an address of a client subnet",
    ),
    // Virtual servers.
    (
        11,
        "name = \"p\"\npriority = -1",
        "12:12: `priority` in [[virtual_server]] is -1; write a number from 0 to 4294967295",
    ),
    (
        11,
        "name = \"p\"\nmigrate = \"no\"",
        "12:12: `migrate` in [[virtual_server]] is a text; write true or false, without quotes",
    ),
    (
        11,
        "name = \"p\"\nfailback = \"1:00-4:00\"",
        "12:13: `failback` in [[virtual_server]] is \"1:00-4:00\"; write \"manual\", \"immediate\" or a daily window as \"01:00-04:00\"",
    ),
    (
        11,
        "name = \"p\"\nfailback = \"25:00-04:00\"",
        "12:13: `failback` in [[virtual_server]] is \"25:00-04:00\"; write \"manual\", \"immediate\" or a daily window as \"01:00-04:00\"",
    ),
    (
        9,
        "port_failback = \"never\"",
        "9:18: `port_failback` in [[segment]] is \"never\"; write \"spread\" or \"stay\"",
    ),
    // Sections of the agent.
    (
        1,
        "[store]\nkind = \"file\"\ntls = { ca = \"/a\" }\n[node]",
        "3:1: `tls` in [store] belongs to the store \"etcd\"; remove it: the store \"file\" has only `path`",
    ),
    (
        1,
        "[store]\nendpoints = [\"a\"]\n[node]",
        "2:1: `endpoints` in [store] belongs to the store \"etcd\"; remove it: the store \"file\" has only `path`",
    ),
    (
        1,
        "[cluster]\nname = \"nas\"\n[node]",
        "1:1: [cluster] needs the store \"etcd\"; add kind = \"etcd\" and `endpoints` to [store], or remove [cluster]: this node then serves alone",
    ),
    (1, "[store]\nkind = \"sql\"\n[node]", "2:9: `kind` in [store] is \"sql\"; write \"file\" or \"etcd\""),
    (
        1,
        "[store]\npath = \"baton.db\"\n[node]",
        "2:9: `path` in [store] is \"baton.db\", not an absolute path; start it with /",
    ),
    (
        1,
        "[telemetry]\nlisten = \"9477\"\n[node]",
        "2:11: `listen` in [telemetry] is \"9477\"; write an address and a port, as \"127.0.0.1:9477\" or \"[::1]:9477\", or \"off\"",
    ),
    (
        1,
        "[control]\ngroup = \"no such:group\"\n[node]",
        "2:10: \"no such:group\" is no group name; write it as `getent group` does",
    ),
    // Not TOML.
    (2, "name = fs1", "2:8: a value without quotes; write text as \"text\""),
    (2, "name = \"a\"\nname = \"b\"", "3:1: `name` is set twice, first in line 2; remove one of the two"),
    (
        5,
        "segment = \"office\"\n[node]",
        "6:1: the section `node` is there twice, first in line 1; put its keys into one",
    ),
];

#[test]
fn every_error_is_found_at_its_place() {
    for (line, text, expected) in SINGLE {
        assert_eq!(errors(&with_line(*line, text)), [*expected], "with line {line}: {text}");
    }
}

#[test]
fn all_errors_come_at_once_and_in_order() {
    let text = r#"[node]
name = "fs1"
agent_grace = 2
[[port]]
interface = "eth0"
segment = "nowhere"
[[segment]]
name = "office"
subnets = ["10.0.0.0/24"]
gateway = ["10.0.1.1"]
bogus = 1
[[virtual_server]]
name = "a"
addresses = ["10.0.0.10/24"]
[[virtual_server.filesystem]]
device = "/dev/a"
mount = "/srv/a"
type = "xfs"
[[virtual_server]]
name = "b"
addresses = ["10.0.0.10/24", "10.7.0.1/24"]
[[virtual_server.filesystem]]
device = "/dev/a"
mount = "/srv/a/"
type = "xfs"
[[virtual_server.service]]
kind = "cron"
"#;
    assert_eq!(
        errors(text),
        [
            "3:15: `agent_grace` in [node] is a bare number; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
            "6:12: there is no segment \"nowhere\"; add a [[segment]] with name = \"nowhere\"",
            "10:13: gateway 10.0.1.1 is in no subnet of segment \"office\"; correct it, or add its subnet to `subnets`",
            "11:1: unknown key in [[segment]]: `bogus`; known are name, subnets, gateway, probe_targets, port_failback",
            "21:15: address 10.0.0.10 is there twice, first in line 14; an address belongs to one virtual server, once",
            "21:31: address 10.7.0.1 is in no segment's subnets; correct it, or add its subnet to a [[segment]]",
            "23:11: device /dev/a is there twice, first in line 16; a device belongs to one file system of one virtual server",
            "24:10: /srv/a is mounted twice, first in line 17; give each file system its own folder",
            "27:9: `kind` in [[virtual_server.service]] is \"cron\"; write \"exec\" or \"ocf\" or \"nfs-ganesha\" or \"systemd\" or \"samba\"",
        ]
    );
}

#[test]
fn an_empty_file_says_what_is_missing() {
    let all = errors("");
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].starts_with("1:1: no [[port]]; "), "{}", all[0]);
    assert!(all[1].starts_with("1:1: no [[segment]]; "), "{}", all[1]);
}

#[test]
fn doubts_are_warnings() {
    let no_server = GOOD.split("[[virtual_server]]").next().expect("a part");
    assert_eq!(
        other_warnings(&good(no_server).warnings),
        ["1:1: no [[virtual_server]]: nothing is served; add one with `name` and `addresses`"]
    );
    let other = with_line(9, "[[segment]]\nname = \"lab\"\nsubnets = [\"10.9.0.0/24\"]");
    let text =
        format!("{other}[[virtual_server]]\nname = \"x\"\naddresses = [\"10.9.0.5/24\", \"10.9.0.6/24\"]\n");
    assert_eq!(
        other_warnings(&good(&text).warnings),
        [
            "17:15: this node has no port in segment \"lab\", so 10.9.0.5 can't be served here; add a [[port]] with segment = \"lab\""
        ]
    );
}

#[test]
fn a_segment_that_cannot_support_a_verdict_is_warned_of() {
    let blind = |ports: usize, hosts: &str| {
        let ports: String =
            (0..ports).map(|n| format!("[[port]]\ninterface = \"p{n}\"\nsegment = \"office\"\n")).collect();
        let rest = with_line(9, hosts).split_once("[[segment]]").map(|(_, rest)| rest.to_owned());
        let text = format!("[node]\nname = \"fs1\"\n{ports}[[segment]]{}", rest.expect("a segment"));
        warnings(&good(&text).warnings)
    };
    let target = "probe_targets = [\"10.0.0.1\"]";
    let one = "7:9: segment \"office\" has one port: if that turns silent with its link up, nobody notices; \
               add a second port, and a host that is always up to `probe_targets`";
    assert_eq!(blind(1, ""), [one]);
    assert_eq!(blind(1, target), [one]);
    let two = "10:9: segment \"office\" has two ports and neither gateway nor probe target: when one turns silent \
               with its link up, only clients' packets can tell which, and sometimes nothing can; then nothing moves; \
               add a host that is always up to `probe_targets`, or a third port";
    assert_eq!(blind(2, ""), [two]);
    assert_eq!(blind(2, target), [""; 0]);
    assert_eq!(blind(2, "gateway = [\"10.0.0.1\"]"), [""; 0]);
    assert_eq!(blind(3, ""), [""; 0]);
}

#[test]
fn legal_corners_are_accepted() {
    // Both addresses of a /31 and of a /127; a link-local router; columns after other scripts.
    good(
        &with_line(8, "subnets = [\"10.0.0.0/24\", \"fd00:10::/64\", \"10.5.0.0/31\", \"fd00:11::/127\"]")
            .replace(
                "\"fd00:10::10/64\"]",
                "\"fd00:10::10/64\", \"10.5.0.0/31\", \"10.5.0.1/31\", \"fd00:11::/127\"]",
            ),
    );
    good(&with_line(9, "gateway = [\"10.0.0.1\", \"fe80::1\"]"));
    good(&with_line(4, "interface = \"fifteencharacte\""));
    assert_eq!(
        errors(&with_line(2, "name = \"é\"; x"))[0].split(':').take(2).collect::<Vec<_>>(),
        ["2", "11"]
    );
}

#[test]
fn limits_are_those_of_the_kernel_maps() {
    let list = |n: u32| {
        let one = |i: u32| format!("\"10.{}.{}.{}/8\"", i >> 16, (i >> 8) & 255, i & 255);
        (1..=n).map(|i| one(i + 256)).collect::<Vec<_>>().join(",")
    };
    let file = |n| {
        with_line(8, "subnets = [\"10.0.0.0/8\"]").replace("\"10.0.0.10/24\", \"fd00:10::10/64\"", &list(n))
    };
    good(&file(baton_common::MAX_VIPS));
    let all = errors(&file(baton_common::MAX_VIPS + 1));
    assert_eq!(all.len(), 1);
    assert!(all[0].ends_with("too many addresses; configure at most 16384"), "{}", all[0]);
    let servers = (0..=baton_common::MAX_SERVERS).fold(GOOD.to_owned(), |t, i| {
        let address = format!("fd00:10::1:{i:x}/64");
        t + &format!("[[virtual_server]]\nname = \"s{i}\"\naddresses = [\"{address}\"]\n")
    });
    assert!(errors(&servers)[0].contains("too many virtual servers"));
}

/// Cutting or damaging a file anywhere never panics, and what is refused names a place inside it.
#[test]
fn damaged_files_are_refused_calmly() {
    let text = include_str!("../../baton.toml");
    for (at, _) in text.char_indices() {
        for damaged in [
            text[..at].to_owned(),
            format!("{}\"{}", &text[..at], &text[at..]),
            format!("{}[{}", &text[..at], &text[at..]),
        ] {
            let Err(e) = parse(&damaged, "f") else { continue };
            for line in e.to_string().lines() {
                let place: Vec<usize> =
                    line.split(':').skip(1).take(2).filter_map(|n| n.parse().ok()).collect();
                assert!(
                    place.len() == 2 && place[0] >= 1 && place[0] <= damaged.lines().count() + 1,
                    "{line}"
                );
            }
        }
    }
}

#[test]
fn a_token_for_the_page_is_for_clusters_and_for_this_node_alone() {
    let all = |text: &str| warnings(&good(text).warnings);
    let file = "[telemetry]\ntoken_file = \"/etc/baton/token\"\n";
    let alone = all(&format!("{GOOD}{file}"));
    assert!(
        alone.iter().any(|w| w.starts_with("14:15: `token_file` does nothing with the store")),
        "{alone:?}"
    );
    let member = "[node]\nname = \"fs1\"\n[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\n[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n[cluster]\nname = \"nas\"\nkey_file = \"/etc/baton/probe.key\"\n";
    let loaded = good(&format!("{member}{file}"));
    assert_eq!(warnings(&loaded.warnings), [""; 0]);
    assert_eq!(loaded.agent.telemetry.token_file.as_deref(), Some(std::path::Path::new("/etc/baton/token")));
    let open = all(&format!("{member}{file}listen = \"0.0.0.0:9477\"\n"));
    assert!(open.iter().any(|w| w.contains("from this node itself only")), "{open:?}");
    let tls = "tls_certificate = \"/c\"\ntls_key = \"/k\"\n";
    assert_eq!(all(&format!("{member}{file}{tls}listen = \"0.0.0.0:9477\"\n")), [""; 0]);
    let off = all(&format!("{member}{file}listen = \"off\"\n"));
    assert!(off.iter().any(|w| w.contains("`listen` is \"off\"")), "{off:?}");
    let relative = errors(&format!("{GOOD}[telemetry]\ntoken_file = \"token\"\n"));
    assert!(relative[0].contains("not an absolute path"), "{relative:?}");
}

#[test]
fn tls_of_the_page_is_whole_or_not_there() {
    let file = |keys: &str| format!("{GOOD}[telemetry]\n{keys}");
    let loaded = good(&file("tls_certificate = \"/c\"\ntls_key = \"/k\"\n"));
    let tls = TelemetryTls { certificate: "/c".into(), key: "/k".into(), client_ca: None };
    assert_eq!(loaded.agent.telemetry.tls, Some(tls));
    for (keys, expected) in [
        ("tls_certificate = \"/c\"\n", "`tls_certificate` in [telemetry] has no `tls_key`; add"),
        ("tls_key = \"/k\"\n", "`tls_key` in [telemetry] has no `tls_certificate`; add"),
        ("client_ca = \"/a\"\n", "`client_ca` in [telemetry] needs TLS; add"),
        ("tls_certificate = \"/c\"\ntls_key = \"k\"\n", "`tls_key` in [telemetry] is \"k\""),
    ] {
        let found = errors(&file(keys));
        let line = 13 + keys.lines().count();
        assert!(found[0].starts_with(&format!("{line}:")), "{keys}: {found:?}");
        assert!(found.len() == 1 && found[0].contains(expected), "{keys}: {found:?}");
    }
    let both = "tls_certificate = \"/c\"\ntls_key = \"/k\"\nclient_ca = \"/a\"\n";
    let alone = warnings(&good(&file(both)).warnings);
    assert!(
        alone.iter().any(|w| w.starts_with("16:") && w.contains("`client_ca` does nothing with the store")),
        "{alone:?}"
    );
    let off = warnings(&good(&file(&format!("{both}listen = \"off\"\n"))).warnings);
    assert!(off.iter().any(|w| w.contains("`tls_certificate` does nothing")), "{off:?}");
}

#[test]
fn a_collector_is_reached_by_plain_http() {
    let file = |url: &str| format!("{GOOD}[telemetry]\notlp = {url:?}\n");
    for url in
        ["http://127.0.0.1:4318", "http://127.0.0.1:4318/", "http://[::1]:4318", "http://collector/otlp"]
    {
        let loaded = good(&file(url));
        assert_eq!(loaded.agent.telemetry.otlp.as_deref(), Some(url.trim_end_matches('/')), "{url}");
    }
    for (url, part) in [
        ("https://collector:4318", "by TLS"),
        ("collector:4318", "not the URL"),
        ("127.0.0.1:4318", "not the URL"),
        ("http://", "not the URL"),
        ("http://a b", "not the URL"),
        ("http://collector/?x=1", "not the URL"),
        ("", "not the URL"),
    ] {
        let found = errors(&file(url));
        assert!(
            found.len() == 1 && found[0].starts_with("14:") && found[0].contains("`otlp` in [telemetry] is"),
            "{url}: {found:?}"
        );
        assert!(found[0].contains(part) && found[0].contains("http://127.0.0.1:4318"), "{url}: {found:?}");
    }
}
