//! Reads the counters, on a thread of its own.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::Pod;
use aya::maps::{MapData, PerCpuArray};
use baton_common::{Counters, Diagnostics, Vip};

use super::migrate::CARRIED;
use super::{KernelError, open_pinned, registry};

/// `BPF_MAP_LOOKUP_BATCH` of bpf(2).
pub(super) const LOOKUP_BATCH: libc::c_int = 24;

/// Reads counters and diagnostics. It holds descriptors and buffers of its own.
pub struct CounterReader {
    vips: Batch<Vip>,
    counters: Batch<Counters>,
    diagnostics: PerCpuArray<MapData, Diagnostics>,
    /// What programs of earlier layouts counted, where there were any.
    carried: Option<Batch<Counters>>,
    /// How many slots there are to read.
    used: Arc<AtomicU32>,
}

impl CounterReader {
    pub(super) fn open(maps_dir: &Path, used: Arc<AtomicU32>) -> Result<Self, KernelError> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?;
        Ok(Self {
            vips: Batch::open("VIPS", maps_dir, 1)?,
            counters: Batch::open("COUNTERS", maps_dir, cpus)?,
            diagnostics: open_pinned(&maps_dir.join("DIAGNOSTICS"))?,
            carried: match maps_dir.join(CARRIED).exists() {
                true => Some(Batch::open(CARRIED, maps_dir, 1)?),
                false => None,
            },
            used,
        })
    }

    /// The counters of every virtual IP, summed over the CPUs, in the order of the slots; with the slot that they are kept in. An address that was
    /// forgotten and comes back may have another slot, and starts from zero.
    ///
    /// # Errors
    ///
    /// A map refuses to be read.
    pub fn read(&mut self) -> Result<Vec<(IpAddr, u32, Counters)>, KernelError> {
        let used = self.used.load(Ordering::Relaxed);
        let mut read = Vec::with_capacity(used as usize);
        let mut carried = vec![Counters::default(); used as usize];
        if let Some(before) = &mut self.carried {
            before.read(used)?.for_each(|(slot, values)| carried[slot as usize] = values[0]);
        }
        let vips = self.vips.read(used)?;
        for ((slot, vip), (_, values)) in vips.zip(self.counters.read(used)?) {
            if let Some(address) = registry::address(&vip[0]) {
                read.push((address, slot, values.iter().fold(carried[slot as usize], add)));
            }
        }
        Ok(read)
    }

    /// What the programs saw that belongs to no virtual IP, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// The map refuses to be read.
    pub fn diagnostics(&mut self) -> Result<Diagnostics, KernelError> {
        let values = self.diagnostics.get(&0, 0).map_err(|source| KernelError::map("DIAGNOSTICS", source))?;
        Ok(values.iter().fold(Diagnostics::default(), |sum, cpu| Diagnostics {
            malformed: sum.malformed + cpu.malformed,
            claims: sum.claims + cpu.claims,
            claims_unreported: sum.claims_unreported + cpu.claims_unreported,
            redirected: sum.redirected + cpu.redirected,
            probes_truncated: sum.probes_truncated + cpu.probes_truncated,
            probes_version: sum.probes_version + cpu.probes_version,
            probes_forged: sum.probes_forged + cpu.probes_forged,
            probes_replayed: sum.probes_replayed + cpu.probes_replayed,
            probes_unknown: sum.probes_unknown + cpu.probes_unknown,
        }))
    }
}

pub(super) fn add(sum: Counters, cpu: &Counters) -> Counters {
    Counters {
        rx_packets: sum.rx_packets + cpu.rx_packets,
        rx_bytes: sum.rx_bytes + cpu.rx_bytes,
        tx_packets: sum.tx_packets + cpu.tx_packets,
        tx_bytes: sum.tx_bytes + cpu.tx_bytes,
        rx_dropped: sum.rx_dropped + cpu.rx_dropped,
        tx_dropped: sum.tx_dropped + cpu.tx_dropped,
        rx_last_ns: sum.rx_last_ns.max(cpu.rx_last_ns),
        other_port: sum.other_port + cpu.other_port,
    }
}

/// An array that is read many entries at a time, each with one value or, in a per-CPU array, one per possible CPU.
struct Batch<V> {
    name: &'static str,
    map: MapData,
    values_per_key: usize,
    keys: Vec<u32>,
    values: Vec<V>,
}

/// Part of `union bpf_attr` for the batch commands (bpf(2), `linux/bpf.h`).
#[repr(C)]
pub(super) struct BatchAttributes {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    pub count: u32,
    pub map_fd: u32,
    pub elem_flags: u64,
    pub flags: u64,
}

impl<V: Pod + Default> Batch<V> {
    fn open(name: &'static str, maps_dir: &Path, values_per_key: usize) -> Result<Self, KernelError> {
        let path = maps_dir.join(name);
        let map = MapData::from_pin(&path).map_err(|source| KernelError::Pinned { path, source })?;
        let info = map.info().map_err(|source| KernelError::map(name, source))?;
        // The kernel writes as many bytes as the map says: they must be as many as the buffers have.
        if info.key_size() as usize != size_of::<u32>() || info.value_size() as usize != size_of::<V>() {
            return Err(KernelError::Layout {
                name,
                dir: maps_dir.to_owned(),
                source: aya::maps::MapError::InvalidValueSize {
                    size: info.value_size() as usize,
                    expected: size_of::<V>(),
                },
            });
        }
        Ok(Self { name, map, values_per_key, keys: Vec::new(), values: Vec::new() })
    }

    /// Reads the first `limit` entries, or all if there are fewer, with one system call.
    fn read(&mut self, limit: u32) -> Result<impl Iterator<Item = (u32, &[V])>, KernelError> {
        let wanted = limit as usize;
        if self.keys.len() < wanted {
            self.keys.resize(wanted, 0);
            self.values.resize(wanted * self.values_per_key, V::default());
        }
        let mut token = 0u32; // where to go on: the last key
        let mut attributes = BatchAttributes {
            in_batch: 0,
            out_batch: (&raw mut token) as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: limit,
            map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        if limit > 0 {
            // SAFETY: the buffers hold `count` keys and values of the sizes that the map has (checked when it was
            // opened; a per-CPU value is a multiple of eight bytes), and the attributes live until the call returns.
            let result = unsafe {
                libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attributes, size_of::<BatchAttributes>())
            };
            let error = io::Error::last_os_error();
            // ENOENT: that was all there is.
            if result != 0 && error.raw_os_error() != Some(libc::ENOENT) {
                return Err(KernelError::Batch { map: self.name, source: error });
            }
        }
        let read = attributes.count as usize;
        Ok(self.keys[..read].iter().copied().zip(self.values.chunks_exact(self.values_per_key)))
    }
}
