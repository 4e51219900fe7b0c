//! The child that reads a unit. It makes system calls only, holds nothing of the agent's, and may hang for ever.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{ForkResult, fork};

use crate::resources::process::Process;

/// Where the child has its end of the conversation.
const END: RawFd = 0;
/// Sizes of a read, until the device takes one: its logical block may be larger than 4 KiB.
const SIZES: [usize; 2] = [4096, 65_536];
/// What it is asked.
const READ: u8 = b'r';

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Read,
    /// There is no such device, or nothing behind it.
    Missing,
    Failed(Errno),
}

/// What the child says of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// The cache may have answered.
    pub cached: bool,
    /// The device's number, where it is a block device that could be opened.
    pub device: Option<u64>,
}

/// As it is sent.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Words {
    errno: i32,
    cached: i32,
    took_ns: u64,
    /// 0: none.
    device: u64,
}

/// Aligned as reads past the cache need it.
#[repr(C, align(4096))]
struct Buffer([u8; SIZES[1]]);

/// A child, and this end of the conversation. Dropped: it is told to end, which one that hangs does later.
pub(super) struct Child {
    process: Process,
    socket: OwnedFd,
}

impl Child {
    /// Starts it for this device, which need not be there.
    ///
    /// # Errors
    /// The system has no descriptors or processes left.
    pub fn start(device: &Path) -> io::Result<Child> {
        let path = CString::new(device.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mut buffer = Box::new(Buffer([0; SIZES[1]]));
        let (socket, other) = pair()?;
        // SAFETY: the child makes system calls only; it allocates nothing, takes no lock, and ends without running destructors.
        match unsafe { fork() }? {
            // SAFETY: the calls take integers and a constant; the descriptor is this process's own.
            ForkResult::Child => unsafe {
                if libc::dup2(other.as_raw_fd(), END) == END {
                    libc::syscall(libc::SYS_close_range, END + 1, libc::c_uint::MAX, 0);
                    libc::setsid();
                    libc::signal(libc::SIGTERM, libc::SIG_DFL);
                    // With the thread that asks: it would wait for ever for a question that was never sent.
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::prctl(libc::PR_SET_NAME, c"baton-storage".as_ptr());
                    // Waiting for swap is not waiting for the unit. Where it isn't permitted it is done without.
                    libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
                    answer_all(&path, &mut buffer);
                }
                libc::_exit(1)
            },
            ForkResult::Parent { child } => {
                let gone = || io::Error::from_raw_os_error(libc::ESRCH);
                Ok(Child { process: Process::of(child.as_raw()).ok_or_else(gone)?, socket })
            }
        }
    }

    /// Asks for a read. Never waits.
    ///
    /// # Errors
    /// It has ended.
    pub fn ask(&self) -> io::Result<()> {
        let question = READ;
        // SAFETY: the buffer has one byte.
        match unsafe {
            libc::send(self.socket.as_raw_fd(), (&raw const question).cast(), 1, libc::MSG_NOSIGNAL)
        } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its answer, when there is something to be read. `None`: it has ended.
    pub fn answer(&self) -> Option<Answer> {
        let mut words = Words::default();
        // SAFETY: the buffer has as many bytes, and any bytes make integers.
        let read = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                (&raw mut words).cast(),
                size_of::<Words>(),
                libc::MSG_DONTWAIT,
            )
        };
        if usize::try_from(read) != Ok(size_of::<Words>()) {
            return None;
        }
        let outcome = match Errno::from_raw(words.errno) {
            _ if words.errno == 0 => Outcome::Read,
            Errno::ENOENT | Errno::ENXIO | Errno::ENODEV | Errno::ENOMEDIUM => Outcome::Missing,
            errno => Outcome::Failed(errno),
        };
        let took = Duration::from_nanos(words.took_ns);
        let device = (words.device != 0).then_some(words.device);
        Some(Answer { outcome, took, cached: words.cached != 0, device })
    }

    /// Does it wait for a processor, or for somebody to let it run, and not for the device?
    pub fn waits_for_a_processor(&self) -> bool {
        matches!(self.process.state(), Some('R' | 'T' | 't'))
    }

    #[cfg(test)]
    pub fn process(&self) -> Process {
        self.process
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.signal(libc::SIGKILL);
        crate::resources::command::reap_later(self.process);
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two descriptors, which nobody else owns.
    unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        if libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Of the child: reads whenever it is asked to, until nobody is left to ask.
fn answer_all(path: &CString, buffer: &mut Buffer) {
    loop {
        let mut asked = 0u8;
        // SAFETY: the buffer has one byte.
        if unsafe { libc::recv(END, (&raw mut asked).cast(), 1, 0) } != 1 {
            return;
        }
        let began = now_ns();
        let mut words = read_block(path, buffer);
        words.took_ns = now_ns().saturating_sub(began);
        // SAFETY: the buffer has as many bytes, all of which are set.
        let sent =
            unsafe { libc::send(END, (&raw const words).cast(), size_of::<Words>(), libc::MSG_NOSIGNAL) };
        if sent < 0 {
            return;
        }
    }
}

fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one value.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Opens the device, which may be another one by now, and reads its last block, which file systems have least to do with. Returns what
/// came of it, without the time.
fn read_block(path: &CString, buffer: &mut Buffer) -> Words {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let mut cached = false;
    // SAFETY: the path ends with zero.
    let mut file = unsafe { libc::open(path.as_ptr(), flags | libc::O_DIRECT) };
    if file < 0 && Errno::last_raw() == libc::EINVAL {
        cached = true;
        // SAFETY: as above.
        file = unsafe { libc::open(path.as_ptr(), flags) };
    }
    let answer = Words { cached: i32::from(cached), ..Words::default() };
    if file < 0 {
        return Words { errno: Errno::last_raw(), ..answer };
    }
    let largest = SIZES[1] as i64;
    // SAFETY: the descriptor is this function's own, and the buffer has as many bytes as are read.
    unsafe {
        let end = libc::lseek(file, 0, libc::SEEK_END);
        let place = ((end / largest) - 1).max(0) * largest;
        if cached {
            libc::posix_fadvise(file, 0, 0, libc::POSIX_FADV_DONTNEED);
        }
        let mut errno = libc::ENXIO;
        for size in SIZES {
            errno = match libc::pread(file, buffer.0.as_mut_ptr().cast(), size, place) {
                0 => libc::ENXIO, // nothing behind it
                read if read > 0 => 0,
                _ => Errno::last_raw(),
            };
            if errno != libc::EINVAL {
                break;
            }
        }
        let device = device_of(file);
        libc::close(file);
        Words { errno, device, ..answer }
    }
}

/// The number of an open block device; 0: it is something else.
fn device_of(file: RawFd) -> u64 {
    // SAFETY: zeros make a structure of integers, which the kernel fills.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        match libc::fstat(file, &mut found) {
            0 if found.st_mode & libc::S_IFMT == libc::S_IFBLK => found.st_rdev,
            _ => 0,
        }
    }
}
