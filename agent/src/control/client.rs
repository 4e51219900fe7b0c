//! The asking side: plain blocking calls, for the command line.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ErrorLine, Request};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "the agent isn't running (nothing listens on {socket}); start it with `systemctl start baton` or `baton run`"
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// Not allowed.
    #[error("{socket}: permission denied; run as root, or join the group named in [control]")]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection broke, or the agent hangs.
    #[error("{socket}: {source}; see `journalctl -u baton`")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent refuses.
    #[error("{0}")]
    Refused(String),
}

/// The answers, a line each, without the line's end. Ends when the agent has said all, or goes away.
#[derive(Debug)]
pub struct Answers {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

/// Asks the agent.
///
/// # Errors
/// The agent doesn't run or may not be asked. What it refuses comes with the first answer.
pub fn ask(socket: &Path, request: &Request) -> Result<Answers, ClientError> {
    let fail = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { socket: socket.to_owned() }
        }
        io::ErrorKind::PermissionDenied => ClientError::Denied { socket: socket.to_owned() },
        _ => ClientError::Io { socket: socket.to_owned(), source },
    };
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    let mut line = serde_json::to_vec(request).map_err(|e| fail(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(fail)?;
    Ok(Answers { socket: socket.to_owned(), stream: BufReader::new(stream) })
}

impl Answers {
    /// Gives up on an answer that doesn't come within `limit`; `None`: waits for ever.
    ///
    /// # Errors
    /// The socket refuses (a limit of zero).
    pub fn limit(&self, limit: Option<Duration>) -> Result<(), ClientError> {
        self.stream.get_ref().set_read_timeout(limit).map_err(|e| self.fail(e))
    }

    fn fail(&self, source: io::Error) -> ClientError {
        let source = match source.kind() {
            // What a read timeout is reported as (socket(7), SO_RCVTIMEO).
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the agent does not answer"),
            _ => source,
        };
        ClientError::Io { socket: self.socket.clone(), source }
    }
}

impl Iterator for Answers {
    type Item = Result<String, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => {
                line.truncate(line.trim_end().len());
                if line.starts_with("{\"error\":")
                    && let Ok(refusal) = serde_json::from_str::<ErrorLine>(&line)
                {
                    return Some(Err(ClientError::Refused(refusal.error)));
                }
                Some(Ok(line))
            }
            Err(e) => Some(Err(self.fail(e))),
        }
    }
}
