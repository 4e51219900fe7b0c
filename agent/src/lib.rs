//! Baton: the agent that runs on every file server.

pub mod io;
