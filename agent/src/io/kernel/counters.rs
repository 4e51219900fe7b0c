//! Reads the counters, on a thread of its own.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::Pod;
use aya::maps::{MapData, PerCpuArray};
use baton_common::{Counters, Diagnostics, MAX_VIPS, Vip};

use super::{KernelError, open_pinned};

/// `BPF_MAP_LOOKUP_BATCH` of bpf(2).
const LOOKUP_BATCH: libc::c_int = 24;

/// Reads counters and diagnostics. It holds descriptors and buffers of its own.
pub struct CounterReader {
    vips4: Batch<[u8; 4], Vip>,
    vips6: Batch<[u8; 16], Vip>,
    counters: Batch<u32, Counters>,
    diagnostics: PerCpuArray<MapData, Diagnostics>,
}

impl CounterReader {
    pub(super) fn open(maps_dir: &Path) -> Result<Self, KernelError> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?;
        Ok(Self {
            vips4: Batch::open("VIPS4", maps_dir, 1)?,
            vips6: Batch::open("VIPS6", maps_dir, 1)?,
            counters: Batch::open("COUNTERS", maps_dir, cpus)?,
            diagnostics: open_pinned(&maps_dir.join("DIAGNOSTICS"))?,
        })
    }

    /// The counters of every virtual IP, summed over the CPUs, with the slot that they are kept in. An address that was
    /// forgotten and comes back may have another slot, and starts from zero.
    ///
    /// # Errors
    ///
    /// A map refuses to be read.
    pub fn read(&mut self) -> Result<Vec<(IpAddr, u32, Counters)>, KernelError> {
        let mut slots: Vec<(IpAddr, u32)> = Vec::new();
        slots.extend(self.vips4.read(MAX_VIPS)?.map(|(address, vips)| (IpAddr::from(address), vips[0].slot)));
        slots.extend(self.vips6.read(MAX_VIPS)?.map(|(address, vips)| (IpAddr::from(address), vips[0].slot)));
        slots.sort_unstable();

        let used = slots.iter().map(|(_, slot)| slot + 1).max().unwrap_or(0);
        let mut sums = vec![Counters::default(); used as usize];
        for (slot, values) in self.counters.read(used)? {
            if let Some(sum) = sums.get_mut(slot as usize) {
                *sum = values.iter().fold(Counters::default(), add);
            }
        }
        let read = slots.into_iter().map(|(address, slot)| (address, slot, sums[slot as usize]));
        Ok(read.collect())
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
        }))
    }
}

fn add(sum: Counters, cpu: &Counters) -> Counters {
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

/// A map that is read many entries at a time, each with one value or, in a per-CPU map, one per possible CPU.
struct Batch<K, V> {
    name: &'static str,
    map: MapData,
    values_per_key: usize,
    keys: Vec<K>,
    values: Vec<V>,
}

/// Part of `union bpf_attr` for the batch commands (bpf(2), `linux/bpf.h`).
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl<K: Pod + Default, V: Pod + Default> Batch<K, V> {
    fn open(name: &'static str, maps_dir: &Path, values_per_key: usize) -> Result<Self, KernelError> {
        let path = maps_dir.join(name);
        let map = MapData::from_pin(&path).map_err(|source| KernelError::Pinned { path, source })?;
        let info = map.info().map_err(|source| KernelError::map(name, source))?;
        // The kernel writes as many bytes as the map says: they must be as many as the buffers have.
        if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
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
    fn read(&mut self, limit: u32) -> Result<impl Iterator<Item = (K, &[V])>, KernelError> {
        let wanted = limit as usize;
        if self.keys.len() < wanted {
            self.keys.resize(wanted, K::default());
            self.values.resize(wanted * self.values_per_key, V::default());
        }
        let mut token = [0u8; 16]; // where to go on: a hash map's is four bytes, other maps' a key
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
