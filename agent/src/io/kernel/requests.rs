//! Requests to block devices: what was done, what has failed, and what is in flight.
//!
//! Maps and programs live as long as the agent: what is counted begins with it.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{Array, MapData, PerCpuHashMap, PerCpuValues};
use aya::programs::{BtfTracePoint, Program, ProgramError};
use aya::{Btf, Ebpf};
use baton_common::{DeviceRequests, InFlight, RequestOffsets};

use super::attach::patiently;
use super::paths::map;
use super::table::Table;
use super::types::{self, Member};
use super::{KernelError, unless_missing};

/// What the programs read of a request, in the order of [`RequestOffsets`].
const MEMBERS: [Member; 5] = [
    ("request", "q"),
    ("request", "__data_len"),
    ("request_queue", "disk"),
    ("gendisk", "major"),
    ("gendisk", "first_minor"),
];
/// The programs, and where the kernel calls them.
const PROGRAMS: [(&str, &str); 2] =
    [("request_issued", "block_rq_issue"), ("request_completed", "block_rq_complete")];

/// Reads what the programs count. They end with the [`super::Kernel`] that they are of.
pub struct RequestReader {
    devices: PerCpuHashMap<MapData, u32, DeviceRequests>,
    in_flight: Table<u64, InFlight>,
    cpus: usize,
    watched: BTreeSet<u32>,
}

/// The link goes with the program.
fn start(program: &mut Program, tracepoint: &str, btf: &Btf) -> Result<(), ProgramError> {
    let program: &mut BtfTracePoint = program.try_into()?;
    patiently(|| program.load(tracepoint, btf))?;
    program.attach().map(drop)
}

/// The requests of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Requests that are done, well or not, since the device is watched.
    pub completed: u64,
    /// Those that have failed.
    pub errors: u64,
    /// Requests that its driver has, and has not done yet.
    pub in_flight: u64,
    /// When the driver got the oldest of them, on the boot-time clock in nanoseconds.
    pub oldest_ns: Option<u64>,
}

impl RequestReader {
    pub(super) fn start(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let [queue, length, disk, major, minor] = types::offsets(MEMBERS)?;
        let mut offsets: Array<MapData, RequestOffsets> = map(ebpf, "REQUEST_OFFSETS")?;
        let set = offsets.set(0, RequestOffsets { queue, length, disk, major, minor }, 0);
        set.map_err(|source| KernelError::map("REQUEST_OFFSETS", source))?;
        let reader = Self {
            devices: map(ebpf, "DEVICES")?,
            in_flight: Table::new("IN_FLIGHT", map(ebpf, "IN_FLIGHT")?),
            cpus: aya::util::nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?,
            watched: BTreeSet::new(),
        };
        let btf = Btf::from_sys_fs().map_err(|source| KernelError::load(source.into()))?;
        for (name, tracepoint) in PROGRAMS {
            let program = ebpf.program_mut(name).ok_or(KernelError::NoSuchProgram { name })?;
            start(program, tracepoint, &btf).map_err(|source| KernelError::program(name, source))?;
        }
        Ok(reader)
    }

    /// What these devices have done and are doing, by [`baton_common::device_number`]. Watches those that it was not asked for before, and no
    /// others any more. `is_idle` says of a device that nothing of it is in flight: what seems to be so was done unseen.
    ///
    /// # Errors
    ///
    /// More than [`baton_common::MAX_DEVICES`] devices; a map refuses.
    pub fn read(
        &mut self,
        wanted: &BTreeSet<u32>,
        is_idle: impl Fn(u32) -> bool,
    ) -> Result<BTreeMap<u32, Requests>, KernelError> {
        self.watch(wanted)?;
        let mut read = BTreeMap::new();
        for device in wanted {
            let values = self.devices.get(device, 0).map_err(|source| KernelError::map("DEVICES", source))?;
            let mut requests = Requests::default();
            for DeviceRequests { completed, errors } in values.iter() {
                requests.completed += completed;
                requests.errors += errors;
            }
            read.insert(*device, requests);
        }
        let in_flight = self.in_flight.read()?;
        let seem_busy: BTreeSet<u32> = in_flight.iter().map(|(_, request)| request.device).collect();
        let idle: BTreeSet<u32> = seem_busy.into_iter().filter(|device| is_idle(*device)).collect();
        for (address, InFlight { since_ns, device, .. }) in in_flight {
            match read.get_mut(&device).filter(|_| !idle.contains(&device)) {
                Some(requests) => {
                    requests.in_flight += 1;
                    requests.oldest_ns =
                        Some(requests.oldest_ns.map_or(since_ns, |before| before.min(since_ns)));
                }
                None => self.in_flight.remove(&address)?,
            }
        }
        Ok(read)
    }

    fn watch(&mut self, wanted: &BTreeSet<u32>) -> Result<(), KernelError> {
        let refused = |source| KernelError::map("DEVICES", source);
        for device in self.watched.difference(wanted) {
            self.devices.remove(device).or_else(unless_missing).map_err(refused)?;
        }
        for device in wanted.difference(&self.watched) {
            let zeros = PerCpuValues::try_from(vec![DeviceRequests::default(); self.cpus])
                .map_err(|source| KernelError::Cpus { path: "possible CPUs", source })?;
            self.devices.insert(*device, zeros, 0).map_err(refused)?;
        }
        self.watched.clone_from(wanted);
        Ok(())
    }
}
