//! What a client gets over time, around a fault.

use std::collections::BTreeMap;
use std::time::Duration;

use baton_lab::transfer::Log;

use crate::chart::Band;

/// A column of the drawing.
const BIN: Duration = Duration::from_millis(50);
/// Seconds that are drawn, before and after the fault.
pub const SECONDS: (u32, u32) = (1, 7);

/// A run.
pub struct Line {
    /// Its stall.
    pub stall: Duration,
    /// What it got in each column, per second.
    rates: Vec<f64>,
}

impl Line {
    /// That of a client's log, with the fault at `at`; `weigh` says what an answer is worth.
    pub fn of(log: &Log, at: Duration, stall: Duration, weigh: impl Fn(&(Duration, usize)) -> f64) -> Line {
        let (before, after) = SECONDS;
        let shown = Duration::from_secs(u64::from(before + after));
        let mut rates = vec![0.0; (shown.as_nanos() / BIN.as_nanos()) as usize];
        let start = at.saturating_sub(Duration::from_secs(before.into()));
        for answer in &log.answered {
            if let Some(since) = answer.0.checked_sub(start)
                && let Some(column) = rates.get_mut((since.as_nanos() / BIN.as_nanos()) as usize)
            {
                *column += weigh(answer) / BIN.as_secs_f64();
            }
        }
        Line { stall, rates }
    }
}

/// All systems, for a drawing.
pub fn bands<'a>(lines: &'a BTreeMap<&'static str, Line>, unit: &str) -> Vec<Band<'a>> {
    let most = |line: &Line| line.rates.iter().copied().fold(0.0, f64::max);
    let band = |(system, line): (&&'static str, &'a Line)| Band {
        system,
        notes: [
            format!("stall {} ms", line.stall.as_millis()),
            format!("at most {}", shown(most(line), unit)),
        ],
        values: &line.rates,
    };
    lines.iter().map(band).collect()
}

/// A rate for people.
pub fn shown(rate: f64, unit: &str) -> String {
    if unit == "B/s" { format!("{:.1} MB/s", rate / 1e6) } else { format!("{rate:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_holds_what_came_in_its_time() {
        let ms = Duration::from_millis;
        let answered = [(ms(4010), 5), (ms(4049), 5), (ms(4050), 10), (ms(20_000), 10)].to_vec();
        let log = Log { answered, ..Log::default() };
        let line = Line::of(&log, ms(5000), ms(1), |(_, bytes)| *bytes as f64);
        assert_eq!((line.rates.len(), &line.rates[..3]), (160, &[200.0, 200.0, 0.0][..]));
    }
}
