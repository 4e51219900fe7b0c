use crate::layout;

/// Value of the array `ROUTES`, by counter slot of a virtual IP: where its packets go on to.
///
/// A node that answers for an address of another node's virtual server hands what is sent to the address on to the owner, out by
/// this port, and what the owner sends from the address to its client, out by the port that the address is bound to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Interface index of the port towards the owner; 0: packets are taken in here.
    pub ifindex: u32,
    /// MAC address of the owner's port.
    pub to: [u8; 6],
    /// MAC address of that port of ours.
    pub from: [u8; 6],
}
layout!(Route, 16);
