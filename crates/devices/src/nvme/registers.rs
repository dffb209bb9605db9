//! The controller's registers (3.1), and what they order the controller's thread to do.
//!
//! vCPUs only write here and ring; they never wait. The controller's thread looks at the registers as a whole,
//! does what they ask for, and answers in CSTS. A disable is counted, so that a driver which disables and enables
//! faster than the thread looks has still had its reset.

use std::time::Duration;

use memory::Gpa;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::spec::{Capabilities, Configuration, ControllerStatus, PAGE, register};

/// Version 1.4 (VS).
pub(super) const VERSION: u32 = 0x0001_0400;
/// Most entries in a queue (CAP.MQES).
pub(super) const MAX_ENTRIES: u32 = 1024;
/// How long a driver is asked to wait for CSTS.RDY, in units of 500 ms (CAP.TO): a minute.
const TIMEOUT: u64 = 120;
/// MQES, contiguous queues required, time-out, the NVM command set; doorbells four bytes apart, 4 KiB pages.
const CAPABILITIES: u64 = (MAX_ENTRIES as u64 - 1)
    | Capabilities::CONTIGUOUS
    | TIMEOUT << Capabilities::TIMEOUT_SHIFT
    | Capabilities::NVM;
/// CC: what must be 0: command set, page size, arbitration.
const CC_UNSUPPORTED: u32 = 0x7f << 4 | 7 << 11;
/// Bits of CC that can be written.
const CC_WRITABLE: u32 = 0x00ff_fff1;

/// The admin queues as the driver described them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AdminQueues {
    pub(super) submission: Gpa,
    pub(super) submission_entries: u32,
    pub(super) completion: Gpa,
    pub(super) completion_entries: u32,
}

/// Why a controller cannot be enabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NotEnabled {
    #[error("CC is {0:#x}, which asks for a command set, page size or arbitration that CAP does not offer")]
    Configuration(u32),
    #[error("AQA is {0:#x}: admin queues have 2 to 1024 entries")]
    Entries(u32),
    #[error("the admin queue at {0} is not on a page boundary")]
    Alignment(Gpa),
}

/// What the registers ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Order {
    /// How often the controller has been disabled or reset.
    pub(super) epoch: u64,
    pub(super) enabled: bool,
    /// CC.SHN asks for a shutdown that has not been done.
    pub(super) shutdown: bool,
    /// The device goes away.
    pub(super) quit: bool,
}

#[derive(Default)]
struct State {
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    epoch: u64,
    /// The last epoch for which everything has stopped.
    stopped: u64,
    quit: bool,
}

#[derive(Default)]
pub(super) struct Registers {
    state: Mutex<State>,
    /// `stopped` moved.
    idle: Condvar,
}

impl Registers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Reads registers; `masks` is what INTMS and INTMC read as.
    pub(super) fn read(&self, offset: u64, masks: u32, data: &mut [u8]) {
        let state = self.state();
        let mut image = [0; 0x40];
        let mut set = |at: u64, bytes: &[u8]| image[at as usize..][..bytes.len()].copy_from_slice(bytes);
        set(register::CAP, &CAPABILITIES.to_le_bytes());
        set(register::VS, &VERSION.to_le_bytes());
        set(register::INTMS, &masks.to_le_bytes());
        set(register::INTMC, &masks.to_le_bytes());
        set(register::CC, &state.cc.to_le_bytes());
        set(register::CSTS, &state.csts.to_le_bytes());
        set(register::AQA, &state.aqa.to_le_bytes());
        set(register::ASQ, &state.asq.to_le_bytes());
        set(register::ACQ, &state.acq.to_le_bytes());
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| image.get(at)).copied().unwrap_or(0);
        }
    }

    /// Writes 32 bits. Returns whether the controller's thread should look.
    pub(super) fn write(&self, offset: u64, value: u32) -> bool {
        let mut state = self.state();
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            register::CC => {
                let before = std::mem::replace(&mut state.cc, value & CC_WRITABLE);
                if before & Configuration::ENABLED != 0 && value & Configuration::ENABLED == 0 {
                    state.epoch += 1;
                }
                if value & Configuration::SHUTDOWN != 0
                    && before & Configuration::SHUTDOWN == 0
                    && state.csts & ControllerStatus::SHUT_DOWN == 0
                {
                    state.csts |= ControllerStatus::SHUTTING_DOWN;
                }
                return true;
            }
            // Changing the admin queues of an enabled controller is undefined (3.1.8): nothing happens.
            _ if state.cc & Configuration::ENABLED != 0 => {}
            register::AQA => state.aqa = value & 0x0fff_0fff,
            register::ASQ => state.asq = low(state.asq) & !(PAGE - 1),
            _ if offset == register::ASQ + 4 => state.asq = high(state.asq),
            register::ACQ => state.acq = low(state.acq) & !(PAGE - 1),
            _ if offset == register::ACQ + 4 => state.acq = high(state.acq),
            _ => {}
        }
        false
    }

    /// CC.IOSQES and CC.IOCQES as a driver of this controller sets them: 64 and 16 bytes.
    pub(super) fn entry_sizes_fit(&self) -> bool {
        self.state().cc & Configuration::ENTRY_SIZES == Configuration::ENTRIES_OF_64_AND_16
    }

    pub(super) fn order(&self) -> Order {
        let state = self.state();
        Order {
            epoch: state.epoch,
            enabled: state.cc & Configuration::ENABLED != 0 && state.csts & ControllerStatus::FATAL == 0,
            shutdown: state.csts & ControllerStatus::SHUTTING_DOWN != 0,
            quit: state.quit,
        }
    }

    /// The admin queues, if the registers describe any.
    pub(super) fn admin_queues(&self) -> Result<AdminQueues, NotEnabled> {
        let state = self.state();
        if state.cc & CC_UNSUPPORTED != 0 {
            return Err(NotEnabled::Configuration(state.cc));
        }
        let (submission_entries, completion_entries) = ((state.aqa & 0xfff) + 1, (state.aqa >> 16) + 1);
        if !(2..=MAX_ENTRIES).contains(&submission_entries)
            || !(2..=MAX_ENTRIES).contains(&completion_entries)
        {
            return Err(NotEnabled::Entries(state.aqa));
        }
        let (submission, completion) = (Gpa(state.asq), Gpa(state.acq));
        for base in [submission, completion] {
            if !base.0.is_multiple_of(PAGE) {
                return Err(NotEnabled::Alignment(base));
            }
        }
        Ok(AdminQueues { submission, submission_entries, completion, completion_entries })
    }

    /// The controller works.
    pub(super) fn ready(&self, epoch: u64) {
        let mut state = self.state();
        if state.epoch == epoch {
            state.csts |= ControllerStatus::READY;
        }
    }

    /// The controller cannot go on until it is reset.
    pub(super) fn failed(&self, epoch: u64) {
        let mut state = self.state();
        if state.epoch == epoch {
            state.csts |= ControllerStatus::FATAL;
        }
    }

    /// The shutdown is done.
    pub(super) fn shut_down(&self, epoch: u64) {
        let mut state = self.state();
        if state.epoch == epoch {
            state.csts = state.csts & !ControllerStatus::SHUTTING_DOWN | ControllerStatus::SHUT_DOWN;
        }
    }

    /// Everything of the time before `epoch` has stopped.
    pub(super) fn stopped(&self, epoch: u64) {
        let mut state = self.state();
        if state.epoch == epoch && state.stopped != epoch {
            state.csts = 0;
            if state.cc & Configuration::SHUTDOWN != 0 {
                state.csts = ControllerStatus::SHUT_DOWN;
            }
        }
        state.stopped = epoch;
        self.idle.notify_all();
    }

    /// Back to power-on: [`Registers::stops_within`] says when it is done.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        let (epoch, stopped, quit) = (state.epoch + 1, state.stopped, state.quit);
        *state = State { epoch, stopped, quit, csts: state.csts, ..State::default() };
    }

    /// Waits until everything of the time before the last reset has stopped, and no longer than this; whether it has.
    #[must_use]
    pub(super) fn stops_within(&self, patience: Duration) -> bool {
        let runs = |state: &mut State| state.stopped != state.epoch;
        let mut state = self.state();
        self.idle.wait_while_for(&mut state, runs, patience);
        state.stopped == state.epoch
    }

    pub(super) fn quit(&self) {
        let mut state = self.state();
        state.quit = true;
        state.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disable_counts_even_when_an_enable_follows_at_once() {
        let registers = Registers::default();
        registers.write(register::CC, Configuration::ENABLED);
        let before = registers.order();
        registers.write(register::CC, 0);
        registers.write(register::CC, Configuration::ENABLED);
        let after = registers.order();
        assert!(after.enabled);
        assert_eq!(after.epoch, before.epoch + 1);
        registers.ready(before.epoch);
        let mut csts = [0; 4];
        registers.read(register::CSTS, 0, &mut csts);
        assert_eq!(csts, [0; 4], "an answer to the order before counts no more");
    }

    #[test]
    fn admin_queues_do_not_move_while_the_controller_is_enabled() {
        let registers = Registers::default();
        registers.write(register::AQA, 0x001f_001f);
        registers.write(register::ASQ, 0x1000);
        registers.write(register::ACQ + 4, 1);
        registers.write(register::CC, Configuration::ENABLED);
        registers.write(register::ASQ, 0x2000);
        let queues = registers.admin_queues().unwrap();
        assert_eq!((queues.submission, queues.completion), (Gpa(0x1000), Gpa(1 << 32)));
        assert_eq!((queues.submission_entries, queues.completion_entries), (32, 32));
    }
}
