use crate::layout;

/// Value of the array `PEERS`, by slot: what this node, as a voter, knows of another member (lease.md, rules R2, R3, R4).
///
/// A frame of the peer is *two-way* when it returns a time of this node's incarnation that is younger than a lease, in the
/// same version of the member list. Only such a frame is heard, and granted. So `heard_ns` is never earlier than the
/// receipt of what `granted_ns` was taken from, and a verdict that waits for D from `heard_ns` on is given when every
/// grant has run out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Set by the agent: number of the node.
    pub node: u32,
    /// Not used.
    pub reserved: u32,
    /// The highest incarnation that a frame carried.
    pub incarnation: u64,
    /// The latest time of that incarnation.
    pub latest_ns: u64,
    /// The latest time of that incarnation in a two-way frame: what is granted; 0: nothing is.
    pub granted_ns: u64,
    /// When the last frame came that was granted, boot-time clock in nanoseconds; of any incarnation.
    pub heard_ns: u64,
    /// When the last two-way frame came, granted or not.
    pub answered_ns: u64,
    /// The verdict: dead up to this incarnation. Nothing is granted to it.
    pub condemned: u64,
    /// Set by the agent: lower incarnations are granted nothing.
    pub born: u64,
    /// The peer's clock less ours, nanoseconds, as of the fastest frames.
    pub ahead_ns: i64,
    /// When that was, boot-time clock in nanoseconds; 0: never.
    pub ahead_at_ns: u64,
    /// The peer's flag [`crate::PROBE_REFUSES`], for this incarnation of ours; 0: it grants.
    pub refused: u64,
}
layout!(Peer, 88);

/// What the program `condemn` is run with, as the frame that it is shown; it returns 1 when the verdict holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condemn {
    /// The member, by slot.
    pub slot: u64,
    /// Dead up to this incarnation,
    pub incarnation: u64,
    /// if nothing was heard for this long, nanoseconds.
    pub silence_ns: u64,
}
layout!(Condemn, 24);

/// Record of the ring buffer `EVENTS`: a member says that another one is dead. Told from other records by its length.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Up to this incarnation.
    pub incarnation: u64,
    /// Who says so, by slot.
    pub voter: u32,
    /// Of whom, by slot.
    pub about: u32,
}
layout!(Verdict, 16);
const _: () = assert!(size_of::<Verdict>() != size_of::<crate::Claim>());
const _: () = assert!(size_of::<Verdict>() != size_of::<crate::Silence>());
