use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use baton_common::Claim as Record;
use baton_core::{Claim, IfIndex};

use super::{KernelError, open_pinned};

/// The ring buffer of claims. Its descriptor is readable when there is one.
pub struct Claims {
    ring: RingBuf<MapData>,
}

impl Claims {
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        Ok(Self { ring: open_pinned(path)? })
    }

    /// The next claim; `None`: there is none for now.
    pub fn next_claim(&mut self) -> Option<Claim> {
        loop {
            let item = self.ring.next()?;
            if let Some(claim) = decode(&item) {
                return Some(claim);
            }
            tracing::warn!(bytes = item.len(), "a record of another layout in the ring buffer was left out");
        }
    }
}

impl AsRawFd for Claims {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// Reads a record of the ring buffer; `None`: it is none.
fn decode(bytes: &[u8]) -> Option<Claim> {
    if bytes.len() != size_of::<Record>() {
        return None;
    }
    // SAFETY: the length is that of a record, which is made of integers without padding: any content is valid.
    let record = unsafe { bytes.as_ptr().cast::<Record>().read_unaligned() };
    let address = match record.family {
        4 => {
            let [a, b, c, d, ..] = record.address;
            IpAddr::from([a, b, c, d])
        }
        6 => IpAddr::from(record.address),
        _ => return None,
    };
    Some(Claim { address, ifindex: IfIndex(record.ifindex), mac: record.mac })
}
