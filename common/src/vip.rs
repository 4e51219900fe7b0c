use crate::layout;

/// Value of the array `VIPS`, by counter slot: one virtual IP.
///
/// The kernel programs find it by its address: the arrays `BUCKETS4` and `BUCKETS6` hold, for every hash of an address
/// ([`bucket4`], [`bucket6`]), the first slot of a chain. Arrays, because their lookups are a few instructions within the
/// program, where that of a hash map is a call of 15 to 20 ns. The agent alone writes: a new entry before the link that
/// leads to it, and afterwards nothing but `flags`, `port`, `server` or `next`, each of which a program reads whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// The address in network order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// 4 or 6; 0: the slot is free.
    pub family: u16,
    /// [`VIP_TRACKED`], or 0.
    pub flags: u16,
    /// Interface index of the port the address is bound to; 0: bound nowhere (nobody may answer ARP/ND for it).
    pub port: u32,
    /// Index into `SERVERS`, below [`crate::MAX_SERVERS`]: the virtual server it belongs to.
    pub server: u32,
    /// One more than the slot of the next virtual IP with the same hash; 0: there is none.
    pub next: u32,
}
layout!(Vip, 32);

/// [`Vip::flags`]: its TCP connections are kept in `CONNECTIONS`.
pub const VIP_TRACKED: u16 = 1;

/// Entries of `BUCKETS4` and of `BUCKETS6`: each a `u32`, one more than the first slot of the chain; 0: no virtual IP has this hash.
pub const BUCKETS: u32 = 1 << 16;

/// Most virtual IPs of one family that may have the same hash. With 16,384 random addresses the longest chain has about 5.
pub const MAX_CHAIN: u32 = 8;

/// 2^32 and 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming 3, 6.4): neighbouring addresses get distant hashes.
const GOLDEN32: u32 = 0x9e37_79b1;
const GOLDEN64: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hash of an IPv4 address, below [`BUCKETS`].
#[inline(always)]
pub const fn bucket4(address: [u8; 4]) -> u32 {
    u32::from_be_bytes(address).wrapping_mul(GOLDEN32) >> 16
}

/// Hash of an IPv6 address, below [`BUCKETS`].
#[inline(always)]
pub const fn bucket6(address: [u8; 16]) -> u32 {
    let address = u128::from_be_bytes(address);
    let (prefix, host) = ((address >> 64) as u64, address as u64);
    ((prefix.wrapping_mul(GOLDEN64) ^ host).wrapping_mul(GOLDEN64) >> 48) as u32
}
