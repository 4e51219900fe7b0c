//! When did the kernel report it? The bench's own subscription to link events in a node's namespace, read by a
//! SCHED_FIFO thread, so that the time of the event does not depend on the system that is measured.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::{Host, clock};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `RTMGRP_LINK`.
const LINK_GROUP: u32 = 1;
/// Above the agents that are measured: the time is taken before they act on a shared CPU.
const PRIORITY: i32 = 60;

/// One change that the kernel reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// When this process read it.
    pub at: Duration,
    /// Interface index.
    pub index: u32,
    /// `IFF_LOWER_UP`: it has carrier.
    pub carrier: bool,
}

/// A running subscription.
#[derive(Debug)]
pub struct CarrierLog {
    stop: Arc<AtomicBool>,
    events: Arc<Mutex<Vec<LinkEvent>>>,
    thread: Option<JoinHandle<()>>,
}

impl CarrierLog {
    /// Subscribes in the namespace of `host`.
    pub fn start(host: &Host) -> Result<CarrierLog> {
        let socket = host.open("subscribe to link events", subscribe)?;
        let stop = Arc::new(AtomicBool::new(false));
        let events = Arc::new(Mutex::default());
        let (stopped, log) = (stop.clone(), Arc::clone(&events));
        let body = move || {
            clock::try_fifo(PRIORITY);
            while !stopped.load(Ordering::Relaxed) {
                // An error is the time limit that bounds how long a stop goes unnoticed.
                if let Ok(event) = receive(&socket) {
                    lock(&log).extend(event);
                }
            }
        };
        let thread = std::thread::Builder::new().name("bench-carrier".into()).spawn(body);
        Ok(CarrierLog { stop, events, thread: Some(thread.context("start a thread")?) })
    }

    /// The first report at `since` or later that interface `index` has (or has no) carrier.
    pub fn first(&self, index: u32, carrier: bool, since: Duration) -> Option<Duration> {
        let events = lock(&self.events);
        let first = events.iter().find(|e| e.index == index && e.carrier == carrier && e.at >= since);
        first.map(|event| event.at)
    }

    /// Forgets what was reported so far.
    pub fn forget(&self) {
        lock(&self.events).clear();
    }
}

impl Drop for CarrierLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A socket that gets link events.
pub fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
    let limit = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
    // SAFETY: the pointer is to a live timeval of that length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const limit).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Waits for one datagram of at most one link event; deleted interfaces are no events here.
pub fn receive(socket: &Socket) -> io::Result<Option<LinkEvent>> {
    let mut datagram = [0; 8192];
    let length = socket.recv(&mut &mut datagram[..], 0)?;
    let at = clock::now();
    Ok(decode(&datagram[..length]).map(|(index, flags)| LinkEvent {
        at,
        index,
        carrier: flags & libc::IFF_LOWER_UP as u32 != 0,
    }))
}

/// Index and flags of an `RTM_NEWLINK` (struct nlmsghdr, then struct ifinfomsg); nothing else is needed, so nothing else is parsed.
fn decode(message: &[u8]) -> Option<(u32, u32)> {
    let number = |at: usize| message.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    (kind == libc::RTM_NEWLINK).then_some(())?;
    Some((number(20)?, number(24)?))
}

fn lock(events: &Mutex<Vec<LinkEvent>>) -> MutexGuard<'_, Vec<LinkEvent>> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}
