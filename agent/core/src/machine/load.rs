//! Measured load: what each virtual server takes of this node, exponentially weighted over the time that it has been served
//! here. [`crate::config::Balance`] says what load is and what it is made of.
//!
//! What other nodes measured of a virtual server counts until this one has measured enough of its own: its weight at first is
//! that of the samples so far.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::cluster::NodeLoad;
use crate::{HostSample, Sample};

/// Below this rate (packets per second) virtual servers are not the only ones that keep the processors busy: they are
/// charged with as much less.
const BUSY_PACKETS: f64 = 1000.0;
/// What else is running can't make a node smaller than a tenth.
const MOST_OTHER: f64 = 0.9;
/// Loads are told in millionths.
const MILLION: f64 = 1e6;
/// A load is told again when it has changed by more than this share,
const TELL_SHARE: f64 = 0.05;
/// or by more than so many millionths, whichever is more.
const TELL_LEAST: f64 = 500.0;
/// The same of what is not virtual servers' doing, which is never quite still.
const TELL_OTHER: f64 = 50_000.0;

/// Rates of a virtual server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// How much of the exponential weights the samples so far make up: near 0 at first, later 1.
    weight: f64,
    /// Load where it was before, which makes up the rest.
    inherited: Option<f64>,
    /// Bytes per second.
    rx: f64,
    tx: f64,
    /// Packets per second.
    packets: f64,
    /// Share of the time in which its busiest device is busy.
    storage: f64,
}

/// Use of the node's processors and memory, as shares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Host {
    weight: f64,
    cpu: f64,
    memory: f64,
}

/// The exponential weights of one sample: how much the average so far counts, how much the sample, and what both make up.
struct Blend {
    before: f64,
    new: f64,
}

impl Blend {
    fn after(weight: f64, over: Duration, half_life: Duration) -> Blend {
        let keep = 0.5f64.powf(over.as_secs_f64() / half_life.as_secs_f64());
        Blend { before: keep * weight, new: 1.0 - keep }
    }

    fn weight(&self) -> f64 {
        self.before + self.new
    }

    fn of(&self, before: f64, new: f64) -> f64 {
        (self.before * before + self.new * new) / self.weight()
    }
}

impl Measured {
    /// Nothing yet; elsewhere its load was this.
    pub(super) fn inherited(load: Option<f64>) -> Measured {
        Measured { inherited: load, ..Measured::default() }
    }
}

impl Machine {
    pub(super) fn sample(&mut self, sample: &Sample) {
        let seconds = sample.over.as_secs_f64();
        let Some(half_life) = self.config.as_ref().map(|c| c.balance.half_life).filter(|_| seconds > 0.0)
        else {
            return;
        };
        for index in 0..self.servers.len() {
            self.measure(index, sample, half_life);
        }
        if let Some(HostSample { cpu, cpu_pressure, memory_pressure }) = sample.host {
            let host = &mut self.host;
            let blend = Blend::after(host.weight, sample.over, half_life);
            host.weight = blend.weight();
            host.cpu = blend.of(host.cpu, f64::from(cpu + cpu_pressure) / 1000.0);
            host.memory = blend.of(host.memory, f64::from(memory_pressure) / 1000.0);
        }
        for port in &mut self.ports {
            port.speed = port.ifindex().and_then(|i| sample.speed.get(&i).copied());
        }
        self.weigh_errors(sample);
        self.tell_load();
        self.balance();
    }

    /// What one virtual server did in a sample. One that is not served here did nothing here.
    fn measure(&mut self, index: usize, sample: &Sample, half_life: Duration) {
        let seconds = sample.over.as_secs_f64();
        let server = &mut self.servers[index];
        let vips = self.vips.iter_mut().filter(|(_, v)| v.server == index);
        if !server.marked && server.routing.is_empty() {
            server.measured = Measured::default();
            vips.for_each(|(_, v)| v.rate = 0.0);
            return;
        }
        let measured = &mut server.measured;
        let blend = Blend::after(measured.weight, sample.over, half_life);
        let (mut rx, mut tx, mut packets) = (0, 0, 0);
        for (address, vip) in vips {
            let traffic = sample.traffic.get(address).copied().unwrap_or_default();
            rx += traffic.rx_bytes;
            tx += traffic.tx_bytes;
            packets += traffic.packets;
            vip.rate = blend.of(vip.rate, (traffic.rx_bytes + traffic.tx_bytes) as f64 / seconds);
        }
        measured.rx = blend.of(measured.rx, rx as f64 / seconds);
        measured.tx = blend.of(measured.tx, tx as f64 / seconds);
        measured.packets = blend.of(measured.packets, packets as f64 / seconds);
        let name = &server.name;
        let devices = self.config.iter().flat_map(|c| &c.servers).filter(|s| s.name == *name);
        let busy = devices.flat_map(|s| &s.devices).filter_map(|d| sample.devices.get(d));
        let busiest = busy.map(|d| (d.busy.as_secs_f64() / seconds).min(1.0)).fold(0.0, f64::max);
        measured.storage = blend.of(measured.storage, busiest);
        measured.weight = blend.weight();
    }

    /// What this node can bear: an ordinary one is 1.
    pub(super) fn own_capacity(&self) -> f64 {
        self.config.as_ref().map_or(1.0, |c| f64::from(c.capacity_percent) / 100.0)
    }

    /// Packets per second of all virtual servers that are served here.
    fn packets(&self) -> f64 {
        self.servers.iter().filter(|s| s.marked).map(|s| s.measured.packets).sum()
    }

    /// Load of a virtual server that is served here: what it takes of an ordinary node.
    pub(super) fn measured_load(&self, index: usize) -> f64 {
        let Some(config) = &self.config else { return 0.0 };
        let (balance, server) = (&config.balance, &self.servers[index]);
        let measured = &server.measured;
        let weighed = |share: f64, percent: u32| share * f64::from(percent) / 100.0;
        let segments = self.vips.values().filter(|v| v.server == index).map(|v| v.segment.as_str());
        let segments: Vec<&str> = segments.collect();
        let ports = self.ports.iter().filter(|p| p.is_usable() && segments.contains(&p.segment.as_str()));
        let speed: u64 = ports.filter_map(|p| p.speed).sum();
        let network = if speed > 0 { measured.rx.max(measured.tx) / speed as f64 } else { 0.0 };
        let handled = f64::from(balance.packets_per_second) * self.own_capacity();
        let part = measured.packets / self.packets().max(BUSY_PACKETS);
        let shares = [
            weighed(network, balance.network_percent),
            weighed(measured.packets / handled, balance.packets_percent),
            weighed(part * self.host.cpu, balance.cpu_percent),
            weighed(part * self.host.memory, balance.memory_percent),
            weighed(measured.storage, balance.storage_percent),
        ];
        let here = shares.into_iter().fold(0.0, f64::max) * self.own_capacity();
        match measured.inherited {
            Some(before) => here * measured.weight + before * (1.0 - measured.weight),
            None => here,
        }
    }

    /// What something else than virtual servers takes of this node, 0 to 0.9.
    pub(super) fn other_load(&self) -> f64 {
        let Some(balance) = self.config.as_ref().map(|c| &c.balance) else { return 0.0 };
        let rest = 1.0 - (self.packets() / BUSY_PACKETS).min(1.0);
        let of = |share: f64, percent: u32| rest * share * f64::from(percent) / 100.0;
        let other = of(self.host.cpu, balance.cpu_percent).max(of(self.host.memory, balance.memory_percent));
        other.min(MOST_OTHER)
    }

    /// What this node has measured, for the others.
    pub(super) fn own_load(&self) -> NodeLoad {
        let millionths = |load: f64| (load * MILLION).round().min(f64::from(u32::MAX)) as u32;
        let served = self.servers.iter().enumerate().filter(|(_, s)| s.marked);
        NodeLoad {
            servers: served.map(|(i, s)| (s.name.clone(), millionths(self.measured_load(i)))).collect(),
            other: millionths(self.other_load()),
        }
    }
}

impl NodeLoad {
    /// Does it differ so much from what was told that it is to be told?
    pub(super) fn is_news(&self, told: &NodeLoad) -> bool {
        let differs =
            |a: u32, b: u32, least: f64| f64::from(a.abs_diff(b)) > (f64::from(b) * TELL_SHARE).max(least);
        !self.servers.keys().eq(told.servers.keys())
            || self.servers.values().zip(told.servers.values()).any(|(a, b)| differs(*a, *b, TELL_LEAST))
            || differs(self.other, told.other, TELL_OTHER)
    }
}
