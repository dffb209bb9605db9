//! Patterns on a disk: each eight bytes follow from the seed and their place.

use crate::aio::{Queue, Way};
use crate::buffer::{Layout, PAGE, Pages};
use crate::device::Device;
use crate::{mix, number, size};

/// The kernel takes so many pieces at once.
const PIECES: usize = 1024;

/// So many blocks at most are under way at once, and so much memory they have together: a huge page.
const DEPTH: usize = 16;
const ROOM: usize = 2 << 20;

/// So many blocks at the start go one by one.
const ALONE: usize = 16;

/// A block on the disk, and where it lies in memory.
struct Block {
    start: u64,
    length: usize,
    place: usize,
}

/// One stretch of a disk and its pattern.
struct Stretch {
    device: Device,
    offset: u64,
    length: u64,
    block: usize,
    seed: u64,
    layout: Layout,
}

impl Stretch {
    fn new(words: [&str; 5], layout: &str, writable: bool) -> Result<Self, String> {
        let [path, offset, length, block, seed] = words;
        let layout = match layout {
            "scattered" => Layout::Scattered,
            "whole" => Layout::Whole,
            other => return Err(format!("memory is scattered or whole, not {other:?}")),
        };
        let device = Device::open(path, writable)?;
        let (offset, block) = (size(offset)?, size(block)?);
        let length = match size(length)? {
            0 => device.size.saturating_sub(offset),
            length => length,
        };
        if block % 8 != 0 || block == 0 || block > (PIECES * PAGE) as u64 {
            return Err(format!("blocks of {block} bytes are no multiple of 8, or larger than 4M"));
        }
        if offset.checked_add(length).is_none_or(|end| end > device.size) || length == 0 {
            return Err(format!(
                "{length} bytes from {offset} do not lie on a disk of {} bytes",
                device.size
            ));
        }
        // At most 4 MiB.
        Ok(Stretch { device, offset, length, block: block as usize, seed: number("seed", seed)?, layout })
    }

    /// How far apart blocks lie in memory.
    fn stride(&self) -> usize {
        self.block.next_multiple_of(PAGE)
    }

    /// How many blocks are under way at once.
    fn depth(&self) -> usize {
        (ROOM / self.stride()).clamp(1, DEPTH)
    }

    /// Memory for so many blocks.
    fn memory(&self) -> Result<Pages, String> {
        let length = self.stride() * self.depth();
        let pages = match self.layout {
            Layout::Scattered => Pages::new(length),
            Layout::Whole => Pages::whole(length),
        };
        pages.map_err(|e| format!("cannot get memory: {e}"))
    }

    /// A queue that has room for them.
    fn queue(&self) -> Result<Queue, String> {
        Queue::new(self.device.fd(), self.depth()).map_err(|e| format!("cannot set up a queue: {e}"))
    }

    /// The blocks in the order of the disk, in groups that are under way together: the first few one by one, the others
    /// as many as there is room for.
    fn groups(&self) -> Vec<Vec<Block>> {
        let (end, step) = (self.offset + self.length, self.block as u64);
        let mut groups: Vec<Vec<Block>> = Vec::new();
        for start in (self.offset..end).step_by(self.block) {
            // No longer than `block`.
            let length = step.min(end - start) as usize;
            let together = groups.len() > ALONE;
            match groups.last_mut() {
                Some(group) if together && group.len() < self.depth() => {
                    let place = group.len() * self.stride();
                    group.push(Block { start, length, place });
                }
                _ => groups.push(vec![Block { start, length, place: 0 }]),
            }
        }
        groups
    }

    /// Where the pieces of a block lie in memory, and how long they are.
    fn pieces(&self, block: &Block) -> impl Iterator<Item = (usize, usize)> {
        let place = block.place;
        self.layout.pieces(block.length).map(move |(at, length)| (place + at, length))
    }

    /// Moves all blocks of a group.
    fn transfer(&self, queue: &mut Queue, way: Way, group: &[Block], pages: &Pages) -> Result<(), String> {
        let transfers: Vec<_> =
            group.iter().map(|block| (pages.pieces(self.pieces(block)), block.start)).collect();
        // SAFETY: the pieces lie in `pages`, which are touched by nobody in the call and outlive the queue.
        let moved = unsafe { queue.all(way, &transfers) };
        let moved = moved.map_err(|error| format!("cannot start transfers: {error}"))?;
        let what = match way {
            Way::Read => "read",
            Way::Write => "write",
        };
        group.iter().zip(moved).try_for_each(|(Block { start, length, .. }, moved)| match moved {
            Ok(n) if n == *length => Ok(()),
            Ok(n) => Err(format!("a {what} of {length} bytes at offset {start} ended after {n}")),
            Err(error) => Err(format!("a {what} of {length} bytes at offset {start} failed: {error}")),
        })
    }

    fn done(&self, [path, offset, _, block, _]: [&str; 5]) -> String {
        format!("{path} {offset} {} bs {block}: ok", self.length)
    }

    /// The bytes that belong at this place.
    fn word(&self, at: u64) -> [u8; 8] {
        mix(self.seed ^ mix(at)).to_le_bytes()
    }
}

/// Writes the pattern.
pub fn fill(words: [&str; 5], layout: &str) -> Result<String, String> {
    let stretch = Stretch::new(words, layout, true)?;
    let mut pages = stretch.memory()?;
    let mut queue = stretch.queue()?;
    for group in stretch.groups() {
        for block in &group {
            let mut at = block.start;
            for (place, piece) in stretch.pieces(block) {
                for word in pages.bytes_mut()[place..][..piece].chunks_mut(8) {
                    word.copy_from_slice(&stretch.word(at)[..word.len()]);
                    at += 8;
                }
            }
        }
        stretch.transfer(&mut queue, Way::Write, &group, &pages)?;
    }
    stretch.device.flush()?;
    Ok(stretch.done(words))
}

/// Compares with the pattern.
pub fn check(words: [&str; 5], layout: &str) -> Result<String, String> {
    let stretch = Stretch::new(words, layout, false)?;
    let mut pages = stretch.memory()?;
    let mut queue = stretch.queue()?;
    for group in stretch.groups() {
        // What was there before must not pass for what was read.
        pages.bytes_mut().fill(0xa5);
        stretch.transfer(&mut queue, Way::Read, &group, &pages)?;
        for block in &group {
            let mut at = block.start;
            for (place, piece) in stretch.pieces(block) {
                for word in pages.bytes()[place..][..piece].chunks(8) {
                    let expected = stretch.word(at);
                    if *word != expected[..word.len()] {
                        return Err(format!(
                            "differs at offset {at}: found {word:02x?}, expected {expected:02x?}"
                        ));
                    }
                    at += 8;
                }
            }
        }
    }
    Ok(stretch.done(words))
}
