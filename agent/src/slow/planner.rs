//! The planner: which virtual servers are to move for balance takes longer to find out than the fast thread may take.

use std::io;
use std::thread::{self, JoinHandle};

use baton_core::plan::{Cause, Mistake, Plan, plan};
use baton_core::{Input, PlannedMove};
use tokio::sync::mpsc;

use crate::fast::PlanRequest;

/// Plans, one after the other, and tells core. Of the requests that have come meanwhile only the newest counts. Ends when either
/// side is gone.
pub(super) fn spawn(
    mut requests: mpsc::Receiver<PlanRequest>,
    inputs: mpsc::Sender<Input>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("planner".into()).spawn(move || {
        crate::confine::thread();
        while let Some(request) = newest(&mut requests) {
            let moves = moves(&request).unwrap_or_else(|mistake| {
                tracing::warn!("nothing is planned: {mistake}");
                Vec::new()
            });
            if inputs.blocking_send(Input::Planned(moves)).is_err() {
                return;
            }
        }
    })
}

/// Waits for a request, and passes over those that are not the last.
fn newest(requests: &mut mpsc::Receiver<PlanRequest>) -> Option<PlanRequest> {
    let mut newest = requests.blocking_recv()?;
    while let Ok(later) = requests.try_recv() {
        newest = later;
    }
    Some(newest)
}

/// What is to move for balance, in order.
fn moves(request: &PlanRequest) -> Result<Vec<PlannedMove>, Mistake> {
    let Plan { steps, .. } = plan(&request.situation, &request.policy)?;
    let for_balance = steps.into_iter().filter(|step| step.why.cause == Cause::Balance);
    let moved = |step: baton_core::plan::Step| {
        let why = step.why.to_string();
        Some(PlannedMove { server: step.server, from: step.from?, to: step.to, why, highest: step.highest })
    };
    Ok(for_balance.filter_map(moved).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use baton_core::plan::{Node, NodeState, Policy, Server, Situation};

    use super::*;

    /// All virtual servers on one node of two.
    fn uneven() -> Situation {
        let servers = ["a", "b", "c", "d"].map(|name| Server::new(name, 10.0).on("fs1"));
        Situation {
            nodes: ["fs1", "fs2"].map(|name| Node::new(name, 100.0)).to_vec(),
            servers: servers.to_vec(),
            ..Situation::default()
        }
    }

    fn request(situation: Situation) -> PlanRequest {
        let policy = Policy { quiet: 0.0, horizon: Duration::from_secs(600), ..Policy::default() };
        PlanRequest { situation: Box::new(situation), policy }
    }

    /// What a planner answers to requests that are all there before it looks.
    fn answers(sent: Vec<PlanRequest>) -> Vec<Input> {
        let (requests, requests_rx) = mpsc::channel(8);
        let (inputs, mut inputs_rx) = mpsc::channel(8);
        sent.into_iter().for_each(|r| requests.try_send(r).expect("room"));
        drop(requests);
        spawn(requests_rx, inputs).expect("a thread").join().expect("no panic");
        std::iter::from_fn(|| inputs_rx.try_recv().ok()).collect()
    }

    #[test]
    fn moves_for_balance_are_told_with_their_reason() {
        let [Input::Planned(moves)] = &answers(vec![request(uneven())])[..] else { panic!("one answer") };
        assert_eq!(moves.len(), 2, "{moves:?}");
        for planned in moves {
            assert_eq!((planned.from.as_str(), planned.to.as_str()), ("fs1", "fs2"));
            assert!(planned.why.starts_with("balance"), "{}", planned.why);
            assert!(planned.highest.1 < planned.highest.0, "{planned:?}");
        }
    }

    #[test]
    fn moves_for_other_reasons_are_left_out() {
        let mut situation = uneven();
        situation.nodes[0].state = NodeState::Draining;
        assert_eq!(answers(vec![request(situation)]), [Input::Planned(Vec::new())]);
    }

    #[test]
    fn the_newest_request_wins() {
        let even = Situation { servers: Vec::new(), ..uneven() };
        assert_eq!(answers(vec![request(uneven()), request(even)]), [Input::Planned(Vec::new())]);
    }

    #[test]
    fn a_mistake_is_answered_by_no_moves() {
        let mut situation = uneven();
        situation.nodes.clear();
        assert_eq!(answers(vec![request(situation)]), [Input::Planned(Vec::new())]);
    }

    #[test]
    fn it_ends_when_core_is_gone() {
        let (requests, requests_rx) = mpsc::channel(1);
        let (inputs, inputs_rx) = mpsc::channel(1);
        drop(inputs_rx);
        let planner = spawn(requests_rx, inputs).expect("a thread");
        requests.try_send(request(uneven())).expect("room");
        planner.join().expect("no panic");
        assert!(requests.is_closed());
    }
}
