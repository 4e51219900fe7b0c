//! The contexts of the hooks behind one trait, so that the parser and the verdicts exist once.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::{bpf_skb_pull_data, bpf_xdp_get_buff_len};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::frame::Frame;

/// Bytes of a socket buffer that are made directly readable: all headers up to and including a solicitation's options,
/// behind two tags and two IPv6 extension headers.
const HEADERS: u32 = 160;

/// Frames and bytes as they are on the wire, without the frame check sequence.
#[derive(Clone, Copy)]
pub struct Wire {
    pub packets: u64,
    pub bytes: u64,
}

/// A frame at a hook.
pub trait Packet {
    /// The directly readable part.
    fn frame(&self) -> Frame;

    /// Interface index of the port.
    fn port(&self) -> u32;

    /// Bytes of the whole frame if at least `needed` of them are there.
    fn length(&self, frame: Frame, needed: usize) -> Option<usize>;

    /// It was merged from several frames, or will be cut into several.
    fn merged(&self) -> bool;

    /// It carries a VLAN tag beside its data.
    fn tag_beside(&self) -> bool;

    /// What the frame is on the wire. `length`: bytes of the whole frame; `headers`: bytes before the transport payload, which
    /// every frame of a merged packet carries; asked only for those.
    fn wire(&self, length: usize, headers: impl FnOnce() -> usize) -> Wire;
}

/// A frame at XDP: always exactly one on the wire.
pub struct Xdp {
    context: *mut xdp_md,
}

impl Xdp {
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self { context: context.ctx }
    }
}

impl Packet for Xdp {
    #[inline(always)]
    fn frame(&self) -> Frame {
        let context = XdpContext::new(self.context);
        Frame::new(context.data(), context.data_end())
    }

    #[inline(always)]
    fn port(&self) -> u32 {
        XdpContext::new(self.context).ingress_ifindex() as u32
    }

    #[inline(always)]
    fn length(&self, frame: Frame, needed: usize) -> Option<usize> {
        // What fits into the linear buffer has no fragments; so the helper is called for jumbo frames only.
        let linear = frame.linear();
        if needed <= linear {
            return Some(linear);
        }
        // SAFETY: the context is the one the program was called with.
        let length = unsafe { bpf_xdp_get_buff_len(self.context) } as usize;
        (needed <= length).then_some(length)
    }

    #[inline(always)]
    fn merged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn tag_beside(&self) -> bool {
        false // the driver may have stripped one, unseen
    }

    #[inline(always)]
    fn wire(&self, length: usize, _headers: impl FnOnce() -> usize) -> Wire {
        Wire { packets: 1, bytes: length as u64 }
    }
}

/// A frame at TC, maybe merged from several (receive offload) or to be cut into several (segmentation offload).
pub struct Skb<const EGRESS: bool> {
    skb: *mut __sk_buff,
}

pub type Ingress = Skb<false>;
pub type Egress = Skb<true>;

impl<const EGRESS: bool> Skb<EGRESS> {
    /// Makes the headers directly readable, if they aren't.
    #[inline(always)]
    pub fn new(context: &TcContext) -> Self {
        let skb = context.skb.skb;
        let wanted = context.len().min(HEADERS);
        if context.data() + wanted as usize > context.data_end() {
            // A failure leaves the frame as it is: then its headers are found to be cut short, and it is passed.
            // SAFETY: the context is the one the program was called with, and no pointer into the frame exists yet.
            unsafe { bpf_skb_pull_data(skb, wanted) };
        }
        Self { skb }
    }
}

impl<const EGRESS: bool> Packet for Skb<EGRESS> {
    #[inline(always)]
    fn frame(&self) -> Frame {
        let context = TcContext::new(self.skb);
        Frame::new(context.data(), context.data_end())
    }

    #[inline(always)]
    fn port(&self) -> u32 {
        // SAFETY: the context is the one the program was called with.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn length(&self, _frame: Frame, needed: usize) -> Option<usize> {
        // SAFETY: the context is the one the program was called with.
        let length = unsafe { (*self.skb).len } as usize;
        (needed <= length).then_some(length)
    }

    #[inline(always)]
    fn merged(&self) -> bool {
        // SAFETY: the context is the one the program was called with.
        unsafe { (*self.skb).gso_size != 0 }
    }

    #[inline(always)]
    fn tag_beside(&self) -> bool {
        // SAFETY: the context is the one the program was called with.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn wire(&self, length: usize, headers: impl FnOnce() -> usize) -> Wire {
        // SAFETY: the context is the one the program was called with.
        let (segments, size, wire_len) =
            unsafe { ((*self.skb).gso_segs, (*self.skb).gso_size, (*self.skb).wire_len) };
        let tag = if self.tag_beside() { 4 } else { 0 };
        let length = length as u64;
        if size == 0 {
            return Wire { packets: 1, bytes: length + tag };
        }
        let headers = headers() as u64;
        let packets = match segments {
            0 => length.saturating_sub(headers).div_ceil(u64::from(size)).max(1),
            segments => u64::from(segments),
        };
        let bytes = if EGRESS && u64::from(wire_len) > length {
            u64::from(wire_len) // the stack has added the headers of all segments
        } else {
            length + (packets - 1) * headers
        };
        Wire { packets, bytes: bytes + packets * tag }
    }
}
