//! Baton's agent: reads the kernel, carries out what [`baton_core`] decides, and shows what it does.

pub mod cli;
pub mod config;
pub mod confine;
pub mod connections;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod fast;
pub mod fence;
pub mod hooks;
pub mod import;
pub mod io;
pub mod journal;
pub mod resources;
pub mod secrets;
pub mod slow;
pub mod storage;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
