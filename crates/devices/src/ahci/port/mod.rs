//! A port: its registers, which vCPUs and its thread share, and the device that is plugged in.

mod engine;
mod state;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use disk::PreparedQueue;
use memory::Ram;
use parking_lot::{Condvar, Mutex, MutexGuard};
use virtio::Worker;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::atapi::Tray;
use super::device::Device;
use super::hba::Hba;
use super::registers::port as reg;
use engine::PortEngine;
pub(super) use state::{Ending, PortState, Taken};

/// How long a disk may take to end what is under way when its device goes.
pub(super) const REMOVAL_LIMIT: Duration = Duration::from_secs(5);

/// What vCPUs and a port's thread share.
pub(super) struct PortShared {
    index: u8,
    hba: Arc<Hba>,
    state: Mutex<PortState>,
    /// Told when the last stale command has ended.
    idle: Condvar,
    /// Wakes the thread. It blocks readers, which only a thread without a disk is.
    kick: EventFd,
    /// The thread sleeps, or is about to and looks once more before.
    asleep: AtomicBool,
}

impl PortShared {
    pub fn hba(&self) -> &Hba {
        &self.hba
    }

    /// Looks at the registers, or changes them: in one step for everybody else, interrupt included.
    pub fn change<R>(&self, change: impl FnOnce(&mut PortState, Option<&Ram>) -> R) -> R {
        let mut state = self.state();
        let (resetting, wanted) = (state.is_resetting(), state.wants_interrupt());
        let result = change(&mut state, self.hba.reach());
        self.show(&state);
        if state.is_resetting() != resetting {
            self.hba.set_resetting(self.index, !resetting);
        }
        if state.wants_interrupt() != wanted {
            self.hba.want(self.index, !wanted);
        }
        if resetting && state.is_idle() {
            self.idle.notify_all();
        }
        result
    }

    /// The next command to carry out, if the controller may reach memory.
    pub fn take(&self) -> Option<Taken> {
        self.change(|state, ram| ram.and_then(|_| state.take()))
    }

    /// Whether there is a command to take.
    pub fn has_work(&self) -> bool {
        let state = self.state();
        state.has_work() && self.hba.reach().is_some()
    }

    /// The thread is about to sleep, or has slept. Commands issued before are found by [`Self::has_work`] from now
    /// on; those issued after kick.
    pub fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::SeqCst);
    }

    fn show(&self, state: &PortState) {
        for register in PortState::REGISTERS {
            self.hba.show(self.index, register, state.read(register));
        }
    }

    fn kick(&self) {
        // The only failure is a counter at its limit, which wakes the thread as well.
        self.kick.write(1).ok();
    }

    fn state(&self) -> MutexGuard<'_, PortState> {
        self.state.lock()
    }
}

/// A device that is ready to be plugged in.
pub(super) struct Pluggable {
    /// For messages and the thread.
    pub name: String,
    pub device: Device,
    pub queue: Option<PreparedQueue>,
    /// Of a drive.
    pub tray: Option<Arc<Tray>>,
}

/// What is behind a port.
enum Seat {
    Empty,
    Taken {
        worker: Worker,
        tray: Option<Arc<Tray>>,
    },
    /// For the guest the device is gone; its thread waits for its disk.
    Leaving(Worker),
}

/// Why nothing was plugged in.
pub(super) enum PlugError {
    /// There is a device already.
    Occupied,
    /// The device before has not let go.
    Leaving,
    /// No thread could be started.
    Thread(io::Error),
}

/// What became of a device that was to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unplugged {
    /// It is gone.
    Gone,
    /// It is gone for the guest, but its disk does not answer.
    Leaving,
    /// There was none.
    Missing,
}

/// A port of the controller.
pub(super) struct Port {
    shared: Arc<PortShared>,
    seat: Mutex<Seat>,
}

impl Port {
    pub fn new(index: u8, hba: Arc<Hba>) -> io::Result<Port> {
        let kick = EventFd::new(EFD_CLOEXEC)?;
        let (state, idle) = (Mutex::new(PortState::new()), Condvar::new());
        let asleep = AtomicBool::new(false);
        let shared = Arc::new(PortShared { index, hba, state, idle, kick, asleep });
        shared.change(|_, _| {});
        Ok(Port { shared, seat: Mutex::new(Seat::Empty) })
    }

    /// A vCPU writes a register.
    pub fn write(&self, register: u64, value: u32) {
        self.shared.change(|state, ram| state.write(register, value, ram));
        let wakes = match register {
            // A thread that is awake looks for commands before it sleeps.
            reg::CI => self.shared.asleep.load(Ordering::SeqCst),
            reg::CMD | reg::SCTL => true,
            _ => false,
        };
        if wakes {
            self.shared.kick();
        }
    }

    /// Begins a reset of the port and of what is behind it.
    pub fn reset(&self) {
        self.shared.change(PortState::reset);
        self.shared.kick();
    }

    /// Brings the port into the state after power-on, with nothing under way. False when the disk has not ended what
    /// is under way in so long: then the port is still in its reset.
    #[must_use]
    pub fn power_on(&self, patience: Duration) -> bool {
        self.reset();
        let mut state = self.shared.state();
        self.shared.idle.wait_while_for(&mut state, |state| !state.is_idle(), patience);
        let idle = state.is_idle();
        drop(state);
        if idle {
            self.shared.change(|state, _| state.power_on());
        }
        idle
    }

    /// Returns when no vCPU writes to guest memory any more that began before bus mastering was switched off.
    pub fn wait_for_writers(&self) {
        drop(self.shared.state());
    }

    /// The thread looks again at what there is to do.
    pub fn look_again(&self) {
        self.shared.kick();
    }

    /// Plugs a device in.
    pub fn plug(&self, pluggable: Pluggable) -> Result<(), PlugError> {
        let mut seat = self.seat();
        match &*seat {
            Seat::Taken { .. } => return Err(PlugError::Occupied),
            Seat::Leaving(worker) if !worker.has_ended() => return Err(PlugError::Leaving),
            Seat::Leaving(_) | Seat::Empty => {}
        }
        let pass = self.shared.hba.gate().pass(&self.shared.kick).map_err(PlugError::Thread)?;
        let Pluggable { name, device, queue, tray } = pluggable;
        let (shared, signature) = (self.shared.clone(), device.signature());
        let body = move |stop| PortEngine::run(shared, device, queue, stop, &pass);
        // The device is there before its thread, which takes it away when it cannot go on.
        self.shared.change(|state, ram| state.plug(Some(signature), ram));
        match Worker::spawn(format!("ahci-{name}"), &self.shared.kick, body) {
            Ok(worker) => {
                *seat = Seat::Taken { worker, tray };
                Ok(())
            }
            Err(why) => {
                self.shared.change(|state, ram| state.plug(None, ram));
                Err(PlugError::Thread(why))
            }
        }
    }

    /// Takes the device away, and waits for what is under way, but not for ever.
    pub fn unplug(&self) -> Unplugged {
        self.unplug_within(REMOVAL_LIMIT)
    }

    fn unplug_within(&self, patience: Duration) -> Unplugged {
        let mut seat = self.seat();
        let worker = match std::mem::replace(&mut *seat, Seat::Empty) {
            Seat::Empty => return Unplugged::Missing,
            Seat::Taken { worker, .. } => {
                self.shared.change(|state, ram| state.plug(None, ram));
                worker
            }
            Seat::Leaving(worker) => worker,
        };
        if worker.ends_within(patience) {
            return Unplugged::Gone;
        }
        *seat = Seat::Leaving(worker);
        Unplugged::Leaving
    }

    /// Asks the thread to end, without waiting.
    pub fn stop(&self) {
        match &*self.seat() {
            Seat::Taken { worker, .. } | Seat::Leaving(worker) => worker.stop(),
            Seat::Empty => {}
        }
    }

    /// Takes the device away for good. A thread whose disk does not answer in so long is left behind, with its share
    /// in RAM and disk.
    pub fn end(&self, patience: Duration) {
        if self.unplug_within(patience) != Unplugged::Leaving {
            return;
        }
        let PortShared { hba, index, .. } = &*self.shared;
        hba.host_failed(&format_args!(
            "port {index}: the disk does not end what is under way. Its thread is left behind; see the host's log."
        ));
        if let Seat::Leaving(worker) = std::mem::replace(&mut *self.seat(), Seat::Empty) {
            worker.leave();
        }
    }

    /// The tray, if there is a drive.
    pub fn tray(&self) -> Option<Arc<Tray>> {
        match &*self.seat() {
            Seat::Taken { tray, .. } => tray.clone(),
            Seat::Empty | Seat::Leaving(_) => None,
        }
    }

    fn seat(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock()
    }
}

impl Drop for Port {
    /// Of a controller that was never made; others have ended their ports ([`Port::end`]).
    fn drop(&mut self) {
        self.end(REMOVAL_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ahci::registers::host;
    use memory::{Gpa, GpaRange};
    use pci::fake::FakeServices;
    use pci::{Address, Pin, Services};

    #[test]
    fn a_reset_does_not_wait_for_ever_for_a_command() {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 0x10000).unwrap()]).unwrap());
        let at = Address::new(0, 3, 0).unwrap();
        let line = Arc::new(FakeServices::default()).line(at, Pin::A);
        let hba = Arc::new(Hba::new("ahci".into(), 1, ram, line, Arc::new(|_| {})).unwrap());
        let resetting = |hba: &Hba| hba.shown().load(host::GHC) & host::GHC_RESET != 0;
        hba.gate().open();
        let port = Port::new(0, hba.clone()).unwrap();
        port.shared.change(|state, ram| state.plug(Some(crate::ahci::fis::Signature::Ata), ram));
        for (register, value) in [(reg::CMD, reg::CMD_START), (reg::CI, 1)] {
            port.write(register, value);
        }
        let taken = port.shared.take().unwrap();
        assert!(!port.power_on(Duration::from_millis(20)));
        assert!(resetting(&hba));
        port.shared.change(|state, ram| state.complete(taken.slot, Ending::Silent, 0, ram));
        assert!(port.power_on(Duration::from_millis(20)) && !resetting(&hba));
    }
}
