//! Baton's kernel programs. They count the traffic of every virtual IP, drop what this node may not serve now, keep
//! ARP and ND for an address on the port that the address is bound to, and report foreign hosts that claim it. They
//! answer probe frames, stamp the paths these came by, report paths that fall silent, and keep the lease by what the members
//! of the cluster grant one another. They remember the TCP connections of virtual servers that another node may have to reset.
//!
//! | program | hook | judges | counts traffic |
//! |---|---|---|---|
//! | `port_rx` | XDP in the driver | yes | yes |
//! | `port_rx_generic` | XDP in the generic path, which sees merged packets | yes | no |
//! | `port_in` | TC ingress beside `port_rx_generic` | no | yes |
//! | `port_in_full` | TC ingress where XDP is refused altogether | yes | yes |
//! | `port_tx` | TC egress | yes | yes |
//! | `port_route` | TC ingress after all others, where packets may have to be routed to another node | yes | no |
//! | `condemn` | none: the agent runs it | | |
//! | `request_issued`, `request_completed` | tracepoints of block devices | no | no |
//!
//! Nothing here may decide where an address lives: the programs read `VIPS`, `SERVERS` and `LEASE`, and the agent
//! alone writes them. A frame that cannot be parsed is passed on untouched.
//!
//! Needs Linux 5.18 (`bpf_xdp_get_buff_len`).
#![no_std]
#![no_main]

mod connection;
mod frame;
mod maps;
mod member;
mod nd;
mod packet;
mod parse;
mod permission;
mod port_in;
mod port_in_full;
mod port_route;
mod port_rx;
mod port_rx_generic;
mod port_tx;
mod probe;
mod receive;
mod requests;

/// Unreachable: the verifier refuses programs that could get here.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Several helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
