//! Takes over from an agent of another version, whose maps have another layout.
//!
//! Its programs go on with its maps until they are replaced, port by port. Meanwhile what its maps hold is carried over, by their names:
//! addresses keep their slots, counters go on, and marks, lease, peers and verdicts are as they were, so that nothing is served anew
//! and nobody who was called dead is granted anything. When the new programs are on all ports, the old maps are removed.
//!
//! The rule that makes this possible, in both directions: a layout may only grow at its end, and zero in a new field means what was meant
//! without it. What is missing is zero, what is too much is left out. A layout that changes otherwise gets another name for its map, and
//! then starts from nothing.
//!
//! Packets that old programs count after the counters were read are not lost: what the old maps counted in the end is kept in an array
//! beside the new counters, which nobody else writes, and readers add it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData, MapType};
use baton_common::{AgentPromise, Counters, Lease, MAX_VIPS, Vip};
use baton_core::Time;

use super::bpffs::{layouts, maps_dir};
use super::registry::{self, Addresses};
use super::{BPF_F_LOCK, KernelError, open_pinned};

/// `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_GET_NEXT_KEY` of bpf(2).
const LOOKUP: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const NEXT_KEY: libc::c_int = 4;

/// Counters of earlier layouts, by slot; only the agent writes it, and it is there only where there was one.
pub(super) const CARRIED: &str = "CARRIED";

/// What is carried over as it is: none of it depends on how addresses are found.
const AS_IT_IS: [&str; 9] =
    ["SERVERS", "ROUTES", "LEASE", "PEERS", "VERDICTS", "AGENT", "OWN_MACS", "DIAGNOSTICS", "CONNECTIONS"];
/// Its keys are made of the number of members that there may be: where that is another one, they say another thing. What members told
/// they tell again.
const BY_PLACE: &str = "VERDICTS";
/// What the programs themselves write of it, and that counts by the millisecond.
const LIVE: [&str; 2] = ["LEASE", "PEERS"];

/// An agent of another layout was here.
pub(super) struct Predecessor {
    old: PathBuf,
    new: PathBuf,
    /// Slots that are carried over.
    slots: Vec<u32>,
    refreshed: bool,
}

impl Predecessor {
    /// The one whose programs may still run; `None`: there was none, or one of this layout.
    pub(super) fn find(bpffs: &Path) -> Result<Option<Predecessor>, KernelError> {
        let new = maps_dir(bpffs);
        let mut others = layouts(bpffs)?;
        others.retain(|dir| *dir != new && dir.join("VIPS").exists());
        let version = |dir: &PathBuf| dir.file_name()?.to_str()?.strip_prefix('v')?.parse::<u32>().ok();
        let old = others.into_iter().max_by_key(version);
        Ok(old.map(|old| Predecessor { old, new, slots: Vec::new(), refreshed: false }))
    }

    /// Carries over all but addresses and their counters.
    pub(super) fn carry(&self) -> Result<(), KernelError> {
        AS_IT_IS.iter().try_for_each(|name| self.copy(name))
    }

    /// Carries over the addresses, at their slots, and what was counted so far.
    pub(super) fn carry_addresses(&mut self, addresses: &mut Addresses) -> Result<(), KernelError> {
        let Some(old) = Raw::open(&self.old, "VIPS")? else { return Ok(()) };
        let mut bytes = [0u8; size_of::<Vip>()];
        for slot in 0..old.entries.min(MAX_VIPS) {
            let Some(value) = old.get(&slot.to_ne_bytes())? else { continue };
            bytes.fill(0);
            copy_part(&value, &mut bytes);
            // SAFETY: any bytes are a Vip, and there are as many; it need not be aligned.
            let vip: Vip = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
            let Some(address) = registry::address(&vip) else { continue };
            match addresses.get(address) {
                Some((known, _)) if known == slot => {}
                // A newer agent of this layout has given it another slot: it counts anew there.
                Some(_) => continue,
                None if addresses.is_free(slot) => {
                    addresses.insert(address, slot, (vip.port, vip.server, vip.flags))?;
                }
                None => continue,
            }
            self.slots.push(slot);
        }
        self.carry_counters()
    }

    /// Reads again what counts by the millisecond; to be called right before the first program is replaced.
    pub(super) fn refresh(&mut self) -> Result<(), KernelError> {
        if std::mem::replace(&mut self.refreshed, true) {
            return Ok(());
        }
        let (Some(old), Some(new)) = (Raw::open(&self.old, "LEASE")?, Raw::open(&self.new, "LEASE")?) else {
            return Ok(());
        };
        // Where this agent has begun another incarnation, or counts in another member list, what was granted before is void.
        let same = |a: &[u8], b: &[u8]| {
            let of = |bytes: &[u8], at: usize, length: usize| bytes.get(at..at + length).map(<[u8]>::to_vec);
            let members = 8 + std::mem::offset_of!(Lease, members);
            of(a, 8, 8) == of(b, 8, 8) && of(a, members, 4) == of(b, members, 4)
        };
        match (old.get(&[0; 4])?, new.get(&[0; 4])?) {
            (Some(a), Some(b)) if same(&a, &b) => LIVE.iter().try_for_each(|name| self.copy(name)),
            _ => Ok(()),
        }
    }

    /// The new programs are on all ports: what the old ones counted is final.
    pub(super) fn finish(self) -> Result<(), KernelError> {
        self.carry_counters()
    }

    fn carry_counters(&self) -> Result<(), KernelError> {
        let Some(old) = Raw::open(&self.old, "COUNTERS")? else { return Ok(()) };
        let before = Raw::open(&self.old, CARRIED)?;
        let path = self.new.join(CARRIED);
        if !path.exists() {
            let made = Array::<MapData, Counters>::create(MAX_VIPS, 0);
            let made = made.map_err(|source| KernelError::map(CARRIED, source))?;
            made.pin(&path)
                .map_err(|e| KernelError::Pin { path: path.clone(), source: io::Error::other(e) })?;
        }
        let mut carried: Array<MapData, Counters> = open_pinned(&path)?;
        for slot in self.slots.iter().filter(|slot| **slot < old.entries) {
            let key = slot.to_ne_bytes();
            let per_cpu = old.get(&key)?.unwrap_or_default();
            let beside = before.as_ref().map_or(Ok(None), |b| b.get(&key))?.unwrap_or_default();
            let values = per_cpu.chunks_exact(old.stride()).chain([&beside[..]]);
            let sum =
                values.map(counters).fold(Counters::default(), |sum, one| super::counters::add(sum, &one));
            carried.set(*slot, sum, 0).map_err(|source| KernelError::map(CARRIED, source))?;
        }
        Ok(())
    }

    /// Copies a map, entry by entry; one that only one of the two has, or whose keys are others, is left out.
    fn copy(&self, name: &'static str) -> Result<(), KernelError> {
        let (Some(old), Some(new)) = (Raw::open(&self.old, name)?, Raw::open(&self.new, name)?) else {
            return Ok(());
        };
        let other_places = name == BY_PLACE && old.entries != new.entries;
        if (old.key, old.cpus) != (new.key, new.cpus) || other_places {
            tracing::warn!(map = name, "is of another kind than before: starts from nothing");
            return Ok(());
        }
        for key in old.keys()? {
            let Some(value) = old.get(&key)? else { continue };
            // An array has all its entries anyway, and those that hold nothing are the most.
            let is_beyond = new.is_array && u32::from_ne_bytes(first_four(&key)) >= new.entries;
            if is_beyond || (new.is_array && value.iter().all(|byte| *byte == 0)) {
                continue;
            }
            let mut fitting = vec![0u8; new.bytes()];
            let parts = value.chunks_exact(old.stride()).zip(fitting.chunks_exact_mut(new.stride()));
            parts.for_each(|(from, to)| copy_part(&from[..old.value], &mut to[..new.value]));
            match new.set(&key, &fitting) {
                // Going back to a version whose map holds less.
                Err(KernelError::Batch { source, .. }) if source.raw_os_error() == Some(libc::E2BIG) => {
                    tracing::warn!(map = name, "held more than there is room for: the rest is left out");
                    return Ok(());
                }
                done => done?,
            }
        }
        Ok(())
    }
}

/// Promises the programs of every layout there is that an agent is there until then.
pub(super) fn promise(bpffs: &Path, until: Time) -> Result<(), KernelError> {
    for dir in layouts(bpffs)? {
        let Some(map) = Raw::open(&dir, "AGENT")? else { continue };
        let mut value = map.get(&[0; 4])?.unwrap_or_default();
        copy_part(&until.0.to_ne_bytes()[..size_of::<AgentPromise>()], &mut value);
        map.set(&[0; 4], &value)?;
    }
    Ok(())
}

fn counters(bytes: &[u8]) -> Counters {
    let mut whole = [0u8; size_of::<Counters>()];
    copy_part(bytes, &mut whole);
    // SAFETY: any bytes are Counters, and there are as many; they need not be aligned.
    unsafe { std::ptr::read_unaligned(whole.as_ptr().cast()) }
}

/// As much as there is, and as there is room for.
fn copy_part(from: &[u8], to: &mut [u8]) {
    let length = from.len().min(to.len());
    to[..length].copy_from_slice(&from[..length]);
}

fn first_four(key: &[u8]) -> [u8; 4] {
    let mut four = [0; 4];
    copy_part(key, &mut four);
    four
}

/// A pinned map, as bytes.
struct Raw {
    name: &'static str,
    map: MapData,
    /// Bytes of a key,
    key: usize,
    /// and of a value.
    value: usize,
    /// Values of each key: one, or one for every possible CPU.
    cpus: Option<usize>,
    is_array: bool,
    entries: u32,
    /// Its values have a lock.
    flags: u64,
}

/// Part of `union bpf_attr` for commands on elements (bpf(2), `linux/bpf.h`).
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Raw {
    /// `None`: there is no such map.
    fn open(dir: &Path, name: &'static str) -> Result<Option<Raw>, KernelError> {
        let path = dir.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let map = MapData::from_pin(&path).map_err(|source| KernelError::Pinned { path, source })?;
        let info = map.info().map_err(|source| KernelError::map(name, source))?;
        let kind = info.map_type().map_err(|source| KernelError::map(name, source))?;
        let (key, value, entries) =
            (info.key_size() as usize, info.value_size() as usize, info.max_entries());
        let cpus = match kind {
            MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash => {
                Some(aya::util::nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?)
            }
            _ => None,
        };
        let is_array = matches!(kind, MapType::Array | MapType::PerCpuArray);
        let flags = if LIVE.contains(&name) { BPF_F_LOCK } else { 0 };
        Ok(Some(Raw { name, map, key, value, cpus, is_array, entries, flags }))
    }

    /// From one value of a key to the next: per-CPU values are padded.
    fn stride(&self) -> usize {
        if self.cpus.is_some() { self.value.next_multiple_of(8) } else { self.value }
    }

    /// All values of a key.
    fn bytes(&self) -> usize {
        self.stride() * self.cpus.unwrap_or(1)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KernelError> {
        let mut value = vec![0u8; self.bytes()];
        match self.call(LOOKUP, key, value.as_mut_ptr() as u64, self.flags) {
            Ok(()) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(source) => Err(KernelError::Batch { map: self.name, source }),
        }
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), KernelError> {
        debug_assert_eq!(value.len(), self.bytes());
        self.call(UPDATE, key, value.as_ptr() as u64, self.flags)
            .map_err(|source| KernelError::Batch { map: self.name, source })
    }

    /// All keys, as they are now.
    fn keys(&self) -> Result<Vec<Vec<u8>>, KernelError> {
        if self.is_array {
            return Ok((0..self.entries).map(|index| index.to_ne_bytes().to_vec()).collect());
        }
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // One that changes while it is walked may begin anew: it is not walked for ever.
        while keys.len() <= self.entries as usize {
            let mut next = vec![0u8; self.key];
            let before = keys.last().map_or(0, |key| key.as_ptr() as u64);
            match self.raw_call(NEXT_KEY, before, next.as_mut_ptr() as u64, 0) {
                Ok(()) => keys.push(next),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => break,
                Err(source) => return Err(KernelError::Batch { map: self.name, source }),
            }
        }
        Ok(keys)
    }

    fn call(&self, command: libc::c_int, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        if key.len() != self.key {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.raw_call(command, key.as_ptr() as u64, value, flags)
    }

    fn raw_call(&self, command: libc::c_int, key: u64, value: u64, flags: u64) -> io::Result<()> {
        let map_fd = self.map.fd().as_fd().as_raw_fd() as u32;
        let mut attributes = ElementAttributes { map_fd, padding: 0, key, value, flags };
        // SAFETY: the buffers have the sizes that the map has, read from it when it was opened, and outlive the call, as the
        // attributes do.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<ElementAttributes>())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
