use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::packet::Ingress;
use crate::parse::{Verdict, judge};
use crate::receive::Receive;

/// TC ingress where XDP is refused altogether: judges and counts.
#[classifier]
pub fn port_in_full(context: TcContext) -> i32 {
    match judge(&Ingress::new(&context), &Receive::<_, true, true> { context: &context }) {
        Verdict::Drop => TC_ACT_SHOT,
        // SAFETY: the helper only notes where the packet is to go; no flags: out by the port.
        Verdict::Echo => unsafe { bpf_redirect((*context.skb.skb).ifindex, 0) as i32 },
        Verdict::Pass | Verdict::Redirect(_) | Verdict::Forward(_) => TC_ACT_UNSPEC,
    }
}
