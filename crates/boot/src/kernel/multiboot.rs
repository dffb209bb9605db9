//! Kernels for multiboot loaders, which are not started but called by their name.
//! Multiboot Specification 0.6.96, 3.1; Multiboot2 Specification 2.0, 3.1.

use super::{Header, KernelError};
use crate::source::Source;

/// The header lies in so many bytes at a file's beginning: those of version 2, the longer.
const SEARCHED: usize = 32768;
/// The same for version 1.
const SEARCHED_1: usize = 8192;

/// The version that a file's multiboot header is of, if it has one.
pub(super) fn version(source: &Source) -> Result<Option<&'static str>, KernelError> {
    let mut start = vec![0; SEARCHED];
    let len = source.read_start(&mut start)?;
    let start = &start[..len];
    let sum = |at: usize, words: usize| {
        let mut word = (0..words).map(|n| Header(&start[at..]).u32(n * 4));
        word.try_fold(0u32, |sum, word| Some(sum.wrapping_add(word?)))
    };
    let is = |magic: u32, words: usize| {
        move |at: &usize| Header(&start[*at..]).u32(0) == Some(magic) && sum(*at, words) == Some(0)
    };
    let is_1 = (0..len.min(SEARCHED_1)).step_by(4).any(|at| is(0x1bad_b002, 3)(&at));
    let is_2 = (0..len).step_by(8).any(|at| is(0xe852_50d6, 4)(&at));
    Ok(match (is_1, is_2) {
        (_, true) => Some("multiboot2"),
        (true, false) => Some("multiboot"),
        (false, false) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_in(at: usize, words: &[u32]) -> Option<&'static str> {
        let mut bytes = vec![0; at];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        version(&Source::from_bytes("it", bytes)).unwrap()
    }

    #[test]
    fn a_multiboot_header_is_known_by_its_magic_number_and_its_sum() {
        let one = [0x1bad_b002, 3, 0u32.wrapping_sub(0x1bad_b002 + 3)];
        assert_eq!(version_in(0x1000, &one), Some("multiboot"));
        assert_eq!(version_in(8192, &one), None, "it must lie in the first 8 KiB");
        let two = [0xe852_50d6, 0, 16, 0u32.wrapping_sub(0xe852_50d6 + 16)];
        assert_eq!(version_in(0x4000, &two), Some("multiboot2"));
        assert_eq!(version_in(0x4004, &two), None, "it must be aligned to 8 bytes");
        for cut in 1..3 {
            assert_eq!(version_in(0, &one[..cut]), None);
            assert_eq!(version_in(0, &[one[0], one[1], cut as u32]), None);
        }
        assert_eq!(version_in(0, &[]), None);
    }
}
