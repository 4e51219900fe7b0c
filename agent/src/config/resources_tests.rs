use super::super::Definitions;
use super::super::texts::{self, CLUSTER, NODE, below};
use super::*;

fn good(lines: &str) -> Vec<Resources> {
    texts::good(&format!("{NODE}{lines}\n")).agent.resources
}

/// Errors with the lines counted from the first of `lines`.
fn errors(lines: &str) -> Vec<String> {
    below(NODE, texts::errors(&format!("{NODE}{lines}\n")))
}

fn only(lines: &str) -> Service {
    let mut resources = good(lines).pop().expect("one server");
    resources.services.pop().expect("one service")
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_server_with_addresses_only_has_no_resources() {
    assert!(good("").is_empty());
}

#[test]
fn defaults_are_filled_in() {
    let lines = "[[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a/\"\ntype = \"xfs\"\n\
                 [[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/bin/true\"]";
    let [resources] = &good(lines)[..] else { panic!("one server") };
    assert_eq!(resources.server, "projects");
    assert_eq!(resources.addresses, ["10.0.0.10".parse::<IpAddr>().expect("an address")]);
    let [fs] = &resources.filesystems[..] else { panic!("one file system") };
    assert_eq!((fs.mount.to_str(), fs.options.as_str(), fs.fsck), (Some("/srv/a"), "", false));
    assert_eq!((fs.start_limit, fs.stop_limit), (30 * SECOND, 30 * SECOND));
    let [service] = &resources.services[..] else { panic!("one service") };
    assert_eq!((service.start_limit, service.stop_limit), (30 * SECOND, 30 * SECOND));
    assert_eq!((service.monitor_every, service.monitor_limit), (10 * SECOND, 10 * SECOND));
    assert_eq!(service.restarts, 3);
    let exec = Exec { start: vec!["/bin/true".into()], stop: None, monitor: None };
    assert_eq!(service.kind, ServiceKind::Exec(exec));
}

#[test]
fn every_key_is_taken() {
    let lines = r#"[[virtual_server.filesystem]]
device = "/dev/a"
mount = "/srv/a"
type = "ext4"
storage_unit = "array-1"
options = "noatime,nodev"
fsck = true
start_limit = "5s"
stop_limit = "6s"
[[virtual_server.service]]
kind = "exec"
start = ["/bin/a", "1"]
stop = ["/bin/b"]
monitor = ["/bin/c", "", "x y"]
start_limit = "1s"
stop_limit = "2s"
monitor_every = "3s"
monitor_limit = "4s"
restarts = 0
[[virtual_server.service]]
kind = "ocf"
agent = "heartbeat/nfsserver"
parameters = { nfs_ip = "10.0.0.10", port = 7, fast = true }
[[virtual_server.service]]
kind = "nfs-ganesha"
program = "/opt/ganesha"
protocols = [4, 3]
exports = [{ path = "/srv/a/x", pseudo = "/x", read_only = true, squash = "none", clients = ["10.0.0.0/24", "*"] }]"#;
    let [resources] = &good(lines)[..] else { panic!("one server") };
    let fs = &resources.filesystems[0];
    assert_eq!((fs.options.as_str(), fs.fsck, fs.kind.as_str()), ("noatime,nodev,dirsync", true, "ext4"));
    assert_eq!((fs.start_limit, fs.stop_limit), (5 * SECOND, 6 * SECOND));
    let [exec, ocf, ganesha] = &resources.services[..] else { panic!("three services") };
    assert_eq!((exec.start_limit, exec.stop_limit, exec.restarts), (SECOND, 2 * SECOND, 0));
    assert_eq!((exec.monitor_every, exec.monitor_limit), (3 * SECOND, 4 * SECOND));
    let argv = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let ServiceKind::Exec(exec) = &exec.kind else { panic!("exec") };
    assert_eq!((&exec.start, &exec.stop), (&argv(&["/bin/a", "1"]), &Some(argv(&["/bin/b"]))));
    assert_eq!(exec.monitor, Some(argv(&["/bin/c", "", "x y"])));
    let ServiceKind::Ocf(ocf) = &ocf.kind else { panic!("ocf") };
    assert_eq!((ocf.provider.as_str(), ocf.agent.as_str()), ("heartbeat", "nfsserver"));
    let parameters: Vec<_> = ocf.parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(parameters, [("fast", "true"), ("nfs_ip", "10.0.0.10"), ("port", "7")]);
    let ServiceKind::NfsGanesha(ganesha) = &ganesha.kind else { panic!("ganesha") };
    assert_eq!((ganesha.program.as_str(), &ganesha.protocols), ("/opt/ganesha", &BTreeSet::from([3, 4])));
    let expected = Export {
        path: "/srv/a/x".into(),
        pseudo: "/x".into(),
        read_only: true,
        squash: "none".into(),
        clients: argv(&["10.0.0.0/24", "*"]),
    };
    assert_eq!(ganesha.exports, [expected]);
}

#[test]
fn ganesha_exports_every_file_system_unless_told_otherwise() {
    let lines = "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\n\
                 [[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a\"\ntype = \"xfs\"\n\
                 [[virtual_server.filesystem]]\ndevice = \"/dev/b\"\nmount = \"/srv/b\"\ntype = \"xfs\"";
    let ServiceKind::NfsGanesha(ganesha) = only(lines).kind else { panic!("ganesha") };
    let paths: Vec<_> = ganesha.exports.iter().map(|e| e.path.as_path()).collect();
    assert_eq!(paths, [Path::new("/srv/a"), Path::new("/srv/b")]);
    assert_eq!(ganesha.exports[1].pseudo, Path::new("/srv/b"));
    assert_eq!(ganesha.protocols, BTreeSet::from([4]));
}

/// What an NFS client was told of names must be stable; others may do without.
#[test]
fn what_is_served_by_nfs_is_mounted_so_that_changed_names_are_stable() {
    let options = |options: &str, service: &str| {
        let filesystem =
            "[[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a\"\ntype = \"xfs\"\n";
        let lines = format!("{filesystem}{options}\n[[virtual_server.service]]\n{service}");
        good(&lines)[0].filesystems[0].options.clone()
    };
    let nfs = "kind = \"nfs-ganesha\"";
    assert_eq!(options("", nfs), "dirsync");
    assert_eq!(options("options = \"noatime\"", nfs), "noatime,dirsync");
    assert_eq!(options("options = \"sync\"", nfs), "sync");
    assert_eq!(options("options = \"nodev,dirsync\"", nfs), "nodev,dirsync");
    assert_eq!(options("", "kind = \"exec\"\nstart = [\"/bin/a\"]"), "");
}

#[test]
fn file_systems_that_only_their_services_see_are_asked_for() {
    let filesystem =
        "[[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a\"\ntype = \"xfs\"\n";
    assert!(!good(filesystem)[0].private_mounts);
    assert!(good(&format!("private_mounts = true\n{filesystem}"))[0].private_mounts);
}

/// Lines of `[[virtual_server]]` and the only error expected.
const SINGLE: &[(&str, &str)] = &[
    ("service = [1]", "1:12: [[virtual_server.service]] is a number, not a section; write it as a section"),
    (
        "fence = \"stonith\"",
        "1:10: `fence` in [[virtual_server]] is \"stonith\"; write \"none\" or \"scsi-pr\" or \"agent\" or \"watchdog\"",
    ),
    (
        "i_accept_corruption = \"yes\"",
        "1:24: `i_accept_corruption` in [[virtual_server]] is a text; write true or false, without quotes",
    ),
    (
        "private_mounts = true\n[[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a\"\ntype = \"xfs\"\n\
         [[virtual_server.service]]\nkind = \"systemd\"\nunit = \"a.service\"",
        "6:1: a.service is started by systemd, where it can't see file systems with private_mounts = true; run its program by kind = \"exec\", or take `private_mounts` out",
    ),
    (
        "[[virtual_server.service]]\nstart = [\"/bin/a\"]",
        "1:1: [[virtual_server.service]] has no `kind`; add kind = \"exec\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"systemd\"",
        "1:1: [[virtual_server.service]] has no `unit`; add unit = \"vsftpd.service\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"vsftpd\"",
        "3:9: \"vsftpd\" is no unit of systemd; write it with its type, as \"vsftpd.service\" or \"vsftpd@projects.service\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"vsftpd@.service\"",
        "3:9: \"vsftpd@.service\" is no unit of systemd; write it with its type, as \"vsftpd.service\" or \"vsftpd@projects.service\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"a b.service\"",
        "3:9: \"a b.service\" is no unit of systemd; write it with its type, as \"vsftpd.service\" or \"vsftpd@projects.service\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"a.service\"\n[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"a.service\"",
        "4:1: a.service is there twice, first in line 12; a unit belongs to one virtual server",
    ),
    (
        "[[virtual_server.service]]\nkind = \"cron\"",
        "2:9: `kind` in [[virtual_server.service]] is \"cron\"; write \"exec\" or \"ocf\" or \"nfs-ganesha\" or \"systemd\" or \"samba\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"",
        "1:1: [[virtual_server.service]] has no `start`; add start = [\"/usr/sbin/program\", \"argument\"]",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"\nstart = \"/bin/a\"",
        "3:10: `start` in [[virtual_server.service]] is a text; write a list in square brackets",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"\nstart = []",
        "3:9: `start` in [[virtual_server.service]] is empty; write start = [\"/usr/sbin/program\", \"argument\"]",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"a\"]",
        "3:11: `start` starts \"a\", not an absolute path; write start = [\"/usr/sbin/program\", \"argument\"]",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/a\", 1]",
        "3:16: `start` in [[virtual_server.service]] is a number; write texts in quotes",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/a\"]\nagent = \"x/y\"",
        "4:1: unknown key in [[virtual_server.service]]: `agent`; known are start, stop, monitor, kind, start_limit, stop_limit, monitor_every, monitor_limit, restarts",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/a\"]\nstart_limit = \"1ms\"",
        "4:16: `start_limit` in [[virtual_server.service]] is \"1ms\"; choose a value from 100ms to 1h",
    ),
    (
        "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/a\"]\nrestarts = 1001",
        "4:12: `restarts` in [[virtual_server.service]] is 1001; write a number from 0 to 1000",
    ),
    (
        "[[virtual_server.service]]\nkind = \"ocf\"",
        "1:1: [[virtual_server.service]] has no `agent`; add agent = \"heartbeat/nfsserver\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"ocf\"\nagent = \"ocf:heartbeat:nfsserver\"",
        "3:10: `agent` is \"ocf:heartbeat:nfsserver\"; write \"heartbeat/nfsserver\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"ocf\"\nagent = \"../x\"",
        "3:10: `agent` is \"../x\"; write provider and name, as \"heartbeat/nfsserver\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"ocf\"\nagent = \"a/b\"\nparameters = { a = [1] }",
        "4:20: `a` in `parameters` is a list; write a text in quotes",
    ),
    (
        "[[virtual_server.service]]\nkind = \"ocf\"\nagent = \"a/b\"\nparameters = { \"a b\" = 1 }",
        "4:17: `parameters` has \"a b\"; names have letters, digits and underscores only",
    ),
    (
        "[[virtual_server.service]]\nkind = \"nfs-ganesha\"",
        "1:1: nothing is exported: the virtual server has no file system; add a [[virtual_server.filesystem]], or exports = [{ path = \"/srv/projects\" }]",
    ),
    (
        "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ path = \"/a\" }]\nprotocols = [2]",
        "4:1: `protocols` holds something that is no version of NFS; write [4] or [3, 4]",
    ),
    (
        "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ path = \"/a\" }]\nprotocols = []",
        "4:1: `protocols` holds something that is no version of NFS; write [4] or [3, 4]",
    ),
    (
        "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ path = \"/a\" }, { path = \"/a/\" }]",
        "3:29: /a is exported twice, first in line 14; leave one of the two out, or give it another `pseudo`",
    ),
    (
        "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ path = \"/a\", clients = [\"a b\"] }]",
        "3:39: `clients` has \"a b\"; write an address, a subnet, a name or \"*\"",
    ),
    (
        "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ path = \"/a\\\"; }\" }]",
        "3:12: \"/a\\\"; }\" can't be exported; choose a name without quotes, backslashes and control characters",
    ),
    (
        "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ pseudo = \"/a\" }]",
        "3:12: `exports` has no `path`; add path = \"/srv/projects\"",
    ),
];

#[test]
fn every_error_is_found_at_its_place() {
    for (lines, expected) in SINGLE {
        let found = errors(lines);
        // An export without a path is none, and then nothing is exported.
        let found: Vec<_> = found
            .into_iter()
            .filter(|e| expected.contains("nothing is exported") || !e.contains("nothing is exported"))
            .collect();
        assert_eq!(found, [*expected], "with {lines}");
    }
}

/// Lines of `[[virtual_server.filesystem]]` instead of the good ones, and the only error expected.
#[test]
fn file_systems_are_checked() {
    let good_lines = ["device = \"/dev/a\"", "mount = \"/srv/a\"", "type = \"xfs\""];
    let with = |place: usize, line: &str| {
        let mut lines = good_lines;
        if let Some(slot) = lines.get_mut(place) {
            *slot = line;
        }
        let more = if place == 3 { line } else { "" };
        format!("[[virtual_server.filesystem]]\n{}\n{more}", lines.join("\n"))
    };
    good(&with(9, ""));
    for (place, line, expected) in [
        (0, "", "1:1: [[virtual_server.filesystem]] has no `device`; add device = \"/dev/disk/by-id/…\""),
        (
            0,
            "device = \"LABEL=a\"",
            "2:11: `device` in [[virtual_server.filesystem]] is \"LABEL=a\", not an absolute path; start it with /",
        ),
        (
            1,
            "mount = \"/\"",
            "3:10: `mount` in [[virtual_server.filesystem]] is \"/\"; choose a folder of its own",
        ),
        (1, "mount = \"/srv/../etc\"", "3:10: /srv/../etc goes up again; write it without .."),
        (
            2,
            "type = \"x y\"",
            "4:9: \"x y\" is no type of a file system; write it as in /proc/filesystems, as \"xfs\"",
        ),
        (
            3,
            "options = \"noatime, nodev\"",
            "5:12: `options` in [[virtual_server.filesystem]] has spaces; separate them by commas, as \"noatime,nodev\"",
        ),
        (
            3,
            "options = \"noatime,bind\"",
            "5:12: `options` has \"bind\", which doesn't mount a device; leave it out",
        ),
        (
            3,
            "options = 3",
            "5:11: `options` in [[virtual_server.filesystem]] is a number; write text in quotes",
        ),
    ] {
        assert_eq!(errors(&with(place, line)), [expected], "with {line}");
    }
}

#[test]
fn what_belongs_to_one_server_is_not_anothers() {
    let other = "[[virtual_server]]\nname = \"homes\"\naddresses = [\"10.0.0.11/24\"]\n";
    let fs = |device: &str, mount: &str| {
        format!("[[virtual_server.filesystem]]\ndevice = \"{device}\"\nmount = \"{mount}\"\ntype = \"xfs\"\n")
    };
    let both = |second: &str| fs("/dev/a", "/srv/a") + other + second;
    assert_eq!(good(&both(&fs("/dev/b", "/srv/ab"))).len(), 2);
    for (device, mount, expected) in [
        (
            "/dev/a",
            "/srv/b",
            "9:11: device /dev/a is there twice, first in line 13; a device belongs to one file system of one virtual server",
        ),
        (
            "/dev/b",
            "/srv/a",
            "10:10: /srv/a is mounted twice, first in line 14; give each file system its own folder",
        ),
        (
            "/dev/b",
            "/srv/a/b",
            "10:10: /srv/a/b lies below a mount point of another virtual server, first in line 14; choose a folder outside of it, or give both file systems to one of them",
        ),
    ] {
        assert_eq!(errors(&both(&fs(device, mount))), [expected]);
    }
    good(&(fs("/dev/a", "/srv/a") + &fs("/dev/b", "/srv/a/b")));
    let wrong = errors(&(fs("/dev/b", "/srv/a/b") + &fs("/dev/a", "/srv/a")));
    assert!(wrong.len() == 1 && wrong[0].contains("mounted after it"), "{wrong:?}");
    let ganesha = "[[virtual_server.service]]\nkind = \"nfs-ganesha\"\n";
    let twice = errors(&(fs("/dev/a", "/srv/a") + ganesha + ganesha));
    assert!(twice.len() == 1 && twice[0].contains("two services \"nfs-ganesha\""), "{twice:?}");
}

#[test]
fn a_cluster_needs_fencing_or_a_word() {
    let fs = |kind: &str| {
        format!("[[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a\"\ntype = \"{kind}\"\n")
    };
    let text = |accepted: &str, kind: &str| format!("{CLUSTER}{accepted}{}", fs(kind));
    let parsed = |accepted, kind| Definitions::parse(&text(accepted, kind), "f");
    for accepted in [
        "",
        "fence = \"none\"\n",
        "i_accept_corruption = true\n",
        "fence = \"none\"\ni_accept_corruption = false\n",
    ] {
        let problems = parsed(accepted, "ext4").expect_err("accepted").to_string();
        assert_eq!(problems.lines().count(), 1, "{problems}");
        assert!(
            problems.contains(
                "that destroys the file system; say fence = \"agent\", \"watchdog\" or \"scsi-pr\""
            ),
            "{problems}"
        );
    }
    let both = "fence = \"none\"\ni_accept_corruption = true\n";
    let (definitions, warnings) = parsed(both, "ext4").expect("accepted");
    assert_eq!(definitions.resources.len(), 1);
    assert!(warnings.to_string().contains("`i_accept_corruption` accepts that"), "{warnings}");
    let (_, warnings) = parsed("", "gfs2").expect("a cluster file system");
    assert!(warnings.is_empty(), "{warnings}");
    // A node that is alone has nobody to share with.
    good(&fs("ext4"));

    let (bare, _) = Definitions::parse(CLUSTER, "f").expect("good");
    assert_eq!(
        definitions.difference(Some(&bare)).last().map(String::as_str),
        Some("+ file systems and services of projects")
    );
    let (other, _) = Definitions::parse(&text(both, "ext4").replace("ext4", "xfs"), "f").expect("good");
    assert_eq!(other.difference(Some(&definitions)), ["~ file systems and services of projects"]);
}

#[test]
fn clients_are_told_unless_it_is_said_otherwise() {
    let service = "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/bin/true\"]";
    let told = |line: &str| good(&format!("{line}{service}"))[0].reset_connections;
    assert!(told("") && told("reset_connections = true\n") && !told("reset_connections = false\n"));
    let refused = errors(&format!("reset_connections = 0\n{service}"));
    assert!(
        refused.len() == 1 && refused[0].contains("`reset_connections` in [[virtual_server]]"),
        "{refused:?}"
    );
}

#[test]
fn an_export_beside_the_file_systems_is_doubted() {
    let lines = "[[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a\"\ntype = \"xfs\"\n\
                 [[virtual_server.service]]\nkind = \"nfs-ganesha\"\nexports = [{ path = \"/srv/ab\" }]";
    let warnings = texts::good(&format!("{NODE}{lines}\n")).warnings.to_string();
    assert!(warnings.contains("/srv/ab is on none of the virtual server's file systems"), "{warnings}");
}

/// Lines of the service and the only error expected; the server has a file system at /srv/a.
const SAMBA: &[(&str, &str)] = &[
    ("shares = [{ name = \"a\" }]", "6:11: `shares` has no `path`; add path = \"/srv/projects\""),
    (
        "shares = [{ path = \"/srv/a\", public = true }]",
        "6:30: unknown key in `shares`: `public`; known are name, path, read_only, guest, valid_users, force_user",
    ),
    (
        "shares = [{ path = \"/srv/a/b\" }, { name = \"B\", path = \"/srv/a\" }]",
        "6:34: there are two shares \"B\", first in line 17; give one of the two another `name`; capitals make no difference",
    ),
    (
        "shares = [{ path = \"/srv/a/%u\" }]",
        "6:21: \"/srv/a/%u\" can't be written into Samba's configuration; choose a name without quotes, backslashes, percent signs, control characters and spaces at its ends",
    ),
    (
        "shares = [{ path = \"/srv/a\", name = \"a]\" }]",
        "6:38: \"a]\" can't be the name of a share; write name = \"projects\", with letters, digits and the like",
    ),
    (
        "shares = [{ path = \"/srv/a/homes\" }]",
        "6:11: \"homes\" can't be the name of a share; write name = \"projects\", with letters, digits and the like",
    ),
    (
        "shares = [{ path = \"/srv/a\", valid_users = [\"alice\", \"b\\nguest ok = yes\"] }]",
        "6:55: `valid_users` has \"b\\nguest ok = yes\"; write a user, as \"alice\", or a group, as \"@staff\"",
    ),
    (
        "shares = [{ path = \"/srv/a\", force_user = \"@staff\" }]",
        "6:44: `force_user` is \"@staff\"; write a user of this node, as \"nobody\"",
    ),
    (
        "include = \"more.conf\"",
        "6:12: `include` in [[virtual_server.service]] is \"more.conf\", not an absolute path; start it with /",
    ),
    (
        "exports = []",
        "6:1: unknown key in [[virtual_server.service]]: `exports`; known are shares, include, program, kind, start_limit, stop_limit, monitor_every, monitor_limit, restarts",
    ),
    (
        "[[virtual_server.service]]\nkind = \"samba\"",
        "6:1: the virtual server has two services \"samba\", first in line 15; put all shares into one of them",
    ),
];

#[test]
fn a_unit_is_taken() {
    let lines =
        "[[virtual_server.service]]\nkind = \"systemd\"\nunit = \"vsftpd@projects.service\"\nrestarts = 1";
    let service = only(lines);
    assert_eq!(service.kind, ServiceKind::Systemd(Unit { unit: "vsftpd@projects.service".into() }));
    assert_eq!((service.restarts, service.start_limit), (1, 30 * SECOND));
}

#[test]
fn samba_is_checked() {
    let text = |mounts: &[&str], lines: &str| {
        let filesystem =
            |(n, mount)| format!("{{ device = \"/dev/{n}\", mount = \"{mount}\", type = \"xfs\" }}");
        let filesystems: Vec<String> = mounts.iter().enumerate().map(filesystem).collect();
        let filesystems = filesystems.join(", ");
        format!("filesystem = [{filesystems}]\n#\n#\n[[virtual_server.service]]\nkind = \"samba\"\n{lines}")
    };
    for (lines, expected) in SAMBA {
        assert_eq!(errors(&text(&["/srv/a"], lines)), [*expected], "with {lines}");
    }
    let fix = "write the shares out: shares = [{ name = \"projects\", path = \"/srv/projects\" }]";
    let twice = errors(&text(&["/srv/a", "/mnt/A"], ""));
    assert_eq!(twice, [format!("4:1: two file systems would be shared as \"A\", first in line 15; {fix}")]);
    let reserved = errors(&text(&["/srv/a", "/srv/global"], ""));
    assert_eq!(reserved, [format!("4:1: \"global\" can't be the name of a share; {fix}")]);
}

#[test]
fn samba_shares_every_file_system_unless_told_otherwise() {
    let filesystems = "[[virtual_server.filesystem]]\ndevice = \"/dev/a\"\nmount = \"/srv/a\"\ntype = \"xfs\"\n\
                       [[virtual_server.filesystem]]\ndevice = \"/dev/b\"\nmount = \"/srv/b c\"\ntype = \"xfs\"\n";
    let samba = |more: &str| {
        let lines = format!("{filesystems}[[virtual_server.service]]\nkind = \"samba\"\n{more}");
        match only(&lines).kind {
            ServiceKind::Samba(samba) => samba,
            other => panic!("{other:?}"),
        }
    };
    let share = |name: &str, path: &str| Share {
        name: name.into(),
        path: path.into(),
        read_only: false,
        guest: false,
        valid_users: Vec::new(),
        force_user: None,
    };
    let all = vec![share("a", "/srv/a"), share("b c", "/srv/b c")];
    assert_eq!(samba(""), Samba { program: "smbd".into(), include: None, shares: all });
    let told = samba(
        "program = \"/opt/smbd\"\ninclude = \"/etc/more.conf\"\n\
         shares = [{ path = \"/srv/a/x\", read_only = true, guest = true, valid_users = [\"alice\", \"@staff\"], \
         force_user = \"nobody\" }, { name = \"all\", path = \"/srv/a/\" }]",
    );
    let first = Share {
        read_only: true,
        guest: true,
        valid_users: vec!["alice".into(), "@staff".into()],
        force_user: Some("nobody".into()),
        ..share("x", "/srv/a/x")
    };
    let expected = Samba {
        program: "/opt/smbd".into(),
        include: Some("/etc/more.conf".into()),
        shares: vec![first, share("all", "/srv/a")],
    };
    assert_eq!(told, expected);
    let alone = errors("[[virtual_server.service]]\nkind = \"samba\"");
    assert!(alone.len() == 1 && alone[0].contains("nothing is shared"), "{alone:?}");
}
