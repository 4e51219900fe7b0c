//! What every metric means: the page `metrics.md` of the documentation is made of this. A test holds it against what an agent
//! shows, both ways (`tests/monitoring.rs`).

use std::fmt::Write as _;

/// A metric, as its samples are called in Prometheus' own format.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name; of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// `counter`, `gauge`, `histogram`; `info`: a gauge that is always 1.
    pub kind: &'static str,
    /// Of its value.
    pub unit: &'static str,
    /// Names of its labels, and what they say.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it means.
    pub meaning: &'static str,
    /// A condition that is worth an alert, or at least a line in a diagram.
    pub alert: &'static str,
}

/// Metrics that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they are of.
    pub title: &'static str,
    /// The metrics.
    pub metrics: &'static [Metric],
}

type Labels = &'static [(&'static str, &'static str)];

const NONE: Labels = &[];
const SERVER: (&str, &str) = ("virtual_server", "its name");
const KIND: (&str, &str) = (
    "kind",
    "`port`: between ports of a node; `takeover`: from a dead node, or from nobody; `move`: from a node that has released it",
);
const VIP: Labels =
    &[SERVER, ("address", "the virtual IP"), ("direction", "`rx`: from clients; `tx`: to them")];
const PATH: Labels = &[
    ("segment", "its name"),
    ("from", "interface of the sending port"),
    ("to", "interface of the receiving port"),
];
const DEVICE: Labels = &[SERVER, ("device", "as in `device` of the file system")];
const UNIT: Labels = &[("storage_unit", "its name"), ("device", "what is read")];

const fn metric(
    name: &'static str,
    kind: &'static str,
    unit: &'static str,
    labels: Labels,
    meaning: &'static str,
    alert: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, meaning, alert }
}

/// Every metric.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Failovers",
        metrics: &[
            metric(
                "baton_failover_seconds",
                "histogram",
                "seconds",
                &[
                    KIND,
                    (
                        "stage",
                        "`detected`, `decided`, `stopped`, `taken`, `fenced`, `started`, `bound`, `announced`, `reset`: those that it had",
                    ),
                ],
                "Time from the cause of a failover until each of its stages was passed, by its last address. From `announced` on \
                 clients are served.",
                "histogram_quantile(0.99, sum by (le, kind) (increase(baton_failover_seconds_bucket{stage=\"announced\", kind!=\"move\"}[1h]))) > 1",
            ),
            metric(
                "baton_failovers_total",
                "counter",
                "failovers",
                &[
                    KIND,
                    (
                        "reason",
                        "why, as in events: `carrier_lost`, `silent`, `node_dead`, `drain`, `balance`, ...",
                    ),
                ],
                "Failovers and moves that this node has made.",
                "sum by (instance) (increase(baton_failovers_total{kind=\"port\"}[10m])) > 20",
            ),
            metric(
                "baton_otlp_spans_total",
                "counter",
                "spans",
                &[(
                    "result",
                    "`sent`, `failed` (the collector did not take it for a minute or longer), `dropped` (too many waited)",
                )],
                "What became of the spans of failovers that were to go to the collector `otlp` in `[telemetry]`.",
                "increase(baton_otlp_spans_total{result!=\"sent\"}[1h]) > 0",
            ),
            metric(
                "baton_connections_reset_total",
                "counter",
                "connections",
                &[SERVER],
                "Clients' TCP connections that were reset because the virtual server has begun a new life on this node.",
                "increase(baton_connections_reset_total[5m]) > 1000",
            ),
            metric(
                "baton_connections",
                "gauge",
                "connections",
                &[SERVER],
                "TCP connections that would be reset if another node had to take the virtual server. Only of virtual servers with services.",
                "baton_connections > 9000",
            ),
            metric(
                "baton_connections_beyond_limit",
                "gauge",
                "connections",
                &[SERVER],
                "TCP connections above the 10,000 that are remembered: their clients would not be told after a takeover.",
                "baton_connections_beyond_limit > 0",
            ),
        ],
    },
    Group {
        title: "Nodes and virtual servers",
        metrics: &[
            metric(
                "baton_virtual_server_owner",
                "gauge",
                "1 or 0",
                &[SERVER, ("node", "a node")],
                "1 for the node that owns the virtual server, as this node knows.",
                "max by (virtual_server) (baton_virtual_server_owner) == 0",
            ),
            metric(
                "baton_node_state",
                "gauge",
                "1 or 0",
                &[("node", "a node"), ("state", "`up`, `draining`, `dead` or `unknown`")],
                "1 for the state that the node is in, as far as this node knows.",
                "max by (node) (baton_node_state{state=\"dead\"}) == 1",
            ),
            metric(
                "baton_quorum",
                "gauge",
                "1 or 0",
                NONE,
                "1 while a majority of the cluster grants this node its lease. A node that is alone always has it.",
                "baton_quorum == 0",
            ),
            metric(
                "baton_lease_remaining_seconds",
                "gauge",
                "seconds",
                NONE,
                "What is left of this node's lease; +Inf: it has no end, for the node is alone.",
                "baton_lease_remaining_seconds < 0.005",
            ),
            metric(
                "baton_store_reachable",
                "gauge",
                "1 or 0",
                NONE,
                "1 while the store answers. Without it what is served stays served, and nothing new is taken.",
                "baton_store_reachable == 0",
            ),
            metric(
                "baton_last_alive_seconds",
                "gauge",
                "seconds",
                NONE,
                "Time since the agent's fast thread was last known to be alive. What else is shown is that old.",
                "baton_last_alive_seconds > 3",
            ),
            metric(
                "baton_build_info",
                "info",
                "1",
                &[("version", "of the running program")],
                "The running program.",
                "count(count by (version) (baton_build_info)) > 1",
            ),
        ],
    },
    Group {
        title: "Ports and paths",
        metrics: &[
            metric(
                "baton_port_state",
                "gauge",
                "1 or 0",
                &[
                    ("interface", "the port"),
                    ("segment", "its segment"),
                    ("state", "`good`, `down`, `silent`, `degraded` or `held`"),
                ],
                "1 for the state that the port is in.",
                "baton_port_state{state=~\"down|silent|degraded\"} == 1",
            ),
            metric(
                "baton_path_heard",
                "gauge",
                "1 or 0",
                PATH,
                "1 if probes come through from one port to the other.",
                "baton_path_heard == 0",
            ),
            metric(
                "baton_path_loss_ratio",
                "gauge",
                "0 to 1",
                PATH,
                "Lost share of the path's probes, exponentially weighted with a half-life of 5 s.",
                "baton_path_loss_ratio > 0.01",
            ),
            metric(
                "baton_path_rtt_seconds",
                "histogram",
                "seconds",
                PATH,
                "Round trips over the path and the opposite one, stamped by the kernel programs.",
                "histogram_quantile(0.99, sum by (le, segment) (rate(baton_path_rtt_seconds_bucket[5m]))) > 0.005",
            ),
            metric(
                "baton_segment_finding",
                "gauge",
                "1 or 0",
                &[
                    ("segment", "its name"),
                    ("finding", "`unknown`, `whole`, `ports_silent`, `paths_silent`, `undecided` or `gone`"),
                ],
                "1 for what the paths of the segment, all together, say.",
                "baton_segment_finding{finding=~\"undecided|gone\"} == 1",
            ),
            metric(
                "baton_target_answers",
                "gauge",
                "1 or 0",
                &[
                    ("segment", "its name"),
                    ("port", "the port that asks"),
                    ("target", "the gateway or probe target"),
                ],
                "1 if the probe target answers at the port.",
                "max by (instance, target) (baton_target_answers) == 0",
            ),
            metric(
                "baton_probe_frames_refused_total",
                "counter",
                "frames",
                &[("reason", "`truncated`, `version`, `forged`, `replayed` or `unknown`")],
                "Probe frames that were not taken. `forged`: the key is another one, as of another cluster in the same segment.",
                "sum by (instance) (increase(baton_probe_frames_refused_total{reason=~\"forged|replayed\"}[5m])) > 10",
            ),
        ],
    },
    Group {
        title: "Virtual IPs",
        metrics: &[
            metric(
                "baton_vip_bytes_total",
                "counter",
                "bytes",
                VIP,
                "Bytes of the virtual IP's frames as they are on the wire, counted by the kernel programs of this node.",
                "sum by (virtual_server) (rate(baton_vip_bytes_total{direction=\"tx\"}[5m])) > 1e9",
            ),
            metric(
                "baton_vip_packets_total",
                "counter",
                "frames",
                VIP,
                "Those frames.",
                "sum by (instance) (rate(baton_vip_packets_total[5m])) > 1e6",
            ),
            metric(
                "baton_vip_dropped_packets_total",
                "counter",
                "frames",
                VIP,
                "Frames that were dropped because the virtual IP may not be served by this node or port now: no lease, or it starts or \
                 stops. A few belong to each move.",
                "sum by (virtual_server) (rate(baton_vip_dropped_packets_total[5m])) > 100",
            ),
            metric(
                "baton_vip_via",
                "gauge",
                "1",
                &[SERVER, ("address", "the virtual IP"), ("node", "the node that answers")],
                "1 for the node that answers for the address in its segment and routes to the owner (`reroute`). There is none while the \
                 owner answers itself.",
                "baton_vip_via == 1",
            ),
            metric(
                "baton_address_conflicts",
                "gauge",
                "addresses",
                NONE,
                "Virtual IPs that an interface or host outside Baton's care also holds.",
                "baton_address_conflicts > 0",
            ),
            metric(
                "baton_foreign_claims_total",
                "counter",
                "claims",
                NONE,
                "Claims of served addresses by foreign hosts that were reported.",
                "increase(baton_foreign_claims_total[10m]) > 0",
            ),
        ],
    },
    Group {
        title: "Load",
        metrics: &[
            metric(
                "baton_virtual_server_load",
                "gauge",
                "share of its node's capacity",
                &[SERVER],
                "Load, 0 to 1: the largest share of any one thing that a node has, weighted by `[balance]`.",
                "max by (virtual_server) (baton_virtual_server_load) > 0.7",
            ),
            metric(
                "baton_node_load",
                "gauge",
                "share of its capacity",
                &[("node", "a node")],
                "Load, 0 to 1: 1 is a node that has no more to give.",
                "max by (node) (baton_node_load) > 0.9",
            ),
            metric(
                "baton_balance_advised_moves",
                "gauge",
                "moves",
                NONE,
                "Moves that would even loads out and are not made (`mode = \"advise\"`). Told by the master.",
                "max(baton_balance_advised_moves) > 0",
            ),
            metric(
                "baton_node_cpu_ratio",
                "gauge",
                "0 to 1",
                NONE,
                "Share of time that this node's processors worked, in the last sample.",
                "baton_node_cpu_ratio > 0.9",
            ),
            metric(
                "baton_node_cpu_pressure_ratio",
                "gauge",
                "0 to 1",
                NONE,
                "Share of time in which work waited for a processor (`/proc/pressure/cpu`).",
                "baton_node_cpu_pressure_ratio > 0.5",
            ),
            metric(
                "baton_node_memory_pressure_ratio",
                "gauge",
                "0 to 1",
                NONE,
                "Share of time in which work waited for memory (`/proc/pressure/memory`).",
                "baton_node_memory_pressure_ratio > 0.1",
            ),
        ],
    },
    Group {
        title: "Storage",
        metrics: &[
            metric(
                "baton_storage_bytes_total",
                "counter",
                "bytes",
                DEVICE,
                "Bytes read from and written to the device of a file system.",
                "sum by (virtual_server) (rate(baton_storage_bytes_total[5m])) > 1e9",
            ),
            metric(
                "baton_storage_requests_total",
                "counter",
                "requests",
                DEVICE,
                "Requests that the device has done.",
                "rate(baton_storage_requests_total[5m]) > 50000",
            ),
            metric(
                "baton_storage_busy_seconds_total",
                "counter",
                "seconds",
                DEVICE,
                "Time in which the device had something to do.",
                "rate(baton_storage_busy_seconds_total[5m]) > 0.95",
            ),
            metric(
                "baton_storage_wait_seconds_total",
                "counter",
                "seconds",
                DEVICE,
                "Times of all requests together, from when they were queued: divided by the requests it is their latency.",
                "rate(baton_storage_wait_seconds_total[5m]) / rate(baton_storage_requests_total[5m]) > 0.05",
            ),
            metric(
                "baton_storage_reachable",
                "gauge",
                "1 or 0",
                UNIT,
                "1 while this node reaches the storage unit.",
                "baton_storage_reachable == 0",
            ),
            metric(
                "baton_storage_probe_seconds",
                "histogram",
                "seconds",
                UNIT,
                "Reads of the storage unit past the cache that have succeeded.",
                "histogram_quantile(0.99, sum by (le, storage_unit) (rate(baton_storage_probe_seconds_bucket[5m]))) > 0.2",
            ),
            metric(
                "baton_storage_probe_errors_total",
                "counter",
                "reads",
                UNIT,
                "Reads of the storage unit that have failed.",
                "increase(baton_storage_probe_errors_total[5m]) > 0",
            ),
            metric(
                "baton_storage_probe_hangs_total",
                "counter",
                "times",
                UNIT,
                "How often the storage unit hung: a read took longer than its `limit`.",
                "increase(baton_storage_probe_hangs_total[1h]) > 0",
            ),
            metric(
                "baton_storage_unit_requests_total",
                "counter",
                "requests",
                UNIT,
                "Requests to the block devices of the storage unit that are done, well or not, whoever made them, since the \
                 agent runs. Of a partition it is its disk that counts; of LVM, RAID and multipath, the disks below. What is no \
                 block device has none of these four.",
                "rate(baton_storage_unit_requests_total[5m]) > 50000",
            ),
            metric(
                "baton_storage_unit_errors_total",
                "counter",
                "requests",
                UNIT,
                "Those of them that have failed, but for what a device can't do at all (discards, for example). Also what is asked again elsewhere, by multipath for example, counts.",
                "increase(baton_storage_unit_errors_total[5m]) > 0",
            ),
            metric(
                "baton_storage_unit_in_flight",
                "gauge",
                "requests",
                UNIT,
                "Requests that the devices have and have not done yet, at the last look (once a second).",
                "min_over_time(baton_storage_unit_in_flight[5m]) > 64",
            ),
            metric(
                "baton_storage_unit_oldest_request_seconds",
                "gauge",
                "seconds",
                UNIT,
                "How old the oldest of them is, since its driver got it for the last time; 0: there is none. It is shown only: \
                 whether a unit hangs is found by reading it.",
                "baton_storage_unit_oldest_request_seconds > 0.5",
            ),
        ],
    },
    Group {
        title: "Baton itself",
        metrics: &[
            metric(
                "baton_effects_failed_total",
                "counter",
                "effects",
                NONE,
                "Effects that could not be carried out; one that goes on failing counts once a minute. The event says what and why.",
                "increase(baton_effects_failed_total[5m]) > 0",
            ),
            metric(
                "baton_journal_errors_total",
                "counter",
                "events",
                NONE,
                "Events that could not be written to the journal.",
                "increase(baton_journal_errors_total[5m]) > 0",
            ),
            metric(
                "baton_system_calls_refused_total",
                "counter",
                "calls",
                NONE,
                "System calls of confined threads that the filter (seccomp) has refused: a fault, or somebody has broken in. The log has the call and the thread.",
                "increase(baton_system_calls_refused_total[10m]) > 0",
            ),
            metric(
                "baton_hook_runs_total",
                "counter",
                "runs",
                &[
                    ("hook", "its name"),
                    (
                        "result",
                        "`ok`, `failed`, `timeout`, `not_started`; `dropped`: it could not keep up, and was not run",
                    ),
                ],
                "Runs of the programs of `[[hook]]`.",
                "increase(baton_hook_runs_total{result!=\"ok\"}[10m]) > 0",
            ),
            metric(
                "baton_reloads_total",
                "counter",
                "reloads",
                NONE,
                "How often another configuration was taken up while the agent ran.",
                "increase(baton_reloads_total[1h]) > 10",
            ),
            metric(
                "baton_reload_failures_total",
                "counter",
                "reloads",
                NONE,
                "How often the configuration was to be read anew and was refused.",
                "increase(baton_reload_failures_total[10m]) > 0",
            ),
            metric(
                "baton_reload_successful",
                "gauge",
                "1 or 0",
                NONE,
                "1: what is in force is what was last read; 0: the configuration file was refused when it was last read.",
                "baton_reload_successful == 0",
            ),
            metric(
                "baton_dropped_inputs_total",
                "counter",
                "inputs",
                NONE,
                "Steps of the record for `baton replay` that were dropped because a channel was full. Nothing that is served depends on it.",
                "increase(baton_dropped_inputs_total[10m]) > 0",
            ),
            metric(
                "baton_dropped_reports_total",
                "counter",
                "events",
                NONE,
                "Events and timings that were dropped because the slow thread did not keep up.",
                "increase(baton_dropped_reports_total[10m]) > 0",
            ),
            metric(
                "baton_diagnostics_total",
                "counter",
                "frames",
                &[(
                    "what",
                    "`malformed`; `claims` of virtual IPs by others; `claims_unreported`: too many to be told; `redirected` to the right port",
                )],
                "What the kernel programs saw that belongs to no virtual IP.",
                "rate(baton_diagnostics_total{what=\"malformed\"}[5m]) > 10",
            ),
        ],
    },
];

/// The page of the documentation.
pub fn page() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         <!-- Made by `baton reference metrics` from agent/src/telemetry/reference.rs; a test compares them. Do not edit. -->\n\n\
         Every metric that an agent shows at `/metrics` of `telemetry.listen`, under its name in Prometheus. Whoever asks for OpenMetrics\n\
         gets that: there the family of a counter has no `_total`. A histogram has `_bucket`, `_sum` and `_count`. The query below each\n\
         metric is an example of an alert; those that most sites want are in `agent/monitoring/alerts.yml` of the sources.\n",
    );
    // Writing to a string can't fail.
    for group in GROUPS {
        let _ =
            writeln!(text, "\n## {}\n\n| metric | type | unit | labels |\n|---|---|---|---|", group.title);
        for m in group.metrics {
            let labels: Vec<String> = m.labels.iter().map(|(name, _)| format!("`{name}`")).collect();
            let _ = writeln!(
                text,
                "| [`{}`](#{}) | {} | {} | {} |",
                m.name,
                m.name,
                m.kind,
                m.unit,
                labels.join(", ")
            );
        }
        for m in group.metrics {
            let _ = writeln!(text, "\n### {}\n\n{}\n", m.name, m.meaning);
            for (name, what) in m.labels {
                let _ = writeln!(text, "- `{name}`: {what}");
            }
            let space = if m.labels.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{space}```promql\n{}\n```", m.alert);
        }
    }
    text
}
