//! The function at 00:00.0: the root complex's own, without BARs.

use std::sync::Mutex;

use crate::bar::{Decoded, DecodedAt, Windows};
use crate::config_space::{ConfigSpace, Identity};
use crate::error::PciError;
use crate::function::{DeviceNumber, Function};

/// The host bridge that guests expect at 00:00.0.
pub struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    /// Class 0600h, with the identity of QEMU's generic PCI Express host bridge, which every guest knows and
    /// none has a driver for.
    pub fn new(windows: &Windows) -> HostBridge {
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            class: 0x06_0000,
            revision: 0,
        };
        HostBridge(Mutex::new(ConfigSpace::new(identity, &[], windows)))
    }

    fn space(&self) -> std::sync::MutexGuard<'_, ConfigSpace> {
        self.0.lock().expect("no code panics with this lock held")
    }
}

impl Function for HostBridge {
    fn name(&self) -> &'static str {
        "host bridge"
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber::Own
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
        self.space().reset();
        Ok(())
    }
}
