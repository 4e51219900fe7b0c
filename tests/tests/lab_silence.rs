//! Ports that keep their carrier and lose frames, and what else is needed to test those who look for that.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::capture::PROBE_ETHERTYPE;
use baton_lab::host::wait_until;
use baton_lab::{Device, Direction, Foreign, HostSpec, Lab, Mac, Port, Topology, wire};

const LONG: Duration = Duration::from_secs(10);
/// How long it takes for a frame to arrive if it does.
const WINDOW: Duration = Duration::from_millis(100);

fn lab(name: &str, device: Device) -> Result<Lab> {
    let client = HostSpec::new("client")
        .ports("office", 1)
        .address("p0", "10.0.0.100/24")
        .address("p0", "fd00:10::100/64");
    let node = HostSpec::new("fs1")
        .ports_on("office", 3, device)
        .address("p0", "10.0.0.1/24")
        .address("p0", "fd00:10::1/64");
    let lab = Topology::new(name).segment("office").host(client).host(node).build()?;
    lab.host("fs1")?.set_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    for port in lab.ports() {
        wait_until("carrier", LONG, || carrier(port).unwrap_or(false))?;
    }
    Ok(lab)
}

fn carrier(port: &Port) -> Result<bool> {
    let path = format!("/sys/class/net/{}/carrier", port.interface());
    Ok(port.host().enter(|| std::fs::read_to_string(path))??.trim() == "1")
}

fn carrier_everywhere(lab: &Lab) -> Result<bool> {
    lab.ports().try_fold(true, |all, port| Ok(carrier(port)? && all))
}

fn addresses() -> [IpAddr; 2] {
    ["10.0.0.1".parse().expect("address"), "fd00:10::1".parse().expect("address")]
}

/// A frame of the probes' EtherType with a number in it.
fn numbered(from: &Port, to: Mac, number: u16) -> Vec<u8> {
    let mut frame =
        [&to.0[..], &from.mac().0, &PROBE_ETHERTYPE.to_be_bytes(), &number.to_be_bytes()].concat();
    frame.resize(60, 0);
    frame
}

/// How many of `count` frames from one port arrive at another.
fn arriving(from: &Port, to: &Port, count: u16) -> Result<usize> {
    let mut capture = to.capture_in_host(PROBE_ETHERTYPE)?;
    let frames: Vec<Vec<u8>> = (0..count).map(|number| numbered(from, to.mac(), number)).collect();
    from.send_frames(&frames.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    std::thread::sleep(WINDOW);
    let sent_here =
        |frame: &baton_lab::capture::Captured| !frame.from_host && frame.bytes[6..12] == from.mac().0;
    Ok(capture.take()?.into_iter().filter(sent_here).count())
}

/// Which pairs among the client's and the node's ports don't carry frames: two of two are lost, for a tunnel may drop one while it
/// looks for its neighbour.
fn broken(lab: &Lab) -> Result<Vec<(String, String)>> {
    let mut broken: Vec<(&Port, &Port)> =
        lab.ports().flat_map(|from| lab.ports().map(move |to| (from, to))).collect();
    broken.retain(|(from, to)| from.mac() != to.mac());
    for _ in 0..2 {
        let ends: Result<Vec<_>> =
            lab.ports().map(|to| Ok((to, to.capture_in_host(PROBE_ETHERTYPE)?))).collect();
        let mut ends = ends?;
        for (from, to) in &broken {
            from.send_frame(&numbered(from, to.mac(), 0))?;
        }
        std::thread::sleep(WINDOW);
        for (end, capture) in &mut ends {
            let seen = capture.take()?;
            let arrived = |from: &Port| {
                let both = [end.mac().0, from.mac().0].concat();
                seen.iter().any(|f| !f.from_host && f.bytes[..12] == both)
            };
            broken.retain(|(from, to)| to.mac() != end.mac() || !arrived(from));
        }
    }
    let name = |port: &Port| port.switch_end().to_string();
    let mut broken: Vec<_> = broken.into_iter().map(|(from, to)| (name(from), name(to))).collect();
    broken.sort();
    Ok(broken)
}

fn pairs(lab: &Lab, is_broken: impl Fn(&str, &str) -> bool) -> Vec<(String, String)> {
    let names = || lab.ports().map(|port| port.switch_end().to_string());
    let all = names().flat_map(|from| names().map(move |to| (from.clone(), to)));
    all.filter(|(from, to)| from != to && is_broken(from, to)).collect()
}

/// The pairs that are broken while `guard` lives are those that `is_broken` names, whatever they carry; afterwards none.
fn breaks<T>(lab: &Lab, guard: T, is_broken: impl Fn(&str, &str) -> bool) -> Result<()> {
    let (seen, wanted) = (broken(lab)?, pairs(lab, &is_broken));
    ensure!(seen == wanted, "{seen:?}, wanted {wanted:?}");
    let heals = !(is_broken("client-p0", "fs1-p0") || is_broken("fs1-p0", "client-p0"));
    let client = lab.port("client", "p0")?;
    for address in addresses() {
        ensure!(client.holders(address, WINDOW)?.is_empty() != heals, "{address}");
    }
    ensure!(carrier_everywhere(lab)?);
    drop(guard);
    let seen = broken(lab)?;
    ensure!(seen.is_empty(), "left: {seen:?}");
    for address in addresses() {
        ensure!(client.holders(address, WINDOW)? == [lab.port("fs1", "p0")?.mac()], "{address}");
    }
    Ok(())
}

#[test]
fn all_frames_are_lost_in_either_direction_or_both() -> Result<()> {
    let lab = lab("lose", Device::Veth)?;
    let port = lab.port("fs1", "p0")?;
    breaks(&lab, (), |_, _| false)?;
    breaks(&lab, port.lose(Direction::FromHost)?, |from, _| from == "fs1-p0")?;
    breaks(&lab, port.lose(Direction::ToHost)?, |_, to| to == "fs1-p0")?;
    breaks(&lab, port.lose_both()?, |from, to| from == "fs1-p0" || to == "fs1-p0")
}

#[test]
fn two_ports_lose_one_another_one_way() -> Result<()> {
    let lab = lab("oneway", Device::Veth)?;
    let (p0, p1) = (lab.port("fs1", "p0")?, lab.port("fs1", "p1")?);
    breaks(&lab, p1.lose_from(p0)?, |from, to| (from, to) == ("fs1-p0", "fs1-p1"))
}

#[test]
fn a_port_leaves_its_bridge() -> Result<()> {
    let lab = lab("leave", Device::Veth)?;
    let port = lab.port("fs1", "p0")?;
    breaks(&lab, port.leave_bridge()?, |from, to| from == "fs1-p0" || to == "fs1-p0")
}

#[test]
fn a_host_or_a_whole_segment_is_gone() -> Result<()> {
    let lab = lab("gone", Device::Veth)?;
    breaks(&lab, lab.lose_host("client")?, |from, to| from == "client-p0" || to == "client-p0")?;
    breaks(&lab, lab.switch_off("office")?, |_, _| true)
}

#[test]
fn a_share_is_lost() -> Result<()> {
    const SENT: u16 = 1000;
    let lab = lab("share", Device::Veth)?;
    let (client, port) = (lab.port("client", "p0")?, lab.port("fs1", "p0")?);
    for (direction, from, to) in [(Direction::ToHost, client, port), (Direction::FromHost, port, client)] {
        let hole = port.lose_share(direction, 30)?;
        let arrived = arriving(from, to, SENT)?;
        // Six standard deviations are 87.
        ensure!((610..=790).contains(&arrived), "{direction:?}: {arrived} of {SENT} arrived");
        ensure!(arriving(to, from, SENT)? == usize::from(SENT), "the other direction");
        ensure!(carrier_everywhere(&lab)?);
        drop(hole);
        ensure!(arriving(from, to, SENT)? == usize::from(SENT), "{direction:?} not healed");
    }
    let hole = port.lose_share(Direction::ToHost, 100)?;
    ensure!(arriving(client, port, SENT)? == 0);
    drop(hole);
    let hole = port.lose_share(Direction::ToHost, 0)?;
    ensure!(arriving(client, port, SENT)? == usize::from(SENT));
    drop(hole);
    Ok(())
}

#[test]
fn faults_are_gone_after_a_panic() -> Result<()> {
    let lab = lab("panic", Device::Veth)?;
    let port = lab.port("fs1", "p0")?;
    let panicked = std::panic::catch_unwind(|| {
        let _guards = (port.lose_both(), port.leave_bridge(), lab.lose_host("client"));
        let _off = lab.switch_off("office");
        let seen = broken(&lab).map(|broken| broken.len());
        std::panic::resume_unwind(Box::new(seen.unwrap_or_default()));
    });
    let seen = panicked.expect_err("the panic").downcast::<usize>().expect("a number");
    ensure!(*seen == 12, "{seen} pairs were broken");
    ensure!(broken(&lab)?.is_empty());
    Ok(())
}

/// What an XDP program sends back reaches the switch from every kind of port.
#[test]
fn frames_sent_back_by_xdp_arrive() -> Result<()> {
    for device in [Device::Veth, Device::Macvlan, Device::Bridge, Device::Vxlan] {
        let mut lab = lab("xdptx", device)?;
        lab.carry_xdp_tx("fs1")?;
        let (client, port) = (lab.port("client", "p0")?, lab.port("fs1", "p0")?);
        let mut capture = port.capture_at_switch(PROBE_ETHERTYPE)?;
        let mut own = port.capture_in_host(PROBE_ETHERTYPE)?;
        // To all: a macvlan or bridge would not send out what is for itself.
        let frame = numbered(client, Mac::BROADCAST, 5);
        let bouncer = port.bounce_xdp()?;
        client.send_frame(&frame)?;
        capture.wait_for(LONG, |seen| !seen.from_host && seen.bytes == frame)?;
        let bounced = capture.wait_for(LONG, |seen| seen.from_host && seen.bytes == frame);
        bounced.with_context(|| format!("{device:?}"))?;
        ensure!(own.take()?.iter().all(|seen| seen.from_host), "{device:?}: the host saw it come");
        drop(bouncer);
        client.send_frame(&frame)?;
        own.wait_for(LONG, |seen| !seen.from_host && seen.bytes == frame)?;
        ensure!(!capture.take()?.iter().any(|seen| seen.from_host), "{device:?}: still bounces");
    }
    Ok(())
}

#[test]
fn every_kind_of_port_carries_and_loses() -> Result<()> {
    for device in [Device::Macvlan, Device::Bridge, Device::Vxlan] {
        let lab = lab("kinds", device)?;
        let port = lab.port("fs1", "p0")?;
        ensure!(broken(&lab)?.is_empty(), "{device:?}");
        breaks(&lab, port.lose(Direction::ToHost)?, |_, to| to == "fs1-p0")?;
        breaks(&lab, port.lose(Direction::FromHost)?, |from, _| from == "fs1-p0")?;
    }
    Ok(())
}

#[test]
fn a_macvlan_and_a_bridge_follow_the_carrier() -> Result<()> {
    for device in [Device::Macvlan, Device::Bridge] {
        let lab = lab("stacked", device)?;
        let port = lab.port("fs1", "p0")?;
        port.cut()?;
        wait_until("no carrier", LONG, || !carrier(port).unwrap_or(true))?;
        port.restore()?;
        wait_until("carrier", LONG, || carrier(port).unwrap_or(false))?;
    }
    Ok(())
}

fn statistic(port: &Port, name: &str) -> Result<u64> {
    let path = format!("/sys/class/net/{}/statistics/{name}", port.interface());
    Ok(port.host().enter(|| std::fs::read_to_string(path))??.trim().parse()?)
}

#[test]
fn a_tunnel_counts_receive_errors() -> Result<()> {
    let lab = lab("errors", Device::Vxlan)?;
    let port = lab.port("fs1", "p0")?;
    ensure!(statistic(port, "rx_errors")? == 0);
    let spoiler = port.spoil(10, Duration::from_millis(1))?;
    wait_until("errors", LONG, || statistic(port, "rx_errors").is_ok_and(|errors| errors > 1000))?;
    // The good ones get through meanwhile.
    ensure!(arriving(lab.port("client", "p0")?, port, 100)? == 100);
    let sent = spoiler.sent();
    drop(spoiler);
    ensure!(sent > 0);
    let errors = statistic(port, "rx_errors")?;
    std::thread::sleep(WINDOW);
    ensure!(statistic(port, "rx_errors")? == errors);
    ensure!(statistic(lab.port("fs1", "p1")?, "rx_errors")? == 0);
    ensure!(carrier_everywhere(&lab)?);
    Ok(())
}

#[test]
fn a_storm_reaches_its_port_until_it_is_stopped() -> Result<()> {
    let lab = lab("storm", Device::Veth)?;
    let (client, port) = (lab.port("client", "p0")?, lab.port("fs1", "p0")?);
    let (source, own): (Ipv4Addr, Ipv4Addr) = ("10.0.0.100".parse()?, "10.0.0.1".parse()?);
    let kinds = [
        (Foreign::Rubbish { to: port.mac() }, PROBE_ETHERTYPE),
        (Foreign::Arp { target: own }, 0x0806),
        (Foreign::Udp { to: port.mac(), source, destination: own }, 0x0800),
        (Foreign::Frames(vec![numbered(client, port.mac(), 1)]), PROBE_ETHERTYPE),
    ];
    for (kind, ethertype) in kinds {
        let mut capture = port.capture_in_host(ethertype)?;
        let storm = client.storm(kind.clone(), 20, Duration::from_millis(1))?;
        let mut seen = 0;
        wait_until("a thousand frames", LONG, || {
            seen += capture.take().map_or(0, |frames| frames.iter().filter(|f| !f.from_host).count());
            seen >= 1000
        })?;
        ensure!(storm.sent() >= 1000, "{kind:?}");
        drop(storm);
        std::thread::sleep(WINDOW);
        capture.take()?;
        std::thread::sleep(WINDOW);
        ensure!(capture.take()?.iter().all(|frame| frame.from_host), "{kind:?} goes on");
    }
    Ok(())
}

/// The checksum is right: the host answers that nobody listens.
#[test]
fn a_datagram_of_a_storm_is_one() -> Result<()> {
    let lab = lab("datagram", Device::Veth)?;
    let (client, port) = (lab.port("client", "p0")?, lab.port("fs1", "p0")?);
    let mut capture = port.capture_at_switch(0x0800)?;
    let (client_address, own) = ("10.0.0.100".parse()?, "10.0.0.1".parse()?);
    client.send_frame(&wire::udp(client.mac(), port.mac(), client_address, own))?;
    let unreachable = [1, 3, 3]; // ICMP, destination unreachable, port
    capture.wait_for(LONG, |seen| {
        seen.from_host && [seen.bytes[23], seen.bytes[34], seen.bytes[35]] == unreachable
    })?;
    Ok(())
}
