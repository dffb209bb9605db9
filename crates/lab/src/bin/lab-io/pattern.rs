//! Patterns on a disk: each eight bytes follow from the seed and their place.

use std::io;

use crate::buffer::{Layout, PAGE, Pages};
use crate::device::Device;
use crate::{mix, number, size};

/// The kernel takes so many pieces at once.
const PIECES: usize = 1024;

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

    /// Memory for a block.
    fn memory(&self) -> Result<Pages, String> {
        let pages = match self.layout {
            Layout::Scattered => Pages::new(self.block),
            Layout::Whole => Pages::whole(self.block),
        };
        pages.map_err(|e| format!("cannot get memory: {e}"))
    }

    /// The blocks: where they start, and how long they are (the last may be shorter).
    fn blocks(&self) -> impl Iterator<Item = (u64, usize)> {
        let (end, block) = (self.offset + self.length, self.block as u64);
        // No longer than `block`.
        (self.offset..end).step_by(self.block).map(move |at| (at, block.min(end - at) as usize))
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
    for (start, length) in stretch.blocks() {
        let mut at = start;
        for (place, piece) in stretch.layout.pieces(length) {
            for word in pages.bytes_mut()[place..][..piece].chunks_mut(8) {
                word.copy_from_slice(&stretch.word(at)[..word.len()]);
                at += 8;
            }
        }
        let pieces = pages.pieces(stretch.layout.pieces(length));
        // SAFETY: the pieces lie in `pages`, which lives through the call and is not touched in it.
        let n = unsafe {
            libc::pwritev(stretch.device.fd(), pieces.as_ptr(), pieces.len() as i32, start.cast_signed())
        };
        whole("write", n, length, start)?;
    }
    stretch.device.flush()?;
    let [path, offset, _, block, _] = words;
    Ok(format!("{path} {offset} {} bs {block}: ok", stretch.length))
}

/// Compares with the pattern.
pub fn check(words: [&str; 5], layout: &str) -> Result<String, String> {
    let stretch = Stretch::new(words, layout, false)?;
    let mut pages = stretch.memory()?;
    for (start, length) in stretch.blocks() {
        // What was there before must not pass for what was read.
        pages.bytes_mut().fill(0xa5);
        let pieces = pages.pieces(stretch.layout.pieces(length));
        // SAFETY: the pieces lie in `pages`, which lives through the call and is not touched in it.
        let n = unsafe {
            libc::preadv(stretch.device.fd(), pieces.as_ptr(), pieces.len() as i32, start.cast_signed())
        };
        whole("read", n, length, start)?;
        let mut at = start;
        for (place, piece) in stretch.layout.pieces(length) {
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
    let [path, offset, _, block, _] = words;
    Ok(format!("{path} {offset} {} bs {block}: ok", stretch.length))
}

/// The whole of `length` bytes, or why not.
fn whole(what: &str, n: isize, length: usize, at: u64) -> Result<(), String> {
    match usize::try_from(n) {
        Ok(n) if n == length => Ok(()),
        Ok(n) => Err(format!("a {what} of {length} bytes at offset {at} ended after {n}")),
        Err(_) => {
            Err(format!("a {what} of {length} bytes at offset {at} failed: {}", io::Error::last_os_error()))
        }
    }
}
