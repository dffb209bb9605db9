//! What the CPUs reach beside RAM: ports, configuration space and BARs.

pub mod config_ports;
pub mod console;
pub mod layout;
pub mod ports;
pub mod room;

use std::sync::Arc;

use devices::{Flash, Tpm};
use memory::{Gpa, GpaRange};
use pci::{Address, Bus, PciError};

use crate::board::ports::Ports;
use crate::cpu::threads::{End, Exits};
use crate::events::{Event, Events};

/// Ports, configuration space and BARs of a machine.
pub struct Board {
    /// Devices at fixed ports.
    pub ports: Ports,
    /// PCI functions.
    pub bus: Arc<Bus>,
    /// Flash memory, where there is firmware.
    pub flash: Vec<Flash>,
    /// The TPM, if there is one.
    pub tpm: Option<Tpm>,
    /// Where configuration space lies.
    pub ecam: GpaRange,
    /// The machine's owner.
    pub events: Events,
}

impl Board {
    /// The TPM, if it has all of an access, and the offset into it.
    fn tpm(&self, at: u64, len: usize) -> Option<(&Tpm, u64)> {
        let tpm = self.tpm.as_ref()?;
        Some((tpm, offset_in(tpm.range(), at, len)?))
    }

    /// The flash memory that has all of an access, and the offset into it.
    fn flash(&self, at: u64, len: usize) -> Option<(&Flash, u64)> {
        self.flash.iter().find_map(|flash| Some((flash, offset_in(flash.range(), at, len)?)))
    }

    /// Returns devices at fixed places to power-on, but the TPM.
    pub fn reset(&self) {
        self.ports.reset();
        self.flash.iter().for_each(Flash::reset);
    }

    /// Switches the TPM off and on, if there is one, which can take long.
    pub fn reset_tpm(&self) {
        if self.tpm.as_ref().is_some_and(|tpm| tpm.reset().is_err()) {
            self.events
                .trouble("the TPM does not work after this reset: its driver sees a fatal error".into());
        }
    }

    /// The guest's access is done in any case; a failure is reported to the VM's owner.
    fn report(&self, result: Result<(), PciError>) {
        if let Err(error) = result {
            self.events.provoked(error.to_string());
        }
    }
}

/// The offset into a range that has all of an access.
fn offset_in(range: GpaRange, at: u64, len: usize) -> Option<u64> {
    let last = at.checked_add(len as u64 - 1)?;
    (range.contains(Gpa(at)) && range.contains(Gpa(last))).then(|| at - range.start().0)
}

impl Exits for Board {
    fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match self.ports.find(port, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => drop(self.bus.read_port(port, data)),
        }
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        match self.ports.find(port, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => self.report(self.bus.write_port(port, data).unwrap_or(Ok(()))),
        }
    }

    fn read_memory(&self, at: u64, data: &mut [u8]) {
        data.fill(0xff);
        // An access that crosses a page comes in odd pieces; devices get only what PCI knows.
        if !matches!(data.len(), 1 | 2 | 4 | 8) {
            for (at, byte) in (at..).zip(data.chunks_mut(1)) {
                self.read_memory(at, byte);
            }
            return;
        }
        if self.ecam.contains(Gpa(at)) {
            let offset = at - self.ecam.start().0;
            self.bus.read_config(Address::from_ecam(offset), (offset & 0xfff) as u16, data);
        } else if let Some((flash, offset)) = self.flash(at, data.len()) {
            flash.read(offset, data);
        } else if let Some((tpm, offset)) = self.tpm(at, data.len()) {
            tpm.read(offset, data);
        } else {
            self.bus.read_memory(Gpa(at), data);
        }
    }

    fn write_memory(&self, at: u64, data: &[u8]) {
        if !matches!(data.len(), 1 | 2 | 4 | 8) {
            for (at, byte) in (at..).zip(data.chunks(1)) {
                self.write_memory(at, byte);
            }
            return;
        }
        if self.ecam.contains(Gpa(at)) {
            let offset = at - self.ecam.start().0;
            self.report(self.bus.write_config(Address::from_ecam(offset), (offset & 0xfff) as u16, data));
        } else if let Some((flash, offset)) = self.flash(at, data.len()) {
            flash.write(offset, data);
        } else if let Some((tpm, offset)) = self.tpm(at, data.len()) {
            tpm.write(offset, data);
        } else {
            self.report(self.bus.write_memory(Gpa(at), data).unwrap_or(Ok(())));
        }
    }

    fn ended(&self, end: End) {
        self.events.send(Event::Ended(end));
    }
}
