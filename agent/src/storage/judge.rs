//! What a row of reads says of a unit.

use baton_core::StorageState;
use nix::errno::Errno;

/// Reads in a row that fail before a unit is given up: a path that changes may cost one.
const BAD: u32 = 3;
/// Reads in a row that succeed before it is good again.
const GOOD: u32 = 3;

/// The verdict so far. Everything that it is told is answered by the new one, where that is news.
#[derive(Debug, Default)]
pub(super) struct Judge {
    verdict: Option<StorageState>,
    good: u32,
    bad: u32,
}

impl Judge {
    /// A read has succeeded.
    pub fn good(&mut self) -> Option<StorageState> {
        self.bad = 0;
        self.good = self.good.saturating_add(1);
        let enough = self.verdict.is_none() || self.good >= GOOD;
        if enough { self.say(StorageState::Good) } else { None }
    }

    /// There is no such device.
    pub fn missing(&mut self) -> Option<StorageState> {
        self.bad(StorageState::Missing)
    }

    /// A read has failed.
    pub fn failed(&mut self, errno: Errno) -> Option<StorageState> {
        self.bad(StorageState::Errors(errno.desc().to_owned()))
    }

    fn bad(&mut self, state: StorageState) -> Option<StorageState> {
        self.good = 0;
        self.bad = self.bad.saturating_add(1);
        if self.bad >= BAD { self.say(state) } else { None }
    }

    /// A read has not been answered within the limit.
    pub fn hung(&mut self) -> Option<StorageState> {
        (self.good, self.bad) = (0, 0);
        self.say(StorageState::Hung)
    }

    /// Another error is no news.
    fn say(&mut self, state: StorageState) -> Option<StorageState> {
        let is_news = self.verdict.as_ref().is_none_or(|before| before.word() != state.word());
        is_news.then(|| {
            self.verdict = Some(state.clone());
            state
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_good_read_is_told_and_no_other_one() {
        let mut judge = Judge::default();
        assert_eq!(judge.good(), Some(StorageState::Good));
        assert_eq!(judge.good(), None);
    }

    #[test]
    fn errors_in_a_row_give_it_up_and_good_reads_in_a_row_take_it_back() {
        let mut judge = Judge::default();
        judge.good();
        let errors = || StorageState::Errors("I/O error".to_owned());
        assert_eq!([judge.failed(Errno::EIO), judge.failed(Errno::EIO)], [None, None]);
        assert_eq!(judge.good(), None, "not in a row");
        assert_eq!([judge.failed(Errno::EIO), judge.failed(Errno::EIO)], [None, None]);
        assert_eq!(judge.failed(Errno::EIO), Some(errors()));
        assert_eq!(judge.failed(Errno::EINVAL), None, "no news");
        assert_eq!([judge.good(), judge.good()], [None, None]);
        assert_eq!([judge.failed(Errno::EIO), judge.good(), judge.good()], [None, None, None]);
        assert_eq!(judge.good(), Some(StorageState::Good));
    }

    #[test]
    fn a_unit_that_is_lost_from_the_start_is_told() {
        let mut judge = Judge::default();
        assert_eq!([judge.missing(), judge.missing()], [None, None]);
        assert_eq!(judge.missing(), Some(StorageState::Missing));
        assert_eq!(judge.failed(Errno::EIO).map(|s| s.word()), Some("errors"));
        assert_eq!(judge.missing(), Some(StorageState::Missing));
    }

    #[test]
    fn one_read_that_hangs_is_enough() {
        let mut judge = Judge::default();
        assert_eq!(judge.hung(), Some(StorageState::Hung));
        assert_eq!(judge.hung(), None);
        // What is answered late, again and again, stays hung.
        assert_eq!([judge.good(), judge.hung(), judge.good(), judge.good()], [const { None }; 4]);
        assert_eq!(judge.good(), Some(StorageState::Good));
        assert_eq!(judge.hung(), Some(StorageState::Hung));
    }
}
