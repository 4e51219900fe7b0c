//! `[[virtual_server.filesystem]]` and `[[virtual_server.service]]`: what a virtual server needs besides its addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fencing::{Fence, fence_of};
use super::names::{name_is_good, unique};
use super::problem::Findings;
use super::reader::{At, Section, text_of};
use super::sections::RawServer;

mod read;
mod samba;

pub(super) use read::{KEYS, RawResources, read};
pub use samba::{Samba, Share};

/// What is started before a virtual server is served, in this order, and stopped in the reverse one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Name of the virtual server.
    pub server: String,
    /// Its addresses, in the order of the file.
    pub addresses: Vec<IpAddr>,
    /// Its file systems.
    pub filesystems: Vec<Filesystem>,
    /// Its services.
    pub services: Vec<Service>,
    /// How a node that had it and did not release it is kept from writing.
    pub fence: Fence,
    /// The storage units that its file systems are on.
    pub storage_units: Vec<String>,
    /// Are its clients told that their connections are gone, when it has come to another node?
    pub reset_connections: bool,
    /// Its file systems are mounted where its own services see them, and nobody else.
    pub private_mounts: bool,
}

/// A file system on a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// The device; absolute, most often a link.
    pub device: PathBuf,
    /// Where it is mounted; absolute, without a slash at its end.
    pub mount: PathBuf,
    /// Its type, as in /proc/filesystems.
    pub kind: String,
    /// Mount options, separated by commas.
    pub options: String,
    /// Is it to be checked (`fsck -p`) before it is mounted?
    pub fsck: bool,
    /// How long checking and mounting may take.
    pub start_limit: Duration,
    /// How long unmounting may take.
    pub stop_limit: Duration,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What it is.
    pub kind: ServiceKind,
    /// How long its start may take.
    pub start_limit: Duration,
    /// How long its stop may take.
    pub stop_limit: Duration,
    /// Time between two checks that it works.
    pub monitor_every: Duration,
    /// How long such a check may take.
    pub monitor_limit: Duration,
    /// How often it is started again in its place before it has failed.
    pub restarts: u32,
}

/// Kind of service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKind {
    /// Programs.
    Exec(Exec),
    /// An OCF resource agent.
    Ocf(Ocf),
    /// An NFS server in user space.
    NfsGanesha(Ganesha),
    /// An SMB server.
    Samba(Samba),
    /// A unit of systemd.
    Systemd(Unit),
}

/// Programs with their arguments, no shell between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Without `stop` this is the service itself, in the foreground; with it, a command that returns when the service runs.
    pub start: Vec<String>,
    /// A command that returns when the service is stopped. `None`: SIGTERM, then SIGKILL.
    pub stop: Option<Vec<String>>,
    /// A command that succeeds while the service works.
    pub monitor: Option<Vec<String>>,
}

/// An OCF resource agent: `/usr/lib/ocf/resource.d/PROVIDER/TYPE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ocf {
    /// Its provider, like `heartbeat`.
    pub provider: String,
    /// Its name, like `nfsserver`.
    pub agent: String,
    /// Its parameters, handed over as `OCF_RESKEY_NAME`.
    pub parameters: BTreeMap<String, String>,
}

/// A unit that systemd starts and stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Its name with its type, like `vsftpd.service`.
    pub unit: String,
}

/// The preset for nfs-ganesha.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ganesha {
    /// The program, looked up on PATH unless it is a path.
    pub program: String,
    /// 3 and 4, or one of them.
    pub protocols: BTreeSet<u8>,
    /// What is exported; never empty.
    pub exports: Vec<Export>,
}

/// An exported folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The folder; absolute.
    pub path: PathBuf,
    /// Its name for NFSv4 clients; absolute.
    pub pseudo: PathBuf,
    /// Nobody may write.
    pub read_only: bool,
    /// Who becomes nobody: `none`, `root` or `all`.
    pub squash: String,
    /// Who may mount it: addresses, subnets, names; empty: everybody.
    pub clients: Vec<String>,
}

/// File systems that several nodes may have mounted at once.
const CLUSTER_FILESYSTEMS: [&str; 2] = ["gfs2", "ocfs2"];

/// What a virtual server has besides addresses; `None`: nothing.
pub(super) fn resources(server: &RawServer) -> Option<Resources> {
    let RawResources { filesystems, services, .. } = &server.resources;
    let exports = || filesystems.iter().map(|f| export_of(&f.value));
    let service = |service: &Service| {
        let mut service = service.clone();
        if let ServiceKind::NfsGanesha(ganesha) = &mut service.kind
            && ganesha.exports.is_empty()
        {
            ganesha.exports = exports().collect();
        }
        if let ServiceKind::Samba(samba) = &mut service.kind
            && samba.shares.is_empty()
        {
            samba.shares = filesystems.iter().map(|f| samba::share_of(&f.value)).collect();
        }
        service
    };
    // A client that was told that a file is made, renamed or removed relies on it (RFC 1813, 4.8), and nfs-ganesha answers before
    // that is stable.
    let serves_nfs = services.iter().any(|s| matches!(s.value.kind, ServiceKind::NfsGanesha(_)));
    let filesystem = |filesystem: &Filesystem| {
        let mut filesystem = filesystem.clone();
        let has_it = |options: &str| options.split(',').any(|o| matches!(o, "sync" | "dirsync"));
        if serves_nfs && !has_it(&filesystem.options) {
            let comma = if filesystem.options.is_empty() { "" } else { "," };
            filesystem.options.push_str(&format!("{comma}dirsync"));
        }
        filesystem
    };
    let resources = Resources {
        server: server.name.as_ref()?.value.clone(),
        addresses: server.addresses.iter().map(|a| a.value.addr()).collect(),
        filesystems: filesystems.iter().map(|f| filesystem(&f.value)).collect(),
        services: services.iter().map(|s| service(&s.value)).collect(),
        fence: fence_of(&server.resources),
        storage_units: units_of(&server.resources),
        reset_connections: server.resources.resets.unwrap_or(true),
        private_mounts: server.resources.private.as_ref().is_some_and(|p| p.value),
    };
    (!resources.filesystems.is_empty() || !resources.services.is_empty()).then_some(resources)
}

/// The storage units that its file systems name, each once.
pub(super) fn units_of(resources: &RawResources) -> Vec<String> {
    let names: BTreeSet<&String> = resources.storage_units.iter().map(|(name, _)| &name.value).collect();
    names.into_iter().cloned().collect()
}

/// A file system that is exported because nothing else is said.
fn export_of(filesystem: &Filesystem) -> Export {
    Export {
        path: filesystem.mount.clone(),
        pseudo: filesystem.mount.clone(),
        read_only: false,
        squash: "root".to_owned(),
        clients: Vec::new(),
    }
}

/// What one virtual server has belongs to it alone.
pub(super) fn check(servers: &[RawServer], f: &mut Findings) {
    let (mut mounts, mut devices, mut units) = (HashMap::new(), HashMap::new(), HashMap::new());
    for server in servers {
        let resources = &server.resources;
        for mount in &resources.mounts {
            let path: PathBuf = mount.value.components().collect();
            unique(&mut mounts, &path, mount.at, f, || {
                (
                    format!("{} is mounted twice", path.display()),
                    "give each file system its own folder".to_owned(),
                )
            });
        }
        for device in &resources.devices {
            unique(&mut devices, &device.value, device.at, f, || {
                let what = format!("device {} is there twice", device.value.display());
                (what, "a device belongs to one file system of one virtual server".to_owned())
            });
        }
        for service in &resources.services {
            let ServiceKind::Systemd(Unit { unit }) = &service.value.kind else { continue };
            unique(&mut units, unit, service.at, f, || {
                (format!("{unit} is there twice"), "a unit belongs to one virtual server".to_owned())
            });
        }
        check_private(server, f);
        check_exports(server, f);
        samba::check(server, f);
    }
    check_nesting(servers, f);
}

/// A mount point below another one goes with it, so it belongs to the same virtual server, after it.
fn check_nesting(servers: &[RawServer], f: &mut Findings) {
    let all: Vec<(usize, &At<PathBuf>)> = servers
        .iter()
        .enumerate()
        .flat_map(|(owner, server)| server.resources.mounts.iter().map(move |mount| (owner, mount)))
        .collect();
    for (order, (owner, mount)) in all.iter().enumerate() {
        let is_above = |other: &Path| mount.value != other && mount.value.starts_with(other);
        for (place, (other, above)) in all.iter().enumerate() {
            if !is_above(&above.value) {
                continue;
            }
            if other != owner {
                f.error_after(
                    mount.at,
                    above.at,
                    format!("{} lies below a mount point of another virtual server", mount.value.display()),
                    "choose a folder outside of it, or give both file systems to one of them".to_owned(),
                );
            } else if place > order {
                f.error_after(
                    mount.at,
                    above.at,
                    format!("{} lies below a file system that is mounted after it", mount.value.display()),
                    "put that one before it".to_owned(),
                );
            }
        }
    }
}

/// Who else would have to see its file systems?
fn check_private(server: &RawServer, f: &mut Findings) {
    let RawResources { private, services, mounts, .. } = &server.resources;
    let Some(private) = private.as_ref().filter(|p| p.value) else { return };
    if mounts.is_empty() {
        f.warn(
            private.at,
            "`private_mounts` does nothing: the virtual server has no file system",
            "add a [[virtual_server.filesystem]], or take it out",
        );
    }
    for service in services {
        let ServiceKind::Systemd(Unit { unit }) = &service.value.kind else { continue };
        f.error(
            service.at,
            format!(
                "{unit} is started by systemd, where it can't see file systems with private_mounts = true"
            ),
            "run its program by kind = \"exec\", or take `private_mounts` out",
        );
    }
}

fn check_exports(server: &RawServer, f: &mut Findings) {
    let RawResources { mounts, filesystems, services, .. } = &server.resources;
    let mut ganesha = HashMap::new();
    for service in services {
        let ServiceKind::NfsGanesha(Ganesha { exports, .. }) = &service.value.kind else { continue };
        unique(&mut ganesha, &(), service.at, f, || {
            let what = "the virtual server has two services \"nfs-ganesha\"".to_owned();
            (what, "put all exports into one of them".to_owned())
        });
        if exports.is_empty() && filesystems.is_empty() && mounts.is_empty() {
            f.error(
                service.at,
                "nothing is exported: the virtual server has no file system",
                "add a [[virtual_server.filesystem]], or exports = [{ path = \"/srv/projects\" }]",
            );
        }
        for export in exports {
            if !mounts.is_empty() && !mounts.iter().any(|m| export.path.starts_with(&m.value)) {
                f.warn(
                    service.at,
                    format!("{} is on none of the virtual server's file systems", export.path.display()),
                    "another node has other files there; export a folder below one of its mount points",
                );
            }
        }
    }
}

/// What a takeover does to a file system that only one node may have mounted.
pub(super) fn check_fencing(servers: &[RawServer], f: &mut Findings) {
    for server in servers {
        let RawResources { filesystems, fence, accepts, .. } = &server.resources;
        if fence_of(&server.resources) != Fence::None {
            continue;
        }
        let shared = |fs: &&At<Filesystem>| CLUSTER_FILESYSTEMS.contains(&fs.value.kind.as_str());
        let Some(first) = filesystems.iter().find(|fs| !shared(fs)) else { continue };
        let what = format!(
            "{} is no cluster file system, and nobody is fenced: a node that hangs or is cut off may still write to {} after \
             another node has mounted it, and that destroys the file system",
            first.value.kind,
            first.value.device.display()
        );
        let accepted = accepts.as_ref().is_some_and(|a| a.value);
        if accepted && fence.as_ref().is_some_and(|w| w.value == "none") {
            f.warn(first.at, what, "`i_accept_corruption` accepts that; keep backups");
        } else {
            f.error(
                first.at,
                what,
                "say fence = \"agent\", \"watchdog\" or \"scsi-pr\" in [[virtual_server]]; if that risk is accepted, say fence = \"none\" and i_accept_corruption = true",
            );
        }
    }
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
