//! `baton clean`: takes away everything that Baton made on this node, and nothing else.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::sysctl::{self, SysctlError};
use crate::config::Places;
use crate::control::{self, LockError};
use crate::fast::netlink::{self, Requests};
use crate::fast::steering;
use crate::fence::{Guard, watchdog};
use crate::io::kernel::{self, KernelError};
use crate::store::{FileStore, StoreError};

/// Why not everything could be taken away.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// An agent runs: it would put everything back.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel refused.
    #[error("netlink: {0}; this needs CAP_NET_ADMIN")]
    Netlink(#[source] io::Error),
    /// Programs or maps could not be removed.
    #[error(transparent)]
    Kernel(Box<KernelError>),
    /// The saved settings can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// File systems or services are still there.
    #[error("not stopped: {0}; see to it, and run this again")]
    Resources(String),
    /// What runs can't be found.
    #[error("file systems and services: {0}")]
    Folder(#[source] io::Error),
    /// The watchdog would reset the node.
    #[error("the watchdog is armed, and can't be disarmed: {0}; this node will be reset")]
    Watchdog(#[source] io::Error),
    /// A setting could not be restored.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

impl From<KernelError> for CleanError {
    fn from(error: KernelError) -> CleanError {
        CleanError::Kernel(Box::new(error))
    }
}

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Addresses.
    pub addresses: usize,
    /// Routes.
    pub routes: usize,
    /// Rules.
    pub rules: usize,
}

/// Takes away addresses first, then routes and rules, then stops services and unmounts file systems, then takes away the kernel
/// programs, so that nothing answers unjudged in between; then restores settings. Can be repeated. Refuses while an agent runs.
///
/// # Errors
/// The first that occurs; what was taken away until then stays away.
pub fn clean(places: &Places) -> Result<Cleaned, CleanError> {
    let _lock = if places.state.exists() { Some(control::lock(&places.state)?) } else { None };
    let mut requests = Requests::open().map_err(CleanError::Netlink)?;
    let addresses = requests.addresses().map_err(CleanError::Netlink)?;
    let ours: Vec<_> = addresses.iter().filter(|a| a.ours).collect();
    let (routes, rules) = requests.marked().map_err(CleanError::Netlink)?;
    let changes = ours.iter().map(|a| netlink::remove_address(a.ifindex, a.address));
    let changes = changes.chain(rules.iter().map(steering::remove_rule));
    let neighbours = requests.marked_neighbours().map_err(CleanError::Netlink)?;
    let changes = changes.chain(routes.iter().map(steering::remove_route));
    let neighbours = neighbours.into_iter().map(|(i, a)| netlink::remove_neighbour(i, a));
    let changes: Vec<_> = changes.chain(neighbours).collect();
    let failed = requests.apply(changes).map_err(CleanError::Netlink)?;
    if let Some((_, error)) = failed.into_iter().find(|(_, e)| e.raw_os_error() != Some(libc::EADDRNOTAVAIL))
    {
        return Err(CleanError::Netlink(error));
    }
    // Nobody is served any more.
    let guard = Arc::new(Guard::new([], &BTreeSet::new()));
    let setup = super::resources::setup("", Vec::new(), guard, None);
    let failed = crate::resources::clean(&setup).map_err(CleanError::Folder)?;
    if !failed.is_empty() {
        return Err(CleanError::Resources(failed.join("; ")));
    }
    // Nothing needs it any more.
    let device = watchdog::kernel_device(places.watchdog.clone());
    watchdog::disarm(&device, &super::fences::note()).map_err(CleanError::Watchdog)?;
    kernel::remove_all(&places.bpffs)?;
    if places.store.exists() {
        let mut store = FileStore::open(&places.store)?;
        sysctl::restore(&mut store, &BTreeSet::new(), false)?;
    }
    Ok(Cleaned { addresses: ours.len(), routes: routes.len(), rules: rules.len() })
}
