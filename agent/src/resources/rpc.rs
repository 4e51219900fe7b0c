//! The NULL call of an NFS server over TCP: the least that shows that it answers (RFC 5531; RFC 1813, 3.3.0; RFC 7530, 16.1).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, getsockopt, recv, send, socket,
    sockopt::SocketError,
};

use super::Failure;
use super::orders::{Patience, Woken};

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
        return Err("its answer is none to this call".to_owned());
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

/// Calls, and waits for the answer.
///
/// # Errors
/// [`Failure`]: nobody answers, or not as an NFS server of this version does.
pub fn null_call(server: SocketAddr, version: u32, patience: &Patience<'_>) -> Result<(), Failure> {
    let failed = |why: String| Failure::Failed(format!("NFS at {server}: {why}"));
    let broken = |errno: Errno| failed(errno.desc().to_owned());
    let connection = open(server, patience, &failed)?;
    let fd = connection.as_raw_fd();
    // So few bytes fit into the buffer of a new connection.
    send(fd, &call(version), MsgFlags::MSG_NOSIGNAL).map_err(broken)?;
    let mut answer = Vec::new();
    loop {
        match patience.wait(&[connection.as_fd()]) {
            Woken::Ready(_) => {}
            Woken::Told => return Err(Failure::Told),
            Woken::Late => return Err(failed("no answer".to_owned())),
        }
        let mut buffer = [0; 256];
        match recv(fd, &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Err(failed("it has closed the connection".to_owned())),
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(errno) => return Err(broken(errno)),
        }
        let Some(mark) = answer.first_chunk().map(|mark| u32::from_be_bytes(*mark)) else { continue };
        let length = (mark & !LAST_FRAGMENT) as usize;
        if mark & LAST_FRAGMENT == 0 || length > MOST {
            return Err(failed("its answer is none to this call".to_owned()));
        }
        if let Some(answer) = answer.get(4..4 + length) {
            return judge(answer).map_err(failed);
        }
    }
}

fn open(
    server: SocketAddr,
    patience: &Patience<'_>,
    failed: &dyn Fn(String) -> Failure,
) -> Result<OwnedFd, Failure> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let broken = |errno: Errno| failed(errno.desc().to_owned());
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let connection = socket(family, SockType::Stream, flags, None).map_err(broken)?;
    match connect(connection.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) => return Ok(connection),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(broken(errno)),
    }
    match patience.wait_writable(connection.as_fd()) {
        Woken::Ready(_) => {}
        Woken::Told => return Err(Failure::Told),
        Woken::Late => return Err(failed("no connection".to_owned())),
    }
    match getsockopt(&connection, SocketError) {
        Ok(0) => Ok(connection),
        Ok(code) => Err(failed(io::Error::from_raw_os_error(code).to_string())),
        Err(errno) => Err(broken(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::super::orders::{Order, Orders};
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
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

    /// Calls a server that answers with these pieces; none: it keeps the connection open.
    fn called(pieces: Vec<Vec<u8>>, limit: Duration) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 44];
            stream.read_exact(&mut request).expect("a call");
            for piece in &pieces {
                stream.write_all(piece).expect("written");
                stream.flush().expect("sent");
                thread::sleep(Duration::from_millis(20));
            }
            if pieces.is_empty() {
                let _ = stream.read(&mut request); // until the client has gone
            }
            request
        });
        let orders = Orders::new().expect("an eventfd");
        let result = null_call(address, 4, &Patience::new(&orders, 0, None, limit));
        assert_eq!(server.join().expect("no panic").to_vec(), call(4));
        result.map_err(|failure| failure.to_string().split(": ").skip(1).collect::<Vec<_>>().join(": "))
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
        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let orders = Orders::new().expect("an eventfd");
        let patience = Patience::new(&orders, 0, None, LONG);
        let refused = null_call(nobody, 4, &patience).expect_err("nobody is there").to_string();
        assert!(refused.contains("refused"), "{refused}");
        orders.give(Order::Stop);
        assert!(matches!(null_call(nobody, 4, &patience), Err(Failure::Told | Failure::Failed(_))));
    }
}
