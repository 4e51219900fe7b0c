//! ext4's multiple mount protection (fs/ext4/mmp.c): whoever has it mounted writes a block again and again, and whoever mounts it
//! waits first to see whether somebody does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::config::Resources;

/// Where the superblock is, and its length.
const SUPERBLOCK: (u64, usize) = (1024, 1024);
/// INCOMPAT_MMP.
const PROTECTED: u32 = 0x100;
/// EXT4_MMP_MIN_CHECK_INTERVAL and EXT4_MMP_MAX_CHECK_INTERVAL, in seconds.
const LIMITS: (u64, u64) = (5, 300);
/// EXT4_MMP_CHECK_MULT: so many times the time between two of its writes is what others are told to wait.
const MULTIPLE: u64 = 2;
/// EXT4_MMP_MAGIC.
const MAGIC: u32 = 0x004D_4D50;

/// How long a mount waits where the file system was not unmounted before; `None`: it is not protected, or no ext4.
///
/// # Errors
/// It can't be read.
pub fn delay(device: &Path) -> io::Result<Option<Duration>> {
    let file = File::open(device)?;
    let mut block = [0; SUPERBLOCK.1];
    match file.read_exact_at(&mut block, SUPERBLOCK.0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let word = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let long = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let is_ext4 = word(&block, 0x38) == 0xEF53;
    if !is_ext4 || long(&block, 0x60) & PROTECTED == 0 {
        return Ok(None);
    }
    let mut interval = (MULTIPLE * u64::from(word(&block, 0x166))).clamp(LIMITS.0, LIMITS.1);
    let place = u64::from(long(&block, 0x168)) | u64::from(long(&block, 0x16c)) << 32;
    let size = 1024u64 << long(&block, 0x18).min(6);
    let mut mmp = [0; 128];
    // Whoever has had it mounted last may have written longer ones.
    if file.read_exact_at(&mut mmp, place.saturating_mul(size)).is_ok() && long(&mmp, 0) == MAGIC {
        interval = interval.max(u64::from(word(&mmp, 112)));
    }
    // Once to see that nobody writes, and once after it has written itself: 44 s were measured for what is 42 s here.
    let once = (2 * interval + 1).min(interval + 60);
    Ok(Some(Duration::from_secs(2 * once)))
}

/// A line for each file system that is protected, where its device is there.
pub fn announce(resources: &[Resources]) -> Vec<String> {
    let all = resources.iter().flat_map(|r| r.filesystems.iter().map(move |fs| (r, fs)));
    let ext4 = all.filter(|(_, fs)| fs.kind == "ext4");
    ext4.filter_map(|(resources, fs)| {
        let delay = delay(&fs.device).ok()??;
        let seconds = delay.as_secs();
        let short = if fs.start_limit < delay {
            format!(", longer than its start_limit of {} s: raise that", fs.start_limit.as_secs())
        } else {
            String::new()
        };
        Some(format!(
            "{} of {} has ext4's multiple mount protection: a takeover waits up to {seconds} s when it mounts it{short}",
            fs.device.display(),
            resources.server
        ))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with such a file system, or `None` without mke2fs.
    fn image(options: &[&str]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(16 << 20).expect("room");
        let made = std::process::Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .args(options)
            .arg(file.path())
            .status()
            .expect("mkfs.ext4(8)");
        assert!(made.success());
        file
    }

    #[test]
    fn protection_is_read_from_the_superblock() {
        let plain = image(&[]);
        assert_eq!(delay(plain.path()).expect("read"), None);
        let protected = image(&["-O", "mmp"]);
        // 2 (2 × 2 × 5 + 1)
        assert_eq!(delay(protected.path()).expect("read"), Some(Duration::from_secs(42)));
        let slow = image(&["-O", "mmp", "-E", "mmp_update_interval=100"]);
        assert_eq!(delay(slow.path()).expect("read"), Some(Duration::from_secs(520)));
    }

    #[test]
    fn a_mount_that_waits_for_longer_than_it_may_is_told() {
        let file = image(&["-O", "mmp"]);
        let filesystem = |kind: &str, seconds| crate::config::Filesystem {
            device: file.path().to_owned(),
            mount: "/srv/projects".into(),
            kind: kind.into(),
            options: String::new(),
            fsck: false,
            start_limit: Duration::from_secs(seconds),
            stop_limit: Duration::from_secs(30),
        };
        let resources = |filesystem| Resources {
            server: "projects".into(),
            addresses: Vec::new(),
            filesystems: vec![filesystem],
            services: Vec::new(),
            fence: crate::config::Fence::None,
            storage_units: Vec::new(),
            reset_connections: true,
            private_mounts: false,
        };
        let told = announce(&[resources(filesystem("ext4", 60)), resources(filesystem("xfs", 60))]);
        let expected = format!(
            "{} of projects has ext4's multiple mount protection: a takeover waits up to 42 s when it mounts it",
            file.path().display()
        );
        assert_eq!(told, [expected.as_str()]);
        let told = announce(&[resources(filesystem("ext4", 20))]);
        assert_eq!(told, [expected + ", longer than its start_limit of 20 s: raise that"]);
    }

    #[test]
    fn what_is_no_file_system_is_not_protected() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(delay(file.path()).expect("read"), None);
        file.as_file().set_len(1 << 20).expect("room");
        assert_eq!(delay(file.path()).expect("read"), None);
        assert!(delay(Path::new("/nowhere/at/all")).is_err());
    }
}
