//! The store of a cluster: etcd, version 3.
//!
//! All keys are below `/baton/<cluster>/`, and all values are JSON but the definitions, which are text in chunks, and connections.
//!
//! | key | value |
//! |---|---|
//! | `members` | [`Members`] |
//! | `node/<node>` | [`baton_core::cluster::NodeRecord`] |
//! | `incarnation/<node>` | the highest incarnation ever allotted |
//! | `owner/<virtual server>` | [`baton_core::cluster::Record`] |
//! | `drain/<node>` | 1, while the node is to be empty |
//! | `move/<virtual server>` | [`baton_core::cluster::Wish`]: the node it is wanted on |
//! | `load/<node>` | [`baton_core::cluster::NodeLoad`] |
//! | `generation` | the generation of the definitions that is in force |
//! | `definitions/<generation>/<chunk>` | a part of their text |
//! | `adopted/<node>` | the generation that the node has started with |
//! | `connections/<virtual server>/<bucket>` | TCP connections of its clients, binary: [`crate::connections`] |
//! | `watchdog/<node>` | [`Promise`]: what the node's watchdog resets it for |
//!
//! `endpoints` chooses whom to ask, `serve` is the thread that answers the agent's requests and watches. Nothing is decided
//! here.

mod connections;
mod endpoints;
mod keys;
mod serve;

use std::collections::BTreeMap;

use baton_core::cluster::{Members, Record, StoreChange, Wish};
use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use crate::config::EtcdConfig;
use crate::fence::Promise;
pub use connections::ConnectionNews;
pub use endpoints::ask_member;
use endpoints::{Answer, Endpoints};
pub use serve::{Known, News, spawn};

/// More chunks than there ever are.
const MOST_CHUNKS: usize = 999_999;
/// How often writing definitions is begun anew when somebody else writes at the same time.
const WRITE_ATTEMPTS: u32 = 16;
/// Bytes of a chunk of the definitions: far below the 1.5 MiB that etcd takes in a request.
const CHUNK: usize = 256 * 1024;
/// Generations that are kept beside the one in force.
const KEPT_GENERATIONS: u64 = 2;

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A file that says how to reach it can't be read.
    #[error("{path}: {source}; check [store] tls and credentials")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No member answered.
    #[error(
        "etcd does not answer at {endpoints} ({last}); check [store] endpoints, and that a majority of etcd runs"
    )]
    Unreachable {
        /// Who was asked.
        endpoints: String,
        /// What the last one said.
        last: String,
    },
    /// A member that was asked alone gives no answer.
    #[error("{reason}")]
    Member {
        /// Why not.
        reason: String,
    },
    /// It answered that it won't.
    #[error("etcd at {endpoint} refuses: {reason}")]
    Refused {
        /// Who.
        endpoint: String,
        /// Its words.
        reason: String,
    },
    /// A name can't be part of a key.
    #[error("\"{name}\" can't be a name in the store: it is empty or holds a '/'")]
    Name {
        /// The name.
        name: String,
    },
    /// A value in the store is not what it should be.
    #[error("key {key} in etcd holds no {what}: {detail}")]
    Value {
        /// The key.
        key: String,
        /// What should be there.
        what: &'static str,
        /// Why not.
        detail: String,
    },
}

/// A connection to etcd.
#[derive(Clone)]
pub struct Etcd {
    endpoints: Endpoints,
    keys: keys::Keys,
}

impl Etcd {
    /// Reads the files that the configuration names; connects when it is first asked something.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn new(config: &EtcdConfig) -> Result<Etcd, EtcdError> {
        Ok(Etcd { endpoints: Endpoints::new(config)?, keys: keys::Keys::new(&config.cluster) })
    }

    /// The same, for somebody who has time: an administrator, who would have to ask again.
    pub fn patient(self) -> Etcd {
        Etcd { endpoints: self.endpoints.patient(), ..self }
    }

    /// Everything but the definitions, in one linearizable reading, and the revision it was read at.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn load(&self) -> Result<(Vec<StoreChange>, i64), EtcdError> {
        let (from, to) = self.keys.all();
        let options = GetOptions::new().with_range(to);
        let read =
            self.endpoints.ask(async |mut client| client.get(from.clone(), Some(options.clone())).await);
        let response = read.await?;
        let revision = response.header().map_or(0, |h| h.revision());
        let changes = response
            .kvs()
            .iter()
            .filter_map(|kv| self.keys.change(kv.key(), Some(kv.value()), kv.mod_revision()));
        Ok((changes.collect(), revision))
    }

    /// Allots an incarnation to a node: higher than all before and than `above`.
    ///
    /// # Errors
    /// Nobody answers. An incarnation that was allotted all the same is never allotted again.
    pub async fn next_incarnation(&self, node: &str, above: u64) -> Result<u64, EtcdError> {
        let key = self.keys.incarnation(node)?;
        loop {
            let (value, revision) = self.get(&key).await?.unwrap_or_default();
            let last: u64 = if value.is_empty() { 0 } else { parse(&key, "number", &value)? };
            let next = last.max(above) + 1;
            // An answer that gets lost costs a number: the next round reads what there is.
            if self.swap(&key, revision, next.to_string()).await?.value.succeeded() {
                return Ok(next);
            }
        }
    }

    /// The highest incarnation ever allotted to a node.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn last_incarnation(&self, node: &str) -> Result<u64, EtcdError> {
        let key = self.keys.incarnation(node)?;
        match self.get(&key).await? {
            Some((value, _)) => parse(&key, "number", &value),
            None => Ok(0),
        }
    }

    /// The member list and its revision.
    ///
    /// # Errors
    /// Nobody answers; the value is damaged.
    pub async fn members(&self) -> Result<Option<(Members, i64)>, EtcdError> {
        let key = self.keys.members();
        let Some((value, revision)) = self.get(&key).await? else { return Ok(None) };
        Ok(Some((parse(&key, "member list", &value)?, revision)))
    }

    /// Writes the member list, if it still has this revision (0: there is none). Returns whether it was written.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn set_members(&self, expected: i64, members: &Members) -> Result<bool, EtcdError> {
        self.swap_surely(&self.keys.members(), expected, keys::json(members)).await
    }

    /// Says that a node is to be empty, or no longer.
    ///
    /// # Errors
    /// Nobody answers; the name is none.
    pub async fn set_drain(&self, node: &str, on: bool) -> Result<(), EtcdError> {
        let key = self.keys.drain(node)?;
        match on {
            true => self.put(&key, "1".to_owned()).await,
            false => self.delete(&key).await,
        }
    }

    /// Writes an owner record, if it still has this revision. Returns whether it was written.
    ///
    /// # Errors
    /// Nobody answers; the name is none.
    pub async fn set_record(&self, server: &str, expected: u64, record: &Record) -> Result<bool, EtcdError> {
        let expected = i64::try_from(expected).unwrap_or(i64::MAX); // of no key: etcd counts so far only
        self.swap_surely(&self.keys.owner(server)?, expected, keys::json(record)).await
    }

    /// Says which generation of the definitions a node has started with.
    ///
    /// # Errors
    /// Nobody answers; the name is none.
    pub async fn set_adopted(&self, node: &str, generation: u64) -> Result<(), EtcdError> {
        self.put(&self.keys.adopted(node)?, generation.to_string()).await
    }

    /// Which generation of the definitions each node has started with.
    ///
    /// # Errors
    /// Nobody answers; a value is damaged.
    pub async fn adopted(&self) -> Result<BTreeMap<String, u64>, EtcdError> {
        let prefix = self.keys.all_adopted();
        let mut all = BTreeMap::new();
        for (key, value, _) in self.prefixed(&prefix).await? {
            let node = key.strip_prefix(&prefix).unwrap_or_default().to_owned();
            all.insert(node, parse(&key, "number", &value)?);
        }
        Ok(all)
    }

    /// What a node has promised of its watchdog.
    ///
    /// # Errors
    /// Nobody answers; the value is damaged.
    pub async fn promise(&self, node: &str) -> Result<Option<Promise>, EtcdError> {
        let key = self.keys.watchdog(node)?;
        match self.get(&key).await? {
            Some((value, _)) => Ok(Some(parse(&key, "promise", &value)?)),
            None => Ok(None),
        }
    }

    /// Says what this node promises of its watchdog. What was asked for before, and is done late, changes nothing any more.
    ///
    /// # Errors
    /// Nobody answers; somebody else has written meanwhile.
    pub async fn set_promise(&self, node: &str, promise: &Promise) -> Result<(), EtcdError> {
        let key = self.keys.watchdog(node)?;
        let (value, revision) = self.get(&key).await?.unwrap_or_default();
        let wanted = keys::json(promise);
        // Written again all the same: a request of before that is still under way is void after that.
        match self.swap_surely(&key, revision, wanted).await? {
            true => Ok(()),
            false => Err(EtcdError::Value {
                key,
                what: "promise of this node alone",
                detail: format!("it was written meanwhile, after {} bytes were read", value.len()),
            }),
        }
    }

    /// After a boot nothing is promised any more that was before: no watchdog is armed.
    ///
    /// # Errors
    /// As [`Etcd::set_promise`].
    pub async fn withdraw_promise(&self, node: &str) -> Result<(), EtcdError> {
        match self.promise(node).await? {
            Some(promise) if !promise.servers.is_empty() => self.set_promise(node, &Promise::default()).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Says that a virtual server is wanted on a node; `None`: no longer.
    ///
    /// # Errors
    /// Nobody answers; the name is none.
    pub async fn ask_move(&self, server: &str, to: Option<&str>) -> Result<(), EtcdError> {
        let key = self.keys.wish(server)?;
        match to {
            Some(to) => self.put(&key, keys::json(&Wish::administrator(to))).await,
            None => self.delete(&key).await,
        }
    }

    /// The generation of the definitions that is in force (0: none), and their text.
    ///
    /// # Errors
    /// Nobody answers; they are damaged.
    pub async fn definitions(&self) -> Result<Option<(u64, String)>, EtcdError> {
        let key = self.keys.generation();
        let Some((value, _)) = self.get(&key).await? else { return Ok(None) };
        let generation: u64 = parse(&key, "number", &value)?;
        let prefix = self.keys.definitions(generation);
        let mut bytes = Vec::new();
        self.prefixed(&prefix).await?.iter().for_each(|(_, value, _)| bytes.extend_from_slice(value));
        let damaged = |e: std::string::FromUtf8Error| EtcdError::Value {
            key: prefix.clone(),
            what: "definitions",
            detail: e.to_string(),
        };
        Ok(Some((generation, String::from_utf8(bytes).map_err(damaged)?)))
    }

    /// Writes definitions as a new generation and switches to it, if the generation in force is still the expected one (0:
    /// there is none). Returns whether it was done. All but the last few generations are removed.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn set_definitions(&self, expected: u64, text: &str) -> Result<bool, EtcdError> {
        let key = self.keys.generation();
        let (value, revision) = self.get(&key).await?.unwrap_or_default();
        let current: u64 = if value.is_empty() { 0 } else { parse(&key, "number", &value)? };
        if current != expected {
            return Ok(false);
        }
        let next = current + 1;
        let prefix = self.keys.definitions(next);
        let wanted: Vec<(String, &[u8])> = text
            .as_bytes()
            .chunks(CHUNK)
            .enumerate()
            .map(|(index, chunk)| (self.keys.chunk(next, index), chunk))
            .collect();
        // Somebody else may be doing the same, and what was asked before may be done late, or twice. So nothing is touched once
        // another generation is in force, and only what is there as a whole comes into force.
        let still = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
        for _ in 0..WRITE_ATTEMPTS {
            let there = self.prefixed(&prefix).await?;
            let is_there = |(k, v): &(String, &[u8])| there.iter().any(|(tk, tv, _)| tk == k && tv == v);
            if wanted.iter().all(is_there) && there.len() == wanted.len() {
                // And nothing behind it.
                let (end, beyond) = (self.keys.chunk(next, wanted.len()), self.keys.chunk(next, MOST_CHUNKS));
                let nothing = Compare::version(end, CompareOp::Equal, 0).with_range(beyond);
                let mut all = vec![still.clone(), nothing];
                all.extend(
                    there.into_iter().map(|(k, _, at)| Compare::mod_revision(k, CompareOp::Equal, at)),
                );
                let switch = Txn::new().when(all).and_then([TxnOp::put(key.clone(), next.to_string(), None)]);
                if self.endpoints.ask(async |mut client| client.txn(switch.clone()).await).await?.succeeded()
                {
                    return self.switched(next).await;
                }
            } else {
                let mut done = true;
                if there.iter().any(|(k, ..)| !wanted.iter().any(|(wanted, _)| wanted == k)) {
                    let old = DeleteOptions::new().with_prefix(); // of somebody who was interrupted
                    done = self.guarded(&still, TxnOp::delete(prefix.clone(), Some(old))).await?;
                }
                for (chunk_key, chunk) in wanted.iter().filter(|w| !is_there(w)) {
                    done = done && self.guarded(&still, TxnOp::put(chunk_key.clone(), *chunk, None)).await?;
                }
                if done {
                    continue;
                }
            }
            let (value, now) = self.get(&key).await?.unwrap_or_default();
            if now != revision {
                // By this very request, whose answer got lost, or by somebody else.
                let there = self.prefixed(&prefix).await?;
                let same = wanted.len() == there.len()
                    && wanted.iter().zip(&there).all(|((k, v), (tk, tv, _))| k == tk && v == tv);
                let ours = value == next.to_string().into_bytes() && same;
                return if ours { self.switched(next).await } else { Ok(false) };
            }
        }
        Ok(false)
    }

    /// This generation is in force: old ones go.
    async fn switched(&self, generation: u64) -> Result<bool, EtcdError> {
        if let Some(old) = generation.checked_sub(KEPT_GENERATIONS + 1) {
            self.delete_prefix(&self.keys.definitions(old)).await?;
        }
        Ok(true)
    }

    /// The keys below this prefix, in order, with values and revisions.
    async fn prefixed(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>, i64)>, EtcdError> {
        let options = GetOptions::new().with_prefix();
        let read = self.endpoints.ask(async |mut client| client.get(prefix, Some(options.clone())).await);
        let one = |kv: &etcd_client::KeyValue| {
            (String::from_utf8_lossy(kv.key()).into_owned(), kv.value().to_vec(), kv.mod_revision())
        };
        Ok(read.await?.kvs().iter().map(one).collect())
    }

    /// Does this if `still` holds; may do it twice, and late. Returns whether it holds.
    async fn guarded(&self, still: &Compare, operation: TxnOp) -> Result<bool, EtcdError> {
        let ask = Txn::new().when([still.clone()]).and_then([operation]);
        let response = self.endpoints.ask(async |mut client| client.txn(ask.clone()).await).await?;
        Ok(response.succeeded())
    }

    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, i64)>, EtcdError> {
        let response = self.endpoints.ask(async |mut client| client.get(key, None).await).await?;
        Ok(response.kvs().first().map(|kv| (kv.value().to_vec(), kv.mod_revision())))
    }

    async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<(), EtcdError> {
        let value = value.into();
        self.endpoints.ask(async |mut client| client.put(key, value.clone(), None).await).await.map(|_| ())
    }

    async fn delete(&self, key: &str) -> Result<(), EtcdError> {
        self.endpoints.ask(async |mut client| client.delete(key, None).await).await.map(|_| ())
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<(), EtcdError> {
        let options = DeleteOptions::new().with_prefix();
        let delete =
            self.endpoints.ask(async |mut client| client.delete(prefix, Some(options.clone())).await);
        delete.await.map(|_| ())
    }

    /// As [`Etcd::swap`], and says whether the value is there. Only for values that nobody else would write.
    async fn swap_surely(
        &self,
        key: &str,
        expected: i64,
        value: impl Into<Vec<u8>>,
    ) -> Result<bool, EtcdError> {
        let value = value.into();
        let Answer { value: response, sole } = self.swap(key, expected, value.clone()).await?;
        let by_us = || !sole && read_by(&response).is_some_and(|(now, _)| now == value);
        Ok(response.succeeded() || by_us())
    }

    /// Puts a value if the key still has this revision; else gets what is there: that may be this very value, of a request whose
    /// answer got lost.
    async fn swap(
        &self,
        key: &str,
        expected: i64,
        value: impl Into<Vec<u8>>,
    ) -> Result<Answer<TxnResponse>, EtcdError> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expected)])
            .and_then([TxnOp::put(key, value, None)])
            .or_else([TxnOp::get(key, None)]);
        self.endpoints.ask_all(async |mut client| client.txn(txn.clone()).await).await
    }
}

/// What a transaction got.
fn read_by(response: &TxnResponse) -> Option<(Vec<u8>, i64)> {
    response.op_responses().into_iter().find_map(|r| match r {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| (kv.value().to_vec(), kv.mod_revision())),
        _ => None,
    })
}

fn parse<T: serde::de::DeserializeOwned>(
    key: &str,
    what: &'static str,
    value: &[u8],
) -> Result<T, EtcdError> {
    serde_json::from_slice(value).map_err(|e| EtcdError::Value {
        key: key.to_owned(),
        what,
        detail: e.to_string(),
    })
}
