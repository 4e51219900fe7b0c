use std::collections::HashMap;
use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use baton_core::{Event, TakeTimes};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Wire;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, oneshot};

use super::super::tests::published;
use super::*;
use crate::testing::LONG;

/// A wall clock for made-up events: this many seconds after some time, which is the boot-time clock's zero.
fn wall(seconds: f64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + super::seconds(seconds)
}

fn record(at: f64, failover: Option<u64>, kind: EventKind) -> Arc<Record> {
    let at_ns = super::seconds(at).as_nanos() as u64;
    Arc::new(Record { time: wall(at), event: Event { at: Time(at_ns), failover, kind } })
}

fn time(seconds: f64) -> Time {
    Time(super::seconds(seconds).as_nanos() as u64)
}

fn taken(server: &str, cause: f64) -> EventKind {
    EventKind::Taken {
        server: server.into(),
        kind: FailoverKind::Takeover,
        reason: Reason::NodeDead,
        from: Some("fs2".into()),
        epoch: 4,
        times: TakeTimes {
            cause: time(cause),
            detected: time(cause + 0.0625),
            decided: time(cause + 0.125),
            stopped: None,
        },
    }
}

/// What happens at a takeover of `projects` whose cause is at 10 s.
fn takeover(number: u64) -> Vec<Arc<Record>> {
    let stages = [
        (Stage::Detected, 0.0625),
        (Stage::Decided, 0.125),
        (Stage::Taken, 0.25),
        (Stage::Fenced, 0.5),
        (Stage::Started, 1.0),
        (Stage::Bound, 1.25),
        (Stage::Announced, 1.5),
    ];
    let done = EventKind::FailoverDone {
        kind: FailoverKind::Takeover,
        reason: Reason::NodeDead,
        addresses: 2,
        stages: stages.into(),
    };
    let reset = EventKind::ConnectionsReset {
        server: "projects".into(),
        connections: 3,
        kind: Some(FailoverKind::Takeover),
        after: Some(2.0),
    };
    vec![
        record(10.25, Some(number), taken("projects", 10.0)),
        record(10.25, None, EventKind::Serving { server: "projects".into(), epoch: 4 }),
        record(11.5, Some(number), done),
        record(12.0, Some(number), reset),
    ]
}

/// An address that moves from a port whose carrier was lost at 20 s.
fn port_failover(number: u64) -> Vec<Arc<Record>> {
    let (kind, reason) = (FailoverKind::Port, Reason::CarrierLost);
    let moves =
        vec![Rebinding { address: [10, 0, 0, 10].into(), from: Some("eth0".into()), to: "eth1".into() }];
    let stages =
        [(Stage::Detected, 0.25), (Stage::Decided, 0.375), (Stage::Bound, 0.5), (Stage::Announced, 0.75)];
    let done = EventKind::FailoverDone { kind, reason, addresses: 1, stages: stages.into() };
    let begun = EventKind::Failover { kind, reason, moves };
    vec![record(20.25, Some(number), begun), record(20.75, Some(number), done)]
}

/// What a collector was sent.
type Sent = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector on loopback that answers with each of these in turn, and then always that all is well; where it is.
async fn collector(answers: &[StatusCode]) -> (String, Sent) {
    let sent = Sent::default();
    let answers = Arc::new(Mutex::new(answers.iter().rev().copied().collect::<Vec<_>>()));
    let kept = sent.clone();
    let take = async move |headers: HeaderMap, body: Bytes| {
        if let Some(answer) = answers.lock().expect("whole").pop() {
            return answer;
        }
        assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
        let request = ExportTraceServiceRequest::decode(body).expect("a request");
        kept.lock().expect("whole").push(request);
        StatusCode::OK
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}"), sent)
}

/// Whoever traces, and what it hears.
struct Tracing {
    events: broadcast::Sender<Arc<Record>>,
    metrics: Arc<Metrics>,
}

fn limits() -> Limits {
    Limits { reset: LONG, answer: LONG, pauses: vec![Duration::ZERO; 2], queue: 8 }
}

fn tracing_to(endpoint: &str, limits: Limits) -> Tracing {
    let (_publisher, published) = published();
    let metrics = Arc::new(Metrics::new(published));
    let (events, heard) = broadcast::channel(1024);
    let (endpoint, counted) = (endpoint.to_owned(), metrics.clone());
    tokio::spawn(async move { trace_with(&endpoint, "fs1".to_owned(), heard, counted, limits).await });
    Tracing { events, metrics }
}

impl Tracing {
    fn tell(&self, records: Vec<Arc<Record>>) {
        for record in records {
            self.events.send(record).expect("somebody hears");
        }
    }

    fn count(&self, result: &str) -> u64 {
        let text = self.metrics.encode().expect("text");
        let start = format!("baton_otlp_spans_total{{result=\"{result}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start)).expect("a metric");
        line.parse().expect("a number")
    }

    async fn counted(&self, result: &str, number: u64) {
        let end = Instant::now() + LONG;
        while self.count(result) < number {
            assert!(Instant::now() < end, "{} {result}, not {number}", self.count(result));
            sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(self.count(result), number, "{result}");
    }
}

fn nanos(seconds: f64) -> u64 {
    let since = wall(seconds).duration_since(SystemTime::UNIX_EPOCH).expect("later");
    since.as_nanos() as u64
}

/// Attributes as text.
fn attributes(span: &Span) -> HashMap<&str, String> {
    let text = |value: &Wire| match value {
        Wire::StringValue(text) => text.clone(),
        Wire::IntValue(number) => number.to_string(),
        Wire::ArrayValue(all) => format!("{:?}", all.values.iter().map(|v| &v.value).collect::<Vec<_>>()),
        other => panic!("{other:?}"),
    };
    let all = span.attributes.iter().map(|a| {
        let value = a.value.as_ref().and_then(|v| v.value.as_ref()).expect("a value");
        (a.key.as_str(), text(value))
    });
    all.collect()
}

#[tokio::test]
async fn a_failover_is_a_trace_with_a_span_for_each_stage() {
    let (endpoint, sent) = collector(&[]).await;
    let tracing = tracing_to(&endpoint, limits());
    tracing.tell(takeover(7));
    tracing.counted("sent", 9).await;
    tracing.tell(port_failover(8));
    tracing.counted("sent", 14).await;
    assert_eq!((tracing.count("failed"), tracing.count("dropped")), (0, 0));
    let sent = std::mem::take(&mut *sent.lock().expect("whole"));
    let resource = sent[0].resource_spans[0].resource.as_ref().expect("a resource");
    let named = |key: &str| resource.attributes.iter().any(|a| a.key == key);
    assert!(
        named("service.name") && named("service.version") && named("service.instance.id"),
        "{resource:?}"
    );
    let spans = |n: usize| sent[n].resource_spans[0].scope_spans[0].spans.clone();
    let (takeover, port) = (spans(0), spans(1));
    let check = |spans: &[Span], name: &str, expected: &[(&str, f64, f64)]| {
        let root = &spans[0];
        assert_eq!((root.name.as_str(), root.parent_span_id.len()), (name, 0));
        assert!(root.trace_id.len() == 16 && root.trace_id.iter().any(|b| *b != 0));
        let found: Vec<_> =
            spans.iter().map(|s| (s.name.as_str(), s.start_time_unix_nano, s.end_time_unix_nano)).collect();
        let expected: Vec<_> = expected.iter().map(|(n, from, to)| (*n, nanos(*from), nanos(*to))).collect();
        assert_eq!(found, expected);
        for below in &spans[1..] {
            assert_eq!((&below.trace_id, &below.parent_span_id), (&root.trace_id, &root.span_id));
        }
        let mut numbers: Vec<_> = spans.iter().map(|s| &s.span_id).collect();
        numbers.sort();
        numbers.dedup();
        assert_eq!(numbers.len(), spans.len(), "no span has the number of another one");
    };
    check(
        &takeover,
        "takeover",
        &[
            ("takeover", 10.0, 12.0),
            ("detected", 10.0, 10.0625),
            ("decided", 10.0625, 10.125),
            ("taken", 10.125, 10.25),
            ("fenced", 10.25, 10.5),
            ("started", 10.5, 11.0),
            ("bound", 11.0, 11.25),
            ("announced", 11.25, 11.5),
            ("reset", 11.5, 12.0),
        ],
    );
    check(
        &port,
        "port failover",
        &[
            ("port failover", 20.0, 20.75),
            ("detected", 20.0, 20.25),
            ("decided", 20.25, 20.375),
            ("bound", 20.375, 20.5),
            ("announced", 20.5, 20.75),
        ],
    );
    assert_ne!(takeover[0].trace_id, port[0].trace_id);
    let expected = [
        ("baton.kind", "takeover"),
        ("baton.cause", "node_dead"),
        ("baton.virtual_server", "projects"),
        ("baton.node", "fs1"),
        ("baton.from", "fs2"),
        ("baton.to", "fs1"),
        ("baton.epoch", "4"),
        ("baton.failover", "7"),
        ("baton.addresses", "2"),
        ("baton.connections_reset", "3"),
    ];
    assert_eq!(attributes(&takeover[0]), expected.map(|(key, value)| (key, value.to_owned())).into());
    let of_port = attributes(&port[0]);
    assert_eq!((of_port["baton.kind"].as_str(), of_port["baton.cause"].as_str()), ("port", "carrier_lost"));
    assert!(of_port["baton.from"].contains("eth0") && of_port["baton.to"].contains("eth1"), "{of_port:?}");
}

#[tokio::test]
async fn a_takeover_whose_clients_need_not_be_told_is_sent_all_the_same() {
    let (endpoint, sent) = collector(&[]).await;
    let tracing = tracing_to(&endpoint, Limits { reset: Duration::from_millis(1), ..limits() });
    let mut events = takeover(7);
    events.pop();
    tracing.tell(events);
    tracing.counted("sent", 8).await;
    let sent = sent.lock().expect("whole");
    assert!(sent[0].resource_spans[0].scope_spans[0].spans.iter().all(|span| span.name != "reset"));
}

#[tokio::test]
async fn what_was_given_up_is_an_error_and_what_has_no_cause_is_no_trace() {
    let (endpoint, sent) = collector(&[]).await;
    let tracing = tracing_to(&endpoint, limits());
    let without = EventKind::Taken {
        server: "homes".into(),
        kind: FailoverKind::Takeover,
        reason: Reason::NodeDead,
        from: None,
        epoch: 1,
        times: TakeTimes::default(),
    };
    let leaving =
        EventKind::Leaving { server: "projects".into(), to: "fs3".into(), reason: Reason::ServiceFailed };
    tracing.tell(vec![
        record(9.0, Some(6), without),
        record(10.25, Some(7), taken("projects", 10.0)),
        record(11.0, None, leaving),
    ]);
    tracing.counted("sent", 3).await;
    let sent = sent.lock().expect("whole");
    let root = &sent[0].resource_spans[0].scope_spans[0].spans[0];
    assert_eq!(
        root.status.as_ref().map(|s| (s.code, s.message.as_str())),
        Some((2, "given up before it was served"))
    );
}

#[tokio::test]
async fn what_a_collector_refuses_for_a_while_is_sent_again() {
    let (endpoint, sent) = collector(&[StatusCode::SERVICE_UNAVAILABLE; 2]).await;
    let tracing = tracing_to(&endpoint, limits());
    tracing.tell(port_failover(1));
    tracing.counted("sent", 5).await;
    assert_eq!(tracing.count("failed"), 0);
    assert_eq!(sent.lock().expect("whole").len(), 1);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_a_counter() {
    // Nobody listens where somebody did.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let tracing = tracing_to(&endpoint, limits());
    tracing.tell(port_failover(1));
    tracing.counted("failed", 5).await;
    assert_eq!((tracing.count("sent"), tracing.count("dropped")), (0, 0));
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_nobody_and_what_finds_no_place_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    // It takes connections and never says a word.
    let (asked, is_asked) = oneshot::channel();
    tokio::spawn(async move {
        let connection = listener.accept().await.expect("a connection");
        let _ = asked.send(());
        pending::<()>().await;
        drop(connection);
    });
    let tracing = tracing_to(&endpoint, Limits { queue: 2, ..limits() });
    tracing.tell(port_failover(1));
    is_asked.await.expect("it is asked");
    // One is being sent and two wait.
    for number in 2..7 {
        tracing.tell(port_failover(number));
    }
    tracing.counted("dropped", 3 * 5).await;
    assert_eq!((tracing.count("sent"), tracing.count("failed")), (0, 0));
    // Too many that never end, too.
    for number in 100..100 + MOST as u64 + 4 {
        tracing.tell(vec![record(30.0, Some(number), taken("projects", 30.0))]);
    }
    tracing.counted("dropped", 3 * 5 + 4).await;
}
