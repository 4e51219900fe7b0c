//! The preset for Samba: an SMB server for each virtual server, bound to its addresses, with a configuration of its own, and
//! with its users and what it must remember on the virtual server's file system.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::Failure;
use super::folder::Record;
use super::orders::Patience;
use super::process::Ended;
use super::service::Place;
use super::smb;
use crate::config::{Samba, Service, Share};

/// Port of SMB.
const PORT: u16 = 445;
/// Its folders for what is gone with it, below `samba` in the virtual server's.
const OWN: [&str; 4] = ["pid", "lock", "cache", "ncalrpc"];
/// A NetBIOS name has so many characters at most.
const LONGEST_NAME: usize = 15;

/// Starts it.
///
/// # Errors
/// [`Failure`].
pub fn start(
    place: &Place<'_>,
    config: &Samba,
    service: &Service,
    record: &mut Record,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    let memory = place.memory("samba");
    make_folders(place, &memory, patience)?;
    for share in &config.shares {
        let path = share.path.display().to_string();
        let argv = ["test".to_owned(), "-d".to_owned(), path.clone()];
        let done = place.command(&argv, &[], patience).map_err(|e| Failure::from(e).of(&path))?;
        if done.ended != Ended::Exit(0) {
            let why = format!("share \"{}\": {path} is no folder", share.name);
            return Err(Failure::Failed(why));
        }
    }
    let file = place.folder.path().join("smb.conf");
    let text = configuration(place, config, record.place, &memory);
    let write = || {
        for name in OWN {
            let folder = place.folder.path().join("samba").join(name);
            fs::create_dir_all(&folder)?;
            // Samba insists on this of some of them, whatever the agent's mask is.
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(&file, text)
    };
    write().map_err(|e| Failure::Failed(format!("{}: {e}", place.folder.path().display())))?;
    let file = file.display().to_string();
    let argv = [&config.program, "-F", "--no-process-group", "-s", &file].map(str::to_owned);
    let mut answers = |patience: &Patience<'_>| check(place, patience);
    place.foreground(&argv, record, patience, Duration::ZERO, service.monitor_limit, &mut answers)
}

/// Its folders on the virtual server's file system, by a program, for that may hang.
fn make_folders(place: &Place<'_>, memory: &Path, patience: &Patience<'_>) -> Result<(), Failure> {
    // Passwords are in them.
    let mut argv = ["install", "-d", "-m", "0700"].map(str::to_owned).to_vec();
    let folders = [memory.to_owned(), memory.join("private"), memory.join("state")];
    argv.extend(folders.iter().map(|folder| folder.display().to_string()));
    let done = place.command(&argv, &[], patience).map_err(|e| Failure::from(e).of("its folders"))?;
    match done.ended {
        Ended::Exit(0) => Ok(()),
        _ => Err(Failure::Failed(format!("its folders: {}", done.why()))),
    }
}

/// Does it answer at each of its addresses? It runs on when it can't listen at one of them.
///
/// # Errors
/// [`Failure`]: it doesn't.
pub fn check(place: &Place<'_>, patience: &Patience<'_>) -> Result<(), Failure> {
    if place.identity.addresses.is_empty() {
        return Err(Failure::Failed("the virtual server has no address".to_owned()));
    }
    let mut addresses = place.identity.addresses.iter();
    addresses.try_for_each(|address| smb::negotiate(SocketAddr::new(*address, PORT), patience))
}

/// An address as Samba takes it before any interface has it: with a subnet in which it is neither the first nor the last.
fn interface(address: IpAddr) -> String {
    // The bits after the prefix are neither all 0 nor all 1.
    let (bits, width, longest) = match address {
        IpAddr::V4(a) => (u128::from(u32::from(a)), 32, 30),
        // One with three digits would be taken as a mask.
        IpAddr::V6(a) => (u128::from(a), 128, 96),
    };
    let is_inside = |prefix: &u32| {
        let mask = (1u128 << (width - prefix)) - 1;
        bits & mask != 0 && bits & mask != mask
    };
    let prefix = (1..=longest).rev().find(is_inside).unwrap_or(1);
    format!("{address}/{prefix}")
}

/// Its name in the protocol: the virtual server's, as far as it may be one. It stays the same on all nodes.
fn netbios_name(server: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '-' };
    server.chars().map(plain).take(LONGEST_NAME).collect()
}

/// Its configuration file (smb.conf(5)).
fn configuration(place: &Place<'_>, config: &Samba, number: usize, memory: &Path) -> String {
    let folder = place.folder.path().display();
    let memory = memory.display();
    let guests = if config.shares.iter().any(|share| share.guest) { "Bad User" } else { "Never" };
    let interfaces: Vec<String> = place.identity.addresses.iter().map(|a| interface(*a)).collect();
    let mut text = format!(
        "# Written by Baton at every start.
[global]
    server role = standalone server
    netbios name = {}
    server min protocol = SMB2_02
    server multi channel support = no
    passdb backend = tdbsam:{memory}/private/passdb.tdb
    map to guest = {guests}
    log level = 0
    load printers = no
    printing = bsd
    printcap name = /dev/null
    disable spoolss = yes
    usershare max shares = 0
    strict sync = yes
    sync always = yes
",
        netbios_name(place.server)
    );
    if let Some(file) = &config.include {
        let _ = writeln!(text, "    include = {}\n[global]", file.display());
    }
    let _ = write!(
        text,
        "    interfaces = {}
    bind interfaces only = yes
    smb ports = {PORT}
    disable netbios = yes
    pid directory = {folder}/samba/pid
    lock directory = {folder}/samba/lock
    cache directory = {folder}/samba/cache
    ncalrpc dir = {folder}/samba/ncalrpc
    state directory = {memory}/state
    private dir = {memory}/private
    log file = {}
    max log size = 0
",
        interfaces.join(" "),
        place.log(number).display()
    );
    config.shares.iter().for_each(|share| section(share, &mut text));
    text
}

fn section(share: &Share, text: &mut String) {
    let yes = |is: bool| if is { "yes" } else { "no" };
    let _ = write!(
        text,
        "[{}]
    path = {}
    read only = {}
    guest ok = {}
    veto files = /.baton/
",
        share.name,
        share.path.display(),
        yes(share.read_only),
        yes(share.guest)
    );
    if !share.valid_users.is_empty() {
        let quoted: Vec<String> = share.valid_users.iter().map(|user| format!("\"{user}\"")).collect();
        let _ = writeln!(text, "    valid users = {}", quoted.join(", "));
    }
    if let Some(user) = &share.force_user {
        let _ = writeln!(text, "    force user = {user}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Folder;
    use super::*;

    fn share(name: &str) -> Share {
        Share {
            name: name.into(),
            path: format!("/srv/{name}").into(),
            read_only: false,
            guest: false,
            valid_users: Vec::new(),
            force_user: None,
        }
    }

    fn written(addresses: &[&str], include: Option<&str>, shares: Vec<Share>) -> String {
        let root = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(root.path(), "projects.of-the-office").expect("a boot");
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        let identity = folder.identify(&addresses).expect("written");
        let place = Place {
            node: "fs1",
            server: "projects.of-the-office",
            folder: &folder,
            identity: &identity,
            hierarchy: None,
            ocf_root: Path::new("/"),
            bus: None,
        };
        let config = Samba { program: "smbd".into(), include: include.map(Into::into), shares };
        let text = configuration(&place, &config, 1, Path::new("/srv/a/.baton/samba"));
        text.replace(&folder.path().display().to_string(), "FOLDER")
    }

    #[test]
    fn addresses_are_inside_their_subnets() {
        for (address, expected) in [
            ("10.0.0.10", "10.0.0.10/30"),
            ("10.0.0.11", "10.0.0.11/29"),
            ("10.0.0.12", "10.0.0.12/29"),
            ("10.0.0.255", "10.0.0.255/23"),
            ("10.0.0.0", "10.0.0.0/6"),
            ("fd00:10::10", "fd00:10::10/96"),
            ("fd00:10:0:0:1::", "fd00:10:0:0:1::/79"),
        ] {
            assert_eq!(interface(address.parse().expect("an address")), expected);
        }
    }

    #[test]
    fn the_configuration_names_what_was_asked_for() {
        let projects = Share { guest: true, force_user: Some("nobody".into()), ..share("projects") };
        let users = vec!["alice".to_owned(), "@the staff".to_owned()];
        let homes = Share { read_only: true, valid_users: users, ..share("old homes") };
        let text = written(&["10.0.0.10", "fd00:10::10"], None, vec![projects, homes]);
        for line in [
            "    netbios name = PROJECTS-OF-THE",
            "    interfaces = 10.0.0.10/30 fd00:10::10/96",
            "    bind interfaces only = yes",
            "    passdb backend = tdbsam:/srv/a/.baton/samba/private/passdb.tdb",
            "    private dir = /srv/a/.baton/samba/private",
            "    state directory = /srv/a/.baton/samba/state",
            "    pid directory = FOLDER/samba/pid",
            "    log file = FOLDER/1.log",
            "    map to guest = Bad User",
            "[projects]",
            "[old homes]",
            "    path = /srv/old homes",
            "    guest ok = yes",
            "    read only = yes",
            "    force user = nobody",
            "    valid users = \"alice\", \"@the staff\"",
        ] {
            assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{line} in\n{text}");
        }
        assert_eq!(text.matches("veto files = /.baton/").count(), 2);
        assert!(!text.contains("include"), "{text}");
        let closed = written(&["10.0.0.10"], None, vec![share("a")]);
        assert!(closed.contains("map to guest = Never"), "{closed}");
    }

    #[test]
    fn what_is_included_changes_no_address_and_no_folder() {
        let text = written(&["10.0.0.10"], Some("/etc/baton/more.conf"), vec![share("a")]);
        let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("{line} in\n{text}"));
        let included = at("    include = /etc/baton/more.conf\n[global]\n");
        for line in
            ["    interfaces =", "    smb ports =", "    private dir =", "    lock directory =", "[a]"]
        {
            assert!(at(line) > included, "{line} before it:\n{text}");
        }
        for line in ["    passdb backend =", "    server min protocol =", "    sync always = yes"] {
            assert!(at(line) < included, "{line} after it:\n{text}");
        }
    }
}
