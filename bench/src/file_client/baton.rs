//! Two nodes and a witness with Baton.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use baton_lab::files::{self, ADDRESS, Disks, FileCluster};
use baton_lab::host::wait_until;
use baton_lab::{Lab, clock};

use super::{Cause, PATIENCE, RESTART, System, other};
use crate::node_failover::baton::events_since;

/// The cluster.
pub struct Baton(FileCluster);

impl Baton {
    /// Starts it.
    pub fn start() -> Result<Baton> {
        // The server is killed again and again here, which is no reason to give it away.
        let cluster = FileCluster::start("file-client", files::spec("restarts = 1000"))?;
        // Nobody is called dead in the first two seconds of a member list.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Baton(cluster))
    }

    /// The port that answers for the address.
    fn port(&self, node: &str) -> Result<String> {
        let Baton(files) = self;
        let mut found = None;
        wait_until("a port to answer", PATIENCE, || {
            let client = files.cluster.client();
            let macs = client.and_then(|c| c.holders(ADDRESS, Duration::from_millis(20))).unwrap_or_default();
            found =
                files.cluster.ports(node).find(|port| macs == [port.mac()]).map(|p| p.interface().to_owned());
            found.is_some()
        })?;
        Ok(found.unwrap_or_default())
    }
}

impl System for Baton {
    fn lab(&self) -> &Lab {
        &self.0.cluster.lab
    }

    fn disks(&self) -> &Disks {
        &self.0.disks
    }

    fn has(&self, _: Cause) -> bool {
        true
    }

    fn prepare(&mut self) -> Result<String> {
        Ok(self.0.wait_well()?)
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<Duration> {
        let port = if cause == Cause::PortCut { self.port(node)? } else { String::new() };
        let Baton(files) = self;
        let at = clock::now();
        match cause {
            Cause::PortCut => _ = files.cluster.lab.port(node, &port)?.cut()?,
            Cause::AgentKilled => {
                files.cluster.agent_mut(node)?.kill()?;
                std::thread::sleep(RESTART);
                files.cluster.agent_mut(node)?.start_again()?;
            }
            Cause::ServiceKilled => _ = files.kill_service(node)?,
            Cause::PowerLoss => _ = files.power_off(node)?,
            Cause::Drain => _ = files.cluster.done(other(node), &["drain", node])?,
        }
        Ok(at)
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        let Baton(files) = self;
        match cause {
            Cause::PortCut => {
                for port in ["p0", "p1"] {
                    files.cluster.lab.port(node, port)?.restore()?;
                }
                std::thread::sleep(Duration::from_millis(500)); // until it is trusted again
            }
            Cause::AgentKilled | Cause::ServiceKilled => {}
            Cause::PowerLoss => files.power_on(node)?,
            Cause::Drain => _ = files.cluster.done(other(node), &["resume", node])?,
        }
        Ok(())
    }

    fn story(&self, at: Duration) -> String {
        let mut text = String::new();
        for (time, node, event) in events_since(&self.0.cluster, at).unwrap_or_default() {
            // Writing to a String can't fail.
            let _ = write!(text, "\n  {:9.3} ms {node}: {event}", (time - at).as_secs_f64() * 1e3);
        }
        text
    }

    fn complaint(&self) -> String {
        self.0.cluster.logs()
    }
}
