//! Eyes on the wire: a thread that reads chosen switch ports and remembers who claimed which address when, which port
//! an address's packets left by, and what happened to TCP.
//!
//! ARP and neighbour discovery are kept frame by frame, and so are TCP resets. UDP and TCP are summed up per address and
//! port, unless [`Watcher::everything`] was asked for: a bulk transfer would fill the memory.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::{self, RealtimeOffset};
use crate::error::{Context, LabError};
use crate::packet::{PacketSocket, Received, wait_readable};
use crate::port::Port;
use crate::wire::{self, Frame, Kind, Mac, TCP_RST};

/// Reads the wire until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// One statement on the wire that an IP address is at a hardware address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When.
    pub at: Duration,
    /// The switch port that it came in by.
    pub switch_port: Arc<str>,
    /// The hardware address stated.
    pub mac: Mac,
    /// How it was said.
    pub kind: AnswerKind,
}

/// The ways to state where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// Reply to an ARP request.
    ArpReply,
    /// Gratuitous ARP in request form: sender and target address are the same.
    GratuitousRequest,
    /// Gratuitous ARP in reply form.
    GratuitousReply,
    /// An ordinary ARP request that was sent *from* the address.
    ArpRequest,
    /// Neighbour advertisement that was asked for.
    Advertisement,
    /// Neighbour advertisement that nobody asked for.
    UnsolicitedAdvertisement,
}

impl AnswerKind {
    /// Said without being asked, to tell everybody.
    pub fn is_announcement(self) -> bool {
        matches!(self, Self::GratuitousRequest | Self::GratuitousReply | Self::UnsolicitedAdvertisement)
    }
}

/// What left one switch port from one IP address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames (before segmentation).
    pub frames: u64,
    /// Time of the first.
    pub first: Duration,
    /// Time of the last.
    pub last: Duration,
}

/// TCP trouble of one direction of one connection, over all ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpTrouble {
    /// Segments with data that had been sent before.
    pub retransmissions: u64,
    /// Resets.
    pub resets: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    lost: AtomicU32,
    seen: Mutex<Seen>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    everything: bool,
    frames: Vec<Frame>,
    sent: HashMap<(IpAddr, Arc<str>), Sent>,
    tcp: HashMap<(SocketAddr, SocketAddr), (u32, TcpTrouble)>,
}

impl Watcher {
    /// Watches the switch ends of `ports`; keeps ARP, neighbour discovery and TCP resets.
    ///
    /// # Errors
    /// When a socket or thread can't be made.
    pub fn start<'a>(ports: impl IntoIterator<Item = &'a Port>) -> Result<Watcher, LabError> {
        Watcher::launch(ports, false, PacketSocket::open)
    }

    /// Watches ARP and ICMPv6 alone: costs nothing while a busy stream goes by, and knows nothing of it.
    ///
    /// # Errors
    /// As [`Watcher::start`].
    pub fn claims<'a>(ports: impl IntoIterator<Item = &'a Port>) -> Result<Watcher, LabError> {
        Watcher::launch(ports, false, PacketSocket::open_claims)
    }

    /// Like [`Watcher::start`], and keeps UDP and TCP frames too: for short runs.
    ///
    /// # Errors
    /// As [`Watcher::start`].
    pub fn everything<'a>(ports: impl IntoIterator<Item = &'a Port>) -> Result<Watcher, LabError> {
        Watcher::launch(ports, true, PacketSocket::open)
    }

    /// The frames kept so far, oldest first.
    pub fn frames(&self) -> Vec<Frame> {
        let mut frames = self.seen().frames.clone();
        frames.sort_by_key(|frame| frame.at);
        frames
    }

    /// Every statement that a host made about `address`, oldest first.
    pub fn answers(&self, address: IpAddr) -> Vec<Answer> {
        self.frames().iter().filter_map(|frame| answer(frame, address)).collect()
    }

    /// What `frame`, if a host sent it, states about `address`.
    pub fn answer(frame: &Frame, address: IpAddr) -> Option<Answer> {
        answer(frame, address)
    }

    /// The announcements of `address` that were sent at `since` or later, oldest first.
    pub fn announcements(&self, address: IpAddr, since: Duration) -> Vec<Answer> {
        let mut answers = self.answers(address);
        answers.retain(|answer| answer.kind.is_announcement() && answer.at >= since);
        answers
    }

    /// What was sent from `address` by each switch port: the way that replies take.
    pub fn sent_from(&self, address: IpAddr) -> HashMap<Arc<str>, Sent> {
        let seen = self.seen();
        let of_address = seen.sent.iter().filter(|((source, _), _)| *source == address);
        of_address.map(|((_, port), sent)| (port.clone(), *sent)).collect()
    }

    /// Retransmissions and resets of all connections with `address` as the sender, added up.
    pub fn tcp_trouble(&self, address: IpAddr) -> TcpTrouble {
        let seen = self.seen();
        let of_address = seen.tcp.iter().filter(|((source, _), _)| source.ip() == address);
        of_address.fold(TcpTrouble::default(), |sum, (_, (_, trouble))| TcpTrouble {
            retransmissions: sum.retransmissions + trouble.retransmissions,
            resets: sum.resets + trouble.resets,
        })
    }

    /// The first kept frame that `wanted` accepts, waiting for it if need be.
    ///
    /// # Errors
    /// [`LabError::Timeout`] with `what` after `limit`.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Frame) -> bool,
    ) -> Result<Frame, LabError> {
        let end = clock::now() + limit;
        let mut seen = self.seen();
        let mut looked_at = 0;
        loop {
            if let Some(frame) = seen.frames[looked_at..].iter().find(|frame| wanted(frame)) {
                return Ok(frame.clone());
            }
            looked_at = seen.frames.len();
            let now = clock::now();
            if now >= end {
                return Err(LabError::Timeout { what: what.to_owned(), limit });
            }
            let waited =
                self.shared.news.wait_timeout(seen, end - now).unwrap_or_else(PoisonError::into_inner);
            seen = waited.0;
            looked_at = looked_at.min(seen.frames.len()); // forgotten meanwhile
        }
    }

    /// The first announcement of `address` at `since` or later, waiting for it if need be.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`.
    pub fn wait_for_announcement(
        &self,
        address: IpAddr,
        since: Duration,
        limit: Duration,
    ) -> Result<Answer, LabError> {
        let announces = |frame: &Frame| {
            frame.at >= since && answer(frame, address).is_some_and(|answer| answer.kind.is_announcement())
        };
        let what = format!("an announcement of {address}");
        let frame = self.wait_for(&what, limit, announces)?;
        answer(&frame, address).ok_or(LabError::Timeout { what, limit })
    }

    /// Forgets everything seen so far.
    pub fn forget(&self) {
        let mut seen = self.seen();
        *seen = Seen { everything: seen.everything, ..Seen::default() };
    }

    /// Frames that the kernel could not keep for the watcher; what it reports is complete only when this is 0.
    pub fn lost(&self) -> u32 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    fn launch<'a>(
        ports: impl IntoIterator<Item = &'a Port>,
        everything: bool,
        open: fn(u32) -> io::Result<PacketSocket>,
    ) -> Result<Watcher, LabError> {
        let mut sockets = Vec::new();
        for port in ports {
            let index = port.switch_index();
            let socket = port.switches().open("open a packet socket", || open(index))?;
            sockets.push((port.switch_end().clone(), socket));
        }
        let shared = Arc::new(Shared::default());
        lock(&shared).everything = everything;
        let reader = Reader { shared: shared.clone(), sockets };
        let thread = std::thread::Builder::new().name("lab-watcher".into()).spawn(move || reader.run());
        Ok(Watcher { shared, thread: Some(thread.context(|| "start the watcher".into())?) })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.shared)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The watcher's thread.
struct Reader {
    shared: Arc<Shared>,
    sockets: Vec<(Arc<str>, PacketSocket)>,
}

impl Reader {
    fn run(self) {
        let descriptors: Vec<_> = self.sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        while !self.shared.stop.load(Ordering::Relaxed) {
            // The limit bounds how long a stop goes unnoticed.
            if wait_readable(&descriptors, Duration::from_millis(20)).unwrap_or(false) {
                self.read_all();
            }
        }
    }

    fn read_all(&self) {
        let offset = RealtimeOffset::sample();
        let mut news = Vec::new();
        for (port, socket) in &self.sockets {
            // A batch at a time, so that one busy port doesn't hide the others.
            for _ in 0..256 {
                match socket.receive(offset) {
                    Ok(Some(received)) => news.extend(frame(port, received)),
                    Ok(None) => break,
                    Err(_) => break, // ENETDOWN, once, when the port is cut
                }
            }
            self.shared.lost.fetch_add(socket.lost(), Ordering::Relaxed);
        }
        news.sort_by_key(|frame| frame.at);
        let mut seen = lock(&self.shared);
        news.into_iter().for_each(|frame| seen.add(frame));
        self.shared.news.notify_all();
    }
}

impl Seen {
    fn add(&mut self, frame: Frame) {
        let bulk = match frame.kind {
            Kind::Udp { source, .. } => {
                self.count_sent(&frame, source.ip());
                true
            }
            Kind::Tcp { source, destination, sequence, flags, payload } => {
                self.count_sent(&frame, source.ip());
                if frame.from_host {
                    self.track_tcp((source, destination), sequence, flags, payload);
                }
                flags & TCP_RST == 0
            }
            _ => false,
        };
        if self.everything || !bulk {
            self.frames.push(frame);
        }
    }

    fn count_sent(&mut self, frame: &Frame, source: IpAddr) {
        if frame.from_host {
            let sent = self.sent.entry((source, frame.port.clone())).or_default();
            if sent.frames == 0 {
                sent.first = frame.at;
            }
            sent.frames += 1;
            sent.last = frame.at;
        }
    }

    fn track_tcp(&mut self, connection: (SocketAddr, SocketAddr), sequence: u32, flags: u8, payload: u32) {
        let (next, trouble) = self.tcp.entry(connection).or_insert((sequence, TcpTrouble::default()));
        if flags & TCP_RST != 0 {
            trouble.resets += 1;
        }
        // Serial number arithmetic (RFC 1982): a distance of 2^31 or more is behind.
        let behind = sequence.wrapping_sub(*next) >= 1 << 31;
        if payload > 0 && behind {
            trouble.retransmissions += 1;
        }
        let end = sequence.wrapping_add(payload);
        if end.wrapping_sub(*next) < 1 << 31 {
            *next = end;
        }
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Seen> {
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn frame(port: &Arc<str>, received: Received) -> Option<Frame> {
    let (destination, source, kind) = wire::decode(&received.bytes)?;
    Some(Frame {
        at: received.at,
        port: port.clone(),
        from_host: !received.outgoing,
        source,
        destination,
        length: received.length,
        kind,
    })
}

/// What `frame`, sent by a host, states about `address`.
pub(crate) fn answer(frame: &Frame, address: IpAddr) -> Option<Answer> {
    if !frame.from_host {
        return None;
    }
    let (mac, kind) = match frame.kind {
        Kind::Arp { reply, sender_mac, sender, target, .. } if IpAddr::from(sender) == address => {
            let kind = match (reply, sender == target) {
                (true, true) => AnswerKind::GratuitousReply,
                (false, true) => AnswerKind::GratuitousRequest,
                (true, false) => AnswerKind::ArpReply,
                (false, false) => AnswerKind::ArpRequest,
            };
            (sender_mac, kind)
        }
        Kind::Advertisement { target, mac, solicited, .. } if IpAddr::from(target) == address => {
            let kind =
                if solicited { AnswerKind::Advertisement } else { AnswerKind::UnsolicitedAdvertisement };
            (mac, kind)
        }
        _ => return None,
    };
    Some(Answer { at: frame.at, switch_port: frame.port.clone(), mac, kind })
}
