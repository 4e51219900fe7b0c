//! Probes between the ports of this node and those of the other members, and what these frames say between members: times,
//! grants and verdicts (lease.md). It decides nothing: the kernel programs grant, core gives verdicts.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsRawFd;

use baton_common::{
    MAX_MEMBERS, PROBE_ETHERTYPE, PROBE_KIND_PROBE, PROBE_REFUSES, PROBE_VERSION, Path, PathKey, Peer,
    ProbeFrame,
};
use baton_core::cluster::Members;
use baton_core::{IfIndex, PeerPort, PeerReading, ProbePort, Time};
use nix::sys::socket::{MsgFlags, sendto};

use super::announce::link_address;
use super::now;
use super::prober::{Identity, NamedPath};
use crate::io::kernel::{KernelError, PathTable, PeerTable, node_number, peer_sample};

/// What this node needs to take part in a cluster.
pub struct Membership {
    /// What the kernel programs know of the others.
    pub table: PeerTable,
    /// The member list.
    pub members: Members,
    /// This node's slot.
    pub slot: u8,
}

/// The prober of peers.
pub struct PeerProber {
    membership: Membership,
    paths: BTreeMap<Key, Remote>,
    /// Those that are probed, or are to be.
    ports: Vec<PeerPort>,
    /// Own ports that are to get their programs soon: their paths are entered, and wait.
    expected: BTreeSet<IfIndex>,
    /// This node's own verdicts, told in turn.
    verdicts: Vec<(u8, u64)>,
    turn: usize,
    steady_since: Time,
}

/// Own port, and the other's node and number.
type Key = (IfIndex, u8, u32);

struct Remote {
    slot: u32,
    member: u8,
    own: ProbePort,
    peer: PeerPort,
    frame: ProbeFrame,
    sequence: u64,
}

impl PeerProber {
    /// Nobody is probed yet.
    pub fn new(membership: Membership) -> PeerProber {
        PeerProber {
            membership,
            paths: BTreeMap::new(),
            ports: Vec::new(),
            expected: BTreeSet::new(),
            verdicts: Vec::new(),
            turn: 0,
            steady_since: now(),
        }
    }

    /// There is somebody to probe.
    pub fn is_active(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Probes between these ports from now on, which are in the same segment: paths that were there before, with the same MAC
    /// addresses, go on.
    ///
    /// # Errors
    ///
    /// The path table refuses.
    pub fn set(
        &mut self,
        own: &[ProbePort],
        ports: Option<Vec<PeerPort>>,
        identity: &Identity,
        limit_ns: u64,
        table: &mut PathTable,
    ) -> Result<bool, KernelError> {
        if let Some(ports) = ports {
            self.ports = ports;
        }
        let pairs = own.iter().flat_map(|o| self.ports.iter().map(move |p| (o, p)));
        let wanted: BTreeMap<Key, (ProbePort, PeerPort)> = pairs
            .filter(|(o, p)| o.segment == p.segment)
            .map(|(o, p)| ((o.ifindex, p.slot, p.number), (o.clone(), p.clone())))
            .collect();
        let same = |key: &Key, r: &Remote| {
            wanted
                .get(key)
                .is_some_and(|(o, p)| r.own == *o && (r.peer.mac, &r.peer.node) == (p.mac, &p.node))
        };
        own.iter().for_each(|o| _ = self.expected.remove(&o.ifindex));
        let waits = |key: &Key| self.expected.contains(&key.0);
        let gone = self.paths.iter().filter(|(k, r)| !same(k, r) && !waits(k)).map(|(k, _)| *k);
        let gone: BTreeSet<Key> = gone.collect();
        let mut changed = !gone.is_empty();
        for key in gone {
            if let Some(remote) = self.paths.remove(&key) {
                table.remove_path(path_key(&remote.own, &remote.peer), remote.slot)?;
            }
        }
        for (key, (own, peer)) in wanted {
            if self.paths.contains_key(&key) {
                continue;
            }
            changed = true;
            let path = Path {
                member: u16::from(peer.slot) + 1,
                ..Path::new(peer.incarnation, limit_ns, own.mac, 0)
            };
            let slot = table.add_path(path_key(&own, &peer), path)?;
            let frame = frame(identity, &own, &peer, self.membership.members.version);
            // Higher than whatever an earlier agent has sent: no path has a probe each microsecond.
            let sequence = now().0 / 1000;
            self.paths.insert(key, Remote { slot, member: peer.slot, own, peer, frame, sequence });
        }
        Ok(changed)
    }

    /// Enters the paths between these ports; the own ones are to get their programs soon.
    ///
    /// # Errors
    ///
    /// The path table refuses.
    pub fn expect(
        &mut self,
        own: &[ProbePort],
        ports: Vec<PeerPort>,
        identity: &Identity,
        limit_ns: u64,
        table: &mut PathTable,
    ) -> Result<(), KernelError> {
        self.set(own, Some(ports), identity, limit_ns, table)?;
        self.expected = own.iter().map(|o| o.ifindex).collect();
        Ok(())
    }

    /// This node is another incarnation.
    pub fn set_incarnation(&mut self, incarnation: u64) {
        self.paths.values_mut().for_each(|r| r.frame.incarnation = incarnation.to_be_bytes());
    }

    /// This node's own verdicts: whom, by slot, up to which incarnation. Returns whether there is a new one.
    pub fn set_verdicts(&mut self, verdicts: Vec<(u8, u64)>) -> bool {
        let news = verdicts.iter().any(|v| !self.verdicts.contains(v));
        self.verdicts = verdicts;
        news
    }

    /// The rhythm was broken: silence counts from now on.
    pub fn broken(&mut self, at: Time) {
        self.steady_since = at;
    }

    /// Sends one probe over every path.
    pub fn send(&mut self, identity: &Identity, socket: &impl AsRawFd, table: &PathTable) {
        let (about, verdict) = match self.verdicts.len() {
            0 => (0, 0),
            n => self.verdicts[self.turn % n],
        };
        self.turn = self.turn.wrapping_add(1);
        let peers: Vec<Option<Peer>> =
            (0..MAX_MEMBERS as u8).map(|slot| self.membership.table.peer(slot).ok()).collect();
        for remote in self.paths.values_mut() {
            let Ok(to) = link_address(remote.own.ifindex) else { continue };
            let Some(peer) = peers.get(usize::from(remote.member)).copied().flatten() else { continue };
            let stamp = table.stamps().path(remote.slot);
            let sent = now();
            remote.sequence += 1;
            let frame = &mut remote.frame;
            frame.sequence = remote.sequence.to_be_bytes();
            frame.sent_ns = sent.0.to_be_bytes();
            frame.returned_ns = stamp.peer_ns.to_be_bytes();
            let held = u32::try_from(sent.0.saturating_sub(stamp.peer_at_ns)).unwrap_or(u32::MAX);
            frame.held_ns = held.to_be_bytes();
            let [.., a, b, c, d] = peer.incarnation.to_be_bytes();
            frame.returned_incarnation = [a, b, c, d];
            frame.latest_ns = peer.latest_ns.to_be_bytes();
            frame.latest_incarnation = peer.incarnation.to_be_bytes();
            let refuses =
                peer.incarnation != 0 && (peer.incarnation <= peer.condemned || peer.incarnation < peer.born);
            frame.granted_ns = if refuses { [0; 8] } else { peer.granted_ns.to_be_bytes() };
            frame.flags = [if refuses { PROBE_REFUSES } else { 0 }];
            (frame.about, frame.verdict) = ([about], verdict.to_be_bytes());
            frame.seal(identity.key);
            // What can't be sent is lost: the next one follows soon.
            let _ = sendto(socket.as_raw_fd(), frame.as_bytes(), &to, MsgFlags::MSG_DONTWAIT);
        }
    }

    /// What is heard of the other members now. `lease`: when this node's ends.
    pub fn read(&self, lease: Option<Time>, table: &PathTable) -> PeerReading {
        let others = self.membership.members.judged().filter(|m| m.slot != self.membership.slot);
        let peers =
            others.filter_map(|m| Some(peer_sample(m.slot, &self.membership.table.peer(m.slot).ok()?)));
        let mut ports: BTreeMap<IfIndex, Option<Time>> = BTreeMap::new();
        for remote in self.paths.values() {
            let last = ports.entry(remote.own.ifindex).or_default();
            *last = (*last).max(table.stamps().path(remote.slot).heard);
        }
        let (peers, ports) = (peers.collect(), ports.into_iter().collect());
        PeerReading { peers, steady_since: self.steady_since, lease, ports }
    }

    /// Promises that the agent is there until then.
    pub fn promise(&self, until: Time) {
        self.membership.table.promise(until);
    }

    /// The paths by names.
    pub fn names(&self) -> impl Iterator<Item = NamedPath> {
        self.paths.values().map(|r| NamedPath {
            slot: r.slot,
            segment: r.own.segment.clone(),
            from: format!("{}:{}", r.peer.node, r.peer.interface),
            to: r.own.interface.clone(),
        })
    }
}

fn path_key(own: &ProbePort, peer: &PeerPort) -> PathKey {
    PathKey { node: node_number(&peer.node), port: peer.number, ifindex: own.ifindex.0 }
}

/// All of a path's probes that does not change.
fn frame(identity: &Identity, own: &ProbePort, peer: &PeerPort, members: u32) -> ProbeFrame {
    ProbeFrame {
        destination: peer.mac,
        source: own.mac,
        ethertype: PROBE_ETHERTYPE.to_be_bytes(),
        version: [PROBE_VERSION],
        kind: [PROBE_KIND_PROBE],
        node: identity.node.to_be_bytes(),
        port: own.ifindex.0.to_be_bytes(),
        incarnation: identity.incarnation.to_be_bytes(),
        members: members.to_be_bytes(),
        ..ProbeFrame::default()
    }
}
