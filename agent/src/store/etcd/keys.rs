//! Keys, and what their values mean.

use baton_core::cluster::{Entry, StoreChange};

use super::EtcdError;

/// The keys of a cluster.
#[derive(Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(cluster: &str) -> Keys {
        Keys { prefix: format!("/baton/{cluster}/") }
    }

    /// From where to where all keys but the definitions and connections are: those are the first in the alphabet.
    pub fn all(&self) -> (String, String) {
        (format!("{}definitions0", self.prefix), format!("{}0", self.prefix.trim_end_matches('/')))
    }

    pub fn members(&self) -> String {
        format!("{}members", self.prefix)
    }

    pub fn generation(&self) -> String {
        format!("{}generation", self.prefix)
    }

    /// Prefix of a generation's chunks.
    pub fn definitions(&self, generation: u64) -> String {
        format!("{}definitions/{generation:020}/", self.prefix)
    }

    pub fn chunk(&self, generation: u64, index: usize) -> String {
        format!("{}{index:06}", self.definitions(generation))
    }

    pub fn incarnation(&self, node: &str) -> Result<String, EtcdError> {
        self.of("incarnation", node)
    }

    pub fn node(&self, node: &str) -> Result<String, EtcdError> {
        self.of("node", node)
    }

    pub fn owner(&self, server: &str) -> Result<String, EtcdError> {
        self.of("owner", server)
    }

    pub fn drain(&self, node: &str) -> Result<String, EtcdError> {
        self.of("drain", node)
    }

    pub fn adopted(&self, node: &str) -> Result<String, EtcdError> {
        self.of("adopted", node)
    }

    pub fn watchdog(&self, node: &str) -> Result<String, EtcdError> {
        self.of("watchdog", node)
    }

    pub fn all_adopted(&self) -> String {
        format!("{}adopted/", self.prefix)
    }

    pub fn load(&self, node: &str) -> Result<String, EtcdError> {
        self.of("load", node)
    }

    pub fn wish(&self, server: &str) -> Result<String, EtcdError> {
        self.of("move", server)
    }

    /// Prefix of the buckets of all virtual servers.
    pub fn all_connections(&self) -> String {
        format!("{}connections/", self.prefix)
    }

    /// Prefix of the buckets of one.
    pub fn connections_of(&self, server: &str) -> Result<String, EtcdError> {
        Ok(format!("{}/", self.of("connections", server)?))
    }

    pub fn connections(&self, server: &str, bucket: usize) -> Result<String, EtcdError> {
        Ok(format!("{}{bucket:02}", self.connections_of(server)?))
    }

    /// Of which virtual server a bucket is, and its number.
    pub fn bucket<'a>(&self, key: &'a [u8]) -> Option<(&'a str, usize)> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let (server, bucket) = key.strip_prefix("connections/")?.split_once('/')?;
        Some((server, bucket.parse().ok()?))
    }

    fn of(&self, kind: &str, name: &str) -> Result<String, EtcdError> {
        if name.is_empty() || name.contains('/') {
            return Err(EtcdError::Name { name: name.to_owned() });
        }
        Ok(format!("{}{kind}/{name}", self.prefix))
    }

    /// What core is told of a key. A value that is none is told to nobody: what was known stays.
    pub fn change(&self, key: &[u8], value: Option<&[u8]>, revision: i64) -> Option<StoreChange> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let entry = match entry(key, value) {
            Ok(entry) => entry?,
            Err(e) => {
                tracing::error!("key {key} in etcd: {e}; it is left out");
                return None;
            }
        };
        Some(StoreChange { revision: revision as u64, entry })
    }
}

/// `None`: not of interest.
fn entry(key: &str, value: Option<&[u8]>) -> Result<Option<Entry>, serde_json::Error> {
    let (kind, name) = key.split_once('/').unwrap_or((key, ""));
    let name = name.to_owned();
    let json = value.map(|value| value as &[u8]);
    Ok(Some(match (kind, json) {
        ("members", Some(value)) => Entry::Members(serde_json::from_slice(value)?),
        ("generation", Some(value)) => Entry::Generation(serde_json::from_slice(value)?),
        ("incarnation", Some(value)) => Entry::Incarnation(name, serde_json::from_slice(value)?),
        ("node", value) => Entry::Node(name, value.map(serde_json::from_slice).transpose()?),
        ("owner", value) => Entry::Record(name, value.map(serde_json::from_slice).transpose()?),
        ("drain", value) => Entry::Drain(name, value.is_some()),
        ("load", value) => Entry::Load(name, value.map(serde_json::from_slice).transpose()?),
        ("move", value) => Entry::Move(name, value.map(serde_json::from_slice).transpose()?),
        _ => return Ok(None),
    }))
}

/// As a value is stored.
pub(super) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Plain values with text keys: nothing in them can fail.
    serde_json::to_vec(value).unwrap_or_default()
}
