//! Facts of this machine, read without changing anything and without waiting for long.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aya::maps::MapType;
use aya::programs::ProgramType;
use nix::sys::statfs::{BPF_FS_MAGIC, TMPFS_MAGIC, statfs};

use super::{
    Agent, Clock, Endpoint, Facts, Kernel, Key, Level, Link, Member, Page, Port, Privileges, Setting,
    StateFolder, Store, Wanted, Watchdog, certificate,
};
use crate::config::{Definitions, EtcdConfig, Fence, Loaded, Resources, StoreKind, TelemetryTls};
use crate::control::{ClientError, Request, StatusRequest, ask};
use crate::secrets;
use crate::slow::{missing_capabilities, probe_key, sysctl};
use crate::store::etcd::{Etcd, ask_member};
use crate::telemetry::read_tls;

/// Programs that manage addresses of their own.
const MANAGERS: [&str; 10] = [
    "keepalived",
    "ctdbd",
    "pacemakerd",
    "corosync",
    "ucarp",
    "vrrpd",
    "heartbeat",
    "wackamole",
    "kube-vip",
    "metallb-speaker",
];
/// How long the agent may take to answer.
const AGENT: Duration = Duration::from_secs(3);
/// How long connecting to a member of etcd and asking it may take: checking a password is slow on purpose.
const MEMBER: Duration = Duration::from_secs(3);
/// How long nft may take to list its rules.
const NFTABLES: Duration = Duration::from_secs(3);
/// How long reading the definitions may take.
const DEFINITIONS: Duration = Duration::from_secs(5);

/// Reads everything. `notes`: what `baton check` says; `fingerprint`: what the probe key's is to be.
///
/// # Errors
/// No runtime can be made.
pub fn gather(
    loaded: &Loaded,
    notes: Vec<(Level, String)>,
    fingerprint: Option<String>,
) -> io::Result<Facts> {
    let (core, own) = (&loaded.core, &loaded.agent);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (store, definitions) = match &own.store.kind {
        StoreKind::File => (Store::File, None),
        StoreKind::Etcd(etcd) => runtime.block_on(etcd_store(etcd, loaded)),
    };
    // What a node of a cluster is told by its store.
    let (resources, segments) = match &definitions {
        Some(definitions) => (&definitions.resources, &definitions.segments),
        None => (&own.resources, &core.segments),
    };
    let key = key(loaded, fingerprint);
    let fencing = definitions.as_ref().map(|d| secrets::of_fencing(&d.fencing)).unwrap_or_default();
    let named = secrets::named(loaded).into_iter().chain(fencing);
    // The key has a place of its own.
    let exposed = secrets::exposed(&named.filter(|s| s.path != key.path).collect::<Vec<_>>());
    let ports: Vec<Port> = core
        .ports
        .iter()
        .map(|port| Port {
            interface: port.interface.clone(),
            segment: port.segment.clone(),
            speed_configured: port.speed_mbits.is_some(),
            link: link(&port.interface),
        })
        .collect();
    let ipv6 = segments.iter().filter(|s| s.subnets.iter().any(|net| net.addr().is_ipv6()));
    let ipv6_segments: Vec<String> = ipv6.map(|s| s.name.clone()).collect();
    Ok(Facts {
        notes,
        kernel: kernel(),
        privileges: Privileges {
            root: nix::unistd::geteuid().is_root(),
            missing: missing_capabilities().unwrap_or_default(),
        },
        agent: agent(&own.control.socket),
        settings: settings(&ports, &ipv6_segments, resources),
        ports,
        cluster: own.cluster.is_some(),
        ipv6_segments,
        clock: clock(),
        store,
        key,
        exposed,
        managers: managers(),
        arp_tables: lines("/proc/net/arp_tables_names"),
        nftables: nftables(),
        bpffs: (own.paths.bpffs.clone(), is_on_bpffs(&own.paths.bpffs)),
        state: state(&own.paths.state),
        hooks: own
            .hooks
            .iter()
            .filter_map(|hook| Some((hook.name.clone(), crate::hooks::complaint(hook)?)))
            .collect(),
        page: own.telemetry.tls.as_ref().filter(|_| own.telemetry.listen.is_some()).map(page),
        watchdog: resources.iter().any(|r| r.fence == Fence::Watchdog).then(|| watchdog(&own.watchdog)),
    })
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn lines(path: &str) -> Vec<String> {
    text(path).map_or_else(Vec::new, |text| text.lines().map(str::to_owned).collect())
}

fn kernel() -> Kernel {
    let programs = [(ProgramType::Xdp, "XDP programs"), (ProgramType::SchedClassifier, "TC programs")];
    let maps = [(MapType::RingBuf, "ring buffers"), (MapType::PerCpuArray, "arrays per processor")];
    // The kernel is asked to load a program that does nothing, and to make a map; neither stays.
    let lacks = || -> Option<Vec<String>> {
        let mut lacks = Vec::new();
        for (kind, name) in programs {
            if !aya::sys::is_program_supported(kind).ok()? {
                lacks.push(name.to_owned());
            }
        }
        for (kind, name) in maps {
            if !aya::sys::is_map_supported(kind).ok()? {
                lacks.push(name.to_owned());
            }
        }
        Some(lacks)
    };
    let permitted = missing_capabilities().is_ok_and(|missing| missing.is_empty());
    Kernel {
        release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: text("/proc/sys/net/core/bpf_jit_enable").and_then(|t| t.parse().ok()),
        lacks: permitted.then(lacks).flatten(),
    }
}

fn agent(socket: &Path) -> Agent {
    let asked = || -> Result<Agent, String> {
        let mut answers = match ask(socket, &Request::Status(StatusRequest::default())) {
            Ok(answers) => answers,
            Err(ClientError::NotRunning { .. }) => return Ok(Agent::Absent),
            Err(e) => return Err(e.to_string()),
        };
        answers.limit(Some(AGENT)).map_err(|e| e.to_string())?;
        let line = answers.next().ok_or("the agent gave no answer")?.map_err(|e| e.to_string())?;
        let status =
            serde_json::from_str(&line).map_err(|e| format!("the agent is of another version: {e}"))?;
        Ok(Agent::Runs(Box::new(status)))
    };
    asked().unwrap_or_else(Agent::Mute)
}

fn link(interface: &str) -> Option<Link> {
    let folder = Path::new("/sys/class/net").join(interface);
    if !folder.exists() {
        return None;
    }
    let flags = text(folder.join("flags"))?;
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
    let name_of = |link: &str| Some(fs::read_link(folder.join(link)).ok()?.file_name()?.to_str()?.to_owned());
    let master = name_of("master").map(|master| {
        let kind = match Path::new("/sys/class/net").join(&master) {
            path if path.join("bridge").exists() => "bridge",
            path if path.join("bonding").exists() => "bond",
            _ => "team or the like",
        };
        (master, kind)
    });
    let number = |file: &str| text(folder.join(file)).and_then(|t| t.parse::<i64>().ok());
    Some(Link {
        driver: driver(interface).or_else(|| name_of("device/driver")),
        lower: sysctl::below(interface).into_iter().collect(),
        master: master.filter(|(_, kind)| !kind.is_empty()),
        up: flags & libc::IFF_UP as u32 != 0,
        carrier: number("carrier") == Some(1),
        speed: number("speed").and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0),
        mac: text(folder.join("address")).unwrap_or_default(),
        mtu: number("mtu").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
    })
}

/// As ethtool(8) tells: the only way to learn of interfaces without hardware.
fn driver(interface: &str) -> Option<String> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// struct ethtool_drvinfo of linux/ethtool.h.
    #[repr(C)]
    struct Info {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    let mut info = Info { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    let socket = std::net::UdpSocket::bind((IpAddr::from([127, 0, 0, 1]), 0))
        .or_else(|_| std::net::UdpSocket::bind("[::]:0"));
    let socket = socket.ok()?;
    // SAFETY: all fields are numbers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the name ends with a zero, and the kernel writes no more than a struct ethtool_drvinfo, of 196 bytes.
    let done =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), SIOCETHTOOL as _, &raw mut request) };
    let _ = info.rest;
    let name = info.driver.split(|b| *b == 0).next().unwrap_or(&[]);
    (done == 0 && !name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

fn settings(ports: &[Port], ipv6_segments: &[String], resources: &[Resources]) -> Vec<Setting> {
    let mut wanted: Vec<(String, Wanted)> = vec![("ipv4/conf/all/arp_ignore".to_owned(), Wanted::AtMost(1))];
    for port in ports.iter().filter(|p| p.link.is_some()) {
        wanted.extend(sysctl::needed(&port.interface).map(|(key, value)| (key, Wanted::Set(value))));
        if ipv6_segments.contains(&port.segment) {
            let why = "its segment has IPv6 addresses, which can't be served there";
            let key = format!("ipv6/conf/{}/disable_ipv6", port.interface);
            wanted.push((key, Wanted::Exactly("0", why)));
        }
    }
    if resources.iter().any(|r| !r.services.is_empty()) {
        wanted.extend(sysctl::needed_by_services().map(|(key, value)| (key, Wanted::Set(value))));
    }
    wanted.sort_by(|a, b| a.0.cmp(&b.0));
    wanted.dedup_by(|a, b| a.0 == b.0);
    let read = |(key, wanted): (String, Wanted)| {
        let found = text(sysctl::path(&key))?; // what the kernel lacks is passed over, as by the agent
        Some(Setting { key, found, wanted })
    };
    wanted.into_iter().filter_map(read).collect()
}

fn clock() -> Option<Clock> {
    // SAFETY: all fields are numbers, for which zero is a value; no modes: nothing is changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure that it is given.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    // Nominal: 10,000 microseconds a tick, of which there are 100 a second (adjtimex(2)); the rest in parts of 2^16.
    let tick = (timex.tick as f64 - 10_000.0) * 100.0;
    let rate_ppm = tick + timex.freq as f64 / 65_536.0;
    let source = text("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    let synchronised = state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    (state >= 0).then_some(Clock { synchronised, rate_ppm, source })
}

/// All rules, as nft(8) tells them.
fn nftables() -> Option<Result<serde_json::Value, String>> {
    let mut command = Command::new("nft");
    command.args(["-j", "list", "ruleset"]).stdin(Stdio::null());
    let mut child = match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Err(e) => return Some(Err(format!("nft: {e}"))),
    };
    let pipes = (child.stdout.take(), child.stderr.take());
    let (told, tells) = mpsc::channel();
    // It goes on reading if nft hangs, and ends with it.
    thread::spawn(move || {
        let (mut out, mut error) = (Vec::new(), String::new());
        let read = pipes.0.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut out));
        // What it complains of is short: it doesn't wait for somebody who reads that.
        let read = read.and_then(|_| pipes.1.map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut error)));
        let _ = told.send(read.map(|_| (out, error))); // nobody may wait any more
    });
    let said = tells.recv_timeout(NFTABLES);
    if said.is_err() {
        let _ = child.kill(); // it may have ended just now
    }
    let status = child.wait();
    Some(match (said, status) {
        (Ok(Ok((out, error))), Ok(status)) => match serde_json::from_slice(&out) {
            Ok(rules) if status.success() => Ok(rules),
            _ => Err(format!("nft -j list ruleset: {status}: {}", first_line(error.trim()))),
        },
        (Ok(Err(e)), _) | (_, Err(e)) => Err(format!("nft: {e}")),
        (Err(_), Ok(_)) => Err(format!("nft has said nothing for {} s", NFTABLES.as_secs())),
    })
}

async fn etcd_store(config: &EtcdConfig, loaded: &Loaded) -> (Store, Option<Definitions>) {
    let mut asking = tokio::task::JoinSet::new();
    for (index, url) in config.endpoints.iter().enumerate() {
        let (config, url) = (config.clone(), url.clone());
        asking.spawn(async move { (index, one_member(&config, url).await) });
    }
    let mut endpoints: Vec<(usize, Endpoint)> = Vec::new();
    while let Some(asked) = asking.join_next().await {
        endpoints.extend(asked);
    }
    endpoints.sort_by_key(|(index, _)| *index);
    let endpoints: Vec<Endpoint> = endpoints.into_iter().map(|(_, endpoint)| endpoint).collect();
    let definitions = match endpoints.iter().any(|e| e.answer.is_ok()) {
        true => definitions(config, loaded).await,
        false => Err("nobody answers".to_owned()),
    };
    let (definitions, parsed) = match definitions {
        Ok((what, parsed)) => (Ok(what), Some(parsed)),
        Err(why) => (Err(why), None),
    };
    let mut certificates = Vec::new();
    if let Some(tls) = &config.tls {
        let own = tls.identity.iter().map(|(certificate, _)| certificate);
        certificates.extend(own.chain([&tls.ca]).map(|file| end_of(file)));
    }
    (Store::Etcd { endpoints, definitions, certificates, now: SystemTime::now() }, parsed)
}

/// A file with certificates, and when the first of them ends.
fn end_of(file: &Path) -> (PathBuf, Result<SystemTime, String>) {
    let pem = fs::read_to_string(file).map_err(|e| e.to_string());
    (file.to_owned(), pem.and_then(|pem| certificate::expires(&pem)))
}

fn page(files: &TelemetryTls) -> Page {
    let unusable = read_tls(files).err().map(|e| e.to_string());
    let certificates =
        [&files.certificate].into_iter().chain(&files.client_ca).map(|file| end_of(file)).collect();
    Page { unusable, certificates, now: SystemTime::now() }
}

async fn one_member(config: &EtcdConfig, url: String) -> Endpoint {
    let local = is_local(&url);
    let answer = match tokio::time::timeout(MEMBER, ask_member(config, &url)).await {
        Ok(Ok(member)) => Ok(member),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("nothing came within {} s", MEMBER.as_secs())),
    };
    Endpoint { url, local, answer }
}

/// Is the host of this URL an address that this node has?
fn is_local(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or("");
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host).trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) => std::net::UdpSocket::bind((address, 0)).is_ok(),
        Err(_) => host == "localhost",
    }
}

async fn definitions(config: &EtcdConfig, loaded: &Loaded) -> Result<(String, Definitions), String> {
    let etcd = Etcd::new(config).map_err(|e| e.to_string())?;
    let read = tokio::time::timeout(DEFINITIONS, etcd.definitions()).await;
    let read =
        read.map_err(|_| "the definitions don't come; look at etcd's members")?.map_err(|e| e.to_string())?;
    let none = "the cluster has no definitions yet; write them with `baton apply FILE`";
    let (generation, text) = read.ok_or(none)?;
    let (definitions, _) = Definitions::parse(&text, "definitions").map_err(|e| {
        format!(
            "the cluster's definitions can't be read by this version: {}; upgrade this node",
            first_line(&e.to_string())
        )
    })?;
    definitions.node_config(&loaded.core).map_err(|e| e.to_string())?;
    Ok((format!("generation {generation} of the definitions fits this node"), definitions))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or("")
}

fn key(loaded: &Loaded, wanted: Option<String>) -> Key {
    let (path, read) = match &loaded.agent.cluster {
        Some(cluster) => {
            let key = probe_key::load_shared(&cluster.key_file).map(Some);
            (cluster.key_file.clone(), key)
        }
        None => {
            let path = loaded.agent.paths.state.join(probe_key::FILE);
            let key = match probe_key::load_shared(&path) {
                Err(probe_key::KeyError::Missing { .. }) => Ok(None),
                read => read.map(Some),
            };
            (path, key)
        }
    };
    let fingerprint = read.map(|key| key.map(probe_key::fingerprint)).map_err(|e| e.to_string());
    Key { path, fingerprint, wanted }
}

/// Those in this network namespace, by their names in /proc.
fn managers() -> Vec<(String, u32)> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = namespace("self");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((name, pid)) = name.to_str().and_then(|n| Some((n, n.parse::<u32>().ok()?))) else {
            continue;
        };
        let Some(comm) = text(format!("/proc/{name}/comm")) else { continue };
        // Where it may not be seen in which it is, it counts.
        let elsewhere = namespace(name).is_some_and(|theirs| Some(&theirs) != own.as_ref());
        if MANAGERS.contains(&comm.as_str()) && !elsewhere {
            found.push((comm, pid));
        }
    }
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0); // one of each is enough
    found
}

fn is_on_bpffs(path: &Path) -> bool {
    let is = |path: &Path| statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
    is(path) || path.parent().is_some_and(is)
}

fn state(path: &Path) -> StateFolder {
    let exists = path.is_dir();
    let there = path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    let root = nix::unistd::geteuid().is_root();
    let writable = nix::unistd::access(there, nix::unistd::AccessFlags::W_OK).is_ok();
    let (free, files, in_memory) = match nix::sys::statvfs::statvfs(there) {
        Ok(s) => {
            let files = (s.files() > 0).then(|| s.files_available());
            let in_memory = statfs(there).is_ok_and(|s| s.filesystem_type() == TMPFS_MAGIC);
            (Some(s.blocks_available() * s.fragment_size()), files, in_memory)
        }
        Err(_) => (None, None, false),
    };
    let writable = (root || writable).then_some(writable);
    StateFolder { path: path.to_owned(), exists, writable, free, files, in_memory }
}

fn watchdog(path: &Path) -> Watchdog {
    // /dev/watchdog is another name of the first one.
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = if name == "watchdog" { "watchdog0" } else { name };
    let identity = text(format!("/sys/class/watchdog/{name}/identity"));
    Watchdog { path: path.to_owned(), exists: path.exists(), identity }
}

impl Member {
    /// How long an answer took that began then.
    pub(crate) fn after(self, begun: Instant) -> Member {
        Member { took: begun.elapsed(), ..self }
    }
}
