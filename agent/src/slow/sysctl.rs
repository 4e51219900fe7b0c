//! The settings that a port needs, saved before they are changed and restored when the port is no longer Baton's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::store::{Store, StoreError};

/// What each port needs, under /proc/sys/net, `*` being the interface (Documentation/networking/ip-sysctl.rst).
const NEEDED: [(&str, &str); 7] = [
    // Answer ARP only for addresses of the port that was asked.
    ("ipv4/conf/*/arp_ignore", "1"),
    // Ask with an address of the port itself, never with another port's.
    ("ipv4/conf/*/arp_announce", "2"),
    // A reply may be routed by another port than the request came in by (port_tx hands it over): loose, not strict.
    ("ipv4/conf/*/rp_filter", "2"),
    // Routes by a port without carrier are passed over at once, by the kernel itself.
    ("ipv4/conf/*/ignore_routes_with_linkdown", "1"),
    ("ipv6/conf/*/ignore_routes_with_linkdown", "1"),
    // The first question for a client's MAC address on a new port can be lost, or, while the port's link-local address is
    // being checked, not be sent at all (ndisc_send_ns): ask again after 100 ms, not after a second without replies.
    ("ipv4/neigh/*/retrans_time_ms", "100"),
    ("ipv6/neigh/*/retrans_time_ms", "100"),
];

/// What each interface below a port needs (that which a VLAN or macvlan interface lies on): it hears the same questions,
/// and is not to answer for the port.
const NEEDED_BELOW: [(&str, &str); 1] = [("ipv4/conf/*/arp_ignore", "1")];

/// What the whole node needs where a virtual server has services: they start, and bind its addresses, before any port has these.
const NEEDED_BY_SERVICES: [(&str, &str); 2] =
    [("ipv4/ip_nonlocal_bind", "1"), ("ipv6/ip_nonlocal_bind", "1")];

/// A setting could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The file under /proc/sys could not be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The original value could not be saved, so nothing was changed.
    #[error("saving the original settings: {0}")]
    Store(#[from] StoreError),
}

/// What a port needs: keys below /proc/sys/net and their values.
pub fn needed(interface: &str) -> impl Iterator<Item = (String, &'static str)> {
    let of_port = NEEDED.iter().map(move |(pattern, value)| (pattern.replace('*', interface), *value));
    let of_lower = below(interface).into_iter().flat_map(|lower| {
        NEEDED_BELOW.iter().map(move |(pattern, value)| (pattern.replace('*', &lower), *value))
    });
    of_port.chain(of_lower)
}

/// What the node needs where a virtual server has services; likewise.
pub fn needed_by_services() -> impl Iterator<Item = (String, &'static str)> {
    NEEDED_BY_SERVICES.iter().map(|(key, value)| ((*key).to_owned(), *value))
}

/// Saves the original settings of a port and of the interfaces below it, then makes those they need. A family that the
/// kernel lacks is passed over.
pub fn prepare(store: &mut dyn Store, interface: &str) -> Result<(), SysctlError> {
    set(store, interface, &NEEDED)?;
    below(interface).iter().try_for_each(|lower| set(store, lower, &NEEDED_BELOW))
}

/// These ports, and the interfaces below them.
pub fn with_below<'a>(ports: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    ports.into_iter().flat_map(|port| below(port).into_iter().chain([port.clone()])).collect()
}

/// Saves the original settings of the node, then makes those that services need.
pub fn prepare_for_services(store: &mut dyn Store) -> Result<(), SysctlError> {
    set(store, "", &NEEDED_BY_SERVICES)
}

/// The interfaces that this one lies on, directly or not, as the kernel links them in sysfs.
pub fn below(interface: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![interface.to_owned()];
    while let Some(upper) = left.pop() {
        let Ok(entries) = fs::read_dir(format!("/sys/class/net/{upper}")) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if let Some(lower) = name.to_str().and_then(|name| name.strip_prefix("lower_"))
                && found.insert(lower.to_owned())
            {
                left.push(lower.to_owned());
            }
        }
    }
    found
}

fn set(store: &mut dyn Store, interface: &str, needed: &[(&str, &str)]) -> Result<(), SysctlError> {
    for (pattern, value) in needed {
        let key = pattern.replace('*', interface);
        let path = path(&key);
        let before = match fs::read_to_string(&path) {
            Ok(before) => before,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(SysctlError::File { path, error }),
        };
        if before.trim() != *value {
            store.save_original(&key, before.trim())?;
            fs::write(&path, value).map_err(|error| SysctlError::File { path, error })?;
        }
    }
    Ok(())
}

/// Restores the settings of all interfaces but `keep`, and those of the node unless it still has `services`. One that is gone, or
/// was changed by somebody else since, is left.
pub fn restore(store: &mut dyn Store, keep: &BTreeSet<String>, services: bool) -> Result<(), SysctlError> {
    for (key, original) in store.originals()? {
        let of_interface =
            NEEDED.iter().find_map(|(pattern, value)| Some((interface(pattern, &key)?, value)));
        let of_node = NEEDED_BY_SERVICES.iter().find(|(known, _)| *known == key);
        let (kept, value) = match (of_interface, of_node) {
            (Some((interface, value)), _) => (keep.contains(interface), value),
            (None, Some((_, value))) => (services, value),
            (None, None) => continue,
        };
        if kept {
            continue;
        }
        let path = path(&key);
        match fs::read_to_string(&path) {
            Ok(now) if now.trim() == *value => {
                fs::write(&path, original).map_err(|error| SysctlError::File { path, error })?;
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(SysctlError::File { path, error }),
        }
        store.forget_original(&key)?;
    }
    Ok(())
}

/// The file of a key.
pub fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// The interface in a key made from this pattern.
fn interface<'a>(pattern: &str, key: &'a str) -> Option<&'a str> {
    let (before, after) = pattern.split_once('*')?;
    key.strip_prefix(before)?.strip_suffix(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_a_key_may_hold_dots() {
        assert_eq!(interface("ipv4/conf/*/rp_filter", "ipv4/conf/eth0.100/rp_filter"), Some("eth0.100"));
        assert_eq!(interface("ipv4/conf/*/rp_filter", "ipv6/conf/eth0/rp_filter"), None);
    }
}
