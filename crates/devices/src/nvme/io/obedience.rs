//! How the threads of a submission queue obey bus mastering.

use std::fmt;

use disk::{DiskQueue, Event, WaitError};
use memory::GpaRange;
use pci::Pass;

use super::executor::Executor;
use super::queue::Stop;
use crate::aside::{self, Obedient, Then};

/// An executor on its thread, with what ends that.
struct OnThread<'a> {
    executor: &'a mut Executor,
    stop: &'a Stop,
}

impl Executor {
    /// Ends what is under way while the driver switches bus mastering off, and waits until it is on again or the thread is
    /// to end.
    pub(super) fn step_aside(&mut self, stop: &Stop, pass: &Pass) -> Result<Then, WaitError> {
        aside::step_aside(&mut OnThread { executor: self, stop }, pass)
    }
}

impl Obedient for OnThread<'_> {
    type Error = WaitError;

    fn disk(&mut self) -> Option<(&mut DiskQueue, &mut Vec<Event>)> {
        Some(self.executor.disk())
    }

    fn answer(&mut self) -> Result<(), WaitError> {
        self.executor.reap();
        self.executor.post();
        Ok(())
    }

    fn is_to_end(&self) -> bool {
        self.stop.abandons()
    }

    /// A queue that is deleted ends what is under way first.
    fn may_end(&self) -> bool {
        self.stop.abandons() || self.stop.finishes()
    }

    fn reads(&self) -> Vec<GpaRange> {
        self.executor.reads().collect()
    }

    fn report(&self, what: &dyn fmt::Display) {
        self.executor.report(what);
    }
}
