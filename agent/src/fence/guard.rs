//! What this node may have mounted, and for which of it another node may wait until this one has reset itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// The lease as the kernel programs have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    /// Their incarnation.
    pub incarnation: u64,
    /// It is not over.
    pub valid: bool,
}

/// Shared by the threads of virtual servers, which say what runs, the fast thread, which says what may (no method waits that it
/// calls), and the thread that feeds the watchdog.
#[derive(Debug)]
pub struct Guard {
    servers: BTreeMap<String, Held>,
    /// The watchdog is armed and promised; else why not, where that will not change by itself.
    armed: Mutex<Result<(), Option<String>>>,
}

#[derive(Debug)]
struct Held {
    /// Something of it may run or be mounted here.
    runs: AtomicBool,
    /// The incarnation under which it may; 0: none.
    entitled: AtomicU64,
    /// This node must reset itself when something runs that may not.
    watched: AtomicBool,
}

impl Held {
    /// May it run although it may not?
    fn is_wrong(&self, lease: Option<Leased>) -> bool {
        let entitled = self.entitled.load(SeqCst);
        let may = lease.is_some_and(|l| l.valid && entitled != 0 && l.incarnation == entitled);
        self.runs.load(SeqCst) && !may
    }
}

impl Guard {
    /// Of these virtual servers. Until more is told, all of them may run here, and none may.
    pub fn new(servers: impl IntoIterator<Item = String>, watched: &BTreeSet<String>) -> Guard {
        let held = |name: String| {
            let (runs, entitled) = (AtomicBool::new(true), AtomicU64::new(0));
            let watched = AtomicBool::new(watched.contains(&name));
            (name, Held { runs, entitled, watched })
        };
        Guard { servers: servers.into_iter().map(held).collect(), armed: Mutex::new(Err(None)) }
    }

    /// Core has said under which incarnation it may run; `None`: under none. Never waits.
    pub fn entitle(&self, server: &str, incarnation: Option<u64>) {
        if let Some(held) = self.servers.get(server) {
            held.entitled.store(incarnation.unwrap_or(0), SeqCst);
        }
    }

    /// Something of it is about to be started.
    ///
    /// # Errors
    /// Why it must not be: nothing would reset this node. `None`: not yet.
    pub fn start(&self, server: &str) -> Result<(), Option<String>> {
        let Some(held) = self.servers.get(server) else { return Ok(()) };
        // First, so that whoever feeds the watchdog from now on knows it.
        held.runs.store(true, SeqCst);
        if !held.watched.load(SeqCst) {
            return Ok(());
        }
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing of it runs.
    pub fn stopped(&self, server: &str) {
        if let Some(held) = self.servers.get(server) {
            held.runs.store(false, SeqCst);
        }
    }

    /// May something of it run here?
    pub fn runs(&self, server: &str) -> bool {
        self.servers.get(server).is_some_and(|held| held.runs.load(SeqCst))
    }

    /// What keeps the watchdog from being fed: a virtual server that may run here and may not.
    pub fn forbids(&self, lease: Option<Leased>) -> Option<&str> {
        let is_wrong = |held: &Held| held.watched.load(SeqCst) && held.is_wrong(lease);
        self.servers.iter().find(|(_, held)| is_wrong(held)).map(|(name, _)| name.as_str())
    }

    /// Does anything run here for which this node must reset itself?
    pub fn is_at_work(&self) -> bool {
        self.servers.values().any(|held| held.watched.load(SeqCst) && held.runs.load(SeqCst))
    }

    /// For these only this node must reset itself, and for what it had to before and another node may wait for now: unless whoever
    /// configured that has accepted what can happen.
    pub fn watch(&self, servers: &BTreeSet<String>, accepted: &BTreeSet<String>, lease: Option<Leased>) {
        for (name, held) in &self.servers {
            let still = held.watched.load(SeqCst) && held.is_wrong(lease) && !accepted.contains(name);
            held.watched.store(still || servers.contains(name), SeqCst);
        }
    }

    /// Will the watchdog reset this node? If not: why.
    pub fn set_armed(&self, armed: Result<(), String>) {
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = armed.map_err(Some);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(watched: &[&str]) -> Guard {
        let watched = watched.iter().map(|name| (*name).to_owned()).collect();
        let guard = Guard::new(["a", "b"].map(str::to_owned), &watched);
        guard.stopped("a");
        guard.stopped("b");
        guard
    }

    fn lease(incarnation: u64) -> Option<Leased> {
        Some(Leased { incarnation, valid: true })
    }

    #[test]
    fn what_runs_needs_the_incarnation_of_its_record_and_a_lease() {
        let guard = guard(&["a"]);
        guard.set_armed(Ok(()));
        assert_eq!(guard.forbids(None), None, "nothing runs");
        assert!(!guard.is_at_work());
        guard.start("a").expect("armed");
        assert_eq!(guard.forbids(lease(1)), Some("a"), "nothing was said of it");
        guard.entitle("a", Some(1));
        assert_eq!(guard.forbids(lease(1)), None);
        assert_eq!(guard.forbids(None), Some("a"));
        assert_eq!(guard.forbids(Some(Leased { incarnation: 1, valid: false })), Some("a"));
        // It was cut off, another node waits for its reset, and it is back under the next incarnation.
        assert_eq!(guard.forbids(lease(2)), Some("a"));
        guard.entitle("a", Some(2));
        assert_eq!(guard.forbids(lease(2)), None);
        // Released although it could not be stopped.
        guard.entitle("a", None);
        assert_eq!(guard.forbids(lease(2)), Some("a"));
        assert!(guard.is_at_work() && guard.runs("a"));
        guard.stopped("a");
        assert_eq!(guard.forbids(lease(2)), None);
    }

    #[test]
    fn others_run_as_they_like() {
        let guard = guard(&["a"]);
        guard.start("b").expect("nobody waits for a reset");
        guard.start("c").expect("not known here");
        assert_eq!(guard.forbids(None), None);
        let (b, none) = (["b".to_owned()].into(), BTreeSet::new());
        guard.watch(&b, &none, None);
        assert_eq!(guard.forbids(None), Some("b"));
    }

    #[test]
    fn what_another_node_may_wait_for_is_watched_on() {
        let (none, a) = (BTreeSet::new(), ["a".to_owned()].into());
        let running = || {
            let guard = guard(&["a"]);
            guard.set_armed(Ok(()));
            guard.start("a").expect("armed");
            guard
        };
        let given_up = running();
        given_up.watch(&none, &none, lease(1));
        assert_eq!(given_up.forbids(lease(1)), Some("a"));
        given_up.stopped("a");
        given_up.watch(&none, &none, lease(1));
        given_up.start("a").expect("of no interest any more");
        assert_eq!(given_up.forbids(lease(1)), None);
        let held = running();
        held.entitle("a", Some(1));
        held.watch(&none, &none, lease(1));
        assert_eq!(held.forbids(None), None);
        let accepted = running();
        accepted.watch(&none, &a, lease(1));
        assert_eq!(accepted.forbids(lease(1)), None);
    }

    #[test]
    fn without_a_watchdog_nothing_is_started_that_needs_one() {
        let guard = guard(&["a"]);
        assert_eq!(guard.start("a"), Err(None));
        guard.set_armed(Err("no such device".to_owned()));
        assert_eq!(guard.start("a"), Err(Some("no such device".to_owned())));
        guard.set_armed(Ok(()));
        assert_eq!(guard.start("a"), Ok(()));
    }

    #[test]
    fn what_an_earlier_agent_left_may_run() {
        let guard = Guard::new(["a".to_owned()], &["a".to_owned()].into());
        assert!(guard.runs("a"));
        assert_eq!(guard.forbids(lease(1)), Some("a"));
    }
}
