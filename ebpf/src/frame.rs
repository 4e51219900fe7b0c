/// The part of a frame that can be read directly: from the Ethernet header to the end of the linear buffer.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// The header at `offset`, if all of it is there. Headers are structures of bytes, so they are never misaligned.
    #[inline(always)]
    pub fn at<T>(self, offset: usize) -> Option<&'static T> {
        const { assert!(align_of::<T>() == 1) };
        // For a single byte the compiler makes a comparison that the verifier learns nothing from.
        const { assert!(size_of::<T>() > 1) };
        if self.start + offset + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the bounds were checked just above, which is also the check that the verifier wants to see; T is
        // made of bytes (asserted by its alignment), so any content is valid. The frame outlives the program's run.
        Some(unsafe { &*((self.start + offset) as *const T) })
    }

    /// The same, to be changed. No other reference to these bytes may be in use.
    #[inline(always)]
    pub fn at_mut<T>(self, offset: usize) -> Option<&'static mut T> {
        let header: *const T = self.at::<T>(offset)?;
        // SAFETY: as in `at`; the frame is writable at the hooks that the programs are attached to.
        Some(unsafe { &mut *header.cast_mut() })
    }

    /// Bytes that can be read directly.
    #[inline(always)]
    pub fn linear(self) -> usize {
        self.end - self.start
    }
}
