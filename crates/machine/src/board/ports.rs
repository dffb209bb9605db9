//! I/O ports: fixed devices, and PCI's I/O BARs where no fixed device is.

use std::ops::RangeInclusive;
use std::sync::Arc;

use devices::PortDevice;

/// The fixed devices by their ports.
#[derive(Default)]
pub struct Ports {
    devices: Vec<(RangeInclusive<u16>, Arc<dyn PortDevice>)>,
}

impl Ports {
    /// Puts a device at its ports.
    pub fn add(&mut self, ports: RangeInclusive<u16>, device: Arc<dyn PortDevice>) {
        debug_assert!(
            self.devices.iter().all(|(other, _)| ports.end() < other.start() || ports.start() > other.end())
        );
        self.devices.push((ports, device));
    }

    /// The device that has all `len` ports from `port` on, and the offset into its ports.
    pub fn find(&self, port: u16, len: usize) -> Option<(&dyn PortDevice, u16)> {
        let last = port.checked_add(u16::try_from(len.checked_sub(1)?).ok()?)?;
        let (ports, device) =
            self.devices.iter().find(|(ports, _)| ports.contains(&port) && ports.contains(&last))?;
        Some((device.as_ref(), port - ports.start()))
    }

    /// Resets every device.
    pub fn reset(&self) {
        for (_, device) in &self.devices {
            device.reset();
        }
    }
}
