//! Commands that the controller is asked to abort. Nobody waits for its answers: other commands go on meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use super::NvmeQueue;
use super::flight::Stage;
use crate::nvme::admin::Target;

/// Commands by their identifiers.
#[derive(Default)]
pub(super) struct Abortions {
    /// Are to be asked for.
    wanted: VecDeque<u16>,
    /// Are asked for, and not answered. Nothing else gets the identifier before, for the controller would abort that.
    asked: Vec<u16>,
}

impl Abortions {
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.asked.is_empty()
    }

    pub(super) fn want(&mut self, id: u16) {
        self.wanted.push_back(id);
    }

    /// Whether the controller may yet abort what has this identifier.
    pub(super) fn keeps(&self, id: u16) -> bool {
        self.asked.contains(&id)
    }
}

impl NvmeQueue {
    /// Asks for what is wanted, as far as the controller takes it now, and sees what has been answered.
    pub(super) fn look_at_abortions(&mut self) {
        if self.abortions.is_empty() {
            return;
        }
        let queue = self.ring.place().queue;
        while let Some(id) = self.abortions.wanted.front().copied() {
            let command = self.commands[usize::from(id)].as_ref();
            // It may have ended by itself.
            if command.is_some_and(|command| matches!(command.stage, Stage::Aborted(_) | Stage::Cancelled(_)))
                && !self.abortions.asked.contains(&id)
            {
                if !self.controller.abort(self.generation, Target { queue, id }) {
                    break;
                }
                self.abortions.asked.push(id);
            }
            self.abortions.wanted.pop_front();
        }
        let (controller, commands, free) = (&self.controller, &self.commands, &mut self.free_commands);
        self.abortions.asked.retain(|id| {
            let open = controller.is_aborting(Target { queue, id: *id });
            if !open && commands[usize::from(*id)].is_none() {
                free.push(*id);
            }
            open
        });
    }

    /// Waits until nothing of this queue can be aborted any more, for its number goes to another.
    pub(super) fn settle_abortions(&mut self) {
        while !self.abortions.is_empty()
            && self.generation == self.controller.generation()
            && !self.controller.is_lost()
        {
            self.look_at_abortions();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The controller has forgotten all commands, and what it was asked to abort.
    pub(super) fn forget_abortions(&mut self) {
        for id in std::mem::take(&mut self.abortions).asked {
            if self.commands[usize::from(id)].is_none() {
                self.free_commands.push(id);
            }
        }
    }
}
