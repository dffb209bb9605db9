//! Completion queues (4.1, 4.6): shared by the threads of all submission queues that report to them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use memory::{Gpa, OutsideRam, Ram};
use parking_lot::Mutex;
use pci::Gate;
use zerocopy::IntoBytes;

use super::doorbells::{Doorbells, Shadow};
use super::interrupts::{Interrupts, Route};
use super::ring::Held;
use super::spec::{Completion, Status};
use super::waker::Waker;

/// Bytes of an entry.
const ENTRY: usize = size_of::<Completion>();

/// An answer that waits to be posted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) cid: u16,
    pub(super) status: Status,
    /// Dword 0 of the completion.
    pub(super) result: u32,
}

/// The status field of an answer: only a few failures may pass when the driver tries again.
pub(super) fn field(status: Status) -> u16 {
    match status {
        Status::SUCCESS
        | Status::INTERNAL_ERROR
        | Status::ABORT_REQUESTED
        | Status::SQ_DELETED
        | Status::CAPACITY_EXCEEDED => status.0,
        _ => status.do_not_retry().0,
    }
}

/// What a completion queue is made of, beside its place.
pub(super) struct Context {
    pub(super) doorbells: Arc<Doorbells>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) gate: Gate,
    /// The controller's thread, which sends interrupts that were held back.
    pub(super) waker: Waker,
}

struct State {
    /// The next entry to write.
    tail: u32,
    phase: u16,
    /// The head as last seen.
    head: u32,
    epoch: u32,
    shadow: Option<Arc<Shadow>>,
    /// The head behind which the driver was last asked for a doorbell.
    asked: u32,
    route_epoch: u32,
    route: Route,
    /// Entries posted without an interrupt, and when one is due for them.
    held_back: u32,
    due: Option<Instant>,
}

/// A completion queue.
pub(super) struct CompletionQueue {
    id: u16,
    entries: u32,
    /// Its interrupt vector, if it has interrupts.
    vector: Option<u16>,
    memory: Held,
    context: Context,
    /// The tail, for those who want to know whether there is something for the driver.
    published: AtomicU32,
    state: Mutex<State>,
}

impl CompletionQueue {
    /// A queue of `entries` (at least 2) at a page, at its beginning; the doorbells know it already.
    pub(super) fn new(
        id: u16,
        ram: &Arc<Ram>,
        at: Gpa,
        entries: u32,
        vector: Option<u16>,
        context: Context,
    ) -> Result<CompletionQueue, OutsideRam> {
        let memory = Held::new(ram, at, u64::from(entries) * ENTRY as u64)?;
        let (epoch, shadow) = context.doorbells.shadow();
        let state = State {
            tail: 0,
            phase: 1,
            head: 0,
            epoch,
            shadow: shadow.filter(|_| id != 0),
            asked: 0,
            route_epoch: context.interrupts.epoch().wrapping_sub(1),
            route: Route::Nowhere,
            held_back: 0,
            due: None,
        };
        let published = AtomicU32::new(0);
        Ok(CompletionQueue { id, entries, vector, memory, context, published, state: Mutex::new(state) })
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// Posts as many answers as there is room for, and sends one interrupt for all of them. What is left waits for
    /// the driver to take entries; then submission queue `sq` is woken.
    pub(super) fn post(&self, answers: &mut VecDeque<Answer>, sq: u16, sq_head: u16) {
        if answers.is_empty() {
            return;
        }
        let state = &mut *self.state.lock();
        if self.context.gate.is_shut() {
            // Threads wake when it opens.
            return;
        }
        let mut posted = 0;
        while let Some(answer) = answers.front() {
            if !self.has_room(state) && !self.makes_room(state, sq) {
                break;
            }
            self.write(state, answer, sq, sq_head);
            answers.pop_front();
            posted += 1;
        }
        if posted == 0 {
            return;
        }
        self.published.store(state.tail, Ordering::SeqCst);
        self.keep_heads_quiet(state);
        self.interrupt(state, posted);
    }

    fn has_room(&self, state: &State) -> bool {
        (state.tail + 1) % self.entries != state.head
    }

    /// Looks whether the driver has taken entries; if not, it is asked to say so.
    fn makes_room(&self, state: &mut State, sq: u16) -> bool {
        self.read_head(state);
        if self.has_room(state) {
            return true;
        }
        self.context.doorbells.wait_for_room(self.id, sq);
        if let Some(shadow) = &state.shadow {
            state.asked = state.head;
            shadow.head(self.id).1.store(state.head.to_le(), Ordering::Relaxed);
        }
        // The wish must be visible before the head is read once more.
        fence(Ordering::SeqCst);
        self.read_head(state);
        self.has_room(state)
    }

    fn read_head(&self, state: &mut State) {
        let doorbells = &self.context.doorbells;
        if state.epoch != doorbells.epoch() {
            let (epoch, shadow) = doorbells.shadow();
            (state.epoch, state.shadow) = (epoch, shadow.filter(|_| self.id != 0));
        }
        let head = match &state.shadow {
            Some(shadow) => u32::from_le(shadow.head(self.id).0.load(Ordering::Acquire)),
            None => doorbells.head(self.id),
        };
        if head < self.entries {
            state.head = head;
        } else {
            doorbells.nonsense();
        }
    }

    fn write(&self, state: &mut State, answer: &Answer, sq: u16, sq_head: u16) {
        let entry = Completion {
            result: answer.result.into(),
            sq_head: sq_head.into(),
            sq_id: sq.into(),
            ..Completion::default()
        };
        let place = state.tail as usize * ENTRY;
        let slice = self.memory.slice();
        slice.sub(place, 12).expect("the tail is inside the queue").write(entry.as_bytes());
        let last = slice.atomic_u32(place + 12).expect("entries are aligned");
        let status = u32::from(field(answer.status) << 1 | state.phase);
        // Release: the entry is whole before its phase says so.
        last.store((u32::from(answer.cid) | status << 16).to_le(), Ordering::Release);
        state.tail += 1;
        if state.tail == self.entries {
            (state.tail, state.phase) = (0, state.phase ^ 1);
        }
    }

    /// While there is room nobody needs to know of heads, except for the interrupt pin, which goes down when the
    /// driver has taken everything.
    fn keep_heads_quiet(&self, state: &mut State) {
        if state.shadow.is_none() && state.epoch == self.context.doorbells.epoch() {
            return;
        }
        let by_pin = matches!(state.route, Route::Line) && self.vector.is_some();
        let used = (state.tail + self.entries - state.asked) % self.entries;
        if by_pin || used >= self.entries / 2 {
            self.read_head(state);
            let Some(shadow) = &state.shadow else { return };
            let behind = if by_pin { 0 } else { 1 };
            state.asked = (state.head + self.entries - behind) % self.entries;
            shadow.head(self.id).1.store(state.asked.to_le(), Ordering::SeqCst);
        }
    }

    fn interrupt(&self, state: &mut State, posted: u32) {
        let Some(vector) = self.vector else { return };
        if let Some((threshold, time)) = self.context.interrupts.patience(vector) {
            state.held_back += posted;
            if state.held_back < threshold {
                if state.due.is_none() {
                    state.due = Some(Instant::now() + time);
                    self.context.waker.wake();
                }
                return;
            }
        }
        self.send(state, vector);
    }

    fn send(&self, state: &mut State, vector: u16) {
        (state.held_back, state.due) = (0, None);
        let interrupts = &self.context.interrupts;
        if state.route_epoch != interrupts.epoch() {
            // A vector that cannot be had was refused when the queue was made, or is lost with a message to people.
            (state.route_epoch, state.route) = interrupts.route(vector).unwrap_or_default();
            self.keep_heads_quiet(state);
        }
        match &state.route {
            Route::Nowhere => {}
            // The only failure is a counter at its limit: then the interrupt is pending already.
            Route::Vector(vector) => drop(vector.eventfd().write(1)),
            Route::Line => interrupts.set_pin(self.id, || self.has_entries(state.shadow.as_deref())),
        }
    }

    fn has_entries(&self, shadow: Option<&Shadow>) -> bool {
        let head = match shadow {
            Some(shadow) => u32::from_le(shadow.head(self.id).0.load(Ordering::SeqCst)),
            None => self.context.doorbells.head(self.id),
        };
        self.published.load(Ordering::SeqCst) != head
    }

    /// The driver has moved the head.
    pub(super) fn head_moved(&self) {
        let shadow = self.context.doorbells.shadow().1.filter(|_| self.id != 0);
        self.context.interrupts.set_pin(self.id, || self.has_entries(shadow.as_deref()));
    }

    /// Sends an interrupt that was held back long enough; returns how long one still may wait.
    pub(super) fn send_due(&self, now: Instant) -> Option<Duration> {
        let state = &mut *self.state.lock();
        let (due, vector) = (state.due?, self.vector?);
        if due <= now {
            self.send(state, vector);
            return None;
        }
        Some(due - now)
    }

    /// Sends an interrupt that is held back, if one is.
    pub(super) fn send_held(&self) {
        let state = &mut *self.state.lock();
        if let (Some(_), Some(vector)) = (state.due, self.vector) {
            self.send(state, vector);
        }
    }
}
