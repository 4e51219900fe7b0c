//! Distributions by system, scenario, load and metric; as rows, and as a table for the terminal.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

/// Values are kept in nanoseconds to three digits, up to this.
const LONGEST: Duration = Duration::from_secs(60);

/// What a distribution is of. Ordered as tables show it: system last, so that systems stand side by side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What was done.
    pub scenario: String,
    /// What else the machine did.
    pub load: &'static str,
    /// What was measured.
    pub metric: String,
    /// Of whom.
    pub system: &'static str,
}

/// One row of the JSON list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the benchmark.
    pub bench: &'static str,
    /// The system measured.
    pub system: &'static str,
    /// What was done.
    pub scenario: String,
    /// `idle` or `busy`.
    pub load: &'static str,
    /// What was measured.
    pub metric: String,
    /// Unit of the figures.
    pub unit: &'static str,
    /// How many values.
    pub n: u64,
    /// The least.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100 are not above.
    pub p90: f64,
    /// 99 of 100 are not above.
    pub p99: f64,
    /// 999 of 1,000 are not above.
    pub p999: f64,
    /// The greatest.
    pub max: f64,
}

impl Row {
    /// The distribution of these values, of which there is at least one, on an otherwise idle machine.
    pub fn of(
        bench: &'static str,
        system: &'static str,
        scenario: &str,
        metric: &str,
        unit: &'static str,
        values: &mut [f64],
    ) -> Row {
        values.sort_by(f64::total_cmp);
        let at = |q: f64| values[((values.len() - 1) as f64 * q).round() as usize];
        Row {
            bench,
            system,
            scenario: scenario.to_owned(),
            load: "idle",
            metric: metric.to_owned(),
            unit,
            n: values.len() as u64,
            min: at(0.0),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

/// All distributions of a benchmark.
#[derive(Debug)]
pub struct Report {
    bench: &'static str,
    distributions: BTreeMap<Key, Histogram<u64>>,
}

impl Report {
    /// An empty one.
    pub fn new(bench: &'static str) -> Report {
        Report { bench, distributions: BTreeMap::new() }
    }

    /// Adds one value; longer ones than a minute count as a minute.
    pub fn record(&mut self, key: Key, value: Duration) -> Result<()> {
        let nanoseconds = value.min(LONGEST).as_nanos() as u64;
        let histogram = match self.distributions.get_mut(&key) {
            Some(histogram) => histogram,
            None => self.distributions.entry(key).or_insert(empty()?),
        };
        histogram.record(nanoseconds.max(1)).context("record a value")
    }

    /// Adds a distribution that a system measured itself.
    pub fn add(&mut self, key: Key, histogram: Histogram<u64>) {
        self.distributions.insert(key, histogram);
    }

    /// A distribution, if anything was recorded.
    pub fn get(&self, key: &Key) -> Option<&Histogram<u64>> {
        self.distributions.get(key)
    }

    /// All of them, in the order of [`Key`].
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Histogram<u64>)> {
        self.distributions.iter()
    }

    /// As rows, in microseconds.
    pub fn rows(&self) -> Vec<Row> {
        self.iter().map(|(key, histogram)| self.row(key, histogram)).collect()
    }

    /// As a table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut group = None;
        for row in self.rows() {
            let of = (row.scenario.clone(), row.load, row.metric.clone());
            if group.as_ref() != Some(&of) {
                // Writing to a String can't fail.
                let _ = writeln!(text, "\n{} | {} | {} ({})", of.0, of.1, of.2, row.unit);
                let _ = writeln!(
                    text,
                    "  {:<18}{:>7}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}",
                    "system", "n", "min", "p50", "p90", "p99", "p99.9", "max"
                );
                group = Some(of);
            }
            let figures = [row.min, row.p50, row.p90, row.p99, row.p999, row.max];
            let _ = write!(text, "  {:<18}{:>7}", row.system, row.n);
            for figure in figures {
                let _ = write!(text, "{figure:>11.1}");
            }
            text.push('\n');
        }
        text
    }

    fn row(&self, key: &Key, histogram: &Histogram<u64>) -> Row {
        let at = |quantile| microseconds(histogram.value_at_quantile(quantile));
        Row {
            bench: self.bench,
            system: key.system,
            scenario: key.scenario.clone(),
            load: key.load,
            metric: key.metric.clone(),
            unit: "us",
            n: histogram.len(),
            min: microseconds(histogram.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: microseconds(histogram.max()),
        }
    }
}

/// Nanoseconds as microseconds, to a tenth.
pub fn microseconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 100.0).round() / 10.0
}

fn empty() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3).context("make a histogram")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_agreed_keys_and_microseconds() {
        let mut report = Report::new("port-failover");
        let key = |system| Key {
            scenario: "carrier_event_at_once".into(),
            load: "idle",
            metric: "client_outage".into(),
            system,
        };
        for microseconds in [100, 200, 300] {
            report.record(key("floor"), Duration::from_micros(microseconds)).unwrap();
        }
        let rows = serde_json::to_value(report.rows()).unwrap();
        let keys: Vec<_> = rows[0].as_object().unwrap().keys().map(String::as_str).collect();
        let mut agreed = vec![
            "bench", "system", "scenario", "load", "metric", "unit", "n", "min", "p50", "p90", "p99", "p999",
            "max",
        ];
        agreed.sort_unstable();
        assert_eq!(keys, agreed);
        assert_eq!((rows[0]["n"].as_u64(), rows[0]["unit"].as_str()), (Some(3), Some("us")));
        let p50 = rows[0]["p50"].as_f64().unwrap();
        assert!((199.0..=201.0).contains(&p50), "{p50}");
    }
}
