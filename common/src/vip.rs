use crate::layout;

/// Value of the maps `VIPS4` (key: 4 address bytes) and `VIPS6` (key: 16 address bytes), both in network order.
///
/// The kernel programs only read it; the agent replaces it whole (one map update is atomic for readers).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// Index into `COUNTERS`, below [`crate::MAX_VIPS`]; stays with the address for as long as it is known.
    pub slot: u32,
    /// Interface index of the port the address is bound to; 0: bound nowhere (nobody may answer ARP/ND for it).
    pub port: u32,
    /// Index into `SERVERS`, below [`crate::MAX_SERVERS`]: the virtual server it belongs to.
    pub server: u32,
    /// Reserved, 0.
    pub reserved: u32,
}
layout!(Vip, 16);
