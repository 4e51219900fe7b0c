//! What is different between two configurations, a line each, for whoever changes one.
//!
//! `+` is new, `-` is gone, `~` is there in both and differs, with what differs behind it. Secrets are never shown.

use std::time::Duration;

use baton_core::Config;
use baton_core::config::{Failback, PortConfig, Segment, Timing, VirtualServer};

use super::{Loaded, Resources, StoreKind, balance};
use crate::hooks::Hook;

/// What changes from `old` to `new`.
pub fn difference(old: &Loaded, new: &Loaded) -> Vec<String> {
    let mut lines = Vec::new();
    let (before, after) = (&old.core, &new.core);
    changed(&mut lines, "node", node(old), node(new));
    changed(&mut lines, "timing", times(&before.timing), times(&after.timing));
    changed(&mut lines, "balance", balance::values(&before.balance), balance::values(&after.balance));
    let (one, other) = (&old.agent.resources, &new.agent.resources);
    let port = |p: &PortConfig| p.interface.clone();
    let details = |a: &PortConfig, b: &PortConfig| differing(port_values(a), port_values(b));
    named(&mut lines, "port", &before.ports, &after.ports, port, details);
    segments(&mut lines, &before.segments, &after.segments);
    servers(&mut lines, &before.servers, &after.servers);
    resources(&mut lines, one, other);
    let (one, other) = (&old.agent.units, &new.agent.units);
    let text = |a: &super::StorageUnit, b: &super::StorageUnit| (a != b).then(String::new);
    named(&mut lines, "storage unit", one, other, |u| u.name.clone(), text);
    let (one, other) = (&old.agent.hooks, &new.agent.hooks);
    let text = |a: &Hook, b: &Hook| (a != b).then(String::new);
    named(&mut lines, "hook", one, other, |hook| hook.name.clone(), text);
    lines
}

/// What only the agent has, as text.
fn node(loaded: &Loaded) -> Vec<(&'static str, String)> {
    let Loaded { core: Config { node, capacity_percent, .. }, agent, .. } = loaded;
    let path = |p: &std::path::Path| p.display().to_string();
    let listen = agent.telemetry.listen.map_or("off".to_owned(), |l| l.to_string());
    let tls = agent.telemetry.tls.as_ref();
    let of_tls = |file: Option<&std::path::PathBuf>| file.map_or("none".to_owned(), |file| path(file));
    let mut all = vec![
        ("name", node.clone()),
        ("capacity_percent", capacity_percent.to_string()),
        ("agent_grace", said(agent.agent_grace)),
        ("watchdog", path(&agent.watchdog)),
        ("telemetry.listen", listen),
        ("telemetry.token_file", agent.telemetry.token_file.as_deref().map_or("none".to_owned(), path)),
        ("telemetry.tls_certificate", of_tls(tls.map(|tls| &tls.certificate))),
        ("telemetry.tls_key", of_tls(tls.map(|tls| &tls.key))),
        ("telemetry.client_ca", of_tls(tls.and_then(|tls| tls.client_ca.as_ref()))),
        ("telemetry.otlp", agent.telemetry.otlp.clone().unwrap_or_else(|| "none".to_owned())),
        ("control.socket", path(&agent.control.socket)),
        ("control.group", agent.control.group.clone()),
        ("store.path", path(&agent.store.path)),
    ];
    let etcd = match &agent.store.kind {
        StoreKind::Etcd(etcd) => etcd.clone(),
        StoreKind::File => Default::default(),
    };
    let cluster = agent.cluster.as_ref();
    all.extend([
        ("store.endpoints", etcd.endpoints.join(", ")),
        ("store.tls", etcd.tls.map_or("none".to_owned(), |t| format!("{t:?}"))),
        ("store.credentials", etcd.credentials.map_or("none".to_owned(), |c| format!("{c:?}"))),
        ("cluster.key_file", cluster.map_or("none".to_owned(), |c| path(&c.key_file))),
        ("cluster.witness", cluster.is_some_and(|c| c.witness).to_string()),
    ]);
    all
}

pub(super) fn times(t: &Timing) -> Vec<(&'static str, String)> {
    let repeat: Vec<String> = t.announce_repeat.iter().copied().map(said).collect();
    vec![
        ("probe_interval", said(t.probe_interval)),
        ("hold_down", said(t.hold_down)),
        ("hold_down_max", said(t.hold_down_max)),
        ("announce_repeat", repeat.join(" ")),
    ]
}

pub(super) fn said(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn port_values(p: &PortConfig) -> Vec<(&'static str, String)> {
    let speed = p.speed_mbits.map_or("as the interface says".to_owned(), |s| s.to_string());
    vec![("segment", p.segment.clone()), ("speed_mbits", speed)]
}

pub(super) fn segments(lines: &mut Vec<String>, old: &[Segment], new: &[Segment]) {
    let details = |a: &Segment, b: &Segment| {
        let mut parts = listed("subnet", &a.subnets, &b.subnets);
        parts.extend(listed("gateway", &a.gateway, &b.gateway));
        parts.extend(listed("probe target", &a.probe_targets, &b.probe_targets));
        let failback = |s: &Segment| vec![("port_failback", format!("{:?}", s.port_failback).to_lowercase())];
        parts.extend(differing(failback(a), failback(b)));
        joined(parts, a == b)
    };
    named(lines, "segment", old, new, |s| s.name.clone(), details);
}

pub(super) fn servers(lines: &mut Vec<String>, old: &[VirtualServer], new: &[VirtualServer]) {
    let values = |s: &VirtualServer| {
        vec![
            ("priority", s.priority.to_string()),
            ("migrate", s.migrate.to_string()),
            ("preferred_nodes", s.preferred_nodes.join(" ")),
            ("failback", failback(s.failback)),
            ("reroute", s.reroute.to_string()),
            ("never_with", s.never_with.join(" ")),
            ("only_on", s.only_on.join(" ")),
        ]
    };
    let details = |a: &VirtualServer, b: &VirtualServer| {
        let mut parts = listed("address", &a.addresses, &b.addresses);
        parts.extend(differing(values(a), values(b)));
        joined(parts, a == b)
    };
    named(lines, "virtual server", old, new, |s| s.name.clone(), details);
}

pub(super) fn resources(lines: &mut Vec<String>, old: &[Resources], new: &[Resources]) {
    let text = |r: &Resources| {
        let Resources {
            filesystems, services, fence, storage_units, private_mounts, reset_connections, ..
        } = r;
        let flags = (*private_mounts, *reset_connections);
        (filesystems.clone(), services.clone(), *fence, storage_units.clone(), flags)
    };
    let details = |a: &Resources, b: &Resources| (text(a) != text(b)).then(String::new);
    named(lines, "file systems and services of", old, new, |r| r.server.clone(), details);
}

fn failback(failback: Failback) -> String {
    let time = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
    match failback {
        Failback::Manual => "manual".to_owned(),
        Failback::Immediate => "immediate".to_owned(),
        Failback::Window(from, to) => format!("{}-{}", time(from), time(to)),
    }
}

/// What is gone from a list, and what is new in it.
fn listed<T: PartialEq + std::fmt::Display>(what: &str, old: &[T], new: &[T]) -> Vec<String> {
    let gone = old.iter().filter(|o| !new.contains(o)).map(|o| format!("- {what} {o}"));
    let come = new.iter().filter(|n| !old.contains(n)).map(|n| format!("+ {what} {n}"));
    gone.chain(come).collect()
}

/// The values that are others than before; `None`: none is.
fn differing(old: Vec<(&'static str, String)>, new: Vec<(&'static str, String)>) -> Option<String> {
    let pairs = old.into_iter().zip(new).filter(|((_, a), (_, b))| a != b);
    let parts: Vec<String> =
        pairs.map(|((key, a), (_, b))| format!("{key} {} -> {}", or_none(a), or_none(b))).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn or_none(value: String) -> String {
    if value.is_empty() { "none".to_owned() } else { value }
}

/// One text of several parts; `None` where nothing is different.
fn joined(parts: Vec<String>, same: bool) -> Option<String> {
    (!same).then(|| parts.join(", "))
}

/// What has another value than before in a section.
pub(super) fn changed(
    lines: &mut Vec<String>,
    section: &str,
    old: Vec<(&'static str, String)>,
    new: Vec<(&'static str, String)>,
) {
    for ((key, before), (_, after)) in old.into_iter().zip(new) {
        if before != after {
            lines.push(format!("{section}: {key} {before} -> {after}"));
        }
    }
}

/// What is new, gone or changed in a list of named things. `details`: what differs between two of the same name, `None` where
/// nothing does.
pub(super) fn named<T>(
    lines: &mut Vec<String>,
    what: &str,
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> String,
    details: impl Fn(&T, &T) -> Option<String>,
) {
    for item in old.iter().filter(|o| !new.iter().any(|n| name(n) == name(o))) {
        lines.push(format!("- {what} {}", name(item)));
    }
    for item in new {
        match old.iter().find(|o| name(o) == name(item)).map(|before| details(before, item)) {
            None => lines.push(format!("+ {what} {}", name(item))),
            Some(Some(details)) if details.is_empty() => lines.push(format!("~ {what} {}", name(item))),
            Some(Some(details)) => lines.push(format!("~ {what} {}: {details}", name(item))),
            Some(None) => {}
        }
    }
}
