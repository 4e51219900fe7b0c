//! What an agent must know of the resources that an earlier one started: a folder for each virtual server, below /run, so that
//! it is gone with them after a boot; and the boot is written in it, for systems that keep it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::config::{Exec, Filesystem, Service, ServiceKind};

/// File that says whose folder it is.
const IDENTITY: &str = "identity.json";
/// What the name of a record's file ends with.
const RECORD: &str = "resource.json";

/// The folder of a virtual server.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    boot: String,
}

/// What all of a virtual server's resources have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    boot: String,
    /// A word that nobody else has: the environment of every process holds it.
    pub token: String,
    /// Addresses that the node itself reaches while its services run.
    pub addresses: Vec<IpAddr>,
}

/// What is, or may be, started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    boot: String,
    /// Its place in the order of the start.
    pub place: usize,
    /// What it is.
    pub resource: Resource,
    /// Its start has succeeded, and nobody has begun to stop it.
    pub started: bool,
    /// The process that is the service; while a file system is mounted or unmounted, the one that does it.
    pub process: Option<Process>,
    /// The control group of its processes, where there is one.
    pub group: Option<PathBuf>,
}

/// A file system or a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// A file system.
    Filesystem(Filesystem),
    /// A service.
    Service(Service),
}

impl Resource {
    /// What it is called when something is told of it.
    pub fn name(&self) -> String {
        match self {
            Resource::Filesystem(fs) => fs.mount.display().to_string(),
            Resource::Service(service) => match &service.kind {
                ServiceKind::Exec(Exec { start, .. }) => start.first().cloned().unwrap_or_default(),
                ServiceKind::Ocf(ocf) => format!("{}/{}", ocf.provider, ocf.agent),
                ServiceKind::NfsGanesha(_) => "nfs-ganesha".to_owned(),
                ServiceKind::Samba(_) => "samba".to_owned(),
                ServiceKind::Systemd(unit) => unit.unit.clone(),
            },
        }
    }

    /// Is what runs as `self` what is wanted as `other`? Time limits and checks may differ: those that are wanted count from now on,
    /// as do the options of a file system when it is mounted next.
    pub fn is_same(&self, other: &Resource) -> bool {
        match (self, other) {
            (Resource::Filesystem(a), Resource::Filesystem(b)) => {
                (&a.device, &a.mount, &a.kind) == (&b.device, &b.mount, &b.kind)
            }
            (Resource::Service(a), Resource::Service(b)) => match (&a.kind, &b.kind) {
                (ServiceKind::Exec(a), ServiceKind::Exec(b)) => {
                    a.start == b.start && a.stop.is_some() == b.stop.is_some()
                }
                (a, b) => a == b,
            },
            (Resource::Filesystem(_), Resource::Service(_)) => false,
            (Resource::Service(_), Resource::Filesystem(_)) => false,
        }
    }
}

impl Folder {
    /// That of a virtual server below `root`, which need not be there yet.
    ///
    /// # Errors
    /// The kernel doesn't tell which boot this is.
    pub fn new(root: &Path, server: &str) -> io::Result<Folder> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Folder { path: root.join(server), boot })
    }

    /// The virtual servers that have a folder below `root`.
    pub fn all(root: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
        let named = |entry: fs::DirEntry| {
            entry.path().join(IDENTITY).exists().then(|| entry.file_name().into_string().ok())?
        };
        entries.flatten().filter_map(named).collect()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier agent of this boot has written.
    pub fn identity(&self) -> Option<Identity> {
        read(&self.path.join(IDENTITY)).filter(|identity: &Identity| identity.boot == self.boot)
    }

    /// That which is there, or a new one.
    ///
    /// # Errors
    /// It can't be written.
    pub fn identify(&self, addresses: &[IpAddr]) -> io::Result<Identity> {
        let token = match self.identity() {
            Some(identity) => identity.token,
            None => fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned(),
        };
        let identity = Identity { boot: self.boot.clone(), token, addresses: addresses.to_vec() };
        fs::create_dir_all(&self.path)?;
        write(&self.path.join(IDENTITY), &identity)?;
        Ok(identity)
    }

    /// All records of this boot, in the order of the start.
    pub fn records(&self) -> Vec<Record> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let is_record = |path: &PathBuf| path.to_str().is_some_and(|p| p.ends_with(RECORD));
        let paths = entries.flatten().map(|entry| entry.path()).filter(is_record);
        let records = paths.filter_map(|path| read(&path));
        let mut records: Vec<Record> = records.filter(|r: &Record| r.boot == self.boot).collect();
        records.sort_by_key(|record| record.place);
        records
    }

    /// A record of something that is about to be started; not written yet.
    pub fn record(&self, place: usize, resource: Resource) -> Record {
        Record { boot: self.boot.clone(), place, resource, started: false, process: None, group: None }
    }

    /// Writes a record, whole or not at all.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        write(&self.file(record.place), record)
    }

    /// Forgets what is stopped.
    pub fn forget(&self, place: usize) {
        let file = self.file(place);
        if let Err(e) = fs::remove_file(&file)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {e}", file.display());
        }
    }

    /// Removes the folder, when all is stopped.
    pub fn remove(&self) {
        if let Err(e) = fs::remove_dir_all(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {e}", self.path.display());
        }
    }

    fn file(&self, place: usize) -> PathBuf {
        self.path.join(format!("{place}-{RECORD}"))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str(&text).inspect_err(|e| tracing::warn!("{}: {e}", path.display())).ok()
}

fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn filesystem(options: &str) -> Resource {
        Resource::Filesystem(Filesystem {
            device: "/dev/a".into(),
            mount: "/srv/a".into(),
            kind: "xfs".into(),
            options: options.into(),
            fsck: false,
            start_limit: Duration::from_secs(1),
            stop_limit: Duration::from_millis(1500),
        })
    }

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(root.path(), "projects").expect("a boot");
        (root, folder)
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let (root, folder) = folder();
        assert!(folder.records().is_empty() && folder.identity().is_none());
        let identity = folder.identify(&["10.0.0.1".parse().expect("an address")]).expect("written");
        assert_eq!(folder.identify(&[]).expect("written").token, identity.token);
        assert_eq!(Folder::all(root.path()), ["projects"]);
        let mut records: Vec<Record> =
            (0..12).map(|place| folder.record(place, filesystem("noatime"))).collect();
        records[3].started = true;
        records[3].process = Some(Process { pid: 7, start: 9 });
        records.iter().rev().for_each(|r| folder.write(r).expect("written"));
        assert_eq!(folder.records(), records);
        folder.forget(3);
        folder.forget(3);
        assert_eq!(folder.records().len(), 11);
        folder.remove();
        assert!(Folder::all(root.path()).is_empty());
    }

    #[test]
    fn another_boots_records_and_damaged_ones_are_void() {
        let (root, folder) = folder();
        folder.identify(&[]).expect("written");
        folder.write(&folder.record(0, filesystem(""))).expect("written");
        let later = Folder { boot: "another".into(), ..folder.clone() };
        assert!(later.records().is_empty() && later.identity().is_none());
        fs::write(root.path().join("projects/1-resource.json"), "{").expect("written");
        assert_eq!(folder.records().len(), 1);
    }

    #[test]
    fn options_dont_make_another_file_system() {
        assert!(filesystem("").is_same(&filesystem("ro")));
        let Resource::Filesystem(mut other) = filesystem("") else { panic!("a file system") };
        other.device = "/dev/b".into();
        assert!(!filesystem("").is_same(&Resource::Filesystem(other)));
    }
}
