//! Metrics that are read from the published state when somebody asks for them.

use std::fmt;
use std::time::Duration;

use baton_common::RTT_BUCKETS;
use baton_core::{Finding, PathView, PortState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder};
use prometheus_client::metrics::MetricType;

use super::{DeviceCounters, Published, UnitRequests, UnitStats, VipCounters};
use crate::confine;

#[derive(Debug)]
pub(super) struct Collected {
    published: Published,
}

impl Collected {
    pub(super) fn new(published: Published) -> Self {
        Collected { published }
    }

    fn traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.published.counters.borrow().clone();
        type Pick = fn(&VipCounters) -> (u64, u64);
        let families: [(&str, &str, Pick); 3] = [
            ("baton_vip_packets", "Frames of a virtual IP", |v| {
                (v.counters.rx_packets, v.counters.tx_packets)
            }),
            ("baton_vip_bytes", "Bytes of those frames", |v| (v.counters.rx_bytes, v.counters.tx_bytes)),
            ("baton_vip_dropped_packets", "Frames dropped because the virtual IP may not be served", |v| {
                (v.counters.rx_dropped, v.counters.tx_dropped)
            }),
        ];
        for (name, help, pick) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for vip in counters.iter() {
                let (rx, tx) = pick(vip);
                let address = vip.address.to_string();
                for (direction, value) in [("rx", rx), ("tx", tx)] {
                    let labels = [
                        ("virtual_server", vip.server.as_str()),
                        ("address", address.as_str()),
                        ("direction", direction),
                    ];
                    counter(&mut family, &labels, value)?;
                }
            }
        }
        Ok(())
    }

    fn view(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.published.snapshot.borrow().clone();
        let mut family = encoder.encode_descriptor(
            "baton_virtual_server_load",
            "Load, 0 to 1 of capacity",
            None,
            MetricType::Gauge,
        )?;
        for server in &view.virtual_servers {
            gauge(&mut family, &[("virtual_server", server.name.as_str())], server.load)?;
        }
        let mut family = encoder.encode_descriptor(
            "baton_node_load",
            "Load, 0 to 1 of capacity",
            None,
            MetricType::Gauge,
        )?;
        for node in &view.nodes {
            gauge(&mut family, &[("node", node.name.as_str())], node.load)?;
        }
        let help = "Moves that would even loads out and are not made; told by the master";
        let mut family =
            encoder.encode_descriptor("baton_balance_advised_moves", help, None, MetricType::Gauge)?;
        let none: [(&str, &str); 0] = [];
        gauge(&mut family, &none, view.advice.len() as f64)?;
        let mut family = encoder.encode_descriptor(
            "baton_virtual_server_owner",
            "1 for the node that owns the virtual server",
            None,
            MetricType::Gauge,
        )?;
        for server in &view.virtual_servers {
            for node in &view.nodes {
                let labels = [("virtual_server", server.name.as_str()), ("node", node.name.as_str())];
                let owner = server.owner.as_deref() == Some(node.name.as_str());
                gauge(&mut family, &labels, f64::from(u8::from(owner)))?;
            }
        }
        let help = "1 for the node that answers for the address in its segment and routes to the owner";
        let mut family = encoder.encode_descriptor("baton_vip_via", help, None, MetricType::Gauge)?;
        for server in &view.virtual_servers {
            for address in &server.addresses {
                if let Some(via) = &address.via {
                    let text = address.address.to_string();
                    let labels =
                        [("virtual_server", server.name.as_str()), ("address", &text), ("node", via)];
                    gauge(&mut family, &labels, 1.0)?;
                }
            }
        }
        let mut family = encoder.encode_descriptor(
            "baton_port_state",
            "1 for the state that the port is in",
            None,
            MetricType::Gauge,
        )?;
        for port in &view.ports {
            for state in PortState::ALL {
                let labels = [
                    ("interface", port.interface.as_str()),
                    ("segment", port.segment.as_str()),
                    ("state", state.word()),
                ];
                gauge(&mut family, &labels, f64::from(u8::from(port.state == state)))?;
            }
        }
        let help = "1 for the state that the node is in, as far as this node knows";
        let mut family = encoder.encode_descriptor("baton_node_state", help, None, MetricType::Gauge)?;
        for node in &view.nodes {
            for state in ["up", "draining", "dead", "unknown"] {
                let labels = [("node", node.name.as_str()), ("state", state)];
                gauge(&mut family, &labels, f64::from(u8::from(node.state == state)))?;
            }
        }
        let conflicts = view.conflicts.len() as f64;
        let word = |yes: bool| f64::from(u8::from(yes));
        let single = [
            (
                "baton_lease_remaining_seconds",
                "What is left of the lease; +Inf: endless",
                view.lease_ms.map_or(f64::INFINITY, |ms| ms as f64 / 1e3),
            ),
            (
                "baton_quorum",
                "1 while a majority of the cluster grants this node its lease",
                word(view.quorum),
            ),
            ("baton_store_reachable", "1 while the store answers", word(view.store)),
            (
                "baton_address_conflicts",
                "Virtual IPs that an interface or host outside Baton's care also holds",
                conflicts,
            ),
            (
                "baton_last_alive_seconds",
                "Time since the agent's fast thread was last known to be alive",
                self.published.age().as_secs_f64(),
            ),
        ];
        for (name, help, value) in single {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn paths(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.published.snapshot.borrow().clone();
        let labels =
            |p: &PathView| [("segment", p.segment.clone()), ("from", p.from.clone()), ("to", p.to.clone())];
        let help = "1 if the path between two ports is heard";
        let mut family = encoder.encode_descriptor("baton_path_heard", help, None, MetricType::Gauge)?;
        for (path, heard) in view.paths.iter().filter_map(|p| Some((p, p.heard?))) {
            gauge(&mut family, &labels(path), f64::from(u8::from(heard)))?;
        }
        let help = "Lost share of the path's probes, 0 to 1, exponentially weighted with a half-life of 5 s";
        let mut family = encoder.encode_descriptor("baton_path_loss_ratio", help, None, MetricType::Gauge)?;
        for (path, loss) in view.paths.iter().filter_map(|p| Some((p, p.loss?))) {
            gauge(&mut family, &labels(path), loss)?;
        }
        self.round_trips(encoder)?;
        let help = "1 for what the paths of the segment say";
        let mut family = encoder.encode_descriptor("baton_segment_finding", help, None, MetricType::Gauge)?;
        for segment in &view.segments {
            for finding in Finding::ALL {
                let labels = [("segment", segment.name.as_str()), ("finding", finding.word())];
                gauge(&mut family, &labels, f64::from(u8::from(segment.finding == finding)))?;
            }
        }
        let help = "1 if the probe target answers at the port";
        let mut family = encoder.encode_descriptor("baton_target_answers", help, None, MetricType::Gauge)?;
        for (target, answers) in view.targets.iter().filter_map(|t| Some((t, t.answers?))) {
            let address = target.target.to_string();
            let labels = [("segment", target.segment.as_str()), ("port", &target.port), ("target", &address)];
            gauge(&mut family, &labels, f64::from(u8::from(answers)))?;
        }
        Ok(())
    }

    fn round_trips(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Round trips over the path and the opposite one";
        let mut family =
            encoder.encode_descriptor("baton_path_rtt_seconds", help, None, MetricType::Histogram)?;
        for path in self.published.paths.borrow().iter() {
            let labels =
                [("segment", path.segment.as_str()), ("from", path.from.as_str()), ("to", path.to.as_str())];
            let (sum, count) = (path.rtt_sum_ns as f64 / 1e9, path.rtt.iter().sum());
            family.encode_family(&labels)?.encode_histogram::<[(&str, &str); 0]>(
                sum,
                count,
                &buckets(&path.rtt),
                None,
            )?;
        }
        Ok(())
    }

    fn host(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(host) = *self.published.host.borrow() else { return Ok(()) };
        for (name, help, thousandths) in [
            ("baton_node_cpu_ratio", "Share of time that the node's processors worked", host.cpu),
            (
                "baton_node_cpu_pressure_ratio",
                "Share of time in which work waited for a processor",
                host.cpu_pressure,
            ),
            (
                "baton_node_memory_pressure_ratio",
                "Share of time in which work waited for memory",
                host.memory_pressure,
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode_gauge(&(f64::from(thousandths) / 1e3))?;
        }
        Ok(())
    }

    fn storage(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let devices = self.published.devices.borrow().clone();
        let labels =
            |d: &DeviceCounters| [("virtual_server", d.server.clone()), ("device", d.device.clone())];
        let help = "Bytes read from and written to the device of a file system";
        let mut family = encoder.encode_descriptor("baton_storage_bytes", help, None, MetricType::Counter)?;
        for device in devices.iter() {
            counter(&mut family, &labels(device), device.counters.bytes)?;
        }
        let help = "Requests that the device has done";
        let mut family =
            encoder.encode_descriptor("baton_storage_requests", help, None, MetricType::Counter)?;
        for device in devices.iter() {
            counter(&mut family, &labels(device), device.counters.requests)?;
        }
        let help = "Time in which the device had something to do";
        let name = "baton_storage_busy_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for device in devices.iter() {
            seconds(&mut family, &labels(device), device.counters.busy)?;
        }
        let help = "Times of all requests of the device together, from when they were queued";
        let name = "baton_storage_wait_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for device in devices.iter() {
            seconds(&mut family, &labels(device), device.counters.waited)?;
        }
        Ok(())
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kept = self.published.connections.borrow().clone();
        let help = "TCP connections that would be reset if another node had to take the virtual server";
        let mut family = encoder.encode_descriptor("baton_connections", help, None, MetricType::Gauge)?;
        for server in kept.iter() {
            gauge(&mut family, &[("virtual_server", server.server.as_str())], server.kept as f64)?;
        }
        let help = "TCP connections that are too many for that";
        let name = "baton_connections_beyond_limit";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for server in kept.iter() {
            gauge(&mut family, &[("virtual_server", server.server.as_str())], server.beyond as f64)?;
        }
        Ok(())
    }

    fn units(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let units = self.published.units.borrow().clone();
        let labels = |u: &UnitStats| [("storage_unit", u.unit.clone()), ("device", u.device.clone())];
        let help = "1 while this node reaches the storage unit";
        let mut family =
            encoder.encode_descriptor("baton_storage_reachable", help, None, MetricType::Gauge)?;
        for (unit, state) in units.iter().filter_map(|u| Some((u, u.state.as_ref()?))) {
            gauge(&mut family, &labels(unit), f64::from(u8::from(state.is_good())))?;
        }
        let help = "Reads of the storage unit that have succeeded";
        let mut family =
            encoder.encode_descriptor("baton_storage_probe_seconds", help, None, MetricType::Histogram)?;
        for unit in units.iter() {
            let (sum, count) = (unit.took_sum_ns as f64 / 1e9, unit.took.iter().sum());
            family.encode_family(&labels(unit))?.encode_histogram::<[(&str, &str); 0]>(
                sum,
                count,
                &buckets(&unit.took),
                None,
            )?;
        }
        let help = "Reads of the storage unit that have failed";
        let mut family =
            encoder.encode_descriptor("baton_storage_probe_errors", help, None, MetricType::Counter)?;
        for unit in units.iter() {
            counter(&mut family, &labels(unit), unit.errors)?;
        }
        let help = "How often the storage unit hung";
        let mut family =
            encoder.encode_descriptor("baton_storage_probe_hangs", help, None, MetricType::Counter)?;
        for unit in units.iter() {
            counter(&mut family, &labels(unit), unit.hangs)?;
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let requests = self.published.requests.borrow().clone();
        let labels = |r: &UnitRequests| [("storage_unit", r.unit.clone()), ("device", r.device.clone())];
        let help = "Requests to the block devices of the storage unit that are done, well or not";
        let mut family =
            encoder.encode_descriptor("baton_storage_unit_requests", help, None, MetricType::Counter)?;
        for unit in requests.iter() {
            counter(&mut family, &labels(unit), unit.completed)?;
        }
        let help = "Requests to the block devices of the storage unit that have failed";
        let mut family =
            encoder.encode_descriptor("baton_storage_unit_errors", help, None, MetricType::Counter)?;
        for unit in requests.iter() {
            counter(&mut family, &labels(unit), unit.errors)?;
        }
        let help = "Requests that the block devices of the storage unit have not done yet";
        let mut family =
            encoder.encode_descriptor("baton_storage_unit_in_flight", help, None, MetricType::Gauge)?;
        for unit in requests.iter() {
            gauge(&mut family, &labels(unit), unit.in_flight as f64)?;
        }
        let help = "Age of the oldest of them; 0: there is none";
        let name = "baton_storage_unit_oldest_request_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for unit in requests.iter() {
            gauge(&mut family, &labels(unit), unit.oldest.as_secs_f64())?;
        }
        Ok(())
    }

    fn diagnostics(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let seen = *self.published.diagnostics.borrow();
        let mut family = encoder.encode_descriptor(
            "baton_diagnostics",
            "What the kernel programs saw that belongs to no virtual IP",
            None,
            MetricType::Counter,
        )?;
        for (what, value) in [
            ("malformed", seen.malformed),
            ("claims", seen.claims),
            ("claims_unreported", seen.claims_unreported),
            ("redirected", seen.redirected),
        ] {
            counter(&mut family, &[("what", what)], value)?;
        }
        let help = "Probe frames that were not taken, by why";
        let name = "baton_probe_frames_refused";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, value) in [
            ("truncated", seen.probes_truncated),
            ("version", seen.probes_version),
            ("forged", seen.probes_forged),
            ("replayed", seen.probes_replayed),
            ("unknown", seen.probes_unknown),
        ] {
            counter(&mut family, &[("reason", reason)], value)?;
        }
        let single = [
            (
                "baton_dropped_inputs",
                "Inputs dropped because a channel was full",
                self.published.dropped_inputs(),
            ),
            (
                "baton_dropped_reports",
                "Events and timings dropped because the slow thread did not keep up",
                self.published.dropped_reports(),
            ),
            (
                "baton_system_calls_refused",
                "System calls of confined threads that the filter has refused",
                confine::refused_calls(),
            ),
        ];
        for (name, help, value) in single {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)?;
        }
        Ok(())
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.traffic(&mut encoder)?;
        self.view(&mut encoder)?;
        self.paths(&mut encoder)?;
        self.host(&mut encoder)?;
        self.storage(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.units(&mut encoder)?;
        self.requests(&mut encoder)?;
        self.diagnostics(&mut encoder)
    }
}

/// Upper bounds in seconds, and what is in each.
fn buckets(counts: &[u64; RTT_BUCKETS]) -> Vec<(f64, u64)> {
    let limit = |k: usize| if k + 1 < RTT_BUCKETS { (1u64 << k) as f64 / 1e6 } else { f64::INFINITY };
    counts.iter().enumerate().map(|(k, n)| (limit(k), *n)).collect()
}

fn counter(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
}

fn seconds(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: Duration) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<[(&str, &str); 0], _, u64>(&value.as_secs_f64(), None)
}

fn gauge(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: f64) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}
