//! A port: its interfaces, its cable, and what one does to them.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::device::Device;
use crate::error::{Context, LabError};
use crate::host::Host;
use crate::topology::bad_name;
use crate::wire::Mac;

/// A port of a host with its cable to the switch.
#[derive(Clone, Debug)]
pub struct Port {
    pub(crate) host: Host,
    pub(crate) switches: Host,
    pub(crate) segment: Arc<str>,
    pub(crate) bridge: u32,
    pub(crate) interface: String,
    pub(crate) switch_end: Arc<str>,
    pub(crate) near_index: u32,
    pub(crate) far_index: u32,
    pub(crate) mac: Mac,
}

impl Port {
    /// Makes its interfaces, on a veth pair with these indexes, and sets them up.
    pub(crate) fn make(&self, device: Device, veth: (u32, u32)) -> Result<(), LabError> {
        let far = &self.switch_end;
        // Names on both sides may get one letter more, for the veth pair below.
        let longest = far.len() + usize::from(device != Device::Veth);
        if self.interface.is_empty() || longest > 15 || far.contains(['/', ':', ' ']) {
            return Err(bad_name(far, "an interface name has at most 15 bytes and no slash, colon or space"));
        }
        device.make(self, veth)?;
        let switches = self.switches.netlink();
        switches.set_master(self.far_index, self.bridge)?;
        switches.set_up(self.far_index, true)?;
        self.host.netlink().set_up(self.near_index, true).map(drop)
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The namespace of the switch it is cabled to.
    pub fn switches(&self) -> &Host {
        &self.switches
    }

    /// The segment it is cabled to.
    pub fn segment(&self) -> &str {
        &self.segment
    }

    /// Index of its segment's bridge, among the switches.
    pub fn bridge(&self) -> u32 {
        self.bridge
    }

    /// Name of the host's end.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Name of the switch's end, `<host>-<interface>`.
    pub fn switch_end(&self) -> &Arc<str> {
        &self.switch_end
    }

    /// Index of the host's end, in the host.
    pub fn index(&self) -> u32 {
        self.near_index
    }

    /// Index of the switch's end, among the switches.
    pub fn switch_index(&self) -> u32 {
        self.far_index
    }

    /// Hardware address of the host's end.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Gives it an address.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_address(&self, address: IpNet) -> Result<(), LabError> {
        self.host.netlink().add_address(self.near_index, address)
    }

    /// Takes an address from it; returns the time just before.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_address(&self, address: IpNet) -> Result<Duration, LabError> {
        self.host.netlink().delete_address(self.near_index, address)
    }

    /// Carrier off, as when the cable is pulled: the switch's end goes down. Returns the time just before.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn cut(&self) -> Result<Duration, LabError> {
        self.switches.netlink().set_up(self.far_index, false)
    }

    /// Carrier on again. Returns the time just before.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn restore(&self) -> Result<Duration, LabError> {
        self.switches.netlink().set_up(self.far_index, true)
    }

    /// Does the switch forward what comes from this port, and to it? A switch takes a port into use again only when it has
    /// noticed the carrier itself, which a kernel that delays events may do up to a second late.
    ///
    /// # Errors
    /// When the switch end is gone.
    pub fn forwards(&self) -> Result<bool, LabError> {
        const FORWARDING: &str = "3"; // BR_STATE_FORWARDING
        let file = format!("/sys/class/net/{}/brport/state", self.switch_end());
        let state = self.switches().enter(|| std::fs::read_to_string(&file))?;
        Ok(state.context(|| format!("read {file} of the switch"))?.trim() == FORWARDING)
    }

    /// `ip link set ... down` on the host; routes and IPv6 addresses of the interface go with it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn admin_down(&self) -> Result<Duration, LabError> {
        self.host.netlink().set_up(self.near_index, false)
    }

    /// `ip link set ... up` on the host.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn admin_up(&self) -> Result<Duration, LabError> {
        self.host.netlink().set_up(self.near_index, true)
    }

    /// Deletes the interface; of a stacked one what is below stays. [`crate::Lab::add_port`] cables a new one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete(&self) -> Result<Duration, LabError> {
        self.host.netlink().delete_link(self.near_index)
    }
}

/// Locally administered, one per port and side.
pub(crate) fn mac_of(index: u32, side: u8) -> Mac {
    let [a, b, c, d] = index.to_be_bytes();
    Mac([2, side, a, b, c, d])
}
