//! What the agent keeps itself from: capabilities that it doesn't need, and system calls that only somebody who has broken into it
//! would make.
//!
//! Both belong to a thread and to whatever it starts, and can't be had back. So they are taken from every thread that talks to
//! somebody outside (kernel events, frames, etcd, HTTP, the control socket) or decides. Threads that mount, start programs and
//! fence are left alone, as are those programs: what they need nobody can know. A node that has neither file systems nor services
//! nor anything to fence, and can't be given any without a restart, has no such threads: there the whole process is confined.
//!
//! Threads share their memory, so where some are not confined this is a hurdle and not a wall. What all of a node is kept from is
//! said in its unit.
//!
//! The filter lists what is refused and lets the rest pass. A list of what may pass would have to foresee every call of every version
//! of the C library, and a call that is refused in the middle of a failover costs more than it protects. What is refused fails
//! with EPERM, is counted (`baton_system_calls_refused_total`, with an alert), and is told in the log.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use caps::{CapSet, Capability, CapsHashSet};
use libc::c_int;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tokio::time::{Duration, sleep};

/// What the agent needs for as long as it runs; the unit says what for.
const KEPT: [Capability; 7] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_NICE,
    Capability::CAP_IPC_LOCK,
    Capability::CAP_CHOWN,
];

/// What is refused: (name, number).
const REFUSED: &[(&str, i64)] = &[
    // Other programs, and other processes' memory and files.
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("kcmp", libc::SYS_kcmp),
    // Another kernel, another machine.
    ("kexec_load", libc::SYS_kexec_load),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("delete_module", libc::SYS_delete_module),
    ("reboot", libc::SYS_reboot),
    ("swapon", libc::SYS_swapon),
    ("swapoff", libc::SYS_swapoff),
    ("acct", libc::SYS_acct),
    ("quotactl", libc::SYS_quotactl),
    ("syslog", libc::SYS_syslog),
    ("sethostname", libc::SYS_sethostname),
    ("setdomainname", libc::SYS_setdomainname),
    // Another time.
    ("settimeofday", libc::SYS_settimeofday),
    ("clock_settime", libc::SYS_clock_settime),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("adjtimex", libc::SYS_adjtimex),
    // Another tree of files, or a file without its path.
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("move_mount", libc::SYS_move_mount),
    ("open_tree", libc::SYS_open_tree),
    ("fsopen", libc::SYS_fsopen),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fspick", libc::SYS_fspick),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("unshare", libc::SYS_unshare),
    ("setns", libc::SYS_setns),
    ("mknodat", libc::SYS_mknodat),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    // Another user.
    ("setuid", libc::SYS_setuid),
    ("setgid", libc::SYS_setgid),
    ("setreuid", libc::SYS_setreuid),
    ("setregid", libc::SYS_setregid),
    ("setresuid", libc::SYS_setresuid),
    ("setresgid", libc::SYS_setresgid),
    ("setgroups", libc::SYS_setgroups),
    ("setfsuid", libc::SYS_setfsuid),
    ("setfsgid", libc::SYS_setfsgid),
    // Keys; ways around filters, and means of those who break in.
    ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key),
    ("keyctl", libc::SYS_keyctl),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("personality", libc::SYS_personality),
];

/// How often is looked for calls that were refused.
const LOOK: Duration = Duration::from_secs(1);

/// Calls that were refused, the last of them, and its thread. Written by a signal handler.
static COUNT: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicI64 = AtomicI64::new(-1);
static THREAD: AtomicI64 = AtomicI64::new(-1);

/// Confines the calling thread and what it starts from now on. What can't be done is told, and left: a node must be served all the
/// same.
pub fn thread() {
    if let Err(error) = drop_capabilities() {
        tracing::warn!("capabilities that aren't needed are kept: {error}");
    }
    match filter() {
        Ok(program) => {
            if let Err(error) = seccompiler::apply_filter(program) {
                tracing::warn!("no system call is refused: {error}");
            }
        }
        Err(error) => tracing::warn!("no system call is refused: {error}"),
    }
}

/// Only KEPT is left, as far as it was there.
fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let mut kept: CapsHashSet = held.intersection(&KEPT.into_iter().collect()).copied().collect();
    // An older kernel, or a container, may hold it in place of the two for kernel programs.
    let has_programs = kept.contains(&Capability::CAP_BPF) && kept.contains(&Capability::CAP_PERFMON);
    if !has_programs && held.contains(&Capability::CAP_SYS_ADMIN) {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    // Under the unit the bounding set is there already, and nobody may make it smaller.
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::all().difference(&kept) {
            if caps::has_cap(None, CapSet::Bounding, *capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, *capability)?;
            }
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

/// The filter, made once.
fn filter() -> Result<&'static BpfProgram, String> {
    static FILTER: OnceLock<Result<BpfProgram, String>> = OnceLock::new();
    let made = FILTER.get_or_init(|| {
        tell_refused().map_err(|e| e.to_string())?;
        let rules = REFUSED.iter().map(|(_, number)| (*number, Vec::new())).collect();
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trap, arch);
        filter.and_then(BpfProgram::try_from).map_err(|e| e.to_string())
    });
    made.as_ref().map_err(Clone::clone)
}

/// A call that is refused raises SIGSYS in its thread.
fn tell_refused() -> io::Result<()> {
    // SAFETY: an action of zeros is one without flags; its handler only touches atomics and the context that it is given.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = refused as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        match libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Lets the call return EPERM.
extern "C" fn refused(_: c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of the thread that made the call, with its number and the place for its result.
    let number = unsafe {
        let context = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        #[cfg(target_arch = "x86_64")]
        {
            let result = &mut context.gregs[libc::REG_RAX as usize];
            std::mem::replace(result, -i64::from(libc::EPERM))
        }
        #[cfg(target_arch = "aarch64")]
        {
            context.regs[0] = -i64::from(libc::EPERM) as u64;
            context.regs[8] as i64
        }
    };
    // SAFETY: the call takes nothing, is not refused, and leaves errno as it is, for it can't fail.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    LAST.store(number, Ordering::Relaxed);
    THREAD.store(thread, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Relaxed);
}

/// How many calls were refused since this process began.
pub fn refused_calls() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// How many calls were refused, and the name of the last one.
fn refusals() -> (u64, &'static str) {
    let last = LAST.load(Ordering::Relaxed);
    let known = REFUSED.iter().find(|(_, number)| *number == last);
    (refused_calls(), known.map_or("another one", |(name, _)| name))
}

/// The name of the thread that was refused one last, if it is still there.
fn last_thread() -> String {
    let file = format!("/proc/self/task/{}/comm", THREAD.load(Ordering::Relaxed));
    std::fs::read_to_string(file)
        .map_or_else(|_| "one that has ended".to_owned(), |name| name.trim().to_owned())
}

/// Tells of calls that are refused, for ever: a fault of Baton's, or somebody has broken into it.
pub async fn report() {
    let mut told = refusals().0;
    loop {
        sleep(LOOK).await;
        let (count, call) = refusals();
        if count > told {
            tracing::error!(
                "{} system calls were refused, the last of them {call} in the thread {}: a fault, or somebody has broken in",
                count - told,
                last_thread()
            );
            told = count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_thread_is_refused_what_only_an_intruder_would_do_and_nothing_else() {
        let status = |line: &str| {
            let text = std::fs::read_to_string("/proc/thread-self/status").expect("a status");
            let line = text.lines().find_map(|l| l.strip_prefix(line)).expect("the line");
            line.trim().to_owned()
        };
        let before = (status("Seccomp:"), status("CapEff:"));
        let confined = std::thread::Builder::new().name("confined".into());
        let confined = confined.spawn(move || {
            let count = refusals().0;
            thread();
            assert_eq!(status("Seccomp:"), "2");
            let held = caps::read(None, CapSet::Permitted).expect("capabilities");
            assert!(held.iter().all(|c| KEPT.contains(c)), "{held:?}");
            assert!(caps::read(None, CapSet::Effective).expect("capabilities").is_subset(&held));
            assert!(caps::raise(None, CapSet::Effective, Capability::CAP_SYS_MODULE).is_err());
            for (name, number) in REFUSED {
                // SAFETY: no argument is used: the call never happens.
                let result = unsafe { libc::syscall(*number, -1, -1, -1, -1, -1, -1) };
                let error = io::Error::last_os_error().raw_os_error();
                assert_eq!((result, error), (-1, Some(libc::EPERM)), "{name}");
            }
            let (now, last) = refusals();
            assert_eq!((now - count, last), (REFUSED.len() as u64, REFUSED[REFUSED.len() - 1].0));
            assert_eq!(Some(last_thread().as_str()), std::thread::current().name());
            // What an agent does all the time.
            std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
            std::thread::spawn(|| tempfile::tempfile().expect("a file")).join().expect("a thread");
        });
        confined.expect("a thread").join().expect("it ends well");
        assert_eq!((status("Seccomp:"), status("CapEff:")), before, "other threads are left alone");
    }
}
