//! Layouts that the kernel programs and the agent share: the values of every map and the records of the
//! ring buffer, one file per map or record.
//!
//! Everything here is `no_std`, `#[repr(C)]`, built of fixed-width integers with explicit padding, and has
//! its size asserted at compile time: aya does not check a pinned map's value size, so [`LAYOUT_VERSION`]
//! names the pin directory and must change with any layout.
#![no_std]
#![warn(missing_docs)]

mod claim;
mod connection;
mod counters;
mod lease;
mod path;
mod peer;
mod probe;
mod request;
mod route;
mod server;
mod siphash;
mod vip;

pub use claim::{CLAIM_ARP, CLAIM_NA, CLAIM_NS, Claim};
pub use connection::{CONNECTION_ENDED, CONNECTION_RESET, Connection, ConnectionKey, MAX_CONNECTIONS, later};
pub use counters::{Counters, Diagnostics};
pub use lease::{AgentPromise, LEASE_ENDLESS, Lease, Locked, MAX_MEMBERS, MOST_MEMBERS};
pub use path::{
    MAX_PATHS, MAX_SEEN, MAX_TARGETS, Path, PathKey, ProbeConfig, RTT_BUCKETS, Seen, Silence, Target,
    TargetKey,
};
pub use peer::{Condemn, Peer, Verdict};
pub use probe::{
    PROBE_ETHERTYPE, PROBE_KIND_ECHO, PROBE_KIND_PROBE, PROBE_LENGTH, PROBE_REFUSES, PROBE_VERSION,
    ProbeFrame, ProbeRefused, parse_probe,
};
pub use request::{DeviceRequests, InFlight, MAX_DEVICES, MAX_IN_FLIGHT, RequestOffsets, device_number};
pub use route::Route;
pub use server::Server;
pub use siphash::{SipKey, siphash24};
pub use vip::{BUCKETS, MAX_CHAIN, VIP_TRACKED, Vip, bucket4, bucket6};

/// Version of all layouts in this crate; the pin directory is `<bpffs>/v<LAYOUT_VERSION>`.
///
/// An agent of another version takes over what is pinned, both ways, map by map: so a layout may only grow at its end, and zero in
/// a new field must mean what was meant without it. A map that changes otherwise must get another name.
pub const LAYOUT_VERSION: u32 = 5;

/// Most virtual IPs that one node can serve, both families together; also the number of counter slots.
pub const MAX_VIPS: u32 = 16_384;

/// Most virtual servers that one node can know.
pub const MAX_SERVERS: u32 = 4_096;

/// Most MAC addresses of own ports (an address that a port had before it changed stays for a while).
pub const MAX_PORTS: u32 = 256;

/// Implements `aya::Pod` and asserts the size of a layout.
macro_rules! layout {
    ($t:ty, $size:literal) => {
        const _: () = assert!(core::mem::size_of::<$t>() == $size);
        // SAFETY: repr(C), only fixed-width integers and arrays of them, no implicit padding (size asserted).
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $t {}
    };
}
pub(crate) use layout;
