//! Probe frames: verified, stamped, watched by a timer, answered. [`baton_common::ProbeFrame`] is the frame and
//! [`baton_common::Path`] what is known of its path.
//!
//! Frames of one path come one after the other, so its entry is not locked. Where a driver hands two of them to two
//! processors at once, a count may be one off and a frame may be taken twice. A frame that comes while the timer of its
//! path fires may be overlooked by it: then a silence is reported that the path table disproves, and the next frame
//! starts the timer again.

use aya_ebpf::bindings::bpf_timer;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start};
use baton_common::{
    PROBE_KIND_ECHO, PROBE_KIND_PROBE, PROBE_REFUSES, PROBE_VERSION, Path, PathKey, ProbeConfig, ProbeFrame,
    RTT_BUCKETS, Silence, TargetKey,
};

use crate::maps::{
    AGENT, EVENTS, OWN_MACS, PATH_KEYS, PATHS, PROBE, SEEN, TARGET_KEYS, TARGETS, TIMERS, diagnose,
};
use crate::member::{self, Answer};
use crate::packet::Packet;
use crate::parse::Verdict;

const CLOCK_MONOTONIC: u64 = 1;
/// Frames behind the newest that can still come (RFC 4303, 3.4.3).
const WINDOW: u64 = 64;
/// No round trip is this long, nanoseconds: what was returned is from another life.
const MAX_ROUND_TRIP_NS: u64 = 60_000_000_000;

/// Receives a frame whose EtherType is that of probe frames.
#[inline(always)]
pub fn receive<P: Packet>(packet: &P) -> Verdict {
    let frame = packet.frame();
    let Some(probe) = frame.at_mut::<ProbeFrame>(0) else {
        diagnose(|diagnostics| diagnostics.probes_truncated += 1);
        return Verdict::Drop;
    };
    let is_probe = probe.kind == [PROBE_KIND_PROBE];
    if probe.version != [PROBE_VERSION] || !(is_probe || probe.kind == [PROBE_KIND_ECHO]) {
        diagnose(|diagnostics| diagnostics.probes_version += 1);
        return Verdict::Drop;
    }
    let Some(config) = PROBE.get(0) else {
        return Verdict::Drop; // never: an array has all its entries
    };
    if config.incarnation == 0 || !probe.verify(config.key) {
        diagnose(|diagnostics| diagnostics.probes_forged += 1);
        return Verdict::Drop;
    }
    let key = PathKey {
        node: u32::from_be_bytes(probe.node),
        port: u32::from_be_bytes(probe.port),
        ifindex: packet.port(),
    };
    // SAFETY: one word that is read once; the agent replaces an entry only after it has removed the key.
    let Some(slot) = (unsafe { PATH_KEYS.get(key) }).copied() else {
        diagnose(|diagnostics| diagnostics.probes_unknown += 1);
        return Verdict::Pass;
    };
    let Some(path) = PATHS.get_ptr_mut(slot) else {
        return Verdict::Pass;
    };
    // SAFETY: an entry of an array map, which never goes away and holds integers only; see the module's documentation.
    let path = unsafe { &mut *path };
    if probe.destination != path.mac {
        return Verdict::Pass; // a switch that has forgotten an address sends its frames to everybody
    }
    let (sequence, incarnation) = (u64::from_be_bytes(probe.sequence), u64::from_be_bytes(probe.incarnation));
    if incarnation > path.incarnation {
        // The node has taken a new one, which the agent may learn later.
        path.incarnation = incarnation;
        (path.probe_high, path.probe_window) = (sequence.wrapping_sub(1), 0);
    }
    if incarnation != path.incarnation || !is_new(path, is_probe, sequence) {
        diagnose(|diagnostics| diagnostics.probes_replayed += 1);
        return Verdict::Drop;
    }
    // SAFETY: the helper takes nothing and has no effect.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    let mut standing = Answer::NONE;
    if path.member != 0 {
        if !agent_is_there(now_ns) {
            return Verdict::Drop; // what it promised is over: this node is to be given up
        }
        standing = member::take(u32::from(path.member) - 1, probe, incarnation, config.incarnation, now_ns);
    }
    heard(path, slot, now_ns);
    round_trip(path, config, probe, now_ns);
    if !is_probe {
        path.echoes += 1;
        return Verdict::Drop;
    }
    path.probes += 1;
    path.peer_ns = u64::from_be_bytes(probe.sent_ns);
    path.peer_at_ns = now_ns;
    answer(config, packet.port(), probe, now_ns);
    stand(probe, incarnation, standing);
    probe.seal(config.key);
    Verdict::Echo
}

/// Is the agent there, or will it be back soon?
#[inline(always)]
fn agent_is_there(now_ns: u64) -> bool {
    let Some(promise) = AGENT.get_ptr(0) else {
        return false;
    };
    // SAFETY: a word of an array's entry, which the agent writes at any time.
    now_ns < unsafe { (&raw const (*promise).until_ns).read_volatile() }
}

/// Writes into an echo where this node stands towards the member that sent the probe.
#[inline(always)]
fn stand(probe: &mut ProbeFrame, incarnation: u64, standing: Answer) {
    let Answer { latest_ns, granted_ns, refuses, members } = standing;
    let named = if members == 0 { 0 } else { incarnation };
    probe.latest_ns = latest_ns.to_be_bytes();
    probe.latest_incarnation = named.to_be_bytes();
    probe.granted_ns = granted_ns.to_be_bytes();
    probe.verdict = [0; 8]; // the agent tells
    probe.members = members.to_be_bytes();
    probe.about = [0];
    probe.flags = [if refuses { PROBE_REFUSES } else { 0 }];
}

/// Has a frame of this sequence not come yet? Notes that it has.
#[inline(always)]
fn is_new(path: &mut Path, is_probe: bool, sequence: u64) -> bool {
    let (high, window) = match is_probe {
        true => (path.probe_high, path.probe_window),
        false => (path.echo_high, path.echo_window),
    };
    let (high, window) = if sequence > high {
        let ahead = sequence - high;
        if is_probe {
            path.lost += ahead - 1;
        }
        (sequence, if ahead < WINDOW { (window << ahead) | 1 } else { 1 })
    } else {
        let behind = high - sequence;
        if behind >= WINDOW || (window >> behind) & 1 != 0 {
            return false;
        }
        if is_probe {
            path.lost = path.lost.saturating_sub(1); // late, but not lost
        }
        (high, window | (1 << behind))
    };
    if is_probe {
        (path.probe_high, path.probe_window) = (high, window);
    } else {
        (path.echo_high, path.echo_window) = (high, window);
    }
    true
}

/// Stamps a path and sees to it that its timer runs. The timer is not set anew by every frame: when it fires and the path
/// has been heard meanwhile, it sets itself for the rest.
#[inline(always)]
fn heard(path: &mut Path, slot: u32, now_ns: u64) {
    path.silent_ns = 0;
    // SAFETY: words of the entry, which the timer reads and writes too.
    unsafe {
        (&raw mut path.heard_ns).write_volatile(now_ns);
        if (&raw const path.armed).read_volatile() == 0 && arm(slot, path.limit_ns) {
            (&raw mut path.armed).write_volatile(1); // otherwise the agent watches the path alone
        }
    }
}

/// Starts the timer of a path.
#[inline(always)]
fn arm(slot: u32, after_ns: u64) -> bool {
    let Some(entry) = TIMERS.get_ptr_mut(slot) else {
        return false;
    };
    // SAFETY: the timer is an entry of the array map that it is initialised with, and the callback is a program that
    // the verifier has checked.
    unsafe {
        let timer = &raw mut (*entry).timer;
        if bpf_timer_start(timer, after_ns, 0) == 0 {
            return true;
        }
        // Never used yet. Initialising it a second time is refused and does no harm.
        bpf_timer_init(timer, (&raw const TIMERS) as *mut c_void, CLOCK_MONOTONIC);
        bpf_timer_set_callback(timer, overdue as *mut c_void);
        bpf_timer_start(timer, after_ns, 0) == 0
    }
}

/// A path's timer.
#[repr(C)]
pub struct Timer {
    timer: bpf_timer,
}

/// A path's timer has come to its end.
#[inline(never)]
unsafe extern "C" fn overdue(_map: *mut c_void, key: *mut u32, timer: *mut Timer) -> i32 {
    // SAFETY: the kernel calls this with the key and the value of the entry.
    let slot = unsafe { *key };
    let Some(path) = PATHS.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: as in `receive`.
    let path = unsafe { &mut *path };
    // SAFETY: words of the entry, which `heard` reads and writes too; the helper takes nothing and has no effect.
    let (heard_ns, now_ns) = unsafe {
        (&raw mut path.armed).write_volatile(0);
        ((&raw const path.heard_ns).read_volatile(), bpf_ktime_get_boot_ns())
    };
    let silent_ns = now_ns.saturating_sub(heard_ns);
    if silent_ns < path.limit_ns {
        // SAFETY: it is the entry's own timer, which has been initialised, for it has fired.
        unsafe {
            if bpf_timer_start(&raw mut (*timer).timer, path.limit_ns - silent_ns, 0) == 0 {
                (&raw mut path.armed).write_volatile(1);
            }
        }
        return 0;
    }
    path.silent_ns = now_ns;
    // With a full buffer the agent finds out by itself, at its next probe.
    let _ = EVENTS.output::<Silence>(Silence { at_ns: now_ns, heard_ns, slot, reserved: 0 }, 0);
    0
}

/// The round trip that a frame closes: it brings back a time of this node, and says how long the other end had it.
#[inline(always)]
fn round_trip(path: &mut Path, config: &ProbeConfig, probe: &ProbeFrame, now_ns: u64) {
    let returned_ns = u64::from_be_bytes(probe.returned_ns);
    let held_ns = u64::from(u32::from_be_bytes(probe.held_ns));
    let ours = u32::from_be_bytes(probe.returned_incarnation) == config.incarnation as u32;
    if returned_ns == 0 || !ours || held_ns == u64::from(u32::MAX) {
        return;
    }
    let rtt_ns = now_ns.wrapping_sub(returned_ns).wrapping_sub(held_ns);
    if rtt_ns > MAX_ROUND_TRIP_NS {
        return;
    }
    path.rtt_ns = rtt_ns;
    path.rtt_sum_ns += rtt_ns;
    let bucket = bucket(rtt_ns);
    if bucket < RTT_BUCKETS {
        path.rtt[bucket] += 1;
    }
}

/// The bucket of a round-trip time: the first that is not below it.
#[inline(always)]
fn bucket(rtt_ns: u64) -> usize {
    let microseconds = rtt_ns.div_ceil(1000).max(1);
    let mut bucket = 0;
    while bucket < RTT_BUCKETS - 1 && microseconds > 1 << bucket {
        bucket += 1;
    }
    bucket
}

/// Turns a probe into its echo; the rest of it and the tag are still to come.
#[inline(always)]
fn answer(config: &ProbeConfig, port: u32, probe: &mut ProbeFrame, now_ns: u64) {
    (probe.destination, probe.source) = (probe.source, probe.destination);
    probe.kind = [PROBE_KIND_ECHO];
    probe.returned_ns = probe.sent_ns;
    probe.held_ns = [0; 4];
    let [.., a, b, c, d] = probe.incarnation;
    probe.returned_incarnation = [a, b, c, d];
    probe.node = config.node.to_be_bytes();
    probe.port = port.to_be_bytes();
    probe.incarnation = config.incarnation.to_be_bytes();
    probe.sent_ns = now_ns.to_be_bytes();
}

/// A host with this MAC address has answered for an address: if it is a probe target, and we asked from this port.
#[inline(always)]
pub fn answered<P: Packet>(packet: &P, family: u32, address: [u8; 16], to: &[u8; 6], mac: &[u8; 6]) {
    let port = packet.port();
    // SAFETY: words that are read once.
    let (slot, own) =
        unsafe { (TARGET_KEYS.get(TargetKey { address, family, ifindex: port }), OWN_MACS.get(to)) };
    let (Some(slot), Some(own)) = (slot, own) else {
        return;
    };
    if *own != port {
        return;
    }
    let Some(target) = TARGETS.get_ptr_mut(*slot) else {
        return;
    };
    // SAFETY: as in `receive`; the helper takes nothing and has no effect.
    unsafe {
        (*target).mac = *mac;
        (*target).answers += 1;
        (&raw mut (*target).answered_ns).write_volatile(bpf_ktime_get_boot_ns());
    }
}

/// A port has received a packet to a virtual IP.
#[inline(always)]
pub fn seen(port: u32, at_ns: u64) {
    let Some(seen) = SEEN.get_ptr_mut(port & (baton_common::MAX_SEEN - 1)) else {
        return;
    };
    // SAFETY: an entry of an array map, which never goes away and holds integers only; whoever writes last is right.
    unsafe {
        // Not written while the clock has not moved on: several processors share the line.
        if (*seen).ifindex == port && (&raw const (*seen).unicast_ns).read_volatile() != at_ns {
            (&raw mut (*seen).unicast_ns).write_volatile(at_ns);
        }
    }
}
