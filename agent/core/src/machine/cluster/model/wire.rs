//! Frames: what they carry, and what becomes of them under way. A frame that was sent may arrive at once, later than others
//! that were sent after it, twice, or never. A one-way cut keeps frames from being sent; those under way may still arrive.

use super::agent::Agent;
use super::world::World;

/// Frames under way that are kept track of; the oldest is lost for a further one.
const UNDER_WAY: usize = 4;

/// Probe, of an agent, or echo, of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Probe,
    Echo,
}

/// `baton_common::ProbeFrame`, as far as it matters between members.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    pub kind: Kind,
    pub from: usize,
    pub to: usize,
    pub incarnation: u64,
    /// By the sender's clock.
    pub sent: u64,
    /// The receiver's latest time, and its incarnation then.
    pub latest: u64,
    pub latest_incarnation: u64,
    pub granted: u64,
    pub refuses: bool,
    /// Dead up to this incarnation, says the sender.
    pub verdict: Option<(usize, u64)>,
    pub members: u32,
}

impl World {
    /// Verdicts that an agent tells of, one in each probe.
    pub fn told_verdicts(&self, from: usize) -> Vec<Option<(usize, u64)>> {
        let machine = self.nodes[from].agent.as_ref().map(Agent::machine);
        let own = machine.map(|m| m.own_verdicts()).unwrap_or_default();
        match own.len() {
            0 => vec![None],
            _ => own.into_iter().map(|(about, upto)| Some((usize::from(about), upto))).collect(),
        }
    }

    /// Does an agent probe this member? Both must be there for it, and the way be open.
    pub fn can_probe(&self, from: usize, to: usize) -> bool {
        self.acts(from) && from != to && self.nodes[from].kernel.paths & (1 << to) != 0 && !self.cut[from][to]
    }

    fn probe_frame(&self, from: usize, to: usize, verdict: Option<(usize, u64)>) -> Frame {
        let node = &self.nodes[from];
        let (latest, latest_incarnation, granted, refuses) = node.kernel.stand(to);
        Frame {
            kind: Kind::Probe,
            from,
            to,
            incarnation: node.kernel.lease.incarnation,
            sent: node.clock,
            latest,
            latest_incarnation,
            granted,
            refuses,
            verdict,
            members: node.members.version,
        }
    }

    /// An agent sends a probe, which is under way then.
    pub fn probe(&mut self, from: usize, to: usize, which: usize) {
        let verdict = self.told_verdicts(from).get(which).copied().flatten();
        let frame = self.probe_frame(from, to, verdict);
        self.promise(from);
        self.send(frame);
    }

    fn send(&mut self, frame: Frame) {
        if self.frames.len() == UNDER_WAY {
            self.frames.remove(0);
        }
        self.frames.push(frame);
    }

    /// May this frame arrive now? A kernel that is frozen takes none.
    pub fn can_arrive(&self, k: usize) -> bool {
        self.nodes[self.frames[k].to].frozen == 0
    }

    /// A frame arrives; with `again` it will a second time. Its echo is under way then.
    pub fn arrive(&mut self, k: usize, again: bool) {
        let frame = if again { self.frames[k].clone() } else { self.frames.remove(k) };
        if let Some(echo) = self.take(&frame) {
            self.send(echo);
        }
    }

    /// A frame is lost.
    pub fn lose(&mut self, k: usize) {
        self.frames.remove(k);
    }

    /// A frame reaches its kernel. Returns the echo, if the way back is open.
    fn take(&mut self, frame: &Frame) -> Option<Frame> {
        let rules = self.rules;
        let open = !self.cut[frame.to][frame.from];
        let node = &mut self.nodes[frame.to];
        if node.frozen != 0 {
            return None;
        }
        let (echo, said) = node.kernel.receive(&rules, frame.to, frame, node.clock);
        node.reports.extend(said);
        echo.filter(|_| open)
    }

    /// An agent probes a member, and both frames get through at once, as far as the ways are open.
    pub fn exchange(&mut self, from: usize, to: usize) {
        if !self.can_probe(from, to) {
            return;
        }
        self.promise(from);
        for verdict in self.told_verdicts(from) {
            let frame = self.probe_frame(from, to, verdict);
            if let Some(echo) = self.take(&frame) {
                self.take(&echo);
            }
        }
    }

    /// Both agents probe one another, often enough for grants to follow from it.
    pub fn meet(&mut self, one: usize, other: usize) {
        for _ in 0..2 {
            self.exchange(one, other);
            self.exchange(other, one);
        }
    }
}
