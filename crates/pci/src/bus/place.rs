//! Giving BARs their addresses before the guest starts, as firmware would: by asking the function's registers.

use crate::address::Address;
use crate::bar::{BarKind, BarSpec, ROM};
use crate::bus::{Bus, PciError};
use crate::register;

impl Bus {
    /// Finds out which BARs the function at `address` has (PCI Local Bus Specification 3.0, 6.2.5.1: write ones,
    /// see which stay) and gives each a place. None decodes yet.
    pub fn place_bars(&self, address: Address) -> Result<(), PciError> {
        let name = self.slots().get(&address).map(|slot| slot.function.name().to_owned());
        let Some(name) = name else { return Ok(()) };
        // The largest first: all are powers of two, so no gap is left between them.
        let mut bars = self.probe(address)?;
        bars.sort_by_key(|bar| std::cmp::Reverse(bar.size()));
        for bar in bars {
            let place = self.allocate(&name, bar)?;
            self.write_config(address, bar.register(), &(place as u32).to_le_bytes())?;
            if let BarKind::Memory64 { .. } = bar.kind() {
                self.write_config(address, bar.register() + 4, &((place >> 32) as u32).to_le_bytes())?;
            }
        }
        Ok(())
    }

    fn probe(&self, address: Address) -> Result<Vec<BarSpec>, PciError> {
        let mut bars = Vec::new();
        let mut index = 0;
        while index < 6 {
            let low = self.ones_that_stay(address, register::BAR0 + 4 * index as u16)?;
            let memory64 = low & 0b111 == 0b100 && index < 5;
            let (kind, mask) = if low & 1 != 0 {
                // The upper half of a port number may be missing.
                (BarKind::Io, u64::from(low & !3 | 0xffff_0000) | !0xffff_ffff)
            } else if memory64 {
                let high = self.ones_that_stay(address, register::BAR0 + 4 * index as u16 + 4)?;
                (
                    BarKind::Memory64 { prefetchable: low & 8 != 0 },
                    u64::from(low & !0xf) | u64::from(high) << 32,
                )
            } else {
                (BarKind::Memory32 { prefetchable: low & 8 != 0 }, u64::from(low & !0xf) | !0xffff_ffff)
            };
            if low != 0 {
                bars.extend(BarSpec::new(index, kind, mask.wrapping_neg()));
            }
            index += if memory64 { 2 } else { 1 };
        }
        let rom = self.ones_that_stay(address, register::ROM_BAR)?;
        if rom != 0 {
            let size = (u64::from(rom & !0x7ff) | !0xffff_ffff).wrapping_neg();
            bars.extend(BarSpec::new(ROM, BarKind::Rom, size));
        }
        Ok(bars)
    }

    /// What a register reads as after ones were written to it; it is 0 (and its read-only bits) afterwards.
    fn ones_that_stay(&self, address: Address, register: u16) -> Result<u32, PciError> {
        // The ROM's enable bit stays 0, so that it does not decode meanwhile.
        let ones = if register == register::ROM_BAR { !1u32 } else { u32::MAX };
        self.write_config(address, register, &ones.to_le_bytes())?;
        let mut value = [0; 4];
        self.read_config(address, register, &mut value);
        self.write_config(address, register, &[0; 4])?;
        Ok(u32::from_le_bytes(value))
    }
}
