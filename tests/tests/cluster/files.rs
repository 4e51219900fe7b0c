//! A real NFS client reads and writes through what happens to the node that serves it: every byte is right, what it was told is
//! stable is there, the address is answered for by one node, and the file system is mounted on one node.
//!
//! How long the client waited is printed, not judged.

use baton_lab::clock;
use baton_lab::files::{self, FileCluster, MOUNT, NODES};
use baton_lab::lun::Way;
use baton_lab::nfs::NfsClient;
use baton_lab::transfer::{Contents, check_stable};
use baton_lab::{Transfer, Work};

use super::*;

/// Bytes of a read or write.
const CHUNK: usize = 64 << 10;
/// All that the client is patient for: its own retransmissions may take long.
const PATIENCE: Duration = Duration::from_secs(180);

/// Clients that read and write, and the judges.
struct Watched {
    files: FileCluster,
    reader: Transfer,
    writer: Transfer,
    written: Contents,
    judge: Judge,
    mounts: baton_lab::lun::MountWatch,
}

fn contents(name: &str, seed: u64) -> Contents {
    Contents { name: format!("/{name}"), bytes: 4 << 20, seed }
}

impl Watched {
    fn start(name: &str) -> Result<Watched> {
        Watched::start_with(name, files::spec(""))
    }

    fn start_with(name: &str, spec: ClusterSpec) -> Result<Watched> {
        let files = FileCluster::start(name, spec)?;
        files.move_to("n1")?;
        let (read, written) = (contents("read", 1), contents("written", 2));
        files.client()?.enter(|| -> Result<()> {
            let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
            Ok(read.write(&mut client, 0)?)
        })??;
        let reader = Transfer::start(files.client()?, &read, Work::Read { chunk: CHUNK }, PATIENCE)?;
        let writer = Transfer::start(files.client()?, &written, Work::Write { chunk: CHUNK }, PATIENCE)?;
        reader.wait(50, Duration::ZERO, PATIENCE)?;
        writer.wait(50, Duration::ZERO, PATIENCE)?;
        let (judge, mounts) = (files.cluster.judge()?, files.disks.lun.watch()?);
        // Nobody is called dead in the first two seconds of a member list.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Watched { files, reader, writer, written, judge, mounts })
    }

    /// Both clients go on after `at`; prints how long they waited, and what the nodes did meanwhile.
    fn goes_on(&self, what: &str, at: Duration) -> Result<()> {
        for (name, transfer) in [("reader", &self.reader), ("writer", &self.writer)] {
            transfer.wait(20, at, PATIENCE).map_err(|e| {
                anyhow::anyhow!("{what}: {name}: {e}{}{}", self.story(at), self.connections())
            })?;
        }
        let now = clock::now();
        let stall = |transfer: &Transfer| {
            let (from, to) = transfer.log().longest(at, now);
            to.saturating_sub(from)
        };
        let (read, written) = (stall(&self.reader), stall(&self.writer));
        let again = |transfer: &Transfer| {
            let log = transfer.log();
            (log.asked_again, log.mounted_again)
        };
        println!(
            "{what}: the reader waited for {read:.0?}, the writer for {written:.0?}; so far asked again and mounted again: {:?} and \
             {:?}{}",
            again(&self.reader),
            again(&self.writer),
            self.story(at)
        );
        Ok(())
    }

    /// How the connections are that the client has, and what the nodes know of them.
    fn connections(&self) -> String {
        let mut text = String::new();
        for name in ["client", "n1", "n2"] {
            let shown = self.files.cluster.lab.host(name).and_then(|host| host.run("ss", ["-tnio"]));
            let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text += &format!("\n--- connections of {name}\n{}", shown.unwrap_or_default());
        }
        text
    }

    /// What the nodes noted since `at`.
    fn story(&self, at: Duration) -> String {
        let mut all = Vec::new();
        for (node, agent) in &self.files.cluster.agents {
            for event in agent.events().unwrap_or_default() {
                let time = Duration::from_nanos(event["at"].as_u64().unwrap_or_default());
                if time >= at {
                    all.push((time - at, node.clone(), event));
                }
            }
        }
        all.sort_by_key(|(time, ..)| *time);
        let lines = all
            .iter()
            .map(|(time, node, event)| format!("\n  {:8.1} ms {node} {event}", time.as_secs_f64() * 1e3));
        lines.collect()
    }

    fn finish(self) -> Result<()> {
        let Watched { files, reader, writer, written, judge, mounts } = self;
        let (read, wrote) = (reader.stop(), writer.stop());
        for (name, log) in [("reader", &read), ("writer", &wrote)] {
            ensure!(log.failed.is_none() && log.wrong.is_empty(), "{name}: {:?} {:?}", log.failed, log.wrong);
            ensure!(!log.answered.is_empty(), "{name}: nothing was answered");
        }
        let wrong = files.client()?.enter(|| -> Result<Vec<String>> {
            let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
            Ok(check_stable(&mut client, &written, CHUNK, &wrote)?)
        })??;
        ensure!(wrong.is_empty(), "not there: {wrong:?}");
        let (looked, doubles) = mounts.finish();
        ensure!(looked > 50 && doubles.is_empty(), "{looked} looks, mounted twice: {doubles:?}");
        let owner = files.wait_well()?;
        ensure!(files.disks.mounted_on(&NODES)? == [owner], "mounted elsewhere");
        never_two(judge)
    }
}

/// The node's path to the disk returns errors, and the other node's does not. The server tells its clients of errors that it gets, so
/// theirs is to ask again; what they were told is stable is there.
#[test]
fn files_are_served_elsewhere_when_a_path_to_the_disk_fails() -> Result<()> {
    let Watched { files, reader, writer, written, judge, mounts } = Watched::start("files-eio")?;
    let owner = files.owner()?;
    files.disks.lun.set(&owner, Way::Fails)?;
    wait_until("another node to serve", LONG, || files.owner().is_ok_and(|now| now != owner))?;
    let events = files.cluster.agent(&owner)?.events()?;
    let left = |e: &serde_json::Value| e["event"] == "leaving" && e["reason"] == "storage_lost";
    ensure!(events.iter().any(left), "{events:?}");
    let (read, wrote) = (reader.stop(), writer.stop());
    ensure!(read.wrong.is_empty() && wrote.wrong.is_empty(), "{:?} {:?}", read.wrong, wrote.wrong);
    let (wrong, new) = files.client()?.enter(|| -> Result<_> {
        let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
        contents("new", 3).write(&mut client, 0)?;
        Ok((check_stable(&mut client, &written, CHUNK, &wrote)?, contents("new", 3)))
    })??;
    ensure!(wrong.is_empty(), "not there: {wrong:?}");
    let reader = Transfer::start(files.client()?, &new, Work::Read { chunk: CHUNK }, PATIENCE)?;
    reader.wait(100, Duration::ZERO, PATIENCE)?;
    let again = reader.stop();
    ensure!(again.failed.is_none() && again.wrong.is_empty(), "{:?} {:?}", again.failed, again.wrong);
    files.disks.lun.set(&owner, Way::Well)?;
    let (looked, doubles) = mounts.finish();
    ensure!(looked > 50 && doubles.is_empty(), "{looked} looks, mounted twice: {doubles:?}");
    never_two(judge)
}

/// The node's path to the disk answers nothing any more: it can't be unmounted there, so the node is fenced, and the other one goes
/// on with the files.
#[test]
fn files_are_served_on_when_a_path_to_the_disk_hangs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let agent = folder.path().join("fence");
    // It waits until the node is off, as one does that asks a power supply.
    std::fs::write(
        &agent,
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\ncat > told.new\nmv told.new told\nuntil test -e off; do sleep 0.02; done\n",
    )?;
    std::fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let fences = NODES.map(|node| {
        format!("[[fence]]\nnode = {node:?}\nagent = {agent:?}\nparameters = {{ plug = {node:?} }}\n")
    });
    let mut watched =
        Watched::start_with("files-hang", files::fenced_spec("fence = \"agent\"", &fences.concat()))?;
    let owner = watched.files.owner()?;
    let at = clock::now();
    watched.files.disks.lun.set(&owner, Way::Hangs)?;
    let told = folder.path().join("told");
    wait_until("the node to be fenced", LONG, || told.exists())?;
    let told = std::fs::read_to_string(&told)?;
    ensure!(told.contains(&format!("plug={owner}\n")), "{told}");
    watched.files.power_off(&owner)?;
    std::fs::write(folder.path().join("off"), "")?;
    watched.goes_on("a path that hangs", at)?;
    watched.files.power_on(&owner)?;
    let now = watched.files.wait_well()?;
    ensure!(now != owner, "{owner} serves again");
    // It waited for nothing but the verdict, what could not be stopped was left to fencing, and nothing was started before that.
    let first = |node: &str, is_it: &dyn Fn(&serde_json::Value) -> bool| -> Result<Duration> {
        let events = watched.files.cluster.agent(node)?.events()?;
        let times = events.iter().filter(|e| is_it(e)).filter_map(|e| e["at"].as_u64());
        let found = times.map(Duration::from_nanos).find(|time| *time >= at);
        found.ok_or_else(|| anyhow::anyhow!("{node}: {events:#?}"))
    };
    let order = [
        ("hung", first(&owner, &|e| e["event"] == "storage" && e["state"] == "hung")?),
        ("left", first(&owner, &|e| e["event"] == "leaving" && e["reason"] == "storage_lost")?),
        ("not stopped", first(&owner, &|e| e["event"] == "resources_failed")?),
        ("fenced", first(&now, &|e| e["event"] == "fenced")?),
        ("started", first(&now, &|e| e["event"] == "resources_started")?),
        ("served", first(&now, &|e| e["event"] == "serving")?),
    ];
    let since = order.map(|(what, time)| format!("{what} {:.0?}", time.saturating_sub(order[0].1)));
    println!(
        "since the verdict, which came {:.0?} after the path had hung: {}",
        order[0].1 - at,
        since.join(", ")
    );
    ensure!(order.is_sorted_by_key(|(_, time)| *time), "{order:?}{}", watched.story(at));
    watched.finish()
}

#[test]
fn files_are_served_on_when_their_node_loses_its_power() -> Result<()> {
    let mut watched = Watched::start("files-power")?;
    for round in 1..=2 {
        let owner = watched.files.owner()?;
        let at = watched.files.power_off(&owner)?;
        watched.goes_on(&format!("power loss {round}"), at)?;
        watched.files.power_on(&owner)?;
        let now = watched.files.wait_well()?;
        ensure!(now != owner, "{owner} serves again");
    }
    watched.finish()
}

#[test]
fn files_are_served_on_when_they_are_moved_and_when_their_node_is_drained() -> Result<()> {
    let watched = Watched::start("files-move")?;
    for to in ["n2", "n1"] {
        let at = clock::now();
        watched.files.move_to(to)?;
        watched.goes_on(&format!("move to {to}"), at)?;
        ensure!(watched.files.wait_well()? == to, "it is elsewhere");
    }
    let at = clock::now();
    watched.files.cluster.done("n3", &["drain", "n1"])?;
    watched.goes_on("drain", at)?;
    watched.files.cluster.done("n3", &["resume", "n1"])?;
    ensure!(watched.files.wait_well()? == "n2", "it is elsewhere");
    watched.finish()
}

/// Its agent starts it again where it was.
#[test]
fn files_are_served_on_when_the_server_is_killed() -> Result<()> {
    let watched = Watched::start("files-service")?;
    for round in 1..=2 {
        let before = watched.files.service("n1")?;
        let at = watched.files.kill_service("n1")?;
        watched.goes_on(&format!("server killed {round}"), at)?;
        ensure!(watched.files.service("n1")? != before, "it was not killed");
        ensure!(watched.files.wait_well()? == "n1", "it has moved");
    }
    watched.finish()
}

/// The server does not notice: the next agent finds it running.
#[test]
fn files_are_served_on_when_the_agent_is_killed_and_started_again() -> Result<()> {
    let mut watched = Watched::start("files-agent")?;
    let before = watched.files.service("n1")?;
    let at = clock::now();
    watched.files.cluster.agent_mut("n1")?.kill()?;
    std::thread::sleep(Duration::from_millis(500));
    watched.files.cluster.agent_mut("n1")?.start_again()?;
    watched.goes_on("agent killed", at)?;
    ensure!(watched.files.wait_well()? == "n1", "it has moved");
    ensure!(watched.files.service("n1")? == before, "the server was started again");
    watched.finish()
}

/// A file is there when its client was told that it was made, and gone when it was told that it was removed: version 3 of NFS
/// has no COMMIT for that (RFC 1813, 4.8).
#[test]
fn files_that_were_made_and_removed_are_so_after_a_power_loss() -> Result<()> {
    let mut files = FileCluster::start("files-made", files::spec(""))?;
    // Nobody is called dead in the first two seconds of a member list.
    std::thread::sleep(Duration::from_secs(2));
    let client = files.client()?.clone();
    let (made, removed): (Vec<String>, Vec<String>) =
        (0..5).map(|n| (format!("/made-{n}"), format!("/removed-{n}"))).unzip();
    let made_until = client.enter(|| -> Result<Duration> {
        let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
        for name in &removed {
            let file = client.create(name)?;
            client.write(&file, 0, b"contents")?;
            client.sync(&file)?;
            client.close(file)?;
        }
        for (name, other) in made.iter().zip(&removed) {
            let file = client.create(name)?;
            client.close(file)?;
            client.remove(other)?;
        }
        Ok(clock::now())
    })??;
    let owner = files.owner()?;
    let at = files.power_off(&owner)?;
    println!("power lost {:.1?} after the last answer", at - made_until);
    files.cluster.wait_held(files::ADDRESS, |node| node != owner)?;
    client.enter(|| -> Result<()> {
        let mut client = NfsClient::mount(files::ADDRESS, MOUNT, PATIENCE)?;
        for name in &made {
            ensure!(client.size(name).is_ok(), "{name} is not there");
        }
        for name in &removed {
            ensure!(client.size(name).is_err(), "{name} is there again");
        }
        Ok(())
    })?
}
