//! Neighbour discovery (RFC 4861): finds a solicitation or advertisement behind IPv6 extension headers.

use crate::frame::Frame;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// In the first byte of an advertisement's flags.
const SOLICITED: u8 = 0x40;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// Extension headers that are looked behind. A sender of neighbour discovery has no use for any.
const MAX_EXTENSIONS: usize = 4;
/// Options of a message that are looked at.
const MAX_OPTIONS: usize = 4;
/// No offset is believed beyond this: it keeps the verifier's arithmetic bounded.
const MAX_OFFSET: usize = 0x3fff;

/// A neighbour solicitation or advertisement.
pub struct Neighbour {
    pub kind: Kind,
    /// The address it is about.
    pub target: &'static [u8; 16],
    /// The link-layer address option that tells whose MAC goes with it: the sender's in a solicitation, the target's in
    /// an advertisement.
    pub mac: Option<&'static [u8; 6]>,
    /// An advertisement that answers a solicitation.
    pub solicited: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Solicitation,
    Advertisement,
}

/// ICMPv6, type to target: RFC 4861, 4.3 and 4.4.
#[repr(C)]
struct Message {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    flags: [u8; 4],
    target: [u8; 16],
}

/// A neighbour message may stand behind this header. Behind a fragment header it is invalid (RFC 6980) and so is traffic.
#[inline(always)]
pub fn may_be_ahead(next: u8) -> bool {
    matches!(next, ICMPV6 | HOP_BY_HOP | DESTINATION | ROUTING)
}

/// Walks the extension headers. Outer `None`: malformed; inner `None`: not a neighbour message.
#[inline(always)]
pub fn find(frame: Frame, mut next: u8, start: usize, payload: usize) -> Option<Option<Neighbour>> {
    let end = start + payload;
    let mut offset = start;
    for _ in 0..MAX_EXTENSIONS {
        if next == ICMPV6 {
            break;
        }
        if !may_be_ahead(next) {
            return Some(None);
        }
        let extension = frame.at::<[u8; 2]>(offset)?;
        next = extension[0];
        offset += (usize::from(extension[1]) + 1) * 8;
        if offset > end || offset > MAX_OFFSET {
            return None;
        }
    }
    if next != ICMPV6 {
        return Some(None);
    }
    let kind = match frame.at::<[u8; 4]>(offset)?[0] {
        SOLICITATION => Kind::Solicitation,
        ADVERTISEMENT => Kind::Advertisement,
        _ => return Some(None),
    };
    let message = frame.at::<Message>(offset)?;
    let target = &message.target;
    let solicited = kind == Kind::Advertisement && message.flags[0] & SOLICITED != 0;
    if offset + size_of::<Message>() > end {
        return None;
    }
    let wanted = match kind {
        Kind::Solicitation => SOURCE_LINK_LAYER,
        Kind::Advertisement => TARGET_LINK_LAYER,
    };
    let mac = option(frame, offset + size_of::<Message>(), end, wanted)?;
    Some(Some(Neighbour { kind, target, mac, solicited }))
}

/// The link-layer address option (RFC 4861, 4.6.1). Outer `None`: malformed; inner `None`: there is none.
#[inline(always)]
fn option(frame: Frame, mut offset: usize, end: usize, wanted: u8) -> Option<Option<&'static [u8; 6]>> {
    for _ in 0..MAX_OPTIONS {
        if offset >= end || offset > MAX_OFFSET {
            break;
        }
        let header = frame.at::<[u8; 2]>(offset)?;
        let length = usize::from(header[1]) * 8;
        if length == 0 || offset + length > end {
            return None;
        }
        if header[0] == wanted && length == 8 {
            return Some(Some(frame.at::<[u8; 6]>(offset + 2)?));
        }
        offset += length;
    }
    Some(None)
}
