use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use baton_common::{Silence, Verdict};
use baton_core::{Claim, IfIndex};

use super::{KernelError, open_pinned};

/// The ring buffer of what the programs report. Its descriptor is readable when there is something.
pub struct Reports {
    ring: RingBuf<MapData>,
}

/// What the programs report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A foreign host claims a virtual IP.
    Claim(Claim),
    /// A path has not been heard for its limit: the path table says which.
    Silence,
    /// A member calls another one dead.
    Verdict(Verdict),
}

impl Reports {
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        Ok(Self { ring: open_pinned(path)? })
    }

    /// The next one; `None`: there is none for now.
    pub fn next_report(&mut self) -> Option<Report> {
        loop {
            let item = self.ring.next()?;
            if let Some(report) = decode(&item) {
                return Some(report);
            }
            tracing::warn!(bytes = item.len(), "a record of another layout in the ring buffer was left out");
        }
    }
}

impl AsRawFd for Reports {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// Reads a record of the ring buffer; `None`: it is none.
fn decode(bytes: &[u8]) -> Option<Report> {
    if record::<Silence>(bytes).is_some() {
        return Some(Report::Silence);
    }
    if let Some(verdict) = record::<Verdict>(bytes) {
        return Some(Report::Verdict(verdict));
    }
    let record = record::<baton_common::Claim>(bytes)?;
    let address = match record.family {
        4 => {
            let [a, b, c, d, ..] = record.address;
            IpAddr::from([a, b, c, d])
        }
        6 => IpAddr::from(record.address),
        _ => return None,
    };
    Some(Report::Claim(Claim { address, ifindex: IfIndex(record.ifindex), mac: record.mac }))
}

/// Records are told apart by their length.
fn record<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is that of a record, for which any content is valid.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
