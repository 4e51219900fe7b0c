//! The lab builds what it says, keeps its hosts apart, and leaves nothing.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{HostSpec, Lab, LabError, Topology};

const LONG: Duration = Duration::from_secs(10);

fn two_hosts(name: &str) -> Result<Lab, LabError> {
    Topology::new(name)
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
        .build()
}

#[test]
fn hosts_reach_each_other_over_the_switch() -> Result<()> {
    let lab = two_hosts("reach")?;
    let client = lab.port("client", "p0")?;
    for address in ["10.0.0.1", "fd00:10::1"] {
        let address: IpAddr = address.parse()?;
        let mut holders = Vec::new();
        wait_until("an answer", LONG, || {
            holders = client.holders(address, Duration::from_millis(50)).unwrap_or_default();
            !holders.is_empty()
        })?;
        // Both ports answer ARP for the address by default (arp_ignore 0); IPv6 only where it is bound.
        ensure!(holders.contains(&lab.port("fs1", "p0")?.mac()), "{address}: {holders:?}");
    }
    Ok(())
}

#[test]
fn every_host_has_its_own_file_systems() -> Result<()> {
    let lab = two_hosts("files")?;
    let fs1 = lab.host("fs1")?;
    fs1.write("/run/baton/test", "mine")?;
    fs1.write("/var/lib/baton/test", "mine")?;
    let output =
        fs1.run("sh", ["-c", "cat /run/baton/test /var/lib/baton/test; cat /sys/class/net/p1/carrier"])?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "minemine1\n");
    let output = lab.host("client")?.run("sh", ["-c", "ls /run /var/lib /sys/fs/bpf /sys/class/net"])?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!listing.contains("baton") && !listing.contains("p1"), "{listing}");
    ensure!(!std::path::Path::new("/run/baton/test").exists());
    Ok(())
}

#[test]
fn many_labs_stand_side_by_side() -> Result<()> {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| -> Result<()> {
                let lab = two_hosts("side")?;
                let address = "10.0.0.1".parse()?;
                lab.host("fs1")?.write("/run/who", lab.name())?;
                let seen = lab.host("fs1")?.enter(|| std::fs::read_to_string("/run/who"))??;
                assert_eq!(seen, lab.name());
                let holders = lab.port("client", "p0")?.holders(address, Duration::from_millis(100))?;
                ensure!(!holders.is_empty());
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    Ok(())
}

#[test]
fn processes_are_started_paused_killed_and_read() -> Result<()> {
    let lab = two_hosts("process")?;
    let fs1 = lab.host("fs1")?;
    let mut command = Command::new("sh");
    command.args(["-c", "echo out; echo err >&2; exec sleep 1000"]);
    let mut process = fs1.spawn(command)?;
    wait_until("its output", LONG, || process.stdout() == "out\n" && process.stderr() == "err\n")?;
    let state = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
    };
    process.pause()?;
    wait_until("the pause", LONG, || state(process.pid()) == Some('T'))?;
    process.resume()?;
    wait_until("the end of the pause", LONG, || state(process.pid()) == Some('S'))?;
    ensure!(process.exited()?.is_none());
    ensure!(!process.kill()?.success());
    ensure!(process.signal(nix::sys::signal::Signal::SIGTERM).is_err());
    let failure = fs1.spawn(Command::new("/nonexistent/program"));
    ensure!(
        matches!(failure, Err(LabError::System { ref what, .. }) if what.contains("/nonexistent/program"))
    );
    Ok(())
}

#[test]
fn a_killed_test_leaves_no_process_and_no_namespace() -> Result<()> {
    // This test's own binary, run again as the victim: it builds a lab, starts a process in it, and says its id.
    if std::env::var_os("LAB_VICTIM").is_some() {
        let lab = two_hosts("victim")?;
        let mut command = Command::new("sleep");
        let process = lab.host("fs1")?.spawn({
            command.arg("1000");
            command
        })?;
        let namespace = std::fs::read_link(format!("/proc/{}/ns/net", process.pid()))?;
        eprintln!("victim {} {}", process.pid(), namespace.display());
        std::thread::sleep(Duration::from_secs(100));
        return Ok(());
    }
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_killed_test_leaves_no_process_and_no_namespace", "--nocapture"])
        .env("LAB_VICTIM", "1")
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(victim.stderr.take().expect("piped")));
    let said = lines.find_map(|line| line.ok().and_then(|l| l.strip_prefix("victim ").map(str::to_owned)));
    victim.kill()?;
    victim.wait()?;
    let said = said.expect("the victim says its process");
    let (pid, namespace) = said.split_once(' ').expect("two words");
    // A zombie waits for PID 1, which may be slow; it holds nothing.
    let alive =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
    wait_until("the end of the victim's process", LONG, || !alive())?;
    let holders = || {
        let processes = std::fs::read_dir("/proc").expect("proc is there").flatten();
        let links = processes.filter_map(|entry| std::fs::read_link(entry.path().join("ns/net")).ok());
        links.filter(|link| link.to_string_lossy() == namespace).count()
    };
    wait_until("the end of its namespace", LONG, || holders() == 0)?;
    Ok(())
}

#[test]
fn bad_topologies_are_refused_in_words() {
    let long =
        Topology::new("bad").segment("s").host(HostSpec::new("a-very-long-name").ports("s", 1)).build();
    assert!(
        matches!(long, Err(LabError::BadName { ref name, .. }) if name == "a-very-long-name-p0"),
        "{long:?}"
    );
    let nowhere = Topology::new("bad").host(HostSpec::new("h").ports("s", 1)).build();
    assert!(matches!(nowhere, Err(LabError::Unknown { ref what, .. }) if what == "segment s"), "{nowhere:?}");
    let host = HostSpec::new("h").ports("s", 1).address("p0", "10.0.0.300/24");
    let address = Topology::new("bad").segment("s").host(host).build();
    assert!(matches!(address, Err(LabError::BadAddress { ref text, .. }) if text == "10.0.0.300/24"));
}

#[test]
fn leftovers_show_as_a_difference() -> Result<()> {
    let lab = two_hosts("state")?;
    let fs1 = lab.host("fs1")?;
    let p1 = lab.port("fs1", "p1")?;
    let before = fs1.state()?;
    p1.add_address("10.0.0.10/32".parse()?)?;
    fs1.netlink().set_route("10.0.0.0/24".parse()?, p1.index(), None, 1001)?;
    fs1.netlink().add_rule("10.0.0.10/32".parse()?, 1001, 100)?;
    fs1.set_sysctl("net/ipv4/conf/p1/arp_ignore", "1")?;
    fs1.enter(|| std::fs::create_dir("/sys/fs/bpf/baton"))??;
    let difference = before.difference(&fs1.state()?);
    for expected in
        ["address 10.0.0.10/32", "rule ", "Table(1001)", "arp_ignore = 1", "pin /sys/fs/bpf/baton"]
    {
        ensure!(
            difference.iter().any(|line| line.starts_with('+') && line.contains(expected)),
            "{expected} is not in {difference:#?}"
        );
    }
    p1.delete_address("10.0.0.10/32".parse()?)?;
    fs1.netlink().delete_rule("10.0.0.10/32".parse()?, 1001, 100)?;
    fs1.set_sysctl("net/ipv4/conf/p1/arp_ignore", "0")?;
    fs1.enter(|| std::fs::remove_dir("/sys/fs/bpf/baton"))??;
    let rest = before.difference(&fs1.state()?);
    // The kernel takes all IPv4 routes of an interface, of every table, with its last IPv4 address.
    ensure!(rest.is_empty(), "{rest:#?}");
    Ok(())
}
