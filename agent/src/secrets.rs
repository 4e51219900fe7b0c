//! Files with secrets: for their owner alone, or they are refused.
//!
//! Who could read one may have done so, and who could write one may have put another there. Everything that the configuration
//! names is looked at before an agent starts, and before another configuration is taken up. A file that isn't there, or can't be
//! looked at, is not this module's business: who needs it says so.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::{Fencing, Loaded, Parameter, StoreKind};
use crate::slow::probe_key;

/// What group and others may do.
const OTHERS: u32 = 0o077;
/// The key of the web page's certificate, as it is told of.
pub const PAGE_KEY: &str = "the page's private key, `tls_key` in [telemetry]";
/// A parameter of fence agents: where the private key is that they use with ssh.
const IDENTITY: &str = "identity_file";

/// A file with a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Which.
    pub path: PathBuf,
    /// What is in it, and where it is named.
    pub what: String,
}

/// Others than its owner may read or write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{file}: others than its owner may read or write {what} (mode {mode:03o}): run `chmod 600 {file}`, and make a new one if somebody may have read it",
    file = path.display()
)]
pub struct Exposed {
    /// Which file.
    pub path: PathBuf,
    /// What is in it.
    pub what: String,
    /// Its permission bits.
    pub mode: u32,
}

/// Every file that is refused, a line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Exposed::to_string).collect::<Vec<_>>().join("\n"))]
pub struct AllExposed(pub Vec<Exposed>);

/// Is the file, whose metadata these are, for its owner alone?
///
/// # Errors
/// It is not.
pub fn guarded(path: &Path, what: &str, metadata: &Metadata) -> Result<(), Exposed> {
    match metadata.mode() & 0o777 {
        mode if mode & OTHERS == 0 => Ok(()),
        mode => Err(Exposed { path: path.to_owned(), what: what.to_owned(), mode }),
    }
}

/// The files that a node's own configuration names, and the probe key that it makes itself.
pub fn named(loaded: &Loaded) -> Vec<Secret> {
    let agent = &loaded.agent;
    let mut all = Vec::new();
    let mut add = |path: &Path, what: &str| all.push(Secret { path: path.to_owned(), what: what.to_owned() });
    match &agent.cluster {
        Some(cluster) => add(&cluster.key_file, "the probe key, `key_file` in [cluster]"),
        None => add(&agent.paths.state.join(probe_key::FILE), "the probe key"),
    }
    if let StoreKind::Etcd(etcd) = &agent.store.kind {
        if let Some((_, key)) = etcd.tls.as_ref().and_then(|tls| tls.identity.as_ref()) {
            add(key, "the private key, `key` of tls in [store]");
        }
        if let Some(credentials) = &etcd.credentials {
            add(&credentials.password_file, "the password, `password_file` of credentials in [store]");
        }
    }
    if let Some(token) = &agent.telemetry.token_file {
        add(token, "the page's token, `token_file` in [telemetry]");
    }
    if let Some(tls) = &agent.telemetry.tls {
        add(&tls.key, PAGE_KEY);
    }
    all
}

/// The files that fence agents are told of.
pub fn of_fencing(fencing: &Fencing) -> Vec<Secret> {
    let mut all: Vec<Secret> = Vec::new();
    for agent in &fencing.agents {
        for (name, parameter) in &agent.parameters {
            let (path, key) = match parameter {
                Parameter::File(path) => (path.clone(), format!("{name}_file")),
                // The agent is told where its key is, and reads it itself.
                Parameter::Text(path) if name == IDENTITY => (path.into(), name.clone()),
                Parameter::Text(_) => continue,
            };
            // Nodes may share one.
            if all.iter().all(|secret| secret.path != path) {
                all.push(Secret { path, what: format!("`{key}` in [[fence]] of {}", agent.node) });
            }
        }
    }
    all
}

/// Those of them that are not for their owner alone.
pub fn exposed(secrets: &[Secret]) -> Vec<Exposed> {
    let look = |secret: &Secret| {
        let metadata = fs::metadata(&secret.path).ok()?;
        guarded(&secret.path, &secret.what, &metadata).err()
    };
    secrets.iter().filter_map(look).collect()
}

/// Refuses what is not for its owner alone.
///
/// # Errors
/// All of it.
pub fn refuse(secrets: &[Secret]) -> Result<(), AllExposed> {
    match exposed(secrets) {
        none if none.is_empty() => Ok(()),
        some => Err(AllExposed(some)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{self, Definitions};

    const NODE: &str = r#"
[node]
name = "fs1"
[[port]]
interface = "eth0"
segment = "office"
[store]
kind = "etcd"
endpoints = ["https://127.0.0.1:2379"]
tls = { ca = "FOLDER/ca.pem", certificate = "FOLDER/me.pem", key = "FOLDER/me.key" }
credentials = { user = "baton", password_file = "FOLDER/password" }
[cluster]
key_file = "FOLDER/probe.key"
[telemetry]
token_file = "FOLDER/token"
tls_certificate = "FOLDER/page.pem"
tls_key = "FOLDER/page.key"
"#;
    const DEFINITIONS: &str = r#"
[cluster]
members = ["fs1", "fs2", "fs3"]
[[segment]]
name = "office"
subnets = ["10.0.0.0/24"]
[[fence]]
node = "fs1"
agent = "fence_ipmilan"
parameters = { ip = "10.1.0.1", password_file = "FOLDER/ipmi", identity_file = "FOLDER/identity" }
[[fence]]
node = "fs2"
agent = "fence_ipmilan"
parameters = { ip = "10.1.0.2", password_file = "FOLDER/ipmi" }
"#;

    /// A row each: which file is open to others, and what the one error says of it.
    #[test]
    fn a_secret_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |text: &str| text.replace("FOLDER", folder.path().to_str().unwrap());
        let (definitions, _) = Definitions::parse(&at(DEFINITIONS), "cluster.toml").unwrap();
        let member = named(&config::parse(&at(NODE), "baton.toml").unwrap());
        let alone = format!("{}[paths]\nstate = \"FOLDER\"\n", config::texts::NODE);
        let alone = named(&config::parse(&at(&alone), "baton.toml").unwrap());
        let fencing = of_fencing(&definitions.fencing);
        let table = [
            (&member, "probe.key", 0o640, "the probe key, `key_file` in [cluster] (mode 640)"),
            (&member, "me.key", 0o644, "the private key, `key` of tls in [store] (mode 644)"),
            (
                &member,
                "password",
                0o604,
                "the password, `password_file` of credentials in [store] (mode 604)",
            ),
            (&member, "token", 0o620, "the page's token, `token_file` in [telemetry] (mode 620)"),
            (&member, "page.key", 0o640, "the page's private key, `tls_key` in [telemetry] (mode 640)"),
            (&alone, "probe.key", 0o604, "the probe key (mode 604)"),
            (&fencing, "ipmi", 0o640, "`password_file` in [[fence]] of fs1 (mode 640)"),
            (&fencing, "identity", 0o602, "`identity_file` in [[fence]] of fs1 (mode 602)"),
        ];
        // What isn't there is left to who needs it.
        for secrets in [&member, &alone, &fencing] {
            assert_eq!(refuse(secrets), Ok(()));
        }
        let set = |name: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for (_, name, ..) in table {
            fs::write(folder.path().join(name), "geheim").unwrap();
            set(name, 0o600);
        }
        // What is no secret may be read by all.
        for name in ["ca.pem", "me.pem", "page.pem"] {
            fs::write(folder.path().join(name), "for all").unwrap();
            set(name, 0o644);
        }
        for secrets in [&member, &alone, &fencing] {
            assert_eq!(refuse(secrets), Ok(()));
        }
        for (secrets, name, mode, what) in table {
            set(name, mode);
            let error = refuse(secrets).unwrap_err().to_string();
            let file = folder.path().join(name).display().to_string();
            let wanted = format!(
                "{file}: others than its owner may read or write {what}: run `chmod 600 {file}`, and make a new one if somebody may have read it"
            );
            assert_eq!(error, wanted);
            set(name, 0o400);
            assert_eq!(refuse(secrets), Ok(()), "{name}");
        }
        set("me.key", 0o644);
        set("password", 0o644);
        assert_eq!(refuse(&member).unwrap_err().to_string().lines().count(), 2, "all at once");
    }
}
