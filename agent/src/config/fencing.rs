//! `[[fence]]` and `[[storage_unit]]`: how a node is kept from writing to what another one mounts, and which devices must be
//! reached.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::names::{check_name, check_names, meant, name_is_good, unique};
use super::problem::Findings;
use super::reader::{At, Section};
use super::resources::RawResources;
use super::sections::{Raw, RawServer};

/// Where fence agents are, unless their path is given.
const AGENTS: &str = "/usr/sbin";
/// How long a fence agent may take.
const FENCE_LIMIT: Duration = Duration::from_secs(30);
/// After how long without being fed a watchdog resets its node.
pub(super) const WATCHDOG: Duration = Duration::from_secs(10);
/// Of that.
pub(super) const WATCHDOG_LIMITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Between two reads of a storage unit, so that a unit that hangs is found after its limit and this.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long a read of a storage unit may take.
const LIMIT: Duration = Duration::from_secs(1);
/// What ends the name of a parameter whose value is in a file.
const IN_FILE: &str = "_file";
/// The one that fence agents themselves call so: a path.
const OWN_FILE: &str = "identity_file";

/// How a node that had a virtual server and did not release it is kept from writing to its file systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fence {
    /// It isn't.
    #[default]
    None,
    /// By fence agents, which switch it off.
    Agent,
    /// By its own watchdog, which resets it.
    Watchdog,
    /// By the device, which takes nothing from it any more (SCSI-3 persistent reservations).
    ScsiPr,
}

impl Fence {
    fn of(word: &str) -> Fence {
        match word {
            "agent" => Fence::Agent,
            "watchdog" => Fence::Watchdog,
            "scsi-pr" => Fence::ScsiPr,
            _ => Fence::None,
        }
    }
}

/// What is known of fencing in the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fencing {
    /// Fence agents, in the order of the file.
    pub agents: Vec<FenceAgent>,
    /// After how long without being fed a watchdog resets its node; whole seconds.
    pub watchdog: Duration,
}

impl Default for Fencing {
    fn default() -> Self {
        Fencing { agents: Vec::new(), watchdog: WATCHDOG }
    }
}

/// A way to switch a node off.
#[derive(Clone, PartialEq, Eq)]
pub struct FenceAgent {
    /// The node.
    pub node: String,
    /// The program; absolute.
    pub program: PathBuf,
    /// What it is told, by name. Those in files are read when they are needed.
    pub parameters: BTreeMap<String, Parameter>,
    /// What it is to do.
    pub action: FenceAction,
    /// How long it may take.
    pub limit: Duration,
    /// All of one level are needed; those of the next one are tried when one of them fails.
    pub level: u32,
}

/// What a fence agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceAction {
    /// Switch the node off.
    Off,
    /// Switch it off, then on.
    Reboot,
}

impl FenceAction {
    /// As fence agents call it.
    pub fn word(self) -> &'static str {
        match self {
            FenceAction::Off => "off",
            FenceAction::Reboot => "reboot",
        }
    }
}

/// A parameter of a fence agent.
#[derive(Clone, PartialEq, Eq)]
pub enum Parameter {
    /// As it is told.
    Text(String),
    /// A file whose content is told.
    File(PathBuf),
}

/// Values may be secrets.
impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Parameter::Text(_) => f.write_str("…"),
            Parameter::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for FenceAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FenceAgent { node, program, parameters, action, limit, level } = self;
        write!(f, "{node}: {} {parameters:?} {action:?} {limit:?} {level}", program.display())
    }
}

/// A device, or a set of them, that file systems are on and that some nodes reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageUnit {
    /// Its name.
    pub name: String,
    /// What is read; absolute.
    pub device: PathBuf,
    /// Time between two reads.
    pub interval: Duration,
    /// A read that takes longer hangs.
    pub limit: Duration,
}

/// `[[fence]]` as written.
pub(super) struct RawFence {
    at: usize,
    node: Option<At<String>>,
    /// `None`: something in it is wrong, and reported.
    agent: Option<FenceAgent>,
}

/// `[[storage_unit]]` as written.
pub(super) struct RawUnit {
    at: usize,
    name: Option<At<String>>,
    device: Option<PathBuf>,
    interval: Duration,
    limit: Duration,
}

const FENCE: &[&str] = &["node", "agent", "parameters", "action", "limit", "level"];
const UNIT: &[&str] = &["name", "device", "interval", "limit"];

/// Reads all `[[fence]]`.
pub(super) fn read_fences(root: &Section<'_, '_>, f: &mut Findings) -> Vec<RawFence> {
    root.sections("fence", "[[fence]]", FENCE, f).iter().map(|s| read_fence(s, f)).collect()
}

fn read_fence(s: &Section<'_, '_>, f: &mut Findings) -> RawFence {
    let node = s.required("node", "fs1", f);
    let program = s.required("agent", "fence_ipmilan", f).and_then(|agent| {
        let path = match agent.value.starts_with('/') {
            true => PathBuf::from(&agent.value),
            false => Path::new(AGENTS).join(&agent.value),
        };
        let good = agent.value.starts_with('/') || name_is_good(&agent.value);
        if !good || agent.value.contains('\0') {
            let what = format!("`agent` in [[fence]] is \"{}\"", agent.value.escape_debug());
            f.error(agent.at, what, "write its name in /usr/sbin, as \"fence_ipmilan\", or an absolute path");
            return None;
        }
        Some(path)
    });
    let parameters = parameters(s, f);
    let action = match s.word("action", &["off", "reboot"], f) {
        Some(word) if word.value == "reboot" => FenceAction::Reboot,
        _ => FenceAction::Off,
    };
    let limits = (Duration::from_secs(1), Duration::from_secs(600));
    let limit = s.duration("limit", limits, f).map_or(FENCE_LIMIT, |d| d.value);
    let level = s.number_within("level", (1, 9), f).map_or(1, |n| n.value);
    let agent = match (&node, program, parameters) {
        (Some(node), Some(program), Some(parameters)) => {
            Some(FenceAgent { node: node.value.clone(), program, parameters, action, limit, level })
        }
        _ => None,
    };
    RawFence { at: s.at, node, agent }
}

/// As [`Parameter`]s, under the names that the agent knows.
fn parameters(s: &Section<'_, '_>, f: &mut Findings) -> Option<BTreeMap<String, Parameter>> {
    let mut all = BTreeMap::new();
    let mut good = true;
    for parameter in s.texts("parameters", f)? {
        let (key, value) = parameter.value;
        let mut wrong = |what: String, fix: &str| {
            f.error(parameter.at, what, fix);
            good = false;
        };
        let in_file = key.strip_suffix(IN_FILE).filter(|name| !name.is_empty() && key != OWN_FILE);
        let named = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if key.is_empty() || !named {
            let what = format!("`parameters` has \"{}\"", key.escape_debug());
            wrong(what, "names have letters, digits, hyphens and underscores only");
        } else if matches!(key.as_str(), "action" | "option") {
            wrong(format!("`parameters` has \"{key}\""), "say action = \"off\" or \"reboot\" in [[fence]]");
        } else if value.chars().any(char::is_control) {
            // The value may be a secret.
            wrong(format!("`{key}` in `parameters` has a line break or the like"), "remove it");
        } else if in_file.is_some() && !value.starts_with('/') {
            wrong(format!("`{key}` in `parameters` is no absolute path"), "start it with /");
        } else {
            let (name, value) = match in_file {
                Some(name) => (name.to_owned(), Parameter::File(value.into())),
                None => (key.clone(), Parameter::Text(value)),
            };
            if matches!(name.as_str(), "password" | "passwd" | "snmp_priv_passwd") && in_file.is_none() {
                f.warn(
                    parameter.at,
                    format!(
                        "`{key}` in `parameters` can be read by everybody who can read this file or the store"
                    ),
                    format!("put it into a file on each node, and name that: {name}_file = \"/etc/baton/…\""),
                );
            }
            if all.insert(name.clone(), value).is_some() {
                f.error(
                    parameter.at,
                    format!("`parameters` has \"{name}\" twice, once in a file"),
                    "remove one of the two",
                );
                good = false;
            }
        }
    }
    good.then_some(all)
}

/// Reads all `[[storage_unit]]`.
pub(super) fn read_units(root: &Section<'_, '_>, f: &mut Findings) -> Vec<RawUnit> {
    let ms = Duration::from_millis;
    let read = |s: &Section<'_, '_>, f: &mut Findings| RawUnit {
        at: s.at,
        name: s.required("name", "array-1", f),
        device: s.path("device", f).map(|p| p.value),
        interval: s.duration("interval", (ms(10), ms(60_000)), f).map_or(INTERVAL, |d| d.value),
        limit: s.duration("limit", (ms(50), ms(600_000)), f).map_or(LIMIT, |d| d.value),
    };
    root.sections("storage_unit", "[[storage_unit]]", UNIT, f).iter().map(|s| read(s, f)).collect()
}

/// How the file systems of a virtual server are fenced. Where there are none there is nothing to fence.
pub(super) fn fence_of(resources: &RawResources) -> Fence {
    let word = resources.fence.as_ref().filter(|_| !resources.filesystems.is_empty());
    word.map_or(Fence::None, |word| Fence::of(&word.value))
}

/// What of it can be checked without the members.
pub(super) fn check(raw: &Raw, f: &mut Findings) {
    check_levels(&raw.fences, f);
    check_names("storage unit", raw.units.iter().filter_map(|u| u.name.as_ref()), f);
    for unit in &raw.units {
        let Some(name) = &unit.name else { continue };
        let is_used = used(&raw.servers).any(|(used, _)| used.value == name.value);
        match (is_used, &unit.device) {
            (false, None) => f.error(
                unit.at,
                format!("storage unit \"{}\" has no `device`, and no file system names it", name.value),
                "name the device, or the unit as `storage_unit` of a [[virtual_server.filesystem]]",
            ),
            (false, Some(_)) => f.warn(
                name.at,
                format!("storage unit \"{}\" is watched, but no virtual server moves with it", name.value),
                "name it as `storage_unit` of a [[virtual_server.filesystem]]",
            ),
            (true, _) => {}
        }
    }
    let known: Vec<&str> =
        raw.units.iter().filter_map(|u| u.name.as_ref()).map(|n| n.value.as_str()).collect();
    for (name, _) in used(&raw.servers) {
        check_name("storage unit", name, f);
        // Where some are described, one that isn't is most likely misspelt.
        if !known.is_empty() && !known.contains(&name.value.as_str()) {
            let add = format!("add a [[storage_unit]] with name = \"{}\"", name.value);
            let what = format!("there is no storage unit \"{}\"", name.value);
            f.error(name.at, what, meant(&name.value, &known, add));
        }
    }
    for server in &raw.servers {
        check_server(server, f);
    }
}

/// What a virtual server says of fencing.
fn check_server(server: &RawServer, f: &mut Findings) {
    let RawResources { fence, accepts, filesystems, mounts, .. } = &server.resources;
    let Some(fence) = fence.as_ref().filter(|w| w.value != "none") else { return };
    if filesystems.is_empty() && mounts.is_empty() {
        f.warn(
            fence.at,
            "`fence` does nothing: the virtual server has no file system",
            "add a [[virtual_server.filesystem]], or remove it",
        );
    }
    if let Some(accepts) = accepts.as_ref().filter(|a| a.value) {
        f.warn(
            accepts.at,
            format!(
                "`i_accept_corruption` does nothing: fence = \"{}\" keeps others from writing",
                fence.value
            ),
            "remove it",
        );
    }
}

/// Several agents that are needed together must leave the node off: one that switches it on again would undo the others.
fn check_levels(fences: &[RawFence], f: &mut Findings) {
    let agents: Vec<(usize, &FenceAgent)> =
        fences.iter().filter_map(|raw| Some((raw.at, raw.agent.as_ref()?))).collect();
    let mut seen = HashMap::new();
    for (at, agent) in &agents {
        unique(&mut seen, &exactly(agent), *at, f, || {
            let what = format!("two [[fence]] of node \"{}\" are the same", agent.node);
            (what, "remove one of the two".to_owned())
        });
        let same =
            |(_, other): &&(usize, &FenceAgent)| (&other.node, other.level) == (&agent.node, agent.level);
        if agent.action == FenceAction::Reboot && agents.iter().filter(same).count() > 1 {
            f.error(
                *at,
                format!(
                    "node \"{}\" has several [[fence]] of level {}, which are needed together, and this one switches it on again",
                    agent.node, agent.level
                ),
                "say action = \"off\" in all of them, or give those that are tried when others fail a higher `level`",
            );
        }
    }
}

/// With the values of its parameters; never to be shown.
struct Exact<'a>(&'a FenceAgent);

impl fmt::Debug for Exact<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, parameter) in &self.0.parameters {
            match parameter {
                Parameter::Text(value) => write!(f, "{name}={value:?};")?,
                Parameter::File(path) => write!(f, "{name}<{path:?};")?,
            }
        }
        write!(f, "{:?}", self.0)
    }
}

/// Everything of a fence agent, for comparison; never to be shown.
pub(super) fn exactly(agent: &FenceAgent) -> String {
    format!("{:?}", Exact(agent))
}

/// Who can be fenced, among these members.
pub(super) fn check_members(raw: &Raw, members: &[&str], f: &mut Findings) {
    for node in raw.fences.iter().filter_map(|fence| fence.node.as_ref()) {
        if !members.contains(&node.value.as_str()) {
            let fix = meant(&node.value, members, "add it to `members`, or remove it here");
            f.error(node.at, format!("node \"{}\" in [[fence]] is no member", node.value), fix);
        }
    }
    let has =
        |node: &&str| raw.fences.iter().filter_map(|fence| fence.node.as_ref()).any(|n| n.value == **node);
    for server in &raw.servers {
        if fence_of(&server.resources) != Fence::Agent {
            continue;
        }
        let Some(fence) = &server.resources.fence else { continue };
        let named = match server.only_on.is_empty() {
            true => &server.preferred_nodes,
            false => &server.only_on,
        };
        let named: Vec<&str> =
            named.iter().map(|n| n.value.as_str()).filter(|n| members.contains(n)).collect();
        let lacking = |nodes: &[&str]| {
            nodes.iter().filter(|n| !has(n)).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ")
        };
        let certain = lacking(&named);
        if !certain.is_empty() {
            f.error(
                fence.at,
                format!("fence = \"agent\", and there is no [[fence]] for {certain}, which may have this virtual server"),
                "add one for each, with `node` and `agent`",
            );
        }
        let rest: Vec<&str> = members.iter().copied().filter(|m| !named.contains(m)).collect();
        let perhaps = lacking(&rest);
        if server.only_on.is_empty() && !perhaps.is_empty() {
            f.warn(
                fence.at,
                format!(
                    "there is no [[fence]] for {perhaps}: if it has this virtual server and dies, no other node starts it"
                ),
                "add one for each that is no witness",
            );
        }
    }
}

/// What a node that is alone is told in vain.
pub(super) fn warn_alone(raw: &Raw, f: &mut Findings) {
    let nobody = "there is no other node that could mount its file systems";
    if let Some(first) = raw.fences.first() {
        f.warn(first.at, format!("[[fence]] does nothing with the store \"file\": {nobody}"), "remove it");
    }
    for fence in raw.servers.iter().filter_map(|s| s.resources.fence.as_ref()) {
        if fence.value != "none" {
            f.warn(fence.at, format!("`fence` does nothing with the store \"file\": {nobody}"), "remove it");
        }
    }
}

/// What comes of it.
pub(super) fn fencing(raw: &Raw) -> Fencing {
    Fencing {
        agents: raw.fences.iter().filter_map(|fence| fence.agent.clone()).collect(),
        watchdog: raw.timing.watchdog.as_ref().map_or(WATCHDOG, |d| d.value),
    }
}

/// All storage units: those that are described, and those that file systems only name.
pub(super) fn units(raw: &Raw) -> Vec<StorageUnit> {
    let first = |name: &str| used(&raw.servers).find(|(used, _)| used.value == name)?.1.cloned();
    let described = raw.units.iter().filter_map(|unit| {
        let name = unit.name.as_ref()?.value.clone();
        let device = unit.device.clone().or_else(|| first(&name))?;
        Some(StorageUnit { name, device, interval: unit.interval, limit: unit.limit })
    });
    let mut units: Vec<StorageUnit> = described.collect();
    for (name, device) in used(&raw.servers) {
        if let Some(device) = device.filter(|_| !units.iter().any(|u| u.name == name.value)) {
            let (name, device) = (name.value.clone(), device.clone());
            units.push(StorageUnit { name, device, interval: INTERVAL, limit: LIMIT });
        }
    }
    units
}

/// The units that file systems name, with the devices of those.
fn used(servers: &[RawServer]) -> impl Iterator<Item = (&At<String>, Option<&PathBuf>)> {
    let all = servers.iter().flat_map(|s| &s.resources.storage_units);
    all.map(|(name, device)| (name, device.as_ref()))
}

#[cfg(test)]
#[path = "fencing_tests.rs"]
mod tests;
