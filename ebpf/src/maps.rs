//! The maps. Those that `baton::io::kernel` names are pinned and outlive the agent; the others live as long as the
//! programs that were loaded with them.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use baton_common::{
    AgentPromise, BUCKETS, Connection, ConnectionKey, Counters, DeviceRequests, Diagnostics, InFlight, Lease,
    MAX_CHAIN, MAX_CONNECTIONS, MAX_DEVICES, MAX_IN_FLIGHT, MAX_MEMBERS, MAX_PATHS, MAX_PORTS, MAX_SEEN,
    MAX_SERVERS, MAX_TARGETS, MAX_VIPS, Path, PathKey, Peer, ProbeConfig, RequestOffsets, Route, Seen,
    Server, Target, TargetKey, VIP_TRACKED, bucket4, bucket6,
};

use crate::member::Guarded;
use crate::probe::Timer;

/// The virtual IPs, by counter slot.
#[map]
pub static VIPS: Array<baton_common::Vip> = Array::with_max_entries(MAX_VIPS, 0);
/// For every hash of an IPv4 address, one more than the slot of the first virtual IP that has it.
#[map]
pub static BUCKETS4: Array<u32> = Array::with_max_entries(BUCKETS, 0);
/// The same for IPv6.
#[map]
pub static BUCKETS6: Array<u32> = Array::with_max_entries(BUCKETS, 0);
/// Where the packets of virtual IPs that this node answers for in another's stead go on to, by counter slot.
#[map]
pub static ROUTES: Array<Route> = Array::with_max_entries(MAX_VIPS, 0);
/// Serving marks of the virtual servers.
#[map]
pub static SERVERS: Array<Server> = Array::with_max_entries(MAX_SERVERS, 0);
/// The lease; one entry.
#[btf_map]
pub static LEASE: btf_maps::Array<Guarded<Lease>, 1> = btf_maps::Array::new();
/// What this node knows of the other members, by slot.
#[btf_map]
pub static PEERS: btf_maps::Array<Guarded<Peer>, MAX_MEMBERS> = btf_maps::Array::new();
/// Verdicts that members have told of, at [`MAX_MEMBERS`] times the voter's slot and the slot of whom it is about: dead up
/// to this incarnation.
#[map]
pub static VERDICTS: Array<u64> = Array::with_max_entries((MAX_MEMBERS * MAX_MEMBERS) as u32, 0);
/// What the agent promises; one entry.
#[map]
pub static AGENT: Array<AgentPromise> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// Traffic of each virtual IP, by [`Vip::slot`].
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(MAX_VIPS, 0);
/// What belongs to no virtual IP; one entry.
#[map]
pub static DIAGNOSTICS: PerCpuArray<Diagnostics> = PerCpuArray::with_max_entries(1, 0);
/// MAC addresses of this node's ports, with the interface index of the port.
#[map]
pub static OWN_MACS: HashMap<[u8; 6], u32> = HashMap::with_max_entries(MAX_PORTS, 0);
/// Claims, as [`baton_common::Claim`], and silent paths, as [`baton_common::Silence`].
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);
/// When a claim of an address (IPv4 in the first four bytes) was last reported, on the boot-time clock in nanoseconds.
#[map]
pub static REPORTED: LruHashMap<[u8; 16], u64> = LruHashMap::with_max_entries(1024, 0);
/// TCP connections of the virtual IPs that have [`VIP_TRACKED`].
#[map]
pub static CONNECTIONS: LruHashMap<ConnectionKey, Connection> =
    LruHashMap::with_max_entries(MAX_CONNECTIONS, 0);
/// How many have been entered there since the programs were loaded, by CPU: who shares them looks at this often; one entry.
#[map]
pub static CONNECTIONS_MADE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Who this node is to those it probes; one entry.
#[map]
pub static PROBE: Array<ProbeConfig> = Array::with_max_entries(1, 0);
/// Slots of the paths.
#[map]
pub static PATH_KEYS: HashMap<PathKey, u32> = HashMap::with_max_entries(MAX_PATHS, 0);
/// The paths.
#[map]
pub static PATHS: Array<Path> = Array::with_max_entries(MAX_PATHS, BPF_F_MMAPABLE);
/// Timers of the paths, at their slots; a map with timers can't be memory-mapped.
#[btf_map]
pub static TIMERS: btf_maps::Array<Timer, { MAX_PATHS as usize }> = btf_maps::Array::new();
/// Slots of the probe targets.
#[map]
pub static TARGET_KEYS: HashMap<TargetKey, u32> = HashMap::with_max_entries(MAX_TARGETS, 0);
/// The probe targets.
#[map]
pub static TARGETS: Array<Target> = Array::with_max_entries(MAX_TARGETS, BPF_F_MMAPABLE);
/// When ports last received a packet to a virtual IP.
#[map]
pub static SEEN: Array<Seen> = Array::with_max_entries(MAX_SEEN, BPF_F_MMAPABLE);

/// Where requests to block devices have what is read of them; one entry.
#[map]
pub static REQUEST_OFFSETS: Array<RequestOffsets> = Array::with_max_entries(1, 0);
/// The block devices that are watched.
#[map]
pub static DEVICES: PerCpuHashMap<u32, DeviceRequests> = PerCpuHashMap::with_max_entries(MAX_DEVICES, 0);
/// Their requests that are not done yet, by address.
#[map]
pub static IN_FLIGHT: HashMap<u64, InFlight> = HashMap::with_max_entries(MAX_IN_FLIGHT, 0);

/// A virtual IP, as it was when it was looked up.
#[derive(Clone, Copy)]
pub struct Vip {
    /// Its counters.
    pub slot: u32,
    /// Interface index of the port that it is bound to; 0: none.
    pub port: u32,
    /// Its virtual server.
    pub server: u32,
    /// Its connections are kept.
    pub tracked: bool,
}

/// The virtual IP at an IPv4 address.
#[inline(always)]
pub fn vip4(address: &[u8; 4]) -> Option<Vip> {
    find(BUCKETS4.get(bucket4(*address))?, |vip| vip.address.first_chunk() == Some(address))
}

/// The virtual IP at an IPv6 address.
#[inline(always)]
pub fn vip6(address: &[u8; 16]) -> Option<Vip> {
    find(BUCKETS6.get(bucket6(*address))?, |vip| vip.address == *address)
}

/// Walks a chain.
#[inline(always)]
fn find(first: &u32, is_wanted: impl Fn(&baton_common::Vip) -> bool) -> Option<Vip> {
    let mut link = *first;
    for _ in 0..MAX_CHAIN {
        let slot = link.checked_sub(1)?;
        let vip = VIPS.get(slot)?;
        if is_wanted(vip) {
            let tracked = vip.flags & VIP_TRACKED != 0;
            return Some(Vip { slot, port: vip.port, server: vip.server, tracked });
        }
        link = vip.next;
    }
    None
}

/// Changes this CPU's counters of a virtual IP.
#[inline(always)]
pub fn count(vip: Vip, change: impl FnOnce(&mut Counters)) {
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
