//! What sharing TCP connections costs a node: reading the kernel's table and finding what has changed, as the agent does once a second,
//! and where connections begin more often.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use baton::connections::{Current, Numbers, Shared, decode};
use baton::io::kernel::{Ends, Kernel, Tracked, remove_all};
use baton_common::Connection;
use nix::time::{ClockId, clock_gettime};

use crate::report::Row;

/// Options of `connections`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How often it is measured.
    #[arg(long, default_value_t = 31)]
    runs: u32,
    /// Write the rows to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10)), 2049);
const CLIENTS: u32 = 0x0a80_0000;

/// Removes the pins, also after a panic.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.0) {
            eprintln!("{error}");
        }
    }
}

/// Runs the benchmark.
pub fn main(arguments: &Arguments) -> Result<()> {
    let pins = Pins(std::env::temp_dir().join(format!("baton-connections-{}", std::process::id())));
    let mut kernel = Kernel::open(&pins.0)?;
    let mut reader = kernel.connections()?;
    let mut rows = Vec::new();
    let mut known = 0;
    for count in [1_000, 10_000] {
        for n in known..count {
            let client = SocketAddr::new(IpAddr::from((CLIENTS + n).to_be_bytes()), 700);
            let state = Connection { numbers: n.into(), sent_ns: 1, ..Connection::default() };
            reader.insert(&Tracked { ends: Ends { server: SERVER, client }, state })?;
        }
        known = count;
        let (mut reads, mut steady, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        let mut shared = Shared::default();
        for run in 0..arguments.runs {
            let (read, took) = measure(|| reader.read().map_err(anyhow::Error::from))?;
            let read = read?;
            reads.push(took);
            let current: Vec<Current> = read.iter().map(|t| current(t, 0)).collect();
            loop {
                let changes = shared.changes(&current, true);
                if changes.is_empty() {
                    break;
                }
                for change in changes {
                    let content = change.value.and_then(|value| decode(&value));
                    shared.set(change.bucket, content.unwrap_or_default());
                }
            }
            steady.push(measure(|| shared.changes(&current, true))?.1);
            // Every number has changed: as many buckets are written as ever are at a time.
            let other: Vec<Current> = read.iter().map(|t| self::current(t, run + 1)).collect();
            busy.push(measure(|| shared.changes(&other, true))?.1);
        }
        let scenario = format!("{count} connections");
        for (metric, values) in
            [("table_read", &mut reads), ("nothing_changed", &mut steady), ("all_changed", &mut busy)]
        {
            rows.push(Row::of("connections", "baton", &scenario, metric, "us", values));
        }
    }
    println!(
        "Processor time, once a second, and where connections begin as often as takes 1 % of a processor, ten times a second at most\n"
    );
    println!("{:<20} {:<16} {:>8} {:>8} {:>8}  us", "scenario", "metric", "p50", "p99", "max");
    for row in &rows {
        println!(
            "{:<20} {:<16} {:>8.0} {:>8.0} {:>8.0}",
            row.scenario, row.metric, row.p50, row.p99, row.max
        );
    }
    if let Some(path) = &arguments.json {
        let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        serde_json::to_writer_pretty(file, &rows).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn current(tracked: &Tracked, more: u32) -> Current {
    let state = tracked.state;
    let numbers = Numbers { server: state.next_of_server() + more, client: state.next_of_client() };
    Current { ends: tracked.ends, numbers, silent: true }
}

/// Processor time of this thread, in microseconds.
fn measure<T>(work: impl FnOnce() -> T) -> Result<(T, f64)> {
    let time = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let begun = time()?;
    let done = work();
    Ok((done, (time()? - begun).as_secs_f64() * 1e6))
}
