//! Hostile PRP lists and scatter gather lists: the walk ends, and gives the bytes named, in RAM, or an error.

use std::sync::{Arc, OnceLock};

use devices::nvme::driver::gather;
use devices::nvme::spec::Command;
use memory::{Gpa, GpaRange, Ram};

use crate::steps::Steps;

const RAM: u64 = 1 << 20;
/// Lists lie in these bytes.
const LISTS: u64 = 0x1_0000;
const LISTS_SIZE: usize = 0x4000;

/// Runs one input: a command, and what lies in its lists.
pub fn run(input: &[u8]) {
    static SHARED: OnceLock<Arc<Ram>> = OnceLock::new();
    let make = || Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("1 MiB"));
    let ram = SHARED.get_or_init(make);
    let mut steps = Steps::new(input);
    let flags = steps.u8();
    let bytes = u64::from(steps.u32()) % (4 << 20) + 1;
    let mut dptr = [0; 2];
    for word in &mut dptr {
        *word = address(&mut steps);
    }
    let mut at = 0;
    ram.zero(Gpa(LISTS), LISTS_SIZE as u64).expect("RAM");
    while let Some(step) = steps.next_step() {
        let entry = match step % 4 {
            // An address, as in a PRP list and at the start of an SGL descriptor.
            0 | 1 => address(&mut steps),
            // Length and type of an SGL descriptor.
            2 => u64::from(steps.u16()) | u64::from(steps.pick(&[0u8, 0x20, 0x30, 0x10, 0xff])) << 56,
            _ => {
                at = usize::from(steps.u16()) % LISTS_SIZE & !7;
                continue;
            }
        };
        ram.write_obj(Gpa(LISTS + at as u64), &entry).expect("RAM");
        at = (at + 8) % LISTS_SIZE;
    }
    let command = Command { flags, dptr: dptr.map(Into::into), ..Command::default() };
    let Ok(buffers) = gather(&command, bytes, ram) else { return };
    assert_eq!(buffers.bytes(), bytes);
    let start = ram.slice(Gpa(0), RAM).expect("all of RAM").as_ptr() as usize;
    for piece in buffers.iovecs() {
        let at = piece.iov_base as usize;
        assert!(at >= start && at + piece.iov_len <= start + RAM as usize, "a piece outside RAM");
    }
    let sum: usize = buffers.iovecs().iter().map(|piece| piece.iov_len).sum();
    assert_eq!(sum as u64, bytes);
}

fn address(steps: &mut Steps<'_>) -> u64 {
    match steps.u8() % 8 {
        0..3 => u64::from(steps.u8()) << 12,
        3..5 => LISTS + u64::from(steps.u16()) % LISTS_SIZE as u64 / 8 * 8,
        5 => LISTS + u64::from(steps.u8() % 4) * 4096,
        6 => u64::from(steps.u32()) % RAM,
        _ => steps.u64(),
    }
}
