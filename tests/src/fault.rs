//! Faults that are more than a call on a [`Port`]: one direction of a cable that carries nothing while the carrier
//! stays, and a station that claims somebody else's address.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::RealtimeOffset;
use crate::error::{Context, LabError};
use crate::packet::PacketSocket;
use crate::topology::Port;
use crate::wire::{self, Frame, Kind};

/// A direction of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the host sends is lost. A [`crate::Watcher`] on the port still sees it, as it sits before the loss.
    FromHost,
    /// What is sent to the host is lost.
    ToHost,
}

/// One direction of a port drops everything until this is dropped.
#[derive(Debug)]
pub struct Blackhole {
    _link: OwnedFd,
}

/// An XDP program of [`Port::occupy_xdp`] that stays until this is dropped.
#[derive(Debug)]
pub struct Occupant {
    _link: OwnedFd,
}

impl Port {
    /// Loses everything in one direction, with carrier: a program of two instructions at the switch's end, held by this guard alone.
    ///
    /// # Errors
    /// When the kernel has no TCX (before Linux 6.6), or what it says.
    pub fn lose(&self, direction: Direction) -> Result<Blackhole, LabError> {
        let index = self.switch_index();
        let what = format!("drop frames at {} ({direction:?})", self.switch_end());
        let link = self.switches().open(&what, || bpf::attach_drop(index, direction))?;
        Ok(Blackhole { _link: link })
    }

    /// Starts a station on this port that answers ARP and neighbour solicitations for `address` with the port's hardware address.
    ///
    /// # Errors
    /// What the sockets say.
    pub fn impersonate(&self, address: IpAddr) -> Result<Impostor, LabError> {
        let index = self.index();
        let socket = self.host().open("open a packet socket", || PacketSocket::open(index))?;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let station =
            Station { socket, mac: self.mac(), address, stop: stop.clone(), answered: answered.clone() };
        let thread = std::thread::Builder::new().name("lab-impostor".into()).spawn(move || station.run());
        let thread = thread.context(|| "start the impostor".into())?;
        Ok(Impostor { stop, answered, thread: Some(thread) })
    }

    /// Puts somebody else's XDP program on this port, one that lets everything pass, held by the guard alone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn occupy_xdp(&self) -> Result<Occupant, LabError> {
        let index = self.index();
        let what = format!("put an XDP program on {}", self.interface());
        let link = self.host().open(&what, || bpf::attach_pass(index))?;
        Ok(Occupant { _link: link })
    }

    /// Sends one frame by this port, as it is.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send_frame(&self, frame: &[u8]) -> Result<(), LabError> {
        let index = self.index();
        self.host().open("send a frame", || PacketSocket::sender(index)?.send(frame))
    }
}

/// A running impostor of [`Port::impersonate`]; it stops when dropped.
#[derive(Debug)]
pub struct Impostor {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    /// How many questions it has answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Station {
    socket: PacketSocket,
    mac: wire::Mac,
    address: IpAddr,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Station {
    fn run(self) {
        let offset = RealtimeOffset::sample();
        while !self.stop.load(Ordering::Relaxed) {
            let ready = self.socket.wait(Duration::from_millis(20)).unwrap_or(false);
            while ready && let Ok(Some(received)) = self.socket.receive(offset) {
                let Some((_, source, kind)) = wire::decode(&received.bytes) else { continue };
                let answer = self.answer_to(source, &kind);
                // A port that is down just now loses the answer, as a real one would.
                if !received.outgoing && answer.is_some_and(|frame| self.socket.send(&frame).is_ok()) {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn answer_to(&self, asker_mac: wire::Mac, question: &Kind) -> Option<Vec<u8>> {
        match (*question, self.address) {
            (Kind::Arp { reply: false, sender, target, .. }, IpAddr::V4(address)) if target == address => {
                Some(wire::arp_reply(self.mac, address, asker_mac, sender))
            }
            (Kind::Solicitation { source, target }, IpAddr::V6(address)) if target == address => {
                Some(wire::neighbour_advertisement(self.mac, address, asker_mac, source))
            }
            _ => None,
        }
    }
}

impl Frame {
    /// True for an ARP or neighbour discovery question for `address`.
    pub fn asks_for(&self, address: IpAddr) -> bool {
        match self.kind {
            Kind::Arp { reply: false, sender, target, .. } => {
                sender != target && IpAddr::from(target) == address
            }
            Kind::Solicitation { target, .. } => IpAddr::from(target) == address,
            _ => false,
        }
    }
}

/// The few calls of bpf(2) that the lab needs.
mod bpf {
    use super::*;

    const PROG_LOAD: libc::c_int = 5;
    const LINK_CREATE: libc::c_int = 28;
    const SCHED_CLS: u32 = 3;
    const XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    const TCX_INGRESS: u32 = 46;
    const TCX_EGRESS: u32 = 47;

    /// The start of `union bpf_attr` for BPF_PROG_LOAD (include/uapi/linux/bpf.h), up to `expected_attach_type`.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 4],
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }

    /// The start of `union bpf_attr` for BPF_LINK_CREATE, with the empty tcx part.
    #[repr(C)]
    #[derive(Default)]
    struct Link {
        program: u32,
        interface: u32,
        attach_type: u32,
        flags: u32,
        relative: [u64; 2],
    }

    pub(super) fn attach_drop(interface: u32, direction: Direction) -> io::Result<OwnedFd> {
        let attach_type = match direction {
            Direction::FromHost => TCX_INGRESS,
            Direction::ToHost => TCX_EGRESS,
        };
        // TCX_DROP
        attach(interface, SCHED_CLS, attach_type, 2)
    }

    pub(super) fn attach_pass(interface: u32) -> io::Result<OwnedFd> {
        // XDP_PASS
        attach(interface, XDP, ATTACH_XDP, 2)
    }

    /// Attaches a program that returns `verdict` for every frame.
    fn attach(interface: u32, kind: u32, attach_type: u32, verdict: u32) -> io::Result<OwnedFd> {
        // r0 = verdict; exit
        let instructions: [u64; 2] = [u64::from(verdict) << 32 | 0xb7, 0x95];
        let license = c"GPL";
        let load = Load {
            kind,
            instruction_count: 2,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
            attach_type,
            name: *b"lab_verdict\0\0\0\0\0",
            ..Load::default()
        };
        let program = call(PROG_LOAD, &load)?;
        let program = u32::try_from(program.as_raw_fd()).map_err(io::Error::other).map(|fd| (fd, program))?;
        let link = Link { program: program.0, interface, attach_type, ..Link::default() };
        call(LINK_CREATE, &link)
    }

    fn call<T>(command: libc::c_int, attribute: &T) -> io::Result<OwnedFd> {
        // SAFETY: `attribute` is the start of the union for this command, of the length given; the kernel takes the rest as
        // zero. What it points to outlives the call, which copies it.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
        let fd = i32::try_from(result).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both commands return a descriptor that is ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
