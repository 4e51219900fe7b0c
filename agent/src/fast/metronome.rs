//! A timer of the kernel's that rings in a rhythm. The runtime's own timers are no finer than a millisecond.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The timer.
pub struct Metronome {
    timer: AsyncFd<Timer>,
    period: Option<Duration>,
}

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Metronome {
    /// Makes one that is silent. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// No descriptor is to be had.
    pub fn new() -> io::Result<Metronome> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Timer(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        // SAFETY: the timer owns its descriptor, which stays the same and open until the timer is dropped.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Metronome { timer, period: None })
    }

    /// Rings once in this time from now on, at once for the first time; `None`: never. The same again changes nothing.
    ///
    /// # Errors
    ///
    /// The period is out of range.
    pub fn set(&mut self, period: Option<Duration>) -> io::Result<()> {
        if period != self.period {
            let timer = &self.timer.get_ref().0;
            match period {
                Some(period) => {
                    let soon = TimeSpec::from_duration(Duration::from_nanos(1));
                    let rhythm = Expiration::IntervalDelayed(soon, TimeSpec::from_duration(period));
                    timer.set(rhythm, TimerSetTimeFlags::empty())?;
                }
                None => timer.unset()?,
            }
            self.period = period;
        }
        Ok(())
    }

    /// Time between two rings; `None`: it is silent.
    pub fn period(&self) -> Option<Duration> {
        self.period
    }

    /// Waits for the next ring. Cancel safe: it has been heard only when [`Metronome::heard`] is called.
    pub async fn ring(&self) -> io::Result<()> {
        self.timer.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Takes note of all rings so far.
    pub fn heard(&self) {
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        if let std::task::Poll::Ready(Ok(mut guard)) = self.timer.poll_read_ready(context) {
            // Nothing to read: it has been set anew meanwhile.
            let _ = nix::unistd::read(self.timer.get_ref().0.as_fd(), &mut [0; 8]);
            guard.clear_ready();
        }
    }
}
