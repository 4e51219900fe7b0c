//! The driver of units of systemd, over D-Bus (org.freedesktop.systemd1(5)).
//!
//! systemd starts, stops and kills the unit's processes; here is only asked for that, and looked at what came of it. A unit
//! that ran before belongs to somebody else, and is neither taken over nor stopped.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio_stream::StreamExt;
use zbus::proxy::SignalStream;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Proxy};

use super::Failure;
use super::folder::Record;
use super::orders::{Patience, Woken};
use super::process::Process;
use super::service::Place;
use crate::config::Unit;

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// How a new job goes with those that there are: it takes their place.
const MODE: &str = "replace";
/// States in which nothing of a unit runs.
const STOPPED: [&str; 2] = ["inactive", "failed"];
/// States in which it works.
const WORKS: [&str; 2] = ["active", "reloading"];
/// How long systemd may take to end a unit after SIGKILL.
const KILLED: Duration = Duration::from_secs(5);
/// How long systemd may take to notice that a process has ended, and between two looks whether it has.
const NOTICED: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("systemd: {0}")]
    Bus(#[from] zbus::Error),
    #[error("{0}")]
    Said(String),
}

/// systemd, and a unit of it.
struct Asked<'a> {
    name: &'a str,
    manager: Proxy<'static>,
    properties: Proxy<'static>,
}

impl<'a> Asked<'a> {
    /// Connects. systemd reads the unit's file, if it has not yet.
    async fn open(bus: Option<&str>, name: &'a str) -> Result<Asked<'a>, Trouble> {
        let builder = match bus {
            Some(address) => zbus::connection::Builder::address(address),
            None => zbus::connection::Builder::system(),
        };
        let unreachable = |e| Trouble::Said(format!("the system bus can't be reached: {e}"));
        let connection: Connection = builder.build().await.map_err(unreachable)?;
        let manager = Proxy::new_owned(connection.clone(), NAME, PATH, MANAGER).await?;
        let path: OwnedObjectPath = manager.call("LoadUnit", &(name,)).await?;
        let properties = Proxy::new_owned(connection, NAME, path, PROPERTIES).await?;
        Ok(Asked { name, manager, properties })
    }

    /// Can it be started at all?
    async fn is_there(&self) -> Result<(), Trouble> {
        let name = self.name;
        match self.text("LoadState").await?.as_str() {
            "loaded" => Ok(()),
            "not-found" => Err(Trouble::Said(format!("systemd knows no unit {name}"))),
            "masked" => Err(Trouble::Said(format!("{name} is masked: `systemctl unmask {name}`"))),
            other => {
                Err(Trouble::Said(format!("systemd can't load {name}: {other}; `systemctl status {name}`")))
            }
        }
    }

    async fn property(&self, interface: &str, name: &str) -> Result<OwnedVariant, Trouble> {
        Ok(self.properties.call("Get", &(interface, name)).await?)
    }

    async fn text(&self, name: &str) -> Result<String, Trouble> {
        Ok(String::try_from(self.property(UNIT, name).await?)?)
    }

    /// The process that is the service; `None`: it has none, as other kinds of units.
    async fn main_process(&self) -> Option<Process> {
        let number = self.property(SERVICE, "MainPID").await.ok()?;
        let number = i32::try_from(u32::try_from(number).ok()?).ok()?;
        Process::of(number).filter(|process| number > 0 && process.is_alive())
    }

    /// "failed (Result: exit-code)", for people.
    async fn how_it_is(&self) -> String {
        let state = self.text("ActiveState").await.unwrap_or_else(|e| e.to_string());
        let sub_state = self.text("SubState").await.unwrap_or_default();
        let result = self.property(SERVICE, "Result").await.ok().and_then(|r| String::try_from(r).ok());
        match result {
            Some(result) if result != "success" => format!("{state} ({sub_state}, {result})"),
            _ => format!("{state} ({sub_state})"),
        }
    }

    /// Has systemd start or stop it, and waits until it has. Returns its word for what came of that.
    async fn job(&self, method: &'static str) -> Result<String, Trouble> {
        // Before the job, which may be done before its number is known.
        let mut ended: SignalStream<'_> = self.manager.receive_signal("JobRemoved").await?;
        self.manager.call::<_, _, ()>("Subscribe", &()).await?;
        let job: OwnedObjectPath = self.manager.call(method, &(self.name, MODE)).await?;
        loop {
            let Some(message) = ended.next().await else {
                return Err(Trouble::Said("the system bus has closed the connection".to_owned()));
            };
            let (_, removed, _, result): (u32, OwnedObjectPath, String, String) =
                message.body().deserialize()?;
            if removed == job {
                return Ok(result);
            }
        }
    }
}

/// Runs something that asks systemd, with patience.
fn run<T>(patience: &Patience<'_>, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(e.to_string());
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        tokio::select! {
            done = work => done.map_err(|trouble| Failure::Failed(trouble.to_string())),
            woken = patience.over() => Err(match woken {
                Woken::Told => Failure::Told,
                Woken::Late | Woken::Ready(_) => Failure::Failed("it takes too long".to_owned()),
            }),
        }
    })
}

/// May it be started? It must not run: then somebody else has started it.
///
/// # Errors
/// [`Failure`]: it runs, or there is no such unit.
pub fn may_start(place: &Place<'_>, unit: &Unit, patience: &Patience<'_>) -> Result<(), Failure> {
    run(patience, async {
        let found = Asked::open(place.bus, &unit.unit).await?;
        found.is_there().await?;
        let (name, state) = (&unit.unit, found.text("ActiveState").await?);
        if !STOPPED.contains(&state.as_str()) {
            return Err(Trouble::Said(format!(
                "{name} is {state}, and Baton has not started it: stop it, and keep others from starting it \
                 (`systemctl disable --now {name}`)"
            )));
        }
        if let Ok(file) = found.text("UnitFileState").await
            && file.starts_with("enabled")
        {
            tracing::warn!(
                "{}: systemd starts {name} at every boot, on nodes that don't have the virtual server too: `systemctl disable {name}`",
                place.server
            );
        }
        Ok(())
    })
}

/// Starts it.
///
/// # Errors
/// [`Failure`]; something of it may run.
pub fn start(
    place: &Place<'_>,
    unit: &Unit,
    record: &mut Record,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    record.process = run(patience, async {
        let found = Asked::open(place.bus, &unit.unit).await?;
        if found.text("ActiveState").await? == "failed" {
            // Failures of the past must not count against its limit of starts.
            found.manager.call::<_, _, ()>("ResetFailedUnit", &(&unit.unit,)).await?;
        }
        let result = found.job("StartUnit").await?;
        let works = WORKS.contains(&found.text("ActiveState").await?.as_str());
        match (result.as_str(), works) {
            ("done", true) => Ok(found.main_process().await),
            ("done", false) => Err(Trouble::Said(format!("it has ended: {}", found.how_it_is().await))),
            (other, _) => Err(Trouble::Said(format!("start: {other}: {}", found.how_it_is().await))),
        }
    })?;
    Ok(())
}

/// Stops it; one that doesn't run is stopped. What takes too long is killed.
///
/// # Errors
/// [`Failure`]; something of it may run on.
pub fn stop(place: &Place<'_>, unit: &Unit, patience: &Patience<'_>) -> Result<(), Failure> {
    match run(patience, stopping(place, unit)) {
        Err(Failure::Failed(_)) if patience.left().is_zero() => {}
        result => return result,
    }
    tracing::warn!("{}: {} takes too long to stop, and is killed", place.server, unit.unit);
    run(&patience.within(KILLED), async {
        let found = Asked::open(place.bus, &unit.unit).await?;
        found.manager.call::<_, _, ()>("KillUnit", &(&unit.unit, "all", libc::SIGKILL)).await?;
        stopping(place, unit).await
    })
}

async fn stopping(place: &Place<'_>, unit: &Unit) -> Result<(), Trouble> {
    let found = Asked::open(place.bus, &unit.unit).await?;
    // Asked in any case: a start may be waiting for its turn.
    let result = found.job("StopUnit").await;
    if STOPPED.contains(&found.text("ActiveState").await?.as_str()) {
        return Ok(());
    }
    Err(Trouble::Said(format!("stop: {}: {}", result?, found.how_it_is().await)))
}

/// Does it work? A process that has taken the place of another one is remembered.
///
/// # Errors
/// [`Failure`]: it doesn't, or nobody knows.
pub fn check(
    place: &Place<'_>,
    unit: &Unit,
    record: &Record,
    patience: &Patience<'_>,
) -> Result<(), Failure> {
    let has_ended = record.process.is_some_and(|process| !process.is_alive());
    let process = run(patience, async {
        let found = Asked::open(place.bus, &unit.unit).await?;
        let end = Instant::now() + NOTICED;
        loop {
            if !WORKS.contains(&found.text("ActiveState").await?.as_str()) {
                return Err(Trouble::Said(format!("it is {}", found.how_it_is().await)));
            }
            let process = found.main_process().await;
            if process.is_some() || !has_ended || Instant::now() >= end {
                return Ok(process);
            }
            tokio::time::sleep(LOOK).await;
        }
    })?;
    if process != record.process {
        let mut other = record.clone();
        other.process = process;
        place.write(&other)?;
    }
    Ok(())
}

/// Does nothing of it run?
pub fn is_stopped(place: &Place<'_>, unit: &Unit, patience: &Patience<'_>) -> bool {
    let state = run(patience, async { Asked::open(place.bus, &unit.unit).await?.text("ActiveState").await });
    state.is_ok_and(|state| STOPPED.contains(&state.as_str()))
}
