//! Fencing: before the file systems of a virtual server are mounted here, whoever may still have them mounted is kept from
//! writing to them.
//!
//! | file | what |
//! |---|---|
//! | `agents` | fence agents, which switch a node off |
//! | `reservation` | SCSI-3 persistent reservations, by sg_persist(8): the device takes nothing from the node any more |
//! | `guard`, `watchdog` | a node that resets itself when it may no longer have what it has, and how long to wait for that |
//!
//! Every request has a thread of its own for as long as it takes: it waits for programs and for time. Nothing is decided here but
//! whether it has succeeded; core asks again.

mod agents;
pub mod guard;
mod reservation;
#[cfg(test)]
pub(crate) mod tests;
pub mod watchdog;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::config::{Fence, FenceAgent, Fencing, Resources};
use crate::resources::orders::{Order, Orders, Patience};
pub use guard::Guard;
pub use reservation::Reservations;
pub use watchdog::Promise;

/// What core asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// The virtual server.
    pub server: String,
    /// The node.
    pub node: String,
    /// Its incarnation.
    pub incarnation: u64,
}

/// What another node has promised of its watchdog (`None`: nothing), or why that is not known.
pub type ReadPromise = Arc<dyn Fn(&str) -> Result<Option<Promise>, String> + Send + Sync>;

/// Tells what came of a request: `None`: it is done.
pub type Report = Arc<dyn Fn(Request, Option<String>) + Send + Sync>;

/// What is known of nodes and virtual servers.
#[derive(Clone)]
pub struct Setup {
    /// This node.
    pub node: String,
    /// What the virtual servers have.
    pub resources: Vec<Resources>,
    /// How nodes are fenced.
    pub fencing: Fencing,
    /// What they have promised.
    pub promised: ReadPromise,
    /// What runs here.
    pub guard: Arc<Guard>,
    /// sg_persist(8), but for tests.
    pub sg_persist: PathBuf,
}

/// Fences nodes. Dropped: what is under way is given up.
pub struct Fencer {
    shared: Arc<Shared>,
    orders: Arc<Orders>,
    threads: Vec<JoinHandle<()>>,
    report: Report,
}

struct Shared {
    setup: Setup,
    /// What the last use of the fence agents has shown, by node.
    switched: Mutex<BTreeMap<String, Arc<Mutex<Option<Switched>>>>>,
}

/// What came of switching a node off.
#[derive(Clone)]
struct Switched {
    /// Of the request that it was done for.
    incarnation: u64,
    began: Instant,
    ended: Instant,
    result: Result<(), String>,
}

impl Fencer {
    /// Nothing is under way.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn new(setup: Setup, report: Report) -> io::Result<Fencer> {
        let shared = Shared { setup, switched: Mutex::default() };
        let (shared, orders) = (Arc::new(shared), Arc::new(Orders::new()?));
        Ok(Fencer { shared, orders, threads: Vec::new(), report })
    }

    /// Begins to fence a node; never waits. It is reported once what came of it.
    pub fn fence(&mut self, request: Request) {
        let (shared, orders, report) = (self.shared.clone(), self.orders.clone(), self.report.clone());
        self.threads.retain(|thread| !thread.is_finished());
        // From now on the node has no right to it any more. Whatever was found before says nothing of that: it may have had it again
        // since, also as the same incarnation.
        let asked = Instant::now();
        let work = {
            let request = request.clone();
            move || {
                let Request { server, node, .. } = &request;
                tracing::warn!("{server}: fencing {node}, which may still have its file systems mounted");
                match shared.fence(&request, asked, &orders) {
                    Ok(()) => {
                        tracing::warn!("{server}: {node} is fenced");
                        report(request, None);
                    }
                    // The agent ends: the next one asks again.
                    Err(None) => {}
                    Err(Some(why)) => {
                        tracing::error!("{server}: {node} is not fenced: {why}");
                        report(request, Some(why));
                    }
                }
            }
        };
        match thread::Builder::new().name(format!("fence-{}", request.node)).spawn(work) {
            Ok(thread) => self.threads.push(thread),
            Err(e) => (self.report)(request, Some(format!("no thread for it: {e}"))),
        }
    }
}

impl Drop for Fencer {
    fn drop(&mut self) {
        self.orders.give(Order::Leave);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that fenced a node has panicked");
            }
        }
    }
}

impl Shared {
    /// `Err(None)`: the agent ends.
    fn fence(&self, request: &Request, asked: Instant, orders: &Orders) -> Result<(), Option<String>> {
        let Request { server, node, .. } = request;
        let Some(resources) = self.setup.resources.iter().find(|r| r.server == *server) else {
            return Err(Some("it has no file systems any more".to_owned()));
        };
        if *node == self.setup.node {
            // Of an earlier incarnation: whoever takes a virtual server has stopped what was here of it.
            return match self.setup.guard.runs(server) {
                false => Ok(()),
                true => Err(Some("something of it still runs on this node itself".to_owned())),
            };
        }
        match resources.fence {
            // Whoever configured that has accepted what can happen.
            Fence::None => Ok(()),
            Fence::Agent => self.switch_off(node, request.incarnation, asked, orders),
            Fence::Watchdog => {
                let promised = (self.setup.promised)(node).map_err(Some)?;
                watchdog::wait(promised, request, asked, &patience(orders, Duration::MAX))
            }
            Fence::ScsiPr => {
                let reservations = Reservations::new(&self.setup.sg_persist, &self.setup.node);
                let devices = resources.filesystems.iter().map(|fs| fs.device.as_path());
                reservations.fence(devices, node, &patience(orders, reservation::LIMIT))
            }
        }
    }

    /// By its fence agents. A node is switched off once for all that ask for it.
    fn switch_off(
        &self,
        node: &str,
        incarnation: u64,
        asked: Instant,
        orders: &Orders,
    ) -> Result<(), Option<String>> {
        let agents: Vec<&FenceAgent> =
            self.setup.fencing.agents.iter().filter(|agent| agent.node == node).collect();
        let last = lock(&self.switched).entry(node.to_owned()).or_default().clone();
        let mut last = lock(&last);
        if let Some(switched) = last.as_ref().filter(|switched| switched.answers(incarnation, asked)) {
            return switched.result.clone().map_err(Some);
        }
        let began = Instant::now();
        let result = match agents::switch_off(node, &agents, |limit| patience(orders, limit)) {
            Err(None) => return Err(None),
            Err(Some(why)) => Err(why),
            Ok(()) => Ok(()),
        };
        *last = Some(Switched { incarnation, began, ended: Instant::now(), result: result.clone() });
        result.map_err(Some)
    }
}

impl Switched {
    /// Is this an answer to what was asked at that time of that incarnation?
    fn answers(&self, incarnation: u64, asked: Instant) -> bool {
        match self.result {
            // At its end the node was off, and before that what was asked had lost its right to run.
            Ok(()) => asked <= self.began || (asked <= self.ended && incarnation <= self.incarnation),
            Err(_) => asked <= self.ended,
        }
    }
}

/// Only the end of the agent cuts it short.
fn patience(orders: &Orders, limit: Duration) -> Patience<'_> {
    Patience::new(orders, 0, Some(Order::Leave), limit.min(Duration::from_secs(86_400)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
