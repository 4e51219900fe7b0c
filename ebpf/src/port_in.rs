use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::packet::Ingress;
use crate::parse::{Verdict, judge};
use crate::receive::Receive;

/// TC ingress beside [`mod@crate::port_rx_generic`]: counts what that has let through.
#[classifier]
pub fn port_in(context: TcContext) -> i32 {
    match judge(&Ingress::new(&context), &Receive::<_, false, true> { context: &context }) {
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Pass | Verdict::Echo | Verdict::Redirect(_) | Verdict::Forward(_) => TC_ACT_UNSPEC,
    }
}
