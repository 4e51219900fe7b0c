//! What is defined for a whole cluster: the file of `baton apply`, which the store holds as it was written.

use std::path::Path;
use std::time::Duration;

use baton_core::Config;
use baton_core::cluster::{Member, Members};
use baton_core::config::{Balance, Segment, Timing, VirtualServer};

use super::difference::{self, changed, named, said};
use super::fencing::{Fencing, StorageUnit, exactly};
use super::problem::Findings;
use super::{ConfigErrors, Problems, Resources, balance, check, sections};

/// By how many parts in a million two clocks' rates may differ: what NTP may slew two clocks apart.
const CLOCK_ERROR_PPM: u32 = 1000;

/// Definitions that have passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definitions {
    /// The members, in the order of the file.
    pub members: Vec<String>,
    /// The time limits.
    pub timing: Timing,
    /// Length of the lease.
    pub lease: Duration,
    /// What rounding and queueing may take.
    pub slack: Duration,
    /// How load is measured and evened out.
    pub balance: Balance,
    /// Client subnets.
    pub segments: Vec<Segment>,
    /// Virtual servers.
    pub servers: Vec<VirtualServer>,
    /// File systems and services of those that have any.
    pub resources: Vec<Resources>,
    /// How nodes are fenced.
    pub fencing: Fencing,
    /// What nodes must reach.
    pub units: Vec<StorageUnit>,
}

/// A node's own file names something that the definitions don't know.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionsError {
    /// A segment.
    #[error(
        "port {interface}: segment \"{segment}\" is not defined in the cluster; define it with `baton apply`, or correct the port"
    )]
    Segment {
        /// The port.
        interface: String,
        /// Its segment.
        segment: String,
    },
    /// The node itself.
    #[error(
        "this node, \"{node}\", is no member of the cluster; add it to `members` in [cluster] with `baton apply`, or correct `name` in [node]"
    )]
    Member {
        /// Its name.
        node: String,
    },
}

impl Definitions {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn load(path: &Path) -> Result<(Definitions, String, Problems), ConfigErrors> {
        let (text, file) = super::read(path)?;
        let (definitions, warnings) = Definitions::parse(&text, &file)?;
        Ok((definitions, text, warnings))
    }

    /// Checks `text`; `file` is only the name that problems are reported under.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn parse(text: &str, file: &str) -> Result<(Definitions, Problems), ConfigErrors> {
        let mut findings = Findings::default();
        let definitions = match toml_span::parse(text) {
            Ok(root) => {
                let raw = sections::read(&root, &mut findings);
                check::check_cluster(&raw, &mut findings)
            }
            Err(error) => {
                findings.syntax(&error, text);
                None
            }
        };
        let (errors, warnings) = findings.sorted(text, file);
        match definitions {
            Some(definitions) if errors.is_empty() => Ok((definitions, warnings)),
            _ => Err(ConfigErrors::Invalid(errors)),
        }
    }

    /// The configuration of a node, whose own file says nothing of what is cluster-wide.
    ///
    /// # Errors
    /// The node is no member, or a port is in a segment that is not defined.
    pub fn node_config(&self, node: &Config) -> Result<Config, DefinitionsError> {
        if !self.members.contains(&node.node) {
            return Err(DefinitionsError::Member { node: node.node.clone() });
        }
        for port in &node.ports {
            if !self.segments.iter().any(|s| s.name == port.segment) {
                let (interface, segment) = (port.interface.clone(), port.segment.clone());
                return Err(DefinitionsError::Segment { interface, segment });
            }
        }
        Ok(Config {
            node: node.node.clone(),
            ports: node.ports.clone(),
            timing: self.timing.clone(),
            segments: self.segments.clone(),
            servers: self.servers.clone(),
            balance: self.balance.clone(),
            capacity_percent: node.capacity_percent,
        })
    }

    /// What changes from `old` to this, a line each.
    pub fn difference(&self, old: Option<&Definitions>) -> Vec<String> {
        let mut lines = Vec::new();
        let members = |d: &Definitions| d.members.clone();
        let before = old.map(members).unwrap_or_default();
        named(&mut lines, "member", &before, &self.members, String::clone, |_, _| None);
        let times = |d: &Definitions| {
            let mut all = difference::times(&d.timing);
            all.insert(1, ("lease", said(d.lease)));
            all.insert(2, ("slack", said(d.slack)));
            all.push(("watchdog", said(d.fencing.watchdog)));
            all
        };
        if let Some(old) = old {
            changed(&mut lines, "timing", times(old), times(self));
            changed(&mut lines, "balance", balance::values(&old.balance), balance::values(&self.balance));
        }
        difference::segments(&mut lines, old.map_or(&[][..], |d| &d.segments), &self.segments);
        difference::servers(&mut lines, old.map_or(&[][..], |d| &d.servers), &self.servers);
        difference::resources(&mut lines, old.map_or(&[][..], |d| &d.resources), &self.resources);
        let units = old.map_or(&[][..], |d| &d.units);
        let differs = |a: &StorageUnit, b: &StorageUnit| (a != b).then(String::new);
        named(&mut lines, "storage unit", units, &self.units, |u| u.name.clone(), differs);
        let (before, after) = (old.map(fences).unwrap_or_default(), fences(self));
        // Passwords are part of it: never shown.
        let differs = |a: &(String, String), b: &(String, String)| (a != b).then(String::new);
        named(&mut lines, "fencing of", &before, &after, |(node, _)| node.clone(), differs);
        lines
    }

    /// The member list as the store is to hold it: the next version, if anything in it changes. Members keep their slots; new
    /// ones get the lowest that are free.
    pub fn member_list(&self, before: Option<&Members>) -> Members {
        let mut names = self.members.clone();
        names.sort_unstable();
        let kept = |name: &str| before.and_then(|b| b.get(name)).map(|m| m.slot);
        let taken: Vec<u8> = names.iter().filter_map(|n| kept(n)).collect();
        let mut free = (0..baton_common::MAX_MEMBERS as u8).filter(|s| !taken.contains(s));
        let member = |name: String| {
            let slot = kept(&name).or_else(|| free.next()).unwrap_or(u8::MAX);
            Member { name, slot }
        };
        let mut members = Members {
            version: before.map_or(0, |b| b.version),
            probe_interval: self.timing.probe_interval,
            lease: self.lease,
            slack: self.slack,
            rho_ppm: CLOCK_ERROR_PPM,
            nodes: names.into_iter().map(member).collect(),
            before: before.map(|b| b.before.clone()).unwrap_or_default(),
        };
        if before != Some(&members) {
            members.version += 1;
            members.before =
                before.filter(|b| is_close(b, &members)).map(|b| b.nodes.clone()).unwrap_or_default();
        }
        members
    }
}

/// How each node is fenced, with its name; for comparison, never to be shown.
fn fences(definitions: &Definitions) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for agent in &definitions.fencing.agents {
        match all.iter_mut().find(|(node, _)| *node == agent.node) {
            Some((_, text)) => *text += &exactly(agent),
            None => all.push((agent.node.clone(), exactly(agent))),
        }
    }
    all
}

/// Have two versions of the member list the same times, and differ by one member at most?
fn is_close(a: &Members, b: &Members) -> bool {
    let times = |m: &Members| (m.probe_interval, m.lease, m.slack, m.rho_ppm);
    let lacks = |a: &Members, b: &Members| a.nodes.iter().filter(|m| !b.nodes.contains(m)).count();
    times(a) == times(b) && lacks(a, b) + lacks(b, a) <= 1
}

#[cfg(test)]
#[path = "definitions_tests.rs"]
mod tests;
