//! keepalived.conf(5): what of it is understood.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::model::{Address, Model, Server, good_name};
use super::tree::{self, Statement};
use super::{Place, Remarks, shown};

/// Files that include files.
const INCLUDES: usize = 8;
/// All of them together.
const FILES: usize = 64;

pub(super) fn read(text: &str, remarks: &mut Remarks) -> Model {
    let file = PathBuf::from(&remarks.file);
    let mut statements = Vec::new();
    let mut left = FILES;
    gather(text, &file, None, INCLUDES, &mut left, &mut statements, remarks);
    let mut reader = Reader::default();
    for statement in &statements {
        reader.top(statement, remarks);
    }
    reader.finish(remarks)
}

/// The statements of a file and of those that it includes.
fn gather(
    text: &str,
    path: &Path,
    name: Option<&str>,
    depth: usize,
    left: &mut usize,
    all: &mut Vec<Statement>,
    remarks: &mut Remarks,
) {
    let (statements, mistakes) = tree::parse(text, name);
    for (line, what) in mistakes {
        remarks.add(&Place { file: name.map(str::to_owned), line }, format!("not understood: {what}"));
    }
    for statement in statements {
        if statement.keyword() != "include" {
            all.push(statement);
            continue;
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        let included = folder.join(statement.argument());
        for file in files(&included) {
            let shown = file.display().to_string();
            let why = if depth == 0 || *left == 0 {
                "too many files; put them into one".to_owned()
            } else {
                *left -= 1;
                // Something that is no file may never end.
                let read = match file.is_file() {
                    true => std::fs::read(&file),
                    false => Err(std::io::ErrorKind::NotFound.into()),
                };
                match read {
                    Ok(bytes) => {
                        let text = String::from_utf8_lossy(&bytes);
                        gather(&text, &file, Some(&shown), depth - 1, left, all, remarks);
                        continue;
                    }
                    Err(error) => format!("cannot be read: {error}"),
                }
            };
            remarks.add(&statement.place, format!("not expressed: include {shown}: {why}"));
        }
    }
}

/// The files that are meant, in the order of their names: several, where the last part is a pattern. One that isn't there is
/// among them, to be told of.
fn files(named: &Path) -> Vec<PathBuf> {
    let pattern = named.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    if !pattern.contains(['*', '?']) {
        return vec![named.to_owned()];
    }
    let entries = named.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let names =
        entries.into_iter().flatten().flatten().filter(|e| fits(&pattern, &e.file_name().to_string_lossy()));
    let mut found: Vec<PathBuf> = names.map(|e| e.path()).filter(|path| path.is_file()).collect();
    found.sort();
    if found.is_empty() { vec![named.to_owned()] } else { found }
}

/// Does a name fit a pattern, in which `*` stands for any letters and `?` for one? A leading dot must be written, as in a shell.
fn fits(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Which beginnings of the name fit the pattern so far: entry n is that of n letters.
    let mut fitting = vec![false; name.len() + 1];
    fitting[0] = true;
    for p in pattern {
        let mut next = vec![false; name.len() + 1];
        for n in 0..=name.len() {
            next[n] = match p {
                '*' => fitting[n] || (n > 0 && next[n - 1]),
                '?' => n > 0 && fitting[n - 1],
                c => n > 0 && fitting[n - 1] && name[n - 1] == c,
            };
        }
        fitting = next;
    }
    fitting[name.len()]
}

/// A program that is run again and again.
struct Script {
    command: String,
    interval: Option<String>,
}

#[derive(Default)]
struct Reader {
    model: Model,
    scripts: BTreeMap<String, Script>,
    groups: Vec<(String, Place, Vec<String>)>,
    /// Instances with the scripts that they track.
    instances: Vec<(Server, Vec<String>)>,
}

/// Keywords of an instance that Baton does without, and why.
const NOT_NEEDED: &[(&[&str], &str)] = &[
    (
        &[
            "virtual_router_id",
            "advert_int",
            "version",
            "mcast_src_ip",
            "mcast_dst_ip",
            "unicast_src_ip",
            "unicast_peer",
            "unicast_ttl",
            "check_unicast_src",
            "unicast_fault_no_peer",
        ],
        "nodes speak by probes and by the store, and are named in `members`",
    ),
    (&["authentication"], "all frames between nodes are authenticated by `key_file` in [cluster]"),
    (
        &[
            "garp_master_delay",
            "garp_master_repeat",
            "garp_master_refresh",
            "garp_master_refresh_repeat",
            "garp_lower_prio_delay",
            "garp_lower_prio_repeat",
            "garp_interval",
            "gna_interval",
            "garp_extra_if",
            "higher_prio_send_advert",
            "lower_prio_no_advert",
            "vmac_garp_intvl",
        ],
        "addresses are announced at once and again as `announce_repeat` in [timing] says",
    ),
    (
        &["use_vmac", "vmac_xmit_base", "use_ipvlan", "vmac_addr"],
        "addresses are on the ports themselves, and clients are told by announcements",
    ),
    (
        &[
            "dont_track_primary",
            "native_ipv6",
            "accept",
            "no_accept",
            "strict_mode",
            "skip_check_adv_addr",
            "debug",
            "promote_secondaries",
            "linkbeat_use_polling",
            "linkbeat_interfaces",
            "lvs_sync_daemon_interface",
            "lvs_sync_daemon_inteface",
            "smtp_alert",
            "log_unknown_vrids",
            "preempt_delay_start",
        ],
        "Baton has nothing like it, and does without",
    ),
];

impl Reader {
    fn top(&mut self, s: &Statement, remarks: &mut Remarks) {
        match s.keyword() {
            "global_defs" => self.globals(s, remarks),
            "vrrp_instance" => self.instance(s, remarks),
            "vrrp_sync_group" => self.group(s, remarks),
            "vrrp_script" => self.script(s),
            "virtual_server" | "virtual_server_group" | "real_server" | "SSL" => remarks.add(
                &s.place,
                format!(
                    "not expressed: {} {} balances connections over servers (LVS); a virtual server of Baton is on one node, and \
                     `[balance]` spreads them over the nodes",
                    s.keyword(),
                    shown(&s.words[1..].join(" "))
                ),
            ),
            "static_ipaddress" | "static_routes" | "static_rules" | "static_track_group" => remarks.add(
                &s.place,
                format!("not expressed: {}: addresses and routes that never move are the system's own", s.keyword()),
            ),
            "vrrp_track_process" | "vrrp_track_file" | "track_group" | "bfd_instance" => remarks.add(
                &s.place,
                format!(
                    "not expressed: {} {}: let Baton run what is tracked as a [[virtual_server.service]]; ports are watched anyway",
                    s.keyword(),
                    shown(s.argument())
                ),
            ),
            "" => {}
            other if other.starts_with(['$', '@', '~']) => remarks.add(
                &s.place,
                format!("not understood: \"{}\": definitions and conditions of keepalived are not resolved; write what they stand for", shown(other)),
            ),
            other => remarks.add(&s.place, format!("not understood: \"{}\"", shown(other))),
        }
    }

    fn globals(&mut self, s: &Statement, remarks: &mut Remarks) {
        for inner in &s.block {
            match inner.keyword() {
                "router_id" => {
                    let name = good_name(inner.argument());
                    if name != inner.argument() {
                        let what = format!(
                            "assumed: the node is called \"{name}\", for \"{}\" can't be",
                            shown(inner.argument())
                        );
                        remarks.add(&inner.place, what);
                    }
                    self.model.node = Some(name);
                }
                "notification_email"
                | "notification_email_from"
                | "smtp_server"
                | "smtp_connect_timeout"
                | "smtp_helo_name"
                | "smtp_alert"
                | "smtp_alert_vrrp"
                | "email_faults" => remarks.add(
                    &inner.place,
                    format!(
                        "not expressed: {}: Baton sends no mail; load its alert rules into Prometheus",
                        inner.keyword()
                    ),
                ),
                other => remarks.add(&inner.place, format!("not needed: {} of global_defs", shown(other))),
            }
        }
    }

    fn script(&mut self, s: &Statement) {
        let find =
            |keyword: &str| s.block.iter().find(|i| i.keyword() == keyword).map(|i| i.words[1..].join(" "));
        let script = Script { command: find("script").unwrap_or_default(), interval: find("interval") };
        self.scripts.insert(s.argument().to_owned(), script);
    }

    fn group(&mut self, s: &Statement, remarks: &mut Remarks) {
        let mut members = Vec::new();
        for inner in &s.block {
            match inner.keyword() {
                "group" => {
                    members.extend(inner.words[1..].iter().cloned());
                    members.extend(inner.block.iter().flat_map(|m| m.words.iter().cloned()));
                }
                other => notify_or(other, inner, "vrrp_sync_group", remarks),
            }
        }
        self.groups.push((s.argument().to_owned(), s.place.clone(), members));
    }

    fn instance(&mut self, s: &Statement, remarks: &mut Remarks) {
        let mut server = Server {
            name: s.argument().to_owned(),
            place: s.place.clone(),
            goes_back: true,
            ..Server::default()
        };
        let mut interface = None;
        let mut tracked = Vec::new();
        for inner in &s.block {
            match inner.keyword() {
                "interface" => interface = Some(inner.argument().to_owned()),
                "virtual_ipaddress" | "virtual_ipaddress_excluded" => {
                    let addresses = inner.block.iter().filter_map(|a| address(a, remarks));
                    server.addresses.extend(addresses);
                }
                "state" => server.is_preferred |= inner.argument() == "MASTER",
                "priority" => {
                    server.is_preferred |= inner.argument() == "255";
                    remarks.add(
                        &inner.place,
                        format!(
                            "not expressed: priority {}: name the nodes in `preferred_nodes`, that with the highest priority first; \
                             `priority` of Baton says which virtual server comes first",
                            shown(inner.argument())
                        ),
                    );
                }
                "nopreempt" => server.goes_back = false,
                "preempt" => server.goes_back = true,
                "preempt_delay" => remarks.add(
                    &inner.place,
                    "not expressed: preempt_delay: with failback = \"immediate\" a node must have been well for 10 s, and for longer \
                     after each failure",
                ),
                "track_interface" => {
                    for other in inner.block.iter().filter(|i| Some(i.keyword()) != interface.as_deref()) {
                        remarks.add(
                            &other.place,
                            format!(
                                "not needed: track_interface {}: ports are watched; if clients use it, add it as a [[port]]",
                                shown(other.keyword())
                            ),
                        );
                    }
                }
                "track_script" => {
                    tracked.extend(inner.block.iter().map(|i| i.keyword().to_owned()));
                    remarks.add(
                        &inner.place,
                        "not expressed: track_script: let Baton run what is checked, as the commented [[virtual_server.service]] shows",
                    );
                }
                "virtual_routes" | "virtual_rules" => remarks.add(
                    &inner.place,
                    format!("not expressed: {}: replies leave by the port of their address; name the router as `gateway` of the [[segment]]", inner.keyword()),
                ),
                "track_process" | "track_file" | "track_bfd" | "track_src_ip" => remarks.add(
                    &inner.place,
                    format!("not expressed: {}: let Baton run what is tracked as a [[virtual_server.service]]", inner.keyword()),
                ),
                other => notify_or(other, inner, "vrrp_instance", remarks),
            }
        }
        if let Some(interface) = interface {
            let bare = server.addresses.iter_mut().filter(|a| a.interfaces.is_empty());
            bare.for_each(|a| a.interfaces.push(interface.clone()));
        } else {
            remarks.add(
                &s.place,
                format!("not understood: vrrp_instance {} names no interface", shown(s.argument())),
            );
        }
        self.instances.push((server, tracked));
    }

    /// Instances of one group move together, so they are one virtual server.
    fn finish(mut self, remarks: &mut Remarks) -> Model {
        let mut grouped = BTreeSet::new();
        let mut servers: Vec<(Server, Vec<String>)> = Vec::new();
        for (name, place, members) in &self.groups {
            let mut group = Server { name: name.clone(), place: place.clone(), ..Server::default() };
            let mut tracked = Vec::new();
            for member in members {
                let found = self.instances.iter_mut().find(|(s, _)| s.name == *member);
                let (Some((server, scripts)), true) = (found, grouped.insert(member.clone())) else {
                    let what = format!(
                        "not understood: \"{}\" is no vrrp_instance, or is in another group already",
                        shown(member)
                    );
                    remarks.add(place, what);
                    continue;
                };
                group.addresses.append(&mut server.addresses);
                group.is_preferred |= server.is_preferred;
                group.goes_back |= server.goes_back;
                tracked.append(scripts);
            }
            if !group.addresses.is_empty() {
                servers.push((group, tracked));
            }
        }
        servers.extend(self.instances.into_iter().filter(|(s, _)| !grouped.contains(&s.name)));
        for (mut server, tracked) in servers {
            for name in tracked {
                server.notes.extend(service(&name, self.scripts.get(&name)));
            }
            self.model.servers.push(server);
        }
        if self.model.node.is_none() && self.model.servers.iter().any(|s| s.is_preferred) {
            let first = self.model.servers.iter().find(|s| s.is_preferred);
            let place = first.map_or(Place::default(), |s| s.place.clone());
            remarks.add(
                &place,
                "not expressed: state MASTER: there is no router_id that could be this node's name; add it to `preferred_nodes`",
            );
        }
        self.model
    }
}

/// What is the same in groups and instances: notifications; and what is not needed.
fn notify_or(keyword: &str, s: &Statement, of: &str, remarks: &mut Remarks) {
    if keyword.starts_with("notify") {
        remarks.add(
            &s.place,
            format!(
                "not expressed: {keyword} {}: let Baton start and stop what it starts, as a [[virtual_server.service]] of kind \"exec\"",
                shown(&s.words[1..].join(" "))
            ),
        );
        return;
    }
    match NOT_NEEDED.iter().find(|(keywords, _)| keywords.contains(&keyword)) {
        Some((_, why)) => remarks.add(&s.place, format!("not needed: {keyword}: {why}")),
        None => remarks.add(&s.place, format!("not understood: \"{}\" in {of}", shown(keyword))),
    }
}

/// `ADDRESS[/LENGTH] [dev INTERFACE] ...`
fn address(s: &Statement, remarks: &mut Remarks) -> Option<Address> {
    let word = s.keyword();
    let (net, is_exact) = match (word.parse::<IpNet>(), word.parse::<IpAddr>()) {
        (Ok(net), _) => (net, true),
        (Err(_), Ok(ip)) => (IpNet::from(ip), false),
        (Err(_), Err(_)) => {
            remarks.add(&s.place, format!("left out: \"{}\" is no address", shown(word)));
            return None;
        }
    };
    let dev = s.words.iter().position(|w| w == "dev").and_then(|at| s.words.get(at + 1));
    Some(Address { net, is_exact, interfaces: dev.cloned().into_iter().collect(), place: s.place.clone() })
}

/// What a service would look like whose check this script is; as comments.
fn service(name: &str, script: Option<&Script>) -> Vec<String> {
    let command = script.map_or("", |s| s.command.as_str());
    let monitor: Vec<String> = command.split_whitespace().map(|w| format!("{:?}", w)).collect();
    let mut lines = vec![
        format!("[[virtual_server.service]]    # its check was the track_script {name}"),
        "kind = \"exec\"".to_owned(),
        "start = [\"/usr/sbin/...\"]      # what it checks, in the foreground; or with `stop`".to_owned(),
        format!("monitor = [{}]", monitor.join(", ")),
    ];
    let interval = script.and_then(|s| s.interval.as_ref()).filter(|i| i.parse::<f64>().is_ok());
    lines.extend(interval.map(|i| format!("monitor_every = \"{i}s\"")));
    lines
}
