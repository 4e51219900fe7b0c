//! A machine is described, something is wrong with it, and the finding that says so must come, with its remedy.

use std::time::Duration;

use baton_core::{Attachment, ConflictView, PortState, PortView, Reason, Snapshot};

use super::*;

fn port(name: &str, mac: &str) -> Port {
    Port {
        interface: name.to_owned(),
        segment: "office".to_owned(),
        speed_configured: false,
        link: Some(Link {
            driver: Some("ice".to_owned()),
            up: true,
            carrier: true,
            speed: Some(10_000),
            mac: mac.to_owned(),
            mtu: 1500,
            ..Link::default()
        }),
    }
}

fn member(url: &str) -> Endpoint {
    let member = Member {
        version: "3.5.9".to_owned(),
        has_leader: true,
        cluster: 7,
        took: Duration::from_millis(2),
        ..Member::default()
    };
    Endpoint { url: url.to_owned(), local: url.contains("127.0.0.1"), answer: Ok(member) }
}

fn etcd() -> Store {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    Store::Etcd {
        endpoints: vec![member("https://127.0.0.1:2379"), member("https://10.0.0.2:2379")],
        definitions: Ok("generation 4 of the definitions fits this node".to_owned()),
        certificates: vec![("/etc/baton/ca.pem".into(), Ok(now + Duration::from_secs(365 * 86_400)))],
        now,
    }
}

/// A web page whose certificate is good for so many days.
fn page(unusable: Option<&str>, days: u64) -> Page {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let certificates = vec![("/etc/baton/page.pem".into(), Ok(now + Duration::from_secs(days * 86_400)))];
    Page { unusable: unusable.map(str::to_owned), certificates, now }
}

fn setting(key: &str, found: &str, wanted: Wanted) -> Setting {
    Setting { key: key.to_owned(), found: found.to_owned(), wanted }
}

fn status() -> Box<Status> {
    let view = |interface: &str| PortView {
        interface: interface.to_owned(),
        segment: "office".to_owned(),
        state: PortState::Good,
        reason: None,
        carrier: true,
        present: true,
        attachment: Some(Attachment::Native),
        held_ms: None,
        flaps: 0,
        addresses: 1,
        rate: 0,
    };
    let snapshot = Snapshot {
        quorum: true,
        store: true,
        ports: vec![view("eth0"), view("eth1")],
        ..Snapshot::default()
    };
    Box::new(Status { version: env!("CARGO_PKG_VERSION").to_owned(), age_ms: 5, snapshot })
}

/// A node of a cluster with nothing wrong.
fn fit() -> Facts {
    Facts {
        notes: Vec::new(),
        kernel: Kernel {
            release: "6.8.0-31-generic".to_owned(),
            btf: true,
            jit: Some(1),
            lacks: Some(Vec::new()),
        },
        privileges: Privileges { root: true, missing: Vec::new() },
        agent: Agent::Runs(status()),
        ports: vec![port("eth0", "02:00:00:00:00:01"), port("eth1", "02:00:00:00:00:02")],
        cluster: true,
        ipv6_segments: vec!["office".to_owned()],
        settings: vec![setting("ipv4/conf/eth0/rp_filter", "2", Wanted::Set("2"))],
        clock: Some(Clock { synchronised: true, rate_ppm: -12.5, source: "tsc".to_owned() }),
        store: etcd(),
        key: Key {
            path: "/etc/baton/probe.key".into(),
            fingerprint: Ok(Some("0123456789abcdef".to_owned())),
            wanted: Some("0123456789abcdef".to_owned()),
        },
        exposed: Vec::new(),
        managers: Vec::new(),
        arp_tables: Vec::new(),
        nftables: Some(Ok(serde_json::json!({"nftables": []}))),
        bpffs: ("/sys/fs/bpf/baton".into(), true),
        state: StateFolder {
            path: "/var/lib/baton".into(),
            exists: true,
            writable: Some(true),
            free: Some(10 << 30),
            files: Some(1_000_000),
            in_memory: false,
        },
        hooks: Vec::new(),
        page: None,
        watchdog: Some(Watchdog {
            path: "/dev/watchdog".into(),
            exists: true,
            identity: Some("iTCO_wdt".to_owned()),
        }),
    }
}

#[test]
fn nothing_is_said_against_a_machine_that_is_fit() {
    let findings = examine(&fit());
    let bad: Vec<_> = findings.iter().filter(|f| f.level != Level::Ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    // Each place is spoken of.
    for place in [
        "configuration",
        "kernel",
        "privileges",
        "agent",
        "port eth0",
        "port eth1",
        "segment office",
        "settings",
    ]
    .into_iter()
    .chain([
        "clock",
        "store",
        "probe key",
        "secrets",
        "other managers",
        "firewall",
        "BPF file system",
        "state folder",
        "watchdog",
    ]) {
        assert!(findings.iter().any(|f| f.place == place), "{place} is missing");
    }
}

type Fault = (&'static str, fn(&mut Facts), Level, &'static str, &'static str);

fn link(facts: &mut Facts) -> &mut Link {
    facts.ports[0].link.as_mut().expect("a link")
}

fn running(facts: &mut Facts) -> &mut Snapshot {
    match &mut facts.agent {
        Agent::Runs(status) => &mut status.snapshot,
        other => panic!("{other:?}"),
    }
}

fn endpoints(facts: &mut Facts) -> &mut Vec<Endpoint> {
    match &mut facts.store {
        Store::Etcd { endpoints, .. } => endpoints,
        Store::File => panic!("a file"),
    }
}

fn first(facts: &mut Facts) -> &mut Member {
    endpoints(facts)[0].answer.as_mut().expect("an answer")
}

/// Place, what is wrong, how bad that is, a part of what is said, a part of the remedy.
const FAULTS: &[Fault] = &[
    (
        "configuration",
        |f| f.notes = vec![(Level::Warning, "f:1:1: no server; add one".into())],
        Level::Warning,
        "no server",
        "add one",
    ),
    ("kernel", |f| f.kernel.release = "5.10.0".into(), Level::Problem, "too old", "5.18"),
    ("kernel", |f| f.kernel.release = "6.1.0-18-amd64".into(), Level::Note, "clsact", "6.6"),
    ("kernel", |f| f.kernel.release = "x".into(), Level::Note, "understood", "5.18"),
    ("kernel", |f| f.kernel.btf = false, Level::Problem, "btf", "CONFIG_DEBUG_INFO_BTF"),
    ("kernel", |f| f.kernel.jit = Some(0), Level::Warning, "interpreted", "bpf_jit_enable"),
    ("kernel", |f| f.kernel.jit = None, Level::Note, "can't be seen", ""),
    ("kernel", |f| f.kernel.lacks = None, Level::Note, "tried", "root"),
    (
        "kernel",
        |f| f.kernel.lacks = Some(vec!["XDP programs".into()]),
        Level::Problem,
        "XDP programs",
        "kernel",
    ),
    ("privileges", |f| f.privileges.missing = vec!["CAP_BPF"], Level::Problem, "CAP_BPF", "container"),
    (
        "privileges",
        |f| f.privileges = Privileges { root: false, missing: vec!["CAP_BPF"] },
        Level::Note,
        "CAP_BPF",
        "root",
    ),
    ("agent", |f| f.agent = Agent::Absent, Level::Note, "doesn't run", "start baton"),
    (
        "agent",
        |f| f.agent = Agent::Mute("permission denied".into()),
        Level::Problem,
        "permission denied",
        "journalctl",
    ),
    ("agent", |f| running(f).quorum = false, Level::Problem, "majority", "baton status"),
    ("agent", |f| running(f).store = false, Level::Problem, "store", "etcd"),
    (
        "agent",
        |f| {
            let conflict =
                ConflictView { address: [10, 0, 0, 9].into(), interface: "eth7".into(), mac: None };
            running(f).conflicts.push(conflict);
        },
        Level::Problem,
        "10.0.0.9 is also held on eth7",
        "take it away",
    ),
    ("port eth0", |f| f.ports[0].link = None, Level::Problem, "no such interface", "ip link"),
    (
        "port eth0",
        |f| link(f).master = Some(("br0".into(), "bridge")),
        Level::Problem,
        "bridge br0",
        "name br0",
    ),
    (
        "port eth0",
        |f| link(f).master = Some(("bond0".into(), "bond")),
        Level::Problem,
        "bond bond0",
        "name bond0",
    ),
    ("port eth0", |f| link(f).up = false, Level::Problem, "switched off", "ip link set eth0 up"),
    ("port eth0", |f| link(f).carrier = false, Level::Problem, "no carrier", "cable"),
    ("port eth0", |f| link(f).speed = None, Level::Note, "how fast", "speed_mbits"),
    (
        "port eth0",
        |f| {
            (f.agent, link(f).driver) = (Agent::Absent, Some("e100".into()));
        },
        Level::Note,
        "e100, is not known to run XDP",
        "",
    ),
    (
        "port eth0",
        |f| running(f).ports[0].attachment = Some(Attachment::Generic),
        Level::Note,
        "does not run XDP",
        "",
    ),
    (
        "port eth0",
        |f| running(f).ports[0].attachment = Some(Attachment::TcOnly),
        Level::Warning,
        "no XDP at all",
        "ip link",
    ),
    (
        "port eth0",
        |f| {
            (running(f).ports[0].state, running(f).ports[0].reason) =
                (PortState::Silent, Some(Reason::ReceiveSilent));
        },
        Level::Problem,
        "silent (receive silent)",
        "baton events",
    ),
    ("port eth0", |f| running(f).ports[0].state = PortState::Held, Level::Note, "held back", "baton events"),
    ("segment office", |f| f.ports.truncate(1), Level::Note, "one port", "second port"),
    (
        "segment office",
        |f| {
            f.ports.truncate(1);
            f.cluster = false;
        },
        Level::Warning,
        "nothing can be served",
        "second port",
    ),
    ("segment office", |f| link(f).carrier = false, Level::Warning, "one port left", "others"),
    (
        "segment office",
        |f| link(f).mac = "02:00:00:00:00:02".into(),
        Level::Problem,
        "eth0, eth1 have the same hardware address",
        "bond",
    ),
    (
        "segment office",
        |f| f.ports.iter_mut().for_each(|p| p.link.as_mut().expect("a link").lower = vec!["eth9".into()]),
        Level::Warning,
        "eth0, eth1 all lie on eth9",
        "different hardware",
    ),
    ("segment office", |f| link(f).mtu = 9000, Level::Warning, "1500 on eth1; 9000 on eth0", "same"),
    (
        "settings",
        |f| f.settings[0].found = "1".into(),
        Level::Warning,
        "rp_filter is 1, and Baton needs 2",
        "/etc/sysctl.d",
    ),
    (
        "settings",
        |f| {
            (f.settings[0].found, f.agent) = ("1".into(), Agent::Absent);
        },
        Level::Note,
        "sets ipv4/conf/eth0/rp_filter = 2",
        "put back",
    ),
    (
        "settings",
        |f| f.settings.push(setting("ipv4/conf/all/arp_ignore", "2", Wanted::AtMost(1))),
        Level::Problem,
        "arp_ignore is 2",
        "at most 1",
    ),
    (
        "settings",
        |f| f.settings.push(setting("ipv6/conf/eth0/disable_ipv6", "1", Wanted::Exactly("0", "no IPv6"))),
        Level::Problem,
        "no IPv6",
        "set it to 0",
    ),
    ("clock", |f| f.clock = None, Level::Note, "does not tell", ""),
    ("clock", |f| f.clock.as_mut().expect("a clock").rate_ppm = 900.0, Level::Problem, "+900 parts", "NTP"),
    (
        "clock",
        |f| {
            f.clock.as_mut().expect("a clock").rate_ppm = -900.0;
            f.cluster = false;
        },
        Level::Warning,
        "-900 parts",
        "NTP",
    ),
    (
        "clock",
        |f| f.clock.as_mut().expect("a clock").synchronised = false,
        Level::Note,
        "logs of several nodes",
        "chrony",
    ),
    (
        "clock",
        |f| f.clock.as_mut().expect("a clock").source = "hpet".into(),
        Level::Warning,
        "hpet",
        "kernel's log",
    ),
    (
        "store",
        |f| endpoints(f)[1].answer = Err("connection refused".into()),
        Level::Problem,
        "10.0.0.2:2379 does not answer: connection refused",
        "etcdctl",
    ),
    ("store", |f| first(f).version = "3.3.25".into(), Level::Problem, "3.3.25", "3.4"),
    ("store", |f| first(f).has_leader = false, Level::Problem, "no leader", "majority"),
    ("store", |f| first(f).errors = vec!["NOSPACE".into()], Level::Problem, "NOSPACE", "compact"),
    ("store", |f| first(f).took = Duration::from_millis(700), Level::Warning, "700 ms", "disk"),
    ("store", |f| first(f).size = 1_900_000_000, Level::Warning, "1900 MB", "defragment"),
    ("store", |f| first(f).cluster = 8, Level::Problem, "different etcd clusters", "endpoints"),
    ("store", |f| endpoints(f)[0].local = false, Level::Note, "not on this node", "first"),
    (
        "store",
        |f| {
            if let Store::Etcd { definitions, .. } = &mut f.store {
                *definitions = Err("this node is no member; add it".into());
            }
        },
        Level::Problem,
        "no member",
        "add it",
    ),
    (
        "store",
        |f| {
            if let Store::Etcd { certificates, now, .. } = &mut f.store {
                certificates[0].1 = Ok(*now - Duration::from_secs(1));
            }
        },
        Level::Problem,
        "ca.pem has expired",
        "renew",
    ),
    (
        "store",
        |f| {
            if let Store::Etcd { certificates, now, .. } = &mut f.store {
                certificates[0].1 = Ok(*now + Duration::from_secs(3 * 86_400));
            }
        },
        Level::Warning,
        "expires in 3 days",
        "renew",
    ),
    (
        "store",
        |f| {
            if let Store::Etcd { certificates, .. } = &mut f.store {
                certificates[0].1 = Err("No such file".into());
            }
        },
        Level::Problem,
        "No such file",
        "PEM",
    ),
    (
        "web page",
        |f| {
            let why =
                "telemetry.tls_key = /etc/baton/page.key: there is no key in it; put the key there, as PEM";
            f.page = Some(page(Some(why), 365));
        },
        Level::Problem,
        "there is no key in it",
        "put the key there",
    ),
    (
        "web page",
        |f| f.page = Some(page(None, 9)),
        Level::Warning,
        "page.pem expires in 9 days",
        "`baton reload`",
    ),
    (
        "secrets",
        |f| {
            let what = "the password".to_owned();
            f.exposed = vec![Exposed { path: "/etc/baton/password".into(), what, mode: 0o644 }];
        },
        Level::Problem,
        "the password (mode 644)",
        "chmod 600 /etc/baton/password",
    ),
    (
        "probe key",
        |f| f.key.wanted = Some("ffffffffffffffff".into()),
        Level::Problem,
        "ffffffffffffffff",
        "copy",
    ),
    (
        "probe key",
        |f| f.key.wanted = None,
        Level::Note,
        "same on every node",
        "--key-fingerprint 0123456789abcdef",
    ),
    (
        "probe key",
        |f| f.key.fingerprint = Err("mode 644".into()),
        Level::Problem,
        "mode 644",
        "documentation",
    ),
    ("probe key", |f| f.key.fingerprint = Ok(None), Level::Note, "not there yet", "makes it"),
    (
        "other managers",
        |f| f.managers = vec![("keepalived".into(), 42)],
        Level::Warning,
        "keepalived runs here (process 42)",
        "stop it",
    ),
    ("firewall", |f| f.arp_tables = vec!["filter".into()], Level::Note, "table filter", "arptables -L"),
    (
        "firewall",
        |f| f.nftables = Some(Err("nft -j list ruleset: exit status: 1: Operation not permitted".into())),
        Level::Note,
        "Operation not permitted",
        "as root",
    ),
    (
        "firewall",
        |f| {
            let chain = r#"{"nftables": [{"chain": {"family": "arp", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}}]}"#;
            f.nftables = Some(Ok(serde_json::from_str(chain).expect("JSON")));
        },
        Level::Problem,
        "chain INPUT of table arp filter drops ARP",
        "nft insert rule arp filter INPUT accept",
    ),
    ("BPF file system", |f| f.bpffs.1 = false, Level::Note, "none is mounted", "mounts one"),
    ("state folder", |f| f.state.writable = Some(false), Level::Problem, "nothing can be written", "[paths]"),
    ("state folder", |f| f.state.writable = None, Level::Note, "not seen", "root"),
    ("state folder", |f| f.state.in_memory = true, Level::Warning, "in memory", "[paths]"),
    ("state folder", |f| f.state.free = Some(1 << 20), Level::Problem, "1 MB are left", "space"),
    ("state folder", |f| f.state.free = Some(64 << 20), Level::Warning, "67 MB are left", "space"),
    ("state folder", |f| f.state.files = Some(0), Level::Problem, "no more files", "inodes"),
    (
        "watchdog",
        |f| f.watchdog.as_mut().expect("one").exists = false,
        Level::Problem,
        "not there",
        "load the driver",
    ),
    (
        "watchdog",
        |f| f.watchdog.as_mut().expect("one").identity = Some("Software Watchdog".into()),
        Level::Warning,
        "Software",
        "hardware",
    ),
    (
        "hook page",
        |f| f.hooks = vec![("page".into(), "/x: No such file".into())],
        Level::Warning,
        "/x: No such file",
        "run",
    ),
];

#[test]
fn each_fault_is_found_where_it_is_and_says_what_to_do() {
    for (place, spoil, level, what, remedy) in FAULTS {
        let mut facts = fit();
        spoil(&mut facts);
        let findings = examine(&facts);
        let found = findings.iter().find(|f| f.place == *place && f.level == *level && f.what.contains(what));
        let found = found.unwrap_or_else(|| panic!("{place}: no {level:?} with \"{what}\" in {findings:#?}"));
        assert!(found.remedy.contains(remedy), "{found:?} has no \"{remedy}\"");
        // Whatever is worse than good to know says what to do.
        let mute = findings.iter().find(|f| f.level >= Level::Warning && f.remedy.is_empty());
        assert!(mute.is_none(), "{mute:?}");
        // And nothing is both well and not: a place with a finding doesn't claim the opposite of it.
        let twice = findings.iter().filter(|f| f.place == *place && f.level == Level::Ok).count();
        assert!(!matches!(*place, "settings" | "secrets") || twice == 0, "{findings:#?}");
    }
}

/// Where no member answers, that is said of each, and nothing is concluded from their silence.
#[test]
fn a_store_that_is_gone_is_one_problem_for_each_member() {
    let mut facts = fit();
    endpoints(&mut facts).iter_mut().for_each(|e| e.answer = Err("refused".into()));
    if let Store::Etcd { definitions, .. } = &mut facts.store {
        *definitions = Err("nobody answers".into());
    }
    let findings = examine(&facts);
    let bad: Vec<_> = findings.iter().filter(|f| f.level != Level::Ok).collect();
    assert_eq!(bad.len(), 2, "{bad:#?}");
}
