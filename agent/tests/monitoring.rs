//! Alert rules, dashboard and metrics against one another and against Prometheus' own tool. A live agent's metrics are read in
//! the lab (`tests/e2e/measure.rs`).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use baton::telemetry::{self, Metrics};
use baton_core::{Event, EventKind, FailoverKind, HostSample, Reason, Stage, Time};

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
    let (publisher, published) = telemetry::channel();
    publisher.host.send_replace(Some(HostSample { cpu: 250, cpu_pressure: 125, memory_pressure: 1 }));
    let metrics = Metrics::new(published);
    let (kind, reason) = (FailoverKind::Port, Reason::CarrierLost);
    let stages = [(Stage::Announced, 140e-6)].into();
    for kind in [
        EventKind::Failover { kind, reason, moves: Vec::new() },
        EventKind::FailoverDone { kind, reason, addresses: 1, stages },
    ] {
        metrics.event(&Event { at: Time(1), failover: Some(1), kind });
    }
    telemetry::plain(&metrics.encode().expect("text"))
}

#[test]
fn the_metrics_are_good() {
    assert_eq!(promtool(&["check", "metrics"], &metrics()), "");
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
    let rules: Vec<_> = (0..)
        .zip(&queries)
        .map(|(n, expr)| serde_json::json!({"record": format!("dashboard:query:{n}"), "expr": expr}))
        .collect();
    // YAML takes JSON.
    let file = tempfile::NamedTempFile::with_suffix(".yml").expect("a file");
    let group = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(file.path(), group.to_string()).expect("written");
    promtool(&["check", "rules", &file.path().display().to_string()], "");
}
