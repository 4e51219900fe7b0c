//! keepalived (Debian's package), in two arrangements.
//!
//! keepalived knows no move between two ports of a node: a VRRP instance has one interface. So there are two instances on
//! the node, one for each port, each with the same virtual IP on its own port. `nopreempt`, so that the address stays
//! until the next fault; the least interval of 10 ms; real-time priority; no syslog (without a daemon keepalived writes to
//! /dev/console, and a slow one stops a CPU for milliseconds).
//!
//! [`Over::Ports`], the plain one: the instances talk over the ports themselves. An instance whose interface is down can't say
//! goodbye, so the other one waits for three silent intervals: 33 ms.
//!
//! [`Over::Cable`], the fastest one found: the instances talk over a cable of their own, which stays up (`p2` and
//! `p3`), and follow the port by `track_interface`. The instance of the failed port goes to FAULT and says goodbye
//! (priority 0), and the other one takes over after its skew time, a fraction of a millisecond with the highest priorities.
//!
//! The reply is steered as for the other systems: one rule with the address (`virtual_rules`), a table for each port.

use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::{Lab, Process};

use super::{Place, SUBNET, System, prepare};
use crate::keepalived::start;

const TABLES: [u32; 2] = [1001, 1002];

/// What the two instances talk over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A cable of their own.
    Cable,
    /// The ports.
    Ports,
}

/// keepalived with its two instances.
pub struct Keepalived {
    over: Over,
    process: Option<Process>,
}

impl Keepalived {
    /// Not started.
    pub fn new(over: Over) -> Keepalived {
        Keepalived { over, process: None }
    }
}

impl System for Keepalived {
    fn start(&mut self, lab: &Lab, place: &Place) -> Result<()> {
        prepare(lab, place)?;
        let host = lab.host(&place.host)?;
        for (port, table) in ["p0", "p1"].into_iter().zip(TABLES) {
            host.netlink().set_route(SUBNET.parse()?, lab.port(&place.host, port)?.index(), None, table)?;
        }
        for (port, address) in [("p2", "192.168.77.1/24"), ("p3", "192.168.77.2/24")] {
            lab.port(&place.host, port)?.add_address(address.parse()?)?;
        }
        for port in ["p0", "p1", "p2", "p3"] {
            // Both ends are this host: the kernel would drop its own source address.
            host.set_sysctl(&format!("net/ipv4/conf/{port}/accept_local"), "1")?;
            host.set_sysctl(&format!("net/ipv4/conf/{port}/rp_filter"), "0")?;
        }
        host.set_sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        let process = start(host, &configuration(place, self.over))?;
        ensure!(process.pid() != 0);
        self.process = Some(process);
        Ok(())
    }

    fn recovery(&self) -> Duration {
        Duration::from_millis(150) // from FAULT to BACKUP, with room
    }

    fn complaint(&self) -> String {
        self.process.as_ref().map(|p| p.stderr() + &p.stdout()).unwrap_or_default()
    }
}

fn configuration(place: &Place, over: Over) -> String {
    let instance = |number: usize, priority: u8| {
        let (port, table) = (format!("p{number}"), TABLES[number]);
        let (me, peer) = (number + 1, 2 - number);
        let transport = match over {
            Over::Ports => format!("interface {port}"),
            Over::Cable => format!(
                "interface p{}\n    unicast_src_ip 192.168.77.{me}\n    unicast_peer {{\n        192.168.77.{peer}\n    }}\n    \
                 track_interface {{\n        {port}\n    }}",
                number + 2
            ),
        };
        let vip = place.vip;
        format!(
            r#"
vrrp_instance port{number} {{
    {transport}
    state BACKUP
    nopreempt
    virtual_router_id 77
    priority {priority}
    advert_int 0.01
    version 3
    garp_master_delay 0
    virtual_ipaddress {{
        {vip}/32 dev {port}
    }}
    virtual_rules {{
        from {vip}/32 lookup {table} priority 100
    }}
}}
"#
        )
    };
    let global = "global_defs {\n    vrrp_rt_priority 50\n    vrrp_no_swap\n    vrrp_garp_interval 0\n}\n";
    format!("{global}{}{}", instance(0, 254), instance(1, 253))
}
