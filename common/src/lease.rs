use crate::layout;

/// Deadline of a lease that never ends: a single node without a cluster.
pub const LEASE_ENDLESS: u64 = u64::MAX;

/// The only value of the array `LEASE`: until when this node may serve, and as which incarnation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The kernel's current incarnation; 0: none yet, nothing is served.
    pub incarnation: u64,
    /// Boot-time clock (`bpf_ktime_get_boot_ns`), nanoseconds; [`LEASE_ENDLESS`]: no end.
    pub deadline_ns: u64,
}
layout!(Lease, 16);
