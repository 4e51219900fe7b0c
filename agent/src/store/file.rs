//! The store of a single node: an embedded transactional database in one file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use baton_core::Owner;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::{Store, StoreError};

/// Numbers by name: `format`, `incarnation`.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
/// Texts by name: `boot_id`, the boot that has the current incarnation.
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");
/// Virtual server to (incarnation, epoch).
const OWNERS: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("owners");
/// Setting to the value it had before.
const ORIGINALS: TableDefinition<'_, &str, &str> = TableDefinition::new("originals");

/// Version of the tables above.
const FORMAT: u64 = 1;
/// Enough for every record there can be, far below the database's own default.
const CACHE_BYTES: usize = 1 << 20;

/// A [`Store`] in one file. Each change is on the disk when its call returns.
pub struct FileStore {
    db: Database,
    path: PathBuf,
}

impl FileStore {
    /// Opens the file, or makes it (its folder must exist). A file left by a killed process is repaired to its last
    /// transaction.
    ///
    /// # Errors
    /// The file is locked, damaged, of another format, or can't be read or written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |e: redb::Error| explain(path, "open it", e);
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| match e {
            // A file that is no database is reported as invalid data, not as damage.
            DatabaseError::Storage(StorageError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                StoreError::Corrupt { path: path.to_owned(), detail: e.to_string() }
            }
            e => fail(e.into()),
        })?;
        let store = FileStore { db, path: path.to_owned() };
        let found = store.write("prepare it", |tables| {
            if let Some(found) = tables.open_table(NUMBERS)?.get("format")? {
                return Ok(found.value());
            }
            tables.open_table(NUMBERS)?.insert("format", FORMAT)?;
            tables.open_table(TEXTS)?;
            tables.open_table(OWNERS)?;
            tables.open_table(ORIGINALS)?;
            Ok(FORMAT)
        })?;
        if found != FORMAT {
            return Err(StoreError::Format { path: path.to_owned(), found, known: FORMAT });
        }
        Ok(store)
    }

    /// One transaction: all of `change`, or nothing.
    fn write<T>(
        &self,
        operation: &'static str,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let run = || {
            let transaction = self.db.begin_write()?;
            let result = change(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|e| explain(&self.path, operation, e))
    }

    fn read<T>(
        &self,
        look: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let run = || look(&self.db.begin_read()?);
        run().map_err(|e| explain(&self.path, "read it", e))
    }
}

impl Store for FileStore {
    fn next_incarnation(&mut self, boot_id: &str) -> Result<u64, StoreError> {
        self.write("write the incarnation", |tables| {
            let mut numbers = tables.open_table(NUMBERS)?;
            let mut texts = tables.open_table(TEXTS)?;
            let last = numbers.get("incarnation")?.map_or(0, |n| n.value());
            if last > 0 && texts.get("boot_id")?.is_some_and(|b| b.value() == boot_id) {
                return Ok(last);
            }
            numbers.insert("incarnation", last + 1)?;
            texts.insert("boot_id", boot_id)?;
            Ok(last + 1)
        })
    }

    fn take(&mut self, server: &str, incarnation: u64) -> Result<Owner, StoreError> {
        let taken = self.write("write the owner", |tables| {
            let mut owners = tables.open_table(OWNERS)?;
            let before = owners.get(server)?.map(|o| o.value());
            let epoch = match before {
                None => 1,
                Some((owner, _)) if owner > incarnation => return Ok(Err(owner)),
                Some((owner, epoch)) if owner == incarnation => epoch,
                Some((_, epoch)) => epoch + 1,
            };
            owners.insert(server, (incarnation, epoch))?;
            Ok(Ok(Owner { incarnation, epoch }))
        })?;
        taken.map_err(|owner| StoreError::Stale { server: server.to_owned(), owner, incarnation })
    }

    fn owners(&self) -> Result<BTreeMap<String, Owner>, StoreError> {
        self.read(|tables| {
            let mut all = BTreeMap::new();
            for record in tables.open_table(OWNERS)?.iter()? {
                let (server, owner) = record?;
                let (incarnation, epoch) = owner.value();
                all.insert(server.value().to_owned(), Owner { incarnation, epoch });
            }
            Ok(all)
        })
    }

    fn save_original(&mut self, key: &str, value: &str) -> Result<bool, StoreError> {
        self.write("save a setting", |tables| {
            let mut originals = tables.open_table(ORIGINALS)?;
            if originals.get(key)?.is_some() {
                return Ok(false);
            }
            originals.insert(key, value)?;
            Ok(true)
        })
    }

    fn originals(&self) -> Result<BTreeMap<String, String>, StoreError> {
        self.read(|tables| {
            let mut all = BTreeMap::new();
            for record in tables.open_table(ORIGINALS)?.iter()? {
                let (key, value) = record?;
                all.insert(key.value().to_owned(), value.value().to_owned());
            }
            Ok(all)
        })
    }

    fn forget_original(&mut self, key: &str) -> Result<(), StoreError> {
        self.write("forget a setting", |tables| {
            tables.open_table(ORIGINALS)?.remove(key)?;
            Ok(())
        })
    }
}

/// The database's error in the words of this module.
fn explain(path: &Path, operation: &'static str, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::Locked { path },
        redb::Error::Io(e)
            if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            StoreError::Full { path }
        }
        redb::Error::Io(source) => StoreError::Io { path, operation, source },
        redb::Error::PreviousIo => StoreError::Io {
            path,
            operation,
            source: io::Error::other("an earlier write failed; restart the agent once that is repaired"),
        },
        other => StoreError::Corrupt { path, detail: other.to_string() },
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
