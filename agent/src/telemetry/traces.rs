//! Failovers as traces, sent to a collector by OTLP (protobuf by HTTP, <https://opentelemetry.io/docs/specs/otlp>).
//!
//! One trace for each failover, takeover and move that this node has carried out. Its root span begins with the cause and ends with the
//! last stage; below it is a span for each stage. Everything runs in tasks of the slow thread, from the events that everyone who follows
//! gets. Whatever the collector does, nobody waits for it: what is to be sent waits in a queue of limited length, and what finds no place
//! in it is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baton_core::{EventKind, FailoverKind, Reason, Rebinding, Stage, Time};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_otlp::{RetryPolicy, SpanExporter as Exporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::metrics::{SpanResult, word};
use super::stages::intervals;
use super::{Metrics, Published};
use crate::journal::Record;

/// Most failovers that are under way at once; of more, the oldest is forgotten, and counted.
const MOST: usize = 64;

/// How long whoever sends waits for what.
#[derive(Clone)]
pub(super) struct Limits {
    /// For clients to be told that their connections are gone, after a takeover or move is done otherwise.
    pub(super) reset: Duration,
    /// For the collector's answer.
    pub(super) answer: Duration,
    /// Before a trace is sent again, each time.
    pub(super) pauses: Vec<Duration>,
    /// Traces that may wait to be sent.
    pub(super) queue: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        let pauses = [1, 2, 4, 8, 15, 30].map(Duration::from_secs).to_vec();
        Limits { reset: Duration::from_secs(3), answer: Duration::from_secs(10), pauses, queue: 64 }
    }
}

/// Sends a trace of each failover from now on to the collector at `endpoint`, as "http://127.0.0.1:4318", until dropped.
pub async fn trace(endpoint: String, node: String, published: Published, metrics: Arc<Metrics>) {
    trace_with(&endpoint, node, published.events(), metrics, Limits::default()).await;
}

pub(super) async fn trace_with(
    endpoint: &str,
    node: String,
    mut events: Receiver<Arc<Record>>,
    metrics: Arc<Metrics>,
    limits: Limits,
) {
    let exporter = match exporter(endpoint, &node, &limits) {
        Ok(exporter) => exporter,
        Err(e) => return tracing::error!("telemetry.otlp = {endpoint}: {e}; no traces are sent"),
    };
    let (queue, waiting) = mpsc::channel::<Vec<SpanData>>(limits.queue);
    let send = send(exporter, endpoint, waiting, &metrics, &limits.pauses);
    let hear = async {
        let mut traces = Traces { node, reset: limits.reset, under_way: BTreeMap::new() };
        loop {
            let due = traces.due();
            let finished = tokio::select! {
                event = events.recv() => match event {
                    Ok(record) => traces.hear(&record, Instant::now()),
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!("{missed} events came too fast for traces; some have gaps, or are missing");
                        None
                    }
                    Err(RecvError::Closed) => return,
                },
                () = until(due) => traces.overdue(Instant::now()),
            };
            for _ in 0..traces.forget() {
                metrics.spans(SpanResult::Dropped, 1);
            }
            let Some(spans) = finished else { continue };
            let number = spans.len();
            if queue.try_send(spans).is_err() {
                metrics.spans(SpanResult::Dropped, number);
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = hear => {}
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

fn exporter(endpoint: &str, node: &str, limits: &Limits) -> Result<Exporter, String> {
    let exporter = Exporter::builder().with_http().with_endpoint(format!("{endpoint}/v1/traces"));
    let exporter = exporter.with_timeout(limits.answer).with_retry_policy(RetryPolicy::disabled()).build();
    let mut exporter = exporter.map_err(|e| e.to_string())?;
    let resource = Resource::builder_empty().with_service_name("baton").with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", node.to_owned()),
    ]);
    exporter.set_resource(&resource.build());
    Ok(exporter)
}

/// Sends one after the other, each until it is taken or the patience with it is over.
async fn send(
    exporter: Exporter,
    endpoint: &str,
    mut waiting: mpsc::Receiver<Vec<SpanData>>,
    metrics: &Metrics,
    pauses: &[Duration],
) {
    let mut is_away = false;
    while let Some(spans) = waiting.recv().await {
        let mut pauses = pauses.iter();
        let sent = loop {
            match exporter.export(spans.clone()).await {
                Ok(()) => break true,
                Err(e) if !is_away => {
                    is_away = true;
                    tracing::warn!(
                        "telemetry.otlp = {endpoint}: {e}; traces wait, and are dropped when there are too many"
                    );
                }
                Err(_) => {}
            }
            match pauses.next() {
                Some(pause) => sleep(*pause).await,
                None => break false,
            }
        };
        if sent && is_away {
            is_away = false;
            tracing::info!("telemetry.otlp = {endpoint}: traces are taken again");
        }
        metrics.spans(if sent { SpanResult::Sent } else { SpanResult::Failed }, spans.len());
    }
}

/// A failover as far as it is known.
#[derive(Debug)]
struct Failover {
    kind: FailoverKind,
    reason: Reason,
    /// The virtual server, where it is one that is taken.
    server: Option<String>,
    /// When its cause was; of a port failover, when it was detected, until it is known how much later that is.
    begin: SystemTime,
    /// More about it.
    attributes: Vec<KeyValue>,
    /// Seconds since the cause.
    stages: BTreeMap<Stage, f64>,
    /// Clients have been served since; it is shown when this is over.
    until: Option<Instant>,
}

/// Those that are under way.
struct Traces {
    node: String,
    reset: Duration,
    under_way: BTreeMap<u64, Failover>,
}

impl Traces {
    /// Takes an event. The spans of a failover that is over with it.
    fn hear(&mut self, record: &Record, now: Instant) -> Option<Vec<SpanData>> {
        let event = &record.event;
        match (&event.kind, event.failover) {
            (EventKind::Started { .. }, _) => self.under_way.clear(), // they are numbered from 1 again
            (EventKind::Failover { kind, reason, moves }, Some(number)) => {
                let failover = Failover {
                    kind: *kind,
                    reason: *reason,
                    server: None,
                    begin: record.time,
                    attributes: moved(moves),
                    stages: BTreeMap::new(),
                    until: None,
                };
                self.under_way.insert(number, failover);
            }
            // Without a cause nobody knows how long it took.
            (EventKind::Taken { server, kind, reason, from, epoch, times }, Some(number))
                if times.cause != Time::default() =>
            {
                let since = |time: Time| time.since(times.cause).as_secs_f64();
                let passed = [
                    (Stage::Detected, Some(times.detected)),
                    (Stage::Decided, Some(times.decided)),
                    (Stage::Stopped, times.stopped),
                ];
                let mut attributes = vec![
                    KeyValue::new("baton.virtual_server", server.clone()),
                    KeyValue::new("baton.to", self.node.clone()),
                    KeyValue::new("baton.epoch", i64::try_from(*epoch).unwrap_or(i64::MAX)),
                ];
                attributes.extend(from.clone().map(|from| KeyValue::new("baton.from", from)));
                let failover = Failover {
                    kind: *kind,
                    reason: *reason,
                    server: Some(server.clone()),
                    begin: before(record.time, event.at.since(times.cause)),
                    attributes,
                    stages: passed.into_iter().filter_map(|(stage, at)| Some((stage, since(at?)))).collect(),
                    until: None,
                };
                self.under_way.insert(number, failover);
            }
            (EventKind::FailoverDone { addresses, stages, .. }, Some(number)) => {
                let failover = self.under_way.get_mut(&number)?;
                let addresses = i64::try_from(*addresses).unwrap_or(i64::MAX);
                failover.attributes.push(KeyValue::new("baton.addresses", addresses));
                failover.stages.extend(stages);
                if failover.server.is_none() {
                    let detected = stages.get(&Stage::Detected).copied().unwrap_or_default();
                    failover.begin = before(failover.begin, seconds(detected));
                    return self.end(number, Status::Ok);
                }
                failover.until = Some(now + self.reset);
            }
            (EventKind::ConnectionsReset { connections, after: Some(after), .. }, Some(number)) => {
                let failover = self.under_way.get_mut(&number)?;
                failover.stages.insert(Stage::Reset, *after);
                let connections = i64::try_from(*connections).unwrap_or(i64::MAX);
                failover.attributes.push(KeyValue::new("baton.connections_reset", connections));
                // It may be told before the end itself.
                if failover.until.is_some() {
                    return self.end(number, Status::Ok);
                }
            }
            (EventKind::Leaving { server, .. } | EventKind::Deposed { server }, _) => {
                let is_it =
                    |(_, f): &(&u64, &Failover)| f.server.as_ref() == Some(server) && f.until.is_none();
                let number = *self.under_way.iter().find(is_it)?.0;
                return self.end(number, Status::error("given up before it was served"));
            }
            _ => {}
        }
        None
    }

    /// When the next one is over, if nothing more is heard of it.
    fn due(&self) -> Option<Instant> {
        self.under_way.values().filter_map(|failover| failover.until).min()
    }

    /// One that is over by now.
    fn overdue(&mut self, now: Instant) -> Option<Vec<SpanData>> {
        let is_over = |(_, failover): &(&u64, &Failover)| failover.until.is_some_and(|until| until <= now);
        let number = *self.under_way.iter().find(is_over)?.0;
        self.end(number, Status::Ok)
    }

    /// Forgets the oldest where there are too many; how many.
    fn forget(&mut self) -> usize {
        let over = self.under_way.len().saturating_sub(MOST);
        for _ in 0..over {
            self.under_way.pop_first();
        }
        over
    }

    fn end(&mut self, number: u64, status: Status) -> Option<Vec<SpanData>> {
        let failover = self.under_way.remove(&number)?;
        Some(spans(&self.node, number, failover, status))
    }
}

/// The addresses that moved, and between which ports.
fn moved(moves: &[Rebinding]) -> Vec<KeyValue> {
    let list = |all: BTreeSet<&str>| {
        let all = all.into_iter().map(|one| StringValue::from(one.to_owned())).collect();
        Value::Array(Array::String(all))
    };
    vec![
        KeyValue::new("baton.from", list(moves.iter().filter_map(|m| m.from.as_deref()).collect())),
        KeyValue::new("baton.to", list(moves.iter().map(|m| m.to.as_str()).collect())),
    ]
}

fn before(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_sub(by).unwrap_or(time)
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// The root first, then the stages as they were passed.
fn spans(node: &str, number: u64, failover: Failover, status: Status) -> Vec<SpanData> {
    let Failover { kind, reason, server: _, begin, mut attributes, stages, until: _ } = failover;
    let intervals = intervals(&stages);
    // The same trace has the same numbers each time that it is sent, and no other one has them.
    let hash = |what: u64| {
        let mut hasher = DefaultHasher::new();
        (node, number, begin, what).hash(&mut hasher);
        hasher.finish().max(1)
    };
    let trace = TraceId::from(u128::from(hash(0)) << 64 | u128::from(hash(1)));
    let scope = InstrumentationScope::builder("baton").with_version(env!("CARGO_PKG_VERSION")).build();
    let span = |index: u64, parent: SpanId, name: &'static str, from: f64, to: f64| SpanData {
        span_context: SpanContext::new(
            trace,
            SpanId::from(hash(2 + index)),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: parent,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: begin + seconds(from),
        end_time: begin + seconds(to),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: scope.clone(),
    };
    attributes.extend([
        KeyValue::new("baton.kind", word(kind)),
        KeyValue::new("baton.cause", reason.word()),
        KeyValue::new("baton.node", node.to_owned()),
        KeyValue::new("baton.failover", i64::try_from(number).unwrap_or(i64::MAX)),
    ]);
    let name = match kind {
        FailoverKind::Port => "port failover",
        FailoverKind::Takeover => "takeover",
        FailoverKind::Move => "move",
    };
    let end = intervals.last().map_or(0.0, |last| last.to);
    let root = SpanData { attributes, status, ..span(0, SpanId::INVALID, name, 0.0, end) };
    let parent = root.span_context.span_id();
    let below = (1..).zip(&intervals).map(|(index, i)| span(index, parent, i.stage.word(), i.from, i.to));
    let below: Vec<SpanData> = below.collect();
    [root].into_iter().chain(below).collect()
}

#[cfg(test)]
#[path = "traces_tests.rs"]
mod tests;
