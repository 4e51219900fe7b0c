use crate::layout;

/// [`Claim::kind`]: an ARP request or reply (RFC 826) whose sender protocol address is the virtual IP.
pub const CLAIM_ARP: u32 = 1;
/// [`Claim::kind`]: a neighbour advertisement (RFC 4861, 4.4) whose target is the virtual IP.
pub const CLAIM_NA: u32 = 2;
/// [`Claim::kind`]: a neighbour solicitation (RFC 4861, 4.3) sent from the virtual IP.
pub const CLAIM_NS: u32 = 3;

/// Record of the ring buffer `EVENTS`: a foreign host claims a virtual IP that this node serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Boot-time clock (`bpf_ktime_get_boot_ns`), nanoseconds.
    pub at_ns: u64,
    /// One of [`CLAIM_ARP`], [`CLAIM_NA`], [`CLAIM_NS`].
    pub kind: u32,
    /// Interface it was received on.
    pub ifindex: u32,
    /// The virtual IP; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// 4 or 6.
    pub family: u16,
    /// MAC address that claims it.
    pub mac: [u8; 6],
}
layout!(Claim, 40);
