//! What a client of files is put through, whatever it speaks, and who judges it: every byte is right, what it was told is stable is
//! there, the address is answered for by one node, and the file system is mounted on one node.
//!
//! How long the client waited is printed, not judged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Context;
use baton_lab::clock;
use baton_lab::files::{self, FileCluster, NODES, UNFENCED};
use baton_lab::lun::{MountWatch, Way};

use super::*;

/// A client, or several, that use the files all the time.
pub trait Client: Sized {
    /// A cluster that serves it, with these words about fencing, and more lines at the end.
    fn spec(fence: &str, more: &str) -> ClusterSpec;

    /// Begins, and is well under way.
    fn start(files: &FileCluster) -> Result<Self>;

    /// Waits until it has gone on after `at`, and says how long it waited.
    fn goes_on(&self, at: Duration) -> Result<String>;

    /// Ends it, and looks for everything that it was told is stable.
    fn finish(self, files: &FileCluster) -> Result<()>;
}

/// A client, and the judges.
pub struct Watched<C> {
    pub files: FileCluster,
    pub client: C,
    pub judges: Judges,
}

pub struct Judges {
    judge: Judge,
    mounts: MountWatch,
}

impl Judges {
    /// Ends them, once all is well again.
    pub fn finish(self, files: &FileCluster) -> Result<()> {
        let (looked, doubles) = self.mounts.finish();
        ensure!(looked > 50 && doubles.is_empty(), "{looked} looks, mounted twice: {doubles:?}");
        let owner = files.wait_well()?;
        ensure!(files.disks.mounted_on(&NODES)? == [owner], "mounted elsewhere");
        never_two(self.judge)
    }
}

impl<C: Client> Watched<C> {
    /// A server of files on n1, and a client that uses it.
    pub fn start(name: &str) -> Result<Watched<C>> {
        Watched::start_with(name, C::spec(UNFENCED, ""))
    }

    fn start_with(name: &str, spec: ClusterSpec) -> Result<Watched<C>> {
        let files = FileCluster::start(name, spec)?;
        files.move_to("n1")?;
        let client = C::start(&files)?;
        let judges = Judges { judge: files.cluster.judge()?, mounts: files.disks.lun.watch()? };
        // Nobody is called dead in the first two seconds of a member list.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Watched { files, client, judges })
    }

    /// The client goes on after `at`.
    pub fn goes_on(&self, what: &str, at: Duration) -> Result<()> {
        let waited = self.client.goes_on(at).map_err(|e| {
            let (story, logs) = (self.story(at), self.files.cluster.logs());
            anyhow::anyhow!("{what}: {e}{story}{}{logs}", self.connections())
        })?;
        println!("{what}: {waited}{}", self.story(at));
        Ok(())
    }

    /// All is well, and this node serves.
    pub fn is_served_by(&self, node: &str) -> Result<()> {
        let owner = self.files.wait_well()?;
        ensure!(owner == node, "{owner} serves, not {node}{}", self.files.cluster.logs());
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        let Watched { files, client, judges } = self;
        client.finish(&files)?;
        judges.finish(&files)
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

    /// The node has left it to another one, since its storage was lost.
    pub fn has_lost_storage(&self, node: &str) -> Result<()> {
        let left = |e: &serde_json::Value| e["event"] == "leaving" && e["reason"] == "storage_lost";
        let events = self.files.cluster.agent(node)?.events()?;
        ensure!(events.iter().any(left), "{events:?}");
        Ok(())
    }

    /// Waits until a metric of the node's disk has reached a value.
    pub fn wait_metric(&self, node: &str, name: &str, value: f64) -> Result<()> {
        let agent = self.files.cluster.agent(node)?;
        let labels = [("storage_unit", "disk")];
        let reached = || agent.metric(name, &labels).is_ok_and(|now| now.is_some_and(|now| now >= value));
        Ok(wait_until(name, LONG, reached)?)
    }

    /// Twice, the node that serves loses its power and comes back.
    pub fn loses_power(mut self) -> Result<()> {
        for round in 1..=2 {
            let owner = self.files.owner()?;
            let at = self.files.power_off(&owner)?;
            self.goes_on(&format!("power loss {round}"), at)?;
            self.files.power_on(&owner)?;
            let now = self.files.wait_well()?;
            ensure!(now != owner, "{owner} serves again");
        }
        self.finish()
    }

    pub fn moves_and_drains(self) -> Result<()> {
        for to in ["n2", "n1"] {
            let at = clock::now();
            self.files.move_to(to)?;
            self.goes_on(&format!("move to {to}"), at)?;
            self.is_served_by(to)?;
        }
        let at = clock::now();
        self.files.cluster.done("n3", &["drain", "n1"])?;
        self.goes_on("drain", at)?;
        self.files.cluster.done("n3", &["resume", "n1"])?;
        self.is_served_by("n2")?;
        self.finish()
    }

    /// Its agent starts the server again where it was.
    pub fn has_its_server_killed(self) -> Result<()> {
        for round in 1..=2 {
            let before = self.files.service("n1")?;
            let at = self.files.kill_service("n1")?;
            self.goes_on(&format!("server killed {round}"), at)?;
            ensure!(self.files.service("n1")? != before, "it was not killed");
            self.is_served_by("n1")?;
        }
        self.finish()
    }

    /// The agent of n1, which serves, is killed, and started again after `meanwhile`. The server does not notice: the next agent finds it
    /// running.
    pub fn has_its_agent_killed(&mut self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.files.service("n1")?;
        let at = clock::now();
        self.files.cluster.agent_mut("n1")?.kill()?;
        meanwhile()?;
        std::thread::sleep(Duration::from_millis(500));
        self.files.cluster.agent_mut("n1")?.start_again()?;
        self.goes_on("agent killed", at)?;
        self.is_served_by("n1")?;
        ensure!(self.files.service("n1")? == before, "the server was started again");
        Ok(())
    }

    /// The port of n1 that has the address is cut, and `meanwhile` happens. No connection is reset.
    pub fn has_its_port_cut(&self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let agent = self.files.cluster.agent("n1")?;
        let held = agent.status()?["virtual_servers"][0]["addresses"][0]["port"].clone();
        let resets = || agent.metric("baton_connections_reset_total", &[("virtual_server", files::SERVER)]);
        let before = resets()?;
        let port = self.files.cluster.lab.port("n1", held.as_str().context("a port")?)?;
        let at = clock::now();
        port.cut()?;
        meanwhile()?;
        agent.wait_event("failover", LONG, |e| e["kind"] == "port")?;
        self.goes_on("port cut", at)?;
        ensure!(resets()? == before, "connections were reset: {before:?}, {:?}", resets()?);
        port.restore()?;
        self.is_served_by("n1")
    }

    /// The node's path to the disk answers nothing any more: it can't be unmounted there, so the node is fenced, and the other one goes
    /// on with the files.
    pub fn has_a_path_that_hangs(name: &str) -> Result<()> {
        let fence = FenceAgent::new()?;
        let mut watched = Watched::<C>::start_with(name, C::spec("fence = \"agent\"", &fence.lines()))?;
        let owner = watched.files.owner()?;
        let at = clock::now();
        watched.files.disks.lun.set(&owner, Way::Hangs)?;
        wait_until("the node to be fenced", LONG, || fence.told().is_some())?;
        // What waits is seen, and grows old.
        watched.wait_metric(&owner, "baton_storage_unit_oldest_request_seconds", 1.0)?;
        let told = fence.told().unwrap_or_default();
        ensure!(told.contains(&format!("plug={owner}\n")), "{told}");
        watched.files.power_off(&owner)?;
        fence.is_off()?;
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
}

/// A fence agent. It waits until the node is off, as one does that asks a power supply.
struct FenceAgent {
    folder: tempfile::TempDir,
}

impl FenceAgent {
    fn new() -> Result<FenceAgent> {
        let fence = FenceAgent { folder: tempfile::tempdir()? };
        let script = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\ncat > told.new\nmv told.new told\n\
                      until test -e off; do sleep 0.02; done\n";
        fs::write(fence.path("fence"), script)?;
        fs::set_permissions(fence.path("fence"), fs::Permissions::from_mode(0o755))?;
        Ok(fence)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// For the definitions.
    fn lines(&self) -> String {
        let agent = self.path("fence");
        let fences = NODES.map(|node| {
            format!("[[fence]]\nnode = {node:?}\nagent = {agent:?}\nparameters = {{ plug = {node:?} }}\n")
        });
        fences.concat()
    }

    /// What it was told, once it is called.
    fn told(&self) -> Option<String> {
        fs::read_to_string(self.path("told")).ok()
    }

    /// From now on it finds the node off.
    fn is_off(&self) -> Result<()> {
        Ok(fs::write(self.path("off"), "")?)
    }
}
