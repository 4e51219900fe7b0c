//! The client that must not notice: a bulk TCP transfer from a server on the host, checked byte by byte.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket,
    sockopt,
};

use crate::clock;
use crate::error::LabError;
use crate::host::Host;
use crate::probe::{free_bind, spawn};

/// Period of the pattern that is sent; prime, so that no lost or doubled block of a round size goes unnoticed.
const PERIOD: usize = 65_521;

/// How long a blocked read or write lasts at most before the stop flag is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Streams the pattern to everyone who connects, until dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    retransmissions: Arc<Mutex<Vec<u32>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address` of `host`, which need not have the address yet.
    ///
    /// # Errors
    /// What the socket says.
    pub fn start(host: &Host, address: SocketAddr) -> Result<Server, LabError> {
        let listener = host.open("listen", || listener(address))?;
        let stop = Arc::new(AtomicBool::new(false));
        let retransmissions = Arc::new(Mutex::default());
        let accept = Accept { listener, stop: stop.clone(), retransmissions: Arc::clone(&retransmissions) };
        let thread = spawn("lab-tcp-server", move || accept.run())?;
        Ok(Server { stop, retransmissions, thread: Some(thread) })
    }

    /// `tcpi_total_retrans` of each connection so far, in the order of arrival.
    pub fn retransmissions(&self) -> Vec<u32> {
        lock(&self.retransmissions).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A running transfer; it stops when dropped.
#[derive(Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a transfer has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferResult {
    /// Bytes received.
    pub bytes: u64,
    /// Every byte was the one that was sent.
    pub intact: bool,
    /// Why the connection ended before it was stopped; `ConnectionReset` for a reset.
    pub ended: Option<ErrorKind>,
    /// The longest wait for data. What is in the receive buffer hides as much: a limited transfer keeps it to about 2 ms.
    pub longest_stall: Duration,
}

impl TransferResult {
    /// The peer sent a reset.
    pub fn reset(&self) -> bool {
        self.ended == Some(ErrorKind::ConnectionReset)
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    result: Mutex<TransferResult>,
}

impl Transfer {
    /// Connects from `host` to a [`Server`] at `server` and reads until stopped. With `limit`, not faster than so many bytes a second.
    ///
    /// # Errors
    /// When the connection can't be made.
    pub fn start(host: &Host, server: SocketAddr, limit: Option<u64>) -> Result<Transfer, LabError> {
        let stream = host.open(&format!("connect to {server}"), || {
            let stream = connected(server, limit)?;
            stream.set_read_timeout(Some(LOOK))?;
            Ok(stream)
        })?;
        let shared = Arc::new(Shared::default());
        lock(&shared.result).intact = true;
        let state = shared.clone();
        let thread = spawn("lab-tcp-client", move || read(stream, limit, &state))?;
        Ok(Transfer { shared, thread: Some(thread) })
    }

    /// What it has seen so far.
    pub fn result(&self) -> TransferResult {
        lock(&self.shared.result).clone()
    }

    /// Waits until `bytes` more have arrived than now.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`.
    pub fn wait_for(&self, bytes: u64, limit: Duration) -> Result<(), LabError> {
        let goal = self.result().bytes + bytes;
        crate::host::wait_until(&format!("{bytes} bytes more"), limit, || self.result().bytes >= goal)
    }

    /// Stops and returns what it has seen.
    pub fn stop(mut self) -> TransferResult {
        self.join();
        self.result()
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.join();
    }
}

struct Accept {
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    retransmissions: Arc<Mutex<Vec<u32>>>,
}

impl Accept {
    fn run(self) {
        let mut connections = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((stream, _)) = self.listener.accept() else {
                std::thread::sleep(Duration::from_millis(1)); // nobody there: the listener doesn't block
                continue;
            };
            let number = {
                let mut all = lock(&self.retransmissions);
                all.push(0);
                all.len() - 1
            };
            let (stop, retransmissions) = (self.stop.clone(), self.retransmissions.clone());
            let body = move || write(stream, &stop, |count| lock(&retransmissions)[number] = count);
            connections.extend(spawn("lab-tcp-connection", body));
        }
        for connection in connections {
            // A panic of the thread has been printed already.
            let _ = connection.join();
        }
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    free_bind(&socket, address)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(16)?)?;
    Ok(TcpListener::from(socket))
}

/// A limited reader has a small buffer, so that the limit reaches the sender.
fn connected(server: SocketAddr, limit: Option<u64>) -> io::Result<TcpStream> {
    let Some(limit) = limit else { return TcpStream::connect_timeout(&server, Duration::from_secs(5)) };
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let buffer = usize::try_from(limit / 500).unwrap_or(usize::MAX).clamp(16 << 10, 4 << 20);
    setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
    Ok(TcpStream::from(socket))
}

/// Two periods of the pattern, so that one can start anywhere in the first.
fn pattern() -> Vec<u8> {
    (0..2 * PERIOD).map(|at| (at % PERIOD).wrapping_mul(167).wrapping_add(at % PERIOD / 251) as u8).collect()
}

fn write(mut stream: TcpStream, stop: &AtomicBool, mut report: impl FnMut(u32)) {
    let pattern = pattern();
    let mut at = 0;
    // Accepted sockets of a non-blocking listener block; the time limit serves the stop flag.
    if stream.set_write_timeout(Some(LOOK)).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&pattern[at..at + PERIOD]) {
            Ok(written) => at = (at + written) % PERIOD,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
        total_retransmissions(&stream).into_iter().for_each(&mut report);
    }
}

fn read(mut stream: TcpStream, limit: Option<u64>, shared: &Shared) {
    let pattern = pattern();
    let mut block = vec![0; PERIOD];
    let (mut at, mut total) = (0, 0u64);
    let started = clock::now();
    let mut ready = started; // since when the reader has been waiting
    while !shared.stop.load(Ordering::Relaxed) {
        match stream.read(&mut block) {
            Ok(0) => {
                lock(&shared.result).ended = Some(ErrorKind::UnexpectedEof);
                return;
            }
            Ok(read) => {
                total += read as u64;
                let mut result = lock(&shared.result);
                result.bytes = total;
                result.intact &= block[..read] == pattern[at..at + read];
                result.longest_stall = result.longest_stall.max(clock::now() - ready);
                drop(result);
                at = (at + read) % PERIOD;
                if let Some(limit) = limit {
                    clock::sleep_until(started + Duration::from_secs_f64(total as f64 / limit.max(1) as f64));
                }
                ready = clock::now();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                lock(&shared.result).ended = Some(error.kind());
                return;
            }
        }
    }
    let mut result = lock(&shared.result);
    result.longest_stall = result.longest_stall.max(clock::now() - ready);
}

/// `tcpi_total_retrans` (tcp(7), TCP_INFO).
fn total_retransmissions(stream: &TcpStream) -> Option<u32> {
    // SAFETY: every field of the struct is an integer, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the option fills in at most `length` bytes of the live struct that the pointer is to.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    };
    (result == 0).then_some(info.tcpi_total_retrans)
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
