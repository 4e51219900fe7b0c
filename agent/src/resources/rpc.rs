//! The NULL call of an NFS server over TCP: the least that shows that it answers (RFC 5531; RFC 1813, 3.3.0; RFC 7530, 16.1).

use std::net::SocketAddr;

use super::Failure;
use super::orders::Patience;
use super::question::{NO_ANSWER, Question};

/// Program number of NFS.
const NFS: u32 = 100_003;
/// Identifies the call; each has its own connection.
const XID: u32 = 0x6261_746f;
/// A record mark's highest bit: the last fragment of a record (RFC 5531, section 11).
const LAST_FRAGMENT: u32 = 1 << 31;
/// An answer to it has 24 bytes; those with an error are a little longer.
const MOST: usize = 1024;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const ACCEPTED: u32 = 0;
const AUTH_NONE: u32 = 0;
/// Why an accepted call has failed (RFC 5531, section 9), by number.
const STATUS: [&str; 6] = [
    "success",
    "the program is unavailable",
    "this version of NFS is not served",
    "the procedure is unavailable",
    "the call was not understood",
    "the server has an error",
];

/// The call, with its record mark.
fn call(version: u32) -> Vec<u8> {
    const NULL: u32 = 0;
    let words = [XID, CALL, RPC_VERSION, NFS, version, NULL, AUTH_NONE, 0, AUTH_NONE, 0];
    let mark = LAST_FRAGMENT | (4 * words.len()) as u32;
    std::iter::once(mark).chain(words).flat_map(u32::to_be_bytes).collect()
}

/// What an answer says, its record mark left out.
fn judge(answer: &[u8]) -> Result<(), String> {
    let word = |n: usize| {
        let bytes = answer.get(4 * n..4 * n + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let short = || "its answer is too short".to_owned();
    if word(0) != Some(XID) || word(1) != Some(REPLY) {
        return Err(NO_ANSWER.to_owned());
    }
    if word(2) != Some(ACCEPTED) {
        return Err("it rejects the call".to_owned());
    }
    // The verifier: its kind, its length and so many bytes, filled up to words.
    let verifier = word(4).ok_or_else(short)?.div_ceil(4) as usize;
    match word(verifier.saturating_add(5)) {
        Some(0) => Ok(()),
        Some(status) => {
            let known = STATUS.get(status as usize).copied();
            Err(known.map_or_else(|| format!("status {status}"), str::to_owned))
        }
        None => Err(short()),
    }
}

/// The record in what has come so far.
fn record(so_far: &[u8]) -> Result<Option<&[u8]>, String> {
    let Some(mark) = so_far.first_chunk().map(|mark| u32::from_be_bytes(*mark)) else { return Ok(None) };
    let length = (mark & !LAST_FRAGMENT) as usize;
    if mark & LAST_FRAGMENT == 0 || length > MOST {
        return Err(NO_ANSWER.to_owned());
    }
    Ok(so_far.get(4..4 + length))
}

/// Calls, and waits for the answer.
///
/// # Errors
/// [`Failure`]: nobody answers, or not as an NFS server of this version does.
pub fn null_call(server: SocketAddr, version: u32, patience: &Patience<'_>) -> Result<(), Failure> {
    let request = call(version);
    Question { protocol: "NFS", request: &request, frame: record, judge }.ask(server, patience)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::question::tests::{asked, refused};
    use super::*;
    use crate::testing::LONG;

    /// An accepted call, as another server's implementation wrote it.
    const ANSWER: [u8; 28] =
        [0x80, 0, 0, 24, b'b', b'a', b't', b'o', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn the_call_is_that_of_the_standard() {
        let expected = [
            0x80, 0, 0, 40, b'b', b'a', b't', b'o', 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0x86, 0xa3, 0, 0, 0, 4, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(call(4), expected);
        assert_eq!(call(3)[23], 3);
    }

    #[test]
    fn answers_are_judged() {
        let with = |at: usize, byte: u8| {
            let mut answer = ANSWER[4..].to_vec();
            answer[at] = byte;
            judge(&answer)
        };
        assert_eq!(judge(&ANSWER[4..]), Ok(()));
        assert_eq!(with(23, 2), Err("this version of NFS is not served".into()));
        assert_eq!(with(23, 99), Err("status 99".into()));
        assert_eq!(with(0, 0), Err("its answer is none to this call".into()));
        assert_eq!(with(11, 1), Err("it rejects the call".into()));
        assert_eq!(with(19, 4), Err("its answer is too short".into()), "a verifier of four bytes");
        assert_eq!(with(16, 255), Err("its answer is too short".into()));
        let long = [&ANSWER[4..23], &[4], b"sign", &[0; 4]].concat();
        assert_eq!(judge(&long), Ok(()));
        for length in 0..24 {
            assert!(judge(&ANSWER[4..4 + length]).is_err());
        }
    }

    fn call_of_4(server: SocketAddr, patience: &Patience<'_>) -> Result<(), Failure> {
        null_call(server, 4, patience)
    }

    fn called(pieces: Vec<Vec<u8>>, limit: Duration) -> Result<(), String> {
        let (request, result) = asked(call_of_4, 44, pieces, limit);
        assert_eq!(request, call(4));
        result
    }

    #[test]
    fn a_server_that_answers_works() {
        assert_eq!(called(vec![ANSWER.to_vec()], LONG), Ok(()));
        assert_eq!(
            called(vec![ANSWER[..3].to_vec(), ANSWER[3..9].to_vec(), ANSWER[9..].to_vec()], LONG),
            Ok(())
        );
    }

    #[test]
    fn one_that_doesnt_is_told_by_what_it_did() {
        assert_eq!(called(Vec::new(), Duration::from_millis(50)), Err("no answer".into()));
        assert_eq!(called(vec![ANSWER[..9].to_vec()], LONG), Err("it has closed the connection".into()));
        let other = "its answer is none to this call";
        assert_eq!(called(vec![b"HTTP/1.1 400 Bad Request".to_vec()], LONG), Err(other.into()));
        let refused = refused(call_of_4);
        assert!(refused.contains("refused"), "{refused}");
    }
}
