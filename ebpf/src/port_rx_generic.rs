use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::packet::Xdp;
use crate::parse::{Verdict, judge};
use crate::receive::Receive;

/// XDP in the generic path: judges. It sees packets that receive offload has merged, so [`mod@crate::port_in`] counts.
///
/// Without `frags`: for programs that take fragments the generic path (Linux 6.9 to 6.18 at least) copies the packet
/// into a new buffer and forgets the length of the link-layer header, so that TC ingress then reads from a wrong place.
#[xdp]
pub fn port_rx_generic(context: XdpContext) -> u32 {
    match judge(&Xdp::new(&context), &Receive::<_, true, false> { context: &context }) {
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Echo => xdp_action::XDP_TX,
        Verdict::Pass | Verdict::Redirect(_) | Verdict::Forward(_) => xdp_action::XDP_PASS,
    }
}
