//! What a probe frame of another member of the cluster means: who is heard, what is granted, and until when this node may
//! serve (lease.md). [`baton_common::Peer`] is what this node knows as a voter, [`baton_common::Lease`] what the others
//! let it do.
//!
//! | rule of lease.md | here | why that is safe |
//! |---|---|---|
//! | R1 clocks | boot-time clock; a peer's clock that jumps ahead of ours makes all grants void | a lease counts from this node's own time, which a voter received later; if our clock stood still meanwhile, peers' clocks are ahead of where they were |
//! | R2 incarnations | a grant counts only for the lease's incarnation and for a time that has been; both are in one locked value | what an earlier life was granted names another incarnation, and after a reboot lies in the future |
//! | R3 verdicts | receipt and the decision to grant are one step under the peer's lock, and so is [`condemn`] | no receipt can slip in between the look at the last one and the verdict, and no grant after it |
//! | R4 lost memory | nothing is granted below `born` | whatever may have been called dead before memory was lost was allotted before, and is below it |
//! | R5 mark | see `permission` | the mark of another incarnation serves nothing, whatever is granted to this one |
//! | R10 members | frames of another version of the member list are neither heard nor granted | so each grant counts towards the majority of one list only; a verdict is a promise whatever the list |
//! | R6 to R9, R11 | in the agent's core: `machine::cluster` | the programs change neither marks nor records, and call nobody dead by themselves |

use aya_ebpf::bindings::{bpf_spin_lock, xdp_action};
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_spin_lock as lock, bpf_spin_unlock as unlock};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use baton_common::{Condemn, MAX_MEMBERS, PROBE_REFUSES, Peer, ProbeFrame, Verdict};

use crate::frame::Frame;
use crate::maps::{EVENTS, LEASE, PEERS, VERDICTS};

/// A value behind a lock; [`baton_common::Locked`] for the agent.
#[repr(C)]
pub struct Guarded<T> {
    lock: bpf_spin_lock,
    reserved: u32,
    /// What it guards.
    pub value: T,
}

/// What is answered to a member.
#[derive(Clone, Copy)]
pub struct Answer {
    /// Its latest time,
    pub latest_ns: u64,
    /// what is granted,
    pub granted_ns: u64,
    /// and whether it never will be.
    pub refuses: bool,
    /// Version of this node's member list; 0: it is no member's frame, or one of another version.
    pub members: u32,
}

impl Answer {
    /// Nothing. The verifier refuses to see the payload of an absent `Option` moved.
    pub const NONE: Answer = Answer { latest_ns: 0, granted_ns: 0, refuses: false, members: 0 };
}

/// Takes a verified frame of the member with this slot, of `incarnation`, at `now_ns`. `ours`: this node's incarnation.
#[inline(always)]
pub fn take(slot: u32, probe: &ProbeFrame, incarnation: u64, ours: u64, now_ns: u64) -> Answer {
    let (Some(entry), Some(peer)) = (LEASE.get_ptr_mut(0), PEERS.get_ptr_mut(slot)) else {
        return Answer::NONE;
    };
    // SAFETY: words of an array's entry that the agent writes with the whole; each is read once.
    let (length_ns, members) = unsafe {
        (
            (&raw const (*entry).value.length_ns).read_volatile(),
            (&raw const (*entry).value.members).read_volatile(),
        )
    };
    if length_ns == 0 || u32::from_be_bytes(probe.members) != members {
        return Answer::NONE;
    }
    let sent_ns = u64::from_be_bytes(probe.sent_ns);
    let latest_ns = u64::from_be_bytes(probe.latest_ns);
    let names_us = u64::from_be_bytes(probe.latest_incarnation) == ours;
    let two_way = names_us && latest_ns <= now_ns && now_ns - latest_ns < length_ns;
    let refused = names_us && probe.flags[0] & PROBE_REFUSES != 0;
    let (answer, jumped) = hear(peer, Heard { incarnation, sent_ns, now_ns, length_ns, two_way, refused });
    let granted_ns = u64::from_be_bytes(probe.granted_ns);
    if jumped || (names_us && granted_ns != 0) {
        grant(slot, ours, granted_ns, now_ns, jumped);
    }
    said(slot, probe);
    Answer { members, ..answer }
}

struct Heard {
    incarnation: u64,
    sent_ns: u64,
    now_ns: u64,
    length_ns: u64,
    two_way: bool,
    refused: bool,
}

/// This node as a voter. Returns what it answers, and whether the peer's clock has jumped ahead of ours: then ours stood
/// still.
#[inline(always)]
fn hear(entry: *mut Guarded<Peer>, heard: Heard) -> (Answer, bool) {
    let Heard { incarnation, sent_ns, now_ns, length_ns, two_way, refused } = heard;
    let ahead_ns = sent_ns.wrapping_sub(now_ns) as i64;
    // SAFETY: an entry of an array map, which never goes away; between lock and unlock nobody else changes it, and no
    // helper is called.
    unsafe {
        lock(&raw mut (*entry).lock);
        let peer = &raw mut (*entry).value;
        if incarnation > (*peer).incarnation {
            (*peer).incarnation = incarnation;
            (*peer).latest_ns = 0;
            (*peer).granted_ns = 0;
            (*peer).ahead_at_ns = 0;
        }
        let jumped = clock(peer, ahead_ns, now_ns, length_ns);
        let refuses = incarnation <= (*peer).condemned || incarnation < (*peer).born;
        if incarnation == (*peer).incarnation {
            if sent_ns > (*peer).latest_ns {
                (*peer).latest_ns = sent_ns;
            }
            if two_way {
                (*peer).answered_ns = now_ns;
                (*peer).refused = refused as u64;
                if !refuses {
                    if now_ns > (*peer).heard_ns {
                        (*peer).heard_ns = now_ns;
                    }
                    if sent_ns > (*peer).granted_ns {
                        (*peer).granted_ns = sent_ns;
                    }
                }
            }
        }
        let granted_ns = if refuses { 0 } else { (*peer).granted_ns };
        let answer = Answer { latest_ns: (*peer).latest_ns, granted_ns, refuses, members: 0 };
        unlock(&raw mut (*entry).lock);
        (answer, jumped)
    }
}

/// Follows the peer's clock by its fastest frames, and lets it lag by a thousandth (about rho). Has it jumped ahead?
///
/// # Safety
/// The peer's lock must be held.
#[inline(always)]
unsafe fn clock(peer: *mut Peer, ahead_ns: i64, now_ns: u64, length_ns: u64) -> bool {
    // SAFETY: by the caller.
    unsafe {
        if (*peer).ahead_at_ns == 0 {
            (*peer).ahead_ns = ahead_ns;
            (*peer).ahead_at_ns = now_ns | 1;
            return false;
        }
        let past_ns = now_ns.wrapping_sub((*peer).ahead_at_ns);
        if (past_ns as i64) < 0 {
            return false; // a frame that another processor took later
        }
        let reference_ns = (*peer).ahead_ns - (past_ns >> 10) as i64;
        let jumped = ahead_ns > reference_ns + (length_ns >> 1) as i64;
        (*peer).ahead_ns = if ahead_ns > reference_ns { ahead_ns } else { reference_ns };
        (*peer).ahead_at_ns = now_ns | 1;
        jumped
    }
}

/// This node as an owner: takes a grant, and draws the lease's end from all of them.
#[inline(always)]
fn grant(slot: u32, ours: u64, granted_ns: u64, now_ns: u64, jumped: bool) {
    let Some(entry) = LEASE.get_ptr_mut(0) else {
        return;
    };
    let slot = slot as usize % MAX_MEMBERS;
    // SAFETY: as in `hear`.
    unsafe {
        lock(&raw mut (*entry).lock);
        let lease = &raw mut (*entry).value;
        if jumped {
            (*lease).void_ns = now_ns;
            (&raw mut (*lease).deadline_ns).write_volatile(0);
            let mut i = 0;
            while i < MAX_MEMBERS {
                (&raw mut (*lease).grants[i]).write_volatile(0);
                i += 1;
            }
        } else if (*lease).incarnation == ours && granted_ns > (*lease).void_ns && granted_ns <= now_ns {
            let until_ns = granted_ns + (*lease).length_ns;
            if until_ns > (*lease).grants[slot] {
                // With at most five members one or two grants are a majority with this node itself: the new one, and where two
                // are needed, the longest of the others.
                (*lease).grants[slot] = 0;
                let mut end_ns =
                    if (*lease).needed > 1 { longest(&raw const (*lease).grants) } else { until_ns };
                (*lease).grants[slot] = until_ns;
                if end_ns > until_ns {
                    end_ns = until_ns;
                }
                if end_ns > (*lease).deadline_ns {
                    (&raw mut (*lease).deadline_ns).write_volatile(end_ns);
                }
            }
        }
        unlock(&raw mut (*entry).lock);
    }
}

/// # Safety
/// The lease's lock must be held.
#[inline(always)]
unsafe fn longest(grants: *const [u64; MAX_MEMBERS]) -> u64 {
    let mut longest_ns = 0;
    let mut i = 0;
    while i < MAX_MEMBERS {
        // SAFETY: by the caller; within the array. Volatile, or the compiler makes one load of many cases of it.
        let until_ns = unsafe { (&raw const (*grants)[i]).read_volatile() };
        if until_ns > longest_ns {
            longest_ns = until_ns;
        }
        i += 1;
    }
    longest_ns
}

/// Keeps a verdict that the member tells of, and reports it if it is news.
#[inline(always)]
fn said(voter: u32, probe: &ProbeFrame) {
    let incarnation = u64::from_be_bytes(probe.verdict);
    let about = u32::from(probe.about[0]);
    if incarnation == 0 || about as usize >= MAX_MEMBERS {
        return;
    }
    let Some(known) = VERDICTS.get_ptr_mut(voter * MAX_MEMBERS as u32 + about) else {
        return;
    };
    // SAFETY: a word of an array's entry. Two frames at once at worst report a verdict twice, or store the lower one until
    // the next frame.
    unsafe {
        if known.read_volatile() < incarnation
            && EVENTS.output::<Verdict>(Verdict { incarnation, voter, about }, 0).is_ok()
        {
            known.write_volatile(incarnation);
        }
    }
}

/// Not attached anywhere: the agent runs it to give a verdict in one step (lease.md, R3). The frame is a
/// [`baton_common::Condemn`]. Returns 1: nothing was heard for so long, and nothing will be granted any more; 0: it was.
#[xdp]
pub fn condemn(context: XdpContext) -> u32 {
    let frame = Frame::new(context.data(), context.data_end());
    match frame.at::<[u8; size_of::<Condemn>()]>(0) {
        // SAFETY: as many bytes, read unaligned, of which any content is valid.
        Some(bytes) => try_condemn(unsafe { bytes.as_ptr().cast::<Condemn>().read_unaligned() }),
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn try_condemn(order: Condemn) -> u32 {
    let Some(entry) = PEERS.get_ptr_mut(order.slot as u32) else {
        return 0;
    };
    // SAFETY: the helper takes nothing and has no effect; for the rest as in `hear`.
    unsafe {
        let now_ns = bpf_ktime_get_boot_ns();
        lock(&raw mut (*entry).lock);
        let peer = &raw mut (*entry).value;
        let heard_ns = (*peer).heard_ns;
        let silent = now_ns >= heard_ns && now_ns - heard_ns >= order.silence_ns;
        if silent && order.incarnation > (*peer).condemned {
            (*peer).condemned = order.incarnation;
            if (*peer).incarnation <= order.incarnation {
                (*peer).granted_ns = 0;
            }
        }
        unlock(&raw mut (*entry).lock);
        silent as u32
    }
}
