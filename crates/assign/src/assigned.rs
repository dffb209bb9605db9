//! An assigned function on the guest's PCI bus.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use dma::vfio::{Interrupt, VfioDevice, VfioError};
use dma::{Domain, DomainError};
use host::PciAddress;
use memory::Gpa;
use parking_lot::{Mutex, MutexGuard};
use pci::{
    Address, BarSpec, Decoded, DecodedAt, DeviceNumber, Function, MSIX_ENTRY_SIZE, Msi, Msix, PciError, Pin,
    Services, Windows, register,
};

use crate::alarms::{Alarms, Event, Report};
use crate::bars::{self, Bar, Content};
use crate::claim::Claim;
use crate::config::{self, COMMAND_IDLE, Config, Features, MsixLayout, Snapshot};
use crate::error::{AssignError, all};
use crate::interrupts::{Interrupts, Kinds};
use crate::registers::{Device, Registers};
use crate::reset::Reset;
use crate::rom::Rom;

/// A host PCI function in the guest.
///
/// Dropping it stops the device's interrupts and DMA, resets it and closes it; [`Assigned::shut_down`]
/// does the same and returns what failed.
pub struct Assigned {
    name: String,
    at: Address,
    services: Arc<dyn Services>,
    report: Report,
    hardware: Hardware,
    alarms: Alarms,
    state: Mutex<State>,
}

/// The device itself and what it is like; nothing here changes.
struct Hardware {
    device: Arc<VfioDevice>,
    reset: Reset,
    snapshot: Snapshot,
    msix: Option<MsixLayout>,
    bars: Vec<BarSpec>,
    windows: Windows,
}

struct State {
    registers: Registers,
    bars: Vec<Bar>,
    /// Whether the function was shut down. Nothing accesses the device after that.
    shut: bool,
}

impl Assigned {
    /// Opens a device of the claim, which must be attached to the VM's memory map, resets it, and makes it a function
    /// at `at` on the guest's bus, whose windows these are; the bus places its BARs. The device cannot be bus master
    /// until the guest says so. `report` receives its events.
    pub fn new(
        claim: &Claim,
        address: PciAddress,
        at: Address,
        windows: &Windows,
        services: Arc<dyn Services>,
        rom: Rom,
        report: Report,
    ) -> Result<Arc<Assigned>, AssignError> {
        let name = address.to_string();
        let device = claim.open(address)?;
        let alarms = Alarms::new(&device)?;

        let reset = Reset::of(&device, claim);
        if matches!(reset, Reset::None) {
            let what = "it has no reset mechanism (one that resets its whole bus counts only when all devices on \
                        that bus are assigned). It starts with what its last user left in it, and keeps what this \
                        guest leaves";
            report(Event::Warning { device: name.clone(), what: what.to_owned() });
        }
        set_command(&device, COMMAND_IDLE)?;
        reset.run(&device)?;
        set_command(&device, COMMAND_IDLE)?;

        let snapshot = Snapshot::read(device.config().size, |offset, data| {
            device.read(device.config(), u64::from(offset), data)
        })?;
        let header = snapshot.u8(register::HEADER_TYPE) & 0x7f;
        if header != 0 {
            return Err(AssignError::NotEndpoint { address, header });
        }
        let irq = device.irq(Interrupt::Msix)?;
        let msix = config::msix(&snapshot).filter(|_| irq.count > 0).map(|layout| MsixLayout {
            count: layout.count.min(irq.count.try_into().unwrap_or(u16::MAX)),
            ..layout
        });
        let bars = bars::find(address, &device, &snapshot, &trapped(msix.as_ref()), rom)?;
        let kinds = kinds(&device, &snapshot, msix.as_ref(), at, &services)?;
        let interrupts = Interrupts::new(at, device.clone(), services.clone(), kinds, irq.no_resize);

        let hardware = Hardware {
            device,
            reset,
            snapshot,
            msix,
            bars: bars.iter().map(|bar| bar.spec).collect(),
            windows: windows.clone(),
        };
        let registers = Registers::new(&hardware, interrupts, name.clone(), report.clone());
        let state = Mutex::new(State { registers, bars, shut: false });
        Ok(Arc::new(Assigned { name, at, services, report, hardware, alarms, state }))
    }

    /// The device's address on this host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the guest's bus.
    pub fn at(&self) -> Address {
        self.at
    }

    /// The other devices that a reset of this one resets as well, without a notice to their drivers: those on its bus, when
    /// it cannot be reset alone.
    pub fn reset_with(&self) -> &[PciAddress] {
        self.hardware.reset.others()
    }

    /// The eventfds with which the kernel signals errors of the device, and that the host wants it back.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// Tries whether devices of a domain reach this one's memory, if a domain asks for it. The guest must not control the
    /// device yet, because the device must decode memory.
    pub(crate) fn try_p2p(&self, domain: &Domain) -> Result<(), DomainError> {
        self.state().bars.iter().try_for_each(|bar| bar.try_p2p(domain))
    }

    /// Takes the function out of the guest and makes the device quiet: no DMA, no interrupt, no memory in the
    /// guest; then resets it. Tries everything and returns all that failed. Afterwards it reads as ones.
    pub fn shut_down(&self) -> Result<(), AssignError> {
        let mut state = self.state();
        if std::mem::replace(&mut state.shut, true) {
            return Ok(());
        }
        let mut errors: Vec<AssignError> = Vec::new();
        errors.extend(set_command(&self.hardware.device, COMMAND_IDLE).err().map(AssignError::from));
        errors.extend(state.registers.interrupts.reset().err());
        for bar in &mut state.bars {
            errors.extend(bar.vanish(self.at, &*self.services).err().map(AssignError::from));
            if bar.is_visible() {
                bar.leak();
            }
        }
        errors.extend(self.alarms.silence(&self.hardware.device).err().map(AssignError::from));
        match self.hardware.reset() {
            // The kernel's unbind waits until the device is closed, and holds it until then, so no reset is possible.
            Err(error) if self.alarms.was_requested() && error.cause.kind() == ErrorKind::WouldBlock => {
                let what = "it is given back to this host without a reset, because the host is removing it now. It does no more \
                            DMA, and the next driver resets it";
                (self.report)(Event::Warning { device: self.name.clone(), what: what.to_owned() });
            }
            reset => errors.extend(reset.err().map(AssignError::from)),
        }
        errors.extend(set_command(&self.hardware.device, 0).err().map(AssignError::from));
        all(errors)
    }

    /// Where in the MSI-X table or pending bits an access falls.
    fn msix_part(&self, bar: usize, offset: u64, len: usize) -> Option<Part> {
        let layout = self.hardware.msix.as_ref()?;
        let end = offset + len as u64;
        let [table, pending] = parts(layout);
        let touches =
            |(other, bytes): &(usize, Range<u64>)| *other == bar && offset < bytes.end && end > bytes.start;
        let inside = |bytes: &Range<u64>| offset >= bytes.start && end <= bytes.end;
        if touches(&table) {
            Some(if inside(&table.1) { Part::Table(offset - table.1.start) } else { Part::Edge })
        } else if touches(&pending) {
            Some(if inside(&pending.1) { Part::Pending(offset - pending.1.start) } else { Part::Edge })
        } else {
            None
        }
    }

    fn warn(&self, what: String) {
        (self.report)(Event::Warning { device: self.name.clone(), what });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn error(&self, error: &impl ToString) -> PciError {
        PciError::Function { function: self.name.clone(), what: error.to_string() }
    }
}

/// A part of a BAR that is emulated.
enum Part {
    /// So far into the MSI-X table.
    Table(u64),
    /// So far into the pending bits.
    Pending(u64),
    /// Partly in one of them. No driver does this.
    Edge,
}

/// The BARs and bytes of MSI-X's table and of its pending bits.
fn parts(layout: &MsixLayout) -> [(usize, Range<u64>); 2] {
    let part =
        |place: (u8, u32), len: u64| (usize::from(place.0), u64::from(place.1)..u64::from(place.1) + len);
    let count = u64::from(layout.count);
    [part(layout.table, count * MSIX_ENTRY_SIZE), part(layout.pending, count.div_ceil(64) * 8)]
}

fn trapped(layout: Option<&MsixLayout>) -> Vec<(usize, Range<u64>)> {
    layout.map(|layout| parts(layout).to_vec()).unwrap_or_default()
}

/// What interrupts the guest can have.
fn kinds(
    device: &VfioDevice,
    snapshot: &Snapshot,
    msix: Option<&MsixLayout>,
    at: Address,
    services: &Arc<dyn Services>,
) -> Result<Kinds, VfioError> {
    let has = |kind| Ok(device.irq(kind)?.count > 0);
    let pin = Pin::from_register(snapshot.u8(register::INTERRUPT_PIN));
    let pin = if has(Interrupt::Intx)? { pin } else { None };
    let msi = if has(Interrupt::Msi)? { config::msi(snapshot) } else { None };
    let msi = msi.map(|layout| Msi::new(at, services.clone(), layout.count, layout.maskable));
    let msix = msix.map(|layout| Msix::new(at, services.clone(), layout.count));
    Ok(Kinds { pin, msi, msix })
}

fn set_command(device: &VfioDevice, command: u16) -> Result<(), VfioError> {
    device.write(device.config(), register::COMMAND.into(), &command.to_le_bytes())
}

impl Device for Hardware {
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), VfioError> {
        self.device.write(self.device.config(), offset.into(), data)
    }

    fn reset(&self) -> Result<(), VfioError> {
        self.reset.run(&self.device)
    }

    fn registers(&self, interrupts: &Interrupts) -> Config {
        let kinds = &interrupts.kinds;
        let features = Features {
            msi: kinds.msi.as_ref(),
            msix: kinds
                .msix
                .as_ref()
                .zip(self.msix)
                .map(|(msix, layout)| msix.capability(layout.table, layout.pending)),
            resettable: matches!(self.reset, Reset::Function),
            pin: kinds.pin,
        };
        Config::new(&self.snapshot, &self.bars, &self.windows, &features)
    }
}

impl Function for Assigned {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber::Own
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let state = self.state();
        if state.shut {
            data.fill(0xff);
            return;
        }
        let device = &self.hardware.device;
        let read = state
            .registers
            .config
            .read(offset, data, |offset, data| device.read(device.config(), u64::from(offset), data));
        drop(state);
        if let Err(error) = read {
            data.fill(0xff);
            self.warn(error.to_string());
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        let mut state = self.state();
        if state.shut {
            return Ok(());
        }
        state.registers.write(offset, data, &self.hardware).map_err(|error| self.error(&error))
    }

    fn decoded(&self) -> Decoded {
        let state = self.state();
        if state.shut { Decoded::default() } else { state.registers.config.decoded() }
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let state = self.state();
        if state.shut {
            return;
        }
        let msix = state.registers.interrupts.kinds.msix.as_ref();
        match (self.msix_part(bar, offset, data.len()), msix) {
            (Some(Part::Table(offset)), Some(msix)) => msix.read_table(offset, data),
            (Some(Part::Pending(offset)), Some(msix)) => msix.read_pending(offset, data),
            (Some(_), _) => {}
            (None, _) => {
                let Some(content) = state.content(bar) else { return };
                drop(state);
                let read = match content {
                    Content::Device(region) => self.hardware.device.read(&region, offset, data),
                    Content::Image(image) => {
                        image.read(offset, data);
                        Ok(())
                    }
                };
                if let Err(error) = read {
                    data.fill(0xff);
                    self.warn(error.to_string());
                }
            }
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) -> Result<(), PciError> {
        let mut state = self.state();
        if state.shut {
            return Ok(());
        }
        match self.msix_part(bar, offset, data.len()) {
            Some(Part::Table(offset)) => {
                let body = state.registers.config.msi_body();
                let written = state.registers.interrupts.write_table(offset, data, &body);
                written.map_err(|error| self.error(&error))
            }
            Some(_) => Ok(()),
            None => {
                let Some(Content::Device(region)) = state.content(bar) else { return Ok(()) };
                drop(state);
                if !region.writable {
                    return Ok(());
                }
                self.hardware.device.write(&region, offset, data).map_err(|error| self.error(&error))
            }
        }
    }

    fn bar_moved(&self, bar: usize, at: Option<DecodedAt>) -> Result<(), PciError> {
        let mut state = self.state();
        let Some(bar) = state.bars.iter_mut().find(|other| other.spec.index() == bar) else { return Ok(()) };
        bar.vanish(self.at, &*self.services)?;
        if let Some(DecodedAt::Memory(range)) = at {
            bar.appear(self.at, Gpa(range.start().0), &*self.services)?;
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), PciError> {
        let mut state = self.state();
        if state.shut {
            return Ok(());
        }
        let mut errors: Vec<AssignError> = Vec::new();
        for bar in &mut state.bars {
            errors.extend(bar.vanish(self.at, &*self.services).err().map(AssignError::from));
        }
        errors.extend(state.registers.reset(&self.hardware).err());
        all(errors).map_err(|error| self.error(&error))
    }
}

impl State {
    fn content(&self, bar: usize) -> Option<Content> {
        self.bars.iter().find(|other| other.spec.index() == bar).map(|bar| bar.content.clone())
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            say::error(error);
        }
    }
}

impl std::fmt::Debug for Assigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Assigned({} at {})", self.name, self.at)
    }
}
