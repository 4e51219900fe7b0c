use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use baton_common::Route;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::maps::{ROUTES, Vip, vip4, vip6};
use crate::nd::Neighbour;
use crate::packet::Ingress;
use crate::parse::{Arp, Hook, Ip, Verdict, judge};
use crate::permission::Permission;

/// TC ingress behind whatever judges: hands the packets of a virtual IP on that this node answers for in its owner's stead
/// (lease.md, rule R12). ARP and ND are left to the host, which has the address.
#[classifier]
pub fn port_route(context: TcContext) -> i32 {
    match judge(&Ingress::new(&context), &Routes { context: &context }) {
        Verdict::Pass | Verdict::Echo => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
        // SAFETY: no parameters are passed; the helper then looks the neighbour up itself.
        Verdict::Redirect(port) => unsafe { bpf_redirect_neigh(port, core::ptr::null_mut(), 0, 0) as i32 },
        // SAFETY: the helper only notes where the packet is to go; no flags: out by the port.
        Verdict::Forward(port) => unsafe { bpf_redirect(port, 0) as i32 },
    }
}

struct Routes<'a> {
    context: &'a TcContext,
}

impl Hook<Ingress> for Routes<'_> {
    #[inline(always)]
    fn probe(&self, _packet: &Ingress) -> Verdict {
        Verdict::Pass
    }

    #[inline(always)]
    fn arp(&self, _packet: &Ingress, _arp: Arp) -> Verdict {
        Verdict::Pass
    }

    #[inline(always)]
    fn neighbour(
        &self,
        _packet: &Ingress,
        _header: &'static Ipv6Hdr,
        _message: Neighbour,
    ) -> Option<Verdict> {
        Some(Verdict::Pass)
    }

    #[inline(always)]
    fn ipv4(&self, ip: &Ip<Ingress>, header: &'static Ipv4Hdr) -> Verdict {
        self.route(ip, vip4(&header.dst_addr), || vip4(&header.src_addr))
    }

    #[inline(always)]
    fn ipv6(&self, ip: &Ip<Ingress>, header: &'static Ipv6Hdr) -> Verdict {
        self.route(ip, vip6(&header.dst_addr), || vip6(&header.src_addr))
    }
}

impl Routes<'_> {
    /// `to`, `from`: the virtual IPs at the packet's destination and source. The second one is looked for when the first one has
    /// been dealt with: the verifier refuses to see the payload of an absent `Option` kept meanwhile.
    #[inline(always)]
    fn route(&self, ip: &Ip<Ingress>, to: Option<Vip>, from: impl FnOnce() -> Option<Vip>) -> Verdict {
        if ip.tagged() {
            return Verdict::Pass; // it is judged again without its tag
        }
        if let Some(vip) = to
            && let Some(route) = route_of(vip)
        {
            if Permission::ask(vip).is_none() {
                return Verdict::Drop;
            }
            let [a, b, c, d, e, f] = route.to;
            let [g, h, i, j, k, l] = route.from;
            return match self.context.store(0, &[a, b, c, d, e, f, g, h, i, j, k, l], 0) {
                Ok(()) => Verdict::Forward(route.ifindex),
                Err(_) => Verdict::Drop,
            };
        }
        match from() {
            Some(vip) if vip.port != 0 && vip.port != ip.port() && route_of(vip).is_some() => {
                match Permission::ask(vip) {
                    Some(_) => Verdict::Redirect(vip.port),
                    None => Verdict::Drop,
                }
            }
            _ => Verdict::Pass,
        }
    }
}

/// Where the packets of the virtual IP go on to, if they do.
#[inline(always)]
fn route_of(vip: Vip) -> Option<Route> {
    // An entry that is just being written may be read half old and half new: then the packet goes astray, as if sent a moment
    // before or after.
    ROUTES.get(vip.slot).copied().filter(|route| route.ifindex != 0)
}
