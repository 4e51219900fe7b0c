//! A node and a client on one segment, each in a network namespace of its own. Namespaces have no names: they go with
//! the threads that live in them, and take their interfaces along.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;

use baton::io::kernel::remove_all;
use baton_core::IfIndex;
use nix::sched::{CloneFlags, unshare};

/// Runs a command in the namespace of this thread.
pub fn run(command: &str) -> String {
    let output = try_run(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn try_run(command: &str) -> Output {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"))
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub struct Host {
    tid: i32,
    jobs: mpsc::Sender<Job>,
}

impl Host {
    pub fn new() -> Self {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            enter_new_namespace();
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            for job in todo {
                job();
            }
        });
        Self { tid: is_ready.recv().expect("the tests need root"), jobs }
    }

    /// The thread; its namespace goes by it.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Starts work in the namespace; the result comes by the channel.
    pub fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (result, is_done) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(result.send(work())))).unwrap();
        is_done
    }

    pub fn run(&self, command: impl Into<String>) -> String {
        let command = command.into();
        self.start(move || run(&command)).recv().expect("the command failed")
    }
}

fn enter_new_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
    run("ip link set lo up");
}

/// A port of the node.
pub struct Port {
    pub name: &'static str,
    pub ifindex: IfIndex,
    pub mac: [u8; 6],
}

/// The node is this thread; the client's ends are on a bridge.
pub struct Segment {
    pub client: Host,
    pub ports: [Port; 2],
}

pub const VIP: &str = "10.0.0.10";
pub const VIP6: &str = "fd00::10";
pub const CLIENT: &str = "10.0.0.201";

impl Segment {
    /// `p0` has the segment's address and so its route; `p1` has none.
    pub fn new() -> Self {
        enter_new_namespace();
        let client = Host::new();
        client.run("ip link add br0 type bridge");
        for (setting, value) in [("all/rp_filter", "0"), ("default/rp_filter", "0"), ("all/arp_ignore", "1")]
        {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{setting}"), value).unwrap();
        }
        std::fs::write("/proc/sys/net/ipv4/conf/all/arp_announce", "2").unwrap();
        let ports = ["p0", "p1"].map(|name| {
            run(&format!("ip link add {name} type veth peer name c{name}"));
            run(&format!("ip link set c{name} netns {}", client.tid));
            run(&format!("ip link set {name} up"));
            client.run(format!("ip link set c{name} master br0 up"));
            port(name)
        });
        client.run("ip link set br0 up");
        client.run(format!("ip addr add {CLIENT}/24 dev br0"));
        client.run("ip addr add fd00::201/64 dev br0 nodad");
        run("ip addr add 10.0.0.1/24 dev p0");
        run("ip addr add fd00::1/64 dev p0 nodad");
        Self { client, ports }
    }

    /// Puts the virtual IPs on a port.
    pub fn bind(&self, port: &Port) {
        run(&format!("ip addr add {VIP}/32 dev {}", port.name));
        run(&format!("ip addr add {VIP6}/128 dev {} nodad", port.name));
    }

    /// Starts a client's pings, a thousand a second; the result is how many were answered.
    pub fn ping(&self, address: &str, count: u32) -> mpsc::Receiver<u32> {
        let command = format!("ping -q -n -i 0.001 -W 2 -c {count} {address}");
        self.client.start(move || {
            let output = String::from_utf8_lossy(&try_run(&command).stdout).into_owned();
            let answered = output.split(", ").find_map(|part| part.strip_suffix(" received"));
            answered.unwrap_or_else(|| panic!("{command}: {output}")).parse().unwrap()
        })
    }
}

/// An interface of the node.
pub fn port(name: &'static str) -> Port {
    let link = &link(name);
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(link["address"].as_str().unwrap().split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap();
    }
    Port { name, ifindex: IfIndex(link["ifindex"].as_u64().unwrap() as u32), mac }
}

/// What `ip` knows of an interface of the node.
pub fn link(name: &str) -> serde_json::Value {
    let links: serde_json::Value =
        serde_json::from_str(&run(&format!("ip -j -s -d link show {name}"))).unwrap();
    links[0].clone()
}

/// Removes the pins, also after a panic.
pub struct PinDir(PathBuf);

impl PinDir {
    pub fn new(purpose: &str) -> Self {
        Self(std::env::temp_dir().join(format!("baton-ports-{purpose}-{}", std::process::id())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
