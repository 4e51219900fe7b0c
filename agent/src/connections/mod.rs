//! Clients learn of a takeover at once: the TCP connections of virtual servers with services are known to every node, and the one
//! that serves such a server anew resets those that it had before.
//!
//! The kernel programs keep the connections (`io::kernel`), the owner shares them through the store, and whoever starts the services
//! of the virtual server tells their clients, in several rounds, once it is served ([`baton_core::Effect::ResetConnections`]). What
//! the owner's own kernel has seen since belongs to new connections, and is left alone.
//!
//! A thread of its own, without priority: nothing waits for it. What can't be shared or sent is lost, and then clients find out by
//! themselves, some time. `codec` is the format, `shared` what is written when, `send` the packets, `keeper` the loop.

mod codec;
mod keeper;
mod send;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use baton_core::{Event, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

pub use codec::{Bucket, decode, encode};
pub use send::{What, packet};
pub use shared::{BUCKETS, Current, Shared, bucket_of};

use crate::fast::ResetRequest;
use crate::io::kernel::ConnectionReader;
use crate::store::etcd::Etcd;
use crate::telemetry::Publisher;
use keeper::Keeper;

/// The next sequence numbers of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The virtual server's: what the client expects.
    pub server: u32,
    /// The client's.
    pub client: u32,
}

/// A bucket of the store that has changed, or is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which one.
    pub bucket: usize,
    /// What it holds; `None`: it is gone.
    pub value: Option<Vec<u8>>,
}

/// What the thread starts with.
pub struct Setup {
    /// This node.
    pub node: String,
    /// The addresses of the virtual servers whose connections are kept, and whose they are.
    pub addresses: BTreeMap<IpAddr, String>,
    /// Generation of the definitions that say so.
    pub generation: u64,
    /// The store; its connections are made by this thread.
    pub etcd: Etcd,
    /// What the kernel knows.
    pub reader: ConnectionReader,
    /// Who serves what.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Where it is shown how many there are.
    pub publisher: Arc<Publisher>,
    /// To the journal. Bounded: a full channel drops events, counted.
    pub events: mpsc::Sender<Event>,
    /// Resets that are asked for.
    pub requests: mpsc::Receiver<ResetRequest>,
}

/// Starts the thread; it ends when nobody can ask for resets any more.
///
/// # Errors
/// The thread or its runtime can't be had.
pub fn spawn(setup: Setup) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let keep = move || {
        crate::confine::thread();
        LocalSet::new().block_on(&runtime, Keeper::new(setup).run());
    };
    thread::Builder::new().name("connections".into()).spawn(keep)
}
