//! A guest that talks to a virtio function through the bus.

use std::sync::Arc;

use memory::{Gpa, GpaRange, Ram};
use parking_lot::Mutex;
use pci::fake::FakeServices;
use pci::{Address, Bus, DeviceNumber, Windows};

use super::ring::Driver;
use crate::device::VirtioDevice;
use crate::features::Features;
use crate::pci::VirtioPci;

/// A guest with one virtio device. Its methods panic when the machine does not do as it should, for this is a
/// thing for tests.
pub struct Guest {
    /// The bus with the device on it.
    pub bus: Bus,
    /// The device's address.
    pub address: Address,
    /// The guest's RAM.
    pub ram: Arc<Ram>,
    /// What the device asked of the machine.
    pub services: Arc<FakeServices>,
    /// What was reported to people.
    pub reports: Arc<Mutex<Vec<String>>>,
}

impl Guest {
    /// Where the virtio BAR is; the MSI-X BAR follows 64 KiB further.
    pub const BAR: u64 = 0x40_0000_0000;
    /// Where the common registers are.
    pub const COMMON: u64 = Self::BAR;
    /// Where the ISR status is.
    pub const ISR: u64 = Self::BAR + 0x1000;
    /// Where the device's configuration is.
    pub const DEVICE: u64 = Self::BAR + 0x2000;
    /// Where the doorbells are, four bytes apart.
    pub const NOTIFY: u64 = Self::BAR + 0x3000;
    /// Where the MSI-X table is.
    pub const MSIX: u64 = Self::BAR + 0x10000;

    /// Plugs the device in and enables its BARs.
    pub fn new(device: Box<dyn VirtioDevice>, ram: Arc<Ram>) -> Guest {
        let windows = Windows {
            memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
            memory64: GpaRange::new(Gpa(Self::BAR), 0x10_0000_0000),
            ports: (0xc000, 0xffff),
        };
        let services = Arc::new(FakeServices::default());
        let reports: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = reports.clone();
        let report = Arc::new(move |report: crate::Message| sink.lock().push(report.to_string()));
        let bus = Bus::new(&windows);
        let address = bus.free_address(DeviceNumber::Shared).unwrap();
        let function =
            VirtioPci::new(device, address, ram.clone(), services.clone(), &windows, report).unwrap();
        bus.add(address, Arc::new(function)).unwrap();
        let guest = Guest { bus, address, ram, services, reports };
        for (register, bar) in [(0x10, Self::BAR), (0x18, Self::MSIX)] {
            guest.config_write(register, &bar.to_le_bytes());
        }
        guest.config_write(4, &[6, 0]);
        guest
    }

    /// Writes configuration space.
    pub fn config_write(&self, offset: u16, data: &[u8]) {
        self.bus.write_config(self.address, offset, data).unwrap();
    }

    /// Reads configuration space.
    pub fn config_read<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.bus.read_config(self.address, offset, &mut data);
        data
    }

    /// Writes to a BAR.
    pub fn write<const N: usize>(&self, at: u64, data: [u8; N]) {
        self.bus.write_memory(Gpa(at), &data).unwrap().unwrap();
    }

    /// Reads from a BAR.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        assert!(self.bus.read_memory(Gpa(at), &mut data));
        data
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.read::<1>(Self::COMMON + 20)[0]
    }

    /// Negotiates up to FEATURES_OK.
    pub fn negotiate(&self, features: Features) {
        self.write(Self::COMMON + 20, [1]);
        self.write(Self::COMMON + 20, [3]);
        for half in 0..2u32 {
            self.write(Self::COMMON + 8, half.to_le_bytes());
            self.write(Self::COMMON + 12, ((features.0 >> (32 * half)) as u32).to_le_bytes());
        }
        self.write(Self::COMMON + 20, [11]);
    }

    /// Puts a queue of `size` descriptors at `base` and enables it.
    pub fn add_queue(&self, index: u16, base: Gpa, size: u16, features: Features) -> Driver {
        let driver = Driver::new(self.ram.clone(), base, size, features);
        let at = driver.addresses();
        self.write(Self::COMMON + 22, index.to_le_bytes());
        self.write(Self::COMMON + 24, at.size.to_le_bytes());
        self.write(Self::COMMON + 32, at.descriptors.0.to_le_bytes());
        for (offset, address) in [(40, at.driver.0), (48, at.device.0)] {
            self.write(Self::COMMON + offset, (address as u32).to_le_bytes());
            self.write(Self::COMMON + offset + 4, ((address >> 32) as u32).to_le_bytes());
        }
        self.write(Self::COMMON + 28, 1u16.to_le_bytes());
        driver
    }

    /// Says DRIVER_OK.
    pub fn go(&self) {
        self.write(Self::COMMON + 20, [15]);
    }

    /// Rings a queue's doorbell.
    pub fn kick(&self, queue: u16) {
        self.write(Self::NOTIFY + 4 * u64::from(queue), queue.to_le_bytes());
    }

    /// Resets the device and waits for it, as drivers do.
    pub fn reset(&self) {
        self.write(Self::COMMON + 20, [0]);
        while self.status() != 0 {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    /// What was reported to people so far.
    pub fn reports(&self) -> Vec<String> {
        self.reports.lock().clone()
    }
}
