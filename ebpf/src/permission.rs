use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns};
use baton_common::LEASE_ENDLESS;

use crate::maps::{LEASE, SERVERS, Vip};

/// This node may serve the address now.
#[derive(Clone, Copy)]
pub struct Permission {
    /// The precise clock, where it had to be read; 0: it was not.
    now_ns: u64,
}

impl Permission {
    /// May the address be served? Its virtual server's mark must be the kernel's incarnation, and the lease must not
    /// have ended. The precise clock (20 ns) is read only where the lease has an end.
    #[inline(always)]
    pub fn ask(vip: Vip) -> Option<Self> {
        let server = SERVERS.get_ptr(vip.server)?;
        let lease = LEASE.get_ptr(0)?;
        // SAFETY: both are entries of array maps, which never go away; every bit pattern is valid. Volatile, because
        // they are written at any time and each word must be read once. The lease is not locked, so its incarnation is
        // read on both sides of its deadline: it only rises, and what is between belongs to it.
        let (mark, incarnation, deadline_ns, again) = unsafe {
            let lease = &raw const (*lease).value;
            (
                (&raw const (*server).mark).read_volatile(),
                (&raw const (*lease).incarnation).read_volatile(),
                (&raw const (*lease).deadline_ns).read_volatile(),
                (&raw const (*lease).incarnation).read_volatile(),
            )
        };
        if mark == 0 || mark != incarnation || incarnation != again {
            return None;
        }
        if deadline_ns == LEASE_ENDLESS {
            return Some(Self { now_ns: 0 });
        }
        // SAFETY: the helper takes nothing and has no effect.
        let now_ns = unsafe { bpf_ktime_get_boot_ns() };
        (now_ns < deadline_ns).then_some(Self { now_ns })
    }

    /// A time stamp for what was received: the clock that was read anyhow, else the coarse one.
    #[inline(always)]
    pub fn stamp(self) -> u64 {
        match self.now_ns {
            0 => coarse_ns(),
            now_ns => now_ns,
        }
    }
}

/// The coarse monotonic clock, nanoseconds.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: the helper takes nothing and has no effect.
    unsafe { bpf_ktime_get_coarse_ns() }
}
