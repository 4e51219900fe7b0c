//! Topologies as values, and the lab that stands when one is built.
//!
//! ```no_run
//! use baton_lab::{HostSpec, Topology};
//! # fn main() -> Result<(), baton_lab::LabError> {
//! let lab = Topology::new("example")
//!     .segment("office")
//!     .host(HostSpec::new("client").ports("office", 1).address("p0", "10.0.0.100/24"))
//!     .host(HostSpec::new("fs1").ports("office", 3))
//!     .build()?;
//! let cut_at = lab.port("fs1", "p0")?.cut()?;
//! # let _ = cut_at;
//! # Ok(())
//! # }
//! ```
//!
//! Every segment is a bridge, all of them in one namespace of the lab's own. Every port is a veth pair, or stands on one
//! ([`Device`]): the host's end is named as asked (`p0`, `p1`, ...), the switch's end `<host>-<port>`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;

use crate::device::Device;
use crate::error::LabError;
use crate::fault::Occupant;
use crate::host::Host;
use crate::port::{Port, mac_of};

/// How a port is cabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cable {
    /// The kernel reports a loss of carrier at once: the two ends have different interface indexes, which is how it tells a stacked
    /// device from an ordinary one (`linkwatch_urgent_event`).
    #[default]
    EventsAtOnce,
    /// The kernel takes the port for an ordinary NIC and may keep its carrier events for up to a second: both ends have the same index.
    DelayedEvents,
}

/// A topology, as a value.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    name: String,
    segments: Vec<String>,
    hosts: Vec<HostSpec>,
}

impl Topology {
    /// An empty one. `name` is for messages.
    pub fn new(name: &str) -> Topology {
        Topology { name: name.to_owned(), ..Topology::default() }
    }

    /// Adds a segment (a switch).
    pub fn segment(mut self, name: &str) -> Topology {
        self.segments.push(name.to_owned());
        self
    }

    /// Adds a host.
    pub fn host(mut self, host: HostSpec) -> Topology {
        self.hosts.push(host);
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// Bad names and addresses, unknown segments, and what the kernel refuses. Nothing is left then.
    pub fn build(&self) -> Result<Lab, LabError> {
        let mut lab = Lab::new(&self.name)?;
        for segment in &self.segments {
            lab.add_segment(segment)?;
        }
        for spec in &self.hosts {
            lab.add_host(spec)?;
        }
        Ok(lab)
    }
}

/// A host of a topology.
#[derive(Clone, Debug)]
pub struct HostSpec {
    name: String,
    ports: Vec<(String, String, Cable, Device)>,
    addresses: Vec<(String, String)>,
}

impl HostSpec {
    /// A host without ports.
    pub fn new(name: &str) -> HostSpec {
        HostSpec { name: name.to_owned(), ports: Vec::new(), addresses: Vec::new() }
    }

    /// Adds `count` ports to `segment`, named `p0`, `p1`, ... onwards from those it has.
    pub fn ports(self, segment: &str, count: usize) -> HostSpec {
        self.cabled(segment, count, Cable::EventsAtOnce, Device::Veth)
    }

    /// Adds `count` ports whose carrier events the kernel may delay ([`Cable::DelayedEvents`]).
    pub fn delayed_ports(self, segment: &str, count: usize) -> HostSpec {
        self.cabled(segment, count, Cable::DelayedEvents, Device::Veth)
    }

    /// Adds `count` ports that are interfaces of this kind.
    pub fn ports_on(self, segment: &str, count: usize, device: Device) -> HostSpec {
        self.cabled(segment, count, Cable::EventsAtOnce, device)
    }

    /// Gives a port an address with its prefix, like `10.0.0.1/24`.
    pub fn address(mut self, port: &str, address: &str) -> HostSpec {
        self.addresses.push((port.to_owned(), address.to_owned()));
        self
    }

    fn cabled(mut self, segment: &str, count: usize, cable: Cable, device: Device) -> HostSpec {
        for _ in 0..count {
            self.ports.push((format!("p{}", self.ports.len()), segment.to_owned(), cable, device));
        }
        self
    }
}

/// A standing topology. Dropped, everything in it is gone.
#[derive(Debug)]
pub struct Lab {
    name: String,
    switches: Host,
    segments: BTreeMap<String, Switch>,
    hosts: BTreeMap<String, Host>,
    ports: BTreeMap<(String, String), Port>,
    carriers: BTreeMap<String, Vec<Occupant>>,
    next_index: AtomicU32,
}

/// A segment's switch.
#[derive(Clone, Debug)]
pub struct Switch {
    bridge: u32,
}

impl Lab {
    /// An empty lab. Its full name, for messages, holds the process id and a counter.
    ///
    /// # Errors
    /// [`LabError::NotRoot`], or what failed.
    pub fn new(name: &str) -> Result<Lab, LabError> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let switches = Host::create("switches")?;
        // A switch has no say in IPv6 on its ports.
        switches.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        let (segments, hosts, ports, carriers) = Default::default();
        Ok(Lab { name, switches, segments, hosts, ports, carriers, next_index: AtomicU32::new(100) })
    }

    /// Its name with process id and counter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host that is called `name`.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn host(&self, name: &str) -> Result<&Host, LabError> {
        self.hosts.get(name).ok_or_else(|| self.unknown(format!("host {name}")))
    }

    /// A port by its host's name and its own.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn port(&self, host: &str, interface: &str) -> Result<&Port, LabError> {
        let key = (host.to_owned(), interface.to_owned());
        self.ports.get(&key).ok_or_else(|| self.unknown(format!("port {interface} of {host}")))
    }

    /// All ports, ordered by host and name.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.values()
    }

    /// The namespace that all switches are in, as a host.
    pub fn switches(&self) -> &Host {
        &self.switches
    }

    /// Index of a segment's bridge, among the switches.
    pub(crate) fn bridge(&self, segment: &str) -> Result<u32, LabError> {
        let switch = self.segments.get(segment);
        switch.map(|switch| switch.bridge).ok_or_else(|| self.unknown(format!("segment {segment}")))
    }

    /// Adds a segment.
    ///
    /// # Errors
    /// A taken name, or what the kernel says.
    pub fn add_segment(&mut self, name: &str) -> Result<(), LabError> {
        if self.segments.contains_key(name) {
            return Err(bad_name(name, "there is a segment of that name"));
        }
        let bridge = self.next_index();
        self.switches.netlink().add_bridge(&format!("br{}", self.segments.len()), bridge)?;
        self.segments.insert(name.to_owned(), Switch { bridge });
        Ok(())
    }

    /// Adds a host with its ports, up, and their addresses.
    ///
    /// # Errors
    /// Bad names and addresses, an unknown segment, or what the kernel says.
    pub fn add_host(&mut self, spec: &HostSpec) -> Result<&Host, LabError> {
        if self.hosts.contains_key(&spec.name) {
            return Err(bad_name(&spec.name, "there is a host of that name"));
        }
        let host = Host::create(&spec.name)?;
        self.hosts.insert(spec.name.clone(), host);
        for (port, segment, cable, device) in &spec.ports {
            self.add_port_on(&spec.name, port, segment, *cable, *device)?;
        }
        for (port, text) in &spec.addresses {
            let address: IpNet = text
                .parse()
                .map_err(|error| LabError::BadAddress { text: text.clone(), why: format!("{error}") })?;
            self.port(&spec.name, port)?.add_address(address)?;
        }
        self.host(&spec.name)
    }

    /// Cables a port of a host to a segment and sets both ends up. A port that was deleted comes back by the same name.
    ///
    /// # Errors
    /// Names that don't fit in 15 bytes (`<host>-<port>`), unknown host or segment, or what the kernel says.
    pub fn add_port(
        &mut self,
        host: &str,
        port: &str,
        segment: &str,
        cable: Cable,
    ) -> Result<&Port, LabError> {
        self.add_port_on(host, port, segment, cable, Device::Veth)
    }

    /// As [`Lab::add_port`], with an interface of this kind. The cable's kind is that of the veth pair below it.
    ///
    /// # Errors
    /// As [`Lab::add_port`].
    pub fn add_port_on(
        &mut self,
        host: &str,
        port: &str,
        segment: &str,
        cable: Cable,
        device: Device,
    ) -> Result<&Port, LabError> {
        let switch =
            self.segments.get(segment).cloned().ok_or_else(|| self.unknown(format!("segment {segment}")))?;
        let owner = self.host(host)?.clone();
        let near = self.next_index();
        let far = match cable {
            Cable::EventsAtOnce => self.next_index(),
            Cable::DelayedEvents => near,
        };
        let (near_index, far_index) = match device {
            Device::Veth => (near, far),
            Device::Macvlan | Device::Bridge => (self.next_index(), far),
            Device::Vxlan => (self.next_index(), self.next_index()),
        };
        let made = Port {
            host: owner,
            switches: self.switches.clone(),
            segment: segment.into(),
            bridge: switch.bridge,
            interface: port.to_owned(),
            switch_end: format!("{host}-{port}").into(),
            near_index,
            far_index,
            mac: mac_of(near_index, 0),
        };
        made.make(device, (near, far))?;
        if let Some(carriers) = self.carriers.get_mut(host) {
            carriers.push(made.take_xdp_tx()?);
        }
        let key = (host.to_owned(), port.to_owned());
        self.ports.insert(key, made);
        self.port(host, port)
    }

    /// From now on the switch takes what XDP programs on the ports of `host` send back (XDP_TX). A veth's end takes such frames
    /// only while it has an XDP program itself; without one they wait in its ring for the next ordinary frame. The program costs
    /// bulk TCP most of its speed.
    ///
    /// # Errors
    /// An unknown host, or what the kernel says.
    pub fn carry_xdp_tx(&mut self, host: &str) -> Result<(), LabError> {
        self.host(host)?;
        let ports = self.ports().filter(|port| port.host().name() == host);
        let carriers: Result<Vec<Occupant>, LabError> = ports.map(Port::take_xdp_tx).collect();
        self.carriers.insert(host.to_owned(), carriers?);
        Ok(())
    }

    /// Indexes are unique in the whole lab, so that no pair shares one by accident.
    fn next_index(&self) -> u32 {
        self.next_index.fetch_add(1, Ordering::Relaxed)
    }

    fn unknown(&self, what: String) -> LabError {
        LabError::Unknown { lab: self.name.clone(), what }
    }
}

pub(crate) fn bad_name(name: &str, why: &'static str) -> LabError {
    LabError::BadName { name: name.to_owned(), why }
}
