//! Raw packet sockets: every frame of one interface, with the kernel's time stamp.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockType, recvmsg, setsockopt, socket,
    sockopt,
};

use crate::clock::{self, RealtimeOffset};

/// Bytes of each frame that are kept; enough for every header that [`crate::wire`] decodes.
pub const SNAP: usize = 192;

/// Receive buffer, bytes: tens of thousands of frames while the reader waits for a CPU.
const BUFFER: usize = 32 << 20;

/// All frames of one interface, both directions.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
}

/// A received frame.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its first [`SNAP`] bytes.
    pub bytes: Vec<u8>,
    /// Its whole length.
    pub length: usize,
    /// When the kernel took it, on `CLOCK_MONOTONIC`.
    pub at: Duration,
    /// True: it left by this interface. False: it came in.
    pub outgoing: bool,
}

impl PacketSocket {
    /// Opens the socket on interface `index` of the calling thread's network namespace.
    ///
    /// # Errors
    /// The failed system call's.
    pub fn open(index: u32) -> io::Result<PacketSocket> {
        let socket = Self::unbound()?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        bind(&socket, index, libc::ETH_P_ALL as u16)?;
        Ok(PacketSocket { socket })
    }

    /// Like [`PacketSocket::open`], for ARP and ICMPv6 alone; the kernel drops the rest before it wakes anybody.
    ///
    /// # Errors
    /// The failed system call's.
    pub fn open_claims(index: u32) -> io::Result<PacketSocket> {
        let socket = Self::unbound()?;
        filter_claims(&socket)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        bind(&socket, index, libc::ETH_P_ALL as u16)?;
        Ok(PacketSocket { socket })
    }

    /// A socket that sends only: nothing is queued to it.
    ///
    /// # Errors
    /// The failed system call's.
    pub fn sender(index: u32) -> io::Result<PacketSocket> {
        let socket = Self::unbound()?;
        bind(&socket, index, 0)?;
        Ok(PacketSocket { socket })
    }

    /// Protocol 0: until it is bound, nothing of another interface gets in.
    fn unbound() -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(socket(AddressFamily::Packet, SockType::Raw, flags, None)?)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// `ENETDOWN` while the interface is down, `ENXIO` when it is gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        nix::sys::socket::send(self.socket.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }

    /// The next frame, if one is there. The clocks' distance maps its stamp.
    ///
    /// # Errors
    /// `ENETDOWN` once when the interface goes down.
    pub fn receive(&self, offset: RealtimeOffset) -> io::Result<Option<Received>> {
        let mut bytes = [0; SNAP];
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        let message =
            match recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => message,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let length = message.bytes;
        let outgoing = message.address.is_some_and(|a| a.pkttype() == libc::PACKET_OUTGOING);
        let stamp = message.cmsgs()?.find_map(|m| match m {
            ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
            _ => None,
        });
        let at = stamp.map_or_else(clock::now, |real| offset.to_monotonic(real));
        Ok(Some(Received { bytes: bytes[..length.min(SNAP)].to_vec(), length, at, outgoing }))
    }

    /// Waits until a frame is there or `limit` is over; false: the limit.
    ///
    /// # Errors
    /// The failed system call's.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        wait_readable(&[self.as_fd()], limit)
    }

    /// Frames lost because the buffer was full, since the last call.
    pub fn lost(&self) -> u32 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the option fills in at most `length` bytes of the live struct that the pointer is to.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &mut length,
            )
        };
        if result == 0 { statistics.tp_drops } else { 0 }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until one of `descriptors` is readable; false: `limit` is over.
pub(crate) fn wait_readable(descriptors: &[BorrowedFd], limit: Duration) -> io::Result<bool> {
    let mut set: Vec<PollFd> = descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let milliseconds = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
    // At least 1 ms: zero would spin near the end of a limit.
    match poll(&mut set, PollTimeout::from(milliseconds.max(1))) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn bind(socket: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: every field of the struct is an integer, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a live sockaddr_ll of that length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Accepts ARP, and IPv6 whose first next header is ICMPv6 (classic BPF, bpf(4)).
fn filter_claims(socket: &OwnedFd) -> io::Result<()> {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load_half = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut program = [
        op(load_half, 0, 0, 12),
        op(equal, 3, 0, 0x0806),
        op(equal, 0, 3, 0x86dd),
        op(load_byte, 0, 0, 20),
        op(equal, 0, 1, 58),
        op(libc::BPF_RET, 0, 0, u32::MAX),
        op(libc::BPF_RET, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter and the instructions it points to outlive the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
