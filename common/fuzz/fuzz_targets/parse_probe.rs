//! The parser of probe frames. A frame comes as it is, and once more with the right tag, so that the fuzzer gets past it.
#![no_main]

use baton_common::{PROBE_LENGTH, ProbeFrame, SipKey, parse_probe};
use libfuzzer_sys::fuzz_target;

const KEY: SipKey = SipKey::from_bytes(*b"0123456789abcdef");

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = parse_probe(bytes, KEY) {
        assert_eq!(frame.as_bytes(), &bytes[..PROBE_LENGTH]);
    }
    let Some(head) = bytes.first_chunk::<PROBE_LENGTH>() else {
        assert!(parse_probe(bytes, KEY).is_err());
        return;
    };
    // SAFETY: a frame is made of as many bytes, whatever they are.
    let mut frame: ProbeFrame = unsafe { std::mem::transmute(*head) };
    frame.seal(KEY);
    let sound = frame.ethertype == [0x88, 0xb5] && frame.version == [1] && matches!(frame.kind, [1] | [2]);
    assert_eq!(parse_probe(frame.as_bytes(), KEY).is_ok(), sound);
    let mut forged = *frame.as_bytes();
    forged[PROBE_LENGTH - 1] ^= 1;
    assert!(parse_probe(&forged, KEY).is_err());
});
