//! Captures: whole frames of chosen EtherTypes at a port, at the switch or in the host, to look at or to send again.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::{self, RealtimeOffset};
use crate::error::{Context, LabError};
use crate::packet::PacketSocket;
use crate::port::Port;

/// EtherType of probe frames.
pub const PROBE_ETHERTYPE: u16 = 0x88b5;

/// A capture of one EtherType on one interface, by an ordinary packet socket. It keeps up to 32 MB between two readings.
#[derive(Debug)]
pub struct Capture {
    socket: PacketSocket,
    ethertype: u16,
    at_switch: bool,
    what: String,
    /// Read, and not given out yet.
    kept: VecDeque<Captured>,
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// When the kernel had it, on `CLOCK_MONOTONIC`.
    pub at: Duration,
    /// True: the host sent it. False: it was sent to the host.
    pub from_host: bool,
    /// Its first [`crate::packet::SNAP`] bytes.
    pub bytes: Vec<u8>,
}

impl Port {
    /// Captures frames of this EtherType at the switch's end. What is lost there towards the host is not seen; what comes from
    /// the host is, lost or not.
    ///
    /// # Errors
    /// What the socket says.
    pub fn capture_at_switch(&self, ethertype: u16) -> Result<Capture, LabError> {
        let index = self.switch_index();
        let what = format!("capture at {}", self.switch_end());
        let socket = self.switches().open(&what, || PacketSocket::open(index))?;
        Ok(Capture { socket, ethertype, at_switch: true, what, kept: VecDeque::new() })
    }

    /// Captures frames of this EtherType in the host, as its users would: what an XDP program consumes is not seen.
    ///
    /// # Errors
    /// What the socket says.
    pub fn capture_in_host(&self, ethertype: u16) -> Result<Capture, LabError> {
        let index = self.index();
        let what = format!("capture at {} of {}", self.interface(), self.host().name());
        let socket = self.host().open(&what, || PacketSocket::open(index))?;
        Ok(Capture { socket, ethertype, at_switch: false, what, kept: VecDeque::new() })
    }
}

impl Capture {
    /// What has come since the last call, oldest first.
    ///
    /// # Errors
    /// What the socket says.
    pub fn take(&mut self) -> Result<Vec<Captured>, LabError> {
        self.read()?;
        Ok(self.kept.drain(..).collect())
    }

    /// The first frame that `wanted` accepts, waiting for it if need be. Those before it are gone then, those after it are not.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`; what the socket says.
    pub fn wait_for(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&Captured) -> bool,
    ) -> Result<Captured, LabError> {
        let end = clock::now() + limit;
        loop {
            self.read()?;
            while let Some(frame) = self.kept.pop_front() {
                if wanted(&frame) {
                    return Ok(frame);
                }
            }
            if clock::now() >= end {
                return Err(LabError::Timeout { what: self.what.clone(), limit });
            }
            self.socket.wait(Duration::from_millis(5)).context(|| self.what.clone())?;
        }
    }

    fn read(&mut self) -> Result<(), LabError> {
        let offset = RealtimeOffset::sample();
        while let Some(received) = self.socket.receive(offset).context(|| self.what.clone())? {
            if received.bytes.get(12..14) == Some(&self.ethertype.to_be_bytes()) {
                let from_host = received.outgoing != self.at_switch;
                self.kept.push_back(Captured { at: received.at, from_host, bytes: received.bytes });
            }
        }
        Ok(())
    }
}
