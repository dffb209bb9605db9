//! How data of a request becomes data of commands: which bytes go without a copy, and their PRPs (Base 1.4, 4.3).
//!
//! A PRP entry names a page. The first may begin anywhere in its page, at a multiple of 4; every other one is a
//! whole page, but for the end of the last. Pieces of guest RAM that together have that shape go as they are.

use memory::{Buffers, GpaRange};

use nvme_spec::PAGE;

/// PRP entries in a command's list: 2 KiB, so that lists do not cross pages.
pub(super) const LIST_ENTRIES: usize = 256;
/// Bytes of a command's list.
pub(super) const LIST_SIZE: u64 = LIST_ENTRIES as u64 * 8;
/// The longest transfer that always fits: one page in the command, the others in its list.
pub(super) const LONGEST: u64 = LIST_ENTRIES as u64 * PAGE;

/// A bounced transfer ends where at least so many bytes could go without a copy again.
const WORTH_A_COMMAND: u64 = PAGE;

/// A place in a request's buffers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Cursor {
    /// Bytes before it.
    pub at: u64,
    piece: usize,
    /// Bytes of the piece before it.
    skip: u64,
}

/// The next command's share of a transfer, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Share {
    /// As it lies.
    Direct(u64),
    /// Through a buffer.
    Bounced(u64),
}

/// What limits commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of a logical block.
    pub block: u64,
    /// Bytes of the longest transfer, whole blocks, at most [`LONGEST`].
    pub direct: u64,
    /// Bytes of the longest bounced transfer, whole blocks.
    pub bounced: u64,
}

impl Cursor {
    /// The place `bytes` further on, at most the end.
    pub fn advance(mut self, buffers: &Buffers, bytes: u64) -> Cursor {
        let mut left = bytes;
        while let Some(range) = buffers.range(self.piece) {
            let here = left.min(range.len() - self.skip);
            self.skip += here;
            self.at += here;
            left -= here;
            if self.skip < range.len() {
                break;
            }
            (self.piece, self.skip) = (self.piece + 1, 0);
        }
        self
    }

    /// The pieces from here on.
    fn pieces(self, buffers: &Buffers) -> impl Iterator<Item = GpaRange> + '_ {
        let mut skip = self.skip;
        (self.piece..).map_while(|index| buffers.range(index)).filter_map(move |range| {
            let skipped = std::mem::take(&mut skip);
            GpaRange::new(range.start().checked_add(skipped)?, range.len() - skipped)
        })
    }

    /// What the next command takes; there must be at least one block left.
    pub fn share(self, buffers: &Buffers, limits: &Limits) -> Share {
        let left = buffers.bytes() - self.at;
        let direct = self.direct(buffers, limits.direct.min(left)) / limits.block * limits.block;
        if direct > 0 {
            return Share::Direct(direct);
        }
        let most = limits.bounced.min(left);
        let mut end = limits.block;
        let mut cursor = self.advance(buffers, end);
        while end < most {
            let worth = WORTH_A_COMMAND.max(limits.block).min(left - end);
            if cursor.direct(buffers, worth) == worth {
                break;
            }
            end += limits.block;
            cursor = cursor.advance(buffers, limits.block);
        }
        Share::Bounced(end)
    }

    /// Bytes from here on that PRPs can name, at most `most`.
    fn direct(self, buffers: &Buffers, most: u64) -> u64 {
        let mut bytes = 0;
        for (index, piece) in self.pieces(buffers).enumerate() {
            let begins = if index == 0 { 4 } else { PAGE };
            if !piece.start().0.is_multiple_of(begins) {
                break;
            }
            bytes += piece.len();
            if bytes >= most || !piece.end().0.is_multiple_of(PAGE) {
                break;
            }
        }
        bytes.min(most)
    }

    /// The pages of `bytes` bytes from here on, as [`Share::Direct`] allows them.
    pub fn pages(self, buffers: &Buffers, bytes: u64) -> impl Iterator<Item = u64> + '_ {
        let mut left = bytes;
        self.pieces(buffers).flat_map(move |piece| {
            let len = piece.len().min(left);
            left -= len;
            pages_of(piece.start().0, len)
        })
    }
}

/// The pages that a contiguous stretch of addresses touches, the first from where it begins.
pub(super) fn pages_of(start: u64, len: u64) -> impl Iterator<Item = u64> {
    let first = (len > 0).then_some(start);
    let next = (start / PAGE + 1) * PAGE;
    first.into_iter().chain((next..start + len).step_by(PAGE as usize))
}

/// Both PRPs of a command. The pages behind the first go to `list` (found by the device at `list_at`) where there
/// are several; `list` returns how many there were.
pub(super) fn prps(
    mut pages: impl Iterator<Item = u64>,
    list_at: u64,
    list: &mut [u64; LIST_ENTRIES],
) -> (u64, u64, usize) {
    let first = pages.next().unwrap_or(0);
    let mut count = 0;
    for (entry, page) in list.iter_mut().zip(pages) {
        *entry = page.to_le();
        count += 1;
    }
    match count {
        0 => (first, 0, 0),
        1 => (first, u64::from_le(list[0]), 0),
        _ => (first, list_at, count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Gpa, Ram};
    use proptest::prelude::*;
    use std::sync::Arc;

    const LIMITS: Limits = Limits { block: 512, direct: LONGEST, bounced: 65536 };

    fn buffers(pieces: &[(u64, u64)]) -> Buffers {
        let ram = Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap();
        let mut buffers = Buffers::new(Arc::new(ram));
        pieces.iter().for_each(|(gpa, len)| buffers.push(Gpa(*gpa), *len).unwrap());
        buffers
    }

    fn shares(buffers: &Buffers, limits: &Limits) -> Vec<Share> {
        let mut cursor = Cursor::default();
        let mut shares = Vec::new();
        while cursor.at < buffers.bytes() {
            let share = cursor.share(buffers, limits);
            shares.push(share);
            let (Share::Direct(bytes) | Share::Bounced(bytes)) = share;
            cursor = cursor.advance(buffers, bytes);
        }
        shares
    }

    #[test]
    fn pages_and_the_ends_of_a_stretch_go_as_they_are() {
        let scattered = buffers(&[(0x1200, 0xe00), (0x8000, 0x1000), (0x5000, 0x400)]);
        assert_eq!(shares(&scattered, &LIMITS), [Share::Direct(0x2200)]);
        let pages: Vec<u64> = Cursor::default().pages(&scattered, 0x2200).collect();
        assert_eq!(pages, [0x1200, 0x8000, 0x5000]);
    }

    #[test]
    fn only_what_has_no_shape_is_bounced() {
        // A hole in the middle of a page ends a command; an odd address is copied, and what follows is not.
        let mixed = buffers(&[(0x1000, 0x400), (0x8000, 0x1000), (0x20002, 0x400), (0x5000, 0x2000)]);
        let expected =
            [Share::Direct(0x400), Share::Direct(0x1000), Share::Bounced(0x400), Share::Direct(0x2000)];
        assert_eq!(shares(&mixed, &LIMITS), expected);
        let odd = buffers(&[(0x10001, 0x20000)]);
        assert_eq!(shares(&odd, &LIMITS), [Share::Bounced(0x10000), Share::Bounced(0x10000)]);
    }

    #[test]
    fn two_pages_need_no_list_and_more_do() {
        let mut list = [0; LIST_ENTRIES];
        assert_eq!(prps(pages_of(0x1200, 0x200), 0x9000, &mut list), (0x1200, 0, 0));
        assert_eq!(prps(pages_of(0x1200, 0x1000), 0x9000, &mut list), (0x1200, 0x2000, 0));
        assert_eq!(prps(pages_of(0x1ffc, LONGEST), 0x9000, &mut list), (0x1ffc, 0x9000, LIST_ENTRIES));
        assert_eq!(list[255].to_le(), 0x2000 + 255 * 4096);
    }

    proptest! {
        #[test]
        fn every_byte_belongs_to_one_command_and_pages_name_just_the_direct_ones(
            pieces in prop::collection::vec((0u64..0x8000, 1u64..0x3000), 1..12), block in prop::sample::select(vec![512u64, 4096])
        ) {
            let mut pieces: Vec<(u64, u64)> = pieces.into_iter().enumerate()
                .map(|(i, (at, len))| (i as u64 * 0x20000 + if at % 3 > 0 { at / 512 * 512 } else { at }, len)).collect();
            let total: u64 = pieces.iter().map(|(_, len)| len).sum();
            pieces.push((0x300000, total.next_multiple_of(block) - total + block));
            let buffers = buffers(&pieces);
            let limits = Limits { block, direct: 0x4000, bounced: 0x2000 };
            let mut cursor = Cursor::default();
            let addresses: Vec<u64> = pieces.iter().flat_map(|(at, len)| *at..at + len).collect();
            while cursor.at < buffers.bytes() {
                let share = cursor.share(&buffers, &limits);
                let (Share::Direct(bytes) | Share::Bounced(bytes)) = share;
                prop_assert!(bytes > 0 && bytes % block == 0 && bytes <= limits.direct);
                if let Share::Direct(bytes) = share {
                    // As a controller walks the pages.
                    let mut walked = Vec::new();
                    for page in cursor.pages(&buffers, bytes) {
                        prop_assert!(page % 4 == 0);
                        prop_assert!(walked.is_empty() || page % PAGE == 0);
                        let len = (PAGE - page % PAGE).min(bytes - walked.len() as u64);
                        walked.extend(page..page + len);
                    }
                    prop_assert_eq!(&walked[..], &addresses[cursor.at as usize..][..bytes as usize]);
                }
                cursor = cursor.advance(&buffers, bytes);
            }
            prop_assert_eq!(cursor.at, buffers.bytes());
        }
    }
}
