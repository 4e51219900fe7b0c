//! Words, numbers and tables for people. Pure functions.

use baton_core::PortState;

/// Colour of a cell, used only on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tint {
    Plain,
    Heading,
    Good,
    Warning,
    Bad,
}

impl Tint {
    /// SGR parameters (ECMA-48, 8.3.117).
    fn code(self) -> &'static str {
        match self {
            Tint::Plain => "0",
            Tint::Heading => "1",
            Tint::Good => "32",
            Tint::Warning => "33",
            Tint::Bad => "1;31",
        }
    }

    /// Higher is worse.
    pub(super) fn severity(self) -> u8 {
        match self {
            Tint::Plain | Tint::Heading | Tint::Good => 0,
            Tint::Warning => 1,
            Tint::Bad => 2,
        }
    }

    pub(super) fn of_port(state: PortState) -> Tint {
        match state {
            PortState::Good => Tint::Good,
            PortState::Held | PortState::Degraded => Tint::Warning,
            PortState::Down | PortState::Silent => Tint::Bad,
        }
    }

    pub(super) fn of_server(state: &str) -> Tint {
        match state {
            "serving" => Tint::Good,
            "starting" | "stopping" => Tint::Warning,
            _ => Tint::Bad,
        }
    }
}

/// `text`, coloured if `colour`.
pub(super) fn tinted(text: &str, tint: Tint, colour: bool) -> String {
    if colour && tint != Tint::Plain {
        format!("\x1b[{}m{text}\x1b[0m", tint.code())
    } else {
        text.to_owned()
    }
}

/// Columns of equal width, two spaces apart.
pub(super) struct Table {
    rows: Vec<Vec<(String, Tint)>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these headings; a column whose heading starts with `>` stands right.
    pub(super) fn new(headings: &[&str]) -> Self {
        let cell = |h: &&str| (h.trim_start_matches('>').to_owned(), Tint::Heading);
        Table {
            rows: vec![headings.iter().map(cell).collect()],
            right: headings.iter().map(|h| h.starts_with('>')).collect(),
        }
    }

    /// Adds a row of as many cells as there are headings.
    pub(super) fn row<const N: usize>(&mut self, cells: [(String, Tint); N]) {
        self.rows.push(cells.into());
    }

    /// Writes all rows, without spaces at the ends of lines.
    pub(super) fn write(&self, out: &mut String, colour: bool) {
        let length = |row: &Vec<(String, Tint)>, c: usize| row.get(c).map_or(0, |(t, _)| t.chars().count());
        let width = |c| self.rows.iter().map(|r| length(r, c)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (c, (width, right)) in widths.iter().zip(&self.right).enumerate() {
                let Some((text, tint)) = row.get(c) else { break };
                let gap = " ".repeat(width - length(row, c));
                let cell = tinted(text, *tint, colour);
                line += &if *right { format!("{gap}{cell}  ") } else { format!("{cell}{gap}  ") };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// Bytes per second, in decimal units.
pub(super) fn rate(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B/s", "kB/s", "MB/s"] {
        // 999.5 and more would be written with four digits.
        if value < 999.5 {
            return if unit == "B/s" || value >= 99.95 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} GB/s")
}

/// 0 to 1 as a percentage.
pub(super) fn percent(load: f64) -> String {
    format!("{:.0} %", load * 100.0)
}

/// Milliseconds, coarsely.
pub(super) fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min", ms / 60_000),
    }
}

/// `text` without control characters and line ends, so that it can neither break a line nor steer a terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `1 port`, `2 ports`.
pub(super) fn count(n: usize, what: &str) -> String {
    let s = if n == 1 {
        ""
    } else if what.ends_with('s') {
        "es"
    } else {
        "s"
    };
    format!("{n} {what}{s}")
}
