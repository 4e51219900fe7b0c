use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::packet::Xdp;
use crate::parse::{Verdict, judge};
use crate::receive::Receive;

/// XDP in the generic path: judges. It sees packets that receive offload has merged, so [`mod@crate::port_in`] counts.
#[xdp(frags)]
pub fn port_rx_generic(context: XdpContext) -> u32 {
    match judge(&Xdp::new(&context), &Receive::<_, true, false> { context: &context }) {
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Pass | Verdict::Redirect(_) => xdp_action::XDP_PASS,
    }
}
