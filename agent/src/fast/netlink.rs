//! Requests to the kernel by netlink: addresses, routes and rules, pipelined on one blocking socket.
//!
//! rtnetlink serves a request only when its messages have been answered within the same system call, so a batch is
//! one `sendmsg` and its errors can be read at once: no waiting, no task switch. Everything that is made carries
//! [`MARK`] and is never confused with what somebody else made.

use std::io;
use std::net::IpAddr;

use baton_core::{Assigned, IfIndex, Link};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteMessage, RouteProtocol};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::steering::{self, Route, Rule};

/// Protocol number on every address (IFA_PROTO, Linux 5.18), route (rtm_protocol) and rule (FRA_PROTOCOL) that Baton
/// makes; not used by any daemon in iproute2's rt_protos.
pub const MARK: u8 = 98;
/// One change, and the errors that mean that nothing was to be done.
pub struct Change {
    /// The request.
    pub(super) message: RouteNetlinkMessage,
    /// Its flags besides NLM_F_REQUEST and NLM_F_ACK.
    pub(super) flags: u16,
    /// The errors.
    pub(super) fine: &'static [i32],
}

/// Configures `address` (/32, /128) on an interface, without prefix route and duplicate-address detection. A preferred
/// lifetime of zero keeps IPv6 from choosing it as the source of the node's own connections (RFC 4862, 5.5.4).
pub fn add_address(ifindex: IfIndex, address: IpAddr) -> Change {
    let mut m = address_message(ifindex, address);
    let mut flags = AddressFlags::Noprefixroute;
    if address.is_ipv6() {
        flags |= AddressFlags::Nodad;
        let mut lifetime = CacheInfo::default();
        (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, u32::MAX);
        m.attributes.push(AddressAttribute::CacheInfo(lifetime));
    }
    m.attributes.push(AddressAttribute::Flags(flags));
    m.attributes.push(AddressAttribute::Protocol(AddressProtocol::from(MARK)));
    Change {
        message: RouteNetlinkMessage::NewAddress(m),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        fine: &[], // EEXIST is not fine: somebody else made it
    }
}

/// Says for good which MAC address a neighbour on this interface has.
pub fn add_neighbour(ifindex: IfIndex, address: IpAddr, mac: [u8; 6]) -> Change {
    let mut m = neighbour_message(ifindex, address);
    m.header.state = NeighbourState::Permanent;
    m.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    m.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(MARK)));
    Change { message: RouteNetlinkMessage::NewNeighbour(m), flags: NLM_F_CREATE | NLM_F_REPLACE, fine: &[] }
}

/// Removes such an entry; one that is gone is fine.
pub fn remove_neighbour(ifindex: IfIndex, address: IpAddr) -> Change {
    let message = RouteNetlinkMessage::DelNeighbour(neighbour_message(ifindex, address));
    Change { message, flags: 0, fine: &[libc::ENOENT, libc::ENODEV] }
}

fn neighbour_message(ifindex: IfIndex, address: IpAddr) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = family(address).0;
    m.header.ifindex = ifindex.0;
    m.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(a) => NeighbourAddress::Inet(a),
        IpAddr::V6(a) => NeighbourAddress::Inet6(a),
    }));
    m
}

/// Makes an address the node's own for its own programs, before it is configured on a port, and while it is on none: services are
/// reached there from when they start. Nobody else notices: ports answer for what is configured on them only.
pub fn add_local(address: IpAddr) -> Change {
    let message = RouteNetlinkMessage::NewRoute(steering::local_route(address));
    Change { message, flags: NLM_F_CREATE | NLM_F_EXCL, fine: &[libc::EEXIST] }
}

/// Takes that back; it is fine if there is nothing to take back.
pub fn remove_local(address: IpAddr) -> Change {
    let message = RouteNetlinkMessage::DelRoute(steering::local_route(address));
    Change { message, flags: 0, fine: &[libc::ESRCH] }
}

/// Removes an address; one that is gone, with its interface or without, is fine.
pub fn remove_address(ifindex: IfIndex, address: IpAddr) -> Change {
    Change {
        message: RouteNetlinkMessage::DelAddress(address_message(ifindex, address)),
        flags: 0,
        fine: &[libc::ENODEV],
    }
}

fn address_message(ifindex: IfIndex, address: IpAddr) -> AddressMessage {
    let mut m = AddressMessage::default();
    (m.header.family, m.header.prefix_len) = family(address);
    m.header.index = ifindex.0;
    m.header.scope = AddressScope::Universe;
    m.attributes.push(AddressAttribute::Local(address));
    m.attributes.push(AddressAttribute::Address(address));
    m
}

/// Address family, and the prefix length of a single address.
pub(super) fn family(address: IpAddr) -> (AddressFamily, u8) {
    match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    }
}

/// The socket for requests.
pub struct Requests {
    socket: Socket,
    port: u32,
    sequence: u32,
    out: Vec<u8>,
    answer: Vec<u8>,
}

impl Requests {
    /// Opens the socket.
    pub fn open() -> io::Result<Requests> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_cap_ack(true)?; // an error needs no copy of its request
        socket.set_netlink_get_strict_chk(true)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Requests { socket, port, sequence: 0, out: Vec::with_capacity(1 << 16), answer: Vec::new() })
    }

    /// Netlink port of the socket: notifications that carry it were caused here.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Carries out all changes, in order, with one system call for each 64 KiB of them. Returns what failed: the
    /// index of the change, and why. A failure does not keep later changes from being carried out.
    pub fn apply(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> io::Result<Vec<(usize, io::Error)>> {
        let mut failed = Vec::new();
        let mut batch: Vec<&'static [i32]> = Vec::new();
        let mut done = 0;
        self.out.clear();
        let mut last = 0; // where the last message of the batch starts
        for change in changes {
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | change.flags;
            header.sequence_number = self.sequence.wrapping_add(1 + batch.len() as u32);
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(change.message));
            message.finalize();
            let (at, len) = (self.out.len(), message.buffer_len());
            self.out.resize(at + len.next_multiple_of(4), 0);
            message.serialize(&mut self.out[at..at + len]);
            last = at;
            batch.push(change.fine);
            if self.out.len() > 60_000 {
                self.flush(last, &batch, done, &mut failed)?;
                done += batch.len();
                batch.clear();
            }
        }
        if !batch.is_empty() {
            self.flush(last, &batch, done, &mut failed)?;
        }
        Ok(failed)
    }

    /// Sends the batch; only its last message asks for an answer, errors are answered always.
    fn flush(
        &mut self,
        last: usize,
        batch: &[&'static [i32]],
        done: usize,
        failed: &mut Vec<(usize, io::Error)>,
    ) -> io::Result<()> {
        let flags = u16::from_ne_bytes([self.out[last + 6], self.out[last + 7]]) | NLM_F_ACK;
        self.out[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
        self.socket.send(&self.out, 0)?;
        self.out.clear();
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(batch.len() as u32);
        loop {
            self.answer.clear();
            self.answer.reserve(1 << 15);
            self.socket.recv(&mut self.answer, 0)?;
            for message in split(&self.answer) {
                let message = parse(message)?;
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some(fine) = batch.get(index) else { continue }; // an answer to something older
                if let NetlinkPayload::Error(e) = &message.payload {
                    let error = e.to_io();
                    let ok = e.code.is_none() || error.raw_os_error().is_some_and(|c| fine.contains(&c));
                    if !ok {
                        failed.push((done + index, error));
                    }
                    if index + 1 == batch.len() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The messages that answer a dump request, each with its header. A dump that the kernel could not give in one piece is
    /// asked for again.
    fn dump(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<Vec<u8>>> {
        'again: for _ in 0..16 {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request.clone()));
            message.finalize();
            let mut out = vec![0; message.buffer_len()];
            message.serialize(&mut out);
            self.socket.send(&out, 0)?;
            let mut found = Vec::new();
            let mut interrupted = false;
            loop {
                self.answer.clear();
                self.answer.reserve(1 << 16);
                self.socket.recv(&mut self.answer, 0)?;
                for bytes in split(&self.answer) {
                    if bytes[8..12] != self.sequence.to_ne_bytes() {
                        continue;
                    }
                    interrupted |= u16::from_ne_bytes([bytes[6], bytes[7]]) & NLM_F_DUMP_INTR != 0;
                    if !matches!(kind(bytes), NLMSG_ERROR | NLMSG_DONE) {
                        found.push(bytes.to_vec());
                        continue;
                    }
                    match parse(bytes)?.payload {
                        NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                        NetlinkPayload::Done(_) if interrupted => continue 'again,
                        NetlinkPayload::Done(_) => return Ok(found),
                        _ => {}
                    }
                }
            }
        }
        Err(io::Error::other("the kernel's tables change faster than they can be read"))
    }

    /// As [`Requests::dump`], taken apart.
    fn dump_parsed(&mut self, request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut found = Vec::new();
        for bytes in self.dump(request)? {
            if let NetlinkPayload::InnerMessage(m) = parse(&bytes)?.payload {
                found.push(m);
            }
        }
        Ok(found)
    }

    /// All interfaces.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let found = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(found.iter().filter_map(|m| link(m)).collect())
    }

    /// All addresses.
    pub fn addresses(&mut self) -> io::Result<Vec<Assigned>> {
        let found = self.dump_parsed(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(found
            .iter()
            .filter_map(|m| match m {
                RouteNetlinkMessage::NewAddress(a) => assigned(a),
                _ => None,
            })
            .collect())
    }

    /// Removes the neighbour entries of an interface that wait for an answer or have given up.
    pub fn forget_unresolved(&mut self, ifindex: IfIndex) -> io::Result<()> {
        let mut changes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            request.attributes.push(NeighbourAttribute::IfIndex(ifindex.0));
            for m in self.dump_parsed(RouteNetlinkMessage::GetNeighbour(request))? {
                if let RouteNetlinkMessage::NewNeighbour(mut n) = m
                    && n.header.ifindex == ifindex.0
                    && matches!(n.header.state, NeighbourState::Incomplete | NeighbourState::Failed)
                {
                    n.attributes.retain(|a| matches!(a, NeighbourAttribute::Destination(_)));
                    let message = RouteNetlinkMessage::DelNeighbour(n);
                    changes.push(Change { message, flags: 0, fine: &[libc::ENOENT] });
                }
            }
        }
        match self.apply(changes)?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// All neighbour entries that carry Baton's mark.
    pub fn marked_neighbours(&mut self) -> io::Result<Vec<(IfIndex, IpAddr)>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            for m in self.dump_parsed(RouteNetlinkMessage::GetNeighbour(request))? {
                if let RouteNetlinkMessage::NewNeighbour(n) = m {
                    found.extend(marked_neighbour(&n));
                }
            }
        }
        Ok(found)
    }

    /// All routes and rules that carry Baton's mark.
    pub fn marked(&mut self) -> io::Result<(Vec<Route>, Vec<Rule>)> {
        let (mut routes, mut rules) = (Vec::new(), Vec::new());
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for m in self.dump_parsed(RouteNetlinkMessage::GetRoute(request))? {
                if let RouteNetlinkMessage::NewRoute(r) = m {
                    routes.extend(steering::route(&r));
                }
            }
            let mut request = RuleMessage::default();
            request.header.family = family;
            for m in self.dump_parsed(RouteNetlinkMessage::GetRule(request))? {
                if let RouteNetlinkMessage::NewRule(r) = m {
                    rules.extend(steering::rule(&r));
                }
            }
        }
        Ok((routes, rules))
    }
}

/// NLM_F_DUMP_INTR of linux/netlink.h: the dump is inconsistent, for something changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The messages of a datagram, each with its header.
pub fn split(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        if length < MESSAGE_HEADER || length > bytes.len() {
            return None;
        }
        let message = &bytes[..length];
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Takes a message apart.
pub fn parse(message: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(message).map_err(io::Error::other)
}

/// `nlmsg_type` of a message.
pub fn kind(message: &[u8]) -> u16 {
    message.get(4..6).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]))
}

/// Bytes of `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// Bytes of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;

/// What a link message says, with its netlink header. Only the fields that Baton needs are read: the message carries some
/// forty attributes, and taking it all apart costs more than the decision that follows.
///
/// `None`: it is cut short, or a bridge's message about its port.
pub fn link(message: &[u8]) -> Option<Link> {
    let header = message.get(MESSAGE_HEADER..MESSAGE_HEADER + LINK_HEADER)?;
    let word = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    if u32::from(header[0]) != libc::AF_UNSPEC as u32 {
        return None;
    }
    let flags = LinkFlags::from_bits_retain(word(8)?);
    let mut link = Link {
        ifindex: IfIndex(word(4)?),
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mac: [0; 6],
    };
    for attribute in NlasIterator::new(&message[MESSAGE_HEADER + LINK_HEADER..]) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            IFLA_IFNAME => {
                let name = attribute.value().split(|b| *b == 0).next().unwrap_or_default();
                link.name = String::from_utf8_lossy(name).into_owned();
            }
            IFLA_ADDRESS => link.mac = attribute.value().try_into().unwrap_or_default(),
            _ => {}
        }
    }
    Some(link)
}

/// What a neighbour message says, if the entry is one of ours.
fn marked_neighbour(m: &NeighbourMessage) -> Option<(IfIndex, IpAddr)> {
    let (mut address, mut ours) = (None, false);
    for a in &m.attributes {
        match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some(IpAddr::from(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some(IpAddr::from(*a)),
            NeighbourAttribute::Protocol(p) => ours = u8::from(*p) == MARK,
            _ => {}
        }
    }
    Some((IfIndex(m.header.ifindex), address.filter(|_| ours)?))
}

/// What an address message says.
pub fn assigned(m: &AddressMessage) -> Option<Assigned> {
    let (mut local, mut address, mut ours) = (None, None, false);
    for a in &m.attributes {
        match a {
            AddressAttribute::Local(l) => local = Some(*l),
            AddressAttribute::Address(l) => address = Some(*l),
            AddressAttribute::Protocol(p) => ours = u8::from(*p) == MARK,
            _ => {}
        }
    }
    Some(Assigned { ifindex: IfIndex(m.header.index), address: local.or(address)?, ours })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkHeader};

    use super::*;

    fn message(link: LinkMessage) -> Vec<u8> {
        let payload = NetlinkPayload::from(RouteNetlinkMessage::NewLink(link));
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn eth0() -> LinkMessage {
        let mut m = LinkMessage::default();
        m.header =
            LinkHeader { index: 7, flags: LinkFlags::Up | LinkFlags::LowerUp, ..LinkHeader::default() };
        m.attributes.push(LinkAttribute::Mtu(1500));
        m.attributes.push(LinkAttribute::IfName("eth0".into()));
        m.attributes.push(LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]));
        m
    }

    #[test]
    fn a_link_message_is_read_as_the_library_wrote_it() {
        let link = link(&message(eth0())).unwrap();
        let expected = Link {
            ifindex: IfIndex(7),
            name: "eth0".into(),
            up: true,
            carrier: true,
            mac: [2, 0, 0, 0, 0, 7],
        };
        assert_eq!(link, expected);
    }

    #[test]
    fn a_bridge_message_and_a_short_one_are_none() {
        let mut bridge = eth0();
        bridge.header.interface_family = AddressFamily::Bridge;
        assert_eq!(link(&message(bridge)), None);
        let whole = message(eth0());
        for length in 0..MESSAGE_HEADER + LINK_HEADER {
            assert_eq!(link(&whole[..length]), None);
        }
    }

    #[test]
    fn a_datagram_is_split_where_its_messages_end() {
        let (one, two) = (message(eth0()), message(LinkMessage::default()));
        let mut both = [one.clone(), two.clone()].concat();
        assert_eq!(split(&both).collect::<Vec<_>>(), [&one[..], &two[..]]);
        both.truncate(both.len() - 1);
        assert_eq!(split(&both).count(), 1, "the second is cut short");
    }
}
