//! Verdicts: who is dead, up to which incarnation.

use super::super::Machine;
use super::Cluster;
use crate::cluster::Record;
use crate::{Effect, EventKind, IfIndex, PeerReading, PeerSample, Time};

impl Cluster {
    pub(super) fn verdict(&self, voter: u8, about: u8) -> u64 {
        self.verdicts.get(&(voter, about)).copied().unwrap_or(0)
    }

    /// Members that call this one dead, up to this incarnation at least.
    pub(super) fn accusers(&self, about: u8, incarnation: u64) -> impl Iterator<Item = u8> {
        let members = self.members.nodes.iter().map(|m| m.slot);
        let counts = move |voter: u8| voter != about || self.counts_oneself();
        members.filter(move |&voter| counts(voter) && self.verdict(voter, about) >= incarnation)
    }

    /// Never: what a node says of itself is no verdict (R11). The model shows why.
    fn counts_oneself(&self) -> bool {
        #[cfg(test)]
        return self.counts_oneself;
        #[cfg(not(test))]
        false
    }

    /// Does a majority call the owner in this record dead (R9)?
    pub(super) fn is_dead(&self, record: &Record) -> bool {
        let Some(owner) = self.members.judged().find(|m| m.name == record.node) else { return false };
        self.members.judges(record.members)
            && self.accusers(owner.slot, record.incarnation).count() >= self.members.majority()
    }

    /// The highest incarnation of a member that is known to have served, or may.
    pub(super) fn latest(&self, peer: &PeerSample) -> u64 {
        let name = self.members.judged().find(|m| m.slot == peer.slot).map(|m| m.name.as_str());
        let records = self.records.values().filter(|(r, _)| Some(r.node.as_str()) == name);
        records.map(|(r, _)| r.incarnation).chain([peer.incarnation]).max().unwrap_or(0)
    }

    /// When this member is to be called dead, if nothing more is heard of it, and up to which incarnation.
    fn due(&self, peer: &PeerSample, steady_since: Time) -> Option<(Time, u64)> {
        let incarnation = self.latest(peer);
        let oneself = peer.slot == self.slot && !self.counts_oneself();
        if incarnation == 0 || oneself || self.verdict(self.slot, peer.slot) >= incarnation {
            return None;
        }
        // Silence counts only against probes that were really sent.
        let from = peer.heard.unwrap_or_default().max(steady_since);
        Some(((from + self.members.silence()).max(self.mute_until), incarnation))
    }
}

impl Machine {
    /// When the first member is due to be called dead, by this reading.
    pub fn verdict_due(&self, reading: &PeerReading) -> Option<Time> {
        let cluster = self.cluster.as_ref()?;
        let due = reading.peers.iter().filter_map(|p| cluster.due(p, reading.steady_since));
        due.map(|(at, _)| at).min()
    }

    /// Would this reading change anything that is decided by it?
    pub fn is_peer_news(&self, now: Time, reading: &PeerReading) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        let known = |p: &PeerSample| cluster.reading.peers.iter().find(|k| k.slot == p.slot).copied();
        let alive = |p: &PeerSample, at: Time| cluster.is_heard(p, at);
        let hears = |ports: &[(IfIndex, Option<Time>)], at: Time| -> Vec<(IfIndex, bool)> {
            let silence = cluster.members.silence();
            ports.iter().map(|(p, t)| (*p, t.is_some_and(|t| at.since(t) < silence))).collect()
        };
        self.verdict_due(reading).is_some_and(|at| at <= now)
            || hears(&reading.ports, now) != hears(&cluster.reading.ports, cluster.read)
            || reading.lease.is_some_and(|end| now < end) != cluster.had_lease
            || reading.peers.iter().any(|p| {
                known(p).is_none_or(|k| {
                    (k.incarnation, k.refuses, alive(&k, cluster.read))
                        != (p.incarnation, p.refuses, alive(p, now))
                })
            })
    }

    /// Asks the kernel programs for the verdicts that are due.
    pub(super) fn give_verdicts(&mut self) {
        let Some(cluster) = &self.cluster else { return };
        let (now, reading) = (self.now, &cluster.reading);
        if cluster.read != now {
            return; // a reading that is older shows nothing of now
        }
        let due = reading.peers.iter().filter_map(|p| {
            let (at, incarnation) = cluster.due(p, reading.steady_since)?;
            (at <= now).then_some((p.slot, incarnation))
        });
        let due: Vec<(u8, u64)> = due.collect();
        for (slot, incarnation) in due {
            self.out.push(Effect::Condemn { slot, incarnation });
        }
    }

    /// A member, or this node, has called another one dead.
    pub(in crate::machine) fn verdict_given(&mut self, voter: u8, about: u8, incarnation: u64) {
        let Some(cluster) = &mut self.cluster else { return };
        let known = cluster.verdicts.entry((voter, about)).or_insert(0);
        if *known >= incarnation {
            return;
        }
        *known = incarnation;
        let majority = cluster.members.majority();
        let accusers = cluster.accusers(about, incarnation).count();
        let (node, by) = (cluster.name(about), cluster.name(voter));
        self.event(EventKind::Verdict { node: node.clone(), incarnation, by });
        if accusers == majority {
            self.event(EventKind::NodeDead { node, incarnation });
        }
    }
}
