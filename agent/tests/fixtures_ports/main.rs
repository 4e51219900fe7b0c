//! The kernel programs on real ports, in network namespaces: the ways to attach them, taking over from an earlier
//! agent, handing replies to the bound port, and leaving nothing behind.
//!
//! Needs root: without it the tests fail.

mod accuracy;
mod layouts;
mod net;

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::programs::{SchedClassifier, TcAttachType};
use baton::io::kernel::{Hooks, Kernel, KernelError, remove_all};
use baton_common::{Counters, LAYOUT_VERSION, Lease};
use baton_core::{Attachment, IfIndex};

use net::{PinDir, Port, Segment, VIP, VIP6, link, port, run};

const INCARNATION: u64 = 3;
const LEASE: Lease = Lease::endless(INCARNATION);
/// Bytes of an echo request of ping's default size on the wire: Ethernet, IP, ICMP, 56.
const ECHO4: u64 = 14 + 20 + 8 + 56;
const ECHO6: u64 = 14 + 40 + 8 + 56;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An agent that serves both addresses on a port.
fn serve(kernel: &mut Kernel, port: &Port) {
    kernel.set_lease(LEASE).unwrap();
    kernel.mark("files", Some(INCARNATION)).unwrap();
    for vip in [VIP, VIP6] {
        kernel.permit(address(vip), "files", Some(port.ifindex)).unwrap();
    }
}

fn attach_all(kernel: &mut Kernel, segment: &Segment) -> [Attachment; 2] {
    segment.ports.each_ref().map(|port| kernel.attach(port.ifindex, port.name, port.mac).unwrap())
}

fn counters(kernel: &Kernel, vip: &str) -> Counters {
    let read = kernel.reader().unwrap().read().unwrap();
    read.into_iter().find(|(known, _, _)| *known == address(vip)).unwrap().2
}

/// Nothing of Baton's is left on a port.
fn assert_bare(port: &Port) {
    let state = link(port.name);
    assert!(state.get("xdp").is_none(), "{state}");
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) = SchedClassifier::query_tcx(port.name, direction).unwrap();
        assert!(programs.is_empty(), "{}: {direction:?}", port.name);
    }
    assert!(!run(&format!("tc qdisc show dev {}", port.name)).contains("clsact"));
}

/// All ways to attach count and enforce alike; `remove_all` takes everything away.
fn every_way(purpose: &str, hooks: Hooks, expected: Attachment) {
    let segment = Segment::new();
    let pins = PinDir::new(purpose);
    let mut kernel = Kernel::open_with(pins.path(), hooks).unwrap();
    segment.bind(&segment.ports[0]);
    serve(&mut kernel, &segment.ports[0]);
    assert_eq!(attach_all(&mut kernel, &segment), [expected; 2]);
    assert_eq!(attach_all(&mut kernel, &segment), [expected; 2], "attaching twice changes nothing");

    assert_eq!(segment.ping(VIP, 20).recv().unwrap(), 20);
    assert_eq!(segment.ping(VIP6, 20).recv().unwrap(), 20);
    for (vip, bytes) in [(VIP, ECHO4), (VIP6, ECHO6)] {
        let counted = counters(&kernel, vip);
        assert_eq!((counted.rx_packets, counted.rx_bytes), (20, 20 * bytes), "{vip}");
        assert_eq!((counted.tx_packets, counted.tx_bytes), (20, 20 * bytes), "{vip}");
        assert_eq!((counted.rx_dropped, counted.tx_dropped), (0, 0), "{vip}");
    }

    kernel.mark("files", None).unwrap();
    assert_eq!(segment.ping(VIP, 5).recv().unwrap(), 0, "an address that may not be served is silent");
    assert!(counters(&kernel, VIP).rx_dropped > 0);

    drop(kernel);
    remove_all(pins.path()).unwrap();
    assert!(!pins.path().exists());
    segment.ports.iter().for_each(assert_bare);
    assert_eq!(segment.ping(VIP, 5).recv().unwrap(), 5, "nothing drops any more");
}

#[test]
fn native() {
    every_way("native", Hooks::default(), Attachment::Native);
}

#[test]
fn generic() {
    every_way("generic", Hooks { native: false, ..Hooks::default() }, Attachment::Generic);
}

#[test]
fn tc_only() {
    every_way("tc-only", Hooks { native: false, generic: false, ..Hooks::default() }, Attachment::TcOnly);
}

#[test]
fn filters_instead_of_links() {
    every_way("clsact", Hooks { tcx: false, ..Hooks::default() }, Attachment::Native);
}

#[test]
fn filters_only() {
    every_way("clsact-only", Hooks { native: false, generic: false, tcx: false }, Attachment::TcOnly);
}

/// What others pinned on the BPF file system that Baton mounted outlives Baton's own.
#[test]
fn pins_of_others_stay() {
    let pins = PinDir::new("others");
    drop(Kernel::open_with(pins.path(), Hooks::default()).unwrap());
    let others = pins.path().join("others");
    std::fs::create_dir(&others).unwrap();
    remove_all(pins.path()).unwrap();
    let left: Vec<_> = std::fs::read_dir(pins.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.contains(&others) && !left.iter().any(|path| path.ends_with("links")), "{left:?}");

    std::fs::remove_dir(&others).unwrap();
    remove_all(pins.path()).unwrap();
    assert!(!pins.path().exists());
}

/// The next agent may have better ways: what it replaces doesn't go on counting.
#[test]
fn a_better_way_replaces_the_other() {
    let segment = Segment::new();
    let pins = PinDir::new("better");
    segment.bind(&segment.ports[0]);
    let ways = [
        (Hooks { native: false, generic: false, tcx: false }, Attachment::TcOnly),
        (Hooks { native: false, ..Hooks::default() }, Attachment::Generic),
        (Hooks::default(), Attachment::Generic), // kept: a change of mode would be a gap
    ];
    for (n, (hooks, expected)) in ways.into_iter().enumerate() {
        let mut kernel = Kernel::open_with(pins.path(), hooks).unwrap();
        serve(&mut kernel, &segment.ports[0]);
        assert_eq!(attach_all(&mut kernel, &segment), [expected; 2]);
        assert_eq!(segment.ping(VIP, 10).recv().unwrap(), 10);
        let counted = counters(&kernel, VIP);
        let all = 10 * (n as u64 + 1);
        assert_eq!((counted.rx_packets, counted.tx_packets), (all, all), "{expected:?}");
    }
}

#[test]
fn a_queueing_discipline_of_others_stays() {
    let segment = Segment::new();
    let pins = PinDir::new("qdisc");
    let [port, _] = &segment.ports;
    run("tc qdisc add dev p0 clsact");
    let mut kernel = Kernel::open_with(pins.path(), Hooks { tcx: false, ..Hooks::default() }).unwrap();
    kernel.attach(port.ifindex, port.name, port.mac).unwrap();
    assert!(run("tc filter show dev p0 egress").contains("port_tx"));
    remove_all(pins.path()).unwrap();
    assert!(!run("tc filter show dev p0 egress").contains("port_tx"));
    assert!(run("tc qdisc show dev p0").contains("clsact"));
}

/// A second agent takes over while packets flow, with the same layout and after a change of it; no packet and no count
/// is lost.
#[test]
fn takes_over_without_a_gap() {
    for hooks in [
        Hooks::default(),
        Hooks { native: false, ..Hooks::default() },
        Hooks { tcx: false, ..Hooks::default() },
    ] {
        std::thread::spawn(move || {
            let segment = Segment::new();
            let pins = PinDir::new("adopt");
            let stale = pins.path().join(format!("v{}", LAYOUT_VERSION + 1));
            let mut first = Kernel::open_with(pins.path(), hooks).unwrap();
            segment.bind(&segment.ports[1]);
            serve(&mut first, &segment.ports[1]);
            let attached = attach_all(&mut first, &segment);
            assert_eq!(segment.ping(VIP, 3).recv().unwrap(), 3);

            let pinging = segment.ping(VIP, 2000);
            drop(first);
            std::fs::create_dir(&stale).unwrap();
            for _ in 0..3 {
                let mut next = Kernel::open_with(pins.path(), hooks).unwrap();
                assert_eq!(next.lease().unwrap(), LEASE);
                assert_eq!(next.bound()[&address(VIP)], segment.ports[1].ifindex);
                serve(&mut next, &segment.ports[1]);
                assert_eq!(attach_all(&mut next, &segment), attached);
                next.finish_takeover().unwrap();
            }
            assert!(!stale.exists(), "other layouts are removed once the new programs run");
            assert_eq!(pinging.recv().unwrap(), 2000);

            let last = Kernel::open_with(pins.path(), hooks).unwrap();
            let counted = counters(&last, VIP);
            assert_eq!((counted.rx_packets, counted.tx_packets), (2003, 2003));
        })
        .join()
        .unwrap();
    }
}

/// The same from an agent whose maps have another layout: marks, lease, bindings and counters go on, and so do packets. The
/// pins of the first agent are given the name of another version, older and newer in turn.
#[test]
fn takes_over_another_layout_without_a_gap() {
    for hooks in [Hooks::default(), Hooks { native: false, ..Hooks::default() }] {
        std::thread::spawn(move || {
            let segment = Segment::new();
            let pins = PinDir::new("layout");
            let this = pins.path().join(format!("v{LAYOUT_VERSION}"));
            let mut first = Kernel::open_with(pins.path(), hooks).unwrap();
            segment.bind(&segment.ports[1]);
            serve(&mut first, &segment.ports[1]);
            let attached = attach_all(&mut first, &segment);
            assert_eq!(segment.ping(VIP, 3).recv().unwrap(), 3);

            let pinging = segment.ping(VIP, 2000);
            drop(first);
            let mut counted = 0;
            for version in [LAYOUT_VERSION - 1, LAYOUT_VERSION + 1, LAYOUT_VERSION - 1] {
                let other = pins.path().join(format!("v{version}"));
                std::fs::rename(&this, &other).unwrap();
                let mut next = Kernel::open_with(pins.path(), hooks).unwrap();
                assert_eq!(next.lease().unwrap(), LEASE);
                assert_eq!(next.bound()[&address(VIP)], segment.ports[1].ifindex);
                let marked = next.adopt_servers(&["files"], INCARNATION).unwrap();
                assert!(marked.contains("files"), "{marked:?}");
                let now = counters(&next, VIP).rx_packets;
                assert!(now >= counted, "{now} after {counted}");
                assert_eq!(attach_all(&mut next, &segment), attached);
                assert!(other.exists(), "removed while its programs may run");
                next.finish_takeover().unwrap();
                assert!(!other.exists(), "left behind");
                counted = counters(&next, VIP).rx_packets;
                assert!(counted >= now, "{counted} after {now}");
            }
            assert_eq!(pinging.recv().unwrap(), 2000);

            let mut last = Kernel::open_with(pins.path(), hooks).unwrap();
            let counted = counters(&last, VIP);
            assert_eq!((counted.rx_packets, counted.tx_packets), (2003, 2003));

            // An address that is forgotten and comes back counts from zero.
            last.forget(address(VIP)).unwrap();
            last.permit(address(VIP), "files", Some(segment.ports[1].ifindex)).unwrap();
            assert_eq!(counters(&last, VIP).rx_packets, 0);
        })
        .join()
        .unwrap();
    }
}

/// Routing knows one port only; replies leave by the bound one all the same, and are counted once.
#[test]
fn replies_leave_by_the_bound_port() {
    let segment = Segment::new();
    let pins = PinDir::new("redirect");
    let [routed, bound] = &segment.ports;
    let mut kernel = Kernel::open(pins.path()).unwrap();
    segment.bind(bound);
    serve(&mut kernel, bound);
    attach_all(&mut kernel, &segment);

    let sent = |port: &Port| link(port.name)["stats64"]["tx"]["packets"].as_u64().unwrap();
    for (vip, bytes) in [(VIP, ECHO4), (VIP6, ECHO6)] {
        // The first answer takes as long as finding the neighbour does; a client's queue for it is short.
        let found = (0..10).any(|_| segment.ping(vip, 1).recv().unwrap() == 1);
        assert!(found, "{vip}");
        let first = counters(&kernel, vip);
        let before = (sent(routed), sent(bound), kernel.reader().unwrap().diagnostics().unwrap().redirected);
        assert_eq!(segment.ping(vip, 200).recv().unwrap(), 200);
        let counted = counters(&kernel, vip);
        let since = (counted.tx_packets - first.tx_packets, counted.tx_bytes - first.tx_bytes);
        assert_eq!(since, (200, 200 * bytes), "{vip}");
        assert_eq!(kernel.reader().unwrap().diagnostics().unwrap().redirected - before.2, 200, "{vip}");
        assert!(sent(bound) - before.1 >= 200, "{vip}");
        assert!(sent(routed) - before.0 < 20, "{vip}: only what the node says for itself leaves there");
    }
    let mac = |address: &str| segment.client.run(format!("ip neigh show {address}"));
    let text = bound.mac.map(|byte| format!("{byte:02x}")).join(":");
    for vip in [VIP, VIP6] {
        assert!(mac(vip).contains(&text), "{}", mac(vip));
    }

    // The address moves to the other port: new on the new one first, then away from the old one.
    kernel.permit(address(VIP), "files", Some(routed.ifindex)).unwrap();
    run(&format!("ip addr add {VIP}/32 dev {}", routed.name));
    run(&format!("ip addr del {VIP}/32 dev {}", bound.name));
    let before = counters(&kernel, VIP).tx_packets;
    assert_eq!(
        segment.ping(VIP, 50).recv().unwrap(),
        50,
        "a client with an old neighbour entry still reaches it"
    );
    assert_eq!(counters(&kernel, VIP).tx_packets - before, 50);
}

#[test]
fn a_port_that_is_made_anew_is_attached_anew() {
    let segment = Segment::new();
    let pins = PinDir::new("anew");
    let mut kernel = Kernel::open(pins.path()).unwrap();
    segment.bind(&segment.ports[0]);
    serve(&mut kernel, &segment.ports[0]);
    attach_all(&mut kernel, &segment);
    let old = segment.ports[0].ifindex;

    run("ip link del p0");
    run(&format!("ip link add p0 index {} type veth peer name cp0", old.0));
    let new = port("p0");
    assert_eq!(new.ifindex, old);
    assert_eq!(kernel.attach(new.ifindex, new.name, new.mac).unwrap(), Attachment::Native);
    assert_eq!(link("p0")["xdp"]["mode"], 1, "the new interface has its program");

    run("ip link del p0");
    let error = kernel.attach(new.ifindex, new.name, new.mac).unwrap_err();
    assert!(matches!(error, KernelError::NoInterface { .. }), "{error}");
    drop(Kernel::open(pins.path()).unwrap());
    let left = std::fs::read_dir(pins.path().join("links")).unwrap().filter_map(Result::ok);
    let left: Vec<String> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|pin| !pin.starts_with(&format!("{}-", old.0))), "{left:?}");
}

#[test]
fn another_program_is_named() {
    let segment = Segment::new();
    let (theirs, ours) = (PinDir::new("theirs"), PinDir::new("ours"));
    let [port, _] = &segment.ports;
    Kernel::open(theirs.path()).unwrap().attach(port.ifindex, port.name, port.mac).unwrap();
    let error = Kernel::open(ours.path()).unwrap().attach(port.ifindex, port.name, port.mac).unwrap_err();
    assert!(error.to_string().starts_with("p0 already has an XDP program (id "), "{error}");
    assert!(error.to_string().contains("\"port_rx\""), "{error}");
}

/// Without privileges there is one clear line, and nothing is left behind.
#[test]
fn missing_privileges_are_named() {
    const NOBODY: libc::c_long = 65_534;
    let pins = PinDir::new("privileges");
    let path = pins.path().to_owned();
    let error = std::thread::spawn(move || {
        // SAFETY: the system call by itself changes the user of this thread only, and with it takes its capabilities.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
        Kernel::open(&path).err().unwrap().to_string()
    });
    assert_eq!(
        error.join().unwrap(),
        "not permitted to mount a BPF file system: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON \
         (CAP_SYS_ADMIN to mount)"
    );
    assert!(!pins.path().exists());
}

/// Addresses keep their slots and counts over a restart; a forgotten one starts anew.
#[test]
fn slots_stay_with_addresses() {
    fn is_for_another_thread<T: Send + 'static>(_: &T) {}
    let pins = PinDir::new("slots");
    let vips: Vec<IpAddr> = (0..1000u32)
        .flat_map(|n| {
            [
                IpAddr::from((0x0a00_0000_u32 + n).to_be_bytes()),
                IpAddr::from(((0xfd_u128 << 120) + u128::from(n)).to_be_bytes()),
            ]
        })
        .collect();
    let slots = |kernel: &Kernel| -> BTreeMap<IpAddr, u32> {
        let mut reader = kernel.reader().unwrap();
        is_for_another_thread(&reader);
        reader.read().unwrap().into_iter().map(|(address, slot, _)| (address, slot)).collect()
    };
    let mut kernel = Kernel::open(pins.path()).unwrap();
    for (n, vip) in vips.iter().enumerate() {
        kernel.permit(*vip, if n % 2 == 0 { "even" } else { "odd" }, Some(IfIndex(1 + n as u32))).unwrap();
    }
    let before = slots(&kernel);
    assert_eq!(before.len(), vips.len());
    drop(kernel);

    let mut kernel = Kernel::open(pins.path()).unwrap();
    assert_eq!(slots(&kernel), before);
    assert_eq!(kernel.bound().len(), vips.len());
    for vip in vips.iter().step_by(3) {
        kernel.forget(*vip).unwrap();
        kernel.forget(*vip).unwrap();
    }
    kernel.forget_server("nobody").unwrap();
    let left: BTreeMap<IpAddr, u32> = before
        .iter()
        .filter(|(vip, _)| !vips.iter().step_by(3).any(|gone| gone == *vip))
        .map(|(k, v)| (*k, *v))
        .collect();
    assert_eq!(slots(&kernel), left);
    drop(kernel);
    let mut kernel = Kernel::open(pins.path()).unwrap();
    assert_eq!(slots(&kernel), left);
    for vip in &vips {
        kernel.permit(*vip, "even", None).unwrap();
    }
    assert_eq!(slots(&kernel).len(), vips.len());
    assert!(kernel.bound().is_empty());
}
