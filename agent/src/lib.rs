//! Baton's agent: reads the kernel, runs what [`baton_core`] decides, and shows what it does.

pub mod cli;
pub mod config;
pub mod control;
pub mod journal;
pub mod store;
pub mod telemetry;
