//! Steering: the routing table and the rules of every segment, by which replies leave.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use baton_core::{Config, IfIndex};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;

use super::netlink::{Change, MARK, family};

/// Priority of Baton's rules, before the main table's 32766; also the first of its tables, one for each segment.
pub const TABLE_BASE: u32 = 9800;
/// How many tables are Baton's.
pub const TABLES: u32 = 200;
/// RT_TABLE_LOCAL of linux/rtnetlink.h: asked before all others.
const LOCAL_TABLE: u32 = 255;
/// The loopback interface has this index in every network namespace.
const LOOPBACK: u32 = 1;

/// Next hop of a segment that is reached by way of a peer: an address of Baton's own on the link (RFC 3927, RFC 4291), whose
/// neighbour entry holds the peer's MAC address. Each segment has its own.
pub(super) fn next_hops(index: usize) -> [IpAddr; 2] {
    let number = index as u16 + 1;
    let [high, low] = number.to_be_bytes();
    [
        Ipv4Addr::new(169, 254, 98u8.wrapping_add(high), low).into(),
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0xba70, 0, 0, number).into(),
    ]
}

/// The routes of a segment that is reached by way of a peer: everything goes to it.
pub(super) fn routes_via(index: usize, ifindex: IfIndex) -> Vec<Route> {
    let table = TABLE_BASE + index as u32;
    let everything: [IpNet; 2] = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    let hops = next_hops(index).into_iter().zip(everything);
    let route = |(hop, destination)| Route { table, destination, metric: 1, ifindex, gateway: Some(hop) };
    hops.map(route).collect()
}

/// The routes of a segment's table, one for each subnet and port and one default for each gateway and port, and the
/// rule of each subnet. Routing need only find *some* port of the segment: `port_tx` hands a reply to the port that its
/// address is bound to. So the cost of a reply does not grow with the number of addresses.
pub(super) fn wanted(config: &Config, index: usize, ports: &[IfIndex]) -> (Vec<Route>, Vec<Rule>) {
    let segment = &config.segments[index];
    let table = TABLE_BASE + index as u32;
    let mut routes = Vec::new();
    for (order, &ifindex) in ports.iter().enumerate() {
        let metric = order as u32 + 1;
        for subnet in &segment.subnets {
            routes.push(Route { table, destination: subnet.trunc(), metric, ifindex, gateway: None });
        }
        for &gateway in &segment.gateway {
            let everything: (IpNet, IpNet) = (Ipv4Net::default().into(), Ipv6Net::default().into());
            let destination = if gateway.is_ipv4() { everything.0 } else { everything.1 };
            routes.push(Route { table, destination, metric, ifindex, gateway: Some(gateway) });
        }
    }
    let rules = segment.subnets.iter().map(|s| Rule { from: s.trunc(), table }).collect();
    (routes, rules)
}

/// A route of a segment's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Routing table.
    pub table: u32,
    /// Destination; length 0 for the default route.
    pub destination: IpNet,
    /// Metric: lower is preferred.
    pub metric: u32,
    /// Port.
    pub ifindex: IfIndex,
    /// Next hop; `None`: on link.
    pub gateway: Option<IpAddr>,
}

/// Makes a route, or replaces the one with the same destination and metric.
pub fn add_route(route: &Route) -> Change {
    Change {
        message: RouteNetlinkMessage::NewRoute(route_message(route)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        fine: &[libc::EEXIST],
    }
}

/// Removes a route; one that is gone is fine.
pub fn remove_route(route: &Route) -> Change {
    Change {
        message: RouteNetlinkMessage::DelRoute(route_message(route)),
        flags: 0,
        fine: &[libc::ESRCH, libc::ENODEV],
    }
}

fn route_message(route: &Route) -> RouteMessage {
    // On link, so that a port need not have an address of its own in the gateway's subnet.
    match (route.destination, route.gateway) {
        (IpNet::V4(net), Some(IpAddr::V4(gateway))) => {
            let to =
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix_len());
            by_port(to.gateway(gateway).onlink(), route)
        }
        (IpNet::V4(net), _) => {
            let to =
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix_len());
            by_port(to.scope(RouteScope::Link), route)
        }
        (IpNet::V6(net), gateway) => {
            let to =
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.network(), net.prefix_len());
            match gateway {
                Some(IpAddr::V6(gateway)) => by_port(to.gateway(gateway).onlink(), route),
                _ => by_port(to, route),
            }
        }
    }
}

fn by_port<T>(route_to: RouteMessageBuilder<T>, route: &Route) -> RouteMessage {
    let mine = route_to.protocol(RouteProtocol::from(MARK)).table_id(route.table).priority(route.metric);
    mine.output_interface(route.ifindex.0).build()
}

/// A route by which the node reaches an address as its own.
pub(super) fn local_route(address: IpAddr) -> RouteMessage {
    match address {
        IpAddr::V4(address) => {
            let to = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32);
            local(to.scope(RouteScope::Host))
        }
        IpAddr::V6(address) => local(RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128)),
    }
}

fn local<T>(route_to: RouteMessageBuilder<T>) -> RouteMessage {
    let mine = route_to.protocol(RouteProtocol::from(MARK)).table_id(LOCAL_TABLE).kind(RouteType::Local);
    mine.output_interface(LOOPBACK).build()
}

/// A rule: what comes from `from` is routed by `table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Source subnet.
    pub from: IpNet,
    /// Routing table.
    pub table: u32,
}

/// Makes a rule; one that is there already is fine.
pub fn add_rule(rule: &Rule) -> Change {
    Change {
        message: RouteNetlinkMessage::NewRule(rule_message(rule)),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        fine: &[libc::EEXIST],
    }
}

/// Removes a rule; one that is gone is fine.
pub fn remove_rule(rule: &Rule) -> Change {
    Change {
        message: RouteNetlinkMessage::DelRule(rule_message(rule)),
        flags: 0,
        fine: &[libc::ENOENT, libc::ESRCH],
    }
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut m = RuleMessage::default();
    m.header.family = family(rule.from.addr()).0;
    m.header.src_len = rule.from.prefix_len();
    m.header.action = RuleAction::ToTable;
    m.attributes.push(RuleAttribute::Source(rule.from.network()));
    m.attributes.push(RuleAttribute::Table(rule.table));
    m.attributes.push(RuleAttribute::Priority(TABLE_BASE));
    m.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(MARK)));
    m
}

/// What a route message says, if it is one of ours in a segment's table.
pub fn route(m: &RouteMessage) -> Option<Route> {
    if u8::from(m.header.protocol) != MARK {
        return None;
    }
    let v4 = m.header.address_family == AddressFamily::Inet;
    let any: IpAddr = if v4 { [0u8; 4].into() } else { [0u8; 16].into() };
    let ip = |a: &RouteAddress| match a {
        RouteAddress::Inet(a) => Some(IpAddr::from(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::from(*a)),
        _ => None,
    };
    let (mut destination, mut table) = (any, u32::from(m.header.table));
    let (mut ifindex, mut metric, mut gateway) = (IfIndex(0), 0, None);
    for a in &m.attributes {
        match a {
            RouteAttribute::Destination(d) => destination = ip(d)?,
            RouteAttribute::Gateway(g) => gateway = ip(g),
            RouteAttribute::Oif(i) => ifindex = IfIndex(*i),
            RouteAttribute::Priority(p) => metric = *p,
            RouteAttribute::Table(t) => table = *t,
            _ => {}
        }
    }
    if !(TABLE_BASE..TABLE_BASE + TABLES).contains(&table) {
        return None;
    }
    let destination = IpNet::new(destination, m.header.destination_prefix_length).ok()?;
    Some(Route { table, destination, metric, ifindex, gateway })
}

/// What a rule message says, if it is one of ours.
pub fn rule(m: &RuleMessage) -> Option<Rule> {
    let (mut from, mut table, mut ours) = (None, u32::from(m.header.table), false);
    for a in &m.attributes {
        match a {
            RuleAttribute::Source(s) => from = IpNet::new(*s, m.header.src_len).ok(),
            RuleAttribute::Table(t) => table = *t,
            RuleAttribute::Protocol(p) => ours = u8::from(*p) == MARK,
            _ => {}
        }
    }
    from.filter(|_| ours).map(|from| Rule { from, table })
}

/// The routes and rules of every segment: what there is to be, and what was last made.
#[derive(Default)]
pub struct Steering {
    made: BTreeMap<String, Vec<Route>>,
}

impl Steering {
    /// The changes that bring a segment's routes to `wanted` and make sure of its rules.
    pub fn changes(&mut self, segment: &str, wanted: Vec<Route>, rules: &[Rule]) -> Vec<Change> {
        let same = |a: &Route, b: &Route| (a.destination, a.metric) == (b.destination, b.metric);
        let before = self.made.remove(segment).unwrap_or_default();
        let gone = before.iter().filter(|b| !wanted.iter().any(|w| same(w, b)));
        let changes = wanted
            .iter()
            .map(add_route)
            .chain(rules.iter().map(add_rule))
            .chain(gone.map(remove_route))
            .collect();
        self.made.insert(segment.to_owned(), wanted);
        changes
    }

    /// Forgets what was made for all segments but these; it is swept away.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.made.retain(|segment, _| keep(segment));
    }

    /// Is this route wanted?
    pub fn has(&self, route: &Route) -> bool {
        self.made.values().flatten().any(|r| r == route)
    }

    /// Has nothing been made for this segment yet?
    pub fn is_untouched(&self, segment: &str) -> bool {
        !self.made.contains_key(segment)
    }
}
