//! The configuration file: TOML in, [`baton_core::Config`] and the agent's own settings out.
//!
//! Everything that is wrong is found in one reading and reported together, each with line and column
//! ([`ConfigErrors`]); what leaves this module has passed every check. It reads the file and the host's name and
//! touches nothing else: whether an interface exists is not its business.
//!
//! | key | default |
//! |---|---|
//! | `node.name` | the host's name |
//! | `node.agent_grace`, `capacity_percent` | `"2s"`, 100 |
//! | `port.speed_mbits` | what the interface says |
//! | `store.kind`, `store.path` | `"file"`, `baton.db` in `paths.state` |
//! | `control.socket`, `control.group` | `/run/baton/baton.sock`, `"baton"` (root alone if there is no such group) |
//! | `paths.state`, `paths.bpffs` | `/var/lib/baton`, `/sys/fs/bpf/baton` |
//! | `telemetry.listen` | `127.0.0.1:9477`; `"off"`: no HTTP |
//! | `telemetry.token_file` | none: the web page only shows |
//! | `telemetry.tls_certificate`, `tls_key`, `client_ca` | none: HTTP without TLS |
//! | `telemetry.otlp` | none: no traces |
//! | `timing.*` | probe_interval 10 ms, lease 50 ms, hold_down 1 s, hold_down_max 60 s, announce_repeat 10 ms, 100 ms, 1 s |
//! | `segment.gateway`, `probe_targets`, `port_failback` | none, none, `"spread"` |
//! | `balance.*` | [`baton_core::config::Balance`] |
//! | `virtual_server.priority`, `migrate`, `failback`, `reroute` | 100, true, `"manual"`, false |
//! | `virtual_server.never_with`, `only_on` | none, all nodes |
//! | `node.watchdog`, `timing.watchdog` | `/dev/watchdog`, 10 s |
//! | `fence.action`, `limit`, `level` | `"off"`, 30 s, 1 |
//! | `storage_unit.device`, `interval`, `limit` | the device of the first file system that names it, 100 ms, 1 s |
//! | `filesystem.options`, `fsck`, `start_limit`, `stop_limit` | none, false, 30 s, 30 s |
//! | `service.start_limit`, `stop_limit`, `monitor_every`, `monitor_limit`, `restarts` | 30 s, 30 s, 10 s, 10 s, 3 |
//! | `hook.timeout`, `name` | 10 s, that of its program |
//!
//! Ports and segments have no default: at least one of each must be there.

mod addresses;
mod balance;
mod check;
mod definitions;
mod difference;
mod etcd;
mod fencing;
mod hooks;
mod names;
mod problem;
mod reader;
pub mod reference;
mod resources;
mod sections;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod texts;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton_core::Config;

use crate::hooks::Hook;

pub use definitions::{Definitions, DefinitionsError};
pub use difference::difference;
pub use fencing::{Fence, FenceAction, FenceAgent, Fencing, Parameter, StorageUnit};
pub use problem::{ConfigErrors, Problem, Problems};
pub use resources::{
    Exec, Export, Filesystem, Ganesha, Ocf, Resources, Samba, Service, ServiceKind, Share, Unit,
};

/// Where the configuration is looked for unless `--config` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/baton/baton.toml";

const DEFAULT_SOCKET: &str = "/run/baton/baton.sock";
const DEFAULT_STATE: &str = "/var/lib/baton";
const DEFAULT_BPFFS: &str = "/sys/fs/bpf/baton";
const DEFAULT_WATCHDOG: &str = "/dev/watchdog";
/// Of a node's own database, in its state folder.
const STORE_FILE: &str = "baton.db";

/// A configuration that has passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What core decides by.
    pub core: Config,
    /// What only the agent needs.
    pub agent: AgentConfig,
    /// What is legal but probably not meant; sorted by position.
    pub warnings: Problems,
}

/// Settings of this agent that no decision depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// How far ahead the agent promises the kernel to be alive; 100 ms to 60 s.
    pub agent_grace: Duration,
    /// Where definitions and ownership live.
    pub store: StoreConfig,
    /// The socket that the command line talks to.
    pub control: ControlConfig,
    /// Folders.
    pub paths: PathsConfig,
    /// HTTP.
    pub telemetry: TelemetryConfig,
    /// Length of the lease; 5 ms to 60 s, at least twice the probe interval.
    pub lease: Duration,
    /// `[cluster]`, with the store etcd.
    pub cluster: Option<ClusterConfig>,
    /// File systems and services of the virtual servers that have any, where they are defined in the node's own file.
    pub resources: Vec<Resources>,
    /// Storage units, likewise.
    pub units: Vec<StorageUnit>,
    /// The watchdog device of this node; absolute.
    pub watchdog: PathBuf,
    /// Programs that are told of events.
    pub hooks: Vec<Hook>,
}

/// `[cluster]` of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The key of the probe frames, the same on all nodes; absolute.
    pub key_file: PathBuf,
    /// The node has a vote and takes no virtual servers.
    pub witness: bool,
}

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Kind of store.
    pub kind: StoreKind,
    /// File of the embedded database, which holds what is this node's alone also where the rest is in etcd; absolute.
    pub path: PathBuf,
}

/// Kind of store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// The embedded database of one node.
    File,
    /// An etcd cluster.
    Etcd(EtcdConfig),
}

/// How etcd is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `[cluster] name`: all keys are below `/baton/<name>/`.
    pub cluster: String,
    /// Client URLs, like `http://127.0.0.1:2379`: the local member first.
    pub endpoints: Vec<String>,
    /// `https` only: whom to trust, and who this client is.
    pub tls: Option<EtcdTls>,
    /// User and password.
    pub credentials: Option<EtcdCredentials>,
}

/// PEM files; absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// Certificate of the authority that has signed the servers' certificates.
    pub ca: PathBuf,
    /// This client's certificate and key, where the servers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdCredentials {
    /// Name.
    pub user: String,
    /// File with the password; absolute.
    pub password_file: PathBuf,
}

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// Path of the Unix socket; absolute, at most 107 bytes (unix(7)).
    pub socket: PathBuf,
    /// Group that may use it besides root; ignored where there is no such group.
    pub group: String,
}

/// `[paths]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathsConfig {
    /// Folder for the agent's files; absolute.
    pub state: PathBuf,
    /// Folder for pinned kernel objects, inside a mounted bpffs; absolute.
    pub bpffs: PathBuf,
}

/// `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Where HTTP is served; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// File with the token that actions on the web page need; absolute. `None`: no token is good.
    pub token_file: Option<PathBuf>,
    /// What TLS is spoken with; `None`: HTTP is not encrypted.
    pub tls: Option<TelemetryTls>,
    /// URL of a collector that takes traces by OTLP, without a slash at its end; `None`: there are none.
    pub otlp: Option<String>,
}

/// `tls_certificate`, `tls_key` and `client_ca` of `[telemetry]`: PEM files; absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryTls {
    /// This node's certificate, and those that lead from it to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of those who may act with a certificate of theirs. `None`: nobody is asked for one.
    pub client_ca: Option<PathBuf>,
}

/// Reads and checks the file.
///
/// # Errors
/// The file can't be read, or something in it is wrong: then everything that is wrong, sorted by position.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    let (text, file) = read(path)?;
    parse(&text, &file)
}

/// The text of a file, and the name that problems are reported under.
fn read(path: &Path) -> Result<(String, String), ConfigErrors> {
    let file = path.display().to_string();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(ConfigErrors::Read { file, source }),
    };
    String::from_utf8(bytes).map(|text| (text, file.clone())).map_err(|error| {
        let mut findings = problem::Findings::default();
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        findings.error(good, "what is here is not UTF-8", "save the file as UTF-8, or remove these bytes");
        ConfigErrors::Invalid(findings.sorted(&text, &file).0)
    })
}

/// Checks `text`; `file` is only the name that problems are reported under.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, file: &str) -> Result<Loaded, ConfigErrors> {
    let mut findings = problem::Findings::default();
    let loaded = match toml_span::parse(text) {
        Ok(root) => {
            let raw = sections::read(&root, &mut findings);
            check::check(raw, &mut findings)
        }
        Err(error) => {
            findings.syntax(&error, text);
            None
        }
    };
    let (errors, warnings) = findings.sorted(text, file);
    match loaded {
        Some((core, agent)) if errors.is_empty() => Ok(Loaded { core, agent, warnings }),
        _ => Err(ConfigErrors::Invalid(errors)),
    }
}

/// Reads and checks the file for an agent that runs with `running`.
///
/// # Errors
/// As [`load`]; and what can't be changed while the agent runs is another.
pub fn reload(path: &Path, running: &Loaded) -> Result<Loaded, ConfigErrors> {
    let loaded = load(path)?;
    let AgentConfig { store, paths, .. } = &running.agent;
    let cluster = |kind: &StoreKind| match kind {
        StoreKind::Etcd(etcd) => Some(etcd.cluster.clone()),
        StoreKind::File => None,
    };
    let new = &loaded.agent;
    let fixed = [
        ("node", "name", loaded.core.node == running.core.node),
        ("store", "kind", cluster(&new.store.kind).is_some() == cluster(&store.kind).is_some()),
        ("store", "path", new.store.path == store.path),
        ("cluster", "name", cluster(&new.store.kind) == cluster(&store.kind)),
        ("paths", "state", new.paths.state == paths.state),
        ("paths", "bpffs", new.paths.bpffs == paths.bpffs),
    ];
    let changed = fixed.into_iter().filter(|(.., same)| !same);
    let changed: Vec<_> = changed.map(|(section, key, _)| (section, key)).collect();
    if changed.is_empty() {
        return Ok(loaded);
    }
    let file = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigErrors::Read { file: file.clone(), source })?;
    let mut findings = problem::Findings::default();
    for (section, key) in changed {
        findings.error(
            place(&text, section, key),
            format!("`{key}` in [{section}] can't be changed while the agent runs"),
            "set it back, or restart the agent (`systemctl restart baton`: what it serves stays served)",
        );
    }
    Err(ConfigErrors::Invalid(findings.sorted(&text, &file).0))
}

/// Where a key is; where it is not, its section, or the beginning of the file.
fn place(text: &str, section: &str, key: &str) -> usize {
    let Ok(root) = toml_span::parse(text) else { return 0 };
    let Some(section) = root.as_table().and_then(|t| t.get(section)) else { return 0 };
    section.as_table().and_then(|t| t.get(key)).map_or(section.span.start, |value| value.span.start)
}

/// Where an agent and what it made are to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Its control socket.
    pub socket: PathBuf,
    /// Its state folder.
    pub state: PathBuf,
    /// Its own database.
    pub store: PathBuf,
    /// Its folder for pinned kernel objects.
    pub bpffs: PathBuf,
    /// Its watchdog device.
    pub watchdog: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Places::of(sections::Raw::default())
    }
}

impl Places {
    fn of(raw: sections::Raw) -> Places {
        let state = raw.state.unwrap_or_else(|| DEFAULT_STATE.into());
        Places {
            socket: raw.socket.map_or_else(|| DEFAULT_SOCKET.into(), |s| s.value),
            store: raw.store.path.unwrap_or_else(|| state.join(STORE_FILE)),
            state,
            bpffs: raw.bpffs.unwrap_or_else(|| DEFAULT_BPFFS.into()),
            watchdog: raw.watchdog.unwrap_or_else(|| DEFAULT_WATCHDOG.into()),
        }
    }
}

/// Reads only where the agent and what it made are to be found; other mistakes in the file don't matter.
///
/// # Errors
/// The file can't be read or is not TOML.
pub fn places(path: &Path) -> Result<Places, ConfigErrors> {
    let (text, file) = read(path)?;
    let mut findings = problem::Findings::default();
    match toml_span::parse(&text) {
        Ok(root) => Ok(Places::of(sections::read(&root, &mut findings))),
        Err(error) => {
            findings.syntax(&error, &text);
            Err(ConfigErrors::Invalid(findings.sorted(&text, &file).0))
        }
    }
}
