//! How the thread of a queue obeys bus mastering: it steps aside while the driver forbids it.
//!
//! When the gate closes, the disk gets some time to end what is under way, which is then told to the driver as ever. What
//! takes longer is given up, as far as the disk can do that, and asked for again when the gate opens. A disk that does
//! neither is waited for no longer than [`Gate::CLOSE_LIMIT`]: then people are told which memory it may still write, and what
//! it brings later is kept until the gate opens.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use disk::{DiskError, DiskQueue, Event, Operation, Request, WaitError};
use memory::{Buffers, GpaRange};
use pci::{Gate, Pass};

/// How long the disk may take before it is asked to give up what is under way.
const GRACE: Duration = Duration::from_secs(5);
/// How often to look whether it has ended.
const LOOK: Duration = Duration::from_millis(1);
/// Requests named in one message.
const NAMED: usize = 8;

/// A thread that serves a queue, with a queue of a disk's own.
pub(crate) trait Obedient {
    /// What ends it before its driver does.
    type Error: From<WaitError>;

    /// The disk's queue and what it has brought; `None` while there is no disk.
    fn disk(&mut self) -> Option<(&mut DiskQueue, &mut Vec<Event>)>;

    /// Tells the driver of what the disk has brought, in guest memory, and asks the disk for what comes next.
    fn answer(&mut self) -> Result<(), Self::Error>;

    /// Whether the thread is to end, whatever is under way.
    fn is_to_end(&self) -> bool;

    /// Whether the thread is to end when it has stepped aside.
    fn may_end(&self) -> bool {
        self.is_to_end()
    }

    /// Does what needs no guest memory, each time that the thread wakes aside.
    fn while_aside(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Sleeps until somebody wakes the thread, without a disk.
    fn sleep(&mut self) {}

    /// Where in guest memory the first piece of each read lies that the disk has.
    fn reads(&self) -> Vec<GpaRange>;

    /// Tells people.
    fn report(&self, what: &dyn fmt::Display);
}

/// What follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Then {
    /// The gate is open, and the thread inside.
    GoOn,
    /// The thread was asked to end.
    End,
}

/// The first piece of what a request makes the disk write to guest memory.
pub(crate) fn written(operation: Operation, buffers: &Buffers) -> Option<GpaRange> {
    if let Operation::Read { .. } = operation { buffers.range(0) } else { None }
}

/// Ends what is under way, steps aside, and comes back when the gate opens.
pub(crate) fn step_aside<T: Obedient>(thread: &mut T, pass: &Pass) -> Result<Then, T::Error> {
    let Some(under_way) = end_what_is_under_way(thread, pass)? else { return Ok(Then::End) };
    pass.step_out();
    loop {
        thread.while_aside()?;
        if thread.may_end() {
            return Ok(Then::End);
        }
        if pass.renew() {
            break;
        }
        match thread.disk() {
            Some((disk, events)) => {
                disk.sleep(events)?;
                forget_wakes(events);
            }
            None => thread.sleep(),
        }
    }
    if under_way == UnderWay::GivenUp
        && let Some((disk, events)) = thread.disk()
    {
        ask_again(disk, events);
    }
    Ok(Then::GoOn)
}

/// What has become of the requests that the disk had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum UnderWay {
    /// They have ended, or the disk has them still.
    Left,
    /// The disk was asked to give them up. Those that it did are to be asked for again.
    GivenUp,
}

/// Gives the disk time; `None` when the thread is to end.
fn end_what_is_under_way<T: Obedient>(thread: &mut T, pass: &Pass) -> Result<Option<UnderWay>, T::Error> {
    let (begin, mut under_way) = (Instant::now(), UnderWay::Left);
    loop {
        if thread.is_to_end() {
            return Ok(None);
        }
        if let Some((disk, events)) = thread.disk() {
            disk.poll(events)?;
            forget_wakes(events);
        }
        // What has ended may be followed by another step of the same command, and what was given up is no failure: after
        // that, what comes is kept.
        if under_way == UnderWay::Left {
            match pass.finish(|| thread.answer()) {
                // Nobody waits any more.
                None => return Ok(Some(under_way)),
                Some(outcome) => outcome?,
            }
        }
        let left = thread.disk().map_or(0, |(disk, _)| disk.under_way());
        if left == 0 || pass.is_valid() {
            return Ok(Some(under_way));
        }
        if begin.elapsed() >= Gate::CLOSE_LIMIT {
            thread.report(&Unended { reads: thread.reads(), under_way: left });
            return Ok(Some(under_way));
        }
        if begin.elapsed() >= GRACE
            && under_way == UnderWay::Left
            && let Some((disk, _)) = thread.disk()
        {
            disk.cancel()?;
            under_way = UnderWay::GivenUp;
        }
        thread::sleep(LOOK);
    }
}

/// A driver may ring as often as it likes while nobody takes anything.
fn forget_wakes(events: &mut Vec<Event>) {
    events.retain(|event| matches!(event, Event::Done { .. }));
}

/// Asks the disk again for what it has given up.
fn ask_again(disk: &mut DiskQueue, events: &mut Vec<Event>) {
    for event in std::mem::take(events) {
        let Event::Done { tag, operation, result: Err(DiskError::Cancelled), buffers } = event else {
            events.push(event);
            continue;
        };
        if let Err(refused) = disk.submit(Request { tag, operation, buffers }) {
            let (result, buffers) = (Err(refused.error), refused.buffers);
            events.push(Event::Done { tag, operation, result, buffers });
        }
    }
}

/// What people learn of a disk that does not end.
struct Unended {
    reads: Vec<GpaRange>,
    under_way: u16,
}

impl fmt::Display for Unended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the guest has switched bus mastering off, and the disk has not ended {} of its requests in {} s.",
            self.under_way,
            Gate::CLOSE_LIMIT.as_secs()
        )?;
        if !self.reads.is_empty() {
            let named: Vec<String> = self.reads.iter().take(NAMED).map(ToString::to_string).collect();
            write!(f, " It may still write to the guest's memory at {}", named.join(", "))?;
            if self.reads.len() > NAMED {
                write!(f, " and in {} other places", self.reads.len() - NAMED)?;
            }
            write!(f, ".")?;
        }
        write!(
            f,
            " A guest that starts another kernel now may find that memory changed: stop the VM instead, and see the \
             host's log for the disk."
        )
    }
}
