//! A stand-in of the kernel programs of one node: line by line what `ebpf/src/member.rs` (receipts, grants, verdicts), the cluster's
//! part of `ebpf/src/probe.rs` (the agent's promise, echoes) and `ebpf/src/permission.rs` do, on plain values. Locks have no
//! counterpart, for a step of the model is never interrupted. What it lacks only keeps frames away there: tags, and the windows
//! that drop a frame that comes a second time or from an earlier incarnation.

use std::collections::BTreeMap;

use super::rules::Rules;
use super::wire::{Frame, Kind};
use super::world::MAX;

/// A lease without end.
pub const ENDLESS: u64 = u64::MAX;

/// `baton_common::Peer`: what this node knows of a member, as a voter. Times of 0 have never been.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Whose entry it is: one more than the node; 0: nobody's yet.
    pub node: usize,
    pub incarnation: u64,
    pub latest: u64,
    pub granted: u64,
    pub heard: u64,
    pub answered: u64,
    pub condemned: u64,
    pub born: u64,
    pub ahead: i64,
    pub ahead_at: u64,
    pub refused: bool,
    /// By incarnation; only the hole of rule R3 looks at it.
    pub heard_of: BTreeMap<u64, u64>,
}

/// `baton_common::Lease`: what the others let this node do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    pub incarnation: u64,
    pub deadline: u64,
    pub length: u64,
    pub void: u64,
    pub members: u32,
    pub needed: u32,
    pub grants: [u64; MAX],
}

/// All that the kernel holds. It outlives the agent, and not a reboot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Kernel {
    pub lease: Lease,
    /// The virtual server's serving mark; 0: off.
    pub mark: u64,
    pub peers: [Peer; MAX],
    /// By voter and whom it is about.
    pub verdicts: [[u64; MAX]; MAX],
    /// Until when an agent is there, or will be back.
    pub promise: u64,
    /// Members whose paths are entered: a bit each.
    pub paths: u8,
    /// When any of them was last heard, on whatever terms.
    pub any: u64,
}

/// A verdict that a member has told of: voter, about whom, up to which incarnation.
pub type Said = (usize, usize, u64);

struct Answer {
    latest: u64,
    granted: u64,
    refuses: bool,
    members: u32,
}

impl Kernel {
    /// May the address be served now?
    pub fn permits(&self, rules: &Rules, now: u64) -> bool {
        let named = self.mark == self.lease.incarnation || !rules.mark_named;
        self.mark != 0 && named && (self.lease.deadline == ENDLESS || now < self.lease.deadline)
    }

    /// Takes a frame. Returns its echo, and a verdict that is news.
    pub fn receive(
        &mut self,
        rules: &Rules,
        own: usize,
        frame: &Frame,
        now: u64,
    ) -> (Option<Frame>, Option<Said>) {
        let ours = self.lease.incarnation;
        if ours == 0 || self.paths & (1 << frame.from) == 0 || now >= self.promise {
            return (None, None);
        }
        let (answer, said) = self.take(rules, frame, ours, now);
        self.any = now;
        let echo = (frame.kind == Kind::Probe).then_some(Frame {
            kind: Kind::Echo,
            from: own,
            to: frame.from,
            incarnation: ours,
            sent: now,
            latest: answer.latest,
            latest_incarnation: if answer.members == 0 { 0 } else { frame.incarnation },
            granted: answer.granted,
            refuses: answer.refuses,
            verdict: None,
            members: answer.members,
        });
        (echo, said)
    }

    fn take(&mut self, rules: &Rules, frame: &Frame, ours: u64, now: u64) -> (Answer, Option<Said>) {
        if self.lease.length == 0 || frame.members != self.lease.members {
            return (Answer { latest: 0, granted: 0, refuses: false, members: 0 }, None);
        }
        let length = self.lease.length;
        let names_us = frame.latest_incarnation == ours;
        let two_way = names_us && frame.latest <= now && now - frame.latest < length;
        let refused = names_us && frame.refuses;
        let (answer, jumped) = self.hear(rules, frame, now, two_way, refused);
        if jumped || ((names_us || !rules.past_only) && frame.granted != 0) {
            self.grant(rules, frame.from, frame.granted, now, jumped);
        }
        (Answer { members: self.lease.members, ..answer }, self.said(frame))
    }

    fn hear(
        &mut self,
        rules: &Rules,
        frame: &Frame,
        now: u64,
        two_way: bool,
        refused: bool,
    ) -> (Answer, bool) {
        let length = self.lease.length;
        let ahead = frame.sent.wrapping_sub(now) as i64;
        let peer = &mut self.peers[frame.from];
        if frame.incarnation > peer.incarnation {
            (peer.incarnation, peer.latest, peer.granted, peer.ahead_at) = (frame.incarnation, 0, 0, 0);
        }
        let jumped = peer.follow(ahead, now, length) && rules.clock_jump;
        let refuses = peer.refuses(frame.incarnation);
        if frame.incarnation == peer.incarnation {
            peer.latest = peer.latest.max(frame.sent);
            if two_way {
                peer.answered = now;
                peer.refused = refused;
                if !refuses {
                    peer.heard = peer.heard.max(now);
                    peer.granted = peer.granted.max(frame.sent);
                    if !rules.any_incarnation {
                        peer.heard_of.insert(frame.incarnation, now);
                    }
                }
            }
        }
        let granted = if refuses { 0 } else { peer.granted };
        (Answer { latest: peer.latest, granted, refuses, members: 0 }, jumped)
    }

    fn grant(&mut self, rules: &Rules, from: usize, granted: u64, now: u64, jumped: bool) {
        let lease = &mut self.lease;
        if jumped {
            (lease.void, lease.deadline, lease.grants) = (now, 0, [0; MAX]);
        } else if !rules.past_only || (granted > lease.void && granted <= now) {
            let until = granted + lease.length;
            if until > lease.grants[from] {
                lease.grants[from] = 0;
                let longest = lease.grants.into_iter().max().unwrap_or(0);
                let end = if lease.needed > 1 { longest.min(until) } else { until };
                lease.grants[from] = until;
                lease.deadline = lease.deadline.max(end);
            }
        }
    }

    fn said(&mut self, frame: &Frame) -> Option<Said> {
        let (about, incarnation) = frame.verdict?;
        let known = &mut self.verdicts[frame.from][about];
        (*known < incarnation).then(|| {
            *known = incarnation;
            (frame.from, about, incarnation)
        })
    }

    /// The program `condemn`: gives a verdict if nothing was heard for so long.
    pub fn condemn(&mut self, rules: &Rules, about: usize, incarnation: u64, silence: u64, now: u64) -> bool {
        let peer = &mut self.peers[about];
        let heard = match rules.any_incarnation {
            true => peer.heard,
            false => peer.heard_of.get(&incarnation).copied().unwrap_or(0),
        };
        let silent = (now >= heard && now - heard >= silence) || !rules.one_step;
        if silent && incarnation > peer.condemned {
            peer.condemned = incarnation;
            if peer.incarnation <= incarnation {
                peer.granted = 0;
            }
        }
        silent
    }

    /// What the agent's probe to this member says of it, by `PeerProber::send`.
    pub fn stand(&self, to: usize) -> (u64, u64, u64, bool) {
        let peer = &self.peers[to];
        let refuses = peer.incarnation != 0 && peer.refuses(peer.incarnation);
        (peer.latest, peer.incarnation, if refuses { 0 } else { peer.granted }, refuses)
    }
}

impl Peer {
    fn refuses(&self, incarnation: u64) -> bool {
        incarnation <= self.condemned || incarnation < self.born
    }

    /// Follows the peer's clock by its fastest frames. Has it jumped ahead?
    fn follow(&mut self, ahead: i64, now: u64, length: u64) -> bool {
        if self.ahead_at == 0 {
            (self.ahead, self.ahead_at) = (ahead, now | 1);
            return false;
        }
        let past = now.wrapping_sub(self.ahead_at);
        if (past as i64) < 0 {
            return false;
        }
        let reference = self.ahead - (past >> 10) as i64;
        let jumped = ahead > reference + (length >> 1) as i64;
        self.ahead = ahead.max(reference);
        self.ahead_at = now | 1;
        jumped
    }
}
