//! Agents whose maps have other sizes: values that are shorter or longer, maps that hold fewer entries or more. The pins of an agent
//! of today are given the name of another layout, and maps of the other sizes take the place of its own, with what they held. Its
//! programs go on serving by what they were loaded with.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::maps::{HashMap, MapData, MapType};
use baton_common::{MAX_MEMBERS, MAX_PORTS, MAX_VIPS, Vip};

use super::*;

/// Commands of bpf(2).
const MAP_CREATE: libc::c_int = 0;
const LOOKUP: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const PIN: libc::c_int = 6;
const BTF_LOAD: libc::c_int = 18;

/// The maps whose sizes may be others in another version. `AGENT` is memory-mapped by whoever runs, and has but one field.
const SIZED: [&str; 8] =
    ["VIPS", "ROUTES", "SERVERS", "LEASE", "PEERS", "VERDICTS", "COUNTERS", "DIAGNOSTICS"];

/// How the maps of the other layout differ from those of this one.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Beside this version.
    version: i32,
    /// Bytes more at the end of each value (fewer, if negative).
    longer: i32,
    /// Entries, instead of what there are.
    entries: fn(&str, u32) -> u32,
}

const LAYOUTS: [Sizes; 4] = [
    // A field was added since to whatever can have lost one: without it nothing else changes its meaning.
    Sizes { version: -1, longer: -8, entries: |_, now| now },
    // There were fewer virtual IPs, virtual servers and members.
    Sizes { version: -1, longer: 0, entries: fewer },
    // A newer one, from which this one is gone back to.
    Sizes { version: 1, longer: 8, entries: |_, now| now },
    Sizes { version: 1, longer: 8, entries: more },
];

fn fewer(name: &str, now: u32) -> u32 {
    match name {
        "VIPS" | "ROUTES" | "COUNTERS" => 64,
        "SERVERS" => 16,
        "PEERS" => now / 2,
        // Its keys say another thing then.
        "VERDICTS" => now / 4,
        _ => now,
    }
}

fn more(name: &str, now: u32) -> u32 {
    match name {
        "LEASE" | "DIAGNOSTICS" => now,
        "VERDICTS" => now * 4,
        _ => now * 2,
    }
}

/// A map, as bytes.
struct Bytes {
    fd: RawFd,
    value: usize,
    stride: usize,
    cpus: usize,
    flags: u64,
}

impl Bytes {
    fn get(&self, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.stride * self.cpus];
        let attributes = [self.fd as u64, (&raw const index) as u64, bytes.as_mut_ptr() as u64, self.flags];
        bpf(LOOKUP, &attributes).expect("an entry of an array");
        bytes
    }

    fn set(&self, index: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.stride * self.cpus);
        let attributes = [self.fd as u64, (&raw const index) as u64, bytes.as_ptr() as u64, self.flags];
        bpf(UPDATE, &attributes).expect("an array takes what it has room for");
    }
}

/// bpf(2), with attributes that are made of 64-bit words.
fn bpf(command: libc::c_int, attributes: &[u64]) -> std::io::Result<RawFd> {
    // SAFETY: the attributes point to buffers of the sizes that the map has, which outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// Two 32-bit fields that lie one behind the other.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// Types of a value with a lock in front of this many bytes (Documentation/bpf/btf.rst): that of keys is 1, that of values 4.
fn locked_types(value: usize) -> OwnedFd {
    const STRINGS: &[u8] = b"\0int\0bpf_spin_lock\0val\0lock\0rest\0";
    let at = |name: &str| STRINGS.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() as u32;
    let words = (value as u32 - 4) / 4;
    let types: Vec<u32> = [
        &[at("int"), 1 << 24, 4, 32][..],                        // 1: an integer
        &[at("bpf_spin_lock"), 4 << 24 | 1, 4, at("val"), 1, 0], // 2: struct, one member
        &[0, 3 << 24, 0, 1, 1, words],                           // 3: array
        &[at("rest"), 4 << 24 | 2, value as u32, at("lock"), 2, 0, at("rest"), 3, 32], // 4: struct, two members
    ]
    .concat();
    let length = (types.len() * 4) as u32;
    let mut btf = Vec::new();
    btf.extend(0xeb9f_u16.to_ne_bytes());
    btf.extend([1, 0]);
    for word in [24, 0, length, length, STRINGS.len() as u32] {
        btf.extend(word.to_ne_bytes());
    }
    types.iter().for_each(|word| btf.extend(word.to_ne_bytes()));
    btf.extend(STRINGS);
    let fd = bpf(BTF_LOAD, &[btf.as_ptr() as u64, 0, pair(btf.len() as u32, 0), 0]).expect("types");
    // SAFETY: the kernel has just made it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn open(path: &Path, name: &str) -> (MapData, Bytes) {
    let map = MapData::from_pin(path.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let info = map.info().unwrap();
    let value = info.value_size() as usize;
    let per_cpu = matches!(info.map_type().unwrap(), MapType::PerCpuArray);
    let (stride, cpus) = match per_cpu {
        true => (value.next_multiple_of(8), aya::util::nr_cpus().unwrap()),
        false => (value, 1),
    };
    let flags = if matches!(name, "LEASE" | "PEERS") { 4 } else { 0 }; // BPF_F_LOCK
    let fd = map.fd().as_fd().as_raw_fd();
    (map, Bytes { fd, value, stride, cpus, flags })
}

/// Puts a map of another size in the place of this one, with what both have room for.
fn resize(dir: &Path, name: &str, sizes: Sizes) {
    let (map, from) = open(dir, name);
    let info = map.info().unwrap();
    let longer = match name {
        // What is shorter than today would not have been a layout: it would not say which address, which server, which verdict.
        "ROUTES" | "SERVERS" | "VERDICTS" if sizes.longer < 0 => 0,
        // The link of a chain: not carried, for this layout has chains of its own.
        "VIPS" if sizes.longer < 0 => -4,
        _ => sizes.longer,
    };
    let value = from.value.checked_add_signed(longer as isize).unwrap();
    let entries = (sizes.entries)(name, info.max_entries());
    let types = (from.flags != 0).then(|| locked_types(value));
    let kind = info.map_type().unwrap() as u32;
    let mut attributes = [0; 9];
    attributes[0] = pair(kind, 4);
    attributes[1] = pair(value as u32, entries);
    if let Some(types) = &types {
        // btf_fd, btf_key_type_id; btf_value_type_id
        attributes[6] = pair(types.as_raw_fd() as u32, 1);
        attributes[7] = pair(4, 0);
    }
    let fd = bpf(MAP_CREATE, &attributes).unwrap_or_else(|e| panic!("{name}: {e}"));
    // SAFETY: the kernel has just made it.
    let new = unsafe { OwnedFd::from_raw_fd(fd) };
    let stride = if from.cpus > 1 { value.next_multiple_of(8) } else { value };
    let to = Bytes { fd: new.as_raw_fd(), value, stride, ..from };
    for index in 0..entries.min(info.max_entries()) {
        let had = from.get(index);
        if had.iter().all(|byte| *byte == 0) {
            continue;
        }
        let mut has = vec![0; to.stride * to.cpus];
        for (had, has) in had.chunks(from.stride).zip(has.chunks_mut(to.stride)) {
            let both = from.value.min(to.value);
            has[..both].copy_from_slice(&had[..both]);
            // A field of which this layout knows nothing.
            has[both..to.value].fill(0xff);
        }
        to.set(index, &has);
    }
    let path = dir.join(name);
    std::fs::remove_file(&path).unwrap();
    let text = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    bpf(PIN, &[text.as_ptr() as u64, u64::from(to.fd as u32)]).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// More hardware addresses of a port than this layout has room for.
fn more_macs(dir: &Path, port: IfIndex) {
    let mut macs = HashMap::<MapData, [u8; 6], u32>::create(2 * MAX_PORTS, 0).unwrap();
    for n in 0..(MAX_PORTS + 20) as u16 {
        let [high, low] = n.to_be_bytes();
        macs.insert([2, 0, 0, 0, high, low], port.0, 0).unwrap();
    }
    let path = dir.join("OWN_MACS");
    std::fs::remove_file(&path).unwrap();
    macs.pin(&path).unwrap();
}

/// What the programs keep of other members: slot, and words of the value.
const MEMBER: u32 = 2;
const NODE: u64 = 7;
const CONDEMNED: u64 = 41;
/// Where in a locked [`baton_common::Peer`]: behind the lock, the eight-byte words before it.
const CONDEMNED_AT: usize = 8 + std::mem::offset_of!(baton_common::Peer, condemned);
/// Who told it, of whom.
const VERDICT: u32 = 3 * MAX_MEMBERS as u32 + 1;

/// A verdict of this node's own, and one that it was told.
fn judge(dir: &Path) {
    let (_peers, peers) = open(dir, "PEERS");
    let mut peer = peers.get(MEMBER);
    peer[8..16].copy_from_slice(&NODE.to_ne_bytes());
    peer[CONDEMNED_AT..CONDEMNED_AT + 8].copy_from_slice(&CONDEMNED.to_ne_bytes());
    peers.set(MEMBER, &peer);
    let (_verdicts, verdicts) = open(dir, "VERDICTS");
    verdicts.set(VERDICT, &CONDEMNED.to_ne_bytes());
}

#[test]
fn takes_over_maps_of_other_sizes_without_a_gap() {
    for sizes in LAYOUTS {
        std::thread::spawn(move || takes_over(sizes)).join().unwrap_or_else(|_| panic!("{sizes:?}"));
    }
}

fn takes_over(sizes: Sizes) {
    let segment = Segment::new();
    let pins = PinDir::new("sizes");
    let this = pins.path().join(format!("v{LAYOUT_VERSION}"));
    let other = pins.path().join(format!("v{}", LAYOUT_VERSION.checked_add_signed(sizes.version).unwrap()));
    let mut first = Kernel::open_with(pins.path(), Hooks::default()).unwrap();
    segment.bind(&segment.ports[1]);
    serve(&mut first, &segment.ports[1]);
    let attached = attach_all(&mut first, &segment);
    // Nobody asks the one while the maps are replaced: what was counted is all there is.
    assert_eq!(segment.ping(VIP6, 30).recv().unwrap(), 30);
    let had = counters(&first, VIP6);
    assert_eq!((had.rx_packets, had.tx_packets), (30, 30));
    drop(first);
    judge(&this);

    let pinging = segment.ping(VIP, 2000);
    std::fs::rename(&this, &other).unwrap();
    SIZED.iter().for_each(|name| resize(&other, name, sizes));
    if (sizes.entries)("VIPS", MAX_VIPS) > MAX_VIPS {
        // A virtual IP at a slot that this layout doesn't have.
        let (_vips, vips) = open(&other, "VIPS");
        let mut vip = vips.get(0);
        let at = std::mem::offset_of!(Vip, address);
        vip[at..at + 4].copy_from_slice(&[10, 0, 0, 99]);
        vips.set(MAX_VIPS + 5, &vip);
        more_macs(&other, segment.ports[0].ifindex);
    }

    let mut next = Kernel::open_with(pins.path(), Hooks::default()).unwrap();
    assert_eq!(next.lease().unwrap(), LEASE);
    let bound = next.bound();
    assert_eq!(bound.len(), 2, "{bound:?}");
    for vip in [VIP, VIP6] {
        assert_eq!(bound[&address(vip)], segment.ports[1].ifindex);
    }
    let marked = next.adopt_servers(&["files"], INCARNATION).unwrap();
    assert!(marked.contains("files"), "{marked:?}");
    assert_eq!(attach_all(&mut next, &segment), attached);
    assert!(other.exists(), "removed while its programs may run");
    next.finish_takeover().unwrap();
    assert!(!other.exists(), "left behind");
    assert_eq!(pinging.recv().unwrap(), 2000, "a datagram was lost");

    let of = |c: &Counters| (c.rx_packets, c.rx_bytes, c.tx_packets, c.tx_bytes);
    assert_eq!(of(&counters(&next, VIP6)), of(&had));
    assert_eq!(segment.ping(VIP6, 20).recv().unwrap(), 20);
    assert_eq!(counters(&next, VIP6).rx_packets, 50, "counts go on from there");

    // Verdicts are final: a member that was called dead is so for this layout's programs as well.
    let (_peers, peers) = open(&this, "PEERS");
    let peer = peers.get(MEMBER);
    assert_eq!(peer.len(), 8 + size_of::<baton_common::Peer>());
    assert_eq!(peer[8..16], NODE.to_ne_bytes());
    assert_eq!(peer[CONDEMNED_AT..CONDEMNED_AT + 8], CONDEMNED.to_ne_bytes());
    let refused = 8 + std::mem::offset_of!(baton_common::Peer, refused);
    assert_eq!(peer[refused..refused + 8], [0; 8], "a field that the other layout didn't have");
    // What others told is kept where its place means the same, and never taken for what was told of somebody else.
    let (_verdicts, verdicts) = open(&this, "VERDICTS");
    let places = (MAX_MEMBERS * MAX_MEMBERS) as u32;
    let told: Vec<u32> = (0..places).filter(|index| verdicts.get(*index) != [0; 8]).collect();
    let same = (sizes.entries)("VERDICTS", places) == places;
    assert_eq!(told, if same { vec![VERDICT] } else { Vec::new() });
}
