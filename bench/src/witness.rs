//! Witnesses of the machine: a thread on each CPU, ahead of all other work, that notes how late it is woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use baton_lab::clock;

/// Above everything but the kernel's own highest threads.
const PRIORITY: i32 = 98;
const EVERY: Duration = Duration::from_millis(1);
/// Shorter delays are not kept.
const LEAST: Duration = Duration::from_micros(300);

/// A time in which a CPU did not run its most urgent thread.
#[derive(Clone, Copy, Debug)]
struct Stall {
    from: Duration,
    to: Duration,
}

/// The witnesses; they end when this is dropped.
pub struct Witness {
    stop: Arc<AtomicBool>,
    stalls: Arc<Mutex<Vec<Stall>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Starts one for each CPU.
    pub fn start() -> Result<Witness> {
        let stop = Arc::new(AtomicBool::new(false));
        let stalls = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        for cpu in 0..clock::cpus() {
            let (stop, stalls) = (stop.clone(), stalls.clone());
            let body = move || {
                let _ = clock::pin(cpu); // elsewhere it is a witness, too
                clock::try_fifo(PRIORITY);
                watch(&stop, &stalls);
            };
            let thread = std::thread::Builder::new().name("bench-witness".into()).spawn(body);
            threads.push(thread.context("start a thread")?);
        }
        Ok(Witness { stop, stalls, threads })
    }

    /// The longest stall that overlaps this time.
    pub fn longest(&self, from: Duration, to: Duration) -> Duration {
        let stalls = self.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        let within = stalls.iter().filter(|s| s.to > from && s.from < to);
        within.map(|s| s.to - s.from).max().unwrap_or_default()
    }

    /// How many stalls were longer, so far.
    pub fn longer_than(&self, limit: Duration) -> usize {
        let stalls = self.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        stalls.iter().filter(|s| s.to - s.from > limit).count()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic of a thread has been printed already.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn watch(stop: &AtomicBool, stalls: &Mutex<Vec<Stall>>) {
    while !stop.load(Ordering::Relaxed) {
        let due = clock::now() + EVERY;
        clock::sleep_until(due);
        let to = clock::now();
        if to - due > LEAST {
            stalls.lock().unwrap_or_else(PoisonError::into_inner).push(Stall { from: due, to });
        }
    }
}
