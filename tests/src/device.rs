//! What kind of interface a port is. Every kind ends in a veth pair to the switch.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode,
};

use crate::error::LabError;
use crate::netlink::{Netlink, VethEnd};
use crate::port::{Port, mac_of};
use crate::wire::Mac;

/// The kind of interface that a port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// One end of a veth pair.
    #[default]
    Veth,
    /// A macvlan (mode bridge) on a veth. The veth below is called like the port with a `u`.
    Macvlan,
    /// A bridge with a veth in it, which is called like the port with a `u`.
    Bridge,
    /// A VXLAN tunnel over a veth, to another one at the switch: an interface that counts receive errors
    /// ([`Port::spoil`]). It has carrier always.
    Vxlan,
}

/// Where tunnels listen (RFC 7348). The network identifier is the index of the port.
pub(crate) const VXLAN_PORT: u16 = 4789;
/// Bytes that VXLAN adds to a frame, its outer Ethernet header left out.
const VXLAN_OVERHEAD: u32 = 50;

/// One end of a VXLAN tunnel.
struct Tunnel<'a> {
    id: u32,
    name: &'a str,
    index: u32,
    mac: Mac,
    below: u32,
    own: Ipv4Addr,
    other: Ipv4Addr,
}

impl Device {
    /// Makes the interfaces of a port on a veth pair with the indexes `near` and `far`; the topmost ones stay down.
    pub(crate) fn make(self, port: &Port, (near, far): (u32, u32)) -> Result<(), LabError> {
        let (host, switches) = (port.host().netlink(), port.switches().netlink());
        let (upper, switch_end) = (port.interface(), &**port.switch_end());
        let (below, far_below) = (format!("{upper}u"), format!("{switch_end}u"));
        let (near_name, far_name) = match self {
            Device::Veth => (upper, switch_end),
            Device::Macvlan | Device::Bridge => (&*below, switch_end),
            Device::Vxlan => (&*below, &*far_below),
        };
        let end = VethEnd { name: near_name, index: near, mac: mac_of(near, 0) };
        let far_end = VethEnd { name: far_name, index: far, mac: mac_of(near, 1) };
        host.add_veth(end, far_end, port.switches().namespaces().network())?;
        match self {
            Device::Veth => return Ok(()),
            Device::Macvlan => host.add_macvlan(upper, port.index(), port.mac(), near)?,
            Device::Bridge => {
                host.add_bridge(upper, port.index())?;
                host.set(port.index(), LinkAttribute::Address(port.mac().0.to_vec()))?;
                host.set_master(near, port.index())?;
            }
            Device::Vxlan => {
                let (own, other) = underlay(port);
                for (netlink, index, address) in [(host, near, own), (switches, far, other)] {
                    netlink.set(index, LinkAttribute::Mtu(1500 + VXLAN_OVERHEAD))?;
                    netlink.add_address(index, IpNet::V4(address))?;
                    netlink.set_up(index, true)?;
                }
                let (own, other) = (own.addr(), other.addr());
                let (index, mac) = (port.index(), port.mac());
                host.add_vxlan(&Tunnel { id: index, name: upper, index, mac, below: near, own, other })?;
                let (id, name, index, mac) = (index, switch_end, port.switch_index(), mac_of(index, 1));
                let end = Tunnel { id, name, index, mac, below: far, own: other, other: own };
                switches.add_vxlan(&end)?;
            }
        }
        host.set_up(near, true).map(drop)
    }
}

/// The addresses of a tunnel's veth pair, the host's and the switch's: two that no other port has (RFC 2544's range).
pub(crate) fn underlay(port: &Port) -> (Ipv4Net, Ipv4Net) {
    let net = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + port.index() * 4;
    let address = |host: u32| Ipv4Net::new_assert(Ipv4Addr::from(net + host), 30);
    (address(1), address(2))
}

impl Netlink {
    fn add_macvlan(&self, name: &str, index: u32, mac: Mac, below: u32) -> Result<(), LabError> {
        let data = InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)]);
        let mut link = device(name, index, mac, InfoKind::MacVlan, data);
        link.attributes.push(LinkAttribute::Link(below));
        self.create(RouteNetlinkMessage::NewLink(link), || format!("add macvlan {name}"))
    }

    fn add_vxlan(&self, end: &Tunnel) -> Result<(), LabError> {
        let data = InfoData::Vxlan(vec![
            InfoVxlan::Id(end.id),
            InfoVxlan::Group(end.other),
            InfoVxlan::Local(end.own),
            InfoVxlan::Link(end.below),
            InfoVxlan::Port(VXLAN_PORT),
            InfoVxlan::Learning(false),
        ]);
        let link = device(end.name, end.index, end.mac, InfoKind::Vxlan, data);
        self.create(RouteNetlinkMessage::NewLink(link), || format!("add vxlan {}", end.name))
    }

    fn set(&self, index: u32, attribute: LinkAttribute) -> Result<(), LabError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let what = format!("set {attribute:?} of {index}");
        link.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(link), || what).map(drop)
    }
}

fn device(name: &str, index: u32, mac: Mac, kind: InfoKind, data: InfoData) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ];
    link
}
