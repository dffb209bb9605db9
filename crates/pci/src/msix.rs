//! MSI-X: the capability's control word and the table (PCI Local Bus Specification 3.0, 6.8.2).

use std::sync::Arc;

use crate::address::Address;
use crate::error::PciError;
use crate::services::{MsiMessage, ServiceError, Services, Vector};

/// Bytes of one table entry: address, upper address, data, vector control.
pub const MSIX_ENTRY_SIZE: u64 = 16;

/// Message control: the function uses MSI-X.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: this vector is masked.
const MASKED: u32 = 1;

#[derive(Clone)]
struct Entry {
    message: MsiMessage,
    control: u32,
    /// Made when the vector is first wanted; a device may have 2048 and use two.
    vector: Option<Arc<dyn Vector>>,
    /// The message the vector has now.
    set: Option<MsiMessage>,
}

/// An MSI-X table as the guest programs it, and the vectors behind it.
pub struct Msix {
    device: Address,
    services: Arc<dyn Services>,
    control: u16,
    /// Messages are writes to memory, which the command register may forbid.
    bus_master: bool,
    entries: Vec<Entry>,
}

impl Msix {
    /// A table of `count` vectors (1 to 2048), all masked. Messages may be sent until [`Msix::set_bus_master`] forbids it.
    pub fn new(device: Address, services: Arc<dyn Services>, count: u16) -> Msix {
        let blank =
            Entry { message: MsiMessage { address: 0, data: 0 }, control: MASKED, vector: None, set: None };
        Msix {
            device,
            services,
            control: 0,
            bus_master: true,
            entries: vec![blank; usize::from(count.clamp(1, 2048))],
        }
    }

    /// Body of the capability behind its two header bytes, and the bits of it a guest may write, for
    /// [`crate::ConfigSpace::add_capability`]: table and pending bits at offsets into BARs.
    pub fn capability(&self, table: (u8, u32), pending: (u8, u32)) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.entries.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table.1 & !7 | u32::from(table.0)).to_le_bytes());
        body[6..].copy_from_slice(&(pending.1 & !7 | u32::from(pending.0)).to_le_bytes());
        (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Number of vectors.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether the guest has turned MSI-X on.
    pub fn enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// The guest wrote the message control word. Vectors that fail keep no other from following; they are tried
    /// again at the next write.
    pub fn set_control(&mut self, control: u16) -> Result<(), PciError> {
        self.control = control & (ENABLE | FUNCTION_MASK);
        self.apply_all()
    }

    /// The guest allows or forbids bus mastering. What is raised while it is forbidden waits, as for a masked vector.
    /// Vectors that fail keep no other from following.
    pub fn set_bus_master(&mut self, allowed: bool) -> Result<(), PciError> {
        self.bus_master = allowed;
        self.apply_all()
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.entries.get((at / MSIX_ENTRY_SIZE) as usize).map_or(0xff, |entry| {
                let word = match at % MSIX_ENTRY_SIZE / 4 {
                    0 => entry.message.address as u32,
                    1 => (entry.message.address >> 32) as u32,
                    2 => entry.message.data,
                    _ => entry.control,
                };
                word.to_le_bytes()[(at % 4) as usize]
            });
        }
    }

    /// Writes the table: aligned 32 or 64 bits, as the specification asks of software; anything else goes
    /// nowhere. Vectors whose message or mask changed follow at once.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Result<(), ServiceError> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return Ok(());
        }
        let index = (offset / MSIX_ENTRY_SIZE) as usize;
        let Some(entry) = self.entries.get_mut(index) else { return Ok(()) };
        for (register, word) in (offset % MSIX_ENTRY_SIZE / 4..).zip(data.chunks_exact(4)) {
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let address = &mut entry.message.address;
            match register {
                0 => *address = *address & !0xffff_ffff | u64::from(value & !3),
                1 => *address = *address & 0xffff_ffff | u64::from(value) << 32,
                2 => entry.message.data = value,
                _ => entry.control = value & MASKED,
            }
        }
        self.apply(index)
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = (0..8).fold(0, |bits, bit| bits | u8::from(self.pending(at * 8 + bit)) << bit);
        }
    }

    /// The vector, for whoever raises it; made if it is not there yet. `None` beyond the table.
    pub fn vector(&mut self, index: usize) -> Result<Option<Arc<dyn Vector>>, ServiceError> {
        let Some(entry) = self.entries.get_mut(index) else { return Ok(None) };
        if entry.vector.is_none() {
            entry.vector = Some(self.services.vector(self.device)?);
            self.apply(index)?;
        }
        Ok(self.entries[index].vector.clone())
    }

    /// The vectors that can reach the guest now: index and vector.
    pub fn live(&self) -> impl Iterator<Item = (usize, &Arc<dyn Vector>)> {
        let live = |(index, entry): (usize, &'_ Entry)| entry.set.is_some().then_some(index);
        let indices: Vec<usize> = self.entries.iter().enumerate().filter_map(live).collect();
        indices.into_iter().filter_map(|index| Some((index, self.entries[index].vector.as_ref()?)))
    }

    /// Back to power-on: off, everything masked, no vector; also where a vector failed on the way.
    pub fn reset(&mut self) -> Result<(), PciError> {
        let outcome = self.set_control(0);
        let count = self.entries.len() as u16;
        self.entries = Msix::new(self.device, self.services.clone(), count).entries;
        outcome
    }

    fn pending(&self, index: usize) -> bool {
        let entry = self.entries.get(index);
        entry.and_then(|entry| entry.vector.as_ref()).is_some_and(|vector| vector.pending())
    }

    fn apply_all(&mut self) -> Result<(), PciError> {
        PciError::all((0..self.entries.len()).filter_map(|index| self.apply(index).err()))
    }

    /// Gives the vector the message it ought to have now.
    fn apply(&mut self, index: usize) -> Result<(), ServiceError> {
        let open = self.bus_master && self.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        let entry = &mut self.entries[index];
        let wanted = (open && entry.control & MASKED == 0).then_some(entry.message);
        if wanted == entry.set {
            return Ok(());
        }
        if entry.vector.is_none() {
            entry.vector = Some(self.services.vector(self.device)?);
        }
        if let Some(vector) = &entry.vector {
            vector.set(wanted)?;
        }
        entry.set = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeServices;

    fn msix() -> (Arc<FakeServices>, Msix) {
        let services = Arc::new(FakeServices::default());
        (services.clone(), Msix::new(Address::new(0, 1, 0).unwrap(), services, 4))
    }

    #[test]
    fn no_vector_has_a_message_while_bus_mastering_is_off() {
        let (services, mut msix) = msix();
        msix.set_bus_master(false).unwrap();
        msix.set_control(ENABLE).unwrap();
        msix.write_table(0, &0xfee0_0000u64.to_le_bytes()).unwrap();
        msix.write_table(8, &0x41u64.to_le_bytes()).unwrap();
        let vector = msix.vector(0).unwrap().unwrap();
        vector.eventfd().write(1).unwrap();
        let mut pending = [0];
        msix.read_pending(0, &mut pending);
        assert_eq!((services.messages(), pending), (vec![None], [1]));
        let message = MsiMessage { address: 0xfee0_0000, data: 0x41 };
        msix.set_bus_master(true).unwrap();
        assert_eq!((services.messages(), services.raised(0)), (vec![Some(message)], 1));
        msix.set_bus_master(false).unwrap();
        assert_eq!(services.messages(), [None]);
    }

    #[test]
    fn a_vector_gets_its_message_once_enabled_and_unmasked() {
        let (services, mut msix) = msix();
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes()).unwrap();
        msix.write_table(24, &0x4041u64.to_le_bytes()).unwrap();
        assert_eq!(services.messages(), []);
        msix.set_control(ENABLE).unwrap();
        let message = MsiMessage { address: 0xfee0_1000, data: 0x4041 };
        assert_eq!(services.messages(), [Some(message)]);
        assert_eq!(msix.live().map(|(index, _)| index).collect::<Vec<_>>(), [1]);
        msix.write_table(28, &MASKED.to_le_bytes()).unwrap();
        assert_eq!(services.messages(), [None]);
    }

    #[test]
    fn what_is_raised_while_masked_shows_as_pending() {
        let (_, mut msix) = msix();
        msix.vector(3).unwrap().unwrap().eventfd().write(1).unwrap();
        let mut pending = [0xff; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending, [8, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn vectors_that_fail_are_all_named_and_keep_no_other_from_its_message() {
        let (services, mut msix) = msix();
        for index in 0..4 {
            msix.vector(index).unwrap();
            msix.write_table(16 * index as u64 + 8, &(0x40 + index as u64).to_le_bytes()).unwrap();
        }
        services.break_vector(0, true);
        services.break_vector(2, true);
        let error = msix.set_control(ENABLE).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
        let data = |services: &FakeServices| {
            services.messages().into_iter().map(|message| message.map(|it| it.data)).collect::<Vec<_>>()
        };
        assert_eq!(data(&services), [None, Some(0x41), None, Some(0x43)]);
        services.break_vector(0, false);
        assert!(msix.set_control(ENABLE).is_err(), "vector 2 still fails");
        assert_eq!(data(&services), [Some(0x40), Some(0x41), None, Some(0x43)]);
    }

    #[test]
    fn a_reset_that_fails_still_leaves_no_vector_and_nothing_enabled() {
        let (services, mut msix) = msix();
        msix.write_table(8, &0x40u64.to_le_bytes()).unwrap();
        msix.set_control(ENABLE).unwrap();
        services.break_vector(0, true);
        assert!(msix.reset().is_err());
        assert!(!msix.enabled() && msix.live().next().is_none());
    }

    #[test]
    fn odd_accesses_beyond_or_across_entries_change_nothing() {
        let (services, mut msix) = msix();
        msix.set_control(ENABLE).unwrap();
        msix.write_table(12, &[0; 2]).unwrap();
        msix.write_table(14, &[0; 4]).unwrap();
        msix.write_table(64, &[0; 4]).unwrap();
        msix.write_table(u64::MAX - 7, &[0; 8]).unwrap();
        assert_eq!(services.messages(), []);
        let mut data = [0; 4];
        msix.read_table(64, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert!(msix.vector(4).unwrap().is_none());
    }
}
