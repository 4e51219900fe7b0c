//! The configuration is read anew: by `baton reload`, or by SIGHUP.
//!
//! Everything is checked before anything is touched; what is refused leaves everything as it was. What core and the fast thread can
//! take up while they run goes to them ([`How::InPlace`]); everything else is taken up as a restarted agent would, within this
//! process ([`How::Anew`]): what is served stays served, and what runs is adopted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use baton_core::{Config, Event, EventKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::{cluster, notify, probe_key};
use crate::cli;
use crate::config::{self, AgentConfig, Loaded, StoreKind, TelemetryConfig};
use crate::control::{How, ReloadAnswer, ReloadCall};
use crate::fast;
use crate::secrets;
use crate::store::etcd::Etcd;
use crate::telemetry::{self, Actions, Material, Metrics, Published, Tls};

/// How long a store that is new to this node may take to answer.
const STORE_PATIENCE: Duration = Duration::from_secs(3);

/// The configuration in force, across the runs of this process.
pub(super) struct Configuration {
    /// Where it is read from; absolute.
    file: PathBuf,
    loaded: Loaded,
    /// What was in force before, until a run with the new one has started.
    before: Option<Box<Loaded>>,
    /// What the next run is to tell.
    news: Option<EventKind>,
    /// The whole process has given up what programs and mounts need.
    pub(super) is_confined: bool,
}

impl Configuration {
    pub(super) fn new(file: PathBuf, loaded: Loaded) -> Configuration {
        Configuration { file, loaded, before: None, news: None, is_confined: false }
    }

    /// What is in force.
    pub(super) fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// A run has started with it.
    pub(super) fn has_started(&mut self) {
        self.before = None;
    }

    /// What this run is to tell, once.
    pub(super) fn news(&mut self) -> Option<Event> {
        self.news.take().map(event)
    }

    /// A run could not start; goes back to what was in force before, if there is something.
    pub(super) fn falls_back(&mut self, error: &super::RunError) -> bool {
        let Some(before) = self.before.take() else { return false };
        self.loaded = *before;
        tracing::error!("the new configuration can't be used, going back to the one before: {error}");
        self.news = Some(EventKind::ReloadRefused { error: error.to_string() });
        true
    }
}

fn event(kind: EventKind) -> Event {
    Event { at: fast::now(), failover: None, kind }
}

/// What a reload of a running agent works with.
pub(super) struct Reloading {
    /// To the fast thread.
    pub fast: mpsc::Sender<fast::Reload>,
    /// To the journal.
    pub events: mpsc::Sender<Event>,
    /// To the sampler.
    pub sampled: watch::Sender<Config>,
    pub metrics: Arc<Metrics>,
    pub published: Published,
    /// Serves HTTP, if somebody does.
    pub http: Option<JoinHandle<()>>,
    /// What TLS is spoken with there.
    pub tls: Option<Material>,
    /// Sends traces, if somebody does, and where to.
    pub traces: Option<(String, JoinHandle<()>)>,
}

impl Reloading {
    /// Serves HTTP and sends traces as configured from now on.
    pub(super) async fn start_telemetry(&mut self, loaded: &Loaded) {
        self.send_traces(loaded);
        // Why it can't be used is told by who serves, and tries again.
        let tls = read_tls(loaded).await.ok().flatten();
        self.serve_http(loaded, tls).await;
    }

    /// Sends traces as configured from now on. Those that wait are lost where that is somewhere else.
    fn send_traces(&mut self, loaded: &Loaded) {
        let otlp = &loaded.agent.telemetry.otlp;
        if self.traces.as_ref().map(|(endpoint, _)| endpoint) == otlp.as_ref() {
            return;
        }
        if let Some((_, traces)) = self.traces.take() {
            traces.abort();
        }
        self.traces = otlp.clone().map(|endpoint| {
            let (node, published) = (loaded.core.node.clone(), self.published.clone());
            let traces = telemetry::trace(endpoint.clone(), node, published, self.metrics.clone());
            (endpoint, tokio::spawn(traces))
        });
    }

    /// Serves HTTP as configured from now on, with what has been read. Who is connected finishes what he has asked for, and nothing more.
    async fn serve_http(&mut self, loaded: &Loaded, material: Option<Material>) {
        if let Some(http) = self.http.take() {
            http.abort();
            let _ = http.await; // what it listened on is free
        }
        let agent = &loaded.agent;
        let TelemetryConfig { listen, token_file, tls, otlp: _ } = &agent.telemetry;
        let has_authority = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let may_act = agent.cluster.is_some() && (token_file.is_some() || has_authority);
        let actions = may_act.then(|| {
            let loaded = loaded.clone();
            Actions::new(token_file.clone(), Arc::new(move |action| cli::act(&loaded, action)))
        });
        self.tls.clone_from(&material);
        let tls = tls.clone().map(|files| Tls { files, material });
        self.http = listen.map(|listen| {
            let (metrics, published) = (self.metrics.clone(), self.published.clone());
            let router = telemetry::router(metrics, published, agent.paths.state.clone(), actions);
            tokio::spawn(telemetry::run(listen, router, tls))
        });
    }

    /// Reads the file anew, and does what it says unless that is only to be shown. `true`: this run is to end, and the next one
    /// takes it up. `asked` by an administrator who is told; `None`: by a signal.
    pub(super) async fn reload(
        &mut self,
        configuration: &mut Configuration,
        asked: Option<ReloadCall>,
    ) -> bool {
        let (dry_run, answer) = asked.map_or((false, None), |a| (a.dry_run, Some(a.answer)));
        let tell = |told: ReloadAnswer| {
            if let Some(answer) = answer {
                let _ = answer.send(told); // who asked may have gone
            }
        };
        let checked = check(configuration, self.tls.as_ref()).await;
        if dry_run {
            tell(checked.map_or_else(ReloadAnswer::refused, |c| ReloadAnswer::new(c.how, c.changes)));
            return false;
        }
        let begin =
            [Some(sd_notify::NotifyState::Reloading), sd_notify::NotifyState::monotonic_usec_now().ok()];
        notify(&begin.into_iter().flatten().collect::<Vec<_>>());
        let done = match checked {
            Err(error) => {
                tracing::error!("the configuration is refused, everything is as it was: {error}");
                self.tell(EventKind::ReloadRefused { error: error.clone() });
                tell(ReloadAnswer::refused(error));
                false
            }
            Ok(checked) => {
                let (how, changes) = (checked.how, checked.changes.clone());
                changes.iter().for_each(|line| tracing::info!("reload: {line}"));
                let anew = self.take_up(configuration, checked).await;
                tell(ReloadAnswer::new(how, changes));
                anew
            }
        };
        if !done {
            notify(&[sd_notify::NotifyState::Ready]);
        }
        done
    }

    async fn take_up(&mut self, configuration: &mut Configuration, checked: Checked) -> bool {
        let Checked { new, how, changes, tls } = checked;
        let reloaded = EventKind::Reloaded { changes: changes.clone() };
        match how {
            How::Nothing => self.tell(reloaded),
            How::InPlace => {
                let (done, is_done) = oneshot::channel();
                let core = (new.core != configuration.loaded.core).then(|| new.core.clone());
                // Core tells of what it has taken up itself.
                if core.is_none() {
                    self.tell(reloaded);
                }
                let grace = new.agent.agent_grace;
                let request = fast::Reload { config: core, grace, changes, done };
                // A fast thread that is gone ends this run anyway.
                if self.fast.send(request).await.is_ok() {
                    let _ = is_done.await;
                }
                self.sampled.send_replace(new.core.clone());
                if new.agent.telemetry != configuration.loaded.agent.telemetry || tls != self.tls {
                    self.serve_http(&new, tls).await;
                    self.send_traces(&new);
                }
                configuration.loaded = new;
            }
            How::Anew => {
                let before = std::mem::replace(&mut configuration.loaded, new);
                configuration.before = Some(Box::new(before));
                configuration.news = Some(reloaded);
                return true;
            }
        }
        false
    }

    fn tell(&self, kind: EventKind) {
        if self.events.try_send(event(kind)).is_err() {
            tracing::warn!("an event of the reload is not in the journal: it can't keep up");
        }
    }
}

/// A configuration that can be taken up.
struct Checked {
    new: Loaded,
    how: How,
    /// What is different, a line each.
    changes: Vec<String>,
    /// What TLS is to be spoken with.
    tls: Option<Material>,
}

/// Reads the files of TLS, where HTTP is served with it.
async fn read_tls(loaded: &Loaded) -> Result<Option<Material>, String> {
    let telemetry = &loaded.agent.telemetry;
    let Some(files) = telemetry.tls.clone().filter(|_| telemetry.listen.is_some()) else { return Ok(None) };
    let read = tokio::task::spawn_blocking(move || telemetry::read_tls(&files)).await;
    read.map_err(|e| e.to_string())?.map(Some).map_err(|e| e.to_string())
}

/// Reads the file and checks all that can be checked without touching anything. `tls`: what TLS is spoken with now.
async fn check(configuration: &Configuration, tls: Option<&Material>) -> Result<Checked, String> {
    let Configuration { file, loaded, .. } = configuration;
    let mut new = config::reload(file, loaded).map_err(|e| e.to_string())?;
    secrets::refuse(&secrets::named(&new)).map_err(|e| e.to_string())?;
    if configuration.is_confined && !super::needs_little(&new) {
        return Err(format!(
            "{}: file systems, services, storage units and hooks can't be added while the agent runs, for it has given up the rights that \
             they need; restart it (`systemctl restart baton`: what it serves stays served)",
            file.display()
        ));
    }
    // Tables go by place: segments that stay keep theirs.
    let place = |name: &str| loaded.core.segments.iter().position(|s| s.name == name).unwrap_or(usize::MAX);
    new.core.segments.sort_by_key(|s| place(&s.name));
    let how = how(loaded, &new);
    let port = loaded.agent.telemetry.listen.map(|l| l.port());
    // The port that is in use is this agent's own.
    let listen = new.agent.telemetry.listen.filter(|l| Some(l.port()) != port);
    if let Some(listen) = listen {
        std::net::TcpListener::bind(listen).map_err(|e| {
            format!(
                "{}: telemetry.listen = {listen} can't be used: {e}; choose another address or port",
                file.display()
            )
        })?;
    }
    if let (Some(cluster), StoreKind::Etcd(etcd), How::Anew) =
        (&new.agent.cluster, &new.agent.store.kind, how)
    {
        let told = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
        probe_key::load_shared(&cluster.key_file).map_err(|e| told(&e))?;
        cluster::fits(&new.core, &new.agent.paths.state).map_err(|e| told(&e))?;
        if new.agent.store != loaded.agent.store {
            let members = async { Etcd::new(etcd)?.members().await };
            let members = tokio::time::timeout(STORE_PATIENCE, members).await;
            match members {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => {
                    return Err(told(&"etcd, as configured now, knows no such cluster; correct [store]"));
                }
                Ok(Err(e)) => return Err(told(&e)),
                Err(_) => return Err(told(&"etcd, as configured now, does not answer; correct [store]")),
            }
        }
    }
    let read = read_tls(&new).await.map_err(|e| format!("{}: {e}", file.display()))?;
    let mut changes = config::difference(loaded, &new);
    let is_renewed = new.agent.telemetry == loaded.agent.telemetry && read.as_ref() != tls;
    if is_renewed {
        changes.push("node: other certificates in the files in [telemetry]".to_owned());
    }
    let how = if is_renewed && how == How::Nothing { How::InPlace } else { how };
    Ok(Checked { new, how, changes, tls: read })
}

/// What it takes to take it up.
fn how(old: &Loaded, new: &Loaded) -> How {
    if (&old.core, &old.agent) == (&new.core, &new.agent) {
        return How::Nothing;
    }
    let AgentConfig { telemetry, agent_grace, lease, .. } = old.agent.clone();
    let rest_is_same = AgentConfig { telemetry, agent_grace, lease, ..new.agent.clone() } == old.agent;
    // A member's ports are told to the store, and known to others.
    let alone = new.agent.store.kind == StoreKind::File;
    if rest_is_same && (alone || old.core == new.core) { How::InPlace } else { How::Anew }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
