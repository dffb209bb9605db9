//! Asynchronous events (5.2): what happened, until the driver has been told and has looked.

use super::spec::log_page;
use super::waker::Waker;
use parking_lot::{Mutex, MutexGuard};

/// Something that the driver may want to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// It wrote a doorbell of a queue that does not exist.
    NoSuchDoorbell,
    /// It wrote a value to a doorbell that lies outside the queue.
    DoorbellValue,
    /// A disk has become unreliable.
    Reliability,
    /// A namespace is other than before.
    NamespaceChanged,
}

impl Event {
    /// Type, information and log page as in the completion's dword 0 (figure 147).
    pub(super) fn result(self) -> u32 {
        let (kind, information, page) = match self {
            Event::NoSuchDoorbell => (0, 0, log_page::ERROR),
            Event::DoorbellValue => (0, 1, log_page::ERROR),
            Event::Reliability => (1, 0, log_page::HEALTH),
            Event::NamespaceChanged => (2, 0, log_page::CHANGED_NAMESPACES),
        };
        u32::from(page) << 16 | information << 8 | kind
    }

    /// The log page whose reading lets events of this type through again.
    fn page(self) -> u8 {
        (self.result() >> 16) as u8
    }

    /// Its bit in the configuration of events (feature 0Bh); errors are always told.
    fn enable(self) -> u32 {
        match self {
            Event::NoSuchDoorbell | Event::DoorbellValue => u32::MAX,
            Event::Reliability => 1 << 2,
            Event::NamespaceChanged => 1 << 8,
        }
    }
}

#[derive(Default)]
struct State {
    /// What happened and has not been told; each once.
    pending: Vec<Event>,
    /// Log pages that the driver has been sent to and has not read.
    unread: Vec<u8>,
}

/// Events on their way to the driver.
pub(super) struct Events {
    state: Mutex<State>,
    /// The controller's thread.
    waker: Waker,
}

impl Events {
    pub(super) fn new(waker: Waker) -> Events {
        Events { state: Mutex::default(), waker }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn raise(&self, event: Event) {
        let mut state = self.state();
        if !state.pending.contains(&event) {
            state.pending.push(event);
            self.waker.wake();
        }
    }

    /// The next event to tell, given what the driver wants to hear of. What it does not want is forgotten.
    pub(super) fn next(&self, wanted: u32) -> Option<Event> {
        let mut state = self.state();
        state.pending.retain(|event| event.enable() & wanted != 0 || event.enable() == u32::MAX);
        let at = state.pending.iter().position(|event| !state.unread.contains(&event.page()))?;
        let event = state.pending.remove(at);
        state.unread.push(event.page());
        Some(event)
    }

    /// The driver has read a log page.
    pub(super) fn read(&self, page: u8) {
        self.state().unread.retain(|unread| *unread != page);
        self.waker.wake();
    }

    pub(super) fn reset(&self) {
        *self.state() = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_once_until_its_page_has_been_read() {
        let events = Events::new(Waker::new().unwrap());
        for _ in 0..3 {
            events.raise(Event::NamespaceChanged);
        }
        assert_eq!(events.next(1 << 8), Some(Event::NamespaceChanged));
        events.raise(Event::NamespaceChanged);
        assert_eq!(events.next(1 << 8), None);
        events.read(log_page::CHANGED_NAMESPACES);
        assert_eq!(events.next(1 << 8), Some(Event::NamespaceChanged));
    }

    #[test]
    fn notices_that_nobody_wants_are_forgotten_and_errors_are_not() {
        let events = Events::new(Waker::new().unwrap());
        events.raise(Event::Reliability);
        events.raise(Event::DoorbellValue);
        assert_eq!(events.next(0), Some(Event::DoorbellValue));
        assert_eq!(events.next(u32::MAX), None);
    }
}
