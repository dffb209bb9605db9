//! A hostile driver against a queue: no panic, bounded work, and every buffer inside RAM.

use std::sync::{Arc, OnceLock};

use memory::{Buffers, Gpa, GpaRange, Ram};
use virtio::{Chain, Cursor, Features, Head, Queue, QueueAddresses};

use crate::steps::Steps;

/// Descriptor table, available ring, used ring and indirect tables, unless the input has them elsewhere.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x6000;
const INDIRECT: u64 = 0x8000;
/// More buffers than the longest chain has: its own descriptors, or an indirect table's 1024.
const MOST_PIECES: usize = 32768;

/// Two segments of 64 KiB with a hole between them.
fn ram() -> Arc<Ram> {
    static RAM: OnceLock<Arc<Ram>> = OnceLock::new();
    let make = || {
        let segment = |start| GpaRange::new(Gpa(start), 0x1_0000).expect("not empty");
        Arc::new(Ram::new(&[segment(0), segment(0x2_0000)]).expect("128 KiB"))
    };
    let ram = RAM.get_or_init(make).clone();
    for segment in ram.segments() {
        ram.zero(segment.range().start(), segment.range().len()).expect("the segment is RAM");
    }
    ram
}

/// An address: mostly near something.
fn address(steps: &mut Steps<'_>) -> u64 {
    match steps.u8() % 8 {
        0..4 => u64::from(steps.u16()),
        4 => 0x2_0000 + u64::from(steps.u16()),
        5 => 0x1_0000 - u64::from(steps.u8()),
        6 => u64::MAX - u64::from(steps.u16()),
        _ => steps.u64(),
    }
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let ram = ram();
    let size = match steps.u8() {
        exponent @ 0..=15 => 1 << exponent,
        _ => steps.u16(),
    };
    let flags = steps.u8();
    let mut features = Features::VERSION_1;
    let features_by_bit =
        [(1, Features::INDIRECT_DESC), (2, Features::EVENT_IDX), (8, Features::RING_PACKED)];
    for (bit, feature) in features_by_bit {
        if flags & bit != 0 {
            features = features | feature;
        }
    }
    let mut at =
        QueueAddresses { size, descriptors: Gpa(DESCRIPTORS), driver: Gpa(AVAILABLE), device: Gpa(USED) };
    if flags & 4 != 0 {
        at.descriptors = Gpa(address(&mut steps));
        at.driver = Gpa(address(&mut steps));
        at.device = Gpa(address(&mut steps));
    }
    let Ok(mut queue) = Queue::new(ram.clone(), &at, features) else { return };
    let mut chain = Chain::new();
    let mut taken: Vec<Head> = Vec::new();
    let mut available = 0u16;
    // What misses RAM is no concern of the driver.
    let write = |gpa: u64, bytes: &[u8]| ram.write(Gpa(gpa), bytes).is_ok();

    while let Some(step) = steps.next_step() {
        match step % 10 {
            0 => {
                let table = steps.pick(&[at.descriptors.0, INDIRECT]);
                let index = u64::from(steps.u16()) % 1024;
                let mut raw = [0; 16];
                raw[..8].copy_from_slice(&address(&mut steps).to_le_bytes());
                let len = if step & 0x80 != 0 { steps.u32() } else { u32::from(steps.u8()) * 16 };
                raw[8..12].copy_from_slice(&len.to_le_bytes());
                raw[12..].copy_from_slice(steps.bytes(4).first_chunk().unwrap_or(&[0; 4]));
                write(table.saturating_add(16 * index), &raw);
            }
            1 if features.contains(Features::RING_PACKED) => {
                // The flags of a descriptor, mostly on the lap on which the device comes.
                let (place, lap) = (u64::from(available % size), available / size);
                let wrap = if lap.is_multiple_of(2) { 1 << 7 } else { 1 << 15 };
                let flags = if step & 0x80 != 0 { steps.u16() } else { u16::from(steps.u8()) & 7 | wrap };
                write(at.descriptors.0.saturating_add(16 * place + 14), &flags.to_le_bytes());
                available = available.wrapping_add(1);
            }
            1 => {
                let place = u64::from(available % size);
                write(at.driver.0.saturating_add(4 + 2 * place), &steps.u16().to_le_bytes());
                available = available.wrapping_add(1);
                write(at.driver.0.saturating_add(2), &available.to_le_bytes());
            }
            2 if features.contains(Features::RING_PACKED) => available = steps.u16(),
            2 => {
                available = steps.u16();
                write(at.driver.0.saturating_add(2), &available.to_le_bytes());
            }
            3..6 => {
                if let Ok(Some(head)) = queue.pop(&mut chain) {
                    taken.push(head);
                    assert!(taken.len() <= usize::from(size), "more chains than descriptors");
                    look(&chain, &ram, &mut steps);
                }
            }
            6 => {
                if !taken.is_empty() {
                    let head = taken.swap_remove(usize::from(steps.u8()) % taken.len());
                    queue.push_used(head, steps.u32());
                }
            }
            7 => _ = std::hint::black_box(queue.publish()),
            8 if step & 0x80 != 0 => queue.disarm(),
            8 => drop(std::hint::black_box(queue.arm())),
            _ => {
                let gpa = address(&mut steps);
                let len = usize::from(steps.u8());
                write(gpa, steps.bytes(len));
            }
        }
    }
}

/// Every way to look at a chain.
fn look(chain: &Chain, ram: &Arc<Ram>, steps: &mut Steps<'_>) {
    for whole in [chain.readable(), chain.writable()] {
        let bytes = whole.bytes();
        let pieces: Vec<_> = whole.clone().take(bytes).expect("as many as there are").collect();
        assert!(pieces.len() <= MOST_PIECES);
        assert_eq!(pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>(), bytes);
        for piece in &pieces {
            assert!(piece.len > 0 && ram.slice(piece.gpa, piece.len.into()).is_ok(), "{piece:?} is not RAM");
        }
        assert!(whole.clone().take(bytes + 1).is_none());
        assert_eq!(whole.start(), pieces.first().map(|piece| piece.gpa));
        cut(whole.clone(), ram, u64::from(steps.u16()) % (bytes + 1));
        let mut buffers = Buffers::new(ram.clone());
        whole.append_to(&mut buffers).expect("all of it is RAM");
        assert_eq!(buffers.bytes(), bytes);
        let lens: u64 = buffers.iovecs().iter().map(|piece| piece.iov_len as u64).sum();
        assert_eq!(lens, bytes);
    }
}

/// Cut in two anywhere, both halves together are the whole.
fn cut(mut front: Cursor<'_>, ram: &Ram, at: u64) {
    let (bytes, whole) = (front.bytes(), front.clone());
    let end = front.split_end(bytes - at).expect("no more than there is");
    assert_eq!((front.bytes(), end.bytes()), (at, bytes - at));
    let mut some = [0; 64];
    let (len, tail) = (at.min(32) as usize, end.bytes().min(32) as usize);
    front.read_bytes(ram, &mut some[..len]).expect("as many are left");
    end.clone().read_bytes(ram, &mut some[32..32 + tail]).expect("as many are left");
    let mut again = [0; 64];
    whole.clone().read_bytes(ram, &mut again[..len]).expect("as many are left");
    let mut skipped = whole;
    skipped.take(at).expect("no more than there is");
    skipped.read_bytes(ram, &mut again[32..32 + tail]).expect("as many are left");
    assert_eq!(some, again);
}
