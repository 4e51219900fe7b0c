//! The registry, and the metrics that are counted as things happen. What is only read is in [`super::collect`].

use std::fmt;
use std::sync::Mutex;

use baton_core::{Event, EventKind, FailoverKind, Reason, Stage};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::Published;
use super::collect::Collected;
use crate::hooks::Runs;

/// Upper bounds of `baton_failover_seconds`: 10 us to 10 s.
const BUCKETS: [f64; 25] = [
    10e-6, 20e-6, 35e-6, 50e-6, 75e-6, 100e-6, 150e-6, 200e-6, 350e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2e-3,
    5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// Why there may be a failover of which kind. These are there from the start, at zero: what begins at one never shows as an increase.
const REASONS: [(FailoverKind, &[Reason]); 3] = [
    (
        FailoverKind::Port,
        &[
            Reason::CarrierLost,
            Reason::AdminDown,
            Reason::InterfaceGone,
            Reason::AttachFailed,
            Reason::Silent,
            Reason::ReceiveSilent,
            Reason::TransmitSilent,
            Reason::Loss,
            Reason::Errors,
            Reason::PortReturned,
            Reason::PortFailback,
        ],
    ),
    (FailoverKind::Takeover, &[Reason::NodeDead]),
    (
        FailoverKind::Move,
        &[
            Reason::NoGoodPort,
            Reason::Drain,
            Reason::Administrator,
            Reason::Failback,
            Reason::Balance,
            Reason::Constraint,
            Reason::ServiceFailed,
            Reason::StorageLost,
        ],
    ),
];

/// All metrics of the agent. Shared by reference; every method may be called from the slow thread at any time.
pub struct Metrics {
    registry: Mutex<Registry>,
    failover_seconds: Family<StageLabels, Histogram, fn() -> Histogram>,
    failovers: Family<FailoverLabels, Counter>,
    connections_reset: Family<ServerLabels, Counter>,
    foreign_claims: Counter,
    effects_failed: Counter,
    journal_errors: Counter,
    reloads: Counter,
    reload_failures: Counter,
    reload_successful: Gauge,
    spans: Family<ResultLabels, Counter>,
}

/// What has become of a span.
#[derive(Clone, Copy, Debug)]
pub(super) enum SpanResult {
    /// The collector has it.
    Sent,
    /// The collector did not take it.
    Failed,
    /// There was no place for it.
    Dropped,
}

impl SpanResult {
    fn word(self) -> &'static str {
        match self {
            SpanResult::Sent => "sent",
            SpanResult::Failed => "failed",
            SpanResult::Dropped => "dropped",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    kind: &'static str,
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailoverLabels {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    virtual_server: String,
}

impl Metrics {
    /// Registers everything, of an agent without hooks.
    pub fn new(published: Published) -> Self {
        Metrics::with_hooks(published, Runs::default())
    }

    /// Registers everything; `runs` are those of the hooks.
    pub fn with_hooks(published: Published, runs: Runs) -> Self {
        let mut registry = Registry::default();
        let failover_seconds: Family<StageLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let failovers = Family::<FailoverLabels, Counter>::default();
        let (foreign_claims, effects_failed, journal_errors) =
            (Counter::default(), Counter::default(), Counter::default());
        registry.register(
            "baton_failover_seconds",
            "Time from the cause of a failover to each of its stages",
            failover_seconds.clone(),
        );
        registry.register("baton_failovers", "Failovers and moves", failovers.clone());
        for (kind, reasons) in REASONS {
            for reason in reasons {
                let labels = FailoverLabels { kind: word(kind), reason: Reason::word(*reason) };
                drop(failovers.get_or_create(&labels));
            }
            // Of the stages, the one that the alert rules ask for.
            let labels = StageLabels { kind: word(kind), stage: Stage::word(Stage::Announced) };
            drop(failover_seconds.get_or_create(&labels));
        }
        let connections_reset = Family::<ServerLabels, Counter>::default();
        registry.register(
            "baton_connections_reset",
            "Connections of an earlier life of a virtual server that were reset when it was served here",
            connections_reset.clone(),
        );
        registry.register(
            "baton_foreign_claims",
            "Foreign hosts' claims of served addresses that were reported",
            foreign_claims.clone(),
        );
        registry.register(
            "baton_effects_failed",
            "Effects that could not be carried out; one that goes on failing counts once a minute",
            effects_failed.clone(),
        );
        registry.register(
            "baton_journal_errors",
            "Events that could not be written to the journal",
            journal_errors.clone(),
        );
        registry.register(
            "baton_hook_runs",
            "Runs of programs that are told of events: ok, failed, timeout, not_started; dropped were not run",
            runs,
        );
        let (reloads, reload_failures) = (Counter::default(), Counter::default());
        let reload_successful = Gauge::default();
        reload_successful.set(1);
        registry.register(
            "baton_reloads",
            "How often another configuration was taken up while the agent ran",
            reloads.clone(),
        );
        registry.register(
            "baton_reload_failures",
            "How often the configuration was to be read anew and was refused",
            reload_failures.clone(),
        );
        registry.register(
            "baton_reload_successful",
            "1: what is in force is what was last read; 0: the configuration file was refused when it was last read",
            reload_successful.clone(),
        );
        let spans = Family::<ResultLabels, Counter>::default();
        registry.register(
            "baton_otlp_spans",
            "Spans of failovers: sent to the collector, failed, dropped",
            spans.clone(),
        );
        for result in [SpanResult::Sent, SpanResult::Failed, SpanResult::Dropped] {
            drop(spans.get_or_create(&ResultLabels { result: result.word() }));
        }
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("baton_build", "The running program", build);
        registry.register_collector(Box::new(Collected::new(published)));
        Metrics {
            registry: Mutex::new(registry),
            failover_seconds,
            failovers,
            connections_reset,
            foreign_claims,
            effects_failed,
            journal_errors,
            reloads,
            reload_failures,
            reload_successful,
            spans,
        }
    }

    /// Counts spans of failovers.
    pub(super) fn spans(&self, result: SpanResult, number: usize) {
        self.spans.get_or_create(&ResultLabels { result: result.word() }).inc_by(number as u64);
    }

    /// Counts what an event says. Every event must come here once.
    pub fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::Failover { kind, reason, .. } | EventKind::Taken { kind, reason, .. } => {
                let labels = FailoverLabels { kind: word(*kind), reason: Reason::word(*reason) };
                self.failovers.get_or_create(&labels).inc();
            }
            EventKind::FailoverDone { kind, stages, .. } => {
                for (stage, seconds) in stages {
                    let labels = StageLabels { kind: word(*kind), stage: Stage::word(*stage) };
                    self.failover_seconds.get_or_create(&labels).observe(*seconds);
                }
            }
            EventKind::ConnectionsReset { server, connections, kind, after } => {
                if let Some((kind, after)) = kind.zip(*after) {
                    let labels = StageLabels { kind: word(kind), stage: Stage::Reset.word() };
                    self.failover_seconds.get_or_create(&labels).observe(after);
                }
                let labels = ServerLabels { virtual_server: server.clone() };
                self.connections_reset.get_or_create(&labels).inc_by(*connections as u64);
            }
            EventKind::ForeignClaim { .. } => {
                self.foreign_claims.inc();
            }
            EventKind::EffectFailed { .. } => {
                self.effects_failed.inc();
            }
            EventKind::Reloaded { .. } => {
                self.reloads.inc();
                self.reload_successful.set(1);
            }
            EventKind::ReloadRefused { .. } => {
                self.reload_failures.inc();
                self.reload_successful.set(0);
            }
            EventKind::Started { .. }
            | EventKind::InterfaceAbsent { .. }
            | EventKind::Port { .. }
            | EventKind::Segment { .. }
            | EventKind::TargetSilent { .. }
            | EventKind::TargetAnswers { .. }
            | EventKind::Stranded { .. }
            | EventKind::AddressDeleted { .. }
            | EventKind::SteeringDeleted { .. }
            | EventKind::AddressConflict { .. }
            | EventKind::AddressConflictOver { .. }
            | EventKind::Attached { .. }
            | EventKind::Serving { .. }
            | EventKind::Verdict { .. }
            | EventKind::NodeDead { .. }
            | EventKind::Leaving { .. }
            | EventKind::Balance { .. }
            | EventKind::Deposed { .. }
            | EventKind::ResourcesStarted { .. }
            | EventKind::ResourcesStopped { .. }
            | EventKind::ResourcesFailed { .. }
            | EventKind::Fenced { .. }
            | EventKind::FenceFailed { .. }
            | EventKind::Storage { .. }
            | EventKind::StorageLostEverywhere { .. }
            | EventKind::Rerouting { .. }
            | EventKind::RerouteOver { .. }
            | EventKind::Routing { .. }
            | EventKind::RoutingOver { .. }
            | EventKind::LeaseBegins
            | EventKind::LeaseOver
            | EventKind::Master { .. }
            | EventKind::Incarnation { .. }
            | EventKind::StoreLost
            | EventKind::StoreBack
            | EventKind::Draining { .. }
            | EventKind::Resumed { .. }
            | EventKind::Resynced => {}
        }
    }

    /// An event could not be written to the journal.
    pub fn journal_error(&self) {
        self.journal_errors.inc();
    }

    /// Everything as OpenMetrics text.
    ///
    /// # Errors
    /// A value refuses to be written as text; none of those registered here does.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

pub(super) fn word(kind: FailoverKind) -> &'static str {
    match kind {
        FailoverKind::Port => "port",
        FailoverKind::Takeover => "takeover",
        FailoverKind::Move => "move",
    }
}
