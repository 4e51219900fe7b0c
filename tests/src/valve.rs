//! A loss that is prepared beforehand and begins without a change to any interface. Attaching a program holds the
//! kernel's lock for network configuration, for which what is measured would have to wait.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::bpf::{self, Loss};
use crate::clock;
use crate::error::{Context, LabError};
use crate::fault::{Blackhole, Direction};
use crate::port::Port;

/// A port that can lose everything in one direction, at the switch, with carrier. Open at first; gone when dropped.
#[derive(Debug)]
pub struct Valve {
    array: OwnedFd,
    _hole: Blackhole,
}

impl Port {
    /// Prepares a loss in this direction.
    ///
    /// # Errors
    /// As for [`Port::lose`].
    pub fn valve(&self, direction: Direction) -> Result<Valve, LabError> {
        let array = bpf::array().context(|| "make an array".into())?;
        let hole = self.attach(direction, Loss::While(array.as_raw_fd()))?;
        Ok(Valve { array, _hole: hole })
    }
}

impl Valve {
    /// Loses everything from now on; returns when that began.
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
