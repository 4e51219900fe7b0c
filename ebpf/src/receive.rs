//! What is done with received frames, at whichever hook.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_log_ebpf::info;
use baton_common::{CLAIM_ARP, CLAIM_NA, CLAIM_NS, Claim};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::connection::{self, Ends};
use crate::maps::{EVENTS, OWN_MACS, REPORTED, Vip, count, diagnose, vip4, vip6};
use crate::nd::{Kind, Neighbour};
use crate::packet::Packet;
use crate::parse::{Arp, Ethernet, Hook, Ip, Verdict};
use crate::permission::{Permission, coarse_ns};
use crate::probe;

/// A claim of an address is reported at most once in this time, nanoseconds.
const REPORT_INTERVAL_NS: u64 = 100_000_000;

const ARP_REPLY: [u8; 2] = [0, 2];

const UNSPECIFIED4: [u8; 4] = [0; 4];
const UNSPECIFIED6: [u8; 16] = [0; 16];

/// Receives frames. `JUDGE`: drops what may not be served or belongs to another port, and reports claims. `COUNT`:
/// counts traffic.
pub struct Receive<'a, C, const JUDGE: bool, const COUNT: bool> {
    pub context: &'a C,
}

impl<C: EbpfContext, P: Packet, const JUDGE: bool, const COUNT: bool> Hook<P>
    for Receive<'_, C, JUDGE, COUNT>
{
    #[inline(always)]
    fn probe(&self, packet: &P) -> Verdict {
        if JUDGE { probe::receive(packet) } else { Verdict::Pass }
    }

    #[inline(always)]
    fn arp(&self, packet: &P, arp: Arp) -> Verdict {
        if !JUDGE {
            return Verdict::Pass;
        }
        let (sender, target) = (&arp.header.spa, &arp.header.tpa);
        // An answer to a question without a sender address (RFC 5227, 2.1.1), as the agent asks probe targets.
        if arp.header.oper == ARP_REPLY && *target == UNSPECIFIED4 {
            probe::answered(packet, 4, widen(sender), &arp.header.tha, &arp.header.sha);
        }
        // A probe (RFC 5227) has no sender address and claims nothing.
        let said = match vip4(sender) {
            Some(vip) if *sender != UNSPECIFIED4 => {
                self.claimed(packet, vip, CLAIM_ARP, 4, widen(sender), &arp.header.sha)
            }
            _ => Verdict::Pass,
        };
        // An announcement names the address twice. It asks nothing, and when another node serves the address, this one
        // must hear it like any neighbour.
        if sender == target {
            return said;
        }
        match vip4(target) {
            Some(vip) if asked(packet, vip) == Verdict::Drop => Verdict::Drop,
            _ => said,
        }
    }

    #[inline(always)]
    fn neighbour(&self, packet: &P, header: &'static Ipv6Hdr, message: Neighbour) -> Option<Verdict> {
        match message.kind {
            Kind::Advertisement => {
                if JUDGE && message.solicited {
                    let ethernet = packet.frame().at::<Ethernet>(0)?;
                    probe::answered(packet, 6, *message.target, &ethernet.destination, &ethernet.source);
                }
                let vip = vip6(message.target)?;
                if !JUDGE {
                    return Some(Verdict::Pass);
                }
                let mac = self.mac(packet, message.mac)?;
                Some(self.claimed(packet, vip, CLAIM_NA, 6, *message.target, mac))
            }
            Kind::Solicitation => {
                let asked =
                    vip6(message.target).map(|vip| if JUDGE { asked(packet, vip) } else { Verdict::Pass });
                // Without a source it is duplicate-address detection (RFC 4862) and claims nothing yet.
                let said = match vip6(&header.src_addr) {
                    Some(vip) if JUDGE && header.src_addr != UNSPECIFIED6 => {
                        let mac = self.mac(packet, message.mac)?;
                        Some(self.claimed(packet, vip, CLAIM_NS, 6, header.src_addr, mac))
                    }
                    _ => None,
                };
                match (asked, said) {
                    (Some(Verdict::Drop), _) | (_, Some(Verdict::Drop)) => Some(Verdict::Drop),
                    (None, None) => None,
                    _ => Some(Verdict::Pass),
                }
            }
        }
    }

    #[inline(always)]
    fn ipv4(&self, ip: &Ip<P>, header: &'static Ipv4Hdr) -> Verdict {
        match vip4(&header.dst_addr) {
            Some(vip) => Self::traffic(ip, vip, header),
            None => Verdict::Pass,
        }
    }

    #[inline(always)]
    fn ipv6(&self, ip: &Ip<P>, header: &'static Ipv6Hdr) -> Verdict {
        match vip6(&header.dst_addr) {
            Some(vip) => Self::traffic(ip, vip, header),
            None => Verdict::Pass,
        }
    }
}

impl<C: EbpfContext, const JUDGE: bool, const COUNT: bool> Receive<'_, C, JUDGE, COUNT> {
    /// A packet to a virtual IP, on whatever port: clients with an old neighbour entry still reach it by its last one.
    #[inline(always)]
    fn traffic<P: Packet>(ip: &Ip<P>, vip: Vip, ends: &impl Ends) -> Verdict {
        let at_ns = if JUDGE {
            let permission = Permission::ask(vip);
            if vip.tracked && permission.is_some() {
                connection::received(ip, ends);
            }
            match permission {
                Some(permission) if COUNT => permission.stamp(),
                Some(_) => return Verdict::Pass,
                None => {
                    let wire = ip.wire();
                    count(vip, |counters| counters.rx_dropped += wire.packets);
                    return Verdict::Drop;
                }
            }
        } else {
            coarse_ns()
        };
        probe::seen(ip.port(), at_ns);
        let wire = ip.wire();
        count(vip, |counters| {
            counters.rx_packets += wire.packets;
            counters.rx_bytes += wire.bytes;
            counters.rx_last_ns = at_ns;
        });
        Verdict::Pass
    }

    /// The MAC address that a neighbour message speaks for: its option, else the sender of the frame.
    #[inline(always)]
    fn mac<P: Packet>(&self, packet: &P, option: Option<&'static [u8; 6]>) -> Option<&'static [u8; 6]> {
        match option {
            Some(mac) => Some(mac),
            None => packet.frame().at::<Ethernet>(0).map(|ethernet| &ethernet.source),
        }
    }

    /// Somebody with this MAC says that the virtual IP is his. It is our own word that came back, or a foreign claim.
    #[inline(always)]
    fn claimed<P: Packet>(
        &self,
        packet: &P,
        vip: Vip,
        kind: u32,
        family: u16,
        address: [u8; 16],
        mac: &'static [u8; 6],
    ) -> Verdict {
        // An address that this node doesn't serve is another node's to claim.
        if Permission::ask(vip).is_none() {
            return Verdict::Pass;
        }
        if OWN_MACS.get_ptr(mac).is_none() {
            self.report(packet, kind, family, address, mac);
        }
        on_its_port(packet, vip)
    }

    /// Reports a foreign claim, unless one of the same address was reported just before.
    #[inline(always)]
    fn report<P: Packet>(
        &self,
        packet: &P,
        kind: u32,
        family: u16,
        address: [u8; 16],
        mac: &'static [u8; 6],
    ) {
        // SAFETY: the helper takes nothing and has no effect.
        let at_ns = unsafe { bpf_ktime_get_boot_ns() };
        // SAFETY: one word that is read once; when an entry is replaced meanwhile, a claim more or less is reported.
        let recently = match unsafe { REPORTED.get(address) } {
            Some(last_ns) => at_ns.wrapping_sub(*last_ns) < REPORT_INTERVAL_NS,
            None => false,
        };
        let claim = Claim { at_ns, kind, ifindex: packet.port(), address, family, mac: *mac };
        let reported = !recently && EVENTS.output::<Claim>(claim, 0).is_ok();
        diagnose(|diagnostics| {
            diagnostics.claims += 1;
            if !reported {
                diagnostics.claims_unreported += 1;
            }
        });
        if reported {
            // A full map (it forgets the oldest) at worst lets the next claim be reported early.
            let _ = REPORTED.insert(address, at_ns, 0);
            info!(
                self.context,
                "{:mac} claims a virtual IP (kind {}) on interface {}",
                *mac,
                kind,
                packet.port()
            );
        }
    }
}

/// Somebody asks who has the virtual IP.
#[inline(always)]
fn asked<P: Packet>(packet: &P, vip: Vip) -> Verdict {
    if Permission::ask(vip).is_none() {
        count(vip, |counters| counters.rx_dropped += 1);
        return Verdict::Drop;
    }
    on_its_port(packet, vip)
}

/// Only the port that the address is bound to may hear what is said about it.
#[inline(always)]
fn on_its_port<P: Packet>(packet: &P, vip: Vip) -> Verdict {
    if packet.port() == vip.port {
        return Verdict::Pass;
    }
    count(vip, |counters| counters.other_port += 1);
    Verdict::Drop
}

/// An IPv4 address in the first four of sixteen bytes.
#[inline(always)]
fn widen(address: &[u8; 4]) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(address);
    wide
}
