//! Storage units as seen from this node: what the agent has told of them.
//!
//! What follows in a cluster is in `cluster::storage`. Without one nothing does: there is no other node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::{EventKind, StorageState, StorageView, Time};

/// A unit of which something has been told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Unit {
    state: StorageState,
    /// Since when it has not been good.
    lost: Option<Time>,
}

impl Machine {
    /// A unit is said to be so.
    pub(super) fn storage_told(&mut self, unit: String, state: StorageState) {
        let before = self.units.get(&unit);
        let word = before.map_or(StorageState::Good.word(), |b| b.state.word());
        let lost = before.and_then(|b| b.lost).or(Some(self.now)).filter(|_| !state.is_good());
        let news = word != state.word();
        self.units.insert(unit.clone(), Unit { state: state.clone(), lost });
        if news {
            let what = state.what().map(str::to_owned);
            self.event(EventKind::Storage { unit, state: state.word().to_owned(), what });
        }
    }

    /// Units that this node does not reach, in the order of their names.
    pub(super) fn lost_units(&self) -> Vec<String> {
        self.units.iter().filter(|(_, unit)| unit.lost.is_some()).map(|(name, _)| name.clone()).collect()
    }

    /// When each of them was lost.
    pub(super) fn lost_at(&self) -> BTreeMap<String, Time> {
        self.units.iter().filter_map(|(name, unit)| Some((name.clone(), unit.lost?))).collect()
    }

    /// Since when this node does not reach a unit; `None`: it does.
    pub(super) fn lost_since(&self, unit: &str) -> Option<Time> {
        self.units.get(unit)?.lost
    }

    /// How a unit is here, for people.
    pub(super) fn unit_in_words(&self, unit: &str) -> String {
        let state = self.units.get(unit).map_or(&StorageState::Good, |u| &u.state);
        let what = state.what().map_or(String::new(), |what| format!(": {what}"));
        format!("storage unit {unit} is {} here{what}", state.word())
    }

    pub(super) fn storage_views(&self) -> Vec<StorageView> {
        let view = |(name, unit): (&String, &Unit)| StorageView {
            unit: name.clone(),
            state: unit.state.word().to_owned(),
            what: unit.state.what().map(str::to_owned),
        };
        self.units.iter().map(view).collect()
    }
}
