//! Configuration space of an assigned function, by allow-list.
//!
//! The guest sees an emulated space built from a snapshot of the hardware's. What is not allowed is not there:
//! capabilities that are not on the list are taken out of their chain, and bytes that belong to none read as 0. A
//! few bytes are read from the hardware at every access, and a few writes have an [`Effect`] on it; nothing else
//! that the guest writes here ever reaches the device.

mod capabilities;
mod extended;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use pci::{BarSpec, ConfigSpace, Decoded, Identity, Msi, Windows, register};

pub(crate) use capabilities::{MsixLayout, msi, msix};
pub(crate) use snapshot::Snapshot;

/// Bits of the status register that are cleared by writing ones: the errors.
const STATUS_ERRORS: u16 = 0xf900;

/// Bits of the command register that the guest controls in the hardware. Decoding is not among them: the
/// hardware decodes always, and the guest's bus decides whether the guest sees a BAR.
const COMMAND_PASSED: u16 = register::COMMAND_BUS_MASTER
    | register::COMMAND_PARITY
    | register::COMMAND_SERR
    | register::COMMAND_INTX_DISABLE;

/// The command register of hardware that is ours and that the guest has not set up: it decodes and no more.
pub(crate) const COMMAND_IDLE: u16 = register::COMMAND_IO | register::COMMAND_MEMORY;

/// What capabilities a function has that change how it is built.
pub(crate) struct Features<'a> {
    /// The emulated MSI, if the function has it.
    pub msi: Option<&'a Msi>,
    /// The bytes of the emulated MSI-X capability and its writable bits, if the function has it.
    pub msix: Option<([u8; 10], [u8; 2])>,
    /// Whether the function can be reset alone.
    pub resettable: bool,
    /// Whether the guest can have its pin.
    pub pin: Option<pci::Pin>,
}

/// What a write to configuration space means for the hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The hardware's command register becomes this.
    Command(u16),
    /// Errors to clear in the hardware's status register.
    ClearStatus(u16),
    /// Function level reset.
    Reset,
    /// The MSI capability changed.
    Msi,
    /// MSI-X's control word changed to this.
    Msix(u16),
    /// The guest wants to read vital product data: write this word at this offset.
    Vpd(u16, u16),
}

/// The emulated configuration space and what of it is tied to the hardware.
pub(crate) struct Config {
    space: ConfigSpace,
    /// What of the command register the hardware took last: bits of [`COMMAND_PASSED`].
    taken: u16,
    /// Bytes to read from the hardware at each access.
    live: Vec<Range<u16>>,
    /// Where the emulated capabilities begin.
    msi: Option<u16>,
    msix: Option<u16>,
    vpd: Option<u16>,
    /// The byte and bit by which the guest asks for a function level reset.
    reset_bits: Vec<(u16, u8)>,
}

impl Config {
    /// Builds the guest's space from the hardware's, which is idle ([`COMMAND_IDLE`]).
    pub fn new(hardware: &Snapshot, bars: &[BarSpec], windows: &Windows, features: &Features<'_>) -> Config {
        let identity = Identity {
            vendor: hardware.u16(register::VENDOR_ID),
            device: hardware.u16(register::DEVICE_ID),
            subsystem_vendor: hardware.u16(register::SUBSYSTEM_VENDOR_ID),
            subsystem: hardware.u16(register::SUBSYSTEM_VENDOR_ID + 2),
            class: hardware.u32(register::REVISION) >> 8,
            revision: hardware.u8(register::REVISION),
        };
        let mut space = ConfigSpace::new(identity, bars, windows);
        // Cache line size and latency timer: software writes them for no effect on PCI Express.
        space.allow(register::HEADER_TYPE - 2, &[0xff, 0xff]);
        let pin = features.pin.map_or(0, |pin| pin as u8);
        space.set(register::INTERRUPT_PIN, &[pin]);
        let status = register::STATUS..register::STATUS + 2;
        let mut config = Config {
            space,
            taken: 0,
            live: vec![status],
            msi: None,
            msix: None,
            vpd: None,
            reset_bits: Vec::new(),
        };
        config.add_capabilities(hardware, features);
        extended::add(&mut config.space, hardware);
        config
    }

    /// Reads as the guest does; `hardware` reads from the device, and what it cannot read stays emulated.
    pub fn read<E>(
        &self,
        offset: u16,
        data: &mut [u8],
        mut hardware: impl FnMut(u16, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.space.read(offset, data);
        let end = offset.saturating_add(data.len() as u16);
        for live in &self.live {
            let overlap = live.start.max(offset)..live.end.min(end);
            if overlap.is_empty() {
                continue;
            }
            let place = &mut data[usize::from(overlap.start - offset)..usize::from(overlap.end - offset)];
            let emulated = place.to_vec();
            hardware(overlap.start, place)?;
            for ((at, byte), emulated) in overlap.zip(place).zip(emulated) {
                let kept = self.emulated_bits(at);
                *byte = *byte & !kept | emulated & kept;
            }
        }
        Ok(())
    }

    /// Bits of a live byte that are emulated nevertheless: whether there is a list of capabilities, and the links
    /// of that list.
    fn emulated_bits(&self, at: u16) -> u8 {
        match at {
            register::STATUS => register::STATUS_CAPABILITIES as u8,
            _ => 0,
        }
    }

    /// Writes as the guest does. Returns what must then be written to the hardware, in order.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<Effect> {
        self.space.write(offset, data);
        let mut effects = Vec::new();

        // Bytes 0 to 1 of what was written at `at`, zero where nothing was.
        let written = |at: u16| {
            let byte = |at: u16| at.checked_sub(offset).and_then(|index| data.get(usize::from(index)));
            u16::from_le_bytes([*byte(at).unwrap_or(&0), *byte(at + 1).unwrap_or(&0)])
        };
        let end = offset.saturating_add(data.len() as u16);
        let touches = |range: Range<u16>| offset < range.end && end > range.start;

        if self.reset_bits.iter().any(|(at, bit)| written(*at) as u8 & bit != 0) {
            effects.push(Effect::Reset);
            return effects; // everything else is in the state after reset
        }
        let passed = self.space.command() & COMMAND_PASSED;
        if passed != self.taken {
            effects.push(Effect::Command(passed | COMMAND_IDLE));
        }
        let errors = written(register::STATUS) & STATUS_ERRORS;
        if errors != 0 {
            effects.push(Effect::ClearStatus(errors));
        }
        if self.msi.is_some_and(|at| touches(at..at + 24)) {
            effects.push(Effect::Msi);
        }
        if let Some(at) = self.msix.filter(|at| touches(at + 2..at + 4)) {
            effects.push(Effect::Msix(self.space.u16(at + 2)));
        }
        if let Some(at) = self.vpd.filter(|at| offset <= at + 2 && end >= at + 4) {
            // Bit 15 set means: write the data register to the device. The guest only reads.
            let address = written(at + 2);
            if address & 0x8000 == 0 {
                effects.push(Effect::Vpd(at + 2, address));
            }
        }
        effects
    }

    /// The body of the MSI capability, for [`Msi::update`].
    pub fn msi_body(&self) -> [u8; 22] {
        let mut body = [0; 22];
        if let Some(at) = self.msi {
            self.space.read(at + 2, &mut body);
        }
        body
    }

    /// Where the BARs decode.
    pub fn decoded(&self) -> Decoded {
        self.space.decoded()
    }

    /// The hardware's command register is this now.
    pub fn command_taken(&mut self, command: u16) {
        self.taken = command & COMMAND_PASSED;
    }

    /// Shows the guest what the hardware accepted last of its command register.
    pub fn show_command(&mut self) {
        let command = self.space.command() & !COMMAND_PASSED | self.taken;
        self.space.set(register::COMMAND, &command.to_le_bytes());
    }

    /// This space, just built, with what outlives a reset of the one before: where the BARs are, and what of the
    /// command register the hardware took last.
    pub fn after(mut self, before: &Config) -> Config {
        for bar in before.space.bars() {
            self.space.place_bar(*bar, before.space.bar_address(*bar));
        }
        Config { taken: before.taken, ..self }
    }
}
