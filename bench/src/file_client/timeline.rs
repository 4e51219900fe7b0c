//! What a client gets over time, around a fault.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use baton_lab::transfer::Log;

/// A column of the drawing.
const BIN: Duration = Duration::from_millis(50);
/// What is drawn, before and after the fault.
const SHOWN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(7));
const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 60.0;
const LEFT: f64 = 120.0;

/// A run.
pub struct Line {
    /// Its stall.
    pub stall: Duration,
    /// Answers in each column.
    answers: Vec<usize>,
}

impl Line {
    /// That of a client's log, with the fault at `at`.
    pub fn of(log: &Log, at: Duration, stall: Duration) -> Line {
        let columns = ((SHOWN.0 + SHOWN.1).as_nanos() / BIN.as_nanos()) as usize;
        let mut answers = vec![0; columns];
        let start = at.saturating_sub(SHOWN.0);
        for (answered, _) in &log.answered {
            if let Some(since) = answered.checked_sub(start)
                && let Some(column) = answers.get_mut((since.as_nanos() / BIN.as_nanos()) as usize)
            {
                *column += 1;
            }
        }
        Line { stall, answers }
    }
}

/// All systems below one another.
pub fn draw(label: &str, lines: &BTreeMap<&'static str, Line>) -> String {
    let height = HEIGHT * lines.len() as f64 + 24.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {height}" style="width:{WIDTH}px" role="img" aria-label="answers over time, {label}">"#
    );
    let seconds = (SHOWN.0 + SHOWN.1).as_secs();
    let x = |second: f64| LEFT + (WIDTH - LEFT - 12.0) * second / seconds as f64;
    for second in 0..=seconds {
        let (at, shown) = (x(second as f64), second as i64 - SHOWN.0.as_secs() as i64);
        // Writing to a String can't fail.
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{at:.1}" y1="0" x2="{at:.1}" y2="{:.1}"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{shown} s</text>"#,
            height - 20.0,
            height - 6.0
        );
    }
    for (row, (system, line)) in lines.iter().enumerate() {
        let base = HEIGHT * (row + 1) as f64 - 4.0;
        let most = line.answers.iter().copied().max().unwrap_or(1).max(1) as f64;
        let mut path = format!("M{:.1} {base:.1}", x(0.0));
        for (column, answers) in line.answers.iter().enumerate() {
            let top = base - (HEIGHT - 12.0) * *answers as f64 / most;
            let right = x((column + 1) as f64 * BIN.as_secs_f64());
            let _ = write!(path, "V{top:.1}H{right:.1}");
        }
        let stall = line.stall.as_millis();
        let class = if system.starts_with("keepalived") { "keepalived" } else { *system };
        let _ = write!(
            svg,
            r#"<path class="area {class}" d="{path}V{base:.1}Z"/><text x="4" y="{:.1}">{system}</text><text x="4" y="{:.1}">{stall} ms</text>"#,
            base - 24.0,
            base - 8.0
        );
    }
    svg + "</svg>"
}
