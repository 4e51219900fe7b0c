use crate::layout;

/// Value of the per-CPU array `COUNTERS`: traffic of one virtual IP on one CPU. One cache line.
///
/// Packets and bytes are wire frames without their frame check sequence, also where segmentation offload
/// merges packets.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received for the address, ARP and ND about it not included.
    pub rx_packets: u64,
    /// Bytes of those frames.
    pub rx_bytes: u64,
    /// Frames sent from the address, ARP and ND about it not included.
    pub tx_packets: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Received frames (ARP and ND included) that were dropped because the address may not be served.
    pub rx_dropped: u64,
    /// Frames to send (ARP and ND included) that were dropped because the address may not be served.
    pub tx_dropped: u64,
    /// When the last frame for the address was received, nanoseconds: the coarse monotonic clock (4 ms steps at HZ=250),
    /// or the boot-time clock where the lease has an end, since it is read then anyhow. The two are the same on a machine
    /// that has not been suspended. 0: never.
    pub rx_last_ns: u64,
    /// ARP and ND frames about the address that were dropped on a port other than its bound one. Not a fault:
    /// every broadcast request arrives on every port of the segment.
    pub other_port: u64,
}
layout!(Counters, 64);

/// Value of the per-CPU array `DIAGNOSTICS` (one entry): what the programs saw that belongs to no virtual IP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// Frames too short for the headers they announce; they are passed on untouched.
    pub malformed: u64,
    /// Foreign claims seen (ARP, NA, NS with another host's MAC).
    pub claims: u64,
    /// Foreign claims that were not reported because the ring buffer was full or one was reported less than
    /// 100 ms before for the same address.
    pub claims_unreported: u64,
    /// Replies handed from the port that routing chose to the port that the address is bound to.
    pub redirected: u64,
    /// Probe frames that were too short, dropped.
    pub probes_truncated: u64,
    /// Probe frames of another version or kind, dropped.
    pub probes_version: u64,
    /// Probe frames with a wrong tag, dropped: a foreign key, or a forgery.
    pub probes_forged: u64,
    /// Probe frames that had come before, were older than the window of 64, or of another incarnation; dropped.
    pub probes_replayed: u64,
    /// Probe frames with a right tag that belong to no path of this port; passed on.
    pub probes_unknown: u64,
}
layout!(Diagnostics, 72);
