//! The board's own functions, which have no BARs: the host bridge and what firmware and operating systems know of a PC with
//! Intel's 440FX by. 82441FX and 82371SB/82371AB data sheets; the identities are those of QEMU's machine `pc`.

use crate::bar::{Decoded, DecodedAt, Windows};
use crate::config_space::{ConfigSpace, Identity};
use crate::error::PciError;
use crate::function::{DeviceNumber, Function};
use crate::register;
use parking_lot::Mutex;

/// The device number of the ISA bridge and of power management, where firmware looks for them.
pub const SOUTH_BRIDGE: u8 = 1;

/// One of them.
pub struct Chipset {
    name: &'static str,
    number: DeviceNumber,
    /// The command register at power-on.
    command: u16,
    space: Mutex<ConfigSpace>,
}

impl Chipset {
    /// The host bridge, 00:00.0.
    pub fn host_bridge(windows: &Windows) -> Chipset {
        Chipset::new("host bridge", DeviceNumber::Own, (0x1237, 0x06_0000, 2), windows)
    }

    /// The bridge to the ISA bus, 00:01.0: by its class, firmware finds that there are serial ports.
    pub fn isa_bridge(windows: &Windows) -> Chipset {
        let mut bridge = Chipset::new("ISA bridge", DeviceNumber::Shared, (0x7000, 0x06_0100, 0), windows);
        // PCICMD: it answers at ports and in memory, and is bus master, always (82371SB, 2.2.3). Firmware looks for that.
        bridge.command = register::COMMAND_IO | register::COMMAND_MEMORY | register::COMMAND_BUS_MASTER;
        {
            let mut space = bridge.space();
            space.set(register::COMMAND, &bridge.command.to_le_bytes());
            // PIRQRC: which of the 8259s' inputs each pin is wired to; none (bit 7). Nothing is: pins go to the I/O APIC.
            space.set(0x60, &[0x80; 4]);
            space.allow(0x60, &[0x8f; 4]);
        }
        bridge
    }

    /// Power management, 00:01.3, whose registers lie at the ports from `base` on, and stay there.
    pub fn power_management(base: u16, windows: &Windows) -> Chipset {
        let function =
            Chipset::new("power management", DeviceNumber::Shared, (0x7113, 0x06_8000, 3), windows);
        {
            let mut space = function.space();
            // PMBA, an address of ports; PMREGMISC: they are there.
            space.set(0x40, &(u32::from(base) | 1).to_le_bytes());
            space.set(0x80, &[1]);
            space.allow(register::COMMAND, &register::COMMAND_IO.to_le_bytes());
        }
        function
    }

    /// `what` is its device ID, class code and revision.
    fn new(name: &'static str, number: DeviceNumber, what: (u16, u32, u8), windows: &Windows) -> Chipset {
        let (device, class, revision) = what;
        let (vendor, subsystem_vendor, subsystem) = (0x8086, 0x1af4, 0x1100);
        let identity = Identity { vendor, device, subsystem_vendor, subsystem, class, revision };
        Chipset { name, number, command: 0, space: Mutex::new(ConfigSpace::new(identity, &[], windows)) }
    }

    fn space(&self) -> parking_lot::MutexGuard<'_, ConfigSpace> {
        self.space.lock()
    }
}

impl Function for Chipset {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device_number(&self) -> DeviceNumber {
        self.number
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        self.space().write(offset, data);
        Ok(())
    }

    fn decoded(&self) -> Decoded {
        Decoded::default()
    }

    fn read_bar(&self, _: usize, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _: usize, _: u64, _: &[u8]) -> Result<(), PciError> {
        Ok(())
    }

    fn bar_moved(&self, _: usize, _: Option<DecodedAt>) -> Result<(), PciError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), PciError> {
        let mut space = self.space();
        space.reset();
        space.set(register::COMMAND, &self.command.to_le_bytes());
        Ok(())
    }
}
