//! Programs and system calls that may hang: each in a process of its own, which is waited for with patience, then killed.
//!
//! What is started here has a session of its own and no pipe to the agent, so it lives on when the agent is killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ForkResult, fork};

use super::cgroup;
use super::orders::{HOPELESS, Patience, Woken};
use super::process::{self, Ended, Process};

/// Between SIGTERM and SIGKILL for a command that takes too long.
const GENTLY: Duration = Duration::from_millis(500);
/// How long the kernel may take to end a process after SIGKILL. One that still lives waits for a device.
const KILLED: Duration = Duration::from_secs(2);
/// Each of the two at most, when there is a hurry and something hangs; longer when nothing does.
const HURRIED: Duration = Duration::from_millis(300);
/// Between two looks at processes that are to end.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// How much of a command's output is looked at for what it said last, and shown.
const SAID: (u64, usize) = (4096, 200);
/// How much of a command's output is read where all of it matters.
const READ: usize = 1 << 20;
/// What systemd tells the agent, and nobody else.
const OF_THE_AGENT: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDS"];

/// A program that is to be started.
#[derive(Clone, Copy)]
pub struct Command<'a> {
    /// The program and its arguments.
    pub argv: &'a [String],
    /// Variables of its environment, besides those of the agent.
    pub variables: &'a [(String, String)],
    /// The control group that it belongs to.
    pub group: Option<&'a Path>,
    /// What it reads as its standard input.
    pub input: &'a [u8],
}

/// What came of a command.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub ended: Ended,
    /// The last line of its output.
    pub said: String,
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It could not be started.
    #[error("it can't be started: {0}")]
    Start(#[from] io::Error),
    /// Something else has been ordered meanwhile. It was killed.
    #[error("something else was ordered meanwhile")]
    Told,
    /// It took too long, and was killed.
    #[error("it takes too long")]
    Late,
    /// It took too long, and can't be killed: it waits in the kernel.
    #[error("it hangs in the kernel, as process {}", .0.pid)]
    Stuck(Process),
}

impl Done {
    /// "exit status 1: no such file".
    pub fn why(&self) -> String {
        if self.said.is_empty() { self.ended.to_string() } else { format!("{}: {}", self.ended, self.said) }
    }
}

impl Command<'_> {
    /// Starts it and doesn't wait for it. Nobody else may wait for the process; [`Process::reap`] does.
    ///
    /// # Errors
    /// There is no such program, or no control group.
    pub fn start(&self, output: File) -> io::Result<Process> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut command = std::process::Command::new(program);
        command.args(arguments).current_dir("/");
        for name in OF_THE_AGENT {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let input = if self.input.is_empty() { Stdio::null() } else { in_memory(self.input)?.into() };
        command.stdin(input).stdout(output.try_clone()?).stderr(output);
        let door = self.group.map(cgroup::door).transpose()?;
        // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || leave_agent(door.as_ref())) };
        let child = command.spawn()?;
        // Not waited for, so the number is still its own.
        Process::of(child.id() as i32).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Runs it to its end, or until patience ends: then it and all of its session are killed.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn run(&self, patience: &Patience<'_>) -> Result<Done, Fault> {
        let (ended, output) = self.run_for(patience)?;
        Ok(Done { ended, said: last_line(&output) })
    }

    /// The same, and all of its output but what is very long.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn read(&self, patience: &Patience<'_>) -> Result<(Done, String), Fault> {
        let (ended, output) = self.run_for(patience)?;
        let mut bytes = vec![0; READ];
        let read = output.read_at(&mut bytes, 0).unwrap_or(0);
        bytes.truncate(read);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok((Done { ended, said: last_line(&output) }, text))
    }

    fn run_for(&self, patience: &Patience<'_>) -> Result<(Ended, File), Fault> {
        let output = in_memory(&[])?;
        let process = self.start(output.try_clone()?)?;
        let ended = wait(process, patience, || process::of_session(process.pid))?;
        Ok((ended, output))
    }
}

/// A file without a name that begins with this.
///
/// # Errors
/// There is no memory.
pub fn in_memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("baton", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// Between fork and exec: a session of its own, the control group, and nothing of the agent's privileges with the kernel.
///
/// # Errors
/// The session or the control group can't be had.
pub fn leave_agent(door: Option<&File>) -> io::Result<()> {
    nix::unistd::setsid()?;
    if let Some(mut door) = door {
        door.write_all(b"0")?;
    }
    // SAFETY: the strings are constants that end with zero; the descriptor is closed once. What fails here is left as it is.
    unsafe {
        libc::umask(0o022);
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
        }
    }
    Ok(())
}

/// Makes system calls that may hang, in a process that does nothing else.
///
/// # Errors
/// [`Fault`]; what the calls themselves say is in the result.
pub fn in_child(
    patience: &Patience<'_>,
    work: impl FnOnce() -> nix::Result<()>,
) -> Result<nix::Result<()>, Fault> {
    // SAFETY: the child makes system calls only; it allocates nothing, takes no lock, and ends without running destructors.
    let process = match unsafe { fork() }.map_err(io::Error::from)? {
        // SAFETY: the calls take integers only.
        ForkResult::Child => unsafe {
            // A process that hangs must not keep the agent's lock, sockets and files open.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
            libc::setsid();
            // The agent's handler would only tell the agent.
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
            let result = work();
            libc::_exit(result.err().map_or(0, |errno| errno as i32));
        },
        ForkResult::Parent { child } => child.as_raw(),
    };
    let process = Process::of(process).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    match wait(process, patience, || vec![process])? {
        Ended::Exit(0) => Ok(Ok(())),
        Ended::Exit(errno) => Ok(Err(Errno::from_raw(errno))),
        // By somebody else: nothing is known of what it did.
        Ended::Signal(_) => Ok(Err(Errno::EINTR)),
    }
}

/// Children that could not be killed: waited for when they have ended after all.
static LEFT: Mutex<Vec<Process>> = Mutex::new(Vec::new());

/// Waits for the end of a child that is being killed, some time.
pub fn reap_later(process: Process) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.push(process);
    left.retain(|process| process.reap().is_none() && Process::of(process.pid) == Some(*process));
}

/// Waits for the end of a child. What `all` finds is killed when patience ends.
fn wait(process: Process, patience: &Patience<'_>, all: impl Fn() -> Vec<Process>) -> Result<Ended, Fault> {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain(|process| process.reap().is_none() && Process::of(process.pid) == Some(*process));
    drop(left);
    let woken = match process.open() {
        Ok(fd) => patience.wait(&[fd.as_fd()]),
        Err(_) => Woken::Ready(0), // it has ended
    };
    if let Woken::Ready(_) = woken {
        return process.reap().ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD).into());
    }
    let living = || all().into_iter().filter(Process::is_alive).collect::<Vec<_>>();
    let remaining = end(living, GENTLY, &patience.hurried(HURRIED));
    if process.reap().is_none() && Process::of(process.pid) == Some(process) {
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(process);
    }
    match remaining.first() {
        Some(stuck) => Err(Fault::Stuck(*stuck)),
        None if woken == Woken::Told => Err(Fault::Told),
        None => Err(Fault::Late),
    }
}

/// Ends all that `find` finds: SIGTERM, and SIGKILL to those that still live after `gently`. Returns those that can't be killed.
/// Nothing but their end cuts it short.
pub fn end(find: impl Fn() -> Vec<Process>, gently: Duration, patience: &Patience<'_>) -> Vec<Process> {
    let mut found = find();
    // What hangs with its storage does not end politely, and what it holds is needed elsewhere.
    let (gently, killed) = match patience.is_hopeless() {
        true => (Duration::ZERO, HOPELESS),
        false => (gently, KILLED),
    };
    for process in found.iter().filter(|_| !gently.is_zero()) {
        process.signal(libc::SIGTERM);
        process.signal(libc::SIGCONT); // one that is stopped takes no other signal
    }
    for (signal, limit) in [(None, gently), (Some(libc::SIGKILL), killed)] {
        let mut look = LOOK.0;
        let end = patience.within(limit);
        loop {
            if found.is_empty() {
                return found;
            }
            // Each time: one that is being killed may have started another.
            signal.into_iter().for_each(|signal| found.iter().for_each(|process| process.signal(signal)));
            if end.left().is_zero() {
                break;
            }
            std::thread::sleep(look.min(end.left()));
            look = (look * 2).min(LOOK.1);
            found = find();
        }
    }
    found
}

/// The last line that has anything in it, shortened.
pub fn last_line(output: &File) -> String {
    let length = output.metadata().map_or(0, |data| data.len());
    let from = length.saturating_sub(SAID.0);
    let mut bytes = vec![0; (length - from) as usize];
    let read = output.read_at(&mut bytes, from).unwrap_or(0);
    bytes.truncate(read);
    let text = String::from_utf8_lossy(&bytes);
    let printed = |line: &str| line.chars().filter(|c| !c.is_control()).take(SAID.1).collect::<String>();
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(printed).unwrap_or_default()
}

/// A file for what a service that goes on says: everything before is gone.
///
/// # Errors
/// It can't be made.
pub fn log_file(path: &Path) -> io::Result<File> {
    // Appending, so that it can be cut while somebody writes.
    let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// Empties a log that has grown too long: it is in memory.
pub fn shorten(path: &Path, most: u64) {
    if fs::metadata(path).is_ok_and(|data| data.len() > most) {
        let cut = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0));
        if let Err(e) = cut {
            tracing::warn!("{}: {e}", path.display());
        }
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
