//! The judge of "never two nodes for one address".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock;
use crate::error::LabError;
use crate::port::Port;
use crate::query::Reply;
use crate::wire::Mac;

/// Asks for every address all the time. Two nodes that answer the same question both served when it came: it is a broadcast,
/// and they answer at once.
#[derive(Debug)]
pub struct Judge {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// An address that two nodes answered for.
#[derive(Clone, Debug)]
pub struct Double {
    /// When they were asked.
    pub at: Duration,
    /// The address.
    pub address: IpAddr,
    /// Who answered, and how long after that.
    pub answers: Vec<(String, Duration)>,
}

/// What the judge has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Questions asked.
    pub asked: u64,
    /// Addresses that two nodes answered for.
    pub doubles: Vec<Double>,
    /// For each address, the longest time without an answer: from when, for how long.
    pub gaps: BTreeMap<IpAddr, (Duration, Duration)>,
    /// Who answered last for each address, and when.
    pub last: BTreeMap<IpAddr, (String, Duration)>,
}

impl Judge {
    pub(crate) fn start(
        port: Port,
        addresses: Vec<IpAddr>,
        owners: BTreeMap<Mac, String>,
    ) -> Result<Judge, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stopped, noted) = (stop.clone(), seen.clone());
        let thread = std::thread::Builder::new().name("judge".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for address in &addresses {
                    let at = clock::now();
                    let Ok(replies) = port.who_has(*address, Duration::from_millis(4)) else { continue };
                    let after = |r: &Reply| Some((owners.get(&r.mac)?.clone(), r.at.saturating_sub(at)));
                    let mut nodes: Vec<(String, Duration)> = replies.iter().filter_map(after).collect();
                    nodes.sort();
                    nodes.dedup_by(|a, b| a.0 == b.0);
                    noted.lock().unwrap_or_else(PoisonError::into_inner).note(at, *address, nodes);
                }
            }
        });
        let thread =
            thread.map_err(|source| LabError::System { what: "start the judge".to_owned(), source })?;
        Ok(Judge { stop, seen, thread: Some(thread) })
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it.
    pub fn finish(mut self) -> Seen {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it has been printed
        }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        self.end();
    }
}

impl Seen {
    fn note(&mut self, at: Duration, address: IpAddr, nodes: Vec<(String, Duration)>) {
        self.asked += 1;
        if nodes.len() > 1 {
            self.doubles.push(Double { at, address, answers: nodes.clone() });
        }
        let Some((node, _)) = nodes.into_iter().next() else { return };
        if let Some((_, before)) = self.last.insert(address, (node, at)) {
            let gap = at.saturating_sub(before);
            let longest = self.gaps.entry(address).or_insert((before, gap));
            if gap > longest.1 {
                *longest = (before, gap);
            }
        }
    }
}
