//! `baton events`.

use std::io::{Write as _, stdout};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use baton_core::{Event, EventKind, Evidence, FailoverKind, Finding, Reason, Rebinding};

use super::CliError;
use super::text::{count, one_line};
use crate::config::{self, Places};
use crate::control::{ClientError, EventsRequest, Request, ask};
use crate::journal::{self, Filter, Record};

/// Events shown before following.
const BEFORE_FOLLOWING: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Go on with every new event
    #[arg(long)]
    follow: bool,
    /// Only from this time on: 10m (ago), 2026-01-31, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "T", value_parser = parse_since)]
    since: Option<SystemTime>,
    /// Only what concerns this virtual server
    #[arg(long, value_name = "VS")]
    server: Option<String>,
    /// As JSON, one line each
    #[arg(long)]
    json: bool,
}

fn parse_since(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now()
            .checked_sub(ago)
            .ok_or_else(|| "that long ago there was no clock".to_owned());
    }
    let full = if text.len() == 10 { format!("{text} 00:00:00") } else { text.to_owned() };
    humantime::parse_rfc3339_weak(&full)
        .map_err(|_| "write a duration as 10m, or a time in UTC as 2026-01-31T12:00:00Z".to_owned())
}

/// Asks the agent; without one, reads the journal that the last one left.
pub(super) fn command(places: &Places, config: &Path, options: &Options) -> Result<(), CliError> {
    let request = Request::Events(EventsRequest {
        since: options.since.map(|t| humantime::format_rfc3339_micros(t).to_string()),
        follow: options.follow,
        server: options.server.clone(),
        limit: (options.follow && options.since.is_none()).then_some(BEFORE_FOLLOWING),
    });
    let answers = match ask(&places.socket, &request) {
        Ok(answers) => answers,
        Err(ClientError::NotRunning { .. }) if !options.follow => {
            return left_behind(places, config, options);
        }
        Err(e) => return Err(e.into()),
    };
    answers.limit((!options.follow).then_some(Duration::from_secs(30)))?;
    for line in answers {
        let line = line?;
        if options.json {
            writeln!(stdout(), "{line}")?;
        } else {
            writeln!(stdout(), "{}", describe(&serde_json::from_str(&line)?))?;
        }
    }
    if options.follow {
        return Err(CliError::Other("the agent has gone; see `journalctl -u baton`".to_owned()));
    }
    Ok(())
}

fn left_behind(places: &Places, file: &Path, options: &Options) -> Result<(), CliError> {
    eprintln!("baton: the agent isn't running; this is the journal it left in {}", places.state.display());
    let server = match &options.server {
        Some(name) => {
            let loaded = config::load(file)?;
            let server = loaded.core.servers.into_iter().find(|s| s.name == *name).ok_or_else(|| {
                CliError::Other(format!("there is no virtual server \"{name}\" in {}", file.display()))
            })?;
            Some((server.name, server.addresses.iter().map(|a| a.addr()).collect()))
        }
        None => None,
    };
    let filter = Filter { since: options.since, server, ..Filter::default() };
    let records = journal::read(&places.state, usize::MAX, |r| filter.passes(r));
    for record in records.map_err(|e| CliError::Other(e.to_string()))? {
        if options.json {
            writeln!(stdout(), "{}", serde_json::to_string(&record)?)?;
        } else {
            writeln!(stdout(), "{}", describe(&record))?;
        }
    }
    Ok(())
}

/// One line for people: when, which failover, what and why.
pub(super) fn describe(record: &Record) -> String {
    let failover = record.event.failover.map_or_else(String::new, |n| format!("[{n}] "));
    let time = humantime::format_rfc3339_micros(record.time).to_string().replace('T', " ");
    format!("{time}  {failover}{}", one_line(&sentence(&record.event)))
}

/// What happened, without the time.
pub(crate) fn sentence(event: &Event) -> String {
    match &event.kind {
        EventKind::Started { incarnation, adopted, removed } => {
            format!(
                "agent started: incarnation {incarnation}, {} adopted, {removed} removed",
                count(*adopted, "address")
            )
        }
        EventKind::InterfaceAbsent { interface } => {
            format!("port {interface} does not exist; waiting for it")
        }
        EventKind::Port { interface, segment, from, to, reason, evidence } => {
            let reason = reason.map_or_else(String::new, |r| format!(": {}", verdict(r)));
            let evidence = evidence.as_deref().map_or_else(String::new, |e| format!(" [{}]", shown(e)));
            format!("port {interface} ({segment}) {} -> {}{reason}{evidence}", from.word(), to.word())
        }
        EventKind::Segment { segment, from, to, evidence } => {
            let words = |f: Finding| f.word().replace('_', " ");
            format!("segment {segment} {} -> {} [{}]", words(*from), words(*to), shown(evidence))
        }
        EventKind::TargetSilent { segment, target } => {
            format!("target {target} answers nowhere in segment {segment}, whose ports hear one another")
        }
        EventKind::TargetAnswers { segment, target } => {
            format!("target {target} answers in segment {segment} again")
        }
        EventKind::Failover { kind, reason, moves } => {
            format!("{}, {}: {}", failover(*kind), plain(*reason), rebindings(moves))
        }
        EventKind::FailoverDone { kind, addresses, stages, .. } => {
            let stages: Vec<String> =
                stages.iter().map(|(s, after)| format!("{} {:.0} us", s.word(), after * 1e6)).collect();
            format!("{} done, {}: {}", failover(*kind), count(*addresses, "address"), stages.join(", "))
        }
        EventKind::Stranded { segment } => {
            format!("segment {segment} has no usable port left; its addresses wait for one")
        }
        EventKind::AddressDeleted { address, interface } => {
            format!("{address} was removed from {interface} by somebody else; it has been put back")
        }
        EventKind::SteeringDeleted { segment } => {
            format!(
                "rules or routes of segment {segment} were removed by somebody else; they have been put back"
            )
        }
        EventKind::AddressConflict { address, interface } => {
            format!("{address} is configured on {interface} too, not by Baton; remove it there")
        }
        EventKind::AddressConflictOver { address, interface } => {
            format!("{address} is gone from {interface}")
        }
        EventKind::ForeignClaim { address, interface, mac } => {
            format!("host {mac} claims {address} on {interface}; it has been announced again")
        }
        EventKind::Attached { interface, mode } => {
            let mode = match mode {
                baton_core::Attachment::Native => "XDP in the driver",
                baton_core::Attachment::Generic => "generic XDP, the driver refuses it",
                baton_core::Attachment::TcOnly => "TC only, XDP is refused",
            };
            format!("kernel programs sit on {interface}: {mode}")
        }
        EventKind::Serving { server, epoch } => format!("serving {server}, epoch {epoch}"),
        EventKind::Verdict { node, incarnation, by } => {
            format!("{by} calls {node} dead, up to incarnation {incarnation}")
        }
        EventKind::NodeDead { node, incarnation } => {
            format!("{node} is dead: a majority says so, up to incarnation {incarnation}")
        }
        EventKind::Taken { server, kind, reason, from, epoch, times: _ } => {
            let from = from.as_ref().map_or(String::new(), |node| format!(" from {node}"));
            format!("{} of {server}{from}, {}: epoch {epoch}", failover(*kind), plain(*reason))
        }
        EventKind::Leaving { server, to, reason } => {
            format!("giving {server} up for {to}, {}", plain(*reason))
        }
        EventKind::Balance { server, from, to, why, highest, highest_after, moves } => {
            let load = |load: f64| format!("{:.1} %", load * 100.0);
            let what = if *moves { "moving" } else { "advice: move" };
            format!(
                "balance: {what} {server} from {from} to {to} ({why}): highest load {} > {}",
                load(*highest),
                load(*highest_after)
            )
        }
        EventKind::Deposed { server } => format!("{server} was taken by another node; no longer served here"),
        EventKind::ResourcesStarted { server, seconds } => {
            format!("file systems and services of {server} run, after {seconds:.3} s")
        }
        EventKind::ResourcesStopped { server, seconds } => {
            format!("file systems and services of {server} are stopped, after {seconds:.3} s")
        }
        EventKind::ConnectionsReset { server, connections, kind: _, after } => {
            let after = after.map_or_else(String::new, |after| format!(", {after:.3} s after the cause"));
            format!("{} of {server} reset{after}", count(*connections, "connection"))
        }
        EventKind::ResourcesFailed { server, what } => format!("FAILED: {server}: {what}"),
        EventKind::Fenced { server, node, seconds } => {
            format!("{node} is fenced for {server}, after {seconds:.3} s")
        }
        EventKind::FenceFailed { server, node, what } => {
            format!(
                "FAILED: {server} is not started, for {node} could not be fenced: {what}; trying again (if you have seen that {node} is \
                 off: `baton confirm-off {node} --it-is-off`)"
            )
        }
        EventKind::Storage { unit, state, what } => {
            let what = what.as_ref().map_or(String::new(), |what| format!(": {what}"));
            format!("storage unit {unit} is {state}{what}")
        }
        EventKind::StorageLostEverywhere { server, unit } => {
            format!("no node that may have {server} reaches storage unit {unit}: it stays where it is")
        }
        EventKind::Rerouting { server, segment, via, over } => {
            format!(
                "no usable port left in {segment} for {server}: {via} is asked to answer there and to route over {over}"
            )
        }
        EventKind::RerouteOver { server, segment } => format!("{server} answers in {segment} itself again"),
        EventKind::Routing { server, segment, owner } => {
            format!("answering in {segment} for {server} and routing to {owner}")
        }
        EventKind::RoutingOver { server, segment } => {
            format!("no longer answering in {segment} for {server}")
        }
        EventKind::LeaseBegins => "a majority grants this node its lease: what it owns is served".to_owned(),
        EventKind::LeaseOver => {
            "no majority grants this node its lease: nothing is served until one does".to_owned()
        }
        EventKind::Master { epoch } => format!("this node is the master, epoch {epoch}"),
        EventKind::Incarnation { from, to } => format!("goes on as incarnation {to}, was {from}"),
        EventKind::StoreLost => {
            "the store does not answer: what is served stays served, nothing new is taken; check etcd"
                .to_owned()
        }
        EventKind::StoreBack => "the store answers again".to_owned(),
        EventKind::Draining { node } => format!("{node} is being drained"),
        EventKind::Resumed { node } => format!("{node} is no longer drained"),
        EventKind::Reloaded { changes } => match changes.as_slice() {
            [] => "the configuration has been read again; nothing is different".to_owned(),
            changes => format!("another configuration is in force: {}", changes.join("; ")),
        },
        EventKind::ReloadRefused { error } => {
            format!("FAILED: the configuration was refused, everything is as it was: {error}")
        }
        EventKind::Resynced => "notifications were lost; links and addresses have been read again".to_owned(),
        EventKind::EffectFailed { effect, error } => format!("FAILED: {effect}: {error}"),
    }
}

/// What a verdict was drawn from.
fn shown(evidence: &Evidence) -> String {
    let parts = [
        ("silent", &evidence.silent),
        ("heard", &evidence.heard),
        ("answers", &evidence.answered),
        ("no answer", &evidence.unanswered),
        ("clients heard at", &evidence.unicast),
        ("loss", &evidence.loss),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(what, list)| format!("{what}: {}", list.join(", ")))
        .collect();
    if parts.is_empty() { "no evidence".to_owned() } else { parts.join("; ") }
}

/// What is wrong with a port, behind the word of its state.
pub(super) fn verdict(reason: Reason) -> String {
    match reason {
        Reason::Silent => "no traffic".to_owned(),
        Reason::ReceiveSilent => "no receive".to_owned(),
        Reason::TransmitSilent => "no transmit".to_owned(),
        Reason::Loss => "loses frames".to_owned(),
        Reason::Errors => "counts errors".to_owned(),
        Reason::CarrierLost
        | Reason::AdminDown
        | Reason::InterfaceGone
        | Reason::AttachFailed
        | Reason::PortReturned
        | Reason::PortFailback
        | Reason::NodeDead
        | Reason::NoGoodPort
        | Reason::Drain
        | Reason::Administrator
        | Reason::Failback
        | Reason::Balance
        | Reason::Constraint
        | Reason::ServiceFailed
        | Reason::StorageLost
        | Reason::First => plain(reason),
    }
}

fn failover(kind: FailoverKind) -> &'static str {
    match kind {
        FailoverKind::Port => "port failover",
        FailoverKind::Takeover => "takeover",
        FailoverKind::Move => "move",
    }
}

fn plain(reason: Reason) -> String {
    reason.word().replace('_', " ")
}

/// Up to three addresses by name, the rest by number.
fn rebindings(moves: &[Rebinding]) -> String {
    let arrow = |from: &Option<String>, to: &str, what: IpAddr| match from {
        Some(from) => format!("{what} {from} -> {to}"),
        None => format!("{what} -> {to}"),
    };
    let mut parts: Vec<String> = moves.iter().take(3).map(|m| arrow(&m.from, &m.to, m.address)).collect();
    if moves.len() > 3 {
        parts.push(format!("and {} more", moves.len() - 3));
    }
    parts.join(", ")
}
