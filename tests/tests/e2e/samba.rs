//! Two virtual servers of one node, each with an SMB server of its own. A real client reads files through them: it exits with
//! status 0 also when it has failed, so only what it has read counts.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use baton_lab::host::wait_until;
use baton_lab::{Agent, Cable, Lab, LoopDevice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::*;
use crate::services::disk;

const PROJECTS: &str = "10.0.0.10";
const TEAMS: &str = "10.0.0.11";
const TEAMS_6: &str = "fd00:10::11";
/// A user of the node who has a password with the server `projects`.
const USER: &str = "root%lab secret";
/// Who has none.
const GUEST: &str = "guest%";

fn mount(server: &str) -> String {
    format!("/run/lab/{server}")
}

/// `projects` is for users with passwords, `teams` for everybody.
fn text(projects: &LoopDevice, teams: &LoopDevice) -> String {
    let both =
        config(1).server("projects", &["10.0.0.10/24"]).server("teams", &["10.0.0.11/24", "fd00:10::11/64"]);
    let resources = |server: &str, disk: &LoopDevice, shares: &str| {
        format!(
            "[[virtual_server.filesystem]]\ndevice = {:?}\nmount = {:?}\ntype = \"ext4\"\n\
             [[virtual_server.service]]\nkind = \"samba\"\nmonitor_every = \"200ms\"\nmonitor_limit = \"5s\"\n{shares}\n",
            disk.path().display().to_string(),
            mount(server)
        )
    };
    let shares = format!("shares = [{{ path = {:?}, guest = true, force_user = \"root\" }}]", mount("teams"));
    // The servers come last in the file, `teams` after `projects`.
    let text = both.text();
    let (before, after) = text.split_at(text.rfind("\n[[virtual_server]]").unwrap_or(text.len()));
    before.to_owned() + &resources("projects", projects, "") + after + &resources("teams", teams, &shares)
}

/// What the client reads; nothing: it can't.
fn read(lab: &Lab, address: &str, share: &str, file: &str, user: &str) -> Result<String> {
    const FOUND: &str = "/run/lab/found";
    let client = lab.host("client")?;
    client.write(FOUND, "")?;
    let service = format!("//{address}/{share}");
    let command = format!("get {file} {FOUND}");
    client.run("smbclient", ["-s", "/dev/null", "-t", "5", "-U", user, &service, "-c", &command])?;
    Ok(client.enter(|| fs::read_to_string(FOUND))??)
}

/// The names of the folders that are shared there.
fn shares(lab: &Lab, address: &str, user: &str) -> Result<Vec<String>> {
    let done = lab
        .host("client")?
        .run("smbclient", ["-s", "/dev/null", "-t", "5", "-g", "-U", user, "-L", address])?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    Ok(text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("Disk|")?.split('|').next()?.to_owned()))
        .collect())
}

/// Some megabytes that are different for each server.
fn contents(server: &str) -> String {
    let mut state = server.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |h, b| (h ^ u64::from(b)).rotate_left(23));
    let line = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{server} {state:016x}\n")
    };
    (0..100_000).map(line).collect()
}

/// The process that is the service of a server.
fn main_process(lab: &Lab, server: &str) -> Result<i32> {
    let file = format!("/run/baton/{server}/1-resource.json");
    let text = lab.host("fs1")?.enter(|| fs::read_to_string(&file))??;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    Ok(i32::try_from(record["process"]["pid"].as_i64().context("no process in the record")?)?)
}

/// Each server serves its own files, at all of its addresses, to those who may read them, and nothing else.
fn each_serves_its_own(lab: &Lab) -> Result<()> {
    for (address, server, user) in
        [(PROJECTS, "projects", USER), (TEAMS, "teams", GUEST), (TEAMS_6, "teams", GUEST)]
    {
        let found = read(lab, address, server, "file", user)?;
        ensure!(found == contents(server), "{server} at {address}: {} bytes", found.len());
    }
    for (address, share, file, user) in [
        (PROJECTS, "teams", "file", USER),
        (PROJECTS, "teams", "file", GUEST),
        (TEAMS, "projects", "file", GUEST),
        // The password is the other server's.
        (TEAMS, "projects", "file", USER),
        (PROJECTS, "projects", "file", GUEST),
        (PROJECTS, "projects", "file", "root%wrong"),
        // What Samba itself has on the file system.
        (PROJECTS, "projects", ".baton/samba/private/passdb.tdb", USER),
    ] {
        let found = read(lab, address, share, file, user)?;
        ensure!(found.is_empty(), "{address}/{share}/{file} for {user}: {} bytes", found.len());
    }
    Ok(())
}

/// Each shows clients the folders that it shares, and no others.
fn each_shows_its_own(lab: &Lab) -> Result<()> {
    for (address, server, user) in [(PROJECTS, "projects", USER), (TEAMS, "teams", GUEST)] {
        let found = shares(lab, address, user)?;
        ensure!(found == [server], "{address}: {found:?}");
    }
    Ok(())
}

#[test]
fn two_smb_servers_side_by_side_serve_only_their_own() -> Result<()> {
    let lab = lab("samba", 1, Cable::EventsAtOnce)?;
    let (projects, teams) = (disk()?, disk()?);
    let node = lab.host("fs1")?;
    let before = node.state()?;
    let mut agent = Agent::start_text(node, &text(&projects, &teams))?;
    for address in [PROJECTS, TEAMS, TEAMS_6] {
        agent.wait_served(client(&lab)?, ip(address), LONG)?;
    }
    for server in ["projects", "teams"] {
        node.write(&format!("{}/file", mount(server)), &contents(server))?;
    }
    let given = "printf 'lab secret\\nlab secret\\n' | smbpasswd -c /run/baton/projects/smb.conf -s -a root";
    let given = node.run("sh", ["-c", given])?;
    ensure!(given.status.success(), "{}", stderr(&given));
    each_serves_its_own(&lab)?;
    each_shows_its_own(&lab)?;

    // It outlives its agent, and the next one goes on with it.
    let first = (main_process(&lab, "projects")?, main_process(&lab, "teams")?);
    agent.kill()?;
    each_serves_its_own(&lab)?;
    agent.start_again()?;
    crate::restart::wait_started(&agent, 2)?;
    ensure!((main_process(&lab, "projects")?, main_process(&lab, "teams")?) == first, "{}", agent.log());

    // One that dies is replaced in its place, and so is one that hangs; the other goes on.
    kill(Pid::from_raw(first.0), Signal::SIGKILL)?;
    wait_until("another server", LONG, || {
        main_process(&lab, "projects").is_ok_and(|now| now != first.0)
            && read(&lab, PROJECTS, "projects", "file", USER).is_ok_and(|found| !found.is_empty())
    })?;
    ensure!(main_process(&lab, "teams")? == first.1, "{}", agent.log());
    let second = main_process(&lab, "projects")?;
    kill(Pid::from_raw(first.1), Signal::SIGSTOP)?;
    wait_until("another server", LONG, || {
        main_process(&lab, "teams").is_ok_and(|now| now != first.1)
            && read(&lab, TEAMS, "teams", "file", GUEST).is_ok_and(|found| !found.is_empty())
    })?;
    ensure!(main_process(&lab, "projects")? == second, "{}", agent.log());
    ensure!(!Path::new(&format!("/proc/{}/exe", first.1)).exists(), "the server that hung is still there");
    each_serves_its_own(&lab)?;

    // Nothing of them is left, but for what must be found again.
    agent.terminate(LONG)?;
    agent.clean()?;
    let difference = before.difference(&node.state()?);
    ensure!(difference.is_empty(), "{difference:#?}");
    ensure!(smb_processes(&lab)?.is_empty(), "{:?}", smb_processes(&lab)?);
    for disk in [&projects, &teams] {
        let name = disk.path().file_name().context("a name")?.to_owned();
        ensure!(!Path::new("/sys/fs/ext4").join(name).exists(), "the file system is in use");
    }
    agent.start_again()?;
    for address in [PROJECTS, TEAMS, TEAMS_6] {
        agent.wait_served(client(&lab)?, ip(address), LONG)?;
    }
    each_serves_its_own(&lab)?;
    agent.terminate(LONG)?;
    agent.clean()?;
    Ok(())
}

/// Samba's processes in the node.
fn smb_processes(lab: &Lab) -> Result<Vec<String>> {
    let node = lab.host("fs1")?;
    let done = node.run("ps", ["-e", "-o", "pid=,netns=,comm="])?;
    let own = node.enter(|| fs::read_link("/proc/thread-self/ns/net"))??;
    let own = own.display().to_string();
    let own = own.trim_start_matches("net:[").trim_end_matches(']');
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let is_smb = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let here = words.next() == Some(own);
        here && words.next().is_some_and(|name| {
            ["smbd", "cleanupd", "lpqd", "rpcd_", "samba-"].iter().any(|known| name.starts_with(known))
        })
    };
    Ok(text.lines().filter(is_smb).map(str::to_owned).collect())
}

#[test]
fn an_address_is_silent_while_a_share_is_missing() -> Result<()> {
    let lab = lab("samba-missing", 1, Cable::EventsAtOnce)?;
    let disk = disk()?;
    let text = config(1).server("projects", &["10.0.0.10/24"]).text()
        + &format!(
            "[[virtual_server.filesystem]]\ndevice = {:?}\nmount = {:?}\ntype = \"ext4\"\n\
             [[virtual_server.service]]\nkind = \"samba\"\nshares = [{{ path = {:?} }}]\n",
            disk.path().display().to_string(),
            mount("projects"),
            mount("projects") + "/plans"
        );
    let mut agent = Agent::start_text(lab.host("fs1")?, &text)?;
    let failed = agent.wait_event("resources_failed", LONG, |_| true)?;
    let what = failed["what"].as_str().unwrap_or_default();
    ensure!(what.contains("share \"plans\": /run/lab/projects/plans is no folder"), "{failed}");
    ensure!(client(&lab)?.holders(ip(PROJECTS), WINDOW)?.is_empty(), "served without its share");
    agent.terminate(LONG)?;
    agent.clean()?;
    Ok(())
}
