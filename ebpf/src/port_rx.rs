use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

use crate::packet::Xdp;
use crate::parse::{Verdict, judge};
use crate::receive::Receive;

/// XDP in the driver: judges and counts.
#[xdp(frags)]
pub fn port_rx(context: XdpContext) -> u32 {
    match judge(&Xdp::new(&context), &Receive::<_, true, true> { context: &context }) {
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Echo => xdp_action::XDP_TX,
        Verdict::Pass | Verdict::Redirect(_) | Verdict::Forward(_) => xdp_action::XDP_PASS,
    }
}
