//! Measures the stages of failovers.

use baton_core::{Effect, Event, EventKind, FailoverKind, Reason, Stage, Time};

use super::now;

/// When the last address was bound, and when the last was announced.
#[derive(Default)]
pub(super) struct Stages {
    pub bound: Option<Time>,
    pub announced: Option<Time>,
}

/// The measured stages of the takeover or move in this list of effects, if there is one.
pub(super) fn taken(effects: &[Effect], at: Time, stages: &Stages) -> Option<Event> {
    let (failover, kind, reason, times) = effects.iter().find_map(|e| match e {
        Effect::Event(Event { failover, kind: EventKind::Taken { kind, reason, times, .. }, .. }) => {
            Some((*failover, *kind, *reason, *times))
        }
        _ => None,
    })?;
    let all = [
        (Stage::Detected, Some(times.detected)),
        (Stage::Decided, Some(times.decided)),
        (Stage::Taken, Some(at)),
        (Stage::Bound, stages.bound),
        (Stage::Announced, stages.announced),
    ];
    let since = |t: Time| t.since(times.cause).as_secs_f64();
    let stages = all.into_iter().filter_map(|(s, t)| Some((s, since(t?)))).collect();
    let addresses = effects.iter().filter(|e| matches!(e, Effect::Announce(..))).count();
    Some(Event { at: now(), failover, kind: EventKind::FailoverDone { kind, reason, addresses, stages } })
}

/// The measured stages of the failover in this list of effects, if there is one.
pub(super) fn finished(
    effects: &[Effect],
    cause: Time,
    at: Time,
    decided: Time,
    stages: &Stages,
) -> Option<Event> {
    let (failover, kind, reason, addresses) = effects.iter().find_map(|e| match e {
        Effect::Event(Event { failover, kind: EventKind::Failover { kind, reason, moves }, .. }) => {
            Some((*failover, *kind, *reason, moves.len()))
        }
        _ => None,
    })?;
    let (kind, reason): (FailoverKind, Reason) = (kind, reason);
    let all = [
        (Stage::Detected, Some(at)),
        (Stage::Decided, Some(decided)),
        (Stage::Bound, stages.bound),
        (Stage::Announced, stages.announced),
    ];
    let stages = all.into_iter().filter_map(|(s, t)| Some((s, t?.since(cause).as_secs_f64()))).collect();
    Some(Event { at: now(), failover, kind: EventKind::FailoverDone { kind, reason, addresses, stages } })
}
