//! The preset for nfs-ganesha: an NFS server in user space, one for each virtual server, bound to its first address, with
//! a configuration of its own, and with what it must remember for its clients on the virtual server's file system.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Failure;
use super::folder::Record;
use super::orders::Patience;
use super::rpc;
use super::service::Place;
use crate::config::{Export, Ganesha, Service};

/// Port of NFS, and that of the mount protocol that goes with version 3. Fixed, for portmappers know one for all of a node's
/// servers.
const PORTS: (u16, u16) = (2049, 20048);
/// In seconds: clients of version 4 renew their locks so often, and get so long to claim them again after a takeover.
const LEASE: (u32, u32) = (5, 10);

/// Starts it.
///
/// # Errors
/// [`Failure`].
pub fn start(
    place: &Place<'_>,
    config: &Ganesha,
    service: &Service,
    record: &mut Record,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    let folder = place.folder.path();
    let address = address(place)?;
    let memory = place.memory("ganesha");
    let file = folder.join("ganesha.conf");
    let write = || {
        fs::create_dir_all(&memory)?;
        fs::write(&file, configuration(place.server, config, address, &memory))
    };
    write().map_err(|e: std::io::Error| Failure::Failed(format!("configuration: {e}")))?;
    let text = |path: PathBuf| path.display().to_string();
    let argv = [
        config.program.clone(),
        "-F".to_owned(),
        "-f".to_owned(),
        text(file),
        "-p".to_owned(),
        text(folder.join("ganesha.pid")),
        "-L".to_owned(),
        "STDERR".to_owned(),
    ];
    let mut answers = |patience: &Patience<'_>| check(place, config, patience);
    place.foreground(&argv, record, patience, Duration::ZERO, service.monitor_limit, &mut answers)?;
    // It answers also when it exports nothing.
    let log = fs::read(place.log(record.place)).unwrap_or_default();
    match complaint(&String::from_utf8_lossy(&log)) {
        Some(text) => Err(Failure::Failed(format!("its configuration: {text}"))),
        None => Ok(()),
    }
}

/// What it said first of exports that it leaves out, if it does.
fn complaint(log: &str) -> Option<String> {
    log.contains("config_errs_to_log").then(|| {
        let critical = |part: &str| log.lines().find_map(|line| Some(line.split_once(part)?.1.to_owned()));
        critical(":FSAL :CRIT :").or_else(|| critical(":CONFIG :CRIT :")).unwrap_or_default()
    })
}

/// An element of a D-Bus name: letters, digits, underscores and hyphens, no digit first.
fn bus_name(server: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let name: String = server.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// Does it answer?
///
/// # Errors
/// [`Failure`]: it doesn't.
pub fn check(place: &Place<'_>, config: &Ganesha, patience: &Patience<'_>) -> Result<(), Failure> {
    let version = config.protocols.last().copied().unwrap_or(4);
    rpc::null_call(SocketAddr::new(address(place)?, PORTS.0), version.into(), patience)
}

fn address(place: &Place<'_>) -> Result<IpAddr, Failure> {
    let first = place.identity.addresses.first();
    first.copied().ok_or_else(|| Failure::Failed("the virtual server has no address".to_owned()))
}

/// Its configuration file (ganesha-config(8) and those it names).
fn configuration(server: &str, config: &Ganesha, address: IpAddr, memory: &Path) -> String {
    let protocols =
        |versions: &BTreeSet<u8>| versions.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let versions = protocols(&config.protocols);
    let (port, mount_port) = PORTS;
    let (lease, grace) = LEASE;
    let mut text = format!(
        "# Written by Baton at every start.
NFS_CORE_PARAM {{
    Bind_addr = {address};
    NFS_Port = {port};
    MNT_Port = {mount_port};
    Protocols = {versions};
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Enable_UDP = false;
    Dbus_Name_Prefix = \"baton.{}\";
}}
NFS_KRB5 {{
    Active_krb5 = false;
}}
NFSv4 {{
    RecoveryBackend = fs;
    RecoveryRoot = \"{}\";
    Lease_Lifetime = {lease};
    Grace_Period = {grace};
}}
",
        bus_name(server),
        memory.display()
    );
    for (id, export) in numbered(&config.exports) {
        let Export { path, pseudo, read_only, squash, clients } = export;
        let access = if *read_only { "RO" } else { "RW" };
        let squash = match squash.as_str() {
            "none" => "No_Root_Squash",
            "all" => "All_Squash",
            _ => "Root_Squash",
        };
        // Those who are not named get nothing.
        let (everybody, named) =
            if clients.is_empty() { (access, String::new()) } else { ("NONE", clients.join(", ")) };
        let _ = write!(
            text,
            "EXPORT {{
    Export_Id = {id};
    Filesystem_Id = {id}.{id};
    Path = \"{}\";
    Pseudo = \"{}\";
    Protocols = {versions};
    Transports = TCP;
    SecType = sys;
    Squash = {squash};
    Access_Type = {everybody};
    FSAL {{ Name = VFS; }}
",
            path.display(),
            pseudo.display()
        );
        if !named.is_empty() {
            let _ = writeln!(text, "    CLIENT {{ Clients = {named}; Access_Type = {access}; }}");
        }
        text.push_str("}\n");
    }
    text
}

/// Each export with a number that is the same on every node, also when others come and go before it: it is in the clients' file
/// handles. From FNV-1a of its path.
fn numbered(exports: &[Export]) -> Vec<(u16, &Export)> {
    let mut taken = BTreeSet::new();
    let mut number = |path: &Path| {
        let bytes = path.to_string_lossy();
        let hash = bytes.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        // 0 is the pseudo file system's, and the highest bit is left alone.
        let mut id = (hash % 0x7ffe) as u16 + 1;
        while !taken.insert(id) {
            id = id % 0x7ffe + 1;
        }
        id
    };
    exports.iter().map(|export| (number(&export.path), export)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(path: &str, clients: &[&str]) -> Export {
        Export {
            path: path.into(),
            pseudo: path.into(),
            read_only: false,
            squash: "root".into(),
            clients: clients.iter().map(|c| (*c).to_owned()).collect(),
        }
    }

    #[test]
    fn numbers_dont_depend_on_other_exports() {
        let (a, b) = (export("/srv/a", &[]), export("/srv/b", &[]));
        let both = [a.clone(), b.clone()];
        let numbers: Vec<u16> = numbered(&both).iter().map(|(id, _)| *id).collect();
        assert_ne!(numbers[0], numbers[1]);
        assert_eq!(numbered(&[b])[0].0, numbers[1]);
        // The same path twice doesn't get the same number.
        let twice = [a.clone(), a];
        let twice = numbered(&twice);
        assert_ne!(twice[0].0, twice[1].0);
    }

    #[test]
    fn exports_that_it_leaves_out_are_told() {
        let line =
            |rest: &str| format!("26/11/2026 12:55:20 : epoch 6b : vm : nfs-ganesha-8913[main] {rest}\n");
        let dbus = line("gsh_dbus_pkginit :DBUS :CRIT :dbus_bus_get failed");
        assert_eq!(complaint(&dbus), None);
        let missing =
            line("resolve_posix_filesystem :FSAL :CRIT :stat returned No such file or directory (2)");
        let block = line("config_errs_to_log :CONFIG :CRIT :Config File (t.conf:3): 1 validation errors");
        let both = dbus.clone() + &missing + &block;
        assert_eq!(complaint(&both).as_deref(), Some("stat returned No such file or directory (2)"));
        assert_eq!(complaint(&block).as_deref(), Some("Config File (t.conf:3): 1 validation errors"));
    }

    #[test]
    fn the_configuration_names_what_was_asked_for() {
        let config = Ganesha {
            program: "ganesha.nfsd".into(),
            protocols: BTreeSet::from([3, 4]),
            exports: vec![
                export("/srv/a", &[]),
                Export { read_only: true, ..export("/srv/b", &["10.0.0.0/24", "fs9"]) },
            ],
        };
        let address = "10.0.0.10".parse().expect("an address");
        let text = configuration("projects.2", &config, address, Path::new("/srv/a/.baton/ganesha"));
        for line in [
            "Bind_addr = 10.0.0.10;",
            "MNT_Port = 20048;",
            "Dbus_Name_Prefix = \"baton.projects_2\";",
            "RecoveryRoot = \"/srv/a/.baton/ganesha\";",
            "Enable_NLM = false;",
            "Path = \"/srv/b\";",
            "Access_Type = NONE;",
            "CLIENT { Clients = 10.0.0.0/24, fs9; Access_Type = RO; }",
        ] {
            assert_eq!(text.matches(line).count(), 1, "{line} in\n{text}");
        }
        assert_eq!(text.matches("Access_Type = RW;").count(), 1, "{text}");
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
