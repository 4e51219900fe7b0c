//! The TCP connections of virtual IPs, with their numbers: what the next owner of a virtual server needs to reset them.
//!
//! | segment | entry |
//! |---|---|
//! | sent, an acknowledgment that carries nothing and announces no window | stays: most often it is a tickle of the agent's, whose number is none |
//! | sent, without SYN, RST or FIN | made if there is none, and has the numbers that it carries where they are later |
//! | sent, with FIN | likewise, but is not made; it has ended, whatever follows (the last acknowledgments of a closed connection) |
//! | sent, with SYN or RST | goes: it is of an earlier connection, or of one that is gone |
//! | received, with RST | is reset, until something else is sent: the RST was none of the client's |
//! | any other that is received | stays |
//!
//! Only what the virtual server sends makes an entry, and it sends nothing but SYN and RST to who has not answered it: no flood of
//! segments from outside fills the map. What it sends says all: its own number, and by the acknowledgment the client's.

use baton_common::{CONNECTION_ENDED, CONNECTION_RESET, Connection, ConnectionKey, later};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::maps::{CONNECTIONS, CONNECTIONS_MADE};
use crate::packet::Packet;
use crate::parse::Ip;
use crate::permission::coarse_ns;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Source and destination of a packet, of either family.
pub trait Ends {
    fn family(&self) -> u32;
    fn source(&self) -> [u8; 16];
    fn destination(&self) -> [u8; 16];
}

impl Ends for Ipv4Hdr {
    #[inline(always)]
    fn family(&self) -> u32 {
        4
    }

    #[inline(always)]
    fn source(&self) -> [u8; 16] {
        widen(&self.src_addr)
    }

    #[inline(always)]
    fn destination(&self) -> [u8; 16] {
        widen(&self.dst_addr)
    }
}

impl Ends for Ipv6Hdr {
    #[inline(always)]
    fn family(&self) -> u32 {
        6
    }

    #[inline(always)]
    fn source(&self) -> [u8; 16] {
        self.src_addr
    }

    #[inline(always)]
    fn destination(&self) -> [u8; 16] {
        self.dst_addr
    }
}

/// A packet leaves from a tracked virtual IP, by its port.
#[inline(always)]
pub fn sent<P: Packet>(ip: &Ip<P>, ends: &impl Ends) {
    let Some((tcp, payload)) = ip.tcp() else {
        return;
    };
    let key = ConnectionKey {
        server: ends.source(),
        client: ends.destination(),
        server_port: tcp.source,
        client_port: tcp.destination,
        family: ends.family(),
    };
    let flags = tcp.flags;
    if flags & (FIN | SYN | RST) == 0 && payload == 0 && tcp.window == [0; 2] {
        return;
    }
    let ends_it = flags & FIN != 0;
    let server = u32::from_be_bytes(tcp.sequence).wrapping_add(payload).wrapping_add(ends_it as u32);
    let client = u32::from_be_bytes(tcp.acknowledgment);
    let Some(entry) = CONNECTIONS.get_ptr_mut(key) else {
        if flags & (FIN | SYN | RST | ACK) == ACK {
            let numbers = Connection::pack(server, client);
            let new = Connection { numbers, sent_ns: coarse_ns(), flags: 0, reserved: 0 };
            // A map that has no room forgets what has been idle for longest; where even that fails this one goes unheeded.
            if CONNECTIONS.insert(key, new, 0).is_ok()
                && let Some(made) = CONNECTIONS_MADE.get_ptr_mut(0)
            {
                // SAFETY: as in `maps::count`.
                unsafe { *made += 1 };
            }
        }
        return;
    };
    if flags & (SYN | RST) != 0 {
        let _ = CONNECTIONS.remove(key); // gone already: as good
        return;
    }
    // SAFETY: an entry of a map, whose memory stays valid while the program runs; every bit pattern is valid. Two CPUs that send
    // for one connection at once may lose the later numbers of the two until the next segment: volatile, so that each word is
    // read and written once, and the numbers are of one segment.
    unsafe {
        let before = (&raw const (*entry).numbers).read_volatile();
        let numbers = Connection::pack(later(before as u32, server), later((before >> 32) as u32, client));
        if numbers != before {
            (&raw mut (*entry).numbers).write_volatile(numbers);
        }
        (&raw mut (*entry).sent_ns).write_volatile(coarse_ns());
        let old = (&raw const (*entry).flags).read_volatile();
        let new = (old & !CONNECTION_RESET) | if ends_it { CONNECTION_ENDED } else { 0 };
        if new != old {
            (&raw mut (*entry).flags).write_volatile(new);
        }
    }
}

/// A packet has come to a tracked virtual IP.
#[inline(always)]
pub fn received<P: Packet>(ip: &Ip<P>, ends: &impl Ends) {
    let Some((tcp, _)) = ip.tcp() else {
        return;
    };
    if tcp.flags & RST == 0 {
        return;
    }
    let key = ConnectionKey {
        server: ends.destination(),
        client: ends.source(),
        server_port: tcp.destination,
        client_port: tcp.source,
        family: ends.family(),
    };
    if let Some(entry) = CONNECTIONS.get_ptr_mut(key) {
        // SAFETY: as in `sent`.
        unsafe {
            let flags = &raw mut (*entry).flags;
            flags.write_volatile(flags.read_volatile() | CONNECTION_RESET);
        }
    }
}

/// An IPv4 address in the first four of sixteen bytes.
#[inline(always)]
fn widen(address: &[u8; 4]) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(address);
    wide
}
