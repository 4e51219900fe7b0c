//! Another configuration, while everything goes on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use baton_core::{Config, Input};
use tokio::sync::oneshot;

use super::{Driver, now, read_all};
use crate::fast::{FastError, ToSlow};

/// What is in force from now on.
#[derive(Debug)]
pub struct Reload {
    /// What core decides by; `None`: as before.
    pub config: Option<Config>,
    /// How far ahead the agent promises the kernel programs to be there.
    pub grace: Duration,
    /// What is different, a line each.
    pub changes: Vec<String>,
    /// Told when it is so.
    pub done: oneshot::Sender<()>,
}

impl Driver {
    /// Takes up another configuration: core says what is to be done, and what nobody asks for any more is swept away after that.
    pub(super) fn reload(&mut self, reload: Reload) -> Result<(), FastError> {
        let Reload { config, grace, changes, done } = reload;
        self.grace = grace;
        self.promise();
        if let Some(config) = config {
            // What was told of addresses before must not be taken for what becomes of them now.
            self.hear()?;
            self.change(config, changes)?;
        }
        let _ = done.send(()); // whoever asked may have gone
        Ok(())
    }

    fn change(&mut self, config: Config, changes: Vec<String>) -> Result<(), FastError> {
        let vips: BTreeSet<IpAddr> =
            config.servers.iter().flat_map(|s| &s.addresses).map(|n| n.addr()).collect();
        let segments: Vec<String> = config.segments.iter().map(|s| s.name.clone()).collect();
        self.steering.retain(|segment| segments.iter().any(|s| s == segment));
        self.listener.expect(vips, segments);
        let found = self.listener.ground(read_all(&mut self.requests).map_err(FastError::Netlink)?);
        self.interfaces = found.links.iter().map(|l| (l.ifindex, l.clone())).collect();
        self.prober.reconfigure(&config)?;
        self.config = config.clone();
        self.watch_carriers();
        let names: Vec<String> = config.servers.iter().map(|s| s.name.clone()).collect();
        let ports = config.ports.iter().map(|p| p.interface.clone()).collect();
        let input = baton_core::Reload { config, found, changes };
        self.take(Input::Reload(Box::new(input)), now());
        self.sweep().map_err(FastError::Netlink)?;
        // After their addresses have been forgotten.
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let incarnation = self.kernel.lease()?.incarnation;
        self.kernel.adopt_servers(&names, incarnation)?;
        self.tell(ToSlow::Keep(ports));
        self.publish(now());
        Ok(())
    }
}
