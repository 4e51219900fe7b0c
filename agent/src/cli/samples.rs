//! A status for the tests of what people see.

use std::time::Duration;

use baton_core::{
    AddressView, Attachment, ConflictView, Event, EventKind, Finding, NodeView, PathView, PortState,
    PortView, Reason, SegmentView, ServerView, Snapshot, TargetView, Time, Watcher,
};

use crate::journal::Record;
use crate::telemetry::Status;

pub(super) fn port(interface: &str, state: PortState) -> PortView {
    PortView {
        interface: interface.into(),
        segment: "office".into(),
        state,
        reason: None,
        carrier: state != PortState::Down,
        present: true,
        attachment: Some(Attachment::Native),
        held_ms: (state == PortState::Held).then_some(800),
        flaps: 0,
        addresses: if state == PortState::Good { 2 } else { 0 },
        rate: if state == PortState::Good { 1_250_000 } else { 0 },
    }
}

pub(super) fn server(name: &str, addresses: &[(&str, Option<&str>)]) -> ServerView {
    let view = |(address, port): &(&str, Option<&str>)| AddressView {
        address: address.parse().expect("an address"),
        port: port.map(str::to_owned),
        via: None,
        rate: 625_000,
    };
    ServerView {
        name: name.into(),
        owner: Some("fs1".into()),
        state: "serving".into(),
        epoch: 3,
        load: 0.12,
        priority: 100,
        rate: 1_250_000,
        addresses: addresses.iter().map(view).collect(),
        why: None,
    }
}

pub(super) fn path(from: &str, to: &str, heard: Option<bool>) -> PathView {
    PathView {
        segment: "office".into(),
        from: from.into(),
        to: to.into(),
        heard,
        heard_ms: heard.map(|heard| if heard { 7 } else { 1500 }),
        loss: Some(0.021),
        rtt_us: Some(41.6),
        echo: Some(Watcher::Kernel),
        timer: Watcher::Kernel,
    }
}

pub(super) fn target(port: &str, answers: Option<bool>) -> TargetView {
    let target = "10.0.0.1".parse().expect("an address");
    TargetView { segment: "office".into(), port: port.into(), target, answers }
}

pub(super) fn status() -> Status {
    let snapshot = Snapshot {
        node: "fs1".into(),
        incarnation: 7,
        master: Some("fs1".into()),
        quorum: true,
        store: true,
        lease_ms: None,
        nodes: vec![NodeView { name: "fs1".into(), state: "up".into(), load: 0.21, ..NodeView::default() }],
        ports: vec![
            port("eth0", PortState::Good),
            port("eth1", PortState::Held),
            PortView {
                present: false,
                attachment: None,
                reason: Some(Reason::InterfaceGone),
                ..port("eth2", PortState::Down)
            },
        ],
        virtual_servers: vec![
            server("projects", &[("10.0.0.10", Some("eth0")), ("fd00:10::10", Some("eth0"))]),
            server("homes", &[("10.0.0.11", None)]),
        ],
        segments: vec![SegmentView { name: "office".into(), finding: Finding::PortsSilent }],
        paths: vec![path("eth0", "eth1", Some(true)), path("eth1", "eth0", Some(false))],
        targets: vec![target("eth0", Some(true)), target("eth1", Some(false)), target("eth2", None)],
        conflicts: vec![ConflictView {
            address: "10.0.0.10".parse().expect("an address"),
            interface: "eth1".into(),
            mac: Some("02:00:00:00:00:01".into()),
        }],
        storage: Vec::new(),
        failovers: 4,
        advice: Vec::new(),
    };
    Status { version: "0.1.0".into(), age_ms: 20, snapshot }
}

pub(super) fn record(seconds: u64, kind: EventKind) -> Record {
    Record {
        time: std::time::UNIX_EPOCH + Duration::from_secs(seconds),
        event: Event { at: Time(1), failover: None, kind },
    }
}
