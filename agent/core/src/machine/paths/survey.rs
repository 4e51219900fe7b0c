//! What one reading shows of the ports of one segment: who is proven to send or to receive, who is to blame, and what
//! all paths together say. Pure, and cheap: it runs once per probe interval.

use std::time::Duration;

use crate::machine::ports::Port;
use crate::{Finding, IfIndex, PathSample, PortState, Reading, Reason, TargetSample, Time};

/// So many probes without an answer are silence.
const SILENT_AFTER: u32 = 3;
/// A proof is not older than this, or than three probe intervals where that is longer.
const FRESH: Duration = Duration::from_secs(1);
/// Clients' packets are stamped by the kernel's coarse clock, which may lag by a tick (CONFIG_HZ=100).
const COARSE: Duration = Duration::from_millis(10);

/// A reading as of a time.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub now: Time,
    /// Time between two probes.
    pub interval: Duration,
    pub reading: &'a Reading,
}

/// What is known of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    Heard,
    /// Neither, or not yet.
    Doubtful,
    Silent,
}

impl Look<'_> {
    /// The first unanswered probe has had two whole intervals and an eighth, and two more have been sent.
    fn is_overdue(&self, unanswered: u32, since: Option<Time>) -> bool {
        unanswered >= SILENT_AFTER && since.is_some_and(|t| self.now >= t + self.limit())
    }

    fn limit(&self) -> Duration {
        self.interval * 2 + self.interval / 8
    }

    /// After a stall of the sender nothing has been sent for a while: then what was heard before shows nothing.
    pub fn path(&self, s: &PathSample) -> Hearing {
        if self.is_overdue(s.unanswered, s.waiting_since) {
            Hearing::Silent
        } else if s.unanswered <= 1 && s.heard.is_some_and(|at| self.now.since(at) <= self.interval * 3) {
            Hearing::Heard
        } else {
            Hearing::Doubtful
        }
    }

    /// A target that once answered at this port does so no longer.
    pub fn is_missing(&self, t: &TargetSample) -> bool {
        self.is_overdue(t.unanswered, t.waiting_since)
    }

    /// A target answers at this port.
    pub fn answers(&self, t: &TargetSample) -> bool {
        t.unanswered <= 1 && t.answered.is_some_and(|at| self.is_fresh(at))
    }

    fn is_fresh(&self, at: Time) -> bool {
        self.now.since(at) < FRESH.max(self.interval * 3)
    }

    /// Had the target the time to answer since it last did?
    fn is_given_up(&self, t: &TargetSample) -> bool {
        t.unanswered >= 2 && t.waiting_since.is_some_and(|at| at + self.interval <= self.now)
    }
}

/// One direction of a port: its paths in, or its paths out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    heard: u32,
    doubtful: u32,
    silent: u32,
    /// When the latest silence began.
    since: Time,
    /// Something shows that this direction works,
    pub proven: bool,
    /// since when, as known before this survey;
    proven_since: Option<Time>,
    /// it speaks against the other ends of its silent paths, if these were silent before this.
    witness: Option<Time>,
    /// At the other end of a silent path is a port that is proven to work.
    witnessed: bool,
}

impl Side {
    fn count(&mut self, hearing: Hearing, s: &PathSample) {
        match hearing {
            Hearing::Heard => self.heard += 1,
            Hearing::Doubtful => self.doubtful += 1,
            Hearing::Silent => {
                self.silent += 1;
                self.since = self.since.max(s.waiting_since.unwrap_or_default());
            }
        }
    }

    /// A target's answer at that time showed that it works, unless that was before it fell silent.
    fn prove(&mut self, at: Time) {
        if at > self.since {
            self.proven = true;
            self.witness = self.witness.max(Some(at));
        }
    }

    fn is_all_silent(&self) -> bool {
        self.heard == 0 && self.doubtful == 0 && self.silent > 0
    }

    fn is_to_blame(&self) -> bool {
        !self.proven && self.is_all_silent() && self.witnessed
    }

    /// Since when it is proven. A proof that is missing because nobody had the time to give it is not gone yet.
    fn proven_from(&self, now: Time, asked: Asked) -> Option<Time> {
        match self.proven {
            true => self.proven_since.or(Some(now)),
            false => self.proven_since.filter(|_| !self.is_all_silent() || asked == Asked::Open),
        }
    }
}

/// The targets that ever answered at a port, taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// There are none.
    #[default]
    Nobody,
    /// Not one of them answers.
    InVain,
    /// One of them may still answer.
    Open,
}

/// A port that takes part: it has carrier and the kernel programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    /// Its number.
    pub port: usize,
    pub ifindex: IfIndex,
    pub receive: Side,
    pub send: Side,
    pub asked: Asked,
    /// Clients' packets came since the latest silence began.
    pub received: bool,
    /// It is silent by an earlier verdict or by this survey.
    pub silent: bool,
}

impl Seat {
    pub fn new(port: usize, ifindex: IfIndex, known: &Port) -> Seat {
        let silent = known.state == PortState::Silent;
        let (deaf, mute) = if silent { known.silent_since } else { Default::default() };
        Seat {
            port,
            ifindex,
            receive: Side { since: deaf, proven_since: known.receives_since, ..Side::default() },
            send: Side { since: mute, proven_since: known.sends_since, ..Side::default() },
            asked: Asked::default(),
            received: false,
            silent,
        }
    }

    /// Since when it is proven to receive, and to send.
    pub fn proven_since(&self, now: Time) -> (Option<Time>, Option<Time>) {
        (self.receive.proven_from(now, self.asked), self.send.proven_from(now, self.asked))
    }

    /// Is that another answer than before? Later verdicts depend on it.
    pub fn is_proof_news(&self) -> bool {
        let is_news =
            |side: &Side| side.proven_from(Time(0), self.asked).is_some() != side.proven_since.is_some();
        is_news(&self.receive) || is_news(&self.send)
    }

    /// What this survey blames the port for.
    pub fn blame(&self) -> Option<Reason> {
        if self.asked == Asked::Open {
            return None;
        }
        match (self.receive.is_to_blame(), self.send.is_to_blame()) {
            (true, true) => Some(Reason::Silent),
            (true, false) => Some(Reason::ReceiveSilent),
            (false, true) => Some(Reason::TransmitSilent),
            (false, false) => None,
        }
    }

    /// When the silence of its paths in, and out, began.
    pub fn silent_since(&self) -> (Time, Time) {
        (self.receive.since, self.send.since)
    }

    pub fn is_proven(&self) -> bool {
        self.receive.proven && self.send.proven
    }
}

/// The ports of one segment that take part, sorted by interface index.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    pub seats: Vec<Seat>,
}

impl Survey {
    /// Looks at the segment with these ports.
    pub fn new(look: &Look, ports: impl Iterator<Item = Seat>) -> Survey {
        let mut survey = Survey { seats: ports.collect() };
        survey.seats.sort_unstable_by_key(|s| s.ifindex);
        survey.hear(look);
        survey.prove(look);
        survey.witness(look);
        survey
    }

    pub fn seat(&self, ifindex: IfIndex) -> Option<usize> {
        self.seats.binary_search_by_key(&ifindex, |s| s.ifindex).ok()
    }

    /// Both ends of a path, where both take part.
    pub fn ends(&self, s: &PathSample) -> Option<(usize, usize)> {
        Some((self.seat(s.from)?, self.seat(s.to)?))
    }

    fn hear(&mut self, look: &Look) {
        for s in &look.reading.paths {
            let Some((from, to)) = self.ends(s) else { continue };
            let hearing = look.path(s);
            self.seats[from].send.count(hearing, s);
            self.seats[to].receive.count(hearing, s);
        }
        for seat in &mut self.seats {
            seat.receive.proven = seat.receive.heard > 0;
            seat.send.proven = seat.send.heard > 0;
        }
    }

    /// What shows, besides the paths, that ports work. What was seen before the silence began shows nothing of it.
    fn prove(&mut self, look: &Look) {
        for side in self.seats.iter_mut().flat_map(|s| [&mut s.receive, &mut s.send]) {
            side.witness = side.proven.then_some(look.now);
        }
        for t in &look.reading.targets {
            let Some(seat) = self.seat(t.port).map(|s| &mut self.seats[s]) else { continue };
            let Some(answered) = t.answered else { continue };
            if look.answers(t) {
                seat.receive.prove(answered);
                seat.send.prove(answered);
            }
            seat.asked = seat.asked.max(if look.is_given_up(t) { Asked::InVain } else { Asked::Open });
        }
        for (port, &at) in &look.reading.unicast {
            let Some(seat) = self.seat(*port).map(|s| &mut self.seats[s]) else { continue };
            seat.received = at > seat.receive.since && look.is_fresh(at);
            if seat.received {
                seat.receive.proven = true;
                // Clients' packets come at any time: of the probes that stayed away before one the last may have done so
                // for another reason than the first, and the port may have failed since. So they speak against others
                // only after the third lost probe, and only while they come.
                if look.now <= at + look.limit() + COARSE {
                    seat.receive.witness = seat.receive.witness.max(Some(at - look.interval * 2));
                }
            }
        }
    }

    /// Who speaks against the other end of a silent path: not one that was deaf or mute until a moment ago, and whose
    /// other probes only happened to come before the next one of this path; nor by what was before that end fell silent.
    fn witness(&mut self, look: &Look) {
        for side in self.seats.iter_mut().flat_map(|s| [&mut s.receive, &mut s.send]) {
            if side.proven_since.is_none_or(|t| look.now < t + look.limit()) {
                side.witness = None;
            }
        }
        for s in look.reading.paths.iter().filter(|s| look.path(s) == Hearing::Silent) {
            let Some((from, to)) = self.ends(s) else { continue };
            let speaks = |witness: &Side, side: &Side| witness.witness.is_some_and(|at| at > side.since);
            let sends = speaks(&self.seats[from].send, &self.seats[to].receive);
            let receives = speaks(&self.seats[to].receive, &self.seats[from].send);
            self.seats[to].receive.witnessed |= sends;
            self.seats[from].send.witnessed |= receives;
        }
    }

    /// What all paths together say; `None`: not known (yet), so whatever they said before.
    pub fn finding(&self, look: &Look) -> Option<Finding> {
        let ports = self.seats.len() as u32;
        if ports < 2 {
            return Some(Finding::Unknown);
        }
        let sum = |f: fn(&Side) -> u32| self.seats.iter().map(|s| f(&s.receive)).sum::<u32>();
        let (heard, silent) = (sum(|s| s.heard), sum(|s| s.silent));
        if heard + silent < ports * (ports - 1) {
            return None;
        }
        if silent == 0 {
            return Some(Finding::Whole);
        }
        let explained = |s: &PathSample| {
            self.ends(s).is_none_or(|(from, to)| self.seats[from].silent || self.seats[to].silent)
        };
        let silent_paths = || look.reading.paths.iter().filter(|s| look.path(s) == Hearing::Silent);
        let dead = heard == 0 && !self.seats.iter().any(|s| s.receive.proven || s.send.proven);
        let explained = silent_paths().all(explained);
        Some(if explained && !(dead && self.targets_are_missing()) {
            Finding::PortsSilent
        } else if dead {
            Finding::Gone
        } else if self.seats.iter().all(Seat::is_proven) {
            Finding::PathsSilent
        } else {
            Finding::Undecided
        })
    }

    /// The ports that aren't silent had targets, and ask them in vain.
    fn targets_are_missing(&self) -> bool {
        let mut asked =
            self.seats.iter().filter(|s| !s.silent).map(|s| s.asked).filter(|a| *a != Asked::Nobody);
        asked.next().is_some_and(|first| first == Asked::InVain) && asked.all(|a| a == Asked::InVain)
    }

    /// The ports that aren't silent hear one another: a target that is silent is so by itself.
    pub fn ports_are_fine(&self) -> bool {
        let fine = |s: &Seat| s.silent || s.receive.heard > 0 && s.send.heard > 0;
        self.seats.iter().any(|s| !s.silent) && self.seats.iter().all(fine)
    }
}
