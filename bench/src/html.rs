//! One self-contained page: the remarks, drawings, and the figures beside them. It fetches nothing and follows the
//! reader's choice of light or dark.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::chart::{self, Series};
use crate::report::{Report, Row};

const STYLE: &str = "
:root { color-scheme: light dark; --text: #1c2024; --back: #fff; --quiet: #667; --grid: #dde; --card: #f6f7f9;
  --floor: #7a7f87; --baton: #0b69d4; --keepalived: #c2570c; --ports: #8a4fbf; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --back: #14171a; --quiet: #9aa; --grid: #333a42;
  --card: #1c2126; --floor: #a0a7b0; --baton: #5aa9ff; --keepalived: #ff9d52; --ports: #c79bf2; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 2rem auto;
  max-width: 75rem; padding: 0 1rem; }
section { background: var(--card); border-radius: 8px; padding: 1rem; margin: 1rem 0; overflow-x: auto; }
h2, h3 { margin: 0 0 .5rem; } h3 { font-weight: 600; } .quiet { color: var(--quiet); }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } svg { width: 560px; max-width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--quiet); } .grid { stroke: var(--grid); }
.line { fill: none; stroke: currentColor; stroke-width: 2; }
.area { fill: currentColor; fill-opacity: .18; stroke: currentColor; stroke-width: 1.2; }
.floor { color: var(--floor); } .baton { color: var(--baton); } .keepalived { color: var(--keepalived); }
.keepalived_10ms { color: var(--keepalived); } .baton_no_resets, .baton_fast { color: var(--floor); }
.keepalived_ports, .keepalived_xdp, .lpt { color: var(--ports); } .count { color: var(--keepalived); } .stay { color: var(--floor); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } td, th { padding: .15rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; font-weight: 600; } th { color: var(--quiet); font-weight: 400; }
.void { border-left: 4px solid #d33; padding-left: .6rem; } ul { margin: .5rem 0; padding-left: 1.2rem; }
";

/// The page for `report`.
pub fn page(report: &Report, remarks: &[String]) -> String {
    let mut groups: BTreeMap<(&str, &str, &str), Vec<Series>> = BTreeMap::new();
    for (key, histogram) in report.iter() {
        let group = groups.entry((&key.scenario, key.load, &key.metric)).or_default();
        group.push((key.system, histogram));
    }
    let rows = report.rows();
    let mut body = String::new();
    for ((scenario, load, metric), series) in &groups {
        let of_group = |row: &&Row| row.scenario == *scenario && row.load == *load && row.metric == *metric;
        let rows: Vec<&Row> = rows.iter().filter(of_group).collect();
        // Writing to a String can't fail.
        let _ = write!(
            body,
            "<section><h3>{metric} <span class=quiet>{scenario}, {load}</span></h3><div class=charts>{}{}</div>{}</section>",
            chart::percentiles(series),
            chart::histogram(series),
            table(&rows)
        );
    }
    let intro = "Left: time over percentiles, every further nine takes the same width. \
        Right: share of runs over time. All systems in one run on one topology, taking turns.";
    document("Port failover", intro, remarks, &body)
}

/// A section with drawings side by side, and what stands below them.
pub fn section(heading: &str, drawings: &str, below: &str) -> String {
    format!("<section><h3>{}</h3><div class=charts>{drawings}</div>{below}</section>", escape(heading))
}

/// A whole page around `body`.
pub fn document(title: &str, intro: &str, remarks: &[String], body: &str) -> String {
    let list: String = remarks.iter().map(|remark| item(remark)).collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Baton: {title}</title><style>{STYLE}</style>\
         <h2>{title}</h2><p class=quiet>{intro}</p>\
         <ul>{list}</ul>{body}</html>\n"
    )
}

fn item(remark: &str) -> String {
    let class = if remark.starts_with("VOID") { " class=void" } else { "" };
    format!("<li{class}>{}</li>", escape(remark))
}

/// The figures of these rows.
pub fn table(rows: &[&Row]) -> String {
    let mut text = String::from("<table><tr><th>us<th>n<th>min<th>p50<th>p90<th>p99<th>p99.9<th>max</tr>");
    for row in rows {
        let _ = write!(text, "<tr><td class={}>{}<td>{}", row.system, row.system, row.n);
        for figure in [row.min, row.p50, row.p90, row.p99, row.p999, row.max] {
            let _ = write!(text, "<td>{figure:.1}");
        }
        text.push_str("</tr>");
    }
    text + "</table>"
}

/// For text between tags.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
