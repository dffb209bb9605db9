use std::collections::VecDeque;
use std::time::Duration;

use memory::{Gpa, GpaRange, Ram};

use super::*;
use crate::contract::Sectors;
use crate::options::{DiskOptions, Source};
use crate::{Disk, Poll};

/// Ends one request at each look, the last of them never; and is woken where it is told to be.
#[derive(Default)]
struct OneByOne {
    requests: VecDeque<Request>,
    wakes: bool,
}

impl Engine for OneByOne {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    fn advance(&mut self, _: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        if self.requests.len() > 1
            && let Some(Request { tag, operation, buffers }) = self.requests.pop_front()
        {
            events.push(Event::Done { tag, operation, result: Ok(()), buffers });
        }
        if self.wakes {
            events.push(Event::Wake);
        }
        Ok(())
    }
}

/// A queue with so many reads under way, which gathers for so long.
fn queue(reads: u64, poll: Poll, gathering: Duration, wakes: bool) -> DiskQueue {
    let disk = Disk::open(&DiskOptions::over(Source::Memory(Sectors::in_bytes(1 << 20)))).unwrap();
    let prepared = disk.prepare_queue(16).unwrap();
    let engine = Box::new(OneByOne { wakes, ..OneByOne::default() });
    let mut queue = PreparedQueue { engine, poll, ..prepared }.start().unwrap();
    queue.spinner = Spinner::gathering_for(poll, gathering);
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap());
    for tag in 0..reads {
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(Gpa(0), 512).unwrap();
        queue.submit(Request { tag, operation: Operation::Read { at: Sectors(0) }, buffers }).unwrap();
    }
    queue
}

/// How many requests come with the first wait.
fn first(mut queue: DiskQueue) -> usize {
    let mut events = Vec::new();
    queue.wait(&mut events).unwrap();
    events.iter().filter(|event| matches!(event, Event::Done { .. })).count()
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn what_ends_is_gathered_until_as_much_has_ended_as_is_under_way() {
    // At least, for it looks some times in a row.
    assert!((8..16).contains(&first(queue(16, Poll::Adaptive, LONG, false))));
    assert!((8..16).contains(&first(queue(16, Poll::On, LONG, false))));
    assert_eq!(first(queue(2, Poll::Adaptive, LONG, false)), 1, "as many are under way: it comes at once");
    assert_eq!(first(queue(16, Poll::Off, LONG, false)), 1, "a queue that does not look gathers nothing");
}

#[test]
fn what_has_ended_waits_for_others_no_longer_than_an_interrupt_costs_nor_for_a_queue_that_is_woken() {
    assert_eq!(first(queue(16, Poll::Adaptive, Duration::from_nanos(1), false)), 1);
    assert_eq!(first(queue(16, Poll::Adaptive, LONG, true)), 1);
}
