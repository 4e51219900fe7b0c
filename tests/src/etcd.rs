//! A real etcd cluster, one member in each of some hosts.

use std::process::{Command, Output};
use std::time::Duration;

use crate::error::LabError;
use crate::host::{Host, wait_until};
use crate::process::Process;

/// Where each member keeps its data: in memory, the host's own.
const DATA: &str = "/run/baton-lab/etcd";
/// Port for clients, and for members.
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

/// The timers of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Milliseconds between two heartbeats of the leader.
    pub heartbeat: u32,
    /// Milliseconds without one after which a new leader is elected.
    pub election: u32,
}

impl Default for Timers {
    fn default() -> Self {
        Timers { heartbeat: 10, election: 100 }
    }
}

/// The cluster. Dropped: killed.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    timers: Timers,
}

#[derive(Debug)]
struct Member {
    host: Host,
    address: String,
    process: Option<Process>,
}

impl Etcd {
    /// Starts a member in each host, which has this address for the others, and waits until they have a leader.
    ///
    /// # Errors
    /// When etcd can't be started (Debian's etcd-server), or finds no leader.
    pub fn start(hosts: &[(&Host, &str)], timers: Timers) -> Result<Etcd, LabError> {
        let member = |(host, address): &(&Host, &str)| Member {
            host: (*host).clone(),
            address: (*address).to_owned(),
            process: None,
        };
        let mut etcd = Etcd { members: hosts.iter().map(member).collect(), timers };
        for index in 0..etcd.members.len() {
            etcd.run(index, "new")?;
        }
        etcd.wait_healthy(Duration::from_secs(20))?;
        Ok(etcd)
    }

    fn run(&mut self, index: usize, state: &str) -> Result<(), LabError> {
        let all: Vec<String> =
            self.members.iter().map(|m| format!("{}=http://{}:{PEERS}", m.host.name(), m.address)).collect();
        let member = &self.members[index];
        let (name, address) = (member.host.name(), &member.address);
        let mut command = Command::new("etcd");
        command.args(["--name", name, "--data-dir", DATA, "--log-level", "warn", "--logger", "zap"]);
        command
            .arg("--listen-client-urls")
            .arg(format!("http://127.0.0.1:{CLIENTS},http://{address}:{CLIENTS}"));
        command.arg("--advertise-client-urls").arg(format!("http://{address}:{CLIENTS}"));
        command.arg("--listen-peer-urls").arg(format!("http://{address}:{PEERS}"));
        command.arg("--initial-advertise-peer-urls").arg(format!("http://{address}:{PEERS}"));
        command.arg("--initial-cluster").arg(all.join(",")).args(["--initial-cluster-state", state]);
        command.arg("--heartbeat-interval").arg(self.timers.heartbeat.to_string());
        command.arg("--election-timeout").arg(self.timers.election.to_string());
        command.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
        self.members[index].process = Some(member.host.spawn(command)?);
        Ok(())
    }

    /// Client URLs as the member in this host is to use them: its own first.
    pub fn endpoints(&self, host: &str) -> Vec<String> {
        let others = self.members.iter().filter(|m| m.host.name() != host);
        let local = self.members.iter().any(|m| m.host.name() == host);
        let own = local.then(|| format!("http://127.0.0.1:{CLIENTS}"));
        own.into_iter().chain(others.map(|m| format!("http://{}:{CLIENTS}", m.address))).collect()
    }

    /// Waits until a write succeeds.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`.
    pub fn wait_healthy(&self, limit: Duration) -> Result<(), LabError> {
        let healthy = || {
            let done = self.ctl(&["put", "/lab/healthy", "1", "--command-timeout=1s"]);
            done.is_ok_and(|output| output.status.success())
        };
        wait_until("etcd to have a leader", limit, healthy)
    }

    /// Runs etcdctl in the host of the first member that runs.
    ///
    /// # Errors
    /// When it can't be started; a failing command is not an error here.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Output, LabError> {
        let member = self.members.iter().find(|m| m.process.is_some()).unwrap_or(&self.members[0]);
        let endpoints = format!("--endpoints=http://127.0.0.1:{CLIENTS}");
        member.host.run("etcdctl", [&[endpoints.as_str()], arguments].concat())
    }

    /// Name of the host whose member leads.
    ///
    /// # Errors
    /// When no member says so.
    pub fn leader(&self) -> Result<String, LabError> {
        for member in self.members.iter().filter(|m| m.process.is_some()) {
            let endpoint = format!("--endpoints=http://127.0.0.1:{CLIENTS}");
            let output =
                member.host.run("etcdctl", [endpoint.as_str(), "endpoint", "status", "-w", "json"])?;
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let status = &status[0]["Status"];
            let leads = &status["leader"];
            if !leads.is_null() && *leads == status["header"]["member_id"] {
                return Ok(member.host.name().to_owned());
            }
        }
        Err(LabError::Unknown { lab: "etcd".to_owned(), what: "a leader".to_owned() })
    }

    /// The member in this host.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn member(&mut self, host: &str) -> Result<&mut Option<Process>, LabError> {
        let member = self.members.iter_mut().find(|m| m.host.name() == host);
        let unknown = || LabError::Unknown { lab: "etcd".to_owned(), what: format!("member {host}") };
        Ok(&mut member.ok_or_else(unknown)?.process)
    }

    /// Kills the member in this host, if there is one.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self, host: &str) -> Result<(), LabError> {
        if let Ok(process) = self.member(host)
            && let Some(mut process) = process.take()
        {
            process.kill()?;
        }
        Ok(())
    }

    /// Starts a killed member again, with its data.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_again(&mut self, host: &str) -> Result<(), LabError> {
        let index = self.members.iter().position(|m| m.host.name() == host);
        let unknown = || LabError::Unknown { lab: "etcd".to_owned(), what: format!("member {host}") };
        self.run(index.ok_or_else(unknown)?, "existing")
    }
}
