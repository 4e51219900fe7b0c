//! Two nodes and a witness with Baton.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use baton_lab::files::{self, ADDRESS, Disks, FileCluster, SERVER};
use baton_lab::host::wait_until;
use baton_lab::{Lab, Way, clock};

use super::{Cause, PATIENCE, RESTART, System, other};

/// A fence agent that waits until the node is off, as one does that asks a power supply.
const FENCE: &str = "/run/lab/fence";
const FENCE_TEXT: &str = "#!/bin/sh\ncd /run/lab\ncat > fence-told.new\nmv fence-told.new fence-told\n\
    until test -e fence-off; do sleep 0.01; done\n";
/// Whom it is told to switch off.
const TOLD: &str = "/run/lab/fence-told";
/// It is off.
const OFF: &str = "/run/lab/fence-off";
/// Until a node that can be used again is known to be so.
const KNOWN: Duration = Duration::from_millis(500);

/// The cluster.
pub struct Baton {
    files: FileCluster,
    fenced: bool,
}

impl Baton {
    /// Starts it: with a fence agent or without fencing, and with or without resets for clients.
    pub fn start(fenced: bool, resets: bool) -> Result<Baton> {
        let mut fence = if fenced { "fence = \"agent\"" } else { files::UNFENCED }.to_owned();
        if !resets {
            fence += "\nreset_connections = false";
        }
        // The server is killed again and again here, which is no reason to give it away.
        let mut more = "restarts = 1000\n".to_owned();
        if fenced {
            for node in files::NODES {
                // Writing to a String can't fail.
                let _ = write!(
                    more,
                    "[[fence]]\nnode = {node:?}\nagent = {FENCE:?}\nparameters = {{ plug = {node:?} }}\n"
                );
            }
        }
        let files = FileCluster::start("file-client", files::fenced_spec(&fence, &more))?;
        for node in files::NODES {
            let host = files.cluster.lab.host(node)?;
            host.write(FENCE, FENCE_TEXT)?;
            host.run("chmod", ["700", FENCE])?;
        }
        // Nobody is called dead in the first two seconds of a member list.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Baton { files, fenced })
    }

    /// The port that answers for the address.
    fn port(&self, node: &str) -> Result<String> {
        let cluster = &self.files.cluster;
        let mut found = None;
        wait_until("a port to answer", PATIENCE, || {
            let client = cluster.client();
            let macs = client.and_then(|c| c.holders(ADDRESS, Duration::from_millis(20))).unwrap_or_default();
            found = cluster.ports(node).find(|port| macs == [port.mac()]).map(|p| p.interface().to_owned());
            found.is_some()
        })?;
        Ok(found.unwrap_or_default())
    }

    /// Whoever is asked to switch this node off does so.
    fn switch_off_when_told(&mut self, node: &str) -> Result<()> {
        let judge = self.files.cluster.lab.host(other(node))?.clone();
        let told = || judge.enter(|| std::fs::read_to_string(TOLD)).ok().and_then(Result::ok);
        wait_until("the node to be fenced", PATIENCE, || told().is_some())
            .with_context(|| self.complaint())?;
        let text = told().unwrap_or_default();
        ensure!(text.contains(&format!("plug={node}\n")), "another node is fenced: {text}");
        self.files.power_off(node)?;
        Ok(judge.write(OFF, "")?)
    }
}

impl System for Baton {
    fn lab(&self) -> &Lab {
        &self.files.cluster.lab
    }

    fn disks(&self) -> &Disks {
        &self.files.disks
    }

    /// What hangs can't be unmounted, so the node is switched off; all else is measured without fencing.
    fn refuses(&self, cause: Cause) -> Option<&'static str> {
        (self.fenced != (cause == Cause::StorageHang)).then_some("wrongly fenced for it")
    }

    fn prepare(&mut self) -> Result<String> {
        Ok(self.files.wait_well()?)
    }

    fn strike(&mut self, cause: Cause, node: &str) -> Result<Duration> {
        let port = if cause == Cause::PortCut { self.port(node)? } else { String::new() };
        let files = &mut self.files;
        let at = clock::now();
        match cause {
            Cause::PortCut => _ = files.cluster.lab.port(node, &port)?.cut()?,
            Cause::AgentKilled => {
                files.cluster.agent_mut(node)?.kill()?;
                std::thread::sleep(RESTART);
                files.cluster.agent_mut(node)?.start_again()?;
            }
            Cause::ServiceKilled => _ = files.kill_service(node)?,
            Cause::PowerLoss => _ = files.power_off(node)?,
            Cause::StorageError => files.disks.lun.set(node, Way::Fails)?,
            Cause::StorageHang => {
                files.disks.lun.set(node, Way::Hangs)?;
                self.switch_off_when_told(node)?;
            }
            Cause::Drain => _ = files.cluster.done(other(node), &["drain", node])?,
            Cause::Move => _ = files.cluster.done(other(node), &["move", SERVER, "--to", other(node)])?,
        }
        Ok(at)
    }

    fn mend(&mut self, cause: Cause, node: &str) -> Result<()> {
        let files = &mut self.files;
        match cause {
            Cause::PortCut => {
                for port in ["p0", "p1"] {
                    files.cluster.lab.port(node, port)?.restore()?;
                }
                std::thread::sleep(KNOWN); // until it is trusted again
            }
            Cause::AgentKilled | Cause::ServiceKilled | Cause::Move => {}
            Cause::PowerLoss => files.power_on(node)?,
            Cause::StorageError => {
                files.disks.lun.set(node, Way::Well)?;
                std::thread::sleep(KNOWN);
            }
            Cause::StorageHang => {
                files.power_on(node)?;
                files.cluster.lab.host(other(node))?.run("rm", ["-f", TOLD, OFF])?;
                self.prepare()?;
                std::thread::sleep(KNOWN);
            }
            Cause::Drain => _ = files.cluster.done(other(node), &["resume", node])?,
        }
        Ok(())
    }

    fn stages(&self, at: Duration, node: &str) -> Result<Vec<(&'static str, Duration)>> {
        let events = self.files.cluster.events_since(at)?;
        let verdict = |(_, by, e): &&(Duration, String, serde_json::Value)| {
            by == node && e["event"] == "storage" && e["state"] != "good"
        };
        let Some((verdict, ..)) = events.iter().find(verdict) else { return Ok(Vec::new()) };
        let served = |(time, by, e): &&(Duration, String, serde_json::Value)| {
            time > verdict && by != node && e["event"] == "serving"
        };
        let served = events.iter().find(served).map(|(time, ..)| ("served_after_verdict", *time - *verdict));
        Ok([("verdict", *verdict - at)].into_iter().chain(served).collect())
    }

    fn story(&self, at: Duration) -> String {
        self.files.cluster.story(at)
    }

    fn complaint(&self) -> String {
        self.files.cluster.logs()
    }
}
