//! Where the queues of a disk and the VM's owner meet.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

use super::failed::Failure;
use super::policy::{Answer, ErrorPolicy};
use super::rate::Rate;

/// Where people are told of failures, at a bounded rate. A [`Answer::Held`] one only asks for a pause of the VM: whoever
/// gets it calls [`Failures::pause`], and tells people of what that returns. Until then, or until all that is held has
/// been tried again ([`Failures::retry`]) or given up, no further one asks. Called on a queue's thread, so it may not
/// wait.
pub type TellFailure = Box<dyn Fn(Failure) + Send + Sync>;

/// Requests that wait to be tried again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// How many.
    pub count: u64,
    /// The one that failed first.
    pub first: Failure,
}

/// The failures of a disk: what is done about them, and the requests that are held because of them.
///
/// Until a policy is given, every failure is the guest's alone ([`crate::Disk::answer_failures`]).
#[derive(Default)]
pub struct Failures {
    owner: OnceLock<Owner>,
    /// Goes up when held requests are to leave: all queues look at [`State::order`] then.
    calls: AtomicU64,
    state: Mutex<State>,
    /// Fewer are leaving.
    left: Condvar,
}

/// What is done, and who is told.
pub(crate) struct Owner {
    pub(crate) policy: ErrorPolicy,
    pub(crate) tell: TellFailure,
}

/// What becomes of requests that fail and are to be held, and of those that are.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Order {
    /// They are held, and tried again when it is their time to leave.
    #[default]
    Hold,
    /// The guest sees their errors.
    GiveUp,
}

/// What the VM's owner knows of what is held.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Pause {
    /// Nothing.
    #[default]
    Unasked,
    /// That it should look for it.
    Asked,
    /// What the first is, for which the VM is paused.
    Made,
}

#[derive(Default)]
struct State {
    order: Order,
    /// Requests that wait for the next call.
    held: u64,
    /// The first of these.
    first: Option<Failure>,
    pause: Pause,
    /// Requests that were called and have not ended yet.
    leaving: u64,
    rate: Rate,
    /// The eventfds that wake queues, with the queues' numbers.
    bells: Vec<(u64, EventFd)>,
    last_queue: u64,
}

/// What a queue knows when one of its requests fails.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// The call that the queue has answered last, if it holds anything.
    pub(super) answered: Option<u64>,
    /// The request had been held before and was tried again.
    pub(super) again: bool,
    /// The request can be held.
    pub(super) can_wait: bool,
}

impl Failures {
    pub(crate) fn set_owner(&self, owner: Owner) {
        // The first one stays: it was told of failures already.
        self.owner.set(owner).ok();
    }

    pub(crate) fn have_an_owner(&self) -> bool {
        self.owner.get().is_some()
    }

    /// Has everything that is held tried again. [`Failures::settle`] waits for what becomes of it.
    pub fn retry(&self) {
        self.call(Order::Hold);
    }

    /// Ends everything that is held, and whatever fails from now on, with its error. Call it before queues are reset
    /// or taken apart, which might wait for what is held.
    pub fn give_up(&self) {
        self.call(Order::GiveUp);
    }

    /// After [`Failures::give_up`]: failed requests may be held again.
    pub fn hold_again(&self) {
        self.lock().order = Order::Hold;
    }

    /// Waits until what was held before the last [`Failures::retry`] or [`Failures::give_up`] has ended or is held again,
    /// but no longer than until `deadline`. Returns whether it has.
    pub fn settle(&self, deadline: Instant) -> bool {
        let patience = deadline.saturating_duration_since(Instant::now());
        let mut state = self.lock();
        self.left.wait_while_for(&mut state, |state| state.leaving > 0, patience);
        state.leaving == 0
    }

    /// After a pause was asked for: what the VM is to be paused for. `None` when nothing waits any more, for its driver
    /// or the machine was reset, or when the VM is paused for it already. A request that ended in that way is told of
    /// as [`Answer::Reported`] instead.
    pub fn pause(&self) -> Option<Failure> {
        let mut state = self.lock();
        let asked = state.pause == Pause::Asked;
        let waits = state.first.clone().filter(|_| asked);
        if asked {
            state.pause = if waits.is_some() { Pause::Made } else { Pause::Unasked };
        }
        waits
    }

    /// What waits to be tried again.
    pub fn waiting(&self) -> Option<Waiting> {
        let state = self.lock();
        state.first.clone().map(|first| Waiting { count: state.held, first })
    }

    /// When [`Failures::tell_due`] may have something to tell; `None` while nothing fails.
    pub fn due(&self) -> Option<Instant> {
        self.lock().rate.due()
    }

    /// Tells how many requests have failed of which nobody was told, if it is time to.
    pub fn tell_due(&self, now: Instant) {
        let told = self.lock().rate.at(now);
        self.tell(told);
    }

    /// Tells how many requests have failed of which nobody was told.
    pub fn tell_rest(&self) {
        let told = self.lock().rate.rest();
        self.tell(told);
    }

    fn tell(&self, failure: Option<Failure>) {
        if let Some((failure, owner)) = failure.zip(self.owner.get()) {
            (owner.tell)(failure);
        }
    }

    fn call(&self, order: Order) {
        let mut state = self.lock();
        state.order = order;
        let first = state.first.take();
        let unheard = state.pause == Pause::Asked && order == Order::GiveUp;
        state.pause = Pause::Unasked;
        let told = first.filter(|_| unheard).and_then(|first| state.not_held(first));
        state.leaving += std::mem::take(&mut state.held);
        self.calls.fetch_add(1, Ordering::Release);
        // A counter that is full is readable already.
        state.bells.iter().for_each(|(_, bell)| bell.write(1).unwrap_or_default());
        drop(state);
        self.tell(told);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// A request was held that ends before the VM was paused for it. Returns what people are told now.
    fn not_held(&mut self, failure: Failure) -> Option<Failure> {
        self.rate.note(Failure { answer: Answer::Reported, ..failure }, Instant::now())
    }
}

/// The queues' side.
impl Failures {
    /// A queue that is woken by `bell`; its number.
    pub(super) fn register(&self, bell: EventFd) -> u64 {
        let mut state = self.lock();
        state.last_queue += 1;
        let number = state.last_queue;
        state.bells.push((number, bell));
        number
    }

    /// A queue ends.
    pub(super) fn unregister(&self, number: u64) {
        self.lock().bells.retain(|(other, _)| *other != number);
    }

    /// Requests of a queue end unheard: so many that are held, since its last `answered` call, and so many that were
    /// tried again and are under way.
    pub(super) fn withdraw(&self, held: u64, leaving: u64, answered: u64) {
        let mut state = self.lock();
        if self.calls() == answered {
            state.held -= held;
            state.leaving -= leaving;
        } else {
            state.leaving -= held + leaving;
        }
        let first = if state.held == 0 { state.first.take() } else { None };
        let told = match (first, state.pause) {
            (Some(_), Pause::Made) => {
                state.pause = Pause::Unasked;
                None
            }
            // The owner has yet to look, and finds this gone, or another in its place.
            (Some(first), Pause::Asked | Pause::Unasked) => state.not_held(first),
            (None, _) => None,
        };
        self.left.notify_all();
        drop(state);
        self.tell(told);
    }

    /// The number of the latest call.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Acquire)
    }

    /// What those who are called do.
    pub(super) fn order(&self) -> (u64, Order) {
        let state = self.lock();
        (self.calls(), state.order)
    }

    /// So many requests that were called have ended.
    pub(super) fn have_left(&self, count: u64) {
        self.lock().leaving -= count;
        self.left.notify_all();
    }

    /// A request failed. Returns what becomes of it, and the call that is the latest then: if it is held, it was held
    /// after that call.
    pub(super) fn failed(&self, mut failure: Failure, at: At) -> (Answer, u64) {
        let mut state = self.lock();
        if at.again {
            state.leaving -= 1;
            self.left.notify_all();
        }
        let Some(owner) = self.owner.get() else { return (Answer::Reported, self.calls()) };
        let calls = self.calls();
        failure.answer = match owner.policy.answer(failure.operation, failure.error) {
            Answer::Held if state.order == Order::GiveUp || !at.can_wait => Answer::Reported,
            answer => answer,
        };
        let answer = failure.answer;
        let told = match answer {
            // The queue was called and has not heard it yet: the request goes with the others.
            Answer::Held if at.answered.is_some_and(|answered| answered != calls) => {
                state.leaving += 1;
                None
            }
            Answer::Held => {
                state.held += 1;
                let asks = state.first.is_none() && state.pause != Pause::Asked;
                let first = state.first.get_or_insert(failure).clone();
                asks.then(|| {
                    state.pause = Pause::Asked;
                    first
                })
            }
            Answer::Reported | Answer::Ignored => state.rate.note(failure, Instant::now()),
        };
        drop(state);
        self.tell(told);
        (answer, calls)
    }
}
