//! A bucket of connections as the store holds it.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version: 1 |
//! | | then, for each address and port of the virtual server: |
//! | 1 | 4 or 6: length of addresses |
//! | 4 or 16, 2 | the address and the port |
//! | 2 | how many connections follow |
//! | 4 or 16, 2 | address and port of the client |
//! | 4, 4 | next sequence numbers of the virtual server and of the client |
//!
//! All in network order.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BufMut};

use super::Numbers;
use crate::io::kernel::Ends;

const VERSION: u8 = 1;

/// Connections by their ends.
pub type Bucket = BTreeMap<Ends, Numbers>;

/// Writes a bucket.
pub fn encode(bucket: &Bucket) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    let all: Vec<(&Ends, &Numbers)> = bucket.iter().collect();
    // Sorted by the virtual server's end first. More than a count can say become several groups.
    for same in all.chunk_by(|(one, _), (other, _)| one.server == other.server) {
        for group in same.chunks(usize::from(u16::MAX)) {
            let server = group[0].0.server;
            bytes.put_u8(if server.is_ipv4() { 4 } else { 6 });
            put(&mut bytes, server);
            bytes.put_u16(group.len() as u16);
            for (ends, numbers) in group {
                put(&mut bytes, ends.client);
                bytes.put_u32(numbers.server);
                bytes.put_u32(numbers.client);
            }
        }
    }
    bytes
}

/// Reads a bucket. `None`: it is of another version, or damaged.
pub fn decode(mut bytes: &[u8]) -> Option<Bucket> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let mut bucket = Bucket::new();
    while bytes.has_remaining() {
        let family = bytes.try_get_u8().ok()?;
        let server = get(&mut bytes, family)?;
        for _ in 0..bytes.try_get_u16().ok()? {
            let client = get(&mut bytes, family)?;
            let (server_next, client_next) = (bytes.try_get_u32().ok()?, bytes.try_get_u32().ok()?);
            bucket.insert(Ends { server, client }, Numbers { server: server_next, client: client_next });
        }
    }
    Some(bucket)
}

/// Both ends of a connection are of one family.
fn put(bytes: &mut Vec<u8>, end: SocketAddr) {
    match end.ip() {
        IpAddr::V4(address) => bytes.put_slice(&address.octets()),
        IpAddr::V6(address) => bytes.put_slice(&address.octets()),
    }
    bytes.put_u16(end.port());
}

fn get(bytes: &mut &[u8], family: u8) -> Option<SocketAddr> {
    let address = match family {
        4 => IpAddr::from(bytes.try_get_u32().ok()?.to_be_bytes()),
        6 => IpAddr::from(bytes.try_get_u128().ok()?.to_be_bytes()),
        _ => return None,
    };
    Some(SocketAddr::new(address, bytes.try_get_u16().ok()?))
}
