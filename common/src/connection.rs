use crate::layout;

/// Entries of the LRU map `CONNECTIONS`: when it is full, those that have sent nothing for longest go.
pub const MAX_CONNECTIONS: u32 = 65_536;

/// [`Connection::flags`]: the virtual server has said that it sends no more (FIN).
pub const CONNECTION_ENDED: u32 = 1;
/// [`Connection::flags`]: the client has reset it.
pub const CONNECTION_RESET: u32 = 2;

/// Key of the map `CONNECTIONS`: a TCP connection of a virtual IP whose connections are kept ([`crate::VIP_TRACKED`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The virtual IP in network order; IPv4 in the first four bytes.
    pub server: [u8; 16],
    /// The client's address likewise.
    pub client: [u8; 16],
    /// The virtual server's port, in network order.
    pub server_port: [u8; 2],
    /// The client's.
    pub client_port: [u8; 2],
    /// 4 or 6.
    pub family: u32,
}
layout!(ConnectionKey, 40);

/// Value of the map `CONNECTIONS`. It is there since the virtual server first sent something that was neither a SYN nor a reset:
/// so the client has answered, and a flood of SYNs leaves nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// In the low half the sequence number that the client expects next (SND.NXT of the virtual server), in the high one that
    /// which the virtual server expects next (RCV.NXT): the highest that it has sent. One word, so that both are of one time.
    pub numbers: u64,
    /// When the virtual server last sent something: the coarse monotonic clock, nanoseconds.
    pub sent_ns: u64,
    /// [`CONNECTION_ENDED`], [`CONNECTION_RESET`].
    pub flags: u32,
    /// Not used.
    pub reserved: u32,
}
layout!(Connection, 24);

impl Connection {
    /// The next sequence numbers of the virtual server and of the client, as one word.
    #[inline(always)]
    pub const fn pack(server: u32, client: u32) -> u64 {
        (client as u64) << 32 | server as u64
    }

    /// The sequence number that the client expects next.
    #[inline(always)]
    pub const fn next_of_server(self) -> u32 {
        self.numbers as u32
    }

    /// The one that the virtual server expects next.
    #[inline(always)]
    pub const fn next_of_client(self) -> u32 {
        (self.numbers >> 32) as u32
    }
}

/// The later of two sequence numbers (RFC 9293, 3.4: modulo 2^32).
#[inline(always)]
pub const fn later(one: u32, other: u32) -> u32 {
    if (other.wrapping_sub(one) as i32) > 0 { other } else { one }
}
