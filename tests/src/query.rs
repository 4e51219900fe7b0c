//! Who has this address? Asked on the wire, with *all* answers collected: the judge of "exactly one answers".

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::clock::{self, RealtimeOffset};
use crate::error::{Context, LabError};
use crate::packet::PacketSocket;
use crate::port::Port;
use crate::wire::{self, Kind, Mac};

/// One reply to a question. Announcements, which nobody asked for, are none: they say nothing of the time of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The hardware address stated.
    pub mac: Mac,
    /// When it arrived, on `CLOCK_MONOTONIC`.
    pub at: Duration,
}

impl Port {
    /// Asks once by ARP or neighbour solicitation from this port, and collects every answer that comes within `window`.
    ///
    /// The question is asked from an address of the port in the same subnet if it has one. Without one, ARP is asked from 0.0.0.0 (RFC 5227,
    /// a probe), and neighbour discovery can't be asked.
    ///
    /// # Errors
    /// [`LabError::BadAddress`] for an IPv6 question without an IPv6 address of the port; what the sockets say.
    pub fn who_has(&self, address: IpAddr, window: Duration) -> Result<Vec<Reply>, LabError> {
        let what = || format!("ask for {address} by {} of {}", self.interface(), self.host().name());
        let own = self.own_address(address)?;
        let question = match (address, own) {
            (IpAddr::V4(address), Some(IpAddr::V4(own))) => wire::arp_request(self.mac(), own, address),
            (IpAddr::V4(address), _) => wire::arp_request(self.mac(), Ipv4Addr::UNSPECIFIED, address),
            (IpAddr::V6(address), Some(IpAddr::V6(own))) => {
                wire::neighbour_solicitation(self.mac(), own, address)
            }
            (IpAddr::V6(address), _) => {
                let why = format!("{} has no IPv6 address to ask from", self.interface());
                return Err(LabError::BadAddress { text: address.to_string(), why });
            }
        };
        let index = self.index();
        let socket = self.host().open("open a packet socket", || PacketSocket::open(index))?;
        socket.send(&question).context(what)?;
        collect(&socket, address, window).context(what)
    }

    /// The hardware addresses that answer for `address`, sorted, each once.
    ///
    /// # Errors
    /// As [`Port::who_has`].
    pub fn holders(&self, address: IpAddr, window: Duration) -> Result<Vec<Mac>, LabError> {
        let mut holders: Vec<Mac> = self.who_has(address, window)?.iter().map(|reply| reply.mac).collect();
        holders.sort();
        holders.dedup();
        Ok(holders)
    }

    /// An address of this port of the same family: one whose subnet holds `other` if there is one.
    fn own_address(&self, other: IpAddr) -> Result<Option<IpAddr>, LabError> {
        let addresses = self.host().netlink().addresses()?;
        let mine = addresses.iter().filter(|(index, net)| {
            *index == self.index() && net.addr().is_ipv4() == other.is_ipv4() && !is_link_local(net.addr())
        });
        Ok(mine.max_by_key(|(_, net)| net.contains(&other)).map(|(_, net)| net.addr()))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if Ipv6Addr::is_unicast_link_local(&address))
}

fn collect(socket: &PacketSocket, address: IpAddr, window: Duration) -> io::Result<Vec<Reply>> {
    let offset = RealtimeOffset::sample();
    let end = clock::now() + window;
    let mut replies = Vec::new();
    while let Some(left) = end.checked_sub(clock::now()) {
        socket.wait(left)?;
        while let Some(received) = socket.receive(offset)? {
            if received.outgoing {
                continue;
            }
            let mac = match wire::decode(&received.bytes) {
                Some((_, _, Kind::Arp { reply: true, sender, sender_mac, target, .. }))
                    if IpAddr::from(sender) == address && target != sender =>
                {
                    sender_mac
                }
                Some((_, _, Kind::Advertisement { target, mac, solicited: true, .. }))
                    if IpAddr::from(target) == address =>
                {
                    mac
                }
                _ => continue,
            };
            replies.push(Reply { mac, at: received.at });
        }
    }
    Ok(replies)
}
