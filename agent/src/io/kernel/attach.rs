//! Puts the programs on ports, and takes them off.
//!
//! The name of a pin below `links/` says which program it holds on which interface: `<ifindex>-<hook>`. Where the
//! kernel has no links for TC (before 6.6), a program is a filter of the clsact queueing discipline instead; a folder
//! of that name stands for it, and one named `<ifindex>-qdisc` says that Baton made the queueing discipline.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aya::pin::PinError;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode, loaded_programs,
};
use baton_core::{Attachment, IfIndex};

use super::bpffs::{entries, links_dir, make_dir, remove_dir, remove_other_layouts, remove_pin};
use super::error::errno;
use super::{Kernel, KernelError, kernel_at_least, rtnetlink, unless_missing};

/// Place of Baton's filters in clsact: early, and at a number that others are unlikely to use.
const CLSACT_PRIORITY: u16 = 0xba7;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0xba7);

/// Which hooks may be used. All, unless a test wants to see the fall-backs.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// XDP in the driver.
    pub native: bool,
    /// XDP in the generic path.
    pub generic: bool,
    /// TC by links (TCX, Linux 6.6); otherwise by clsact.
    pub tcx: bool,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { native: true, generic: true, tcx: true }
    }
}

/// A place for a program on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Native,
    Generic,
    In,
    InFull,
    Route,
    Tx,
}

impl Hook {
    const ALL: [Self; 6] = [Self::Native, Self::Generic, Self::In, Self::InFull, Self::Route, Self::Tx];

    /// How pins are named.
    fn suffix(self) -> &'static str {
        match self {
            Self::Native => "rx",
            Self::Generic => "rx-generic",
            Self::In => "in",
            Self::InFull => "in-full",
            Self::Route => "route",
            Self::Tx => "tx",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Native => "port_rx",
            Self::Generic => "port_rx_generic",
            Self::In => "port_in",
            Self::InFull => "port_in_full",
            Self::Route => "port_route",
            Self::Tx => "port_tx",
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::Tx => TcAttachType::Egress,
            Self::Native | Self::Generic | Self::In | Self::InFull | Self::Route => TcAttachType::Ingress,
        }
    }

    /// Priority of its filter in clsact.
    fn priority(self) -> u16 {
        match self {
            Self::Route => CLSACT_PRIORITY + 1,
            Self::Native | Self::Generic | Self::In | Self::InFull | Self::Tx => CLSACT_PRIORITY,
        }
    }

    /// Its place among TCX programs: what judges goes first, so that no program of others lets pass what may not be served.
    fn order(self) -> LinkOrder {
        match self {
            Self::Route => LinkOrder::last(),
            Self::Native | Self::Generic | Self::In | Self::InFull | Self::Tx => LinkOrder::first(),
        }
    }
}

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refuses to attach it.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The link is of another kind.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The link cannot be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// How often a program is offered to the kernel again when its verification was interrupted by a signal.
const LOAD_ATTEMPTS: u32 = 5;

/// Gives a program to the kernel.
pub(super) fn load(program: &mut Program) -> Result<(), ProgramError> {
    patiently(|| match &mut *program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        other => Err(ProgramError::UnexpectedProgramType).inspect_err(|_| {
            let kind = other.prog_type();
            tracing::error!(?kind, "the object holds a program of a kind that Baton has none of");
        }),
    })
}

/// Verification ends with EAGAIN when a signal is pending (`bpf_check`).
pub(super) fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut attempt = 1;
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock && attempt < LOAD_ATTEMPTS =>
            {
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// As [`load`], if that has not been done.
pub(super) fn load_if_new(program: &mut Program) -> Result<(), ProgramError> {
    if program.fd().is_ok() { Ok(()) } else { load(program) }
}

/// Names of the programs that are wanted at any rate, and of those that an earlier agent put on some port.
pub(super) fn needed(dir: &Path) -> Result<Vec<&'static str>, KernelError> {
    let pins = entries(&links_dir(dir))?;
    let suffix = |pin: &PathBuf| Some(pin.file_name()?.to_str()?.split_once('-')?.1.to_owned());
    let pinned: BTreeSet<String> = pins.iter().filter_map(suffix).collect();
    let wanted = |h: &Hook| matches!(h, Hook::Native | Hook::Tx) || pinned.contains(h.suffix());
    Ok(Hook::ALL.into_iter().filter(wanted).map(Hook::program).chain(["condemn"]).collect())
}

/// A port to work on.
#[derive(Clone, Copy)]
struct Port<'a> {
    ifindex: u32,
    interface: &'a str,
}

impl Kernel {
    /// Puts the programs on a port, or swaps them into the links that an earlier agent left there, without a gap. Its
    /// MAC address becomes one of this node's own. Doing it again changes nothing.
    ///
    /// XDP runs in the driver where that is possible, else in the generic path, else TC does all: the result says which.
    ///
    /// From here on the port's traffic is judged by this agent's maps. Where an earlier agent's had another layout, they hold what
    /// those held; call [`Kernel::finish_takeover`] when all ports are done.
    ///
    /// # Errors
    ///
    /// The interface is gone; another XDP program is on it; the kernel refuses.
    pub fn attach(
        &mut self,
        ifindex: IfIndex,
        interface: &str,
        mac: [u8; 6],
    ) -> Result<Attachment, KernelError> {
        let IfIndex(ifindex) = ifindex;
        let port = Port { ifindex, interface };
        if nix::net::if_::if_nametoindex(interface).ok() != Some(ifindex) {
            return Err(KernelError::NoInterface { interface: interface.to_owned(), ifindex });
        }
        self.own(ifindex, mac)?;
        if let Some(predecessor) = &mut self.predecessor {
            predecessor.refresh()?;
        }
        self.attach_tc(Hook::Tx, port)?;
        let attachment = self.attach_rx(port)?;
        // What an earlier agent had to make do with would count everything a second time.
        let replaced: &[Hook] = match attachment {
            Attachment::Native => &[Hook::Generic, Hook::In, Hook::InFull],
            Attachment::Generic => &[Hook::InFull],
            Attachment::TcOnly => &[],
        };
        for hook in replaced {
            remove_link(&self.dir, *hook, ifindex, Some(interface))?;
        }
        if self.routing {
            self.attach_tc(Hook::Route, port)?;
        } else {
            remove_link(&self.dir, Hook::Route, ifindex, Some(interface))?;
        }
        self.attached.insert(ifindex);
        Ok(attachment)
    }

    /// Ends a takeover from an agent of another layout, when the programs are on all ports that they can be put on: what the old
    /// ones counted is final, and their maps are removed. An old program on a port that refused the new one goes too: it would
    /// go by what nobody tells it any more.
    ///
    /// # Errors
    ///
    /// A map refuses; a pin cannot be removed.
    pub fn finish_takeover(&mut self) -> Result<(), KernelError> {
        if let Some(predecessor) = self.predecessor.take() {
            for ifindex in pinned_interfaces(&self.dir)? {
                if !self.attached.contains(&ifindex) {
                    self.detach(IfIndex(ifindex))?;
                }
            }
            predecessor.finish()?;
        }
        remove_other_layouts(&self.dir)
    }

    /// Takes the programs off a port that is no longer configured. It is no error if there are none.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn detach(&mut self, ifindex: IfIndex) -> Result<(), KernelError> {
        let IfIndex(ifindex) = ifindex;
        remove_links_of(&self.dir, ifindex)?;
        self.disown(|_, port| port == ifindex)
    }

    /// Takes the programs off every interface but these: they were ports once.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn detach_all_but(&mut self, ports: &BTreeSet<IfIndex>) -> Result<(), KernelError> {
        let pinned = pinned_interfaces(&self.dir)?;
        let former = pinned.into_iter().map(IfIndex).filter(|ifindex| !ports.contains(ifindex));
        former.into_iter().try_for_each(|ifindex| self.detach(ifindex))
    }

    /// Removes what is pinned for interfaces that don't exist any more.
    pub(super) fn remove_links_of_gone_interfaces(&mut self) -> Result<(), KernelError> {
        for ifindex in pinned_interfaces(&self.dir)? {
            if interface_name(ifindex).is_none() {
                self.detach(IfIndex(ifindex))?;
            }
        }
        Ok(())
    }

    fn attach_rx(&mut self, port: Port) -> Result<Attachment, KernelError> {
        if self.adopt_xdp(Hook::Native, port)? {
            return Ok(Attachment::Native);
        }
        if self.adopt_xdp(Hook::Generic, port)? {
            self.attach_tc(Hook::In, port)?;
            return Ok(Attachment::Generic);
        }
        if self.hooks.native {
            match self.attach_xdp(Hook::Native, port, XdpMode::Driver)? {
                None => return Ok(Attachment::Native),
                Some(error) => tracing::warn!(
                    interface = port.interface,
                    error,
                    "the driver refuses XDP: trying the generic path, which costs more per packet"
                ),
            }
        }
        if self.hooks.generic {
            match self.attach_xdp(Hook::Generic, port, XdpMode::Skb)? {
                None => {
                    self.attach_tc(Hook::In, port)?;
                    return Ok(Attachment::Generic);
                }
                Some(error) => tracing::warn!(
                    interface = port.interface,
                    error,
                    "XDP is refused altogether: TC ingress counts and judges what is received"
                ),
            }
        }
        self.attach_tc(Hook::InFull, port)?;
        Ok(Attachment::TcOnly)
    }

    /// Swaps the program into a pinned link. `false`: there is none, or it belonged to an interface that is gone.
    fn adopt_xdp(&mut self, hook: Hook, port: Port) -> Result<bool, KernelError> {
        let pin = self.pin(hook, port);
        let Some(link) = pinned(&pin) else {
            return Ok(false);
        };
        let adopt = || -> Result<(), AttachError> {
            let program = self.xdp(hook)?;
            let id = program.attach_to_link(link.try_into()?)?;
            program.take_link(id)?;
            Ok(())
        };
        finish_adoption(adopt(), hook, port, &pin)
    }

    /// Attaches afresh. `Some`: this mode is not possible here, and why.
    fn attach_xdp(&mut self, hook: Hook, port: Port, mode: XdpMode) -> Result<Option<String>, KernelError> {
        let pin = self.pin(hook, port);
        let mut attach = || -> Result<(), AttachError> {
            let program = self.xdp(hook)?;
            let id = program.attach_to_if_index(port.ifindex, mode)?;
            let link: FdLink = program.take_link(id)?.try_into()?;
            link.pin(&pin)?;
            Ok(())
        };
        let Err(source) = attach() else {
            return Ok(None);
        };
        match errno(&source) {
            Some(libc::EBUSY | libc::EEXIST) => Err(KernelError::Busy {
                interface: port.interface.to_owned(),
                occupant: occupant(port.ifindex),
            }),
            Some(libc::EPERM) => Err(KernelError::Privilege { what: "attach kernel programs" }),
            Some(libc::ENODEV) => {
                Err(KernelError::NoInterface { interface: port.interface.to_owned(), ifindex: port.ifindex })
            }
            _ => Ok(Some(super::error::chain(&source))),
        }
    }

    /// Attaches, or swaps the program into what is there: a TCX link, or a filter where the kernel has no such links.
    fn attach_tc(&mut self, hook: Hook, port: Port) -> Result<(), KernelError> {
        if self.adopt_tcx(hook, port)? {
            return Ok(());
        }
        let is_filter = self.pin(hook, port).is_dir(); // and stays one: two at a time would count twice
        if self.hooks.tcx && !is_filter && kernel_at_least(6, 6) {
            return self.attach_tcx(hook, port);
        }
        self.attach_filter(hook, port)
    }

    fn adopt_tcx(&mut self, hook: Hook, port: Port) -> Result<bool, KernelError> {
        let pin = self.pin(hook, port);
        let Some(link) = pinned(&pin) else {
            return Ok(false);
        };
        let adopt = || -> Result<(), AttachError> {
            let program = self.classifier(hook)?;
            let id = program.attach_to_link(link.try_into()?)?;
            program.take_link(id)?;
            Ok(())
        };
        finish_adoption(adopt(), hook, port, &pin)
    }

    fn attach_tcx(&mut self, hook: Hook, port: Port) -> Result<(), KernelError> {
        let pin = self.pin(hook, port);
        let mut attach = || -> Result<(), AttachError> {
            let options = TcAttachOptions::TcxOrder(hook.order());
            let program = self.classifier(hook)?;
            let id = program.attach_with_options(port.interface, hook.direction(), options)?;
            let link: FdLink = program.take_link(id)?.try_into()?;
            link.pin(&pin)?;
            Ok(())
        };
        attach().map_err(|source| attach_error(hook, port, source))
    }

    fn attach_filter(&mut self, hook: Hook, port: Port) -> Result<(), KernelError> {
        let marker = self.pin(hook, port);
        match tc::qdisc_add_clsact(port.interface) {
            Ok(()) => make_dir(&links_dir(&self.dir).join(format!("{}-qdisc", port.ifindex)))?,
            Err(error) if errno(&error) == Some(libc::EEXIST) => {}
            Err(error) => return Err(attach_error(hook, port, ProgramError::from(error).into())),
        }
        let exists = marker.is_dir();
        make_dir(&marker)?;
        let mut attach = || -> Result<(), AttachError> {
            let program = self.classifier(hook)?;
            let id = if exists {
                program.attach_to_link(filter(port.interface, hook)?)?
            } else {
                let options = NlOptions { priority: hook.priority(), handle: CLSACT_HANDLE, classid: None };
                program.attach_with_options(
                    port.interface,
                    hook.direction(),
                    TcAttachOptions::Netlink(options),
                )?
            };
            // Dropping the link would remove the filter.
            std::mem::forget(program.take_link(id)?);
            Ok(())
        };
        attach().map_err(|source| attach_error(hook, port, source))
    }

    fn xdp(&mut self, hook: Hook) -> Result<&mut Xdp, ProgramError> {
        let program = self.ebpf.program_mut(hook.program()).ok_or(ProgramError::NotLoaded)?;
        load_if_new(program)?;
        program.try_into()
    }

    fn classifier(&mut self, hook: Hook) -> Result<&mut SchedClassifier, ProgramError> {
        let program = self.ebpf.program_mut(hook.program()).ok_or(ProgramError::NotLoaded)?;
        load_if_new(program)?;
        program.try_into()
    }

    fn pin(&self, hook: Hook, port: Port) -> PathBuf {
        links_dir(&self.dir).join(format!("{}-{}", port.ifindex, hook.suffix()))
    }

    /// Adds a MAC address of this node. When the table is full, those that the port had before make room.
    fn own(&mut self, ifindex: u32, mac: [u8; 6]) -> Result<(), KernelError> {
        if let Err(error) = self.own_macs.insert(mac, ifindex, 0) {
            if errno(&error) != Some(libc::E2BIG) {
                return Err(KernelError::map("OWN_MACS", error));
            }
            self.disown(|_, port| port == ifindex)?;
            self.own_macs.insert(mac, ifindex, 0).map_err(|source| KernelError::map("OWN_MACS", source))?;
        }
        Ok(())
    }

    /// Removes MAC addresses.
    fn disown(&mut self, which: impl Fn([u8; 6], u32) -> bool) -> Result<(), KernelError> {
        let owned: Result<Vec<([u8; 6], u32)>, _> = self.own_macs.iter().collect();
        for (mac, port) in owned.map_err(|source| KernelError::map("OWN_MACS", source))? {
            if which(mac, port) {
                self.own_macs
                    .remove(&mac)
                    .or_else(unless_missing)
                    .map_err(|source| KernelError::map("OWN_MACS", source))?;
            }
        }
        Ok(())
    }
}

/// The link that is pinned there, if any.
fn pinned(pin: &Path) -> Option<FdLink> {
    PinnedLink::from_pin(pin).ok().map(FdLink::from)
}

/// A link whose interface is gone is refused (ENOLINK); its pin goes, so that the port that now has the index is
/// attached afresh.
fn finish_adoption(
    result: Result<(), AttachError>,
    hook: Hook,
    port: Port,
    pin: &Path,
) -> Result<bool, KernelError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Some(libc::ENOLINK) => {
            remove_pin(pin)?;
            Ok(false)
        }
        Err(source) => Err(attach_error(hook, port, source)),
    }
}

fn attach_error(hook: Hook, port: Port, source: AttachError) -> KernelError {
    let interface = port.interface.to_owned();
    match errno(&source) {
        Some(libc::EPERM) => KernelError::Privilege { what: "attach kernel programs" },
        Some(libc::ENODEV) => KernelError::NoInterface { interface, ifindex: port.ifindex },
        _ => KernelError::Attach { interface, program: hook.program(), source },
    }
}

/// What is known of the XDP program on an interface.
fn occupant(ifindex: u32) -> String {
    let Ok(Some(id)) = rtnetlink::xdp_program(ifindex) else {
        return "of unknown origin".to_owned();
    };
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) => format!("id {id}, \"{name}\""),
        None => format!("id {id}"),
    }
}

/// Baton's filter in clsact.
fn filter(interface: &str, hook: Hook) -> Result<SchedClassifierLink, ProgramError> {
    SchedClassifierLink::attached(interface, hook.direction(), hook.priority(), CLSACT_HANDLE, None)
        .map_err(ProgramError::IOError)
}

/// Name of an interface; `None`: there is none with this index. (nix takes a missing one for an empty name.)
fn interface_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()?;
    (!name.is_empty()).then_some(name)
}

/// Interfaces that something is pinned for.
fn pinned_interfaces(dir: &Path) -> Result<Vec<u32>, KernelError> {
    let mut interfaces: Vec<u32> = entries(&links_dir(dir))?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.split_once('-')?.0.parse().ok())
        .collect();
    interfaces.dedup();
    Ok(interfaces)
}

/// Takes everything off every port.
pub(super) fn remove_links(dir: &Path) -> Result<(), KernelError> {
    for ifindex in pinned_interfaces(dir)? {
        remove_links_of(dir, ifindex)?;
    }
    Ok(())
}

fn remove_links_of(dir: &Path, ifindex: u32) -> Result<(), KernelError> {
    let links = links_dir(dir);
    let interface = interface_name(ifindex);
    for hook in Hook::ALL {
        remove_link(dir, hook, ifindex, interface.as_deref())?;
    }
    let qdisc = links.join(format!("{ifindex}-qdisc"));
    if qdisc.is_dir() {
        if interface.is_some()
            && let Err(error) = rtnetlink::remove_clsact(ifindex)
        {
            tracing::warn!(ifindex, %error, "the clsact queueing discipline could not be removed");
        }
        remove_dir(&qdisc)?;
    }
    Ok(())
}

/// Takes one program off a port, link or filter. It is no error if it isn't there.
fn remove_link(dir: &Path, hook: Hook, ifindex: u32, interface: Option<&str>) -> Result<(), KernelError> {
    let pin = links_dir(dir).join(format!("{ifindex}-{}", hook.suffix()));
    if !pin.is_dir() {
        return remove_pin(&pin);
    }
    if let Some(link) = interface.and_then(|interface| filter(interface, hook).ok()) {
        drop(link); // which removes the filter; it may be gone already
    }
    remove_dir(&pin)
}
