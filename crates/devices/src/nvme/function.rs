//! The controller as a PCI function: configuration space, BARs, and accesses to the registers.
//!
//! BAR 0 holds registers and doorbells (16 KiB: Windows takes no less), BAR 2 the MSI-X table.

use parking_lot::MutexGuard;
use std::time::Duration;

use pci::{
    Address, BarKind, BarSpec, ConfigSpace, Decoded, DecodedAt, Function, Identity, MSIX_ENTRY_SIZE, Msix,
    PciError, Pin, Windows, capability, register,
};

use super::{DEVICE, Nvme, VENDOR, spec};

/// The BAR with registers and doorbells; takes registers 0 and 1.
const REGISTERS_BAR: usize = 0;
/// The BAR with the MSI-X table; takes registers 2 and 3.
const MSIX_BAR: usize = 2;
const REGISTERS_SIZE: u64 = 16 << 10;
/// How long disks may take to end what is under way when the machine is reset.
const RESET_LIMIT: Duration = Duration::from_secs(30);
/// Mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_0802;

/// Offset of the pending bits behind a table of so many vectors.
fn pending_at(vectors: usize) -> u64 {
    (vectors as u64 * MSIX_ENTRY_SIZE).next_multiple_of(2048)
}

/// Configuration space, and where capabilities lie in it: power management and MSI-X.
pub(super) fn config_space(at: Address, msix: &Msix, windows: &Windows) -> (ConfigSpace, u16, u16) {
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE,
        subsystem_vendor: VENDOR,
        subsystem: 0,
        class: CLASS,
        revision: 1,
    };
    let memory = |index, size| {
        BarSpec::new(index, BarKind::Memory64 { prefetchable: false }, size).expect("constants that fit")
    };
    let pending = pending_at(msix.count());
    let msix_size = (pending + (msix.count() as u64).div_ceil(64) * 8).next_power_of_two().max(4096);
    let bars = [memory(REGISTERS_BAR, REGISTERS_SIZE), memory(MSIX_BAR, msix_size)];
    let mut config = ConfigSpace::new(identity, &bars, windows);
    config.set(register::INTERRUPT_PIN, &[Pin::of(at) as u8]);
    // D0 and D3hot, between which nothing is lost; the driver moves between them and nothing else happens.
    let power_at = config.add_capability(capability::POWER_MANAGEMENT, &[3, 0, 8, 0, 0, 0], &[0, 0, 3, 0]);
    // Version 2, an endpoint integrated in the root complex, role-based error reporting.
    let mut express = [0; 58];
    express[..2].copy_from_slice(&0x0092u16.to_le_bytes());
    express[2..6].copy_from_slice(&0x8000u32.to_le_bytes());
    config.add_capability(capability::EXPRESS, &express, &[0, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    let (body, writable) = msix.capability((MSIX_BAR as u8, 0), (MSIX_BAR as u8, pending as u32));
    let msix_at = config.add_capability(capability::MSIX, &body, &writable);
    (config, power_at, msix_at)
}

impl Nvme {
    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock()
    }

    /// The driver allows or forbids the device to reach memory. When it is forbidden, this waits until nothing is under way
    /// that does.
    fn set_bus_master(&self, allowed: bool) -> Result<(), PciError> {
        let gate = &self.shared.gate;
        if !allowed && !gate.is_shut() {
            let hung = gate.close();
            if hung > 0 {
                self.shared.host_failed(&format_args!(
                    "bus mastering was switched off, and {hung} of its threads do not stop. What the disk has under way may \
                     still be written to the guest's memory; see the host's log for the disk."
                ));
            }
        }
        // What queues have ended just now is told by message, and what comes later is not.
        let outcome = self.shared.interrupts.msix().set_bus_master(allowed);
        if allowed {
            gate.open();
        }
        outcome
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            spec::register::INTMS => self.shared.interrupts.mask(value, 0),
            spec::register::INTMC => self.shared.interrupts.mask(0, value),
            _ => {
                if self.shared.registers.write(offset, value) {
                    self.shared.waker.wake();
                }
            }
        }
    }

    /// Back to power-on, unless disks take longer than this to end what is under way.
    pub(super) fn reset_within(&self, patience: Duration) -> Result<(), PciError> {
        // Whatever becomes of the disks, nothing more is taken or told.
        self.shared.gate.slam();
        self.shared.registers.reset();
        self.shared.waker.wake();
        if !self.shared.registers.stops_within(patience) {
            let what = format!(
                "a disk has not ended in {} s what was under way, which could still write into the RAM of a guest that \
                 starts anew. See the host's log for the disk.",
                patience.as_secs()
            );
            return Err(PciError::Function { function: self.name().to_owned(), what });
        }
        let interrupts = &self.shared.interrupts;
        let outcome = {
            let mut msix = interrupts.msix();
            let outcomes = [msix.set_bus_master(false), msix.reset()];
            PciError::all(outcomes.into_iter().filter_map(Result::err))
        };
        interrupts.rerouted();
        {
            let mut config = self.config();
            let vectors = interrupts.vectors();
            config.set(self.msix_at + 2, &(vectors - 1).to_le_bytes());
            config.reset();
        }
        interrupts.disable_pin(false);
        outcome
    }

    fn ring_doorbell(&self, place: u64, value: u32) {
        let Some(queue) = self.shared.doorbells.written(place, value) else { return };
        // With messages nobody needs to know; the pin goes down when the driver has taken everything.
        let by_message = self.shared.interrupts.msix().enabled();
        if by_message {
            return;
        }
        let queue = self.shared.completion_queues.lock().get(&queue).cloned();
        if let Some(queue) = queue {
            queue.head_moved();
        }
    }
}

impl Function for Nvme {
    fn name(&self) -> &str {
        self.shared.reports.name()
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let pin = self.shared.interrupts.pin_wanted() && !self.shared.interrupts.msix().enabled();
        let mut config = self.config();
        let status = config.u16(register::STATUS) & !register::STATUS_INTERRUPT;
        let pin = if pin { register::STATUS_INTERRUPT } else { 0 };
        config.set(register::STATUS, &(status | pin).to_le_bytes());
        config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        let mut config = self.config();
        config.write(offset, data);
        let touches = |at: u16, len: u16| offset < at + len && offset as usize + data.len() > usize::from(at);
        let (command, control) = (config.command(), config.u16(self.msix_at + 2));
        // In D3hot a function may not be bus master either (PCI Bus Power Management Interface Specification 1.2, 5.4.1).
        let power = config.u16(self.power_at + 4) & 3;
        drop(config);
        let mut errors = Vec::new();
        if touches(register::COMMAND, 2) || touches(self.power_at + 4, 2) {
            let allowed = command & register::COMMAND_BUS_MASTER != 0 && power == 0;
            errors.extend(self.set_bus_master(allowed).err());
        }
        let interrupts = &self.shared.interrupts;
        if touches(self.msix_at + 2, 2) {
            errors.extend(interrupts.msix().set_control(control).err());
            interrupts.rerouted();
        }
        if touches(register::COMMAND, 2) || touches(self.msix_at + 2, 2) {
            let disabled = command & register::COMMAND_INTX_DISABLE != 0;
            interrupts.disable_pin(disabled || interrupts.msix().enabled());
        }
        PciError::all(errors)
    }

    fn decoded(&self) -> Decoded {
        self.config().decoded()
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            REGISTERS_BAR => self.shared.registers.read(offset, self.shared.interrupts.masks(), data),
            MSIX_BAR => {
                let msix = self.shared.interrupts.msix();
                match offset.checked_sub(pending_at(msix.count())) {
                    Some(offset) => msix.read_pending(offset, data),
                    None => msix.read_table(offset, data),
                }
            }
            _ => data.fill(0xff),
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Result<(), PciError> {
        if bar == MSIX_BAR {
            return Ok(self.shared.interrupts.msix().write_table(offset, data)?);
        }
        // Registers are written in 32 bits or, where they have them, 64 (3.1); anything else goes nowhere.
        if bar != REGISTERS_BAR || !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return Ok(());
        }
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            match at.checked_sub(spec::register::DOORBELLS) {
                Some(at) => self.ring_doorbell(at / 4, value),
                None => self.write_register(at, value),
            }
        }
        Ok(())
    }

    fn bar_moved(&self, bar: usize, at: Option<DecodedAt>) -> Result<(), PciError> {
        match (bar, at) {
            (REGISTERS_BAR, None) => self.shared.ioeventfds.moved(None),
            (REGISTERS_BAR, Some(DecodedAt::Memory(range))) => {
                self.shared.ioeventfds.moved(Some(range.start()))
            }
            _ => Ok(()),
        }
    }

    fn reset(&self) -> Result<(), PciError> {
        self.reset_within(RESET_LIMIT)
    }
}
