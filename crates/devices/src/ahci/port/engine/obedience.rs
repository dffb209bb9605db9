//! How the thread of a port obeys bus mastering.

use std::fmt;

use disk::{DiskQueue, Event, WaitError};
use memory::GpaRange;

use super::PortEngine;
use crate::ahci::port::Ending;
use crate::aside::Obedient;

impl Obedient for PortEngine {
    type Error = WaitError;

    fn disk(&mut self) -> Option<(&mut DiskQueue, &mut Vec<Event>)> {
        self.queue.as_mut().map(|queue| (queue, &mut self.events))
    }

    fn answer(&mut self) -> Result<(), WaitError> {
        self.finish();
        self.tell();
        Ok(())
    }

    fn is_to_end(&self) -> bool {
        self.stop.requested()
    }

    /// Commands that the driver has given up end, for a reset of the port waits for them; and discs come and go.
    fn while_aside(&mut self) -> Result<(), WaitError> {
        let port = self.port.clone();
        let is_awaited = |slot: u8| port.change(|state, _| state.is_awaited(slot));
        if let Some((taken, _)) = self.parked.take_if(|(taken, _)| !is_awaited(taken.slot)) {
            self.end(taken.slot, Ending::Silent);
        }
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Done { tag, buffers, .. } if !is_awaited(tag as u8) => {
                    if let Some((work, lent)) = self.slots[tag as usize].take() {
                        self.stock.end(lent);
                        self.recycle_of(&work, buffers);
                    }
                    self.end(tag as u8, Ending::Silent);
                }
                other => self.events.push(other),
            }
        }
        self.look_at_the_tray();
        Ok(())
    }

    fn sleep(&mut self) {
        // Interrupted or woken: all the same.
        drop(self.port.kick.read());
    }

    fn reads(&self) -> Vec<GpaRange> {
        self.slots.iter().flatten().filter_map(|(work, _)| work.written).collect()
    }

    fn report(&self, what: &dyn fmt::Display) {
        self.port.hba().report(&format_args!("port {}: {what}", self.port.index));
    }
}
