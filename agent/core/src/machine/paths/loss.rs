//! Lost shares of paths, exponentially weighted, and what they and error counters say of a port.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::survey::{Hearing, Look, Survey};
use crate::{IfIndex, LinkErrors, PathSample, Time};

/// Readings that loss is measured between are at least so far apart.
const MEASURE_OVER: Duration = Duration::from_secs(1);
/// Half-life of what was sent and what was lost. Nothing is said before it has been measured for so long.
const HALF_LIFE: Duration = Duration::from_secs(5);
/// A path that loses this share,
const LOSSY: f64 = 0.02;
/// and not just a few probes (weighted: at long intervals one probe is a large share), is lossy.
const LOSSY_PROBES: f64 = 3.0;
/// A path that loses less than this share is clean.
const CLEAN: f64 = 0.005;
/// A port with this share of errors,
const FAULTY: f64 = 0.01;
/// and not just a few in a sample, is faulty.
const FAULTY_ERRORS: u64 = 10;
/// A port with less than this share of errors is clean.
const ERROR_FREE: f64 = 0.001;

/// How well something gets through. Between the two limits whatever it was still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::machine) enum Health {
    Clean,
    Between,
    Bad,
}

/// The losses of all paths of the last reading, sorted by (from, to).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Losses(Vec<PathLoss>);

/// The loss of a path.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct PathLoss {
    from: IfIndex,
    to: IfIndex,
    /// Where the interval that is being measured begins.
    base: Option<Mark>,
    /// For how long it has been measured in all.
    measured: Duration,
    /// Probes sent, and lost, exponentially weighted.
    sent: f64,
    lost: f64,
}

/// The counters of a path at a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Mark {
    at: Time,
    /// Without the one that may be under way.
    sent: u64,
    arrived: u64,
}

impl PathLoss {
    fn new(s: &PathSample) -> PathLoss {
        PathLoss { from: s.from, to: s.to, base: None, measured: Duration::ZERO, sent: 0.0, lost: 0.0 }
    }

    /// The same after a reading. What a silent path does not carry is no loss: it is silence.
    fn after(mut self, look: &Look, s: &PathSample) -> PathLoss {
        let sent = s.sent.saturating_sub(u64::from(s.unanswered.min(1)));
        let mark = Mark { at: look.now, sent, arrived: s.arrived };
        match (look.path(s), self.base) {
            (Hearing::Silent, _) => self.base = None,
            (Hearing::Doubtful, _) => {}
            (Hearing::Heard, None) => self.base = Some(mark),
            (Hearing::Heard, Some(base)) if sent < base.sent || s.arrived < base.arrived => {
                self.base = Some(mark); // a new life of the path
            }
            (Hearing::Heard, Some(base)) if look.now.since(base.at) >= MEASURE_OVER => {
                self.measure(base, mark);
                self.base = Some(mark);
            }
            (Hearing::Heard, Some(_)) => {}
        }
        self
    }

    fn measure(&mut self, base: Mark, mark: Mark) {
        let over = mark.at.since(base.at);
        let sent = (mark.sent - base.sent) as f64;
        let lost = (sent - (mark.arrived - base.arrived) as f64).max(0.0);
        let keep = 0.5f64.powf(over.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.sent = keep * self.sent + sent;
        self.lost = keep * self.lost + lost;
        self.measured = self.measured.saturating_add(over);
    }

    fn share(&self) -> Option<f64> {
        (self.measured >= HALF_LIFE && self.sent > 0.0).then(|| (self.lost / self.sent).min(1.0))
    }

    fn health(&self) -> Option<Health> {
        Some(match self.share()? {
            share if share >= LOSSY && self.lost >= LOSSY_PROBES => Health::Bad,
            share if share < CLEAN => Health::Clean,
            _ => Health::Between,
        })
    }
}

impl Losses {
    fn get(&self, s: &PathSample) -> Option<&PathLoss> {
        self.0.binary_search_by_key(&(s.from, s.to), |l| (l.from, l.to)).ok().map(|l| &self.0[l])
    }

    /// What is known of a path after this reading.
    fn after(&self, look: &Look, s: &PathSample) -> PathLoss {
        self.get(s).copied().unwrap_or_else(|| PathLoss::new(s)).after(look, s)
    }

    /// Takes in a reading. Paths that aren't in it any more are forgotten.
    pub fn take(&mut self, look: &Look) {
        let mut losses: Vec<_> = look.reading.paths.iter().map(|s| self.after(look, s)).collect();
        losses.sort_unstable_by_key(|l| (l.from, l.to));
        self.0 = losses;
    }

    /// Will any path be lossy after this reading?
    pub fn any_bad(&self, look: &Look) -> bool {
        look.reading.paths.iter().any(|s| self.after(look, s).health() == Some(Health::Bad))
    }

    /// Lost share of a path, 0 to 1; `None`: not known yet.
    pub fn share(&self, s: &PathSample) -> Option<f64> {
        self.get(s)?.share()
    }

    /// What the losses after this reading say of a port. As with silence: one whose paths in (or out) all lose is to
    /// blame if a port at their other end is shown to be clean in that direction.
    pub fn health(&self, look: &Look, survey: &Survey, seat: usize) -> Health {
        let mut receive = Tally::default();
        let mut send = Tally::default();
        for s in &look.reading.paths {
            let Some((from, to)) = survey.ends(s).filter(|_| look.path(s) != Hearing::Silent) else {
                continue;
            };
            let own = from == seat || to == seat;
            if !own {
                continue;
            }
            let health = self.after(look, s).health();
            let bad = health == Some(Health::Bad);
            if to == seat {
                receive.count(health, bad && self.is_clean_elsewhere(look, survey, |f, _| f == from));
            } else {
                send.count(health, bad && self.is_clean_elsewhere(look, survey, |_, t| t == to));
            }
        }
        match (receive.health(), send.health()) {
            (Health::Clean, Health::Clean) => Health::Clean,
            (Health::Bad, _) | (_, Health::Bad) => Health::Bad,
            _ => Health::Between,
        }
    }

    fn is_clean_elsewhere(&self, look: &Look, survey: &Survey, of: impl Fn(usize, usize) -> bool) -> bool {
        let mut paths = look.reading.paths.iter().filter(|s| look.path(s) != Hearing::Silent);
        paths.any(|s| {
            survey.ends(s).is_some_and(|(f, t)| of(f, t))
                && self.after(look, s).health() == Some(Health::Clean)
        })
    }
}

/// The paths in, or out, of a port.
#[derive(Default)]
struct Tally {
    clean: u32,
    bad: u32,
    other: u32,
    witnessed: bool,
}

impl Tally {
    fn count(&mut self, health: Option<Health>, witnessed: bool) {
        match health {
            Some(Health::Clean) => self.clean += 1,
            Some(Health::Bad) => self.bad += 1,
            Some(Health::Between) | None => self.other += 1,
        }
        self.witnessed |= witnessed;
    }

    fn health(&self) -> Health {
        match self {
            Tally { clean: 0, bad: 0, other: 0, .. } => Health::Clean,
            Tally { clean: 0, bad: 1.., other: 0, witnessed: true } => Health::Bad,
            Tally { clean: 1.., .. } => Health::Clean,
            _ => Health::Between,
        }
    }
}

/// Shares of received and of sent frames that were bad.
pub(in crate::machine) fn error_shares(e: &LinkErrors) -> [f64; 2] {
    let share = |errors: u64, good: u64| match errors.saturating_add(good) {
        0 => 0.0,
        all => errors as f64 / all as f64,
    };
    [share(e.rx_errors, e.rx_packets), share(e.tx_errors, e.tx_packets)]
}

/// What an interface's counters say.
pub(in crate::machine) fn error_health(e: &LinkErrors) -> Health {
    let shares = error_shares(e);
    let is_bad = |(share, errors): (f64, u64)| share >= FAULTY && errors >= FAULTY_ERRORS;
    if shares.into_iter().zip([e.rx_errors, e.tx_errors]).any(is_bad) {
        Health::Bad
    } else if shares.into_iter().all(|s| s < ERROR_FREE) {
        Health::Clean
    } else {
        Health::Between
    }
}
