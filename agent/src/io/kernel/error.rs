use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use super::attach::AttachError;

/// Why something could not be done with the kernel programs. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not permitted.
    #[error(
        "not permitted to {what}: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (CAP_SYS_ADMIN to mount)"
    )]
    Privilege {
        /// What was tried.
        what: &'static str,
    },
    /// The kernel lacks features.
    #[error("this kernel is too old: Baton needs Linux {}.{} or newer", oldest.0, oldest.1)]
    TooOld {
        /// The oldest version that will do.
        oldest: (u8, u8),
    },
    /// No BPF file system, and none could be mounted.
    #[error("no BPF file system at {} and mounting one failed ({source}): mount it with `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder or pin could not be made, read or removed.
    #[error("{}: {source}", path.display())]
    Pin {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("the kernel programs cannot be loaded: {}", chain(source))]
    Load {
        /// Why.
        source: EbpfError,
    },
    /// The kernel refuses a program.
    #[error("the kernel refuses the program {program}: {}", chain(source))]
    Program {
        /// Its name.
        program: String,
        /// Why.
        source: ProgramError,
    },
    /// The object lacks a map: it was built from other sources.
    #[error("the kernel programs have no map {name}: build them anew")]
    NoSuchMap {
        /// Its name.
        name: &'static str,
    },
    /// The object lacks a program: it was built from other sources.
    #[error("the kernel programs have no program {name}: build them anew")]
    NoSuchProgram {
        /// Its name.
        name: &'static str,
    },
    /// An address is to be routed that the programs don't know.
    #[error("{address} is no virtual IP: it can't be routed")]
    NotVirtual {
        /// The address.
        address: std::net::IpAddr,
    },
    /// A pinned map has another layout than its version says.
    #[error("the pinned map {name} in {} has another layout ({source}): remove it with `baton clean`", dir.display())]
    Layout {
        /// Its name.
        name: &'static str,
        /// Where it is pinned.
        dir: PathBuf,
        /// Which difference.
        source: MapError,
    },
    /// A pinned map cannot be opened.
    #[error("the pinned map {} cannot be opened: {}", path.display(), chain(source))]
    Pinned {
        /// Which.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
    /// A map refuses to be read or written.
    #[error("map {map}: {}", chain(source))]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        source: MapError,
    },
    /// A map refuses to be read as a whole.
    #[error("map {map}: {source}")]
    Batch {
        /// Its name.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's description of its types is of no use.
    #[error("{path}: {what}")]
    Types {
        /// Where it is.
        path: &'static str,
        /// What is missing.
        what: String,
    },
    /// A table is full.
    #[error("more than {limit} {what}")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: u32,
    },
    /// The number of CPUs is unknown.
    #[error("{path}: {source}")]
    Cpus {
        /// Where it was looked up.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The interface is gone, or its index is another one's.
    #[error("interface {interface} (index {ifindex}) does not exist")]
    NoInterface {
        /// Its name.
        interface: String,
        /// Its index.
        ifindex: u32,
    },
    /// Another XDP program sits on the interface.
    #[error(
        "{interface} already has an XDP program ({occupant}): remove it, or take the interface out of the configuration"
    )]
    Busy {
        /// The interface.
        interface: String,
        /// The program that is there.
        occupant: String,
    },
    /// A program could not be put on a port.
    #[error("{interface}: attaching {program} failed: {}", chain(source))]
    Attach {
        /// The interface.
        interface: String,
        /// The program.
        program: &'static str,
        /// Why.
        source: AttachError,
    },
    /// The programs' messages cannot be read.
    #[error("the kernel programs' messages cannot be read: {0}")]
    Logger(aya_log::Error),
}

impl KernelError {
    pub(super) fn load(source: EbpfError) -> Self {
        match errno(&source) {
            Some(libc::EPERM) => Self::Privilege { what: "load kernel programs" },
            _ => Self::Load { source },
        }
    }

    pub(super) fn program(name: &str, source: ProgramError) -> Self {
        match errno(&source) {
            Some(libc::EPERM) => Self::Privilege { what: "load kernel programs" },
            _ => Self::Program { program: name.to_owned(), source },
        }
    }

    pub(super) fn map(map: &'static str, source: MapError) -> Self {
        Self::Map { map, source }
    }
}

/// The system's error number at the root of an error.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        next = error.source();
    }
    None
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
