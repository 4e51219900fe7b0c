//! Blocking route netlink bound to one namespace: one request, one answer, no child process. What the lab repeats
//! (carrier off and on) is one system call away, so its time is exact.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::clock;
use crate::error::{Context, LabError};
use crate::namespace::{Namespaces, open_inside};
use crate::wire::Mac;

/// A netlink socket of one namespace; usable from any thread.
#[derive(Debug)]
pub struct Netlink {
    host: String,
    channel: Mutex<Channel>,
}

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Interface name, at most 15 bytes.
    pub name: &'a str,
    /// Interface index, free in its namespace.
    pub index: u32,
    /// Hardware address.
    pub mac: Mac,
}

impl Netlink {
    /// Opens the socket in `inside`; `host` is for messages.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn open(host: &str, inside: &Namespaces) -> Result<Netlink, LabError> {
        let channel = open_inside(inside, "open a netlink socket", Channel::open)?;
        Ok(Netlink { host: host.to_owned(), channel: Mutex::new(channel) })
    }

    /// Opens the socket in the calling thread's network namespace; `host` is for messages.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn here(host: &str) -> Result<Netlink, LabError> {
        let channel = Channel::open().context(|| "open a netlink socket".into())?;
        Ok(Netlink { host: host.to_owned(), channel: Mutex::new(channel) })
    }

    /// Makes a bridge without spanning tree, forwarding at once, flooding all multicast; up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_bridge(&self, name: &str, index: u32) -> Result<(), LabError> {
        let data = InfoData::Bridge(vec![
            InfoBridge::StpState(BridgeStpState::Disabled),
            InfoBridge::ForwardDelay(0),
            InfoBridge::MulticastSnooping(false),
        ]);
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)]),
        ];
        self.create(RouteNetlinkMessage::NewLink(link), || format!("add bridge {name}"))
    }

    /// Makes a veth pair, `near` here and `far` in the namespace `other`; both down.
    ///
    /// # Errors
    /// What the kernel says: `EEXIST` for a taken name, `EBUSY` for a taken index.
    pub fn add_veth(&self, near: VethEnd, far: VethEnd, other: BorrowedFd) -> Result<(), LabError> {
        let mut peer = end(far);
        peer.attributes.push(LinkAttribute::NetNsFd(other.as_raw_fd()));
        let mut link = end(near);
        let data = InfoData::Veth(InfoVeth::Peer(peer));
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
        self.create(RouteNetlinkMessage::NewLink(link), || format!("add veth {} - {}", near.name, far.name))
    }

    /// Makes an interface a port of a bridge; with 0 of none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_master(&self, index: u32, bridge: u32) -> Result<(), LabError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::Controller(bridge));
        self.change(RouteNetlinkMessage::SetLink(link), || format!("set master of {index}")).map(drop)
    }

    /// Sets an interface administratively up or down; returns the time just before the system call.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_up(&self, index: u32, up: bool) -> Result<Duration, LabError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        link.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(link), || format!("set {index} up: {up}"))
    }

    /// Deletes an interface; of a veth pair the other end goes, too.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_link(&self, index: u32) -> Result<Duration, LabError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.change(RouteNetlinkMessage::DelLink(link), || format!("delete interface {index}"))
    }

    /// Adds an address; IPv6 without duplicate address detection. A /32 or /128 makes no route.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` when it is there.
    pub fn add_address(&self, index: u32, address: IpNet) -> Result<(), LabError> {
        let mut message = address_message(index, address);
        if let IpNet::V4(v4) = address
            && v4.prefix_len() < 31
        {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.create(RouteNetlinkMessage::NewAddress(message), || format!("add {address} to {index}"))
    }

    /// Deletes an address; returns the time just before the system call.
    ///
    /// # Errors
    /// What the kernel says; `EADDRNOTAVAIL` when it isn't there.
    pub fn delete_address(&self, index: u32, address: IpNet) -> Result<Duration, LabError> {
        let message = address_message(index, address);
        self.change(RouteNetlinkMessage::DelAddress(message), || format!("delete {address} from {index}"))
    }

    /// Adds or replaces a route to `destination` through interface `index` in `table` (254 is main), by way of a gateway if given.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_route(
        &self,
        destination: IpNet,
        index: u32,
        gateway: Option<IpAddr>,
        table: u32,
    ) -> Result<(), LabError> {
        let mut route = RouteMessage::default();
        route.header.address_family = family(destination.addr());
        route.header.destination_prefix_length = destination.prefix_len();
        route.header.protocol = RouteProtocol::Static;
        route.header.kind = RouteType::Unicast;
        route.header.scope = match (destination, gateway) {
            (IpNet::V4(_), None) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        route.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Table(table)];
        if destination.prefix_len() > 0 {
            route.attributes.push(RouteAttribute::Destination(destination.network().into()));
        }
        route.attributes.extend(gateway.map(|via| RouteAttribute::Gateway(via.into())));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.send(RouteNetlinkMessage::NewRoute(route), flags, || format!("route to {destination}")).map(drop)
    }

    /// Adds a rule: packets from `source` look up `table`.
    ///
    /// # Errors
    /// What the kernel says; `EEXIST` when it is there.
    pub fn add_rule(&self, source: IpNet, table: u32, priority: u32) -> Result<(), LabError> {
        let rule = rule_message(source, table, priority);
        self.create(RouteNetlinkMessage::NewRule(rule), || format!("rule from {source} table {table}"))
    }

    /// Deletes a rule of [`Netlink::add_rule`].
    ///
    /// # Errors
    /// What the kernel says; `ENOENT` when it isn't there.
    pub fn delete_rule(&self, source: IpNet, table: u32, priority: u32) -> Result<(), LabError> {
        let rule = rule_message(source, table, priority);
        self.change(RouteNetlinkMessage::DelRule(rule), || format!("delete rule from {source}")).map(drop)
    }

    /// The hardware address that the neighbour table has for `address`, in whatever state but failed.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn neighbour(&self, address: IpAddr) -> Result<Option<Mac>, LabError> {
        let mut request = NeighbourMessage::default();
        request.header.family = family(address);
        let entries = self.dump(RouteNetlinkMessage::GetNeighbour(request), || "read neighbours".into())?;
        Ok(entries.iter().find_map(|entry| match entry {
            RouteNetlinkMessage::NewNeighbour(entry) => neighbour_mac(entry, address),
            _ => None,
        }))
    }

    /// Deletes what the neighbour table of interface `index` knows of `address`.
    ///
    /// # Errors
    /// What the kernel says; `ENOENT` when there is nothing.
    pub fn forget_neighbour(&self, index: u32, address: IpAddr) -> Result<(), LabError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        let destination = match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        message.attributes.push(NeighbourAttribute::Destination(destination));
        self.change(RouteNetlinkMessage::DelNeighbour(message), || format!("forget neighbour {address}"))
            .map(drop)
    }

    /// The index of the interface `name`, if there is one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn link_index(&self, name: &str) -> Result<Option<u32>, LabError> {
        let links =
            self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), || "read interfaces".into())?;
        let is_name = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(n) if n == name);
        Ok(links.iter().find_map(|link| match link {
            RouteNetlinkMessage::NewLink(link) if link.attributes.iter().any(is_name) => {
                Some(link.header.index)
            }
            _ => None,
        }))
    }

    /// All addresses, each with the index of its interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses(&self) -> Result<Vec<(u32, IpNet)>, LabError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let all = self.dump(request, || "read addresses".into())?;
        Ok(all.iter().filter_map(address_of).collect())
    }

    /// All answers to a dump request.
    ///
    /// # Errors
    /// What the kernel says, with `what` as the operation.
    pub fn dump(
        &self,
        request: RouteNetlinkMessage,
        what: impl FnOnce() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, LabError> {
        self.lock().dump(request).map_err(|source| self.error(what(), source))
    }

    pub(crate) fn create(
        &self,
        message: RouteNetlinkMessage,
        what: impl FnOnce() -> String,
    ) -> Result<(), LabError> {
        self.send(message, NLM_F_CREATE | NLM_F_EXCL, what).map(drop)
    }

    pub(crate) fn change(
        &self,
        message: RouteNetlinkMessage,
        what: impl FnOnce() -> String,
    ) -> Result<Duration, LabError> {
        self.send(message, 0, what)
    }

    fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: impl FnOnce() -> String,
    ) -> Result<Duration, LabError> {
        self.lock().request(message, flags).map_err(|source| self.error(what(), source))
    }

    fn lock(&self) -> MutexGuard<'_, Channel> {
        // A panic elsewhere leaves at most an unread answer, which the sequence number tells apart.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, what: String, source: io::Error) -> LabError {
        LabError::Netlink { host: self.host.clone(), what, source }
    }
}

/// The socket with its sequence number.
#[derive(Debug)]
struct Channel {
    socket: Socket,
    sequence: u32,
}

impl Channel {
    fn open() -> io::Result<Channel> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Channel { socket, sequence: 0 })
    }

    /// One change, acknowledged; returns the time just before it was handed to the kernel, which does it within the call.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Duration> {
        let bytes = self.encode(message, flags | NLM_F_ACK);
        let at = clock::now();
        self.socket.send(&bytes, 0)?;
        self.answers(|_| {})?;
        Ok(at)
    }

    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.encode(message, NLM_F_DUMP);
        self.socket.send(&bytes, 0)?;
        let mut entries = Vec::new();
        self.answers(|entry| entries.push(entry))?;
        Ok(entries)
    }

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    /// Reads up to the acknowledgement or the end of the dump.
    fn answers(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue; // the answer to a request that was given up
                }
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    _ => {}
                }
            }
        }
    }
}

/// The address family of `address`.
pub fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The interface index and network of an address message.
pub(crate) fn address_of(message: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let net = IpNet::new(local.or(plain)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

fn neighbour_mac(entry: &NeighbourMessage, address: IpAddr) -> Option<Mac> {
    let wanted = |a: &NeighbourAttribute| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => IpAddr::from(*a) == address,
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => IpAddr::from(*a) == address,
        _ => false,
    };
    if entry.header.state == NeighbourState::Failed || !entry.attributes.iter().any(wanted) {
        return None;
    }
    entry.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
        _ => None,
    })
}

fn end(end: VethEnd) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = end.index;
    link.attributes =
        vec![LinkAttribute::IfName(end.name.to_owned()), LinkAttribute::Address(end.mac.0.to_vec())];
    link
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

fn rule_message(source: IpNet, table: u32, priority: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family(source.addr());
    rule.header.src_len = source.prefix_len();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Source(source.addr()),
        RuleAttribute::Table(table),
        RuleAttribute::Priority(priority),
    ];
    rule
}
