//! `baton demo --keep`: a cluster that stays until Ctrl-C, with the web page of each node, and with commands that break it.
//!
//! The pages and the socket for the commands belong to this process: nothing of the machine's network is changed, and however
//! it ends, nothing stays.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use baton_lab::cluster::{Cluster, ClusterSpec};
use baton_lab::fault::Blackhole;
use baton_lab::host::wait_until;
use baton_lab::{Echo, Probe, clock};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use super::nodes::installed;
use super::relay::Relay;
use super::{Ask, millis};

/// The socket that a demonstration is told by what to do: an abstract one (unix(7)), which leaves no file.
const SOCKET: &[u8] = b"baton-demo";
/// Where each node serves its page, in its own namespace.
const PAGE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);
/// The address that is looked at.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10));
const PORT: u16 = 7;
const PROBE_EVERY: Duration = Duration::from_micros(200);
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the answer for an address is waited for.
const WINDOW: Duration = Duration::from_millis(50);
/// Nobody is called dead in the first two seconds of a member list.
const FIRST: Duration = Duration::from_secs(2);
/// Most bytes of a request.
const REQUEST_MAX: u64 = 64 << 10;

/// What came of a request.
#[derive(Serialize, Deserialize)]
struct Answer {
    done: bool,
    text: String,
}

/// Builds the cluster and does what it is told, until it is ended from outside.
///
/// # Errors
/// The lab can't be built (it needs root), an address of a page is taken, or another demonstration is kept already.
pub(super) fn run(listen: SocketAddr) -> Result<()> {
    ensure!(
        installed("etcd") && installed("etcdctl"),
        "this needs etcd: apt-get install etcd-server etcd-client"
    );
    let address = UnixAddress::from_abstract_name(SOCKET)?;
    let socket = UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!("another demonstration is kept already; end it first"),
        _ => anyhow::Error::new(error).context("make the socket for commands"),
    })?;
    let mut listeners = Vec::new();
    for index in 0..NODES.len() as u16 {
        let port = if listen.port() == 0 { 0 } else { listen.port().saturating_add(index) };
        listeners.push(Relay::bind(SocketAddr::new(listen.ip(), port))?);
    }
    line("building three file servers with etcd, and a client, in network namespaces of their own")?;
    let mut kept = Kept::start()?;
    for (node, listener) in NODES.iter().zip(listeners) {
        let relay = Relay::start(listener, kept.cluster.lab.host(node)?.clone(), PAGE)?;
        line(&format!("the page, as {node} sees it:  http://{}/", relay.address()))?;
    }
    line("it stays until Ctrl-C; `baton demo --help` says what can be broken, in another terminal")?;
    loop {
        let (stream, _) = socket.accept().context("wait for a command")?;
        if let Err(error) = kept.answer(&stream) {
            line(&format!("a command got no answer: {error:#}"))?;
        }
    }
}

/// Tells the demonstration that is kept what to do, and prints its answer.
///
/// # Errors
/// There is none, or it can't do that.
pub(super) fn ask(what: &Ask) -> Result<()> {
    let address = UnixAddress::from_abstract_name(SOCKET)?;
    let mut stream = UnixStream::connect_addr(&address)
        .context("no demonstration is kept here; start one with `baton demo --keep`, in another terminal")?;
    let mut request = serde_json::to_vec(what)?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text).context("the demonstration has ended")?;
    let answer: Answer = serde_json::from_str(&text).context("the demonstration has ended")?;
    if !answer.done {
        bail!("{}", answer.text);
    }
    io::stdout().write_all(answer.text.as_bytes())?;
    Ok(())
}

/// A line of its own.
fn line(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

struct Kept {
    _echoes: Vec<Echo>,
    /// What nodes without power don't get.
    dark: BTreeMap<String, Vec<Blackhole>>,
    cluster: Cluster,
}

impl Kept {
    fn start() -> Result<Kept> {
        let mut spec = ClusterSpec::new()
            .server(
                "projects",
                &["10.0.0.10/24", "fd00:10::10/64"],
                "priority = 200\npreferred_nodes = [\"n1\", \"n2\"]",
            )
            .server("homes", &["10.0.0.11/24"], "preferred_nodes = [\"n2\", \"n3\"]")
            .server("scans", &["10.0.0.12/24"], "preferred_nodes = [\"n3\", \"n1\"]");
        spec.speed_mbits = Some(1000);
        spec.timing = "hold_down = \"5s\"\n".to_owned();
        let cluster = Cluster::start("demo-kept", spec)?;
        std::thread::sleep(FIRST);
        for (server, node) in [("projects", "n1"), ("homes", "n2"), ("scans", "n3")] {
            cluster.done(node, &["move", server, "--to", node])?;
        }
        cluster.wait_held(ADDRESS, |node| node == "n1")?;
        let mut echoes = Vec::new();
        for node in NODES {
            echoes.push(Echo::start(cluster.lab.host(node)?, SocketAddr::new(ADDRESS, PORT), None)?);
        }
        Ok(Kept { _echoes: echoes, dark: BTreeMap::new(), cluster })
    }

    fn answer(&mut self, stream: &UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // An abstract socket has no permissions of its own.
        let peer = getsockopt(stream, PeerCredentials)?;
        let answer = if peer.uid() != nix::unistd::geteuid().as_raw() {
            Answer { done: false, text: "only the user who has started it may break it".to_owned() }
        } else {
            let mut text = String::new();
            BufReader::new(io::Read::take(stream, REQUEST_MAX)).read_line(&mut text)?;
            match serde_json::from_str(&text).map_err(anyhow::Error::from).and_then(|ask| self.act(&ask)) {
                Ok(text) => Answer { done: true, text },
                Err(error) => Answer { done: false, text: format!("{error:#}") },
            }
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        let mut stream = stream;
        Ok(stream.write_all(&text)?)
    }

    fn act(&mut self, ask: &Ask) -> Result<String> {
        match ask {
            Ask::Cut { node, port } => {
                self.cluster.lab.port(node, port)?;
                self.watched(&format!("the cable of {port} of {node} is pulled"), |cluster| {
                    Ok(cluster.lab.port(node, port)?.cut()?)
                })
            }
            Ask::Mend { node, port } => {
                self.cluster.lab.port(node, port)?;
                self.watched(&format!("the cable of {port} of {node} is plugged in again"), |cluster| {
                    Ok(cluster.lab.port(node, port)?.restore()?)
                })
            }
            Ask::PowerOff { node } => {
                ensure!(!self.dark.contains_key(node), "{node} has no power already");
                self.cluster.agent(node)?;
                let mut dark = Vec::new();
                let told = self.watched(&format!("{node} loses its power"), |cluster| {
                    let at = clock::now();
                    dark = cluster.power_off(node)?;
                    Ok(at)
                });
                self.dark.insert(node.clone(), dark);
                told
            }
            Ask::PowerOn { node } => {
                let dark = self.dark.remove(node).with_context(|| format!("{node} has power"))?;
                drop(dark);
                self.cluster.etcd.start_again(node)?;
                self.cluster.agent_mut(node)?.start_again()?;
                self.cluster.etcd.wait_healthy(PATIENCE)?;
                Ok(format!("{node} has power again, and its agent and etcd run\n"))
            }
            Ask::At { node, command } => {
                ensure!(!self.dark.contains_key(node), "{node} has no power");
                let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
                if matches!(arguments[..], [] | ["top" | "run" | "demo" | "clean", ..])
                    || arguments.iter().any(|a| matches!(*a, "--follow" | "--watch"))
                {
                    bail!(
                        "name a command that ends by itself, as `status`, `events`, `plan` or `drain {node}`"
                    );
                }
                Ok(self.cluster.done(node, &arguments)?)
            }
        }
    }

    /// Which port answers for the address.
    fn place(&self) -> Option<String> {
        let macs = self.cluster.client().ok()?.holders(ADDRESS, WINDOW).ok()?;
        let port = self.cluster.lab.ports().find(|port| macs.contains(&port.mac()))?;
        Some(format!("{} of {}", port.interface(), port.host().name()))
    }

    /// Does something, and tells what a client that sends a probe every 0.2 ms has missed.
    fn watched(
        &mut self,
        what: &str,
        strike: impl FnOnce(&mut Cluster) -> Result<Duration>,
    ) -> Result<String> {
        let Some(before) = self.place() else {
            strike(&mut self.cluster)?;
            return Ok(format!("{what}; nobody answered for {ADDRESS} before\n"));
        };
        let client = self.cluster.lab.host("client")?;
        let probe = Probe::start(client, SocketAddr::new(ADDRESS, PORT), PROBE_EVERY, None)?;
        probe.wait_for_replies(200, Duration::ZERO, PATIENCE)?;
        let at = strike(&mut self.cluster)?;
        std::thread::sleep(Duration::from_millis(300));
        if probe.wait_for_replies(200, clock::now(), PATIENCE).is_err() {
            return Ok(format!("{what}\n  client: no reply from {ADDRESS} any more\n"));
        }
        let gap = probe.result().longest_gap(at, clock::now()).map_or(Duration::ZERO, |g| g.length());
        drop(probe);
        let mut after = None;
        wait_until("an answer", PATIENCE, || {
            after = self.place();
            after.is_some()
        })?;
        let after = after.unwrap_or_default();
        let moved = match before == after {
            true => format!("{ADDRESS} stays on {after}"),
            false => format!("{ADDRESS} has moved from {before} to {after}"),
        };
        Ok(format!("{what}\n  client: {:.1} ms without a reply from {ADDRESS}\n  {moved}\n", millis(gap)))
    }
}
