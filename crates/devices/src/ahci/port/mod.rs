//! A port: its registers, which vCPUs and its thread share, and the device that is plugged in.

mod engine;
mod state;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use disk::PreparedQueue;
use memory::Ram;
use virtio::Worker;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::atapi::Tray;
use super::device::Device;
use super::hba::Hba;
use super::registers::port as reg;
use engine::PortEngine;
pub(super) use state::{Ending, PortState, Taken};

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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A device that is plugged in.
struct Plugged {
    tray: Option<Arc<Tray>>,
    /// Stops the thread when dropped.
    _worker: Worker,
}

/// Why nothing was plugged in.
pub(super) enum PlugError {
    /// There is a device already.
    Occupied,
    /// No thread could be started.
    Thread(io::Error),
}

/// A port of the controller.
pub(super) struct Port {
    shared: Arc<PortShared>,
    plugged: Mutex<Option<Plugged>>,
}

impl Port {
    pub fn new(index: u8, hba: Arc<Hba>) -> io::Result<Port> {
        let kick = EventFd::new(EFD_CLOEXEC)?;
        let (state, idle) = (Mutex::new(PortState::new()), Condvar::new());
        let asleep = AtomicBool::new(false);
        let shared = Arc::new(PortShared { index, hba, state, idle, kick, asleep });
        shared.change(|_, _| {});
        Ok(Port { shared, plugged: Mutex::default() })
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

    /// Brings the port into the state after power-on, with nothing under way.
    pub fn power_on(&self) {
        self.reset();
        let mut state = self.shared.state();
        while !state.is_idle() {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.shared.change(|state, _| state.power_on());
    }

    /// The thread looks again at what there is to do.
    pub fn look_again(&self) {
        self.shared.kick();
    }

    /// Plugs a device in.
    pub fn plug(&self, pluggable: Pluggable) -> Result<(), PlugError> {
        let mut plugged = self.plugged();
        if plugged.is_some() {
            return Err(PlugError::Occupied);
        }
        let Pluggable { name, device, queue, tray } = pluggable;
        let (shared, signature) = (self.shared.clone(), device.signature());
        let body = move |stop| PortEngine::run(shared, device, queue, &stop);
        // The device is there before its thread, which takes it away when it cannot go on.
        self.shared.change(|state, ram| state.plug(Some(signature), ram));
        match Worker::spawn(format!("ahci-{name}"), &self.shared.kick, body) {
            Ok(worker) => {
                *plugged = Some(Plugged { tray, _worker: worker });
                Ok(())
            }
            Err(why) => {
                self.shared.change(|state, ram| state.plug(None, ram));
                Err(PlugError::Thread(why))
            }
        }
    }

    /// Takes the device away, and waits for what is under way. Returns whether there was one.
    pub fn unplug(&self) -> bool {
        let mut plugged = self.plugged();
        if plugged.is_some() {
            self.shared.change(|state, ram| state.plug(None, ram));
        }
        plugged.take().is_some()
    }

    /// The tray, if there is a drive.
    pub fn tray(&self) -> Option<Arc<Tray>> {
        self.plugged().as_ref()?.tray.clone()
    }

    fn plugged(&self) -> MutexGuard<'_, Option<Plugged>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.unplug();
    }
}
