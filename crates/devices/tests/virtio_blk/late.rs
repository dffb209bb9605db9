//! A disk that takes its time: each request is done a while later, on another thread, and in no hurry to be told.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use disk::{
    Access, AfterDiscard, Backend, Discard, Engine, Event, Geometry, Operation, Patience, QueueCounters,
    QueueError, Request, Sectors, WriteCache, WriteZeroes,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a read brings.
pub const CONTENTS: u8 = 0x5c;

/// What is known of a late disk.
#[derive(Clone, Default)]
pub struct Ledger {
    /// Every operation, in the order in which it was done.
    done: Arc<Mutex<Vec<Operation>>>,
    begun: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
}

impl Ledger {
    /// Every operation since the last time this was asked, in the order in which it was done.
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.done.lock().unwrap())
    }

    /// Requests that have ever come.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// Requests that have guest memory now.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }
}

/// A disk of 2 GiB with a write cache.
pub struct Late {
    geometry: Geometry,
    delay: Duration,
    ledger: Ledger,
}

impl Late {
    /// Each request takes so long, one after the other.
    pub fn new(delay: Duration) -> Late {
        let geometry = Geometry {
            capacity: Sectors(2 << 21),
            logical_block: 512,
            physical_block: 512,
            alignment_offset: 0,
            minimum_io: 512,
            optimal_io: 0,
            access: Access::ReadWrite,
            write_cache: WriteCache::WriteBack,
            fua: true,
            rotational: false,
            discard: Some(Discard { max: Sectors(64), granularity: 512, after: AfterDiscard::Zeroes }),
            write_zeroes: Some(WriteZeroes { max: Sectors(64) }),
            model: None,
            serial: None,
        };
        Late { geometry, delay, ledger: Ledger::default() }
    }

    /// What becomes of requests.
    pub fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }
}

impl Backend for Late {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn engine(&self, _: u16, _: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        let (requests, theirs) = channel::<Request>();
        let (answers, done) = channel();
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        let (ring, ledger, delay) = (bell.try_clone().unwrap(), self.ledger.clone(), self.delay);
        let thread = std::thread::spawn(move || {
            for Request { tag, operation, buffers } in theirs {
                std::thread::sleep(delay);
                if let Operation::Read { .. } = operation {
                    let data = vec![CONTENTS; buffers.bytes() as usize];
                    assert_eq!(buffers.write(&data), data.len());
                }
                ledger.done.lock().unwrap().push(operation);
                ledger.under_way.fetch_sub(1, Ordering::SeqCst);
                // Whoever asked may have gone.
                answers.send(Event::Done { tag, operation, result: Ok(()), buffers }).ok();
                ring.write(1).unwrap();
            }
        });
        let epoll = Epoll::new().unwrap();
        let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, bell.as_raw_fd(), edge).unwrap();
        Ok(Box::new(LateEngine {
            requests: Some(requests),
            done,
            epoll,
            ledger: self.ledger.clone(),
            fds: vec![bell],
            thread: Some(thread),
        }))
    }
}

struct LateEngine {
    /// `None` at the end.
    requests: Option<Sender<Request>>,
    done: Receiver<Event>,
    epoll: Epoll,
    ledger: Ledger,
    fds: Vec<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Engine for LateEngine {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        let own = eventfd.try_clone()?;
        let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 1);
        self.epoll.ctl(ControlOperation::Add, own.as_raw_fd(), edge)?;
        self.fds.push(own);
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.ledger.under_way.fetch_add(1, Ordering::SeqCst);
        self.ledger.begun.fetch_add(1, Ordering::SeqCst);
        self.requests.as_ref().unwrap().send(request).unwrap();
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let mut happened = [EpollEvent::default(); 2];
        let timeout = if patience == Patience::Wait { -1 } else { 0 };
        let count = self.epoll.wait(timeout, &mut happened)?;
        events.extend(happened[..count].iter().filter(|event| event.data() == 1).map(|_| Event::Wake));
        events.extend(self.done.try_iter());
        Ok(())
    }
}

impl Drop for LateEngine {
    fn drop(&mut self) {
        self.requests = None;
        self.thread.take().unwrap().join().unwrap();
    }
}
