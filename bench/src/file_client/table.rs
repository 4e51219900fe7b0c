//! All stalls in one table, beside what was to be reached.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::html;
use crate::report::{Report, Row};

/// What was to be reached, in milliseconds at p99.
fn limit(cause: &str, metric: &str) -> Option<f64> {
    match (cause, metric) {
        ("power_loss", "client_stall") => Some(1000.0),
        ("port_cut", "client_stall") => Some(250.0),
        ("drain" | "move", "client_stall") => Some(600.0),
        // The configured limit is a second.
        ("storage_hang", "verdict") => Some(1100.0),
        ("storage_hang", "served_after_verdict") => Some(1000.0),
        ("storage_hang", "client_stall") => Some(2100.0),
        _ => None,
    }
}

/// One line of it.
struct Line {
    scenario: String,
    metric: String,
    system: &'static str,
    n: u64,
    /// Median, p99 and longest, in milliseconds.
    times: [f64; 3],
    limit: Option<f64>,
}

impl Line {
    fn of(row: Row) -> Line {
        let cause = row.scenario.split_once('/').map_or(&*row.scenario, |(cause, _)| cause);
        let limit = limit(cause, &row.metric).filter(|_| row.system == "baton");
        let times = [row.p50, row.p99, row.max].map(|us| us / 1e3);
        Line { scenario: row.scenario, metric: row.metric, system: row.system, n: row.n, times, limit }
    }

    /// Was it reached?
    fn verdict(&self) -> Option<&'static str> {
        let [_, p99, _] = self.times;
        self.limit.map(|limit| if p99 <= limit { "reached" } else { "MISSED" })
    }
}

/// The table.
pub struct Table(Vec<Line>);

impl Table {
    /// What of a report belongs there.
    pub fn of(report: &Report) -> Table {
        let shown = ["client_stall", "verdict", "served_after_verdict"];
        let rows = report.rows().into_iter().filter(|row| shown.contains(&&*row.metric));
        Table(rows.map(Line::of).collect())
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{:<28}{:<22}{:<18}{:>4}{:>9}{:>9}{:>9}{:>9}\n",
            "ms", "", "system", "n", "p50", "p99", "longest", "limit"
        );
        for line in &self.0 {
            let [p50, p99, longest] = line.times;
            let limit =
                line.limit.map(|limit| format!("{limit:>9.0} {}", line.verdict().unwrap_or_default()));
            // Writing to a String can't fail.
            let _ = writeln!(
                text,
                "{:<28}{:<22}{:<18}{:>4}{p50:>9.0}{p99:>9.0}{longest:>9.0}{}",
                line.scenario,
                line.metric,
                line.system,
                line.n,
                limit.unwrap_or_default()
            );
        }
        text
    }

    /// For the page: a line for each scenario and metric, systems side by side.
    pub fn html(&self) -> String {
        let mut systems: Vec<&str> = self.0.iter().map(|line| line.system).collect();
        systems.sort_unstable();
        systems.dedup();
        let mut groups: BTreeMap<(&str, &str), Vec<&Line>> = BTreeMap::new();
        for line in &self.0 {
            groups.entry((&line.scenario, &line.metric)).or_default().push(line);
        }
        let mut text = String::from("<table><tr><th>ms: p50, p99, longest<th>");
        for system in &systems {
            // Writing to a String can't fail.
            let _ = write!(text, "<th class={system}>{system}");
        }
        text.push_str("<th>limit of p99<th></tr>");
        for ((scenario, metric), lines) in groups {
            let _ = write!(text, "<tr><td>{}<td>{metric}", html::escape(scenario));
            for system in &systems {
                let line = lines.iter().find(|line| line.system == *system);
                let shown = line.map(|Line { times: [p50, p99, longest], .. }| {
                    format!("{p50:.0}, {p99:.0}, {longest:.0}")
                });
                let _ = write!(text, "<td>{}", shown.unwrap_or_default());
            }
            let judged = lines.iter().find_map(|line| Some((line.limit?, line.verdict()?)));
            let judged = judged.map(|(limit, verdict)| format!("<td>{limit:.0}<td>{verdict}"));
            let _ = write!(text, "{}</tr>", judged.unwrap_or_else(|| "<td><td>".to_owned()));
        }
        html::section("All of it", "", &(text + "</table>"))
    }

    /// Sentences on the figures that were to be reached.
    pub fn remarks(&self) -> Vec<String> {
        let sentence = |line: &Line| {
            let (limit, word) = (line.limit?, line.verdict()?);
            let [_, p99, _] = line.times;
            let Line { scenario, metric, n, .. } = line;
            Some(format!("{word}: {scenario}: {metric} p99 {p99:.0} ms (at most {limit:.0}), n {n}"))
        };
        self.0.iter().filter_map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::Key;

    #[test]
    fn a_limit_is_for_baton_and_is_reached_or_not() {
        let mut report = Report::new("file-client");
        let mut record = |scenario: &str, metric: &str, system, ms| {
            let key = Key { scenario: scenario.into(), load: "idle", metric: metric.into(), system };
            report.record(key, Duration::from_millis(ms)).expect("recorded");
        };
        record("port_cut/read_1m", "client_stall", "baton", 240);
        record("port_cut/read_1m", "client_stall", "keepalived", 4000);
        record("storage_hang/read_1m", "verdict", "baton", 1200);
        record("agent_killed/read_1m", "client_stall", "baton", 9);
        record("agent_killed/read_1m", "longest_before", "baton", 9);
        let table = Table::of(&report);
        // Times are kept to three digits.
        let [reached, missed] = &table.remarks()[..] else { panic!("two limits: {:?}", table.remarks()) };
        assert!(reached.starts_with("reached: port_cut/read_1m: client_stall p99 24"), "{reached}");
        assert!(missed.starts_with("MISSED: storage_hang/read_1m: verdict p99 120"), "{missed}");
        assert_eq!(table.text().lines().count(), 5);
        assert_eq!(table.html().matches("<tr>").count(), 4);
    }
}
