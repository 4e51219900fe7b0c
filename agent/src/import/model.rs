//! What was understood, and how it becomes a configuration that passes every check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Place, Remarks, shown};

/// Prefix lengths that are assumed where there is none.
const USUAL: (u8, u8) = (24, 64);
/// Shorter ones can't be a client subnet.
const SHORTEST: (u8, u8) = (8, 16);
const LONGEST_INTERFACE: usize = 15;
const LONGEST_NAME: usize = 63;

/// What was understood.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) node: Option<String>,
    pub(super) servers: Vec<Server>,
}

/// Addresses that are served together.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// As it is called there.
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) addresses: Vec<Address>,
    /// Is this node the one that has it when all are well?
    pub(super) is_preferred: bool,
    /// It goes back to a better node by itself.
    pub(super) goes_back: bool,
    /// Lines that are written below it as comments.
    pub(super) notes: Vec<String>,
}

/// An address.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) net: IpNet,
    /// The prefix length was written there.
    pub(super) is_exact: bool,
    /// Where it may be.
    pub(super) interfaces: Vec<String>,
    pub(super) place: Place,
}

/// Interfaces and subnets that belong together.
#[derive(Debug, Default)]
struct Segment {
    interfaces: Vec<String>,
    subnets: Vec<IpNet>,
}

impl Model {
    /// The configuration; `None`: there is nothing to be served.
    pub(super) fn text(mut self, remarks: &mut Remarks) -> Option<String> {
        self.servers.iter_mut().for_each(|server| {
            server.addresses.retain_mut(|address| is_usable(address, remarks));
        });
        self.remove_twins(remarks);
        self.settle_subnets(remarks);
        self.servers.retain(|server| {
            // Of one that is called by its address, that has been told.
            if server.addresses.is_empty() && server.name.parse::<IpAddr>().is_err() {
                let what =
                    format!("left out: \"{}\" has no address that Baton could serve", shown(&server.name));
                remarks.add(&server.place, what);
            }
            !server.addresses.is_empty()
        });
        if self.servers.is_empty() {
            return None;
        }
        self.name_servers(remarks);
        let mut segments = self.segments();
        if segments.iter().all(|s| s.interfaces.is_empty()) {
            remarks.add(
                &self.servers[0].place,
                "assumed: no interface is named, so the port is called eth0; correct `interface` in [[port]]",
            );
            segments[0].interfaces.push("eth0".to_owned());
        }
        Some(self.render(&segments))
    }

    /// An address belongs to one virtual server, once.
    fn remove_twins(&mut self, remarks: &mut Remarks) {
        let mut seen: BTreeMap<IpAddr, Place> = BTreeMap::new();
        for address in self.servers.iter_mut().map(|s| &mut s.addresses) {
            address.retain(|a| match seen.get(&a.net.addr()) {
                Some(first) => {
                    let what = format!("left out: {} is there already, in line {}", a.net.addr(), first.line);
                    remarks.add(&a.place, what);
                    false
                }
                None => {
                    seen.insert(a.net.addr(), a.place.clone());
                    true
                }
            });
        }
    }

    /// Subnets never overlap: of two that do, the larger one counts. Then no address is the subnet's own.
    fn settle_subnets(&mut self, remarks: &mut Remarks) {
        let all: BTreeSet<IpNet> =
            self.servers.iter().flat_map(|s| &s.addresses).map(|a| a.net.trunc()).collect();
        let largest =
            |net: &IpNet| all.iter().filter(|other| other.contains(net)).min_by_key(|n| n.prefix_len());
        for server in &mut self.servers {
            server.addresses.retain_mut(|address| {
                let own = address.net.trunc();
                let subnet = largest(&own).copied().unwrap_or(own);
                if subnet != own {
                    if address.is_exact {
                        let ip = address.net.addr();
                        let what = format!("assumed: {ip} is in {subnet}, as another address here says; subnets can't overlap");
                        remarks.add(&address.place, what);
                    }
                    // A length within the family's limits: it is that of a subnet of the same family.
                    address.net = IpNet::new(address.net.addr(), subnet.prefix_len()).unwrap_or(address.net);
                }
                let ip = address.net.addr();
                let is_small = subnet.prefix_len() + 1 >= subnet.max_prefix_len();
                let is_own = ip == subnet.network() || (ip.is_ipv4() && ip == subnet.broadcast());
                if !is_small && is_own {
                    let what = format!("left out: {ip} is the subnet {subnet} itself, or its broadcast address; correct its prefix length");
                    remarks.add(&address.place, what);
                    return false;
                }
                true
            });
        }
    }

    /// Names that Baton takes, each once.
    fn name_servers(&mut self, remarks: &mut Remarks) {
        let mut taken = BTreeSet::new();
        for server in &mut self.servers {
            let good = good_name(&server.name);
            let mut name = good.clone();
            let mut number = 2;
            while !taken.insert(name.clone()) {
                let end = format!("-{number}");
                let keep = LONGEST_NAME - end.len();
                name = format!("{}{end}", &good[..good.len().min(keep)]);
                number += 1;
            }
            let is_address = server.name.parse::<IpAddr>().is_ok();
            if name != server.name && !is_address {
                let what = format!("assumed: \"{}\" is called \"{name}\"", shown(&server.name));
                remarks.add(&server.place, what);
            }
            server.name = name;
        }
    }

    /// Interfaces and subnets that share an address are one segment.
    fn segments(&self) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        for address in self.servers.iter().flat_map(|s| &s.addresses) {
            let subnet = address.net.trunc();
            let touches = |s: &Segment| {
                s.subnets.contains(&subnet) || s.interfaces.iter().any(|i| address.interfaces.contains(i))
            };
            let (touched, mut others): (Vec<Segment>, Vec<Segment>) = segments.into_iter().partition(touches);
            let mut one = Segment::default();
            let parts = touched.into_iter().map(|s| (s.interfaces, s.subnets));
            for (interfaces, subnets) in parts.chain([(address.interfaces.clone(), vec![subnet])]) {
                add_new(&mut one.interfaces, interfaces);
                add_new(&mut one.subnets, subnets);
            }
            others.push(one);
            segments = others;
        }
        segments
    }

    fn render(&self, segments: &[Segment]) -> String {
        let mut text = String::from(
            "# Made by `baton import`. Look at every line before it is used, and check it with `baton check`.\n\
             # For several nodes, [[segment]] and [[virtual_server]] go into the file for `baton apply`.\n",
        );
        // Writing to a string can't fail.
        let mut line = |what: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "{what}");
        };
        if let Some(node) = &self.node {
            line(format_args!("\n[node]\nname = {node:?}"));
        }
        let mut names = BTreeSet::new();
        for (number, segment) in (1..).zip(segments) {
            let name = match segment.interfaces.first() {
                Some(interface) => good_name(&format!("net-{interface}")),
                None => format!("net-{number}"),
            };
            let name = if names.insert(name.clone()) { name } else { format!("net-{number}-") };
            for interface in &segment.interfaces {
                line(format_args!("\n[[port]]\ninterface = \"{interface}\"\nsegment = \"{name}\""));
            }
            let subnets: Vec<String> = segment.subnets.iter().map(|n| format!("\"{n}\"")).collect();
            line(format_args!("\n[[segment]]\nname = \"{name}\"\nsubnets = [{}]", subnets.join(", ")));
            line(format_args!("# gateway = [\"...\"]         # the router of the subnet"));
            line(format_args!("# probe_targets = [\"...\"]   # hosts that are always up, best two of them"));
        }
        for server in &self.servers {
            let addresses: Vec<String> = server.addresses.iter().map(|a| format!("\"{}\"", a.net)).collect();
            line(format_args!(
                "\n[[virtual_server]]\nname = \"{}\"\naddresses = [{}]",
                server.name,
                addresses.join(", ")
            ));
            if let Some(node) = self.node.as_ref().filter(|_| server.is_preferred) {
                line(format_args!("preferred_nodes = [{node:?}]"));
            }
            if server.goes_back {
                line(format_args!("failback = \"immediate\""));
            }
            for note in &server.notes {
                // A comment has no control characters.
                let note: String = note.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                line(format_args!("# {note}"));
            }
        }
        text
    }
}

fn add_new<T: PartialEq>(list: &mut Vec<T>, more: Vec<T>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

/// A name that Baton takes, near to this one.
pub(super) fn good_name(name: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = name.chars().take(LONGEST_NAME).map(good).collect();
    match name.as_str() {
        "" | "." | ".." => "unnamed".to_owned(),
        _ => name,
    }
}

/// Can Baton serve it? Also takes away the interfaces that can't be ports, and settles its prefix length.
fn is_usable(address: &mut Address, remarks: &mut Remarks) -> bool {
    let ip = address.net.addr();
    let why = match ip {
        _ if ip.is_multicast() => Some("is a multicast address"),
        _ if ip.is_loopback() => Some("is a loopback address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.is_broadcast() => Some("is no address of a host"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("is link-local, the same on every segment"),
        IpAddr::V6(v6) if v6.segments()[0] == 0 => Some("is no address of a host"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    if let Some(why) = why {
        remarks.add(&address.place, format!("left out: {ip} {why}"));
        return false;
    }
    let (usual, shortest) = if ip.is_ipv4() { (USUAL.0, SHORTEST.0) } else { (USUAL.1, SHORTEST.1) };
    let length = address.net.prefix_len();
    if length == address.net.max_prefix_len() || length < shortest {
        let said = if address.is_exact {
            format!("/{length} is no client subnet")
        } else {
            "there is no prefix length".to_owned()
        };
        let what = format!("assumed: {ip}/{usual}, for {said}; write that of its subnet");
        remarks.add(&address.place, what);
        address.net = IpNet::new(ip, usual).unwrap_or(address.net);
        address.is_exact = false;
    }
    address.interfaces.retain(|interface| {
        let is_plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'"' | b'\\');
        let good = !matches!(interface.as_str(), "" | "." | ".." | "lo")
            && interface.len() <= LONGEST_INTERFACE
            && interface.bytes().all(is_plain);
        if !good {
            let what = format!("left out: \"{}\" can't be a port", shown(interface));
            remarks.add(&address.place, what);
        }
        good
    });
    true
}
