//! Section by section: keys, types, units and ranges. What spans sections is checked in [`super::check`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;
use baton_core::config::{Balance, Failback};
use ipnet::IpNet;
use toml_span::value::Value;

use super::balance;
use super::fencing::{self, RawFence, RawUnit};
use super::hooks;
use super::problem::Findings;
use super::reader::{At, Section, duration_of, ip_of, net_of, text_of};
use super::resources::{self, RawResources};
use crate::hooks::Hook;

/// The file as written: every value with its place, nothing compared with anything else yet.
#[derive(Default)]
pub(super) struct Raw {
    pub(super) node: Option<At<String>>,
    pub(super) agent_grace: Option<Duration>,
    pub(super) capacity_percent: Option<u32>,
    pub(super) watchdog: Option<PathBuf>,
    pub(super) store: RawStore,
    pub(super) socket: Option<At<PathBuf>>,
    pub(super) group: Option<At<String>>,
    pub(super) state: Option<PathBuf>,
    pub(super) bpffs: Option<PathBuf>,
    pub(super) listen: Option<Listen>,
    pub(super) token_file: Option<At<PathBuf>>,
    pub(super) tls_certificate: Option<At<PathBuf>>,
    pub(super) tls_key: Option<At<PathBuf>>,
    pub(super) client_ca: Option<At<PathBuf>>,
    pub(super) otlp: Option<String>,
    /// Which keys of `[telemetry]` are there, with their places.
    pub(super) telemetry_keys: Vec<At<&'static str>>,
    pub(super) timing: RawTiming,
    pub(super) balance: Balance,
    pub(super) ports: Vec<RawPort>,
    pub(super) segments: Vec<RawSegment>,
    pub(super) servers: Vec<RawServer>,
    pub(super) fences: Vec<RawFence>,
    pub(super) units: Vec<RawUnit>,
    pub(super) hooks: Vec<Hook>,
    pub(super) cluster: Option<RawCluster>,
    /// Sections that are there, as written, with their places.
    pub(super) sections: Vec<At<&'static str>>,
}

/// `[cluster]`, of a node and of the cluster.
pub(super) struct RawCluster {
    pub(super) at: usize,
    pub(super) name: Option<At<String>>,
    pub(super) key_file: Option<At<PathBuf>>,
    pub(super) witness: Option<bool>,
    pub(super) members: Option<At<Vec<At<String>>>>,
    pub(super) two_nodes: bool,
    /// Which of the keys are there, with their places.
    pub(super) keys: Vec<At<&'static str>>,
}

#[derive(Default)]
pub(super) struct RawStore {
    pub(super) kind: Option<At<String>>,
    pub(super) path: Option<PathBuf>,
    /// Keys that only etcd has.
    pub(super) etcd_keys: Vec<At<&'static str>>,
    pub(super) endpoints: Vec<At<String>>,
    pub(super) tls: Option<RawTls>,
    pub(super) credentials: Option<RawCredentials>,
}

pub(super) struct RawTls {
    pub(super) at: usize,
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

pub(super) struct RawCredentials {
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
}

/// `telemetry.listen`.
#[derive(Clone, Copy)]
pub(super) enum Listen {
    Off,
    On(SocketAddr),
}

#[derive(Default)]
pub(super) struct RawTiming {
    pub(super) probe_interval: Option<At<Duration>>,
    pub(super) lease: Option<At<Duration>>,
    pub(super) slack: Option<At<Duration>>,
    pub(super) hold_down: Option<At<Duration>>,
    pub(super) hold_down_max: Option<At<Duration>>,
    pub(super) announce_repeat: Option<At<Vec<At<Duration>>>>,
    pub(super) watchdog: Option<At<Duration>>,
}

pub(super) struct RawPort {
    pub(super) at: usize,
    pub(super) interface: Option<At<String>>,
    pub(super) segment: Option<At<String>>,
    pub(super) speed_mbits: Option<u32>,
}

pub(super) struct RawSegment {
    pub(super) name: Option<At<String>>,
    pub(super) subnets: Vec<At<IpNet>>,
    pub(super) gateway: Vec<At<IpAddr>>,
    pub(super) probe_targets: Vec<At<IpAddr>>,
    pub(super) port_failback: Option<At<String>>,
}

pub(super) struct RawServer {
    pub(super) at: usize,
    pub(super) name: Option<At<String>>,
    pub(super) priority: Option<u32>,
    pub(super) migrate: Option<bool>,
    pub(super) failback: Option<Failback>,
    pub(super) reroute: Option<bool>,
    pub(super) preferred_nodes: Vec<At<String>>,
    pub(super) never_with: Vec<At<String>>,
    pub(super) only_on: Vec<At<String>>,
    pub(super) addresses: Vec<At<IpNet>>,
    pub(super) resources: RawResources,
}

const ROOT: &[&str] = &[
    "node",
    "port",
    "store",
    "control",
    "paths",
    "cluster",
    "telemetry",
    "timing",
    "balance",
    "segment",
    "virtual_server",
    "fence",
    "storage_unit",
    "hook",
];
const CLUSTER_KEYS: &[&str] = &["name", "key_file", "witness", "members", "two_nodes_never_take_over"];
const ETCD_KEYS: &[&str] = &["endpoints", "tls", "credentials"];
const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Reads the whole file, reporting what is wrong with any single value.
pub(super) fn read(root: &Value<'_>, f: &mut Findings) -> Raw {
    let mut raw = Raw::default();
    let Some(root) = Section::open(root, "", ROOT, f) else { return raw };
    let node = &["name", "agent_grace", "capacity_percent", "watchdog"];
    if let Some(s) = root.section("node", "[node]", node, f) {
        raw.node = s.text("name", f);
        raw.agent_grace = s.duration("agent_grace", (100 * MS, 60_000 * MS), f).map(|d| d.value);
        raw.capacity_percent = s.number_within("capacity_percent", (1, 10_000), f).map(|n| n.value);
        raw.watchdog = s.path("watchdog", f).map(|p| p.value);
    }
    if let Some(s) = root.section("store", "[store]", &["kind", "path", "endpoints", "tls", "credentials"], f)
    {
        raw.store = RawStore {
            kind: s.word("kind", &["file", "etcd"], f),
            path: s.path("path", f).map(|p| p.value),
            etcd_keys: present(&s, ETCD_KEYS),
            endpoints: names(&s, "endpoints", f),
            tls: s.section("tls", "[store] tls", &["ca", "certificate", "key"], f).map(|t| RawTls {
                at: t.at,
                ca: t.path("ca", f).map(|p| p.value),
                certificate: t.path("certificate", f).map(|p| p.value),
                key: t.path("key", f).map(|p| p.value),
            }),
            credentials: s.section("credentials", "[store] credentials", &["user", "password_file"], f).map(
                |c| RawCredentials {
                    user: c.required("user", "baton", f).map(|u| u.value),
                    password_file: c.path("password_file", f).map(|p| p.value),
                },
            ),
        };
    }
    if let Some(s) = root.section("control", "[control]", &["socket", "group"], f) {
        raw.socket = s.path("socket", f);
        raw.group = s.text("group", f);
    }
    if let Some(s) = root.section("paths", "[paths]", &["state", "bpffs"], f) {
        raw.state = s.path("state", f).map(|p| p.value);
        raw.bpffs = s.path("bpffs", f).map(|p| p.value);
    }
    if let Some(s) = root.section("cluster", "[cluster]", CLUSTER_KEYS, f) {
        raw.cluster = Some(RawCluster {
            at: s.at,
            name: s.text("name", f),
            key_file: s.path("key_file", f),
            witness: s.flag("witness", f),
            members: s.list("members", f, name_of),
            two_nodes: s.flag("two_nodes_never_take_over", f).unwrap_or(false),
            keys: present(&s, CLUSTER_KEYS),
        });
    }
    raw.sections = present(&root, ROOT);
    let telemetry: &[&'static str] =
        &["listen", "token_file", "tls_certificate", "tls_key", "client_ca", "otlp"];
    if let Some(s) = root.section("telemetry", "[telemetry]", telemetry, f) {
        raw.listen = s.text("listen", f).and_then(|text| listen(&text, f));
        raw.token_file = s.path("token_file", f);
        raw.tls_certificate = s.path("tls_certificate", f);
        raw.tls_key = s.path("tls_key", f);
        raw.client_ca = s.path("client_ca", f);
        raw.otlp = s.text("otlp", f).and_then(|text| collector(&text, f));
        raw.telemetry_keys = present(&s, telemetry);
    }
    let timing =
        &["probe_interval", "lease", "slack", "hold_down", "hold_down_max", "announce_repeat", "watchdog"];
    if let Some(s) = root.section("timing", "[timing]", timing, f) {
        raw.timing = RawTiming {
            probe_interval: s.duration("probe_interval", (MS, 1000 * MS), f),
            lease: s.duration("lease", (5 * MS, 60_000 * MS), f),
            slack: s.duration("slack", (MS, 60_000 * MS), f),
            hold_down: s.duration("hold_down", (Duration::ZERO, HOUR), f),
            hold_down_max: s.duration("hold_down_max", (Duration::ZERO, 24 * HOUR), f),
            announce_repeat: s
                .list("announce_repeat", f, |v, called, f| duration_of(v, called, (MS, 60_000 * MS), f)),
            watchdog: s.duration("watchdog", fencing::WATCHDOG_LIMITS, f),
        };
    }
    if let Some(s) = root.section("balance", "[balance]", balance::KEYS, f) {
        raw.balance = balance::read(&s, f);
    }
    raw.ports = root
        .sections("port", "[[port]]", &["interface", "segment", "speed_mbits"], f)
        .iter()
        .map(|s| RawPort {
            at: s.at,
            interface: s.required("interface", "eth0", f),
            segment: s.required("segment", "office", f),
            speed_mbits: s.number_within("speed_mbits", (1, u32::MAX), f).map(|n| n.value),
        })
        .collect();
    let segment = &["name", "subnets", "gateway", "probe_targets", "port_failback"];
    raw.segments =
        root.sections("segment", "[[segment]]", segment, f).iter().map(|s| read_segment(s, f)).collect();
    let server: &[&str] = &[
        "name",
        "priority",
        "migrate",
        "preferred_nodes",
        "never_with",
        "only_on",
        "failback",
        "reroute",
        "addresses",
    ];
    raw.servers = root
        .sections("virtual_server", "[[virtual_server]]", &[server, &resources::KEYS[..]].concat(), f)
        .iter()
        .map(|s| read_server(s, f))
        .collect();
    raw.fences = fencing::read_fences(&root, f);
    raw.units = fencing::read_units(&root, f);
    raw.hooks = hooks::read(&root, f);
    raw
}

fn present(section: &Section<'_, '_>, keys: &[&'static str]) -> Vec<At<&'static str>> {
    keys.iter().filter_map(|k| section.key(k).map(|at| At { value: *k, at })).collect()
}

fn name_of(value: &Value<'_>, called: &str, f: &mut Findings) -> Option<At<String>> {
    text_of(value, called, "names in quotes", f)
}

fn names(s: &Section<'_, '_>, key: &str, f: &mut Findings) -> Vec<At<String>> {
    s.list(key, f, name_of).map_or(Vec::new(), |l| l.value)
}

fn listen(text: &At<String>, f: &mut Findings) -> Option<Listen> {
    if text.value == "off" {
        return Some(Listen::Off);
    }
    match text.value.parse() {
        Ok(address) => Some(Listen::On(address)),
        Err(_) => {
            f.error(
                text.at,
                format!("`listen` in [telemetry] is \"{}\"", text.value),
                "write an address and a port, as \"127.0.0.1:9477\" or \"[::1]:9477\", or \"off\"",
            );
            None
        }
    }
}

/// The URL of a collector, without a slash at its end.
fn collector(text: &At<String>, f: &mut Findings) -> Option<String> {
    let url = text.value.trim_end_matches('/');
    let parsed = url.parse::<Uri>().ok();
    let is_good = |uri: &Uri| {
        uri.scheme_str() == Some("http") && uri.host().is_some_and(|h| !h.is_empty()) && uri.query().is_none()
    };
    if parsed.as_ref().is_some_and(is_good) {
        return Some(url.to_owned());
    }
    let what = match parsed.as_ref().and_then(Uri::scheme_str) {
        Some("https") => "is by TLS, which is not spoken towards a collector",
        Some(_) | None => "is not the URL of a collector",
    };
    f.error(
        text.at,
        format!("`otlp` in [telemetry] is \"{}\", and {what}", text.value.escape_debug()),
        "write it as \"http://127.0.0.1:4318\": a collector on this node may pass traces on by TLS",
    );
    None
}

fn read_segment(s: &Section<'_, '_>, f: &mut Findings) -> RawSegment {
    let name = s.required("name", "office", f);
    let subnets = s.list("subnets", f, net_of);
    if s.key("subnets").is_none()
        || subnets.as_ref().is_some_and(|l| l.value.is_empty() && !s.has_items("subnets"))
    {
        let at = subnets.as_ref().map_or(s.at, |l| l.at);
        f.error(at, "[[segment]] has no subnet", "add subnets = [\"10.0.0.0/24\"]");
    }
    RawSegment {
        name,
        subnets: subnets.map_or(Vec::new(), |l| l.value),
        gateway: s.list("gateway", f, ip_of).map_or(Vec::new(), |l| l.value),
        probe_targets: s.list("probe_targets", f, ip_of).map_or(Vec::new(), |l| l.value),
        port_failback: s.word("port_failback", &["spread", "stay"], f),
    }
}

fn read_server(s: &Section<'_, '_>, f: &mut Findings) -> RawServer {
    let name = s.required("name", "projects", f);
    let addresses = s.list("addresses", f, net_of);
    if s.key("addresses").is_none()
        || addresses.as_ref().is_some_and(|l| l.value.is_empty() && !s.has_items("addresses"))
    {
        let at = addresses.as_ref().map_or(s.at, |l| l.at);
        f.error(at, "[[virtual_server]] has no address", "add addresses = [\"10.0.0.10/24\"]");
    }
    let failback = s.text("failback", f).and_then(|text| read_failback(&text, f));
    RawServer {
        at: s.at,
        name,
        priority: s.number("priority", f),
        migrate: s.flag("migrate", f),
        failback,
        reroute: s.flag("reroute", f),
        preferred_nodes: names(s, "preferred_nodes", f),
        never_with: names(s, "never_with", f),
        only_on: names(s, "only_on", f),
        addresses: addresses.map_or(Vec::new(), |l| l.value),
        resources: resources::read(s, f),
    }
}

/// `manual`, `immediate`, or a daily window `01:00-04:00`.
fn read_failback(text: &At<String>, f: &mut Findings) -> Option<Failback> {
    let time = |t: &str| {
        let (h, m) = t.split_once(':')?;
        let digits = |s: &str| s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit());
        let (hour, minute) = (h.parse::<u16>().ok()?, m.parse::<u16>().ok()?);
        (digits(h) && digits(m) && hour < 24 && minute < 60).then_some(60 * hour + minute)
    };
    let window = |t: &str| {
        let (from, to) = t.split_once('-')?;
        let (from, to) = (time(from)?, time(to)?);
        (from != to).then_some(Failback::Window(from, to))
    };
    match text.value.as_str() {
        "manual" => Some(Failback::Manual),
        "immediate" => Some(Failback::Immediate),
        other => window(other).or_else(|| {
            f.error(
                text.at,
                format!("`failback` in [[virtual_server]] is \"{other}\""),
                "write \"manual\", \"immediate\" or a daily window as \"01:00-04:00\"",
            );
            None
        }),
    }
}
