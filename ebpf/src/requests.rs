//! Requests to the block devices that storage units are on: how many were done, how many of these have failed, and since when those
//! are in flight that are not done.
//!
//! The kernel runs no program inside itself: where one request is done in an interrupt of a processor that is just counting another one,
//! it is not seen, and stays in flight here until its place in memory is used again, or the agent finds the device idle. So nothing
//! is decided by this.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use baton_common::{DeviceRequests, InFlight, RequestOffsets, device_number};

use crate::maps::{DEVICES, IN_FLIGHT, REQUEST_OFFSETS};

/// BLK_STS_NOTSUPP: what the device can't do at all, most often discards, is no failure of it.
const UNSUPPORTED: u8 = 1;

/// A driver gets a request.
#[btf_tracepoint(function = "block_rq_issue")]
pub fn request_issued(context: BtfTracePointContext) -> i32 {
    let request = Request(context.arg(0));
    if let Some((device, _)) = request.offsets().and_then(|offsets| request.device(offsets)) {
        // SAFETY: the helper takes nothing and has no effect.
        let since_ns = unsafe { bpf_ktime_get_boot_ns() };
        // One that is given back and comes again is as old as its last time. A full table knows no more of them.
        let _ = IN_FLIGHT.insert(request.key(), InFlight { since_ns, device, padding: 0 }, 0);
    }
    0
}

/// A driver has done a request, or a part of it.
#[btf_tracepoint(function = "block_rq_complete")]
pub fn request_completed(context: BtfTracePointContext) -> i32 {
    let request = Request(context.arg(0));
    let (error, bytes): (u8, u32) = (context.arg(1), context.arg(2));
    let Some(offsets) = request.offsets() else {
        return 0; // never: an array has all its entries
    };
    let Some((_, counters)) = request.device(offsets) else {
        return 0;
    };
    // SAFETY: the entry belongs to this CPU, and this program is not run inside itself.
    let counters = unsafe { &mut *counters };
    if error != 0 && error != UNSUPPORTED {
        counters.errors += 1;
    }
    // What is done in parts is done with the last one.
    if read::<u32>(request.0, offsets.length).is_none_or(|left| bytes >= left) {
        counters.completed += 1;
        let _ = IN_FLIGHT.remove(request.key()); // it may be older than this program
    }
    0
}

/// A `struct request` of the kernel.
struct Request(*const u8);

impl Request {
    #[inline(always)]
    fn key(&self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn offsets(&self) -> Option<&'static RequestOffsets> {
        REQUEST_OFFSETS.get(0)
    }

    /// Its device and this CPU's counters of that, if it is one of those that are watched.
    #[inline(always)]
    fn device(&self, offsets: &RequestOffsets) -> Option<(u32, *mut DeviceRequests)> {
        let queue: *const u8 = read(self.0, offsets.queue)?;
        let disk: *const u8 = read(queue, offsets.disk)?;
        let device = device_number(read(disk, offsets.major)?, read(disk, offsets.minor)?);
        Some((device, DEVICES.get_ptr_mut(device)?))
    }
}

/// Reads a member of a structure of the kernel's.
#[inline(always)]
fn read<T: Copy>(structure: *const u8, offset: u32) -> Option<T> {
    // SAFETY: the helper refuses what can't be read; whatever it reads makes an integer or a pointer, which is only read from in
    // the same way.
    unsafe { bpf_probe_read_kernel(structure.wrapping_add(offset as usize).cast::<T>()) }.ok()
}
