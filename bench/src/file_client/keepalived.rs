//! Two nodes with keepalived, and scripts that mount and start the NFS server on its master, as its users write them.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use baton_lab::files::{ADDRESS, Disks, MOUNT, NODES, valves};
use baton_lab::{HostSpec, Lab, Process, Topology, Valve, clock};

use super::{Cause, PATIENCE, RESTART, System};

const CONFIGURATION: &str = "/run/lab/keepalived.conf";
const SCRIPT: &str = "/run/lab/notify.sh";
const GANESHA: &str = "/run/lab/ganesha.conf";
/// The port of both nodes.
const PORT: &str = "p0";

/// The two of them.
pub struct Keepalived {
    lab: Lab,
    disks: Disks,
    advert: &'static str,
    processes: BTreeMap<String, Process>,
    valves: BTreeMap<String, Vec<Valve>>,
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

impl Keepalived {
    /// Starts them with this interval of advertisements, seconds.
    pub fn start(advert: &'static str) -> Result<Keepalived> {
        let client = HostSpec::new("client").ports("office", 1).address("p0", "10.0.0.100/24");
        let mut topology = Topology::new("keepalived").segment("office").host(client);
        for (node, address) in NODES.into_iter().zip(["10.0.0.1/24", "10.0.0.2/24"]) {
            topology = topology.host(HostSpec::new(node).ports("office", 1).address(PORT, address));
        }
        let lab = topology.build()?;
        let mut disks = Disks::new()?;
        for node in NODES {
            let host = lab.host(node)?;
            disks.connect(host)?;
            host.write(SCRIPT, &script())?;
            host.write(GANESHA, &ganesha())?;
            host.run("chmod", ["700", SCRIPT])?;
            // The server binds to the address before, or while, it comes.
            host.set_sysctl("net/ipv4/ip_nonlocal_bind", "1")?;
        }
        let valves = NODES.map(|n| Ok((n.to_owned(), valves(&lab, n)?)));
        let valves = valves.into_iter().collect::<Result<_>>()?;
        let mut system = Keepalived { lab, disks, advert, processes: BTreeMap::new(), valves };
        NODES.into_iter().try_for_each(|node| system.run(node))?;
        Ok(system)
    }

    fn run(&mut self, node: &str) -> Result<()> {
        let host = self.lab.host(node)?;
        let priority = if node == NODES[0] { 101 } else { 100 };
        let notify = |word: &str| format!("    notify_{word} \"{SCRIPT} {word}\"\n");
        let text = format!(
            "global_defs {{\n    vrrp_rt_priority 50\n    vrrp_no_swap\n    script_user root\n    enable_script_security\n}}\n\
             vrrp_instance files {{\n    interface {PORT}\n    state BACKUP\n    nopreempt\n    virtual_router_id 77\n    \
             priority {priority}\n    advert_int {}\n    version 3\n    virtual_ipaddress {{\n        {ADDRESS}/24 dev {PORT}\n    \
             }}\n{}{}{}{}}}\n",
            self.advert,
            notify("master"),
            notify("backup"),
            notify("fault"),
            notify("stop")
        );
        host.write(CONFIGURATION, &text)?;
        let mut command = Command::new("keepalived");
        command.args(["--dont-fork", "--no-syslog", "--log-console", "--vrrp", "--use-file", CONFIGURATION]);
        command.args(["--pid", "/run/keepalived.pid", "--vrrp_pid", "/run/vrrp.pid"]);
        let process = host.spawn(command).context("keepalived is Debian's: apt-get install keepalived")?;
        self.processes.insert(node.to_owned(), process);
        Ok(())
    }

    fn kill(&mut self, node: &str) -> Result<()> {
        if let Some(mut process) = self.processes.remove(node) {
            process.kill()?;
        }
        Ok(())
    }

    /// A machine that starts has no address; the killed daemon left it.
    fn forget(&self, node: &str) -> Result<()> {
        self.lab.port(node, PORT)?.delete_address(format!("{ADDRESS}/24").parse()?)?;
        let files = ["-f", "/run/keepalived.pid", "/run/vrrp.pid", "/run/lab/ganesha.pid"];
        self.lab.host(node)?.run("rm", files)?;
        Ok(())
    }

    /// The one node that answers for the address.
    fn holder(&self) -> Result<Option<String>> {
        let macs = self.lab.port("client", "p0")?.holders(ADDRESS, Duration::from_millis(30))?;
        let [mac] = macs[..] else { return Ok(None) };
        Ok(self.lab.ports().find(|p| p.mac() == mac).map(|p| p.host().name().to_owned()))
    }
}

impl System for Keepalived {
    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn disks(&self) -> &Disks {
        &self.disks
    }

    /// A killed daemon stops nothing: the other node would mount what is still mounted here.
    fn has(&self, cause: Cause) -> bool {
        cause != Cause::AgentKilled
    }

    fn prepare(&mut self) -> Result<String> {
        let end = clock::now() + PATIENCE;
        while clock::now() < end {
            if let Some(node) = self.holder()?
                && self.disks.lun.users() == [node.as_str()]
                && self.processes.len() == NODES.len()
            {
                // The other one has had time to hear of it.
                std::thread::sleep(Duration::from_millis(if self.advert == "1" { 4000 } else { 700 }));
                if self.holder()?.as_deref() == Some(&node) && self.disks.lun.users() == [node.as_str()] {
                    return Ok(node);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("not one node serves: mounted on {:?}{}", self.disks.lun.users(), self.complaint())
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<Duration> {
        let host = self.lab.host(node)?.clone();
        let at = clock::now();
        match cause {
            Cause::PortCut => _ = self.lab.port(node, PORT)?.cut()?,
            Cause::AgentKilled => bail!("not done to keepalived"),
            Cause::ServiceKilled => {
                host.run("sh", ["-c", "kill -9 $(cat /run/lab/ganesha.pid)"])?;
                // Somebody has to start it again: a supervisor does.
                std::thread::sleep(RESTART);
                host.run(SCRIPT, ["master"])?;
            }
            Cause::PowerLoss => {
                self.valves[node].iter().try_for_each(|valve| valve.close().map(drop))?;
                self.disks.lun.lose(node)?;
                self.kill(node)?;
                host.namespaces().kill_all();
            }
            Cause::Drain => {
                let process = self.processes.get_mut(node).context("no keepalived")?;
                process.terminate(Duration::from_secs(10))?;
            }
        }
        Ok(at)
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        match cause {
            Cause::PortCut => _ = self.lab.port(node, PORT)?.restore()?,
            Cause::AgentKilled | Cause::ServiceKilled => {}
            Cause::PowerLoss => {
                self.forget(node)?;
                self.disks.boot(self.lab.host(node)?)?;
                self.valves[node].iter().try_for_each(Valve::open)?;
                self.run(node)?;
            }
            Cause::Drain => self.run(node)?,
        }
        Ok(())
    }

    fn complaint(&self) -> String {
        let mut text: String = self.processes.values().map(|p| p.stderr() + &p.stdout()).collect();
        for node in NODES {
            let shown =
                self.lab.host(node).and_then(|host| host.run("tail", ["-n", "30", "/run/lab/notify.log"]));
            let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text += &format!("\n--- {node}\n{}", shown.unwrap_or_default());
        }
        text
    }
}
