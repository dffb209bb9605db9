//! MSI: a capability that carries its own message (PCI Local Bus Specification 3.0, 6.8.1).

use std::sync::Arc;

use crate::address::Address;
use crate::error::PciError;
use crate::services::{MsiMessage, Services, Vector};

const ENABLE: u16 = 1;
const IS_64_BIT: u16 = 1 << 7;
const PER_VECTOR_MASKING: u16 = 1 << 8;

/// An MSI capability as the guest programs it, with 64-bit addresses, and the vectors behind it.
pub struct Msi {
    device: Address,
    services: Arc<dyn Services>,
    /// log2 of how many vectors the function can use.
    capable: u16,
    maskable: bool,
    /// Messages are writes to memory, which the command register may forbid.
    bus_master: bool,
    vectors: Vec<Arc<dyn Vector>>,
    set: Vec<Option<MsiMessage>>,
}

impl Msi {
    /// `count` vectors: a power of two up to 32 (others are rounded down). Messages may be sent until
    /// [`Msi::set_bus_master`] forbids it.
    pub fn new(device: Address, services: Arc<dyn Services>, count: u8, maskable: bool) -> Msi {
        let capable = u16::from(count.clamp(1, 32)).ilog2() as u16;
        Msi { device, services, capable, maskable, bus_master: true, vectors: Vec::new(), set: Vec::new() }
    }

    /// Body of the capability behind its two header bytes, and the bits of it a guest may write, for
    /// [`crate::ConfigSpace::add_capability`].
    pub fn capability(&self) -> (Vec<u8>, Vec<u8>) {
        let control = IS_64_BIT | self.capable << 1 | if self.maskable { PER_VECTOR_MASKING } else { 0 };
        let mut body = control.to_le_bytes().to_vec();
        let mut writable = vec![0x71, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        body.resize(if self.maskable { 22 } else { 12 }, 0);
        if self.maskable {
            writable.extend([0, 0]);
            writable.extend(u32::MAX.checked_shr(32 - (1 << self.capable)).unwrap_or(0).to_le_bytes());
        }
        (body, writable)
    }

    /// The guest wrote the capability; `body` is what it holds now, behind the two header bytes. Vectors follow;
    /// those that fail keep no other from it, and are tried again at the next write.
    pub fn update(&mut self, body: &[u8]) -> Result<(), PciError> {
        let word = |at: usize| {
            let byte = |i: usize| u32::from(body.get(at + i).copied().unwrap_or(0));
            byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
        };
        let control = word(0) as u16;
        let address = u64::from(word(2)) | u64::from(word(6)) << 32;
        let data = word(10) & 0xffff;
        let mask = if self.maskable { word(14) } else { 0 };
        let count = if control & ENABLE != 0 { 1usize << (control >> 4 & 7).min(self.capable) } else { 0 };
        let mut errors = Vec::new();
        while self.vectors.len() < count && errors.is_empty() {
            match self.services.vector(self.device) {
                Ok(vector) => self.vectors.push(vector),
                Err(error) => errors.push(error),
            }
        }
        self.set.resize(self.vectors.len(), None);
        for index in 0..self.vectors.len() {
            // Software gives a message whose low bits are free for the function to count in.
            let message = MsiMessage { address, data: data & !(count.max(1) as u32 - 1) | index as u32 };
            let wanted = (self.bus_master && index < count && mask >> index & 1 == 0).then_some(message);
            if self.set[index] != wanted {
                match self.vectors[index].set(wanted) {
                    Ok(()) => self.set[index] = wanted,
                    Err(error) => errors.push(error),
                }
            }
        }
        PciError::all(errors)
    }

    /// The guest allows or forbids bus mastering; `body` is what the capability holds, behind the two header bytes. What is
    /// raised while it is forbidden waits, as for a masked vector.
    pub fn set_bus_master(&mut self, allowed: bool, body: &[u8]) -> Result<(), PciError> {
        self.bus_master = allowed;
        self.update(body)
    }

    /// The vectors in use: all of those that the guest enabled, masked or not.
    pub fn vectors(&self, body: &[u8]) -> &[Arc<dyn Vector>] {
        let control = u16::from_le_bytes([body[0], body[1]]);
        let count = if control & ENABLE != 0 { 1 << (control >> 4 & 7).min(self.capable) } else { 0 };
        &self.vectors[..count.min(self.vectors.len())]
    }

    /// Back to power-on: off, no vector; also where a vector failed on the way.
    pub fn reset(&mut self) -> Result<(), PciError> {
        let outcome = self.update(&[0; 22]);
        self.vectors.clear();
        self.set.clear();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeServices;

    #[test]
    fn several_vectors_count_in_the_low_bits_of_the_message_and_obey_the_mask() {
        let services = Arc::new(FakeServices::default());
        let mut msi = Msi::new(Address::new(0, 1, 0).unwrap(), services.clone(), 4, true);
        let (mut body, writable) = msi.capability();
        assert_eq!((body.len(), writable.len()), (22, 18));
        assert_eq!(u32::from_le_bytes(writable[14..].try_into().unwrap()), 0xf);
        body[0] |= 1 | 1 << 4;
        body[2..6].copy_from_slice(&0xfee0_0000u32.to_le_bytes());
        body[10] = 0x41;
        body[14] = 0b10;
        msi.update(&body).unwrap();
        assert_eq!(services.messages(), [Some(MsiMessage { address: 0xfee0_0000, data: 0x40 }), None]);
        assert_eq!(msi.vectors(&body).len(), 2);
        body[14] = 0;
        msi.update(&body).unwrap();
        assert_eq!(services.messages()[1], Some(MsiMessage { address: 0xfee0_0000, data: 0x41 }));
        msi.set_bus_master(false, &body).unwrap();
        assert_eq!(services.messages(), [None, None]);
        msi.set_bus_master(true, &body).unwrap();
        assert!(services.messages().iter().all(Option::is_some));
        msi.update(&[]).unwrap();
        assert_eq!(services.messages(), [None, None]);
    }

    #[test]
    fn a_vector_that_fails_keeps_no_other_from_its_message() {
        let services = Arc::new(FakeServices::default());
        let mut msi = Msi::new(Address::new(0, 1, 0).unwrap(), services.clone(), 4, false);
        let mut body = [0; 22];
        body[0] = 1 | 2 << 4;
        body[2..6].copy_from_slice(&0xfee0_0000u32.to_le_bytes());
        msi.update(&body).unwrap();
        services.break_vector(0, true);
        services.break_vector(1, true);
        body[10] = 0x80;
        assert_eq!(msi.update(&body).unwrap_err().to_string().lines().count(), 2);
        let data = services.messages().into_iter().map(|message| message.unwrap().data);
        assert_eq!(data.collect::<Vec<_>>(), [0, 1, 0x82, 0x83]);
        assert!(msi.reset().is_err());
        assert!(msi.vectors(&body).is_empty());
    }
}
