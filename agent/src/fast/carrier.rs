//! Reads the carrier of every ordinary NIC each millisecond, on a thread of its own.
//!
//! The kernel holds the event of an ordinary NIC for up to a second (`linkwatch_urgent_event`, net/core/link_watch.c);
//! the attribute tells at once. It holds no event of a device that lies on another one (VLAN, macvlan, veth: their `iflink` is
//! another interface); those are only read now and then, for a wake each millisecond is the dearest thing that an idle
//! agent does. The read may have to wait for the kernel's RTNL lock, so this thread must not be SCHED_FIFO: it
//! would keep the holder from running. It decides nothing: it tells core each change.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use baton_core::IfIndex;
use tokio::sync::mpsc::UnboundedSender;

/// Time between reads of ordinary NICs.
const INTERVAL: Duration = Duration::from_millis(1);
/// Time between reads of the others, and between looks at what is to be read.
const SELDOM: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Shared {
    ports: Mutex<Vec<(IfIndex, String)>>,
    generation: AtomicU64,
    /// Read all, now.
    look: AtomicBool,
    stop: AtomicBool,
}

/// The thread; it ends when this is dropped.
pub struct CarrierReader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl CarrierReader {
    /// Starts the thread; changes go to `changes`, which it never fills faster than ports change.
    pub fn start(changes: UnboundedSender<(IfIndex, bool)>) -> io::Result<CarrierReader> {
        let shared = Arc::new(Shared::default());
        let mine = shared.clone();
        let thread = thread::Builder::new().name("carrier".into()).spawn(move || read(&mine, &changes))?;
        Ok(CarrierReader { shared, thread: Some(thread) })
    }

    /// Reads these from now on.
    pub fn watch(&self, ports: Vec<(IfIndex, String)>) {
        *self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner) = ports;
        self.shared.generation.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Reads all at once: an event told of a change, and a reading from before it must not stand against it.
    pub fn look(&self) {
        self.shared.look.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for CarrierReader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it can't have panicked with anything to tell
        }
    }
}

struct Watched {
    ifindex: IfIndex,
    file: File,
    /// The kernel may hold its events.
    ordinary: bool,
    last: Option<bool>,
}

impl Watched {
    fn open((ifindex, name): (IfIndex, String)) -> Option<Watched> {
        let file = File::open(format!("/sys/class/net/{name}/carrier")).ok()?;
        let iflink = fs::read_to_string(format!("/sys/class/net/{name}/iflink")).ok();
        let iflink = iflink.and_then(|text| text.trim().parse::<u32>().ok());
        Some(Watched { ifindex, file, ordinary: iflink.is_none_or(|i| i == ifindex.0), last: None })
    }

    /// Carrier; `None`: the interface is gone, and its event says so.
    fn read(&self) -> Option<bool> {
        let mut byte = [0u8];
        match self.file.read_at(&mut byte, 0) {
            Ok(1) => Some(byte[0] == b'1'),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Some(false), // administratively down
            Ok(_) | Err(_) => None,
        }
    }
}

fn read(shared: &Shared, changes: &UnboundedSender<(IfIndex, bool)>) {
    // A little precedence among ordinary threads, so that a busy machine doesn't delay the read; refused: as it is.
    // SAFETY: setpriority has no memory effects; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    let mut seen = u64::MAX;
    let mut watched: Vec<Watched> = Vec::new();
    let mut seldom = Instant::now();
    while !shared.stop.load(Ordering::Acquire) {
        let generation = shared.generation.load(Ordering::Acquire);
        if generation != seen {
            seen = generation;
            let ports = shared.ports.lock().unwrap_or_else(PoisonError::into_inner).clone();
            watched = ports.into_iter().filter_map(Watched::open).collect();
            seldom = Instant::now();
        }
        let all = shared.look.swap(false, Ordering::AcqRel) || seldom <= Instant::now();
        if all {
            seldom = Instant::now() + SELDOM;
        }
        for w in watched.iter_mut().filter(|w| w.ordinary || all) {
            let now = w.read();
            if now.is_some() && now != w.last {
                w.last = now;
                if changes.send((w.ifindex, now == Some(true))).is_err() {
                    return;
                }
            }
        }
        thread::park_timeout(if watched.iter().any(|w| w.ordinary) { INTERVAL } else { SELDOM });
    }
}
