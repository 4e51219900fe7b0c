//! What the kernel programs know of the other members of the cluster, and what they are told of them.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, MapData};
use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp};
use baton_common::{AgentPromise, Condemn, Lease, Locked, MAX_MEMBERS, Peer};
use baton_core::{PeerSample, Time};

use super::paths::Mapped;
use super::{BPF_F_LOCK, Kernel, KernelError};

/// The agent's side of `PEERS`, `VERDICTS` and `AGENT`. It can read and promise from the fast thread only.
pub struct PeerTable {
    peers: Array<MapData, Locked<Peer>>,
    verdicts: Array<MapData, u64>,
    promise: Mapped<AgentPromise>,
}

impl PeerTable {
    pub(super) fn take(ebpf: &mut aya::Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            peers: super::paths::map(ebpf, "PEERS")?,
            verdicts: super::paths::map(ebpf, "VERDICTS")?,
            promise: Mapped::new(ebpf, "AGENT", 1)?,
        })
    }

    /// Promises that an agent is there until then, or will be back.
    pub fn promise(&self, until: Time) {
        self.promise.write(0, AgentPromise { until_ns: until.0 });
    }

    /// What is known of a member.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn peer(&self, slot: u8) -> Result<Peer, KernelError> {
        let locked = self.peers.get(&u32::from(slot), BPF_F_LOCK);
        Ok(locked.map_err(|source| KernelError::map("PEERS", source))?.value)
    }

    /// Sees to it that the entry at this slot is that of the node with this number: another one's, or a forgotten one, is
    /// begun anew, without verdicts, and grants only incarnations from `born` on. Must not be called when the node's paths are
    /// entered already. Returns whether it was begun anew.
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn prepare(&mut self, slot: u8, node: u32, forget: bool, born: u64) -> Result<bool, KernelError> {
        if self.peer(slot)?.node == node && !forget {
            return Ok(false);
        }
        let locked = Locked { value: Peer { node, born, ..Peer::default() }, ..Locked::default() };
        let set = self.peers.set(u32::from(slot), locked, BPF_F_LOCK);
        set.map_err(|source| KernelError::map("PEERS", source))?;
        for other in 0..MAX_MEMBERS as u32 {
            for index in
                [u32::from(slot) * MAX_MEMBERS as u32 + other, other * MAX_MEMBERS as u32 + u32::from(slot)]
            {
                self.verdicts.set(index, 0, 0).map_err(|source| KernelError::map("VERDICTS", source))?;
            }
        }
        Ok(true)
    }

    /// All verdicts: (voter, about), by slots, and up to which incarnation. This node's own are in its entries of the
    /// peers.
    ///
    /// # Errors
    ///
    /// A map refuses.
    pub fn verdicts(&self, own: u8) -> Result<BTreeMap<(u8, u8), u64>, KernelError> {
        let mut all = BTreeMap::new();
        for about in 0..MAX_MEMBERS as u8 {
            for voter in 0..MAX_MEMBERS as u8 {
                let incarnation = match voter == own {
                    true => self.peer(about)?.condemned,
                    false => {
                        let index = u32::from(voter) * MAX_MEMBERS as u32 + u32::from(about);
                        self.verdicts.get(&index, 0).map_err(|source| KernelError::map("VERDICTS", source))?
                    }
                };
                if incarnation != 0 {
                    all.insert((voter, about), incarnation);
                }
            }
        }
        Ok(all)
    }
}

/// Promises, before anything is loaded, that an agent is there until then: to the programs of an earlier one, if there are any.
///
/// # Errors
///
/// The map is there and can't be written.
pub fn promise_early(bpffs_dir: &Path, until: Time) -> Result<(), KernelError> {
    super::migrate::promise(bpffs_dir, until)
}

/// A member as core is told of it.
pub fn sample(slot: u8, peer: &Peer) -> PeerSample {
    let time = |ns: u64| (ns != 0).then_some(Time(ns));
    PeerSample {
        slot,
        incarnation: peer.incarnation,
        heard: time(peer.heard_ns),
        answered: time(peer.answered_ns),
        refuses: peer.refused != 0,
    }
}

/// The number that stands for a node in probe frames: a hash of its name.
pub fn node_number(name: &str) -> u32 {
    let hash = super::registry::hash(name);
    (hash >> 32) as u32 ^ hash as u32
}

impl Kernel {
    /// What is known of the other members.
    ///
    /// # Errors
    ///
    /// It has been taken before; it cannot be mapped.
    pub fn peer_table(&mut self) -> Result<PeerTable, KernelError> {
        PeerTable::take(&mut self.ebpf)
    }

    /// Calls a member dead up to this incarnation, unless it was heard within `silence_ns` nanoseconds: in one step with what
    /// the programs grant (lease.md, R3). Returns whether it was done.
    ///
    /// # Errors
    ///
    /// The kernel doesn't run the program.
    pub fn condemn(&mut self, slot: u8, incarnation: u64, silence_ns: u64) -> Result<bool, KernelError> {
        let error = |source| KernelError::program("condemn", source);
        let order = Condemn { slot: u64::from(slot), incarnation, silence_ns };
        // SAFETY: three integers without padding.
        let bytes: [u8; size_of::<Condemn>()] = unsafe { std::mem::transmute(order) };
        let program =
            self.ebpf.program_mut("condemn").ok_or(KernelError::NoSuchProgram { name: "condemn" })?;
        let program: &mut Xdp = program.try_into().map_err(error)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&bytes);
        options.repeat = 1;
        let result = program.test_run(options).map_err(|e: ProgramError| error(e))?;
        Ok(result.return_value == 1)
    }

    /// Does the programs' lease already say this, whatever has been granted?
    pub(crate) fn has_lease(&self, wanted: &Lease) -> Result<bool, KernelError> {
        let lease = self.lease()?;
        let says = |l: &Lease| (l.incarnation, l.length_ns, l.members, l.needed);
        Ok(says(&lease) == says(wanted))
    }

    /// Does the serving mark of a virtual server say that it is not served?
    ///
    /// # Errors
    ///
    /// The map refuses.
    pub fn is_unmarked(&mut self, server: &str) -> Result<bool, KernelError> {
        let index = self.server(server)?;
        let server =
            self.server_marks.get(&index, 0).map_err(|source| KernelError::map("SERVERS", source))?;
        Ok(server.mark == 0)
    }
}
