//! A loss that is prepared beforehand and begins without a change to any interface. Attaching a program holds the
//! kernel's lock for network configuration, for which what is measured would have to wait.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::bpf::{self, Loss};
use crate::clock;
use crate::error::{Context, LabError};
use crate::fault::{Blackhole, Direction};
use crate::port::Port;
use crate::topology::Lab;

/// Ports that can lose frames, at the switch, with carrier. Open at first; gone when dropped.
#[derive(Debug)]
pub struct Valve {
    array: OwnedFd,
    _holes: Vec<Blackhole>,
}

impl Port {
    /// Prepares the loss of everything in this direction.
    ///
    /// # Errors
    /// As for [`Port::lose`].
    pub fn valve(&self, direction: Direction) -> Result<Valve, LabError> {
        let array = bpf::array().context(|| "make an array".into())?;
        let hole = self.attach(direction, Loss::While(array.as_raw_fd()))?;
        Ok(Valve { array, _holes: vec![hole] })
    }
}

impl Lab {
    /// Prepares the loss of everything that these hosts say to one another by their own ports; what others say to either, and
    /// are told, goes through.
    ///
    /// # Errors
    /// As for [`Port::lose`].
    pub fn valve_between(&self, one: &str, others: &[&str]) -> Result<Valve, LabError> {
        let array = bpf::array().context(|| "make an array".into())?;
        let is_other = |p: &&Port| others.contains(&p.host().name());
        let mut holes = Vec::new();
        for near in self.ports().filter(|p| p.host().name() == one) {
            for far in self.ports().filter(is_other).filter(|p| p.segment() == near.segment()) {
                for (to, from) in [(near, far), (far, near)] {
                    let loss = Loss::FromWhile(from.mac(), array.as_raw_fd());
                    holes.push(to.attach(Direction::ToHost, loss)?);
                }
            }
        }
        Ok(Valve { array, _holes: holes })
    }
}

impl Valve {
    /// Loses what it is for from now on; returns when that began.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn close(&self) -> Result<Duration, LabError> {
        let at = clock::now();
        bpf::set(&self.array, 1).context(|| "close a valve".into())?;
        Ok(at)
    }

    /// Loses nothing from now on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self) -> Result<(), LabError> {
        bpf::set(&self.array, 0).context(|| "open a valve".into())
    }
}
