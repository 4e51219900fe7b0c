//! What the agent measures is what there is.

use anyhow::{Result, ensure};
use baton_lab::agent::metric;
use baton_lab::host::wait_until;
use baton_lab::{Agent, Cable, LoopDevice};

use crate::common::*;

/// Bytes that are written to the device.
const BYTES: usize = 4 << 20;

/// The work of a virtual server's device, and the node's processors, are in the metrics; a device that isn't there is passed over.
#[test]
fn a_device_and_the_host_are_measured() -> Result<()> {
    let lab = lab("measure", 1, Cable::EventsAtOnce)?;
    let mut device = LoopDevice::new(2 * BYTES as u64)?;
    let name = device.path().display().to_string();
    let filesystem = |device: &str, mount| {
        format!("\n[[virtual_server.filesystem]]\ndevice = {device:?}\nmount = {mount:?}\ntype = \"xfs\"\n")
    };
    let text = config(1).server("projects", &["10.0.0.10/24"]).text()
        + &filesystem(&name, "/run/lab/projects")
        + &filesystem("/dev/baton-lab-missing", "/run/lab/missing");
    let agent = Agent::start_text(lab.host("fs1")?, &text)?;
    let labels = [("virtual_server", "projects"), ("device", name.as_str())];
    let read = |metric_name| metric(&agent.metrics().ok()?, metric_name, &labels);
    let mut before = None;
    wait_until("the device's counters", LONG, || {
        before = read("baton_storage_bytes_total").zip(read("baton_storage_requests_total"));
        before.is_some()
    })?;
    let (bytes, requests) = before.unwrap_or_default();
    device.write(BYTES)?;
    wait_until("what was written", LONG, || {
        read("baton_storage_bytes_total").is_some_and(|now| now >= bytes + BYTES as f64)
    })?;
    let text = agent.metrics()?;
    let now = |name| metric(&text, name, &labels).unwrap_or(f64::NAN);
    // Whoever looks at new devices may read a little.
    ensure!(now("baton_storage_bytes_total") < bytes + 2.0 * BYTES as f64, "{text}");
    ensure!(now("baton_storage_requests_total") > requests, "{text}");
    ensure!(now("baton_storage_busy_seconds_total") >= 0.0, "{text}");
    ensure!(now("baton_storage_wait_seconds_total") >= 0.0, "{text}");
    for name in ["baton_node_cpu_ratio", "baton_node_cpu_pressure_ratio", "baton_node_memory_pressure_ratio"]
    {
        wait_until(name, LONG, || {
            let value = agent.metrics().ok().and_then(|text| metric(&text, name, &[]));
            value.is_some_and(|share| (0.0..=1.0).contains(&share))
        })?;
    }
    ensure!(!text.contains("baton-lab-missing"), "{text}");
    let told = agent.log().matches("/dev/baton-lab-missing of projects").count();
    ensure!(told == 1, "told {told} times: {}", agent.log());
    Ok(())
}
