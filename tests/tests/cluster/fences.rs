//! Whoever may still have a file system mounted is fenced before it is started elsewhere, and storage that is lost on one node is
//! reached from another one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use baton_lab::LoopDevice;

use super::*;

const ADDRESS: &str = "10.0.0.10";
const MOUNT: &str = "/run/lab/projects";
/// On each node: what is read to know whether it reaches the storage.
const UNIT: &str = "/run/lab/unit";

/// A cluster with a virtual server on a disk, and a fence agent that succeeds when the test says so.
struct Fenced {
    cluster: Cluster,
    folder: tempfile::TempDir,
    disk: LoopDevice,
}

impl Fenced {
    fn start(name: &str) -> Result<Fenced> {
        let disk = LoopDevice::new(64 << 20)?;
        let made = Command::new("mkfs.ext4").arg("-q").arg(disk.path()).status().context("mkfs.ext4")?;
        ensure!(made.success(), "mkfs.ext4: {made}");
        let folder = tempfile::tempdir()?;
        let agent = folder.path().join("fence");
        fs::write(&agent, "#!/bin/sh\ncd \"$(dirname \"$0\")\"\ncat >> told\ntest -e good\n")?;
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
        fs::write(folder.path().join("secret"), "geheim\n")?;
        fs::set_permissions(folder.path().join("secret"), fs::Permissions::from_mode(0o600))?;
        let mut lines = format!(
            "fence = \"agent\"\n[[virtual_server.filesystem]]\ndevice = {:?}\nmount = {MOUNT:?}\ntype = \"ext4\"\n\
             storage_unit = \"array-1\"\n[[storage_unit]]\nname = \"array-1\"\ndevice = {UNIT:?}\nlimit = \"2s\"\n",
            disk.path()
        );
        for node in ["n1", "n2", "n3"] {
            lines += &format!(
                "[[fence]]\nnode = {node:?}\nagent = {agent:?}\nparameters = {{ plug = {node:?}, password_file = {:?} }}\n",
                folder.path().join("secret")
            );
        }
        let mut cluster = Cluster::start(name, ClusterSpec::new())?;
        for node in ["n1", "n2", "n3"] {
            let path = disk.path().to_owned();
            cluster.lab.host(node)?.enter(|| -> std::io::Result<()> {
                fs::create_dir_all("/run/lab")?;
                symlink(&path, UNIT)
            })??;
        }
        *cluster.spec() = ClusterSpec::new().server("projects", &["10.0.0.10/24"], &lines);
        cluster.apply()?;
        cluster.wait_held(ip(ADDRESS), |_| true)?;
        cluster.done("n1", &["move", "projects", "--to", "n1"])?;
        cluster.wait_held(ip(ADDRESS), |node| node == "n1")?;
        Ok(Fenced { cluster, folder, disk })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn is_mounted(&self, node: &str) -> Result<bool> {
        let host = self.cluster.lab.host(node)?;
        let mounts = host.enter(|| fs::read_to_string("/proc/thread-self/mountinfo"))??;
        Ok(mounts.contains(MOUNT))
    }

    /// What the nodes that live have noted of this kind.
    fn events(&self, kind: &str) -> Vec<serde_json::Value> {
        let all = self.cluster.agents.values().flat_map(|agent| agent.events().unwrap_or_default());
        all.filter(|event| event["event"] == kind).collect()
    }
}

#[test]
fn nothing_is_started_before_a_dead_owner_is_fenced() -> Result<()> {
    let mut fenced = Fenced::start("fenced")?;
    let judge = fenced.cluster.judge()?;
    // Nobody is called dead in the first two seconds of a member list.
    std::thread::sleep(Duration::from_secs(2));
    let _dark = fenced.cluster.power_off("n1")?;
    wait_until("a failure to fence", LONG, || !fenced.events("fence_failed").is_empty())?;
    for node in ["n2", "n3"] {
        ensure!(!fenced.is_mounted(node)?, "mounted on {node}");
    }
    ensure!(fenced.cluster.holders(ip(ADDRESS))?.is_empty(), "served");
    fs::write(fenced.path("good"), "")?;
    fenced.cluster.wait_held(ip(ADDRESS), |node| node != "n1")?;
    ensure!(!fenced.events("fenced").is_empty());
    let told = fs::read_to_string(fenced.path("told"))?;
    ensure!(told.starts_with("action=off\npassword=geheim\nplug=n1\n"), "{told}");
    ensure!(!told.contains("plug=n2") && !told.contains("plug=n3"), "{told}");
    for agent in fenced.cluster.agents.values() {
        ensure!(!agent.log().contains("geheim"), "a secret in the log");
    }
    never_two(judge)
}

/// An administrator who has seen that it is off answers for it.
#[test]
fn what_cannot_be_fenced_is_confirmed_by_hand() -> Result<()> {
    let mut fenced = Fenced::start("confirmed")?;
    let judge = fenced.cluster.judge()?;
    std::thread::sleep(Duration::from_secs(2));
    let nothing = fenced.cluster.done("n2", &["confirm-off", "n1", "--it-is-off"])?;
    ensure!(nothing.contains("nothing waits for n1"), "{nothing}");
    let _dark = fenced.cluster.power_off("n1")?;
    wait_until("a failure to fence", LONG, || !fenced.events("fence_failed").is_empty())?;
    let refused = fenced.cluster.done("n2", &["confirm-off", "n1"]);
    ensure!(refused.is_err_and(|e| e.to_string().contains("--it-is-off")), "without a word that it is off");
    ensure!(fenced.cluster.holders(ip(ADDRESS))?.is_empty(), "served");
    let done = fenced.cluster.done("n2", &["confirm-off", "n1", "--it-is-off"])?;
    ensure!(done.contains("n1 counts as off for projects"), "{done}");
    fenced.cluster.wait_held(ip(ADDRESS), |node| node != "n1")?;
    ensure!(fenced.events("fenced").is_empty(), "nobody was fenced");
    never_two(judge)
}

#[test]
fn a_unit_that_is_lost_on_one_node_is_served_by_another_one() -> Result<()> {
    let fenced = Fenced::start("unit-lost")?;
    let judge = fenced.cluster.judge()?;
    let host = fenced.cluster.lab.host("n1")?;
    host.enter(|| fs::remove_file(UNIT))??;
    fenced.cluster.wait_held(ip(ADDRESS), |node| node != "n1")?;
    ensure!(!fenced.is_mounted("n1")?, "it could be stopped");
    let left = fenced.events("leaving");
    ensure!(left.iter().any(|e| e["reason"] == "storage_lost"), "{left:?}");
    // It was stopped in good order: nobody had to be fenced.
    ensure!(!fenced.path("told").exists(), "somebody was fenced");
    // Nor does it go back to a node that doesn't reach it.
    let refused = fenced.cluster.done("n2", &["move", "projects", "--to", "n1"]);
    ensure!(refused.is_err() || fenced.cluster.holders(ip(ADDRESS))? != ["n1"], "moved to n1");
    let path = fenced.disk.path().to_owned();
    host.enter(|| symlink(&path, UNIT))??;
    let good = || {
        let labels = [("storage_unit", "array-1"), ("device", UNIT)];
        let agent = fenced.cluster.agent("n1");
        agent.is_ok_and(|a| a.metric("baton_storage_reachable", &labels).is_ok_and(|m| m == Some(1.0)))
    };
    wait_until("n1 to reach it", LONG, good)?;
    fenced.cluster.done("n2", &["move", "projects", "--to", "n1"])?;
    fenced.cluster.wait_held(ip(ADDRESS), |node| node == "n1")?;
    never_two(judge)
}
