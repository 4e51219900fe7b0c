//! The file systems and services of a virtual server on this node: what is known of them, and what follows.
//!
//! | they are | asked for | answered by | and then are |
//! |---|---|---|---|
//! | `Unknown`, `Stopped` | start | | `Starting` |
//! | `Starting` | | running | `Running`: the mark may go on |
//! | `Starting` | | start failed | `Unknown` |
//! | `Running` | | broken | `Unknown`: the mark goes off |
//! | `Unknown`, `Starting`, `Running` | stop | | `Stopping` |
//! | `Stopping`, `Stuck` | | stopped | `Stopped`: it may be released, or started again |
//! | `Stopping` | | stop failed | `Stuck` |
//!
//! What is asked for is answered in order, so an answer to a start that was given up comes before `Stopped`, and counts for
//! nothing. The mark is on only while they are `Running`. Who may start them, and when they must stop, is told by the owner
//! record (`cluster::resources`), or without a cluster by this node's own one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Machine, REPAIR_AFTER};
use crate::{Effect, EventKind, ResourceState, Time};

/// Where they have failed and no other node can have them, they are started again after this long,
const START_AGAIN: Duration = Duration::from_secs(30);
/// but at once where they had run for so long: then whatever failed before is forgotten.
pub(super) const RUN_WELL: Duration = Duration::from_secs(60);

/// What is known of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Resources {
    phase: Phase,
    /// When they were asked to start or to stop, or have run since.
    since: Time,
    /// What has failed here since they last ran.
    failed: Option<String>,
    /// Neither started nor served before this time.
    not_before: Option<Time>,
    /// Something of them ran since this agent knows them, so that stopping them is news.
    ran: bool,
    /// How long they took to stop.
    stopping: Option<Duration>,
    /// This agent has started them, and they have not been served since: connections of their clients are of an earlier life.
    fresh: bool,
    /// What was last asked for could not be handed on.
    unsent: bool,
    /// Since when this node has had no lease.
    pub(super) unleased: Option<Time>,
    /// Under which incarnation they may be mounted, as last told.
    pub(super) entitled: Option<u64>,
}

/// How they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Something of them may run: an earlier agent left it, a start has failed, or they are broken.
    Unknown,
    /// Nothing of them runs.
    Stopped,
    /// They have been asked to start.
    Starting,
    /// They run, and are well.
    Running,
    /// They have been asked to stop.
    Stopping,
    /// They could not be stopped yet; that is tried on and on.
    Stuck,
}

impl Resources {
    /// As an agent finds them: running, or perhaps half of them.
    pub fn found(running: bool, now: Time) -> Resources {
        Resources {
            phase: if running { Phase::Running } else { Phase::Unknown },
            since: now,
            failed: None,
            not_before: None,
            ran: running,
            stopping: None,
            fresh: false,
            unsent: false,
            unleased: None,
            entitled: None,
        }
    }

    /// How they are.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Have they failed here, and not run since?
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// How long they took to stop, where there was something to stop.
    pub fn stopping(&self) -> Option<Duration> {
        self.stopping
    }

    /// When they will have run for long enough to forget what has failed before.
    pub fn well_at(&self) -> Option<Time> {
        (self.phase == Phase::Running).then(|| self.since + RUN_WELL)
    }

    /// Something of them runs or may run, and nobody has asked them to stop.
    pub fn may_run(&self) -> bool {
        match self.phase {
            Phase::Unknown | Phase::Starting | Phase::Running => true,
            Phase::Stopped | Phase::Stopping | Phase::Stuck => false,
        }
    }

    /// When they may be started, or served, where that is not yet.
    pub fn not_before(&self) -> Option<Time> {
        self.not_before
    }

    /// They are another node's: what has failed here is of no interest.
    pub fn forget_failure(&mut self) {
        self.failed = None;
        self.not_before = None;
    }

    /// How a virtual server that is not served is, in one word, where this node is to serve it.
    pub fn word(&self) -> &'static str {
        match self.phase {
            Phase::Stuck => "failed",
            _ if self.has_failed() => "failed",
            Phase::Stopping => "stopping",
            Phase::Unknown | Phase::Stopped | Phase::Starting | Phase::Running => "starting",
        }
    }

    fn enter(&mut self, phase: Phase, now: Time) {
        (self.phase, self.since, self.unsent) = (phase, now, false);
    }

    /// They have failed, for this reason. Returns it where that is news.
    fn fail(&mut self, phase: Phase, what: String, now: Time) -> Option<String> {
        let well = self.well_at().is_some_and(|t| t <= now);
        self.not_before = (!well).then(|| now + START_AGAIN);
        self.enter(phase, now);
        let news = self.failed.is_none().then(|| what.clone());
        self.failed.get_or_insert(what);
        news
    }

    fn stopped(&mut self, now: Time) -> Option<Duration> {
        let took = now.since(self.since);
        self.enter(Phase::Stopped, now);
        self.stopping = std::mem::take(&mut self.ran).then_some(took);
        self.stopping
    }

    /// They are said to be so. Returns what is news of it, for an administrator.
    fn told(&mut self, state: ResourceState, now: Time, server: &str) -> Option<EventKind> {
        let server = server.to_owned();
        let failed = |what: Option<String>| what.map(|what| (server.clone(), what));
        let failed = |what| failed(what).map(|(server, what)| EventKind::ResourcesFailed { server, what });
        match (self.phase, state) {
            (Phase::Starting, ResourceState::Running) => {
                let seconds = now.since(self.since).as_secs_f64();
                self.enter(Phase::Running, now);
                self.forget_failure();
                self.fresh = true;
                Some(EventKind::ResourcesStarted { server, seconds })
            }
            (
                Phase::Starting | Phase::Running | Phase::Unknown,
                ResourceState::StartFailed(what) | ResourceState::Broken(what),
            ) => failed(self.fail(Phase::Unknown, what, now)),
            (Phase::Running, ResourceState::Stopped) => {
                self.ran = false;
                failed(self.fail(Phase::Stopped, "stopped by somebody else".to_owned(), now))
            }
            (Phase::Stopping | Phase::Stuck, ResourceState::Stopped) => {
                let seconds = self.stopped(now)?.as_secs_f64();
                Some(EventKind::ResourcesStopped { server, seconds })
            }
            (Phase::Unknown, ResourceState::Stopped) => {
                self.enter(Phase::Stopped, now);
                None
            }
            (Phase::Stopping, ResourceState::StopFailed(what)) => {
                self.phase = Phase::Stuck;
                failed(Some(what))
            }
            (
                Phase::Starting | Phase::Running | Phase::Unknown | Phase::Stopped,
                ResourceState::StopFailed(what),
            ) => {
                self.fail(Phase::Stuck, what.clone(), now);
                failed(Some(what))
            }
            // They should not: they are to be stopped.
            (Phase::Stopped, ResourceState::Running) => {
                self.enter(Phase::Unknown, now);
                self.ran = true;
                None
            }
            // Of what was asked for before, or no news.
            (Phase::Starting | Phase::Stopped, ResourceState::Stopped)
            | (Phase::Running | Phase::Unknown, ResourceState::Running)
            | (Phase::Stopped, ResourceState::StartFailed(_) | ResourceState::Broken(_))
            | (
                Phase::Stopping | Phase::Stuck,
                ResourceState::Running | ResourceState::StartFailed(_) | ResourceState::Broken(_),
            )
            | (Phase::Stuck, ResourceState::StopFailed(_)) => None,
        }
    }
}

impl Machine {
    /// The file systems and services of a virtual server are said to be so.
    pub(super) fn resources_told(&mut self, server: &str, state: ResourceState) {
        let now = self.now;
        let Some(known) = self.servers.iter_mut().find(|s| s.name == server) else { return };
        let news = known.resources.as_mut().and_then(|r| r.told(state, now, server));
        news.into_iter().for_each(|kind| self.event(kind));
    }

    /// May its mark be on? Without resources always.
    pub(super) fn is_ready(&self, index: usize) -> bool {
        self.phase(index).is_none_or(|phase| phase == Phase::Running)
    }

    /// Does nothing of it run here that would have to be stopped first?
    pub(super) fn is_stopped(&self, index: usize) -> bool {
        self.phase(index).is_none_or(|phase| phase == Phase::Stopped)
    }

    pub(super) fn phase(&self, index: usize) -> Option<Phase> {
        self.servers[index].resources.as_ref().map(Resources::phase)
    }

    /// Do they run here, or are they about to?
    pub(super) fn is_at_work(&self, index: usize) -> bool {
        matches!(self.phase(index), Some(Phase::Starting | Phase::Running))
    }

    /// Have they failed here, and not run since?
    pub(super) fn has_failed(&self, index: usize) -> bool {
        self.servers[index].resources.as_ref().is_some_and(Resources::has_failed)
    }

    fn start_resources(&mut self, index: usize) {
        let now = self.now;
        let server = &mut self.servers[index];
        let Some(resources) = &mut server.resources else { return };
        resources.enter(Phase::Starting, now);
        (resources.ran, resources.stopping) = (true, None);
        self.out.push(Effect::StartResources(server.name.clone()));
    }

    pub(super) fn stop_resources(&mut self, index: usize) {
        let now = self.now;
        let server = &mut self.servers[index];
        let Some(resources) = &mut server.resources else { return };
        resources.enter(Phase::Stopping, now);
        self.out.push(Effect::StopResources(server.name.clone()));
    }

    /// This node is to serve it, and has written that itself: starts its file systems and services, and serves it when they run.
    pub(super) fn start_and_serve(&mut self, index: usize) {
        let now = self.now;
        let server = &self.servers[index];
        let Some(resources) = &server.resources else { return };
        let due = resources.not_before.is_none_or(|t| t <= now);
        match resources.phase {
            // What a failed start or a broken service has left.
            Phase::Unknown if resources.has_failed() => self.stop_resources(index),
            Phase::Unknown | Phase::Stopped if due => self.start_resources(index),
            Phase::Running if due => {
                let (server, epoch) = (server.name.clone(), server.owner.map_or(0, |o| o.epoch));
                self.serve(index);
                self.event(EventKind::Serving { server: server.clone(), epoch });
                let resources = self.servers[index].resources.as_mut();
                if resources.is_some_and(|r| std::mem::take(&mut r.fresh)) {
                    self.out.push(Effect::ResetConnections(server));
                }
            }
            Phase::Unknown
            | Phase::Stopped
            | Phase::Starting
            | Phase::Running
            | Phase::Stopping
            | Phase::Stuck => {}
        }
    }

    /// Stops serving a virtual server of this node whose file systems and services don't run any more, or are to be stopped. What
    /// follows waits until the kernel has confirmed that the mark is off.
    pub(super) fn withhold(&mut self, index: usize) {
        self.unserve(index);
        self.clearing.insert(self.servers[index].name.clone());
    }

    /// Without a cluster: asks for whatever should be and is neither so nor under way.
    pub(super) fn settle_alone(&mut self) {
        for index in 0..self.servers.len() {
            let server = &self.servers[index];
            if server.resources.is_none() || server.owner.is_none() || self.clearing.contains(&server.name) {
                continue;
            }
            match server.marked {
                true if self.is_ready(index) => {}
                true => self.withhold(index),
                false => self.start_and_serve(index),
            }
        }
    }

    /// A virtual server's mark could not be set: it is not served before the next repair.
    pub(super) fn serve_later(&mut self, server: &str) {
        let later = self.now + REPAIR_AFTER;
        let known = self.servers.iter_mut().filter(|s| s.name == server);
        known.filter_map(|s| s.resources.as_mut()).for_each(|r| r.not_before = Some(later));
    }

    /// What was asked for could not be handed on: it is asked for again by the next repair, if it is still wanted then.
    pub(super) fn resources_unsent(&mut self, server: &str, phase: Phase) {
        let known = self.servers.iter_mut().filter(|s| s.name == server);
        let resources = known.filter_map(|s| s.resources.as_mut()).filter(|r| r.phase == phase);
        resources.for_each(|r| r.unsent = true);
    }

    pub(super) fn ask_resources_again(&mut self) {
        for server in &mut self.servers {
            let Some(resources) = server.resources.as_mut().filter(|r| r.unsent) else { continue };
            resources.unsent = false;
            let name = server.name.clone();
            self.out.extend(match resources.phase {
                Phase::Starting => Some(Effect::StartResources(name)),
                Phase::Stopping => Some(Effect::StopResources(name)),
                Phase::Unknown | Phase::Stopped | Phase::Running | Phase::Stuck => None,
            });
        }
    }

    /// When the next virtual server may be started, or served, that may not yet.
    pub(super) fn resources_deadline(&self) -> Option<Time> {
        let waiting = self.servers.iter().filter_map(|s| s.resources.as_ref()?.not_before());
        waiting.filter(|t| *t > self.now).min()
    }
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
