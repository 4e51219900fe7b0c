//! Processes, told apart from later ones with the same number, also by an agent that did not start them.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks after the boot.
    pub start: u64,
}

/// What `/proc/PID/stat` says.
struct Stat {
    name: String,
    state: char,
    session: i32,
    start: u64,
}

impl Process {
    /// The process with this number; `None`: there is none.
    pub fn of(pid: i32) -> Option<Process> {
        stat(pid).map(|stat| Process { pid, start: stat.start })
    }

    /// Does it run? One that has ended and was not waited for does not.
    pub fn is_alive(&self) -> bool {
        self.stat().is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    }

    /// Does it wait in the kernel, beyond the reach of signals?
    pub fn is_stuck(&self) -> bool {
        self.stat().is_some_and(|stat| stat.state == 'D')
    }

    /// The letter of its state (proc_pid_stat(5)); `None`: it is gone.
    pub fn state(&self) -> Option<char> {
        self.stat().map(|stat| stat.state)
    }

    /// Its name, as `ps` shows it, and its number.
    pub fn name(&self) -> String {
        let name = self.stat().map_or_else(|| "?".to_owned(), |stat| stat.name);
        format!("{name} ({})", self.pid)
    }

    fn stat(&self) -> Option<Stat> {
        stat(self.pid).filter(|stat| stat.start == self.start)
    }

    /// A descriptor that is readable when it has ended. Another process with its number is never opened.
    ///
    /// # Errors
    /// It has ended.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        // SAFETY: the call takes two integers, and gives a descriptor that nobody else owns.
        let fd = unsafe {
            match libc::syscall(libc::SYS_pidfd_open, self.pid, 0) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd as i32),
            }
        };
        // The descriptor holds the number, so what is true of the number now is true of the process behind it.
        if self.is_alive() { Ok(fd) } else { Err(gone()) }
    }

    /// Sends a signal. It is no error if the process has ended.
    pub fn signal(&self, signal: i32) {
        let Ok(fd) = self.open() else { return };
        let none: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: the descriptor is open, and the information about the signal may be left out.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, none, 0) };
    }

    /// How it ended, if it is a child of this agent that has, and was not waited for.
    pub fn reap(&self) -> Option<Ended> {
        match waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Some(Ended::Exit(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(Ended::Signal(signal as i32)),
            _ => None,
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Exit(code) => write!(f, "exit status {code}"),
            Ended::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(signal) => write!(f, "{signal}"),
                Err(_) => write!(f, "signal {signal}"),
            },
        }
    }
}

/// The numbers of all processes that there are.
pub fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The living processes of a session (setsid(2)).
pub fn of_session(session: i32) -> Vec<Process> {
    living(|_, stat| stat.session == session)
}

/// The living processes that were started with this `NAME=value` in their environment, or by one that was.
pub fn with_variable(variable: &str) -> Vec<Process> {
    living(|pid, _| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|found| found == variable.as_bytes())
    })
}

/// The living processes that the numbers in a file name: `cgroup.procs`.
pub fn listed_in(file: &Path) -> Vec<Process> {
    let list = fs::read_to_string(file).unwrap_or_default();
    let processes = list.lines().filter_map(|line| Process::of(line.parse().ok()?));
    processes.filter(Process::is_alive).collect()
}

fn living(is_wanted: impl Fn(i32, &Stat) -> bool) -> Vec<Process> {
    let one = |pid| {
        let stat = stat(pid)?;
        let alive = !matches!(stat.state, 'Z' | 'X');
        (alive && is_wanted(pid, &stat)).then_some(Process { pid, start: stat.start })
    };
    all().into_iter().filter_map(one).collect()
}

/// The name is in parentheses and may hold anything (proc(5)).
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (name, rest) = text.split_once('(')?.1.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?; // after parent and process group
    let start = fields.nth(15)?.parse().ok()?;
    Some(Stat { name: name.to_owned(), state, session, start })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Guarded;
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Process::of(std::process::id() as i32).expect("it runs");
        assert!(own.is_alive() && own.open().is_ok() && !own.is_stuck());
        let earlier = Process { start: own.start - 1, ..own };
        assert!(!earlier.is_alive() && earlier.open().is_err());
        earlier.signal(libc::SIGKILL);
        assert!(own.name().ends_with(&format!("({})", own.pid)), "{}", own.name());
    }

    #[test]
    fn one_that_has_ended_is_not_alive_before_it_is_waited_for() {
        let mut child = std::process::Command::new("/bin/true").spawn().expect("started");
        let pid = child.id() as i32;
        let process = Process::of(pid).expect("there until it is waited for");
        let pauses = std::iter::repeat_with(|| std::thread::sleep(std::time::Duration::from_millis(5)));
        assert!(pauses.take(2000).any(|()| !process.is_alive()), "still alive");
        assert!(process.open().is_err());
        assert_eq!(process.reap(), Some(Ended::Exit(0)));
        assert_eq!(Process::of(pid), None);
        assert_eq!(process.reap(), None);
        assert!(child.wait().is_err(), "it was waited for");
    }

    #[test]
    fn processes_are_found_by_session_and_environment() {
        let variable = format!("BATON_TEST={}", std::process::id());
        let mut child = std::process::Command::new("/bin/sleep");
        let child = Guarded::start(child.arg("1000").env("BATON_TEST", std::process::id().to_string()));
        let process = Process::of(child.pid()).expect("it runs");
        let found = std::iter::repeat_with(|| with_variable(&variable)).take(1000);
        // Until it executes its program it has this one's environment.
        assert!(found.into_iter().any(|found| found == [process]));
        // SAFETY: the call takes an integer and gives one.
        let session = unsafe { libc::getsid(process.pid) };
        assert!(of_session(session).contains(&process));
        process.signal(libc::SIGKILL);
        drop(child);
        assert!(with_variable(&variable).is_empty());
    }
}
