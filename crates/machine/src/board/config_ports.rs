//! Configuration space by I/O ports: the address at 0xCF8, the data at 0xCFC (PCI Local Bus Specification 3.0,
//! 3.2.2.3.2). Guests use ECAM; this is for those that look here first. Chipsets hide their reset register in
//! the address's second byte, 0xCF9, and so does this.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use devices::{PortDevice, ResetPort};
use pci::{Address, Bus};

use crate::events::Events;

/// The address register: configuration space is meant.
const ENABLE: u32 = 1 << 31;

/// Ports 0xCF8 to 0xCFF.
pub struct ConfigPorts {
    address: AtomicU32,
    bus: Arc<Bus>,
    reset: ResetPort,
    events: Events,
}

impl ConfigPorts {
    /// Ports for a bus. `events` gets its errors.
    pub fn new(bus: Arc<Bus>, reset: ResetPort, events: Events) -> ConfigPorts {
        ConfigPorts { address: AtomicU32::new(0), bus, reset, events }
    }

    /// The function and register that an access to a data port means.
    fn target(&self, offset: u16, len: usize) -> Option<(Address, u16)> {
        let address = self.address.load(Ordering::SeqCst);
        let within = offset.checked_sub(4)?;
        let enabled = address & ENABLE != 0 && usize::from(within) + len <= 4;
        // Bits 23:8 are bus, device and function, as in ECAM's bits 27:12.
        let function = Address::from_ecam(u64::from(address & 0x00ff_ff00) << 4);
        enabled.then_some((function, (address & 0xfc) as u16 + within))
    }
}

impl PortDevice for ConfigPorts {
    fn read(&self, offset: u16, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::SeqCst).to_le_bytes());
        } else if let Some((function, register)) = self.target(offset, data.len()) {
            self.bus.read_config(function, register, data);
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        if let (0, [a, b, c, d]) = (offset, data) {
            self.address.store(u32::from_le_bytes([*a, *b, *c, *d]), Ordering::SeqCst);
        } else if let (1, [_]) = (offset, data) {
            self.reset.write(0, data);
        } else if let Some((function, register)) = self.target(offset, data.len())
            && let Err(error) = self.bus.write_config(function, register, data)
        {
            self.events.provoked(error.to_string());
        }
    }

    fn reset(&self) {
        self.address.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::layout::Layout;
    use crate::events::{Event, events};

    #[test]
    fn the_address_chooses_a_register_and_the_second_byte_alone_resets() {
        let windows = Layout::new(256 << 20, 39, &[]).unwrap().windows;
        let bus = Arc::new(Bus::new(&windows));
        bus.add(Address::new(0, 0, 0).unwrap(), Arc::new(pci::Chipset::host_bridge(&windows))).unwrap();
        let (events, inbox) = events(Box::new(|_| {}));
        let ask = events.clone();
        let reset = ResetPort::cf9(Box::new(move |request| ask.power(request)));
        let ports = ConfigPorts::new(bus, reset, events);
        let read = |offset, len: usize| {
            let mut data = [0xff; 4];
            ports.read(offset, &mut data[..len]);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(4, 4), u32::MAX, "not enabled");
        ports.write(0, &ENABLE.to_le_bytes());
        assert_eq!(read(0, 4), ENABLE);
        assert_eq!(read(4, 4), 0x1237_8086);
        assert_eq!(read(6, 2) & 0xffff, 0x1237);
        ports.write(0, &(ENABLE | 3 << 11).to_le_bytes());
        assert_eq!(read(4, 4), u32::MAX, "no function there");
        assert_eq!(inbox.waiting().len(), 0);
        ports.write(1, &[6]);
        assert!(matches!(inbox.next(None), Ok(Event::Power(devices::PowerRequest::Reset))));
    }
}
