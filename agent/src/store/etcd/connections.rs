//! TCP connections of virtual servers, shared by their owners. Their keys stand before all that core is told of, so that they cost it
//! nothing.

use std::time::Duration;

use baton_core::cluster::Record;
use etcd_client::{
    Compare, CompareOp, DeleteOptions, EventType, GetOptions, SortOrder, SortTarget, Txn, TxnOp, WatchOptions,
};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{Etcd, EtcdError, parse};
use crate::connections::Change;

/// How often it is looked whether the watch is behind.
const CHECK: Duration = Duration::from_secs(2);
/// How long to wait before the store is read again that could not be.
const AGAIN: Duration = Duration::from_millis(500);

/// What the store tells of connections, by virtual server.
#[derive(Debug)]
pub enum ConnectionNews {
    /// Every bucket there is.
    All(Vec<(String, Change)>),
    /// Buckets that have changed.
    Changed(Vec<(String, Change)>),
}

impl Etcd {
    /// Writes buckets of a virtual server, or removes them, if it is `node`'s. Returns whether it was done.
    ///
    /// # Errors
    /// Nobody answers: it may have been, or may yet be, if the owner stays the same.
    pub async fn set_connections(
        &self,
        node: &str,
        server: &str,
        changes: &[Change],
    ) -> Result<bool, EtcdError> {
        let owner = self.keys.owner(server)?;
        let Some((value, revision)) = self.get(&owner).await? else { return Ok(false) };
        let record: Record = parse(&owner, "owner record", &value)?;
        if record.node != node || record.released.is_some() {
            return Ok(false);
        }
        let mut operations = Vec::new();
        for Change { bucket, value } in changes {
            let key = self.keys.connections(server, *bucket)?;
            operations.push(match value {
                Some(value) => TxnOp::put(key, value.clone(), None),
                None => TxnOp::delete(key, None),
            });
        }
        let txn =
            Txn::new().when([Compare::mod_revision(owner, CompareOp::Equal, revision)]).and_then(operations);
        let response = self.endpoints.ask(async |mut client| client.txn(txn.clone()).await).await?;
        Ok(response.succeeded())
    }

    /// Removes all of a virtual server that this generation of the definitions doesn't know, if it is still in force.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn forget_connections(&self, server: &str, generation: u64) -> Result<(), EtcdError> {
        let prefix = self.keys.connections_of(server)?;
        let still = Compare::value(self.keys.generation(), CompareOp::Equal, generation.to_string());
        let all = DeleteOptions::new().with_prefix();
        self.guarded(&still, TxnOp::delete(prefix, Some(all))).await.map(|_| ())
    }

    /// Tells what the store holds, then what changes, until `tell` says that nobody listens.
    pub async fn follow_connections(&self, tell: impl AsyncFn(ConnectionNews) -> bool) {
        loop {
            match self.read_connections().await {
                Ok((all, revision)) => {
                    if !tell(ConnectionNews::All(all)).await {
                        return;
                    }
                    match self.watch_connections(revision, &tell).await {
                        Ok(()) => return,
                        Err(e) => tracing::debug!("watching connections ended: {e}; reading them again"),
                    }
                }
                Err(e) => tracing::debug!("connections of other nodes: {e}"),
            }
            sleep(AGAIN).await;
        }
    }

    async fn read_connections(&self) -> Result<(Vec<(String, Change)>, i64), EtcdError> {
        let prefix = self.keys.all_connections();
        let options = GetOptions::new().with_prefix();
        let read =
            self.endpoints.ask(async |mut client| client.get(prefix.clone(), Some(options.clone())).await);
        let response = read.await?;
        let one = |kv: &etcd_client::KeyValue| self.change_of(kv.key(), Some(kv.value()));
        Ok((response.kvs().iter().filter_map(one).collect(), response.header().map_or(0, |h| h.revision())))
    }

    /// `Ok`: nobody listens.
    async fn watch_connections(
        &self,
        mut revision: i64,
        tell: &impl AsyncFn(ConnectionNews) -> bool,
    ) -> Result<(), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let mut client = self.endpoints.first().await.map_err(|e| text(&e))?;
        let opened = client.watch(self.keys.all_connections(), Some(options));
        let opened = timeout(Duration::from_secs(1), opened).await;
        let mut stream = opened.map_err(|e| text(&e))?.map_err(|e| text(&e))?;
        let mut checks = interval(CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut behind = 0;
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(message) = message.map_err(|e| text(&e))? else { return Err("closed".to_owned()) };
                    if message.canceled() {
                        return Err(format!("cancelled: {}", message.cancel_reason()));
                    }
                    let changes = message.events().iter().filter_map(|event| {
                        let kv = event.kv()?;
                        revision = revision.max(kv.mod_revision());
                        let value = (event.event_type() == EventType::Put).then(|| kv.value());
                        self.change_of(kv.key(), value)
                    });
                    let changes: Vec<(String, Change)> = changes.collect();
                    if !changes.is_empty() && !tell(ConnectionNews::Changed(changes)).await {
                        return Ok(());
                    }
                }
                _ = checks.tick() => {
                    let newest = self.newest_connection().await.map_err(|e| text(&e))?;
                    behind = if newest > revision { behind + 1 } else { 0 };
                    if behind > 1 {
                        return Err("it is behind".to_owned());
                    }
                }
            }
        }
    }

    /// The highest revision of any bucket.
    async fn newest_connection(&self) -> Result<i64, EtcdError> {
        let prefix = self.keys.all_connections();
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Mod, SortOrder::Descend)
            .with_limit(1)
            .with_keys_only();
        let read =
            self.endpoints.ask(async |mut client| client.get(prefix.clone(), Some(options.clone())).await);
        Ok(read.await?.kvs().first().map_or(0, |kv| kv.mod_revision()))
    }

    fn change_of(&self, key: &[u8], value: Option<&[u8]>) -> Option<(String, Change)> {
        let (server, bucket) = self.keys.bucket(key)?;
        Some((server.to_owned(), Change { bucket, value: value.map(<[u8]>::to_vec) }))
    }
}
