//! A queue of a disk on a server.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::link::Link;
use crate::contract::{DiskError, Durability, Engine, Event, Operation, Patience, QueueCounters, Request};
use crate::threads::{Done, Job, Mailbox, Waiter};

/// What was asked for, whatever has become of it for the server.
struct Asked {
    tag: u64,
    operation: Operation,
}

pub(super) struct NbdEngine {
    link: Arc<Link>,
    fua: bool,
    mailbox: Arc<Mailbox>,
    waiter: Waiter,
    counters: Arc<QueueCounters>,
    noted: Vec<Request>,
    /// Requests under way by the tag that they have on the link.
    under_way: HashMap<u64, Asked>,
    next: u64,
}

impl NbdEngine {
    pub(super) fn new(link: Arc<Link>, fua: bool, counters: Arc<QueueCounters>) -> io::Result<NbdEngine> {
        let mailbox = Mailbox::new()?;
        let waiter = Waiter::new(mailbox.bell())?;
        Ok(NbdEngine {
            link,
            fua,
            mailbox: Arc::new(mailbox),
            waiter,
            counters,
            noted: Vec::new(),
            under_way: HashMap::new(),
            next: 0,
        })
    }

    fn send(&mut self, Request { tag, operation, buffers }: Request) {
        self.next += 1;
        self.under_way.insert(self.next, Asked { tag, operation });
        let operation = match operation {
            // Without FUA a flush follows.
            Operation::Write { at, .. } if !self.fua => {
                Operation::Write { at, durability: Durability::Cached }
            }
            other => other,
        };
        self.pass_on(Request { tag: self.next, operation, buffers });
    }

    fn pass_on(&self, request: Request) {
        self.link.add(Job { request, mailbox: self.mailbox.clone() });
    }

    fn collect(&mut self, events: &mut Vec<Event>) {
        if self.under_way.is_empty() {
            return;
        }
        for Done { request, result, tally } in self.mailbox.take() {
            tally.count_in(&self.counters);
            let Request { tag: number, operation: sent, buffers } = request;
            let Some(Asked { tag, operation }) = self.under_way.remove(&number) else { continue };
            if operation.must_last() && sent != Operation::Flush && result.is_ok() && !self.fua {
                self.under_way.insert(number, Asked { tag, operation });
                self.pass_on(Request { tag: number, operation: Operation::Flush, buffers });
            } else {
                events.push(Event::Done { tag, operation, result, buffers });
            }
        }
    }
}

impl Engine for NbdEngine {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        self.waiter.watch(eventfd)
    }

    fn cause(&self, error: DiskError) -> Option<Arc<str>> {
        let of_the_connection = matches!(error, DiskError::Gone | DiskError::TimedOut);
        if of_the_connection { self.link.last_end() } else { None }
    }

    fn submit(&mut self, request: Request) {
        self.noted.push(request);
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        for request in std::mem::take(&mut self.noted) {
            self.send(request);
        }
        self.collect(events);
        let patience = if events.len() > before { Patience::Poll } else { patience };
        if self.waiter.sleep(patience)? {
            events.push(Event::Wake);
        }
        self.collect(events);
        Ok(())
    }
}

impl Drop for NbdEngine {
    fn drop(&mut self) {
        self.noted.clear();
        while !self.under_way.is_empty() {
            for done in self.mailbox.wait() {
                self.under_way.remove(&done.request.tag);
                done.tally.count_in(&self.counters);
            }
        }
    }
}
