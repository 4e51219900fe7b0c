//! The fast thread: netlink, kernel programs, announcements, core, and nothing that can wait for a disk, a remote
//! store, a child process or a log. See `driver` for its loop.

mod announce;
mod carrier;
mod driver;
mod listen;
mod metronome;
pub mod netlink;
mod peers;
mod prober;
mod solicit;
pub mod steering;

use std::io;
use std::thread::{self, JoinHandle};

use baton_core::{Effect, Input, Machine, Time};
use tokio::sync::oneshot;

pub use announce::{ArpForm, gratuitous_arp, neighbour_advertisement};
use driver::Driver;
pub use driver::{Links, PlanRequest, Reload, ResetRequest, Setup, StoreLink, now};
pub use peers::Membership;
pub use prober::{Identity, NamedPath, PathReader, Probing};

use crate::io::kernel::{Kernel, KernelError};

/// Priority of the fast thread: above ordinary real-time work (1 to 49), below the kernel's threaded interrupts (50).
const FIFO_PRIORITY: i32 = 49;

/// What the fast thread asks of, and tells, the slow one.
#[derive(Debug)]
pub enum ToSlow {
    /// Write the owner record; answered by [`Input::Owned`] or [`Input::Failed`].
    Take(String),
    /// Save and set the sysctls of this interface.
    Prepare(String),
    /// These interfaces are ports from now on, and no others: the settings of all others are restored.
    Keep(Vec<String>),
    /// For the record of inputs.
    Record {
        /// When.
        at: Time,
        /// What core was told.
        input: Box<Input>,
        /// What it asked for.
        effects: Vec<Effect>,
    },
    /// The whole machine, from which a replay can start.
    Checkpoint(Box<Machine>),
}

/// What is asked for of the file systems and services of a virtual server; answered by [`Input::Resources`], in the order of the
/// requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceRequest {
    /// Start them all. Given up where they are to be stopped meanwhile.
    Start(String),
    /// Stop them all, and what a start has left.
    Stop(String),
}

/// Why the fast thread could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum FastError {
    /// Netlink does not work.
    #[error("netlink: {0}; Baton needs CAP_NET_ADMIN")]
    Netlink(#[source] io::Error),
    /// The packet socket does not work.
    #[error("packet socket: {0}; Baton needs CAP_NET_RAW")]
    Packet(#[source] io::Error),
    /// The timer of the probes does not work.
    #[error("timer of the probes: {0}")]
    Timer(#[source] io::Error),
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(#[source] io::Error),
    /// The ring buffer of the kernel programs can't be read.
    #[error("reading the kernel programs' reports: {0}")]
    Reports(#[source] io::Error),
    /// The kernel programs could not be loaded, attached or told something.
    #[error(transparent)]
    Kernel(Box<KernelError>),
    /// A plan is asked for while others are, and none has been made.
    #[error("the planner is busy")]
    PlannerBusy,
    /// The planner has failed; its message is in the log.
    #[error("the planner is gone")]
    PlannerGone,
    /// File systems and services are asked for while much else is, and nothing has been done yet.
    #[error("file systems and services can't be started or stopped: too much is asked for")]
    ResourcesBusy,
    /// Nobody starts or stops file systems and services any more; the log says why.
    #[error("file systems and services can't be started or stopped: their thread is gone")]
    ResourcesGone,
    /// Resets are asked for while many others are.
    #[error("connections can't be reset: too much is asked for, or their thread is gone")]
    Resets,
    /// Routes or rules were refused.
    #[error("routes and rules of segment {segment}: {error}")]
    Steer {
        /// The segment.
        segment: String,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl From<KernelError> for FastError {
    fn from(error: KernelError) -> FastError {
        FastError::Kernel(Box::new(error))
    }
}

/// Starts the fast thread; `ready` is told when the first input has been carried out, and `ended` is dropped when the
/// thread ends, for whatever reason. It leaves everything as it is.
pub fn spawn(
    start: Setup,
    kernel: Kernel,
    probing: Probing,
    links: Links,
    ready: oneshot::Sender<()>,
    ended: oneshot::Sender<()>,
) -> io::Result<JoinHandle<Result<(), FastError>>> {
    thread::Builder::new().name("fast".into()).spawn(move || {
        let _ended = ended;
        crate::confine::thread();
        if let Err(e) = realtime(FIFO_PRIORITY) {
            tracing::warn!(
                "not real-time ({e}): a busy machine can delay failovers; give CAP_SYS_NICE and CAP_IPC_LOCK"
            );
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(FastError::Thread)?;
        runtime.block_on(async {
            let driver = Driver::start(start, kernel, probing, links)?;
            let _ = ready.send(()); // nobody waits: shutting down already
            driver.run().await
        })
    })
}

/// SCHED_FIFO for this thread, not inherited by what it starts, and no page of the process swapped out once touched.
///
/// # Errors
/// Not permitted: CAP_SYS_NICE or CAP_IPC_LOCK is missing.
pub fn realtime(priority: i32) -> io::Result<()> {
    let check = |r: i32| if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` outlives the call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &param) })?;
    // SAFETY: mlockall touches no memory of ours.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })
}
