//! What spans sections: names that must be known or unique, addresses against subnets, totals.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use baton_core::Config;
use baton_core::config::{PortConfig, PortFailback, Segment, Timing, VirtualServer};
use ipnet::IpNet;

use super::problem::Findings;
use super::reader::{At, nearest};
use super::sections::{Listen, Raw, RawPort, RawSegment, RawServer, RawTiming};
use super::{
    AgentConfig, ClusterConfig, ControlConfig, DEFAULT_SOCKET, DEFAULT_STATE, Definitions, EtcdConfig,
    EtcdCredentials, EtcdTls, PathsConfig, StoreConfig, StoreKind, TelemetryConfig,
};

/// Longest path of a Unix socket (unix(7): 108 bytes with the terminating zero).
const SOCKET_PATH_MAX: usize = 107;

/// Checks a node's file and builds the result. It is only meant to be used if no error was found.
pub(super) fn check(raw: Raw, f: &mut Findings) -> Option<(Config, AgentConfig)> {
    let etcd = check_store(&raw, f);
    let node = node_name(raw.node.as_ref(), f);
    check_ports(&raw, f);
    if etcd.is_some() {
        for section in raw.sections.iter().filter(|s| CLUSTER_WIDE.contains(&s.value)) {
            f.error(
                section.at,
                format!("`{}` is cluster-wide with the store \"etcd\"", section.value),
                "put it into the file for `baton apply`, and remove it here",
            );
        }
    } else {
        check_definitions(&raw, f);
        check_segments_known(&raw, f);
        raw.segments.iter().for_each(|s| warn_blind(s, &raw, f));
    }
    let (timing, lease, _) = timing(&raw.timing, f);
    let agent = agent_config(&raw, lease, etcd, f);
    Some((
        Config { node: node?, ports: ports(&raw), timing, segments: segments(&raw), servers: servers(&raw) },
        agent,
    ))
}

/// Sections that no node may have for itself where there is a cluster.
const CLUSTER_WIDE: [&str; 3] = ["timing", "segment", "virtual_server"];

/// Checks the file for `baton apply` and builds the result.
pub(super) fn check_cluster(raw: &Raw, f: &mut Findings) -> Option<Definitions> {
    for section in raw.sections.iter().filter(|s| s.value != "cluster" && !CLUSTER_WIDE.contains(&s.value)) {
        f.error(
            section.at,
            format!("`{}` belongs to a node, not to the cluster", section.value),
            "put it into the node's own file, and remove it here",
        );
    }
    check_definitions(raw, f);
    let cluster = raw.cluster.as_ref();
    let members = cluster.and_then(|c| c.members.as_ref());
    for key in cluster.map_or(&[][..], |c| &c.keys) {
        if !matches!(key.value, "members" | "two_nodes_never_take_over") {
            f.error(
                key.at,
                format!("`{}` in [cluster] belongs to a node", key.value),
                "put it into the node's own file, and remove it here",
            );
        }
    }
    let Some(members) = members else {
        f.error(
            cluster.map_or(0, |c| c.at),
            "no `members` in [cluster]",
            "name all nodes, witnesses too: members = [\"fs1\", \"fs2\", \"fs3\"]",
        );
        return None;
    };
    check_names("member", members.value.iter(), f);
    if members.value.is_empty() || members.value.len() > baton_common::MOST_MEMBERS {
        f.error(
            members.at,
            format!("{} members", members.value.len()),
            format!("name 1 to {} nodes", baton_common::MOST_MEMBERS),
        );
    }
    if members.value.len() == 2 && !cluster.is_some_and(|c| c.two_nodes) {
        f.error(
            members.at,
            "two nodes without a third vote never take over from each other, and when either dies both stop serving",
            "add a third node or a witness, or say two_nodes_never_take_over = true",
        );
    }
    let known: Vec<&str> = members.value.iter().map(|m| m.value.as_str()).collect();
    for node in
        raw.servers.iter().flat_map(|s| &s.preferred_nodes).filter(|n| !known.contains(&n.value.as_str()))
    {
        let fix = match nearest(&node.value, &known) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "add it to `members`, or remove it here".to_owned(),
        };
        f.error(node.at, format!("preferred node \"{}\" is no member", node.value), fix);
    }
    let (timing, lease, slack) = timing(&raw.timing, f);
    if lease < 4 * timing.probe_interval {
        let at = raw.timing.lease.as_ref().or(raw.timing.probe_interval.as_ref()).map_or(0, |d| d.at);
        f.warn(
            at,
            "`lease` is shorter than four of `probe_interval`: two lost probes in a row end it",
            "raise it, or lower `probe_interval`",
        );
    }
    Some(Definitions {
        members: members.value.iter().map(|m| m.value.clone()).collect(),
        timing,
        lease,
        slack,
        segments: segments(raw),
        servers: servers(raw),
    })
}

/// What is defined for the whole cluster, or for a node that is alone.
fn check_definitions(raw: &Raw, f: &mut Findings) {
    if raw.segments.is_empty() {
        f.error(0, "no [[segment]]", "add one for each client subnet, with `name` and `subnets`");
    }
    check_names("segment", raw.segments.iter().filter_map(|s| s.name.as_ref()), f);
    check_names("virtual server", raw.servers.iter().filter_map(|s| s.name.as_ref()), f);
    check_subnets(&raw.segments, f);
    raw.segments.iter().for_each(|s| check_hosts(s, f));
    check_servers(raw, f);
}

/// What the configuration says of etcd, if that is the store.
fn check_store(raw: &Raw, f: &mut Findings) -> Option<(EtcdConfig, ClusterConfig)> {
    let Some(kind) = raw.store.kind.as_ref().filter(|k| k.value == "etcd") else {
        for key in &raw.store.etcd_keys {
            f.error(
                key.at,
                format!("`{}` in [store] belongs to the store \"etcd\"", key.value),
                "remove it: the store \"file\" has only `path`",
            );
        }
        if let Some(cluster) = &raw.cluster {
            f.error(
                cluster.at,
                "[cluster] needs the store \"etcd\"",
                "add kind = \"etcd\" and `endpoints` to [store], or remove [cluster]: this node then serves alone",
            );
        }
        return None;
    };
    let endpoints = &raw.store.endpoints;
    if endpoints.is_empty() {
        f.error(
            kind.at,
            "no `endpoints` in [store]",
            "name etcd's client URLs, the local member first: endpoints = [\"http://127.0.0.1:2379\"]",
        );
    }
    let mut seen = HashMap::new();
    for endpoint in endpoints {
        check_endpoint(endpoint, raw.store.tls.is_some(), f);
        unique(&mut seen, &endpoint.value, endpoint.at, f, || {
            (format!("{} is there twice", endpoint.value), "remove one of the two".to_owned())
        });
    }
    let tls = raw.store.tls.as_ref().map(|tls| {
        let identity = tls.certificate.clone().zip(tls.key.clone());
        if tls.ca.is_none() {
            f.error(
                tls.at,
                "no `ca` in tls",
                "name the certificate of the authority that signed etcd's: ca = \"/etc/baton/ca.pem\"",
            );
        }
        if identity.is_none() && (tls.certificate.is_some() || tls.key.is_some()) {
            f.error(tls.at, "`certificate` and `key` in tls belong together", "name both files, or neither");
        }
        EtcdTls { ca: tls.ca.clone().unwrap_or_default(), identity }
    });
    let credentials = raw.store.credentials.as_ref().and_then(|c| {
        Some(EtcdCredentials { user: c.user.clone()?, password_file: c.password_file.clone()? })
    });
    if raw.store.credentials.is_some() && credentials.is_none() {
        f.error(
            kind.at,
            "`credentials` in [store] lacks the user or the password",
            "name `user` and `password_file`",
        );
    }
    let cluster = raw.cluster.as_ref();
    if let Some(name) = cluster.and_then(|c| c.name.as_ref()) {
        check_name("cluster", name, f);
    }
    for key in cluster.map_or(&[][..], |c| &c.keys) {
        if matches!(key.value, "members" | "two_nodes_never_take_over") {
            f.error(
                key.at,
                format!("`{}` in [cluster] is cluster-wide", key.value),
                "put it into the file for `baton apply`, and remove it here",
            );
        }
    }
    let Some(key_file) = cluster.and_then(|c| c.key_file.as_ref()) else {
        f.error(
            cluster.map_or(0, |c| c.at),
            "no `key_file` in [cluster]",
            "name a file with 32 hexadecimal digits, the same on all nodes: key_file = \"/etc/baton/probe.key\"",
        );
        return None;
    };
    let name = cluster.and_then(|c| c.name.as_ref()).map_or("baton", |n| n.value.as_str()).to_owned();
    let endpoints = values(endpoints);
    let witness = cluster.and_then(|c| c.witness).unwrap_or(false);
    let key_file = key_file.value.clone();
    Some((EtcdConfig { cluster: name, endpoints, tls, credentials }, ClusterConfig { key_file, witness }))
}

fn check_endpoint(endpoint: &At<String>, tls: bool, f: &mut Findings) {
    let url = endpoint.value.as_str();
    let (secure, host) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(host), _) => (true, host),
        (_, Some(host)) => (false, host),
        (None, None) => (false, ""),
    };
    let host = host.trim_end_matches('/');
    let port = host
        .rsplit_once(':')
        .and_then(|(name, port)| (!name.is_empty()).then_some(port)?.parse::<u16>().ok());
    if port.is_none_or(|p| p == 0) {
        f.error(endpoint.at, format!("\"{url}\" is no client URL"), "write it as \"http://127.0.0.1:2379\"");
    } else if secure != tls {
        let (what, fix) = match secure {
            true => ("needs `tls`", "add tls = { ca = \"/etc/baton/ca.pem\" } to [store]"),
            false => ("is not encrypted, but there is `tls`", "write https://, or remove `tls`"),
        };
        f.error(endpoint.at, format!("{url} {what}"), fix);
    }
}

fn node_name(name: Option<&At<String>>, f: &mut Findings) -> Option<String> {
    if let Some(name) = name {
        check_name("node", name, f);
        return Some(name.value.clone());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if name_is_good(host) {
        return Some(host.to_owned());
    }
    f.error(
        0,
        format!("the host's name \"{host}\" can't be this node's name"),
        "add name = \"fs1\" to [node]",
    );
    None
}

fn name_is_good(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn check_name(what: &str, name: &At<String>, f: &mut Findings) {
    if !name_is_good(&name.value) {
        f.error(
            name.at,
            format!("the name of a {what} can't be \"{}\"", name.value.escape_debug()),
            "use 1 to 63 letters, digits, dots, underscores and hyphens",
        );
    }
}

fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a At<String>>, f: &mut Findings) {
    let mut seen = HashMap::new();
    for name in names {
        check_name(what, name, f);
        unique(&mut seen, &name.value, name.at, f, || {
            (format!("there are two {what}s \"{}\"", name.value), "rename or remove one of them".to_owned())
        });
    }
}

/// Reports `key` at its second place; its first is named by line.
fn unique<K: std::hash::Hash + Eq + Clone>(
    seen: &mut HashMap<K, usize>,
    key: &K,
    at: usize,
    f: &mut Findings,
    say: impl FnOnce() -> (String, String),
) -> bool {
    if let Some(first) = seen.get(key) {
        let (what, fix) = say();
        f.error_after(at, *first, what, fix);
        return false;
    }
    seen.insert(key.clone(), at);
    true
}

fn check_ports(raw: &Raw, f: &mut Findings) {
    if raw.ports.is_empty() {
        f.error(
            0,
            "no [[port]]",
            "add one for each interface that clients use, with `interface` and `segment`",
        );
    }
    if let Some(port) = raw.ports.get(baton_common::MAX_PORTS as usize) {
        f.error(port.at, "too many ports", format!("configure at most {}", baton_common::MAX_PORTS));
    }
    let mut seen = HashMap::new();
    for port in &raw.ports {
        if let Some(interface) = &port.interface {
            check_interface(interface, f);
            unique(&mut seen, &interface.value, interface.at, f, || {
                (
                    format!("interface \"{}\" is there twice", interface.value),
                    "remove one of the two".to_owned(),
                )
            });
        }
    }
}

/// Every port's segment is defined.
fn check_segments_known(raw: &Raw, f: &mut Findings) {
    let known: Vec<&str> =
        raw.segments.iter().filter_map(|s| Some(s.name.as_ref()?.value.as_str())).collect();
    for port in &raw.ports {
        if let Some(segment) = port.segment.as_ref().filter(|s| !known.contains(&s.value.as_str())) {
            let fix = match nearest(&segment.value, &known) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("add a [[segment]] with name = \"{}\"", segment.value),
            };
            f.error(segment.at, format!("there is no segment \"{}\"", segment.value), fix);
        }
    }
}

/// What the kernel takes as a name (net/core/dev.c, dev_valid_name), without the loopback interface.
fn check_interface(name: &At<String>, f: &mut Findings) {
    let n = &name.value;
    if n == "lo" {
        f.error(name.at, "\"lo\" can't be a port", "name an interface that clients use");
    } else if n.len() > 15 {
        f.error(name.at, format!("interface name \"{n}\" is too long"), "Linux allows 15 characters");
    } else if matches!(n.as_str(), "" | "." | "..")
        || n.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
    {
        f.error(
            name.at,
            format!("\"{}\" is no interface name", n.escape_debug()),
            "write it as `ip link` shows it, without @ and what follows",
        );
    }
}

fn check_subnets(segments: &[RawSegment], f: &mut Findings) {
    let mut seen: Vec<(&At<IpNet>, &str)> = Vec::new();
    for segment in segments {
        let name = segment.name.as_ref().map_or("?", |n| n.value.as_str());
        for net in &segment.subnets {
            let n = net.value;
            if n.addr() != n.network() {
                f.error(
                    net.at,
                    format!("{n} is an address in a subnet, not a subnet"),
                    format!("write {}", n.trunc()),
                );
            } else if let Some(why) = unusable(n.addr()) {
                f.error(net.at, format!("{n} {why}"), "write the subnet that clients are in");
            } else if is_link_local6(n.addr()) {
                f.error(
                    net.at,
                    format!("{n} is link-local, the same on every segment"),
                    "write a routed subnet",
                );
            }
            let n = n.trunc();
            if let Some((first, other)) =
                seen.iter().find(|(s, _)| s.value.trunc().contains(&n) || n.contains(&s.value.trunc()))
            {
                let whose =
                    if *other == name { "this segment".to_owned() } else { format!("segment \"{other}\"") };
                f.error_after(
                    net.at,
                    first.at,
                    format!("{n} overlaps with {} of {whose}", first.value),
                    "let every client address lie in one subnet only".to_owned(),
                );
            }
            seen.push((net, name));
        }
    }
}

/// Gateways and probe targets.
fn check_hosts(segment: &RawSegment, f: &mut Findings) {
    let name = segment.name.as_ref().map_or("?", |n| n.value.as_str());
    let mut families = HashMap::new();
    let (gateways, targets) = (segment.gateway.iter(), segment.probe_targets.iter());
    for (host, what) in gateways.map(|h| (h, "gateway")).chain(targets.map(|h| (h, "probe target"))) {
        let ip = host.value;
        if let Some(why) = unusable(ip) {
            f.error(host.at, format!("{what} {ip} {why}"), "write the address of a host in the segment");
        } else if is_link_local6(ip) {
            // Routers are often known by their link-local address (RFC 4861, 4.2).
        } else if !segment.subnets.iter().any(|n| n.value.trunc().contains(&ip)) {
            f.error(
                host.at,
                format!("{what} {ip} is in no subnet of segment \"{name}\""),
                "correct it, or add its subnet to `subnets`",
            );
        }
        if what == "gateway" {
            unique(&mut families, &ip.is_ipv4(), host.at, f, || {
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                (
                    format!("segment \"{name}\" has two {family} gateways"),
                    "leave one of each family".to_owned(),
                )
            });
        }
    }
}

/// A segment whose ports and hosts don't suffice to tell which port is silent.
fn warn_blind(segment: &RawSegment, raw: &Raw, f: &mut Findings) {
    let Some(name) = &segment.name else { return };
    let is_here = |port: &&RawPort| port.segment.as_ref().is_some_and(|s| s.value == name.value);
    let ports = raw.ports.iter().filter(is_here).count();
    let hosts = segment.gateway.len() + segment.probe_targets.len();
    let name_at = name.at;
    let name = &name.value;
    match (ports, hosts) {
        (1, _) => f.warn(
            name_at,
            format!("segment \"{name}\" has one port: if that turns silent with its link up, nobody notices"),
            "add a second port, and a host that is always up to `probe_targets`",
        ),
        (2, 0) => f.warn(
            name_at,
            format!(
                "segment \"{name}\" has two ports and neither gateway nor probe target: when one turns silent with its \
                 link up, only clients' packets can tell which, and sometimes nothing can; then nothing moves"
            ),
            "add a host that is always up to `probe_targets`, or a third port",
        ),
        _ => {}
    }
}

fn check_servers(raw: &Raw, f: &mut Findings) {
    if raw.servers.is_empty() {
        f.warn(0, "no [[virtual_server]]: nothing is served", "add one with `name` and `addresses`");
    }
    if let Some(server) = raw.servers.get(baton_common::MAX_SERVERS as usize) {
        f.error(
            server.at,
            "too many virtual servers",
            format!("configure at most {}", baton_common::MAX_SERVERS),
        );
    }
    if let Some(address) = raw.servers.iter().flat_map(|s| &s.addresses).nth(baton_common::MAX_VIPS as usize)
    {
        f.error(address.at, "too many addresses", format!("configure at most {}", baton_common::MAX_VIPS));
    }
    let hosts: HashMap<IpAddr, &str> = raw
        .segments
        .iter()
        .flat_map(|s| {
            let targets = s.probe_targets.iter().map(|h| (h.value, "a probe target"));
            targets.chain(s.gateway.iter().map(|h| (h.value, "a gateway")))
        })
        .collect();
    let (mut addresses, mut mounts, mut devices) = (HashMap::new(), HashMap::new(), HashMap::new());
    for server in &raw.servers {
        for address in &server.addresses {
            let ip = address.value.addr();
            unique(&mut addresses, &ip, address.at, f, || {
                (
                    format!("address {ip} is there twice"),
                    "an address belongs to one virtual server, once".to_owned(),
                )
            });
            check_address(address, raw, &hosts, f);
        }
        for mount in &server.mounts {
            let path: PathBuf = mount.value.components().collect();
            unique(&mut mounts, &path, mount.at, f, || {
                (
                    format!("{} is mounted twice", path.display()),
                    "give each file system its own folder".to_owned(),
                )
            });
        }
        for device in &server.devices {
            unique(&mut devices, &device.value, device.at, f, || {
                let what = format!("device {} is there twice", device.value);
                (what, "a device belongs to one file system of one virtual server".to_owned())
            });
        }
        for node in &server.preferred_nodes {
            check_name("node", node, f);
        }
        for unit in &server.storage_units {
            check_name("storage unit", unit, f);
        }
        if let Some(at) = server.resources {
            f.warn(
                at,
                "file systems and services are checked but not managed in this version",
                "mount and start them by other means",
            );
        }
        if server.reroute == Some(true) && raw.segments.len() < 2 {
            f.warn(
                server.name.as_ref().map_or(0, |n| n.at),
                "`reroute` does nothing: there is no second segment to route over",
                "add the [[segment]] of the interconnect, and a [[port]] in it on each node",
            );
        }
        if !raw.ports.is_empty() {
            warn_unreachable(server, raw, f);
        }
    }
}

fn check_address(address: &At<IpNet>, raw: &Raw, hosts: &HashMap<IpAddr, &str>, f: &mut Findings) {
    let (net, ip) = (address.value, address.value.addr());
    if let Some(why) = unusable(ip) {
        f.error(address.at, format!("address {ip} {why}"), "write an address of a client subnet");
        return;
    }
    if is_link_local6(ip) {
        f.error(address.at, format!("address {ip} is link-local"), "write an address of a client subnet");
        return;
    }
    let subnet =
        raw.segments.iter().flat_map(|s| &s.subnets).map(|n| n.value.trunc()).find(|n| n.contains(&ip));
    let Some(subnet) = subnet else {
        f.error(
            address.at,
            format!("address {ip} is in no segment's subnets"),
            "correct it, or add its subnet to a [[segment]]",
        );
        return;
    };
    if net.prefix_len() != subnet.prefix_len() {
        f.error(
            address.at,
            format!("the prefix length of {net} is not that of its subnet {subnet}"),
            format!("write {ip}/{}", subnet.prefix_len()),
        );
    }
    // RFC 3021 and RFC 6164: in a subnet of two addresses both are hosts.
    if subnet.prefix_len() + 1 < subnet.max_prefix_len() {
        let role = match subnet {
            IpNet::V4(n) if n.network() == ip => Some("the network address"),
            IpNet::V4(n) if n.broadcast() == ip => Some("the broadcast address"),
            IpNet::V6(n) if n.network() == ip => Some("the subnet-router anycast address (RFC 4291, 2.6.1)"),
            _ => None,
        };
        if let Some(role) = role {
            f.error(
                address.at,
                format!("{ip} is {role} of {subnet}"),
                "choose another address of the subnet",
            );
        }
    }
    if let Some(role) = hosts.get(&ip) {
        f.error(address.at, format!("{ip} is {role} as well"), "choose an address that no other host has");
    }
}

/// Addresses in a segment that no port of this node is in can't be served here.
fn warn_unreachable(server: &RawServer, raw: &Raw, f: &mut Findings) {
    let mut told = Vec::new();
    for address in &server.addresses {
        let ip = address.value.addr();
        let segment = raw.segments.iter().find(|s| s.subnets.iter().any(|n| n.value.trunc().contains(&ip)));
        let Some(name) = segment.and_then(|s| s.name.as_ref()).map(|n| n.value.as_str()) else { continue };
        let served = raw.ports.iter().any(|p| p.segment.as_ref().is_some_and(|s| s.value == name));
        if !served && !told.contains(&name) {
            told.push(name);
            f.warn(
                address.at,
                format!("this node has no port in segment \"{name}\", so {ip} can't be served here"),
                format!("add a [[port]] with segment = \"{name}\""),
            );
        }
    }
}

/// Why nobody can be reached under this address; `None`: it is an ordinary one.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_multicast() => Some("is a multicast address"),
        _ if ip.is_loopback() => Some("is a loopback address"),
        _ if ip.is_unspecified() => Some("is the unspecified address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("is in 0.0.0.0/8, which no host may have"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("is an IPv4 address in IPv6 notation"),
        _ => None,
    }
}

fn is_link_local6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// The times, the lease and its slack.
fn timing(raw: &RawTiming, f: &mut Findings) -> (Timing, Duration, Duration) {
    let defaults = Timing::default();
    let value = |d: &Option<At<Duration>>, default| d.as_ref().map_or(default, |d| d.value);
    let say = |d: Duration| humantime::format_duration(d).to_string();
    let place = |first: &Option<At<Duration>>, second: &Option<At<Duration>>| {
        first.as_ref().or(second.as_ref()).map_or(0, |d| d.at)
    };

    let hold_down = value(&raw.hold_down, defaults.hold_down);
    let hold_down_max = value(&raw.hold_down_max, defaults.hold_down_max);
    if hold_down > hold_down_max {
        f.error(
            place(&raw.hold_down, &raw.hold_down_max),
            format!(
                "`hold_down` ({}) is longer than `hold_down_max` ({})",
                say(hold_down),
                say(hold_down_max)
            ),
            "lower it, or raise `hold_down_max`",
        );
    }
    let interval = value(&raw.probe_interval, defaults.probe_interval);
    let lease = value(&raw.lease, Duration::from_millis(50));
    if lease < 2 * interval {
        f.error(
            place(&raw.lease, &raw.probe_interval),
            format!("`lease` ({}) is shorter than two of `probe_interval` ({})", say(lease), say(interval)),
            "raise it, or lower `probe_interval`: else one lost probe ends it",
        );
    }
    let announce_repeat = match &raw.announce_repeat {
        None => defaults.announce_repeat,
        Some(list) => {
            if let Some(pair) = list.value.windows(2).find(|w| w[0].value >= w[1].value) {
                f.error(
                    pair[1].at,
                    format!(
                        "`announce_repeat` is not in order: {} after {}",
                        say(pair[1].value),
                        say(pair[0].value)
                    ),
                    "write the times after the first announcement, rising",
                );
            }
            if let Some(extra) = list.value.get(16) {
                f.error(extra.at, "`announce_repeat` has more than 16 times", "leave the last out");
            }
            list.value.iter().map(|d| d.value).collect()
        }
    };
    let slack = value(&raw.slack, (lease / 10).max(Duration::from_millis(1)));
    (Timing { probe_interval: interval, hold_down, hold_down_max, announce_repeat }, lease, slack)
}

fn agent_config(
    raw: &Raw,
    lease: Duration,
    etcd: Option<(EtcdConfig, ClusterConfig)>,
    f: &mut Findings,
) -> AgentConfig {
    let socket = raw.socket.as_ref().filter(|s| s.value.as_os_str().len() > SOCKET_PATH_MAX);
    if let Some(socket) = socket {
        f.error(
            socket.at,
            format!("`socket` in [control] has {} bytes", socket.value.as_os_str().len()),
            format!("choose a path of at most {SOCKET_PATH_MAX}"),
        );
    }
    if let Some(group) = raw.group.as_ref().filter(|g| !name_is_good(&g.value)) {
        f.error(
            group.at,
            format!("\"{}\" is no group name", group.value.escape_debug()),
            "write it as `getent group` does",
        );
    }
    let state = raw.state.clone().unwrap_or_else(|| DEFAULT_STATE.into());
    let (kind, cluster) = match etcd {
        Some((etcd, cluster)) => (StoreKind::Etcd(etcd), Some(cluster)),
        None => (StoreKind::File, None),
    };
    AgentConfig {
        agent_grace: raw.agent_grace.unwrap_or(Duration::from_secs(2)),
        store: StoreConfig { kind, path: raw.store.path.clone().unwrap_or_else(|| state.join("baton.db")) },
        control: ControlConfig {
            socket: raw.socket.as_ref().map_or_else(|| DEFAULT_SOCKET.into(), |s| s.value.clone()),
            group: raw.group.as_ref().map_or_else(|| "baton".to_owned(), |g| g.value.clone()),
        },
        paths: PathsConfig { state, bpffs: raw.bpffs.clone().unwrap_or_else(|| "/sys/fs/bpf/baton".into()) },
        telemetry: TelemetryConfig {
            listen: match raw.listen {
                None => Some(SocketAddr::from(([127, 0, 0, 1], 9477))),
                Some(Listen::On(address)) => Some(address),
                Some(Listen::Off) => None,
            },
        },
        lease,
        cluster,
    }
}

fn values<T: Clone>(list: &[At<T>]) -> Vec<T> {
    list.iter().map(|v| v.value.clone()).collect()
}

fn ports(raw: &Raw) -> Vec<PortConfig> {
    let port = |p: &super::sections::RawPort| {
        Some(PortConfig {
            interface: p.interface.as_ref()?.value.clone(),
            segment: p.segment.as_ref()?.value.clone(),
        })
    };
    raw.ports.iter().filter_map(port).collect()
}

fn segments(raw: &Raw) -> Vec<Segment> {
    let segment = |s: &RawSegment| {
        Some(Segment {
            name: s.name.as_ref()?.value.clone(),
            subnets: values(&s.subnets),
            gateway: values(&s.gateway),
            probe_targets: hosts(s),
            port_failback: match s.port_failback.as_ref().map(|w| w.value.as_str()) {
                Some("stay") => PortFailback::Stay,
                _ => PortFailback::Spread,
            },
        })
    };
    raw.segments.iter().filter_map(segment).collect()
}

/// Whom to ask whether the segment is alive: probe targets and gateways.
fn hosts(segment: &RawSegment) -> Vec<IpAddr> {
    let all = segment.probe_targets.iter().chain(&segment.gateway).map(|h| h.value);
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

fn servers(raw: &Raw) -> Vec<VirtualServer> {
    let server = |s: &RawServer| {
        Some(VirtualServer {
            name: s.name.as_ref()?.value.clone(),
            priority: s.priority.unwrap_or(100),
            migrate: s.migrate.unwrap_or(true),
            preferred_nodes: values(&s.preferred_nodes),
            failback: s.failback.unwrap_or_default(),
            reroute: s.reroute.unwrap_or(false),
            addresses: values(&s.addresses),
        })
    };
    raw.servers.iter().filter_map(server).collect()
}
