//! Reads the TCP connections that the kernel programs keep, on a thread of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use baton_common::{Connection, ConnectionKey};

use super::paths::map;
use super::table::Table;
use super::{KernelError, open_pinned, registry};

const MAP: &str = "CONNECTIONS";
const MADE: &str = "CONNECTIONS_MADE";

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
    table: Table<ConnectionKey, Connection>,
    made: PerCpuArray<MapData, u64>,
}

impl ConnectionReader {
    pub(super) fn open(maps_dir: &Path, ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let table = Table::new(MAP, open_pinned(&maps_dir.join(MAP))?);
        Ok(Self { table, made: map(ebpf, MADE)? })
    }

    /// How many connections have begun since the programs were loaded. Costs little, whatever the number of those that are kept.
    ///
    /// # Errors
    ///
    /// The map refuses to be read.
    pub fn made(&self) -> Result<u64, KernelError> {
        let made = self.made.get(&0, 0).map_err(|source| KernelError::map(MADE, source))?;
        Ok(made.iter().sum())
    }

    /// All connections that are kept, in no order. One that comes or goes meanwhile is among them, or not.
    ///
    /// # Errors
    ///
    /// The map refuses to be read.
    pub fn read(&mut self) -> Result<Vec<Tracked>, KernelError> {
        let known = |(key, state): (ConnectionKey, Connection)| Some(Tracked { ends: ends(&key)?, state });
        Ok(self.table.read()?.into_iter().filter_map(known).collect())
    }

    /// Forgets a connection. It is no error if it isn't there.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn remove(&mut self, ends: &Ends) -> Result<(), KernelError> {
        self.table.remove(&key(ends))
    }

    /// Enters a connection; for tests and benchmarks.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn insert(&mut self, connection: &Tracked) -> Result<(), KernelError> {
        self.table.insert(key(&connection.ends), connection.state)
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
