//! The path table: who is probed by whom, and what the kernel programs have stamped.
//!
//! The table is memory-mapped, so reading it costs no system call. It lives as long as the programs that were loaded with
//! it; a new agent starts with an empty one.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use aya::maps::{Array, HashMap, IterableMap, MapData};
use aya::{Ebpf, Pod};
use baton_common::{
    MAX_PATHS, MAX_SEEN, MAX_TARGETS, Path, PathKey, ProbeConfig, RTT_BUCKETS, Seen, Target, TargetKey,
};
use baton_core::{IfIndex, Time};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{KernelError, unless_missing};

/// The agent's side of the path table.
pub struct PathTable {
    probe: Array<MapData, ProbeConfig>,
    path_keys: HashMap<MapData, PathKey, u32>,
    target_keys: HashMap<MapData, TargetKey, u32>,
    stamps: Arc<Stamps>,
    free_paths: BTreeSet<u32>,
    free_targets: BTreeSet<u32>,
}

/// What the kernel programs have stamped; may be read from any thread.
pub struct Stamps {
    paths: Mapped<Path>,
    targets: Mapped<Target>,
    seen: Mapped<Seen>,
}

/// What is known of a path, of [`Path`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStamp {
    /// When the last frame came.
    pub heard: Option<Time>,
    /// Probes that came.
    pub probes: u64,
    /// Echoes that came.
    pub echoes: u64,
    /// The sender's time in the latest probe, and when that came; 0: none.
    pub peer_ns: u64,
    /// See there.
    pub peer_at_ns: u64,
    /// The last round-trip time, nanoseconds; 0: none yet.
    pub rtt_ns: u64,
    /// The kernel's timer watches it, or has found it silent.
    pub timed: bool,
}

/// What is known of a probe target, of [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetStamp {
    /// When the last answer came.
    pub answered: Option<Time>,
    /// Answers that came.
    pub answers: u64,
    /// MAC address in the last one.
    pub mac: [u8; 6],
}

/// The round-trip times of a path: how many there were of which length ([`Path::rtt`]), and their sum in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrips {
    /// By bucket.
    pub buckets: [u64; RTT_BUCKETS],
    /// Sum.
    pub sum_ns: u64,
}

impl PathTable {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            probe: map(ebpf, "PROBE")?,
            path_keys: map(ebpf, "PATH_KEYS")?,
            target_keys: map(ebpf, "TARGET_KEYS")?,
            stamps: Arc::new(Stamps {
                paths: Mapped::new(ebpf, "PATHS", MAX_PATHS)?,
                targets: Mapped::new(ebpf, "TARGETS", MAX_TARGETS)?,
                seen: Mapped::new(ebpf, "SEEN", MAX_SEEN)?,
            }),
            free_paths: (0..MAX_PATHS).collect(),
            free_targets: (0..MAX_TARGETS).collect(),
        })
    }

    /// Says who this node is. From now on its ports answer probes.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn identify(&mut self, config: ProbeConfig) -> Result<(), KernelError> {
        self.probe.set(0, config, 0).map_err(|source| KernelError::map("PROBE", source))
    }

    /// Enters a path, never heard so far, and returns its slot.
    ///
    /// # Errors
    ///
    /// More than [`MAX_PATHS`] paths; the map refuses.
    pub fn add_path(&mut self, key: PathKey, path: Path) -> Result<u32, KernelError> {
        let slot = self.free_paths.pop_first();
        let slot = slot.ok_or(KernelError::Full { what: "paths", limit: MAX_PATHS })?;
        self.stamps.paths.write(slot, path);
        self.path_keys.insert(key, slot, 0).map_err(|source| {
            self.free_paths.insert(slot);
            KernelError::map("PATH_KEYS", source)
        })?;
        Ok(slot)
    }

    /// Removes a path. Its frames are unknown from now on.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn remove_path(&mut self, key: PathKey, slot: u32) -> Result<(), KernelError> {
        let removed = self.path_keys.remove(&key).or_else(unless_missing);
        removed.map_err(|source| KernelError::map("PATH_KEYS", source))?;
        self.free_paths.insert(slot);
        Ok(())
    }

    /// Enters a target as asked from a port, and returns its slot.
    ///
    /// # Errors
    ///
    /// More than [`MAX_TARGETS`]; the map refuses.
    pub fn add_target(&mut self, port: IfIndex, target: IpAddr) -> Result<u32, KernelError> {
        let slot = self.free_targets.pop_first();
        let slot = slot.ok_or(KernelError::Full { what: "probe targets", limit: MAX_TARGETS })?;
        self.stamps.targets.write(slot, Target::default());
        self.target_keys.insert(target_key(port, target), slot, 0).map_err(|source| {
            self.free_targets.insert(slot);
            KernelError::map("TARGET_KEYS", source)
        })?;
        Ok(slot)
    }

    /// Removes a target as asked from a port.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn remove_target(&mut self, port: IfIndex, target: IpAddr, slot: u32) -> Result<(), KernelError> {
        let removed = self.target_keys.remove(&target_key(port, target)).or_else(unless_missing);
        removed.map_err(|source| KernelError::map("TARGET_KEYS", source))?;
        self.free_targets.insert(slot);
        Ok(())
    }

    /// Has the packets to virtual IPs stamped that come by this port.
    pub fn watch_unicast(&mut self, port: IfIndex) {
        let slot = port.0 % MAX_SEEN;
        if self.stamps.seen.read(slot).ifindex != port.0 {
            self.stamps.seen.write(slot, Seen { unicast_ns: 0, ifindex: port.0, reserved: 0 });
        }
    }

    /// What has been stamped.
    pub fn stamps(&self) -> &Arc<Stamps> {
        &self.stamps
    }
}

impl Stamps {
    /// A path.
    pub fn path(&self, slot: u32) -> PathStamp {
        let path = self.paths.at(slot);
        // SAFETY: each is a word of the entry. Volatile, because the programs write them at any time.
        unsafe {
            let word = |word: *const u64| word.read_volatile();
            PathStamp {
                heard: time(word(&raw const (*path).heard_ns)),
                probes: word(&raw const (*path).probes),
                echoes: word(&raw const (*path).echoes),
                peer_ns: word(&raw const (*path).peer_ns),
                peer_at_ns: word(&raw const (*path).peer_at_ns),
                rtt_ns: word(&raw const (*path).rtt_ns),
                timed: word(&raw const (*path).armed) | word(&raw const (*path).silent_ns) != 0,
            }
        }
    }

    /// The round-trip times of a path.
    pub fn round_trips(&self, slot: u32) -> RoundTrips {
        let path = self.paths.read(slot);
        RoundTrips { buckets: path.rtt, sum_ns: path.rtt_sum_ns }
    }

    /// A target.
    pub fn target(&self, slot: u32) -> TargetStamp {
        let Target { answered_ns, answers, mac, .. } = self.targets.read(slot);
        TargetStamp { answered: time(answered_ns), answers, mac }
    }

    /// When a port last received a packet to a virtual IP.
    pub fn unicast(&self, port: IfIndex) -> Option<Time> {
        let seen = self.seen.read(port.0 % MAX_SEEN);
        time(seen.unicast_ns).filter(|_| seen.ifindex == port.0)
    }
}

fn time(ns: u64) -> Option<Time> {
    (ns != 0).then_some(Time(ns))
}

fn target_key(port: IfIndex, target: IpAddr) -> TargetKey {
    let (address, family) = match target {
        IpAddr::V4(target) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&target.octets());
            (wide, 4)
        }
        IpAddr::V6(target) => (target.octets(), 6),
    };
    TargetKey { address, family, ifindex: port.0 }
}

pub(super) fn map<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, KernelError> {
    let map = ebpf.take_map(name).ok_or(KernelError::NoSuchMap { name })?;
    T::try_from(map).map_err(|source| KernelError::map(name, source))
}

/// A memory-mapped array.
pub(super) struct Mapped<T: Pod> {
    /// Programs that are loaded later name the map by its descriptor.
    _array: Array<MapData, T>,
    start: NonNull<T>,
    entries: u32,
    bytes: NonZeroUsize,
    value: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel programs anyhow; it is read and written word by word through raw pointers.
unsafe impl<T: Pod> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Pod> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    pub(super) fn new(ebpf: &mut Ebpf, name: &'static str, entries: u32) -> Result<Self, KernelError> {
        // An entry takes a multiple of eight bytes (array_map_alloc, kernel/bpf/arraymap.c).
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 8) };
        let array: Array<MapData, T> = map(ebpf, name)?;
        let error = |errno: nix::Error| KernelError::Batch { map: name, source: errno.into() };
        let bytes = NonZeroUsize::new(size_of::<T>() * entries as usize)
            .ok_or_else(|| error(nix::errno::Errno::EINVAL))?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping of a whole map, at an address that the kernel chooses.
        let start = unsafe { mmap(None, bytes, access, flags, array.map().fd().as_fd(), 0) };
        Ok(Self { start: start.map_err(error)?.cast(), entries, bytes, value: PhantomData, _array: array })
    }

    /// Slots come from this module alone; one out of range would be a mistake in it.
    fn at(&self, slot: u32) -> *mut T {
        assert!(slot < self.entries, "slot {slot} of {}", self.entries);
        // SAFETY: within the mapping.
        unsafe { self.start.as_ptr().add(slot as usize) }
    }

    /// Not one moment's picture: the programs may change an entry while it is read.
    fn read(&self, slot: u32) -> T {
        // SAFETY: within the mapping, aligned, and valid whatever the bytes are.
        unsafe { self.at(slot).read_volatile() }
    }

    pub(super) fn write(&self, slot: u32, value: T) {
        // SAFETY: as above.
        unsafe { self.at(slot).write_volatile(value) }
    }
}

impl<T: Pod> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nobody can reach it any more.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.bytes.get()) } {
            tracing::warn!(%error, "a map stays mapped");
        }
    }
}
