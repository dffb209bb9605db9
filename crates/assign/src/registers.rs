//! What the guest sets up by writing to configuration space: the emulated registers, and with them the device.
//!
//! Both stay together when the device does not obey: a step that fails keeps no other from being tried, after a
//! reset the registers are as after reset whatever failed, and the command register shows what the hardware took.

use dma::vfio::VfioError;
use pci::register;

use crate::alarms::{Event, Report};
use crate::config::{COMMAND_IDLE, Config, Effect};
use crate::error::{AssignError, all};
use crate::interrupts::Interrupts;

/// The device behind the registers.
pub(crate) trait Device {
    /// Writes to the hardware's configuration space.
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), VfioError>;
    /// Resets the function.
    fn reset(&self) -> Result<(), VfioError>;
    /// The registers as they are after reset.
    fn registers(&self, interrupts: &Interrupts) -> Config;
}

/// The emulated registers of a function, and its interrupts, which follow from them.
pub(crate) struct Registers {
    pub config: Config,
    pub interrupts: Interrupts,
    name: String,
    report: Report,
}

impl Registers {
    /// The registers of the device `name`, which is idle; `report` receives what does not work.
    pub fn new(device: &impl Device, interrupts: Interrupts, name: String, report: Report) -> Registers {
        let config = device.registers(&interrupts);
        let mut registers = Registers { config, interrupts, name, report };
        registers.settle_pin();
        registers
    }

    /// Writes as the guest does. Tries all that follows from it and returns all that failed.
    pub fn write(&mut self, offset: u16, data: &[u8], device: &impl Device) -> Result<(), AssignError> {
        let effects = self.config.write(offset, data);
        all(effects.into_iter().filter_map(|effect| self.apply(effect, device).err()).collect())
    }

    /// Resets the device and brings the registers to the state after reset, except that BARs keep their addresses.
    /// Tries everything and returns all that failed.
    pub fn reset(&mut self, device: &impl Device) -> Result<(), AssignError> {
        let mut errors: Vec<AssignError> = Vec::new();
        errors.extend(self.command(COMMAND_IDLE, device).err().map(AssignError::from));
        errors.extend(self.interrupts.reset().err());
        errors.extend(device.reset().err().map(AssignError::from));
        errors.extend(self.command(COMMAND_IDLE, device).err().map(AssignError::from));
        self.config = device.registers(&self.interrupts).after(&self.config);
        self.settle_pin();
        all(errors)
    }

    fn apply(&mut self, effect: Effect, device: &impl Device) -> Result<(), AssignError> {
        match effect {
            Effect::Command(command) => {
                let outcome = self.command(command, device);
                self.config.show_command();
                outcome?;
            }
            Effect::ClearStatus(errors) => device.write_config(register::STATUS, &errors.to_le_bytes())?,
            Effect::Vpd(offset, address) => device.write_config(offset, &address.to_le_bytes())?,
            Effect::Reset => self.reset(device)?,
            Effect::Msi => self.interrupts.msi_changed(&self.config.msi_body())?,
            Effect::Msix(control) => self.interrupts.msix_control(control, &self.config.msi_body())?,
        }
        Ok(())
    }

    fn command(&mut self, command: u16, device: &impl Device) -> Result<(), VfioError> {
        device.write_config(register::COMMAND, &command.to_le_bytes())?;
        self.config.command_taken(command);
        Ok(())
    }

    /// Connects the pin. If that fails (a line shared with a device of the host), the guest can probably use
    /// messages, as nearly all guests do. So the failure is only reported.
    fn settle_pin(&mut self) {
        if let Err(error) = self.interrupts.settle(&self.config.msi_body()) {
            let what = format!("its interrupt pin does not work in the guest: {error}");
            (self.report)(Event::Warning { device: self.name.clone(), what });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{config, nvme};
    use crate::interrupts::tests::interrupts;
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;

    const BUS_MASTER: u16 = register::COMMAND_BUS_MASTER | COMMAND_IDLE;

    /// Hardware that can be made to refuse.
    #[derive(Default)]
    struct Fake {
        command: Cell<u16>,
        resets: Cell<u32>,
        refuse_reset: Cell<bool>,
        refuse_writes: Cell<bool>,
        status: RefCell<Vec<u8>>,
    }

    fn refusal(what: &str) -> VfioError {
        let cause = std::io::Error::from_raw_os_error(11);
        VfioError { object: "dev".into(), what: what.into(), cause, hint: "" }
    }

    impl Device for Fake {
        fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), VfioError> {
            match offset {
                _ if self.refuse_writes.get() => return Err(refusal("write")),
                register::COMMAND => self.command.set(u16::from_le_bytes(data.try_into().unwrap())),
                _ => *self.status.borrow_mut() = data.to_vec(),
            }
            Ok(())
        }
        fn reset(&self) -> Result<(), VfioError> {
            self.resets.set(self.resets.get() + 1);
            if self.refuse_reset.get() { Err(refusal("reset it")) } else { Ok(()) }
        }
        fn registers(&self, _: &Interrupts) -> Config {
            config(&nvme())
        }
    }

    fn registers(device: &Fake) -> Registers {
        device.command.set(COMMAND_IDLE);
        Registers::new(device, interrupts(false, 4).2, "dev".into(), Arc::new(|_| {}))
    }

    fn seen(registers: &Registers, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        registers.config.read(offset, &mut bytes, |_, _| Ok::<_, VfioError>(())).unwrap();
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn after_a_reset_that_failed_the_guest_sees_bus_mastering_off_as_it_is_and_can_turn_it_on_again() {
        let device = Fake::default();
        let mut registers = registers(&device);
        registers.write(4, &[6, 0], &device).unwrap();
        assert_eq!(device.command.get(), BUS_MASTER);
        device.refuse_reset.set(true);
        let error = registers.write(0x89, &[0x80], &device).unwrap_err().to_string();
        assert!(error.contains("cannot reset it"), "{error}");
        assert_eq!((device.command.get(), seen(&registers, 4) & 0xffff), (COMMAND_IDLE, 0));
        registers.write(4, &[6, 0], &device).unwrap();
        assert_eq!(device.command.get(), BUS_MASTER);
    }

    #[test]
    fn a_command_that_the_hardware_refused_is_not_shown_and_the_same_write_tries_again() {
        let device = Fake::default();
        let mut registers = registers(&device);
        device.refuse_writes.set(true);
        assert!(registers.write(4, &[6, 0], &device).is_err());
        assert_eq!(seen(&registers, 4) & 0xffff, 2, "decoding is the bus's, bus mastering the hardware's");
        device.refuse_writes.set(false);
        registers.write(4, &[6, 0], &device).unwrap();
        assert_eq!((device.command.get(), seen(&registers, 4) & 0xffff), (BUS_MASTER, 6));
    }

    #[test]
    fn hardware_that_took_no_write_during_a_reset_is_told_again_at_the_next_occasion() {
        let device = Fake::default();
        let mut registers = registers(&device);
        registers.write(4, &[6, 0], &device).unwrap();
        device.refuse_writes.set(true);
        let error = registers.reset(&device).unwrap_err().to_string();
        assert_eq!((error.lines().count(), device.resets.get()), (2, 1), "{error}");
        device.refuse_writes.set(false);
        registers.write(4, &[2, 0], &device).unwrap();
        assert_eq!(device.command.get(), COMMAND_IDLE);
    }

    #[test]
    fn what_fails_of_a_write_keeps_the_rest_from_nothing() {
        let device = Fake::default();
        let mut registers = registers(&device);
        registers.write(4, &[6, 0, 0xff, 0xff], &device).unwrap();
        assert_eq!(*device.status.borrow(), [0x00, 0xf9]);
        device.refuse_writes.set(true);
        let error = registers.write(4, &[0, 0, 0xff, 0xff], &device).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
    }

    #[test]
    fn bars_keep_their_addresses_over_a_reset() {
        let device = Fake::default();
        let mut registers = registers(&device);
        registers.write(0x10, &0x4_0000_0000_4000u64.to_le_bytes(), &device).unwrap();
        registers.write(0x89, &[0x80], &device).unwrap();
        assert_eq!((seen(&registers, 0x10), seen(&registers, 0x14)), (0x4004, 0x4_0000));
    }
}
