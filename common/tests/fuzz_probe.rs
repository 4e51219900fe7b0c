//! The parser of probe frames on whatever bytes come: it never panics, and takes only what it would have sent itself.
//! The same properties as the fuzz target in `common/fuzz`, for every run of the tests.

use baton_common::{PROBE_LENGTH, PROBE_VERSION, ProbeFrame, ProbeRefused, SipKey, parse_probe};
use proptest::prelude::*;

/// Bytes between a frame's kind and its tag.
const BODY: usize = PROBE_LENGTH - 24;
const KEY: SipKey = SipKey::from_bytes(*b"0123456789abcdef");

/// A sound frame with these bytes between its kind and its tag.
fn sealed(head: [u8; 12], kind: u8, body: [u8; BODY]) -> [u8; PROBE_LENGTH] {
    let mut bytes = [0; PROBE_LENGTH];
    bytes[..12].copy_from_slice(&head);
    bytes[12..16].copy_from_slice(&[0x88, 0xb5, PROBE_VERSION, kind]);
    bytes[16..16 + BODY].copy_from_slice(&body);
    // SAFETY: a frame is made of as many bytes, whatever they are.
    let mut frame: ProbeFrame = unsafe { std::mem::transmute(bytes) };
    frame.seal(KEY);
    *frame.as_bytes()
}

fn frames() -> impl Strategy<Value = [u8; PROBE_LENGTH]> {
    (any::<[u8; 12]>(), 1u8..=2, prop::collection::vec(any::<u8>(), BODY)).prop_map(|(head, kind, body)| {
        let mut fixed = [0; BODY];
        fixed.copy_from_slice(&body);
        sealed(head, kind, fixed)
    })
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_calmly(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // Random bytes carry the right tag once in 2^64 times.
        prop_assert!(parse_probe(&bytes, KEY).is_err());
    }

    #[test]
    fn what_was_sealed_is_taken_whatever_it_says_and_whatever_follows(
        frame in frames(), padding in prop::collection::vec(any::<u8>(), 0..80)
    ) {
        let bytes = [&frame[..], &padding].concat();
        let parsed = parse_probe(&bytes, KEY).expect("sound");
        prop_assert_eq!(parsed.as_bytes(), &frame);
    }

    #[test]
    fn a_frame_cut_short_is_truncated(frame in frames(), length in 0..PROBE_LENGTH) {
        prop_assert_eq!(parse_probe(&frame[..length], KEY), Err(ProbeRefused::Truncated));
    }

    #[test]
    fn a_changed_bit_is_noticed(mut frame in frames(), bit in 0..PROBE_LENGTH * 8) {
        frame[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            12 | 13 => vec![ProbeRefused::Truncated],
            14 => vec![ProbeRefused::Version],
            15 => vec![ProbeRefused::Version, ProbeRefused::Forged],
            _ => vec![ProbeRefused::Forged],
        };
        let refused = parse_probe(&frame, KEY).expect_err("taken");
        prop_assert!(expected.contains(&refused), "{refused:?} for bit {bit}");
    }

    #[test]
    fn another_key_is_noticed(frame in frames(), key in any::<[u8; 16]>()) {
        let key = SipKey::from_bytes(key);
        prop_assume!(key != KEY);
        prop_assert_eq!(parse_probe(&frame, key), Err(ProbeRefused::Forged));
    }
}
