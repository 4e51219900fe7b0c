//! The screen of `top`: a pure function of what it knows.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use super::super::events::sentence;
use super::super::paths;
use super::super::status::{carrier, state};
use super::super::text::{Tint, count, one_line, percent, rate};
use super::view::View;
use crate::telemetry::Status;

/// Draws everything that fits.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let conflicts = view.status.as_ref().map_or(0, |(s, _)| s.snapshot.conflicts.len());
    let ports = view.status.as_ref().map_or(0, |(s, _)| s.snapshot.ports.len());
    let height = usize::from(frame.area().height);
    // Two lines of frame and one of headings around each table; a third of the screen at most.
    let part =
        |rows: usize| Constraint::Length(u16::try_from((rows + 2).min((height / 3).max(4))).unwrap_or(4));
    let [head, ports_area, servers_area, traffic_area, events_area] = Layout::vertical([
        Constraint::Length(if conflicts > 0 { 2 } else { 1 }),
        part(ports + 1),
        part(view.rows() + 1),
        Constraint::Length(4),
        Constraint::Min(4),
    ])
    .areas(frame.area());
    draw_head(frame, head, view);
    if let Some((status, _)) = &view.status {
        draw_ports(frame, ports_area, status);
        draw_servers(frame, servers_area, status, view.offset);
    }
    draw_traffic(frame, traffic_area, view);
    draw_events(frame, events_area, view);
}

fn style(tint: Tint) -> Style {
    match tint {
        Tint::Plain => Style::new(),
        Tint::Heading => Style::new().add_modifier(Modifier::BOLD),
        Tint::Good => Style::new().fg(Color::Green),
        Tint::Warning => Style::new().fg(Color::Yellow),
        Tint::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

fn pane(title: String) -> Block<'static> {
    Block::new().borders(Borders::ALL).title(title)
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let node = view.status.as_ref().map_or("", |(s, _)| s.snapshot.node.as_str());
    let mut spans = vec![Span::styled(format!("baton {}  ", one_line(node)), style(Tint::Heading))];
    match (view.doubt(), &view.status) {
        (Some(why), _) => spans.push(Span::styled(one_line(&why), style(Tint::Bad))),
        (None, Some((status, _))) => {
            let v = &status.snapshot;
            let load = v.nodes.iter().find(|n| n.name == v.node).map_or(0.0, |n| n.load);
            let (incarnation, load, failovers) = (v.incarnation, percent(load), v.failovers);
            let text = format!("incarnation {incarnation}  load {load}  failovers {failovers}  q quits");
            spans.push(Span::raw(text));
        }
        (None, None) => {}
    }
    let mut lines = vec![Line::from(spans)];
    if let Some((status, _)) = &view.status
        && let Some(first) = status.snapshot.conflicts.first()
    {
        let more = status.snapshot.conflicts.len() - 1;
        let who =
            first.mac.as_deref().map_or_else(|| "another interface".to_owned(), |m| format!("host {m}"));
        let rest = if more > 0 { format!(", and {} more", count(more, "conflict")) } else { String::new() };
        let text = format!("CONFLICT: {} is also held by {who} ({}){rest}", first.address, first.interface);
        lines.push(Line::styled(one_line(&text), style(Tint::Bad)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn table<'a>(headings: &[&'a str], rows: Vec<Row<'a>>, widths: &[u16], title: String) -> Table<'a> {
    let heading = Row::new(headings.iter().map(|h| Cell::from(*h))).style(style(Tint::Heading));
    Table::new(rows, widths.iter().map(|w| Constraint::Length(*w))).header(heading).block(pane(title))
}

fn draw_ports(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let all = &status.snapshot.ports;
    let rows = all.iter().map(|p| {
        Row::new([
            Cell::from(one_line(&p.interface)),
            Cell::from(one_line(&p.segment)),
            Cell::from(state(p)).style(style(Tint::of_port(p.state))),
            Cell::from(carrier(p)),
            Cell::from(p.addresses.to_string()),
            Cell::from(rate(p.rate)),
        ])
    });
    let headings = ["PORT", "SEGMENT", "STATE", "CARRIER", "ADDRESSES", "RATE"];
    let title = format!(" ports ({}) ", all.len());
    let mut block = pane(title);
    // What is worst is seen first: the line may be too long.
    let mut paths = paths::summary(&status.snapshot);
    paths.sort_by_key(|(_, tint)| std::cmp::Reverse(tint.severity()));
    for (text, tint) in paths {
        block = block.title_bottom(Line::styled(format!(" {text} "), style(tint)));
    }
    let table = table(&headings, rows.collect(), &[15, 10, 20, 7, 9, 10], String::new()).block(block);
    frame.render_widget(table, area);
}

fn draw_servers(frame: &mut Frame<'_>, area: Rect, status: &Status, offset: usize) {
    let mut rows = Vec::new();
    for s in &status.snapshot.virtual_servers {
        rows.push(Row::new([
            Cell::from(one_line(&s.name)),
            Cell::from(one_line(s.owner.as_deref().unwrap_or("-"))),
            Cell::from(one_line(&s.state)).style(style(Tint::of_server(&s.state))),
            Cell::from(percent(s.load)),
            Cell::from(rate(s.rate)),
        ]));
        rows.extend(s.addresses.iter().map(|a| {
            let port = match &a.port {
                Some(port) if let Some(via) = &a.via => {
                    Cell::from(format!("{} via {}", one_line(port), one_line(via)))
                        .style(style(Tint::Warning))
                }
                Some(port) => Cell::from(one_line(port)),
                None => Cell::from("no port").style(style(Tint::Bad)),
            };
            let address = Cell::from(format!("  {}", a.address));
            Row::new([address, port, Cell::from(""), Cell::from(""), Cell::from(rate(a.rate))])
        }));
    }
    let visible = usize::from(area.height.saturating_sub(3));
    let offset = offset.min(rows.len().saturating_sub(visible));
    let below = rows.len().saturating_sub(offset + visible);
    let mut title = format!(" virtual servers ({})", status.snapshot.virtual_servers.len());
    if offset > 0 || below > 0 {
        title += &format!(", {offset} rows above, {below} below: arrows scroll");
    }
    let rows = rows.into_iter().skip(offset).take(visible).collect();
    let headings = ["NAME / ADDRESS", "OWNER / PORT", "STATE", "LOAD", "RATE"];
    frame.render_widget(table(&headings, rows, &[28, 17, 9, 7, 10], title + " "), area);
}

fn draw_traffic(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let width = usize::from(area.width.saturating_sub(2));
    let data: Vec<u64> =
        view.history.iter().skip(view.history.len().saturating_sub(width)).copied().collect();
    let (now, most) = (data.last().copied().unwrap_or(0), data.iter().max().copied().unwrap_or(0));
    let title = format!(" traffic: {} now, {} at most in {} s ", rate(now), rate(most), data.len());
    frame.render_widget(Sparkline::default().block(pane(title)).data(data).style(style(Tint::Good)), area);
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let visible = usize::from(area.height.saturating_sub(2));
    let lines: Vec<Line<'_>> = view
        .events
        .iter()
        .skip(view.events.len().saturating_sub(visible))
        .map(|record| {
            let time = humantime::format_rfc3339_millis(record.time).to_string();
            // Only the time of day; the date is in `baton events`.
            let time = time.get(11..23).unwrap_or("").to_owned();
            Line::raw(format!("{time} {}", one_line(&sentence(&record.event))))
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(pane(" events, UTC ".to_owned())), area);
}
