//! Frames and bytes that are counted for a virtual IP, beside independent counts of the same traffic.
//!
//! Where offload merges frames, nobody can count them but by what the merged packet says of itself: neither a packet socket on
//! the port nor the port's own statistics. So the traffic also passes an interface without any offload, where each frame is
//! alone:
//!
//! ```text
//!   node          switch                                                client
//!   p1 ────────── cp1 ── br0 ── x0 ────────── x1 ── br1 ── m0 ────────── e0
//!   does not cut  hands on      merges what                no offload:   no offload
//!   what it sends as it is      comes in                   counted here
//! ```
//!
//! There the interface's statistics and a packet socket count; of UDP, the programs know as well what they have sent. That a
//! packet socket on p1 sees much less shows that frames were merged there, and the counts are worth something.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use baton::io::kernel::{Hooks, Kernel};
use baton_core::Attachment;
use baton_lab::clock::RealtimeOffset;
use baton_lab::packet::PacketSocket;
use nix::net::if_::if_nametoindex;

use super::net::{Host, PinDir, Segment, VIP, VIP6};
use super::{address, attach_all, counters, serve};

/// Bytes of a bulk transfer, each way.
const BULK: usize = 8_000_000;
/// Datagrams of an exchange, each way, and bytes in each.
const DATAGRAMS: usize = 20_000;
const SMALL: usize = 32;
/// So many are under way at a time: queues of veth pairs and sockets hold them all.
const WINDOW: usize = 32;
/// The promise: within 2 %.
const TOLERANCE: f64 = 0.02;
const PORT: u16 = 2049;

/// Frames and bytes to and from a virtual IP.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    rx: (u64, u64),
    tx: (u64, u64),
}

impl Count {
    fn since(self, before: Count) -> Count {
        let less = |a: (u64, u64), b: (u64, u64)| (a.0 - b.0, a.1 - b.1);
        Count { rx: less(self.rx, before.rx), tx: less(self.tx, before.tx) }
    }

    /// Fails where the other is not within the tolerance.
    fn assert_close(self, what: &str, other: Count) {
        let both = [
            (self.rx.0, other.rx.0),
            (self.rx.1, other.rx.1),
            (self.tx.0, other.tx.0),
            (self.tx.1, other.tx.1),
        ];
        let off = both.map(|(counted, other)| counted as f64 / other as f64 - 1.0);
        println!("{what} {other:?}: counted {self:?}, off by {off:.5?}");
        assert!(off.iter().all(|o| o.abs() <= TOLERANCE), "{what} {other:?}: counted {self:?}");
    }
}

/// What the kernel programs count.
fn counted(kernel: &Kernel, vip: &str) -> Count {
    let c = counters(kernel, vip);
    Count { rx: (c.rx_packets, c.rx_bytes), tx: (c.tx_packets, c.tx_bytes) }
}

/// Counts what a packet socket sees of a virtual IP.
struct Tap {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Count>,
}

impl Tap {
    fn new(socket: PacketSocket, vip: IpAddr) -> Tap {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reader = std::thread::spawn(move || {
            let mut count = Count::default();
            loop {
                let last = stopped.load(Ordering::Relaxed);
                while let Some(frame) = socket.receive(RealtimeOffset::sample()).unwrap() {
                    let (from, to) = ends(&frame.bytes);
                    for (end, counter) in [(to, &mut count.rx), (from, &mut count.tx)] {
                        if end == Some(vip) {
                            counter.0 += 1;
                            counter.1 += frame.length as u64;
                        }
                    }
                }
                if last {
                    assert_eq!(socket.lost(), 0, "the independent count is not complete");
                    return count;
                }
                socket.wait(Duration::from_millis(5)).unwrap();
            }
        });
        Tap { stop, reader }
    }

    fn count(self) -> Count {
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().unwrap()
    }
}

/// Source and destination of an IP packet in an untagged frame.
fn ends(frame: &[u8]) -> (Option<IpAddr>, Option<IpAddr>) {
    let four = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?));
    let six = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
    match frame.get(12..14) {
        Some([0x08, 0x00]) => (four(26), four(30)),
        Some([0x86, 0xdd]) => (six(22), six(38)),
        _ => (None, None),
    }
}

/// The node's segment, and a client behind an interface without offload.
struct Stand {
    segment: Segment,
    client: Host,
}

impl Stand {
    fn new() -> Stand {
        let (segment, client) = (Segment::new(), Host::new());
        let switch = &segment.client;
        switch.run("ip link add br1 type bridge");
        switch.run("ip link add x0 type veth peer name x1");
        switch.run("ip link add m0 type veth peer name e0");
        switch.run(format!("ip link set e0 netns {}", client.tid()));
        for (name, bridge) in [("x0", "br0"), ("x1", "br1"), ("m0", "br1")] {
            switch.run(format!("ip link set {name} master {bridge} up"));
        }
        switch.run("ip link set br1 up");
        client.run("ip link set e0 up");
        client.run("ip addr add 10.0.0.202/24 dev e0");
        client.run("ip addr add fd00::202/64 dev e0 nodad");
        let plain = |name| offload(name, Offload::Send, false);
        client.start(move || plain("e0")).recv().unwrap();
        // What x1 would not cut x0 would not merge.
        switch.start(move || ["m0", "x1"].map(plain)).recv().unwrap();
        switch.start(|| offload("x0", Offload::Receive, true)).recv().unwrap();
        // With a native XDP program cp1 cuts packets, since p1 could not take them in.
        offload("p1", Offload::Receive, true);
        Stand { segment, client }
    }

    /// What the interface without offload has counted: all, but next to nothing is not to or from the virtual IPs.
    fn statistics(&self) -> Count {
        let links: serde_json::Value =
            serde_json::from_str(&self.segment.client.run("ip -j -s link show m0")).unwrap();
        let of = |way: &str| {
            let counted = &links[0]["stats64"][way];
            (counted["packets"].as_u64().unwrap(), counted["bytes"].as_u64().unwrap())
        };
        // What goes out to the client is what the virtual IP has sent.
        Count { rx: of("rx"), tx: of("tx") }
    }

    /// Runs traffic, and compares. Returns what the port's own packet socket saw, where frames are merged, and the wire's count.
    fn compare(
        &self,
        kernel: &Kernel,
        what: &str,
        vip: &str,
        traffic: impl FnOnce() -> Option<Count>,
    ) -> (Count, Count) {
        let open = |name: &'static str| PacketSocket::open(if_nametoindex(name).unwrap()).unwrap();
        let (wire, port) = (self.segment.client.start(move || open("m0")).recv().unwrap(), open("p1"));
        let (wire, port) = (Tap::new(wire, address(vip)), Tap::new(port, address(vip)));
        let (before, statistics) = (counted(kernel, vip), self.statistics());
        let plain = traffic();
        let (counted, statistics) = (counted(kernel, vip).since(before), self.statistics().since(statistics));
        let (wire, port) = (wire.count(), port.count());
        counted.assert_close(&format!("{what}, statistics"), statistics);
        counted.assert_close(&format!("{what}, packet socket"), wire);
        if let Some(plain) = plain {
            counted.assert_close(&format!("{what}, what was sent"), plain);
        }
        (port, wire)
    }
}

/// A stream as fast as it goes, to the virtual IP and back.
fn bulk(client: &Host, vip: &'static str) {
    let listener = TcpListener::bind((vip, PORT)).unwrap();
    let done = client.start(move || {
        let mut stream = TcpStream::connect((vip, PORT)).unwrap();
        stream.write_all(&vec![1; BULK]).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received.len()
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut vec![0; BULK]).unwrap();
    stream.write_all(&vec![2; BULK]).unwrap();
    drop(stream);
    assert_eq!(done.recv().unwrap(), BULK);
}

/// Small datagrams to the virtual IP and back, a window of them at a time; `merged`: those that go back are handed to the kernel
/// as one, to be cut (udp(7), UDP_SEGMENT). Returns what that must be on the wire.
fn datagrams(client: &Host, vip: &'static str, merged: bool) -> Count {
    let server = UdpSocket::bind((vip, PORT)).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    if merged {
        segment(&server, SMALL);
    }
    let done = Arc::new(AtomicBool::new(false));
    let is_done = done.clone();
    let answering = std::thread::spawn(move || answer(&server, &is_done, merged));
    let asked = client.start(move || ask(SocketAddr::new(address(vip), PORT))).recv().unwrap();
    done.store(true, Ordering::Relaxed);
    let answered = answering.join().unwrap();
    let ip = if address(vip).is_ipv4() { 20 } else { 40 };
    let frame = (14 + ip + 8 + SMALL) as u64;
    let of = |frames: u64| (frames, frames * frame);
    Count { rx: of(asked), tx: of(answered) }
}

/// Sends them all, and takes in the answers. Returns how many it has sent.
fn ask(to: SocketAddr) -> u64 {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.connect(to).unwrap();
    let mut sent = 0;
    for _ in 0..DATAGRAMS / WINDOW {
        for _ in 0..WINDOW {
            sent += u64::from(socket.send(&[1; SMALL]).unwrap() == SMALL);
        }
        // One that is lost is waited for in vain, once.
        (0..WINDOW).try_for_each(|_| socket.recv(&mut [0; SMALL]).map(drop)).ok();
    }
    sent
}

/// Answers each datagram, a window of them at once. Returns how many answers there were.
fn answer(socket: &UdpSocket, done: &AtomicBool, merged: bool) -> u64 {
    let (mut sent, mut waiting, mut client) = (0, 0, None);
    loop {
        let received = socket.recv_from(&mut [0; SMALL]);
        if let Ok((_, from)) = received {
            client = Some(from);
            waiting += 1;
        }
        // When nothing comes, what is missing is lost.
        if let Some(client) = client.filter(|_| waiting == WINDOW || received.is_err()) {
            let (bytes, times) = if merged { (waiting * SMALL, 1) } else { (SMALL, waiting) };
            let answer = vec![2; bytes];
            if bytes > 0 {
                (0..times).for_each(|_| assert_eq!(socket.send_to(&answer, client).unwrap(), bytes));
            }
            sent += waiting as u64;
            waiting = 0;
        }
        if received.is_err() && done.load(Ordering::Relaxed) {
            return sent;
        }
    }
}

/// What a network interface does for the kernel.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Offload {
    /// Checksums of what is sent, and so cutting it, which needs them (`ETHTOOL_STXCSUM` of linux/ethtool.h).
    Send = 0x17,
    /// Merges what is received (`ETHTOOL_SGRO`).
    Receive = 0x2c,
}

/// Switches it on or off on an interface of this thread's namespace.
fn offload(interface: &str, what: Offload, on: bool) {
    #[repr(C)]
    struct Value {
        command: u32,
        value: u32,
    }
    let mut value = Value { command: what as u32, value: on.into() };
    // SAFETY: every field of the structure is an integer or a pointer, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap(); // any will do
    // SAFETY: the request and the value that it points to outlive the call, and are of the layout that this one wants.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(result, 0, "{interface}: {}", std::io::Error::last_os_error());
}

/// The kernel is to cut what is sent into datagrams of so many bytes.
fn segment(socket: &UdpSocket, bytes: usize) {
    let bytes = bytes as libc::c_int;
    // SAFETY: the option is an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Bulk TCP and small datagrams, each way, in both families.
fn counts_what_is_on_the_wire(purpose: &str, hooks: Hooks, expected: Attachment) {
    let stand = Stand::new();
    let Stand { segment, client } = &stand;
    let pins = PinDir::new(purpose);
    let mut kernel = Kernel::open_with(pins.path(), hooks).unwrap();
    segment.bind(&segment.ports[1]);
    serve(&mut kernel, &segment.ports[1]);
    assert_eq!(attach_all(&mut kernel, segment), [expected; 2]);
    for vip in [VIP, VIP6] {
        client.run(format!("ping -q -n -c 1 -W 5 {vip}")); // neighbours know each other
        let what = |traffic: &str| format!("{purpose}, {vip}, {traffic}");
        let (port, wire) = stand.compare(&kernel, &what("stream"), vip, || {
            bulk(client, vip);
            None
        });
        println!("{}: at the port {port:?}, on the wire {wire:?}", what("stream"));
        assert!(
            port.rx.0 < wire.rx.0 / 2 && port.tx.0 < wire.tx.0 / 2,
            "nothing was merged: {port:?}, {wire:?}"
        );
        stand.compare(&kernel, &what("datagrams"), vip, || Some(datagrams(client, vip, false)));
        let (port, wire) =
            stand.compare(&kernel, &what("merged datagrams"), vip, || Some(datagrams(client, vip, true)));
        assert!(port.tx.0 < wire.tx.0 / 2, "nothing was merged: {port:?}, {wire:?}");
    }
}

#[test]
fn native() {
    counts_what_is_on_the_wire("wire-native", Hooks::default(), Attachment::Native);
}

#[test]
fn generic() {
    let hooks = Hooks { native: false, ..Hooks::default() };
    counts_what_is_on_the_wire("wire-generic", hooks, Attachment::Generic);
}

#[test]
fn tc_only() {
    let hooks = Hooks { native: false, generic: false, ..Hooks::default() };
    counts_what_is_on_the_wire("wire-tc", hooks, Attachment::TcOnly);
}
