//! Doorbells: what drivers write to, in registers or in memory (7.13), and whom it wakes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use memory::{Gpa, OutsideRam, Ram};
use parking_lot::Mutex;

use super::events::{Event, Events};
use super::ring::Held;
use super::spec::PAGE;
use super::waker::Waker;

/// The doorbells of one submission and one completion queue with the same number.
pub(super) struct Pair {
    /// The thread that serves the submission queue.
    pub(super) waker: Waker,
    /// It sleeps, or is about to, and is to be woken for a command.
    asleep: AtomicBool,
    tail: AtomicU32,
    /// Entries of the submission queue; 0 when there is none.
    sq_entries: AtomicU32,
    head: AtomicU32,
    /// Entries of the completion queue; 0 when there is none.
    cq_entries: AtomicU32,
    /// Submission queues (bit: number) whose thread waits for room in the completion queue.
    waiting: [AtomicU64; 2],
}

/// Shadow doorbells: two pages of guest memory.
pub(super) struct Shadow {
    doorbells: Held,
    events: Held,
}

impl Shadow {
    pub(super) fn new(ram: &Arc<Ram>, doorbells: Gpa, events: Gpa) -> Result<Shadow, OutsideRam> {
        Ok(Shadow { doorbells: Held::new(ram, doorbells, PAGE)?, events: Held::new(ram, events, PAGE)? })
    }

    fn word(page: &Held, place: u16) -> &AtomicU32 {
        page.slice().atomic_u32(4 * usize::from(place)).expect("a page holds the doorbells of 64 queues")
    }

    /// The tail that the driver wrote for a submission queue, and where it is asked for a doorbell.
    pub(super) fn tail(&self, id: u16) -> (&AtomicU32, &AtomicU32) {
        (Self::word(&self.doorbells, 2 * id), Self::word(&self.events, 2 * id))
    }

    /// The same for the head of a completion queue.
    pub(super) fn head(&self, id: u16) -> (&AtomicU32, &AtomicU32) {
        (Self::word(&self.doorbells, 2 * id + 1), Self::word(&self.events, 2 * id + 1))
    }
}

/// All doorbells of a controller.
pub(super) struct Doorbells {
    pairs: Vec<Pair>,
    events: Arc<Events>,
    shadow: Mutex<Option<Arc<Shadow>>>,
    /// Moves when `shadow` does, so that threads notice without a lock.
    epoch: AtomicU32,
}

impl Doorbells {
    /// Doorbells for `pairs` queue pairs, the admin queues among them, of which `admin` wakes the thread.
    pub(super) fn new(pairs: u16, admin: &Waker, events: Arc<Events>) -> io::Result<Doorbells> {
        let pair = |id: u16| {
            let waker = if id == 0 { admin.another()? } else { Waker::new()? };
            Ok(Pair {
                waker,
                asleep: AtomicBool::new(false),
                tail: AtomicU32::new(0),
                sq_entries: AtomicU32::new(0),
                head: AtomicU32::new(0),
                cq_entries: AtomicU32::new(0),
                waiting: Default::default(),
            })
        };
        Ok(Doorbells {
            pairs: (0..pairs).map(pair).collect::<io::Result<_>>()?,
            events,
            shadow: Mutex::default(),
            epoch: AtomicU32::new(0),
        })
    }

    pub(super) fn waker(&self, id: u16) -> &Waker {
        &self.pairs[usize::from(id)].waker
    }

    /// Number of the pairs.
    pub(super) fn count(&self) -> u16 {
        self.pairs.len() as u16
    }

    pub(super) fn ring_all(&self) {
        self.pairs.iter().for_each(|pair| pair.waker.wake());
    }

    /// The driver wrote to doorbell register number `place`. Returns the completion queue whose head moved.
    pub(super) fn written(&self, place: u64, value: u32) -> Option<u16> {
        let pair = usize::try_from(place / 2).ok().and_then(|id| self.pairs.get(id));
        let Some(pair) = pair else {
            self.events.raise(Event::NoSuchDoorbell);
            return None;
        };
        let is_tail = place.is_multiple_of(2);
        let (register, entries) =
            if is_tail { (&pair.tail, &pair.sq_entries) } else { (&pair.head, &pair.cq_entries) };
        match entries.load(Ordering::Acquire) {
            0 => self.events.raise(Event::NoSuchDoorbell),
            entries if value >= entries => self.events.raise(Event::DoorbellValue),
            _ => {
                register.store(value, Ordering::SeqCst);
                if is_tail {
                    // One that is awake looks before it goes to sleep.
                    if pair.asleep.load(Ordering::SeqCst) {
                        pair.waker.wake();
                    }
                } else {
                    self.wake_waiting(pair);
                    return Some((place / 2) as u16);
                }
            }
        }
        None
    }

    fn wake_waiting(&self, pair: &Pair) {
        for (word, base) in pair.waiting.iter().zip([0, 64]) {
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let id = base + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some(pair) = self.pairs.get(id) {
                    pair.waker.wake();
                }
            }
        }
    }

    /// The thread of submission queue `sq` is to be woken when the head of completion queue `cq` moves.
    pub(super) fn wait_for_room(&self, cq: u16, sq: u16) {
        let waiting = &self.pairs[usize::from(cq)].waiting[usize::from(sq / 64)];
        waiting.fetch_or(1 << (sq % 64), Ordering::SeqCst);
    }

    /// There is a submission queue now, at its beginning.
    pub(super) fn open_sq(&self, id: u16, entries: u32) {
        let pair = &self.pairs[usize::from(id)];
        pair.tail.store(0, Ordering::Relaxed);
        if let Some(shadow) = self.shadow().1.filter(|_| id != 0) {
            shadow.tail(id).0.store(0, Ordering::Relaxed);
            shadow.tail(id).1.store(0, Ordering::Relaxed);
        }
        pair.sq_entries.store(entries, Ordering::Release);
    }

    /// There is a completion queue now, at its beginning.
    pub(super) fn open_cq(&self, id: u16, entries: u32) {
        let pair = &self.pairs[usize::from(id)];
        pair.head.store(0, Ordering::Relaxed);
        if let Some(shadow) = self.shadow().1.filter(|_| id != 0) {
            shadow.head(id).0.store(0, Ordering::Relaxed);
            shadow.head(id).1.store(0, Ordering::Relaxed);
        }
        pair.cq_entries.store(entries, Ordering::Release);
    }

    pub(super) fn close_sq(&self, id: u16) {
        self.pairs[usize::from(id)].sq_entries.store(0, Ordering::Release);
    }

    pub(super) fn close_cq(&self, id: u16) {
        self.pairs[usize::from(id)].cq_entries.store(0, Ordering::Release);
    }

    /// The thread of a submission queue is about to sleep, or has woken. Before it sleeps it looks at the tail once
    /// more.
    pub(super) fn set_asleep(&self, id: u16, asleep: bool) {
        self.pairs[usize::from(id)].asleep.store(asleep, Ordering::SeqCst);
    }

    /// The tail last written to the register.
    pub(super) fn tail(&self, id: u16) -> u32 {
        self.pairs[usize::from(id)].tail.load(Ordering::SeqCst)
    }

    /// The head last written to the register.
    pub(super) fn head(&self, id: u16) -> u32 {
        self.pairs[usize::from(id)].head.load(Ordering::SeqCst)
    }

    /// A tail or head in the shadow page lies outside its queue.
    pub(super) fn nonsense(&self) {
        self.events.raise(Event::DoorbellValue);
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The shadow doorbells in use now, with the epoch since when.
    pub(super) fn shadow(&self) -> (u32, Option<Arc<Shadow>>) {
        let shadow = self.shadow.lock();
        (self.epoch(), shadow.clone())
    }

    /// From now on the driver keeps tails and heads of I/O queues in memory. What the registers hold goes there
    /// first, for queues that exist already.
    pub(super) fn set_shadow(&self, shadow: Option<Arc<Shadow>>) {
        if let Some(shadow) = &shadow {
            for (id, pair) in (0..).zip(&self.pairs).skip(1) {
                if pair.sq_entries.load(Ordering::Acquire) != 0 {
                    shadow.tail(id).0.store(self.tail(id).to_le(), Ordering::SeqCst);
                }
                if pair.cq_entries.load(Ordering::Acquire) != 0 {
                    shadow.head(id).0.store(self.head(id).to_le(), Ordering::SeqCst);
                }
            }
        }
        let before = {
            let mut place = self.shadow.lock();
            let before = std::mem::replace(&mut *place, shadow);
            self.epoch.fetch_add(1, Ordering::Release);
            before
        };
        drop(before);
        // Sleeping threads look where tails are now.
        self.ring_all();
    }
}
