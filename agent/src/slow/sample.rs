//! Reads the counters of the kernel programs, of the interfaces, of the host and of block devices once a second: publishes them,
//! and tells core what each address carried since, how busy the host and the devices were, and what each port got wrong.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baton_common::Counters;
use baton_core::config::PortConfig;
use baton_core::{Config, DeviceSample, IfIndex, Input, LinkErrors, Sample, Traffic};
use tokio::sync::{mpsc, watch};

use super::devices::{self, Devices};
use super::host::{self, HostCounters};
use super::ports;
use super::requests::RequestSampler;
use crate::fast::PathReader;
use crate::io::kernel::{CounterReader, KernelError};
use crate::telemetry::{PathStats, Publisher, VipCounters};

/// Time between samples.
const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Sampler {
    reader: CounterReader,
    paths: PathReader,
    servers: HashMap<IpAddr, String>,
    ports: Vec<PortConfig>,
    devices: Devices,
    /// `None`: there are no storage units, or their requests can't be watched.
    requests: Option<RequestSampler>,
    publisher: Arc<Publisher>,
    inputs: mpsc::Sender<Input>,
    /// What is in force.
    config: watch::Receiver<Config>,
}

/// The counters at one time.
struct Counted {
    at: Instant,
    /// With the slot that each is kept in: in another one it began anew.
    traffic: HashMap<IpAddr, (u32, Traffic)>,
    host: Option<HostCounters>,
    devices: BTreeMap<String, devices::Counted>,
    errors: BTreeMap<IfIndex, LinkErrors>,
}

impl Sampler {
    pub(super) fn new(
        config: watch::Receiver<Config>,
        reader: CounterReader,
        paths: PathReader,
        requests: Option<RequestSampler>,
        publisher: Arc<Publisher>,
        inputs: mpsc::Sender<Input>,
    ) -> Sampler {
        let (servers, ports, devices) = parts(&config.borrow());
        Sampler { reader, paths, servers, ports, devices, requests, publisher, inputs, config }
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
            if self.config.has_changed().unwrap_or(false) {
                (self.servers, self.ports, self.devices) = parts(&self.config.borrow_and_update());
            }
            match self.count() {
                Err(e) if !failing => {
                    failing = true;
                    tracing::error!("reading counters: {e}");
                }
                Err(_) => {}
                Ok(counted) => {
                    failing = false;
                    if let Some(before) = &last {
                        let sample = self.sample(before, &counted);
                        self.publisher.host.send_replace(sample.host);
                        if self.inputs.send(Input::Sample(sample)).await.is_err() {
                            return;
                        }
                    }
                    last = Some(counted);
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Reads everything, and publishes what is shown as it is.
    fn count(&mut self) -> Result<Counted, KernelError> {
        let read = self.reader.read()?;
        let at = Instant::now();
        let traffic = read.iter().map(|(a, slot, c)| (*a, (*slot, traffic(c)))).collect();
        self.publish(read);
        self.publish_paths();
        let (shown, devices): (Vec<_>, Vec<_>) = self.devices.read().into_iter().unzip();
        let devices = shown.iter().map(|d| d.device.clone()).zip(devices).collect();
        self.publisher.devices.send_replace(Arc::new(shown));
        if let Some(requests) = &mut self.requests {
            let units = self.publisher.units.borrow().clone();
            self.publisher.requests.send_replace(Arc::new(requests.read(&units)));
        }
        Ok(Counted { at, traffic, host: host::read(), devices, errors: ports::errors(&self.ports) })
    }

    fn sample(&self, before: &Counted, after: &Counted) -> Sample {
        let over = after.at - before.at;
        Sample {
            over,
            traffic: since(&before.traffic, &after.traffic),
            host: after.host.zip(before.host).and_then(|(now, then)| now.since(&then, over)),
            devices: devices_since(&before.devices, &after.devices),
            speed: ports::speeds(&self.ports),
            errors: ports::errors_since(&before.errors, &after.errors),
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

/// What is sampled by a configuration: the virtual server of each address, ports and devices.
fn parts(config: &Config) -> (HashMap<IpAddr, String>, Vec<PortConfig>, Devices) {
    let of = |s: &baton_core::config::VirtualServer| {
        let name = s.name.clone();
        s.addresses.iter().map(move |a| (a.addr(), name.clone())).collect::<Vec<_>>()
    };
    (config.servers.iter().flat_map(of).collect(), config.ports.clone(), Devices::new(config))
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

fn traffic(counters: &Counters) -> Traffic {
    let Counters { rx_packets, rx_bytes, tx_packets, tx_bytes, .. } = *counters;
    Traffic { rx_bytes, tx_bytes, packets: rx_packets + tx_packets }
}

/// What each address carried meanwhile, if anything. Where one counter is lower than before, all of them began anew.
fn since(
    before: &HashMap<IpAddr, (u32, Traffic)>,
    after: &HashMap<IpAddr, (u32, Traffic)>,
) -> BTreeMap<IpAddr, Traffic> {
    let since = |(address, (slot, now)): (&IpAddr, &(u32, Traffic))| {
        let then = before.get(address).filter(|(before, _)| before == slot);
        (*address, then.and_then(|(_, then)| carried(then, now)).unwrap_or(*now))
    };
    after.iter().map(since).filter(|(_, traffic)| *traffic != Traffic::default()).collect()
}

fn carried(then: &Traffic, now: &Traffic) -> Option<Traffic> {
    Some(Traffic {
        rx_bytes: now.rx_bytes.checked_sub(then.rx_bytes)?,
        tx_bytes: now.tx_bytes.checked_sub(then.tx_bytes)?,
        packets: now.packets.checked_sub(then.packets)?,
    })
}

/// What each device did meanwhile, where it was there before, too.
fn devices_since(
    before: &BTreeMap<String, devices::Counted>,
    after: &BTreeMap<String, devices::Counted>,
) -> BTreeMap<String, DeviceSample> {
    let since = |(name, now): (&String, &devices::Counted)| {
        Some((name.clone(), before.get(name).and_then(|then| now.since(then))?))
    };
    after.iter().filter_map(since).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(rx_bytes: u64, tx_bytes: u64, packets: u64) -> Traffic {
        Traffic { rx_bytes, tx_bytes, packets }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn traffic_is_what_was_carried_since() {
        let before =
            HashMap::from([(address(1), (0, traffic(100, 10, 5))), (address(2), (1, traffic(7, 7, 2)))]);
        let after =
            HashMap::from([(address(1), (0, traffic(140, 10, 6))), (address(2), (1, traffic(7, 7, 2)))]);
        assert_eq!(since(&before, &after), BTreeMap::from([(address(1), traffic(40, 0, 1))]));
    }

    #[test]
    fn counters_that_began_anew_count_from_zero() {
        let before = HashMap::from([(address(1), (0, traffic(100, 10, 5)))]);
        for now in [traffic(40, 20, 6), traffic(140, 9, 6), traffic(140, 20, 4)] {
            let after = HashMap::from([(address(1), (0, now))]);
            assert_eq!(since(&before, &after), BTreeMap::from([(address(1), now)]));
        }
        let elsewhere = HashMap::from([(address(1), (3, traffic(140, 20, 6)))]);
        assert_eq!(since(&before, &elsewhere), BTreeMap::from([(address(1), traffic(140, 20, 6))]));
        let new = HashMap::from([(address(2), (1, traffic(5, 0, 1)))]);
        assert_eq!(since(&before, &new), BTreeMap::from([(address(2), traffic(5, 0, 1))]));
    }
}
