//! Storage units: does this node reach them?
//!
//! One block of each is read over and over, past the cache, by a child (`child`) that may hang for as long as it likes: a thread waits
//! for it, and judges (`judge`). A unit is good, missing (there is no such device), errs (reads fail), or hangs (a read is not answered
//! within the unit's limit). A child that waits for a processor is no unit that hangs.
//!
//! `mmp` knows ext4's own protection against being mounted twice.

mod child;
mod judge;
pub mod mmp;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use baton_core::{StorageState, Time};

use crate::config::StorageUnit;
use crate::resources::orders::{Order, Orders, Patience, Woken};
use crate::telemetry::UnitStats;
use child::{Answer, Child, Outcome};
use judge::Judge;

/// Between two looks at a child that waits for a processor, not for the unit.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// After this a child that could not be started is tried again.
const START_AGAIN: Duration = Duration::from_secs(1);

/// Tells how a unit is: at the start, and whenever that has changed.
pub type Report = Arc<dyn Fn(&str, StorageState) + Send + Sync>;
/// Tells that a read that was asked for has succeeded, and when it was asked for.
pub type Told = Arc<dyn Fn(&str, Time) + Send + Sync>;
/// Shows what was measured of all units, after every read.
pub type Show = Arc<dyn Fn(Arc<Vec<UnitStats>>) + Send + Sync>;

/// The threads. Dropped: they end, and leave a child that hangs.
pub struct Probers {
    threads: Vec<(Arc<Orders>, JoinHandle<()>)>,
    readers: Readers,
}

/// Asks for reads.
#[derive(Clone, Default)]
pub struct Readers(BTreeMap<String, (Arc<Wanted>, Arc<Orders>)>);

impl Readers {
    /// Wants a unit read at once, and to be told of the first read that has begun from now on and succeeded. Never waits.
    pub fn read(&self, unit: &str, asked: Time) {
        if let Some((wanted, orders)) = self.0.get(unit) {
            wanted.put(asked);
            orders.give(Order::Start);
        }
    }
}

/// When a read was last asked for that has not succeeded yet.
#[derive(Default)]
struct Wanted(Mutex<Option<Time>>);

impl Wanted {
    fn put(&self, asked: Time) {
        let mut wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *wanted = (*wanted).max(Some(asked));
    }

    fn take(&self) -> Option<Time> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Probers {
    /// Starts a thread for each unit.
    ///
    /// # Errors
    /// The system has no threads or descriptors left.
    pub fn start(units: &[StorageUnit], report: &Report, told: &Told, show: &Show) -> io::Result<Probers> {
        let board = Arc::new(Board { stats: Mutex::default(), show: show.clone() });
        let mut probers = Probers { threads: Vec::new(), readers: Readers::default() };
        for unit in units {
            let orders = Arc::new(Orders::new()?);
            let stats = UnitStats::new(&unit.name, &unit.device.display().to_string());
            board.put(stats.clone());
            let wanted = Arc::new(Wanted::default());
            probers.readers.0.insert(unit.name.clone(), (wanted.clone(), orders.clone()));
            let prober = Prober {
                unit: unit.clone(),
                orders: orders.clone(),
                seen: 0,
                wanted,
                told: told.clone(),
                report: report.clone(),
                board: board.clone(),
                judge: Judge::default(),
                stats,
                failing: false,
            };
            let builder = thread::Builder::new().name(format!("unit-{}", unit.name));
            probers.threads.push((orders, builder.spawn(move || prober.run())?));
        }
        Ok(probers)
    }

    /// For whoever wants a unit read.
    pub fn readers(&self) -> Readers {
        self.readers.clone()
    }
}

impl Drop for Probers {
    fn drop(&mut self) {
        self.threads.iter().for_each(|(orders, _)| orders.give(Order::Leave));
        for (_, thread) in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads a storage unit has panicked");
            }
        }
    }
}

/// What was measured, for whoever asks.
struct Board {
    stats: Mutex<BTreeMap<String, UnitStats>>,
    show: Show,
}

impl Board {
    fn put(&self, stats: UnitStats) {
        let mut all = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(stats.unit.clone(), stats);
        (self.show)(Arc::new(all.values().cloned().collect()));
    }
}

/// The thread of a unit.
struct Prober {
    unit: StorageUnit,
    /// To read at once, or to end.
    orders: Arc<Orders>,
    /// Number of the order that was last taken.
    seen: u64,
    wanted: Arc<Wanted>,
    told: Told,
    report: Report,
    board: Arc<Board>,
    judge: Judge,
    stats: UnitStats,
    /// A child could not be started, which has been said.
    failing: bool,
}

impl Prober {
    fn run(mut self) {
        let mut child = None;
        loop {
            let began = Instant::now();
            self.seen = self.orders.after(self.seen).map_or(self.seen, |(number, _)| number);
            // Before the read begins: it is the answer.
            let wanted = self.wanted.take();
            let pause = match self.read(&mut child, wanted) {
                Some(()) => {
                    let next = (began + self.unit.interval).saturating_duration_since(Instant::now());
                    Patience::new(&self.orders, self.seen, None, next)
                }
                // What can't be asked is not asked again sooner because somebody wants it.
                None => self.patience(START_AGAIN),
            };
            pause.wait(&[]);
            if self.patience(Duration::ZERO).is_told() {
                return;
            }
        }
    }

    /// Until the thread is to end.
    fn patience(&self, limit: Duration) -> Patience<'_> {
        Patience::new(&self.orders, 0, Some(Order::Leave), limit)
    }

    /// One read, to its end. `None`: nobody could be asked to.
    fn read(&mut self, child: &mut Option<Child>, wanted: Option<Time>) -> Option<()> {
        if child.is_none() {
            *child = match Child::start(&self.unit.device) {
                Ok(started) => Some(started),
                Err(e) if !self.failing => {
                    self.failing = true;
                    tracing::error!("storage unit {}: nobody can read it: {e}", self.unit.name);
                    None
                }
                Err(_) => None,
            };
        }
        let asked = child.as_mut()?;
        let answer = asked.ask().ok().and_then(|()| self.wait(asked));
        match answer {
            Some(answer) => {
                self.failing = false;
                let good = matches!(answer.outcome, Outcome::Read);
                self.answered(answer);
                match wanted {
                    Some(asked) if good => (self.told)(&self.unit.name, asked),
                    Some(asked) => self.wanted.put(asked),
                    None => {}
                }
                Some(())
            }
            // It has ended, or was ended by somebody; or this thread is to end.
            None => {
                *child = None;
                wanted.into_iter().for_each(|asked| self.wanted.put(asked));
                None
            }
        }
    }

    /// Waits for an answer, and says when that takes too long.
    fn wait(&mut self, child: &Child) -> Option<Answer> {
        let mut limit = self.unit.limit;
        loop {
            match self.patience(limit).wait(&[child.as_fd()]) {
                Woken::Ready(_) => return child.answer(),
                Woken::Told => return None,
                // It has not begun, or has only to tell what came of it.
                Woken::Late if child.waits_for_a_processor() => limit = LOOK_AGAIN,
                // It has answered just now, and waits for the next question.
                Woken::Late if self.has_answered(child) => return child.answer(),
                Woken::Late => {
                    if !self.stats.is_hung() {
                        self.stats.hangs += 1;
                    }
                    let news = self.judge.hung();
                    self.tell(news);
                    // For ever, if need be: another child would hang as well.
                    limit = Duration::from_secs(3600);
                }
            }
        }
    }

    fn has_answered(&self, child: &Child) -> bool {
        self.patience(Duration::ZERO).wait(&[child.as_fd()]) == Woken::Ready(0)
    }

    fn answered(&mut self, Answer { outcome, took, cached, device }: Answer) {
        if cached && !self.stats.cached {
            tracing::warn!(
                "storage unit {}: {} can't be read past the cache; what is found of it may be old",
                self.unit.name,
                self.unit.device.display()
            );
        }
        self.stats.cached = cached;
        if outcome != Outcome::Missing {
            self.stats.number = device;
        }
        let news = match outcome {
            Outcome::Read => {
                self.stats.read(took);
                self.judge.good()
            }
            Outcome::Missing => {
                self.stats.errors += 1;
                self.judge.missing()
            }
            Outcome::Failed(errno) => {
                self.stats.errors += 1;
                self.judge.failed(errno)
            }
        };
        self.tell(news);
    }

    /// Shows what was measured, and tells the verdict where it is news.
    fn tell(&mut self, news: Option<StorageState>) {
        if let Some(state) = &news {
            self.stats.state = Some(state.clone());
            let name = &self.unit.name;
            match state {
                StorageState::Good => tracing::info!("storage unit {name} is good"),
                other => {
                    let what = other.what().map_or(String::new(), |what| format!(": {what}"));
                    tracing::error!("storage unit {name} is {}{what}", other.word());
                }
            }
        }
        self.board.put(self.stats.clone());
        if let Some(state) = news {
            (self.report)(&self.unit.name, state);
        }
    }
}
