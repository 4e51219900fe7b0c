//! The maps. All but `REPORTED` are pinned by the agent and outlive it.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use baton_common::{Counters, Diagnostics, Lease, MAX_PORTS, MAX_SERVERS, MAX_VIPS, Server, Vip};

/// IPv4 virtual IPs.
#[map]
pub static VIPS4: HashMap<[u8; 4], Vip> = HashMap::with_max_entries(MAX_VIPS, 0);
/// IPv6 virtual IPs.
#[map]
pub static VIPS6: HashMap<[u8; 16], Vip> = HashMap::with_max_entries(MAX_VIPS, 0);
/// Serving marks of the virtual servers.
#[map]
pub static SERVERS: Array<Server> = Array::with_max_entries(MAX_SERVERS, 0);
/// The lease; one entry.
#[map]
pub static LEASE: Array<Lease> = Array::with_max_entries(1, 0);
/// Traffic of each virtual IP, by [`Vip::slot`].
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(MAX_VIPS, 0);
/// What belongs to no virtual IP; one entry.
#[map]
pub static DIAGNOSTICS: PerCpuArray<Diagnostics> = PerCpuArray::with_max_entries(1, 0);
/// MAC addresses of this node's ports, with the interface index of the port.
#[map]
pub static OWN_MACS: HashMap<[u8; 6], u32> = HashMap::with_max_entries(MAX_PORTS, 0);
/// Claims, as [`baton_common::Claim`].
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);
/// When a claim of an address (IPv4 in the first four bytes) was last reported, on the boot-time clock in nanoseconds.
#[map]
pub static REPORTED: LruHashMap<[u8; 16], u64> = LruHashMap::with_max_entries(1024, 0);

/// The virtual IP at an IPv4 address.
#[inline(always)]
pub fn vip4(address: &[u8; 4]) -> Option<&'static Vip> {
    // SAFETY: the agent replaces an entry whole. An entry that is replaced while a program reads it may at worst show
    // the value of another virtual IP to that one frame; all values are in bounds of the maps they point into.
    unsafe { VIPS4.get(address) }
}

/// The virtual IP at an IPv6 address.
#[inline(always)]
pub fn vip6(address: &[u8; 16]) -> Option<&'static Vip> {
    // SAFETY: as in `vip4`.
    unsafe { VIPS6.get(address) }
}

/// Changes this CPU's counters of a virtual IP.
#[inline(always)]
pub fn count(vip: &Vip, change: impl FnOnce(&mut Counters)) {
    if let Some(counters) = COUNTERS.get_ptr_mut(vip.slot) {
        // SAFETY: the entry belongs to this CPU, and no other program runs on it until this one returns or, where one
        // interrupts it, an increment at most is lost.
        change(unsafe { &mut *counters });
    }
}

/// Changes this CPU's diagnostics.
#[inline(always)]
pub fn diagnose(change: impl FnOnce(&mut Diagnostics)) {
    if let Some(diagnostics) = DIAGNOSTICS.get_ptr_mut(0) {
        // SAFETY: as in `count`.
        change(unsafe { &mut *diagnostics });
    }
}
