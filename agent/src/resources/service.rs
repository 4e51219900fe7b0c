//! The driver of services: what all kinds have in common, and `exec`.
//!
//! A service is either a process that runs in the foreground, which is watched, or commands that start and stop something. Its
//! processes are known by their control group, or by a variable in their environment, whatever they fork.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::command::{self, Command, Done, Fault, last_line, log_file};
use super::folder::{Folder, Identity, Record, Resource};
use super::orders::{Patience, Woken};
use super::process::{self, Ended, Process};
use super::{Failure, cgroup, ganesha, ocf, samba, systemd};
use crate::config::{Exec, Service, ServiceKind};

/// A service in the foreground without a check is taken to work when it has lived for so long.
const SETTLED: Duration = Duration::from_millis(100);
/// Between two checks whether a service that is being started works.
const READY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// Between SIGTERM and SIGKILL for what a service leaves behind.
const GENTLY: Duration = Duration::from_secs(2);
/// A service's log is emptied when it has more bytes.
const LOG_BYTES: u64 = 1 << 20;
/// The folder on a file system for what daemons must remember.
const REMEMBERED: &str = ".baton";

/// Where the services of a virtual server run.
pub struct Place<'a> {
    /// This node.
    pub node: &'a str,
    /// The virtual server.
    pub server: &'a str,
    /// Its folder.
    pub folder: &'a Folder,
    /// Whose processes are its own.
    pub identity: &'a Identity,
    /// Where control groups are, if they may be made.
    pub hierarchy: Option<&'a Path>,
    /// Where OCF agents are: /usr/lib/ocf.
    pub ocf_root: &'a Path,
    /// Where the bus is on which systemd is asked; `None`: that of the system.
    pub bus: Option<&'a str>,
}

impl Place<'_> {
    /// The control group of all that is the virtual server's.
    fn group(&self) -> Option<PathBuf> {
        self.hierarchy.map(|hierarchy| hierarchy.join("baton").join(self.server))
    }

    /// The control group of a service, or of the commands that stop and check it, which must not count as the service.
    fn make_group(&self, name: &str) -> Option<PathBuf> {
        let group = self.group()?.join(name);
        match cgroup::make(&group) {
            Ok(()) => Some(group),
            Err(e) => {
                tracing::debug!("no control group {}: {e}", group.display());
                None
            }
        }
    }

    /// All living processes of the virtual server.
    pub fn processes(&self) -> Vec<Process> {
        let mut found = process::with_variable(&format!("BATON_RUN={}", self.identity.token));
        found.extend(self.group().map(|group| cgroup::members(&group)).unwrap_or_default());
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Removes the control groups, when all is stopped.
    pub fn remove_groups(&self) {
        if let Some(group) = self.group() {
            cgroup::remove(&group);
            group.parent().into_iter().for_each(|all| drop(fs::remove_dir(all)));
        }
    }

    /// The variable that the processes of a service have, and the commands that check it don't.
    fn mark(&self, place: usize) -> (String, String) {
        ("BATON_SERVICE".to_owned(), format!("{}-{place}", self.identity.token))
    }

    /// What every process is told.
    fn variables(&self) -> Vec<(String, String)> {
        let all = [
            ("BATON_NODE", self.node),
            ("BATON_SERVER", self.server),
            ("BATON_RUN", self.identity.token.as_str()),
        ];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// The log of a service that runs in the foreground.
    pub(super) fn log(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("{place}.log"))
    }

    /// Where a daemon keeps what the next owner must find: on the virtual server's first file system, if it has one.
    pub(super) fn memory(&self, daemon: &str) -> PathBuf {
        let first = self.folder.records().into_iter().find_map(|record| match record.resource {
            Resource::Filesystem(fs) => Some(fs.mount),
            Resource::Service(_) => None,
        });
        first.unwrap_or_else(|| self.folder.path().to_owned()).join(REMEMBERED).join(daemon)
    }

    /// Starts a service.
    ///
    /// # Errors
    /// [`Failure`]; something of it may run: [`Place::stop`] ends that.
    pub fn start(
        &self,
        service: &Service,
        record: &mut Record,
        patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        if let ServiceKind::Ocf(agent) = &service.kind {
            // Nothing of one that isn't there, or not as it was meant, is left to be stopped.
            ocf::may_start(self, agent, service, patience)?;
        }
        if let ServiceKind::Systemd(unit) = &service.kind {
            // Nor is one that somebody else has started.
            systemd::may_start(self, unit, patience)?;
        }
        record.group = self.make_group(&record.place.to_string());
        record.process = None;
        self.write(record)?;
        match &service.kind {
            ServiceKind::Exec(exec) if exec.stop.is_none() => {
                let mut check = |patience: &Patience<'_>| match &exec.monitor {
                    Some(argv) => succeeded(self.command(argv, &[], patience)),
                    None => Ok(()),
                };
                let settled = if exec.monitor.is_some() { Duration::ZERO } else { SETTLED };
                self.foreground(&exec.start, record, patience, settled, service.monitor_limit, &mut check)
            }
            ServiceKind::Exec(exec) => self.by_command(exec, service, record, patience),
            ServiceKind::Ocf(agent) => ocf::start(self, agent, service, record, patience),
            ServiceKind::NfsGanesha(config) => ganesha::start(self, config, service, record, patience),
            ServiceKind::Samba(config) => samba::start(self, config, service, record, patience),
            ServiceKind::Systemd(unit) => systemd::start(self, unit, record, patience),
        }
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), Failure> {
        let failed = |e| Failure::Failed(format!("{}: {e}", self.folder.path().display()));
        self.folder.write(record).map_err(failed)
    }

    /// A command that returns when the service runs.
    fn by_command(
        &self,
        exec: &Exec,
        service: &Service,
        record: &Record,
        patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        self.starting(&exec.start, &[], record, patience).and_then(|done| match done.ended {
            Ended::Exit(0) => Ok(()),
            _ => Err(Failure::Failed(format!("start: {}", done.why()))),
        })?;
        let Some(monitor) = &exec.monitor else { return Ok(()) };
        let began = Instant::now();
        loop {
            let limited = patience.at_most(service.monitor_limit);
            let why = match succeeded(self.command(monitor, &[], &limited)) {
                Err(Failure::Failed(why)) => why,
                other => return other,
            };
            if !patience.pause(look_again(began)) {
                return Err(gave_up(patience, &why));
            }
        }
    }

    /// Runs a command whose descendants are the service.
    pub(super) fn starting(
        &self,
        argv: &[String],
        more: &[(String, String)],
        record: &Record,
        patience: &Patience<'_>,
    ) -> Result<Done, Failure> {
        let variables = [&self.variables(), &[self.mark(record.place)][..], more].concat();
        let command = Command { argv, variables: &variables, group: record.group.as_deref(), input: &[] };
        command.run(patience).map_err(|fault| Failure::from(fault).of("start"))
    }

    /// Runs a command that checks or stops a service.
    pub(super) fn command(
        &self,
        argv: &[String],
        more: &[(String, String)],
        patience: &Patience<'_>,
    ) -> Result<Done, Fault> {
        self.output(argv, more, patience).map(|(done, _)| done)
    }

    /// The same, with all that it has written.
    pub(super) fn output(
        &self,
        argv: &[String],
        more: &[(String, String)],
        patience: &Patience<'_>,
    ) -> Result<(Done, String), Fault> {
        let variables = [&self.variables(), more].concat();
        let group = self.make_group("commands");
        Command { argv, variables: &variables, group: group.as_deref(), input: &[] }.read(patience)
    }

    /// Starts the process that is the service, and waits until `check` says that it works. A check that takes too long has
    /// failed.
    pub(super) fn foreground(
        &self,
        argv: &[String],
        record: &mut Record,
        patience: &Patience<'_>,
        settled: Duration,
        check_limit: Duration,
        check: &mut dyn FnMut(&Patience<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = self.log(record.place);
        let output = log_file(&path).map_err(|e| Failure::Failed(format!("{}: {e}", path.display())))?;
        let variables = [&self.variables(), &[self.mark(record.place)][..]].concat();
        let command = Command { argv, variables: &variables, group: record.group.as_deref(), input: &[] };
        let process = output.try_clone().and_then(|log| command.start(log));
        let process = process.map_err(|e| Failure::from(Fault::Start(e)).of("start"))?;
        record.process = Some(process);
        self.write(record)?;
        let began = Instant::now();
        let mut look = READY.0.max(settled);
        let mut why = "it isn't ready".to_owned();
        loop {
            let woken = match process.open() {
                Ok(fd) => patience.at_most(look).wait(&[fd.as_fd()]),
                Err(_) => Woken::Ready(0),
            };
            match woken {
                Woken::Ready(_) => return Err(Failure::Failed(how_it_ended(process, &last_line(&output)))),
                Woken::Told => return Err(Failure::Told),
                Woken::Late if patience.left().is_zero() => return Err(gave_up(patience, &why)),
                Woken::Late if began.elapsed() < settled => continue,
                Woken::Late => {}
            }
            match check(&patience.at_most(check_limit)) {
                // One that was cut short by the end of the start has found nothing; what the one before has found stands.
                Err(Failure::Failed(_)) if patience.left().is_zero() => {}
                Err(Failure::Failed(text)) => why = text,
                Ok(()) if !process.is_alive() => {}
                other => return other,
            }
            look = look_again(began);
        }
    }

    /// Stops a service, also one whose start has failed.
    ///
    /// # Errors
    /// [`Failure`]; something of it may run on.
    pub fn stop(&self, service: &Service, record: &Record, patience: &Patience<'_>) -> Result<(), Failure> {
        let stopped = match &service.kind {
            ServiceKind::Exec(Exec { stop: Some(stop), .. }) => {
                succeeded(self.command(stop, &[], patience)).map_err(|e| e.of("stop"))
            }
            ServiceKind::Exec(_) | ServiceKind::NfsGanesha(_) | ServiceKind::Samba(_) => {
                self.terminate(record, patience)
            }
            ServiceKind::Ocf(agent) => ocf::stop(self, agent, service, patience),
            ServiceKind::Systemd(unit) => systemd::stop(self, unit, patience),
        };
        if matches!(stopped, Err(Failure::Told)) {
            return stopped;
        }
        // Whatever came of it: what it has left behind ends now.
        let gently = if record.process.is_some() { patience.left().min(GENTLY) } else { GENTLY };
        let left = command::end(|| self.members(record), gently, patience);
        if let Some(process) = record.process {
            process.reap();
        }
        if let Some(stuck) = left.first() {
            let why = if stuck.is_stuck() { "it hangs in the kernel" } else { "it takes too long to end" };
            return Err(Failure::Failed(format!("{} can't be killed: {why}", stuck.name())));
        }
        let Err(Failure::Failed(why)) = stopped else { return stopped };
        if self.is_certainly_stopped(service, patience) {
            tracing::warn!("{}: its stop has failed ({why}), but it is stopped", self.server);
            return Ok(());
        }
        Err(Failure::Failed(why))
    }

    /// SIGTERM to the process that is the service, and waits for its end.
    fn terminate(&self, record: &Record, patience: &Patience<'_>) -> Result<(), Failure> {
        // It is killed with all that it has started.
        let Some(process) = record.process.filter(|_| !patience.is_hopeless()) else { return Ok(()) };
        let Ok(fd) = process.open() else { return Ok(()) };
        process.signal(libc::SIGTERM);
        process.signal(libc::SIGCONT);
        match patience.wait(&[fd.as_fd()]) {
            Woken::Ready(_) => Ok(()),
            Woken::Told => Err(Failure::Told),
            Woken::Late => {
                tracing::warn!("{}: {} takes too long to end, and is killed", self.server, process.name());
                Ok(())
            }
        }
    }

    /// Does its own check say that a service whose stop has failed is stopped?
    fn is_certainly_stopped(&self, service: &Service, patience: &Patience<'_>) -> bool {
        let patience = patience.within(service.monitor_limit);
        match &service.kind {
            ServiceKind::Exec(Exec { monitor: Some(monitor), .. }) => {
                let done = self.command(monitor, &[], &patience);
                done.is_ok_and(|done| matches!(done.ended, Ended::Exit(code) if code != 0))
            }
            ServiceKind::Exec(_) => false,
            ServiceKind::NfsGanesha(_) | ServiceKind::Samba(_) => true,
            ServiceKind::Ocf(agent) => ocf::is_stopped(self, agent, service, &patience),
            ServiceKind::Systemd(unit) => systemd::is_stopped(self, unit, &patience),
        }
    }

    /// The living processes of a service.
    fn members(&self, record: &Record) -> Vec<Process> {
        let mut found = match &record.group {
            Some(group) => cgroup::members(group),
            None => {
                let (name, value) = self.mark(record.place);
                process::with_variable(&format!("{name}={value}"))
            }
        };
        found.extend(record.process.filter(Process::is_alive));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Does it work?
    ///
    /// # Errors
    /// [`Failure`]: it doesn't, or nobody knows.
    pub fn check(&self, service: &Service, record: &Record, patience: &Patience<'_>) -> Result<(), Failure> {
        if let ServiceKind::Systemd(unit) = &service.kind {
            return systemd::check(self, unit, record, patience);
        }
        if let Some(process) = record.process {
            command::shorten(&self.log(record.place), LOG_BYTES);
            if !process.is_alive() {
                return Err(Failure::Failed(self.end_of(process, record)));
            }
        }
        match &service.kind {
            ServiceKind::Exec(Exec { monitor: Some(monitor), .. }) => {
                succeeded(self.command(monitor, &[], patience))
            }
            ServiceKind::Exec(_) => Ok(()),
            ServiceKind::Ocf(agent) => ocf::check(self, agent, service, patience),
            ServiceKind::NfsGanesha(config) => ganesha::check(self, config, patience),
            ServiceKind::Samba(_) => samba::check(self, patience),
            ServiceKind::Systemd(unit) => systemd::check(self, unit, record, patience),
        }
    }

    /// What is said of a process that is the service and has ended.
    pub fn end_of(&self, process: Process, record: &Record) -> String {
        let said = fs::File::open(self.log(record.place)).map(|log| last_line(&log));
        how_it_ended(process, &said.unwrap_or_default())
    }
}

/// Does it run, as far as can be told at once?
pub fn is_running(service: &Service, record: &Record) -> bool {
    let in_foreground = match &service.kind {
        ServiceKind::Exec(exec) => exec.stop.is_none(),
        ServiceKind::NfsGanesha(_) | ServiceKind::Samba(_) => true,
        ServiceKind::Ocf(_) | ServiceKind::Systemd(_) => false,
    };
    let alive = record.process.is_some_and(|process| process.is_alive());
    record.started && (alive || !in_foreground)
}

fn how_it_ended(process: Process, said: &str) -> String {
    // Only its parent is told how.
    let ended = process.reap().map_or("it has ended".to_owned(), |ended| format!("it has ended: {ended}"));
    if said.is_empty() { ended } else { format!("{ended}; it said: {said}") }
}

/// The longer it takes, the less often it is looked at, so that it is seen after an eighth more at most.
fn look_again(began: Instant) -> Duration {
    (began.elapsed() / 8).clamp(READY.0, READY.1)
}

fn gave_up(patience: &Patience<'_>, why: &str) -> Failure {
    if patience.is_told() { Failure::Told } else { Failure::Failed(format!("it takes too long: {why}")) }
}

/// A command that succeeds with status 0.
fn succeeded(done: Result<Done, Fault>) -> Result<(), Failure> {
    match done {
        Ok(Done { ended: Ended::Exit(0), .. }) => Ok(()),
        Ok(done) => Err(Failure::Failed(done.why())),
        Err(fault) => Err(fault.into()),
    }
}
