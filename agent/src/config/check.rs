//! What spans sections: what must be there, names that must be known, totals; and what comes of it all.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use baton_core::Config;
use baton_core::config::{PortConfig, PortFailback, Segment, Timing, VirtualServer};

use super::addresses::{check_address, check_hosts, check_subnets, warn_unreachable};
use super::etcd::check_store;
use super::fencing;
use super::names::{check_interface, check_name, check_names, meant, name_is_good, unique};
use super::problem::Findings;
use super::reader::{At, values};
use super::resources::{self, Resources, resources};
use super::sections::{Listen, Raw, RawPort, RawSegment, RawServer, RawTiming};
use super::{
    AgentConfig, ClusterConfig, ControlConfig, DEFAULT_BPFFS, DEFAULT_SOCKET, DEFAULT_STATE,
    DEFAULT_WATCHDOG, Definitions, EtcdConfig, Fence, PathsConfig, STORE_FILE, StoreConfig, StoreKind,
    TelemetryConfig, TelemetryTls,
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
        raw.servers.iter().for_each(|s| warn_alone(s, f));
        fencing::warn_alone(&raw, f);
    }
    check_tls(&raw, etcd.is_some(), f);
    if let Some(file) = &raw.token_file {
        warn_token(file.at, raw.listen, raw.tls_certificate.is_some(), etcd.is_some(), f);
    }
    let (timing, lease, _) = timing(&raw.timing, f);
    let agent = agent_config(&raw, lease, etcd, f);
    let core = Config {
        node: node?,
        ports: ports(&raw),
        timing,
        segments: segments(&raw),
        servers: servers(&raw),
        capacity_percent: raw.capacity_percent.unwrap_or(100),
        balance: raw.balance,
    };
    Some((core, agent))
}

/// Sections that no node may have for itself where there is a cluster.
const CLUSTER_WIDE: [&str; 6] = ["timing", "balance", "segment", "virtual_server", "fence", "storage_unit"];

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
    for server in &raw.servers {
        for (what, nodes) in [("preferred node", &server.preferred_nodes), ("node", &server.only_on)] {
            for node in nodes.iter().filter(|n| !known.contains(&n.value.as_str())) {
                let fix = meant(&node.value, &known, "add it to `members`, or remove it here");
                f.error(node.at, format!("{what} \"{}\" is no member", node.value), fix);
            }
        }
    }
    resources::check_fencing(&raw.servers, f);
    fencing::check_members(raw, &known, f);
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
        balance: raw.balance.clone(),
        segments: segments(raw),
        servers: servers(raw),
        resources: all_resources(raw),
        fencing: fencing::fencing(raw),
        units: fencing::units(raw),
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
    fencing::check(raw, f);
    check_places(&raw.servers, f);
}

/// TLS of the web page that lacks something, or does nothing.
fn check_tls(raw: &Raw, cluster: bool, f: &mut Findings) {
    // What is there with another mistake is told of already.
    let at = |key: &str| raw.telemetry_keys.iter().find(|k| k.value == key).map(|k| k.at);
    let (certificate, key, authority) = (at("tls_certificate"), at("tls_key"), at("client_ca"));
    match (certificate, key) {
        (Some(at), None) => f.error(
            at,
            "`tls_certificate` in [telemetry] has no `tls_key`",
            "add the file with its key, or remove it",
        ),
        (None, Some(at)) => f.error(
            at,
            "`tls_key` in [telemetry] has no `tls_certificate`",
            "add the file with its certificate, or remove it",
        ),
        (Some(at), Some(_)) if matches!(raw.listen, Some(Listen::Off)) => {
            f.warn(at, "`tls_certificate` does nothing: `listen` is \"off\"", "remove one of the two");
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    match authority {
        Some(at) if certificate.is_none() && key.is_none() => f.error(
            at,
            "`client_ca` in [telemetry] needs TLS",
            "add `tls_certificate` and `tls_key`, or remove it",
        ),
        Some(at) if !cluster => f.warn(
            at,
            "`client_ca` does nothing with the store \"file\": there is no other node to move anything to",
            "remove it",
        ),
        Some(_) | None => {}
    }
}

/// A token that lets nobody do anything, or not as one may think.
fn warn_token(at: usize, listen: Option<Listen>, tls: bool, cluster: bool, f: &mut Findings) {
    match listen {
        _ if !cluster => f.warn(
            at,
            "`token_file` does nothing with the store \"file\": there is no other node to move anything to",
            "remove it",
        ),
        Some(Listen::Off) => f.warn(at, "`token_file` does nothing: `listen` is \"off\"", "remove one of the two"),
        Some(Listen::On(address)) if !tls && !address.ip().is_loopback() => f.warn(
            at,
            "actions on the web page are taken from this node itself only: elsewhere the token would cross the network unencrypted",
            "add `tls_certificate` and `tls_key`, or use an SSH tunnel to this node (`listen` may be 127.0.0.1 then)",
        ),
        Some(Listen::On(_)) | None => {}
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
            let add = format!("add a [[segment]] with name = \"{}\"", segment.value);
            let fix = meant(&segment.value, &known, add);
            f.error(segment.at, format!("there is no segment \"{}\"", segment.value), fix);
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
    resources::check(&raw.servers, f);
    let mut addresses = HashMap::new();
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
        for node in server.preferred_nodes.iter().chain(&server.only_on) {
            check_name("node", node, f);
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

/// Where virtual servers may be together.
fn check_places(servers: &[RawServer], f: &mut Findings) {
    let mut known: Vec<&str> = servers.iter().filter_map(|s| Some(s.name.as_ref()?.value.as_str())).collect();
    known.sort_unstable();
    for server in servers {
        for other in &server.never_with {
            let name = other.value.as_str();
            if server.name.as_ref().is_some_and(|n| n.value == name) {
                f.error(
                    other.at,
                    format!("`never_with` of virtual server \"{name}\" names itself"),
                    "remove the name",
                );
            } else if known.binary_search(&name).is_err() {
                let fix = meant(name, &known, "add it, or remove it here");
                f.error(other.at, format!("there is no virtual server \"{name}\""), fix);
            }
        }
        let is_permitted = |node: &str| server.only_on.iter().any(|n| n.value == node);
        for node in &server.preferred_nodes {
            if !server.only_on.is_empty() && !is_permitted(&node.value) {
                f.warn(
                    node.at,
                    format!("preferred node \"{}\" is not in `only_on`, so it is never used", node.value),
                    "add it there, or remove it here",
                );
            }
        }
    }
}

/// A node that is alone has every virtual server, whatever it is told of other nodes.
fn warn_alone(server: &RawServer, f: &mut Findings) {
    for (key, names) in [("never_with", &server.never_with), ("only_on", &server.only_on)] {
        if let Some(first) = names.first() {
            f.warn(
                first.at,
                format!("`{key}` does nothing with the store \"file\": this node has every virtual server"),
                "remove it, or make this node a member of a cluster",
            );
        }
    }
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
    if let Some(watchdog) = raw.watchdog.as_ref().filter(|d| d.value.subsec_nanos() != 0) {
        f.error(
            watchdog.at,
            format!("`watchdog` in [timing] is {}", say(watchdog.value)),
            "write whole seconds: watchdogs count no others",
        );
    }
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
        store: StoreConfig { kind, path: raw.store.path.clone().unwrap_or_else(|| state.join(STORE_FILE)) },
        control: ControlConfig {
            socket: raw.socket.as_ref().map_or_else(|| DEFAULT_SOCKET.into(), |s| s.value.clone()),
            group: raw.group.as_ref().map_or_else(|| "baton".to_owned(), |g| g.value.clone()),
        },
        paths: PathsConfig { state, bpffs: raw.bpffs.clone().unwrap_or_else(|| DEFAULT_BPFFS.into()) },
        telemetry: TelemetryConfig {
            listen: match raw.listen {
                None => Some(SocketAddr::from(([127, 0, 0, 1], 9477))),
                Some(Listen::On(address)) => Some(address),
                Some(Listen::Off) => None,
            },
            token_file: raw.token_file.as_ref().map(|file| file.value.clone()),
            tls: telemetry_tls(raw),
            otlp: raw.otlp.clone(),
        },
        lease,
        cluster,
        resources: all_resources(raw),
        units: fencing::units(raw),
        watchdog: raw.watchdog.clone().unwrap_or_else(|| DEFAULT_WATCHDOG.into()),
        hooks: raw.hooks.clone(),
    }
}

fn telemetry_tls(raw: &Raw) -> Option<TelemetryTls> {
    let certificate = raw.tls_certificate.as_ref()?.value.clone();
    let key = raw.tls_key.as_ref()?.value.clone();
    let client_ca = raw.client_ca.as_ref().map(|file| file.value.clone());
    Some(TelemetryTls { certificate, key, client_ca })
}

fn ports(raw: &Raw) -> Vec<PortConfig> {
    let port = |p: &RawPort| {
        Some(PortConfig {
            interface: p.interface.as_ref()?.value.clone(),
            segment: p.segment.as_ref()?.value.clone(),
            speed_mbits: p.speed_mbits,
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
            never_with: values(&s.never_with),
            only_on: values(&s.only_on),
            devices: devices(s),
            has_resources: resources(s).is_some(),
            fenced: fencing::fence_of(&s.resources) != Fence::None,
            storage_units: resources::units_of(&s.resources),
            addresses: values(&s.addresses),
        })
    };
    raw.servers.iter().filter_map(server).collect()
}

/// The names of its file systems' devices, as written.
fn devices(s: &RawServer) -> Vec<String> {
    s.resources.devices.iter().map(|d| d.value.to_string_lossy().into_owned()).collect()
}

fn all_resources(raw: &Raw) -> Vec<Resources> {
    raw.servers.iter().filter_map(resources).collect()
}
