//! Two nodes with keepalived, and scripts that mount and start the NFS server on its master, as its users write them.

use std::time::Duration;

use anyhow::{Result, bail};
use baton_lab::files::{ADDRESS, Disks, MOUNT, NODES};
use baton_lab::{Lab, Occupant, Way, clock};

use super::{Cause, PATIENCE, RESTART, System};
use crate::keepalived::{More, PORT, Pair};

const SCRIPT: &str = "/run/lab/notify.sh";
const STORAGE: &str = "/run/lab/storage.sh";
const GANESHA: &str = "/run/lab/ganesha.conf";
/// Whether the disk answers is asked in the shortest interval that keepalived's users choose, and believed at once.
const STORAGE_TEXT: &str =
    "#!/bin/sh\nexec dd if=/run/lab/lun of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null\n";

/// The two of them.
pub struct Keepalived {
    pair: Pair,
    disks: Disks,
    /// On both ends of the nodes' cables, where that is asked for.
    _programs: Vec<Occupant>,
}

/// What keepalived runs at every change of its state. It runs them without waiting for one another, so they go by whether the address is
/// there, not by what they are called with. The server is killed before it is unmounted: it has nothing that is not synced when a
/// client was told so.
fn script() -> String {
    format!(
        "#!/bin/sh\nexec >>/run/lab/notify.log 2>&1\nset -x\nexec 9>/run/lab/lock; flock 9\n\
         if [ \"$1\" != stop ] && ip -4 address show dev {PORT} | grep -q ' {ADDRESS}/'; then\n  mkdir -p {MOUNT}\n  \
         mountpoint -q {MOUNT} || mount -t ext4 -o dirsync /run/lab/lun {MOUNT} || exit 1\n  \
         test -e /run/lab/ganesha.pid && kill -0 $(cat /run/lab/ganesha.pid) && exit 0\n  rm -f /run/lab/ganesha.pid\n  \
         setsid ganesha.nfsd -F -f {GANESHA} -p /run/lab/ganesha.pid -L /run/lab/ganesha.log 9>&- &\nelse\n  \
         test -e /run/lab/ganesha.pid && kill -9 $(cat /run/lab/ganesha.pid) && sleep 0.05\n  rm -f /run/lab/ganesha.pid\n  \
         while mountpoint -q {MOUNT}; do umount {MOUNT} || sleep 0.05; done\nfi\nexit 0\n"
    )
}

fn ganesha() -> String {
    format!(
        "NFS_CORE_PARAM {{ Bind_addr = {ADDRESS}; MNT_Port = 20048; Protocols = 3, 4; Enable_NLM = false; \
         Enable_RQUOTA = false; Enable_UDP = false; }}\nNFS_KRB5 {{ Active_krb5 = false; }}\n\
         NFSv4 {{ RecoveryBackend = fs; RecoveryRoot = \"{MOUNT}/.ganesha\"; Lease_Lifetime = 5; Grace_Period = 10; }}\n\
         EXPORT {{ Export_Id = 1; Filesystem_Id = 1.1; Path = \"{MOUNT}\"; Pseudo = \"/files\"; Protocols = 3, 4; \
         Transports = TCP; SecType = sys; Squash = No_Root_Squash; Access_Type = RW; FSAL {{ Name = VFS; }} }}\n"
    )
}

fn more() -> More {
    let notify = |word: &str| format!("    notify_{word} \"{SCRIPT} {word}\"\n");
    let notices: String = ["master", "backup", "fault", "stop"].map(notify).concat();
    More {
        global: "    script_user root\n    enable_script_security\n".to_owned(),
        sections: format!(
            "vrrp_script storage {{\n    script \"{STORAGE}\"\n    interval 1\n    timeout 1\n    fall 1\n    rise 1\n}}\n"
        ),
        instance: format!("    track_script {{\n        storage\n    }}\n{notices}"),
    }
}

impl Keepalived {
    /// Starts them with this interval of advertisements, seconds; and with XDP programs on their ports that let everything pass,
    /// where that is asked for.
    pub fn start(advert: &'static str, programs: bool) -> Result<Keepalived> {
        let mut pair = Pair::new(NODES, advert, more())?;
        let mut disks = Disks::new()?;
        let mut occupants = Vec::new();
        for node in NODES {
            let host = pair.lab.host(node)?;
            disks.connect(host)?;
            for (path, text) in [(SCRIPT, script()), (STORAGE, STORAGE_TEXT.to_owned())] {
                host.write(path, &text)?;
                host.run("chmod", ["700", path])?;
            }
            host.write(GANESHA, &ganesha())?;
            // The server binds to the address before, or while, it comes.
            host.set_sysctl("net/ipv4/ip_nonlocal_bind", "1")?;
            if programs {
                occupants.push(pair.lab.port(node, PORT)?.occupy_xdp()?);
                pair.lab.carry_xdp_tx(node)?;
            }
        }
        pair.run_all()?;
        Ok(Keepalived { pair, disks, _programs: occupants })
    }
}

impl System for Keepalived {
    fn lab(&self) -> &Lab {
        &self.pair.lab
    }

    fn disks(&self) -> &Disks {
        &self.disks
    }

    fn refuses(&self, cause: Cause) -> Option<&'static str> {
        match cause {
            // A killed daemon stops nothing: the other node would mount what is still mounted here.
            Cause::AgentKilled => Some("not done: two nodes would have the file system mounted"),
            // Seen: the check can't be killed, and keepalived decides nothing as long as it is there.
            Cause::StorageHang => Some("not done: its check hangs with the disk, and it never decides"),
            Cause::Move => Some("it has no move; see drain"),
            Cause::PortCut | Cause::ServiceKilled | Cause::PowerLoss | Cause::StorageError | Cause::Drain => {
                None
            }
        }
    }

    fn prepare(&mut self) -> Result<String> {
        let end = clock::now() + PATIENCE;
        while clock::now() < end {
            if let Some(node) = self.pair.holder()?
                && self.disks.lun.users() == [node.as_str()]
                && self.pair.is_whole()
            {
                // The other one has had time to hear of it.
                std::thread::sleep(self.pair.settling());
                if self.pair.holder()?.as_deref() == Some(&node) && self.disks.lun.users() == [node.as_str()]
                {
                    return Ok(node);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("not one node serves: mounted on {:?}{}", self.disks.lun.users(), self.complaint())
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<Duration> {
        let host = self.pair.lab.host(node)?.clone();
        let at = clock::now();
        match cause {
            Cause::PortCut => _ = self.pair.lab.port(node, PORT)?.cut()?,
            Cause::AgentKilled | Cause::StorageHang | Cause::Move => bail!("not done to keepalived"),
            Cause::ServiceKilled => {
                host.run("sh", ["-c", "kill -9 $(cat /run/lab/ganesha.pid)"])?;
                // Somebody has to start it again: a supervisor does.
                std::thread::sleep(RESTART);
                host.run(SCRIPT, ["master"])?;
            }
            Cause::PowerLoss => {
                self.pair.cut_off(node)?;
                self.disks.lun.lose(node)?;
                self.pair.kill(node)?;
                host.namespaces().kill_all();
            }
            Cause::StorageError => self.disks.lun.set(node, Way::Fails)?,
            Cause::Drain => self.pair.stop(node)?,
        }
        Ok(at)
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        match cause {
            Cause::PortCut => _ = self.pair.lab.port(node, PORT)?.restore()?,
            Cause::AgentKilled | Cause::ServiceKilled | Cause::StorageHang | Cause::Move => {}
            Cause::PowerLoss => {
                self.pair.forget(node)?;
                self.pair.lab.host(node)?.run("rm", ["-f", "/run/lab/ganesha.pid"])?;
                self.disks.boot(self.pair.lab.host(node)?)?;
                self.pair.reconnect(node)?;
                self.pair.run(node)?;
            }
            Cause::StorageError => self.disks.lun.set(node, Way::Well)?,
            Cause::Drain => self.pair.run(node)?,
        }
        Ok(())
    }

    fn complaint(&self) -> String {
        let mut text = self.pair.complaint();
        for node in NODES {
            let host = self.pair.lab.host(node);
            let shown = host.and_then(|host| host.run("tail", ["-n", "30", "/run/lab/notify.log"]));
            let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text += &format!("\n--- {node}\n{}", shown.unwrap_or_default());
        }
        text
    }
}
