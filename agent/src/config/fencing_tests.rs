use super::super::Definitions;
use super::super::texts::{self, BARE_CLUSTER as CLUSTER, SERVER, below};
use super::*;

const FILESYSTEM: &str = r#"[[virtual_server.filesystem]]
device = "/dev/a"
mount = "/srv/a"
type = "ext4"
storage_unit = "array-1"
"#;

fn cluster(lines: &str) -> (Definitions, String) {
    let (definitions, warnings) = texts::good_cluster(&format!("{CLUSTER}{lines}"));
    (definitions, warnings.join("\n"))
}

/// Errors, with the lines counted from the first of `lines`.
fn errors(lines: &str) -> Vec<String> {
    below(CLUSTER, texts::cluster_errors(&format!("{CLUSTER}{lines}")))
}

fn fence(node: &str) -> String {
    format!("[[fence]]\nnode = \"{node}\"\nagent = \"fence_ipmilan\"\n")
}

fn fenced(how: &str, more: &str) -> String {
    format!("{SERVER}fence = \"{how}\"\n{more}{FILESYSTEM}")
}

#[test]
fn every_key_is_taken() {
    let lines = r#"[timing]
watchdog = "5s"
[[fence]]
node = "fs1"
agent = "/opt/fence"
parameters = { ip = "10.1.0.1", port = 7, password_file = "/etc/baton/ipmi", identity_file = "/root/key" }
action = "reboot"
limit = "7s"
level = 2
[[storage_unit]]
name = "array-1"
device = "/dev/b"
interval = "50ms"
limit = "2s"
"#;
    let rest = fence("fs1") + &fence("fs2") + &fence("fs3") + &fenced("agent", "");
    let (definitions, warnings) = cluster(&(lines.to_owned() + &rest));
    assert_eq!(warnings, "");
    let Fencing { agents, watchdog } = &definitions.fencing;
    assert_eq!((agents.len(), *watchdog), (4, Duration::from_secs(5)));
    let parameters = [
        ("identity_file", Parameter::Text("/root/key".into())),
        ("ip", Parameter::Text("10.1.0.1".into())),
        ("password", Parameter::File("/etc/baton/ipmi".into())),
        ("port", Parameter::Text("7".into())),
    ];
    let wanted = FenceAgent {
        node: "fs1".into(),
        program: "/opt/fence".into(),
        parameters: parameters.map(|(name, value)| (name.to_owned(), value)).into(),
        action: FenceAction::Reboot,
        limit: Duration::from_secs(7),
        level: 2,
    };
    assert_eq!(agents[0], wanted);
    let FenceAgent { program, action, limit, level, .. } = &agents[1];
    assert_eq!(program, Path::new("/usr/sbin/fence_ipmilan"));
    assert_eq!((*action, *limit, *level), (FenceAction::Off, Duration::from_secs(30), 1));
    let (interval, limit) = (Duration::from_millis(50), Duration::from_secs(2));
    let unit = StorageUnit { name: "array-1".into(), device: "/dev/b".into(), interval, limit };
    assert_eq!(definitions.units, [unit]);
    let resources = &definitions.resources[0];
    assert_eq!((resources.fence, &resources.storage_units[..]), (Fence::Agent, &["array-1".to_owned()][..]));
}

#[test]
fn a_unit_that_is_only_named_has_the_device_of_the_first_file_system() {
    let second = FILESYSTEM.replace("/dev/a", "/dev/b").replace("/srv/a", "/srv/b");
    let (definitions, _) = cluster(&(fenced("watchdog", "") + &second));
    let (interval, limit) = (Duration::from_millis(100), Duration::from_secs(1));
    let unit = StorageUnit { name: "array-1".into(), device: "/dev/a".into(), interval, limit };
    assert_eq!(definitions.units, [unit]);
    let described = "[[storage_unit]]\nname = \"array-1\"\nlimit = \"3s\"\n";
    let (definitions, _) = cluster(&(fenced("scsi-pr", "") + &second + described));
    let [unit] = &definitions.units[..] else { panic!("{:?}", definitions.units) };
    assert_eq!((unit.device.to_str(), unit.limit), (Some("/dev/a"), Duration::from_secs(3)));
    assert_eq!(definitions.resources[0].fence, Fence::ScsiPr);
}

/// What stands there, and the only error expected.
const SINGLE: &[(&str, &str)] = &[
    ("[[fence]]\nagent = \"a\"", "1:1: [[fence]] has no `node`; add node = \"fs1\""),
    ("[[fence]]\nnode = \"fs1\"", "1:1: [[fence]] has no `agent`; add agent = \"fence_ipmilan\""),
    (
        "[[fence]]\nnode = \"fs4\"\nagent = \"a\"",
        "2:9: node \"fs4\" in [[fence]] is no member; did you mean \"fs1\"?",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"../a\"",
        "3:10: `agent` in [[fence]] is \"../a\"; write its name in /usr/sbin, as \"fence_ipmilan\", or an absolute path",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\naction = \"on\"",
        "4:11: `action` in [[fence]] is \"on\"; write \"off\" or \"reboot\"",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\nlimit = \"1ms\"",
        "4:10: `limit` in [[fence]] is \"1ms\"; choose a value from 1s to 10m",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\nlevel = 10",
        "4:9: `level` in [[fence]] is 10; write a number from 1 to 9",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\nparameters = { action = \"on\" }",
        "4:16: `parameters` has \"action\"; say action = \"off\" or \"reboot\" in [[fence]]",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\nparameters = { password_file = \"ipmi\" }",
        "4:16: `password_file` in `parameters` is no absolute path; start it with /",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\nparameters = { password_file = \"/a\", password = \"b\" }",
        "4:16: `parameters` has \"password\" twice, once in a file; remove one of the two",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\nparameters = { pin = \"geheim\\naction=on\" }",
        "4:16: `pin` in `parameters` has a line break or the like; remove it",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\n[[fence]]\nnode = \"fs1\"\nagent = \"a\"",
        "4:1: two [[fence]] of node \"fs1\" are the same, first in line 6; remove one of the two",
    ),
    (
        "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\naction = \"reboot\"\n[[fence]]\nnode = \"fs1\"\nagent = \"b\"",
        "1:1: node \"fs1\" has several [[fence]] of level 1, which are needed together, and this one switches it on again; say action = \"off\" in all of them, or give those that are tried when others fail a higher `level`",
    ),
    (
        "[[storage_unit]]\nname = \"a\"",
        "1:1: storage unit \"a\" has no `device`, and no file system names it; name the device, or the unit as `storage_unit` of a [[virtual_server.filesystem]]",
    ),
    (
        "[[storage_unit]]\nname = \"a\"\ndevice = \"sda\"",
        "3:11: `device` in [[storage_unit]] is \"sda\", not an absolute path; start it with /",
    ),
    (
        "[[storage_unit]]\nname = \"a/b\"\ndevice = \"/dev/a\"",
        "2:9: the name of a storage unit can't be \"a/b\"; use 1 to 63 letters, digits, dots, underscores and hyphens",
    ),
    (
        "[[storage_unit]]\nname = \"a\"\ndevice = \"/dev/a\"\nlimit = 1",
        "4:9: `limit` in [[storage_unit]] is a bare number; write a number with a unit in quotes, as \"10ms\" or \"2s\"",
    ),
    (
        "[timing]\nwatchdog = \"5500ms\"",
        "2:13: `watchdog` in [timing] is 5s 500ms; write whole seconds: watchdogs count no others",
    ),
    ("[timing]\nwatchdog = \"1s\"", "2:13: `watchdog` in [timing] is \"1s\"; choose a value from 5s to 5m"),
];

#[test]
fn every_error_is_found_at_its_place() {
    for (lines, expected) in SINGLE {
        let found: Vec<String> = errors(lines)
            .into_iter()
            // A unit whose device is wrong has none.
            .filter(|e| !(lines.contains("\"sda\"") && e.contains("has no `device`")))
            .collect();
        assert_eq!(found, [*expected], "with {lines}");
    }
}

#[test]
fn a_unit_is_not_misspelt() {
    let unit = "[[storage_unit]]\nname = \"array-2\"\ndevice = \"/dev/b\"\n";
    let found = errors(&(fenced("watchdog", "") + unit));
    assert_eq!(found, ["9:17: there is no storage unit \"array-1\"; did you mean \"array-2\"?"]);
    let (_, warnings) = cluster(unit);
    assert!(warnings.contains("\"array-2\" is watched, but no virtual server moves with it"), "{warnings}");
}

#[test]
fn whoever_may_have_it_can_be_fenced() {
    let agent = |more: &str| fenced("agent", more);
    let (_, warnings) = cluster(&(fence("fs1") + &fence("fs2") + &agent("")));
    assert!(warnings.contains("there is no [[fence]] for \"fs3\": if it has"), "{warnings}");
    let only = "only_on = [\"fs1\", \"fs2\"]\n";
    let (_, warnings) = cluster(&(fence("fs1") + &fence("fs2") + &agent(only)));
    assert_eq!(warnings, "");
    for nodes in [only, "preferred_nodes = [\"fs1\", \"fs2\"]\n"] {
        let found = errors(&(fence("fs1") + &agent(nodes)));
        let expected = "7:10: fence = \"agent\", and there is no [[fence]] for \"fs2\", which may have this virtual server; \
                        add one for each, with `node` and `agent`";
        assert_eq!(found, [expected]);
    }
    // The others need none.
    for how in ["watchdog", "scsi-pr"] {
        let (_, warnings) = cluster(&fenced(how, only));
        assert_eq!(warnings, "");
    }
}

#[test]
fn what_does_nothing_is_doubted() {
    let (definitions, warnings) = cluster(&format!("{SERVER}fence = \"watchdog\"\n"));
    assert!(warnings.contains("`fence` does nothing: the virtual server has no file system"), "{warnings}");
    assert!(definitions.resources.is_empty());
    let (_, warnings) = cluster(&fenced("watchdog", "i_accept_corruption = true\n"));
    assert!(warnings.contains("`i_accept_corruption` does nothing"), "{warnings}");
    let node = "[node]\nname = \"fs1\"\nwatchdog = \"/dev/watchdog1\"\n[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\n";
    let own = CLUSTER.lines().skip(2).collect::<Vec<_>>().join("\n") + "\n";
    let text = node.to_owned() + &own + &fence("fs1") + &fenced("agent", "");
    let loaded = texts::good(&text);
    let warnings = loaded.warnings.to_string();
    assert!(warnings.contains("[[fence]] does nothing with the store \"file\""), "{warnings}");
    assert!(warnings.contains("`fence` does nothing with the store \"file\""), "{warnings}");
    assert_eq!(loaded.agent.watchdog, Path::new("/dev/watchdog1"));
    assert_eq!(loaded.agent.units.len(), 1);
}

#[test]
fn both_belong_to_the_cluster() {
    let node = "[node]\nname = \"fs1\"\n[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n[cluster]\nkey_file = \"/k\"\n[[port]]\ninterface = \"eth0\"\nsegment = \"office\"\n";
    let text = node.to_owned() + &fence("fs1") + "[[storage_unit]]\nname = \"a\"\ndevice = \"/dev/a\"\n";
    let problems = texts::errors(&text).join("\n");
    assert!(problems.contains("`fence` is cluster-wide with the store \"etcd\""), "{problems}");
    assert!(problems.contains("`storage_unit` is cluster-wide with the store \"etcd\""), "{problems}");
}

#[test]
fn a_secret_is_never_shown() {
    let secret = "[[fence]]\nnode = \"fs1\"\nagent = \"a\"\nparameters = { password = \"geheim\" }\n";
    let (definitions, warnings) = cluster(secret);
    assert!(warnings.contains("can be read by everybody"), "{warnings}");
    let (other, _) = cluster(&secret.replace("geheim", "neu"));
    let difference = other.difference(Some(&definitions));
    assert_eq!(difference, ["~ fencing of fs1"]);
    for text in [warnings, format!("{definitions:?}")] {
        assert!(!text.contains("geheim"), "{text}");
    }
    assert_eq!(definitions.difference(Some(&cluster("").0)), ["+ fencing of fs1"]);
}
