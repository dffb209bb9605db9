//! The reference counts of a qcow2 image, looked at before the image is written to.
//!
//! New clusters are found by these counts. The library that finds them relies on blocks of counts that follow each
//! other without a gap, each there once; with a gap, or one block again and again, the search may never end. A gap is no
//! damage: `qemu-img resize --shrink` leaves one where a block counts nothing any more.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::qcow2_header::{Header, Table, unaligned};
use super::unfit::Unfit;
use crate::kernel::Handle;

/// Bytes of the longest table of blocks of counts: as much as QEMU takes, for images of far more than 1 PiB.
pub(super) const LONGEST_TABLE: u64 = 8 << 20;
/// What of an entry is the place of a block.
const PLACE: u64 = !0x1ff;

fn with_gap(what: String) -> Unfit {
    let hint = "Images whose counts have gaps are sound, but only read here: use readonly=on, or copy it into one \
                without gaps with `qemu-img convert -O qcow2 IMAGE COPY`.";
    Unfit { what, hint }
}

fn damaged(what: String) -> Unfit {
    Unfit { what, hint: "Repair the image with `qemu-img check -r all`, or use readonly=on." }
}

/// What keeps this image from being written to, if anything does.
pub(super) fn unfit(image: &Handle, header: &Header) -> io::Result<Option<Unfit>> {
    let file = unaligned(&image.file, File::options().read(true))?;
    unfit_table(&file, image.bytes()?, header.layout.counts)
}

fn unfit_table(file: &File, bytes: u64, Table { at, bytes: len }: Table) -> io::Result<Option<Unfit>> {
    if len > LONGEST_TABLE {
        return Ok(Some(damaged(format!("the table of its reference counts has {len} bytes"))));
    }
    if at.checked_add(len).is_none_or(|end| end > bytes) {
        let what = format!("the table of its reference counts lies at {at:#x}, behind the file's end");
        return Ok(Some(damaged(what)));
    }
    let mut table = vec![0; len as usize];
    file.read_exact_at(&mut table, at)?;
    Ok(behind(&table, bytes).or_else(|| gap(&table)).or_else(|| twice(&table)))
}

/// The places of blocks that a table holds.
pub(super) fn entries(table: &[u8]) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
    table.chunks_exact(8).map(|entry| entry.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)) & PLACE)
}

fn gap(table: &[u8]) -> Option<Unfit> {
    let last = entries(table).rposition(|place| place != 0);
    let missing = entries(table).position(|place| place == 0).unwrap_or(usize::MAX);
    match last {
        None => Some(damaged("it has no reference counts at all".to_owned())),
        Some(last) if missing < last => {
            Some(with_gap(format!("its reference counts have a gap: there is no block {missing}")))
        }
        Some(_) => None,
    }
}

fn behind(table: &[u8], bytes: u64) -> Option<Unfit> {
    let at = entries(table).position(|place| place >= bytes)?;
    Some(damaged(format!("block {at} of its reference counts lies behind the file's end")))
}

/// A block that is there twice counts wrongly; and where it is there without end, so is the search for a free cluster.
fn twice(table: &[u8]) -> Option<Unfit> {
    let mut seen = HashMap::new();
    let places = (0u64..).zip(entries(table)).filter(|(_, place)| *place != 0);
    let (first, second) =
        places.into_iter().find_map(|(number, place)| Some((seen.insert(place, number)?, number)))?;
    Some(damaged(format!("block {second} of its reference counts is block {first} as well")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 8 KiB with a table of blocks at 512.
    fn image(blocks: &[u64]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        for (block, at) in blocks.iter().zip((512..).step_by(8)) {
            file.write_all_at(&block.to_be_bytes(), at).unwrap();
        }
        file
    }

    #[test]
    fn counts_without_a_gap_are_good_and_others_are_named() {
        let unfit =
            |at, bytes, blocks: &[u64]| unfit_table(&image(blocks), 8192, Table { at, bytes }).unwrap();
        assert_eq!(unfit(512, 512, &[1024, 2048]), None);
        for (found, why) in [
            (unfit(512, 512, &[]), "no reference counts"),
            (unfit(512, 512, &[0, 1024]), "there is no block 0"),
            (unfit(512, 512, &[1024, 0, 2048]), "there is no block 1"),
            (unfit(512, 512, &[1024, 8192]), "block 1 of its reference counts lies behind"),
            (unfit(512, 512, &[1024, 1536, 1024]), "block 2 of its reference counts is block 0 as well"),
            (unfit(7680, 1024, &[1024]), "at 0x1e00, behind"),
            (unfit(u64::MAX - 511, 512, &[1024]), "behind the file's end"),
            (unfit(512, u64::from(u32::MAX) << 9, &[1024]), "has 2199023255040 bytes"),
        ] {
            let found = found.unwrap();
            assert!(found.what.contains(why), "{found:?}");
            assert_eq!(found.hint.contains("convert -O qcow2"), why.contains("no block"), "{found:?}");
        }
    }
}
