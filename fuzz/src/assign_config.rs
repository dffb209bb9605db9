//! Hardware that lies about its capabilities, and a guest that writes to what is shown of it.

use std::sync::Arc;

use assign::fuzz::{Emulated, HardwareWrite};
use pci::fake::FakeServices;
use pci::{BarKind, BarSpec, Services, capability, register};

use crate::board::windows;
use crate::steps::Steps;

/// Runs one input: pieces of the hardware's configuration space, then the guest's accesses.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let flags = steps.u8();
    let hardware = hardware(&mut steps);
    for space in [&hardware[..], &hardware[..256]] {
        let byte = |offset: u16| space.get(usize::from(offset)).copied().unwrap_or(0);
        walks(byte);
    }
    let size = steps.pick(&[4096, 256, 64, 0, u64::MAX]);
    let bars = [BarSpec::new(0, BarKind::Memory64 { prefetchable: false }, 0x4000).expect("a possible BAR")];
    let services: Arc<dyn Services> = Arc::new(FakeServices::default());
    let mut emulated = Emulated::new(hardware.clone(), size, &bars, &windows(), &services, flags & 1 != 0);
    let before = list(&emulated);
    while let Some(step) = steps.next_step() {
        let offset = if step & 1 != 0 { steps.u16() % 4096 } else { steps.u8().into() };
        let data = steps.access();
        let len = data.len().min(4096 - usize::from(offset));
        let written = emulated.write(offset, &data[..len]).expect("the services never fail");
        for write in written {
            reaches(write, &before);
        }
        emulated.read(offset, &mut [0; 8][..len]);
    }
    assert_eq!(list(&emulated), before, "the guest changed the list of capabilities");
}

/// Configuration space of the hardware: an empty one with pieces written over it.
fn hardware(steps: &mut Steps<'_>) -> Vec<u8> {
    let mut hardware = vec![0; 4096];
    hardware[usize::from(register::STATUS)] = register::STATUS_CAPABILITIES as u8;
    let mut put = |at: usize, bytes: &[u8]| {
        let at = at.min(4096 - bytes.len());
        hardware[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for _ in 0..steps.u8() % 32 {
        match steps.u8() % 3 {
            0 => {
                // A capability: place, number, next, body.
                let at = usize::from(steps.u8());
                let len = usize::from(steps.u8() % 64);
                put(at, steps.bytes(len));
            }
            1 => {
                let at = 0x100 + usize::from(steps.u16() % 0xf00);
                let len = usize::from(steps.u8() % 64);
                put(at, steps.bytes(len));
            }
            _ => put(register::CAPABILITIES.into(), &[steps.u8()]),
        }
    }
    hardware
}

/// The walks end, stay in their space and visit nothing twice.
fn walks(byte: impl Fn(u16) -> u8) {
    let distinct = |mut offsets: Vec<u16>| {
        let count = offsets.len();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), count);
    };
    let found = capability::walk(&byte);
    assert!(found.iter().all(|(_, at)| (0x40..0x100).contains(at) && at % 4 == 0));
    distinct(found.iter().map(|(_, at)| *at).collect());
    let word = |at: u16| u32::from_le_bytes([0, 1, 2, 3].map(|i| byte(at + i)));
    let found = capability::walk_extended(word);
    assert!(found.iter().all(|(_, _, at)| (0x100..0x1000).contains(at) && at % 4 == 0));
    distinct(found.iter().map(|(_, _, at)| *at).collect());
}

/// The capabilities that the guest sees. Its lists end with a zero, and do so soon.
fn list(emulated: &Emulated) -> (Vec<(u8, u16)>, Vec<u16>) {
    let byte = |at: u16| {
        let mut byte = [0];
        emulated.read(at, &mut byte);
        byte[0]
    };
    let mut found = Vec::new();
    let mut at = u16::from(byte(register::CAPABILITIES));
    while at != 0 {
        assert!((0x40..0x100).contains(&at) && at % 4 == 0, "a capability at {at:#x}");
        found.push((byte(at), at));
        assert!(found.len() <= 48, "the guest's list of capabilities has no end: {found:x?}");
        at = byte(at + 1).into();
    }
    let word = |at: u16| {
        let mut word = [0; 4];
        emulated.read(at, &mut word);
        u32::from_le_bytes(word)
    };
    let mut extended = Vec::new();
    let mut at = 0x100;
    while at != 0 && word(at) != 0 {
        assert!((0x100..0x1000).contains(&at) && at % 4 == 0, "an extended capability at {at:#x}");
        extended.push(at);
        assert!(extended.len() <= 960, "the guest's list of extended capabilities has no end");
        at = (word(at) >> 20) as u16;
    }
    (found, extended)
}

/// Only these writes get through: harmless command bits, clearing of errors, reads of vital product data.
fn reaches(write: HardwareWrite, (list, _): &(Vec<(u8, u16)>, Vec<u16>)) {
    let HardwareWrite { offset, value } = write;
    match offset {
        register::COMMAND => assert_eq!(value & !0x0547, 0),
        register::STATUS => assert_eq!(value & !0xf900, 0),
        _ => {
            assert!(list.contains(&(capability::VPD, offset - 2)), "a write reached {offset:#x}");
            assert_eq!(value & 0x8000, 0, "a write of vital product data");
        }
    }
}
