//! The key that probe frames are authenticated with: 32 hexadecimal digits in a file that only its owner may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use baton_common::{SipKey, siphash24};

use crate::secrets::{self, Exposed};

/// File name in the state directory.
pub const FILE: &str = "probe.key";
/// Digits of a key.
const DIGITS: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// There is none, and the nodes of a cluster must have the same.
    #[error("{}: no such key; make one with `head -c16 /dev/urandom | od -An -tx1 | tr -d ' \\n'`, mode 600, and copy it to every node", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{}: not a key of 32 hexadecimal digits: correct it, or remove it to have a new one made", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
    },
}

/// Reads the key in the state directory; makes one if there is none.
///
/// # Errors
/// [`KeyError`]; an existing file is left as it is.
pub fn load(state: &Path) -> Result<SipKey, KeyError> {
    let path = state.join(FILE);
    match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            make(&path).map_err(|error| KeyError::File { path, error })
        }
        opened => read(&path, opened),
    }
}

fn read(path: &Path, file: io::Result<File>) -> Result<SipKey, KeyError> {
    let path = path.to_owned();
    let error = |error| KeyError::File { path: path.clone(), error };
    let mut file = file.map_err(error)?;
    secrets::guarded(&path, "the probe key", &file.metadata().map_err(error)?)?;
    // As much as tells a key from something longer.
    let mut text = String::new();
    match Read::by_ref(&mut file).take(DIGITS as u64 + 16).read_to_string(&mut text) {
        Err(e) if e.kind() != io::ErrorKind::InvalidData => Err(error(e)),
        _ => parse(text.trim()).ok_or(KeyError::Malformed { path }),
    }
}

/// Reads a key that nodes share.
///
/// # Errors
/// [`KeyError`]; a file that is missing is one too, for every node must have the same.
pub fn load_shared(path: &Path) -> Result<SipKey, KeyError> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(KeyError::Missing { path: path.to_owned() })
        }
        opened => read(path, opened),
    }
}

/// Tells two keys apart without telling either: what the key makes of a fixed text.
pub fn fingerprint(key: SipKey) -> String {
    format!("{:016x}", siphash24(key, [u64::from_be_bytes(*b"baton fp")]))
}

fn parse(text: &str) -> Option<SipKey> {
    let digits = text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
    let key = u128::from_str_radix(text, 16).ok().filter(|_| digits)?;
    Some(SipKey::from_bytes(key.to_be_bytes()))
}

/// Makes a key, whole or not at all.
fn make(path: &Path) -> io::Result<SipKey> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let new = path.with_extension("key.new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {} // left by an agent that was killed here
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    writeln!(file, "{:032x}", u128::from_be_bytes(bytes))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    Ok(SipKey::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let key = load(dir.path()).unwrap();
        assert!(key != SipKey::default());
        assert!(load(dir.path()).unwrap() == key);
        let other = parse("00000000000000000000000000000001").unwrap();
        assert_ne!(fingerprint(key), fingerprint(other));
        assert_eq!(fingerprint(other), fingerprint(parse("00000000000000000000000000000001").unwrap()));
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(parse(fs::read_to_string(path).unwrap().trim()) == Some(key));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        for text in ["", "+123456789abcdef0123456789abcdef", "0123", &"0".repeat(33), "g".repeat(32).as_str()]
        {
            fs::write(&path, text).unwrap();
            let error = load(dir.path()).unwrap_err();
            assert!(matches!(error, KeyError::Malformed { .. }), "{text:?}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, [0xff; 32]).unwrap();
        assert!(matches!(load(dir.path()).unwrap_err(), KeyError::Malformed { .. }));
    }
}
