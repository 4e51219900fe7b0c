//! The probe frame's tag against the `siphasher` crate, and the parser against damaged frames.

use std::hash::Hasher;

use baton_common::{
    PROBE_ETHERTYPE, PROBE_KIND_PROBE, PROBE_LENGTH, PROBE_VERSION, ProbeFrame, ProbeRefused, SipKey,
    parse_probe, siphash24,
};
use siphasher::sip::SipHasher24;

const KEY: [u8; 16] = *b"0123456789abcdef";

fn frame() -> ProbeFrame {
    let mut frame = ProbeFrame {
        destination: [2, 0, 0, 0, 0, 1],
        source: [2, 0, 0, 0, 0, 2],
        ethertype: PROBE_ETHERTYPE.to_be_bytes(),
        version: [PROBE_VERSION],
        kind: [PROBE_KIND_PROBE],
        node: 7u32.to_be_bytes(),
        port: 3u32.to_be_bytes(),
        incarnation: 5u64.to_be_bytes(),
        sequence: 99u64.to_be_bytes(),
        sent_ns: 1_000u64.to_be_bytes(),
        returned_ns: [0; 8],
        held_ns: [0; 4],
        returned_incarnation: [0; 4],
        ..ProbeFrame::default()
    };
    frame.seal(SipKey::from_bytes(KEY));
    frame
}

fn bytes(frame: &ProbeFrame) -> [u8; PROBE_LENGTH] {
    // SAFETY: the frame is 112 bytes without padding.
    unsafe { std::mem::transmute(*frame) }
}

#[test]
fn the_hash_is_siphash_2_4() {
    // Reference vector of the paper, appendix A, cut to a whole number of words: checked through the crate.
    for words in [[0u64; 3], [1, 2, 3], [u64::MAX, 0x0123_4567_89ab_cdef, 42]] {
        let mut theirs = SipHasher24::new_with_key(&KEY);
        words.iter().for_each(|w| theirs.write(&w.to_le_bytes()));
        assert_eq!(siphash24(SipKey::from_bytes(KEY), words), theirs.finish());
    }
}

#[test]
fn the_tag_covers_the_whole_frame() {
    let whole = bytes(&frame());
    let mut theirs = SipHasher24::new_with_key(&KEY);
    theirs.write(&whole[..104]);
    assert_eq!(whole[104..], theirs.finish().to_le_bytes());
    assert_eq!(parse_probe(&whole, SipKey::from_bytes(KEY)), Ok(frame()));
    for bit in 0..PROBE_LENGTH * 8 {
        let mut damaged = whole;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(parse_probe(&damaged, SipKey::from_bytes(KEY)).is_err(), "bit {bit}");
    }
}

#[test]
fn each_refusal_is_named() {
    let key = SipKey::from_bytes(KEY);
    let whole = bytes(&frame());
    for length in 0..PROBE_LENGTH {
        assert_eq!(parse_probe(&whole[..length], key), Err(ProbeRefused::Truncated));
    }
    let mut padded = whole.to_vec();
    padded.resize(128, 0xaa);
    assert_eq!(parse_probe(&padded, key), Ok(frame()), "what a switch appends is ignored");
    assert_eq!(parse_probe(&whole, SipKey::from_bytes([1; 16])), Err(ProbeRefused::Forged));
    for (version, kind) in [(0, 1), (PROBE_VERSION + 1, 1), (PROBE_VERSION, 0), (PROBE_VERSION, 3)] {
        let mut other = frame();
        (other.version, other.kind) = ([version], [kind]);
        other.seal(key);
        assert_eq!(parse_probe(&bytes(&other), key), Err(ProbeRefused::Version));
    }
}
