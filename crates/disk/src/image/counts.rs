//! The reference counts of a qcow2 image, looked at before the image is written to.
//!
//! New clusters are found by these counts. The library that finds them relies on blocks of counts that follow each
//! other without a gap; where an image has one (damage makes it, and so may shrinking the image), the search may never end.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of the part of a header that every version has.
const HEADER: usize = 72;
/// Bytes of the longest table of blocks of counts: as much as QEMU takes, for images of far more than 1 PiB.
const LONGEST_TABLE: u64 = 8 << 20;
/// Bits of a cluster's size (specification, "cluster_bits").
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// What of an entry is the place of a block.
const PLACE: u64 = !0x1ff;

/// What is wrong with the counts of this image, if anything is. A file that is no qcow2 image is left to others.
pub(super) fn damage(image: &File) -> io::Result<Option<String>> {
    // The image may be open for direct I/O, which would have to be aligned.
    let file = File::open(format!("/proc/self/fd/{}", image.as_raw_fd()))?;
    let bytes = file.metadata()?.len();
    let mut header = [0; HEADER];
    if bytes < HEADER as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut header, 0)?;
    let Some((at, len)) = table(&header) else { return Ok(None) };
    if len > LONGEST_TABLE {
        return Ok(Some(format!("the table of its reference counts has {len} bytes")));
    }
    if at.checked_add(len).is_none_or(|end| end > bytes) {
        return Ok(Some(format!("the table of its reference counts lies at {at:#x}, behind the file's end")));
    }
    let mut table = vec![0; len as usize];
    file.read_exact_at(&mut table, at)?;
    Ok(gap(&table).or_else(|| behind(&table, bytes)))
}

/// Where the table is and how long, in bytes; `None` when the header cannot be understood, which the library says.
fn table(header: &[u8; HEADER]) -> Option<(u64, u64)> {
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let bits = word(20);
    if &header[..4] != b"QFI\xfb" || !CLUSTER_BITS.contains(&bits) {
        return None;
    }
    let at = u64::from(word(48)) << 32 | u64::from(word(52));
    Some((at, u64::from(word(56)) << bits))
}

fn entries(table: &[u8]) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
    table.chunks_exact(8).map(|entry| entry.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)) & PLACE)
}

fn gap(table: &[u8]) -> Option<String> {
    let last = entries(table).rposition(|place| place != 0);
    let missing = entries(table).position(|place| place == 0).unwrap_or(usize::MAX);
    match last {
        None => Some("it has no reference counts at all".to_owned()),
        Some(last) if missing < last => Some(format!("block {missing} of its reference counts is missing")),
        Some(_) => None,
    }
}

fn behind(table: &[u8], bytes: u64) -> Option<String> {
    let at = entries(table).position(|place| place >= bytes)?;
    Some(format!("block {at} of its reference counts lies behind the file's end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a header and a table of 64 entries at 512.
    fn image(table_at: u64, clusters: u32, blocks: &[u64]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[23] = 9;
        header[48..56].copy_from_slice(&table_at.to_be_bytes());
        header[56..60].copy_from_slice(&clusters.to_be_bytes());
        file.write_all_at(&header, 0).unwrap();
        for (block, at) in blocks.iter().zip((512..).step_by(8)) {
            file.write_all_at(&block.to_be_bytes(), at).unwrap();
        }
        file
    }

    #[test]
    fn counts_without_a_gap_are_good_and_others_are_named() {
        assert_eq!(damage(&image(512, 1, &[1024, 2048])).unwrap(), None);
        for (image, why) in [
            (image(512, 1, &[]), "no reference counts"),
            (image(512, 1, &[0, 1024]), "block 0 of"),
            (image(512, 1, &[1024, 0, 2048]), "block 1 of"),
            (image(512, 1, &[1024, 8192]), "block 1 of its reference counts lies behind"),
            (image(7680, 2, &[1024]), "at 0x1e00, behind"),
            (image(u64::MAX - 511, 1, &[1024]), "behind the file's end"),
            (image(512, u32::MAX, &[1024]), "has 2199023255040 bytes"),
        ] {
            let found = damage(&image).unwrap().unwrap();
            assert!(found.contains(why), "{found}");
        }
    }

    #[test]
    fn what_is_no_image_is_left_to_others() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(damage(&file).unwrap(), None);
        file.set_len(4096).unwrap();
        assert_eq!(damage(&file).unwrap(), None);
    }
}
