//! Reads the TCP connections that the kernel programs keep, on a thread of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::maps::{HashMap, MapData, MapError};
use baton_common::{Connection, ConnectionKey};

use super::counters::{BatchAttributes, LOOKUP_BATCH};
use super::{KernelError, open_pinned, registry, unless_missing};

const MAP: &str = "CONNECTIONS";
/// Entries that are read with one system call: more than there ever are in one bucket of the kernel's table.
const BATCH: usize = 4096;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ends {
    /// The virtual server's: a virtual IP.
    pub server: SocketAddr,
    /// The client's.
    pub client: SocketAddr,
}

/// A connection that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Its ends.
    pub ends: Ends,
    /// What is known of it.
    pub state: Connection,
}

/// Reads and removes connections. It holds descriptors and buffers of its own.
pub struct ConnectionReader {
    map: MapData,
    entries: HashMap<MapData, ConnectionKey, Connection>,
    keys: Vec<ConnectionKey>,
    values: Vec<Connection>,
}

impl ConnectionReader {
    pub(super) fn open(maps_dir: &Path) -> Result<Self, KernelError> {
        let path = maps_dir.join(MAP);
        // Opened as what it is first: then its sizes are those of the buffers, to which the kernel writes.
        let entries = open_pinned(&path)?;
        let map = MapData::from_pin(&path).map_err(|source| KernelError::Pinned { path, source })?;
        let (keys, values) = (vec![ConnectionKey::default(); BATCH], vec![Connection::default(); BATCH]);
        Ok(Self { map, entries, keys, values })
    }

    /// All connections that are kept, in no order. One that comes or goes meanwhile is among them, or not.
    ///
    /// # Errors
    ///
    /// The map refuses to be read.
    pub fn read(&mut self) -> Result<Vec<Tracked>, KernelError> {
        let mut read = Vec::new();
        let mut token = 0u32; // where to go on: a bucket of the table
        loop {
            let is_first = read.is_empty() && token == 0;
            let mut next = 0u32;
            let mut attributes = BatchAttributes {
                in_batch: if is_first { 0 } else { (&raw const token) as u64 },
                out_batch: (&raw mut next) as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: BATCH as u32,
                map_fd: self.map.fd().as_fd().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers hold `count` keys and values of the sizes that the map has (checked when it was opened), and
            // the attributes and both tokens live until the call returns.
            let result = unsafe {
                libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut attributes, size_of::<BatchAttributes>())
            };
            let error = io::Error::last_os_error();
            // ENOENT: that was all there is.
            let is_last = result != 0 && error.raw_os_error() == Some(libc::ENOENT);
            if result != 0 && !is_last {
                return Err(KernelError::Batch { map: MAP, source: error });
            }
            let count = attributes.count as usize;
            let pairs = self.keys[..count].iter().zip(&self.values[..count]);
            read.extend(pairs.filter_map(|(key, state)| Some(Tracked { ends: ends(key)?, state: *state })));
            if is_last {
                return Ok(read);
            }
            token = next;
        }
    }

    /// Forgets a connection. It is no error if it isn't there.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn remove(&mut self, ends: &Ends) -> Result<(), KernelError> {
        let removed = self.entries.remove(&key(ends)).or_else(unless_missing);
        removed.map_err(|source| KernelError::map(MAP, source))
    }

    /// Enters a connection; for tests and benchmarks.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn insert(&mut self, connection: &Tracked) -> Result<(), KernelError> {
        let inserted: Result<(), MapError> = self.entries.insert(key(&connection.ends), connection.state, 0);
        inserted.map_err(|source| KernelError::map(MAP, source))
    }
}

fn ends(key: &ConnectionKey) -> Option<Ends> {
    let address = |bytes: [u8; 16]| match key.family {
        4 => bytes.first_chunk::<4>().map(|four| IpAddr::from(*four)),
        6 => Some(IpAddr::from(bytes)),
        _ => None,
    };
    let end = |bytes, port| Some(SocketAddr::new(address(bytes)?, u16::from_be_bytes(port)));
    Some(Ends { server: end(key.server, key.server_port)?, client: end(key.client, key.client_port)? })
}

fn key(ends: &Ends) -> ConnectionKey {
    let (server, family) = registry::octets(ends.server.ip());
    let (client, _) = registry::octets(ends.client.ip());
    ConnectionKey {
        server,
        client,
        server_port: ends.server.port().to_be_bytes(),
        client_port: ends.client.port().to_be_bytes(),
        family: family.into(),
    }
}
