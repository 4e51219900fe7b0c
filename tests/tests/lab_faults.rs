//! Every way to break something does break it, and the watcher sees it.

use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::probe::{Echo, Probe};
use baton_lab::tcp::{Server, Transfer};
use baton_lab::{AnswerKind, Cable, Direction, HostSpec, Kind, Lab, LabError, Port, Topology, Watcher, wire};

const LONG: Duration = Duration::from_secs(10);
const WINDOW: Duration = Duration::from_millis(100);

/// A client and a node with two ports, of which p0 has the addresses. Only the port with an address answers for it.
fn lab(name: &str) -> Result<Lab> {
    let lab = Topology::new(name)
        .segment("office")
        .host(
            HostSpec::new("client")
                .ports("office", 1)
                .address("p0", "10.0.0.100/24")
                .address("p0", "fd00:10::100/64"),
        )
        .host(
            HostSpec::new("fs1")
                .ports("office", 2)
                .address("p0", "10.0.0.1/24")
                .address("p0", "fd00:10::1/64"),
        )
        .build()?;
    lab.host("fs1")?.set_sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    Ok(lab)
}

fn carrier(port: &Port) -> bool {
    let path = format!("/sys/class/net/{}/carrier", port.interface());
    let mut text = String::new();
    let read = port.host().enter(|| std::fs::File::open(&path)?.read_to_string(&mut text));
    matches!(read, Ok(Ok(_))) && text.trim() == "1"
}

fn addresses() -> [IpAddr; 2] {
    ["10.0.0.1".parse().expect("address"), "fd00:10::1".parse().expect("address")]
}

#[test]
fn carrier_goes_and_comes_from_the_switch() -> Result<()> {
    let lab = lab("carrier")?;
    let port = lab.port("fs1", "p0")?;
    wait_until("carrier", LONG, || carrier(port))?;
    let before = baton_lab::clock::now();
    let cut = port.cut()?;
    ensure!(before <= cut && cut <= baton_lab::clock::now());
    wait_until("no carrier", LONG, || !carrier(port))?;
    ensure!(lab.port("client", "p0")?.holders(addresses()[0], WINDOW)?.is_empty());
    port.restore()?;
    wait_until("carrier again", LONG, || carrier(port))?;
    ensure!(lab.port("client", "p0")?.holders(addresses()[0], WINDOW)? == [port.mac()]);
    Ok(())
}

#[test]
fn administration_deletion_and_return_of_a_port() -> Result<()> {
    let mut lab = lab("admin")?;
    let port = lab.port("fs1", "p0")?.clone();
    port.admin_down()?;
    wait_until("down", LONG, || !carrier(&port))?;
    port.admin_up()?;
    wait_until("up", LONG, || carrier(&port))?;
    port.delete()?;
    ensure!(lab.host("fs1")?.netlink().link_index("p0")?.is_none());
    let again = lab.add_port("fs1", "p0", "office", Cable::EventsAtOnce)?.clone();
    wait_until("carrier of the new one", LONG, || carrier(&again))?;
    ensure!(again.index() != port.index());
    Ok(())
}

#[test]
fn cables_differ_in_what_linkwatch_thinks_of_them() -> Result<()> {
    let spec = HostSpec::new("fs1").ports("office", 1).delayed_ports("office", 1);
    let lab = Topology::new("cables").segment("office").host(spec).build()?;
    let (at_once, delayed) = (lab.port("fs1", "p0")?, lab.port("fs1", "p1")?);
    let indexes = |name: &str| -> Result<(String, String)> {
        let read = |file: &str| {
            let path = format!("/sys/class/net/{name}/{file}");
            at_once.host().enter(|| std::fs::read_to_string(path))
        };
        Ok((read("ifindex")??, read("iflink")??))
    };
    let (index, link) = indexes(at_once.interface())?;
    ensure!(index != link, "{index} {link}");
    let (index, link) = indexes(delayed.interface())?;
    ensure!(index == link, "{index} {link}");
    Ok(())
}

#[test]
fn one_direction_is_lost_and_the_carrier_stays() -> Result<()> {
    let lab = lab("direction")?;
    let (client, port) = (lab.port("client", "p0")?, lab.port("fs1", "p0")?);
    let watcher = Watcher::start(lab.ports())?;
    let address = addresses()[0];
    for direction in [Direction::FromHost, Direction::ToHost] {
        watcher.forget();
        let hole = port.lose(direction)?;
        ensure!(client.holders(address, WINDOW)?.is_empty(), "{direction:?} still answered");
        ensure!(carrier(port));
        let reached = watcher.frames().iter().any(|f| &f.port == port.switch_end() && f.asks_for(address));
        let answered = watcher.answers(address).iter().any(|a| a.kind == AnswerKind::ArpReply);
        ensure!((reached, answered) == (direction == Direction::FromHost, direction == Direction::FromHost));
        drop(hole);
        ensure!(client.holders(address, WINDOW)? == [port.mac()], "{direction:?} not healed");
    }
    Ok(())
}

#[test]
fn the_watcher_tells_who_answers_where() -> Result<()> {
    let lab = lab("watcher")?;
    let watcher = Watcher::claims(lab.ports())?;
    let client = lab.port("client", "p0")?;
    let port = lab.port("fs1", "p0")?;
    for (address, kind) in addresses().into_iter().zip([AnswerKind::ArpReply, AnswerKind::Advertisement]) {
        let asked = baton_lab::clock::now();
        let replies = client.who_has(address, WINDOW)?;
        ensure!(replies.len() == 1 && replies[0].mac == port.mac(), "{address}: {replies:?}");
        let answer = watcher.answers(address).into_iter().find(|a| a.kind == kind).expect("an answer");
        ensure!(answer.switch_port == *port.switch_end() && answer.mac == port.mac());
        ensure!(asked <= answer.at && answer.at <= replies[0].at, "{asked:?} {answer:?} {replies:?}");
    }
    let IpAddr::V4(vip) = addresses()[0] else { unreachable!() };
    let since = baton_lab::clock::now();
    lab.port("fs1", "p1")?.send_frame(&wire::arp_request(lab.port("fs1", "p1")?.mac(), vip, vip))?;
    let announcement = watcher.wait_for_announcement(vip.into(), since, LONG)?;
    ensure!(announcement.kind == AnswerKind::GratuitousRequest);
    ensure!(announcement.mac == lab.port("fs1", "p1")?.mac() && &*announcement.switch_port == "fs1-p1");
    let late = watcher.wait_for_announcement(vip.into(), baton_lab::clock::now(), Duration::from_millis(30));
    ensure!(matches!(late, Err(LabError::Timeout { .. })));
    ensure!(watcher.lost() == 0);
    Ok(())
}

#[test]
fn an_impostor_is_a_second_holder() -> Result<()> {
    let lab = lab("impostor")?;
    let client = lab.port("client", "p0")?;
    let (real, other) = (lab.port("fs1", "p0")?, lab.port("fs1", "p1")?);
    for address in addresses() {
        let impostor = other.impersonate(address)?;
        let mut both = [real.mac(), other.mac()];
        both.sort();
        ensure!(client.holders(address, WINDOW)? == both, "{address}");
        ensure!(impostor.answered() == 1);
        drop(impostor);
        ensure!(client.holders(address, WINDOW)? == [real.mac()]);
    }
    Ok(())
}

#[test]
fn an_address_leaves_and_turns_up_elsewhere() -> Result<()> {
    let lab = lab("address")?;
    let (client, p0, p1) = (lab.port("client", "p0")?, lab.port("fs1", "p0")?, lab.port("fs1", "p1")?);
    let vip = "10.0.0.10/32".parse()?;
    p0.add_address(vip)?;
    // arp_ignore=1 looks at the receiving interface alone.
    ensure!(client.holders(vip.addr(), WINDOW)? == [p0.mac()]);
    p1.add_address(vip)?;
    p0.delete_address(vip)?;
    ensure!(client.holders(vip.addr(), WINDOW)? == [p1.mac()]);
    Ok(())
}

#[test]
fn a_probe_measures_the_gap_of_a_cut() -> Result<()> {
    let lab = lab("probe")?;
    let port = lab.port("fs1", "p0")?;
    for address in addresses() {
        let target = (address, 7777).into();
        let _echo = Echo::start(lab.host("fs1")?, target, None)?;
        let probe = Probe::start(lab.host("client")?, target, Duration::from_millis(1), None)?;
        probe.wait_for_replies(20, Duration::ZERO, LONG)?;
        // Address kept by the kernel: it serves a carrier loss without an agent, only not while it lasts.
        let cut = port.cut()?;
        std::thread::sleep(Duration::from_millis(60));
        let restored = port.restore()?;
        probe.wait_for_replies(20, restored, LONG)?;
        let seen = lab.host("client")?.neighbour(address)?;
        let result = probe.stop();
        let gap = result.longest_gap(cut, restored).expect("a gap");
        ensure!(gap.length() >= Duration::from_millis(50), "{gap:?}");
        ensure!(gap.to >= restored && gap.from <= restored, "{cut:?} {restored:?} {gap:?}");
        ensure!(result.lost() > 0);
        ensure!(seen == Some(port.mac()), "{seen:?}");
    }
    Ok(())
}

#[test]
fn a_transfer_is_checked_and_its_end_is_told() -> Result<()> {
    let lab = lab("tcp")?;
    let watcher = Watcher::start(lab.ports())?;
    for address in addresses() {
        let server_at = (address, 7778).into();
        let server = Server::start(lab.host("fs1")?, server_at)?;
        let transfer = Transfer::start(lab.host("client")?, server_at, Some(20_000_000))?;
        transfer.wait_for(2_000_000, LONG)?;
        ensure!(transfer.result().intact && transfer.result().ended.is_none());
        let sent = watcher.sent_from(address);
        ensure!(
            sent.get("fs1-p0").is_some_and(|s| s.frames > 10) && !sent.contains_key("fs1-p1"),
            "{sent:?}"
        );
        // Lost for a moment: the transfer goes on, with retransmissions that both the host and the watcher count.
        let hole = lab.port("fs1", "p0")?.lose(Direction::FromHost)?;
        std::thread::sleep(Duration::from_millis(100));
        drop(hole);
        transfer.wait_for(2_000_000, LONG)?;
        wait_until("retransmissions", LONG, || {
            server.retransmissions()[0] > 0 && watcher.tcp_trouble(address).retransmissions > 0
        })?;
        let result = transfer.stop();
        ensure!(result.intact && !result.reset() && result.bytes >= 4_000_000, "{result:?}");
        ensure!(result.longest_stall >= Duration::from_millis(20), "{result:?}");
        drop(server);
    }
    // A server that goes away with data in flight resets.
    let server_at = (addresses()[0], 7779).into();
    let server = Server::start(lab.host("fs1")?, server_at)?;
    let transfer = Transfer::start(lab.host("client")?, server_at, None)?;
    transfer.wait_for(1_000_000, LONG)?;
    drop(server);
    wait_until("the end of the transfer", LONG, || transfer.result().ended.is_some())?;
    Ok(())
}

#[test]
fn everything_keeps_every_datagram() -> Result<()> {
    let lab = lab("everything")?;
    let watcher = Watcher::everything(lab.ports())?;
    let target = (addresses()[0], 7777).into();
    let _echo = Echo::start(lab.host("fs1")?, target, None)?;
    let probe = Probe::start(lab.host("client")?, target, Duration::from_millis(1), None)?;
    probe.wait_for_replies(50, Duration::ZERO, LONG)?;
    let result = probe.stop();
    let is_probe = |kind: &Kind| matches!(kind, Kind::Udp { destination, .. } if *destination == target);
    let into_node = || {
        let frames = watcher.frames();
        frames.iter().filter(|f| &*f.port == "fs1-p0" && !f.from_host && is_probe(&f.kind)).count()
    };
    wait_until("all of them", LONG, || into_node() == result.sent.len())?;
    Ok(())
}
