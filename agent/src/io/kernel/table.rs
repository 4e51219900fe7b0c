//! A hash table of the kernel's that is read many entries at a time.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{HashMap, IterableMap, MapData};

use super::counters::{BatchAttributes, LOOKUP_BATCH};
use super::{KernelError, unless_missing};

/// Entries that are read with one system call: more than there ever are in one bucket of the kernel's table.
const BATCH: usize = 4096;

/// It holds buffers of its own.
pub(super) struct Table<K, V> {
    name: &'static str,
    entries: HashMap<MapData, K, V>,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Pod + Default, V: Pod + Default> Table<K, V> {
    /// Of the map of this name, whose sizes have been checked.
    pub fn new(name: &'static str, entries: HashMap<MapData, K, V>) -> Self {
        Self { name, entries, keys: vec![K::default(); BATCH], values: vec![V::default(); BATCH] }
    }

    /// All entries, in no order. One that comes or goes meanwhile is among them, or not.
    ///
    /// # Errors
    ///
    /// The map refuses to be read.
    pub fn read(&mut self) -> Result<Vec<(K, V)>, KernelError> {
        let mut read = Vec::new();
        let mut token: Option<u32> = None; // where to go on: a bucket of the table
        loop {
            let mut next = 0u32;
            let mut attributes = BatchAttributes {
                in_batch: token.as_ref().map_or(0, |token| std::ptr::from_ref(token) as u64),
                out_batch: (&raw mut next) as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: BATCH as u32,
                map_fd: self.entries.map().fd().as_fd().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers hold `count` keys and values of the sizes that the map has (aya checked them when it was opened),
            // and the attributes and both tokens live until the call returns.
            let result = unsafe {
                libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attributes, size_of::<BatchAttributes>())
            };
            let error = io::Error::last_os_error();
            // ENOENT: that was all there is.
            let is_last = result != 0 && error.raw_os_error() == Some(libc::ENOENT);
            if result != 0 && !is_last {
                return Err(KernelError::Batch { map: self.name, source: error });
            }
            let count = attributes.count as usize;
            read.extend(self.keys[..count].iter().copied().zip(self.values[..count].iter().copied()));
            if is_last {
                return Ok(read);
            }
            token = Some(next);
        }
    }

    /// Enters or replaces an entry.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn insert(&mut self, key: K, value: V) -> Result<(), KernelError> {
        self.entries.insert(key, value, 0).map_err(|source| KernelError::map(self.name, source))
    }

    /// Takes an entry away. It is no error if it isn't there.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn remove(&mut self, key: &K) -> Result<(), KernelError> {
        let removed = self.entries.remove(key).or_else(unless_missing);
        removed.map_err(|source| KernelError::map(self.name, source))
    }
}
