//! Findings from facts. Pure: every rule can be tested with a machine that is only described.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use baton_core::{Attachment, PortState};

use super::{
    Agent, Clock, Endpoint, Facts, Finding, Key, Level, Member, Page, Port, Setting, StateFolder, Store,
    Wanted, Watchdog, by_segment, firewall,
};
use crate::secrets::Exposed;

/// The oldest kernel that has everything, and the oldest with links for TC.
const OLDEST: (u32, u32) = (5, 18);
const WITH_TCX: (u32, u32) = (6, 6);
/// The oldest etcd.
const OLDEST_ETCD: (u32, u32) = (3, 4);
/// Drivers that run XDP programs themselves.
const NATIVE: [&str; 38] = [
    "atlantic",
    "bnxt_en",
    "bonding",
    "dpaa",
    "dpaa2-eth",
    "ena",
    "fec",
    "fsl_enetc",
    "fun",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ionic",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "rvu_nicpf",
    "sfc",
    "stmmac",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
    "xen-netfront",
    "macb",
];
/// Sources of time that need no slow device.
const FAST_CLOCKS: [&str; 7] =
    ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen", "timebase", "tod"];
/// By how much one clock may be off, parts in a million: two may be off in opposite directions.
const CLOCK_ERROR_PPM: f64 = 500.0;
/// An agent gives up a request after a second.
const SLOW_STORE: Duration = Duration::from_millis(250);
/// etcd takes 2 GiB unless it is told otherwise.
const LARGE_STORE: u64 = 1_800_000_000;
/// How long before its end a certificate is spoken of.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// What to do about a certificate for the store, and one for the page.
const NO_STORE: &str = "renew it: etcd is not reached without it, and then nothing can be taken over";
const RENEW_PAGE: &str =
    "renew it, then `baton reload`: who looks, scrapes or acts is refused, or refuses, when it has ended";
/// The journal takes up to 16 MiB, the record of inputs likewise, and the database a few.
const ENOUGH_SPACE: u64 = 128 << 20;
const LEAST_SPACE: u64 = 32 << 20;

/// Collects findings of one place.
struct At<'a> {
    place: String,
    all: &'a mut Vec<Finding>,
}

impl At<'_> {
    fn add(&mut self, level: Level, what: impl Into<String>, remedy: impl Into<String>) {
        let (place, what, remedy) = (self.place.clone(), what.into(), remedy.into());
        self.all.push(Finding { level, place, what, remedy });
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.add(Level::Ok, what, "");
    }

    fn note(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Note, what, remedy);
    }

    fn warn(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Warning, what, remedy);
    }

    fn problem(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(Level::Problem, what, remedy);
    }
}

/// What there is to say, place by place.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut at = |place: &str, look: &dyn Fn(&mut At<'_>)| {
        look(&mut At { place: place.to_owned(), all: &mut all });
    };
    at("configuration", &|at| configuration(facts, at));
    at("kernel", &|at| kernel(facts, at));
    at("privileges", &|at| privileges(facts, at));
    at("agent", &|at| agent(&facts.agent, at));
    for port in &facts.ports {
        at(&format!("port {}", port.interface), &|at| one_port(port, facts, at));
    }
    for (segment, ports) in by_segment(&facts.ports) {
        at(&format!("segment {segment}"), &|at| one_segment(&ports, facts, at));
    }
    at("settings", &|at| settings(&facts.settings, &facts.agent, at));
    at("clock", &|at| clock(facts.clock.as_ref(), facts.cluster, at));
    at("store", &|at| store(&facts.store, at));
    at("probe key", &|at| key(&facts.key, facts.cluster, at));
    at("secrets", &|at| secrets(&facts.exposed, at));
    at("other managers", &|at| managers(&facts.managers, at));
    at("firewall", &|at| firewall(facts, at));
    at("BPF file system", &|at| bpffs(&facts.bpffs, at));
    at("state folder", &|at| state(&facts.state, at));
    for (hook, what) in &facts.hooks {
        at(&format!("hook {hook}"), &|at| at.warn(what, "correct `run` of its [[hook]], or that file"));
    }
    if let Some(tls) = &facts.page {
        at("web page", &|at| page(tls, at));
    }
    if let Some(device) = &facts.watchdog {
        at("watchdog", &|at| watchdog(device, at));
    }
    all
}

fn configuration(facts: &Facts, at: &mut At<'_>) {
    for (level, text) in &facts.notes {
        // `what; what to do`, as `baton check` says it.
        let (what, remedy) = text.rsplit_once("; ").unwrap_or((text, ""));
        at.add(*level, what, remedy);
    }
    if facts.notes.is_empty() {
        at.ok("no mistakes, no warnings");
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(facts: &Facts, at: &mut At<'_>) {
    let kernel = &facts.kernel;
    let release = &kernel.release;
    match version(release) {
        None => {
            at.note(format!("release \"{release}\" can't be understood"), "Linux 5.18 or newer is needed")
        }
        Some(v) if v < OLDEST => {
            at.problem(format!("Linux {release} is too old"), "install 5.18 or newer, better 6.6 or newer");
        }
        Some(v) if v < WITH_TCX => at.note(
            format!("Linux {release} has no links for TC: clsact is used"),
            "6.6 or newer lets programs of others and Baton's be put in order",
        ),
        Some(_) => at.ok(format!("Linux {release}, with links for TC")),
    }
    match kernel.btf {
        true => at.ok("its types are described (BTF)"),
        false => at.problem(
            "/sys/kernel/btf/vmlinux is not there: the kernel programs can't be loaded",
            "run a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are",
        ),
    }
    match kernel.jit {
        Some(0) => at.warn(
            "BPF programs are interpreted: every packet costs several times more",
            "set net.core.bpf_jit_enable = 1 in /etc/sysctl.d",
        ),
        Some(_) => at.ok("BPF programs are compiled"),
        None => at.note("whether BPF programs are compiled can't be seen from here", ""),
    }
    match &kernel.lacks {
        None => at.note("whether it takes XDP and TC programs could not be tried", "run this as root"),
        Some(lacks) if lacks.is_empty() => at.ok("takes XDP and TC programs, and has ring buffers"),
        Some(lacks) => at.problem(
            format!("does not have {}", lacks.join(", ")),
            "run a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_XDP_SOCKETS as distributions' are, and \
             without a lockdown that forbids BPF",
        ),
    }
}

fn privileges(facts: &Facts, at: &mut At<'_>) {
    let privileges = &facts.privileges;
    let missing = privileges.missing.join(", ");
    match (privileges.root, privileges.missing.is_empty()) {
        (_, true) => at.ok("an agent started from here may do all it needs"),
        (true, false) => at.problem(
            format!("root has no {missing} here: an agent can't run"),
            "run it outside of the container, or give the container these capabilities",
        ),
        (false, false) => {
            at.note(format!("you have no {missing}: some things can't be seen"), "run this as root")
        }
    }
}

fn agent(agent: &Agent, at: &mut At<'_>) {
    let status = match agent {
        Agent::Runs(status) => status,
        Agent::Absent => {
            return at.note("doesn't run: nothing was asked of it", "start it with `systemctl start baton`");
        }
        Agent::Mute(why) => return at.problem(why, "see `journalctl -u baton`"),
    };
    let (own, running) = (env!("CARGO_PKG_VERSION"), &status.version);
    match own == running {
        true => at.ok(format!("runs, version {running}")),
        false => at.warn(
            format!("runs as version {running}, and this program is {own}"),
            "restart it with `systemctl restart baton`: what it serves stays served",
        ),
    }
    if status.stale() {
        at.problem(
            format!("its decisions stand still, for {} s now", status.age_ms / 1000),
            "see `journalctl -u baton`; restart it",
        );
    }
    if !status.snapshot.quorum {
        at.problem(
            "no majority of the nodes hears this one: it serves nothing",
            "`baton status` shows the nodes; look at the paths to them, and at their agents",
        );
    }
    if !status.snapshot.store {
        at.problem(
            "the store does not answer it: what it serves stays served, nothing new is taken",
            "look at etcd (below)",
        );
    }
    for conflict in &status.snapshot.conflicts {
        let who = conflict.mac.as_ref().map_or_else(String::new, |mac| format!(" by {mac}"));
        at.problem(
            format!("{} is also held on {}{who}", conflict.address, conflict.interface),
            "take it away there: an address may be configured by Baton only",
        );
    }
}

/// What the running agent says of a port.
fn seen_by_agent<'a>(agent: &'a Agent, interface: &str) -> Option<&'a baton_core::PortView> {
    match agent {
        Agent::Runs(status) => status.snapshot.ports.iter().find(|p| p.interface == interface),
        Agent::Absent | Agent::Mute(_) => None,
    }
}

fn one_port(port: &Port, facts: &Facts, at: &mut At<'_>) {
    let name = &port.interface;
    let Some(link) = &port.link else {
        return at.problem(
            "there is no such interface",
            "correct `interface` in [[port]]; `ip link` lists those that there are",
        );
    };
    if let Some((master, kind)) = &link.master {
        at.problem(
            format!("is a member of the {kind} {master}, which takes all that it receives"),
            format!("name {master} as port instead"),
        );
    }
    if !link.up {
        at.problem(
            "is switched off",
            format!("`ip link set {name} up`, and see to it that it is up after a restart"),
        );
    } else if !link.carrier {
        at.problem("has no carrier", "look at the cable and at the switch");
    } else {
        at.ok(format!("is up and has carrier, {}, MTU {}", link.mac, link.mtu));
    }
    let seen = seen_by_agent(&facts.agent, name);
    let driver = link.driver.as_deref().unwrap_or("unknown");
    match seen.and_then(|s| s.attachment) {
        Some(Attachment::Native) => at.ok(format!("its driver, {driver}, runs the kernel programs")),
        Some(Attachment::Generic) => at.note(
            format!("its driver, {driver}, does not run XDP: packets cost more, and probes are answered later"),
            "nothing must be done; a newer driver may",
        ),
        Some(Attachment::TcOnly) => at.warn(
            format!("no XDP at all with its driver, {driver}: the agent itself answers probes, and a busy node is late"),
            "`baton events` says why; see whether another XDP program sits on it (`ip link`)",
        ),
        None if NATIVE.contains(&driver) => at.ok(format!("its driver, {driver}, runs XDP programs")),
        None => at.note(
            format!("its driver, {driver}, is not known to run XDP: then the generic path does, and packets cost more"),
            "",
        ),
    }
    if !port.speed_configured && link.carrier && link.speed.is_none() {
        at.note("does not tell how fast it is: its load can't be judged", "add speed_mbits to its [[port]]");
    }
    if let Some(seen) = seen.filter(|s| s.state != PortState::Good && link.carrier) {
        let why = seen.reason.map_or_else(String::new, |r| format!(" ({})", r.word().replace('_', " ")));
        let (state, level) = match seen.state {
            PortState::Good | PortState::Held => ("held back after it returned", Level::Note),
            PortState::Down => ("down by the agent's word", Level::Problem),
            PortState::Silent => ("silent", Level::Problem),
            PortState::Degraded => ("degraded", Level::Warning),
        };
        at.add(
            level,
            format!("is {state}{why}"),
            "`baton events` says from what; `baton status` shows its paths",
        );
    }
}

fn one_segment(ports: &[&Port], facts: &Facts, at: &mut At<'_>) {
    let usable = ports.iter().filter(|p| p.link.as_ref().is_some_and(|l| l.up && l.carrier)).count();
    match (ports.len(), usable) {
        (1, _) if facts.cluster => at.note(
            "has one port here: when that fails, its virtual servers must leave this node",
            "add a second port",
        ),
        (1, _) => at.warn("has one port: when that fails, nothing can be served", "add a second port"),
        (_, 0) => at.problem("has no port that works", "look at its ports"),
        (_, 1) => at.warn("has one port left that works", "look at the others"),
        (_, usable) => at.ok(format!("has {usable} ports that work")),
    }
    let links = || ports.iter().filter_map(|p| Some((p.interface.as_str(), p.link.as_ref()?)));
    let mut macs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut lowers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, link) in links() {
        macs.entry(&link.mac).or_default().push(name);
        link.lower.iter().for_each(|lower| lowers.entry(lower).or_default().push(name));
    }
    for (mac, same) in macs.iter().filter(|(_, names)| names.len() > 1) {
        at.problem(
            format!(
                "{} have the same hardware address {mac}: the switch can't tell them apart",
                same.join(", ")
            ),
            "give each its own, or make one port of them (a bond)",
        );
    }
    for (lower, same) in lowers.iter().filter(|(_, names)| names.len() > 1) {
        at.warn(
            format!("{} all lie on {lower} and fail together", same.join(", ")),
            "have ports of a segment on different hardware",
        );
    }
    let mtus: BTreeMap<u32, Vec<&str>> = links().fold(BTreeMap::new(), |mut all, (name, link)| {
        all.entry(link.mtu).or_insert_with(Vec::new).push(name);
        all
    });
    if mtus.len() > 1 {
        let each: Vec<String> =
            mtus.iter().map(|(mtu, names)| format!("{mtu} on {}", names.join(", "))).collect();
        at.warn(
            format!("its ports have different MTUs: {}", each.join("; ")),
            "give all ports of a segment the same: connections that move would hang with large packets",
        );
    }
}

fn settings(settings: &[Setting], agent: &Agent, at: &mut At<'_>) {
    let runs = matches!(agent, Agent::Runs(_));
    let mut to_be_set = Vec::new();
    for Setting { key, found, wanted } in settings {
        match wanted {
            Wanted::Set(value) if found == value => {}
            Wanted::Set(value) if runs => at.warn(
                format!("{key} is {found}, and Baton needs {value}: somebody has changed it since the agent started"),
                "see who sets it (/etc/sysctl.d, NetworkManager, systemd-networkd); `systemctl restart baton` sets it again",
            ),
            Wanted::Set(value) => to_be_set.push(format!("{key} = {value}")),
            Wanted::AtMost(most) if found.parse::<u32>().is_ok_and(|n| n > *most) => at.problem(
                format!("{key} is {found}: it counts more than what Baton sets on its ports, and they won't answer for virtual IPs"),
                format!("set it to 0 (at most {most}) in /etc/sysctl.d"),
            ),
            Wanted::Exactly(value, why) if found != value => {
                at.problem(format!("{key} is {found}: {why}"), format!("set it to {value} in /etc/sysctl.d"));
            }
            Wanted::AtMost(_) | Wanted::Exactly(..) => {}
        }
    }
    if !to_be_set.is_empty() {
        at.note(
            format!("when the agent starts it sets {}", to_be_set.join(", ")),
            "nothing must be done: what was before is kept, and put back by `baton clean`",
        );
    } else if at.all.last().is_none_or(|last| last.place != at.place) {
        at.ok("as Baton needs them");
    }
}

fn clock(clock: Option<&Clock>, cluster: bool, at: &mut At<'_>) {
    let Some(clock) = clock else { return at.note("the kernel does not tell how its clocks are set", "") };
    if clock.rate_ppm.abs() > CLOCK_ERROR_PPM {
        let (rate, what) = (clock.rate_ppm, "leases need clocks of nearly the same rate");
        let level = if cluster { Level::Problem } else { Level::Warning };
        at.add(
            level,
            format!("is made to run {rate:+.0} parts in a million beside its hardware: {what}"),
            "let one NTP daemon alone set it (adjtimex(8) shows `tick` and `frequency`); slewing by more than 500 is too fast",
        );
    } else {
        at.ok("runs at its rate: leases, which depend on no more than that, are safe");
    }
    if !clock.synchronised {
        at.note(
            "is not synchronised: nothing that Baton decides depends on the time of day, but logs of several nodes can't be compared",
            "run chrony or systemd-timesyncd",
        );
    } else {
        at.ok("is synchronised; other nodes' clocks matter for comparing logs only");
    }
    if !FAST_CLOCKS.iter().any(|fast| clock.source.starts_with(fast)) {
        at.warn(
            format!("time comes from {}, which is slow to read, and every packet reads it", clock.source),
            "see in the kernel's log why the processor's own counter is not used",
        );
    }
}

fn store(store: &Store, at: &mut At<'_>) {
    let (endpoints, definitions, certificates, now) = match store {
        Store::File => return at.ok("is this node's own: nothing else must run"),
        Store::Etcd { endpoints, definitions, certificates, now } => {
            (endpoints, definitions, certificates, now)
        }
    };
    endpoints.iter().for_each(|endpoint| one_endpoint(endpoint, at));
    let answers: Vec<&Member> = endpoints.iter().filter_map(|e| e.answer.as_ref().ok()).collect();
    if answers.windows(2).any(|pair| pair[0].cluster != pair[1].cluster) {
        at.problem(
            "the endpoints are members of different etcd clusters",
            "name members of one cluster only in [store] endpoints",
        );
    }
    match endpoints.first().is_some_and(|e| e.local) {
        _ if answers.is_empty() => {}
        true => at.ok("a member on this node is asked first"),
        false => at.note(
            "the first endpoint is not on this node: every request goes over the network",
            "where this node has a member of etcd, name it first in [store] endpoints",
        ),
    }
    match definitions {
        Ok(what) => at.ok(what),
        Err(_) if answers.is_empty() => {}
        Err(why) => {
            let (what, remedy) = why.rsplit_once("; ").unwrap_or((why, "run `baton apply FILE`"));
            at.problem(what, remedy);
        }
    }
    for (file, end) in certificates {
        certificate(file, end, *now, NO_STORE, at);
    }
}

fn page(page: &Page, at: &mut At<'_>) {
    if let Some(why) = &page.unusable {
        let (what, remedy) = why.rsplit_once("; ").unwrap_or((why, "have a certificate made for a new key"));
        at.problem(what, remedy);
    }
    // What can't be read is told of above.
    for (file, end) in page.certificates.iter().filter(|(_, end)| end.is_ok()) {
        certificate(file, end, page.now, RENEW_PAGE, at);
    }
}

fn one_endpoint(endpoint: &Endpoint, at: &mut At<'_>) {
    let url = &endpoint.url;
    let member = match &endpoint.answer {
        Ok(member) => member,
        Err(why) => {
            return at.problem(
                format!("{url} does not answer: {why}"),
                "see whether etcd runs there, and whether this node reaches it; `etcdctl endpoint health` asks the same",
            );
        }
    };
    if version(&member.version).is_some_and(|v| v < OLDEST_ETCD) {
        at.problem(format!("{url} is etcd {}", member.version), "3.4 or newer is needed");
    }
    if !member.has_leader {
        at.problem(
            format!("{url} has no leader"),
            "see to it that a majority of etcd's members runs and is connected",
        );
    }
    for error in &member.errors {
        at.problem(
            format!("{url} complains: {error}"),
            "`etcdctl alarm list`; for NOSPACE: compact, defragment, disarm",
        );
    }
    if member.took > SLOW_STORE {
        at.warn(
            format!(
                "{url} took {} ms to answer, and an agent gives up after a second",
                member.took.as_millis()
            ),
            "see whether its disk or its processors are busy",
        );
    }
    if member.size > LARGE_STORE {
        at.warn(
            format!("{url} holds {} MB: etcd takes 2 GB unless told otherwise", member.size / 1_000_000),
            "compact and defragment it, or raise --quota-backend-bytes",
        );
    }
    if member.has_leader && member.errors.is_empty() {
        at.ok(format!("{url} answers: etcd {}", member.version));
    }
}

fn certificate(
    file: &Path,
    end: &Result<std::time::SystemTime, String>,
    now: std::time::SystemTime,
    renew: &str,
    at: &mut At<'_>,
) {
    let file = file.display();
    let end = match end {
        Ok(end) => end,
        Err(why) => return at.problem(format!("{file}: {why}"), "put the certificate there, as PEM"),
    };
    match end.duration_since(now) {
        Err(_) => at.problem(format!("{file} has expired"), renew),
        Ok(left) if left < SOON => {
            at.warn(format!("{file} expires in {} days", left.as_secs() / 86_400), renew);
        }
        Ok(left) => at.ok(format!("{file} is valid for {} more days", left.as_secs() / 86_400)),
    }
}

fn key(key: &Key, cluster: bool, at: &mut At<'_>) {
    match (&key.fingerprint, &key.wanted) {
        (Err(why), _) => at.problem(why, "see the section on several nodes in the documentation"),
        (Ok(None), _) => {
            at.note(format!("{} is not there yet", key.path.display()), "the agent makes it when it starts")
        }
        (Ok(Some(own)), Some(wanted)) if own != wanted => at.problem(
            format!(
                "its fingerprint is {own}, and the other node's is {wanted}: the nodes don't hear one another"
            ),
            format!("copy {} from that node, mode 600", key.path.display()),
        ),
        (Ok(Some(own)), Some(_)) => at.ok(format!("is the same as the other node's ({own})")),
        (Ok(Some(own)), None) if cluster => at.note(
            format!("its fingerprint is {own}; it must be the same on every node"),
            format!("compare: `baton doctor --key-fingerprint {own}` on the others"),
        ),
        (Ok(Some(own)), None) => at.ok(format!("can be used (fingerprint {own})")),
    }
}

fn secrets(exposed: &[Exposed], at: &mut At<'_>) {
    for Exposed { path, what, mode } in exposed {
        let file = path.display();
        at.problem(
            format!("{file}: others than its owner may read or write {what} (mode {mode:03o})"),
            format!("run `chmod 600 {file}`, and make a new one if somebody may have read it"),
        );
    }
    if exposed.is_empty() {
        at.ok("files with passwords, private keys and tokens are for their owner alone");
    }
}

fn managers(managers: &[(String, u32)], at: &mut At<'_>) {
    for (name, process) in managers {
        at.warn(
            format!("{name} runs here (process {process}), which may manage addresses too"),
            "stop it, or see that none of Baton's addresses and ports is in its configuration",
        );
    }
    if managers.is_empty() {
        at.ok("none runs here");
    }
}

fn firewall(facts: &Facts, at: &mut At<'_>) {
    let tables = &facts.arp_tables;
    match tables.is_empty() {
        true => at.ok("no table of arptables is loaded"),
        false => at.note(
            format!(
                "ARP is filtered (table {}): rules there may drop announcements and answers",
                tables.join(", ")
            ),
            "see `arptables -L`: ARP for the virtual IPs must pass, in and out",
        ),
    }
    match &facts.nftables {
        None => {}
        Some(Err(why)) => at.note(format!("its rules can't be read: {why}"), "run `baton doctor` as root"),
        Some(Ok(rules)) => {
            let blocked = firewall::blocked(rules, &facts.ports, !facts.ipv6_segments.is_empty());
            if blocked.is_empty() {
                at.ok("no chain of nftables drops all ARP, neighbour discovery or probe frames");
            }
            for firewall::Blocked { what, remedy } in blocked {
                at.problem(what, remedy);
            }
        }
    }
}

fn bpffs((path, mounted): &(std::path::PathBuf, bool), at: &mut At<'_>) {
    let path = path.display();
    match mounted {
        true => at.ok(format!("is mounted at {path} or above it")),
        false => at.note(format!("none is mounted at {path}"), "nothing must be done: the agent mounts one"),
    }
}

fn state(state: &StateFolder, at: &mut At<'_>) {
    let path = state.path.display();
    if state.in_memory {
        at.warn(
            format!("{path} is in memory: after a restart of the machine the node has forgotten who it was"),
            "choose another folder as `state` in [paths]",
        );
    }
    match (state.writable, state.exists) {
        (Some(false), _) => at.problem(
            format!("nothing can be written to {path}"),
            "see whether its file system is mounted read-only; or choose another folder as `state` in [paths]",
        ),
        (Some(true), true) => at.ok(format!("{path} can be written to")),
        (Some(true), false) => at.ok(format!("{path} is not there yet; the agent makes it")),
        (None, _) => at.note(format!("whether {path} can be written to was not seen"), "run this as root"),
    }
    if let Some(free) = state.free {
        let left = format!("{} MB are left at {path}", free / 1_000_000);
        let why = "events, the record of inputs and the store are kept there";
        match free {
            0..LEAST_SPACE => at.problem(format!("{left}: {why}"), "make space"),
            LEAST_SPACE..ENOUGH_SPACE => at.warn(format!("{left}: {why}"), "make space"),
            _ => at.ok(left),
        }
    }
    if state.files.is_some_and(|files| files < 100) {
        at.problem(
            format!("no more files can be made at {path}"),
            "remove files there: its inodes are used up",
        );
    }
}

fn watchdog(device: &Watchdog, at: &mut At<'_>) {
    let path = device.path.display();
    let identity = device.identity.as_deref().unwrap_or("");
    match device.exists {
        false => at.problem(
            format!("{path} is not there, and fence = \"watchdog\" rests on it: what this node had is never taken over"),
            "load the driver of this machine's watchdog, or name its device as `watchdog` in [node]",
        ),
        true if identity.to_lowercase().contains("software") => at.warn(
            format!("{path} is the kernel's own ({identity}): a kernel that hangs is not reset"),
            "use a watchdog in hardware",
        ),
        true => at.ok(format!("{path} is there {identity}").trim_end().to_owned()),
    }
}
