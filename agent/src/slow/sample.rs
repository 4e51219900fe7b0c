//! Reads the kernel's counters once a second: publishes them, and tells core what each address carried since.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baton_common::Counters;
use baton_core::{Config, IfIndex, Input, Sample};
use tokio::sync::mpsc;

use crate::io::kernel::CounterReader;
use crate::telemetry::{Publisher, VipCounters};

/// Time between samples.
const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Sampler {
    reader: CounterReader,
    servers: HashMap<IpAddr, String>,
    interfaces: Vec<String>,
    publisher: Arc<Publisher>,
    inputs: mpsc::Sender<Input>,
}

impl Sampler {
    pub(super) fn new(
        config: &Config,
        reader: CounterReader,
        publisher: Arc<Publisher>,
        inputs: mpsc::Sender<Input>,
    ) -> Sampler {
        let of = |s: &baton_core::config::VirtualServer| {
            let name = s.name.clone();
            s.addresses.iter().map(move |a| (a.addr(), name.clone())).collect::<Vec<_>>()
        };
        Sampler {
            reader,
            servers: config.servers.iter().flat_map(of).collect(),
            interfaces: config.ports.iter().map(|p| p.interface.clone()).collect(),
            publisher,
            inputs,
        }
    }

    /// Ends when core is gone.
    pub(super) async fn run(mut self) {
        let mut last: Option<(Instant, HashMap<IpAddr, u64>)> = None;
        let mut failing = false;
        loop {
            let read = self.reader.read();
            let now = Instant::now();
            match read {
                Err(e) if !failing => {
                    failing = true;
                    tracing::error!("reading counters: {e}");
                }
                Err(_) => {}
                Ok(read) => {
                    failing = false;
                    let bytes: HashMap<IpAddr, u64> =
                        read.iter().map(|(a, _, c)| (*a, c.rx_bytes + c.tx_bytes)).collect();
                    self.publish(read);
                    if let Some((then, before)) = last.replace((now, bytes))
                        && let Some((_, after)) = &last
                    {
                        let sample = Sample {
                            over: now - then,
                            bytes: since(&before, after),
                            speed: speeds(&self.interfaces),
                            errors: BTreeMap::new(),
                        };
                        if self.inputs.send(Input::Sample(sample)).await.is_err() {
                            return;
                        }
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn publish(&mut self, read: Vec<(IpAddr, u32, Counters)>) {
        let known = |(address, _, counters)| {
            let server = self.servers.get(&address)?.clone();
            Some(VipCounters { address, server, counters })
        };
        self.publisher.counters.send_replace(Arc::new(read.into_iter().filter_map(known).collect()));
        match self.reader.diagnostics() {
            Ok(diagnostics) => {
                self.publisher.diagnostics.send_replace(diagnostics);
            }
            Err(e) => tracing::debug!("reading diagnostics: {e}"),
        }
    }
}

/// What each address carried meanwhile. A counter that is lower than before began anew.
fn since(before: &HashMap<IpAddr, u64>, after: &HashMap<IpAddr, u64>) -> BTreeMap<IpAddr, u64> {
    after
        .iter()
        .map(|(a, &now)| (*a, before.get(a).and_then(|b| now.checked_sub(*b)).unwrap_or(now)))
        .filter(|(_, n)| *n > 0)
        .collect()
}

/// Speed of each port that tells it (in Mbit/s; a port without carrier says -1), in bytes per second.
fn speeds(interfaces: &[String]) -> BTreeMap<IfIndex, u64> {
    let read = |file: String| fs::read_to_string(file).ok()?.trim().parse::<i64>().ok();
    interfaces
        .iter()
        .filter_map(|i| {
            let ifindex = read(format!("/sys/class/net/{i}/ifindex"))?;
            let mbits = read(format!("/sys/class/net/{i}/speed")).filter(|s| *s > 0)?;
            Some((IfIndex(u32::try_from(ifindex).ok()?), mbits as u64 * 125_000))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        let a = IpAddr::from([10, 0, 0, 1]);
        let b = IpAddr::from([10, 0, 0, 2]);
        let before = HashMap::from([(a, 100), (b, 7)]);
        let after = HashMap::from([(a, 40), (b, 7)]);
        assert_eq!(since(&before, &after), BTreeMap::from([(a, 40)]));
    }
}
