//! Questions to probe targets: ARP probes and neighbour solicitations, from a port's MAC address alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, BytesMut};

use super::announce::{BROADCAST, MIN_FRAME, ethernet, neighbour_message};

/// Writes the question who has `target`, to everybody or to the host that had it (RFC 1122, 2.3.2.1).
pub fn question(frame: &mut BytesMut, mac: [u8; 6], target: IpAddr, to: Option<[u8; 6]>) {
    match target {
        IpAddr::V4(target) => arp_probe(frame, mac, target, to),
        IpAddr::V6(target) => neighbour_solicitation(frame, mac, target, to),
    }
}

/// An ARP request without a sender address (RFC 5227, 2.1.1): it is answered, and teaches nobody anything.
fn arp_probe(frame: &mut BytesMut, mac: [u8; 6], target: Ipv4Addr, to: Option<[u8; 6]>) {
    ethernet(frame, to.unwrap_or(BROADCAST), mac, 0x0806);
    frame.put_slice(&[0, 1, 8, 0, 6, 4, 0, 1]); // Ethernet, IPv4, request
    frame.put_slice(&mac);
    frame.put_slice(&[0; 4]);
    frame.put_slice(&[0; 6]);
    frame.put_slice(&target.octets());
    frame.resize(MIN_FRAME, 0);
}

/// RFC 4861, 4.3, from the link-local address that belongs to the MAC address, whether the port has it or not.
fn neighbour_solicitation(frame: &mut BytesMut, mac: [u8; 6], target: Ipv6Addr, to: Option<[u8; 6]>) {
    let source = link_local(mac);
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let (destination, to) = match to {
        Some(to) => (target, to),
        None => (group, [0x33, 0x33, 0xff, a, b, c]),
    };
    ethernet(frame, to, mac, 0x86dd);
    // Source link-layer address.
    neighbour_message(frame, (source, destination), (135, 0), target, (1, mac));
}

/// The link-local address with the modified EUI-64 of a MAC address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

#[cfg(test)]
mod tests {
    use super::super::announce::icmpv6_checksum;
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_arp_probe_has_no_sender_address_and_asks_everybody_or_one() {
        let mut f = BytesMut::new();
        question(&mut f, MAC, "10.0.0.1".parse().unwrap(), None);
        assert_eq!((f.len(), &f[..6], &f[6..12]), (60, &BROADCAST[..], &MAC[..]));
        assert_eq!((&f[20..22], &f[22..28], &f[28..32]), (&[0, 1][..], &MAC[..], &[0; 4][..]));
        assert_eq!(f[38..42], [10, 0, 0, 1]);
        question(&mut f, MAC, "10.0.0.1".parse().unwrap(), Some(OTHER));
        assert_eq!(f[..6], OTHER);
    }

    #[test]
    fn a_solicitation_goes_to_the_group_of_its_target_with_a_valid_checksum() {
        let mut f = BytesMut::new();
        let target: Ipv6Addr = "fd00:10::12:3456".parse().unwrap();
        question(&mut f, MAC, target.into(), None);
        assert_eq!(f[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let source: Ipv6Addr = "fe80::ff:fe00:7".parse().unwrap();
        assert_eq!(f[22..38], source.octets());
        let group: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
        assert_eq!(f[38..54], group.octets());
        assert_eq!(icmpv6_checksum(source, group, &f[54..]), 0, "sums to zero with its checksum in place");
        question(&mut f, MAC, target.into(), Some(OTHER));
        assert_eq!((&f[..6], &f[38..54]), (&OTHER[..], &target.octets()[..]));
    }
}
