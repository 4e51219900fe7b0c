//! Listens to the kernel's notifications of links, addresses, rules and routes, and turns them into inputs.
//!
//! It drops what core has no use for before it becomes an input: addresses that are neither Baton's nor virtual IPs,
//! routes and rules of others, link messages that repeat what is known. When the kernel had to drop notifications
//! (ENOBUFS), it says so; the driver then reads everything again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use baton_core::{Found, IfIndex, Input, Link};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink::{self, MARK};
use super::steering::{self, TABLE_BASE, TABLES};

/// RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE of linux/rtnetlink.h.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// Room for the notifications of some ten thousand changes.
const RECEIVE_BUFFER: usize = 16 << 20;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// What a reading gave.
pub enum Heard {
    /// Inputs, in order; may be none.
    Inputs(Vec<Input>),
    /// Notifications were lost.
    Lost,
}

/// The subscription.
pub struct Listener {
    fd: AsyncFd<Socket>,
    /// Netlink port of our own requests, whose notifications about routes and rules are no news.
    own: u32,
    vips: BTreeSet<IpAddr>,
    links: BTreeMap<IfIndex, Link>,
    segments: Vec<String>,
    buffer: Vec<u8>,
}

impl Listener {
    /// Subscribes. Must be called within a tokio runtime; from now on nothing is missed.
    pub fn open(own: u32, vips: BTreeSet<IpAddr>, segments: Vec<String>) -> io::Result<Listener> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        force_receive_buffer(&socket)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        GROUPS.iter().try_for_each(|g| socket.add_membership(*g))?;
        socket.set_non_blocking(true)?;
        let links = BTreeMap::new();
        // SAFETY: the socket owns its descriptor, which stays the same and open until the socket is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Listener { fd, own, vips, links, segments, buffer: Vec::new() })
    }

    /// From now on these are the virtual IPs and segments.
    pub fn expect(&mut self, vips: BTreeSet<IpAddr>, segments: Vec<String>) {
        (self.vips, self.segments) = (vips, segments);
    }

    /// What a full reading found: the ground on which later messages are news. Keeps only what core has a use for.
    pub fn ground(&mut self, mut found: Found) -> Found {
        self.links = found.links.iter().map(|l| (l.ifindex, l.clone())).collect();
        found.addresses.retain(|a| a.ours || self.vips.contains(&a.address));
        found
    }

    /// Waits until there is something to read. Cancel safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.fd.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Reads all there is.
    pub fn read(&mut self) -> io::Result<Heard> {
        let mut inputs = Vec::new();
        let mut lost = false;
        // Notifications of a thousand addresses are a thousand datagrams; a full buffer holds some twenty thousand.
        for _ in 0..1 << 16 {
            self.buffer.clear();
            self.buffer.reserve(1 << 15);
            match self.fd.get_ref().recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.rearm();
                    break;
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    lost = true; // what is left is older than the reading that follows
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            let bytes = std::mem::take(&mut self.buffer);
            if !lost && !foreign_route(&bytes) {
                self.parse(&bytes, &mut inputs);
            }
            self.buffer = bytes;
        }
        Ok(if lost { Heard::Lost } else { Heard::Inputs(inputs) })
    }

    /// Tells tokio that the socket is drained.
    fn rearm(&self) {
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        if let std::task::Poll::Ready(Ok(mut guard)) = self.fd.poll_read_ready(context) {
            guard.clear_ready();
        }
    }

    fn parse(&mut self, bytes: &[u8], inputs: &mut Vec<Input>) {
        for message in netlink::split(bytes) {
            let input = match netlink::kind(message) {
                RTM_NEWLINK => netlink::link(message).and_then(|link| self.link(link)),
                RTM_DELLINK => netlink::link(message)
                    .and_then(|link| self.links.remove(&link.ifindex))
                    .map(|link| Input::LinkGone(link.ifindex)),
                _ => self.other(message),
            };
            inputs.extend(input);
        }
    }

    /// A link, if there is anything new about it.
    fn link(&mut self, link: Link) -> Option<Input> {
        if self.links.get(&link.ifindex) == Some(&link) {
            return None;
        }
        self.links.insert(link.ifindex, link.clone());
        Some(Input::Link(link))
    }

    fn other(&self, message: &[u8]) -> Option<Input> {
        // A message that the library can't parse is of a kind that Baton has no use for.
        let message = netlink::parse(message).ok()?;
        let own = message.header.port_number == self.own;
        let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
        match message {
            RouteNetlinkMessage::NewAddress(a) => {
                let a = netlink::assigned(&a)?;
                (a.ours || self.vips.contains(&a.address)).then_some(Input::AddressAdded(a))
            }
            RouteNetlinkMessage::DelAddress(a) => {
                let a = netlink::assigned(&a)?;
                (a.ours || self.vips.contains(&a.address)).then_some(Input::AddressRemoved(a))
            }
            RouteNetlinkMessage::DelRoute(r) if !own => {
                let route = steering::route(&r)?;
                let segment = self.segment(route.table)?;
                Some(Input::SteeringLost { segment, port: Some(route.ifindex) })
            }
            RouteNetlinkMessage::DelRule(r) if !own => {
                let rule = steering::rule(&r)?;
                Some(Input::SteeringLost { segment: self.segment(rule.table)?, port: None })
            }
            _ => None,
        }
    }

    fn segment(&self, table: u32) -> Option<String> {
        let index = table.checked_sub(TABLE_BASE).filter(|i| *i < TABLES)?;
        self.segments.get(index as usize).cloned()
    }
}

/// A route message of another protocol; there may be hundreds of thousands of them, so it is not parsed.
fn foreign_route(bytes: &[u8]) -> bool {
    matches!(netlink::kind(bytes), RTM_NEWROUTE | RTM_DELROUTE) && bytes.get(16 + 5) != Some(&MARK)
}

/// SO_RCVBUFFORCE, which goes past net.core.rmem_max.
fn force_receive_buffer(socket: &Socket) -> io::Result<()> {
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    Ok(())
}
