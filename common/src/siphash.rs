//! SipHash-2-4 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) over whole 64-bit words.
//!
//! Written out because the kernel programs need it without slices, buffers and bounds checks, and both sides must
//! compute the same; a test compares it with the `siphasher` crate.

/// A 128-bit key: the two little-endian words of its sixteen bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SipKey {
    /// Bytes 0 to 7.
    pub k0: u64,
    /// Bytes 8 to 15.
    pub k1: u64,
}
crate::layout!(SipKey, 16);

impl SipKey {
    /// The key in sixteen bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> SipKey {
        let key = u128::from_le_bytes(bytes);
        SipKey { k0: key as u64, k1: (key >> 64) as u64 }
    }
}

/// Keys are secret.
impl core::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SipKey(..)")
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    fn take(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }
}

/// The tag of a message of `N` words; each is the little-endian reading of eight bytes of the message.
#[inline(always)]
pub fn siphash24<const N: usize>(key: SipKey, words: [u64; N]) -> u64 {
    let mut state = State {
        v0: key.k0 ^ 0x736f_6d65_7073_6575,
        v1: key.k1 ^ 0x646f_7261_6e64_6f6d,
        v2: key.k0 ^ 0x6c79_6765_6e65_7261,
        v3: key.k1 ^ 0x7465_6462_7974_6573,
    };
    let mut i = 0;
    while i < N {
        state.take(words[i]);
        i += 1;
    }
    // The last block holds what is left of the message, here nothing, and its length.
    state.take(((N as u64 * 8) & 0xff) << 56);
    state.v2 ^= 0xff;
    state.round();
    state.round();
    state.round();
    state.round();
    state.v0 ^ state.v1 ^ state.v2 ^ state.v3
}
