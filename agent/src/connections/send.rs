//! Sends resets and tickles from a virtual IP to its former clients: through the host's routing, and through its TC egress, where the
//! kernel programs let nothing out for an address that isn't served here now.
//!
//! A *reset* ends a connection at once where the client expects just that number, and one that it doesn't quite expect, but could,
//! is answered by what it expects. A *tickle* is an acknowledgment of a number that no client can expect: to that, too, it
//! answers with what it expects (RFC 9293, 3.10.7.4). The answer comes to a node that knows no such connection, whose kernel
//! says so, with the right number. A client answers such segments once in 500 ms.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::{BufMut, BytesMut};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto, socket,
};

use super::Numbers;
use crate::io::kernel::Ends;

const TCP: u8 = 6;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const HOPS: u8 = 64;
/// Further from any number that a client expects than the largest window (RFC 7323, 2.3: 1 GiB).
const FAR: u32 = 1 << 31;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A reset.
    Reset,
    /// A tickle.
    Tickle,
}

/// Raw sockets, one for each virtual IP that it sends from. They receive nothing.
#[derive(Default)]
pub struct Sender {
    /// `None`: the address isn't here.
    sockets: BTreeMap<IpAddr, Option<OwnedFd>>,
    packet: BytesMut,
}

impl Sender {
    /// Sends a segment to the client. [`io::ErrorKind::WouldBlock`]: the queue is full; later there is room again.
    pub fn send(&mut self, ends: &Ends, numbers: Numbers, what: What) -> io::Result<()> {
        let from = ends.server.ip();
        let socket = self.sockets.entry(from).or_insert_with(|| open(from).ok());
        let Some(socket) = socket else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        packet(&mut self.packet, ends, numbers, what);
        let to = SockaddrStorage::from(SocketAddr::new(ends.client.ip(), 0));
        match sendto(socket.as_raw_fd(), &self.packet, &to, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => Ok(()),
            // The kernel programs have dropped it, or the queue of the port is full.
            Err(Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A socket that takes whole packets; routed as what comes from the address.
fn open(from: IpAddr) -> io::Result<OwnedFd> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Raw, flags, SockProtocol::Raw)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    Ok(socket)
}

/// Writes an IP packet with a TCP segment.
pub fn packet(packet: &mut BytesMut, ends: &Ends, numbers: Numbers, what: What) {
    let (sequence, flags) = match what {
        What::Reset => (numbers.server, RST | ACK),
        What::Tickle => (numbers.server.wrapping_add(FAR), ACK),
    };
    let mut segment = [0; 20];
    {
        let mut fields = &mut segment[..];
        fields.put_u16(ends.server.port());
        fields.put_u16(ends.client.port());
        fields.put_u32(sequence);
        fields.put_u32(numbers.client);
        fields.put_u8((20 / 4) << 4);
        fields.put_u8(flags); // no window follows: so the kernel programs know that no connection says this
    }
    packet.clear();
    let sum = match (ends.server.ip(), ends.client.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.put_slice(&[0x45, 0]);
            packet.put_u16(20 + 20);
            packet.put_u32(0); // the kernel chooses an identification
            packet.put_slice(&[HOPS, TCP, 0, 0]); // and calculates the checksum of the header
            packet.put_slice(&from.octets());
            packet.put_slice(&to.octets());
            sum(&from.octets()) + sum(&to.octets())
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let (from, to) = (octets(from), octets(to));
            packet.put_u32(0x6000_0000);
            packet.put_u16(20);
            packet.put_slice(&[TCP, HOPS]);
            packet.put_slice(&from);
            packet.put_slice(&to);
            sum(&from) + sum(&to)
        }
    };
    let mut sum = sum + u32::from(TCP) + segment.len() as u32 + self::sum(&segment);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.put_slice(&segment);
}

/// Sum of 16-bit words (RFC 1071).
pub(super) fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}
