//! The real agent, end to end, in labs of network namespaces. A watcher on the wire is the judge, never the agent's own
//! word: what it says of itself is only used to know when to look, and compared with the wire.

mod bad_days;
mod common;
mod control;
mod degraded;
mod doctor;
mod failover;
mod gateway;
mod ground;
mod hooks;
mod leftovers;
mod lies;
mod many;
mod measure;
mod prometheus;
mod reload;
mod repair;
mod restart;
mod samba;
mod services;
mod silent;
mod spread;
