//! `baton apply`, `move`, `drain`, `resume`, `confirm-off`: what an administrator asks of the whole cluster, through its store.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use baton_core::Config;
use baton_core::cluster::{Entry, Record, StoreChange};

use super::CliError;
use crate::config::{Definitions, Loaded, StoreKind};
use crate::secrets;
use crate::storage::mmp;
use crate::store::etcd::{Etcd, EtcdError};

/// How long to wait until it is done.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often a record is tried to be written while somebody else writes it.
const ATTEMPTS: u32 = 16;

fn other(error: impl std::fmt::Display) -> CliError {
    CliError::Other(error.to_string())
}

fn etcd(loaded: &Loaded) -> Result<Etcd, CliError> {
    match &loaded.agent.store.kind {
        StoreKind::Etcd(config) => Ok(Etcd::new(config).map_err(other)?.patient()),
        StoreKind::File => Err(CliError::Other(
            "this node is no member of a cluster: its configuration has the store \"file\"".to_owned(),
        )),
    }
}

fn run<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(other)?;
    runtime.block_on(work)
}

/// Validates, shows the difference, writes a new generation and switches to it.
pub(super) fn apply(loaded: &Loaded, file: &Path, dry_run: bool) -> Result<(), CliError> {
    let (definitions, text, warnings) = Definitions::load(file)?;
    for line in warnings.to_string().lines() {
        eprintln!("warning: {line}");
    }
    for line in mmp::announce(&definitions.resources) {
        eprintln!("note: {line}");
    }
    // Of this node; each of the others logs its own when it takes the definitions up.
    secrets::refuse(&secrets::of_fencing(&definitions.fencing))
        .map_err(|e| CliError::BadFile(e.to_string()))?;
    let etcd = etcd(loaded)?;
    run(async {
        let mut out = std::io::stdout();
        let before = etcd.definitions().await.map_err(other)?;
        let members = etcd.members().await.map_err(other)?;
        let generation = before.as_ref().map_or(0, |(generation, _)| *generation);
        let old = before.as_ref().and_then(|(_, text)| Definitions::parse(text, "definitions").ok());
        let next = definitions.member_list(members.as_ref().map(|(m, _)| m));
        let lines = definitions.difference(old.as_ref().map(|(d, _)| d));
        for line in &lines {
            writeln!(out, "{line}")?;
        }
        let new_list = members.as_ref().is_none_or(|(m, _)| *m != next);
        if lines.is_empty() && !new_list && before.as_ref().is_some_and(|(_, t)| *t == text) {
            writeln!(out, "nothing to do: generation {generation} says the same")?;
            return Ok(());
        }
        if let Some((members, _)) = members.as_ref().filter(|_| new_list) {
            one_step(members, &next)?;
            final_yet(&etcd, members.version).await?;
            empty_before_it_leaves(&etcd, members, &next).await?;
        }
        if dry_run {
            writeln!(out, "nothing was changed (--dry-run)")?;
            return Ok(());
        }
        let lost = || {
            CliError::Other(
                "somebody else has changed the definitions just now: look, and apply again".into(),
            )
        };
        if !etcd.set_definitions(generation, &text).await.map_err(other)? {
            return Err(lost());
        }
        // One that left, drained, and comes back is to be used.
        let is_old = |name: &str| members.as_ref().is_some_and(|(m, _)| m.get(name).is_some());
        for joins in next.nodes.iter().filter(|m| !is_old(&m.name)) {
            etcd.set_drain(&joins.name, false).await.map_err(other)?;
        }
        let revision = members.map_or(0, |(_, revision)| revision);
        if new_list && !etcd.set_members(revision, &next).await.map_err(other)? {
            return Err(lost());
        }
        writeln!(out, "generation {} is in force", generation + 1)?;
        Ok(())
    })
}

/// A member list may change by one member at a time (lease.md, R10).
fn one_step(
    before: &baton_core::cluster::Members,
    next: &baton_core::cluster::Members,
) -> Result<(), CliError> {
    let names = |m: &baton_core::cluster::Members| m.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    let (old, new) = (names(before), names(next));
    let changes =
        old.iter().filter(|n| !new.contains(n)).count() + new.iter().filter(|n| !old.contains(n)).count();
    if changes > 1 {
        return Err(CliError::Other(format!(
            "{changes} members would change at once: add or remove one, apply, and go on with the next"
        )));
    }
    Ok(())
}

/// A change of the member list is not final while a record names an older version.
async fn final_yet(etcd: &Etcd, version: u32) -> Result<(), CliError> {
    let late: Vec<String> = records(etcd)
        .await
        .map_err(other)?
        .into_iter()
        .filter(|(_, r)| r.members != version || r.via.iter().any(|v| v.members != version))
        .map(|(server, _)| server)
        .collect();
    if late.is_empty() {
        return Ok(());
    }
    Err(CliError::Other(format!(
        "the last change of the member list is not final yet for {}: their owners must write it first; try again",
        late.join(", ")
    )))
}

/// A member that leaves must own nothing, and take nothing meanwhile: nobody could take it over from a node that is no
/// member. The administrator drains it first.
async fn empty_before_it_leaves(
    etcd: &Etcd,
    before: &baton_core::cluster::Members,
    next: &baton_core::cluster::Members,
) -> Result<(), CliError> {
    let (changes, _) = etcd.load().await.map_err(other)?;
    for leaving in before.nodes.iter().filter(|m| next.get(&m.name).is_none()).map(|m| m.name.as_str()) {
        let drained = changes.iter().any(|c| matches!(&c.entry, Entry::Drain(node, true) if node == leaving));
        let owned = changes.iter().filter_map(|c| match &c.entry {
            Entry::Record(server, Some(r)) if !server.starts_with('@') => {
                let owns = r.node == leaving && r.released.is_none();
                let routes = r.via.iter().any(|v| v.node == leaving);
                (owns || routes).then_some(server.as_str())
            }
            _ => None,
        });
        let owned: Vec<&str> = owned.collect();
        if !drained || !owned.is_empty() {
            let has = match owned.is_empty() {
                true => String::new(),
                false => format!(" (it has {})", owned.join(", ")),
            };
            return Err(CliError::Other(format!(
                "{leaving} must be empty before it leaves{has}: `baton drain {leaving}`, and apply again"
            )));
        }
    }
    Ok(())
}

async fn records(etcd: &Etcd) -> Result<BTreeMap<String, Record>, EtcdError> {
    let (changes, _) = etcd.load().await?;
    Ok(changes
        .into_iter()
        .filter_map(|c| match c.entry {
            // The master's record is no virtual server's.
            Entry::Record(server, Some(record)) if !server.starts_with('@') => Some((server, record)),
            _ => None,
        })
        .collect())
}

/// Waits until `done` says so of the owner records.
async fn wait_until(
    etcd: &Etcd,
    mut done: impl FnMut(&BTreeMap<String, Record>) -> bool,
) -> Result<bool, CliError> {
    let start = tokio::time::Instant::now();
    loop {
        if let Ok(records) = records(etcd).await
            && done(&records)
        {
            return Ok(true);
        }
        if start.elapsed() >= PATIENCE {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn definitions(etcd: &Etcd) -> Result<Definitions, CliError> {
    let none = || CliError::Other("the cluster has no definitions yet: run `baton apply FILE`".to_owned());
    let (_, text) = etcd.definitions().await.map_err(other)?.ok_or_else(none)?;
    Ok(Definitions::parse(&text, "definitions")?.0)
}

fn known<'a>(what: &str, name: &str, mut names: impl Iterator<Item = &'a str>) -> Result<(), CliError> {
    if names.any(|n| n == name) {
        return Ok(());
    }
    Err(CliError::Other(format!("there is no {what} \"{name}\"; `baton status` shows them")))
}

/// Do the definitions permit it there?
fn may_be(
    definitions: &Definitions,
    records: &BTreeMap<String, Record>,
    server: &str,
    node: &str,
) -> Result<(), CliError> {
    let Some(definition) = definitions.servers.iter().find(|s| s.name == server) else { return Ok(()) };
    if !definition.only_on.is_empty() && !definition.only_on.iter().any(|n| n == node) {
        return Err(CliError::Other(format!(
            "{server} may not be on {node}: only_on names {}; name one of those, or change the definitions",
            definition.only_on.join(", ")
        )));
    }
    let here = |name: &str| records.get(name).is_some_and(|r| r.node == node && r.released.is_none());
    let others = definitions.servers.iter().filter(|o| o.name != server && here(&o.name));
    match others.into_iter().find(|other| Config::are_apart(definition, other)) {
        None => Ok(()),
        Some(other) => Err(CliError::Other(format!(
            "{server} may not be with {}, which is on {node} (never_with); move that first",
            other.name
        ))),
    }
}

/// Asks the owner to give the virtual server to that node, and waits until it has it.
pub(super) fn change_owner(
    loaded: &Loaded,
    server: &str,
    to: &str,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let etcd = etcd(loaded)?;
    run(async {
        let definitions = definitions(&etcd).await?;
        known("virtual server", server, definitions.servers.iter().map(|s| s.name.as_str()))?;
        known("node", to, definitions.members.iter().map(String::as_str))?;
        may_be(&definitions, &records(&etcd).await.map_err(other)?, server, to)?;
        etcd.ask_move(server, Some(to)).await.map_err(other)?;
        let is_there = |r: &Record| r.node == to && r.released.is_none();
        if wait_until(&etcd, |all| all.get(server).is_some_and(is_there)).await? {
            etcd.ask_move(server, None).await.map_err(other)?;
            writeln!(out, "{server} is on {to}")?;
            return Ok(());
        }
        etcd.ask_move(server, None).await.map_err(other)?;
        Err(CliError::Other(format!(
            "{server} did not go to {to} within {} s; nothing more is tried; `baton status` shows whether {to} is up and \
             has a good port in each of its segments",
            PATIENCE.as_secs()
        )))
    })
}

/// Asks a node to give up everything, and waits until it has.
pub(super) fn drain(loaded: &Loaded, node: &str, out: &mut dyn Write) -> Result<(), CliError> {
    let etcd = etcd(loaded)?;
    run(async {
        let definitions = definitions(&etcd).await?;
        known("node", node, definitions.members.iter().map(String::as_str))?;
        etcd.set_drain(node, true).await.map_err(other)?;
        let pinned = |server: &str| definitions.servers.iter().any(|s| s.name == server && !s.migrate);
        let mut left = Vec::new();
        let done = wait_until(&etcd, |all| {
            let here = all.iter().filter(|(_, r)| r.node == *node && r.released.is_none());
            left = here.map(|(server, _)| server.clone()).collect();
            left.iter().all(|s| pinned(s))
        });
        if !done.await? {
            return Err(CliError::Other(format!(
                "{node} still has {}: no other node can take them; it stays drained until `baton resume {node}`",
                left.join(", ")
            )));
        }
        match left.is_empty() {
            true => writeln!(out, "{node} is drained")?,
            false => writeln!(out, "{node} is drained but for what is pinned there: {}", left.join(", "))?,
        }
        Ok(())
    })
}

/// Ends a drain.
pub(super) fn resume(loaded: &Loaded, node: &str, out: &mut dyn Write) -> Result<(), CliError> {
    let etcd = etcd(loaded)?;
    run(async {
        known("node", node, definitions(&etcd).await?.members.iter().map(String::as_str))?;
        etcd.set_drain(node, false).await.map_err(other)?;
        writeln!(out, "{node} may be used again")?;
        Ok(())
    })
}

/// An administrator answers for it that a node is off, where it could not be fenced: takes it out of the lists of those who may have
/// something mounted.
pub(super) fn confirm_off(
    loaded: &Loaded,
    node: &str,
    it_is_off: bool,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let etcd = etcd(loaded)?;
    run(async {
        known("node", node, definitions(&etcd).await?.members.iter().map(String::as_str))?;
        let waiting = |c: StoreChange| match c.entry {
            Entry::Record(server, Some(record)) if record.unfenced.iter().any(|(n, _)| n == node) => {
                Some((server, record, c.revision))
            }
            _ => None,
        };
        let mut done = Vec::new();
        // A record may be written meanwhile: then it is looked at again.
        for _ in 0..ATTEMPTS {
            let (changes, _) = etcd.load().await.map_err(other)?;
            let listed: Vec<_> = changes.into_iter().filter_map(waiting).collect();
            if listed.is_empty() {
                break;
            }
            let names: Vec<&str> = listed.iter().map(|(server, ..)| server.as_str()).collect();
            if !it_is_off {
                return Err(CliError::Other(format!(
                    "{node} may have the file systems of {} mounted; if it runs and writes, starting them elsewhere destroys them: \
                     see that it is off, and say it with --it-is-off",
                    names.join(", ")
                )));
            }
            for (server, record, revision) in listed {
                let mut unfenced = record.unfenced.clone();
                unfenced.retain(|(n, _)| n != node);
                let record = Record { unfenced, ..record };
                if etcd.set_record(&server, revision, &record).await.map_err(other)? {
                    done.push(server);
                }
            }
        }
        match done.is_empty() {
            true => writeln!(out, "nothing waits for {node} to be fenced")?,
            false => writeln!(out, "{node} counts as off for {}", done.join(", "))?,
        }
        Ok(())
    })
}
