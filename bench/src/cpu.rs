//! Processor time, from the scheduler's own account of nanoseconds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Processor time of all threads of a process, in seconds.
pub fn seconds(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("read the agent's threads")? {
        sum += run_time(&task?.path().join("schedstat"))?;
    }
    Ok(sum)
}

/// Processor time of a thread, in seconds.
pub fn run_time(schedstat: &Path) -> Result<f64> {
    let text = fs::read_to_string(schedstat)?;
    let nanoseconds: u64 =
        text.split_whitespace().next().and_then(|n| n.parse().ok()).context("schedstat")?;
    Ok(nanoseconds as f64 / 1e9)
}
