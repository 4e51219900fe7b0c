//! Announcement frames: gratuitous ARP and unsolicited neighbour advertisements, sent past the host's stack but
//! through its TC egress, where the kernel programs judge them like everything else.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use baton_core::IfIndex;
use bytes::{BufMut, BytesMut};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket};

pub(super) const BROADCAST: [u8; 6] = [0xff; 6];
/// Shortest Ethernet frame without its check sequence.
pub(super) const MIN_FRAME: usize = 60;

/// Sends announcements.
pub struct Announcer {
    socket: OwnedFd,
    macs: HashMap<IfIndex, [u8; 6]>,
    frame: BytesMut,
}

impl Announcer {
    /// Opens the packet socket; it receives nothing.
    pub fn open() -> io::Result<Announcer> {
        Ok(Announcer { socket: packet_socket()?, macs: HashMap::new(), frame: BytesMut::with_capacity(128) })
    }

    /// Sets the MAC address of a port.
    pub fn set_mac(&mut self, ifindex: IfIndex, mac: [u8; 6]) {
        self.macs.insert(ifindex, mac);
    }

    /// Has this port a MAC address here?
    pub fn knows(&self, ifindex: IfIndex) -> bool {
        self.macs.contains_key(&ifindex)
    }

    /// Forgets a port.
    pub fn forget(&mut self, ifindex: IfIndex) {
        self.macs.remove(&ifindex);
    }

    /// Announces `address` on a port: both forms of gratuitous ARP, or one neighbour advertisement.
    pub fn announce(&mut self, ifindex: IfIndex, address: IpAddr) -> io::Result<()> {
        let mac = *self.macs.get(&ifindex).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        match address {
            IpAddr::V4(a) => {
                for form in [ArpForm::Request, ArpForm::Reply] {
                    gratuitous_arp(&mut self.frame, mac, a, form);
                    self.send(ifindex)?;
                }
                Ok(())
            }
            IpAddr::V6(a) => {
                neighbour_advertisement(&mut self.frame, mac, a);
                self.send(ifindex)
            }
        }
    }

    fn send(&self, ifindex: IfIndex) -> io::Result<()> {
        let to = link_address(ifindex)?;
        sendto(self.socket.as_raw_fd(), &self.frame, &to, MsgFlags::empty())?;
        Ok(())
    }
}

/// A packet socket that receives nothing.
pub(super) fn packet_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Packet, SockType::Raw, flags, None)?)
}

pub(super) fn link_address(ifindex: IfIndex) -> io::Result<LinkAddr> {
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex.0 as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    };
    let length = std::mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `raw` is a whole sockaddr_ll and `length` is its size.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(length)) }
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The two forms of a gratuitous ARP; some hosts heed only one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpForm {
    /// ARP announcement (RFC 5227, section 3).
    Request,
    /// Unsolicited reply. Its target hardware address is the sender's, or Linux doesn't take it as gratuitous.
    Reply,
}

/// Writes a gratuitous ARP frame (RFC 826, RFC 5227).
pub fn gratuitous_arp(frame: &mut BytesMut, mac: [u8; 6], address: Ipv4Addr, form: ArpForm) {
    ethernet(frame, BROADCAST, mac, 0x0806);
    frame.put_slice(&[0, 1, 8, 0, 6, 4]); // Ethernet, IPv4
    frame.put_u16(match form {
        ArpForm::Request => 1,
        ArpForm::Reply => 2,
    });
    frame.put_slice(&mac);
    frame.put_slice(&address.octets());
    frame.put_slice(&match form {
        ArpForm::Request => [0; 6],
        ArpForm::Reply => mac,
    });
    frame.put_slice(&address.octets());
    frame.resize(MIN_FRAME, 0);
}

/// Writes an unsolicited neighbour advertisement with the override flag (RFC 4861, 4.4 and 7.2.6).
pub fn neighbour_advertisement(frame: &mut BytesMut, mac: [u8; 6], address: Ipv6Addr) {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    ethernet(frame, [0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd);
    // The override flag; target link-layer address.
    neighbour_message(frame, (address, all_nodes), (136, 0x2000_0000), address, (2, mac));
}

/// Writes a neighbour message with one link-layer address option behind the Ethernet header (RFC 4861, 4.3, 4.4, 4.6.1):
/// IPv6 source and destination, type and flags, target, type of the option and its address.
pub(super) fn neighbour_message(
    frame: &mut BytesMut,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    (kind, flags): (u8, u32),
    target: Ipv6Addr,
    (option, mac): (u8, [u8; 6]),
) {
    let mut body = BytesMut::with_capacity(32);
    body.put_slice(&[kind, 0, 0, 0]); // code, checksum to come
    body.put_u32(flags);
    body.put_slice(&target.octets());
    body.put_slice(&[option, 1]); // eight bytes
    body.put_slice(&mac);
    let sum = icmpv6_checksum(source, destination, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());

    frame.put_u32(0x6000_0000);
    frame.put_u16(body.len() as u16);
    frame.put_slice(&[58, 255]); // ICMPv6; the hop limit must be 255
    frame.put_slice(&source.octets());
    frame.put_slice(&destination.octets());
    frame.put_slice(&body);
}

pub(super) fn ethernet(frame: &mut BytesMut, to: [u8; 6], from: [u8; 6], kind: u16) {
    frame.clear();
    frame.put_slice(&to);
    frame.put_slice(&from);
    frame.put_u16(kind);
}

/// RFC 4443, 2.3, over the pseudo-header of RFC 8200, 8.1.
pub(super) fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let words = |b: &[u8]| -> u32 {
        b.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]))).sum()
    };
    let mut sum = words(&from.octets()) + words(&to.octets()) + body.len() as u32 + 58 + words(body);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn arp_reply_form_carries_the_sender_as_target() {
        let mut f = BytesMut::new();
        gratuitous_arp(&mut f, MAC, Ipv4Addr::new(10, 0, 0, 1), ArpForm::Reply);
        assert_eq!(f.len(), 60);
        assert_eq!(f[..6], [0xff; 6]);
        assert_eq!(f[12..14], [8, 6]);
        assert_eq!(f[20..22], [0, 2]);
        assert_eq!(f[22..28], MAC);
        assert_eq!(f[28..32], [10, 0, 0, 1]);
        assert_eq!(f[32..38], MAC);
        assert_eq!(f[38..42], [10, 0, 0, 1]);
    }

    #[test]
    fn arp_request_form_has_no_target_hardware_address() {
        let mut f = BytesMut::new();
        gratuitous_arp(&mut f, MAC, Ipv4Addr::new(10, 0, 0, 1), ArpForm::Request);
        assert_eq!((f[21], &f[32..38]), (1, &[0; 6][..]));
    }

    #[test]
    fn advertisement_has_a_valid_checksum_and_the_override_flag() {
        let mut f = BytesMut::new();
        let a: Ipv6Addr = "fd00:10::7".parse().unwrap();
        neighbour_advertisement(&mut f, MAC, a);
        assert_eq!(f.len(), 14 + 40 + 32);
        assert_eq!(f[14 + 7], 255);
        assert_eq!(f[54 + 4], 0x20);
        let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        assert_eq!(icmpv6_checksum(a, to, &f[54..]), 0, "sums to zero with its checksum in place");
    }
}
