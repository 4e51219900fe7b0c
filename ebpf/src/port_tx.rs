use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use network_types::arp::ArpHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::connection::{self, Ends};
use crate::maps::{Vip, count, diagnose, vip4, vip6};
use crate::nd::{Kind, Neighbour};
use crate::packet::{Egress, Packet};
use crate::parse::{Arp, Hook, Ip, Verdict, judge};
use crate::permission::Permission;

const ARP_REQUEST: [u8; 2] = [0, 1];

/// TC egress: counts what leaves from a virtual IP by the port that the address is bound to, hands what routing sent
/// to another port over to that one, and drops what may not be served.
///
/// The packet that is handed over passes this program again on the right port, and is counted there; so is the TCP connection that
/// it belongs to remembered there.
#[classifier]
pub fn port_tx(context: TcContext) -> i32 {
    match judge(&Egress::new(&context), &Send { context: &context }) {
        Verdict::Pass | Verdict::Echo | Verdict::Forward(_) => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
        // SAFETY: no parameters are passed; the helper then looks the neighbour up itself.
        Verdict::Redirect(port) => unsafe { bpf_redirect_neigh(port, core::ptr::null_mut(), 0, 0) as i32 },
    }
}

struct Send<'a> {
    context: &'a TcContext,
}

impl Hook<Egress> for Send<'_> {
    #[inline(always)]
    fn probe(&self, _packet: &Egress) -> Verdict {
        Verdict::Pass
    }

    #[inline(always)]
    fn arp(&self, packet: &Egress, arp: Arp) -> Verdict {
        let Some(vip) = vip4(&arp.header.spa) else {
            return Verdict::Pass;
        };
        let verdict = said(packet, vip);
        let asks = arp.header.oper == ARP_REQUEST && arp.header.tpa != arp.header.spa;
        if verdict == Verdict::Drop && asks && Permission::ask(vip).is_some() {
            // Without a sender address (RFC 5227, 2.1.1) it is still answered, but teaches nobody that the virtual IP
            // lives at this port. So a port without an address of its own can resolve its neighbours.
            let spa = arp.offset + core::mem::offset_of!(ArpHdr, spa);
            return match self.context.store(spa, &[0u8; 4], 0) {
                Ok(()) => Verdict::Pass,
                Err(_) => Verdict::Drop,
            };
        }
        verdict
    }

    #[inline(always)]
    fn neighbour(&self, packet: &Egress, header: &'static Ipv6Hdr, message: Neighbour) -> Option<Verdict> {
        // Duplicate-address detection has no source, and so is none of these.
        let about = match message.kind {
            Kind::Advertisement => message.target,
            Kind::Solicitation => &header.src_addr,
        };
        vip6(about).map(|vip| said(packet, vip))
    }

    #[inline(always)]
    fn ipv4(&self, ip: &Ip<Egress>, header: &'static Ipv4Hdr) -> Verdict {
        match vip4(&header.src_addr) {
            Some(vip) => traffic(ip, vip, header),
            None => Verdict::Pass,
        }
    }

    #[inline(always)]
    fn ipv6(&self, ip: &Ip<Egress>, header: &'static Ipv6Hdr) -> Verdict {
        match vip6(&header.src_addr) {
            Some(vip) => traffic(ip, vip, header),
            None => Verdict::Pass,
        }
    }
}

/// ARP or ND that tells neighbours where the virtual IP is.
#[inline(always)]
fn said(packet: &Egress, vip: Vip) -> Verdict {
    if Permission::ask(vip).is_none() {
        count(vip, |counters| counters.tx_dropped += 1);
        return Verdict::Drop;
    }
    if packet.port() == vip.port {
        return Verdict::Pass;
    }
    count(vip, |counters| counters.other_port += 1);
    Verdict::Drop
}

/// A packet from a virtual IP.
#[inline(always)]
fn traffic(ip: &Ip<Egress>, vip: Vip, ends: &impl Ends) -> Verdict {
    let wire = ip.wire();
    if vip.port == 0 || Permission::ask(vip).is_none() {
        count(vip, |counters| counters.tx_dropped += wire.packets);
        return Verdict::Drop;
    }
    if ip.port() == vip.port {
        count(vip, |counters| {
            counters.tx_packets += wire.packets;
            counters.tx_bytes += wire.bytes;
        });
        if vip.tracked {
            connection::sent(ip, ends);
        }
        return Verdict::Pass;
    }
    // A tagged frame comes from a VLAN interface above this port, whose own program has judged and counted it. Sending
    // it back there would go round in circles.
    if ip.tagged() {
        return Verdict::Pass;
    }
    diagnose(|diagnostics| diagnostics.redirected += wire.packets);
    Verdict::Redirect(vip.port)
}
