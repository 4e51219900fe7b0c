//! Where the running kernel keeps the members of its structures: its own description of its types (BTF, Documentation/bpf/btf.rst).

use std::fs;
use std::path::Path;

use super::KernelError;

/// Where it is.
const FILE: &str = "/sys/kernel/btf/vmlinux";
/// `__LITTLE_ENDIAN` or `__BIG_ENDIAN`, as written by this machine's kernel.
const MAGIC: u16 = 0xEB9F;
/// BTF_KIND_STRUCT.
const STRUCT: u32 = 4;

/// A structure and one of its members.
pub(super) type Member = (&'static str, &'static str);

/// The offsets of these members in bytes, in the same order.
///
/// # Errors
///
/// The description can't be read or understood, or lacks one of them.
pub(super) fn offsets<const N: usize>(members: [Member; N]) -> Result<[u32; N], KernelError> {
    let fail = |what: String| KernelError::Types { path: FILE, what };
    let bytes = fs::read(Path::new(FILE)).map_err(|e| fail(e.to_string()))?;
    let found = find(&bytes, members).ok_or_else(|| fail("it can't be understood".to_owned()))?;
    let mut offsets = [0; N];
    for ((place, found), (structure, member)) in offsets.iter_mut().zip(found).zip(members) {
        *place = found.ok_or_else(|| fail(format!("no member {member} of struct {structure}")))?;
    }
    Ok(offsets)
}

/// `None`: this is no such description.
fn find<const N: usize>(bytes: &[u8], members: [Member; N]) -> Option<[Option<u32>; N]> {
    let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    if u16::from_ne_bytes(*bytes.first_chunk()?) != MAGIC {
        return None;
    }
    let header = word(4)? as usize;
    let (types, length) = (header.checked_add(word(8)? as usize)?, word(12)? as usize);
    let strings = bytes.get(header.checked_add(word(16)? as usize)?..)?;
    let is_named = |name: u32, wanted: &str| {
        let name = strings.get(name as usize..).and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        name.is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut found = [None; N];
    let (mut at, end) = (types, types.checked_add(length)?);
    while at < end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        at += 12;
        if kind == STRUCT {
            for ((structure, member), place) in members.iter().zip(&mut found) {
                if place.is_none() && is_named(name, structure) {
                    for number in 0..count {
                        let (name, bits) = (word(at + 12 * number)?, word(at + 12 * number + 8)?);
                        if is_named(name, member) {
                            // With the flag, the upper eight bits are the size of a bit field.
                            *place = Some(if info >> 31 == 1 { bits & 0xff_ffff } else { bits } / 8);
                        }
                    }
                }
            }
        }
        // What follows the twelve bytes that each type begins with.
        at += match kind {
            1 | 14 | 17 => 4,              // integer, variable, declaration tag
            3 => 12,                       // array
            4 | 5 | 15 | 19 => count * 12, // structure, union, data section, enumeration of 64 bits
            6 | 13 => count * 8,           // enumeration, prototype
            2 | 7..=12 | 16 | 18 => 0, // pointers, forwards, names, qualifiers, functions, floats, type tags
            _ => return None,
        };
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_this_kernel_are_found_and_others_are_missed_by_name() {
        let [queue, length, major, minor] = offsets([
            ("request", "q"),
            ("request", "__data_len"),
            ("gendisk", "major"),
            ("gendisk", "first_minor"),
        ])
        .expect("found");
        assert!(queue != length && major != minor, "{queue} {length} {major} {minor}");
        let error = offsets([("request", "q"), ("request", "no_such")]).expect_err("there is none");
        assert!(error.to_string().ends_with("no member no_such of struct request"), "{error}");
    }

    /// A description with one structure, `s`, that has the members `a` and `b`.
    fn small() -> Vec<u8> {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let words: [u32; 5 + 3 + 6] = [24, 0, 36, 36, 7, 1, STRUCT << 24 | 2, 16, 3, 0, 32, 5, 0, 64];
        bytes.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        bytes.extend(b"\0s\0a\0b\0");
        bytes
    }

    #[test]
    fn what_is_no_description_is_refused_and_never_panics() {
        let bytes = small();
        let members = [("s", "a"), ("s", "b"), ("s", "c"), ("t", "a")];
        assert_eq!(find(&bytes, members), Some([Some(4), Some(8), None, None]));
        for length in 0..bytes.len() {
            find(&bytes[..length], members);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut spoiled = bytes.clone();
                spoiled[at] = value;
                find(&spoiled, members);
            }
        }
        assert_eq!(find(b"no description", members), None);
    }
}
