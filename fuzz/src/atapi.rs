//! A hostile driver's packets against a CD drive: whatever they say, the drive reads what is on the disc only, sends no
//! more than it was asked for, and can say why it refused.

use devices::ahci::driver::{Answer, Drive};
use disk::{Access, Geometry, Sectors, WriteCache};

use crate::steps::Steps;

/// Packet commands that a drive knows.
const KNOWN: [u8; 20] = [
    0x00, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x35, 0x43, 0x46, 0x4a, 0x51, 0x52, 0x5a, 0xa8,
    0xbd, 0xbe, 0xbe,
];
const REQUEST_SENSE: u8 = 0x03;

/// A disc of so many sectors.
fn disc(sectors: u64) -> Geometry {
    Geometry {
        capacity: Sectors(sectors),
        logical_block: 512,
        physical_block: 512,
        alignment_offset: 0,
        minimum_io: 512,
        optimal_io: 0,
        access: Access::ReadOnly,
        write_cache: WriteCache::WriteThrough,
        fua: false,
        rotational: false,
        discard: None,
        write_zeroes: None,
        model: None,
        serial: None,
    }
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let mut drive = Drive::new();
    // Whole blocks on the disc, of which a drive can count 2^32 - 1.
    let mut blocks = 0;
    while let Some(step) = steps.next_step() {
        match step {
            0..208 => {
                let mut packet = [0; 16];
                let operands = steps.bytes(11);
                packet[1..=operands.len()].copy_from_slice(operands);
                packet[0] = if step < 192 { KNOWN[usize::from(step) % KNOWN.len()] } else { steps.u8() };
                check(&mut drive, &packet, blocks);
            }
            208..224 => {
                let sectors = if step & 1 == 0 { u64::from(steps.u16()) } else { steps.u64() };
                drive.insert(&disc(sectors));
                blocks = (sectors / 4).min(u32::MAX.into());
            }
            224..232 => drive.take(),
            232..240 => drive.ask(),
            _ => {
                let mut frame = [0; 64];
                let bytes = steps.bytes(16);
                frame[..bytes.len()].copy_from_slice(bytes);
                frame[0] = 0x27;
                drive.frame(&frame, &[0; 16]);
            }
        }
        if !drive.has_disc() {
            blocks = 0;
        }
    }
}

fn check(drive: &mut Drive, packet: &[u8; 16], blocks: u64) {
    match drive.packet(packet) {
        Answer::Done => {}
        Answer::Data(data) => {
            assert!(!data.is_empty() && data.len() <= room(packet), "{packet:02x?}: {} bytes", data.len());
        }
        Answer::Read { first, bytes } => {
            assert!(bytes > 0 && bytes % 2048 == 0, "{packet:02x?}: {bytes} bytes");
            assert!(first + bytes / 2048 <= blocks, "{packet:02x?}: {bytes} bytes at block {first}");
        }
        Answer::Failed(error) => {
            assert_ne!(error >> 4, 0, "{packet:02x?}: a failure without a key");
            let mut sense = [0; 16];
            (sense[0], sense[4]) = (REQUEST_SENSE, 18);
            let Answer::Data(data) = drive.packet(&sense) else { panic!("no sense data") };
            assert_eq!((data.len(), data[2]), (18, error >> 4), "{packet:02x?}: another reason");
        }
    }
}

/// As many bytes as the driver asked for at most.
fn room(packet: &[u8; 16]) -> usize {
    let pair = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    match packet[0] {
        0x03 | 0x1a => packet[4].into(),
        0x12 => pair(3),
        0x25 => 8,
        0xbd => pair(8),
        _ => pair(7),
    }
}
