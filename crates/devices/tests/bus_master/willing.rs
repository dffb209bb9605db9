//! A disk that holds requests as long as it is told to, and gives them up when it is asked.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use disk::{
    Backend, DiskError, Engine, Event, Geometry, Operation, Patience, QueueCounters, QueueError, Request,
};
use vmm_sys_util::eventfd::EventFd;

use crate::late::{CONTENTS, Late};

/// What the disk is told, and what it has.
#[derive(Default)]
pub struct Orders {
    /// Requests stay under way while this is set.
    pub hold: AtomicBool,
    under_way: AtomicUsize,
}

impl Orders {
    /// Requests that have guest memory now.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    /// Waits until there are so many.
    pub fn reaches(&self, count: usize) {
        let begin = Instant::now();
        while self.under_way() < count {
            assert!(begin.elapsed() < Duration::from_secs(10), "the reads do not begin");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The disk.
pub struct Willing(Geometry, Arc<Orders>);

impl Willing {
    /// It holds nothing yet.
    pub fn new() -> Willing {
        Willing(Late::new(Duration::ZERO).geometry().clone(), Arc::default())
    }

    /// To tell it what to do.
    pub fn orders(&self) -> Arc<Orders> {
        self.1.clone()
    }
}

impl Backend for Willing {
    fn geometry(&self) -> &Geometry {
        &self.0
    }

    fn engine(&self, _: u16, _: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        Ok(Box::new(WillingEngine { orders: self.1.clone(), requests: Vec::new(), given_up: Vec::new() }))
    }
}

struct WillingEngine {
    orders: Arc<Orders>,
    requests: Vec<Request>,
    given_up: Vec<Request>,
}

impl Engine for WillingEngine {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.orders.under_way.fetch_add(1, Ordering::SeqCst);
        self.requests.push(request);
    }

    fn cancel(&mut self) -> io::Result<()> {
        self.orders.under_way.fetch_sub(self.requests.len(), Ordering::SeqCst);
        self.given_up.append(&mut self.requests);
        Ok(())
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        for Request { tag, operation, buffers } in self.given_up.drain(..) {
            events.push(Event::Done { tag, operation, result: Err(DiskError::Cancelled), buffers });
        }
        if !self.orders.hold.load(Ordering::SeqCst) {
            for Request { tag, operation, buffers } in self.requests.drain(..) {
                if let Operation::Read { .. } = operation {
                    buffers.write(&vec![CONTENTS; buffers.bytes() as usize]);
                }
                self.orders.under_way.fetch_sub(1, Ordering::SeqCst);
                events.push(Event::Done { tag, operation, result: Ok(()), buffers });
            }
        }
        if patience == Patience::Wait && events.len() == before {
            std::thread::sleep(Duration::from_micros(200));
            events.push(Event::Wake);
        }
        Ok(())
    }
}
