//! Clients of a virtual server that moves to another node learn at once that their connections are gone: also those that wait for
//! something, and would wait for ever.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::Context;
use baton_lab::etcd::Timers;
use baton_lab::tcp::{Server, Transfer};
use baton_lab::{Blackhole, Host};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::*;

/// A virtual server whose services are none of the test's: these run in the test itself, on all nodes.
const SERVICE: &str = "[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/bin/sleep\", \"100000\"]\n";
const ADDRESS: &str = "10.0.0.10";
const ADDRESS6: &str = "fd00:10::10";
const LABELS: [(&str, &str); 1] = [("virtual_server", "projects")];
/// What answers every byte that comes.
const ECHO: u16 = 7001;
/// What takes in everything.
const SINK: u16 = 7002;
/// What sends for ever.
const SOURCE: u16 = 7003;
/// The bulk transfers go no faster, bytes per second: the machine has other things to do.
const SPEED: u64 = 2 << 20;
/// How long nothing must come where nothing can be proven to come.
const A_WHILE: Duration = Duration::from_secs(3);

fn spec(service: &str) -> ClusterSpec {
    let more = format!("preferred_nodes = [\"n1\", \"n2\"]\n{service}");
    let mut spec = ClusterSpec::new().server("projects", &["10.0.0.10/24", "fd00:10::10/64"], &more);
    spec.timers = Timers { heartbeat: 50, election: 500, ..spec.timers }; // transfers keep the machine busy
    spec
}

/// Services on every node, on all its addresses.
struct Services {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _sources: Vec<Server>,
}

impl Services {
    fn start(cluster: &Cluster) -> Result<Services> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut services = Services { stop, threads: Vec::new(), _sources: Vec::new() };
        for node in ["n1", "n2", "n3"] {
            let host = cluster.lab.host(node)?;
            services._sources.push(Server::start(host, SocketAddr::new(ip("0.0.0.0"), SOURCE))?);
            for (port, answers) in [(ECHO, true), (SINK, false)] {
                let listener = host.open("listen", || TcpListener::bind(("::", port)))?;
                listener.set_nonblocking(true)?;
                let stop = services.stop.clone();
                services.threads.push(std::thread::spawn(move || accept(&listener, answers, &stop)));
            }
        }
        Ok(services)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn accept(listener: &TcpListener, answers: bool, stop: &AtomicBool) {
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut block = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                streams.push(stream);
            }
        }
        streams.retain_mut(|stream| match stream.read(&mut block) {
            Ok(0) => false,
            Ok(read) => !answers || stream.write_all(&block[..read]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A connection that has nothing to say for now.
struct Idle(TcpStream);

impl Idle {
    /// From this port, where one is wanted.
    fn start(host: &Host, server: &str, port: Option<u16>) -> Result<Idle> {
        let server = SocketAddr::new(ip(server), ECHO);
        let stream = host.open(&format!("connect to {server}"), || match port {
            Some(port) => from_port(server, port).map(TcpStream::from),
            None => TcpStream::connect(server),
        })?;
        let mut idle = Idle(stream);
        ensure!(idle.talk()?, "the first words are not answered");
        Ok(idle)
    }

    /// Is a byte answered?
    fn talk(&mut self) -> Result<bool> {
        self.0.set_read_timeout(Some(LONG))?;
        self.0.write_all(&[7])?;
        Ok(matches!(self.0.read(&mut [0]), Ok(1)))
    }

    /// Waits for something to come. `None`: nothing does.
    fn wait(&mut self, limit: Duration) -> Result<Option<ErrorKind>> {
        self.0.set_read_timeout(Some(limit))?;
        match self.0.read(&mut [0]) {
            Ok(_) => Ok(Some(ErrorKind::UnexpectedEof)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Ok(Some(error.kind())),
        }
    }
}

fn from_port(server: SocketAddr, port: u16) -> std::io::Result<OwnedFd> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let any = if server.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(server))?;
    Ok(socket)
}

/// A connection that sends for as long as it can.
struct Writer {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    ended: Arc<Mutex<Option<ErrorKind>>>,
    local: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(host: &Host, server: &str) -> Result<Writer> {
        let server = SocketAddr::new(ip(server), SINK);
        let mut stream = host.open(&format!("connect to {server}"), || TcpStream::connect(server))?;
        stream.set_write_timeout(Some(Duration::from_millis(20)))?;
        let local = stream.local_addr()?;
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let ended = Arc::new(Mutex::new(None));
        let (is_over, count, end) = (stop.clone(), bytes.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            let block = vec![3; 1 << 16];
            while !is_over.load(Ordering::Relaxed) {
                match stream.write(&block) {
                    Ok(written) => drop(count.fetch_add(written as u64, Ordering::Relaxed)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => {
                        if let Ok(mut end) = end.lock() {
                            *end = Some(error.kind());
                        }
                        return;
                    }
                }
                std::thread::sleep(Duration::from_secs_f64(block.len() as f64 / SPEED as f64));
            }
        });
        Ok(Writer { stop, bytes, ended, local, thread: Some(thread) })
    }

    fn ended(&self) -> Option<ErrorKind> {
        self.ended.lock().ok().and_then(|ended| *ended)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// One of each kind.
struct Clients {
    idle: Idle,
    idle6: Idle,
    writer: Writer,
    reader: Transfer,
}

impl Clients {
    fn start(cluster: &Cluster) -> Result<Clients> {
        let host = cluster.lab.host("client")?;
        let clients = Clients {
            idle: Idle::start(host, ADDRESS, Some(700))?,
            idle6: Idle::start(host, ADDRESS6, Some(701))?,
            writer: Writer::start(host, ADDRESS)?,
            reader: Transfer::start(host, SocketAddr::new(ip(ADDRESS), SOURCE), Some(SPEED))?,
        };
        clients.reader.wait_for(1 << 20, LONG)?;
        Ok(clients)
    }

    /// Waits until the other nodes know of them.
    fn wait_shared(&self, cluster: &Cluster) -> Result<()> {
        let mut ends = Vec::new();
        for local in [self.idle.0.local_addr()?, self.idle6.0.local_addr()?, self.writer.local] {
            let mut end = match local.ip() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            end.extend(local.port().to_be_bytes());
            ends.push(hex(&end));
        }
        // And the reader's, whose port the test doesn't know: it is older than what is known then.
        let known = || {
            let all = cluster.etcd.ctl(&["get", "--prefix", "--hex", "/baton/lab/connections/"]);
            let text = all.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
            ends.iter().chain([&hex(&SOURCE.to_be_bytes())]).all(|end| text.contains(end))
        };
        wait_until("connections to be known", LONG, known).with_context(|| {
            let all = cluster.etcd.ctl(&["get", "--prefix", "--hex", "/baton/lab/connections/"]);
            let metrics = cluster.agents.values().map(|agent| agent.metric("baton_connections", &LABELS));
            let metrics: Vec<_> = metrics.collect();
            format!("{ends:?} are not all in {all:?}; counted {metrics:?}{}", cluster.logs())
        })?;
        // One that says nothing any more is known with its last numbers.
        std::thread::sleep(A_WHILE);
        Ok(())
    }

    /// All of them are told that they are gone.
    fn wait_reset(&mut self, cluster: &Cluster) -> Result<()> {
        let told = |what: &str, kind: Option<ErrorKind>| {
            let reset = matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe));
            ensure!(reset, "{what}: {kind:?}{}", cluster.logs());
            Ok(())
        };
        told("idle", self.idle.wait(LONG)?)?;
        told("idle, IPv6", self.idle6.wait(LONG)?)?;
        wait_until("the writer to be reset", LONG, || self.writer.ended().is_some())?;
        told("writer", self.writer.ended())?;
        wait_until("the reader to be reset", LONG, || self.reader.result().ended.is_some())?;
        told("reader", self.reader.result().ended)
    }

    /// All of them go on.
    fn go_on(&mut self) -> Result<()> {
        ensure!(self.idle.talk()? && self.idle6.talk()?);
        let written = self.writer.bytes();
        wait_until("the writer to go on", LONG, || self.writer.bytes() > written + (1 << 20))?;
        self.reader.wait_for(1 << 20, LONG)?;
        let result = self.reader.result();
        ensure!(self.writer.ended().is_none() && result.ended.is_none() && result.intact, "{result:?}");
        Ok(())
    }
}

/// As etcdctl writes bytes.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("\\x{b:02x}")).collect()
}

fn power_off(cluster: &mut Cluster) -> Result<Vec<Blackhole>> {
    let dark = cluster.power_off("n1")?;
    for address in [ADDRESS, ADDRESS6] {
        cluster.wait_held(ip(address), |node| node != "n1")?;
    }
    Ok(dark)
}

fn start(name: &str, service: &str) -> Result<(Cluster, Services)> {
    let cluster = Cluster::start(name, spec(service))?;
    let services = Services::start(&cluster)?;
    cluster.done("n1", &["move", "projects", "--to", "n1"])?;
    for address in [ADDRESS, ADDRESS6] {
        cluster.wait_held(ip(address), |node| node == "n1")?;
    }
    Ok((cluster, services))
}

#[test]
fn clients_of_a_dead_node_learn_at_once_that_their_connections_are_gone() -> Result<()> {
    let (mut cluster, _services) = start("resets", SERVICE)?;
    let mut clients = Clients::start(&cluster)?;
    clients.wait_shared(&cluster)?;
    clients.go_on()?;

    // A port is lost: nobody is told anything.
    let held = cluster.agent("n1")?.status()?["virtual_servers"][0]["addresses"][0]["port"].clone();
    let port = cluster.lab.port("n1", held.as_str().context("a port")?)?;
    port.cut()?;
    cluster.agent("n1")?.wait_event("failover", LONG, |e| e["kind"] == "port")?;
    std::thread::sleep(A_WHILE);
    clients.go_on()?;
    port.restore()?;
    // The agent is killed and comes back: likewise.
    cluster.agent_mut("n1")?.kill()?;
    cluster.agent_mut("n1")?.start_again()?;
    std::thread::sleep(A_WHILE);
    clients.go_on()?;
    clients.wait_shared(&cluster)?;

    let judge = cluster.judge()?;
    let _dark = power_off(&mut cluster)?;
    clients.wait_reset(&cluster)?;

    // Who comes again stays, also by the same port.
    let host = cluster.lab.host("client")?;
    let mut again = Idle::start(host, ADDRESS, Some(700))?;
    let mut again6 = Idle::start(host, ADDRESS6, Some(701))?;
    ensure!(again.wait(A_WHILE)?.is_none() && again.talk()?);
    ensure!(again6.wait(A_WHILE)?.is_none() && again6.talk()?);
    let new_owner = cluster.wait_held(ip(ADDRESS), |node| node != "n1")?;
    let agent = cluster.agent(&new_owner)?;
    let told = |e: &serde_json::Value| e["server"] == "projects" && e["kind"] == "takeover";
    let event = agent.wait_event("connections_reset", LONG, told)?;
    println!("{} connections reset {} s after the cause", event["connections"], event["after"]);
    let reset = agent.metric("baton_connections_reset_total", &LABELS)?;
    ensure!(reset.is_some_and(|reset| reset >= 4.0), "{reset:?}");
    wait_until("the new connections to be counted", LONG, || {
        agent.metric("baton_connections", &LABELS).is_ok_and(|count| count == Some(2.0))
    })?;
    never_two(judge)
}

#[test]
fn a_move_resets_connections_too() -> Result<()> {
    let (cluster, _services) = start("resets-move", SERVICE)?;
    let mut clients = Clients::start(&cluster)?;
    clients.wait_shared(&cluster)?;
    for node in ["n2", "n1"] {
        cluster.done("n3", &["move", "projects", "--to", node])?;
        clients.wait_reset(&cluster)?;
        cluster.wait_held(ip(ADDRESS), |holder| holder == node)?;
        cluster.wait_held(ip(ADDRESS6), |holder| holder == node)?;
        clients = Clients::start(&cluster)?;
        clients.wait_shared(&cluster)?;
    }
    Ok(())
}

/// What is shared goes with the services.
#[test]
fn what_is_known_of_connections_goes_with_what_they_are_to() -> Result<()> {
    let (mut cluster, _services) = start("resets-gone", SERVICE)?;
    let clients = Clients::start(&cluster)?;
    clients.wait_shared(&cluster)?;
    cluster.spec().servers = spec("").servers;
    cluster.apply()?;
    let gone = || {
        let all = cluster.etcd.ctl(&["get", "--prefix", "--keys-only", "/baton/lab/connections/"]);
        all.is_ok_and(|o| o.status.success() && o.stdout.trim_ascii().is_empty())
    };
    wait_until("the store to be tidy", LONG, gone).with_context(|| cluster.logs())?;
    cluster.wait_held(ip(ADDRESS), |_| true)?;
    Ok(())
}

/// The same without services, where connections are not kept: what is waited for never comes.
#[test]
fn without_it_clients_wait() -> Result<()> {
    let (mut cluster, _services) = start("no-resets", "")?;
    let mut clients = Clients::start(&cluster)?;
    clients.go_on()?;
    let _dark = power_off(&mut cluster)?;
    std::thread::sleep(A_WHILE);
    ensure!(clients.idle.wait(Duration::from_millis(1))?.is_none(), "the idle client was told");
    ensure!(clients.reader.result().ended.is_none(), "the reader was told");
    Ok(())
}
