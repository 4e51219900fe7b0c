//! Faults that are more than a call on a [`Port`]: ports that lose all, some or certain frames while the carrier stays,
//! and a station that claims somebody else's address. Frames are lost at the switch, whatever they carry.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::bpf::{self, Loss};
use crate::clock::RealtimeOffset;
use crate::error::{Context, LabError};
use crate::host::Host;
use crate::packet::PacketSocket;
use crate::port::Port;
use crate::topology::Lab;
use crate::wire::{self, Frame, Kind};

/// A direction of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the host sends is lost. A [`crate::Watcher`] on the port still sees it, as it sits before the loss.
    FromHost,
    /// What is sent to the host is lost.
    ToHost,
}

/// Frames are lost at a switch's end of a port until this is dropped. The program is held by this guard alone, so it goes with the
/// process, too.
#[derive(Debug)]
pub struct Blackhole {
    host: String,
    _link: OwnedFd,
}

impl Blackhole {
    /// Name of the host whose port it is.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// An XDP program of [`Port::occupy_xdp`] or [`Port::bounce_xdp`] that stays until this is dropped.
#[derive(Debug)]
pub struct Occupant {
    _link: OwnedFd,
}

/// A port that has left its bridge, carrier up, until this is dropped.
#[derive(Debug)]
pub struct OffBridge {
    port: Port,
}

impl Drop for OffBridge {
    fn drop(&mut self) {
        // Fails when the port is gone; then there is nothing to put back.
        let _ = self.port.switches().netlink().set_master(self.port.switch_index(), self.port.bridge());
    }
}

/// A switch that forwards nothing until this is dropped.
#[derive(Debug)]
pub struct SwitchOff {
    switches: Host,
    bridge: u32,
}

impl Drop for SwitchOff {
    fn drop(&mut self) {
        // Only memory can be short: the bridge lives as long as its namespace, which this holds.
        let _ = self.switches.netlink().set_up(self.bridge, true);
    }
}

impl Port {
    /// Loses everything in one direction, with carrier.
    ///
    /// # Errors
    /// When the kernel has no TCX (before Linux 6.6), or what it says.
    pub fn lose(&self, direction: Direction) -> Result<Blackhole, LabError> {
        self.attach(direction, Loss::All)
    }

    /// Loses everything in both directions, with carrier.
    ///
    /// # Errors
    /// As [`Port::lose`].
    pub fn lose_both(&self) -> Result<[Blackhole; 2], LabError> {
        Ok([self.lose(Direction::FromHost)?, self.lose(Direction::ToHost)?])
    }

    /// Loses a share of the frames in one direction, at random: `percent` of 100.
    ///
    /// # Errors
    /// As [`Port::lose`].
    pub fn lose_share(&self, direction: Direction, percent: u8) -> Result<Blackhole, LabError> {
        self.attach(direction, Loss::Share { percent })
    }

    /// Loses what `sender` sends to this port, and nothing else: told by its hardware address.
    ///
    /// # Errors
    /// As [`Port::lose`].
    pub fn lose_from(&self, sender: &Port) -> Result<Blackhole, LabError> {
        self.attach(Direction::ToHost, Loss::From(sender.mac()))
    }

    /// Takes the switch's end out of its bridge, with carrier.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn leave_bridge(&self) -> Result<OffBridge, LabError> {
        self.switches().netlink().set_master(self.switch_index(), 0)?;
        Ok(OffBridge { port: self.clone() })
    }

    pub(crate) fn attach(&self, direction: Direction, loss: Loss) -> Result<Blackhole, LabError> {
        let index = self.switch_index();
        let what = format!("drop frames at {} ({direction:?}, {loss:?})", self.switch_end());
        let link = self.switches().open(&what, || bpf::attach_loss(index, direction, loss))?;
        Ok(Blackhole { host: self.host().name().to_owned(), _link: link })
    }

    /// Starts a station on this port that answers ARP and neighbour solicitations for `address` with the port's hardware address.
    ///
    /// # Errors
    /// What the sockets say.
    pub fn impersonate(&self, address: IpAddr) -> Result<Impostor, LabError> {
        let index = self.index();
        let socket = self.host().open("open a packet socket", || PacketSocket::open(index))?;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let station =
            Station { socket, mac: self.mac(), address, stop: stop.clone(), answered: answered.clone() };
        let thread = std::thread::Builder::new().name("lab-impostor".into()).spawn(move || station.run());
        let thread = thread.context(|| "start the impostor".into())?;
        Ok(Impostor { stop, answered, thread: Some(thread) })
    }

    /// Puts somebody else's XDP program on this port, one that lets everything pass, held by the guard alone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn occupy_xdp(&self) -> Result<Occupant, LabError> {
        let index = self.index();
        let what = format!("put an XDP program on {}", self.interface());
        let link = self.host().open(&what, || bpf::attach_xdp(index, bpf::XDP_PASS))?;
        Ok(Occupant { _link: link })
    }

    /// Sends every frame that comes to this port back by it, unchanged, with XDP_TX; see [`Lab::carry_xdp_tx`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bounce_xdp(&self) -> Result<Occupant, LabError> {
        let index = self.index();
        let what = format!("bounce frames at {}", self.interface());
        let link = self.host().open(&what, || bpf::attach_xdp(index, bpf::XDP_TX))?;
        Ok(Occupant { _link: link })
    }

    /// Hands frames to the host as if its switch had forwarded them: no switch learns from it.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send_to_host(&self, frames: &[&[u8]]) -> Result<(), LabError> {
        let index = self.switch_index();
        self.switches().open("send frames to a host", || send_all(index, frames))
    }

    pub(crate) fn take_xdp_tx(&self) -> Result<Occupant, LabError> {
        let index = self.switch_index();
        let what = format!("put an XDP program on {}", self.switch_end());
        let link = self.switches().open(&what, || bpf::attach_xdp(index, bpf::XDP_PASS))?;
        Ok(Occupant { _link: link })
    }

    /// Sends one frame by this port, as it is.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send_frame(&self, frame: &[u8]) -> Result<(), LabError> {
        self.send_frames(&[frame])
    }

    /// Sends frames by this port, as they are, one right after the other.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send_frames(&self, frames: &[&[u8]]) -> Result<(), LabError> {
        let index = self.index();
        self.host().open("send frames", || send_all(index, frames))
    }
}

fn send_all(index: u32, frames: &[&[u8]]) -> io::Result<()> {
    let socket = PacketSocket::sender(index)?;
    frames.iter().try_for_each(|frame| socket.send(frame))
}

/// A running impostor of [`Port::impersonate`]; it stops when dropped.
#[derive(Debug)]
pub struct Impostor {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    /// How many questions it has answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Station {
    socket: PacketSocket,
    mac: wire::Mac,
    address: IpAddr,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Station {
    fn run(self) {
        let offset = RealtimeOffset::sample();
        while !self.stop.load(Ordering::Relaxed) {
            let ready = self.socket.wait(Duration::from_millis(20)).unwrap_or(false);
            while ready && let Ok(Some(received)) = self.socket.receive(offset) {
                let Some((_, source, kind)) = wire::decode(&received.bytes) else { continue };
                let answer = self.answer_to(source, &kind);
                // A port that is down just now loses the answer, as a real one would.
                if !received.outgoing && answer.is_some_and(|frame| self.socket.send(&frame).is_ok()) {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn answer_to(&self, asker_mac: wire::Mac, question: &Kind) -> Option<Vec<u8>> {
        match (*question, self.address) {
            (Kind::Arp { reply: false, sender, target, .. }, IpAddr::V4(address)) if target == address => {
                Some(wire::arp_reply(self.mac, address, asker_mac, sender))
            }
            (Kind::Solicitation { source, target }, IpAddr::V6(address)) if target == address => {
                Some(wire::neighbour_advertisement(self.mac, address, asker_mac, source))
            }
            _ => None,
        }
    }
}

impl Lab {
    /// The switch of a segment forwards nothing any more, from one moment to the next, while every port keeps its carrier.
    ///
    /// # Errors
    /// An unknown segment, or what the kernel says.
    pub fn switch_off(&self, segment: &str) -> Result<SwitchOff, LabError> {
        let (switches, bridge) = (self.switches().clone(), self.bridge(segment)?);
        switches.netlink().set_up(bridge, false)?;
        Ok(SwitchOff { switches, bridge })
    }

    /// A host is no longer heard nor reached, while its ports keep their carrier.
    ///
    /// # Errors
    /// As [`Port::lose`]; nothing is lost then.
    pub fn lose_host(&self, host: &str) -> Result<Vec<Blackhole>, LabError> {
        let mut holes = Vec::new();
        for port in self.ports().filter(|port| port.host().name() == host) {
            holes.extend(port.lose_both()?);
        }
        Ok(holes)
    }
}

impl Frame {
    /// True for an ARP or neighbour discovery question for `address`.
    pub fn asks_for(&self, address: IpAddr) -> bool {
        match self.kind {
            Kind::Arp { reply: false, sender, target, .. } => {
                sender != target && IpAddr::from(target) == address
            }
            Kind::Solicitation { target, .. } => IpAddr::from(target) == address,
            _ => false,
        }
    }
}
