//! The control socket: how the command line asks a running agent, and the lock that keeps agents one per node.
//!
//! A request is one JSON line, an answer one or more; a connection carries one request. `{"status":{}}` gives one
//! line, `{"status":{"watch":true}}` one per change (at most ten a second, at least one a second),
//! `{"events":{"since":…,"follow":…,"server":…,"limit":…}}` one per event, `{"counters":{}}` one per virtual IP,
//! `{"plan":{}}` what could be planned now.
//! `{"reload":{"dry_run":…}}` has the configuration file read anew: one [`ReloadAnswer`]; only root may have it taken up.
//! What can't be answered gives `{"error":"…"}`. Every other request only reads.

mod client;
mod lock;
mod server;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use client::{Answers, ClientError, ask};
pub use lock::{Lock, LockError, lock};
pub use server::{BindError, ReloadCall, Server, bind};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`crate::telemetry::Status`].
    Status(StatusRequest),
    /// [`crate::journal::Record`]s, oldest first.
    Events(EventsRequest),
    /// [`CountersLine`]s, by address.
    Counters(CountersRequest),
    /// [`baton_core::plan::Planning`].
    Plan(PlanRequest),
    /// [`ReloadAnswer`].
    Reload(ReloadRequest),
}

/// Fields of [`Request::Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatusRequest {
    /// Go on with every change.
    pub watch: bool,
}

/// Fields of [`Request::Events`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsRequest {
    /// Only events from this time on (RFC 3339, UTC).
    pub since: Option<String>,
    /// Go on with every new event.
    pub follow: bool,
    /// Only events that concern this virtual server.
    pub server: Option<String>,
    /// Only the last so many of those that are there already.
    pub limit: Option<usize>,
}

/// Fields of [`Request::Counters`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CountersRequest {}

/// Fields of [`Request::Plan`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanRequest {}

/// Fields of [`Request::Reload`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReloadRequest {
    /// Only say what would change.
    pub dry_run: bool,
}

/// What it takes to take up another configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Nothing is different.
    Nothing,
    /// What is different is changed, and nothing else touched.
    InPlace,
    /// The agent starts anew within its process, and adopts what is served and what runs.
    Anew,
}

/// The answer to [`Request::Reload`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// Why the file is refused, with line, column and what to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// How it is, or would be, taken up.
    pub how: How,
    /// What is different, a line each.
    pub changes: Vec<String>,
}

impl ReloadAnswer {
    /// It can be taken up.
    pub fn new(how: How, changes: Vec<String>) -> ReloadAnswer {
        ReloadAnswer { refused: None, how, changes }
    }

    /// It can't.
    pub fn refused(error: String) -> ReloadAnswer {
        ReloadAnswer { refused: Some(error), how: How::Nothing, changes: Vec::new() }
    }
}

/// One answer to [`Request::Counters`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of baton_common::Counters")]
pub struct CountersLine {
    pub address: IpAddr,
    pub virtual_server: String,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    pub other_port: u64,
}

/// The answer to what can't be answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorLine {
    /// What, why, what to do.
    pub error: String,
}

/// Longest request line, in bytes.
const REQUEST_MAX: u64 = 64 << 10;
