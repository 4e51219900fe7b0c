//! What a virtual server's thread is told, and how long it may wait for something else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Between two looks at the orders where the bell can't be heard.
const LOOK: Duration = Duration::from_millis(50);

/// What does not hang although its storage unit does is done after so long: killed, or unmounted.
pub const HOPELESS: Duration = Duration::from_millis(60);

/// What a virtual server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start what doesn't run.
    Start,
    /// Stop what runs.
    Stop,
    /// End the thread; what runs goes on.
    Leave,
}

/// The newest order, and a bell that wakes whoever waits for something else.
pub struct Orders {
    newest: Mutex<Newest>,
    bell: OwnedFd,
    /// Since when stopping must not take long.
    hurry: Mutex<Option<(Instant, Haste)>>,
}

/// Why stopping must not take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// A storage unit is missing, or errs: what waits for it may be told so.
    Hurry,
    /// It hangs: whatever still wants something of it waits for ever.
    Hopeless,
}

/// By how much longer what is missing or errs is waited for than what hangs.
const PATIENT: u32 = 10;

#[derive(Clone, Copy, Default)]
struct Newest {
    /// How many there were.
    number: u64,
    order: Option<Order>,
}

impl Orders {
    pub fn new() -> io::Result<Orders> {
        // SAFETY: the call takes two integers, and gives a descriptor that nobody else owns.
        let bell = unsafe {
            match libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Orders { newest: Mutex::default(), bell, hurry: Mutex::default() })
    }

    /// Gives an order. Never waits. Nothing comes after [`Order::Leave`].
    pub fn give(&self, order: Order) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.order != Some(Order::Leave) {
            *newest = Newest { number: newest.number + 1, order: Some(order) };
        }
        drop(newest);
        self.ring();
    }

    /// Says that stopping must not take long from now on, or no longer: what it would wait for is not to be had. It cuts short what
    /// is under way, too.
    pub fn hurry(&self, haste: Option<Haste>) {
        let mut hurry = self.hurry.lock().unwrap_or_else(PoisonError::into_inner);
        let since = hurry.map_or_else(Instant::now, |(since, _)| since);
        *hurry = haste.map(|haste| (since, haste));
        drop(hurry);
        self.ring();
    }

    fn hurried(&self) -> Option<(Instant, Haste)> {
        *self.hurry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer has the eight bytes that an eventfd takes. It can't be full: then it would ring anyway.
        unsafe { libc::write(self.bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// The newest order and its number, if it is another one than that with the number `seen`.
    pub fn after(&self, seen: u64) -> Option<(u64, Order)> {
        let newest = *self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        Some((newest.number, newest.order?)).filter(|(number, _)| *number > seen)
    }

    fn silence(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the buffer has the eight bytes that an eventfd gives. One that has not rung gives an error.
        unsafe { libc::read(self.bell.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// What ends waiting for something before it has come.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    orders: &'a Orders,
    /// Number of the order that is being carried out.
    seen: u64,
    /// Only this order matters, and [`Order::Leave`]; `None`: any.
    only: Option<Order>,
    /// When it began.
    began: Instant,
    /// When it ends.
    end: Instant,
    /// How long it lasts at most when there is a hurry ([`Orders::hurry`]).
    hurried: Option<Duration>,
}

/// Why waiting has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// This descriptor can be read, by its place in the list.
    Ready(usize),
    /// There is another order.
    Told,
    /// It has taken too long.
    Late,
}

impl<'a> Patience<'a> {
    /// Until `limit` is over, or there is another order than the one with the number `seen`: any, or `only` one.
    pub fn new(orders: &'a Orders, seen: u64, only: Option<Order>, limit: Duration) -> Patience<'a> {
        let began = Instant::now();
        Patience { orders, seen, only, began, end: began + limit, hurried: None }
    }

    /// The same, which lasts for so long at most when there is a hurry, whatever its own end: [`PATIENT`] times as long where nothing
    /// hangs, for what can still be stopped in good order need not be fenced.
    pub fn hurried(self, limit: Duration) -> Patience<'a> {
        Patience { hurried: Some(limit), ..self }
    }

    /// The same, with another end.
    pub fn within(&self, limit: Duration) -> Patience<'a> {
        let began = Instant::now();
        Patience { began, end: began + limit, ..*self }
    }

    /// The same, with another end unless its own comes first.
    pub fn at_most(&self, limit: Duration) -> Patience<'a> {
        Patience { end: self.end.min(Instant::now() + limit), ..*self }
    }

    /// How long it still lasts.
    pub fn left(&self) -> Duration {
        let hurry = self.hurried.zip(self.orders.hurried());
        let end = hurry.map_or(self.end, |(limit, (since, haste))| {
            let limit = match haste {
                Haste::Hurry => limit * PATIENT,
                Haste::Hopeless => limit,
            };
            self.end.min(self.began.max(since) + limit)
        });
        end.saturating_duration_since(Instant::now())
    }

    /// Does what is to be stopped in a hurry hang, as far as is known?
    pub fn is_hopeless(&self) -> bool {
        let haste = self.hurried.and_then(|_| self.orders.hurried());
        haste.is_some_and(|(_, haste)| haste == Haste::Hopeless)
    }

    /// The same, no longer than it takes to see whether something hangs, where that is to be expected.
    pub fn unless_hopeless(self) -> Patience<'a> {
        if self.is_hopeless() { self.at_most(HOPELESS) } else { self }
    }

    /// Has something else been ordered?
    pub fn is_told(&self) -> bool {
        let counts = |order: Order| order == Order::Leave || self.only.is_none_or(|only| only == order);
        self.orders.after(self.seen).is_some_and(|(_, order)| counts(order))
    }

    /// Waits until one of these can be read, or has anything else to tell, like an error.
    pub fn wait(&self, fds: &[BorrowedFd<'_>]) -> Woken {
        self.wait_for(fds, PollFlags::POLLIN)
    }

    /// Waits until this can be written, or has anything else to tell.
    pub fn wait_writable(&self, fd: BorrowedFd<'_>) -> Woken {
        self.wait_for(&[fd], PollFlags::POLLOUT)
    }

    /// Waits for a while. Is it still patient after that?
    pub fn pause(&self, length: Duration) -> bool {
        self.at_most(length).wait(&[]) == Woken::Late && !self.left().is_zero()
    }

    /// Waits until it ends, in an asynchronous runtime: [`Woken::Told`] or [`Woken::Late`].
    pub async fn over(&self) -> Woken {
        // SAFETY: the descriptor belongs to the orders, which outlive its registration.
        let bell = unsafe { AsyncFd::register_with_interest(self.orders.bell.as_fd(), Interest::READABLE) };
        loop {
            // Before the look at the order, as below.
            self.orders.silence();
            if self.is_told() {
                return Woken::Told;
            }
            let left = self.left();
            if left.is_zero() {
                return Woken::Late;
            }
            match &bell {
                Ok(bell) => {
                    if let Ok(Ok(mut rung)) = tokio::time::timeout(left, bell.readable()).await {
                        rung.clear_ready();
                    }
                }
                Err(_) => tokio::time::sleep(left.min(LOOK)).await,
            }
        }
    }

    fn wait_for(&self, fds: &[BorrowedFd<'_>], events: PollFlags) -> Woken {
        loop {
            // Before the look at the order, so that one which comes after it rings again.
            self.orders.silence();
            if self.is_told() {
                return Woken::Told;
            }
            let mut polled = vec![PollFd::new(self.orders.bell.as_fd(), PollFlags::POLLIN)];
            polled.extend(fds.iter().map(|fd| PollFd::new(*fd, events)));
            // Rounded up: a poll that ends too early is repeated at once.
            let left = self.left().as_millis() + 1;
            let timeout = PollTimeout::try_from(left.min(60_000) as i32).unwrap_or(PollTimeout::MAX);
            let found = poll(&mut polled, timeout);
            let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
            if found.is_ok()
                && let Some(place) = polled[1..].iter().position(ready)
            {
                return Woken::Ready(place);
            }
            if self.left().is_zero() {
                return if self.is_told() { Woken::Told } else { Woken::Late };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::testing::LONG;

    #[test]
    fn the_newest_order_counts() {
        let orders = Orders::new().expect("an eventfd");
        assert_eq!(orders.after(0), None);
        orders.give(Order::Start);
        orders.give(Order::Stop);
        assert_eq!(orders.after(0), Some((2, Order::Stop)));
        assert_eq!(orders.after(2), None);
        orders.give(Order::Leave);
        orders.give(Order::Start);
        assert_eq!(orders.after(2), Some((3, Order::Leave)));
    }

    #[test]
    fn an_order_ends_waiting_for_something_else() {
        let orders = Arc::new(Orders::new().expect("an eventfd"));
        let other = orders.clone();
        let teller = thread::spawn(move || other.give(Order::Stop));
        assert_eq!(Patience::new(&orders, 0, None, LONG).wait(&[]), Woken::Told);
        teller.join().expect("no panic");
        assert!(!Patience::new(&orders, 0, None, LONG).pause(LONG));
    }

    #[test]
    fn an_order_that_doesnt_matter_ends_nothing() {
        let orders = Orders::new().expect("an eventfd");
        orders.give(Order::Start);
        let patience = Patience::new(&orders, 0, Some(Order::Stop), LONG);
        assert_eq!(patience.within(Duration::from_millis(20)).wait(&[]), Woken::Late);
        assert!(patience.pause(Duration::from_millis(1)));
        orders.give(Order::Stop);
        assert_eq!(patience.wait(&[]), Woken::Told);
        let only_leave = Patience::new(&orders, 2, Some(Order::Leave), LONG);
        orders.give(Order::Start);
        assert!(!only_leave.is_told());
        orders.give(Order::Leave);
        assert!(only_leave.is_told());
    }

    #[test]
    fn a_hurry_cuts_short_what_must_not_take_long() {
        let orders = Arc::new(Orders::new().expect("an eventfd"));
        let patience = Patience::new(&orders, 0, Some(Order::Leave), LONG);
        let hurried = patience.hurried(Duration::from_millis(1));
        assert!(hurried.left() > LONG / 2);
        let other = orders.clone();
        let teller = thread::spawn(move || other.hurry(Some(Haste::Hurry)));
        assert_eq!(hurried.wait(&[]), Woken::Late, "and it is no order");
        teller.join().expect("no panic");
        assert!(patience.left() > LONG / 2);
        // What begins later has its time, and no more.
        assert_eq!(hurried.within(LONG).wait(&[]), Woken::Late);
        orders.hurry(None);
        assert!(hurried.left() > LONG / 2);
    }

    #[test]
    fn what_hangs_is_waited_for_no_longer_than_it_takes_to_see_that() {
        let orders = Orders::new().expect("an eventfd");
        let patience = Patience::new(&orders, 0, None, LONG);
        let hurried = patience.hurried(LONG / 2);
        orders.hurry(Some(Haste::Hurry));
        assert!(hurried.left() > LONG / 2, "it doesn't hang");
        assert!(hurried.unless_hopeless().left() > LONG / 2 && !hurried.is_hopeless());
        orders.hurry(Some(Haste::Hopeless));
        assert!(hurried.is_hopeless() && hurried.unless_hopeless().left() <= HOPELESS);
        let left = hurried.left();
        assert!(left > LONG / 4 && left <= LONG / 2, "a command may be done all the same");
        assert!(!patience.is_hopeless() && patience.unless_hopeless().left() > LONG / 2);
    }

    #[test]
    fn what_is_there_is_told_before_the_end() {
        let orders = Orders::new().expect("an eventfd");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        io::Write::write_all(&mut writer, b"x").expect("written");
        let patience = Patience::new(&orders, 0, None, Duration::ZERO);
        assert_eq!(patience.wait(&[reader.as_fd()]), Woken::Ready(0));
        assert_eq!(patience.wait(&[]), Woken::Late);
        assert_eq!(patience.wait_writable(writer.as_fd()), Woken::Ready(0));
    }
}
