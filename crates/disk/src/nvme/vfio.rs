//! A controller's function through VFIO.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use dma::vfio::{Interrupt, MappedArea, VfioDevice, VfioError, bar};
use vmm_sys_util::eventfd::EventFd;

use super::error::NvmeError;
use super::function::{Function, FunctionError};

/// The command register of configuration space, and its bits for memory and bus mastering.
const COMMAND: u64 = 4;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
/// What no command register holds: it has bits that are always 0.
const ABSENT: u16 = u16::MAX;

pub(super) struct VfioFunction {
    registers: MappedArea,
    vectors: u16,
    device: Arc<VfioDevice>,
}

impl VfioFunction {
    /// Maps the registers of a device whose interrupts are all disabled.
    pub fn new(device: &Arc<VfioDevice>) -> Result<VfioFunction, NvmeError> {
        let unfit = |why| NvmeError::Unfit { device: device.name().to_owned(), why };
        let mut class = [0; 4];
        device.read(device.config(), 8, &mut class)?;
        if class[1..] != [2, 8, 1] {
            return Err(unfit("it is no NVMe controller, by its class code"));
        }
        command(device, |command| command | MEMORY)?;
        let region = device.region(bar(0))?.ok_or_else(|| unfit("it has no BAR 0"))?;
        let area = region.mappable.iter().find(|area| area.start == 0).cloned();
        let area = area.ok_or_else(|| unfit("its BAR 0 cannot be mapped"))?;
        let registers = MappedArea::new(device, &region, area)?;
        let vectors = u16::try_from(device.irq(Interrupt::Msix)?.count).unwrap_or(u16::MAX);
        if vectors == 0 {
            return Err(unfit("it has no MSI-X"));
        }
        Ok(VfioFunction { registers, vectors, device: device.clone() })
    }

    /// A register: inside the mapping and aligned, for mappings begin on a page.
    fn register(&self, offset: u64) -> NonNull<u32> {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.registers(), "register {offset:#x}");
        // SAFETY: the offset was just found to lie inside the mapping.
        unsafe { self.registers.start().add(offset as usize).cast() }
    }
}

/// Changes the command register.
fn command(device: &VfioDevice, change: impl FnOnce(u16) -> u16) -> Result<(), VfioError> {
    let word = change(read_command(device)?);
    device.write(device.config(), COMMAND, &word.to_le_bytes())
}

fn read_command(device: &VfioDevice) -> Result<u16, VfioError> {
    let mut word = [0; 2];
    device.read(device.config(), COMMAND, &mut word)?;
    Ok(u16::from_le_bytes(word))
}

impl Function for VfioFunction {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn registers(&self) -> u64 {
        self.registers.len() as u64
    }

    fn read(&self, offset: u64) -> u32 {
        // SAFETY: `register` gives a valid and aligned place in a mapping that lives as long as `self`.
        u32::from_le(unsafe { self.register(offset).as_ptr().read_volatile() })
    }

    fn write(&self, offset: u64, value: u32) {
        // Stores to memory come before one to a device's registers, if the compiler leaves them in order.
        fence(Ordering::Release);
        // SAFETY: as in `read`.
        unsafe { self.register(offset).as_ptr().write_volatile(value.to_le()) };
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn enable_interrupts(&self, vectors: &[EventFd]) -> Result<(), FunctionError> {
        let eventfds: Vec<Option<&EventFd>> = vectors.iter().map(Some).collect();
        Ok(self.device.set_triggers(Interrupt::Msix, 0, &eventfds)?)
    }

    fn disable_interrupts(&self) -> Result<(), FunctionError> {
        Ok(self.device.disable(Interrupt::Msix)?)
    }

    fn set_bus_master(&self, allowed: bool) -> Result<(), FunctionError> {
        command(
            &self.device,
            |command| {
                if allowed { command | MEMORY | BUS_MASTER } else { command & !BUS_MASTER }
            },
        )?;
        // A write to a device that does not answer is lost without an error.
        let after = read_command(&self.device)?;
        if after != ABSENT && (after & BUS_MASTER != 0) == allowed {
            return Ok(());
        }
        let what = if allowed { "let it do DMA" } else { "forbid it to do DMA" };
        let cause = io::Error::other(format!("its command register reads as {after:#06x} afterwards"));
        let hint = "Reset it or power-cycle the host before anything else uses it";
        Err(VfioError { object: self.name().to_owned(), what: what.to_owned(), cause, hint }.into())
    }

    fn is_absent(&self) -> bool {
        read_command(&self.device).is_ok_and(|command| command == ABSENT)
    }

    fn reset(&self) -> Result<(), FunctionError> {
        self.device.reset()?;
        Ok(command(&self.device, |command| command | MEMORY)?)
    }

    fn announce_removal(&self, eventfd: &EventFd) -> Result<(), FunctionError> {
        if self.device.irq(Interrupt::Request)?.count > 0 {
            self.device.set_triggers(Interrupt::Request, 0, &[Some(eventfd)])?;
        }
        Ok(())
    }
}
