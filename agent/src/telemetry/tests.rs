use baton_core::{
    Event, EventKind, FailoverKind, Finding, NodeView, PathView, PortState, PortView, Reason, SegmentView,
    ServerView, Stage, TargetView, Watcher,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn sample() -> Snapshot {
    Snapshot {
        node: "fs1".into(),
        incarnation: 7,
        quorum: true,
        lease_ms: Some(48),
        nodes: vec![NodeView { name: "fs1".into(), state: "up".into(), load: 0.25, ..NodeView::default() }],
        ports: vec![PortView {
            interface: "eth0".into(),
            segment: "office".into(),
            state: PortState::Held,
            reason: None,
            carrier: true,
            present: true,
            attachment: None,
            held_ms: Some(800),
            flaps: 1,
            addresses: 1,
            rate: 10,
        }],
        virtual_servers: vec![ServerView {
            name: "projects".into(),
            owner: Some("fs1".into()),
            state: "serving".into(),
            epoch: 3,
            load: 0.5,
            priority: 100,
            rate: 10,
            addresses: Vec::new(),
            why: None,
        }],
        segments: vec![SegmentView { name: "office".into(), finding: Finding::PathsSilent }],
        paths: vec![PathView {
            segment: "office".into(),
            from: "eth0".into(),
            to: "eth1".into(),
            heard: Some(false),
            heard_ms: Some(1500),
            loss: Some(0.125),
            rtt_us: None,
            echo: None,
            timer: Watcher::Agent,
        }],
        targets: vec![TargetView {
            segment: "office".into(),
            port: "eth0".into(),
            target: "10.0.0.1".parse().expect("an address"),
            answers: Some(true),
        }],
        ..Snapshot::default()
    }
}

pub(super) fn published() -> (Publisher, Published) {
    let (publisher, published) = channel();
    publisher.snapshot.send_replace(Arc::new(sample()));
    let counters = Counters {
        rx_packets: 1,
        rx_bytes: 2,
        tx_packets: 3,
        tx_bytes: 4,
        rx_dropped: 5,
        ..Default::default()
    };
    let vip = VipCounters {
        address: "10.0.0.10".parse().expect("an address"),
        server: "projects".into(),
        counters,
    };
    publisher.counters.send_replace(Arc::new(vec![vip]));
    publisher.diagnostics.send_replace(Diagnostics {
        malformed: 9,
        probes_truncated: 10,
        probes_version: 11,
        probes_forged: 12,
        probes_replayed: 13,
        probes_unknown: 14,
        ..Default::default()
    });
    let mut rtt = [0; RTT_BUCKETS];
    (rtt[0], rtt[5], rtt[RTT_BUCKETS - 1]) = (1, 2, 4);
    let (segment, from, to) = ("office".into(), "eth0".into(), "eth1".into());
    publisher.paths.send_replace(Arc::new(vec![PathStats {
        segment,
        from,
        to,
        rtt,
        rtt_sum_ns: 2_500_000_000,
    }]));
    publisher.host.send_replace(Some(HostSample { cpu: 250, cpu_pressure: 125, memory_pressure: 1 }));
    publisher.devices.send_replace(Arc::new(vec![DeviceCounters {
        server: "projects".into(),
        device: "/dev/disk/by-id/a".into(),
        counters: StorageCounters {
            bytes: 4096,
            requests: 3,
            busy: Duration::from_millis(1500),
            waited: Duration::from_millis(2250),
        },
    }]));
    let mut unit = UnitStats::new("array-1", "/dev/disk/by-id/a");
    unit.read(Duration::from_micros(3));
    unit.read(Duration::from_micros(4));
    unit.read(Duration::from_secs(100));
    (unit.state, unit.errors, unit.hangs) = (Some(StorageState::Hung), 2, 1);
    let unread = UnitStats::new("array-2", "/dev/disk/by-id/b");
    publisher.units.send_replace(Arc::new(vec![unit, unread]));
    publisher.requests.send_replace(Arc::new(vec![UnitRequests {
        unit: "array-1".into(),
        device: "/dev/disk/by-id/a".into(),
        completed: 50,
        errors: 4,
        in_flight: 3,
        oldest: Duration::from_millis(1250),
    }]));
    publisher.dropped_input();
    publisher.dropped_report();
    (publisher, published)
}

fn failover() -> [Event; 2] {
    let (kind, reason) = (FailoverKind::Port, Reason::CarrierLost);
    let stages = [(Stage::Announced, 140e-6)].into();
    let begun = EventKind::Failover { kind, reason, moves: Vec::new() };
    let done = EventKind::FailoverDone { kind, reason, addresses: 1, stages };
    [begun, done].map(|kind| Event { at: Time(1), failover: Some(1), kind })
}

#[test]
fn every_metric_has_its_name_labels_and_value() {
    let (_publisher, published) = published();
    let metrics = Metrics::new(published);
    failover().iter().for_each(|e| metrics.event(e));
    let text = metrics.encode().expect("text");
    for line in [
        r#"baton_vip_packets_total{virtual_server="projects",address="10.0.0.10",direction="rx"} 1"#,
        r#"baton_vip_packets_total{virtual_server="projects",address="10.0.0.10",direction="tx"} 3"#,
        r#"baton_vip_bytes_total{virtual_server="projects",address="10.0.0.10",direction="rx"} 2"#,
        r#"baton_vip_bytes_total{virtual_server="projects",address="10.0.0.10",direction="tx"} 4"#,
        r#"baton_vip_dropped_packets_total{virtual_server="projects",address="10.0.0.10",direction="rx"} 5"#,
        r#"baton_virtual_server_load{virtual_server="projects"} 0.5"#,
        r#"baton_node_load{node="fs1"} 0.25"#,
        r#"baton_virtual_server_owner{virtual_server="projects",node="fs1"} 1.0"#,
        r#"baton_port_state{interface="eth0",segment="office",state="good"} 0.0"#,
        r#"baton_port_state{interface="eth0",segment="office",state="held"} 1.0"#,
        r#"baton_failover_seconds_bucket{le="0.0001",kind="port",stage="announced"} 0"#,
        r#"baton_failover_seconds_bucket{le="0.00015",kind="port",stage="announced"} 1"#,
        r#"baton_failover_seconds_count{kind="port",stage="announced"} 1"#,
        r#"baton_failovers_total{kind="port",reason="carrier_lost"} 1"#,
        r#"baton_failovers_total{kind="port",reason="silent"} 0"#,
        r#"baton_failovers_total{kind="takeover",reason="node_dead"} 0"#,
        r#"baton_failover_seconds_count{kind="takeover",stage="announced"} 0"#,
        r#"baton_path_heard{segment="office",from="eth0",to="eth1"} 0.0"#,
        r#"baton_path_loss_ratio{segment="office",from="eth0",to="eth1"} 0.125"#,
        r#"baton_path_rtt_seconds_sum{segment="office",from="eth0",to="eth1"} 2.5"#,
        r#"baton_path_rtt_seconds_count{segment="office",from="eth0",to="eth1"} 7"#,
        r#"baton_path_rtt_seconds_bucket{le="0.000001",segment="office",from="eth0",to="eth1"} 1"#,
        r#"baton_path_rtt_seconds_bucket{le="0.000016",segment="office",from="eth0",to="eth1"} 1"#,
        r#"baton_path_rtt_seconds_bucket{le="0.000032",segment="office",from="eth0",to="eth1"} 3"#,
        r#"baton_path_rtt_seconds_bucket{le="+Inf",segment="office",from="eth0",to="eth1"} 7"#,
        r#"baton_segment_finding{segment="office",finding="whole"} 0.0"#,
        r#"baton_segment_finding{segment="office",finding="paths_silent"} 1.0"#,
        r#"baton_target_answers{segment="office",port="eth0",target="10.0.0.1"} 1.0"#,
        r#"baton_probe_frames_refused_total{reason="truncated"} 10"#,
        r#"baton_probe_frames_refused_total{reason="version"} 11"#,
        r#"baton_probe_frames_refused_total{reason="forged"} 12"#,
        r#"baton_probe_frames_refused_total{reason="replayed"} 13"#,
        r#"baton_probe_frames_refused_total{reason="unknown"} 14"#,
        "baton_node_cpu_ratio 0.25",
        "baton_node_cpu_pressure_ratio 0.125",
        "baton_node_memory_pressure_ratio 0.001",
        r#"baton_storage_bytes_total{virtual_server="projects",device="/dev/disk/by-id/a"} 4096"#,
        r#"baton_storage_requests_total{virtual_server="projects",device="/dev/disk/by-id/a"} 3"#,
        r#"baton_storage_busy_seconds_total{virtual_server="projects",device="/dev/disk/by-id/a"} 1.5"#,
        r#"baton_storage_wait_seconds_total{virtual_server="projects",device="/dev/disk/by-id/a"} 2.25"#,
        r#"baton_storage_reachable{storage_unit="array-1",device="/dev/disk/by-id/a"} 0.0"#,
        r#"baton_storage_probe_seconds_count{storage_unit="array-1",device="/dev/disk/by-id/a"} 3"#,
        r#"baton_storage_probe_seconds_bucket{le="0.000002",storage_unit="array-1",device="/dev/disk/by-id/a"} 0"#,
        r#"baton_storage_probe_seconds_bucket{le="0.000004",storage_unit="array-1",device="/dev/disk/by-id/a"} 2"#,
        r#"baton_storage_probe_errors_total{storage_unit="array-1",device="/dev/disk/by-id/a"} 2"#,
        r#"baton_storage_probe_hangs_total{storage_unit="array-1",device="/dev/disk/by-id/a"} 1"#,
        r#"baton_storage_unit_requests_total{storage_unit="array-1",device="/dev/disk/by-id/a"} 50"#,
        r#"baton_storage_unit_errors_total{storage_unit="array-1",device="/dev/disk/by-id/a"} 4"#,
        r#"baton_storage_unit_in_flight{storage_unit="array-1",device="/dev/disk/by-id/a"} 3.0"#,
        r#"baton_storage_unit_oldest_request_seconds{storage_unit="array-1",device="/dev/disk/by-id/a"} 1.25"#,
        "baton_lease_remaining_seconds 0.048",
        "baton_address_conflicts 0.0",
        "baton_foreign_claims_total 0",
        "baton_dropped_inputs_total 1",
        "baton_dropped_reports_total 1",
        r#"baton_diagnostics_total{what="malformed"} 9"#,
        concat!("baton_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains(r#"baton_storage_reachable{storage_unit="array-2""#), "not known yet");
    // A name is described once; otherwise Prometheus refuses the whole page.
    let mut described: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
    let all = described.len();
    described.sort_unstable();
    described.dedup();
    assert_eq!(described.len(), all, "{text}");
}

#[test]
fn an_endless_lease_is_infinite() {
    let (publisher, published) = published();
    publisher.snapshot.send_replace(Arc::new(Snapshot { lease_ms: None, ..sample() }));
    let text = Metrics::new(published).encode().expect("text");
    // OpenMetrics 1.0 takes it in any case, with or without a sign.
    assert!(text.contains("\nbaton_lease_remaining_seconds inf\n"), "{text}");
}

#[test]
fn a_host_that_is_not_known_has_no_metrics() {
    let (publisher, published) = published();
    publisher.host.send_replace(None);
    let text = Metrics::new(published).encode().expect("text");
    assert!(!text.contains("baton_node_cpu"), "{text}");
}

#[test]
fn status_has_the_promised_shape() {
    let (_publisher, published) = published();
    let json = serde_json::to_value(published.status()).expect("JSON");
    assert_eq!(json["node"], "fs1");
    assert_eq!(json["incarnation"], 7);
    assert_eq!(json["quorum"], true);
    assert_eq!(json["lease_ms"], 48);
    assert_eq!(json["nodes"][0]["load"], 0.25);
    assert_eq!(json["ports"][0]["state"], "held");
    assert_eq!(json["virtual_servers"][0]["epoch"], 3);
    let back: Status = serde_json::from_value(json).expect("a status");
    assert_eq!(back.snapshot, sample());
    assert!(!back.stale());
}

#[test]
fn silence_makes_it_stale() {
    let (publisher, published) = published();
    publisher.shared.beat.store((boot_time() - STALE_AFTER).0, Ordering::Relaxed);
    assert!(published.status().stale());
    publisher.beat();
    assert!(!published.status().stale());
}

/// One request by hand; the answer's head and body.
async fn get(address: std::net::SocketAddr, path: &str) -> (String, String) {
    get_as(address, path, "*/*").await
}

async fn get_as(address: std::net::SocketAddr, path: &str, accept: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    exchange(address, &request).await
}

/// The answer's head in lower case, and its body.
async fn exchange(address: std::net::SocketAddr, request: &str) -> (String, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn http_serves_metrics_status_and_a_page() {
    let (_publisher, published) = published();
    let metrics = Arc::new(Metrics::new(published.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let state = tempfile::tempdir().expect("a folder");
    let server = tokio::spawn(serve(listener, metrics, published, state.path().to_owned(), None));
    let (head, body) = get(address, "/metrics").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(
        body.contains("# TYPE baton_foreign_claims_total counter\n") && !body.contains("# EOF"),
        "{body}"
    );
    let (head, body) =
        get_as(address, "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    assert!(body.contains("baton_node_load"), "{body}");
    let (head, body) = get(address, "/status.json").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(serde_json::from_str::<Status>(&body).is_ok(), "{body}");
    let (head, body) = get(address, "/").await;
    assert!(head.contains("content-security-policy: default-src 'self'"), "{head}");
    assert!(body.contains("status.json"), "{body}");
    let (head, body) = get(address, "/plan.json").await;
    assert!(head.starts_with("http/1.1 503") && body.contains("not measured"), "{head} {body}");
    assert!(get(address, "/nothing").await.0.starts_with("http/1.1 404"));
    // Without a token nobody may do anything.
    let (_, may) = get(address, "/may.json").await;
    assert!(may.contains("\"actions\":false") && may.contains("token_file"), "{may}");
    assert!(post(address, "Authorization: Bearer x", "{}").await.0.starts_with("http/1.1 404"));
    server.abort();
}

/// The answer to an action: its head in lower case, and its body.
async fn post(address: std::net::SocketAddr, header: &str, body: &str) -> (String, String) {
    let request = format!(
        "POST /action HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(address, &request).await
}

#[tokio::test]
async fn who_has_the_token_may_act_and_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let (_publisher, published) = published();
    let metrics = Arc::new(Metrics::new(published.clone()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let state = tempfile::tempdir().expect("a folder");
    let file = state.path().join("token");
    std::fs::write(&file, "0123456789abcdef\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
    let done = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = done.clone();
    let act = move |action: &Action| {
        kept.lock().expect("whole").push(action.clone());
        match action {
            Action::Drain { node } => Ok(format!("{node} is drained")),
            _ => Err("no".to_owned()),
        }
    };
    let actions = Actions::new(Some(file.clone()), Arc::new(act));
    let server = tokio::spawn(serve(listener, metrics, published, state.path().to_owned(), Some(actions)));
    let drain = r#"{"drain":{"node":"fs1"}}"#;
    assert!(get(address, "/may.json").await.1.contains("\"actions\":true"));
    for header in [
        "X: y",
        "Authorization: Bearer ",
        "Authorization: Bearer 0123456789abcdeg",
        "Authorization: Basic 0123456789abcdef",
        "Cookie: token=0123456789abcdef",
    ] {
        let (head, _) = post(address, header, drain).await;
        assert!(head.starts_with("http/1.1 401"), "{header}: {head}");
    }
    let good = "Authorization: Bearer 0123456789abcdef";
    assert!(get(address, "/action").await.0.starts_with("http/1.1 405"));
    assert!(post(address, good, r#"{"check":{}}"#).await.0.starts_with("http/1.1 204"));
    for body in
        ["", "{}", r#"{"drain":{}}"#, r#"{"drain":{"node":"a","more":1}}"#, r#"{"reboot":{"node":"a"}}"#]
    {
        let (head, said) = post(address, good, body).await;
        assert!(head.starts_with("http/1.1 400") && said.contains("not an action"), "{body}: {head} {said}");
    }
    let long = format!("{{\"drain\":{{\"node\":\"{}\"}}}}", "a".repeat(5000));
    assert!(post(address, good, &long).await.0.starts_with("http/1.1 413"));
    assert!(done.lock().expect("whole").is_empty());
    let (head, said) = post(address, good, drain).await;
    assert!(head.starts_with("http/1.1 200") && said == "fs1 is drained", "{head} {said}");
    let off = r#"{"confirm_off":{"node":"fs2","it_is_off":true}}"#;
    let (head, said) = post(address, good, off).await;
    assert!(head.starts_with("http/1.1 409") && said == "no", "{head} {said}");
    let (drained, confirmed) = ("fs1".to_owned(), "fs2".to_owned());
    let wanted = [Action::Drain { node: drained }, Action::ConfirmOff { node: confirmed, it_is_off: true }];
    assert_eq!(*done.lock().expect("whole"), wanted);
    // A token that others can read is none.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("set");
    let (head, said) = post(address, good, drain).await;
    assert!(head.starts_with("http/1.1 500") && !said.contains("0123456789abcdef"), "{head} {said}");
    server.abort();
}

/// A drain may take half a minute. An agent that is to end does not wait for it: its node would be given up.
#[test]
fn an_action_holds_up_no_agent_that_ends() {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc;
    let (_publisher, published) = published();
    let metrics = Arc::new(Metrics::new(published.clone()));
    let state = tempfile::tempdir().expect("a folder");
    let file = state.path().join("token");
    std::fs::write(&file, "0123456789abcdef").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
    let (begun, begins) = mpsc::channel();
    let (go, goes) = mpsc::channel();
    let (ended, ends) = mpsc::channel();
    let (goes, both) = (std::sync::Mutex::new(goes), std::sync::Mutex::new((begun, ended)));
    let act = move |_: &Action| {
        let told = both.lock().expect("whole");
        told.0.send(()).expect("waited for");
        let gone = goes.lock().expect("whole").recv_timeout(Duration::from_secs(30));
        told.1.send(gone.is_ok()).expect("waited for");
        Ok(String::new())
    };
    let actions = Actions::new(Some(file), Arc::new(act));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.set_nonblocking(true).expect("set");
    let address = listener.local_addr().expect("an address");
    let folder = state.path().to_owned();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let agent = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("taken");
            tokio::select! {
                _ = serve(listener, metrics, published, folder, Some(actions)) => {}
                _ = stopped => {}
            }
        });
    });
    let mut stream = std::net::TcpStream::connect(address).expect("connected");
    let action = r#"{"drain":{"node":"fs1"}}"#;
    let head = "POST /action HTTP/1.0\r\nAuthorization: Bearer 0123456789abcdef\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{action}", action.len()).expect("asked");
    begins.recv_timeout(Duration::from_secs(60)).expect("begun");
    drop(stop);
    agent.join().expect("ended");
    go.send(()).expect("it still waits");
    assert!(
        ends.recv_timeout(Duration::from_secs(60)).expect("ended"),
        "the end of the runtime waited for it"
    );
}

#[tokio::test]
async fn an_address_in_use_is_taken_once_it_is_free() {
    let (_publisher, published) = published();
    let metrics = Arc::new(Metrics::new(published.clone()));
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = other.local_addr().expect("an address");
    let retry = Duration::from_millis(5);
    let state = tempfile::tempdir().expect("a folder");
    let router = router(metrics, published, state.path().to_owned(), None);
    let server = tokio::spawn(http::run_with(address, router, None, retry));
    tokio::time::sleep(10 * retry).await;
    assert!(!server.is_finished());
    drop(other);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(retry).await;
    }
    assert!(get(address, "/").await.0.starts_with("http/1.1 200"));
    server.abort();
}
