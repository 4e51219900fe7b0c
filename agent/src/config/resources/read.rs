//! Reading it.

use super::*;

/// As written. File systems and services with something wrong in them are left out, and reported.
#[derive(Default)]
pub(in crate::config) struct RawResources {
    pub(in crate::config) devices: Vec<At<PathBuf>>,
    pub(in crate::config) mounts: Vec<At<PathBuf>>,
    /// With the device of the file system that names it.
    pub(in crate::config) storage_units: Vec<(At<String>, Option<PathBuf>)>,
    pub(in crate::config) filesystems: Vec<At<Filesystem>>,
    pub(in crate::config) services: Vec<At<Service>>,
    pub(in crate::config) fence: Option<At<String>>,
    pub(in crate::config) accepts: Option<At<bool>>,
    pub(in crate::config) resets: Option<bool>,
    pub(in crate::config) private: Option<At<bool>>,
}

/// Its keys in `[[virtual_server]]`.
pub(in crate::config) const KEYS: [&str; 6] =
    ["filesystem", "service", "fence", "i_accept_corruption", "private_mounts", "reset_connections"];

const FILESYSTEM: &[&str] =
    &["device", "mount", "type", "storage_unit", "options", "fsck", "start_limit", "stop_limit"];
/// What every service has.
const SERVICE: [&str; 6] =
    ["kind", "start_limit", "stop_limit", "monitor_every", "monitor_limit", "restarts"];
const EXPORT: &[&str] = &["path", "pseudo", "read_only", "squash", "clients"];
/// Of every time limit.
const LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// How long a start or a stop may take.
const START_STOP: Duration = Duration::from_secs(30);
/// Between two checks, and how long one may take.
const MONITOR: Duration = Duration::from_secs(10);
const RESTARTS: u32 = 3;
/// Options that are not the mount's own but tell mount(8) to do something else.
const OTHER_MOUNTS: [&str; 5] = ["remount", "bind", "rbind", "move", "loop"];

/// Reads what a virtual server has besides addresses.
pub(in crate::config) fn read(s: &Section<'_, '_>, f: &mut Findings) -> RawResources {
    let flag = |key, f: &mut Findings| {
        let at = s.key(key)?;
        Some(At { value: s.flag(key, f)?, at })
    };
    let mut raw = RawResources {
        fence: s.word("fence", &["none", "scsi-pr", "agent", "watchdog"], f),
        accepts: flag("i_accept_corruption", f),
        private: flag("private_mounts", f),
        resets: s.flag("reset_connections", f),
        ..RawResources::default()
    };
    for fs in s.sections("filesystem", "[[virtual_server.filesystem]]", FILESYSTEM, f) {
        filesystem(&fs, &mut raw, f);
    }
    for section in s.tables("service", "[[virtual_server.service]]", f) {
        let value = service(&section, f);
        raw.services.extend(value.map(|value| At { value, at: section.at }));
    }
    raw
}

fn filesystem(s: &Section<'_, '_>, raw: &mut RawResources, f: &mut Findings) {
    let device = required_path(s, "device", "/dev/disk/by-id/…", f);
    let mount = required_path(s, "mount", "/srv/projects", f);
    if let Some(mount) = mount.as_ref().filter(|m| m.value == Path::new("/")) {
        f.error(mount.at, "`mount` in [[virtual_server.filesystem]] is \"/\"", "choose a folder of its own");
    }
    let kind = s.required("type", "xfs", f).and_then(|kind| {
        let good = name_is_good(&kind.value);
        if !good {
            let what = format!("\"{}\" is no type of a file system", kind.value.escape_debug());
            f.error(kind.at, what, "write it as in /proc/filesystems, as \"xfs\"");
        }
        good.then_some(kind.value)
    });
    let options = options(s, f);
    let limit = |key, f: &mut Findings| s.duration(key, LIMITS, f).map_or(START_STOP, |d| d.value);
    let (start_limit, stop_limit) = (limit("start_limit", f), limit("stop_limit", f));
    let fsck = s.flag("fsck", f).unwrap_or(false);
    let unit = s.text("storage_unit", f);
    raw.storage_units.extend(unit.map(|unit| (unit, device.as_ref().map(|d| d.value.clone()))));
    if let (Some(device), Some(mount), Some(kind), Some(options)) = (&device, &mount, kind, options) {
        let (device, mount) = (device.value.clone(), mount.value.clone());
        let value = Filesystem { device, mount, kind, options, fsck, start_limit, stop_limit };
        raw.filesystems.push(At { value, at: s.at });
    }
    raw.devices.extend(device);
    raw.mounts.extend(mount);
}

/// A path without a slash at its end.
pub(super) fn required_path(
    s: &Section<'_, '_>,
    key: &'static str,
    example: &str,
    f: &mut Findings,
) -> Option<At<PathBuf>> {
    if s.key(key).is_none() {
        s.required(key, example, f);
        return None;
    }
    let path = s.path(key, f)?;
    if path.value.components().any(|c| c == std::path::Component::ParentDir) {
        f.error(path.at, format!("{} goes up again", path.value.display()), "write it without ..");
        return None;
    }
    Some(At { value: path.value.components().collect(), at: path.at })
}

fn options(s: &Section<'_, '_>, f: &mut Findings) -> Option<String> {
    if s.key("options").is_none() {
        return Some(String::new());
    }
    let options = s.text("options", f)?;
    let other = options.value.split(',').find(|o| OTHER_MOUNTS.contains(o));
    let odd = options.value.chars().any(|c| c.is_whitespace() || c.is_control());
    if let Some(other) = other {
        f.error(
            options.at,
            format!("`options` has \"{other}\", which doesn't mount a device"),
            "leave it out",
        );
    } else if odd {
        let fix = "separate them by commas, as \"noatime,nodev\"";
        f.error(options.at, "`options` in [[virtual_server.filesystem]] has spaces", fix);
    }
    (other.is_none() && !odd).then_some(options.value)
}

fn service(s: &Section<'_, '_>, f: &mut Findings) -> Option<Service> {
    s.required("kind", "exec", f)?;
    let kind = s.word("kind", &["exec", "ocf", "nfs-ganesha", "systemd", "samba"], f)?;
    let (own, kind): (&[&str], _) = match kind.value.as_str() {
        "exec" => (&["start", "stop", "monitor"], exec(s, f)),
        "ocf" => (&["agent", "parameters"], ocf(s, f)),
        "nfs-ganesha" => (&["exports", "protocols", "program"], ganesha(s, f)),
        "samba" => (samba::KEYS, samba::read(s, f)),
        _ => (&["unit"], unit(s, f)),
    };
    s.check_keys(&[own, &SERVICE].concat(), f);
    let limit = |key, default, f: &mut Findings| s.duration(key, LIMITS, f).map_or(default, |d| d.value);
    let service = |kind, f: &mut Findings| Service {
        kind,
        start_limit: limit("start_limit", START_STOP, f),
        stop_limit: limit("stop_limit", START_STOP, f),
        monitor_every: limit("monitor_every", MONITOR, f),
        monitor_limit: limit("monitor_limit", MONITOR, f),
        restarts: s.number_within("restarts", (0, 1000), f).map_or(RESTARTS, |n| n.value),
    };
    // The times are read in any case, for what is wrong with them.
    match kind {
        Some(kind) => Some(service(kind, f)),
        None => {
            let nothing = Exec { start: Vec::new(), stop: None, monitor: None };
            service(ServiceKind::Exec(nothing), f);
            None
        }
    }
}

fn exec(s: &Section<'_, '_>, f: &mut Findings) -> Option<ServiceKind> {
    if s.key("start").is_none() {
        f.error(
            s.at,
            "[[virtual_server.service]] has no `start`",
            "add start = [\"/usr/sbin/program\", \"argument\"]",
        );
        return None;
    }
    let start = command(s, "start", f);
    let stop = s.key("stop").map(|_| command(s, "stop", f));
    let monitor = s.key("monitor").map(|_| command(s, "monitor", f));
    if matches!(stop, Some(None)) || matches!(monitor, Some(None)) {
        return None;
    }
    Some(ServiceKind::Exec(Exec { start: start?, stop: stop.flatten(), monitor: monitor.flatten() }))
}

/// A program and its arguments.
fn command(s: &Section<'_, '_>, key: &'static str, f: &mut Findings) -> Option<Vec<String>> {
    let list = s.list(key, f, |v, called, f| text_of(v, called, "texts in quotes", f))?;
    let fix = format!("write {key} = [\"/usr/sbin/program\", \"argument\"]");
    let Some(program) = list.value.first() else {
        if !s.has_items(key) {
            f.error(list.at, format!("`{key}` in [[virtual_server.service]] is empty"), fix);
        }
        return None;
    };
    if !program.value.starts_with('/') {
        let what = format!("`{key}` starts \"{}\", not an absolute path", program.value.escape_debug());
        f.error(program.at, what, fix);
        return None;
    }
    if let Some(odd) = list.value.iter().find(|a| a.value.contains('\0')) {
        f.error(odd.at, format!("`{key}` has an argument with a zero byte"), "remove it");
        return None;
    }
    Some(list.value.into_iter().map(|a| a.value).collect())
}

fn ocf(s: &Section<'_, '_>, f: &mut Findings) -> Option<ServiceKind> {
    let name = s.required("agent", "heartbeat/nfsserver", f);
    let parameters = s.texts("parameters", f);
    let name = name?;
    let good = |part: &&str| name_is_good(part);
    let parts = name.value.split_once('/').filter(|(provider, agent)| good(provider) && good(agent));
    let Some((provider, agent)) = parts else {
        let fix = match name.value.trim_start_matches("ocf:").split_once(':') {
            Some((provider, agent)) => format!("write \"{provider}/{agent}\""),
            None => "write provider and name, as \"heartbeat/nfsserver\"".to_owned(),
        };
        f.error(name.at, format!("`agent` is \"{}\"", name.value.escape_debug()), fix);
        return None;
    };
    let mut values = BTreeMap::new();
    for parameter in parameters? {
        let (key, value) = parameter.value;
        let good = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !value.contains('\0');
        if !good {
            let what = format!("`parameters` has \"{}\"", key.escape_debug());
            f.error(parameter.at, what, "names have letters, digits and underscores only");
        }
        values.insert(key, value);
    }
    let (provider, agent) = (provider.to_owned(), agent.to_owned());
    Some(ServiceKind::Ocf(Ocf { provider, agent, parameters: values }))
}

fn unit(s: &Section<'_, '_>, f: &mut Findings) -> Option<ServiceKind> {
    let name = s.required("unit", "vsftpd.service", f)?;
    let odd = |c: char| !c.is_ascii_alphanumeric() && !":-_.\\@".contains(c);
    // systemd.unit(5); those that can't be started by themselves, like slices and scopes, are left out.
    let types = [".service", ".socket", ".target", ".timer", ".path", ".mount"];
    let has_type =
        types.iter().any(|kind| name.value.strip_suffix(kind).is_some_and(|rest| !rest.is_empty()));
    if name.value.chars().any(odd) || name.value.len() > 255 || !has_type || name.value.contains("@.") {
        let what = format!("\"{}\" is no unit of systemd", name.value.escape_debug());
        f.error(
            name.at,
            what,
            "write it with its type, as \"vsftpd.service\" or \"vsftpd@projects.service\"",
        );
        return None;
    }
    Some(ServiceKind::Systemd(Unit { unit: name.value }))
}

fn ganesha(s: &Section<'_, '_>, f: &mut Findings) -> Option<ServiceKind> {
    let program = s.text("program", f).map_or("ganesha.nfsd".to_owned(), |t| t.value);
    let mut exports: Vec<Export> = Vec::new();
    let (mut paths, mut pseudos) = (HashMap::new(), HashMap::new());
    for section in s.sections("exports", "`exports`", EXPORT, f) {
        let Some(export) = export(&section, f) else { continue };
        let twice = |what: &Path| {
            let what = format!("{} is exported twice", what.display());
            (what, "leave one of the two out, or give it another `pseudo`".to_owned())
        };
        if unique(&mut paths, &export.path, section.at, f, || twice(&export.path)) {
            unique(&mut pseudos, &export.pseudo, section.at, f, || twice(&export.pseudo));
        }
        exports.push(export);
    }
    let protocols = protocols(s, f)?;
    Some(ServiceKind::NfsGanesha(Ganesha { program, protocols, exports }))
}

fn protocols(s: &Section<'_, '_>, f: &mut Findings) -> Option<BTreeSet<u8>> {
    let Some(at) = s.key("protocols") else { return Some(BTreeSet::from([4])) };
    let list = s.list("protocols", f, |v, _, _| Some(v.as_integer()))?.value;
    let known: Vec<Option<u8>> = list
        .into_iter()
        .map(|n| match n {
            Some(3) => Some(3),
            Some(4) => Some(4),
            _ => None,
        })
        .collect();
    let found: Option<BTreeSet<u8>> = known.into_iter().collect();
    let found = found.filter(|p| !p.is_empty());
    if found.is_none() {
        f.error(at, "`protocols` holds something that is no version of NFS", "write [4] or [3, 4]");
    }
    found
}

fn export(s: &Section<'_, '_>, f: &mut Findings) -> Option<Export> {
    let path = required_path(s, "path", "/srv/projects", f)?;
    let pseudo = s.path("pseudo", f).map_or_else(|| path.value.clone(), |p| p.value.components().collect());
    for text in [&path.value, &pseudo] {
        // What would end the quoted text in the daemon's own configuration.
        if text.to_string_lossy().chars().any(|c| matches!(c, '"' | '\\') || c.is_control()) {
            f.error(
                s.at,
                format!("\"{}\" can't be exported", text.to_string_lossy().escape_debug()),
                "choose a name without quotes, backslashes and control characters",
            );
            return None;
        }
    }
    let clients = s.list("clients", f, |v, called, f| text_of(v, called, "texts in quotes", f));
    let clients = clients.map_or(Vec::new(), |l| l.value);
    let good = |c: &At<String>| {
        !c.value.is_empty()
            && c.value.bytes().all(|b| {
                b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'/' | b'-' | b'_' | b'*' | b'@')
            })
    };
    if let Some(odd) = clients.iter().find(|c| !good(c)) {
        let what = format!("`clients` has \"{}\"", odd.value.escape_debug());
        f.error(odd.at, what, "write an address, a subnet, a name or \"*\"");
        return None;
    }
    Some(Export {
        path: path.value,
        pseudo,
        read_only: s.flag("read_only", f).unwrap_or(false),
        squash: s.word("squash", &["none", "root", "all"], f).map_or("root".to_owned(), |w| w.value),
        clients: clients.into_iter().map(|c| c.value).collect(),
    })
}
