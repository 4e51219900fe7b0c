//! An NFS client at work in the background: it reads or writes without a pause, checks every byte, and notes when each of its
//! questions was answered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::clock;
use crate::error::{Context, LabError};
use crate::files::{ADDRESS, MOUNT};
use crate::host::{Host, wait_until};
use crate::nfs::{NfsClient, NfsFile};

/// Between an error and the next question of a patient client.
const PAUSE: Duration = Duration::from_millis(5);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads a file that is there, from its beginning to its end, again and again.
    Read {
        /// Bytes at once.
        chunk: usize,
    },
    /// Writes a file, each time with other contents, again and again. Every write is stable when it is answered.
    Write {
        /// Bytes at once.
        chunk: usize,
    },
    /// The same, but so many writes are made stable together, by a COMMIT.
    Commit {
        /// Bytes at once.
        chunk: usize,
        /// Writes before each COMMIT.
        batch: usize,
    },
    /// Makes, looks at and removes small files.
    Metadata,
}

/// A file for [`Work`], with contents that tell where they belong.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Another number, other contents.
    pub seed: u64,
}

impl Contents {
    /// What stands at `offset`, a multiple of 8, when it has been written `round` times.
    pub fn at(&self, round: u64, offset: u64, bytes: usize) -> Vec<u8> {
        let start = self.seed ^ round.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let word = |n: u64| mix(start.wrapping_add((offset / 8 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut data: Vec<u8> = (0..bytes.div_ceil(8) as u64).flat_map(|n| word(n).to_le_bytes()).collect();
        data.truncate(bytes);
        data
    }

    /// The checksum of it all, as first written.
    pub fn checksum(&self) -> u64 {
        let chunk = 1 << 20;
        let starts = (0..self.bytes).step_by(chunk);
        starts.fold(CHECKSUM, |sum, offset| {
            checksum(sum, &self.at(0, offset, (self.bytes - offset).min(chunk as u64) as usize))
        })
    }

    /// Writes it all, and waits until it is stable.
    ///
    /// # Errors
    /// The client's.
    pub fn write(&self, client: &mut NfsClient, round: u64) -> Result<(), LabError> {
        let file = client.create(&self.name)?;
        let mut offset = 0;
        while offset < self.bytes {
            let length = (self.bytes - offset).min(1 << 20) as usize;
            offset += client.write(&file, offset, &self.at(round, offset, length))? as u64;
        }
        client.sync(&file)?;
        client.close(file)
    }
}

/// The end of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a of 64 bits, to compare long contents with. Begin with [`CHECKSUM`].
pub fn checksum(before: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(before, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The checksum of nothing.
pub const CHECKSUM: u64 = 0xcbf2_9ce4_8422_2325;

/// What a client has seen.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// When each question was answered, and how many bytes it was about.
    pub answered: Vec<(Duration, usize)>,
    /// Chunks that were not as they should be.
    pub wrong: Vec<String>,
    /// Why it ended, if it did before it was told to.
    pub failed: Option<String>,
    /// Questions that were asked again.
    pub asked_again: u64,
    /// How often the library had given up, and the export was mounted anew.
    pub mounted_again: u64,
    /// Questions that were answered with an error; see [`Transfer::start_patient`].
    pub errors: u64,
    /// For each chunk, how often it was written when it was last answered for as stable.
    pub stable: Vec<u64>,
    /// How often the file was written, the time that is under way included.
    pub round: u64,
}

impl Log {
    /// The longest time without an answer that ends after `from` and begins before `to`: from when until when.
    pub fn longest(&self, from: Duration, to: Duration) -> (Duration, Duration) {
        let before = self.answered.iter().rev().find(|(at, _)| *at <= from).map_or(from, |(at, _)| *at);
        let within = self.answered.iter().map(|(at, _)| *at).filter(|at| *at > from && *at <= to);
        let mut last = before;
        let mut longest = (before, before);
        for at in within.chain([to]) {
            if at.saturating_sub(last) > longest.1.saturating_sub(longest.0) {
                longest = (last, at);
            }
            last = at;
        }
        longest
    }

    /// Bytes answered for in this time.
    pub fn bytes(&self, from: Duration, to: Duration) -> usize {
        let within = self.answered.iter().filter(|(at, _)| *at > from && *at <= to);
        within.map(|(_, bytes)| bytes).sum()
    }
}

/// A client at work. Dropped: it ends when its last question is answered, and nobody waits for it.
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    /// Odd during a fault.
    faults: Arc<AtomicU64>,
    log: Arc<Mutex<Log>>,
    thread: Option<JoinHandle<()>>,
}

impl Transfer {
    /// Starts it on this host. Every question is waited for until `limit`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        host: &Host,
        contents: &Contents,
        work: Work,
        limit: Duration,
    ) -> Result<Transfer, LabError> {
        Transfer::begin(host, contents, work, limit, false)
    }

    /// The same, but a question that is answered with an error is asked again, until there is another answer.
    ///
    /// # Errors
    /// As [`Transfer::start`].
    pub fn start_patient(
        host: &Host,
        contents: &Contents,
        work: Work,
        limit: Duration,
    ) -> Result<Transfer, LabError> {
        Transfer::begin(host, contents, work, limit, true)
    }

    fn begin(
        host: &Host,
        contents: &Contents,
        work: Work,
        limit: Duration,
        patient: bool,
    ) -> Result<Transfer, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let faults = Arc::new(AtomicU64::new(0));
        let log = Arc::new(Mutex::new(Log::default()));
        let job = Worker {
            contents: contents.clone(),
            work,
            patient,
            stop: stop.clone(),
            faults: faults.clone(),
            log: log.clone(),
        };
        let host = host.clone();
        let body = move || {
            let log = job.log.clone();
            let outcome = host.enter(|| job.run(limit)).and_then(|outcome| outcome);
            if let Err(error) = outcome {
                log.lock().unwrap_or_else(PoisonError::into_inner).failed = Some(error.to_string());
            }
        };
        let thread = thread::Builder::new().name("lab-nfs".into()).spawn(body);
        Ok(Transfer { stop, faults, log, thread: Some(thread.context(|| "start a thread".into())?) })
    }

    /// Something is about to happen to the server. Until [`Transfer::fault_is_over`] no COMMIT counts, nor one of what was written
    /// until then: the client would have to see by the server's verifier that it is another one, and write again; this one does
    /// not look.
    pub fn expect_fault(&self) {
        self.faults.fetch_or(1, Ordering::SeqCst);
    }

    /// The server is the one that it will be from now on.
    pub fn fault_is_over(&self) {
        self.faults.fetch_add(1, Ordering::SeqCst);
    }

    /// What it has seen so far.
    pub fn log(&self) -> Log {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many questions were answered after `since`.
    ///
    /// # Errors
    /// [`LabError::Timeout`] with what it has seen.
    pub fn wait(&self, answers: usize, since: Duration, limit: Duration) -> Result<(), LabError> {
        let enough = || {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.failed.is_some()
                || log.answered.iter().rev().take(answers).filter(|(at, _)| *at > since).count() == answers
        };
        let waited = wait_until("answers", limit, enough);
        let log = self.log();
        match (waited, log.failed) {
            (Ok(()), None) => Ok(()),
            (_, failed) => {
                let last = log.answered.last().map(|(at, _)| clock::now().saturating_sub(*at));
                let what = format!("answers to the NFS client (the last {last:?} ago; {failed:?})");
                Err(LabError::Timeout { what, limit })
            }
        }
    }

    /// Ends it, after the answer to its last question.
    pub fn stop(mut self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it has been printed
        }
        self.log()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    contents: Contents,
    work: Work,
    /// Errors are no answers.
    patient: bool,
    stop: Arc<AtomicBool>,
    faults: Arc<AtomicU64>,
    log: Arc<Mutex<Log>>,
}

impl Worker {
    fn is_to_go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, client: &NfsClient, bytes: usize, more: impl FnOnce(&mut Log)) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.answered.push((clock::now(), bytes));
        (log.asked_again, log.mounted_again) = (client.asked_again, client.mounted_again);
        more(&mut log);
    }

    /// Asks, again and again where that is wanted, while the answer is an error.
    fn ask<T>(&self, mut question: impl FnMut() -> Result<T, LabError>) -> Result<T, LabError> {
        loop {
            match question() {
                Err(LabError::System { .. }) if self.patient && self.is_to_go_on() => {
                    self.log.lock().unwrap_or_else(PoisonError::into_inner).errors += 1;
                    thread::sleep(PAUSE);
                }
                answer => return answer,
            }
        }
    }

    fn run(&self, limit: Duration) -> Result<(), LabError> {
        let mut client = NfsClient::mount(ADDRESS, MOUNT, limit)?;
        match self.work {
            Work::Read { chunk } => {
                let file = client.open(&self.contents.name, libc::O_RDONLY)?;
                self.read(&mut client, &file, chunk)?;
                client.close(file)
            }
            Work::Write { chunk } => {
                client.create(&self.contents.name).and_then(|file| client.close(file))?;
                let file = client.open(&self.contents.name, libc::O_RDWR | libc::O_SYNC)?;
                self.write(&mut client, &file, chunk)?;
                client.close(file)
            }
            Work::Commit { chunk, batch } => {
                let file = client.create(&self.contents.name)?;
                self.write_and_commit(&mut client, &file, chunk, batch)?;
                client.close(file)
            }
            Work::Metadata => self.metadata(&mut client),
        }
    }

    fn read(&self, client: &mut NfsClient, file: &NfsFile, chunk: usize) -> Result<(), LabError> {
        let mut offset = 0;
        while self.is_to_go_on() {
            let data = self.ask(|| client.read(file, offset, chunk))?;
            let wanted = self.contents.at(0, offset, chunk.min((self.contents.bytes - offset) as usize));
            self.note(client, data.len(), |log| {
                if data != wanted {
                    log.wrong.push(format!(
                        "read {} bytes at {offset}: {}",
                        data.len(),
                        difference(&data, &wanted)
                    ));
                }
            });
            offset += chunk as u64;
            if offset >= self.contents.bytes {
                offset = 0;
            }
        }
        Ok(())
    }

    fn write(&self, client: &mut NfsClient, file: &NfsFile, chunk: usize) -> Result<(), LabError> {
        let chunks = self.begin(chunk);
        for round in 1.. {
            self.begin_round(round);
            for index in 0..chunks {
                if !self.is_to_go_on() {
                    return Ok(());
                }
                if self.write_one(client, file, chunk, index, round)? {
                    self.log.lock().unwrap_or_else(PoisonError::into_inner).stable[index] = round;
                }
            }
        }
        Ok(())
    }

    fn write_and_commit(
        &self,
        client: &mut NfsClient,
        file: &NfsFile,
        chunk: usize,
        batch: usize,
    ) -> Result<(), LabError> {
        let chunks = self.begin(chunk);
        for round in 1.. {
            self.begin_round(round);
            for first in (0..chunks).step_by(batch.max(1)) {
                let together = first..(first + batch).min(chunks);
                let faults = self.faults.load(Ordering::SeqCst);
                for index in together.clone() {
                    if !self.is_to_go_on() {
                        return Ok(());
                    }
                    self.write_one(client, file, chunk, index, round)?;
                }
                self.ask(|| client.sync(file))?;
                if faults.is_multiple_of(2) && self.faults.load(Ordering::SeqCst) == faults {
                    let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.stable[together].fill(round);
                }
            }
        }
        Ok(())
    }

    /// Nothing is stable yet. Returns how many chunks there are.
    fn begin(&self, chunk: usize) -> usize {
        let chunks = self.contents.bytes.div_ceil(chunk as u64) as usize;
        self.log.lock().unwrap_or_else(PoisonError::into_inner).stable = vec![0; chunks];
        chunks
    }

    fn begin_round(&self, round: u64) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).round = round;
    }

    /// Returns whether it was written as a whole.
    fn write_one(
        &self,
        client: &mut NfsClient,
        file: &NfsFile,
        chunk: usize,
        index: usize,
        round: u64,
    ) -> Result<bool, LabError> {
        let offset = (index * chunk) as u64;
        let length = chunk.min((self.contents.bytes - offset) as usize);
        let data = self.contents.at(round, offset, length);
        let written = self.ask(|| client.write(file, offset, &data))?;
        self.note(client, written, |log| {
            if written != length {
                log.wrong.push(format!("wrote {written} of {length} bytes at {offset}"));
            }
        });
        Ok(written == length)
    }

    fn metadata(&self, client: &mut NfsClient) -> Result<(), LabError> {
        for number in 0.. {
            if !self.is_to_go_on() {
                break;
            }
            let name = format!("{}-{number}", self.contents.name);
            let file = self.ask(|| client.create(&name))?;
            self.note(client, 0, |_| ());
            client.close(file)?;
            let size = self.ask(|| client.size(&name))?;
            self.note(client, 0, |log| {
                if size != 0 {
                    log.wrong.push(format!("{name} has {size} bytes"));
                }
            });
            self.ask(|| client.remove(&name))?;
            self.note(client, 0, |_| ());
        }
        Ok(())
    }
}

/// Where bytes begin to be others than wanted, and what is there.
fn difference(data: &[u8], wanted: &[u8]) -> String {
    let first = data.iter().zip(wanted).position(|(is, should)| is != should);
    let Some(first) = first else { return format!("{} were wanted", wanted.len()) };
    let hex = |bytes: &[u8]| bytes[first..].iter().take(40).map(|b| format!("{b:02x}")).collect::<String>();
    format!("from byte {first} on {} instead of {}", hex(data), hex(wanted))
}

/// What of a file that was written by [`Work::Write`] or [`Work::Commit`] is not as its client was told, chunk by chunk: each holds
/// what was last answered for as stable, or something that was written later.
///
/// # Errors
/// The client's.
pub fn check_stable(
    client: &mut NfsClient,
    contents: &Contents,
    chunk: usize,
    log: &Log,
) -> Result<Vec<String>, LabError> {
    let file = client.open(&contents.name, libc::O_RDONLY)?;
    let mut wrong = Vec::new();
    for (index, stable) in log.stable.iter().enumerate().filter(|(_, round)| **round > 0) {
        let offset = (index * chunk) as u64;
        let length = chunk.min((contents.bytes - offset) as usize);
        let data = client.read(&file, offset, length)?;
        let is_of = |round: &u64| data == contents.at(*round, offset, length);
        if !(*stable..=log.round).any(|round| is_of(&round)) {
            let found = (0..*stable).rev().find(is_of);
            wrong.push(format!("at {offset}: round {stable} was stable, found is {found:?}"));
        }
    }
    client.close(file)?;
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn contents_tell_place_and_round() {
        let contents = Contents { name: "a".into(), bytes: 100, seed: 7 };
        let all = contents.at(1, 0, 100);
        assert_eq!(all[16..40], contents.at(1, 16, 24));
        assert_ne!(all[..24], contents.at(1, 16, 24));
        assert_ne!(all, contents.at(2, 0, 100));
        // The test vector of FNV-1a for "a".
        assert_eq!(checksum(CHECKSUM, b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn the_longest_silence_reaches_over_both_ends() {
        let answered = [10, 20, 90, 100].map(|at| (ms(at), 5)).to_vec();
        let log = Log { answered, ..Log::default() };
        assert_eq!(log.longest(ms(30), ms(200)), (ms(100), ms(200)));
        assert_eq!(log.longest(ms(30), ms(100)), (ms(20), ms(90)));
        assert_eq!(log.bytes(ms(10), ms(90)), 10);
    }
}
