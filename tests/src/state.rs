//! What an agent may leave behind in a host, as lines of text that compare.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::error::{Context, LabError};
use crate::host::Host;
use crate::netlink::address_of;

/// Addresses, rules, routes of all tables, proxy neighbours, XDP programs, pinned BPF objects and network sysctls of a host, a line each.
///
/// Not in it: what the kernel makes by itself at any time (link-local addresses, learned neighbours, and
/// the routes that come with addresses and interfaces).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State(BTreeSet<String>);

impl State {
    /// The lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// How `later` differs: lines that are gone with `-`, new ones with `+`; empty when equal.
    pub fn difference(&self, later: &State) -> Vec<String> {
        let gone = self.0.difference(&later.0).map(|line| format!("- {line}"));
        let new = later.0.difference(&self.0).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Reads the state of `host`.
pub(crate) fn read(host: &Host) -> Result<State, LabError> {
    let mut lines = BTreeSet::new();
    let dump = |request, what: &str| host.netlink().dump(request, || format!("read {what}"));
    for message in dump(Message::GetAddress(AddressMessage::default()), "addresses")? {
        lines.extend(
            address_of(&message)
                .filter(|(_, net)| !is_link_local(net))
                .map(|(i, net)| format!("address {net} on {i}")),
        );
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        for message in dump(Message::GetRule(rule), "rules")? {
            if let Message::NewRule(rule) = message {
                lines.insert(format!("rule {:?} {:?}", rule.header, rule.attributes));
            }
        }
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        for message in dump(Message::GetRoute(route), "routes")? {
            if let Message::NewRoute(route) = message {
                lines.extend(describe_route(&route));
            }
        }
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = family;
        neighbour.header.flags = NeighbourFlags::Proxy;
        for message in dump(Message::GetNeighbour(neighbour), "proxy neighbours")? {
            if let Message::NewNeighbour(entry) = message {
                let destination = |a: &&NeighbourAttribute| matches!(a, NeighbourAttribute::Destination(_));
                let address = entry.attributes.iter().find(destination);
                lines.insert(format!("proxy neighbour {address:?} on {}", entry.header.ifindex));
            }
        }
    }
    for message in dump(Message::GetLink(LinkMessage::default()), "interfaces")? {
        if let Message::NewLink(link) = message {
            lines.extend(describe_xdp(&link));
        }
    }
    let files = host.enter(|| {
        let mut files = BTreeSet::new();
        pins(Path::new("/sys/fs/bpf"), &mut files)?;
        for family in ["ipv4", "ipv6"] {
            for kind in ["conf", "neigh"] {
                sysctls(Path::new(&format!("/proc/sys/net/{family}/{kind}")), &mut files)?;
            }
        }
        Ok::<_, std::io::Error>(files)
    })?;
    lines.append(&mut files.context(|| format!("read files of {}", host.name()))?);
    Ok(State(lines))
}

fn is_link_local(net: &ipnet::IpNet) -> bool {
    matches!(net, ipnet::IpNet::V6(net) if net.addr().is_unicast_link_local())
}

/// None for what the kernel makes by itself, at its own time: routes that come with addresses and interfaces, and cached ones.
fn describe_route(route: &RouteMessage) -> Option<String> {
    const CACHED: u32 = 0x200; // RTM_F_CLONED
    let mut parts = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::CacheInfo(_) => {}
            RouteAttribute::Destination(RouteAddress::Inet6(a))
                if a.is_multicast() || a.is_unicast_link_local() =>
            {
                return None;
            }
            other => parts.push(format!("{other:?}")),
        }
    }
    let header = &route.header;
    let by_kernel = header.protocol == RouteProtocol::Kernel || header.flags.bits() & CACHED != 0;
    (!by_kernel).then(|| {
        format!(
            "route /{} {:?} {:?} {}",
            header.destination_prefix_length,
            header.kind,
            header.protocol,
            parts.join(" ")
        )
    })
}

fn describe_xdp(link: &LinkMessage) -> Option<String> {
    let mut name = None;
    let mut program = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Xdp(parts) => {
                program = parts.iter().find(|part| matches!(part, LinkXdp::ProgId(_)));
            }
            _ => {}
        }
    }
    Some(format!("XDP program on {}", name.zip(program)?.0))
}

fn pins(directory: &Path, lines: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        lines.insert(format!("pin {}", entry.path().display()));
        if entry.file_type()?.is_dir() {
            pins(&entry.path(), lines)?;
        }
    }
    Ok(())
}

fn sysctls(directory: &Path, lines: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sysctls(&entry.path(), lines)?;
        } else if let Ok(value) = fs::read_to_string(entry.path()) {
            // Unreadable ones are write-only or not set (stable_secret).
            lines.insert(format!("{} = {}", entry.path().display(), value.trim_end()));
        }
    }
    Ok(())
}
