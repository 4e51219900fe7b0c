//! The first message of an SMB server, NEGOTIATE, over TCP: the least that shows that it answers (MS-SMB2, 2.2.3 and 2.2.4).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Failure;
use super::orders::Patience;
use super::question::{NO_ANSWER, Question};

/// What every message starts with (2.2.1.2).
const PROTOCOL: [u8; 4] = *b"\xfeSMB";
const HEADER: u16 = 64;
const NEGOTIATE: u16 = 0;
/// Flag of a message from a server.
const FROM_SERVER: u32 = 1;
/// Versions of the protocol: 2.0.2, 2.1, 3.0, 3.0.2 and 3.1.1.
const DIALECTS: [u16; 5] = [0x0202, 0x0210, 0x0300, 0x0302, 0x0311];
/// Sizes of the fixed parts, as the request and the answer state them; that of the answer counts the first byte that follows.
const REQUEST: u16 = 36;
const RESPONSE: u16 = 65;
/// Bytes that an answer may have: it holds a token of some hundred, and a few contexts.
const MOST: usize = 64 << 10;
/// What a server may refuse with, by number (MS-ERREF, 2.3).
const STATUS: [(u32, &str); 5] = [
    (0xc000_000d, "it doesn't understand the call"),
    (0xc000_0022, "it denies access"),
    (0xc000_00bb, "it speaks no version of SMB 2 or 3 that is known here"),
    (0xc000_009a, "it lacks resources"),
    (0xc000_00d0, "it rejects the call"),
];

/// The request, with the length that goes before it. `caller`: who asks, another one each time; a server may join the
/// connections of one client.
fn request(caller: u128) -> Vec<u8> {
    let mut message = PROTOCOL.to_vec();
    let mut put = |bytes: &[u8]| message.extend_from_slice(bytes);
    put(&HEADER.to_le_bytes());
    put(&[0; 6]); // charge and status
    put(&NEGOTIATE.to_le_bytes());
    put(&1u16.to_le_bytes()); // credits that are asked for
    put(&[0; 48]); // flags, next message, number, process, tree, session, signature
    let signing_enabled = 1u16;
    for word in [REQUEST, DIALECTS.len() as u16, signing_enabled, 0] {
        put(&word.to_le_bytes());
    }
    put(&[0; 4]); // capabilities
    put(&caller.to_le_bytes());
    // One context, aligned to eight bytes: version 3.1.1 wants to know how both sides hash (2.2.3.1.1).
    let fixed = usize::from(HEADER + REQUEST) + 2 * DIALECTS.len();
    let context = fixed.next_multiple_of(8);
    put(&(context as u32).to_le_bytes());
    put(&[1, 0, 0, 0]);
    DIALECTS.iter().for_each(|dialect| put(&dialect.to_le_bytes()));
    put(&vec![0; context - fixed]);
    let (integrity, salt, sha_512) = (1u16, [0x5a; 32], 1u16);
    put(&integrity.to_le_bytes());
    put(&(6 + salt.len() as u16).to_le_bytes());
    put(&[0; 4]);
    for word in [1, salt.len() as u16, sha_512] {
        put(&word.to_le_bytes());
    }
    put(&salt);
    let length = message.len() as u32;
    [&length.to_be_bytes()[..], &message].concat()
}

/// The message in what has come so far: one zero byte, three of its length, and itself (2.1).
fn message(so_far: &[u8]) -> Result<Option<&[u8]>, String> {
    let Some(before) = so_far.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*before) as usize;
    // A first byte that isn't zero makes it too long.
    if length < usize::from(HEADER) || length > MOST {
        return Err(NO_ANSWER.to_owned());
    }
    Ok(so_far.get(4..4 + length))
}

/// What an answer says.
fn judge(answer: &[u8]) -> Result<(), String> {
    let short = |at: usize| Some(u16::from_le_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u32::from_le_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let is_answer = answer.starts_with(&PROTOCOL)
        && short(4) == Some(HEADER)
        && short(12) == Some(NEGOTIATE)
        && long(16).is_some_and(|flags| flags & FROM_SERVER != 0)
        && answer.get(24..32) == Some(&[0; 8]); // the number of the message
    if !is_answer {
        return Err(NO_ANSWER.to_owned());
    }
    match long(8) {
        Some(0) => {}
        Some(status) => {
            let known = STATUS.iter().find(|(code, _)| *code == status);
            return Err(
                known.map_or_else(|| format!("status {status:#010x}"), |(_, text)| (*text).to_owned())
            );
        }
        None => return Err(NO_ANSWER.to_owned()),
    }
    let body = usize::from(HEADER);
    let fixed = body + usize::from(RESPONSE) - 1;
    let (Some(size), Some(dialect), Some(offset), Some(length)) =
        (short(body), short(body + 4), short(body + 56), short(body + 58))
    else {
        return Err("its answer is too short".to_owned());
    };
    let (offset, length) = (usize::from(offset), usize::from(length));
    if size != RESPONSE || !DIALECTS.contains(&dialect) {
        return Err(NO_ANSWER.to_owned());
    }
    if answer.len() < fixed || (length > 0 && (offset < fixed || offset + length > answer.len())) {
        return Err("its answer is too short".to_owned());
    }
    Ok(())
}

/// Asks, and waits for the answer.
///
/// # Errors
/// [`Failure`]: nobody answers, or not as an SMB server does.
pub fn negotiate(server: SocketAddr, patience: &Patience<'_>) -> Result<(), Failure> {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let process = u128::from(std::process::id());
    let caller = 0x6261_746f_u128 << 96 | process << 64 | u128::from(ASKED.fetch_add(1, Ordering::Relaxed));
    let request = request(caller);
    Question { protocol: "SMB", request: &request, frame: message, judge }.ask(server, patience)
}

#[cfg(test)]
mod tests {
    use super::super::question::tests::{asked, refused};
    use super::*;
    use crate::testing::LONG;

    /// What Samba 4.17 answers to [`request`].
    const ANSWER: &str = "000000fefe534d42400000000000000000000100010000000000000000000000000000000000000000000000000000000000\
        0000000000000000000000000000000000004100010011030100610000000000000000000000000000000700000000008000\
        000080000000800058043472af7ddd01000000000000000080004a00d0000000604806062b0601050502a03e303ca00e300c\
        060a2b06010401823702020aa32a3028a0261b246e6f745f646566696e65645f696e5f5246433431373840706c656173655f\
        69676e6f72650000000000000100260000000000010020000100f09a3358e1920798818d24aade04e5f69686056abd4f0fe0\
        1319814fc8a0f440";

    fn answer() -> Vec<u8> {
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("hex");
        ANSWER.as_bytes().chunks(2).map(byte).collect()
    }

    #[test]
    fn the_request_is_that_of_the_standard() {
        let request = request(u128::from_le_bytes(*b"0123456789abcdef"));
        assert_eq!(u32::from_be_bytes(*request.first_chunk().expect("a length")) as usize, request.len() - 4);
        let message = &request[4..];
        assert_eq!(message[..6], *b"\xfeSMB\x40\0");
        assert_eq!(message[14..16], [1, 0], "one credit");
        assert_eq!(message[64..72], [36, 0, 5, 0, 1, 0, 0, 0]);
        assert_eq!(message[76..92], *b"0123456789abcdef");
        // Its context is at 112, after the dialects and two bytes of padding.
        assert_eq!(message[92..100], [112, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(message[100..112], [2, 2, 0x10, 2, 0, 3, 2, 3, 0x11, 3, 0, 0]);
        assert_eq!(message[112..126], [1, 0, 38, 0, 0, 0, 0, 0, 1, 0, 32, 0, 1, 0]);
        assert_eq!(message.len(), 126 + 32);
    }

    #[test]
    fn answers_are_judged() {
        let answer = answer();
        let message = &answer[4..];
        let with = |at: usize, bytes: &[u8]| {
            let mut message = message.to_vec();
            message[at..at + bytes.len()].copy_from_slice(bytes);
            judge(&message)
        };
        assert_eq!(judge(message), Ok(()));
        for (at, bytes) in [
            (0, &b"\xff"[..]), // SMB 1
            (4, &[65]),
            (12, &[1]),          // another command
            (16, &[0]),          // from a client
            (24, &[1]),          // to another message
            (64, &[9]),          // an error without a status
            (68, &[0xff, 0x02]), // the wildcard, which nobody has asked for
            (68, &[0x12, 0x03]), // a version that nobody has offered
        ] {
            assert_eq!(with(at, bytes), Err(NO_ANSWER.into()), "{at}");
        }
        assert_eq!(with(8, &[0xbb, 0, 0, 0xc0]), Err(STATUS[2].1.into()));
        assert_eq!(with(8, &[1, 2, 3, 0xc0]), Err("status 0xc0030201".into()));
        let short = Err("its answer is too short".into());
        assert_eq!(with(120, &[0, 0]), short, "a token before its place");
        assert_eq!(with(120, &[0xff, 0xff]), short);
        assert_eq!(with(122, &[0xff, 0xff]), short);
        assert_eq!(with(120, &[0, 0, 0, 0]), Ok(()), "no token at all");
        for length in 0..128 + 74 {
            assert!(judge(&message[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn messages_are_found_in_what_comes() {
        let answer = answer();
        for length in 0..answer.len() {
            assert_eq!(super::message(&answer[..length]), Ok(None), "{length}");
        }
        assert_eq!(super::message(&answer), Ok(Some(&answer[4..])));
        for before in [[0x85, 0, 0, 0], [0, 0, 0, 63], [0, 1, 0, 1], *b"HTTP"] {
            assert_eq!(super::message(&before), Err(NO_ANSWER.into()), "{before:?}");
        }
    }

    #[test]
    fn a_server_is_asked() {
        let (answer, length) = (answer(), request(0).len());
        let pieces = vec![answer[..3].to_vec(), answer[3..90].to_vec(), answer[90..].to_vec()];
        let (first, result) = asked(negotiate, length, pieces, LONG);
        assert_eq!(result, Ok(()));
        let (second, result) = asked(negotiate, length, vec![answer[..90].to_vec()], LONG);
        assert_eq!(result, Err("it has closed the connection".into()));
        assert_ne!(first, second, "each caller is another one");
        let (_, result) = asked(negotiate, length, Vec::new(), std::time::Duration::from_millis(50));
        assert_eq!(result, Err("no answer".into()));
        let (_, result) = asked(negotiate, length, vec![b"HTTP/1.1 400 Bad Request".to_vec()], LONG);
        assert_eq!(result, Err(NO_ANSWER.into()));
        let refused = refused(negotiate);
        assert!(refused.starts_with("SMB at 127.0.0.1:") && refused.contains("refused"), "{refused}");
    }
}
