//! A question to a server over TCP and its whole answer: the least that shows that it works.

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

/// What is said of an answer that can't belong to the question.
pub const NO_ANSWER: &str = "its answer is none to this call";

/// Finds an answer in what has come so far; `None`: there is more to come.
pub type Frame = fn(&[u8]) -> Result<Option<&[u8]>, String>;

/// A question, and what it is answered with.
pub struct Question<'a> {
    /// What the server speaks, as people call it.
    pub protocol: &'static str,
    /// What is sent; it fits into the buffer of a new connection.
    pub request: &'a [u8],
    /// How long the answer is. It bounds what is read.
    pub frame: Frame,
    /// What the answer says.
    pub judge: fn(&[u8]) -> Result<(), String>,
}

impl Question<'_> {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Failure`]: nobody answers, or not as a server of this protocol that works does.
    pub fn ask(&self, server: SocketAddr, patience: &Patience<'_>) -> Result<(), Failure> {
        let failed = |why: String| Failure::Failed(format!("{} at {server}: {why}", self.protocol));
        let broken = |errno: Errno| failed(errno.desc().to_owned());
        let connection = open(server, patience, &failed)?;
        let fd = connection.as_raw_fd();
        send(fd, self.request, MsgFlags::MSG_NOSIGNAL).map_err(broken)?;
        let mut answer = Vec::new();
        loop {
            match patience.wait(&[connection.as_fd()]) {
                Woken::Ready(_) => {}
                Woken::Told => return Err(Failure::Told),
                Woken::Late => return Err(failed("no answer".to_owned())),
            }
            let mut buffer = [0; 4096];
            match recv(fd, &mut buffer, MsgFlags::empty()) {
                Ok(0) => return Err(failed("it has closed the connection".to_owned())),
                Ok(n) => answer.extend_from_slice(&buffer[..n]),
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => return Err(broken(errno)),
            }
            if let Some(whole) = (self.frame)(&answer).map_err(failed)? {
                return (self.judge)(whole).map_err(failed);
            }
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

/// Servers for tests.
#[cfg(test)]
pub mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::super::orders::{Order, Orders};
    use super::*;
    use crate::testing::LONG;

    type Ask = fn(SocketAddr, &Patience<'_>) -> Result<(), Failure>;

    /// Asks a server that answers with these pieces; none: it keeps the connection open. Returns the request, of so many bytes, too.
    pub fn asked(
        ask: Ask,
        length: usize,
        pieces: Vec<Vec<u8>>,
        limit: Duration,
    ) -> (Vec<u8>, Result<(), String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = vec![0; length];
            stream.read_exact(&mut request).expect("a call");
            for piece in &pieces {
                // The client may have seen enough.
                let _ = stream.write_all(piece).and_then(|()| stream.flush());
                thread::sleep(Duration::from_millis(20));
            }
            if pieces.is_empty() {
                let _ = stream.read(&mut [0; 64]); // until the client has gone
            }
            request
        });
        let orders = Orders::new().expect("an eventfd");
        let result = ask(address, &Patience::new(&orders, 0, None, limit));
        let request = server.join().expect("no panic");
        let said = |failure: Failure| failure.to_string().split(": ").skip(1).collect::<Vec<_>>().join(": ");
        (request, result.map_err(said))
    }

    /// Nobody listens, and then something else is ordered.
    pub fn refused(ask: Ask) -> String {
        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let orders = Orders::new().expect("an eventfd");
        let patience = Patience::new(&orders, 0, None, LONG);
        let refused = ask(nobody, &patience).expect_err("nobody is there").to_string();
        orders.give(Order::Stop);
        assert!(matches!(ask(nobody, &patience), Err(Failure::Told | Failure::Failed(_))));
        refused
    }
}
