//! One run of a program.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Hook;
use crate::resources::command::{in_memory, leave_agent, reap_later};
use crate::resources::process::Process;

/// How much of its output is told, and of how many lines.
const TOLD: (usize, usize) = (1024, 5);
/// Output is in memory: a program that says more is killed.
const OUTPUT_MOST: u64 = 4 << 20;
/// How often it is looked at how much it has said.
const LOOK: Duration = Duration::from_millis(100);
/// After how much more than its limit the kernel ends a program whose agent is gone, seconds.
const ALARM_AFTER: u32 = 2;
/// How long the kernel may take to end a process after SIGKILL; one that still lives waits for a device.
const KILLED: Duration = Duration::from_secs(2);

/// Why a program did not do what it is there for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it can't be started: {0}; check `run` of its [[hook]]")]
    Start(std::io::Error),
    #[error("{how}{said}")]
    Failed { how: String, said: String },
    #[error("it took longer than {}, and was killed{said}", humantime::format_duration(*limit))]
    Late { limit: Duration, said: String },
}

impl Fault {
    pub(super) fn result(&self) -> &'static str {
        match self {
            Fault::Start(_) => "not_started",
            Fault::Failed { .. } => "failed",
            Fault::Late { .. } => "timeout",
        }
    }
}

/// Runs it to its end, or to that of its limit: then all of its process group is killed.
pub(super) fn run(hook: &Hook, node: &str, event: &str, json: &[u8]) -> Result<(), Fault> {
    let output = in_memory(&[]).map_err(Fault::Start)?;
    let mut child = start(hook, node, event, json, &output).map_err(Fault::Start)?;
    let ended = wait(&mut child, hook.timeout, &output);
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("it was ended by signal {signal}"),
                (None, None) => "it ended".to_owned(),
            };
            Err(Fault::Failed { how, said: said(&output) })
        }
        None => Err(Fault::Late { limit: hook.timeout, said: said(&output) }),
    }
}

fn start(hook: &Hook, node: &str, event: &str, json: &[u8], output: &File) -> std::io::Result<Child> {
    let Some((program, arguments)) = hook.run.split_first() else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").env_clear();
    command
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8");
    command.env("BATON_NODE", node).env("BATON_EVENT", event).env("BATON_HOOK", &hook.name);
    command.stdin(Stdio::from(in_memory(json)?)).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let alarm = u32::try_from(hook.timeout.as_secs()).unwrap_or(u32::MAX / 2) + 1 + ALARM_AFTER;
    let leave = move || {
        leave_agent(None)?;
        // SAFETY: the call takes an integer. The alarm outlives exec.
        unsafe { libc::alarm(alarm) };
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(leave) };
    command.spawn()
}

/// How it ended; `None`: it was killed, for it took too long. Until it is waited for, its number stays its own, and that of its
/// group.
fn wait(child: &mut Child, limit: Duration, output: &File) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    let process = Process::of(child.id() as i32);
    let watched = process.and_then(|process| process.open().ok());
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        let left = end.saturating_duration_since(Instant::now());
        let long = output.metadata().is_ok_and(|data| data.len() > OUTPUT_MOST);
        if left.is_zero() || long {
            break;
        }
        sleep(watched.as_ref(), left.min(LOOK));
    }
    // Its session is its own, and so is its group.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL); // it may end just now
    let patience = Instant::now() + KILLED;
    while Instant::now() < patience {
        if let Ok(Some(_)) = child.try_wait() {
            return None;
        }
        sleep(watched.as_ref(), LOOK / 10);
    }
    // It waits in the kernel. Another one waits for it later.
    if let Some(process) = process {
        reap_later(process);
    }
    None
}

/// Until it ends, or that long.
fn sleep(watched: Option<&std::os::fd::OwnedFd>, most: Duration) {
    let limit = PollTimeout::try_from(most.max(Duration::from_millis(1))).unwrap_or(PollTimeout::ZERO);
    let polled = watched.map(|fd| poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], limit));
    match polled {
        Some(Ok(_) | Err(Errno::EINTR)) => {}
        Some(Err(_)) | None => std::thread::sleep(Duration::from_millis(2)),
    }
}

/// What it said first.
fn said(output: &File) -> String {
    let mut bytes = vec![0; TOLD.0];
    let read = output.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    let text = String::from_utf8_lossy(&bytes);
    let printed = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).take(TOLD.1).map(printed).collect();
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join(" | ")) }
}
