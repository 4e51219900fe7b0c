//! Streams of frames that nobody asked for: storms of foreign frames, the same frame again and again, and frames that an
//! interface counts as receive errors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BufMut;

use crate::capture::PROBE_ETHERTYPE;
use crate::clock;
use crate::device::{self, VXLAN_PORT};
use crate::error::LabError;
use crate::host::Host;
use crate::packet::PacketSocket;
use crate::port::Port;
use crate::probe::spawn;
use crate::wire::{self, Mac};

/// What a storm is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Frames of the probes' EtherType with random bytes of random length, to this station.
    Rubbish {
        /// Whom to.
        to: Mac,
    },
    /// Broadcast ARP requests for this address (IPv4), which change no receiver's table.
    Arp {
        /// Asked for.
        target: Ipv4Addr,
    },
    /// UDP datagrams to the discard port of this address, from the address given.
    Udp {
        /// Hardware address of the receiver.
        to: Mac,
        /// Sender.
        source: Ipv4Addr,
        /// Receiver.
        destination: Ipv4Addr,
    },
    /// These frames as they are, in turn.
    Frames(Vec<Vec<u8>>),
}

/// A running stream of frames; it stops when dropped.
#[derive(Debug)]
pub struct Storm {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// A running stream of frames that an interface counts as receive errors; it stops when dropped.
pub type Spoiler = Storm;

impl Port {
    /// Sends `burst` foreign frames every `interval` by this port.
    ///
    /// # Errors
    /// What the socket says.
    pub fn storm(&self, what: Foreign, burst: usize, interval: Duration) -> Result<Storm, LabError> {
        let (index, mac) = (self.index(), self.mac());
        let socket = self.host().open("open a packet socket", || PacketSocket::sender(index))?;
        let mut source = Source { what, mac, random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(index), turn: 0 };
        Storm::start(burst, interval, move || socket.send(&source.next()))
    }

    /// Sends `burst` frames every `interval` to this port that its interface counts as receive errors: inside packets that say they met
    /// congestion, which those inside say they can't have (RFC 6040, 4.2). Only for [`crate::Device::Vxlan`].
    ///
    /// # Errors
    /// What the socket says.
    pub fn spoil(&self, burst: usize, interval: Duration) -> Result<Spoiler, LabError> {
        let (host, switch) = device::underlay(self);
        let socket = self.switches().open("open the spoiler's socket", || {
            let socket = UdpSocket::bind((switch.addr(), 0))?;
            congestion_experienced(&socket)?;
            Ok(socket)
        })?;
        let to = SocketAddr::new(IpAddr::V4(host.addr()), VXLAN_PORT);
        let packet = spoiled(self.index(), self.mac());
        Storm::start(burst, interval, move || socket.send_to(&packet, to).map(drop))
    }
}

impl Host {
    /// Sends `burst` datagrams of `length` bytes to `target` every `interval`, as a client does whom nobody answers.
    ///
    /// # Errors
    /// What the socket says.
    pub fn stream(
        &self,
        target: SocketAddr,
        length: usize,
        burst: usize,
        interval: Duration,
    ) -> Result<Storm, LabError> {
        let any: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = self.open("open the stream's socket", || UdpSocket::bind((any, 0)))?;
        let payload = vec![0; length];
        Storm::start(burst, interval, move || socket.send_to(&payload, target).map(drop))
    }
}

impl Storm {
    /// How many frames have been sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn start(
        burst: usize,
        interval: Duration,
        mut send: impl FnMut() -> io::Result<()> + Send + 'static,
    ) -> Result<Storm, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (stop.clone(), sent.clone());
        let body = move || {
            while !stopped.load(Ordering::Relaxed) {
                // A port that is down or full just now loses the frame, as a real one would.
                let count = (0..burst).filter(|_| send().is_ok()).count();
                counter.fetch_add(count as u64, Ordering::Relaxed);
                clock::sleep_until(clock::now() + interval);
            }
        };
        Ok(Storm { stop, sent, thread: Some(spawn("lab-storm", body)?) })
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Makes one frame after the other, the same ones in every run.
struct Source {
    what: Foreign,
    mac: Mac,
    random: u64,
    turn: usize,
}

impl Source {
    fn next(&mut self) -> Vec<u8> {
        self.turn = self.turn.wrapping_add(1);
        match self.what.clone() {
            Foreign::Rubbish { to } => self.rubbish(to),
            Foreign::Arp { target } => wire::arp_request(self.mac, Ipv4Addr::UNSPECIFIED, target),
            Foreign::Udp { to, source, destination } => wire::udp(self.mac, to, source, destination),
            Foreign::Frames(frames) if frames.is_empty() => Vec::new(),
            Foreign::Frames(mut frames) => frames.swap_remove(self.turn % frames.len()),
        }
    }

    fn rubbish(&mut self, to: Mac) -> Vec<u8> {
        let length = 14 + usize::try_from(self.random() % 120).unwrap_or_default();
        let mut frame = Vec::with_capacity(length + 8);
        wire::ethernet(&mut frame, to, self.mac, PROBE_ETHERTYPE);
        while frame.len() < length {
            frame.put_u64(self.random());
        }
        frame.truncate(length);
        frame
    }

    /// Xorshift (Marsaglia, 2003).
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A VXLAN packet (RFC 7348, 5) with an IPv4 packet inside whose sender does not know of congestion marks.
fn spoiled(id: u32, to: Mac) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.put_u32(0x0800_0000);
    packet.put_u32(id << 8);
    let inside = Ipv4Addr::new(192, 0, 2, 1);
    packet.extend(wire::udp(Mac([2, 0xff, 0, 0, 0, 1]), to, inside, inside));
    packet
}

/// Marks what the socket sends as having met congestion (RFC 3168).
fn congestion_experienced(socket: &UdpSocket) -> io::Result<()> {
    let mark: libc::c_int = 3;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to a live integer of that length.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS, (&raw const mark).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
