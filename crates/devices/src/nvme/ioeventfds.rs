//! Doorbells as eventfds, which spare the vCPU its way here.
//!
//! An eventfd says that a doorbell was written and not what. So a submission queue's doorbell is registered only while
//! the driver keeps tails in memory (shadow doorbells). Heads of completion queues come to the vCPU always: with
//! shadow doorbells they are written only when a queue was full.

use std::collections::BTreeSet;
use std::sync::Arc;

use memory::Gpa;
use parking_lot::{Mutex, MutexGuard};
use pci::{Address, PciError, Services};

use super::doorbells::Doorbells;
use super::spec::register;

/// Doorbells are written in 32 bits.
const WIDTH: u32 = 4;

#[derive(Default)]
struct State {
    /// Where the registers decode.
    bar: Option<Gpa>,
    /// Submission queues to be registered.
    wanted: BTreeSet<u16>,
    /// What is there now: queue and place. One that could not be removed stays noted.
    registered: Vec<(u16, Gpa)>,
}

pub(super) struct IoEventFds {
    address: Address,
    services: Arc<dyn Services>,
    doorbells: Arc<Doorbells>,
    state: Mutex<State>,
}

impl IoEventFds {
    pub(super) fn new(
        address: Address,
        services: Arc<dyn Services>,
        doorbells: Arc<Doorbells>,
    ) -> IoEventFds {
        IoEventFds { address, services, doorbells, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The registers decode here now.
    pub(super) fn moved(&self, bar: Option<Gpa>) -> Result<(), PciError> {
        let mut state = self.state();
        state.bar = bar;
        self.settle(&mut state)
    }

    /// A queue's doorbell is to be registered.
    pub(super) fn add(&self, queue: u16) -> Result<(), PciError> {
        let mut state = self.state();
        state.wanted.insert(queue);
        self.settle(&mut state)
    }

    /// A queue is gone.
    pub(super) fn remove(&self, queue: u16) -> Result<(), PciError> {
        let mut state = self.state();
        state.wanted.remove(&queue);
        self.settle(&mut state)
    }

    /// All queues are gone.
    pub(super) fn clear(&self) -> Result<(), PciError> {
        let mut state = self.state();
        state.wanted.clear();
        self.settle(&mut state)
    }

    /// Removes what should not be there and adds what should. What fails is named, and tried again the next time; a
    /// doorbell without its wire serves by way of the vCPU.
    fn settle(&self, state: &mut State) -> Result<(), PciError> {
        let State { bar, wanted, registered } = state;
        let place = |queue: u16| bar.map(|bar| Gpa(bar.0 + register::DOORBELLS + u64::from(queue) * 8));
        let mut errors: Vec<PciError> = Vec::new();
        registered.retain(|(queue, at)| {
            if wanted.contains(queue) && place(*queue) == Some(*at) {
                return true;
            }
            let fd = self.doorbells.waker(*queue).eventfd();
            let removed = self.services.remove_doorbell(self.address, *at, WIDTH, fd);
            removed.map_err(|error| errors.push(error.into())).is_err()
        });
        for queue in wanted.iter() {
            let Some(at) = place(*queue) else { continue };
            if registered.contains(&(*queue, at)) {
                continue;
            }
            let fd = self.doorbells.waker(*queue).eventfd();
            match self.services.add_doorbell(self.address, at, WIDTH, fd) {
                Ok(()) => registered.push((*queue, at)),
                Err(error) => errors.push(error.into()),
            }
        }
        PciError::all(errors)
    }
}
