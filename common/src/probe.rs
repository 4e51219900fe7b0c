//! The probe frame: what ports tell one another, on layer 2.
//!
//! All integers are in network order. The tag is SipHash-2-4 over everything before it, the Ethernet header included,
//! read as little-endian words. The fields from offset 64 on are those of a cluster: see `crate::Peer`.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 6 | destination: the MAC address of the port it is meant for |
//! | 6 | 6 | source: the MAC address of the sending port |
//! | 12 | 2 | EtherType 0x88B5 (IEEE 802 local experimental) |
//! | 14 | 1 | version |
//! | 15 | 1 | kind: 1 probe, 2 echo |
//! | 16 | 4 | number of the sending node |
//! | 20 | 4 | number of the sending port within its node (its interface index) |
//! | 24 | 8 | incarnation of the sending node |
//! | 32 | 8 | sequence: rises with every probe of a path; an echo carries that of the probe it answers |
//! | 40 | 8 | the sender's boot-time clock when it was sent, nanoseconds |
//! | 48 | 8 | the latest time of the receiver that the sender has; 0: none |
//! | 56 | 4 | how long the sender has had that, nanoseconds; the highest value means that or longer |
//! | 60 | 4 | the low half of the incarnation of the receiver which that time came from |
//! | 64 | 8 | the latest time of the receiver that the sender has from any of its ports; 0: none |
//! | 72 | 8 | the incarnation of the receiver which that time came from |
//! | 80 | 8 | grant: the time of the receiver, of that incarnation, from which on it may serve for a lease; 0: none |
//! | 88 | 8 | verdict: the sender calls a member dead up to this incarnation; 0: none |
//! | 96 | 4 | version of the member list that the sender counts in; 0: it is alone |
//! | 100 | 1 | the member that the verdict is about, by its slot |
//! | 101 | 1 | flags: 1, the sender will never grant the receiver's incarnation that it names |
//! | 102 | 2 | not used |
//! | 104 | 8 | tag |

use crate::siphash::{SipKey, siphash24};

/// EtherType of probe frames.
pub const PROBE_ETHERTYPE: u16 = 0x88b5;
/// Version of the frame's layout.
pub const PROBE_VERSION: u8 = 2;
/// Kind: asks for an echo.
pub const PROBE_KIND_PROBE: u8 = 1;
/// Kind: answers a probe.
pub const PROBE_KIND_ECHO: u8 = 2;
/// Bytes of a probe frame. What an adapter or a switch appends to reach the least length of Ethernet is ignored.
pub const PROBE_LENGTH: usize = 112;
/// Flag: the sender grants nothing to the incarnation that it names (lease.md, rules R3 and R4).
pub const PROBE_REFUSES: u8 = 1;

/// A probe frame as it lies in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeFrame {
    /// MAC address of the port it is meant for.
    pub destination: [u8; 6],
    /// MAC address of the sending port.
    pub source: [u8; 6],
    /// [`PROBE_ETHERTYPE`].
    pub ethertype: [u8; 2],
    /// [`PROBE_VERSION`].
    pub version: [u8; 1],
    /// [`PROBE_KIND_PROBE`] or [`PROBE_KIND_ECHO`].
    pub kind: [u8; 1],
    /// Number of the sending node.
    pub node: [u8; 4],
    /// Number of the sending port.
    pub port: [u8; 4],
    /// Incarnation of the sending node.
    pub incarnation: [u8; 8],
    /// Rises with every probe of a path.
    pub sequence: [u8; 8],
    /// When it was sent.
    pub sent_ns: [u8; 8],
    /// The latest time of the receiver that the sender has.
    pub returned_ns: [u8; 8],
    /// For how long it has had it.
    pub held_ns: [u8; 4],
    /// Of which incarnation (low half).
    pub returned_incarnation: [u8; 4],
    /// The latest time of the receiver that the sender has from any port.
    pub latest_ns: [u8; 8],
    /// Of which incarnation.
    pub latest_incarnation: [u8; 8],
    /// The time of that incarnation from which on its lease runs.
    pub granted_ns: [u8; 8],
    /// The member named below is dead up to this incarnation.
    pub verdict: [u8; 8],
    /// Version of the sender's member list.
    pub members: [u8; 4],
    /// Slot of the member that the verdict is about.
    pub about: [u8; 1],
    /// [`PROBE_REFUSES`], or 0.
    pub flags: [u8; 1],
    /// Not used.
    pub reserved: [u8; 2],
    /// SipHash-2-4 of all that is before.
    pub tag: [u8; 8],
}
const _: () = assert!(size_of::<ProbeFrame>() == PROBE_LENGTH && align_of::<ProbeFrame>() == 1);

impl ProbeFrame {
    /// As it goes over the wire.
    pub const fn as_bytes(&self) -> &[u8; PROBE_LENGTH] {
        // SAFETY: made of bytes alone, as many (asserted above).
        unsafe { &*core::ptr::from_ref(self).cast() }
    }

    /// The tag that the frame must carry.
    #[inline(always)]
    pub fn expected_tag(&self, key: SipKey) -> u64 {
        let words = core::ptr::from_ref(self).cast::<u64>();
        // SAFETY: the frame is 112 bytes, of which 13 words are read; it need not be aligned.
        let word = |i| u64::from_le(unsafe { words.add(i).read_unaligned() });
        siphash24(key, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12].map(word))
    }

    /// Does it carry the right tag? Takes as long for a wrong one.
    #[inline(always)]
    pub fn verify(&self, key: SipKey) -> bool {
        self.expected_tag(key) ^ u64::from_le_bytes(self.tag) == 0
    }

    /// Writes the tag; the last thing to do.
    #[inline(always)]
    pub fn seal(&mut self, key: SipKey) {
        self.tag = self.expected_tag(key).to_le_bytes();
    }
}

/// Why a frame is not a probe frame that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeRefused {
    /// Shorter than [`PROBE_LENGTH`], or of another EtherType.
    Truncated,
    /// Of another version, or of no known kind.
    Version,
    /// Its tag is wrong.
    Forged,
}

/// Reads a frame, as the kernel program does.
///
/// # Errors
/// [`ProbeRefused`], in the order in which the kernel program looks.
pub fn parse_probe(bytes: &[u8], key: SipKey) -> Result<ProbeFrame, ProbeRefused> {
    let bytes = bytes.get(..PROBE_LENGTH).ok_or(ProbeRefused::Truncated)?;
    // SAFETY: as many bytes are there; the frame is made of bytes, so any content is valid and nothing is misaligned.
    let frame = unsafe { bytes.as_ptr().cast::<ProbeFrame>().read() };
    if frame.ethertype != PROBE_ETHERTYPE.to_be_bytes() {
        return Err(ProbeRefused::Truncated);
    }
    if frame.version != [PROBE_VERSION] || !matches!(frame.kind, [PROBE_KIND_PROBE] | [PROBE_KIND_ECHO]) {
        return Err(ProbeRefused::Version);
    }
    if frame.verify(key) { Ok(frame) } else { Err(ProbeRefused::Forged) }
}
