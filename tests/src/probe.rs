//! The client that measures an outage: a stream of numbered UDP datagrams to an address, and the echo on the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, recvmsg,
    setsockopt, socket, sockopt,
};

use crate::clock::{self, RealtimeOffset};
use crate::error::{Context, LabError};
use crate::host::Host;

/// Returns every datagram to its sender, from the address that it was sent to, until dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on `address` of `host`; the host need not have the address yet, and may lose and regain it.
    /// With `fifo`, the thread has that SCHED_FIFO priority where permitted: then a busy machine measures the network, not the echo.
    ///
    /// # Errors
    /// What the socket says.
    pub fn start(host: &Host, address: SocketAddr, fifo: Option<i32>) -> Result<Echo, LabError> {
        let socket = host.open("open the echo's socket", || udp_socket(address))?;
        let stop = Arc::new(AtomicBool::new(false));
        let echoed = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (stop.clone(), echoed.clone());
        let body = move || {
            fifo.map(clock::try_fifo);
            echo(&socket, &stopped, &counter);
        };
        let thread = spawn("lab-echo", body)?;
        Ok(Echo { stop, echoed, thread: Some(thread) })
    }

    /// How many datagrams it has returned.
    pub fn echoed(&self) -> u64 {
        self.echoed.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A running stream; it stops when dropped.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a stream has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeResult {
    /// When each datagram was sent; its index is its number.
    pub sent: Vec<Duration>,
    /// Number and time of arrival of each reply, in the order of arrival.
    pub received: Vec<(u64, Duration)>,
}

/// A time without replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last reply before it.
    pub from: Duration,
    /// The first reply after it.
    pub to: Duration,
    /// Number of the datagram that the last reply before it answered.
    pub before: u64,
    /// Number of the datagram that the first reply after it answered.
    pub after: u64,
}

impl Gap {
    /// How long it lasted.
    pub fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Nothing more is sent.
    quiet: AtomicBool,
    /// Nothing more is received.
    stop: AtomicBool,
    result: Mutex<ProbeResult>,
}

impl Probe {
    /// Starts to send one datagram every `interval` from `host` to `target`. `fifo` as for [`Echo::start`].
    ///
    /// # Errors
    /// What the socket says.
    pub fn start(
        host: &Host,
        target: SocketAddr,
        interval: Duration,
        fifo: Option<i32>,
    ) -> Result<Probe, LabError> {
        let any: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = host.open("open the probe's socket", || udp_socket(SocketAddr::new(any, 0)))?;
        let socket = Arc::new(socket);
        let shared = Arc::new(Shared::default());
        let (s, out) = (shared.clone(), socket.clone());
        let sender = spawn("lab-probe-tx", move || {
            fifo.map(clock::try_fifo);
            send(&out, target, interval, &s);
        })?;
        // From here on a failure stops the sender by drop.
        let mut probe = Probe { shared: shared.clone(), threads: vec![sender] };
        probe.threads.push(spawn("lab-probe-rx", move || {
            fifo.map(clock::try_fifo);
            receive(&socket, &shared);
        })?);
        Ok(probe)
    }

    /// What it has seen so far.
    pub fn result(&self) -> ProbeResult {
        lock(&self.shared).clone()
    }

    /// How many it has sent so far.
    pub fn sent(&self) -> usize {
        lock(&self.shared).sent.len()
    }

    /// When the last reply arrived.
    pub fn last_reply(&self) -> Option<Duration> {
        lock(&self.shared).received.last().map(|reply| reply.1)
    }

    /// How many replies arrived at `since` or later.
    pub fn replies_since(&self, since: Duration) -> usize {
        lock(&self.shared).received.iter().rev().take_while(|reply| reply.1 >= since).count()
    }

    /// Waits for `count` replies that arrived at `since` or later.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`.
    pub fn wait_for_replies(&self, count: usize, since: Duration, limit: Duration) -> Result<(), LabError> {
        crate::host::wait_until(&format!("{count} replies to the probe"), limit, || {
            self.replies_since(since) >= count
        })
    }

    /// Sends nothing more, waits up to `limit` for the replies that are under way, and returns what it has seen.
    pub fn drain(mut self, limit: Duration) -> ProbeResult {
        self.shared.quiet.store(true, Ordering::Relaxed);
        if !self.threads.is_empty() {
            let _ = self.threads.remove(0).join(); // the sender; a panic has been printed already
        }
        // What is still missing then is lost.
        let _ = crate::host::wait_until("the last replies", limit, || lock(&self.shared).lost() == 0);
        self.stop()
    }

    /// Stops and returns what it has seen; replies that are under way are lost.
    pub fn stop(mut self) -> ProbeResult {
        self.join();
        std::mem::take(&mut *lock(&self.shared))
    }

    fn join(&mut self) {
        self.shared.quiet.store(true, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.join();
    }
}

impl ProbeResult {
    /// The longest time between two successive replies that overlaps `from..to`.
    pub fn longest_gap(&self, from: Duration, to: Duration) -> Option<Gap> {
        self.gaps().filter(|gap| gap.to >= from && gap.from <= to).max_by_key(Gap::length)
    }

    /// The longest time between two successive replies that both arrived in `from..to`.
    pub fn longest_gap_within(&self, from: Duration, to: Duration) -> Option<Gap> {
        self.gaps().filter(|gap| gap.from >= from && gap.to <= to).max_by_key(Gap::length)
    }

    /// How long the client itself did not send at the two ends of `gap`: after the last datagram that was answered before it, or
    /// before the first that was answered after it, whichever is longer. A gap owes so much to the client; a pause in its middle changes nothing.
    pub fn pause_at_ends(&self, gap: &Gap) -> Duration {
        let sent = |number: u64| self.sent.get(usize::try_from(number).ok()?).copied();
        let pause = |first: Option<u64>| {
            let first = first?;
            Some(sent(first + 1)?.saturating_sub(sent(first)?))
        };
        let ends = [pause(Some(gap.before)), pause(gap.after.checked_sub(1))];
        ends.into_iter().flatten().max().unwrap_or_default()
    }

    /// Datagrams that were sent and not answered.
    pub fn lost(&self) -> usize {
        self.sent.len().saturating_sub(self.received.len())
    }

    fn gaps(&self) -> impl Iterator<Item = Gap> {
        self.received.windows(2).map(|pair| {
            let ((before, from), (after, to)) = (pair[0], pair[1]);
            Gap { from, to, before, after }
        })
    }
}

/// A UDP socket that may be bound to an address which the host does not have.
fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    free_bind(&socket, address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    let socket = UdpSocket::from(socket);
    // Bounds how long a stop goes unnoticed.
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Allows to bind an address that is not there yet.
pub(crate) fn free_bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_FREEBIND),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
    };
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to a live integer of that length.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn echo(socket: &UdpSocket, stop: &AtomicBool, echoed: &AtomicU64) {
    let mut datagram = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
        // Fails while the address is away or has no route; the client counts it as lost.
        if socket.send_to(&datagram[..length], from).is_ok() {
            echoed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn send(socket: &UdpSocket, target: SocketAddr, interval: Duration, shared: &Shared) {
    let mut next = clock::now();
    let mut number: u64 = 0;
    while !shared.quiet.load(Ordering::Relaxed) {
        clock::sleep_until(next);
        let at = clock::now();
        // Fails while there is no route; counted as sent and lost.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        lock(shared).sent.push(at);
        number += 1;
        // After a stall the stream goes on at its pace; it doesn't catch up.
        next = (next + interval).max(at);
    }
}

fn receive(socket: &UdpSocket, shared: &Shared) {
    if setsockopt(socket, sockopt::ReceiveTimestampns, &true).is_err() {
        // Then arrivals are stamped by this thread.
    }
    let mut offset = RealtimeOffset::sample();
    while !shared.stop.load(Ordering::Relaxed) {
        match receive_one(socket, offset) {
            Ok(Some(reply)) => lock(shared).received.push(reply),
            Ok(None) => {}
            Err(_) => offset = RealtimeOffset::sample(), // the read's time limit
        }
    }
}

fn receive_one(socket: &UdpSocket, offset: RealtimeOffset) -> io::Result<Option<(u64, Duration)>> {
    let mut datagram = [0; 64];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [io::IoSliceMut::new(&mut datagram)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let stamp = message.cmsgs()?.find_map(|m| match m {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    let at = stamp.map_or_else(clock::now, |real| offset.to_monotonic(real));
    let number = datagram.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    Ok(number.map(|number| (number, at)))
}

fn lock(shared: &Shared) -> MutexGuard<'_, ProbeResult> {
    shared.result.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LabError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).context(|| format!("start thread {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_the_clients_own_part_in_them() {
        let ms = Duration::from_millis;
        // Number 3 is sent late and lost with 4; 5 is the first that is answered again.
        let sent = [0, 1, 2, 8, 9, 10, 11].map(ms).to_vec();
        let received =
            [(0, 0), (1, 1), (2, 2), (5, 10), (6, 11)].map(|(number, at)| (number, ms(at))).to_vec();
        let result = ProbeResult { sent, received };
        let gap = Gap { from: ms(2), to: ms(10), before: 2, after: 5 };
        assert_eq!(result.longest_gap(ms(3), ms(4)), Some(gap));
        assert_eq!(result.longest_gap_within(ms(0), ms(5)).map(|gap| gap.length()), Some(ms(1)));
        assert_eq!(result.pause_at_ends(&gap), ms(6));
        assert_eq!(result.lost(), 2);
    }
}
