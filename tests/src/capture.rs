//! Captures: whole frames of chosen EtherTypes at a port, at the switch or in the host, to look at or to send again.

use std::time::Duration;

use crate::clock::{self, RealtimeOffset};
use crate::error::{Context, LabError};
use crate::packet::PacketSocket;
use crate::topology::Port;

/// EtherType of probe frames.
pub const PROBE_ETHERTYPE: u16 = 0x88b5;

/// A capture of one EtherType on one interface, by an ordinary packet socket. It keeps up to 32 MB between two readings.
#[derive(Debug)]
pub struct Capture {
    socket: PacketSocket,
    ethertype: u16,
    at_switch: bool,
    what: String,
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
        Ok(Capture { socket, ethertype, at_switch: true, what })
    }

    /// Captures frames of this EtherType in the host, as its users would: what an XDP program consumes is not seen.
    ///
    /// # Errors
    /// What the socket says.
    pub fn capture_in_host(&self, ethertype: u16) -> Result<Capture, LabError> {
        let index = self.index();
        let what = format!("capture at {} of {}", self.interface(), self.host().name());
        let socket = self.host().open(&what, || PacketSocket::open(index))?;
        Ok(Capture { socket, ethertype, at_switch: false, what })
    }
}

impl Capture {
    /// What has come since the last call, oldest first.
    ///
    /// # Errors
    /// What the socket says.
    pub fn take(&self) -> Result<Vec<Captured>, LabError> {
        let offset = RealtimeOffset::sample();
        let mut frames = Vec::new();
        while let Some(received) = self.socket.receive(offset).context(|| self.what.clone())? {
            if received.bytes.get(12..14) == Some(&self.ethertype.to_be_bytes()) {
                let from_host = received.outgoing != self.at_switch;
                frames.push(Captured { at: received.at, from_host, bytes: received.bytes });
            }
        }
        Ok(frames)
    }

    /// The first frame that `wanted` accepts among those not taken yet, waiting for it if need be. Those before it are gone then.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`; what the socket says.
    pub fn wait_for(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&Captured) -> bool,
    ) -> Result<Captured, LabError> {
        let end = clock::now() + limit;
        loop {
            if let Some(frame) = self.take()?.into_iter().find(&mut wanted) {
                return Ok(frame);
            }
            if clock::now() >= end {
                return Err(LabError::Timeout { what: self.what.clone(), limit });
            }
            self.socket.wait(Duration::from_millis(5)).context(|| self.what.clone())?;
        }
    }
}
