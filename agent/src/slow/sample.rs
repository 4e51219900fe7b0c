//! Reads the counters of the kernel programs and of the interfaces once a second: publishes them, and tells core what
//! each address carried since, and what each port got wrong.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baton_common::Counters;
use baton_core::{Config, IfIndex, Input, LinkErrors, Sample};
use tokio::sync::mpsc;

use crate::fast::PathReader;
use crate::io::kernel::CounterReader;
use crate::telemetry::{PathStats, Publisher, VipCounters};

/// Time between samples.
const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Sampler {
    reader: CounterReader,
    paths: PathReader,
    servers: HashMap<IpAddr, String>,
    interfaces: Vec<String>,
    publisher: Arc<Publisher>,
    inputs: mpsc::Sender<Input>,
}

/// The counters at one time.
struct Counted {
    at: Instant,
    bytes: HashMap<IpAddr, u64>,
    errors: BTreeMap<IfIndex, LinkErrors>,
}

impl Sampler {
    pub(super) fn new(
        config: &Config,
        reader: CounterReader,
        paths: PathReader,
        publisher: Arc<Publisher>,
        inputs: mpsc::Sender<Input>,
    ) -> Sampler {
        let of = |s: &baton_core::config::VirtualServer| {
            let name = s.name.clone();
            s.addresses.iter().map(move |a| (a.addr(), name.clone())).collect::<Vec<_>>()
        };
        Sampler {
            reader,
            paths,
            servers: config.servers.iter().flat_map(of).collect(),
            interfaces: config.ports.iter().map(|p| p.interface.clone()).collect(),
            publisher,
            inputs,
        }
    }

    /// Ends when core is gone.
    pub(super) async fn run(mut self) {
        let mut last: Option<Counted> = None;
        let mut failing = false;
        let mut minute = None;
        loop {
            let of_day = minute_of_day();
            if minute != of_day
                && let Some(of_day) = of_day
            {
                minute = Some(of_day);
                if self.inputs.send(Input::Minute(of_day)).await.is_err() {
                    return;
                }
            }
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
                    self.publish_paths();
                    let errors = errors(&self.interfaces);
                    let counted = Counted { at: now, bytes, errors };
                    if let Some(before) = last.replace(counted)
                        && let Some(after) = &last
                    {
                        let sample = Sample {
                            over: after.at - before.at,
                            bytes: since(&before.bytes, &after.bytes),
                            speed: speeds(&self.interfaces),
                            errors: errors_since(&before.errors, &after.errors),
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

    fn publish_paths(&mut self) {
        let stats = |path: &crate::fast::NamedPath| {
            let trips = self.paths.stamps.round_trips(path.slot);
            let (segment, from, to) = (path.segment.clone(), path.from.clone(), path.to.clone());
            PathStats { segment, from, to, rtt: trips.buckets, rtt_sum_ns: trips.sum_ns }
        };
        let paths = self.paths.paths.borrow().iter().map(stats).collect();
        self.publisher.paths.send_replace(Arc::new(paths));
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

/// Minutes since midnight, local time. The only use of the wall clock in a decision: when a virtual server may fail back.
fn minute_of_day() -> Option<u16> {
    // SAFETY: both calls write to the structures that they are given, whole; all-zero ones are valid.
    let local = unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        let now = libc::time(std::ptr::null_mut());
        (!libc::localtime_r(&now, &mut local).is_null()).then_some(local)
    }?;
    u16::try_from(local.tm_hour * 60 + local.tm_min).ok()
}

/// What each interface has counted so far (`rtnl_link_stats64`, as sysfs shows it).
fn errors(interfaces: &[String]) -> BTreeMap<IfIndex, LinkErrors> {
    let counted = |interface: &String| {
        let count = |counter: &str| read(&format!("/sys/class/net/{interface}/statistics/{counter}"));
        let errors = LinkErrors {
            rx_packets: count("rx_packets")?,
            rx_errors: count("rx_errors")?,
            tx_packets: count("tx_packets")?,
            tx_errors: count("tx_errors")?,
        };
        Some((IfIndex(read(&format!("/sys/class/net/{interface}/ifindex"))?), errors))
    };
    interfaces.iter().filter_map(counted).collect()
}

/// What they counted meanwhile; an interface whose counters began anew is left out.
fn errors_since(
    before: &BTreeMap<IfIndex, LinkErrors>,
    after: &BTreeMap<IfIndex, LinkErrors>,
) -> BTreeMap<IfIndex, LinkErrors> {
    let since = |(ifindex, now): (&IfIndex, &LinkErrors)| {
        let then = before.get(ifindex)?;
        let errors = LinkErrors {
            rx_packets: now.rx_packets.checked_sub(then.rx_packets)?,
            rx_errors: now.rx_errors.checked_sub(then.rx_errors)?,
            tx_packets: now.tx_packets.checked_sub(then.tx_packets)?,
            tx_errors: now.tx_errors.checked_sub(then.tx_errors)?,
        };
        Some((*ifindex, errors))
    };
    after.iter().filter_map(since).collect()
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
    let speed = |interface: &String| {
        let mbits: i64 = read(&format!("/sys/class/net/{interface}/speed"))?;
        let speed = u64::try_from(mbits).ok().filter(|s| *s > 0)? * 125_000;
        Some((IfIndex(read(&format!("/sys/class/net/{interface}/ifindex"))?), speed))
    };
    interfaces.iter().filter_map(speed).collect()
}

/// The number in a file, if there is one.
fn read<T: FromStr>(file: &str) -> Option<T> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
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

    #[test]
    fn errors_are_counted_since_the_last_sample_and_not_at_all_when_they_began_anew() {
        let errors = |rx_packets, rx_errors| LinkErrors { rx_packets, rx_errors, ..LinkErrors::default() };
        let before = BTreeMap::from([(IfIndex(1), errors(100, 2)), (IfIndex(2), errors(9, 0))]);
        let after = [(IfIndex(1), errors(150, 5)), (IfIndex(2), errors(3, 0)), (IfIndex(3), errors(1, 1))];
        let since = errors_since(&before, &BTreeMap::from(after));
        assert_eq!(since, BTreeMap::from([(IfIndex(1), errors(50, 3))]));
    }
}
