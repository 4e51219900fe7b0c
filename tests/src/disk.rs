//! Disks: loop devices, most often over memory.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};

use crate::error::{Context, LabError};

/// ioctl(2) requests of linux/loop.h.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
/// The device goes with its last user.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Past the page cache of what is below.
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Another process may take the free device first: so often it is tried again.
const ATTEMPTS: u32 = 100;

/// A block device of its own. Dropped, or the process killed: gone, with all that is on it.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    numbers: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
}

impl LoopDevice {
    /// One with so many bytes.
    ///
    /// # Errors
    /// The failed system call's: it needs root, and a kernel with loop devices.
    pub fn new(bytes: u64) -> Result<LoopDevice, LabError> {
        LoopDevice::over(&memory(bytes).context(|| "get memory for a loop device".into())?)
    }

    /// One over a file.
    ///
    /// # Errors
    /// As [`LoopDevice::new`].
    pub fn over(file: &File) -> Result<LoopDevice, LabError> {
        LoopDevice::set_up(file, LO_FLAGS_AUTOCLEAR)
    }

    /// One over a file that was opened with `O_DIRECT`: what it reads and writes is not cached below it.
    ///
    /// # Errors
    /// As [`LoopDevice::new`].
    pub fn direct(file: &File) -> Result<LoopDevice, LabError> {
        LoopDevice::set_up(file, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO)
    }

    fn set_up(file: &File, flags: u32) -> Result<LoopDevice, LabError> {
        let control = File::open("/dev/loop-control").context(|| "open /dev/loop-control".into())?;
        for _ in 0..ATTEMPTS {
            // SAFETY: the request takes nothing, and gives a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let path = PathBuf::from(format!("/dev/loop{}", checked(number, "get a free loop device")?));
            let what = || format!("set up {}", path.display());
            let device = File::options().read(true).write(true).open(&path).context(what)?;
            // SAFETY: the structure holds integers only, for which zero is a value.
            let mut config: LoopConfig = unsafe { std::mem::zeroed() };
            config.fd = file.as_raw_fd() as u32;
            config.info.flags = flags;
            // SAFETY: the structure is as the request wants it, and outlives the call.
            let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
            if result == 0 {
                return Ok(LoopDevice { device, path });
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error).context(what);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY)).context(|| "get a free loop device".into())
    }

    /// Where it is, in every host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes so many bytes behind what was written before, and waits until the device has them.
    ///
    /// # Errors
    /// `ENOSPC` when it is full.
    pub fn write(&mut self, bytes: usize) -> Result<(), LabError> {
        let written = self.device.write_all(&vec![1; bytes]).and_then(|()| self.device.sync_all());
        written.context(|| format!("write to {}", self.path.display()))
    }
}

/// A file that is in no folder.
pub(crate) fn memory(bytes: u64) -> io::Result<File> {
    // SAFETY: the name is a string that lives on, and the descriptor is new, so the file is the only one to own it.
    let file = unsafe {
        match libc::memfd_create(c"baton-lab-disk".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error()),
            descriptor => File::from_raw_fd(descriptor),
        }
    };
    file.set_len(bytes)?;
    Ok(file)
}

fn checked(result: c_int, what: &str) -> Result<c_int, LabError> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()).context(|| what.to_owned()) }
}
