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

/// The timers of etcd, and its share of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Milliseconds between two heartbeats of the leader.
    pub heartbeat: u32,
    /// Milliseconds without one after which a new leader is elected.
    pub election: u32,
    /// Its processes' nice value: below 0, it runs before ordinary work.
    pub nice: i32,
}

impl Default for Timers {
    fn default() -> Self {
        Timers { heartbeat: 10, election: 100, nice: 0 }
    }
}

/// TLS on both sides, and a user with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// Certificate of the authority, PEM.
    pub ca: String,
    /// A certificate by it for every host's address and 127.0.0.1, server and client in one, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// Where its files are, in each host's own `/run`.
const TLS: &str = "/run/baton-lab/tls";
/// The user of the agents.
const USER: &str = "baton";
/// Its password, and that of root.
pub const PASSWORD: &str = "correct horse";

impl Security {
    /// Puts its files into a host.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn write(&self, host: &Host) -> Result<(), LabError> {
        host.write(&format!("{TLS}/ca.pem"), &self.ca)?;
        host.write(&format!("{TLS}/me.pem"), &self.certificate)?;
        host.write_secret(&format!("{TLS}/me.key"), &self.key)?;
        host.write_secret(&format!("{TLS}/password"), &format!("{PASSWORD}\n"))
    }

    /// The lines of `[store]` in a node's file.
    pub fn store_lines(&self) -> String {
        format!(
            "tls = {{ ca = \"{TLS}/ca.pem\", certificate = \"{TLS}/me.pem\", key = \"{TLS}/me.key\" }}\n\
             credentials = {{ user = {USER:?}, password_file = \"{TLS}/password\" }}\n"
        )
    }
}

/// The cluster. Dropped: killed.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    timers: Timers,
    security: Option<Security>,
    /// Users are asked for their password.
    guarded: bool,
}

#[derive(Debug)]
struct Member {
    host: Host,
    address: String,
    process: Option<Process>,
}

/// A member's view of the cluster.
#[derive(Clone, Copy, Debug)]
struct View {
    id: u64,
    term: u64,
    /// 0: none.
    leader: u64,
}

impl Etcd {
    /// Starts a member in each host, which has this address for the others, and waits until they have a leader.
    ///
    /// # Errors
    /// When etcd can't be started (Debian's etcd-server), or finds no leader.
    pub fn start(hosts: &[(&Host, &str)], timers: Timers) -> Result<Etcd, LabError> {
        Etcd::start_with(hosts, timers, None)
    }

    /// As [`Etcd::start`]; with `security`, whose files the hosts have, only who has a certificate and a password gets in.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_with(
        hosts: &[(&Host, &str)],
        timers: Timers,
        security: Option<Security>,
    ) -> Result<Etcd, LabError> {
        let member = |(host, address): &(&Host, &str)| Member {
            host: (*host).clone(),
            address: (*address).to_owned(),
            process: None,
        };
        let members = hosts.iter().map(member).collect();
        let mut etcd = Etcd { members, timers, security, guarded: false };
        for index in 0..etcd.members.len() {
            etcd.run(index, "new")?;
        }
        etcd.wait_healthy(Duration::from_secs(20))?;
        if etcd.security.is_some() {
            etcd.guard()?;
        }
        Ok(etcd)
    }

    /// Makes users, and asks for their passwords from now on.
    fn guard(&mut self) -> Result<(), LabError> {
        let (root, user) = (format!("root:{PASSWORD}"), format!("{USER}:{PASSWORD}"));
        let steps: [&[&str]; 7] = [
            &["user", "add", &root],
            &["user", "grant-role", "root", "root"],
            &["role", "add", USER],
            &["role", "grant-permission", "--prefix=true", USER, "readwrite", "/baton/"],
            &["user", "add", &user],
            &["user", "grant-role", USER, USER],
            &["auth", "enable"],
        ];
        for step in steps {
            let output = self.ctl(step)?;
            if !output.status.success() {
                let what = format!("etcdctl {}: {}", step.join(" "), String::from_utf8_lossy(&output.stderr));
                return Err(LabError::System { what, source: std::io::Error::other("failed") });
            }
        }
        self.guarded = true;
        Ok(())
    }

    fn scheme(&self) -> &'static str {
        if self.security.is_some() { "https" } else { "http" }
    }

    fn run(&mut self, index: usize, state: &str) -> Result<(), LabError> {
        let all: Vec<String> =
            self.members.iter().map(|m| format!("{}=http://{}:{PEERS}", m.host.name(), m.address)).collect();
        let member = &self.members[index];
        let (name, address, scheme) = (member.host.name(), &member.address, self.scheme());
        let mut command = Command::new("nice");
        command.args(["-n", &self.timers.nice.to_string(), "etcd"]);
        command.args(["--name", name, "--data-dir", DATA, "--log-level", "warn", "--logger", "zap"]);
        command
            .arg("--listen-client-urls")
            .arg(format!("{scheme}://127.0.0.1:{CLIENTS},{scheme}://{address}:{CLIENTS}"));
        command.arg("--advertise-client-urls").arg(format!("{scheme}://{address}:{CLIENTS}"));
        if self.security.is_some() {
            command.args(["--cert-file", &format!("{TLS}/me.pem"), "--key-file", &format!("{TLS}/me.key")]);
            command.args(["--trusted-ca-file", &format!("{TLS}/ca.pem"), "--client-cert-auth"]);
        }
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
        let scheme = self.scheme();
        let own = local.then(|| format!("{scheme}://127.0.0.1:{CLIENTS}"));
        own.into_iter().chain(others.map(|m| format!("{scheme}://{}:{CLIENTS}", m.address))).collect()
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
        self.ctl_in(&member.host, arguments)
    }

    fn ctl_in(&self, host: &Host, arguments: &[&str]) -> Result<Output, LabError> {
        let mut all = vec![format!("--endpoints={}://127.0.0.1:{CLIENTS}", self.scheme())];
        if self.security.is_some() {
            all.extend([format!("--cacert={TLS}/ca.pem"), format!("--cert={TLS}/me.pem")]);
            all.push(format!("--key={TLS}/me.key"));
        }
        if self.guarded {
            all.push(format!("--user=root:{PASSWORD}"));
        }
        let all = all.iter().map(String::as_str).chain(arguments.iter().copied());
        host.run("etcdctl", all)
    }

    /// What a member says of itself; `None`: nothing.
    fn view(&self, member: &Member) -> Result<Option<View>, LabError> {
        let output = self.ctl_in(&member.host, &["endpoint", "status", "-w", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let status = &status[0]["Status"];
        let number = |value: &serde_json::Value| value.as_u64();
        let id = number(&status["header"]["member_id"]);
        let term = number(&status["raftTerm"]);
        Ok(id.zip(term).map(|(id, term)| View { id, term, leader: number(&status["leader"]).unwrap_or(0) }))
    }

    /// Name of the host whose member leads.
    ///
    /// # Errors
    /// When no member says so.
    pub fn leader(&self) -> Result<String, LabError> {
        for member in self.members.iter().filter(|m| m.process.is_some()) {
            if let Some(view) = self.view(member)?
                && view.leader == view.id
            {
                return Ok(member.host.name().to_owned());
            }
        }
        Err(LabError::Unknown { lab: "etcd".to_owned(), what: "a leader".to_owned() })
    }

    /// The term that all running members are in, but for the one in this host, where they agree on a leader: each election
    /// begins another one.
    ///
    /// # Errors
    /// When they don't agree, or one of them does not answer.
    pub fn term(&self, without: Option<&str>) -> Result<u64, LabError> {
        let unknown = |what: &str| LabError::Unknown { lab: "etcd".to_owned(), what: what.to_owned() };
        let mut views = Vec::new();
        let counts = |m: &&Member| m.process.is_some() && without != Some(m.host.name());
        for member in self.members.iter().filter(counts) {
            views.push(self.view(member)?.ok_or_else(|| unknown("a member that answers"))?);
        }
        let first = views.first().ok_or_else(|| unknown("members"))?;
        if first.leader == 0 || views.iter().any(|v| (v.leader, v.term) != (first.leader, first.term)) {
            return Err(unknown("a leader that all agree on"));
        }
        Ok(first.term)
    }

    /// Makes the member in this host lead.
    ///
    /// # Errors
    /// When etcd refuses, or has no leader.
    pub fn move_leader(&self, to: &str) -> Result<(), LabError> {
        let unknown = || LabError::Unknown { lab: "etcd".to_owned(), what: format!("member {to}") };
        let find = |name: &str| self.members.iter().find(|m| m.host.name() == name).ok_or_else(unknown);
        let target = self.view(find(to)?)?.ok_or_else(unknown)?.id;
        let leader = find(&self.leader()?)?;
        let endpoint = format!("--endpoints=http://127.0.0.1:{CLIENTS}");
        let output = leader.host.run("etcdctl", [&endpoint, "move-leader", &format!("{target:x}")])?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(LabError::System { what: format!("make {to} lead etcd"), source: std::io::Error::other(text) })
    }

    /// What the members have logged since they were last started.
    pub fn logs(&self) -> String {
        let running = self.members.iter().filter_map(|m| Some((m.host.name(), m.process.as_ref()?)));
        running.map(|(name, process)| format!("\n--- etcd on {name}\n{}", process.stderr())).collect()
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
