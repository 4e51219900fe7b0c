//! Every decision of Baton, as pure code.
//!
//! [`Machine`] takes one [`Input`] at a time with the time it happened at, changes its state, and returns one ordered
//! list of [`Effect`]s; [`Machine::deadline`] says when it wants to be woken. It reads no clock, no randomness and no
//! environment, and iterates over nothing unordered: the same inputs give the same effects, bit for bit.
//!
//! This crate must not do input or output of any kind.

pub mod cluster;
pub mod config;
mod effect;
mod event;
mod input;
mod machine;
mod path;
pub mod plan;
mod snapshot;
mod spread;
mod time;

pub use config::Config;
pub use effect::{Effect, Hop};
pub use event::{Event, EventKind, Evidence, FailoverKind, Finding, Reason, Rebinding, Stage, TakeTimes};
pub use input::{
    Assigned, Attachment, Claim, ClusterStart, DeviceSample, Found, HostSample, IfIndex, Input, Link, Owner,
    PlannedMove, Reload, ResourceState, Sample, Start, StorageState, Traffic,
};
pub use machine::Machine;
pub use path::{
    LinkErrors, PathSample, PeerPort, PeerReading, PeerSample, ProbePort, Reading, TargetSample, peer_ports,
};
pub use snapshot::{
    AddressView, ConflictView, NodePortView, NodeView, PathView, PortState, PortView, SegmentView,
    ServerView, Snapshot, StorageView, TargetView, Watcher,
};
pub use time::Time;
