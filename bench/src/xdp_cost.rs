//! What the kernel programs cost per packet: BPF_PROG_TEST_RUN on one CPU, above a program that does nothing, in the
//! same run.
//!
//! Two ways: *one* sends the same packet again and again, so that everything is in the cache; *spread* puts another of
//! all addresses into every packet (the floor does the same), so that map entries and counters come from wherever
//! they are.

mod probe;
mod raw;

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::Program;
use baton::io::kernel::{Kernel, remove_all};
use baton_common::{LEASE_ENDLESS, Lease};
use baton_core::IfIndex;
use bytes::{BufMut, BytesMut};
use hdrhistogram::Histogram;
use serde::Serialize;

use raw::{Hook, Walk};

/// Options of `xdp-cost`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each scenario is measured.
    #[arg(long, default_value_t = 31)]
    runs: u32,
    /// Packets per measurement.
    #[arg(long, default_value_t = 200_000)]
    packets: u32,
    /// Write the rows to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Test runs take place on the loopback interface.
const HERE: IfIndex = IfIndex(1);
const ELSEWHERE: IfIndex = IfIndex(4_000_000);
/// Virtual IPs follow each other from here; clients do from there.
const VIPS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 0);
/// Probe frames that are measured, and what one may cost.
const PROBES: u32 = 20_000;
const PROBE_LIMIT: u64 = 250;
const SOME_ADDRESSES: u32 = 10_000;

/// What happens to the packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    NotOurs,
    Ours,
    /// The lease has an end, so the precise clock is read.
    OursFiniteLease,
    /// A segment of a TCP connection that is kept.
    Tracked,
    Dropped,
    /// Sent by another port than the bound one.
    Redirected,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "not ours",
            Self::Ours => "ours",
            Self::OursFiniteLease => "ours, finite lease",
            Self::Tracked => "ours, tracked",
            Self::Dropped => "dropped",
            Self::Redirected => "redirected",
        }
    }

    fn lease(self) -> Lease {
        let (incarnation, deadline_ns) = match self {
            Self::OursFiniteLease => (1, LEASE_ENDLESS - 1),
            Self::Dropped => (2, LEASE_ENDLESS),
            Self::NotOurs | Self::Ours | Self::Tracked | Self::Redirected => (1, LEASE_ENDLESS),
        };
        Lease::until(incarnation, deadline_ns)
    }
}

/// A program and the hook that it is for.
#[derive(Clone, Copy)]
struct Side {
    program: &'static str,
    hook: Hook,
    /// Where the address that the program looks for is in the frame.
    address: i16,
    pass: i32,
    drop: i32,
}

const SIDES: [Side; 2] = [
    Side { program: "port_rx", hook: raw::XDP, address: 30, pass: 2, drop: 1 },
    Side { program: "port_tx", hook: raw::TC, address: 26, pass: -1, drop: 2 },
];
const REDIRECT: i32 = 7;

/// One thing that is measured.
struct Scenario {
    side: Side,
    case: Case,
    addresses: u32,
    spread: bool,
    program: OwnedFd,
    /// The same without the program under test.
    floor: OwnedFd,
    frame: Vec<u8>,
    /// Nanoseconds per packet: above the floor (never below 0), in all, and of the floor.
    above: Histogram<u64>,
    total: Histogram<u64>,
    base: Histogram<u64>,
}

/// A row of the results, as all benchmarks write them.
#[derive(Serialize)]
struct Row {
    bench: &'static str,
    system: &'static str,
    scenario: String,
    load: &'static str,
    metric: &'static str,
    unit: &'static str,
    n: u64,
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// Runs the benchmark.
pub fn run(options: &Options) -> Result<()> {
    let cpu = pin_to_last_cpu()?;
    let pins = Pins(std::env::temp_dir().join(format!("baton-xdp-cost-{}", std::process::id())));
    let mut kernel = Kernel::open(&pins.0)?;
    kernel.mark("bench", Some(1))?;

    let mut scenarios = Vec::new();
    let mut known = 0;
    for addresses in [10, 1_000, SOME_ADDRESSES] {
        permit(&mut kernel, known..addresses, HERE)?;
        known = addresses;
        let mut added = Vec::new();
        for side in SIDES {
            let mut cases = vec![Case::NotOurs, Case::Ours];
            if addresses == SOME_ADDRESSES {
                cases.extend([Case::OursFiniteLease, Case::Tracked, Case::Dropped]);
                cases.extend((side.program == "port_tx").then_some(Case::Redirected));
            }
            for case in cases {
                for spread in [false, true] {
                    added.push(Scenario::new(&mut kernel, side, case, addresses, spread)?);
                }
            }
        }
        // All scenarios of one table size are measured in turn, so that a disturbance meets all alike.
        for _ in 0..options.runs {
            for scenario in &mut added {
                kernel.set_lease(scenario.case.lease())?;
                if scenario.case == Case::Redirected {
                    permit(&mut kernel, 0..known, ELSEWHERE)?;
                }
                if scenario.case == Case::Tracked {
                    kernel.track(["bench"])?;
                }
                scenario.measure(options.packets)?;
                if scenario.case == Case::Tracked {
                    kernel.track([])?;
                }
                if scenario.case == Case::Redirected {
                    permit(&mut kernel, 0..known, HERE)?;
                }
            }
        }
        scenarios.extend(added);
    }

    let probes = probe::measure(&mut kernel, PROBES)?;
    println!(
        "Nanoseconds per packet on CPU {cpu}, {} runs of {} packets; medians\n",
        options.runs, options.packets
    );
    println!(
        "{:<9} {:<19} {:>9}  {:<7} {:>7} {:>7} {:>7}",
        "program", "packet", "addresses", "sent to", "floor", "total", "above"
    );
    for scenario in &scenarios {
        println!(
            "{:<9} {:<19} {:>9}  {:<7} {:>7} {:>7} {:>7}",
            scenario.side.program,
            scenario.case.name(),
            scenario.addresses,
            if scenario.spread { "spread" } else { "one" },
            scenario.base.value_at_quantile(0.5),
            scenario.total.value_at_quantile(0.5),
            scenario.above.value_at_quantile(0.5),
        );
    }
    for cost in &probes {
        let median = |h: &Histogram<u64>| h.value_at_quantile(0.5);
        let (base, total, above) = (median(&cost.base), median(&cost.total), median(&cost.above));
        println!(
            "{:<9} {:<19} {:>9}  {:<7} {base:>7} {total:>7} {above:>7}",
            "port_rx", cost.name, "-", "fresh"
        );
    }
    if let Some(cost) = probes.first() {
        let above = cost.above.value_at_quantile(0.5);
        let word = if above <= PROBE_LIMIT { "reached" } else { "MISSED" };
        println!("\n{word}: a verified and answered probe: {above} ns (at most {PROBE_LIMIT} ns)");
    }
    if let Some(path) = &options.json {
        let mut rows: Vec<Row> = scenarios.iter().flat_map(Scenario::rows).collect();
        rows.extend(probes.iter().flat_map(|cost| {
            rows_of(&format!("port_rx: {}", cost.name), [&cost.base, &cost.total, &cost.above])
        }));
        let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        serde_json::to_writer_pretty(file, &rows).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

impl Scenario {
    fn new(kernel: &mut Kernel, side: Side, case: Case, addresses: u32, spread: bool) -> Result<Self> {
        let (base, count) = match case {
            Case::NotOurs => (CLIENTS, SOME_ADDRESSES),
            _ => (VIPS, addresses),
        };
        let tested = clone_program(kernel, side.program)?;
        let empty = raw::empty(side.hook).context("loading the empty program")?;
        let (program, floor) = if spread {
            let walk = Walk { address: side.address, state: 60, base: base.to_bits(), count };
            (raw::walk(side.hook, walk, tested.as_fd())?, raw::walk(side.hook, walk, empty.as_fd())?)
        } else {
            (tested, empty)
        };
        let address = Ipv4Addr::from_bits(base.to_bits() + count / 2);
        let frame = frame(side.address, address, case);
        let histogram = || Histogram::new(3).context("making a histogram");
        Ok(Self {
            side,
            case,
            addresses,
            spread,
            program,
            floor,
            frame,
            above: histogram()?,
            total: histogram()?,
            base: histogram()?,
        })
    }

    fn measure(&mut self, packets: u32) -> Result<()> {
        let expected = match self.case {
            Case::Dropped => self.side.drop,
            Case::Redirected => REDIRECT,
            Case::NotOurs | Case::Ours | Case::OursFiniteLease | Case::Tracked => self.side.pass,
        };
        let base = time(self.floor.as_fd(), &self.frame, packets, self.side.pass)?;
        let total = time(self.program.as_fd(), &self.frame, packets, expected)?;
        self.base.record(base)?;
        self.total.record(total)?;
        self.above.record(total.saturating_sub(base))?;
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let scenario = format!(
            "{}: {}, {} addresses, {}",
            self.side.program,
            self.case.name(),
            self.addresses,
            if self.spread { "spread" } else { "one" }
        );
        rows_of(&scenario, [&self.base, &self.total, &self.above]).into()
    }
}

/// The rows of one scenario: floor, total, above the floor.
fn rows_of(scenario: &str, [base, total, above]: [&Histogram<u64>; 3]) -> [Row; 3] {
    let row = |system, metric, histogram: &Histogram<u64>| Row {
        bench: "xdp-cost",
        system,
        scenario: scenario.to_owned(),
        load: "idle",
        metric,
        unit: "ns",
        n: histogram.len(),
        min: histogram.min(),
        p50: histogram.value_at_quantile(0.5),
        p90: histogram.value_at_quantile(0.9),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    };
    [row("floor", "packet", base), row("baton", "packet", total), row("baton", "above_floor", above)]
}

/// Removes the pins, also after a panic.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.0) {
            eprintln!("{error}");
        }
    }
}

/// Makes virtual IPs of a range of addresses, or binds them elsewhere.
fn permit(kernel: &mut Kernel, range: std::ops::Range<u32>, port: IfIndex) -> Result<()> {
    for index in range {
        let address = Ipv4Addr::from_bits(VIPS.to_bits() + index);
        kernel.permit(address.into(), "bench", Some(port))?;
    }
    Ok(())
}

fn clone_program(kernel: &mut Kernel, name: &str) -> Result<OwnedFd> {
    let program = kernel.program(name)?.with_context(|| format!("there is no program {name}"))?;
    let fd = match program {
        Program::Xdp(program) => program.fd()?.as_fd(),
        Program::SchedClassifier(program) => program.fd()?.as_fd(),
        _ => bail!("{name} is of an unexpected kind"),
    };
    Ok(fd.try_clone_to_owned()?)
}

/// A UDP datagram, or a TCP segment, with the address in one of the two places, and a documentation address (RFC 5737) in the other.
fn frame(place: i16, address: Ipv4Addr, case: Case) -> Vec<u8> {
    const LENGTH: usize = 96;
    let mut frame = BytesMut::with_capacity(LENGTH);
    frame.put_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame.put_slice(&[0x45, 0, 0, (LENGTH - 14) as u8, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.put_slice(&[192, 0, 2, 1, 192, 0, 2, 1]);
    frame.put_slice(&[4, 0, 8, 1, 0, (LENGTH - 34) as u8, 0, 0]);
    frame.resize(LENGTH, 0);
    if case == Case::Tracked {
        frame[23] = 6;
        frame[46..50].copy_from_slice(&[5 << 4, 0x10, 1, 0]); // an acknowledgment, and a window
    }
    let place = place as usize;
    frame[place..place + 4].copy_from_slice(&address.octets());
    frame.to_vec()
}

/// Nanoseconds per packet.
fn time(program: BorrowedFd, frame: &[u8], packets: u32, expected: i32) -> Result<u64> {
    let run = raw::test_run(program, frame, packets).context("running a program on a packet")?;
    ensure!(run.verdict == expected, "verdict {} instead of {expected}", run.verdict);
    Ok(run.per_packet.as_nanos() as u64)
}

/// Keeps this process on one CPU: the last, which has the fewest interrupts as a rule. Returns its number.
fn pin_to_last_cpu() -> Result<usize> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    let last = (0..nix::sched::CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let cpu = last.context("this process may run on no CPU")?;
    let mut one = nix::sched::CpuSet::new();
    one.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one)?;
    Ok(cpu)
}
