//! What status shows of segments, paths and probe targets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use baton_core::{Finding, PathView, Snapshot, TargetView, Watcher};

use super::text::{Table, Tint, count, one_line, span};

/// More paths than these are only listed where something is wrong with them.
const LISTED: usize = 12;
/// From here on a loss is worth a look: below it a path is clean.
const LOSS: f64 = 0.005;

/// What the paths of a segment say, for people.
pub(super) fn finding(finding: Finding) -> (&'static str, Tint) {
    match finding {
        Finding::Unknown => ("nothing to watch: fewer than two ports with carrier", Tint::Plain),
        Finding::Whole => ("whole: every port hears every other", Tint::Good),
        Finding::PortsSilent => ("ports silent: see their states", Tint::Bad),
        Finding::PathsSilent => {
            ("paths silent: every port sends and receives, but not all to one another", Tint::Warning)
        }
        Finding::Undecided => (
            "undecided: paths are silent, and nothing shows which port is to blame; nothing moves",
            Tint::Warning,
        ),
        Finding::Gone => ("gone: nothing is heard at any port; nothing moves", Tint::Bad),
    }
}

/// Is nothing wrong with this path, as far as is known?
fn is_fine(path: &PathView) -> bool {
    path.heard != Some(false) && path.loss.is_none_or(|loss| loss < LOSS)
}

/// Segments, paths and targets, each with a heading.
pub(super) fn write(view: &Snapshot, colour: bool, out: &mut String) {
    segments(view, colour, out);
    paths(view, colour, out);
    targets(view, colour, out);
}

fn segments(view: &Snapshot, colour: bool, out: &mut String) {
    if view.segments.is_empty() {
        return;
    }
    let mut table = Table::new(&["SEGMENT", ">PATHS", "FINDING"]);
    for segment in &view.segments {
        let all = view.paths.iter().filter(|p| p.segment == segment.name).count();
        let (text, tint) = finding(segment.finding);
        table.row([
            (one_line(&segment.name), Tint::Plain),
            (all.to_string(), Tint::Plain),
            (text.to_owned(), tint),
        ]);
    }
    out.push('\n');
    table.write(out, colour);
}

fn paths(view: &Snapshot, colour: bool, out: &mut String) {
    if view.paths.is_empty() {
        return;
    }
    let all = view.paths.len() <= LISTED;
    let mut table = Table::new(&["PATH", "HEARD", ">LOSS", ">ROUND TRIP", "ECHO", "TIMER"]);
    let mut left_out = 0;
    for path in &view.paths {
        if !all && is_fine(path) {
            left_out += 1;
            continue;
        }
        let (heard, tint) = heard(path);
        let loss = match path.loss {
            Some(loss) if loss >= LOSS => (format!("{:.1} %", loss * 100.0), Tint::Warning),
            Some(loss) => (format!("{:.1} %", loss * 100.0), Tint::Plain),
            None => ("-".to_owned(), Tint::Plain),
        };
        table.row([
            (one_line(&format!("{} > {}", path.from, path.to)), Tint::Plain),
            (heard, tint),
            loss,
            (path.rtt_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.0} us")), Tint::Plain),
            (path.echo.map_or("-", watcher).to_owned(), Tint::Plain),
            (watcher(path.timer).to_owned(), Tint::Plain),
        ]);
    }
    out.push('\n');
    if left_out < view.paths.len() {
        table.write(out, colour);
    }
    if left_out > 0 {
        let _ = writeln!(out, "{} are heard and clean", count(left_out, "path"));
    }
}

fn heard(path: &PathView) -> (String, Tint) {
    match (path.heard, path.heard_ms) {
        (Some(true), _) => ("yes".to_owned(), Tint::Good),
        (Some(false), Some(ms)) => (format!("silent for {}", span(ms)), Tint::Bad),
        (Some(false), None) => ("never".to_owned(), Tint::Bad),
        (None, _) => ("?".to_owned(), Tint::Plain),
    }
}

fn watcher(watcher: Watcher) -> &'static str {
    match watcher {
        Watcher::Kernel => "kernel",
        Watcher::Agent => "agent",
    }
}

fn targets(view: &Snapshot, colour: bool, out: &mut String) {
    let mut by_target: BTreeMap<(&str, IpAddr), Vec<&TargetView>> = BTreeMap::new();
    for target in &view.targets {
        by_target.entry((&target.segment, target.target)).or_default().push(target);
    }
    if by_target.is_empty() {
        return;
    }
    let mut table = Table::new(&["PROBE TARGET", "SEGMENT", "ANSWERS AT", "SILENT AT"]);
    for ((segment, address), ports) in by_target {
        let at = |answers: Option<bool>| {
            let names = ports.iter().filter(|t| t.answers == answers).map(|t| one_line(&t.port));
            let names = names.collect::<Vec<_>>().join(" ");
            if names.is_empty() { "-".to_owned() } else { names }
        };
        let silent = at(Some(false));
        let tint = if silent == "-" { Tint::Plain } else { Tint::Warning };
        table.row([
            (address.to_string(), Tint::Plain),
            (one_line(segment), Tint::Plain),
            (at(Some(true)), Tint::Plain),
            (silent, tint),
        ]);
    }
    out.push('\n');
    table.write(out, colour);
}

/// A few words for each segment that has paths: how many are heard, the worst loss, the longest round trip.
pub(super) fn summary(view: &Snapshot) -> Vec<(String, Tint)> {
    let line = |segment: &baton_core::SegmentView| {
        let paths: Vec<&PathView> = view.paths.iter().filter(|p| p.segment == segment.name).collect();
        let heard = paths.iter().filter(|p| p.heard == Some(true)).count();
        let loss = paths.iter().filter_map(|p| p.loss).fold(0.0, f64::max);
        let rtt = paths.iter().filter_map(|p| p.rtt_us).fold(0.0, f64::max);
        let silent = paths.iter().filter(|p| p.heard == Some(false));
        let silent: Vec<String> = silent.map(|p| format!("{}>{}", p.from, p.to)).collect();
        let (text, tint) = finding(segment.finding);
        let word = text.split(':').next().unwrap_or(text);
        let mut line = format!("{}: {word}, {heard} of {} paths heard", segment.name, paths.len());
        if heard > 0 {
            let _ = write!(line, ", loss {:.1} %, {rtt:.0} us", loss * 100.0);
        }
        if !silent.is_empty() {
            let _ = write!(line, "; silent {}", silent.join(" "));
        }
        (one_line(&line), tint)
    };
    view.segments.iter().filter(|s| view.paths.iter().any(|p| p.segment == s.name)).map(line).collect()
}
