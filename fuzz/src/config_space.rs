//! A guest that writes configuration space, and only that, in every width and at every place.

use pci::{Address, capability, register};

use crate::board::Board;
use crate::steps::Steps;

/// Runs one input: the assigned function's hardware, then accesses.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let mut hardware = vec![0; 4096];
    let header = steps.bytes(128);
    hardware[..header.len()].copy_from_slice(header);
    let board = Board::new(hardware);
    let virtio = Address::new(0, 1, 0).expect("a device of the root bus");
    let list = |address| {
        capability::walk(|offset| {
            let mut byte = [0];
            board.bus.read_config(address, offset, &mut byte);
            byte[0]
        })
    };
    let capabilities = list(virtio);
    while let Some(step) = steps.next_step() {
        match step % 8 {
            0..4 => {
                let address = board.address(&mut steps);
                let offset = steps.u16() % 4100;
                board.write_config(address, offset, steps.access());
            }
            4 => {
                // Where the capabilities and the header are.
                let address = board.address(&mut steps);
                let offset = u16::from(steps.u8());
                board.write_config(address, offset, steps.access());
            }
            5 => board.reprogram(&mut steps),
            6 => {
                let address = board.address(&mut steps);
                let (offset, len) = (steps.u16() % 4100, steps.access().len());
                let mut data = [0; 8];
                board.bus.read_config(address, offset, &mut data[..len]);
            }
            _ if step == 0xff => board.reset(),
            _ => {
                if let Err(why) = board.bus.place_bars(board.address(&mut steps)) {
                    // Places are given out once.
                    assert!(why.to_string().contains("fits into no window"), "{why}");
                }
            }
        }
        board.check();
        let mut identity = [0; 4];
        board.bus.read_config(virtio, register::VENDOR_ID, &mut identity);
        assert_eq!(u32::from_le_bytes(identity), 0x106a_1af4);
        assert_eq!(list(virtio), capabilities, "the list of capabilities changed");
    }
}
