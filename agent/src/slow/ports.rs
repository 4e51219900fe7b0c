//! What the interfaces of ports count, and how fast they are.

use std::collections::BTreeMap;
use std::fs;
use std::str::FromStr;

use baton_core::config::PortConfig;
use baton_core::{IfIndex, LinkErrors};

/// Bytes per second of a Mbit/s.
const MBIT: u64 = 125_000;

/// What each interface has counted so far (`rtnl_link_stats64`, as sysfs shows it).
pub(super) fn errors(ports: &[PortConfig]) -> BTreeMap<IfIndex, LinkErrors> {
    let counted = |port: &PortConfig| {
        let count = |counter: &str| read(port, &format!("statistics/{counter}"));
        let errors = LinkErrors {
            rx_packets: count("rx_packets")?,
            rx_errors: count("rx_errors")?,
            tx_packets: count("tx_packets")?,
            tx_errors: count("tx_errors")?,
        };
        Some((IfIndex(read(port, "ifindex")?), errors))
    };
    ports.iter().filter_map(counted).collect()
}

/// What they counted meanwhile; an interface whose counters began anew is left out.
pub(super) fn errors_since(
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

/// Speed of each port that is there, in bytes per second: as configured, else as it tells.
pub(super) fn speeds(ports: &[PortConfig]) -> BTreeMap<IfIndex, u64> {
    let speed = |port: &PortConfig| {
        let speed = speed(port.speed_mbits, || read(port, "speed"))?;
        Some((IfIndex(read(port, "ifindex")?), speed))
    };
    ports.iter().filter_map(speed).collect()
}

/// A port without carrier says -1, and some kinds of interfaces say nothing.
fn speed(configured: Option<u32>, told: impl FnOnce() -> Option<i64>) -> Option<u64> {
    let told = || u64::try_from(told()?).ok().filter(|mbits| *mbits > 0);
    Some(configured.map(u64::from).or_else(told)? * MBIT)
}

/// The number in a file of the interface, if there is one.
fn read<T: FromStr>(port: &PortConfig, file: &str) -> Option<T> {
    fs::read_to_string(format!("/sys/class/net/{}/{file}", port.interface)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_counted_since_the_last_sample_and_not_at_all_when_they_began_anew() {
        let errors = |rx_packets, rx_errors| LinkErrors { rx_packets, rx_errors, ..LinkErrors::default() };
        let before = BTreeMap::from([(IfIndex(1), errors(100, 2)), (IfIndex(2), errors(9, 0))]);
        let after = [(IfIndex(1), errors(150, 5)), (IfIndex(2), errors(3, 0)), (IfIndex(3), errors(1, 1))];
        let since = errors_since(&before, &BTreeMap::from(after));
        assert_eq!(since, BTreeMap::from([(IfIndex(1), errors(50, 3))]));
    }

    #[test]
    fn the_configured_speed_wins_over_what_the_interface_tells() {
        assert_eq!(speed(None, || Some(1000)), Some(125_000_000));
        assert_eq!(speed(Some(10_000), || Some(1000)), Some(1_250_000_000));
        assert_eq!(speed(Some(10_000), || None), Some(1_250_000_000));
        assert_eq!(speed(None, || Some(-1)), None);
        assert_eq!(speed(None, || Some(0)), None);
        assert_eq!(speed(None, || None), None);
    }
}
