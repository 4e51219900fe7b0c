//! `baton status`.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stdout};
use std::path::Path;
use std::time::Duration;

use baton_core::{Attachment, PortView};

use super::CliError;
use super::events::verdict;
use super::paths;
use super::text::{Table, Tint, count, one_line, percent, rate, span, tinted};
use crate::control::{Request, StatusRequest, ask};
use crate::telemetry::Status;

/// How long an agent may take to answer; a watched one says something every second.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn command(socket: &Path, json: bool, watch: bool) -> Result<(), CliError> {
    let answers = ask(socket, &Request::Status(StatusRequest { watch }))?;
    answers.limit(Some(PATIENCE))?;
    let terminal = stdout().is_terminal();
    let mut last = None;
    for line in answers {
        let line = line?;
        if json {
            writeln!(stdout(), "{line}")?;
            continue;
        }
        let text = render(&serde_json::from_str(&line)?, terminal);
        if watch && last.as_ref() == Some(&text) {
            continue;
        }
        // ECMA-48: cursor home, erase to the end.
        let (before, after) = match (watch, terminal) {
            (true, true) => ("\x1b[H\x1b[J", ""),
            (true, false) => ("", "\n"),
            (false, _) => ("", ""),
        };
        write!(stdout(), "{before}{text}{after}")?;
        stdout().flush()?;
        last = Some(text);
    }
    match (watch, last) {
        (true, _) => Err(CliError::Other("the agent has gone; see `journalctl -u baton`".to_owned())),
        (false, _) => Ok(()),
    }
}

/// The whole of it for people, at most about 80 columns wide.
pub(super) fn render(status: &Status, colour: bool) -> String {
    let view = &status.snapshot;
    let mut out = String::new();
    if status.stale() {
        let age = span(status.age_ms);
        let text =
            format!("STALE: the agent's fast thread has not been heard for {age}; what follows may be wrong");
        let _ = writeln!(out, "{}", tinted(&text, Tint::Bad, colour));
    }
    let lease = view.lease_ms.map_or_else(|| "endless".to_owned(), span);
    let load = view.nodes.iter().find(|n| n.name == view.node).map_or(0.0, |n| n.load);
    let _ = write!(
        out,
        "{}  incarnation {}  lease {lease}  load {}  failovers {}",
        tinted(&format!("node {}", view.node), Tint::Heading, colour),
        view.incarnation,
        percent(load),
        view.failovers
    );
    if !view.quorum {
        let _ = write!(out, "  {}", tinted("NO QUORUM: nothing is served here", Tint::Bad, colour));
    }
    if !view.store {
        let _ = write!(out, "  {}", tinted("STORE LOST: nothing new is taken", Tint::Bad, colour));
    }
    if !view.advice.is_empty() {
        let moves = count(view.advice.len(), "move");
        let text = format!("{moves} would even loads out: see `baton plan`");
        let _ = write!(out, "\n{}", tinted(&text, Tint::Warning, colour));
    }
    out.push_str("\n\n");
    nodes(status, colour, &mut out);
    ports(status, colour, &mut out);
    paths::write(view, colour, &mut out);
    out.push('\n');
    storage(status, colour, &mut out);
    servers(status, colour, &mut out);
    if !view.conflicts.is_empty() {
        let _ = writeln!(out, "\n{}", tinted("CONFLICTS", Tint::Bad, colour));
        for c in &view.conflicts {
            let who = match &c.mac {
                Some(mac) => format!("claimed by host {} on {}", one_line(mac), one_line(&c.interface)),
                None => format!("configured on {} of this node too, not by Baton", one_line(&c.interface)),
            };
            let _ = writeln!(out, "  {} is {who}", c.address);
        }
    }
    out
}

/// The nodes, where there are several.
fn nodes(status: &Status, colour: bool, out: &mut String) {
    let view = &status.snapshot;
    if view.nodes.len() < 2 {
        return;
    }
    let mut table = Table::new(&["NODE", "STATE", "", ">SERVERS", ">LOAD"]);
    for node in &view.nodes {
        let tint = if node.state == "up" { Tint::Plain } else { Tint::Bad };
        let master = view.master.as_ref() == Some(&node.name);
        let servers = view.virtual_servers.iter().filter(|s| s.owner.as_ref() == Some(&node.name)).count();
        table.row([
            (one_line(&node.name), Tint::Plain),
            (one_line(&node.state), tint),
            (if master { "master".to_owned() } else { String::new() }, Tint::Plain),
            (servers.to_string(), Tint::Plain),
            (percent(node.load), Tint::Plain),
        ]);
    }
    table.write(out, colour);
    out.push('\n');
}

fn ports(status: &Status, colour: bool, out: &mut String) {
    let heading = ["PORT", "SEGMENT", "STATE", "CARRIER", "KERNEL", ">ADDRESSES", ">RATE"];
    let mut table = Table::new(&heading);
    for p in &status.snapshot.ports {
        table.row([
            (one_line(&p.interface), Tint::Plain),
            (one_line(&p.segment), Tint::Plain),
            (state(p), Tint::of_port(p.state)),
            (carrier(p).to_owned(), Tint::Plain),
            (attachment(p).to_owned(), Tint::Plain),
            (p.addresses.to_string(), Tint::Plain),
            (rate(p.rate), Tint::Plain),
        ]);
    }
    table.write(out, colour);
}

/// The storage units, where there are any.
fn storage(status: &Status, colour: bool, out: &mut String) {
    let units = &status.snapshot.storage;
    if units.is_empty() {
        return;
    }
    let mut table = Table::new(&["STORAGE UNIT", "STATE"]);
    for unit in units {
        let what = unit.what.as_ref().map_or(String::new(), |what| format!(": {}", one_line(what)));
        let tint = if unit.state == "good" { Tint::Good } else { Tint::Bad };
        table.row([(one_line(&unit.unit), Tint::Plain), (one_line(&unit.state) + &what, tint)]);
    }
    table.write(out, colour);
    out.push('\n');
}

fn servers(status: &Status, colour: bool, out: &mut String) {
    let heading = ["VIRTUAL SERVER", "OWNER", "STATE", "PORT", ">LOAD", ">RATE"];
    let mut table = Table::new(&heading);
    let none = || "-".to_owned();
    for s in &status.snapshot.virtual_servers {
        let here = s.owner.as_ref().is_none_or(|owner| *owner == status.snapshot.node);
        // What others carry is counted there.
        let rate = |bytes| if here { rate(bytes) } else { String::new() };
        table.row([
            (one_line(&s.name), Tint::Plain),
            (s.owner.as_deref().map_or_else(none, one_line), Tint::Plain),
            (one_line(&s.state), Tint::of_server(&s.state)),
            (String::new(), Tint::Plain),
            (percent(s.load), Tint::Plain),
            (rate(s.rate), Tint::Plain),
        ]);
        for a in &s.addresses {
            let (port, tint) = match &a.port {
                Some(port) if let Some(via) = &a.via => {
                    (format!("{} via {}", one_line(port), one_line(via)), Tint::Warning)
                }
                Some(port) => (one_line(port), Tint::Plain),
                None if here => ("no port".to_owned(), Tint::Bad),
                None => (String::new(), Tint::Plain),
            };
            table.row([
                (format!("  {}", a.address), Tint::Plain),
                (String::new(), Tint::Plain),
                (String::new(), Tint::Plain),
                (port, tint),
                (String::new(), Tint::Plain),
                (rate(a.rate), Tint::Plain),
            ]);
        }
    }
    table.write(out, colour);
    for (server, why) in status.snapshot.virtual_servers.iter().filter_map(|s| Some((s, s.why.as_ref()?))) {
        let text = format!("{}: {}", one_line(&server.name), one_line(why));
        let _ = writeln!(out, "{}", tinted(&text, Tint::Bad, colour));
    }
}

/// A port's state, with what is left of a hold-down, or why it is down.
pub(super) fn state(p: &PortView) -> String {
    match (p.held_ms, p.reason) {
        (Some(ms), _) => format!("{} {}", p.state.word(), span(ms)),
        (None, Some(reason)) => format!("{}, {}", p.state.word(), verdict(reason)),
        (None, None) => p.state.word().to_owned(),
    }
}

pub(super) fn carrier(p: &PortView) -> &'static str {
    match (p.present, p.carrier) {
        (false, _) => "absent",
        (true, true) => "yes",
        (true, false) => "no",
    }
}

fn attachment(p: &PortView) -> &'static str {
    match p.attachment {
        None => "-",
        Some(Attachment::Native) => "xdp",
        Some(Attachment::Generic) => "generic",
        Some(Attachment::TcOnly) => "tc only",
    }
}
