//! The systems that are measured. Each moves one virtual IP between the ports `p0` and `p1` of a host of its own; all
//! of them are up all the time, and each is judged by what the client and the wire see, nothing else.

mod baton;
mod floor;
mod keepalived;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use baton_lab::{Cable, HostSpec, Lab};
use clap::ValueEnum;
use hdrhistogram::Histogram;

/// The subnet of the lab.
pub const SUBNET: &str = "10.77.0.0/16";

/// A stage of a failover as the system itself reports it: name, nanoseconds since the cause.
pub type Stages = BTreeMap<String, Histogram<u64>>;

/// A system that moves an address when a port fails.
pub trait System {
    /// Makes the host ready and starts the system in it. Afterwards the address is served, sooner or later.
    fn start(&mut self, lab: &Lab, place: &Place) -> Result<()>;

    /// How long after a port is back the system needs until it would use it again.
    fn recovery(&self) -> Duration;

    /// What to show of the system when the address does not come.
    fn complaint(&self) -> String;

    /// The stages as the system itself has measured them since its start; none when it measures none.
    fn stages(&self) -> Result<Stages> {
        Ok(Stages::new())
    }
}

/// The kinds of system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A minimal program that does nothing else.
    Floor,
    /// Baton.
    Baton,
    /// keepalived with track_interface at its fastest.
    Keepalived,
}

impl Kind {
    /// As in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Floor => "floor",
            Kind::Baton => "baton",
            Kind::Keepalived => "keepalived",
        }
    }

    /// A system of this kind, not started.
    pub fn system(self) -> Box<dyn System> {
        match self {
            Kind::Floor => Box::new(floor::Floor::default()),
            Kind::Baton => Box::new(baton::Baton::default()),
            Kind::Keepalived => Box::new(keepalived::Keepalived::default()),
        }
    }
}

/// Where a system lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its host.
    pub host: String,
    /// Its virtual IP.
    pub vip: Ipv4Addr,
    number: u8,
    kind: Kind,
    cable: Cable,
}

impl Place {
    /// The place with a number of its own, 1 to 254.
    pub fn new(number: u8, kind: Kind, cable: Cable) -> Place {
        Place { host: format!("node{number}"), vip: Ipv4Addr::new(10, 77, number, 10), number, kind, cable }
    }

    /// The host as part of the topology. Both ports have an address of their own: with its last IPv4 address an interface
    /// loses its routes in every table.
    pub fn spec(&self) -> HostSpec {
        let spec = HostSpec::new(&self.host);
        let spec = match self.cable {
            Cable::EventsAtOnce => spec.ports("lab", 2),
            Cable::DelayedEvents => spec.delayed_ports("lab", 2),
        };
        let spec = match self.kind {
            Kind::Keepalived => spec.ports("vrrp", 2),
            Kind::Floor | Kind::Baton => spec,
        };
        let own = |last: u8| format!("10.77.{}.{last}/16", self.number);
        spec.address("p0", &own(1)).address("p1", &own(2))
    }
}

/// What the peers leave to the administrator, as a careful one would set it; Baton does it by itself.
fn prepare(lab: &Lab, place: &Place) -> Result<()> {
    let host = lab.host(&place.host)?;
    // A port answers for its own addresses alone; without these both ports answer for all.
    host.set_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    host.set_sysctl("net/ipv4/conf/all/arp_announce", "2")?;
    // A reply that just missed the loss of carrier leaves an unresolved neighbour on the dead port. It is asked for again only
    // after this time, by default a second: a client would wait for that when the address comes back to the port within it.
    for port in ["p0", "p1"] {
        host.set_sysctl(&format!("net/ipv4/neigh/{port}/retrans_time_ms"), "10")?;
    }
    Ok(())
}
