//! Alert rules, dashboard and metrics against one another and against Prometheus' own tool. A live agent's metrics are read in
//! the lab (`tests/e2e/measure.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use baton::hooks::{Hook, Hooks};
use baton::telemetry::reference::GROUPS;
use baton::telemetry::{
    self, DeviceCounters, KeptConnections, Metrics, PathStats, Published, Publisher, StorageCounters,
    UnitRequests, UnitStats, VipCounters,
};
use baton_core::{
    AddressView, Event, EventKind, FailoverKind, Finding, HostSample, NodeView, PathView, PortState,
    PortView, Reason, SegmentView, ServerView, Snapshot, Stage, StorageState, TargetView, Time, Watcher,
};

/// Of Debian's package prometheus; `make test` installs it.
const TOOL: &str = "promtool";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring")
}

fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(TOOL);
    command.args(arguments).current_dir(folder()).stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{TOOL}: {e}; `make test` installs it"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ended");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{TOOL} {arguments:?}: {said}");
    said
}

#[test]
fn the_rules_are_good_and_fire_when_they_should() {
    assert!(promtool(&["check", "rules", "alerts.yml"], "").contains("SUCCESS"));
    assert!(promtool(&["test", "rules", "alerts_test.yml"], "").contains("SUCCESS"));
}

/// Everything that an agent shows, with something in each family that is filled by events.
fn metrics() -> String {
    let (_publisher, published) = busy();
    shown(published, None)
}

/// What an agent knows of a busy host.
fn busy() -> (Publisher, Published) {
    let (publisher, published) = telemetry::channel();
    publisher.host.send_replace(Some(HostSample { cpu: 250, cpu_pressure: 125, memory_pressure: 1 }));
    (publisher, published)
}

/// All of this as text, with a hook, a failover, and perhaps another event.
fn shown(published: Published, more: Option<EventKind>) -> String {
    let hook = Hook {
        name: "page".into(),
        on: vec!["all".into()],
        run: vec!["/bin/true".into()],
        timeout: Duration::from_secs(1),
    };
    let hooks = Hooks::start("fs1", vec![hook]).expect("a thread");
    let metrics = Metrics::with_hooks(published, hooks.runs());
    let (kind, reason) = (FailoverKind::Port, Reason::CarrierLost);
    let stages = [(Stage::Announced, 140e-6)].into();
    let failover = [
        EventKind::Failover { kind, reason, moves: Vec::new() },
        EventKind::FailoverDone { kind, reason, addresses: 1, stages },
    ];
    for kind in failover.into_iter().chain(more) {
        metrics.event(&Event { at: Time(1), failover: Some(1), kind });
    }
    telemetry::plain(&metrics.encode().expect("text"))
}

/// As [`metrics`], with something in every family.
fn all_metrics() -> String {
    let (publisher, published) = busy();
    let address: std::net::IpAddr = "10.0.0.10".parse().expect("an address");
    let (office, eth0, eth1) = ("office".to_owned(), "eth0".to_owned(), "eth1".to_owned());
    publisher.snapshot.send_replace(
        Snapshot {
            nodes: vec![NodeView { name: "fs1".into(), state: "up".into(), ..NodeView::default() }],
            ports: vec![PortView {
                interface: eth0.clone(),
                segment: office.clone(),
                state: PortState::Good,
                reason: None,
                carrier: true,
                present: true,
                attachment: None,
                held_ms: None,
                flaps: 0,
                addresses: 1,
                rate: 0,
            }],
            virtual_servers: vec![ServerView {
                name: "projects".into(),
                owner: Some("fs1".into()),
                state: "serving".into(),
                epoch: 1,
                load: 0.1,
                priority: 100,
                why: None,
                rate: 0,
                addresses: vec![AddressView {
                    address,
                    port: Some(eth0.clone()),
                    via: Some("fs1".into()),
                    rate: 0,
                }],
            }],
            segments: vec![SegmentView { name: office.clone(), finding: Finding::Whole }],
            paths: vec![PathView {
                segment: office.clone(),
                from: eth0.clone(),
                to: eth1.clone(),
                heard: Some(true),
                heard_ms: Some(1),
                loss: Some(0.0),
                rtt_us: Some(1.0),
                echo: None,
                timer: Watcher::Kernel,
            }],
            targets: vec![TargetView {
                segment: office.clone(),
                port: eth0.clone(),
                target: address,
                answers: Some(true),
            }],
            ..Snapshot::default()
        }
        .into(),
    );
    let server = "projects".to_owned();
    publisher.counters.send_replace(
        vec![VipCounters { address, server: server.clone(), counters: Default::default() }].into(),
    );
    let paths = PathStats { segment: office, from: eth0, to: eth1, rtt: Default::default(), rtt_sum_ns: 0 };
    publisher.paths.send_replace(vec![paths].into());
    let counters = StorageCounters::default();
    publisher.devices.send_replace(
        vec![DeviceCounters { server: server.clone(), device: "/dev/sda".into(), counters }].into(),
    );
    publisher
        .connections
        .send_replace(vec![KeptConnections { server: server.clone(), kept: 1, beyond: 0 }].into());
    let unit = UnitStats { state: Some(StorageState::Good), ..UnitStats::new("array-1", "/dev/sda") };
    publisher.units.send_replace(vec![unit].into());
    publisher.requests.send_replace(
        vec![UnitRequests {
            unit: "array-1".into(),
            device: "/dev/sda".into(),
            completed: 1,
            errors: 0,
            in_flight: 1,
            oldest: Duration::from_secs(1),
        }]
        .into(),
    );
    let reset = EventKind::ConnectionsReset { server, connections: 1, kind: None, after: None };
    shown(published, Some(reset))
}

/// Every metric that is shown is in the reference, and the other way round, with its type and its labels.
#[test]
fn the_reference_has_every_metric() {
    let shown = all_metrics();
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    for line in shown.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let (sample, _) = line.rsplit_once(' ').expect("a value");
            let (name, list) = sample.split_once('{').unwrap_or((sample, ""));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            let family = family.filter(|f| kinds.contains_key(*f)).unwrap_or(name);
            let own = labels.entry(family.to_owned()).or_default();
            let names = list.trim_end_matches('}').split("\",").filter_map(|l| Some(l.split_once('=')?.0));
            own.extend(names.filter(|l| *l != "le").map(str::to_owned));
        }
    }
    let documented = || GROUPS.iter().flat_map(|g| g.metrics);
    let told: BTreeSet<&str> = documented().map(|m| m.name).collect();
    assert_eq!(documented().count(), told.len(), "one is described twice");
    let there: BTreeSet<&str> = kinds.keys().map(String::as_str).collect();
    assert_eq!(told, there, "describe what is new in agent/src/telemetry/reference.rs");
    for metric in documented() {
        let kind = if metric.kind == "info" { "gauge" } else { metric.kind };
        assert_eq!(kinds[metric.name], kind, "{}", metric.name);
        let own: BTreeSet<String> = metric.labels.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(labels.get(metric.name), Some(&own), "{}: or there is no sample of it here", metric.name);
        assert!(names(metric.alert).contains(metric.name) || metric.kind == "histogram", "{}", metric.name);
    }
}

/// Each query of the documentation is one that Prometheus takes, and asks for metrics that there are.
#[test]
fn the_documentations_queries_are_good() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src");
    let mut queries = Vec::new();
    for entry in std::fs::read_dir(&pages).expect("the documentation") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a page");
        for block in text.split("\n```promql\n").skip(1) {
            // Queries of one block are separated by empty lines.
            let block = block.split("\n```").next().expect("an end");
            queries.extend(block.split("\n\n").map(|query| {
                let lines = query.lines().filter(|line| !line.starts_with('#'));
                lines.collect::<Vec<_>>().join("\n")
            }));
        }
    }
    assert!(queries.len() > 50, "{}", queries.len());
    let there = all_metrics();
    for query in &queries {
        for name in names(query) {
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(&name);
            let is_there = |name: &str| there.contains(&format!("# TYPE {name} "));
            assert!(is_there(&name) || is_there(family), "{query} asks for {name}");
        }
    }
    check_queries("docs", &queries);
}

#[test]
fn the_metrics_are_good() {
    assert_eq!(promtool(&["check", "metrics"], &metrics()), "");
    assert_eq!(promtool(&["check", "metrics"], &all_metrics()), "");
}

/// Names of metrics in an expression.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c)).filter(|w| w.starts_with("baton_")).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_there_are() {
    let shown = metrics();
    let families: BTreeSet<&str> =
        shown.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let known = |name: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
        families.contains(name) || of_histogram.is_some_and(|family| families.contains(family))
    };
    for file in ["alerts.yml", "dashboard.json"] {
        let text = std::fs::read_to_string(folder().join(file)).expect(file);
        let asked = names(&text);
        assert!(asked.len() > 5, "{file}: {asked:?}");
        let unknown: Vec<_> = asked.iter().filter(|name| !known(name)).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}; there are {families:?}");
    }
}

/// Each query of the dashboard is one that Prometheus takes.
#[test]
fn the_dashboards_queries_are_good() {
    let text = std::fs::read_to_string(folder().join("dashboard.json")).expect("the dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            queries.push(target["expr"].as_str().expect("a query").to_owned());
        }
    }
    assert!(queries.len() > 15, "{}", queries.len());
    check_queries("dashboard", &queries);
}

/// Prometheus takes these queries.
fn check_queries(whose: &str, queries: &[String]) {
    let rules: Vec<_> = (0..)
        .zip(queries)
        .map(|(n, expr)| serde_json::json!({"record": format!("{whose}:query:{n}"), "expr": expr}))
        .collect();
    // YAML takes JSON.
    let file = tempfile::NamedTempFile::with_suffix(".yml").expect("a file");
    let group = serde_json::json!({"groups": [{"name": whose, "rules": rules}]});
    std::fs::write(file.path(), group.to_string()).expect("written");
    promtool(&["check", "rules", &file.path().display().to_string()], "");
}
