//! Two nodes with keepalived: the plain arrangement, one instance, one address.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use baton_lab::{Echo, Lab, Valve, clock};

use super::{Cause, System, echo};
use crate::keepalived::{More, Pair};

const NODES: [&str; 2] = ["k1", "k2"];

/// The two of them.
pub struct Keepalived {
    pair: Pair,
    /// Between the two.
    partition: Valve,
    _echoes: Vec<Echo>,
}

impl Keepalived {
    /// Starts them with this interval of advertisements, seconds.
    pub fn start(advert: &'static str) -> Result<Keepalived> {
        let mut pair = Pair::new(NODES, advert, More::default())?;
        let partition = pair.lab.valve_between(NODES[0], &NODES[1..])?;
        let echoes = NODES.map(|n| echo(pair.lab.host(n)?)).into_iter().collect::<Result<_>>()?;
        pair.run_all()?;
        Ok(Keepalived { pair, partition, _echoes: echoes })
    }
}

impl System for Keepalived {
    fn lab(&self) -> &Lab {
        &self.pair.lab
    }

    /// A killed daemon, or a cut between the two, leaves the address on both nodes: there is no outage to measure.
    fn has(&self, cause: Cause) -> bool {
        matches!(cause, Cause::PowerLoss | Cause::Unreachable | Cause::Drain)
    }

    fn prepare(&mut self, _: Cause) -> Result<String> {
        let end = clock::now() + Duration::from_secs(20);
        while clock::now() < end {
            if let Some(node) = self.pair.holder()? {
                return Ok(node);
            }
        }
        bail!("not one node answers, but {:?}{}", self.pair.answering()?, self.complaint())
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<()> {
        if cause == Cause::Drain {
            return self.pair.stop(node);
        }
        self.pair.cut_off(node)?;
        if cause == Cause::PowerLoss {
            self.pair.kill(node)?;
        }
        Ok(())
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        if cause == Cause::PowerLoss {
            self.pair.forget(node)?;
        }
        self.pair.reconnect(node)?;
        if matches!(cause, Cause::PowerLoss | Cause::Drain) {
            self.pair.run(node)?;
        }
        std::thread::sleep(self.pair.settling());
        Ok(())
    }

    fn answering(&mut self, cause: Cause) -> Result<Option<usize>> {
        if !matches!(cause, Cause::AgentKilled | Cause::Partition) {
            return Ok(None);
        }
        let node = self.prepare(cause)?;
        if cause == Cause::Partition {
            self.partition.close()?;
        } else {
            self.pair.kill(&node)?;
        }
        std::thread::sleep(self.pair.settling());
        let answering = self.pair.answering()?;
        if cause == Cause::Partition {
            self.partition.open()?;
        } else {
            self.pair.forget(&node)?;
            self.pair.run(&node)?;
        }
        std::thread::sleep(self.pair.settling());
        ensure!(!answering.is_empty(), "nobody answers{}", self.complaint());
        Ok(Some(answering.len()))
    }

    fn complaint(&self) -> String {
        self.pair.complaint()
    }
}
