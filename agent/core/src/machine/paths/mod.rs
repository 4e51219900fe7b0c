//! Verdicts from the path table: which port is to blame when probes stay away, and what follows.
//!
//! All of it is drawn from one [`Reading`], at one time; only ports that have carrier and the kernel programs take part.
//! `survey` says what a reading shows, `loss` measures lost shares, `verdicts` decides and carries out, `evidence` puts
//! into words what an event was drawn from.
//!
//! # Rules
//!
//! With `i` the probe interval:
//! - A path is *silent* when three probes of it have stayed unanswered and the first of them has had 2 1/8 i. It is
//!   *heard* when at most the last probe is unanswered and the last frame came at most 3 i ago (a sender that stood still
//!   has sent nothing that could be unanswered). In between it is doubtful: that is no evidence of anything.
//! - *Proof* that a port receives: a path into it is heard; or clients' packets (unicast to a virtual IP) came to it after
//!   the latest silence of a path into it began, at most 1 s ago. Proof that it sends: a path out of it is heard. A target
//!   that answers at it, after the silence of the paths in question began, proves both. Neighbours' broadcasts prove
//!   nothing, and a target that never answered is no evidence at all.
//! - A port is a *witness* against the other ends of its silent paths once it has been proven for 2 1/8 i: one that was
//!   dead until a moment ago may be heard here before the next probe is there. What proves it must be later than the
//!   beginning of the silence that it speaks against; clients' packets, later than the third lost probe, and no
//!   older than 2 1/8 i and a tick of the kernel's clock.
//! - A port is *to blame for not receiving* when nothing proves that it receives, all paths into it are silent, and one of
//!   their senders is a witness that sends; *for not sending* likewise. Where a target has answered at it before, it is not
//!   blamed before two questions in a row have stayed unanswered, the first of them for i.
//! - When every port would be silent nobody is blamed.
//! - Such a port is `Silent` until it is proven to send and to receive by what came after its silence began. Failures are counted and the hold-down is kept as
//!   for a lost carrier. A port that is silent one way and then the other way too stays silent with the wider reason.
//! - Loss: by probes sent and arrived in intervals of 1 s or more in which the path wasn't silent, weighted with a
//!   half-life of 5 s, known after 5 s. *Lossy* is 2 % and more than two probes, *clean* is below 0.5 %. A port is to blame
//!   for loss when all paths into it (or out of it) that aren't silent are lossy and one of their other ends has a clean
//!   path in that direction. Error counters: 1 % of a sample and ten errors are bad, below 0.1 % is clean.
//! - A good port with either is `Degraded` until it has been clean for its whole hold-down, which doubles as with failures;
//!   a held one becomes so at the end of its hold-down, if it still is so.
//!
//! # Table of cases
//!
//! A, B, C are ports; A>B is the path from A to B; a *witness* at a port is a target that answers there or, for receiving,
//! clients' packets that came since.
//!
//! | what fails | what the reading shows | finding | port states | what moves | why |
//! |---|---|---|---|---|---|
//! | nothing | every path heard | `Whole` | `Good` | nothing | |
//! | A receives nothing; B, C fine | B>A, C>A silent, the rest heard | `PortsSilent` | A `Silent`, `ReceiveSilent` | A's addresses, to B and C | B and C are heard elsewhere, so they send |
//! | A sends nothing; B, C fine | A>B, A>C silent, the rest heard | `PortsSilent` | A `Silent`, `TransmitSilent` | the same | B and C hear others, so they receive |
//! | A does neither; B, C fine | every path of A silent, B>C and C>B heard | `PortsSilent` | A `Silent`, `Silent` | the same | both of the above; where one shows earlier, the reason widens without a second failover |
//! | one path, C>A, between ports that work | C>A silent, the rest heard | `PathsSilent` | unchanged | nothing | A hears B, and B hears C: each is proven both ways |
//! | the whole segment (the switch) | every path silent, no witness | `Gone` | unchanged | nothing | no port is better than another |
//! | a target; the ports work | every path heard, the target answers nowhere | `Whole` | unchanged | nothing (`TargetSilent`) | the ports are proven by one another |
//! | A and B of three | every path silent, a witness at C | `PortsSilent` | A, B `Silent` | to C | a target at C proves both ways; clients' packets at C only that C receives, so A and B are to blame for sending |
//! | the same | every path silent, no witness | `Gone` | unchanged | nothing | nothing tells C from A and B |
//! | A receives nothing; two ports, a target | B>A silent, A>B heard; the target answers at B only | `PortsSilent` | A `Silent`, `ReceiveSilent` | to B | B is proven by its target; A's question came back to nobody |
//! | A sends nothing; two ports, a target | A>B silent, B>A heard; the target answers at B only | `PortsSilent` | A `Silent`, `TransmitSilent` | to B | the same |
//! | A does neither; two ports, a target | both paths silent; the target answers at B only | `PortsSilent` | A `Silent`, `Silent` | to B | the same |
//! | two ports with a target at both; one path is cut | B>A silent; the target answers at both | `PathsSilent` | unchanged | nothing | both are proven both ways |
//! | two ports, no target, one direction | B>A silent, A>B heard | `Undecided` | unchanged | nothing | A doesn't receive, or B doesn't send: the same from here |
//! | the same, and clients reach A | as above, unicast at A since | `PortsSilent` | B `Silent`, `TransmitSilent` | to A | A receives, so B doesn't send |
//! | two ports, no target, both directions | both paths silent | `Gone` | unchanged | nothing | either port, or the segment |
//! | the same, and clients reach B | as above, unicast at B since | `PortsSilent` | A `Silent`, `TransmitSilent` | to B | B receives, so A doesn't send; clients are served where they get through |
//! | the same, and clients reach both | as above, unicast at both since | `Undecided` | unchanged | nothing | neither port would be left; a switch that isolates its ports looks like that |
//! | A loses frames it receives; three ports | B>A, C>A lossy, B>C, C>B clean | `Whole` | A `Degraded`, `Loss` | A's addresses, to good ports, once | as with silence |
//! | one path loses, or two ports and loss | C>A lossy, B>A clean; or nothing to compare with | `Whole` | unchanged | nothing | the port receives cleanly from others; or it can't be told |
//! | A counts errors | 1 % of what it received (or sent), ten or more | | A `Degraded`, `Errors` | to good ports, once | its own counters speak of nobody else |
//! | A flaps | silent, then heard, again and again | `PortsSilent` or `Whole` | `Silent`, `Held`, `Silent`, … | only the first time | the hold-down doubles up to its most |
//! | all ports lose or count errors | | | `Degraded` | nothing | there is nothing better to go to |
//! | A silent, then B loses its carrier | A's paths are gone | `Unknown` | A `Silent`, B `Down` | to A | A is the last resort: it may work again before anything can show it |
//!
//! # Two ports without a target
//!
//! With a silent path from B to A and nothing else, it can't be known whether B does not send or A does not receive. What
//! can be known comes from clients: a packet to a virtual IP at A, after the silence began, proves that A receives. Nothing
//! proves that B sends: what clients send to B may be new requests that never get an answer. So a port is found that
//! doesn't send while clients reach the other one, and a port that doesn't receive is not: its clients aren't heard, and
//! nothing tells that from clients that are quiet. Moving on a guess would be wrong half of the time, and would take addresses
//! from a port that serves them; so nothing moves, the finding is `Undecided`, and a probe target (`probe_targets`, `gateway`)
//! makes it decidable.

mod evidence;
mod loss;
mod survey;
mod verdicts;
mod view;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub(super) use loss::{Health, error_health};

use super::Machine;
use crate::{Finding, Reading, Time};
use survey::Look;

/// What is kept between readings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    /// The last reading,
    reading: Reading,
    /// and when it came.
    read: Time,
    losses: loss::Losses,
    /// By name.
    segments: BTreeMap<String, Known>,
}

/// What is known of a segment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Known {
    finding: Finding,
    /// Targets that ever answered: do they?
    targets: BTreeMap<IpAddr, bool>,
}

impl Watch {
    /// Forgets all segments but these.
    pub(super) fn retain_segments(&mut self, keep: impl Fn(&str) -> bool) {
        self.segments.retain(|name, _| keep(name));
    }
}

impl Machine {
    /// Would this reading change a verdict: the state of a port or its reason, what the paths of a segment say, or
    /// whether a target answers? The driver reads the path table often and hands over only readings that would.
    pub fn is_news(&self, now: Time, reading: &Reading) -> bool {
        let Some(config) = &self.config else { return false };
        let look = Look { now: self.now.max(now), interval: config.timing.probe_interval, reading };
        config.segments.iter().any(|s| !self.decide(s, &look).is_empty())
    }

    /// Takes a reading.
    pub(super) fn paths_read(&mut self, reading: Reading) {
        let Some(config) = &self.config else { return };
        let look = Look { now: self.now, interval: config.timing.probe_interval, reading: &reading };
        let segments = config.segments.clone();
        self.watch.losses.take(&look);
        for segment in &segments {
            let decision = self.decide(segment, &look);
            self.weigh(&segment.name, &look);
            self.carry_out_decision(&segment.name, decision, &look);
        }
        (self.watch.reading, self.watch.read) = (reading, self.now);
    }

    /// What later verdicts depend on: each port's losses, and since when it is proven to work.
    fn weigh(&mut self, segment: &str, look: &Look) {
        let survey = self.survey(segment, look);
        for (s, seat) in survey.seats.iter().enumerate() {
            let health = self.watch.losses.health(look, &survey, s);
            let port = &mut self.ports[seat.port];
            (port.receives_since, port.sends_since) = seat.proven_since(look.now);
            port.lossy = port.is_still_bad(port.lossy, health);
            self.count_clean_time(seat.port);
        }
    }

    /// The last reading, as of then.
    fn last_look(&self) -> Option<Look<'_>> {
        let interval = self.config.as_ref()?.timing.probe_interval;
        Some(Look { now: self.watch.read, interval, reading: &self.watch.reading })
    }
}
