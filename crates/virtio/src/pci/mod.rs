//! A virtio device as a PCI function (VIRTIO 1.2, 4.1), without the legacy interface.
//!
//! BAR 0 holds everything of virtio: the common registers, the ISR status, the device's configuration and one
//! doorbell per queue, which becomes an eventfd that the kernel signals. BAR 2 holds the MSI-X table.

mod common;
mod layout;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ::pci::{
    Address, ConfigSpace, Decoded, DecodedAt, Function, Msix, PciError, Pin, ServiceError, Services, Windows,
    capability, register,
};
use memory::{Gpa, Ram};
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device::VirtioDevice;
use crate::features::Features;
use crate::interrupt::{ConfigChange, Route, Shared};
use crate::reports::Report;
use common::Common;
use layout::{MSIX_BAR, VIRTIO_BAR, Window};

/// How long queues may take to end what is under way when the machine is reset.
const RESET_LIMIT: Duration = Duration::from_secs(30);

/// Features of the transport itself.
const TRANSPORT: Features = Features(Features::VERSION_1.0 | Features::RING_RESET.0);

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    name: String,
    address: Address,
    services: Arc<dyn Services>,
    shared: Arc<Shared>,
    kicks: Vec<EventFd>,
    state: Mutex<State>,
    /// Which doorbells are there now: queue and place. One that could not be removed stays noted.
    doorbells: Mutex<Vec<(usize, Gpa)>>,
}

struct State {
    config: ConfigSpace,
    msix: Msix,
    msix_at: u16,
    /// Where the PCI configuration access capability lies.
    window_at: u16,
    common: Common,
}

impl VirtioPci {
    /// Makes a function for `address` of the device. `report` gets sentences about faults of its driver and
    /// failures of the host.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        address: Address,
        ram: Arc<Ram>,
        services: Arc<dyn Services>,
        windows: &Windows,
        report: Report,
    ) -> Result<VirtioPci, ServiceError> {
        let name = device.name().to_owned();
        let queues = device.queue_sizes().len();
        let kick = || {
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(|cause| ServiceError {
                device: address,
                what: format!("make a doorbell for {name}"),
                cause,
            })
        };
        let kicks: Vec<EventFd> = std::iter::repeat_with(kick).take(queues).collect::<Result<_, _>>()?;
        let line = services.line(address, Pin::of(address));
        let shared = Arc::new(Shared::new(&name, queues, line, report));

        let vectors = queues as u16 + 1;
        let mut msix = Msix::new(address, services.clone(), vectors);
        msix.set_bus_master(false).expect("no vector is there yet");
        let mut config = ConfigSpace::new(layout::identity(device.as_ref()), &layout::bars(vectors), windows);
        config.set(register::INTERRUPT_PIN, &[Pin::of(address) as u8]);
        let (body, writable) =
            msix.capability((MSIX_BAR as u8, 0), (MSIX_BAR as u8, layout::pending_at(vectors)));
        let msix_at = config.add_capability(capability::MSIX, &body, &writable);
        let window_at = layout::add_capabilities(&mut config, queues as u32);

        let common = Common::new(device, ram, shared.clone(), ConfigChange(shared.clone()), &kicks)
            .map_err(|cause| ServiceError { device: address, what: format!("set up {name}"), cause })?;
        let state = Mutex::new(State { config, msix, msix_at, window_at, common });
        let doorbells = Mutex::default();
        Ok(VirtioPci { name, address, services, shared, kicks, state, doorbells })
    }

    /// The driver allows or forbids the device to reach memory. When it is forbidden, this waits until nothing is under way
    /// that does.
    fn set_bus_master(&self, state: &mut State, allowed: bool) -> Result<(), PciError> {
        let gate = self.shared.gate();
        if !allowed && !gate.is_shut() {
            let hung = gate.close();
            if hung > 0 {
                self.shared.reports().host(&format_args!(
                    "bus mastering was switched off, and {hung} of its queues do not stop. What the disk has under way may \
                     still be written to the guest's memory; see the host's log for the disk."
                ));
            }
        }
        // What queues have ended just now is told by message, and what comes later is not.
        let outcome = state.msix.set_bus_master(allowed);
        if allowed {
            gate.open();
        }
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn kick(&self, queue: u64) {
        if let Some(kick) = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue)) {
            // The only failure is a counter at its limit, which wakes the queue as well.
            kick.write(1).ok();
        }
    }

    fn read_virtio(&self, state: &mut State, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Window::at(offset) {
            Some((Window::Common, offset)) => {
                state.common.read(offset, data);
                if let Err(error) = self.route(state) {
                    self.shared.reports().driver(&error);
                }
            }
            Some((Window::Isr, 0)) => data[0] = self.shared.take_isr(),
            Some((Window::Device, offset)) => state.common.device().read_config(offset, data),
            Some((Window::Isr | Window::Notify, _)) | None => {}
        }
    }

    fn write_virtio(&self, state: &mut State, offset: u64, data: &[u8]) -> Result<(), PciError> {
        match Window::at(offset) {
            Some((Window::Common, offset)) => {
                state.common.write(offset, data);
                self.route(state)
            }
            Some((Window::Device, offset)) => {
                state.common.write_config(offset, data);
                Ok(())
            }
            Some((Window::Notify, offset)) => {
                self.kick(offset / layout::NOTIFY_MULTIPLIER);
                Ok(())
            }
            Some((Window::Isr, _)) | None => Ok(()),
        }
    }

    /// Sends interrupts where the driver wants them. A vector that cannot be had reads back as none, which
    /// tells the driver (4.1.5.1.2.1).
    fn route(&self, state: &mut State) -> Result<(), PciError> {
        if !std::mem::take(&mut state.common.vectors_changed) {
            return Ok(());
        }
        let State { msix, common, .. } = state;
        let mut errors = Vec::new();
        let enabled = msix.enabled();
        let mut route = |vector: &mut u16| match msix.vector(usize::from(*vector)) {
            Ok(Some(_)) if !enabled => Route::Line,
            Ok(Some(vector)) => Route::Vector(vector),
            Ok(None) => {
                *vector = layout::NO_VECTOR;
                if enabled { Route::Nowhere } else { Route::Line }
            }
            Err(error) => {
                *vector = layout::NO_VECTOR;
                errors.push(PciError::from(error));
                Route::Nowhere
            }
        };
        let (config, queues) = common.vectors();
        let config = route(config);
        let queues = queues.map(route).collect();
        self.shared.set_routes(config, queues);
        PciError::all(errors)
    }

    /// The PCI configuration access capability (4.1.4.9): which piece of a BAR its data field stands for.
    fn window(state: &State) -> Option<(usize, u64, usize)> {
        let bar = state.config.u32(state.window_at + 4) as u8;
        let offset = u64::from(state.config.u32(state.window_at + 8));
        let len = state.config.u32(state.window_at + 12) as usize;
        let bar = usize::from(bar);
        let size = state.config.bars().iter().find(|spec| spec.index() == bar)?.size();
        let inside = offset.checked_add(len as u64)? <= size;
        (matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64) && inside)
            .then_some((bar, offset, len))
    }

    fn read_state(&self, state: &mut State, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            VIRTIO_BAR => self.read_virtio(state, offset, data),
            MSIX_BAR => {
                let pending = u64::from(layout::pending_at(state.msix.count() as u16));
                match offset.checked_sub(pending) {
                    Some(offset) => state.msix.read_pending(offset, data),
                    None => state.msix.read_table(offset, data),
                }
            }
            _ => data.fill(0xff),
        }
    }

    fn write_state(&self, state: &mut State, bar: usize, offset: u64, data: &[u8]) -> Result<(), PciError> {
        match bar {
            VIRTIO_BAR => self.write_virtio(state, offset, data),
            MSIX_BAR => Ok(state.msix.write_table(offset, data)?),
            _ => Ok(()),
        }
    }

    /// Back to power-on, unless queues take longer than this to end what is under way.
    fn reset_within(&self, patience: Duration) -> Result<(), PciError> {
        let state = &mut *self.state();
        // Whatever becomes of the queues, they take nothing more.
        self.shared.gate().slam();
        if let Err(stuck) = state.common.reset_within(patience) {
            let what = format!(
                "{stuck} not ended in {} s what was under way, which could still write into the RAM of a guest that \
                 starts anew. See the host's log for the disk.",
                patience.as_secs()
            );
            return Err(PciError::Function { function: self.name.clone(), what });
        }
        let mut errors = Vec::from_iter(state.msix.set_bus_master(false).err());
        errors.extend(state.msix.reset().err());
        state.config.set(state.msix_at + 2, &(state.msix.count() as u16 - 1).to_le_bytes());
        state.config.reset();
        self.shared.disable_pin(false);
        state.common.vectors_changed = true;
        errors.extend(self.route(state).err());
        PciError::all(errors)
    }

    /// Removes all doorbells. Those that the machine does not give back are named, and tried again the next
    /// time.
    fn remove_doorbells(&self) -> Result<(), PciError> {
        PciError::all(self.take_doorbells_away())
    }

    fn take_doorbells_away(&self) -> Vec<PciError> {
        let mut errors = Vec::new();
        let mut doorbells = self.doorbells.lock();
        doorbells.retain(|(queue, at)| {
            let kick = &self.kicks[*queue];
            let removed = self.services.remove_doorbell(self.address, *at, layout::DOORBELL_WIDTH, kick);
            removed.map_err(|error| errors.push(error.into())).is_err()
        });
        errors
    }

    fn add_doorbells(&self, bar: Gpa) -> Result<(), PciError> {
        for (queue, kick) in self.kicks.iter().enumerate() {
            let at = Gpa(bar.0 + Window::Notify.start() + queue as u64 * layout::NOTIFY_MULTIPLIER);
            let mut doorbells = self.doorbells.lock();
            // One that could not be removed from here serves on.
            if doorbells.contains(&(queue, at)) {
                continue;
            }
            match self.services.add_doorbell(self.address, at, layout::DOORBELL_WIDTH, kick) {
                Ok(()) => doorbells.push((queue, at)),
                Err(error) => {
                    drop(doorbells);
                    // Kicks come by `write_bar` then, which is slower and works as well.
                    let mut errors = vec![error.into()];
                    errors.extend(self.take_doorbells_away());
                    return PciError::all(errors);
                }
            }
        }
        Ok(())
    }
}

impl Function for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let state = &mut *self.state();
        let field = state.window_at + layout::WINDOW_DATA;
        if offset < field + 4
            && offset as usize + data.len() > field as usize
            && let Some((bar, at, len)) = Self::window(state)
        {
            let mut value = [0; 4];
            self.read_state(state, bar, at, &mut value[..len]);
            state.config.set(field, &value);
        }
        let status = state.config.u16(register::STATUS) & !register::STATUS_INTERRUPT;
        let pin =
            if self.shared.pin_wanted() && !state.msix.enabled() { register::STATUS_INTERRUPT } else { 0 };
        state.config.set(register::STATUS, &(status | pin).to_le_bytes());
        state.config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        let state = &mut *self.state();
        state.config.write(offset, data);
        let touches = |at: u16, len: u16| offset < at + len && offset as usize + data.len() > usize::from(at);
        let mut errors = Vec::new();
        if touches(register::COMMAND, 2) {
            let allowed = state.config.command() & register::COMMAND_BUS_MASTER != 0;
            errors.extend(self.set_bus_master(state, allowed).err());
        }
        if touches(state.msix_at + 2, 2) {
            let control = state.config.u16(state.msix_at + 2);
            errors.extend(state.msix.set_control(control).err());
            state.common.vectors_changed = true;
            errors.extend(self.route(state).err());
        }
        if touches(register::COMMAND, 2) || touches(state.msix_at + 2, 2) {
            // With MSI-X on, the ISR status may say something (4.1.4.5) but the pin does not (PCI Local Bus
            // Specification 3.0, 6.8.2.3).
            let disabled = state.config.command() & register::COMMAND_INTX_DISABLE != 0;
            self.shared.disable_pin(disabled || state.msix.enabled());
        }
        let field = state.window_at + layout::WINDOW_DATA;
        if touches(field, 4)
            && let Some((bar, at, len)) = Self::window(state)
        {
            let value = state.config.u32(field).to_le_bytes();
            errors.extend(self.write_state(state, bar, at, &value[..len]).err());
        }
        PciError::all(errors)
    }

    fn decoded(&self) -> Decoded {
        self.state().config.decoded()
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.read_state(&mut self.state(), bar, offset, data);
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Result<(), PciError> {
        if let (VIRTIO_BAR, Some((Window::Notify, offset))) = (bar, Window::at(offset)) {
            self.kick(offset / layout::NOTIFY_MULTIPLIER);
            return Ok(());
        }
        self.write_state(&mut self.state(), bar, offset, data)
    }

    fn bar_moved(&self, bar: usize, at: Option<DecodedAt>) -> Result<(), PciError> {
        match (bar, at) {
            (VIRTIO_BAR, None) => self.remove_doorbells(),
            (VIRTIO_BAR, Some(DecodedAt::Memory(range))) => self.add_doorbells(range.start()),
            _ => Ok(()),
        }
    }

    fn reset(&self) -> Result<(), PciError> {
        self.reset_within(RESET_LIMIT)
    }
}
