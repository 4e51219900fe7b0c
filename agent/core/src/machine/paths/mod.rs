//! Verdicts from the path table.

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
            self.weigh_losses(&segment.name, &look);
            let decision = self.decide(segment, &look);
            self.carry_out_decision(&segment.name, decision, &look);
        }
        (self.watch.reading, self.watch.read) = (reading, self.now);
    }

    /// What the losses say of each port that takes part.
    fn weigh_losses(&mut self, segment: &str, look: &Look) {
        let survey = self.survey(segment, look);
        for (s, seat) in survey.seats.iter().enumerate() {
            let health = self.watch.losses.health(look, &survey, s);
            let port = &mut self.ports[seat.port];
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
