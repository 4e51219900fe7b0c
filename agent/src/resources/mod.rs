//! File systems and services of virtual servers: started, checked, restarted and stopped on behalf of core.
//!
//! A thread for each virtual server that has any, of ordinary priority: it waits for children, devices and file systems, and
//! never the fast thread for it. Whatever may hang does so in a process of its own (`command`). What is started lives on when
//! the agent is killed; what an agent has to know of it is in a folder below /run (`folder`), and the next one adopts it.
//!
//! | file | what |
//! |---|---|
//! | `server` | order, time limits, restarts in place, adoption |
//! | `filesystem`, `mountinfo`, `holders` | mount(2), and who keeps it from being unmounted |
//! | `namespace` | mounts that only the virtual server sees |
//! | `service`, `ocf`, `systemd`, `ganesha`, `samba` | kinds of services |
//! | `metadata` | what OCF agents say of themselves |
//! | `question`, `rpc`, `smb` | what they are asked to see whether they work |
//! | `command`, `process`, `cgroup` | children, and whose they are |
//! | `orders` | what a thread is told while it waits for something else |

mod cgroup;
pub(crate) mod command;
mod filesystem;
mod folder;
mod ganesha;
mod holders;
mod metadata;
mod mountinfo;
mod namespace;
mod ocf;
pub(crate) mod orders;
pub(crate) mod process;
mod question;
mod rpc;
mod samba;
mod server;
mod service;
mod smb;
mod systemd;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use baton_core::ResourceState;

use crate::config::{Resources, ServiceKind};
use crate::fence::{Guard, Reservations};
use command::Fault;
use folder::Folder;
pub use orders::{Haste, Order};
use orders::{Orders, Patience};
use server::Server;

/// Where the folders of virtual servers are.
pub const ROOT: &str = "/run/baton";
/// Where OCF keeps its resource agents.
pub const OCF_ROOT: &str = "/usr/lib/ocf";

/// Why something could not be started, stopped or found to work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Something else was ordered meanwhile.
    #[error("something else was ordered meanwhile")]
    Told,
    /// What, and why.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// The same, and what has failed.
    fn of(self, what: &str) -> Failure {
        match self {
            Failure::Told => Failure::Told,
            Failure::Failed(why) => Failure::Failed(format!("{what}: {why}")),
        }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        match fault {
            Fault::Told => Failure::Told,
            fault => Failure::Failed(fault.to_string()),
        }
    }
}

/// What the threads start with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This node.
    pub node: String,
    /// What the virtual servers have.
    pub resources: Vec<Resources>,
    /// [`ROOT`], but for tests.
    pub root: PathBuf,
    /// [`OCF_ROOT`], but for tests.
    pub ocf_root: PathBuf,
    /// Where the bus is on which systemd is asked; `None`: that of the system.
    pub bus: Option<String>,
    /// May control groups be made?
    pub groups: bool,
    /// What runs here, for whoever resets this node.
    pub guard: Arc<Guard>,
    /// How devices are reserved; a node that is alone reserves none.
    pub reservations: Option<Reservations>,
}

/// Tells virtual servers that stopping must not take long.
#[derive(Clone)]
pub struct Hurry(BTreeMap<String, Arc<Orders>>);

impl Hurry {
    /// Stopping this one must not take long from now on: a storage unit of it is lost here; `None`: it is back. Never waits.
    pub fn set(&self, server: &str, haste: Option<Haste>) {
        if let Some(orders) = self.0.get(server) {
            orders.hurry(haste);
        }
    }
}

/// Tells how the resources of a virtual server are.
pub type Report = Arc<dyn Fn(&str, ResourceState) + Send + Sync>;

/// The threads. Dropped: they end, and what runs goes on.
pub struct Runner {
    threads: BTreeMap<String, (Arc<Orders>, JoinHandle<()>)>,
    report: Report,
}

impl Runner {
    /// Starts the threads, and tells which virtual servers have all of their resources running: an earlier agent started them.
    /// What others left halfway is stopped if nothing is ordered for it soon, and so is what is no longer configured.
    ///
    /// # Errors
    /// A thread can't be started, or /proc can't be read.
    pub fn start(setup: &Setup, report: Report) -> io::Result<(Runner, BTreeSet<String>)> {
        let hierarchy = setup.groups.then(cgroup::hierarchy).flatten();
        let mut servers: BTreeMap<String, Option<&Resources>> =
            Folder::all(&setup.root).into_iter().map(|name| (name, None)).collect();
        servers.extend(setup.resources.iter().map(|r| (r.server.clone(), Some(r))));
        let mut runner = Runner { threads: BTreeMap::new(), report: report.clone() };
        let mut running = BTreeSet::new();
        for (name, resources) in servers {
            let orders = Arc::new(Orders::new()?);
            let builder = thread::Builder::new().name(format!("vs-{name}"));
            let (told, found) = mpsc::channel();
            let thread = {
                let (setup, name, resources) = (setup.clone(), name.clone(), resources.cloned());
                let (hierarchy, orders, report) = (hierarchy.clone(), orders.clone(), report.clone());
                // It may be in a mount namespace of its own from here on, where it finds what runs.
                builder.spawn(move || {
                    let server = Folder::new(&setup.root, &name).and_then(|folder| {
                        Server::new(&setup, &name, resources.as_ref(), folder, hierarchy, orders)
                    });
                    let found = server.as_ref().map(|server| (server.is_running(), server.is_gone()));
                    let failed = |e: &io::Error| io::Error::new(e.kind(), format!("{name}: {e}"));
                    // Whoever asked has gone only if it has failed itself.
                    let _ = told.send(found.map_err(failed));
                    server.into_iter().for_each(|server| server.run(&*report));
                })?
            };
            runner.threads.insert(name.clone(), (orders, thread));
            let (is_running, is_gone) = found.recv().map_err(io::Error::other)??;
            if is_running {
                running.insert(name.clone());
            }
            if is_gone {
                setup.guard.stopped(&name);
            }
        }
        Ok((runner, running))
    }

    /// For whoever knows when stopping must not take long.
    pub fn hurry(&self) -> Hurry {
        Hurry(self.threads.iter().map(|(name, (orders, _))| (name.clone(), orders.clone())).collect())
    }

    /// Gives an order to a virtual server; never waits. One that has no resources is running, or stopped, at once.
    pub fn order(&self, server: &str, order: Order) {
        match (self.threads.get(server), order) {
            (Some((orders, _)), order) => orders.give(order),
            (None, Order::Start) => (self.report)(server, ResourceState::Running),
            (None, Order::Stop) => (self.report)(server, ResourceState::Stopped),
            (None, Order::Leave) => {}
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.threads.values().for_each(|(orders, _)| orders.give(Order::Leave));
        for (name, (_, thread)) in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!("{name}: the thread of its file systems and services has panicked");
            }
        }
    }
}

/// What OCF agents that are installed here say against the parameters that are configured: for `baton check`.
pub fn check_agents(resources: &[Resources], ocf_root: &Path) -> Vec<String> {
    const LIMIT: Duration = Duration::from_secs(10);
    let Ok(orders) = Orders::new() else { return Vec::new() };
    let agents = resources.iter().flat_map(|server| {
        server.services.iter().filter_map(move |service| match &service.kind {
            ServiceKind::Ocf(agent) => Some((&server.server, agent)),
            _ => None,
        })
    });
    let told = agents.flat_map(|(server, agent)| {
        let complaints = ocf::complaints(agent, ocf_root, &Patience::new(&orders, 0, None, LIMIT));
        complaints
            .into_iter()
            .map(move |text| format!("{server}: {}/{}: {text}", agent.provider, agent.agent))
    });
    told.collect()
}

/// The virtual servers of which agents of this node have left something below `root`.
pub fn found(root: &Path) -> Vec<String> {
    Folder::all(root)
}

/// Stops all that agents of this node have left: for `baton clean`. Returns what could not be stopped.
///
/// # Errors
/// As [`Runner::start`].
pub fn clean(setup: &Setup) -> io::Result<Vec<String>> {
    let hierarchy = setup.groups.then(cgroup::hierarchy).flatten();
    let mut failed = Vec::new();
    for name in Folder::all(&setup.root) {
        let orders = Arc::new(Orders::new()?);
        let folder = Folder::new(&setup.root, &name)?;
        let stop = || {
            let server = Server::new(setup, &name, None, folder, hierarchy.clone(), orders)?;
            Ok(server.stop_all())
        };
        // As above: a thread of its own.
        let stopped: io::Result<Result<(), Failure>> = thread::scope(|scope| {
            let panicked = |_| Err(io::Error::other(format!("{name}: its thread has panicked")));
            scope.spawn(stop).join().unwrap_or_else(panicked)
        });
        if let Err(e) = stopped? {
            failed.push(format!("{name}: {e}"));
        }
    }
    Ok(failed)
}
