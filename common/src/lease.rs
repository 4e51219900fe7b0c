use crate::layout;

/// Deadline of a lease that never ends: a single node without a cluster.
pub const LEASE_ENDLESS: u64 = u64::MAX;
/// Slots for members: a few more than there may be members, so that one can be replaced by another.
pub const MAX_MEMBERS: usize = 8;
/// Most members at a time. The kernel programs can count up to two grants beside this node itself.
pub const MOST_MEMBERS: usize = 5;

/// A value that kernel programs change under its lock (`bpf_spin_lock`). The agent reads and writes it whole, with
/// `BPF_F_LOCK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locked<T> {
    /// The kernel's.
    pub lock: u32,
    /// Not used.
    pub reserved: u32,
    /// What it guards.
    pub value: T,
}
// SAFETY: repr(C); two integers in front of a value that has no padding and is aligned to eight bytes.
#[cfg(feature = "user")]
unsafe impl<T: aya::Pod> aya::Pod for Locked<T> {}

/// The only value of the array `LEASE`: until when this node may serve, and as which incarnation (lease.md).
///
/// The agent writes it as a whole when the incarnation or the member list changes; then `port_rx` alone changes `grants`
/// and, with them, `deadline_ns`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The kernel's current incarnation; 0: none yet, nothing is served.
    pub incarnation: u64,
    /// Boot-time clock (`bpf_ktime_get_boot_ns`), nanoseconds; [`LEASE_ENDLESS`]: no end.
    pub deadline_ns: u64,
    /// How long a grant lasts, nanoseconds; 0: there is no cluster.
    pub length_ns: u64,
    /// Grants for times up to this one are void.
    pub void_ns: u64,
    /// Version of the member list that grants are counted in.
    pub members: u32,
    /// How many grants make the lease: a majority less this node itself; 1 or 2.
    pub needed: u32,
    /// Until when each member, by slot, lets this node serve.
    pub grants: [u64; MAX_MEMBERS],
}
layout!(Lease, 104);

impl Lease {
    /// A lease without end, of a node without a cluster.
    pub const fn endless(incarnation: u64) -> Lease {
        Lease::until(incarnation, LEASE_ENDLESS)
    }

    /// A lease that nobody prolongs.
    pub const fn until(incarnation: u64, deadline_ns: u64) -> Lease {
        Lease {
            incarnation,
            deadline_ns,
            length_ns: 0,
            void_ns: 0,
            members: 0,
            needed: 0,
            grants: [0; MAX_MEMBERS],
        }
    }
}

/// The only value of the memory-mapped array `AGENT`: what the agent promises the kernel programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentPromise {
    /// Until then, on the boot-time clock in nanoseconds, an agent is there, or will be back. Afterwards peers are not
    /// answered, and grants not taken.
    pub until_ns: u64,
}
layout!(AgentPromise, 8);
