//! Drawings as inline SVG: of distributions by percentiles and histograms, and curves. Colours come from the page's style.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::report::microseconds;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;
/// Columns of a histogram for a factor of ten.
const COLUMNS: f64 = 24.0;

/// A system's name and its distribution, in nanoseconds.
pub type Series<'a> = (&'a str, &'a Histogram<u64>);

/// Microseconds (logarithmic) over percentiles; every further nine takes the same width, so that the tail is seen.
pub fn percentiles(series: &[Series]) -> String {
    let (low, high) = decades(series);
    let most = series.iter().map(|(_, h)| h.len()).max().unwrap_or(1).max(10);
    let nines = (most as f64).log10();
    let x = |quantile: f64| LEFT + (WIDTH - LEFT - RIGHT) * (-(1.0 - quantile).log10() / nines).min(1.0);
    let y = |value: u64| TOP + (HEIGHT - TOP - BOTTOM) * (high - log(value)) / (high - low);
    let mut svg = open("percentiles");
    for decade in whole(low, high) {
        let line = y(10f64.powi(decade) as u64);
        grid(&mut svg, (LEFT, line), (WIDTH - RIGHT, line), &duration(decade), false);
    }
    for (quantile, name) in [(0.0, "min"), (0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9")] {
        if -(1.0f64 - quantile).log10() <= nines {
            grid(&mut svg, (x(quantile), TOP), (x(quantile), HEIGHT - BOTTOM), name, true);
        }
    }
    for (system, histogram) in series {
        let last = 1.0 - 1.0 / histogram.len().max(1) as f64;
        let steps = 200;
        let at = |step: i32| (1.0 - 10f64.powf(-nines * f64::from(step) / f64::from(steps))).min(last);
        let points: Vec<String> = (0..=steps)
            .map(at)
            .map(|quantile| format!("{:.1},{:.1}", x(quantile), y(histogram.value_at_quantile(quantile))))
            .collect();
        // Writing to a String can't fail.
        let _ = write!(svg, r#"<polyline class="line {system}" points="{}"/>"#, points.join(" "));
    }
    svg + "</svg>"
}

/// Share of runs over microseconds (logarithmic); outlines, so that systems don't hide each other.
pub fn histogram(series: &[Series]) -> String {
    let (low, high) = decades(series);
    let x = |decade: f64| LEFT + (WIDTH - LEFT - RIGHT) * (decade - low) / (high - low);
    let columns: Vec<_> =
        series.iter().map(|(system, histogram)| (system, shares(histogram, low, high))).collect();
    let highest = columns.iter().flat_map(|(_, shares)| shares).fold(0.01, |a: f64, b| a.max(*b));
    let y = |share: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share / highest);
    let mut svg = open("share of runs");
    for decade in whole(low, high) {
        let line = x(f64::from(decade));
        grid(&mut svg, (line, TOP), (line, HEIGHT - BOTTOM), &duration(decade), true);
    }
    for part in [0.0, 0.5, 1.0] {
        let share = highest * part;
        grid(
            &mut svg,
            (LEFT, y(share)),
            (WIDTH - RIGHT, y(share)),
            &format!("{:.0} %", share * 100.0),
            false,
        );
    }
    for (system, shares) in columns {
        let mut path = format!("M{:.1} {:.1}", x(low), y(0.0));
        for (column, share) in shares.iter().enumerate() {
            let right = x(low + (column + 1) as f64 / COLUMNS);
            // Writing to a String can't fail.
            let _ = write!(path, "V{:.1}H{right:.1}", y(*share));
        }
        let _ = write!(svg, r#"<path class="area {system}" d="{path}V{:.1}Z"/>"#, y(0.0));
    }
    svg + "</svg>"
}

/// Values over hours, from `floor` up; the names of the systems stand on the right in their colours.
pub fn curves(label: &str, floor: f64, series: &[(&str, &[(f64, f64)])]) -> String {
    let all = || series.iter().flat_map(|(_, points)| points.iter());
    let last = all().map(|p| p.0).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let top = all().map(|p| p.1).fold(floor, f64::max);
    let top = if top > floor { floor + (top - floor) * 1.05 } else { floor + 1.0 };
    let x = |hours: f64| LEFT + (WIDTH - LEFT - RIGHT) * hours / last;
    let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - floor);
    let mut svg = open(label);
    for part in 0..=4 {
        let value = floor + (top - floor) * f64::from(part) / 4.0;
        grid(&mut svg, (LEFT, y(value)), (WIDTH - RIGHT, y(value)), &format!("{value:.3}"), false);
        let hours = last * f64::from(part) / 4.0;
        grid(&mut svg, (x(hours), TOP), (x(hours), HEIGHT - BOTTOM), &format!("{hours:.1} h"), true);
    }
    for (line, (system, points)) in series.iter().enumerate() {
        let points: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let (right, below) = (WIDTH - RIGHT - 4.0, TOP + 14.0 * (line + 1) as f64);
        // Writing to a String can't fail.
        let _ = write!(
            svg,
            r#"<polyline class="line {system}" points="{}"/><text x="{right}" y="{below}" text-anchor="end" class="{system}" style="fill:currentColor">{system}</text>"#,
            points.join(" ")
        );
    }
    svg + "</svg>"
}

/// A system in [`timeline`].
pub struct Band<'a> {
    /// Its name.
    pub system: &'a str,
    /// What else stands beside it.
    pub notes: [String; 2],
    /// What it did, in columns of the same width.
    pub values: &'a [f64],
}

/// Systems below one another over time, all to one scale; so many seconds before 0 and after it.
pub fn timeline(label: &str, (before, after): (u32, u32), bands: &[Band]) -> String {
    const LONG: f64 = 1120.0;
    const BAND: f64 = 60.0;
    const NAMES: f64 = 130.0;
    let height = BAND * bands.len() as f64 + 24.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {LONG} {height}" style="width:{LONG}px" role="img" aria-label="over time: {label}">"#
    );
    let x = |part: f64| NAMES + (LONG - NAMES - RIGHT) * part;
    for second in 0..=before + after {
        let at = x(f64::from(second) / f64::from(before + after));
        // Writing to a String can't fail.
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{at:.1}" y1="0" x2="{at:.1}" y2="{:.1}"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{} s</text>"#,
            height - 20.0,
            height - 6.0,
            i64::from(second) - i64::from(before)
        );
    }
    let most = bands.iter().flat_map(|band| band.values).copied().fold(f64::MIN_POSITIVE, f64::max);
    for (row, Band { system, notes: [first, second], values }) in bands.iter().enumerate() {
        let base = BAND * (row + 1) as f64 - 4.0;
        let mut path = format!("M{:.1} {base:.1}", x(0.0));
        for (column, value) in values.iter().enumerate() {
            let right = x((column + 1) as f64 / values.len() as f64);
            let _ = write!(path, "V{:.1}H{right:.1}", base - (BAND - 12.0) * value / most);
        }
        let _ = write!(
            svg,
            r#"<path class="area {system}" d="{path}V{base:.1}Z"/><text x="4" y="{:.1}">{system}</text><text x="4" y="{:.1}">{first}</text><text x="4" y="{:.1}">{second}</text>"#,
            base - 36.0,
            base - 22.0,
            base - 8.0
        );
    }
    svg + "</svg>"
}

fn shares(histogram: &Histogram<u64>, low: f64, high: f64) -> Vec<f64> {
    let mut shares = vec![0.0; ((high - low) * COLUMNS).round() as usize];
    for value in histogram.iter_recorded() {
        let column = ((log(value.value_iterated_to()) - low) * COLUMNS) as usize;
        if let Some(share) = shares.get_mut(column) {
            *share += value.count_since_last_iteration() as f64 / histogram.len() as f64;
        }
    }
    shares
}

/// The range of all values in halves of a decade of nanoseconds, half a decade at least.
fn decades(series: &[Series]) -> (f64, f64) {
    let low = series.iter().map(|(_, h)| log(h.min())).fold(f64::INFINITY, f64::min);
    let high = series.iter().map(|(_, h)| log(h.max())).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return (3.0, 6.0);
    }
    let low = (low * 2.0).floor() / 2.0;
    (low, ((high * 2.0).ceil() / 2.0).max(low + 0.5))
}

fn whole(low: f64, high: f64) -> impl Iterator<Item = i32> {
    low.ceil() as i32..=high.floor() as i32
}

fn log(nanoseconds: u64) -> f64 {
    (nanoseconds.max(1) as f64).log10()
}

fn duration(decade: i32) -> String {
    let value = microseconds(10u64.pow(decade.max(0) as u32));
    match value {
        v if v >= 1e6 => format!("{} s", v / 1e6),
        v if v >= 1e3 => format!("{} ms", v / 1e3),
        v => format!("{v} us"),
    }
}

fn open(label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">"#)
}

fn grid(svg: &mut String, from: (f64, f64), to: (f64, f64), label: &str, below: bool) {
    let (x, y, anchor) =
        if below { (from.0, HEIGHT - 12.0, "middle") } else { (LEFT - 6.0, from.1 + 4.0, "end") };
    // Writing to a String can't fail.
    let _ = write!(
        svg,
        r#"<line class="grid" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}"/><text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{label}</text>"#,
        from.0, from.1, to.0, to.1
    );
}
