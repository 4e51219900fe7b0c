//! What the store holds of the connections of one virtual server, and what is to be written next.
//!
//! Connections are spread over buckets by a hash of the client, so that a change costs a part of the whole. A bucket is written
//! where connections have come or gone, and where one has fallen silent since: only the numbers of silent connections are of use, those
//! of busy ones have changed before anybody reads them. Both are bounded, the buckets take turns.

use std::net::{IpAddr, SocketAddr};

use super::codec::{Bucket, encode};
use super::{Change, Numbers};
use crate::io::kernel::Ends;

/// Buckets of each virtual server.
pub const BUCKETS: usize = 64;
/// At most so many are written at a time because connections have come or gone,
const CHANGED_AT_ONCE: usize = 16;
/// and so many because of numbers.
const RENUMBERED_AT_ONCE: usize = 4;

/// A connection, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its ends.
    pub ends: Ends,
    /// Its numbers.
    pub numbers: Numbers,
    /// They have not changed for a while.
    pub silent: bool,
}

/// What the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    buckets: Vec<Bucket>,
    /// Where to go on looking.
    turn: usize,
}

impl Default for Shared {
    fn default() -> Self {
        Shared { buckets: vec![Bucket::new(); BUCKETS], turn: 0 }
    }
}

impl Shared {
    /// The store holds this bucket. One of a number that there is none of is ignored.
    pub fn set(&mut self, bucket: usize, content: Bucket) {
        if let Some(known) = self.buckets.get_mut(bucket) {
            *known = content;
        }
    }

    /// All connections.
    pub fn all(&self) -> impl Iterator<Item = (Ends, Numbers)> {
        self.buckets.iter().flatten().map(|(ends, numbers)| (*ends, *numbers))
    }

    /// What is to be written, so that the store comes to hold these; where only numbers have changed, `with_numbers`.
    pub fn changes(&mut self, current: &[Current], with_numbers: bool) -> Vec<Change> {
        let mut wanted = vec![Vec::new(); BUCKETS];
        for connection in current {
            wanted[bucket_of(&connection.ends.client)].push(connection);
        }
        let (mut changed, mut renumbered) = (0, 0);
        let mut changes = Vec::new();
        let first = self.turn;
        for bucket in (0..BUCKETS).map(|n| (first + n) % BUCKETS) {
            let known = &self.buckets[bucket];
            let count = match difference(known, &wanted[bucket]) {
                Difference::None => continue,
                Difference::Numbers if !with_numbers => continue,
                Difference::Numbers => (&mut renumbered, RENUMBERED_AT_ONCE),
                Difference::Connections => (&mut changed, CHANGED_AT_ONCE),
            };
            if *count.0 == count.1 {
                continue;
            }
            *count.0 += 1;
            self.turn = (bucket + 1) % BUCKETS;
            let content: Bucket = wanted[bucket].iter().map(|c| (c.ends, c.numbers)).collect();
            let value = (!content.is_empty()).then(|| encode(&content));
            changes.push(Change { bucket, value });
        }
        changes
    }
}

enum Difference {
    None,
    Numbers,
    Connections,
}

fn difference(known: &Bucket, wanted: &[&Current]) -> Difference {
    if known.len() != wanted.len() || wanted.iter().any(|c| !known.contains_key(&c.ends)) {
        return Difference::Connections;
    }
    match wanted.iter().any(|c| c.silent && known.get(&c.ends) != Some(&c.numbers)) {
        true => Difference::Numbers,
        false => Difference::None,
    }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv).
pub fn bucket_of(client: &SocketAddr) -> usize {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let port = client.port().to_be_bytes();
    let of = |octets: &[u8]| octets.iter().chain(&port).fold(0xcbf2_9ce4_8422_2325, hash);
    let hash = match client.ip() {
        IpAddr::V4(address) => of(&address.octets()),
        IpAddr::V6(address) => of(&address.octets()),
    };
    // Its lower bits depend on the last byte alone more than the others do.
    ((hash >> 32) ^ hash) as usize % BUCKETS
}
