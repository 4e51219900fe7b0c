//! What `top` knows. Changes only by what it hears; time is handed in.

use std::collections::VecDeque;
use std::time::Duration;

use crate::journal::Record;
use crate::telemetry::{STALE_AFTER, Status};

/// Events kept for the screen.
pub(super) const EVENTS_KEPT: usize = 200;
/// Seconds of traffic kept for the screen.
pub(super) const HISTORY: usize = 300;

/// Something new.
pub(super) enum News {
    Status(Box<Status>),
    /// An event; `first`: of a new connection, which tells the past again.
    Event {
        record: Box<Record>,
        first: bool,
    },
    /// A connection broke.
    Lost(String),
}

#[derive(Debug, Default)]
pub(super) struct View {
    /// Now, since the start.
    pub(super) now: Duration,
    /// The latest status and when it came.
    pub(super) status: Option<(Status, Duration)>,
    /// Bytes per second over all virtual servers, one value a second, the latest last.
    pub(super) history: VecDeque<u64>,
    sampled: Option<Duration>,
    /// The latest last.
    pub(super) events: VecDeque<Record>,
    /// Why there is no connection.
    pub(super) lost: Option<String>,
    /// First visible row of the virtual servers.
    pub(super) offset: usize,
}

impl View {
    pub(super) fn hear(&mut self, news: News, now: Duration) {
        self.now = now;
        match news {
            News::Status(status) => {
                if self.sampled.is_none_or(|at| now.saturating_sub(at) >= Duration::from_secs(1)) {
                    self.sampled = Some(now);
                    self.history.push_back(status.snapshot.virtual_servers.iter().map(|s| s.rate).sum());
                    while self.history.len() > HISTORY {
                        self.history.pop_front();
                    }
                }
                self.status = Some((*status, now));
                self.lost = None;
            }
            News::Event { record, first } => {
                if first {
                    self.events.clear();
                }
                self.events.push_back(*record);
                while self.events.len() > EVENTS_KEPT {
                    self.events.pop_front();
                }
            }
            News::Lost(why) => self.lost = Some(why),
        }
    }

    /// Moves the list of virtual servers by `rows`.
    pub(super) fn scroll(&mut self, rows: isize) {
        let last = self.rows().saturating_sub(1);
        self.offset = self.offset.saturating_add_signed(rows).min(last);
    }

    /// Rows of the list of virtual servers: one for each and one for each of its addresses.
    pub(super) fn rows(&self) -> usize {
        let count = |s: &Status| s.snapshot.virtual_servers.iter().map(|v| 1 + v.addresses.len()).sum();
        self.status.as_ref().map_or(0, |(s, _)| count(s))
    }

    /// Why what is shown may no longer be true.
    pub(super) fn doubt(&self) -> Option<String> {
        let Some((status, at)) = &self.status else {
            return Some(self.lost.clone().unwrap_or_else(|| "waiting for the agent".to_owned()));
        };
        let age = self.now.saturating_sub(*at) + Duration::from_millis(status.age_ms);
        match &self.lost {
            Some(why) => Some(format!("STALE, {} s old: {why}", age.as_secs())),
            None if age >= STALE_AFTER => {
                Some(format!("STALE, {} s old: the agent's fast thread is not heard", age.as_secs()))
            }
            None => None,
        }
    }
}
