use std::net::Ipv4Addr;

use baton_core::{FailoverKind, Reason, Rebinding, Time};

use super::*;
use crate::telemetry;

fn serving(server: &str, epoch: u64) -> Event {
    Event { at: Time(5), failover: None, kind: EventKind::Serving { server: server.to_owned(), epoch } }
}

fn epochs(records: &[Record]) -> Vec<u64> {
    let epoch = |r: &Record| match &r.event.kind {
        EventKind::Serving { epoch, .. } => *epoch,
        other => panic!("{other:?}"),
    };
    records.iter().map(epoch).collect()
}

#[test]
fn a_record_is_one_line_and_reads_back_the_same() {
    let kinds = [
        EventKind::Started { incarnation: 1, adopted: 2, removed: 3 },
        EventKind::Port {
            interface: "eth0".into(),
            segment: "office".into(),
            from: baton_core::PortState::Good,
            to: baton_core::PortState::Down,
            reason: Some(baton_core::Reason::CarrierLost),
            evidence: None,
        },
        EventKind::Failover {
            kind: baton_core::FailoverKind::Port,
            reason: baton_core::Reason::CarrierLost,
            moves: vec![baton_core::Rebinding {
                address: Ipv4Addr::new(10, 0, 0, 10).into(),
                from: Some("eth0".into()),
                to: "eth1".into(),
            }],
        },
        EventKind::ForeignClaim {
            address: "fd00::1".parse().expect("an address"),
            interface: "line\nend".into(),
            mac: "02:00:00:00:00:01".into(),
        },
        EventKind::Attached { interface: "eth0".into(), mode: baton_core::Attachment::Native },
        EventKind::Resynced,
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let mut journal = Journal::new(folder.path());
    let written: Vec<Record> = kinds
        .into_iter()
        .enumerate()
        .map(|(i, kind)| Record::now(Event { at: boot_time(), failover: (i % 2 == 0).then_some(7), kind }))
        .collect();
    for record in &written {
        journal.append(record).expect("written");
    }
    let text = fs::read_to_string(folder.path().join(FILE)).expect("read");
    assert_eq!(text.lines().count(), written.len());
    assert_eq!(tail(folder.path(), 100).expect("read"), written);
    let first: serde_json::Value = serde_json::from_str(text.lines().next().expect("one")).expect("JSON");
    assert_eq!(first["event"], "started");
    assert!(first["time"].as_str().is_some_and(|t| t.ends_with('Z')), "{first}");
}

#[test]
fn an_event_is_dated_by_when_it_happened() {
    let mut event = serving("p", 1);
    event.at = boot_time() - Duration::from_millis(1500);
    let ago = SystemTime::now().duration_since(Record::now(event).time).expect("in the past");
    assert!(ago >= Duration::from_millis(1500), "{ago:?}");
}

#[test]
fn the_journal_is_bounded_and_survives_restarts() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = serde_json::to_string(&Record::now(serving("p", 100))).expect("JSON").len() as u64 + 1;
    for n in 0..40 {
        // A new journal each time: a restart.
        let mut journal = Journal::with_limit(folder.path(), 10 * line);
        journal.append(&Record::now(serving("p", 100 + n))).expect("written");
    }
    let size = |name: &str| fs::metadata(folder.path().join(name)).expect("there").len();
    assert!(size(FILE) <= 10 * line && size("events.jsonl.1") <= 10 * line);
    assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2);
    assert_eq!(epochs(&tail(folder.path(), 3).expect("read")), [137, 138, 139]);
    let all = epochs(&tail(folder.path(), usize::MAX).expect("read"));
    assert_eq!(all.last(), Some(&139));
    assert!((11..=20).contains(&all.len()) && all.windows(2).all(|w| w[0] + 1 == w[1]), "{all:?}");
}

#[test]
fn half_a_line_costs_only_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    Journal::new(folder.path()).append(&Record::now(serving("p", 1))).expect("written");
    let path = folder.path().join(FILE);
    let whole = fs::read_to_string(&path).expect("read");
    fs::write(&path, format!("{whole}{}", &whole[..30])).expect("written");
    Journal::new(folder.path()).append(&Record::now(serving("p", 2))).expect("written");
    assert_eq!(epochs(&tail(folder.path(), 9).expect("read")), [1, 2]);
}

#[test]
fn since_and_server_choose() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut journal = Journal::new(folder.path());
    let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
    for (time, server) in [(10, "p"), (20, "q"), (30, "p")] {
        journal.append(&Record { time: at(time), event: serving(server, time) }).expect("written");
    }
    assert_eq!(epochs(&since(folder.path(), at(20)).expect("read")), [20, 30]);
    let filter = Filter { server: Some(("p".into(), BTreeSet::new())), ..Filter::default() };
    assert_eq!(epochs(&read(folder.path(), 9, |r| filter.passes(r)).expect("read")), [10, 30]);
}

/// The end of a failover names no virtual server: it goes with its beginning. The next agent counts from one again.
#[test]
fn the_end_of_a_failover_goes_with_its_beginning() {
    let address: IpAddr = "10.0.0.10".parse().expect("an address");
    let filter = Filter { server: Some(("p".into(), [address].into())), ..Filter::default() };
    let (kind, reason) = (FailoverKind::Port, Reason::CarrierLost);
    let record = |failover, kind| Record::now(Event { at: Time(1), failover, kind });
    let begun = |failover, address: &str| {
        let address = address.parse().expect("an address");
        let moves = vec![Rebinding { address, from: None, to: "eth1".into() }];
        record(Some(failover), EventKind::Failover { kind, reason, moves })
    };
    let done = |failover| {
        record(Some(failover), EventKind::FailoverDone { kind, reason, addresses: 1, stages: [].into() })
    };
    let started = record(None, EventKind::Started { incarnation: 2, adopted: 0, removed: 0 });
    let all = [
        (begun(1, "10.0.0.10"), true),
        (begun(2, "10.0.0.99"), false),
        (done(2), false),
        (done(1), true),
        (started, false),
        (done(1), false),
    ];
    for (record, passes) in all {
        assert_eq!(filter.passes(&record), passes, "{record:?}");
    }
}

#[test]
fn a_folder_without_journal_has_no_events() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(tail(folder.path(), 9).expect("read"), []);
    assert_eq!(tail(Path::new("/nonexistent/baton"), 9).expect("read"), []);
}

#[tokio::test]
async fn a_disk_that_refuses_stops_nobody_and_is_used_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("later");
    let (_publisher, published) = telemetry::channel();
    let metrics = Arc::new(Metrics::new(published.clone()));
    let mut live = published.events();
    let (sender, reports) = mpsc::channel(4);
    let task = tokio::spawn(run(reports, Journal::new(&state), published, metrics.clone(), Hooks::default()));
    for n in 1..=2 {
        sender.send(serving("p", n)).await.expect("taken");
        assert_eq!(epochs(&[(*live.recv().await.expect("told")).clone()]), [n]);
    }
    fs::create_dir(&state).expect("made");
    sender.send(serving("p", 3)).await.expect("taken");
    drop(sender);
    task.await.expect("no panic");
    assert_eq!(epochs(&tail(&state, 9).expect("read")), [3]);
    let text = metrics.encode().expect("text");
    assert!(text.contains("baton_journal_errors_total 2\n"), "{text}");
}
