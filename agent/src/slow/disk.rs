//! The thread that waits for disks: store, journal, record, sysctls.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use baton_core::{Effect, Event, Input};
use tokio::sync::mpsc;

use super::record::Recorder;
use super::sysctl;
use crate::fast::ToSlow;
use crate::hooks::Hooks;
use crate::journal::{self, Journal};
use crate::store::Store;
use crate::telemetry::{Metrics, Published};

/// What the thread owns.
pub(super) struct Disk {
    pub store: Box<dyn Store>,
    pub incarnation: u64,
    pub journal: Journal,
    pub state: PathBuf,
    /// Some virtual server has services.
    pub has_services: bool,
    pub inputs: mpsc::Sender<Input>,
}

impl Disk {
    /// Starts the thread; it ends when the sending sides of both channels are gone and all is written.
    pub(super) fn spawn(
        self,
        records: mpsc::Receiver<ToSlow>,
        events: mpsc::Receiver<Event>,
        published: Published,
        metrics: Arc<Metrics>,
        hooks: Hooks,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("disk".into()).spawn(move || {
            crate::confine::thread();
            let Disk { mut store, incarnation, journal, state, has_services, inputs } = self;
            let journal = journal::run(events, journal, published, metrics, hooks);
            let work = work(records, &mut *store, incarnation, state, has_services, inputs);
            runtime.block_on(async { tokio::join!(journal, work) });
        })
    }
}

async fn work(
    mut records: mpsc::Receiver<ToSlow>,
    store: &mut dyn Store,
    incarnation: u64,
    state: PathBuf,
    has_services: bool,
    inputs: mpsc::Sender<Input>,
) {
    let mut recorder =
        Recorder::open(&state).inspect_err(|e| tracing::error!("{}: {e}", state.display())).ok();
    let mut recording = true;
    while let Some(message) = records.recv().await {
        let written = match message {
            ToSlow::Take(server) => {
                let answer = match store.take(&server, incarnation) {
                    Ok(owner) => Input::Owned(server, owner),
                    Err(e) => Input::Failed(Box::new(Effect::Take(server)), e.to_string()),
                };
                // The fast thread is gone: so is the reason to answer.
                let _ = inputs.send(answer).await;
                Ok(())
            }
            ToSlow::Prepare(interface) => {
                if let Err(e) = sysctl::prepare(store, &interface) {
                    tracing::error!("settings of {interface}: {e}");
                }
                Ok(())
            }
            ToSlow::Keep(ports) => {
                if let Err(e) = sysctl::restore(store, &sysctl::with_below(&ports), has_services) {
                    tracing::warn!("settings that are no longer needed could not be restored: {e}");
                }
                Ok(())
            }
            ToSlow::Record { at, input, effects } => {
                recorder.as_mut().map_or(Ok(()), |r| r.step(at, *input, effects))
            }
            ToSlow::Checkpoint(machine) => recorder.as_mut().map_or(Ok(()), |r| r.checkpoint(machine)),
        };
        match written {
            Err(e) if recording => {
                recording = false;
                tracing::error!(
                    "{}: {e}; inputs are not recorded until it can be written again",
                    state.join(super::record::FILE).display()
                );
            }
            Err(_) => {}
            Ok(()) => recording = true,
        }
    }
}
