//! `baton doctor`: is this machine fit for Baton, and is anything in its way?
//!
//! Three steps: [`gather()`] reads facts and changes nothing, [`examine()`] draws findings from them and reads nothing, the
//! command line shows them. What is wrong with the configuration's text is the business of `baton check`.

pub(crate) mod certificate;
mod examine;
mod firewall;
mod gather;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::secrets::Exposed;
use crate::telemetry::Status;

pub use examine::examine;
pub use gather::gather;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// Works, but not well, or not for long.
    Warning,
    /// Does not work, or won't when it is needed.
    Problem,
}

impl Level {
    /// The word that is shown.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where: `kernel`, `port eth0`, `store`.
    #[serde(rename = "where")]
    pub place: String,
    /// What is so.
    pub what: String,
    /// What to do; empty if there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// Everything that findings are drawn from.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What `baton check` says of the file besides errors.
    pub notes: Vec<(Level, String)>,
    /// The kernel.
    pub kernel: Kernel,
    /// Who asks.
    pub privileges: Privileges,
    /// The agent of this node.
    pub agent: Agent,
    /// The ports, in the order of the file.
    pub ports: Vec<Port>,
    /// This node is, or is to be, a member of a cluster.
    pub cluster: bool,
    /// Segments that have IPv6 subnets; those of a cluster are known only while its store answers.
    pub ipv6_segments: Vec<String>,
    /// Settings below /proc/sys/net.
    pub settings: Vec<Setting>,
    /// This node's clocks.
    pub clock: Option<Clock>,
    /// Where definitions and ownership live.
    pub store: Store,
    /// The key of the probe frames.
    pub key: Key,
    /// Other files with secrets that others may read or write.
    pub exposed: Vec<Exposed>,
    /// Other programs that manage addresses: name and process.
    pub managers: Vec<(String, u32)>,
    /// Tables that ARP packets are filtered by.
    pub arp_tables: Vec<String>,
    /// What `nft -j list ruleset` says, or why it says nothing; `None`: there is no such program.
    pub nftables: Option<Result<serde_json::Value, String>>,
    /// A BPF file system is mounted where kernel objects are to be pinned, or its parent is one.
    pub bpffs: (PathBuf, bool),
    /// The state folder.
    pub state: StateFolder,
    /// What is wrong with programs of hooks: the hook's name and what.
    pub hooks: Vec<(String, String)>,
    /// The web page, where it speaks TLS.
    pub page: Option<Page>,
    /// The watchdog device, where a virtual server here is fenced by it.
    pub watchdog: Option<Watchdog>,
}

/// The kernel.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// As uname(2) tells.
    pub release: String,
    /// Its types are described in /sys/kernel/btf/vmlinux.
    pub btf: bool,
    /// `net.core.bpf_jit_enable`, where it can be read.
    pub jit: Option<u8>,
    /// Kinds of programs and maps that are needed and not there; `None`: asking is not permitted.
    pub lacks: Option<Vec<String>>,
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Privileges {
    /// The asking user is root.
    pub root: bool,
    /// Capabilities that an agent started from here would lack.
    pub missing: Vec<&'static str>,
}

/// The agent of this node.
#[derive(Clone, Debug)]
pub enum Agent {
    /// It answers.
    Runs(Box<Status>),
    /// Nobody listens.
    Absent,
    /// It can't be asked, for this reason.
    Mute(String),
}

/// A configured port.
#[derive(Clone, Debug, Default)]
pub struct Port {
    /// Its interface.
    pub interface: String,
    /// Its segment.
    pub segment: String,
    /// The configuration says how fast it is.
    pub speed_configured: bool,
    /// What is there; `None`: no such interface.
    pub link: Option<Link>,
}

/// An interface.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Its driver, where it has one.
    pub driver: Option<String>,
    /// Interfaces that it lies on or is made of.
    pub lower: Vec<String>,
    /// The bond, team or bridge that it belongs to, and which of these that is.
    pub master: Option<(String, &'static str)>,
    /// Administratively up.
    pub up: bool,
    /// It has carrier.
    pub carrier: bool,
    /// Mbit/s, where it tells.
    pub speed: Option<u32>,
    /// Its hardware address.
    pub mac: String,
    /// Its MTU.
    pub mtu: u32,
}

/// A setting below /proc/sys/net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Like `ipv4/conf/eth0/rp_filter`.
    pub key: String,
    /// What it is.
    pub found: String,
    /// What is wanted of it.
    pub wanted: Wanted,
}

/// What is wanted of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The agent sets it to this, and puts it back when it leaves.
    Set(&'static str),
    /// At most this: the kernel takes the greater one of it and of each interface's own.
    AtMost(u32),
    /// Exactly this, which the agent doesn't set; for a reason.
    Exactly(&'static str, &'static str),
}

/// This node's clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    /// The kernel counts the wall clock as synchronised.
    pub synchronised: bool,
    /// By how many parts in a million clocks are made to run faster (or slower) than the hardware tells.
    pub rate_ppm: f64,
    /// What the kernel reads time from.
    pub source: String,
}

/// Where definitions and ownership live.
#[derive(Clone, Debug)]
pub enum Store {
    /// In the embedded database of this node.
    File,
    /// In etcd.
    Etcd {
        /// Each endpoint, in the order of the file.
        endpoints: Vec<Endpoint>,
        /// What the definitions say of this node: `Err` why it has none.
        definitions: Result<String, String>,
        /// Certificates of `[store]`: the file, and when it expires, or why that can't be told.
        certificates: Vec<(PathBuf, Result<SystemTime, String>)>,
        /// Now.
        now: SystemTime,
    },
}

/// A member of etcd, as asked by this node.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its URL.
    pub url: String,
    /// It is on this node.
    pub local: bool,
    /// What it says, or why it says nothing.
    pub answer: Result<Member, String>,
}

/// What a member of etcd says of itself.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Its version.
    pub version: String,
    /// It knows a leader.
    pub has_leader: bool,
    /// Number of its cluster.
    pub cluster: u64,
    /// What it complains of.
    pub errors: Vec<String>,
    /// Size of its database, bytes.
    pub size: u64,
    /// How long the answer took.
    pub took: Duration,
}

/// The key of the probe frames.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its file.
    pub path: PathBuf,
    /// Its fingerprint; `None`: there is none yet, and the agent makes one; `Err`: it can't be used.
    pub fingerprint: Result<Option<String>, String>,
    /// The fingerprint that it is to have.
    pub wanted: Option<String>,
}

/// The state folder.
#[derive(Clone, Debug, Default)]
pub struct StateFolder {
    /// Where.
    pub path: PathBuf,
    /// It is there.
    pub exists: bool,
    /// Whether files can be made in it, or in the nearest folder above it that is there; `None`: the asking user can't tell.
    pub writable: Option<bool>,
    /// Bytes left on its file system, where that can be told.
    pub free: Option<u64>,
    /// Files that can still be made there; `None`: as many as there is space for.
    pub files: Option<u64>,
    /// It is in memory, and gone after a restart of the machine.
    pub in_memory: bool,
}

/// The web page with TLS.
#[derive(Clone, Debug)]
pub struct Page {
    /// Why it can't be served so.
    pub unusable: Option<String>,
    /// The files with certificates, and when the first in each ends, or why that can't be told.
    pub certificates: Vec<(PathBuf, Result<SystemTime, String>)>,
    /// Now.
    pub now: SystemTime,
}

/// A watchdog device.
#[derive(Clone, Debug, Default)]
pub struct Watchdog {
    /// The device.
    pub path: PathBuf,
    /// It is there.
    pub exists: bool,
    /// What it calls itself.
    pub identity: Option<String>,
}

/// Ports by segment.
fn by_segment(ports: &[Port]) -> BTreeMap<&str, Vec<&Port>> {
    let mut segments: BTreeMap<&str, Vec<&Port>> = BTreeMap::new();
    for port in ports {
        segments.entry(&port.segment).or_default().push(port);
    }
    segments
}
