//! Ethernet frames as a watcher sees them: a small decoder for ARP, neighbour discovery, UDP and TCP, and the two
//! question frames. Fragments and extension headers are not followed; such frames are [`Kind::Other`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One frame at a switch port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When the kernel had it, on `CLOCK_MONOTONIC`.
    pub at: Duration,
    /// The switch port, by the name `<host>-<interface>`.
    pub port: Arc<str>,
    /// True: the host sent it. False: the switch sent it to the host.
    pub from_host: bool,
    /// Ethernet source.
    pub source: Mac,
    /// Ethernet destination.
    pub destination: Mac,
    /// Length in bytes; larger than an MTU where segmentation is left to the device.
    pub length: usize,
    /// What it carries.
    pub kind: Kind,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ARP for IPv4 over Ethernet (RFC 826).
    Arp {
        /// Reply, else request.
        reply: bool,
        /// Sender hardware address.
        sender_mac: Mac,
        /// Sender protocol address.
        sender: Ipv4Addr,
        /// Target hardware address.
        target_mac: Mac,
        /// Target protocol address.
        target: Ipv4Addr,
    },
    /// Neighbour solicitation (RFC 4861).
    Solicitation {
        /// IPv6 source; `::` while an address is being checked.
        source: Ipv6Addr,
        /// The address asked for.
        target: Ipv6Addr,
    },
    /// Neighbour advertisement (RFC 4861).
    Advertisement {
        /// The address advertised.
        target: Ipv6Addr,
        /// Target link-layer address option, else the Ethernet source.
        mac: Mac,
        /// S flag: the answer to a solicitation.
        solicited: bool,
        /// O flag: replaces what receivers know.
        overrides: bool,
    },
    /// TCP segment.
    Tcp {
        /// Sender.
        source: SocketAddr,
        /// Receiver.
        destination: SocketAddr,
        /// Sequence number of the first byte.
        sequence: u32,
        /// Flags byte (FIN 1, SYN 2, RST 4, PSH 8, ACK 16).
        flags: u8,
        /// Payload bytes.
        payload: u32,
    },
    /// UDP datagram.
    Udp {
        /// Sender.
        source: SocketAddr,
        /// Receiver.
        destination: SocketAddr,
    },
    /// Anything else, or too short to tell.
    Other {
        /// EtherType.
        ethertype: u16,
    },
}

/// The TCP reset flag.
pub const TCP_RST: u8 = 4;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Decodes the start of a frame: destination, source, content. None: shorter than an Ethernet header.
pub fn decode(mut frame: &[u8]) -> Option<(Mac, Mac, Kind)> {
    if frame.len() < 14 {
        return None;
    }
    let destination = mac(&mut frame);
    let source = mac(&mut frame);
    let ethertype = frame.get_u16();
    let kind = match ethertype {
        ETHERTYPE_ARP => arp(frame),
        ETHERTYPE_IPV4 => ipv4(frame),
        ETHERTYPE_IPV6 => ipv6(frame, source),
        _ => None,
    };
    Some((destination, source, kind.unwrap_or(Kind::Other { ethertype })))
}

/// An ARP request, broadcast. With `sender` unspecified it is a probe (RFC 5227), which changes no receiver's table.
pub fn arp_request(from: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp_frame(Mac::BROADCAST, from, false, (from, sender), (Mac([0; 6]), target))
}

/// An ARP reply that says `sender` is at `from`, to one station.
pub fn arp_reply(from: Mac, sender: Ipv4Addr, to: Mac, target: Ipv4Addr) -> Vec<u8> {
    arp_frame(to, from, true, (from, sender), (to, target))
}

/// The two gratuitous forms, request and reply. The reply carries the sender's hardware address as target, too: Linux
/// takes it as gratuitous only then.
pub fn gratuitous_arp(from: Mac, address: Ipv4Addr) -> [Vec<u8>; 2] {
    let own = (from, address);
    [arp_request(from, address, address), arp_frame(Mac::BROADCAST, from, true, own, own)]
}

/// An empty UDP datagram to the discard port, its checksum left out.
pub fn udp(from: Mac, to: Mac, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    const DISCARD: u16 = 9;
    let mut frame = Vec::with_capacity(60);
    ethernet(&mut frame, to, from, ETHERTYPE_IPV4);
    let mut header = Vec::with_capacity(20);
    header.put_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, PROTOCOL_UDP, 0, 0]);
    header.put_slice(&source.octets());
    header.put_slice(&destination.octets());
    // RFC 1071
    let sum: u32 = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    for word in [DISCARD, DISCARD, 8, 0] {
        frame.put_u16(word);
    }
    frame.resize(60, 0);
    frame
}

fn arp_frame(to: Mac, from: Mac, reply: bool, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    ethernet(&mut frame, to, from, ETHERTYPE_ARP);
    frame.put_u16(1); // Ethernet
    frame.put_u16(ETHERTYPE_IPV4);
    frame.put_slice(&[6, 4]);
    frame.put_u16(if reply { 2 } else { 1 });
    for (mac, address) in [sender, target] {
        frame.put_slice(&mac.0);
        frame.put_slice(&address.octets());
    }
    frame.resize(60, 0);
    frame
}

/// A neighbour solicitation to the target's solicited-node group, with the source link-layer option (RFC 4861, 4.3).
pub fn neighbour_solicitation(from: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    body.put_slice(&target.octets());
    body.put_slice(&[1, 1]);
    body.put_slice(&from.0);
    icmpv6(Mac([0x33, 0x33, 0xff, x, y, z]), from, source, group, body)
}

/// A solicited, overriding neighbour advertisement that says `target` is at `from` (RFC 4861, 4.4).
pub fn neighbour_advertisement(from: Mac, target: Ipv6Addr, to: Mac, asker: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0];
    body.put_slice(&target.octets());
    body.put_slice(&[2, 1]);
    body.put_slice(&from.0);
    icmpv6(to, from, target, asker, body)
}

fn icmpv6(to: Mac, from: Mac, source: Ipv6Addr, destination: Ipv6Addr, mut body: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let pseudo = [u16::from(PROTOCOL_ICMPV6), length];
    let words = source.segments().into_iter().chain(destination.segments()).chain(pseudo);
    let pairs = body.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let sum: u32 = words.chain(pairs).map(u32::from).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    body[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let mut frame = Vec::with_capacity(54 + body.len());
    ethernet(&mut frame, to, from, ETHERTYPE_IPV6);
    frame.put_slice(&[0x60, 0, 0, 0]);
    frame.put_u16(length);
    frame.put_slice(&[PROTOCOL_ICMPV6, 255]);
    frame.put_slice(&source.octets());
    frame.put_slice(&destination.octets());
    frame.put_slice(&body);
    frame
}

pub(crate) fn ethernet(frame: &mut Vec<u8>, to: Mac, from: Mac, ethertype: u16) {
    frame.put_slice(&to.0);
    frame.put_slice(&from.0);
    frame.put_u16(ethertype);
}

fn arp(mut body: &[u8]) -> Option<Kind> {
    if body.len() < 28 || body[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    body.advance(6);
    let reply = match body.get_u16() {
        1 => false,
        2 => true,
        _ => return None,
    };
    let sender_mac = mac(&mut body);
    let sender = Ipv4Addr::from(body.get_u32());
    let target_mac = mac(&mut body);
    let target = Ipv4Addr::from(body.get_u32());
    Some(Kind::Arp { reply, sender_mac, sender, target_mac, target })
}

fn ipv4(packet: &[u8]) -> Option<Kind> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    if packet.len() < 20 || header < 20 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0 {
        return None; // a later fragment has no ports
    }
    let source = IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).ok()?);
    let destination = IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).ok()?);
    transport(packet[9], source, destination, packet.get(header..)?, total.saturating_sub(header))
}

fn ipv6(packet: &[u8], frame_source: Mac) -> Option<Kind> {
    if packet.len() < 40 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let source = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[8..24]).ok()?);
    let destination = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).ok()?);
    let body = &packet[40..];
    if packet[6] != PROTOCOL_ICMPV6 {
        return transport(packet[6], source.into(), destination.into(), body, length);
    }
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(body.get(8..24)?).ok()?);
    match *body.first()? {
        SOLICITATION => Some(Kind::Solicitation { source, target }),
        ADVERTISEMENT => Some(Kind::Advertisement {
            target,
            mac: link_layer_option(&body[24..]).unwrap_or(frame_source),
            solicited: body[4] & 0x40 != 0,
            overrides: body[4] & 0x20 != 0,
        }),
        _ => None,
    }
}

/// The target link-layer address (option 2) among the options of an advertisement.
fn link_layer_option(mut options: &[u8]) -> Option<Mac> {
    while let [kind, units, rest @ ..] = options {
        if *kind == 2 {
            return <[u8; 6]>::try_from(rest.get(..6)?).ok().map(Mac);
        }
        if *units == 0 {
            return None;
        }
        options = options.get(usize::from(*units) * 8..)?;
    }
    None
}

fn transport(protocol: u8, source: IpAddr, destination: IpAddr, body: &[u8], length: usize) -> Option<Kind> {
    let port = |at: usize| body.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let source = SocketAddr::new(source, port(0)?);
    let destination = SocketAddr::new(destination, port(2)?);
    match protocol {
        PROTOCOL_UDP => Some(Kind::Udp { source, destination }),
        PROTOCOL_TCP => {
            let header = usize::from(body.get(12)? >> 4) * 4;
            let sequence = u32::from_be_bytes(<[u8; 4]>::try_from(body.get(4..8)?).ok()?);
            let payload = u32::try_from(length.saturating_sub(header)).unwrap_or(u32::MAX);
            Some(Kind::Tcp { source, destination, sequence, flags: *body.get(13)?, payload })
        }
        _ => None,
    }
}

/// Takes six bytes; the caller has checked that they are there.
fn mac(bytes: &mut &[u8]) -> Mac {
    let mut address = [0; 6];
    bytes.copy_to_slice(&mut address);
    Mac(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn questions_and_answers_decode_to_what_was_asked() {
        let (me, vip) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 10));
        let kind =
            Kind::Arp { reply: false, sender_mac: A, sender: me, target_mac: Mac([0; 6]), target: vip };
        assert_eq!(decode(&arp_request(A, me, vip)), Some((Mac::BROADCAST, A, kind)));
        let kind = Kind::Arp { reply: true, sender_mac: B, sender: vip, target_mac: A, target: me };
        assert_eq!(decode(&arp_reply(B, vip, A, me)), Some((A, B, kind)));
        let (me, vip): (Ipv6Addr, Ipv6Addr) = ("fd00::1".parse().unwrap(), "fd00::10".parse().unwrap());
        let (_, _, kind) = decode(&neighbour_solicitation(A, me, vip)).unwrap();
        assert_eq!(kind, Kind::Solicitation { source: me, target: vip });
        let (_, _, kind) = decode(&neighbour_advertisement(B, vip, A, me)).unwrap();
        assert_eq!(kind, Kind::Advertisement { target: vip, mac: B, solicited: true, overrides: true });
    }

    #[test]
    fn a_frame_cut_anywhere_is_no_panic() {
        let frames = [
            arp_request(A, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
            neighbour_advertisement(B, Ipv6Addr::LOCALHOST, A, Ipv6Addr::LOCALHOST),
        ];
        for frame in frames {
            for length in 0..frame.len() {
                assert_eq!(decode(&frame[..length]).is_some(), length >= 14);
            }
        }
    }
}
