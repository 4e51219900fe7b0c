use std::time::Duration;

use baton_core::EventKind;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::samples::{record, server, status};
use super::draw::draw;
use super::view::{EVENTS_KEPT, HISTORY, News, View};

/// The screen as text, without spaces at the ends of lines.
fn screen(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, view)).expect("drawn");
    let buffer = terminal.backend().buffer();
    (0..height)
        .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned() + "\n")
        .collect()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn serving(epoch: u64) -> EventKind {
    EventKind::Serving { server: "projects".into(), epoch }
}

fn live() -> View {
    let mut view = View::default();
    view.hear(News::Status(Box::new(status())), at(1));
    view.hear(News::Event { record: Box::new(record(3661, serving(3))), first: true }, at(1));
    view
}

#[test]
fn everything_fits_80_by_24() {
    let text = screen(&live(), 80, 24);
    for part in [
        "baton fs1  incarnation 7  load 21 %  failovers 4  q quits",
        "CONFLICT: 10.0.0.10 is also held by host 02:00:00:00:00:01 (eth1)",
        " ports (3) ",
        "│eth1            office     held 800 ms          yes     0         0 B/s",
        "│eth2            office     down, interface gone absent  0         0 B/s",
        "office: ports silent, 1 of 2 paths heard, loss 2.1 %, 42 us; silent eth1>eth0",
        " virtual servers (2) ",
        "│projects                     fs1               serving   12 %    1.2 MB/s",
        "│  fd00:10::10                eth0                                625 kB/s",
        "│  10.0.0.11                  no port                             625 kB/s",
        " traffic: 2.5 MB/s now, 2.5 MB/s at most in 1 s ",
        "│01:01:01.000 serving projects, epoch 3",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(text.lines().all(|l| l.chars().count() <= 80));
}

#[test]
fn every_size_can_be_drawn() {
    let view = live();
    for width in [0, 1, 2, 10, 40, 80, 300] {
        for height in [0, 1, 2, 5, 10, 24, 100] {
            screen(&view, width, height);
            screen(&View::default(), width, height);
        }
    }
}

#[test]
fn long_lists_scroll() {
    let mut many = status();
    many.snapshot.virtual_servers =
        (0..50).map(|n| server(&format!("server-{n}"), &[("10.0.0.10", Some("eth0"))])).collect();
    let mut view = View::default();
    view.hear(News::Status(Box::new(many)), at(0));
    let text = screen(&view, 80, 24);
    assert!(text.contains("0 rows above, 95 below: arrows scroll") && text.contains("server-0 "), "{text}");
    view.scroll(10);
    let text = screen(&view, 80, 24);
    assert!(text.contains("10 rows above, 85 below") && text.contains("│server-5 "), "{text}");
    view.scroll(1000);
    assert!(screen(&view, 80, 24).contains("95 rows above, 0 below"));
    view.scroll(isize::MIN);
    assert!(screen(&view, 80, 24).contains("0 rows above"));
}

#[test]
fn doubtful_data_are_called_so() {
    let waiting = screen(&View::default(), 80, 24);
    assert!(waiting.contains("waiting for the agent"), "{waiting}");

    let mut view = live();
    view.now = at(3);
    assert_eq!(view.doubt(), None);
    view.now = at(9);
    assert!(screen(&view, 80, 24).contains("STALE, 8 s old: the agent's fast thread is not heard"));

    let mut view = live();
    view.hear(News::Lost("the agent has gone".into()), at(2));
    assert!(screen(&view, 80, 24).contains("STALE, 1 s old: the agent has gone"));
    view.hear(News::Status(Box::new(status())), at(3));
    assert_eq!(view.doubt(), None);

    let mut old = status();
    old.age_ms = 5000;
    view.hear(News::Status(Box::new(old)), at(4));
    assert!(screen(&view, 80, 24).contains("STALE, 5 s old"));
}

#[test]
fn memory_is_bounded_and_a_new_connection_tells_the_past_once() {
    let mut view = View::default();
    for n in 0..1000 {
        view.hear(News::Status(Box::new(status())), Duration::from_millis(500 * n));
        view.hear(News::Event { record: Box::new(record(n, serving(n))), first: false }, at(0));
    }
    assert_eq!((view.history.len(), view.events.len()), (HISTORY, EVENTS_KEPT));
    view.hear(News::Event { record: Box::new(record(1, serving(1))), first: true }, at(0));
    assert_eq!(view.events.len(), 1);
}
