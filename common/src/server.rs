use crate::layout;

/// Value of the array `SERVERS`: the serving mark of one virtual server (lease.md, rule R5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Incarnation in the owner record this mark was set under; 0: not served. Served only while it equals
    /// [`crate::Lease::incarnation`] and that lease has not ended.
    pub mark: u64,
    /// Hash of the virtual server's name (never 0 for a used entry), by which a restarted agent finds its entry again.
    pub name: u64,
}
layout!(Server, 16);
