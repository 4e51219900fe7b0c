use baton_core::{EventKind, Evidence, FailoverKind, PathView, PortState, Reason, Rebinding};

use super::events::describe;
use super::samples::{path, record, status};
use super::status::render;
use super::text::{count, one_line, rate, span};
use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn status_reads_well() {
    let expected = "\
node fs1  incarnation 7  lease endless  load 21 %  failovers 4

PORT  SEGMENT  STATE                 CARRIER  KERNEL  ADDRESSES      RATE
eth0  office   good                  yes      xdp             2  1.2 MB/s
eth1  office   held 800 ms           yes      xdp             0     0 B/s
eth2  office   down, interface gone  absent   -               0     0 B/s

SEGMENT  PATHS  FINDING
office       2  ports silent: see their states

PATH         HEARD              LOSS  ROUND TRIP  ECHO    TIMER
eth0 > eth1  yes               2.1 %       42 us  kernel  kernel
eth1 > eth0  silent for 1.5 s  2.1 %       42 us  kernel  kernel

PROBE TARGET  SEGMENT  ANSWERS AT  SILENT AT
10.0.0.1      office   eth0        eth1

VIRTUAL SERVER  OWNER  STATE    PORT     LOAD      RATE
projects        fs1    serving           12 %  1.2 MB/s
  10.0.0.10                     eth0           625 kB/s
  fd00:10::10                   eth0           625 kB/s
homes           fs1    serving           12 %  1.2 MB/s
  10.0.0.11                     no port        625 kB/s

CONFLICTS
  10.0.0.10 is claimed by host 02:00:00:00:00:01 on eth1
";
    assert_eq!(render(&status(), false), expected);
    let coloured = render(&status(), true);
    let mut plain = coloured.clone();
    for code in ["0", "1", "32", "33", "1;31"] {
        plain = plain.replace(&format!("\x1b[{code}m"), "");
    }
    assert_eq!(plain, expected, "colour changes nothing else");
    assert!(coloured.contains("\x1b[32mgood\x1b[0m"));
}

#[test]
fn status_shows_storage_units_and_why_a_server_waits() {
    let mut status = status();
    let unit = |unit: &str, state: &str, what: Option<&str>| baton_core::StorageView {
        unit: unit.into(),
        state: state.into(),
        what: what.map(str::to_owned),
    };
    status.snapshot.storage = vec![unit("array-1", "good", None), unit("a2", "errors", Some("I/O error"))];
    status.snapshot.virtual_servers[0].why = Some("fs2 is not fenced".into());
    let text = render(&status, false);
    let table = "STORAGE UNIT  STATE\narray-1       good\na2            errors: I/O error\n\nVIRTUAL SERVER";
    assert!(text.contains(table), "{text}");
    assert!(text.contains("\nprojects: fs2 is not fenced\n"), "{text}");
}

#[test]
fn of_many_paths_only_those_that_are_not_well_are_listed() {
    let mut status = status();
    let clean = PathView { loss: Some(0.0), ..path("eth0", "eth1", Some(true)) };
    status.snapshot.paths = vec![clean; 240];
    let text = render(&status, false);
    assert!(text.contains("\n240 paths are heard and clean\n") && !text.contains("HEARD"), "{text}");
    status.snapshot.paths[7] = PathView { heard_ms: None, loss: None, ..path("eth8", "eth9", Some(false)) };
    status.snapshot.paths[9] = PathView { loss: Some(0.051), ..path("eth5", "eth6", Some(true)) };
    let text = render(&status, false);
    assert!(text.contains("eth8 > eth9  never") && text.contains("eth5 > eth6  yes    5.1 %"), "{text}");
    assert!(text.contains("\n238 paths are heard and clean\n"), "{text}");
}

#[test]
fn stale_status_says_so_first() {
    let mut status = status();
    status.age_ms = 12_300;
    status.snapshot.quorum = false;
    let text = render(&status, false);
    assert!(text.starts_with("STALE: the agent's fast thread has not been heard for 12.3 s; "), "{text}");
    assert!(text.contains("NO QUORUM"), "{text}");
}

#[test]
fn what_comes_from_outside_cannot_steer_the_terminal() {
    let mut status = status();
    status.snapshot.virtual_servers[0].state = "x\x1b[2J\ny".into();
    let text = render(&status, false);
    assert!(!text.contains('\x1b') && text.contains("x [2J y"), "{text}");
}

#[test]
fn events_are_one_line_each() {
    let port = EventKind::Port {
        interface: "eth0".into(),
        segment: "office".into(),
        from: PortState::Good,
        to: PortState::Down,
        reason: Some(Reason::CarrierLost),
        evidence: None,
    };
    assert_eq!(
        describe(&record(60, port)),
        "1970-01-01 00:01:00.000000Z  port eth0 (office) good -> down: carrier lost"
    );
    let silent = EventKind::Port {
        interface: "eth0".into(),
        segment: "office".into(),
        from: PortState::Good,
        to: PortState::Silent,
        reason: Some(Reason::ReceiveSilent),
        evidence: Some(Box::new(Evidence { silent: vec!["eth1>eth0 33 ms".into()], ..Evidence::default() })),
    };
    assert_eq!(
        describe(&record(0, silent)),
        "1970-01-01 00:00:00.000000Z  port eth0 (office) good -> silent: no receive [silent: eth1>eth0 33 ms]"
    );
    let moves = (1..=5)
        .map(|n| Rebinding {
            address: [10, 0, 0, n].into(),
            from: (n > 1).then(|| "eth0".into()),
            to: "eth1".into(),
        })
        .collect();
    let mut failover =
        record(0, EventKind::Failover { kind: FailoverKind::Port, reason: Reason::CarrierLost, moves });
    failover.event.failover = Some(3);
    assert_eq!(
        describe(&failover),
        "1970-01-01 00:00:00.000000Z  [3] port failover, carrier lost: \
         10.0.0.1 -> eth1, 10.0.0.2 eth0 -> eth1, 10.0.0.3 eth0 -> eth1, and 2 more"
    );
}

#[test]
fn numbers_are_short() {
    for (bytes, text) in [
        (0, "0 B/s"),
        (999, "999 B/s"),
        (1000, "1.0 kB/s"),
        (99_949, "99.9 kB/s"),
        (99_950, "100 kB/s"),
        (999_499, "999 kB/s"),
        (999_500, "1.0 MB/s"),
        (1_250_000_000, "1.2 GB/s"),
        (u64::MAX, "18446744073.7 GB/s"),
    ] {
        assert_eq!(rate(bytes), text, "{bytes}");
    }
    assert_eq!([span(0), span(999), span(1500), span(61_000)], ["0 ms", "999 ms", "1.5 s", "1 min"]);
    assert_eq!(
        [count(1, "address"), count(2, "address"), count(0, "port")],
        ["1 address", "2 addresses", "0 ports"]
    );
    assert_eq!(one_line("a\tb\u{7f}"), "a b ");
}
