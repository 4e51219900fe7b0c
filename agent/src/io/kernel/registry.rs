//! Which counter slot belongs to which address and which index to which virtual server, as the pinned maps say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use aya::maps::{Array, HashMap as BpfHashMap, MapData};
use baton_common::{MAX_SERVERS, MAX_VIPS, Server, Vip};

use super::KernelError;

/// The virtual IPs and the free counter slots.
pub(super) struct Addresses {
    known: BTreeMap<IpAddr, Vip>,
    free: BTreeSet<u32>,
}

impl Addresses {
    /// Reads what the maps hold.
    pub(super) fn read(
        vips4: &BpfHashMap<MapData, [u8; 4], Vip>,
        vips6: &BpfHashMap<MapData, [u8; 16], Vip>,
    ) -> Result<Self, KernelError> {
        let v4 = vips4.iter().map(|entry| entry.map(|(key, vip)| (IpAddr::from(key), vip)));
        let v6 = vips6.iter().map(|entry| entry.map(|(key, vip)| (IpAddr::from(key), vip)));
        let known: BTreeMap<IpAddr, Vip> =
            v4.chain(v6).collect::<Result<_, _>>().map_err(|source| KernelError::map("VIPS", source))?;
        let mut free: BTreeSet<u32> = (0..MAX_VIPS).collect();
        for vip in known.values() {
            free.remove(&vip.slot);
        }
        Ok(Self { known, free })
    }

    pub(super) fn get(&self, address: IpAddr) -> Option<Vip> {
        self.known.get(&address).copied()
    }

    /// The lowest free slot: so those in use lie close together and are read with one call.
    pub(super) fn free_slot(&self) -> Option<u32> {
        self.free.first().copied()
    }

    pub(super) fn insert(&mut self, address: IpAddr, vip: Vip) {
        self.free.remove(&vip.slot);
        self.known.insert(address, vip);
    }

    pub(super) fn remove(&mut self, address: IpAddr) {
        if let Some(vip) = self.known.remove(&address) {
            self.free.insert(vip.slot);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, Vip)> {
        self.known.iter().map(|(address, vip)| (*address, *vip))
    }
}

/// The virtual servers by name. The maps know only the hashes of the names.
pub(super) struct Servers {
    indices: HashMap<String, u32>,
    hashes: HashMap<u64, u32>,
}

impl Servers {
    /// Reads what the map holds.
    pub(super) fn read(servers: &Array<MapData, Server>) -> Result<Self, KernelError> {
        let mut hashes = HashMap::new();
        for (index, server) in (0..MAX_SERVERS).zip(servers.iter()) {
            let server = server.map_err(|source| KernelError::map("SERVERS", source))?;
            if server.name != 0 {
                hashes.insert(server.name, index);
            }
        }
        Ok(Self { indices: HashMap::new(), hashes })
    }

    pub(super) fn get(&self, name: &str) -> Option<u32> {
        self.indices.get(name).copied()
    }

    /// Forgets all but these indices, and returns the forgotten ones.
    pub(super) fn retain(&mut self, keep: &BTreeSet<u32>) -> Vec<u32> {
        let gone = self.hashes.values().copied().filter(|index| !keep.contains(index)).collect();
        self.hashes.retain(|_, index| keep.contains(index));
        self.indices.retain(|_, index| keep.contains(index));
        gone
    }

    /// The index that an earlier agent gave the name, else the lowest free one and `true`.
    pub(super) fn allocate(&mut self, name: &str) -> Option<(u32, bool)> {
        let (index, is_new) = match self.hashes.get(&hash(name)) {
            Some(index) => (*index, false),
            None => {
                let used: BTreeSet<u32> = self.hashes.values().copied().collect();
                ((0..MAX_SERVERS).find(|index| !used.contains(index))?, true)
            }
        };
        self.hashes.insert(hash(name), index);
        self.indices.insert(name.to_owned(), index);
        Some((index, is_new))
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.indices.remove(name);
        self.hashes.remove(&hash(name));
    }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv), never 0. It is kept in pinned maps, so it must be the same in every version.
pub(super) fn hash(name: &str) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    name.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)).max(1)
}
