//! The kernel programs: loads and pins them, puts them on ports, and writes the maps they judge by.
//!
//! Maps are pinned under `<bpffs>/v<layout version>/` and links under `<bpffs>/links/`, so that counting and enforcing
//! go on while no agent runs. [`Kernel::open`] takes over whatever maps it finds there, also from those of another layout, and
//! [`Kernel::attach`] swaps the new programs into the links it finds, atomically; [`Kernel::finish_takeover`] ends that.
//!
//! This module must not decide anything: it does what it is told, at once, and never blocks on more than a system call.

mod attach;
mod bpffs;
mod connections;
mod counters;
mod error;
mod migrate;
mod paths;
mod peers;
mod registry;
mod reports;
mod requests;
mod rtnetlink;
mod table;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use baton_common::{Counters, Lease, Locked, MAX_SERVERS, MAX_VIPS, Route, Server, VIP_TRACKED, Vip};
use baton_core::{Hop, IfIndex};

pub use attach::{AttachError, Hooks};
pub use bpffs::remove_all;
pub use connections::{ConnectionReader, Ends, Tracked};
pub use counters::CounterReader;
pub use error::KernelError;
pub use paths::{PathStamp, PathTable, RoundTrips, Stamps, TargetStamp};
pub use peers::{PeerTable, node_number, promise_early, sample as peer_sample};
pub use reports::{Report, Reports};
pub use requests::{RequestReader, Requests};

use migrate::Predecessor;
pub use registry::hash as name_hash;
use registry::{Addresses, Servers};

/// The compiled kernel programs.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/baton-ebpf"));

/// Maps that outlive the agent.
const PINNED_MAPS: [&str; 14] = [
    "VIPS",
    "BUCKETS4",
    "BUCKETS6",
    "ROUTES",
    "SERVERS",
    "LEASE",
    "PEERS",
    "VERDICTS",
    "AGENT",
    "COUNTERS",
    "DIAGNOSTICS",
    "OWN_MACS",
    "CONNECTIONS",
    "EVENTS",
];

/// The lease, for a thread of its own.
pub struct LeaseReader(Array<MapData, Locked<Lease>>);

impl LeaseReader {
    /// The lease as it is.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn read(&self) -> Result<Lease, KernelError> {
        let locked = self.0.get(&0, BPF_F_LOCK).map_err(|source| KernelError::map("LEASE", source))?;
        Ok(locked.value)
    }
}

/// Of `linux/bpf.h`: reads or writes a value under its lock.
const BPF_F_LOCK: u64 = 4;

/// The oldest kernel with all that the programs need (`bpf_xdp_get_buff_len`, XDP with fragments).
const OLDEST_KERNEL: (u8, u8) = (5, 18);

/// The loaded programs and their maps. Dropping it leaves everything that is attached where it is.
pub struct Kernel {
    dir: PathBuf,
    hooks: Hooks,
    ebpf: Ebpf,
    server_marks: Array<MapData, Server>,
    lease: Array<MapData, Locked<Lease>>,
    own_macs: HashMap<MapData, [u8; 6], u32>,
    counters: PerCpuArray<MapData, Counters>,
    routes: Array<MapData, Route>,
    addresses: Addresses,
    servers: Servers,
    /// Virtual servers whose TCP connections are kept, by index.
    tracked: BTreeSet<u32>,
    /// Ports get the program that routes.
    routing: bool,
    /// Its programs are being replaced, and its maps have another layout.
    predecessor: Option<Predecessor>,
    /// Ports that the programs were put on.
    attached: BTreeSet<u32>,
    /// What programs of earlier layouts counted, where there were any.
    carried: Option<Array<MapData, Counters>>,
}

impl Kernel {
    /// Loads the programs, with their maps pinned below `bpffs_dir` (absolute). Takes over what an earlier agent pinned
    /// there. Mounts a BPF file system at the folder, or at its parent, if there is none.
    ///
    /// # Errors
    ///
    /// Missing privileges (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON; to mount, CAP_SYS_ADMIN), a kernel older than 5.18, no
    /// BPF file system, pinned maps of another layout under the same version.
    pub fn open(bpffs_dir: &Path) -> Result<Self, KernelError> {
        Self::open_with(bpffs_dir, Hooks::default())
    }

    /// [`Kernel::open`] with some hooks left out, as if this kernel or its drivers refused them.
    ///
    /// # Errors
    ///
    /// As [`Kernel::open`].
    pub fn open_with(bpffs_dir: &Path, hooks: Hooks) -> Result<Self, KernelError> {
        let (major, minor) = OLDEST_KERNEL;
        if !kernel_at_least(major, minor) {
            return Err(KernelError::TooOld { oldest: OLDEST_KERNEL });
        }
        let fresh = !bpffs_dir.exists();
        let opened = Self::load(bpffs_dir, hooks);
        if opened.is_err()
            && fresh
            && let Err(error) = remove_all(bpffs_dir)
        {
            tracing::warn!(%error, "what was pinned so far is left");
        }
        opened
    }

    fn load(bpffs_dir: &Path, hooks: Hooks) -> Result<Self, KernelError> {
        let maps_dir = bpffs::prepare(bpffs_dir)?;
        let mut predecessor = Predecessor::find(bpffs_dir)?;

        let pins = PINNED_MAPS.map(|name| (name, maps_dir.join(name)));
        let mut loader = EbpfLoader::new();
        for (name, path) in &pins {
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader.load(OBJECT).map_err(KernelError::load)?;
        // Verification takes a good part of a second each: what may not be needed is loaded when it is.
        for name in attach::needed(bpffs_dir)? {
            let program = ebpf.program_mut(name).ok_or(KernelError::NoSuchProgram { name })?;
            attach::load(program).map_err(|source| KernelError::program(name, source))?;
        }

        if let Some(predecessor) = &predecessor {
            predecessor.carry()?;
        }
        let mut addresses = Addresses::read(
            take(&mut ebpf, "VIPS", &maps_dir)?,
            take(&mut ebpf, "BUCKETS4", &maps_dir)?,
            take(&mut ebpf, "BUCKETS6", &maps_dir)?,
        )?;
        if let Some(predecessor) = &mut predecessor {
            predecessor.carry_addresses(&mut addresses)?;
        }
        let carried = maps_dir.join(migrate::CARRIED);
        let carried = if carried.exists() { Some(open_pinned(&carried)?) } else { None };
        let server_marks = take(&mut ebpf, "SERVERS", &maps_dir)?;
        let servers = Servers::read(&server_marks)?;
        let mut kernel = Self {
            dir: bpffs_dir.to_owned(),
            hooks,
            server_marks,
            lease: take(&mut ebpf, "LEASE", &maps_dir)?,
            own_macs: take(&mut ebpf, "OWN_MACS", &maps_dir)?,
            counters: take(&mut ebpf, "COUNTERS", &maps_dir)?,
            routes: take(&mut ebpf, "ROUTES", &maps_dir)?,
            addresses,
            servers,
            tracked: BTreeSet::new(),
            routing: false,
            predecessor,
            attached: BTreeSet::new(),
            carried,
            ebpf,
        };
        kernel.remove_links_of_gone_interfaces()?;
        Ok(kernel)
    }

    /// Tells the programs that the address is a virtual IP of this virtual server, bound to this port (`None`: to no
    /// port). It gets a counter slot, starting at zero, when it is first seen.
    ///
    /// # Errors
    ///
    /// More than [`MAX_VIPS`] addresses or [`MAX_SERVERS`] virtual servers; a map refuses the entry.
    pub fn permit(
        &mut self,
        address: IpAddr,
        server: &str,
        port: Option<IfIndex>,
    ) -> Result<(), KernelError> {
        let server = self.server(server)?;
        let port = port.map_or(0, |IfIndex(port)| port);
        let flags = self.flags(server);
        match self.addresses.get(address) {
            Some((slot, vip)) => self.addresses.rebind(address, slot, Vip { flags, port, server, ..vip }),
            None => {
                let slot = self.addresses.free_slot();
                let slot = slot.ok_or(KernelError::Full { what: "virtual IPs", limit: MAX_VIPS })?;
                self.zero(slot)?;
                self.addresses.insert(address, slot, (port, server, flags))
            }
        }
    }

    /// From now on the TCP connections of these virtual servers are kept, and those of all others aren't.
    ///
    /// # Errors
    ///
    /// More than [`MAX_SERVERS`] virtual servers; a map refuses.
    pub fn track<'a>(&mut self, servers: impl IntoIterator<Item = &'a str>) -> Result<(), KernelError> {
        let indices: Result<_, _> = servers.into_iter().map(|server| self.server(server)).collect();
        self.tracked = indices?;
        let known: Vec<IpAddr> = self.known().collect();
        for address in known {
            let Some((slot, vip)) = self.addresses.get(address) else { continue };
            let flags = self.flags(vip.server);
            if flags != vip.flags {
                self.addresses.rebind(address, slot, Vip { flags, ..vip })?;
            }
        }
        Ok(())
    }

    fn flags(&self, server: u32) -> u16 {
        if self.tracked.contains(&server) { VIP_TRACKED } else { 0 }
    }

    /// Reads the TCP connections that are kept; for another thread.
    ///
    /// # Errors
    ///
    /// The map cannot be opened a second time; it has been taken before.
    pub fn connections(&mut self) -> Result<ConnectionReader, KernelError> {
        let maps_dir = self.maps_dir();
        ConnectionReader::open(&maps_dir, &mut self.ebpf)
    }

    /// Makes the address an ordinary one. It is no error if it isn't a virtual IP.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn forget(&mut self, address: IpAddr) -> Result<(), KernelError> {
        self.route(address, None)?;
        self.addresses.remove(address)
    }

    /// Sends the packets of a virtual IP on by this hop, or takes them in (`None`). It is no error if an address that isn't a
    /// virtual IP is not to be routed.
    ///
    /// # Errors
    ///
    /// The address isn't a virtual IP; the map refuses.
    pub fn route(&mut self, address: IpAddr, to: Option<Hop>) -> Result<(), KernelError> {
        let route =
            to.map_or(Route::default(), |hop| Route { ifindex: hop.ifindex.0, to: hop.to, from: hop.from });
        match self.addresses.get(address) {
            Some((slot, _)) => {
                self.routes.set(slot, route, 0).map_err(|source| KernelError::map("ROUTES", source))
            }
            None if to.is_none() => Ok(()),
            None => Err(KernelError::NotVirtual { address }),
        }
    }

    /// The virtual IPs whose packets are sent on.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn routed(&self) -> Result<BTreeSet<IpAddr>, KernelError> {
        let mut routed = BTreeSet::new();
        for address in self.known() {
            if let Some((slot, _)) = self.addresses.get(address) {
                let route = self.routes.get(&slot, 0).map_err(|source| KernelError::map("ROUTES", source))?;
                if route.ifindex != 0 {
                    routed.insert(address);
                }
            }
        }
        Ok(routed)
    }

    /// From now on ports get the program that routes, or lose it.
    pub fn set_routing(&mut self, routing: bool) {
        self.routing = routing;
    }

    /// Sets the serving mark of a virtual server, or clears it (`None`). It is served while the mark equals the lease's
    /// incarnation and the lease has not ended.
    ///
    /// # Errors
    ///
    /// More than [`MAX_SERVERS`] virtual servers; the map refuses.
    pub fn mark(&mut self, server: &str, incarnation: Option<u64>) -> Result<(), KernelError> {
        let index = self.server(server)?;
        self.set_server(index, Server { mark: incarnation.unwrap_or(0), name: registry::hash(server) })
    }

    /// Removes a virtual server and its mark. Its addresses must have been forgotten before. It is no error if it isn't
    /// known.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn forget_server(&mut self, server: &str) -> Result<(), KernelError> {
        match self.servers.get(server) {
            Some(index) => {
                self.set_server(index, Server::default())?;
                self.servers.remove(server);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Prepares the marks for these virtual servers and this incarnation: those of servers that aren't among `names` and
    /// of other incarnations are cleared. Returns the servers whose mark is on.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn adopt_servers(
        &mut self,
        names: &[&str],
        incarnation: u64,
    ) -> Result<BTreeSet<String>, KernelError> {
        let mut marked = BTreeSet::new();
        let mut keep = BTreeSet::new();
        for name in names {
            let index = self.server(name)?;
            keep.insert(index);
            let server =
                self.server_marks.get(&index, 0).map_err(|source| KernelError::map("SERVERS", source))?;
            if server.mark == incarnation && incarnation != 0 {
                marked.insert((*name).to_owned());
            } else if server.mark != 0 {
                self.mark(name, None)?;
            }
        }
        for index in self.servers.retain(&keep) {
            self.set_server(index, Server::default())?;
        }
        Ok(marked)
    }

    /// Sets until when this node may serve, and as which incarnation; all of it at once for the programs, which go on from
    /// there.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn set_lease(&mut self, lease: Lease) -> Result<(), KernelError> {
        let locked = Locked { value: lease, ..Locked::default() };
        self.lease.set(0, locked, BPF_F_LOCK).map_err(|source| KernelError::map("LEASE", source))
    }

    /// The lease, as the programs see it now.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn lease(&self) -> Result<Lease, KernelError> {
        let locked = self.lease.get(&0, BPF_F_LOCK).map_err(|source| KernelError::map("LEASE", source))?;
        Ok(locked.value)
    }

    /// Reads the lease on another thread.
    ///
    /// # Errors
    ///
    /// The map cannot be opened a second time.
    pub fn lease_reader(&self) -> Result<LeaseReader, KernelError> {
        Ok(LeaseReader(open_pinned(&self.maps_dir().join("LEASE"))?))
    }

    /// Where every virtual IP is bound: what an earlier agent left, and what has been permitted since. Addresses that
    /// are bound nowhere are left out.
    pub fn bound(&self) -> BTreeMap<IpAddr, IfIndex> {
        self.addresses
            .iter()
            .filter(|(_, vip)| vip.port != 0)
            .map(|(address, vip)| (address, IfIndex(vip.port)))
            .collect()
    }

    /// All virtual IPs that the programs know, bound or not.
    pub fn known(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|(address, _)| address)
    }

    /// Reads what the programs report. There should be one reader at a time.
    ///
    /// # Errors
    ///
    /// The ring buffer cannot be mapped.
    pub fn reports(&self) -> Result<Reports, KernelError> {
        Reports::open(&self.maps_dir().join("EVENTS"))
    }

    /// The path table, empty at first.
    ///
    /// # Errors
    ///
    /// It has been taken before; it cannot be mapped.
    pub fn path_table(&mut self) -> Result<PathTable, KernelError> {
        PathTable::take(&mut self.ebpf)
    }

    /// Reads the counters; for another thread.
    ///
    /// # Errors
    ///
    /// A map cannot be opened a second time.
    pub fn reader(&self) -> Result<CounterReader, KernelError> {
        CounterReader::open(&self.maps_dir(), self.addresses.used())
    }

    /// Begins to watch the requests to block devices; for another thread.
    ///
    /// # Errors
    ///
    /// The kernel has no such tracepoints, or keeps requests in another way; it refuses the programs; it has been taken before.
    pub fn requests(&mut self) -> Result<RequestReader, KernelError> {
        RequestReader::start(&mut self.ebpf)
    }

    /// The programs' own messages, for the `log` crate. There are few; read them when the descriptor is readable.
    ///
    /// # Errors
    ///
    /// It has been taken before.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, KernelError> {
        aya_log::EbpfLogger::init(&mut self.ebpf).map_err(KernelError::Logger)
    }

    /// The program of this name; for tests and benchmarks that run it on packets of their own.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub fn program(&mut self, name: &str) -> Result<Option<&mut aya::programs::Program>, KernelError> {
        let Some(program) = self.ebpf.program_mut(name) else { return Ok(None) };
        attach::load_if_new(program).map_err(|source| KernelError::program(name, source))?;
        Ok(Some(program))
    }

    fn maps_dir(&self) -> PathBuf {
        bpffs::maps_dir(&self.dir)
    }

    /// Index of a virtual server; a new one is entered without a mark.
    fn server(&mut self, name: &str) -> Result<u32, KernelError> {
        if let Some(index) = self.servers.get(name) {
            return Ok(index);
        }
        let (index, is_new) = self
            .servers
            .allocate(name)
            .ok_or(KernelError::Full { what: "virtual servers", limit: MAX_SERVERS })?;
        if is_new {
            self.set_server(index, Server { mark: 0, name: registry::hash(name) })?;
        }
        Ok(index)
    }

    fn set_server(&mut self, index: u32, server: Server) -> Result<(), KernelError> {
        self.server_marks.set(index, server, 0).map_err(|source| KernelError::map("SERVERS", source))
    }

    /// Sets a counter slot to zero on every CPU.
    fn zero(&mut self, slot: u32) -> Result<(), KernelError> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?;
        let zeros = PerCpuValues::try_from(vec![Counters::default(); cpus])
            .map_err(|source| KernelError::Cpus { path: "possible CPUs", source })?;
        if let Some(carried) = &mut self.carried {
            let set = carried.set(slot, Counters::default(), 0);
            set.map_err(|source| KernelError::map(migrate::CARRIED, source))?;
        }
        self.counters.set(slot, zeros, 0).map_err(|source| KernelError::map("COUNTERS", source))
    }
}

/// Takes a map out of the object, after a check that a pinned one has the layout that this version means.
fn take<T>(ebpf: &mut Ebpf, name: &'static str, maps_dir: &Path) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(KernelError::NoSuchMap { name })?;
    T::try_from(map).map_err(|source| KernelError::Layout { name, dir: maps_dir.to_owned(), source })
}

/// Opens a map a second time, by its pin.
fn open_pinned<T>(path: &Path) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let open = || T::try_from(Map::from_map_data(MapData::from_pin(path)?)?);
    open().map_err(|source| KernelError::Pinned { path: path.to_owned(), source })
}

/// An unknown version is taken to be new: what is missing will be refused.
fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().map_or(true, |version| version >= KernelVersion::new(major, minor, 0))
}

/// A missing entry is as good as a removed one.
fn unless_missing(error: MapError) -> Result<(), MapError> {
    match error {
        MapError::KeyNotFound => Ok(()),
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        error => Err(error),
    }
}
