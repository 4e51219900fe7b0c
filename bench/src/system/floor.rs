//! The floor as a system: [`crate::floor_agent`] in a process of its own.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::{Lab, Process};

use super::{Place, SUBNET, System, prepare};

/// See [`crate::floor_agent`].
#[derive(Default)]
pub struct Floor {
    process: Option<Process>,
}

impl System for Floor {
    fn start(&mut self, lab: &Lab, place: &Place) -> Result<()> {
        prepare(lab, place)?;
        let mut command = Command::new(std::env::current_exe().context("find the running program")?);
        command.args([
            "floor-agent",
            "--subnet",
            SUBNET,
            "--ports",
            "p0",
            "p1",
            "--vip",
            &place.vip.to_string(),
        ]);
        self.process = Some(lab.host(&place.host)?.spawn(command)?);
        Ok(())
    }

    fn recovery(&self) -> Duration {
        Duration::from_millis(5) // it knows no recovery; the kernel needs a moment
    }

    fn complaint(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }
}
