use crate::{SipKey, layout};

/// Most paths that a node can watch: those into its own ports.
pub const MAX_PATHS: u32 = 1024;
/// Most pairs of a port and a probe target.
pub const MAX_TARGETS: u32 = 1024;
/// Entries of `SEEN`; a power of two.
pub const MAX_SEEN: u32 = 4096;
/// Buckets of a path's round-trip times. Bucket k counts those of at most 2^k microseconds that are in no lower one;
/// the last one all that are longer.
pub const RTT_BUCKETS: usize = 24;

/// The only value of the array `PROBE`: who this node is to those it probes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeConfig {
    /// The key of all probe frames.
    pub key: SipKey,
    /// This node's incarnation; 0: nothing is answered.
    pub incarnation: u64,
    /// This node's number.
    pub node: u32,
    /// Not used.
    pub reserved: u32,
}
layout!(ProbeConfig, 32);

/// Key of the hash map `PATH_KEYS`, whose value is the path's slot in `PATHS` (a `u32`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathKey {
    /// Number of the sending node.
    pub node: u32,
    /// Number of the sending port within that node.
    pub port: u32,
    /// Interface index of the receiving port.
    pub ifindex: u32,
}
layout!(PathKey, 12);

/// Value of the memory-mapped array `PATHS`: one path into a port of this node. Every word is written by one side only:
/// by the agent before the path's key is inserted, afterwards by `port_rx` and the path's timer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The incarnation that the sender must have; set by the agent, and raised by `port_rx` when another member comes with
    /// a higher one.
    pub incarnation: u64,
    /// Set by the agent: the path is silent when it has not been heard for this long, nanoseconds.
    pub limit_ns: u64,
    /// Set by the agent: MAC address of the receiving port.
    pub mac: [u8; 6],
    /// Set by the agent: one more than the slot of the member that the sending port belongs to; 0: it is this node's own.
    pub member: u16,
    /// Timer armed: 1.
    pub armed: u64,
    /// When the last probe or echo came, boot-time clock in nanoseconds; 0: never.
    pub heard_ns: u64,
    /// When the timer found it silent, boot-time clock in nanoseconds; 0: not since it was last heard.
    pub silent_ns: u64,
    /// Probes that came.
    pub probes: u64,
    /// Echoes that came.
    pub echoes: u64,
    /// Probes that were missing when a later one came.
    pub lost: u64,
    /// Highest sequence among the probes that came.
    pub probe_high: u64,
    /// Which of the 64 sequences up to it came (bit 0: the highest; RFC 4303, 3.4.3).
    pub probe_window: u64,
    /// The same for echoes.
    pub echo_high: u64,
    /// The same for echoes.
    pub echo_window: u64,
    /// The sender's time in the latest probe.
    pub peer_ns: u64,
    /// When that came, boot-time clock in nanoseconds.
    pub peer_at_ns: u64,
    /// The last round-trip time, nanoseconds; 0: none yet.
    pub rtt_ns: u64,
    /// Sum of the round-trip times, nanoseconds.
    pub rtt_sum_ns: u64,
    /// How many there were of which length.
    pub rtt: [u64; RTT_BUCKETS],
}
layout!(Path, 328);

impl Path {
    /// A path that has never been heard, into the port with this MAC address. Of the sender's frames those count that
    /// come after `sequence`.
    pub const fn new(incarnation: u64, limit_ns: u64, mac: [u8; 6], sequence: u64) -> Path {
        Path {
            incarnation,
            limit_ns,
            mac,
            member: 0,
            armed: 0,
            heard_ns: 0,
            silent_ns: 0,
            probes: 0,
            echoes: 0,
            lost: 0,
            probe_high: sequence,
            probe_window: 1,
            echo_high: sequence,
            echo_window: 1,
            peer_ns: 0,
            peer_at_ns: 0,
            rtt_ns: 0,
            rtt_sum_ns: 0,
            rtt: [0; RTT_BUCKETS],
        }
    }
}

/// Key of the hash map `TARGET_KEYS`, whose value is a slot in `TARGETS` (a `u32`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetKey {
    /// The target; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// 4 or 6.
    pub family: u32,
    /// Interface index of the port that asks.
    pub ifindex: u32,
}
layout!(TargetKey, 24);

/// Value of the memory-mapped array `TARGETS`: one probe target as asked from one port. Written by `port_rx` alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// When the last answer to a probe of ours came, boot-time clock in nanoseconds; 0: never.
    pub answered_ns: u64,
    /// Answers that came.
    pub answers: u64,
    /// MAC address in the last one.
    pub mac: [u8; 6],
    /// Not used.
    pub reserved: u16,
}
layout!(Target, 24);

/// Value of the memory-mapped array `SEEN`, at the interface index modulo [`MAX_SEEN`]: unicast that a port received.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The last packet to a virtual IP, coarse clock in nanoseconds (as [`crate::Counters::rx_last_ns`]); 0: never.
    pub unicast_ns: u64,
    /// Set by the agent: interface index of the port that the entry belongs to; 0: none.
    pub ifindex: u32,
    /// Not used.
    pub reserved: u32,
}
layout!(Seen, 16);

/// Record of the ring buffer `EVENTS`: a path has not been heard for its limit. Told from other records by its length.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// When the timer found it, boot-time clock in nanoseconds.
    pub at_ns: u64,
    /// When the path was last heard.
    pub heard_ns: u64,
    /// Its slot.
    pub slot: u32,
    /// Not used.
    pub reserved: u32,
}
layout!(Silence, 24);
const _: () = assert!(size_of::<Silence>() != size_of::<crate::Claim>());
