//! keepalived (Debian's package) at its fastest for this job, as far as tried.
//!
//! keepalived knows no move between two ports of a node: a VRRP instance has one interface. So there are two instances on
//! the node, one for each port, each with the same virtual IP on its own port. Run over the ports themselves they hear of
//! each other's end only by silence: three intervals, 33 ms at the least interval of 10 ms, as an instance whose interface
//! is down can't say goodbye. It is faster when the instances run over a cable of their own, which stays up (`p2` and `p3`), and
//! follow the port by `track_interface`: the instance of the failed port goes to FAULT, says goodbye (priority 0), and
//! the other one takes over after its skew time, which the highest priorities make short. `nopreempt`, so that the address stays until the next fault. Real-time
//! priority, no delayed second announcement.
//!
//! The reply is steered as for the other systems: one rule with the address (`virtual_rules`), a table for each port.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::{Lab, Process};

use super::{Place, SUBNET, System, prepare};

const CONFIGURATION: &str = "/run/keepalived.conf";
const TABLES: [u32; 2] = [1001, 1002];

/// keepalived with its two instances.
#[derive(Default)]
pub struct Keepalived {
    process: Option<Process>,
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
            // Both ends are this host: the kernel would drop its own source address.
            host.set_sysctl(&format!("net/ipv4/conf/{port}/accept_local"), "1")?;
            host.set_sysctl(&format!("net/ipv4/conf/{port}/rp_filter"), "0")?;
        }
        host.set_sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        host.write(CONFIGURATION, &configuration(place))?;
        let mut command = Command::new("keepalived");
        command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file", CONFIGURATION]);
        command.args(["--pid", "/run/keepalived.pid", "--vrrp_pid", "/run/vrrp.pid"]);
        let process = host.spawn(command).context("keepalived is Debian's: apt-get install keepalived")?;
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

fn configuration(place: &Place) -> String {
    let instance = |number: usize, priority: u8| {
        let (port, own, table) = (format!("p{number}"), format!("p{}", number + 2), TABLES[number]);
        let (me, peer) = (number + 1, 2 - number);
        let vip = place.vip;
        format!(
            r#"
vrrp_instance port{number} {{
    interface {own}
    state BACKUP
    nopreempt
    virtual_router_id 77
    priority {priority}
    advert_int 0.01
    version 3
    unicast_src_ip 192.168.77.{me}
    unicast_peer {{
        192.168.77.{peer}
    }}
    track_interface {{
        {port}
    }}
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
