//! The real agent in a host of a lab: configured, started, asked, stopped, killed.
//!
//! Nothing here judges by what the agent says of itself: [`Agent::wait_served`] asks the wire.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use serde_json::Value;

use crate::clock;
use crate::error::{Context, LabError};
use crate::host::Host;
use crate::port::Port;
use crate::process::{self, Process, baton_binary};
use crate::wire::Mac;

/// Where the configuration is written, in the host's own `/run`.
pub const CONFIG_FILE: &str = "/run/baton-lab/baton.toml";
/// Where the agent serves `/metrics` and `/status.json`, in the host.
pub const TELEMETRY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);

/// How long a question on the wire is left open, while waiting for the first answer.
const WINDOW: Duration = Duration::from_millis(10);

/// A configuration as a value; [`AgentConfig::text`] is the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentConfig {
    node: String,
    ports: Vec<(String, String)>,
    timing: Vec<(String, String)>,
    segments: Vec<(String, Vec<String>, Vec<String>)>,
    servers: Vec<(String, Vec<String>)>,
}

impl AgentConfig {
    /// A node without ports.
    pub fn new(node: &str) -> AgentConfig {
        AgentConfig { node: node.to_owned(), ..AgentConfig::default() }
    }

    /// Adds a segment with its subnets.
    pub fn segment(mut self, name: &str, subnets: &[&str]) -> AgentConfig {
        self.segments.push((name.to_owned(), owned(subnets), Vec::new()));
        self
    }

    /// Sets `port_failback` of the segment that was added last.
    pub fn port_failback(self, how: &str) -> AgentConfig {
        self.segment_line(format!("port_failback = {how:?}"))
    }

    /// Sets the next hops of the segment that was added last.
    pub fn gateway(self, hops: &[&str]) -> AgentConfig {
        self.segment_line(format!("gateway = {hops:?}"))
    }

    /// Sets the hosts that the segment that was added last asks whether it is alive.
    pub fn probe_targets(self, hosts: &[&str]) -> AgentConfig {
        self.segment_line(format!("probe_targets = {hosts:?}"))
    }

    fn segment_line(mut self, line: String) -> AgentConfig {
        if let Some((_, _, lines)) = self.segments.last_mut() {
            lines.push(line);
        }
        self
    }

    /// Adds ports to a segment.
    pub fn ports(mut self, segment: &str, interfaces: &[&str]) -> AgentConfig {
        self.ports.extend(interfaces.iter().map(|i| ((*i).to_owned(), segment.to_owned())));
        self
    }

    /// Sets a key of `[timing]`, the value as it stands in the file, like `"\"2s\""`; once more: another value.
    pub fn timing(mut self, key: &str, value: &str) -> AgentConfig {
        self.timing.retain(|(known, _)| known != key);
        self.timing.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the hold-down and what it grows to at most.
    pub fn hold_down(self, first: Duration, most: Duration) -> AgentConfig {
        let text = |duration: Duration| format!("\"{}ms\"", duration.as_millis());
        self.timing("hold_down", &text(first)).timing("hold_down_max", &text(most))
    }

    /// Adds a virtual server with its addresses, each with its subnet's prefix.
    pub fn server(mut self, name: &str, addresses: &[&str]) -> AgentConfig {
        self.servers.push((name.to_owned(), owned(addresses)));
        self
    }

    /// The addresses of all virtual servers, in the order of the file; those that don't parse are left out.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all = self.servers.iter().flat_map(|(_, addresses)| addresses);
        all.filter_map(|a| a.parse::<ipnet::IpNet>().ok()).map(|net| net.addr()).collect()
    }

    /// The file.
    pub fn text(&self) -> String {
        let mut text = format!("[node]\nname = {:?}\n", self.node);
        let mut add = |part: String| text.push_str(&part);
        for (interface, segment) in &self.ports {
            add(format!("\n[[port]]\ninterface = {interface:?}\nsegment = {segment:?}\n"));
        }
        if !self.timing.is_empty() {
            add("\n[timing]\n".into());
            self.timing.iter().for_each(|(key, value)| add(format!("{key} = {value}\n")));
        }
        for (name, subnets, lines) in &self.segments {
            add(format!("\n[[segment]]\nname = {name:?}\nsubnets = {subnets:?}\n{}\n", lines.join("\n")));
        }
        for (name, addresses) in &self.servers {
            add(format!("\n[[virtual_server]]\nname = {name:?}\naddresses = {addresses:?}\n"));
        }
        text
    }
}

/// An agent in a host. Dropped: killed; what it made goes with the host, or by [`Agent::clean`].
#[derive(Debug)]
pub struct Agent {
    host: Host,
    binary: PathBuf,
    process: Process,
    /// Of the agent, from its next start on.
    environment: Vec<(String, String)>,
}

impl Agent {
    /// Writes the configuration and starts the agent. It need not serve yet: see [`Agent::wait_served`].
    ///
    /// # Errors
    /// When there is no program, or it can't be started.
    pub fn start(host: &Host, config: &AgentConfig) -> Result<Agent, LabError> {
        Agent::start_text(host, &config.text())
    }

    /// As [`Agent::start`], with the text of the file.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_text(host: &Host, config: &str) -> Result<Agent, LabError> {
        Agent::start_program(host, config, baton_binary()?)
    }

    /// As [`Agent::start_text`], with another program, as of an older build.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_program(host: &Host, config: &str, binary: PathBuf) -> Result<Agent, LabError> {
        host.write(CONFIG_FILE, config)?;
        let process = host.spawn(baton_command(&binary, &["run"]))?;
        Ok(Agent { host: host.clone(), binary, process, environment: Vec::new() })
    }

    /// Starts it again after [`Agent::kill`] or [`Agent::terminate`], with the configuration that is there; kills it first if it
    /// still runs.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_again(&mut self) -> Result<(), LabError> {
        self.process.kill()?;
        let mut command = baton_command(&self.binary, &["run"]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = self.host.spawn(command)?;
        Ok(())
    }

    /// Environment variables of the agent, from its next start on.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.environment = owned.collect();
    }

    /// The program that is started from now on, and that commands are given to.
    pub fn use_binary(&mut self, binary: &Path) {
        self.binary = binary.to_owned();
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process: to pause, resume or signal it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL. What it served stays served by the kernel.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn kill(&mut self) -> Result<ExitStatus, LabError> {
        self.process.kill()
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        self.process.terminate(limit)
    }

    /// What it has logged since it was last started.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Runs the program with these arguments in the host, with the agent's configuration.
    ///
    /// # Errors
    /// When it can't be started; a failing command is not an error here.
    pub fn command(&self, arguments: &[&str]) -> Result<Output, LabError> {
        process::run(self.host.namespaces(), baton_command(&self.binary, arguments))
    }

    /// Starts the program with these arguments in the host, with the agent's configuration, and doesn't wait for its end.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Process, LabError> {
        self.host.spawn(baton_command(&self.binary, arguments))
    }

    /// `baton clean`, after the agent has ended. Returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn clean(&self) -> Result<String, LabError> {
        self.done(&["clean"])
    }

    /// `baton status --json`.
    ///
    /// # Errors
    /// When the command fails or its output is not JSON.
    pub fn status(&self) -> Result<Value, LabError> {
        let text = self.done(&["status", "--json"])?;
        serde_json::from_str(&text).context(|| format!("read the status {text:?}"))
    }

    /// The entry of a port in [`Agent::status`]; null if there is none.
    ///
    /// # Errors
    /// As [`Agent::status`].
    pub fn port_status(&self, interface: &str) -> Result<Value, LabError> {
        let status = self.status()?;
        let ports = status["ports"].as_array();
        let found = ports.and_then(|ports| ports.iter().find(|p| p["interface"] == interface));
        Ok(found.cloned().unwrap_or_default())
    }

    /// `baton events --json`, oldest first.
    ///
    /// # Errors
    /// When the command fails or a line is not JSON.
    pub fn events(&self) -> Result<Vec<Value>, LabError> {
        let text = self.done(&["events", "--json"])?;
        let parse = |line| serde_json::from_str(line).context(|| format!("read the event {line:?}"));
        text.lines().map(parse).collect()
    }

    /// Waits for an event of this kind (the word of its key `event`) that `wanted` accepts.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`; those of [`Agent::events`].
    pub fn wait_event(
        &self,
        kind: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value, LabError> {
        let end = clock::now() + limit;
        loop {
            let events = self.events()?;
            let mut of_kind = events.into_iter().filter(|e| e["event"] == kind);
            if let Some(event) = of_kind.find(&mut wanted) {
                return Ok(event);
            }
            if clock::now() >= end {
                return Err(LabError::Timeout { what: format!("an event {kind:?}"), limit });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When nobody answers, or not with status 200.
    pub fn metrics(&self) -> Result<String, LabError> {
        let what = || format!("get /metrics in {}", self.host.name());
        let mut stream = self.host.open("connect to the agent's HTTP", || {
            let stream = TcpStream::connect_timeout(&TELEMETRY, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(stream)
        })?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {TELEMETRY}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).context(what)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context(what)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => Err(std::io::Error::other(answer)).context(what),
        }
    }

    /// The value of one metric that has all these labels, the sum if there are several; none if there is no such line.
    ///
    /// # Errors
    /// As [`Agent::metrics`].
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<Option<f64>, LabError> {
        Ok(metric(&self.metrics()?, name, labels))
    }

    /// Asks on the wire, from `client`, until somebody answers for `address`; returns who did.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`, with the end of the agent's log.
    pub fn wait_served(&self, client: &Port, address: IpAddr, limit: Duration) -> Result<Mac, LabError> {
        self.wait_answer(client, address, limit, |_| true)
    }

    /// As [`Agent::wait_served`], until the answer comes from `port`.
    ///
    /// # Errors
    /// As [`Agent::wait_served`].
    pub fn wait_served_by(
        &self,
        client: &Port,
        address: IpAddr,
        port: &Port,
        limit: Duration,
    ) -> Result<(), LabError> {
        self.wait_answer(client, address, limit, |mac| mac == port.mac()).map(drop)
    }

    fn wait_answer(
        &self,
        client: &Port,
        address: IpAddr,
        limit: Duration,
        wanted: impl Fn(Mac) -> bool,
    ) -> Result<Mac, LabError> {
        let end = clock::now() + limit;
        let mut last = Vec::new();
        while clock::now() < end {
            last = client.who_has(address, WINDOW)?;
            if let Some(reply) = last.iter().find(|reply| wanted(reply.mac)) {
                return Ok(reply.mac);
            }
        }
        let mut what = format!("an answer for {address}; heard {last:?}; the agent's log ends with");
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(5)..] {
            // Writing to a string can't fail.
            let _ = write!(what, "\n  {line}");
        }
        Err(LabError::Timeout { what, limit })
    }

    fn done(&self, arguments: &[&str]) -> Result<String, LabError> {
        let output = self.command(arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(std::io::Error::other(text)).context(|| format!("baton {} ({})", arguments[0], output.status))
    }
}

/// The value of a metric in the text of `/metrics`; see [`Agent::metric`].
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    let of_line = |line: &str| {
        let (left, value) = line.rsplit_once(' ')?;
        let (own, own_labels) = left.split_once('{').unwrap_or((left, ""));
        let fits = own == name && labels.iter().all(|label| own_labels.contains(label));
        if fits { value.parse::<f64>().ok() } else { None }
    };
    text.lines().filter_map(of_line).fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// `baton --config ... <arguments>`.
fn baton_command(binary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(["--config", CONFIG_FILE]).args(arguments);
    command
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
