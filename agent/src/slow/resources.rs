//! Between core and the threads of file systems and services.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use baton_core::{Input, ResourceState};
use tokio::sync::mpsc;

use crate::config::Resources;
use crate::fast::ResourceRequest;
use crate::fence::{Guard, Reservations};
use crate::resources::{Hurry, OCF_ROOT, Order, ROOT, Runner, Setup};

/// What the threads start with, on this node.
pub(super) fn setup(
    node: &str,
    resources: Vec<Resources>,
    guard: Arc<Guard>,
    reservations: Option<Reservations>,
) -> Setup {
    Setup {
        node: node.to_owned(),
        resources,
        root: ROOT.into(),
        ocf_root: OCF_ROOT.into(),
        groups: true,
        guard,
        reservations,
        bus: None,
    }
}

/// Starts the threads, and one that hands requests to them; it ends, and they with it, when nobody can ask any more. Tells which
/// virtual servers were found running.
pub(super) fn spawn(
    setup: &Setup,
    mut requests: mpsc::Receiver<ResourceRequest>,
    inputs: mpsc::Sender<Input>,
) -> io::Result<(JoinHandle<()>, BTreeSet<String>, Hurry)> {
    let report = move |server: &str, state: ResourceState| {
        // The fast thread is gone: so is the reason to answer.
        let _ = inputs.blocking_send(Input::Resources { server: server.to_owned(), state });
    };
    let (runner, running) = Runner::start(setup, Arc::new(report))?;
    let hurry = runner.hurry();
    let thread = thread::Builder::new().name("resources".into()).spawn(move || {
        while let Some(request) = requests.blocking_recv() {
            match request {
                ResourceRequest::Start(server) => runner.order(&server, Order::Start),
                ResourceRequest::Stop(server) => runner.order(&server, Order::Stop),
            }
        }
    })?;
    Ok((thread, running, hurry))
}
