//! Sends probes and questions to targets, and reads what came of them from the path table. It decides nothing.
//!
//! All ports send in one go, once an interval. What a probe brought is looked up when the next one is sent, and when the
//! kernel's timer reports silence. Probes go past queueing disciplines and packet captures.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use baton_common::{
    PROBE_ETHERTYPE, PROBE_KIND_PROBE, PROBE_VERSION, Path, PathKey, ProbeConfig, ProbeFrame, SipKey,
};
use baton_core::{IfIndex, PathSample, PeerPort, ProbePort, Reading, TargetSample, Time};
use bytes::BytesMut;
use nix::sys::socket::{MsgFlags, sendto};
use tokio::sync::watch;

use super::announce::{link_address, packet_socket};
use super::metronome::Metronome;
use super::peers::{Membership, PeerProber};
use super::solicit::question;
use super::{FastError, now};
use crate::io::kernel::{PathTable, Stamps};

/// `PACKET_QDISC_BYPASS` of `linux/if_packet.h`.
const PACKET_QDISC_BYPASS: libc::c_int = 20;
/// Targets are asked this seldom while all is well; or every ten intervals, if that is longer.
const SELDOM: Duration = Duration::from_millis(100);
/// While something is silent targets are asked once an interval, but only for so many intervals.
const EAGER: u32 = 50;
/// After so many questions without an answer every other one goes to everybody again.
const ASK_EVERYBODY: u32 = 3;
/// So often in a row may a full queue of the port keep a probe from being sent before it counts as sent: a queue that
/// never drains is a fault of the port.
const REFUSED: u32 = 10;

/// Who this node is on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The key of all probe frames.
    pub key: SipKey,
    /// This node's number.
    pub node: u32,
    /// Its incarnation.
    pub incarnation: u64,
}

/// A path by names, and its slot in the path table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    /// Slot.
    pub slot: u32,
    /// Its segment.
    pub segment: String,
    /// Interface name of the sending port.
    pub from: String,
    /// Interface name of the receiving port.
    pub to: String,
}

/// The paths there are, and their stamps; for another thread.
#[derive(Clone)]
pub struct PathReader {
    /// The paths.
    pub paths: watch::Receiver<Vec<NamedPath>>,
    /// What has been stamped.
    pub stamps: std::sync::Arc<Stamps>,
}

/// What a prober is made of.
pub struct Probing {
    /// Who this node is.
    pub identity: Identity,
    /// The path table.
    pub table: PathTable,
    /// Where the paths are published.
    pub paths: watch::Sender<Vec<NamedPath>>,
    /// The cluster, if there is one.
    pub membership: Option<Membership>,
}

/// The prober.
pub struct Prober {
    identity: Identity,
    interval: Duration,
    /// By segment.
    probe_targets: BTreeMap<String, Vec<IpAddr>>,
    table: PathTable,
    metronome: Metronome,
    last_tick: Option<Time>,
    /// Past queueing disciplines and captures.
    probes: OwnedFd,
    /// The ordinary way.
    questions: OwnedFd,
    ports: Vec<ProbePort>,
    paths: BTreeMap<(IfIndex, IfIndex), PathState>,
    targets: BTreeMap<(IfIndex, IpAddr), TargetState>,
    reading: Reading,
    frame: BytesMut,
    peers: Option<PeerProber>,
    named: watch::Sender<Vec<NamedPath>>,
}

struct PathState {
    slot: u32,
    /// Slot of the opposite path.
    back: u32,
    segment: usize,
    frame: ProbeFrame,
    sequence: u64,
    sent: u64,
    refused: u32,
    waiting: Waiting,
}

struct TargetState {
    slot: u32,
    segment: usize,
    mac: [u8; 6],
    asked: u64,
    asked_at: Time,
    waiting: Waiting,
}

/// What has been sent since something last came.
#[derive(Clone, Copy, Default)]
struct Waiting {
    last: Option<Time>,
    count: u32,
    since: Option<Time>,
}

impl Waiting {
    /// Something came last at `last`: begins anew if that is news.
    fn came(&mut self, last: Option<Time>) {
        if last != self.last {
            *self = Waiting { last, ..Waiting::default() };
        }
    }

    fn sent(&mut self, at: Time) {
        self.count = self.count.saturating_add(1);
        self.since.get_or_insert(at);
    }

    /// Begins anew: the rhythm was broken.
    fn broken(&mut self) {
        (self.count, self.since) = (0, None);
    }
}

/// Whom each segment's ports ask.
fn targets_of(config: &baton_core::Config) -> BTreeMap<String, Vec<IpAddr>> {
    config.segments.iter().map(|s| (s.name.clone(), s.probe_targets.clone())).collect()
}

impl Prober {
    /// Prepares; nothing is sent before there are ports. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// No packet socket, no timer, the path table refuses.
    pub fn new(probing: Probing, config: &baton_core::Config) -> Result<Prober, FastError> {
        let Probing { identity, mut table, paths: named, membership } = probing;
        let Identity { key, node, incarnation } = identity;
        table.identify(ProbeConfig { key, incarnation, node, reserved: 0 })?;
        Ok(Prober {
            identity,
            interval: config.timing.probe_interval,
            probe_targets: targets_of(config),
            table,
            metronome: Metronome::new().map_err(FastError::Timer)?,
            last_tick: None,
            probes: packet_socket().and_then(bypass).map_err(FastError::Packet)?,
            questions: packet_socket().map_err(FastError::Packet)?,
            ports: Vec::new(),
            paths: BTreeMap::new(),
            targets: BTreeMap::new(),
            reading: Reading::default(),
            frame: BytesMut::with_capacity(128),
            peers: membership.map(PeerProber::new),
            named,
        })
    }

    /// Probes by this configuration from now on. Where intervals or targets are others, all paths between ports begin anew.
    ///
    /// # Errors
    ///
    /// The path table refuses; the timer can't be set.
    pub fn reconfigure(&mut self, config: &baton_core::Config) -> Result<(), FastError> {
        let targets = targets_of(config);
        let interval = config.timing.probe_interval;
        if (self.interval, &self.probe_targets) == (interval, &targets) {
            return Ok(());
        }
        let ports = self.ports.clone();
        self.set_ports(Vec::new())?;
        (self.interval, self.probe_targets) = (interval, targets);
        self.set_ports(ports)?;
        Ok(())
    }

    /// Waits until it is time to send. Cancel safe.
    pub async fn ready(&self) -> io::Result<()> {
        self.metronome.ring().await
    }

    /// Probes between these ports from now on. Paths between ports that were there before, with the same MAC addresses,
    /// go on. Returns whether anything has changed.
    ///
    /// # Errors
    ///
    /// The path table refuses; the timer can't be set.
    pub fn set_ports(&mut self, ports: Vec<ProbePort>) -> Result<bool, FastError> {
        if ports == self.ports {
            return Ok(false);
        }
        let stays = |ifindex: IfIndex| {
            let both = [&ports, &self.ports].map(|list| list.iter().find(|p| p.ifindex == ifindex));
            both[0].is_some() && both[0] == both[1]
        };
        let staying: BTreeSet<IfIndex> = ports.iter().map(|p| p.ifindex).filter(|i| stays(*i)).collect();
        let gone =
            self.paths.extract_if(.., |(from, to), _| !staying.contains(from) || !staying.contains(to));
        for ((from, to), path) in gone.collect::<Vec<_>>() {
            self.table.remove_path(self.key(from, to), path.slot)?;
        }
        let gone = self.targets.extract_if(.., |(port, _), _| !staying.contains(port));
        for ((port, target), state) in gone.collect::<Vec<_>>() {
            self.table.remove_target(port, target, state.slot)?;
        }
        self.ports = ports;
        for index in 0..self.ports.len() {
            self.add_port(index)?;
        }
        self.pair_with_peers(None)?;
        self.named.send_replace(self.names());
        self.set_timer()?;
        Ok(true)
    }

    /// Probes these ports of other members from now on.
    ///
    /// # Errors
    ///
    /// The path table refuses; the timer can't be set.
    pub fn set_peers(&mut self, ports: Vec<PeerPort>) -> Result<(), FastError> {
        if self.pair_with_peers(Some(ports))? {
            self.named.send_replace(self.names());
            self.set_timer()?;
        }
        Ok(())
    }

    /// Enters the paths between these ports, which are to be the node's own soon. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// The path table refuses.
    pub fn expect_peers(&mut self, own: &[ProbePort], peer_ports: Vec<PeerPort>) -> Result<(), FastError> {
        let limit = self.limit_ns();
        if let Some(peers) = &mut self.peers {
            peers.expect(own, peer_ports, &self.identity, limit, &mut self.table)?;
        }
        Ok(())
    }

    fn pair_with_peers(&mut self, ports: Option<Vec<PeerPort>>) -> Result<bool, FastError> {
        let limit = self.limit_ns();
        let Some(peers) = &mut self.peers else { return Ok(false) };
        Ok(peers.set(&self.ports, ports, &self.identity, limit, &mut self.table)?)
    }

    /// The prober of other members, where there is a cluster.
    pub fn peers(&mut self) -> Option<&mut PeerProber> {
        self.peers.as_mut()
    }

    /// What is heard of the other members now, where there is a cluster. `lease`: when this node's ends.
    pub fn read_peers(&self, lease: Option<Time>) -> Option<baton_core::PeerReading> {
        Some(self.peers.as_ref()?.read(lease, &self.table))
    }

    /// This node is another incarnation from now on.
    ///
    /// # Errors
    ///
    /// The path table refuses.
    pub fn set_incarnation(&mut self, incarnation: u64) -> Result<(), FastError> {
        self.identity.incarnation = incarnation;
        let Identity { key, node, .. } = self.identity;
        self.table.identify(ProbeConfig { key, incarnation, node, reserved: 0 })?;
        let [.., a, b, c, d] = incarnation.to_be_bytes();
        for path in self.paths.values_mut() {
            path.frame.incarnation = incarnation.to_be_bytes();
            path.frame.returned_incarnation = [a, b, c, d];
        }
        if let Some(peers) = &mut self.peers {
            peers.set_incarnation(incarnation);
        }
        Ok(())
    }

    /// Probes the other members at once: there is news for them.
    pub fn tell_peers(&mut self) {
        if let Some(peers) = &mut self.peers {
            peers.send(&self.identity, &self.probes, &self.table);
        }
    }

    fn key(&self, from: IfIndex, to: IfIndex) -> PathKey {
        PathKey { node: self.identity.node, port: from.0, ifindex: to.0 }
    }

    /// The targets of a port, and its paths to the ports before it in the list and back.
    fn add_port(&mut self, index: usize) -> Result<(), FastError> {
        let port = self.ports[index].clone();
        self.table.watch_unicast(port.ifindex);
        for target in self.probe_targets.get(&port.segment).cloned().unwrap_or_default() {
            if !self.targets.contains_key(&(port.ifindex, target)) {
                let slot = self.table.add_target(port.ifindex, target)?;
                let segment = self.segment(&port.segment);
                let state = TargetState {
                    slot,
                    segment,
                    mac: port.mac,
                    asked: 0,
                    asked_at: Time::default(),
                    waiting: Waiting::default(),
                };
                self.targets.insert((port.ifindex, target), state);
            }
        }
        for other in 0..index {
            let other = self.ports[other].clone();
            if other.segment == port.segment && !self.paths.contains_key(&(port.ifindex, other.ifindex)) {
                self.add_paths(&port, &other)?;
            }
        }
        Ok(())
    }

    /// Two paths, there and back.
    fn add_paths(&mut self, a: &ProbePort, b: &ProbePort) -> Result<(), FastError> {
        // Higher than whatever an earlier agent has sent: no path has a probe each microsecond.
        let sequence = now().0 / 1000;
        let there = self.table.add_path(self.key(a.ifindex, b.ifindex), self.path(b, sequence))?;
        let back = self.table.add_path(self.key(b.ifindex, a.ifindex), self.path(a, sequence))?;
        for (from, to, slot, back) in [(a, b, there, back), (b, a, back, there)] {
            let state = PathState {
                slot,
                back,
                segment: self.segment(&a.segment),
                frame: self.probe_frame(from, to),
                sequence,
                sent: 0,
                refused: 0,
                waiting: Waiting::default(),
            };
            self.paths.insert((from.ifindex, to.ifindex), state);
        }
        Ok(())
    }

    /// The place of a segment among all; it only has to be the same each time.
    fn segment(&self, name: &str) -> usize {
        self.probe_targets.keys().position(|s| s == name).unwrap_or(0)
    }

    fn path(&self, to: &ProbePort, sequence: u64) -> Path {
        Path::new(self.identity.incarnation, self.limit_ns(), to.mac, sequence)
    }

    fn limit_ns(&self) -> u64 {
        let interval = self.interval.as_nanos() as u64;
        3 * interval + interval / 4
    }

    /// All of a path's probes that does not change.
    fn probe_frame(&self, from: &ProbePort, to: &ProbePort) -> ProbeFrame {
        let [.., a, b, c, d] = self.identity.incarnation.to_be_bytes();
        ProbeFrame {
            destination: to.mac,
            source: from.mac,
            ethertype: PROBE_ETHERTYPE.to_be_bytes(),
            version: [PROBE_VERSION],
            kind: [PROBE_KIND_PROBE],
            node: self.identity.node.to_be_bytes(),
            port: from.ifindex.0.to_be_bytes(),
            incarnation: self.identity.incarnation.to_be_bytes(),
            sequence: [0; 8],
            sent_ns: [0; 8],
            returned_ns: [0; 8],
            held_ns: [0; 4],
            returned_incarnation: [a, b, c, d],
            ..ProbeFrame::default()
        }
    }

    fn names(&self) -> Vec<NamedPath> {
        let port = |ifindex: &IfIndex| self.ports.iter().find(|p| p.ifindex == *ifindex);
        let named = self.paths.iter().filter_map(|((from, to), state)| {
            let (from, to) = (port(from)?, port(to)?);
            Some(NamedPath {
                slot: state.slot,
                segment: from.segment.clone(),
                from: from.interface.clone(),
                to: to.interface.clone(),
            })
        });
        named.chain(self.peers.iter().flat_map(PeerProber::names)).collect()
    }

    /// Sets the timer: once an interval where there are paths, seldom where there are only targets.
    fn set_timer(&mut self) -> Result<(), FastError> {
        let alone = self.paths.is_empty() && !self.peers.as_ref().is_some_and(PeerProber::is_active);
        let period = match (alone, self.targets.is_empty()) {
            (false, _) => Some(self.interval),
            (true, false) => Some(self.seldom()),
            (true, true) => None,
        };
        self.metronome.set(period).map_err(FastError::Timer)
    }

    fn seldom(&self) -> Duration {
        SELDOM.max(self.interval * 10)
    }

    /// Notes what came, then sends the next probes and questions.
    pub fn tick(&mut self) {
        self.metronome.heard();
        let start = now();
        let period = self.metronome.period();
        let late = period.is_none_or(|p| self.last_tick.is_none_or(|last| start.since(last) > 2 * p));
        self.last_tick = Some(start);
        let mut silent = BTreeSet::new();
        for state in self.paths.values_mut() {
            state.waiting.came(self.table.stamps().path(state.slot).heard);
            if late {
                state.waiting.broken();
            }
            if (1..=EAGER).contains(&state.waiting.count) {
                silent.insert(state.segment);
            }
        }
        if late && let Some(peers) = &mut self.peers {
            peers.broken(start);
        }
        self.tell_peers();
        self.send_probes();
        self.ask(start, late, &silent);
    }

    fn send_probes(&mut self) {
        for ((from, _), state) in &mut self.paths {
            let Ok(to) = link_address(*from) else { continue };
            let back = self.table.stamps().path(state.back);
            let sent = now();
            state.sequence += 1;
            let frame = &mut state.frame;
            frame.sequence = state.sequence.to_be_bytes();
            frame.sent_ns = sent.0.to_be_bytes();
            frame.returned_ns = back.peer_ns.to_be_bytes();
            let held = u32::try_from(sent.0.saturating_sub(back.peer_at_ns)).unwrap_or(u32::MAX);
            frame.held_ns = held.to_be_bytes();
            frame.seal(self.identity.key);
            match sendto(self.probes.as_raw_fd(), frame.as_bytes(), &to, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => state.refused = 0,
                Err(_) => {
                    state.refused += 1;
                    if state.refused < REFUSED {
                        state.sequence -= 1;
                        state.waiting.broken();
                        continue;
                    }
                    state.refused = REFUSED;
                }
            }
            state.sent += 1;
            state.waiting.sent(sent);
        }
    }

    /// Asks the targets: those of segments where something is silent now, the others when it is time.
    fn ask(&mut self, start: Time, late: bool, silent: &BTreeSet<usize>) {
        let seldom = self.seldom();
        for ((port, target), state) in &mut self.targets {
            let stamp = self.table.stamps().target(state.slot);
            state.waiting.came(stamp.answered);
            if late {
                state.waiting.broken();
            }
            // A tick that comes a little early must not put the question off by a whole interval.
            let due = start.since(state.asked_at) + self.interval / 2 >= seldom;
            if !due && !silent.contains(&state.segment) {
                continue;
            }
            let everybody = stamp.answered.is_none()
                || (state.waiting.count >= ASK_EVERYBODY && state.waiting.count.is_multiple_of(2));
            question(&mut self.frame, state.mac, *target, (!everybody).then_some(stamp.mac));
            let Ok(to) = link_address(*port) else { continue };
            state.asked_at = start;
            if sendto(self.questions.as_raw_fd(), &self.frame, &to, MsgFlags::MSG_DONTWAIT).is_ok() {
                state.asked += 1;
                state.waiting.sent(start);
            }
        }
    }

    /// What the path table holds now.
    pub fn read(&mut self) -> &Reading {
        let Prober { reading, paths, targets, table, ports, .. } = self;
        let stamps = table.stamps();
        reading.paths.clear();
        reading.paths.extend(paths.iter_mut().map(|((from, to), state)| {
            let stamp = stamps.path(state.slot);
            state.waiting.came(stamp.heard);
            PathSample {
                from: *from,
                to: *to,
                heard: stamp.heard,
                unanswered: state.waiting.count,
                waiting_since: state.waiting.since,
                sent: state.sent,
                arrived: stamp.probes,
                echoes: stamp.echoes,
                rtt: (stamp.rtt_ns != 0).then(|| Duration::from_nanos(stamp.rtt_ns)),
                timed: stamp.timed,
            }
        }));
        reading.targets.clear();
        reading.targets.extend(targets.iter_mut().map(|((port, target), state)| {
            let stamp = stamps.target(state.slot);
            state.waiting.came(stamp.answered);
            TargetSample {
                port: *port,
                target: *target,
                answered: stamp.answered,
                unanswered: state.waiting.count,
                waiting_since: state.waiting.since,
                asked: state.asked,
                answers: stamp.answers,
            }
        }));
        reading.unicast.clear();
        reading.unicast.extend(ports.iter().filter_map(|p| Some((p.ifindex, stamps.unicast(p.ifindex)?))));
        reading
    }
}

/// Lets a packet socket send past queueing disciplines, and so past captures (packet(7)).
fn bypass(socket: OwnedFd) -> io::Result<OwnedFd> {
    let on: libc::c_int = 1;
    // SAFETY: the value is an int, which lives until the call returns.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}
