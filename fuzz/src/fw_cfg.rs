//! A hostile guest's accesses to the firmware's configuration: a DMA command changes its own control word and the place that it
//! names, and no other byte of RAM.

use std::sync::Arc;

use devices::fw_cfg::{Items, key};
use devices::{FwCfg, PortDevice};
use memory::{Gpa, GpaRange, Ram};

use crate::steps::Steps;

const RAM: u64 = 16 << 10;

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("some memory"));
    let mut items = Items::default();
    items.set(key::CPUS, vec![2, 0]);
    items.add("etc/e820", vec![0xa5; 1000]).expect("a name");
    items.add("opt/empty", Vec::new()).expect("a name");
    let device = FwCfg::new(items, ram.clone());
    while let Some(step) = steps.next_step() {
        match step {
            0..64 => {
                let offset = u16::from(step) % FwCfg::PORTS;
                let len = steps.pick(&[1, 2, 4]).min(FwCfg::PORTS - offset);
                device.read(offset, &mut vec![0; usize::from(len)]);
            }
            64..128 => {
                let offset = u16::from(step) % FwCfg::PORTS;
                let len = steps.pick(&[1, 2, 4]).min(FwCfg::PORTS - offset);
                let data: Vec<u8> = (0..len).map(|_| steps.u8()).collect();
                // A command may be anywhere: it is only one that `command` follows up.
                if offset != 8 {
                    device.write(offset, &data);
                }
            }
            128..136 => device.reset(),
            _ => command(&mut steps, &device, &ram),
        }
    }
}

/// A command somewhere near RAM, and what became of RAM.
fn command(steps: &mut Steps<'_>, device: &FwCfg, ram: &Ram) {
    let at = u64::from(steps.u16());
    let control = u32::from(steps.u16()) << 16 | u32::from(steps.u8() & 0x1f);
    let len = steps.pick(&[0, 1, 7, 4096, 1 << 20, u32::MAX]);
    let near = u64::from(steps.u16());
    let to = steps.pick(&[near, at, RAM - 1, u64::MAX - 3]);
    let bytes = [&control.to_be_bytes()[..], &len.to_be_bytes(), &to.to_be_bytes()].concat();
    let there = ram.write(Gpa(at), &bytes).is_ok();
    let before = all(ram);
    device.write(4, &((at >> 32) as u32).to_be_bytes());
    device.write(8, &(at as u32).to_be_bytes());
    let after = all(ram);
    let end = to.saturating_add(len.into());
    // What is not named, piece by piece: whole pieces compare fast.
    let mut edges = [0, RAM, to.min(RAM), end.min(RAM), at.min(RAM), (at + 4).min(RAM)];
    edges.sort_unstable();
    for edge in edges.windows(2) {
        let own = there && (at..at + 4).contains(&edge[0]);
        let named = there && (to..end).contains(&edge[0]);
        let piece = edge[0] as usize..edge[1] as usize;
        assert!(own || named || before[piece.clone()] == after[piece.clone()], "{piece:#x?} was changed");
    }
    if there && !(to..end).contains(&at) {
        let answer = u32::from_be_bytes(after[at as usize..at as usize + 4].try_into().expect("four bytes"));
        assert!(answer <= 1, "{answer:#x} is no answer");
    }
}

fn all(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    ram.read(Gpa(0), &mut bytes).expect("all of it");
    bytes
}
