//! Where a function sits in the guest.

use std::fmt;

/// The address of a function in the guest: bus, device (0 to 31) and function (0 to 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    bus: u8,
    /// Device in bits 7:3, function in bits 2:0, as everywhere in PCI.
    devfn: u8,
}

impl Address {
    /// `None` when the device is above 31 or the function above 7.
    pub fn new(bus: u8, device: u8, function: u8) -> Option<Address> {
        (device < 32 && function < 8).then_some(Address { bus, devfn: device << 3 | function })
    }

    /// The address that an offset into ECAM names: bus in bits 27:20, device 19:15, function 14:12
    /// (PCI Express Base Specification, 7.2.2).
    pub fn from_ecam(offset: u64) -> Address {
        Address { bus: (offset >> 20) as u8, devfn: (offset >> 12) as u8 }
    }

    /// Bus number.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0 to 31.
    pub fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// Function number, 0 to 7.
    pub fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Function 0 of the same device.
    pub fn function_0(self) -> Address {
        Address { devfn: self.devfn & !7, ..self }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device(), self.function())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// An interrupt pin of a function, with the value of its Interrupt Pin register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Pin {
    /// INTA#
    A = 1,
    /// INTB#
    B = 2,
    /// INTC#
    C = 3,
    /// INTD#
    D = 4,
}

impl Pin {
    /// The pin of a device model: INTA# of function 0, as it must be, and of the others in turn, so that those of one device
    /// share as few lines as they can.
    pub fn of(function: Address) -> Pin {
        [Pin::A, Pin::B, Pin::C, Pin::D][usize::from(function.function() % 4)]
    }

    /// The pin that an Interrupt Pin register names; `None` for 0 (no pin) and for nonsense.
    pub fn from_register(value: u8) -> Option<Pin> {
        [Pin::A, Pin::B, Pin::C, Pin::D].into_iter().find(|pin| *pin as u8 == value)
    }
}
