//! The stages of a failover one after the other: for the page's event time line, and for traces.

use std::collections::BTreeMap;

use baton_core::Stage;
use serde::Serialize;

/// A stage: from when the one before it was passed until it was itself. Seconds since the cause.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Interval {
    pub(super) stage: Stage,
    pub(super) from: f64,
    pub(super) to: f64,
}

/// What `stages` of an event tells, in the order in which they were passed.
pub(super) fn intervals(stages: &BTreeMap<Stage, f64>) -> Vec<Interval> {
    let mut passed: Vec<(Stage, f64)> = stages.iter().map(|(stage, after)| (*stage, *after)).collect();
    passed.sort_by(|(_, a), (_, b)| a.total_cmp(b)); // what was passed at once stays in the order of the stages
    let mut from = 0.0;
    let interval = |(stage, to)| Interval { stage, from: std::mem::replace(&mut from, to), to };
    passed.into_iter().map(interval).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_begins_where_the_one_before_it_ends() {
        let stages = [
            (Stage::Detected, 0.5),
            (Stage::Decided, 0.75),
            (Stage::Stopped, 0.25),
            (Stage::Bound, 2.0),
            (Stage::Announced, 2.0),
        ];
        let interval = |stage, from, to| Interval { stage, from, to };
        let expected = [
            interval(Stage::Stopped, 0.0, 0.25),
            interval(Stage::Detected, 0.25, 0.5),
            interval(Stage::Decided, 0.5, 0.75),
            interval(Stage::Bound, 0.75, 2.0),
            interval(Stage::Announced, 2.0, 2.0),
        ];
        assert_eq!(intervals(&stages.into()), expected);
        assert_eq!(intervals(&BTreeMap::new()), []);
        let json = serde_json::to_string(&expected[0]).expect("JSON");
        assert_eq!(json, r#"{"stage":"stopped","from":0.0,"to":0.25}"#);
    }
}
