//! A cluster whose one virtual server is an NFS server with a file system on a disk that its nodes share.
//!
//! Two nodes and a witness: less work for the machine than three nodes, and a majority lives when one of them dies.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock;
use crate::cluster::{Cluster, ClusterSpec};
use crate::error::{Context, LabError};
use crate::fault::Direction;
use crate::host::{Host, wait_until};
use crate::lun::Lun;
use crate::process::Process;
use crate::topology::Lab;
use crate::valve::Valve;

/// The virtual server.
pub const SERVER: &str = "files";
/// Its address.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10));
/// Where its file system is mounted, and what it exports.
pub const MOUNT: &str = "/run/lab/files";
/// The nodes that can have it.
pub const NODES: [&str; 2] = ["n1", "n2"];
/// Leads to a node's path to the disk.
const LINK: &str = "/run/lab/lun";
/// Of the disk.
const BYTES: u64 = 256 << 20;
/// Long enough for everything that happens at all.
const LONG: Duration = Duration::from_secs(60);

/// Services outlive whoever started them, so that they would also outlive a lab that is killed. Its child, which is not told to die
/// with the lab, waits until that process is gone, and kills what is left in its mount namespace.
const GUARD: &str = "( while kill -0 $1 2>/dev/null; do sleep 0.5; done
    read self rest </proc/self/stat; own=$(readlink /proc/self/ns/mnt)
    for p in /proc/[0-9]*; do
        if [ ${p#/proc/} != $self ] && [ \"$(readlink $p/ns/mnt)\" = \"$own\" ]; then kill -9 ${p#/proc/}; fi
    done ) & wait";

/// Nobody is fenced.
pub const UNFENCED: &str = "fence = \"none\"\ni_accept_corruption = true";

/// Two nodes and a witness, with the virtual server; `more` are lines for its service, and what follows them.
pub fn spec(more: &str) -> ClusterSpec {
    fenced_spec(UNFENCED, more)
}

/// The same, with other words about fencing than [`UNFENCED`].
pub fn fenced_spec(fence: &str, more: &str) -> ClusterSpec {
    let nfs = format!(
        "kind = \"nfs-ganesha\"\nprotocols = [3, 4]\nmonitor_every = \"200ms\"\n\
         exports = [{{ path = {MOUNT:?}, squash = \"none\" }}]\n{more}"
    );
    spec_of(fence, &nfs)
}

/// The same with an SMB server, which shares the file system, with everybody, as `files`.
pub fn smb_spec(fence: &str, more: &str) -> ClusterSpec {
    let smb = format!(
        "kind = \"samba\"\nmonitor_every = \"200ms\"\nmonitor_limit = \"5s\"\n\
         shares = [{{ path = {MOUNT:?}, name = \"files\", guest = true, force_user = \"root\" }}]\n{more}"
    );
    spec_of(fence, &smb)
}

fn spec_of(fence: &str, service: &str) -> ClusterSpec {
    let resources = resources(fence, service);
    let mut spec = ClusterSpec::new().server(SERVER, &[&format!("{ADDRESS}/24")], &resources);
    spec.witnesses = vec!["n3".to_owned()];
    // An agent that is killed here is started again, however slow the machine is just now: who takes over from it, without
    // fencing, mounts what is still mounted.
    spec.grace = Duration::from_secs(20);
    spec
}

fn resources(fence: &str, service: &str) -> String {
    // A disk that is served by a process of the lab answers late on a busy machine, and whoever is fenced leaves one that hangs at once.
    format!(
        "{fence}\n\
         [[virtual_server.filesystem]]\ndevice = {LINK:?}\nmount = {MOUNT:?}\ntype = \"ext4\"\nstorage_unit = \"disk\"\n\
         [[virtual_server.service]]\n{service}\n\
         [[storage_unit]]\nname = \"disk\"\nlimit = \"2s\"\n"
    )
}

/// What a node needs besides Baton: a path to the disk, and a portmapper, without which NFS version 3 is not served.
#[derive(Debug)]
pub struct Disks {
    /// The disk.
    pub lun: Lun,
    helpers: BTreeMap<String, [Process; 2]>,
}

impl Disks {
    /// A disk with an ext4 file system.
    ///
    /// # Errors
    /// As [`Lun::new`] and [`Lun::format`].
    pub fn new() -> Result<Disks, LabError> {
        let lun = Lun::new(BYTES)?;
        lun.format()?;
        Ok(Disks { lun, helpers: BTreeMap::new() })
    }

    /// Connects a host, and starts what it needs.
    ///
    /// # Errors
    /// As [`Lun::connect`]; when there is no `rpcbind`.
    pub fn connect(&mut self, host: &Host) -> Result<(), LabError> {
        self.lun.connect(host, LINK)?;
        host.enter(|| fs::create_dir_all("/run/rpcbind"))?.context(|| "make /run/rpcbind".into())?;
        // It takes another user's rights, and the kernel then forgets that it is to die with this process; so it gets a parent that does,
        // and takes it along.
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "sh", "-c", "rpcbind -f -r & wait"]);
        let portmapper = host.spawn(command)?;
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "guard", &std::process::id().to_string()]);
        self.helpers.insert(host.name().to_owned(), [portmapper, host.spawn(command)?]);
        let ready = || host.enter(|| Path::new("/run/rpcbind.sock").exists()).unwrap_or(false);
        wait_until("rpcbind (Debian's rpcbind) to listen", LONG, ready)
    }

    /// The nodes that see the file system in the mount namespace of any process.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub fn mounted_on(&self, nodes: &[&str]) -> Result<Vec<String>, LabError> {
        let mut found = Vec::new();
        let tables = mount_tables().context(|| "read mount tables".into())?;
        for node in nodes {
            let device =
                fs::metadata(self.lun.device(node)?).context(|| format!("look at the disk of {node}"))?;
            let number = {
                use std::os::unix::fs::MetadataExt;
                format!("{}:{}", libc::major(device.rdev()), libc::minor(device.rdev()))
            };
            let has = |line: &str| line.split(' ').nth(2) == Some(&*number);
            if tables.iter().any(|table| table.lines().any(has)) {
                found.push((*node).to_owned());
            }
        }
        Ok(found)
    }

    /// The host starts again after [`Lun::lose`]: nothing is mounted, nothing is left in /run of what Baton knew, and its path
    /// is well.
    ///
    /// # Errors
    /// As [`Disks::connect`].
    pub fn boot(&mut self, host: &Host) -> Result<(), LabError> {
        host.enter(|| {
            while umount2(MOUNT, MntFlags::MNT_DETACH).is_ok() {}
            let _ = fs::remove_dir_all("/run/baton"); // most often it is there
            for socket in ["/run/rpcbind.sock", "/run/rpcbind.lock"] {
                let _ = fs::remove_file(socket);
            }
        })?;
        self.connect(host)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.lun.unhang();
    }
}

/// The mount tables of all mount namespaces that a process is in.
fn mount_tables() -> std::io::Result<Vec<String>> {
    let mut tables = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        // Processes that have just ended have none.
        if let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt"))
            && !tables.contains_key(&namespace)
            && let Ok(table) = fs::read_to_string(entry.path().join("mountinfo"))
        {
            tables.insert(namespace, table);
        }
    }
    Ok(tables.into_values().collect())
}

/// Valves on every port of a host, open.
///
/// # Errors
/// As [`crate::Port::lose`].
pub fn valves(lab: &Lab, host: &str) -> Result<Vec<Valve>, LabError> {
    let ports = lab.ports().filter(|port| port.host().name() == host);
    ports.flat_map(|port| [port.valve(Direction::FromHost), port.valve(Direction::ToHost)]).collect()
}

/// A standing cluster that serves files.
#[derive(Debug)]
pub struct FileCluster {
    /// The cluster. It goes first: its processes use the disk.
    pub cluster: Cluster,
    /// The disk, and who reaches it.
    pub disks: Disks,
    valves: BTreeMap<String, Vec<Valve>>,
}

impl FileCluster {
    /// Starts it, with this or a changed [`spec`], and waits until it serves.
    ///
    /// # Errors
    /// As [`Cluster::start`] and [`Disks::connect`].
    pub fn start(name: &str, spec: ClusterSpec) -> Result<FileCluster, LabError> {
        let mut disks = Disks::new()?;
        let prepare = |lab: &Lab| NODES.iter().try_for_each(|node| disks.connect(lab.host(node)?));
        let cluster = Cluster::start_prepared(name, spec, prepare)?;
        let valves = NODES.map(|node| Ok((node.to_owned(), valves(&cluster.lab, node)?)));
        let valves = valves.into_iter().collect::<Result<_, LabError>>()?;
        Ok(FileCluster { cluster, disks, valves })
    }

    /// The client's host.
    ///
    /// # Errors
    /// Never, once it stands.
    pub fn client(&self) -> Result<&Host, LabError> {
        self.cluster.lab.host("client")
    }

    /// The node that serves.
    ///
    /// # Errors
    /// As [`Cluster::wait_held`].
    pub fn owner(&self) -> Result<String, LabError> {
        self.cluster.wait_held(ADDRESS, |_| true)
    }

    /// Brings it to a node.
    ///
    /// # Errors
    /// When it does not come.
    pub fn move_to(&self, node: &str) -> Result<(), LabError> {
        self.cluster.done(node, &["move", SERVER, "--to", node])?;
        self.cluster.wait_held(ADDRESS, |holder| holder == node).map(drop)
    }

    /// Power loss, from one moment to the next: nothing of the node reaches the disk any more, and what it has not synced there is
    /// lost; no frame of it leaves or arrives; then everything on it is killed. Returns when it began.
    ///
    /// # Errors
    /// What can't be cut or killed.
    pub fn power_off(&mut self, node: &str) -> Result<Duration, LabError> {
        let at = clock::now();
        // Before another node may take over, however long the rest takes. What fails would be told to clients.
        self.disks.lun.freeze(node)?;
        self.valves.get(node).into_iter().flatten().try_for_each(|valve| valve.close().map(drop))?;
        self.disks.lun.lose(node)?;
        self.cluster.agent_mut(node)?.kill()?;
        self.cluster.etcd.kill(node)?;
        self.cluster.lab.host(node)?.namespaces().kill_all();
        Ok(at)
    }

    /// It starts again.
    ///
    /// # Errors
    /// What can't be started.
    pub fn power_on(&mut self, node: &str) -> Result<(), LabError> {
        self.disks.boot(self.cluster.lab.host(node)?)?;
        self.valves.get(node).into_iter().flatten().try_for_each(Valve::open)?;
        self.cluster.etcd.start_again(node)?;
        self.cluster.agent_mut(node)?.start_again()
    }

    /// The process that is the NFS or SMB server of a node.
    ///
    /// # Errors
    /// When it has none.
    pub fn service(&self, node: &str) -> Result<i32, LabError> {
        let file = format!("/run/baton/{SERVER}/1-resource.json");
        let text = self.cluster.lab.host(node)?.enter(|| fs::read_to_string(&file))?;
        let text = text.context(|| format!("read {file} in {node}"))?;
        let record: serde_json::Value = serde_json::from_str(&text).context(|| format!("read {text:?}"))?;
        let pid = record["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.ok_or_else(|| LabError::Unknown { lab: node.to_owned(), what: "server of files".to_owned() })
    }

    /// Kills the NFS or SMB server of a node; returns when.
    ///
    /// # Errors
    /// As [`FileCluster::service`].
    pub fn kill_service(&self, node: &str) -> Result<Duration, LabError> {
        let pid = self.service(node)?;
        let at = clock::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .context(|| format!("kill the server of files of {node}"))?;
        Ok(at)
    }

    /// Waits until all nodes are up and one of them serves, with the file system mounted there and nowhere else.
    ///
    /// # Errors
    /// [`LabError::Timeout`], with what the agents say.
    pub fn wait_well(&self) -> Result<String, LabError> {
        self.cluster.wait_all_up()?;
        let owner = self.owner()?;
        let only = || self.disks.mounted_on(&NODES).is_ok_and(|on| on == [owner.as_str()]);
        wait_until("the file system to be mounted on its server's node alone", LONG, only).map_err(|_| {
            let on = self.disks.mounted_on(&NODES);
            let what = format!("{owner} serves, and it is mounted on {on:?}{}", self.cluster.logs());
            LabError::Timeout { what, limit: LONG }
        })?;
        Ok(owner)
    }
}
