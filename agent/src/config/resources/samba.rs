//! Services of the kind `samba`.

use super::*;

/// The preset for Samba.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samba {
    /// The program, looked up on PATH unless it is a path.
    pub program: String,
    /// A file with more settings for all shares; absolute.
    pub include: Option<PathBuf>,
    /// What is shared; never empty.
    pub shares: Vec<Share>,
}

/// A shared folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its name for clients.
    pub name: String,
    /// The folder; absolute.
    pub path: PathBuf,
    /// Nobody may write.
    pub read_only: bool,
    /// Those without a password may use it.
    pub guest: bool,
    /// Who may use it: names, and groups as `@group`; empty: everybody who has a password.
    pub valid_users: Vec<String>,
    /// The user of this node that everybody reads and writes as.
    pub force_user: Option<String>,
}

/// What a service of this kind has besides what all have.
pub(super) const KEYS: &[&str] = &["shares", "include", "program"];
const SHARE: &[&str] = &["name", "path", "read_only", "guest", "valid_users", "force_user"];
/// What Samba takes as something else (smb.conf(5)).
const RESERVED: [&str; 5] = ["global", "homes", "printers", "print$", "ipc$"];
/// Bytes of a share's name (MS-SRVS, 2.2.4.23).
const LONGEST_NAME: usize = 80;

pub(super) fn read(s: &Section<'_, '_>, f: &mut Findings) -> Option<ServiceKind> {
    let program = s.text("program", f).map_or("smbd".to_owned(), |t| t.value);
    let include = s.key("include").map(|_| s.path("include", f).filter(|path| is_writable(path, f)));
    let mut names = HashMap::new();
    let mut shares: Vec<Share> = Vec::new();
    for section in s.sections("shares", "`shares`", SHARE, f) {
        let Some(share) = share(&section, f) else { continue };
        unique(&mut names, &share.name.to_lowercase(), section.at, f, || {
            let what = format!("there are two shares \"{}\"", share.name);
            (what, "give one of the two another `name`; capitals make no difference".to_owned())
        });
        shares.push(share);
    }
    if s.has_items("shares") && shares.is_empty() {
        return None;
    }
    let include = match include {
        Some(None) => return None,
        Some(include) => include.map(|path| path.value),
        None => None,
    };
    Some(ServiceKind::Samba(Samba { program, include, shares }))
}

fn share(s: &Section<'_, '_>, f: &mut Findings) -> Option<Share> {
    let path = read::required_path(s, "path", "/srv/projects", f)?;
    if !is_writable(&path, f) {
        return None;
    }
    let name = match s.key("name") {
        Some(_) => s.text("name", f)?,
        None => At { value: name_of(&path.value), at: s.at },
    };
    if !name_may_be(&name.value) {
        let what = format!("\"{}\" can't be the name of a share", name.value.escape_debug());
        f.error(name.at, what, "write name = \"projects\", with letters, digits and the like");
        return None;
    }
    let users = s.list("valid_users", f, |v, called, f| text_of(v, called, "texts in quotes", f));
    let users = users.map_or(Vec::new(), |l| l.value);
    if let Some(odd) = users.iter().find(|u| !user_may_be(&u.value)) {
        let what = format!("`valid_users` has \"{}\"", odd.value.escape_debug());
        f.error(odd.at, what, "write a user, as \"alice\", or a group, as \"@staff\"");
        return None;
    }
    let force_user = s.text("force_user", f);
    if let Some(odd) = force_user.as_ref().filter(|u| u.value.starts_with('@') || !user_may_be(&u.value)) {
        let what = format!("`force_user` is \"{}\"", odd.value.escape_debug());
        f.error(odd.at, what, "write a user of this node, as \"nobody\"");
        return None;
    }
    Some(Share {
        name: name.value,
        path: path.value,
        read_only: s.flag("read_only", f).unwrap_or(false),
        guest: s.flag("guest", f).unwrap_or(false),
        valid_users: users.into_iter().map(|u| u.value).collect(),
        force_user: force_user.map(|u| u.value),
    })
}

/// May a path stand in smb.conf? What would be replaced there, go on in the next line, or be cut off, may not.
fn is_writable(path: &At<PathBuf>, f: &mut Findings) -> bool {
    let text = path.value.to_string_lossy();
    let odd = text.chars().any(|c| matches!(c, '"' | '\\' | '%') || c.is_control());
    let good = !odd && text.trim() == text;
    if !good {
        f.error(
            path.at,
            format!("\"{}\" can't be written into Samba's configuration", text.escape_debug()),
            "choose a name without quotes, backslashes, percent signs, control characters and spaces at its ends",
        );
    }
    good
}

fn name_may_be(name: &str) -> bool {
    let odd = |c: char| "/\\[]:|<>+=;,*?\"%".contains(c) || c.is_control();
    !name.is_empty()
        && name.len() <= LONGEST_NAME
        && !name.chars().any(odd)
        && name.trim() == name
        && !RESERVED.contains(&name.to_lowercase().as_str())
}

fn user_may_be(user: &str) -> bool {
    let name = user.strip_prefix('@').unwrap_or(user);
    let odd = |c: char| matches!(c, '"' | '%' | ',' | ';') || c.is_control();
    !name.is_empty()
        && !name.chars().any(odd)
        && name.trim() == name
        && !name.starts_with(['@', '+', '&'])
        && !name.ends_with('\\')
}

/// A share is named after its folder.
fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// A file system that is shared because nothing else is said.
pub(super) fn share_of(filesystem: &Filesystem) -> Share {
    Share {
        name: name_of(&filesystem.mount),
        path: filesystem.mount.clone(),
        read_only: false,
        guest: false,
        valid_users: Vec::new(),
        force_user: None,
    }
}

/// What a virtual server shares, with its file systems in view.
pub(super) fn check(server: &RawServer, f: &mut Findings) {
    let RawResources { mounts, filesystems, services, .. } = &server.resources;
    let mut daemons = HashMap::new();
    for service in services {
        let ServiceKind::Samba(Samba { shares, .. }) = &service.value.kind else { continue };
        unique(&mut daemons, &(), service.at, f, || {
            let what = "the virtual server has two services \"samba\"".to_owned();
            (what, "put all shares into one of them".to_owned())
        });
        if shares.is_empty() && filesystems.is_empty() && mounts.is_empty() {
            f.error(
                service.at,
                "nothing is shared: the virtual server has no file system",
                "add a [[virtual_server.filesystem]], or shares = [{ path = \"/srv/projects\" }]",
            );
        }
        let mut names = HashMap::new();
        let implied: &[At<Filesystem>] = if shares.is_empty() { filesystems } else { &[] };
        for filesystem in implied {
            let share = share_of(&filesystem.value);
            let fix = "write the shares out: shares = [{ name = \"projects\", path = \"/srv/projects\" }]";
            if !name_may_be(&share.name) || !is_writable(&At { value: share.path, at: service.at }, f) {
                let what = format!("\"{}\" can't be the name of a share", share.name.escape_debug());
                f.error(service.at, what, fix);
            } else {
                unique(&mut names, &share.name.to_lowercase(), service.at, f, || {
                    (format!("two file systems would be shared as \"{}\"", share.name), fix.to_owned())
                });
            }
        }
        for share in shares {
            if !mounts.is_empty() && !mounts.iter().any(|m| share.path.starts_with(&m.value)) {
                f.warn(
                    service.at,
                    format!("{} is on none of the virtual server's file systems", share.path.display()),
                    "another node has other files there; share a folder below one of its mount points",
                );
            }
        }
    }
}
