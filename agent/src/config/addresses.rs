//! Subnets, and the addresses in them.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::names::unique;
use super::problem::Findings;
use super::reader::At;
use super::sections::{Raw, RawSegment, RawServer};

pub(super) fn check_subnets(segments: &[RawSegment], f: &mut Findings) {
    let mut seen: Vec<(&At<IpNet>, &str)> = Vec::new();
    for segment in segments {
        let name = segment.name.as_ref().map_or("?", |n| n.value.as_str());
        for net in &segment.subnets {
            let n = net.value;
            if n.addr() != n.network() {
                f.error(
                    net.at,
                    format!("{n} is an address in a subnet, not a subnet"),
                    format!("write {}", n.trunc()),
                );
            } else if let Some(why) = unusable(n.addr()) {
                f.error(net.at, format!("{n} {why}"), "write the subnet that clients are in");
            } else if is_link_local6(n.addr()) {
                f.error(
                    net.at,
                    format!("{n} is link-local, the same on every segment"),
                    "write a routed subnet",
                );
            }
            let n = n.trunc();
            if let Some((first, other)) =
                seen.iter().find(|(s, _)| s.value.trunc().contains(&n) || n.contains(&s.value.trunc()))
            {
                let whose =
                    if *other == name { "this segment".to_owned() } else { format!("segment \"{other}\"") };
                f.error_after(
                    net.at,
                    first.at,
                    format!("{n} overlaps with {} of {whose}", first.value),
                    "let every client address lie in one subnet only".to_owned(),
                );
            }
            seen.push((net, name));
        }
    }
}

/// Gateways and probe targets.
pub(super) fn check_hosts(segment: &RawSegment, f: &mut Findings) {
    let name = segment.name.as_ref().map_or("?", |n| n.value.as_str());
    let mut families = HashMap::new();
    let (gateways, targets) = (segment.gateway.iter(), segment.probe_targets.iter());
    for (host, what) in gateways.map(|h| (h, "gateway")).chain(targets.map(|h| (h, "probe target"))) {
        let ip = host.value;
        if let Some(why) = unusable(ip) {
            f.error(host.at, format!("{what} {ip} {why}"), "write the address of a host in the segment");
        } else if is_link_local6(ip) {
            // Routers are often known by their link-local address (RFC 4861, 4.2).
        } else if !segment.subnets.iter().any(|n| n.value.trunc().contains(&ip)) {
            f.error(
                host.at,
                format!("{what} {ip} is in no subnet of segment \"{name}\""),
                "correct it, or add its subnet to `subnets`",
            );
        }
        if what == "gateway" {
            unique(&mut families, &ip.is_ipv4(), host.at, f, || {
                let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
                (
                    format!("segment \"{name}\" has two {family} gateways"),
                    "leave one of each family".to_owned(),
                )
            });
        }
    }
}

pub(super) fn check_address(address: &At<IpNet>, raw: &Raw, hosts: &HashMap<IpAddr, &str>, f: &mut Findings) {
    let (net, ip) = (address.value, address.value.addr());
    if let Some(why) = unusable(ip) {
        f.error(address.at, format!("address {ip} {why}"), "write an address of a client subnet");
        return;
    }
    if is_link_local6(ip) {
        f.error(address.at, format!("address {ip} is link-local"), "write an address of a client subnet");
        return;
    }
    let subnet =
        raw.segments.iter().flat_map(|s| &s.subnets).map(|n| n.value.trunc()).find(|n| n.contains(&ip));
    let Some(subnet) = subnet else {
        f.error(
            address.at,
            format!("address {ip} is in no segment's subnets"),
            "correct it, or add its subnet to a [[segment]]",
        );
        return;
    };
    if net.prefix_len() != subnet.prefix_len() {
        f.error(
            address.at,
            format!("the prefix length of {net} is not that of its subnet {subnet}"),
            format!("write {ip}/{}", subnet.prefix_len()),
        );
    }
    // RFC 3021 and RFC 6164: in a subnet of two addresses both are hosts.
    if subnet.prefix_len() + 1 < subnet.max_prefix_len() {
        let role = match subnet {
            IpNet::V4(n) if n.network() == ip => Some("the network address"),
            IpNet::V4(n) if n.broadcast() == ip => Some("the broadcast address"),
            IpNet::V6(n) if n.network() == ip => Some("the subnet-router anycast address (RFC 4291, 2.6.1)"),
            _ => None,
        };
        if let Some(role) = role {
            f.error(
                address.at,
                format!("{ip} is {role} of {subnet}"),
                "choose another address of the subnet",
            );
        }
    }
    if let Some(role) = hosts.get(&ip) {
        f.error(address.at, format!("{ip} is {role} as well"), "choose an address that no other host has");
    }
}

/// Addresses in a segment that no port of this node is in can't be served here.
pub(super) fn warn_unreachable(server: &RawServer, raw: &Raw, f: &mut Findings) {
    let mut told = Vec::new();
    for address in &server.addresses {
        let ip = address.value.addr();
        let segment = raw.segments.iter().find(|s| s.subnets.iter().any(|n| n.value.trunc().contains(&ip)));
        let Some(name) = segment.and_then(|s| s.name.as_ref()).map(|n| n.value.as_str()) else { continue };
        let served = raw.ports.iter().any(|p| p.segment.as_ref().is_some_and(|s| s.value == name));
        if !served && !told.contains(&name) {
            told.push(name);
            f.warn(
                address.at,
                format!("this node has no port in segment \"{name}\", so {ip} can't be served here"),
                format!("add a [[port]] with segment = \"{name}\""),
            );
        }
    }
}

/// Why nobody can be reached under this address; `None`: it is an ordinary one.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_multicast() => Some("is a multicast address"),
        _ if ip.is_loopback() => Some("is a loopback address"),
        _ if ip.is_unspecified() => Some("is the unspecified address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("is in 0.0.0.0/8, which no host may have"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("is an IPv4 address in IPv6 notation"),
        _ => None,
    }
}

fn is_link_local6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
