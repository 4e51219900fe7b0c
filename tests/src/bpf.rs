//! The few calls of bpf(2) that the lab needs, and the few instructions of its programs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::fault::Direction;
use crate::wire::Mac;

/// Verdict of an XDP program: go on.
pub(crate) const XDP_PASS: i32 = 2;
/// Verdict of an XDP program: back by the interface that it came in by.
pub(crate) const XDP_TX: i32 = 3;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// The next program decides: several losses at one port add up.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// Which frames are lost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// Every one.
    All,
    /// So many of 100, at random.
    Share {
        /// How many; from 100 on all.
        percent: u8,
    },
    /// Those with this Ethernet source.
    From(Mac),
    /// All, while the only value of this array is not zero.
    While(RawFd),
    /// Those with this Ethernet source, while the only value of this array is not zero.
    FromWhile(Mac, RawFd),
}

/// Attaches a program that drops at interface `index` until the link is closed.
pub(crate) fn attach_loss(index: u32, direction: Direction, loss: Loss) -> io::Result<OwnedFd> {
    let attach_type = match direction {
        Direction::FromHost => TCX_INGRESS,
        Direction::ToHost => TCX_EGRESS,
    };
    attach(index, SCHED_CLS, attach_type, &program(loss))
}

/// An array with one value, which is 0.
pub(crate) fn array() -> io::Result<OwnedFd> {
    // Kind (BPF_MAP_TYPE_ARRAY), key, value, entries.
    call(MAP_CREATE, &[2u32, 4, 4, 1])
}

/// Sets the value of an [`array()`].
pub(crate) fn set(array: &OwnedFd, value: u32) -> io::Result<()> {
    let key = 0u32;
    let (key, value) = (std::ptr::from_ref(&key) as u64, std::ptr::from_ref(&value) as u64);
    run(MAP_UPDATE_ELEM, &[array.as_raw_fd() as u64, key, value, 0]).map(drop)
}

/// Attaches an XDP program with one verdict for every frame.
pub(crate) fn attach_xdp(index: u32, verdict: i32) -> io::Result<OwnedFd> {
    attach(index, XDP, ATTACH_XDP, &give(verdict))
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
const fn op(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}

/// r0 = `verdict`; exit.
const fn give(verdict: i32) -> [u64; 2] {
    [op(0xb7, 0, 0, verdict), op(0x95, 0, 0, 0)]
}

/// Jumps to the second verdict unless the frame has this source. The packet is in r1.
const fn other_source(Mac([a, b, c, d, e, f]): Mac) -> [u64; 5] {
    let (high, low) = (i32::from_be_bytes([a, b, c, d]), i32::from_be_bytes([0, 0, e, f]));
    [
        op(0xbf, 0x16, 0, 0), // r6 = r1, where the loads look for the packet
        op(0x20, 0, 0, 6),    // r0 = four bytes at 6, in host order
        op(0x56, 0, 4, high), // if (u32)r0 != high: second
        op(0x28, 0, 0, 10),   // r0 = two bytes at 10
        op(0x56, 0, 2, low),  // if (u32)r0 != low: second
    ]
}

fn program(loss: Loss) -> Vec<u64> {
    const GET_PRANDOM_U32: i32 = 7;
    // What decides jumps over the first of two verdicts that follow it.
    let (condition, first, second) = match loss {
        Loss::All => return give(TCX_DROP).to_vec(),
        Loss::Share { percent: 100.. } => return give(TCX_DROP).to_vec(),
        Loss::Share { percent } => {
            let limit = u32::MAX / 100 * u32::from(percent);
            // if (u32)random < limit
            let conditional = op(0xa6, 0, 2, limit.cast_signed());
            (vec![op(0x85, 0, 0, GET_PRANDOM_U32), conditional], TCX_NEXT, TCX_DROP)
        }
        Loss::From(mac) => (other_source(mac).to_vec(), TCX_DROP, TCX_NEXT),
        Loss::FromWhile(mac, array) => {
            let set = [
                op(0xbf, 0x17, 0, 0),     // r7 = r1
                op(0x18, 0x21, 0, array), // r1 = the array's value
                0,
                op(0x61, 0x10, 0, 0), // r0 = what it holds
                op(0x16, 0, 8, 0),    // if (u32)r0 == 0: second
                op(0xbf, 0x71, 0, 0), // r1 = r7
            ];
            ([&set[..], &other_source(mac)].concat(), TCX_DROP, TCX_NEXT)
        }
        Loss::While(array) => {
            let set = vec![
                op(0x18, 0x21, 0, array), // r1 = the array's value
                0,
                op(0x61, 0x10, 0, 0), // r0 = what it holds
                op(0x16, 0, 2, 0),    // if (u32)r0 == 0: second
            ];
            (set, TCX_DROP, TCX_NEXT)
        }
    };
    [condition, give(first).to_vec(), give(second).to_vec()].concat()
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD (include/uapi/linux/bpf.h), up to `expected_attach_type`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The start of `union bpf_attr` for BPF_LINK_CREATE, with the empty tcx part.
#[repr(C)]
#[derive(Default)]
struct Link {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: [u64; 2],
}

fn attach(interface: u32, kind: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let load = Load {
        kind,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type,
        name: *b"lab_verdict\0\0\0\0\0",
        ..Load::default()
    };
    let program = call(PROG_LOAD, &load)?;
    let number = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
    let link = Link { program: number, interface, attach_type, ..Link::default() };
    call(LINK_CREATE, &link)
}

/// A command that makes a descriptor.
fn call<T>(command: libc::c_int, attribute: &T) -> io::Result<OwnedFd> {
    let fd = run(command, attribute)?;
    // SAFETY: the descriptor is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn run<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_int> {
    // SAFETY: `attribute` is the start of the union for this command, of the length given; the kernel takes the rest as
    // zero. What it points to outlives the call, which copies it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    match i32::try_from(result).map_err(io::Error::other)? {
        failed if failed < 0 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}
