//! One system at work in its host, with the bench's eyes on it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use baton_lab::{Cable, Echo, Lab, Port, Watcher, clock};

use crate::carrier::CarrierLog;
use crate::port_failover::Scenario;
use crate::system::{Kind, Place, System};

/// The client's address.
pub const CLIENT: &str = "10.77.0.100/16";
/// The echo's UDP port.
const ECHO_PORT: u16 = 7777;
/// SCHED_FIFO priority of client and echo: a busy machine shall measure the system, not its client. Below the systems: the
/// scheduler then wakes the client on the other CPU, instead of letting it wait for the end of a system call that it can't preempt.
pub const CLIENT_PRIORITY: i32 = 10;
/// How long a system may take to serve its address before that is a failure.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

/// A system that runs.
pub struct Node {
    /// What kind of system.
    pub kind: Kind,
    /// How its ports are cabled.
    pub scenario: Scenario,
    /// Its host and address.
    pub place: Place,
    /// The system.
    pub system: Box<dyn System>,
    /// Link events of its host.
    pub carrier: CarrierLog,
    /// Announcements on its ports.
    pub watcher: Watcher,
    _echo: Echo,
}

impl Node {
    /// Starts the system in its host, and waits until it serves.
    pub fn start(lab: &Lab, kind: Kind, scenario: Scenario, place: Place) -> Result<Node> {
        let mut system = kind.system();
        let host = lab.host(&place.host)?;
        let echo = Echo::start(host, (place.vip, ECHO_PORT).into(), Some(CLIENT_PRIORITY))?;
        let carrier = CarrierLog::start(host)?;
        let watcher = Watcher::claims([lab.port(&place.host, "p0")?, lab.port(&place.host, "p1")?])?;
        system.start(lab, &place)?;
        let node = Node { kind, scenario, place, system, carrier, watcher, _echo: echo };
        node.holder(lab).with_context(|| format!("{} doesn't start", kind.name()))?;
        Ok(node)
    }

    /// Where probes go to.
    pub fn target(&self) -> SocketAddr {
        (self.place.vip, ECHO_PORT).into()
    }

    /// The virtual IP.
    pub fn vip(&self) -> IpAddr {
        self.place.vip.into()
    }

    /// The port that the client takes for the address's. Not asked for on the wire: a client's broadcast would repair what
    /// a system has left unrepaired.
    pub fn known_holder<'a>(&self, lab: &'a Lab) -> Result<&'a Port> {
        let known = lab.host("client")?.neighbour(self.vip())?;
        let port = self.ports(lab)?.into_iter().find(|port| known == Some(port.mac()));
        port.map_or_else(|| self.holder(lab), Ok)
    }

    /// The port that alone answers for the address, waiting for it.
    pub fn holder<'a>(&self, lab: &'a Lab) -> Result<&'a Port> {
        let client = lab.port("client", "p0")?;
        let ports = self.ports(lab)?;
        let end = clock::now() + SERVED_WITHIN;
        let mut holders = Vec::new();
        while clock::now() < end {
            holders = client.holders(self.vip(), Duration::from_millis(3))?;
            if let [holder] = holders[..]
                && let Some(port) = ports.into_iter().find(|port| port.mac() == holder)
            {
                return Ok(port);
            }
        }
        bail!(
            "{}: not one port answers for {} after {} s, but {holders:?}\n{}",
            self.kind.name(),
            self.place.vip,
            SERVED_WITHIN.as_secs(),
            self.system.complaint()
        )
    }

    /// What to show when a run failed: addresses, neighbours and announcements, and what the system says.
    pub fn diagnosis(&self, lab: &Lab) -> String {
        let show = |title: &str, value: &dyn std::fmt::Debug| format!("\n  {title}: {value:?}");
        let mut text = String::new();
        if let (Ok(host), Ok(client)) = (lab.host(&self.place.host), lab.host("client")) {
            text += &show("its addresses", &host.netlink().addresses());
            text += &show("the client is at, for it", &client_address().map(|a| host.neighbour(a)));
            text += &show("it is at, for the client", &client.neighbour(self.vip()));
        }
        for answer in self.watcher.answers(self.vip()) {
            text += &show("announced", &answer);
        }
        format!("{text}\n{}", self.system.complaint())
    }

    fn ports<'a>(&self, lab: &'a Lab) -> Result<[&'a Port; 2]> {
        Ok([lab.port(&self.place.host, "p0")?, lab.port(&self.place.host, "p1")?])
    }
}

fn client_address() -> Option<IpAddr> {
    CLIENT.split('/').next()?.parse().ok()
}

/// The cable of a scenario.
pub fn cable(scenario: Scenario) -> Cable {
    match scenario {
        Scenario::CarrierEventAtOnce => Cable::EventsAtOnce,
        Scenario::CarrierEventDelayed => Cable::DelayedEvents,
    }
}
