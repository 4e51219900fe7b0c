//! `/proc/PID/mountinfo` (proc(5)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number, major and minor.
    pub device: (u32, u32),
    /// Which folder of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Options of this mount.
    pub options: String,
    /// Type of the file system.
    pub kind: String,
    /// What was mounted, as it was given.
    pub source: PathBuf,
    /// Options of the file system.
    pub super_options: String,
}

impl Mount {
    /// What is wrong with it. ext4 stops taking writes after an error that it can't mend, and shows that here.
    pub fn is_damaged(&self, read_only: bool) -> Option<&'static str> {
        let has = |word| self.super_options.split(',').any(|option| option == word);
        if has("shutdown") {
            return Some("has shut down after an error");
        }
        ((has("ro") || has("emergency_ro")) && !read_only).then_some("has turned read-only after an error")
    }
}

/// The mounts that the calling thread sees, in the order in which they were made.
///
/// # Errors
/// /proc can't be read.
pub fn read() -> io::Result<Vec<Mount>> {
    fs::read("/proc/thread-self/mountinfo").map(|text| parse(&String::from_utf8_lossy(&text)))
}

/// Takes the text apart; lines that can't be understood are left out.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mount> {
    let (mount, rest) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let (major, minor) = mount.next()?.split_once(':')?;
    let (root, point, options) = (mount.next()?, mount.next()?, mount.next()?);
    let mut rest = rest.split(' ');
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: unescaped(root),
        point: unescaped(point),
        options: options.to_owned(),
        kind: rest.next()?.to_owned(),
        source: unescaped(rest.next()?),
        super_options: rest.next().unwrap_or_default().to_owned(),
    })
}

/// Space, tab, newline and backslash are written as three octal digits after a backslash.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..b'8').contains(b)));
        match digits {
            Some(digits) => {
                bytes.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8) + (digit - b'0')));
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec(bytes).into()
}

/// The mount that is reached at this place, the topmost one.
pub fn at<'a>(mounts: &'a [Mount], point: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|m| m.point == point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
37 21 7:3 / /srv/with\\040space\\134 rw,nosuid - ext4 /dev/loop3 ro
40 21 0:41 /sub /srv/a rw master:2 propagate_from:1 - tmpfs none rw,size=4k
41 21 7:4 / /srv/a rw - xfs /dev/loop4 rw,emergency_ro
nonsense
";

    #[test]
    fn mounts_are_read() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 4);
        let odd = at(&mounts, Path::new("/srv/with space\\")).expect("there");
        assert_eq!((odd.device, odd.kind.as_str()), ((7, 3), "ext4"));
        assert_eq!((odd.options.as_str(), odd.super_options.as_str()), ("rw,nosuid", "ro"));
        assert_eq!(odd.source, Path::new("/dev/loop3"));
        assert_eq!(at(&mounts, Path::new("/srv/a")).expect("there").device, (7, 4), "the topmost");
        assert_eq!(mounts[2].root, Path::new("/sub"));
        assert_eq!(at(&mounts, Path::new("/srv")), None);
        assert!(!read().expect("readable").is_empty());
    }

    #[test]
    fn damage_shows_in_the_options() {
        let mounts = parse(TEXT);
        let damage = |n: usize, read_only| mounts[n].is_damaged(read_only);
        assert_eq!(damage(0, false), None, "errors=remount-ro is no error");
        assert_eq!((damage(1, false), damage(1, true)), (Some("has turned read-only after an error"), None));
        assert!(damage(3, false).is_some());
    }
}
