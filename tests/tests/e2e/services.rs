//! File systems and services of a virtual server, with a real NFS server. A client on the wire judges whether it is served.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Agent, Cable, Lab, LoopDevice};

use crate::common::*;

const ADDRESS: &str = "10.0.0.10";
const MOUNT: &str = "/run/lab/projects";

/// A NULL call of NFS version 4 (RFC 5531), with its record mark.
const NULL_CALL: [u8; 44] = [
    0x80, 0, 0, 40, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0x86, 0xa3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

pub fn disk() -> Result<LoopDevice> {
    let disk = LoopDevice::new(64 << 20)?;
    let made = Command::new("mkfs.ext4").arg("-q").arg(disk.path()).status().context("mkfs.ext4")?;
    ensure!(made.success(), "mkfs.ext4: {made}");
    Ok(disk)
}

fn text(disk: &LoopDevice, service: &str) -> String {
    let filesystem = format!(
        "\n[[virtual_server.filesystem]]\ndevice = {:?}\nmount = {MOUNT:?}\ntype = \"ext4\"\n",
        disk.path().display().to_string()
    );
    config(1).server("projects", &[&format!("{ADDRESS}/24")]).text() + &filesystem + service
}

/// Does an NFS server answer the client's NULL call?
fn answers(lab: &Lab) -> Result<bool> {
    let called = lab.host("client")?.enter(|| -> std::io::Result<[u8; 28]> {
        let limit = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&(ip(ADDRESS), 2049).into(), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(&NULL_CALL)?;
        let mut answer = [0; 28];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    })?;
    // The same call, a reply, accepted, and done.
    Ok(called.is_ok_and(|a| {
        a[4..8] == NULL_CALL[4..8] && a[8..16] == [0, 0, 0, 1, 0, 0, 0, 0] && a[24..] == [0; 4]
    }))
}

/// What a program writes into a file of the node.
fn read(lab: &Lab, file: &str) -> Result<String> {
    Ok(lab.host("fs1")?.enter(|| fs::read_to_string(file))?.unwrap_or_default())
}

/// The process that is the service.
fn main_process(lab: &Lab) -> Result<u64> {
    let record: serde_json::Value = serde_json::from_str(&read(lab, "/run/baton/projects/1-resource.json")?)?;
    record["process"]["pid"].as_u64().context("no process in the record")
}

fn is_mounted(lab: &Lab) -> Result<bool> {
    Ok(read(lab, "/proc/thread-self/mountinfo")?.contains(MOUNT))
}

#[test]
fn an_nfs_server_is_started_survives_its_agent_and_goes_with_clean() -> Result<()> {
    let lab = lab("ganesha", 1, Cable::EventsAtOnce)?;
    let disk = disk()?;
    let before = lab.host("fs1")?.state()?;
    let text =
        text(&disk, "\n[[virtual_server.service]]\nkind = \"nfs-ganesha\"\nmonitor_every = \"200ms\"\n");
    let mut agent = Agent::start_text(lab.host("fs1")?, &text)?;
    agent.wait_served(client(&lab)?, ip(ADDRESS), LONG)?;
    // Who answers for the address has the service already.
    ensure!(answers(&lab)?, "{}", agent.log());
    ensure!(is_mounted(&lab)?);
    let first = main_process(&lab)?;

    agent.kill()?;
    ensure!(answers(&lab)?, "it went with its agent");
    agent.start_again()?;
    crate::restart::wait_started(&agent, 2)?;
    ensure!(answers(&lab)? && main_process(&lab)? == first, "it was started again: {}", agent.log());

    // A dead one is replaced in its place.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(first)?),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    wait_until("another NFS server", LONG, || {
        main_process(&lab).is_ok_and(|now| now != first) && answers(&lab).unwrap_or(false)
    })?;

    agent.terminate(LONG)?;
    ensure!(answers(&lab)?, "it went with its agent");
    agent.clean()?;
    ensure!(!answers(&lab)? && !is_mounted(&lab)?);
    let name = disk.path().file_name().context("a name")?.to_owned();
    ensure!(!std::path::Path::new("/sys/fs/ext4").join(name).exists(), "the file system is in use");
    let difference = before.difference(&lab.host("fs1")?.state()?);
    ensure!(difference.is_empty(), "{difference:#?}");
    Ok(())
}

/// A node that is alone only tells how its storage units are: there is nobody who could have what is on them.
#[test]
fn a_storage_unit_that_is_gone_is_told_and_nothing_is_given_up() -> Result<()> {
    let lab = lab("unit", 1, Cable::EventsAtOnce)?;
    let disk = disk()?;
    let folder = tempfile::tempdir()?;
    let link = folder.path().join("by-id");
    std::os::unix::fs::symlink(disk.path(), &link)?;
    let device = link.display().to_string();
    let unit =
        format!("storage_unit = \"array-1\"\n[[storage_unit]]\nname = \"array-1\"\ndevice = {device:?}\n");
    let mut agent = Agent::start_text(lab.host("fs1")?, &text(&disk, &unit))?;
    agent.wait_served(client(&lab)?, ip(ADDRESS), LONG)?;
    let reached = || {
        let labels = [("storage_unit", "array-1"), ("device", device.as_str())];
        agent.metric("baton_storage_reachable", &labels).ok().flatten()
    };
    wait_until("a good unit", LONG, || reached() == Some(1.0))?;
    fs::remove_file(&link)?;
    wait_until("a missing unit", LONG, || reached() == Some(0.0))?;
    ensure!(is_mounted(&lab)?);
    agent.wait_served(client(&lab)?, ip(ADDRESS), LONG)?;
    std::os::unix::fs::symlink(disk.path(), &link)?;
    wait_until("a good unit", LONG, || reached() == Some(1.0))?;
    agent.terminate(LONG)?;
    agent.clean()?;
    ensure!(!is_mounted(&lab)?);
    Ok(())
}

/// Nobody answers for an address whose services don't work yet, and a service that is no longer configured is stopped.
#[test]
fn an_address_is_silent_until_its_services_work() -> Result<()> {
    let lab = lab("services", 1, Cable::EventsAtOnce)?;
    let disk = disk()?;
    let ready = "/run/lab/ready";
    let service = format!(
        "\n[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/bin/sleep\", \"1000\"]\n\
         monitor = [\"/usr/bin/test\", \"-e\", {ready:?}]\n"
    );
    let both = text(&disk, &service);
    let mut agent = Agent::start_text(lab.host("fs1")?, &both)?;
    wait_until("the service", LONG, || main_process(&lab).is_ok())?;
    ensure!(is_mounted(&lab)?);
    ensure!(client(&lab)?.holders(ip(ADDRESS), WINDOW)?.is_empty(), "served before its service works");
    lab.host("fs1")?.write(ready, "")?;
    agent.wait_served(client(&lab)?, ip(ADDRESS), LONG)?;
    let first = main_process(&lab)?;

    // With another service in its place the old one goes, and with none at all the file system stays.
    agent.terminate(LONG)?;
    agent = Agent::start_text(lab.host("fs1")?, &both.replace("\"1000\"", "\"1001\""))?;
    wait_until("the other service", LONG, || main_process(&lab).is_ok_and(|now| now != first))?;
    agent.wait_served(client(&lab)?, ip(ADDRESS), LONG)?;
    ensure!(!std::path::Path::new(&format!("/proc/{first}/exe")).exists(), "the old service runs on");
    agent.terminate(LONG)?;
    let agent = Agent::start_text(lab.host("fs1")?, &text(&disk, ""))?;
    wait_until("the end of the service", LONG, || main_process(&lab).is_err())?;
    agent.wait_served(client(&lab)?, ip(ADDRESS), LONG)?;
    ensure!(is_mounted(&lab)?);
    Ok(())
}

/// Runs a command where a virtual server's file systems are seen; returns what it printed.
fn inside(lab: &Lab, server: &str, command: &str) -> Result<String> {
    let namespace = format!("--mount=/run/baton/.mounts/{server}");
    let done = lab.host("fs1")?.run("nsenter", [namespace.as_str(), "sh", "-c", command])?;
    Ok(format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)))
}

/// Neither virtual server sees the other's file system, nor does the node, whatever becomes of the agent.
#[test]
fn file_systems_are_private_where_that_is_asked_for() -> Result<()> {
    const TEAMS: &str = "10.0.0.11";
    let lab = lab("private", 1, Cable::EventsAtOnce)?;
    let disks = [disk()?, disk()?];
    let before = lab.host("fs1")?.state()?;
    let resources = |server: &str, disk: &LoopDevice| {
        format!(
            "private_mounts = true\n[[virtual_server.filesystem]]\ndevice = {:?}\nmount = \"/run/lab/{server}\"\n\
             type = \"ext4\"\n[[virtual_server.service]]\nkind = \"exec\"\nstart = [\"/bin/sleep\", \"1000\"]\n\
             monitor = [\"/usr/bin/test\", \"-d\", \"/run/lab/{server}/lost+found\"]\n",
            disk.path().display().to_string()
        )
    };
    let both = config(1).server("projects", &["10.0.0.10/24"]).server("teams", &["10.0.0.11/24"]).text();
    // The servers come last in the file, `teams` after `projects`.
    let (first, second) = both.split_at(both.rfind("\n[[virtual_server]]").unwrap_or(both.len()));
    let text =
        format!("{first}\n{}{second}\n{}", resources("projects", &disks[0]), resources("teams", &disks[1]));
    let mut agent = Agent::start_text(lab.host("fs1")?, &text)?;
    let served = |agent: &Agent| -> Result<()> {
        for address in [ADDRESS, TEAMS] {
            agent.wait_served(client(&lab)?, ip(address), LONG)?;
        }
        Ok(())
    };
    served(&agent)?;
    let each_sees_its_own = || -> Result<()> {
        for (own, other) in [("projects", "teams"), ("teams", "projects")] {
            let seen = inside(&lab, own, &format!("ls /run/lab/{own}; echo; ls /run/lab/{other}"))?;
            let (mine, yours) = seen.split_once("\n\n").unwrap_or_default();
            ensure!(mine.contains("lost+found") && !yours.contains("lost+found"), "{own}: {seen}");
        }
        let mounts = read(&lab, "/proc/thread-self/mountinfo")?;
        ensure!(!mounts.contains(" /run/lab/"), "the node sees them:\n{mounts}");
        Ok(())
    };
    each_sees_its_own()?;
    let first = main_process(&lab)?;

    agent.kill()?;
    each_sees_its_own()?;
    agent.start_again()?;
    crate::restart::wait_started(&agent, 2)?;
    served(&agent)?;
    each_sees_its_own()?;
    ensure!(main_process(&lab)? == first, "it was started again: {}", agent.log());

    agent.terminate(LONG)?;
    agent.clean()?;
    for disk in &disks {
        let name = disk.path().file_name().context("a name")?.to_owned();
        ensure!(!std::path::Path::new("/sys/fs/ext4").join(name).exists(), "the file system is in use");
    }
    ensure!(!read(&lab, "/proc/thread-self/mountinfo")?.contains(".mounts"), "the namespaces are kept");
    let difference = before.difference(&lab.host("fs1")?.state()?);
    ensure!(difference.is_empty(), "{difference:#?}");
    Ok(())
}
