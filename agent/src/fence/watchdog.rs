//! Fencing by time: a node whose watchdog is not fed resets itself, so another one only has to wait.
//!
//! # Why the wait is long enough
//!
//! W is the watchdog's time. A virtual server fenced by watchdog *may be held* by a node while the kernel programs have the very
//! incarnation that the node's own owner record names, and that incarnation has a lease (`Effect::Entitle`). The thread here feeds
//! only when it has just found, of everything that may be mounted, that it may be held.
//!
//! - Whoever asks for fencing has written its own record before, which it could only after a majority had called the loser's incarnation
//!   dead (its lease was over) or the loser had released it (core took the entitlement back before it sent that). So from the moment
//!   of the request on, T, every look finds that the loser must not feed: the incarnation never has a lease again.
//! - But a look and the feeding after it are not one step: the thread may have looked just before T and be delayed in between, however
//!   long. Not longer than W, though: the watchdog has not been fed meanwhile either, and would have reset the node. So
//!   the last feeding is before T + W, and the reset before T + 2 W. (sbd(8) waits for twice its watchdog's time as well.)
//! - A start is seen by the next look, and the last look before it is of before the record was written that it follows from. So what
//!   was fed without regard to it ends before T + 2 W, too.
//! - W is what the *loser* has promised in the store, for this virtual server. A node starts nothing before that is there and its watchdog
//!   armed, never has a watchdog that takes longer than what is promised, and guards all that was promised until that is taken back.
//! - Clocks: a watchdog's oscillator is worse than a computer's clock, and many count whole seconds. A tenth more and a second more
//!   cover that; the waiting clock stops while its own node sleeps, which only makes it wait longer.
//!
//! Not covered: a watchdog that doesn't reset, or whose reset leaves writes under way in hardware of its own; a virtual machine whose
//! clocks are stopped while its writes go on.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Request;
use super::guard::{Guard, Leased};
use crate::resources::orders::{Order, Orders, Patience, Woken};

/// Between two tries to open the device, or to tell the others of it.
const AGAIN: Duration = Duration::from_secs(1);
/// It is fed so often in its time, and at least so often.
const FEED: (u32, Duration) = (8, Duration::from_secs(1));

/// Between two looks whether the others have been told: what is to be started waits for it.
const TELLING: Duration = Duration::from_millis(20);

/// What a node promises to the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// After so many seconds without being fed, at most, its watchdog resets it.
    pub seconds: u64,
    /// For these virtual servers.
    pub servers: BTreeSet<String>,
}

impl Promise {
    /// How long to wait for a reset.
    fn proof(&self) -> Duration {
        let twice = Duration::from_secs(self.seconds) * 2;
        twice + twice / 10 + Duration::from_secs(1)
    }
}

/// Waits until a node has reset itself, which may no longer have it since `since`.
///
/// # Errors
/// Why that proves nothing; `None`: something else was ordered.
pub(super) fn wait(
    promised: Option<Promise>,
    request: &Request,
    since: Instant,
    patience: &Patience<'_>,
) -> Result<(), Option<String>> {
    let Request { server, node, .. } = request;
    let promise = promised.filter(|promise| promise.servers.contains(server));
    let Some(promise) = promise else {
        return Err(Some(format!("{node} has never promised that its watchdog resets it for {server}")));
    };
    let due = since + promise.proof();
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        if patience.at_most(left).wait(&[]) == Woken::Told {
            return Err(None);
        }
    }
}

/// A watchdog.
pub trait Device: Send {
    /// Sets its time; returns what it is now. That feeds it, too.
    ///
    /// # Errors
    /// The device refuses.
    fn set(&mut self, seconds: u32) -> io::Result<u32>;
    /// Feeds it.
    ///
    /// # Errors
    /// The device refuses.
    fn feed(&mut self) -> io::Result<()>;
    /// It shall not reset the node when it is closed.
    ///
    /// # Errors
    /// The device refuses.
    fn disarm(&mut self) -> io::Result<()>;
}

/// Opens one, which arms it.
pub type Open = Box<dyn Fn() -> io::Result<Box<dyn Device>> + Send>;
/// The kernel programs' lease, if it can be read.
pub type ReadLease = Box<dyn Fn() -> Option<Leased> + Send>;
/// Tells the other nodes.
pub type WritePromise = Arc<dyn Fn(&Promise) -> Result<(), String> + Send + Sync>;

/// Of linux/watchdog.h.
mod ioctl {
    nix::ioctl_read!(keep_alive, b'W', 5, libc::c_int);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
}

/// The kernel's (Documentation/watchdog/watchdog-api.rst).
struct KernelDevice(File);

impl Device for KernelDevice {
    fn set(&mut self, seconds: u32) -> io::Result<u32> {
        let mut value = libc::c_int::try_from(seconds).unwrap_or(libc::c_int::MAX);
        // SAFETY: the descriptor is open, and the kernel reads and writes one integer.
        unsafe { ioctl::set_timeout(self.0.as_raw_fd(), &mut value) }?;
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    fn feed(&mut self) -> io::Result<()> {
        let mut value = 0;
        // SAFETY: the descriptor is open, and the kernel writes one integer at most.
        unsafe { ioctl::keep_alive(self.0.as_raw_fd(), &mut value) }?;
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        self.0.write_all(b"V") // "magic close"
    }
}

/// Opens the kernel's device.
pub fn kernel_device(path: PathBuf) -> Open {
    Box::new(move || {
        let file = OpenOptions::new().write(true).open(&path)?;
        Ok(Box::new(KernelDevice(file)) as Box<dyn Device>)
    })
}

/// Disarms what an agent of this boot has left armed. Only where nothing runs any more that needs it.
///
/// # Errors
/// The device refuses.
pub fn disarm(open: &Open, note: &Path) -> io::Result<()> {
    if noted(note).is_some() {
        open()?.disarm()?;
        fs::remove_file(note)?;
    }
    Ok(())
}

/// What the thread starts with.
pub struct Setup {
    /// The device.
    pub open: Open,
    /// Its path, for messages.
    pub path: PathBuf,
    /// What is to be promised.
    pub promise: Promise,
    /// Virtual servers that nobody is fenced for: that was accepted.
    pub accepted: BTreeSet<String>,
    /// Where it is noted that this boot has armed it; gone with the boot.
    pub note: PathBuf,
    /// What may be held.
    pub guard: Arc<Guard>,
    /// Under which lease.
    pub lease: ReadLease,
    /// Tells the others.
    pub tell: WritePromise,
}

impl Setup {
    /// Only what is promised matters from now on.
    fn watch(&self) {
        self.guard.watch(&self.promise.servers, &self.accepted, (self.lease)());
    }
}

/// The thread. Dropped: it ends; the watchdog runs on if anything does that needs it.
pub struct Watchdog {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// What is noted of it for the next agent of this boot.
#[derive(Serialize, Deserialize)]
struct Note {
    boot: String,
    promise: Promise,
}

/// What an agent of this boot has promised, at least: its time may be shorter by now.
pub fn noted(note: &Path) -> Option<Promise> {
    let note: Note = serde_json::from_str(&fs::read_to_string(note).ok()?).ok()?;
    Some(note).filter(|note| this_boot().is_ok_and(|boot| boot == note.boot)).map(|note| note.promise)
}

fn write_note(path: &Path, promise: Promise) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string(&Note { boot: this_boot()?, promise })?;
    // Whole, or as it was.
    let other = path.with_extension("new");
    fs::write(&other, text)?;
    fs::rename(&other, path)
}

fn this_boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no threads or descriptors left.
    pub fn start(setup: Setup) -> io::Result<Watchdog> {
        let orders = Arc::new(Orders::new()?);
        let own = orders.clone();
        let thread = thread::Builder::new().name("watchdog".into()).spawn(move || run(&setup, &own))?;
        Ok(Watchdog { orders, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.orders.give(Order::Leave);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that feeds the watchdog has panicked");
        }
    }
}

fn run(setup: &Setup, orders: &Orders) {
    let mut said = String::new();
    let mut starving = None;
    if !take_back(setup, orders) {
        return;
    }
    loop {
        // Opening it feeds it, too.
        if looks_good(setup, &mut starving) {
            match armed(setup, orders) {
                Ok(()) => return,
                Err(e) => {
                    let why = format!("{}: {e}", setup.path.display());
                    if why != said {
                        tracing::error!("{why}; what is fenced by watchdog is not started here");
                    }
                    setup.guard.set_armed(Err(why.clone()));
                    said = why;
                }
            }
        }
        if Patience::new(orders, 0, None, AGAIN).wait(&[]) == Woken::Told {
            return;
        }
    }
}

/// What needs it no more is taken from the promise before anything else: core says nothing of it. Was that done, or not needed?
fn take_back(setup: &Setup, orders: &Orders) -> bool {
    let Some(before) = noted(&setup.note) else { return true };
    if before.servers.is_subset(&setup.promise.servers) {
        return true;
    }
    let servers = before.servers.intersection(&setup.promise.servers).cloned().collect();
    // Its time may still be the longer one of the two.
    let less = Promise { seconds: before.seconds.max(setup.promise.seconds), servers };
    loop {
        match Telling::start(setup, less.clone()) {
            Ok(telling) => {
                while !telling.is_done() {
                    if Patience::new(orders, 0, None, TELLING).wait(&[]) == Woken::Told {
                        return false;
                    }
                }
                break;
            }
            Err(e) => tracing::error!("{}: {e}", setup.path.display()),
        }
        if Patience::new(orders, 0, None, AGAIN).wait(&[]) == Woken::Told {
            return false;
        }
    }
    setup.watch();
    if let Err(e) = write_note(&setup.note, less) {
        tracing::error!("{}: {e}", setup.note.display());
    }
    true
}

/// May it be fed once? Says so when it may not any more.
fn looks_good(setup: &Setup, starving: &mut Option<String>) -> bool {
    let found = setup.guard.forbids((setup.lease)()).map(str::to_owned);
    if let Some(server) = &found
        && found != *starving
    {
        tracing::error!(
            "{server} may be another node's, and may still be mounted here: unless it is stopped, the watchdog resets this node \
             within {} s",
            setup.promise.seconds
        );
    }
    *starving = found;
    starving.is_none()
}

/// Arms it and feeds it until the agent ends, or nothing needs it any more. Each time it is fed only once after a look.
fn armed(setup: &Setup, orders: &Orders) -> io::Result<()> {
    let Setup { promise, note, guard, .. } = setup;
    let before = noted(note);
    let mut device = (setup.open)().map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            io::Error::other("somebody else has it open: watchdogd, or systemd (RuntimeWatchdogSec)")
        }
        _ => e,
    })?;
    // In this boot nothing has been started yet that needs it.
    let fresh = before.is_none();
    // Never longer than what the others know of.
    let first = before.as_ref().map_or(promise.seconds, |before| before.seconds.min(promise.seconds));
    // What the next agent is to know until they know better.
    let mut all = before.unwrap_or_else(|| promise.clone());
    all.servers.extend(promise.servers.iter().cloned());
    let every = (Duration::from_secs(first) / FEED.0).min(FEED.1);
    let mut telling: Option<Telling> = None;
    let (mut starving, mut leaving) = (None, false);
    loop {
        let good = looks_good(setup, &mut starving);
        let done = telling.as_ref().is_some_and(Telling::is_done);
        match &telling {
            None if good => {
                set(fresh, &mut *device, first)?;
                write_note(note, all.clone())?;
                telling = Some(Telling::start(setup, promise.clone())?);
            }
            Some(_) if good && done && !leaving => {
                write_note(note, promise.clone())?;
                set(fresh, &mut *device, promise.seconds)?;
                setup.watch();
                break;
            }
            Some(_) if good => device.feed()?,
            None | Some(_) => {}
        }
        // What is under way to the store ends before another agent tells something else.
        if leaving && telling.as_ref().is_none_or(Telling::has_ended) {
            return leave(setup, &mut *device);
        }
        let pause = if telling.is_some() { every.min(TELLING) } else { every };
        if Patience::new(orders, 0, None, pause).wait(&[]) == Woken::Told {
            leaving = true;
            telling.iter().for_each(Telling::end);
            thread::sleep(Duration::from_millis(5)); // being told again and again
        }
    }
    tracing::info!("{}: armed, {} s", setup.path.display(), promise.seconds);
    guard.set_armed(Ok(()));
    loop {
        let over = promise.servers.is_empty() && !guard.is_at_work();
        if over || Patience::new(orders, 0, None, every).wait(&[]) == Woken::Told {
            return leave(setup, &mut *device);
        }
        if looks_good(setup, &mut starving) {
            device.feed()?;
        }
    }
}

/// The agent ends, or nothing needs it any more.
fn leave(setup: &Setup, device: &mut dyn Device) -> io::Result<()> {
    if setup.guard.is_at_work() {
        tracing::warn!(
            "{} runs on: without an agent it resets this node, for another one takes what is mounted here; `baton drain` first",
            setup.path.display()
        );
        return Ok(());
    }
    device.disarm()?;
    match fs::remove_file(&setup.note) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Sets its time: a longer one proves nothing.
fn set(fresh: bool, device: &mut dyn Device, seconds: u64) -> io::Result<()> {
    let wanted = u32::try_from(seconds).unwrap_or(u32::MAX);
    let why = match device.set(wanted) {
        Ok(now) if now <= wanted => return Ok(()),
        Ok(now) => {
            format!("it can't be set to {wanted} s, but takes {now} s; say watchdog = \"{now}s\" in [timing]")
        }
        Err(e) => format!("it can't be set to {wanted} s: {e}"),
    };
    // What runs already must not be left without it.
    match if fresh { device.disarm() } else { Ok(()) } {
        Ok(()) => Err(io::Error::other(why)),
        Err(e) => Err(io::Error::other(format!("{why}; and it can't be disarmed: {e}"))),
    }
}

/// Tells the others, on a thread of its own: the store may take longer than the watchdog.
struct Telling {
    done: Arc<AtomicBool>,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

impl Telling {
    fn start(setup: &Setup, promise: Promise) -> io::Result<Telling> {
        let (done, orders) = (Arc::new(AtomicBool::new(false)), Arc::new(Orders::new()?));
        let (told, own) = (done.clone(), orders.clone());
        let tell = setup.tell.clone();
        let work = move || {
            let mut said = String::new();
            loop {
                match tell(&promise) {
                    Ok(()) => return told.store(true, Ordering::SeqCst),
                    Err(e) if e != said => {
                        tracing::warn!("the other nodes don't know of this one's watchdog yet: {e}");
                        said = e;
                    }
                    Err(_) => {}
                }
                if Patience::new(&own, 0, None, AGAIN).wait(&[]) == Woken::Told {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("promise".into()).spawn(work)?;
        Ok(Telling { done, orders, thread: Some(thread) })
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    fn end(&self) {
        self.orders.give(Order::Leave);
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.end();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that promises a reset has panicked");
        }
    }
}
