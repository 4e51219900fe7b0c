//! Measures the stages of failovers.

use std::collections::BTreeMap;

use baton_core::{Effect, Event, EventKind, FailoverKind, Reason, Stage, TakeTimes, Time};

use super::now;

/// When the last address was bound, and when the last was announced.
#[derive(Default)]
pub(super) struct Stages {
    pub bound: Option<Time>,
    pub announced: Option<Time>,
}

/// Takeovers and moves that are not done yet, by virtual server: its file systems and services are being started.
#[derive(Default)]
pub(super) struct Takes(BTreeMap<String, Take>);

/// One of them.
struct Take {
    failover: Option<u64>,
    kind: FailoverKind,
    reason: Reason,
    times: TakeTimes,
    taken: Time,
    fenced: Option<Time>,
    started: Option<Time>,
}

impl Takes {
    /// Keeps what this list of effects tells of takeovers and moves. Returns the measured stages of those that it ends: the mark
    /// goes on. Where nothing has to be started first, that is in the same list.
    pub(super) fn done(&mut self, effects: &[Effect], at: Time, stages: &Stages) -> Vec<Event> {
        for effect in effects {
            if let Effect::Event(Event { failover, kind, .. }) = effect {
                self.note(*failover, kind, at);
            }
        }
        let marked = effects.iter().filter_map(|e| match e {
            Effect::Mark { server, incarnation: Some(_) } => Some(server),
            _ => None,
        });
        let takes: Vec<Take> = marked.filter_map(|server| self.0.remove(server)).collect();
        let addresses = effects.iter().filter(|e| matches!(e, Effect::Announce(..))).count();
        takes.into_iter().map(|take| take.done(addresses, stages)).collect()
    }

    /// Which failover brings this virtual server here, of what kind, and when it was caused.
    pub(super) fn cause(&self, server: &str) -> Option<(Option<u64>, FailoverKind, Time)> {
        let known = self.0.get(server).filter(|take| take.times.cause != Time::default());
        known.map(|take| (take.failover, take.kind, take.times.cause))
    }

    fn note(&mut self, failover: Option<u64>, event: &EventKind, at: Time) {
        match event {
            EventKind::Taken { server, kind, reason, times, .. } => {
                let (kind, reason, times) = (*kind, *reason, *times);
                let take = Take { failover, kind, reason, times, taken: at, fenced: None, started: None };
                self.0.insert(server.clone(), take);
            }
            // The last one, where several nodes may have had it.
            EventKind::Fenced { server, .. } => {
                if let Some(take) = self.0.get_mut(server) {
                    take.fenced = Some(at);
                }
            }
            EventKind::ResourcesStarted { server, .. } => {
                if let Some(take) = self.0.get_mut(server) {
                    take.started = Some(at);
                }
            }
            EventKind::Leaving { server, .. } | EventKind::Deposed { server } => {
                self.0.remove(server);
            }
            _ => {}
        }
    }
}

impl Take {
    /// It is done, with so many addresses.
    fn done(self, addresses: usize, stages: &Stages) -> Event {
        let Take { failover, kind, reason, times, taken, fenced, started } = self;
        let all = [
            (Stage::Detected, Some(times.detected)),
            (Stage::Decided, Some(times.decided)),
            (Stage::Stopped, times.stopped),
            (Stage::Taken, Some(taken)),
            (Stage::Fenced, fenced),
            (Stage::Started, started),
            (Stage::Bound, stages.bound),
            (Stage::Announced, stages.announced),
        ];
        // A take whose answer was lost has no cause that is known, so nobody can tell how long it took.
        let since = |t: Time| (times.cause != Time::default()).then(|| t.since(times.cause).as_secs_f64());
        let stages = all.into_iter().filter_map(|(s, t)| Some((s, since(t?)?))).collect();
        Event { at: now(), failover, kind: EventKind::FailoverDone { kind, reason, addresses, stages } }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(server: &str, at: u64) -> Effect {
        let times =
            TakeTimes { cause: Time(1), detected: Time(11), decided: Time(21), stopped: Some(Time(11)) };
        let (kind, reason) = (FailoverKind::Move, Reason::Drain);
        let kind = EventKind::Taken { server: server.into(), kind, reason, from: None, epoch: 2, times };
        Effect::Event(Event { at: Time(at), failover: Some(1), kind })
    }

    fn event(kind: EventKind) -> Effect {
        Effect::Event(Event { at: Time(0), failover: None, kind })
    }

    fn mark(server: &str) -> Effect {
        Effect::Mark { server: server.into(), incarnation: Some(1) }
    }

    /// The stages of what is done, in nanoseconds.
    fn stages(done: &[Event]) -> Vec<Vec<(Stage, u64)>> {
        let all = done.iter().map(|event| match &event.kind {
            EventKind::FailoverDone { stages, .. } => {
                stages.iter().map(|(stage, seconds)| (*stage, (seconds * 1e9).round() as u64)).collect()
            }
            other => panic!("{other:?}"),
        });
        all.collect()
    }

    fn bound(at: u64) -> Stages {
        Stages { bound: Some(Time(at)), announced: Some(Time(at + 1)) }
    }

    #[test]
    fn what_has_nothing_to_start_is_done_when_it_is_taken() {
        let done = Takes::default().done(&[mark("vs"), taken("vs", 31)], Time(31), &bound(41));
        let expected = [
            (Stage::Detected, 10),
            (Stage::Decided, 20),
            (Stage::Stopped, 10),
            (Stage::Taken, 30),
            (Stage::Bound, 40),
            (Stage::Announced, 41),
        ];
        assert_eq!(stages(&done), [expected]);
    }

    #[test]
    fn what_is_started_first_is_done_when_it_is_served() {
        let mut takes = Takes::default();
        assert_eq!(takes.done(&[taken("vs", 31), taken("other", 31)], Time(31), &Stages::default()), []);
        assert_eq!(takes.done(&[mark("elsewhere")], Time(41), &bound(41)), []);
        let fenced = |node: &str| EventKind::Fenced { server: "vs".into(), node: node.into(), seconds: 1.0 };
        assert_eq!(takes.done(&[event(fenced("b"))], Time(41), &Stages::default()), []);
        assert_eq!(takes.done(&[event(fenced("c"))], Time(46), &Stages::default()), []);
        let started = EventKind::ResourcesStarted { server: "vs".into(), seconds: 1.0 };
        let done = takes.done(&[event(started), mark("vs")], Time(51), &bound(61));
        let [stages] = &stages(&done)[..] else { panic!("{done:?}") };
        assert_eq!(
            stages[3..],
            [
                (Stage::Taken, 30),
                (Stage::Fenced, 45),
                (Stage::Started, 50),
                (Stage::Bound, 60),
                (Stage::Announced, 61)
            ]
        );
        assert_eq!(takes.done(&[mark("vs")], Time(71), &bound(71)), [], "once");
    }

    /// Nobody knows how long that took, and the uptime of the machine is no answer.
    #[test]
    fn what_has_no_known_cause_has_no_stages() {
        let Effect::Event(Event {
            at,
            failover,
            kind: EventKind::Taken { server, kind, reason, from, epoch, .. },
        }) = taken("vs", 31)
        else {
            panic!("it is taken");
        };
        let times = TakeTimes::default();
        let kind = EventKind::Taken { server, kind, reason, from, epoch, times };
        let effects = [mark("vs"), Effect::Event(Event { at, failover, kind })];
        assert_eq!(stages(&Takes::default().done(&effects, Time(31), &bound(41))), [[]]);
    }

    #[test]
    fn what_is_given_up_before_it_is_served_is_not_done() {
        let leaving =
            EventKind::Leaving { server: "vs".into(), to: "b".into(), reason: Reason::ServiceFailed };
        for end in [leaving, EventKind::Deposed { server: "vs".into() }] {
            let mut takes = Takes::default();
            takes.done(&[taken("vs", 31)], Time(31), &Stages::default());
            takes.done(&[event(end)], Time(41), &Stages::default());
            assert_eq!(takes.done(&[mark("vs")], Time(51), &bound(51)), []);
        }
    }
}
