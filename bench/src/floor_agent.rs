//! The floor: the least that a user-space program can do about a lost port. It waits for the link event, deletes the
//! address and adds it to the other port, sends the two gratuitous ARPs, and turns the address's routing table to that port. Blocking netlink,
//! SCHED_FIFO, one thread, no state, no check, no hold-down. What Baton does beyond this is its price.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use baton_lab::netlink::Netlink;
use baton_lab::packet::PacketSocket;
use baton_lab::{Mac, clock, wire};
use clap::Args;
use ipnet::{IpNet, Ipv4Net};

use crate::carrier;

/// The routing table of the address.
const TABLE: u32 = 1000;
const RULE_PRIORITY: u32 = 100;
const PRIORITY: i32 = 50;

/// What the floor is told.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The virtual IP.
    #[arg(long)]
    vip: Ipv4Addr,
    /// The subnet that clients are in.
    #[arg(long)]
    subnet: Ipv4Net,
    /// The two ports; the address starts on the first.
    #[arg(long, num_args = 2)]
    ports: Vec<String>,
}

struct Port {
    index: u32,
    sender: PacketSocket,
    announcements: [Vec<u8>; 2],
}

/// Runs until killed.
pub fn main(arguments: &Arguments) -> Result<()> {
    let netlink = Netlink::here("floor")?;
    let port = |name: &String| -> Result<Port> {
        let index = netlink.link_index(name)?.with_context(|| format!("no interface {name}"))?;
        let announcements = wire::gratuitous_arp(hardware_address(name)?, arguments.vip);
        Ok(Port { index, sender: PacketSocket::sender(index)?, announcements })
    };
    let ports: Vec<Port> = arguments.ports.iter().map(port).collect::<Result<_>>()?;
    let vip: IpNet = Ipv4Net::new(arguments.vip, 32)?.into();
    let subnet: IpNet = arguments.subnet.into();
    let events = carrier::subscribe()?;
    lock_memory()?;
    if !clock::try_fifo(PRIORITY) {
        bail!("SCHED_FIFO is not permitted: the floor would not be one");
    }
    netlink.add_rule(vip, TABLE, RULE_PRIORITY)?;
    let mut current = 0;
    netlink.add_address(ports[current].index, vip)?;
    netlink.set_route(subnet, ports[current].index, None, TABLE)?;
    announce(&ports[current]);
    loop {
        let Ok(Some(event)) = carrier::receive(&events) else { continue };
        if event.index != ports[current].index || event.carrier {
            continue;
        }
        let next = 1 - current;
        netlink.delete_address(ports[current].index, vip)?;
        netlink.add_address(ports[next].index, vip)?;
        announce(&ports[next]);
        // In time: the client's next packet has yet to come.
        netlink.set_route(subnet, ports[next].index, None, TABLE)?;
        current = next;
    }
}

fn announce(port: &Port) {
    for frame in &port.announcements {
        // Fails when that port is down as well; then there is nobody to tell.
        let _ = port.sender.send(frame);
    }
}

fn hardware_address(interface: &str) -> Result<Mac> {
    let path = format!("/sys/class/net/{interface}/address");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let bytes: Vec<u8> =
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    Ok(Mac(bytes.try_into().ok().with_context(|| format!("{path}: not an Ethernet address: {text}"))?))
}

fn lock_memory() -> Result<()> {
    use nix::sys::mman::{MlockAllFlags, mlockall};
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).context("lock memory")
}
