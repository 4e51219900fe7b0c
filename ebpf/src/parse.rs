//! From the Ethernet header to the network layer, with every length checked before it is believed.
//!
//! A frame whose headers announce more than is there, or contradict themselves, is *malformed*: it is passed on and
//! counted as nothing else. So a frame is counted as traffic only if its IP header is complete and the packet it
//! announces fits into the frame.

use baton_common::PROBE_ETHERTYPE;
use network_types::arp::ArpHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::frame::Frame;
use crate::maps::diagnose;
use crate::nd::{self, Neighbour};
use crate::packet::{Packet, Wire};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_8021Q: u16 = 0x8100;
const ETHERTYPE_8021AD: u16 = 0x88a8;

const ETHERNET: usize = 14;
const TAG: usize = 4;

/// More fragments follow, or this is not the first one (RFC 791, 3.1).
const MORE_OR_OFFSET: u16 = 0x3fff;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Drop,
    /// Back out by the port it came in by; it has been rewritten.
    Echo,
    /// Out by another port, with a neighbour resolved there (TC egress only).
    Redirect(u32),
    /// Out by another port, as it is (TC ingress only).
    Forward(u32),
}

/// The Ethernet header.
#[repr(C)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ethertype: [u8; 2],
}

/// A sound IP packet, of either family.
pub struct Ip<'a, P> {
    packet: &'a P,
    frame: Frame,
    /// Bytes of the whole frame.
    length: usize,
    /// Where the IP header ends (IPv6: the fixed one).
    transport: usize,
    /// Where the packet ends, by its own header; as far as that tells.
    end: usize,
    protocol: u8,
    /// It is a part of a packet.
    fragment: bool,
    /// The frame carries a VLAN tag in its data.
    tagged: bool,
}

impl<P: Packet> Ip<'_, P> {
    /// Interface index of the port.
    #[inline(always)]
    pub fn port(&self) -> u32 {
        self.packet.port()
    }

    /// The frame carries a VLAN tag.
    #[inline(always)]
    pub fn tagged(&self) -> bool {
        self.tagged || self.packet.tag_beside()
    }

    /// Its TCP header and the length of what that carries. `None`: it is no TCP or a fragment of it, its header isn't
    /// there, or stands behind an extension header.
    #[inline(always)]
    pub fn tcp(&self) -> Option<(&'static Tcp, u32)> {
        if self.protocol != PROTOCOL_TCP || self.fragment {
            return None;
        }
        let tcp = self.frame.at::<Tcp>(self.transport)?;
        let header = usize::from(tcp.offset >> 4) * 4;
        if header < size_of::<Tcp>() || self.transport + header > self.end {
            return None;
        }
        Some((tcp, (self.end - self.transport - header) as u32))
    }

    /// What the packet is on the wire.
    #[inline(always)]
    pub fn wire(&self) -> Wire {
        self.packet.wire(self.length, || {
            self.transport
                + match self.protocol {
                    PROTOCOL_TCP => match self.frame.at::<[u8; 20]>(self.transport) {
                        Some(tcp) => usize::from(tcp[12] >> 4) * 4,
                        None => 20,
                    },
                    PROTOCOL_UDP => 8,
                    _ => 0,
                }
        })
    }
}

/// RFC 9293, 3.1, without options.
#[repr(C)]
pub struct Tcp {
    pub source: [u8; 2],
    pub destination: [u8; 2],
    pub sequence: [u8; 4],
    pub acknowledgment: [u8; 4],
    /// Its length in the upper half, in words of four bytes.
    pub offset: u8,
    pub flags: u8,
    pub window: [u8; 2],
    pub checksum: [u8; 2],
    pub urgent: [u8; 2],
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
pub struct Arp {
    pub header: &'static ArpHdr,
    /// Where it lies in the frame.
    pub offset: usize,
}

/// What a hook does with each kind of frame. Everything else is passed.
pub trait Hook<P: Packet> {
    /// A frame with the EtherType of probe frames and no VLAN tag.
    fn probe(&self, packet: &P) -> Verdict;
    /// ARP for IPv4 over Ethernet.
    fn arp(&self, packet: &P, arp: Arp) -> Verdict;
    /// A neighbour solicitation or advertisement.
    fn neighbour(&self, packet: &P, header: &'static Ipv6Hdr, message: Neighbour) -> Option<Verdict>;
    /// IPv4.
    fn ipv4(&self, ip: &Ip<P>, header: &'static Ipv4Hdr) -> Verdict;
    /// IPv6, also a neighbour message of which [`Hook::neighbour`] made nothing.
    fn ipv6(&self, ip: &Ip<P>, header: &'static Ipv6Hdr) -> Verdict;
}

/// Parses a frame and asks the hook for the verdict.
#[inline(always)]
pub fn judge<P: Packet>(packet: &P, hook: &impl Hook<P>) -> Verdict {
    match try_judge(packet, hook) {
        Some(verdict) => verdict,
        None => {
            diagnose(|diagnostics| diagnostics.malformed += 1);
            Verdict::Pass
        }
    }
}

/// `None`: malformed.
#[inline(always)]
fn try_judge<P: Packet>(packet: &P, hook: &impl Hook<P>) -> Option<Verdict> {
    let frame = packet.frame();
    let ethernet = frame.at::<Ethernet>(0)?;
    let mut ethertype = u16::from_be_bytes(ethernet.ethertype);
    if is_tag(ethertype) {
        let mut offset = ETHERNET;
        ethertype = u16::from_be_bytes(frame.at::<[u8; TAG]>(offset).map(|tag| [tag[2], tag[3]])?);
        offset += TAG;
        if is_tag(ethertype) {
            ethertype = u16::from_be_bytes(frame.at::<[u8; TAG]>(offset).map(|tag| [tag[2], tag[3]])?);
            offset += TAG;
        }
        return network(packet, hook, frame, ethertype, offset);
    }
    network(packet, hook, frame, ethertype, ETHERNET)
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_8021Q || ethertype == ETHERTYPE_8021AD
}

#[inline(always)]
fn network<P: Packet>(
    packet: &P,
    hook: &impl Hook<P>,
    frame: Frame,
    ethertype: u16,
    offset: usize,
) -> Option<Verdict> {
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(packet, hook, frame, offset),
        ETHERTYPE_IPV6 => ipv6(packet, hook, frame, offset),
        ETHERTYPE_ARP => arp(packet, hook, frame, offset),
        PROBE_ETHERTYPE if offset == ETHERNET && !packet.tag_beside() => Some(hook.probe(packet)),
        _ => Some(Verdict::Pass),
    }
}

/// RFC 791, 3.1. Fragments and options make no difference: the addresses are in every fragment.
#[inline(always)]
fn ipv4<P: Packet>(packet: &P, hook: &impl Hook<P>, frame: Frame, offset: usize) -> Option<Verdict> {
    let header = frame.at::<Ipv4Hdr>(offset)?;
    let header_length = usize::from(header.vihl & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes(header.tot_len));
    if header.vihl >> 4 != 4 || header_length < size_of::<Ipv4Hdr>() {
        return None;
    }
    // A merged packet of more than 64 KiB announces 0 (BIG TCP).
    let announced = if total_length == 0 && packet.merged() { header_length } else { total_length };
    if announced < header_length {
        return None;
    }
    let length = packet.length(frame, offset + announced)?;
    let ip = Ip {
        packet,
        frame,
        length,
        transport: offset + header_length,
        end: if total_length == 0 { length } else { offset + total_length },
        protocol: header.proto,
        fragment: u16::from_be_bytes(header.frags) & MORE_OR_OFFSET != 0,
        tagged: offset != ETHERNET,
    };
    Some(hook.ipv4(&ip, header))
}

/// RFC 8200, 3. A payload length of 0 is a jumbogram or an empty packet.
#[inline(always)]
fn ipv6<P: Packet>(packet: &P, hook: &impl Hook<P>, frame: Frame, offset: usize) -> Option<Verdict> {
    let header = frame.at::<Ipv6Hdr>(offset)?;
    if header.vcf[0] >> 4 != 6 {
        return None;
    }
    let payload = usize::from(u16::from_be_bytes(header.payload_len));
    let transport = offset + size_of::<Ipv6Hdr>();
    let length = packet.length(frame, transport + payload)?;
    if nd::may_be_ahead(header.next_hdr)
        && let Some(message) = nd::find(frame, header.next_hdr, transport, payload)?
        && let Some(verdict) = hook.neighbour(packet, header, message)
    {
        return Some(verdict);
    }
    let ip = Ip {
        packet,
        frame,
        length,
        transport,
        end: if payload == 0 { length } else { transport + payload },
        protocol: header.next_hdr,
        fragment: false, // there would be a header for that
        tagged: offset != ETHERNET,
    };
    Some(hook.ipv6(&ip, header))
}

/// RFC 826. ARP for other protocols or media is none of ours.
#[inline(always)]
fn arp<P: Packet>(packet: &P, hook: &impl Hook<P>, frame: Frame, offset: usize) -> Option<Verdict> {
    const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let fixed = frame.at::<[u8; 8]>(offset)?;
    if fixed[..6] != ETHERNET_IPV4 {
        return Some(Verdict::Pass);
    }
    let header = frame.at::<ArpHdr>(offset)?;
    Some(hook.arp(packet, Arp { header, offset }))
}
