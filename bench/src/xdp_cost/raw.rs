//! Programs of a few instructions, loaded and run by bpf(2) itself: the floor that the kernel programs are measured
//! against, and a walk over many addresses that ends in a tail call to the program under test.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const XDP_HAS_FRAGS: u32 = 1 << 5;

/// Where a hook's context has the frame, and what lets it pass.
#[derive(Clone, Copy)]
pub struct Hook {
    prog_type: u32,
    prog_flags: u32,
    attach_type: u32,
    data: i16,
    data_end: i16,
    pass: i32,
}

/// XDP, with the flag and the attach type (BPF_XDP) that `port_rx` has: a tail call needs both on both sides.
pub const XDP: Hook =
    Hook { prog_type: 6, prog_flags: XDP_HAS_FRAGS, attach_type: 37, data: 0, data_end: 4, pass: 2 };
/// TC.
pub const TC: Hook = Hook { prog_type: 3, prog_flags: 0, attach_type: 0, data: 76, data_end: 80, pass: -1 };

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: (src << 4) | dst, offset, immediate }
}

const MOV64_REG: u8 = 0xbf;
const MOV64_IMM: u8 = 0xb7;
const ADD64_IMM: u8 = 0x07;
const ADD32_IMM: u8 = 0x04;
const MUL32_IMM: u8 = 0x24;
const RSH32_IMM: u8 = 0x74;
const MOD32_IMM: u8 = 0x94;
const TO_BE: u8 = 0xdc;
const LOAD32: u8 = 0x61;
const STORE32: u8 = 0x63;
const JUMP_GREATER: u8 = 0x2d;
const LOAD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const MAP_FD: u8 = 1;
const TAIL_CALL: i32 = 12;

/// A program that lets everything pass.
pub fn empty(hook: Hook) -> io::Result<OwnedFd> {
    load(hook, &[op(MOV64_IMM, 0, 0, 0, hook.pass), op(EXIT, 0, 0, 0, 0)])
}

/// A walk over addresses.
#[derive(Clone, Copy)]
pub struct Walk {
    /// Where the last four bytes of the address are in the frame.
    pub address: i16,
    /// Where the frame has four bytes to keep the walk's state in, in front of [`Walk::FRAME`].
    pub state: i16,
    /// The first address's last four bytes.
    pub base: u32,
    /// How many addresses follow each other from there, at most 65,536.
    pub count: u32,
}

impl Walk {
    /// Frames must have at least so many bytes.
    pub const FRAME: i32 = 80;
}

/// A program that puts a pseudo-random one of the addresses into the frame and goes on with `next`. The frame keeps
/// what was written between the repetitions of a test run, so every one has another address.
pub fn walk(hook: Hook, walk: Walk, next: BorrowedFd) -> io::Result<OwnedFd> {
    let map = program_array(next)?;
    let program = [
        op(MOV64_REG, 6, 1, 0, 0),
        op(LOAD32, 2, 1, hook.data, 0),
        op(LOAD32, 3, 1, hook.data_end, 0),
        op(MOV64_REG, 4, 2, 0, 0),
        op(ADD64_IMM, 4, 0, 0, Walk::FRAME),
        op(JUMP_GREATER, 4, 3, 14, 0),
        // A linear congruential generator (Numerical Recipes): its upper half is good enough.
        op(LOAD32, 5, 2, walk.state, 0),
        op(MUL32_IMM, 5, 0, 0, 1_664_525),
        op(ADD32_IMM, 5, 0, 0, 1_013_904_223),
        op(STORE32, 2, 5, walk.state, 0),
        op(RSH32_IMM, 5, 0, 0, 16),
        op(MOD32_IMM, 5, 0, 0, walk.count as i32),
        op(ADD32_IMM, 5, 0, 0, walk.base as i32),
        op(TO_BE, 5, 0, 0, 32),
        op(STORE32, 2, 5, walk.address, 0),
        op(MOV64_REG, 1, 6, 0, 0),
        op(LOAD_IMM64, 2, MAP_FD, 0, map.as_raw_fd()),
        op(0, 0, 0, 0, 0),
        op(MOV64_IMM, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, TAIL_CALL),
        op(MOV64_IMM, 0, 0, 0, 0), // not reached: 0 is no verdict that anything expects
        op(EXIT, 0, 0, 0, 0),
    ];
    let program = load(hook, &program)?;
    // The program holds the map, but an array of programs is emptied when its last descriptor goes.
    std::mem::forget(map);
    Ok(program)
}

/// Result of [`test_run`].
pub struct TestRun {
    pub verdict: i32,
    pub per_packet: Duration,
}

/// Runs a program on one frame, again and again; the time is the mean.
pub fn test_run(program: BorrowedFd, frame: &[u8], repeat: u32) -> io::Result<TestRun> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context: [u64; 4],
    }
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        repeat,
        ..Attributes::default()
    };
    bpf(PROG_TEST_RUN, &mut attributes)?;
    Ok(TestRun {
        verdict: attributes.retval as i32,
        per_packet: Duration::from_nanos(u64::from(attributes.duration)),
    })
}

fn load(hook: Hook, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log: [u64; 2],
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let mut attributes = Attributes {
        prog_type: hook.prog_type,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        prog_flags: hook.prog_flags,
        expected_attach_type: hook.attach_type,
        ..Attributes::default()
    };
    let fd = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An array with one program.
fn program_array(program: BorrowedFd) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    #[repr(C)]
    struct Update {
        map_fd: u64,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut create = Create { map_type: MAP_TYPE_PROG_ARRAY, key_size: 4, value_size: 4, max_entries: 1 };
    let fd = bpf(MAP_CREATE, &mut create)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let (key, value) = (0u32, program.as_raw_fd());
    let mut update = Update {
        map_fd: map.as_raw_fd() as u64,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut update)?;
    Ok(map)
}

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: every caller passes the part of `union bpf_attr` (linux/bpf.h) that belongs to its command, with pointers
    // to memory that outlives the call; the kernel takes what lies behind the given size as zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value as i32),
    }
}
