//! Failback: a virtual server goes back to a node that it prefers when that node has been fit for long enough, and the
//! policy permits it now.
//!
//! Long enough is [`FAILBACK_AFTER`] at first. Every failure of the node makes it twice as long, up to [`FAILBACK_MOST`],
//! until the node has been fit for as long as that: a node that flaps does not drag its virtual servers to and fro. To be
//! drained is no failure. Fitness is kept for each segment of a node: one whose ports flap in a segment is not fit there,
//! however well it is otherwise; and for each storage unit. A virtual server whose file systems or services have failed on a node waits likewise, by itself,
//! from when that is forgotten (`resources`). An agent that starts anew has forgotten the failures of others.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::Machine;
use super::Cluster;
use crate::Time;
use crate::config::{Failback, VirtualServer};

/// A preferred node gets its virtual servers back when it has been fit for this long,
const FAILBACK_AFTER: Duration = Duration::from_secs(10);
/// or, after many failures, for this long at most.
const FAILBACK_MOST: Duration = Duration::from_secs(600);

/// How a node has been in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fitness {
    /// Since when it could be given something; `None`: it can't.
    since: Option<Time>,
    /// Failures that are remembered.
    failures: u32,
}

impl Fitness {
    /// When it has been fit for long enough.
    fn due(&self) -> Option<Time> {
        let doubled = 1u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(u32::MAX);
        Some(self.since? + FAILBACK_AFTER.saturating_mul(doubled).min(FAILBACK_MOST))
    }

    /// It is fit now, or not; `blameless`: then that is not its failure.
    fn follow(&mut self, now: Time, fit: bool, blameless: bool) {
        match (self.since, fit) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.since = None;
                if !blameless {
                    let long = now.since(since) >= FAILBACK_MOST;
                    self.failures = if long { 1 } else { self.failures.saturating_add(1) };
                }
            }
            (None, false) | (Some(_), true) => {}
        }
    }
}

impl Cluster {
    /// Has this node been fit for long enough in all these segments, and with all these storage units?
    fn is_long_fit(&self, node: &str, segments: &[&str], units: &[String], now: Time) -> bool {
        let long = |all: &BTreeMap<String, BTreeMap<String, Fitness>>, name: &str| {
            let fitness = all.get(node).and_then(|n| n.get(name));
            fitness.and_then(Fitness::due).is_some_and(|due| due <= now)
        };
        segments.iter().all(|s| long(&self.fitness, s)) && units.iter().all(|u| long(&self.unit_fitness, u))
    }

    /// Has the virtual server not failed on this node, or not for long enough?
    fn has_fared_well(&self, server: &str, node: &str, now: Time) -> bool {
        let fared = self.fared.get(server).and_then(|nodes| nodes.get(node));
        fared.is_none_or(|f| f.due().is_some_and(|due| due <= now))
    }

    /// Keeps since when no failure of a virtual server on a node is remembered any more. Returns when the next one has been over for
    /// long enough.
    fn follow_failures(&mut self, now: Time) -> Option<Time> {
        for (server, (record, _)) in self.records.iter().filter(|(_, (r, _))| !r.failed_on.is_empty()) {
            let nodes = self.fared.entry(server.clone()).or_default();
            record.failed_on.iter().for_each(|node| {
                nodes.entry(node.clone()).or_default();
            });
        }
        let (members, records) = (&self.members, &self.records);
        self.fared.retain(|server, nodes| {
            nodes.retain(|node, _| members.get(node).is_some());
            !nodes.is_empty() && records.contains_key(server)
        });
        for (server, nodes) in &mut self.fared {
            let failed_on = records.get(server).map(|(r, _)| r.failed_on.as_slice()).unwrap_or_default();
            nodes
                .iter_mut()
                .for_each(|(node, fitness)| fitness.follow(now, !failed_on.contains(node), false));
        }
        let due = self.fared.values().flat_map(BTreeMap::values).filter_map(Fitness::due);
        due.filter(|t| *t > now).min()
    }

    /// Does the policy let a virtual server go back now?
    fn permits(&self, failback: Failback) -> bool {
        match (failback, self.minute) {
            (Failback::Manual, _) | (Failback::Window(..), None) => false,
            (Failback::Immediate, _) => true,
            (Failback::Window(from, to), Some(minute)) if from <= to => (from..to).contains(&minute),
            (Failback::Window(from, to), Some(minute)) => minute >= from || minute < to,
        }
    }
}

impl Machine {
    /// The best node that a virtual server prefers to this one, and may go back to now.
    pub(super) fn failback(&self, definition: &VirtualServer, segments: &[&str]) -> Option<String> {
        let cluster = self.cluster.as_ref()?;
        let VirtualServer { name, failback, preferred_nodes: preferred, storage_units: units, .. } =
            definition;
        if !cluster.permits(*failback) {
            return None;
        }
        let mine = preferred.iter().position(|n| *n == cluster.me).unwrap_or(usize::MAX);
        let fit: Vec<&str> = cluster.fit(cluster.read).collect();
        let mut better = preferred.iter().take(mine);
        let is_fit = |n: &&String| {
            fit.contains(&n.as_str())
                && cluster.reaches(n, segments)
                && cluster.reaches_units(n, units)
                && !cluster.is_unfenced(name, n)
        };
        let long_fit = |n: &str| {
            cluster.is_long_fit(n, segments, units, self.now) && cluster.has_fared_well(name, n, self.now)
        };
        better.find(|n| is_fit(n) && long_fit(n)).cloned()
    }

    /// The time of day has come to this minute, local time.
    pub(in crate::machine) fn minute_of_day(&mut self, minute: u16) {
        if let Some(cluster) = &mut self.cluster {
            cluster.minute = Some(minute);
        }
    }

    /// Keeps since when each other node could be given something.
    pub(super) fn follow_fitness(&mut self) {
        let now = self.now;
        let segments = self.segments();
        let units = self.all_units();
        let Some(cluster) = &mut self.cluster else { return };
        cluster.next_turn = None;
        let fit: Vec<String> = cluster.fit(cluster.read).map(str::to_owned).collect();
        let mut all = std::mem::take(&mut cluster.fitness);
        let mut all_units = std::mem::take(&mut cluster.unit_fitness);
        all.retain(|node, _| cluster.members.get(node).is_some());
        all_units.retain(|node, _| cluster.members.get(node).is_some());
        let mut due: Option<Time> = cluster.follow_failures(now);
        for node in cluster.members.nodes.iter().map(|m| &m.name).filter(|n| **n != cluster.me) {
            let is_fit = fit.contains(node);
            let drained = cluster.draining.contains(node);
            for segment in &segments {
                let reached = is_fit && cluster.reaches(node, &[segment]);
                let fitness = all.entry(node.clone()).or_default().entry(segment.clone()).or_default();
                fitness.follow(now, reached, drained);
                due = due.into_iter().chain(fitness.due().filter(|t| *t > now)).min();
            }
            for unit in &units {
                let reached = is_fit && cluster.reaches_unit(node, unit);
                let fitness = all_units.entry(node.clone()).or_default().entry(unit.clone()).or_default();
                fitness.follow(now, reached, drained);
                due = due.into_iter().chain(fitness.due().filter(|t| *t > now)).min();
            }
        }
        (cluster.fitness, cluster.unit_fitness) = (all, all_units);
        cluster.next_turn = due;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn each_failure_makes_it_wait_twice_as_long_up_to_a_limit_and_a_long_good_time_is_forgiven() {
        let mut fitness = Fitness::default();
        let waits = |fitness: &mut Fitness, now: u64| {
            fitness.follow(at(now), true, false);
            fitness.due().unwrap().since(at(now)).as_secs()
        };
        assert_eq!(waits(&mut fitness, 100), 10);
        let mut seen = Vec::new();
        for round in 0..9 {
            fitness.follow(at(101 + round), false, false);
            seen.push(waits(&mut fitness, 101 + round));
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        fitness.follow(at(109 + 600), false, false);
        assert_eq!(waits(&mut fitness, 709), 10);
    }

    #[test]
    fn to_be_drained_is_no_failure_but_begins_the_wait_anew() {
        let mut fitness = Fitness::default();
        fitness.follow(at(1), true, false);
        for round in 0..5 {
            fitness.follow(at(10 + round), false, true);
            fitness.follow(at(10 + round), true, false);
        }
        assert_eq!(fitness.due(), Some(at(24)));
    }
}
