//! Baton as a system: the real agent with the configuration that a user would write, and a short hold-down so that the
//! next run may use the port again.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use baton_lab::{Lab, Process, baton_binary};

use super::{Place, SUBNET, Stages, System};

const CONFIGURATION: &str = "/run/baton-bench.toml";

/// The agent.
#[derive(Default)]
pub struct Baton {
    process: Option<Process>,
}

impl System for Baton {
    fn start(&mut self, lab: &Lab, place: &Place) -> Result<()> {
        let binary = baton_binary()?;
        let host = lab.host(&place.host)?;
        host.write(CONFIGURATION, &configuration(place))?;
        let mut command = Command::new(binary);
        command.args(["--config", CONFIGURATION, "run"]);
        self.process = Some(host.spawn(command)?);
        Ok(())
    }

    fn recovery(&self) -> Duration {
        Duration::from_millis(25) // the hold-down and the agent's notice of the carrier
    }

    fn complaint(&self) -> String {
        self.process.as_ref().map(|p| p.stderr() + &p.stdout()).unwrap_or_default()
    }

    fn stages(&self) -> Result<Stages> {
        // `baton_failover_seconds` of its /metrics goes here.
        Ok(Stages::new())
    }
}

fn configuration(place: &Place) -> String {
    let Place { host, vip, .. } = place;
    format!(
        r#"[node]
name = "{host}"

[[port]]
interface = "p0"
segment = "lab"

[[port]]
interface = "p1"
segment = "lab"

[store]
kind = "file"
path = "/var/lib/baton/baton.db"

[control]
socket = "/run/baton/baton.sock"
group = "root"

[paths]
state = "/var/lib/baton"
bpffs = "/sys/fs/bpf/baton"

[telemetry]
listen = "127.0.0.1:9477"

[timing]
hold_down = "5ms"
hold_down_max = "5ms"
announce_repeat = ["10ms", "100ms", "1s"]

[[segment]]
name = "lab"
subnets = ["{SUBNET}"]
port_failback = "stay"

[[virtual_server]]
name = "bench"
addresses = ["{vip}/16"]
"#
    )
}
