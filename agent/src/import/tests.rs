use proptest::prelude::*;

use super::*;

const KEEPALIVED: &str = r#"! Configuration File for keepalived
global_defs {
   router_id fs1           # this node
   notification_email {
     admin@example.com
   }
}
vrrp_script chk_nfs {
    script "/usr/local/bin/check_nfs -t 3"
    interval 2
}
vrrp_instance VI_1 {
    state MASTER
    interface eth0
    virtual_router_id 51
    priority 101
    advert_int 1
    nopreempt
    authentication {
        auth_type PASS
        auth_pass 1111
    }
    virtual_ipaddress {
        10.0.0.10/24
        10.0.0.11
    }
    virtual_ipaddress_excluded {
        fd00:10::10/64 dev eth0
    }
    track_script {
        chk_nfs
    }
    track_interface { eth0 }
    notify_master "/usr/local/bin/mount_all"
}
vrrp_instance VI_2
{
    interface eth1
    priority 50
    virtual_ipaddress { 10.1.0.10/16 }
}
vrrp_instance VI_3 { interface eth2
    virtual_ipaddress { 10.0.0.12/24 dev eth3 } }
vrrp_sync_group G1 {
    group { VI_2 VI_3 }
}
virtual_server 10.0.0.10 80 {
    real_server 10.0.0.20 80 { weight 1 }
}
"#;

fn good(text: &str, kind: Option<Kind>) -> Imported {
    translate(text, "f", kind).unwrap_or_else(|e| panic!("{e}\n---\n{text}"))
}

/// `line: what` of every remark, cut after some words.
fn remarks(imported: &Imported) -> Vec<String> {
    let short = |r: &Remark| format!("{}: {}", r.line, r.what.chars().take(32).collect::<String>());
    imported.remarks.iter().map(short).collect()
}

#[test]
fn keepalived_becomes_ports_segments_and_virtual_servers() {
    let imported = good(KEEPALIVED, None);
    let loaded = config::parse(&imported.text, "f").expect("it passes the check");
    assert_eq!(loaded.core.node, "fs1");
    let servers: Vec<(String, Vec<String>)> = loaded
        .core
        .servers
        .iter()
        .map(|s| (s.name.clone(), s.addresses.iter().map(ToString::to_string).collect()))
        .collect();
    let list = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        servers,
        [
            ("G1".to_owned(), list(&["10.1.0.10/16", "10.0.0.12/24"])),
            ("VI_1".to_owned(), list(&["10.0.0.10/24", "10.0.0.11/24", "fd00:10::10/64"])),
        ]
    );
    assert_eq!(loaded.core.servers[1].preferred_nodes, ["fs1"]);
    assert_eq!(loaded.core.servers[1].failback, baton_core::config::Failback::Manual);
    assert_eq!(loaded.core.servers[0].failback, baton_core::config::Failback::Immediate);
    let ports: Vec<(&str, &str)> =
        loaded.core.ports.iter().map(|p| (p.interface.as_str(), p.segment.as_str())).collect();
    // 10.0.0.0/24 is behind eth0 and eth3; eth2 has no address of its own.
    assert_eq!(ports, [("eth1", "net-eth1"), ("eth3", "net-eth3"), ("eth0", "net-eth3")]);
    assert!(
        imported.text.contains("# monitor = [\"/usr/local/bin/check_nfs\", \"-t\", \"3\"]"),
        "{}",
        imported.text
    );
}

#[test]
fn what_keepalived_has_and_baton_has_not_is_told_with_its_line() {
    assert_eq!(
        remarks(&good(KEEPALIVED, None)),
        [
            "4: not expressed: notification_emai",
            "15: not needed: virtual_router_id: n",
            "16: not expressed: priority 101: nam",
            "17: not needed: advert_int: nodes sp",
            "19: not needed: authentication: all ",
            "25: assumed: 10.0.0.11/24, for there",
            "30: not expressed: track_script: let",
            "34: not expressed: notify_master /us",
            "39: not expressed: priority 50: name",
            "47: not expressed: virtual_server 10",
        ]
    );
}

#[test]
fn ctdbs_addresses_are_virtual_servers_and_interfaces_of_a_line_are_ports_of_a_segment() {
    let text = "# public\n10.1.1.1/24 eth0,eth1\n10.1.1.2/24 eth1\n\nfd00::5/64 eth2\n10.2.0.1 eth3\n10.1.1.0/24 eth0\n";
    let imported = good(text, None);
    let loaded = config::parse(&imported.text, "f").expect("it passes the check");
    let names: Vec<&str> = loaded.core.servers.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["10.1.1.1", "10.1.1.2", "fd00--5"]);
    let ports: Vec<(&str, &str)> =
        loaded.core.ports.iter().map(|p| (p.interface.as_str(), p.segment.as_str())).collect();
    assert_eq!(ports, [("eth0", "net-eth0"), ("eth1", "net-eth0"), ("eth2", "net-eth2")]);
    let all = remarks(&imported);
    assert_eq!(all.len(), 5, "{all:?}");
    assert!(all[3].starts_with("6: left out: \"10.2.0.1\" is no ad"), "{all:?}");
    assert!(all[4].starts_with("7: left out: 10.1.1.0 is the sub"), "{all:?}");
}

#[test]
fn included_files_are_read_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let main = folder.path().join("keepalived.conf");
    std::fs::write(
        &main,
        "include more.conf\ninclude gone.conf\ninclude conf.d/*.conf\ninclude keepalived.conf\n",
    )
    .expect("written");
    std::fs::write(
        folder.path().join("more.conf"),
        "vrrp_instance A {\n interface eth0\n what 1\n virtual_ipaddress {\n 10.0.0.1/24\n}\n}\n",
    )
    .expect("written");
    let imported = import(&main, None).expect("read");
    let all: Vec<String> = imported.remarks.iter().map(ToString::to_string).collect();
    assert!(all.iter().any(|r| r.contains("keepalived.conf:2: not expressed: include ")), "{all:#?}");
    assert!(
        all.iter().any(|r| r.contains("keepalived.conf:3: ") && r.contains("conf.d/*.conf: ")),
        "{all:#?}"
    );
    assert!(all.iter().any(|r| r.contains("more.conf:3: not understood: \"what\"")), "{all:#?}");
    // A file that includes itself ends.
    assert!(all.iter().any(|r| r.contains("too many files")), "{all:#?}");
}

#[test]
fn patterns_stand_for_the_files_that_fit() {
    let folder = tempfile::tempdir().expect("a folder");
    let below = folder.path().join("conf.d");
    std::fs::create_dir(&below).expect("a folder");
    let instance = |n: u8| {
        format!("vrrp_instance I{n} {{\n interface eth0\n virtual_ipaddress {{\n 10.0.0.{n}/24\n}}\n}}\n")
    };
    for (n, name) in [(2, "b.conf"), (1, "a.conf"), (3, "c.conf.bak"), (4, ".d.conf"), (5, "ab.conf")] {
        std::fs::write(below.join(name), instance(n)).expect("written");
    }
    let servers = |pattern: &str| {
        let main = folder.path().join("keepalived.conf");
        std::fs::write(&main, format!("include conf.d/{pattern}\n")).expect("written");
        let text = import(&main, None).expect("read").text;
        let loaded = config::parse(&text, "f").expect("it passes the check");
        loaded.core.servers.iter().map(|s| s.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(servers("*.conf"), ["I1", "I5", "I2"]);
    assert_eq!(servers("?.conf"), ["I1", "I2"]);
    assert_eq!(servers("*b*"), ["I5", "I2", "I3"]);
}

#[test]
fn without_an_address_there_is_nothing_to_make() {
    for text in ["", "vrrp_instance A {", "10.0.0.1/24x eth0", "}}}{", "224.0.0.1/24 eth0", "\0"] {
        let error = translate(text, "f", None).expect_err("nothing");
        assert!(matches!(error, ImportError::Nothing { .. }), "{text:?}: {error}");
    }
    let error = translate("vrrp_instance A {\n", "f", None).expect_err("nothing").to_string();
    assert!(error.contains("f:1: not understood: a closing brace is missing"), "{error}");
}

#[test]
fn blocks_without_end_are_no_harm() {
    let deep = format!("vrrp_instance {} 10.0.0.1 {}", "{ ".repeat(200_000), "} ".repeat(100_000));
    assert!(translate(&deep, "f", None).is_err());
}

/// A word that means something, or nothing.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "vrrp_instance", "vrrp_sync_group", "group", "virtual_ipaddress", "virtual_ipaddress_excluded", "interface", "dev",
            "eth0", "eth1", "lo", "{", "}", "\n", "\n", "{\n", "}\n", "\"", "'", "#", "!", "include", "track_script",
            "vrrp_script", "script", "interval", "global_defs", "router_id", "state", "MASTER", "priority", "nopreempt",
            "10.0.0.1/24", "10.0.0.0/24", "10.0.0.255/8", "10.0.0.7", "0.0.0.0/0", "127.0.0.1/8", "224.0.0.1", "fd00::1/64",
            "fe80::1/64", "::1", "::/0", "255.255.255.255/32", "1.2.3.4/1", "A", "B", "eth0,eth1", "10.0.0.3/31", "fd00::/127",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,20}",
    ]
}

/// An address of any kind, with and without its length.
fn address() -> impl Strategy<Value = String> {
    let four = (prop_oneof![Just(10u8), Just(192), any::<u8>()], any::<u8>(), 0u8..3, any::<u8>(), 0u8..=32);
    let six = (prop_oneof![Just(0xfd00u16), Just(0x2001), any::<u16>()], 0u16..3, any::<u16>(), 0u8..=128);
    prop_oneof![
        four.prop_map(|(a, b, c, d, length)| format!("{a}.{b}.{c}.{d}/{length}")),
        six.prop_map(|(a, b, c, length)| format!("{a:x}:{b:x}::{c:x}/{length}")),
        Just("10.0.0.9".to_owned()),
    ]
}

proptest! {
    /// No text makes it panic, and what comes out passes every check.
    #[test]
    fn any_text_is_translated_or_refused(text in prop_oneof![
        any::<String>(),
        prop::collection::vec(word(), 0..60).prop_map(|words| words.join(" ")),
    ]) {
        for kind in [None, Some(Kind::Keepalived), Some(Kind::Ctdb)] {
            match translate(&text, "f", kind) {
                Ok(_) | Err(ImportError::Nothing { .. }) => {}
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }

    /// Whatever addresses, interfaces and names there are: it passes every check, and no address is lost without a remark.
    #[test]
    fn addresses_are_served_or_told(
        instances in prop::collection::vec(
            ("\\PC{0,70}", "[a-z0-9:.+-]{0,18}", prop::collection::vec(address(), 0..5)),
            1..5,
        )
    ) {
        let mut text = String::new();
        let mut all = 0;
        for (name, interface, addresses) in &instances {
            let name: String = name.chars().filter(|c| !"{}\"'#!".contains(*c)).collect();
            all += addresses.len();
            text += &format!(
                "vrrp_instance \"{name}\" {{\ninterface {interface}\nvirtual_ipaddress {{\n{}\n}}\n}}\n",
                addresses.join("\n")
            );
        }
        let (served, remarks) = match translate(&text, "f", Some(Kind::Keepalived)) {
            Ok(imported) => {
                let loaded = config::parse(&imported.text, "f").expect("checked");
                (loaded.core.servers.iter().map(|s| s.addresses.len()).sum(), imported.remarks)
            }
            Err(ImportError::Nothing { remarks, .. }) => (0, remarks),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let told = remarks.iter().filter(|r| {
            r.what.starts_with("left out: ") && !r.what.ends_with(" can't be a port") && !r.what.contains("has no address")
        });
        prop_assert!(served + told.count() >= all, "{all} addresses, {served} served, {remarks:?}\n{text}");
    }
}
