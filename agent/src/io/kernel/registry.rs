//! Which counter slot belongs to which address and which index to which virtual server, as the pinned maps say.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::maps::{Array, MapData};
use baton_common::{MAX_CHAIN, MAX_SERVERS, MAX_VIPS, Server, Vip, bucket4, bucket6};

use super::KernelError;

/// The virtual IPs: which slot each has, how the chains of equal hashes run, and which slots are free.
pub(super) struct Addresses {
    vips: Array<MapData, Vip>,
    buckets4: Array<MapData, u32>,
    buckets6: Array<MapData, u32>,
    slots: HashMap<IpAddr, (u32, Vip)>,
    free: BTreeSet<u32>,
    /// Slots below this have been in use; readers need look no further.
    used: Arc<AtomicU32>,
}

impl Addresses {
    /// Reads what the maps hold. An entry that an agent left half made or half removed is removed.
    pub(super) fn read(
        vips: Array<MapData, Vip>,
        buckets4: Array<MapData, u32>,
        buckets6: Array<MapData, u32>,
    ) -> Result<Self, KernelError> {
        let entries: Vec<Vip> =
            vips.iter().collect::<Result<_, _>>().map_err(|source| KernelError::map("VIPS", source))?;
        let mut addresses = Self {
            vips,
            buckets4,
            buckets6,
            slots: HashMap::new(),
            free: (0..MAX_VIPS).collect(),
            used: Arc::new(AtomicU32::new(0)),
        };
        for (slot, vip) in (0..MAX_VIPS).zip(&entries) {
            let Some(address) = address(vip) else {
                continue;
            };
            if addresses.chain(address, &entries)?.contains(&slot) {
                addresses.enter(address, slot, *vip);
            } else {
                addresses.write(slot, Vip::default())?;
            }
        }
        Ok(addresses)
    }

    /// How many slots, from the first, readers must look at.
    pub(super) fn used(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.used)
    }

    pub(super) fn get(&self, address: IpAddr) -> Option<(u32, Vip)> {
        self.slots.get(&address).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, Vip)> {
        self.slots.iter().map(|(address, (_, vip))| (*address, *vip))
    }

    /// The lowest free slot: so those in use lie close together and are read with one call.
    pub(super) fn free_slot(&self) -> Option<u32> {
        self.free.first().copied()
    }

    /// Nothing is at this slot.
    pub(super) fn is_free(&self, slot: u32) -> bool {
        self.free.contains(&slot)
    }

    /// Enters an address into a free slot, at the head of its chain. The entry is complete before the link leads to it.
    pub(super) fn insert(
        &mut self,
        address: IpAddr,
        slot: u32,
        (port, server, flags): (u32, u32, u16),
    ) -> Result<(), KernelError> {
        let next = self.head(address)?;
        let alike = || self.slots.keys().filter(|other| same_bucket(**other, address)).count();
        if next != 0 && alike() >= MAX_CHAIN as usize {
            return Err(KernelError::Full { what: "virtual IPs with the same hash", limit: MAX_CHAIN });
        }
        let (octets, family) = octets(address);
        let vip = Vip { address: octets, family, flags, port, server, next };
        self.write(slot, vip)?;
        self.set_head(address, slot + 1)?;
        self.enter(address, slot, vip);
        Ok(())
    }

    /// Changes port, server and flags of an address.
    pub(super) fn rebind(&mut self, address: IpAddr, slot: u32, vip: Vip) -> Result<(), KernelError> {
        self.write(slot, vip)?;
        self.slots.insert(address, (slot, vip));
        Ok(())
    }

    /// Takes an address out of its chain, then empties its slot.
    pub(super) fn remove(&mut self, address: IpAddr) -> Result<(), KernelError> {
        let Some((slot, vip)) = self.slots.get(&address).copied() else {
            return Ok(());
        };
        let before = self
            .slots
            .iter()
            .find(|(other, (_, entry))| entry.next == slot + 1 && other.is_ipv4() == address.is_ipv4());
        match before.map(|(other, (slot, entry))| (*other, *slot, *entry)) {
            Some((other, slot, entry)) => self.rebind(other, slot, Vip { next: vip.next, ..entry })?,
            None => self.set_head(address, vip.next)?,
        }
        self.write(slot, Vip::default())?;
        self.slots.remove(&address);
        self.free.insert(slot);
        Ok(())
    }

    fn enter(&mut self, address: IpAddr, slot: u32, vip: Vip) {
        self.free.remove(&slot);
        self.slots.insert(address, (slot, vip));
        self.used.fetch_max(slot + 1, Ordering::Relaxed);
    }

    /// The slots that the chain of an address leads to.
    fn chain(&self, address: IpAddr, entries: &[Vip]) -> Result<Vec<u32>, KernelError> {
        let mut slots = Vec::new();
        let mut link = self.head(address)?;
        while let Some(vip) = link.checked_sub(1).and_then(|slot| entries.get(slot as usize))
            && slots.len() < MAX_CHAIN as usize
        {
            slots.push(link - 1);
            link = vip.next;
        }
        Ok(slots)
    }

    fn head(&self, address: IpAddr) -> Result<u32, KernelError> {
        match address {
            IpAddr::V4(address) => self.buckets4.get(&bucket4(address.octets()), 0),
            IpAddr::V6(address) => self.buckets6.get(&bucket6(address.octets()), 0),
        }
        .map_err(|source| KernelError::map("BUCKETS", source))
    }

    fn set_head(&mut self, address: IpAddr, link: u32) -> Result<(), KernelError> {
        match address {
            IpAddr::V4(address) => self.buckets4.set(bucket4(address.octets()), link, 0),
            IpAddr::V6(address) => self.buckets6.set(bucket6(address.octets()), link, 0),
        }
        .map_err(|source| KernelError::map("BUCKETS", source))
    }

    fn write(&mut self, slot: u32, vip: Vip) -> Result<(), KernelError> {
        self.vips.set(slot, vip, 0).map_err(|source| KernelError::map("VIPS", source))
    }
}

fn same_bucket(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => bucket4(one.octets()) == bucket4(other.octets()),
        (IpAddr::V6(one), IpAddr::V6(other)) => bucket6(one.octets()) == bucket6(other.octets()),
        _ => false,
    }
}

/// The address of an entry; `None`: the slot is free.
pub(super) fn address(vip: &Vip) -> Option<IpAddr> {
    match vip.family {
        4 => {
            let [a, b, c, d, ..] = vip.address;
            Some(IpAddr::from([a, b, c, d]))
        }
        6 => Some(IpAddr::from(vip.address)),
        _ => None,
    }
}

pub(super) fn octets(address: IpAddr) -> ([u8; 16], u16) {
    match address {
        IpAddr::V4(address) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&address.octets());
            (wide, 4)
        }
        IpAddr::V6(address) => (address.octets(), 6),
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
pub fn hash(name: &str) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    name.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)).max(1)
}
