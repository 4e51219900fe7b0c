use crate::layout;

/// Value of the array `REQUEST_OFFSETS` (one entry): where this kernel keeps what the programs read of a request to a block device,
/// bytes from the start of each structure.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestOffsets {
    /// `struct request`: its queue.
    pub queue: u32,
    /// `struct request`: how many bytes of it are left.
    pub length: u32,
    /// `struct request_queue`: its disk.
    pub disk: u32,
    /// `struct gendisk`: major number.
    pub major: u32,
    /// `struct gendisk`: first minor number.
    pub minor: u32,
}
layout!(RequestOffsets, 20);

/// Value of the per-CPU hash `DEVICES`, by [`device_number`]: the requests of a device that is watched, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRequests {
    /// Requests that are done, well or not.
    pub completed: u64,
    /// Those that have failed, except for what the device can't do at all.
    pub errors: u64,
}
layout!(DeviceRequests, 16);

/// Value of the hash `IN_FLIGHT`, by the address of the request: one that a driver has and has not done yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// When the driver got it, on the boot-time clock in nanoseconds.
    pub since_ns: u64,
    /// Its device.
    pub device: u32,
    /// Zero.
    pub padding: u32,
}
layout!(InFlight, 16);

/// Most devices that can be watched.
pub const MAX_DEVICES: u32 = 256;

/// Most requests that can be watched at a time; more are counted, and not known while they are in flight.
pub const MAX_IN_FLIGHT: u32 = 8192;

/// The kernel's own number of a device.
#[inline(always)]
pub const fn device_number(major: u32, minor: u32) -> u32 {
    major << 20 | minor
}
