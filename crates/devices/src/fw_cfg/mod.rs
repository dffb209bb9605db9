//! Firmware configuration: what the machine tells its firmware, by registers and by DMA. QEMU, docs/specs/fw_cfg.rst; the
//! firmware that knows it is OVMF.

mod items;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use memory::{Gpa, Ram};
use parking_lot::{Mutex, MutexGuard};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use items::Start;
pub use items::{Content, Items, NameError, key};

use crate::ports::PortDevice;

/// Which item is meant, 16 bits.
const SELECTOR: u16 = 0;
/// Its next byte.
const DATA: u16 = 1;
/// Address of a DMA command, the high half and then the low one, which starts it; big-endian.
const DMA_HIGH: u16 = 4;
const DMA_LOW: u16 = 8;
const DMA_END: u16 = 12;
/// What reads of the DMA register give.
const DMA_SIGNATURE: u64 = u64::from_be_bytes(*b"QEMU CFG");

/// A DMA command's control word.
mod control {
    pub const ERROR: u32 = 1 << 0;
    pub const READ: u32 = 1 << 1;
    pub const SKIP: u32 = 1 << 2;
    /// The upper 16 bits choose an item first.
    pub const SELECT: u32 = 1 << 3;
    pub const WRITE: u32 = 1 << 4;
}

/// A DMA command in guest RAM. What became of it is written to its control word.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Command {
    control: U32,
    len: U32,
    address: U64,
}

/// The bits of a selector that are no item's: the bit for writing, which has had no meaning since 2014, is ignored.
const WRITE_CHANNEL: u16 = 1 << 14;

/// The registers, at twelve ports from 0x510 on.
pub struct FwCfg {
    items: Items,
    ram: Arc<Ram>,
    state: Mutex<State>,
}

/// What the guest has written since which start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    start: Start,
    selected: u16,
    /// The next byte of the item.
    offset: u32,
    dma_high: u32,
}

impl FwCfg {
    /// The number of its ports.
    pub const PORTS: u16 = DMA_END;

    /// Gives these items. DMA goes to `ram`.
    pub fn new(items: Items, ram: Arc<Ram>) -> FwCfg {
        FwCfg { items, ram, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Carries out the command at an address. One that cannot be read is answered to nobody, as there is no place for it.
    fn carry_out(&self, state: &mut State, at: Gpa) {
        let Ok(command) = self.ram.read_obj::<Command>(at) else { return };
        let control = command.control.get();
        if control & control::SELECT != 0 {
            state.select((control >> 16) as u16);
        }
        let done = self.transfer(state, control, command.len.get(), Gpa(command.address.get()));
        let answer = U32::new(if done { 0 } else { control::ERROR });
        let written = self.ram.write_obj(at, &answer);
        debug_assert!(written.is_ok(), "the command was read from there");
    }

    /// Moves bytes; whether that could be done.
    fn transfer(&self, state: &mut State, control: u32, len: u32, to: Gpa) -> bool {
        let none = Content::Bytes(Vec::new());
        let done = if control & control::READ != 0 {
            let item = self.items.get(state.selected, state.start).unwrap_or(&none);
            item.copy(state.offset, &self.ram, to, len).is_ok()
        } else if control & control::WRITE != 0 {
            // No item can be written.
            return false;
        } else if control & control::SKIP != 0 {
            true
        } else {
            return true;
        };
        if done {
            state.offset = state.offset.saturating_add(len);
        }
        done
    }
}

impl State {
    fn select(&mut self, key: u16) {
        (self.selected, self.offset) = (key & !WRITE_CHANNEL, 0);
    }
}

impl PortDevice for FwCfg {
    fn read(&self, offset: u16, data: &mut [u8]) {
        match (offset, data) {
            (DATA, [byte]) => {
                let mut state = self.state();
                *byte = self.items.get(state.selected, state.start).map_or(0, |item| item.byte(state.offset));
                state.offset = state.offset.saturating_add(1);
            }
            (DMA_HIGH..DMA_END, data) => {
                let signature = DMA_SIGNATURE.to_be_bytes();
                let from = &signature[usize::from(offset - DMA_HIGH)..];
                data.iter_mut().zip(from).for_each(|(byte, from)| *byte = *from);
            }
            _ => {}
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let mut state = self.state();
        match (offset, data) {
            (SELECTOR, [low, high]) => state.select(u16::from_le_bytes([*low, *high])),
            (DMA_HIGH, [a, b, c, d]) => state.dma_high = u32::from_be_bytes([*a, *b, *c, *d]),
            (DMA_LOW, [a, b, c, d]) => {
                let low = u32::from_be_bytes([*a, *b, *c, *d]);
                let at = Gpa(u64::from(state.dma_high) << 32 | u64::from(low));
                state.dma_high = 0;
                self.carry_out(&mut state, at);
            }
            _ => {}
        }
    }

    fn reset(&self) {
        *self.state() = State { start: Start::Again, ..State::default() };
    }
}
