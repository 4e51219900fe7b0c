//! A real Prometheus, with the rules and the dashboard of this repository, watches a node whose port fails.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Cable, Host, Lab, Process};
use serde_json::Value;

use crate::common::*;

/// Of Debian's package prometheus; `make test` installs it.
const PROGRAM: &str = "prometheus";
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/monitoring")
}

/// Prometheus in a host of the lab.
struct Prometheus<'a> {
    host: &'a Host,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Prometheus<'_> {
    /// Asks the agent twice a second, and looks at the rules more often. Rules that wait a minute before they fire wait a second.
    fn start(host: &Host) -> Result<Prometheus<'_>> {
        let folder = tempfile::tempdir()?;
        let rules = std::fs::read_to_string(monitoring().join("alerts.yml"))?;
        let rules = rules.replace("for: 1m", "for: 1s");
        std::fs::write(folder.path().join("alerts.yml"), rules)?;
        let settings = "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 200ms}\n\
            rule_files: [alerts.yml]\n\
            scrape_configs:\n  - {job_name: baton, static_configs: [{targets: ['127.0.0.1:9477']}]}\n";
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, settings)?;
        let mut command = Command::new(PROGRAM);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={LISTEN}")).arg("--log.level=warn");
        let process = host.spawn(command).context("prometheus; `make test` installs it")?;
        Ok(Prometheus { host, process, _folder: folder })
    }

    /// `data` of the answer to this request of its API.
    fn get(&self, path: &str) -> Result<Value> {
        let mut stream = self.host.open("connect to Prometheus", || {
            let stream = TcpStream::connect_timeout(&LISTEN, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            Ok(stream)
        })?;
        let request = format!("GET /api/v1/{path} HTTP/1.0\r\nHost: {LISTEN}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        let body: Value = serde_json::from_str(body).with_context(|| format!("{path}: {answer}"))?;
        ensure!(body["status"] == "success", "{path}: {body}");
        Ok(body["data"].clone())
    }

    /// What an expression is now: a list of series, each with its labels and value.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.get(&format!("query?query={}", encoded(expression)))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// The states in which this alert is, with their labels.
    fn alerts(&self, name: &str) -> Result<Vec<Value>> {
        let data = self.get("alerts")?;
        let all = data["alerts"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().filter(|a| a["labels"]["alertname"] == name).collect())
    }

    fn wait(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut last = None;
        let waited = wait_until(what, Duration::from_secs(40), || {
            std::thread::sleep(Duration::from_millis(50));
            match holds() {
                Ok(holds) => holds,
                Err(e) => {
                    last = Some(e);
                    false
                }
            }
        });
        if let Err(e) = waited {
            bail!("{e}; {last:?}; Prometheus says: {}", self.process.stderr());
        }
        Ok(())
    }
}

/// For a query of a URL.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The queries of the dashboard with their panels, as Grafana would send them.
fn dashboard() -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(monitoring().join("dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("a query")?;
            let expression = expression.replace("$__rate_interval", "5s").replace("$__range", "1m");
            queries.push((title.to_owned(), expression));
        }
    }
    Ok(queries)
}

/// What a lone node without storage has nothing to say of.
const ELSEWHERE: [&str; 4] = ["storage", "device", "lease_remaining", "connections"];

fn cut_one(lab: &Lab) -> Result<String> {
    let address = ip("10.0.0.10");
    let old = holder(lab, address)?;
    old.cut()?;
    wait_moved(lab, address, old)?;
    Ok(old.interface().to_owned())
}

#[test]
fn prometheus_sees_a_port_fail_and_the_dashboard_has_data() -> Result<()> {
    // Three ports: with one cut there still are paths.
    let lab = lab("prometheus", 3, Cable::EventsAtOnce)?;
    let config = config(3).server("projects", &["10.0.0.10/24", "10.0.0.11/24"]);
    let agent = serve(&lab, &config)?;
    let prometheus = Prometheus::start(lab.host("fs1")?)?;
    prometheus.wait("the first scrape", || {
        let up = prometheus.query("up{job=\"baton\"}")?;
        Ok(up.first().is_some_and(|series| series["value"][1] == "1"))
    })?;
    ensure!(prometheus.alerts("BatonPortBad")?.is_empty(), "an alert without a cause");
    let rules = prometheus.get("rules")?;
    let rules = rules["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
    ensure!(rules.len() > 10 && rules.iter().all(|rule| rule["health"] != "err"), "{rules:#?}");
    let interface = cut_one(&lab)?;
    wait_state(&agent, &interface, "down")?;
    // First it is pending, then it fires; between the two there is a second, in which it is asked about 20 times.
    let mut seen = Vec::new();
    prometheus.wait("the alert to fire", || {
        for alert in prometheus.alerts("BatonPortBad")? {
            ensure!(alert["labels"]["interface"] == interface.as_str(), "{alert}");
            ensure!(alert["labels"]["state"] == "down", "{alert}");
            let state = alert["state"].as_str().unwrap_or_default().to_owned();
            if !seen.contains(&state) {
                seen.push(state);
            }
        }
        Ok(seen.last().is_some_and(|state| state == "firing"))
    })?;
    // On a machine so busy that it is never asked in that second it has fired all the same.
    ensure!(seen == ["pending", "firing"] || seen == ["firing"], "{seen:?}");
    // Also the first failover is an increase, and its time is known.
    for query in [
        "sum(increase(baton_failovers_total{kind=\"port\"}[1m])) > 0",
        "histogram_quantile(0.5, sum by (le) (increase(baton_failover_seconds_bucket{stage=\"announced\"}[1m]))) > 0",
    ] {
        prometheus.wait(query, || Ok(!prometheus.query(query)?.is_empty()))?;
    }
    let queries = dashboard()?;
    ensure!(queries.len() > 15, "{}", queries.len());
    let mut answered = 0;
    for (panel, expression) in &queries {
        let told = || prometheus.query(expression);
        if ELSEWHERE.iter().any(|word| expression.contains(word)) {
            told().with_context(|| format!("{panel}: {expression}"))?;
            continue;
        }
        prometheus.wait(&format!("data for \"{panel}\": {expression}"), || Ok(!told()?.is_empty()))?;
        answered += 1;
    }
    ensure!(answered > 10, "{answered} of {}", queries.len());
    // Whole again: the alert ends.
    lab.port("fs1", &interface)?.restore()?;
    wait_state(&agent, &interface, "good")?;
    prometheus.wait("the alert to end", || Ok(prometheus.alerts("BatonPortBad")?.is_empty()))
}
