//! Makes what listens inside a host of the lab reachable on the machine, byte by byte, without any interface between them.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::Host;

const PATIENCE: Duration = Duration::from_secs(2);
/// After an accept that failed, for instance because there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// A relay; it runs until the process ends.
pub(super) struct Relay {
    address: SocketAddr,
}

impl Relay {
    /// Takes the address.
    ///
    /// # Errors
    /// It is taken, or isn't this machine's.
    pub(super) fn bind(address: SocketAddr) -> Result<TcpListener> {
        TcpListener::bind(address)
            .with_context(|| format!("can't listen on {address}; choose another address with --listen"))
    }

    /// Hands every connection over to `target` inside `host`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start(listener: TcpListener, host: Host, target: SocketAddr) -> Result<Relay> {
        let address = listener.local_addr().context("read the address of the page")?;
        let accept = move || {
            loop {
                match listener.accept() {
                    Ok((client, _)) => {
                        let host = host.clone();
                        // A connection that can't be served is closed: the browser tries again.
                        let _ = thread::Builder::new()
                            .name("demo-relay".into())
                            .spawn(move || carry(client, &host, target));
                    }
                    Err(_) => thread::sleep(PAUSE),
                }
            }
        };
        thread::Builder::new().name("demo-relay".into()).spawn(accept).context("start a thread")?;
        Ok(Relay { address })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Carries both directions until both have ended; what fails ends the connection.
fn carry(client: TcpStream, host: &Host, target: SocketAddr) {
    let connect = || TcpStream::connect_timeout(&target, PATIENCE);
    let Ok(server) = host.open("connect to the page", connect) else { return };
    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
    thread::scope(|scope| {
        scope.spawn(|| copy(from_client, to_server));
        copy(server, client);
    });
}

/// One direction. Its end is told to the receiver.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    // A connection that breaks is as good as one that ends.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
