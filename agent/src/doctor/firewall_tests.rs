//! Rules as nft 1.0.6 prints them, and what they drop for certain.

use serde_json::json;

use super::*;
use crate::doctor::Link;

const ESTABLISHED: &str = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}"#;
const LOOPBACK: &str =
    r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, {"accept": null}"#;
const SSH: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": {"set": [22, 80]}}}, {"accept": null}"#;
const UDP: &str = r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": {"set": [6, 17]}}}, {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}"#;
const PING: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "icmpv6", "field": "type"}}, "right": "echo-request"}}, {"accept": null}"#;
const SOLICIT: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "icmpv6", "field": "type"}}, "right": {"set": ["echo-request", "nd-neighbor-solicit"]}}}, {"accept": null}"#;
const ICMP: &str =
    r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": 58}}, {"accept": null}"#;
const LOCAL: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "saddr"}}, "right": {"prefix": {"addr": "fe80::", "len": 10}}}}, {"jump": {"target": "more"}}"#;
const STATES: &str = r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}"#;
const LIMITED: &str = r#"{"limit": {"rate": 5, "burst": 5, "per": "second"}}, {"accept": null}"#;
const FEW: &str = r#"{"limit": {"rate": 5, "burst": 5, "per": "second"}}, {"drop": null}"#;
const NO_ADVERT: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "icmpv6", "field": "type"}}, "right": "nd-neighbor-advert"}}, {"log": {"prefix": "x"}}, {"drop": null}"#;
const ONLY_REPLIES: &str = r#"{"match": {"op": "!=", "left": {"payload": {"protocol": "icmpv6", "field": "type"}}, "right": "echo-reply"}}, {"drop": null}"#;
const NO_ICMP: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "nexthdr"}}, "right": 58}}, {"reject": {"type": "icmpv6", "expr": "port-unreachable"}}"#;
const REQUESTS: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "arp", "field": "operation"}}, "right": "request"}}, {"accept": null}"#;
const ARP: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ether", "field": "type"}}, "right": {"set": ["ip", "arp"]}}}, {"accept": null}"#;
const NO_IP6: &str =
    r#"{"match": {"op": "==", "left": {"meta": {"key": "protocol"}}, "right": "ip6"}}, {"drop": null}"#;
const ONLY_ARP: &str =
    r#"{"match": {"op": "!=", "left": {"meta": {"key": "protocol"}}, "right": "arp"}}, {"drop": null}"#;
const NO_PROBES: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ether", "field": "type"}}, "right": 34997}}, {"counter": {"packets": 0, "bytes": 0}}, {"drop": null}"#;
const PROBES: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ether", "field": "type"}}, "right": 34997}}, {"accept": null}"#;

/// A chain, its policy and rules; the frames that it drops for certain, in words of what is said.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const ROWS: &[Row] = &[
    // The input policy that most have, which forgot neighbour discovery.
    ("inet", "input", "drop", &[ESTABLISHED, LOOPBACK, SSH, UDP, PING], &["neighbour discovery"]),
    ("ip6", "input", "drop", &[], &["neighbour discovery"]),
    // Those that let it pass, or may.
    ("inet", "input", "accept", &[SSH], &[]),
    ("inet", "input", "drop", &[SSH, SOLICIT], &[]),
    ("inet", "input", "drop", &[ICMP], &[]),
    ("inet", "input", "drop", &[LOCAL], &[]),
    ("inet", "input", "drop", &[STATES], &[]),
    ("inet", "input", "drop", &[LIMITED], &[]),
    ("inet", "input", "drop", &[r#"{"xt": {"type": "match", "name": "comment"}}, {"accept": null}"#], &[]),
    // IPv4 has nothing that Baton needs there.
    ("ip", "input", "drop", &[], &[]),
    // What leaves.
    ("inet", "output", "accept", &[NO_ADVERT], &["neighbour discovery"]),
    ("inet", "output", "accept", &[ONLY_REPLIES], &["neighbour discovery"]),
    ("ip6", "postrouting", "accept", &[NO_ICMP], &["neighbour discovery"]),
    ("inet", "output", "accept", &[FEW], &[]),
    ("inet", "output", "accept", &[ICMP, NO_ADVERT], &[]),
    ("inet", "forward", "drop", &[], &[]),
    // ARP.
    ("arp", "input", "drop", &[], &["ARP"]),
    ("arp", "output", "drop", &[], &["ARP"]),
    ("arp", "input", "drop", &[REQUESTS], &[]),
    ("arp", "forward", "drop", &[], &[]),
    // Frames of a port.
    ("netdev", "ingress eth0", "drop", &[], &["ARP", "neighbour discovery"]),
    ("netdev", "ingress eth0", "drop", &[ARP], &["neighbour discovery"]),
    ("netdev", "ingress eth0", "accept", &[NO_IP6, NO_PROBES], &["neighbour discovery"]),
    ("netdev", "ingress eth0", "accept", &[ONLY_ARP], &["neighbour discovery"]),
    ("netdev", "egress eth0", "drop", &[], &["ARP", "neighbour discovery"]),
    ("netdev", "ingress eth9", "drop", &[], &[]),
    ("netdev", "ingress", "drop", &[], &[]), // nft 1.0.6 doesn't say of which interface under newer kernels
    // Of what a port lies on.
    ("netdev", "ingress parent", "accept", &[NO_PROBES], &["0x88B5"]),
    ("netdev", "ingress parent", "drop", &[ARP, SOLICIT], &["0x88B5"]),
    ("netdev", "ingress parent", "drop", &[ARP, SOLICIT, PROBES], &[]),
    // Of a bridge that is a port.
    ("bridge", "prerouting", "accept", &[NO_PROBES], &["0x88B5"]),
    ("bridge", "output", "drop", &[ARP, PROBES], &["neighbour discovery"]),
    ("bridge", "output", "drop", &[ARP, PROBES, ICMP], &[]),
    ("bridge", "forward", "drop", &[], &[]),
];

fn ruleset(family: &str, hook: &str, policy: &str, rules: &[&str]) -> Value {
    let (hook, device) = hook.split_once(' ').unwrap_or((hook, ""));
    let table = json!({"table": {"family": family, "name": "t", "handle": 1}});
    let mut chain = json!({"chain": {"family": family, "table": "t", "name": "c", "handle": 1, "type": "filter",
        "hook": hook, "prio": 0, "policy": policy}});
    if !device.is_empty() {
        chain["chain"]["dev"] = json!(device);
    }
    let mut all = vec![json!({"metainfo": {"version": "1.0.6"}}), table, chain];
    for rule in rules {
        let statements: Value = serde_json::from_str(&format!("[{rule}]")).expect("JSON");
        all.push(
            json!({"rule": {"family": family, "table": "t", "chain": "c", "handle": 2, "expr": statements}}),
        );
    }
    json!({ "nftables": all })
}

fn ports() -> Vec<Port> {
    let port = |interface: &str, driver: &str, lower: &[&str]| Port {
        interface: interface.to_owned(),
        link: Some(Link {
            driver: Some(driver.to_owned()),
            lower: lower.iter().map(|l| (*l).to_owned()).collect(),
            ..Link::default()
        }),
        ..Port::default()
    };
    vec![
        port("eth0", "ice", &[]),
        port("eth1.7", "802.1Q VLAN Support", &["parent"]),
        port("br0", "bridge", &[]),
    ]
}

#[test]
fn only_what_is_dropped_for_certain_is_told() {
    for row in ROWS {
        let (family, hook, policy, rules, lost) = row;
        let found = blocked(&ruleset(family, hook, policy, rules), &ports(), true);
        let said: Vec<&str> = found.iter().map(|b| b.what.as_str()).collect();
        assert_eq!(said.len(), lost.len(), "{row:?}: {said:?}");
        for (said, lost) in said.iter().zip(*lost) {
            let head = format!("chain c of table {family} t drops ");
            assert!(said.starts_with(&head) && said.contains(lost), "{row:?}: {said}");
        }
        for remedy in found.iter().map(|b| &b.remedy) {
            assert!(remedy.starts_with(&format!("run `nft insert rule {family} t c ")), "{remedy}");
        }
    }
}

#[test]
fn neighbour_discovery_matters_where_there_is_ipv6_and_bridges_where_one_is_a_port() {
    let forgot = ruleset("inet", "input", "drop", &[SSH]);
    assert_eq!(blocked(&forgot, &ports(), false), []);
    let bridge = ruleset("bridge", "prerouting", "drop", &[]);
    assert_eq!(blocked(&bridge, &ports()[..1], true), []);
    let mut dormant = ruleset("arp", "input", "drop", &[]);
    assert_eq!(blocked(&dormant, &ports(), true).len(), 1);
    dormant["nftables"][1]["table"]["flags"] = json!("dormant");
    assert_eq!(blocked(&dormant, &ports(), true), []);
    for nothing in [json!({}), json!({"nftables": []}), json!(null), json!({"nftables": [{"chain": 7}]})] {
        assert_eq!(blocked(&nothing, &ports(), true), []);
    }
}
