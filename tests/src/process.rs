//! Processes inside a host: started, paused, killed, and read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::clock;
use crate::error::{Context, LabError};
use crate::namespace::{Entry, Namespaces};

/// A running process of a host. Dropped: it and the process group that it leads are killed and reaped.
///
/// It dies with this process, too, however that ends. Its output goes to memory, not to a disk.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: File,
    stderr: File,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` inside, with its own process group (a Ctrl-C at the terminal does not reach it), no input and captured output.
    ///
    /// The program is looked up inside: `/run` and `/var/lib` are empty there.
    ///
    /// # Errors
    /// When the program can't be started; the text names it.
    pub fn spawn(inside: &Namespaces, mut command: Command) -> Result<Process, LabError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let what = || format!("start {name}");
        let stdout = capture().context(what)?;
        let stderr = capture().context(what)?;
        command.stdin(Stdio::null());
        command.stdout(stdout.try_clone().context(what)?).stderr(stderr.try_clone().context(what)?);
        command.process_group(0);
        let entry = inside.duplicate().context(what)?;
        // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || prepare(&entry)) };
        let child = on_lasting_thread(move || command.spawn()).context(what)?;
        Ok(Process { name, child, stdout, stderr, ended: None })
    }

    /// Its process id, on this machine.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to the process alone.
    ///
    /// # Errors
    /// When the process is gone already.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        // Not reaped yet (that needs &mut self), so the id can't have been given to another process.
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        if self.ended.is_some() {
            return Err(nix::Error::ESRCH).context(|| format!("{signal} to {}", self.name));
        }
        nix::sys::signal::kill(Pid::from_raw(pid), signal).context(|| format!("{signal} to {}", self.name))
    }

    /// SIGSTOP: the process stands still until [`Process::resume`]. One thread must take the signal before the others stop, so
    /// this waits until all of them do.
    ///
    /// # Errors
    /// As [`Process::signal`]; [`LabError::Timeout`] when a thread goes on.
    pub fn pause(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.pid());
        // The state follows the name, which is in parentheses (proc(5)).
        let stopped = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
        let still = || {
            let Ok(mut all) = std::fs::read_dir(&tasks) else { return false };
            all.all(|task| {
                let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
                stat.is_ok_and(stopped)
            })
        };
        let what = format!("{} to stand still", self.name);
        crate::host::wait_until(&what, Duration::from_secs(20), still)
    }

    /// SIGCONT after [`Process::pause`].
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn resume(&self) -> Result<(), LabError> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGKILL to it and its process group, and waits for its end.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let group = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        // ESRCH: gone before us, which is as good.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        let status = self.child.wait().context(|| format!("wait for {}", self.name))?;
        self.ended = Some(status);
        Ok(status)
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// [`LabError::Timeout`] when it goes on for longer than `limit`; it is not killed then.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        if let Some(status) = self.exited()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel won't say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>, LabError> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().context(|| format!("wait for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let end = clock::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if clock::now() >= end {
                return Err(LabError::Timeout { what: format!("the end of {}", self.name), limit });
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing more can be done about a failure here; the kernel kills it when this process ends.
        let _ = self.kill();
    }
}

/// Runs `command` inside to its end; for short commands.
pub(crate) fn run(inside: &Namespaces, command: Command) -> Result<Output, LabError> {
    let mut process = Process::spawn(inside, command)?;
    let status = process.child.wait().context(|| format!("wait for {}", process.name))?;
    process.ended = Some(status);
    Ok(Output { status, stdout: process.stdout().into_bytes(), stderr: process.stderr().into_bytes() })
}

/// The `baton` program: the one that `BATON_BIN` names, or the one beside the running program's target folder
/// (`target/<profile>/baton`).
///
/// # Errors
/// [`LabError::NoBinary`] with the place where it was expected.
pub fn baton_binary() -> Result<PathBuf, LabError> {
    if let Some(named) = std::env::var_os("BATON_BIN") {
        let path = PathBuf::from(named);
        let path = std::path::absolute(&path).unwrap_or(path);
        return if path.is_file() { Ok(path) } else { Err(LabError::NoBinary { path }) };
    }
    let own = std::env::current_exe().context(|| "find the running program".into())?;
    if own.file_name().is_some_and(|name| name == "baton") {
        return Ok(own);
    }
    // target/<profile>/baton-bench, or target/<profile>/{deps,examples}/<test>-<hash>
    let directory = own.parent().map(PathBuf::from).unwrap_or_default();
    let inner = directory.file_name().is_some_and(|name| name == "deps" || name == "examples");
    let path = if inner { directory.with_file_name("baton") } else { directory.join("baton") };
    if path.is_file() { Ok(path) } else { Err(LabError::NoBinary { path }) }
}

fn capture() -> io::Result<File> {
    Ok(File::from(memfd_create("output", MFdFlags::MFD_CLOEXEC)?))
}

/// Reads from the start without moving the offset, which is the writer's.
fn contents(file: &File) -> String {
    let length = file.metadata().map_or(0, |data| data.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn prepare(entry: &Entry) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() == Pid::from_raw(1) && std::process::id() != 1 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH)); // the parent died before the line above
    }
    entry.join_thread()
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts a child from a thread that lasts as long as this process: the death signal is tied to the thread that forks,
/// and a caller's thread may end before its child should.
fn on_lasting_thread(work: impl FnOnce() -> io::Result<Child> + Send + 'static) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Option<Sender<Job>>>> = OnceLock::new();
    let (result, answer) = channel();
    let job: Job = Box::new(move || drop(result.send(work())));
    {
        let mut spawner = SPAWNER.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if spawner.is_none() {
            let (jobs, queue) = channel::<Job>();
            let body = move || queue.into_iter().for_each(|job| job());
            thread::Builder::new().name("lab-spawner".into()).spawn(body)?;
            *spawner = Some(jobs);
        }
        let sent = spawner.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(io::Error::other("the thread that starts processes is gone"));
        }
    }
    answer.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that starts processes is gone")))
}
