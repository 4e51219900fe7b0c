//! Topologies of hosts and switches in network namespaces, as values; ways to break them; and eyes on the wire.
//!
//! A [`Lab`] owns one namespace for its switches and one network plus mount namespace for each [`Host`]. No
//! namespace has a name: each lives as long as a file descriptor of this process or a process inside it, and every
//! process that a lab starts dies with the thread that started it. So nothing stays behind, even after `kill -9`,
//! and labs of one process or of many never meet.
//!
//! This library must not panic, print, or touch anything outside the namespaces that it made. It needs root.
//!
//! Times are [`std::time::Duration`]s on `CLOCK_MONOTONIC` throughout ([`clock::now`]).

pub mod agent;
mod bpf;
pub mod capture;
pub mod clock;
pub mod cluster;
mod device;
pub mod disk;
pub mod error;
pub mod etcd;
pub mod fault;
pub mod files;
pub mod host;
pub mod judge;
pub mod lun;
pub mod namespace;
pub mod netlink;
pub mod nfs;
pub mod packet;
pub mod port;
pub mod probe;
pub mod process;
pub mod query;
pub mod state;
pub mod storm;
pub mod tcp;
pub mod topology;
pub mod transfer;
pub mod valve;
pub mod watcher;
pub mod wire;

pub use agent::{Agent, AgentConfig};
pub use capture::Capture;
pub use device::Device;
pub use disk::LoopDevice;
pub use error::LabError;
pub use fault::{Blackhole, Direction, Impostor, Occupant, OffBridge, SwitchOff};
pub use host::Host;
pub use lun::{Lun, Way};
pub use port::Port;
pub use probe::{Echo, Probe, ProbeResult};
pub use process::{Process, baton_binary};
pub use state::State;
pub use storm::{Foreign, Spoiler, Storm};
pub use topology::{Cable, HostSpec, Lab, Switch, Topology};
pub use transfer::{Transfer, Work};
pub use valve::Valve;
pub use watcher::{Answer, AnswerKind, Watcher};
pub use wire::{Frame, Kind, Mac};

/// What lab operations return.
pub type Result<T, E = LabError> = std::result::Result<T, E>;
