//! Whether a qcow2 image is whole: of a copy that was broken off the end is missing, and what lies there would read as
//! zeroes.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::counts::{LONGEST_TABLE, entries};
use super::qcow2_header::{Header, LONGEST_CLUSTER_TABLE, Table, unaligned};
use super::unfit::Unfit;
use crate::kernel::Handle;

/// Bytes of tables that are looked through at a start.
const MOST_BYTES: u64 = 256 << 20;
/// What of an entry is a place ("L1 table entry", "Standard Cluster Descriptor").
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an entry of the second level.
const COMPRESSED: u64 = 1 << 62;
const ZEROES: u64 = 1;

/// An image's file, with what is true of it.
struct Looked<'a> {
    file: File,
    /// Bytes of the file.
    len: u64,
    header: &'a Header,
}

/// What refers to something behind the end of the image's file, or of its data file, which has `data` bytes.
pub(super) fn missing(image: &Handle, header: &Header, data: Option<u64>) -> io::Result<Result<(), Unfit>> {
    let (file, len) = (unaligned(&image.file, File::options().read(true))?, image.bytes()?);
    let looked = Looked { file, len, header };
    if header.layout.clusters.bytes > LONGEST_CLUSTER_TABLE {
        let what = format!("the table of its clusters has {} bytes", header.layout.clusters.bytes);
        return Ok(Err(Unfit::damaged(what)));
    }
    if looked.ends_behind(header.layout.clusters) {
        return Ok(Err(looked.cut(header.layout.clusters.at)));
    }
    // Looking through all tables takes its time: only when something is behind the end for sure.
    let suspect = match data {
        Some(bytes) => bytes < header.size,
        None => looked.counts_behind()?,
    };
    if !suspect {
        return Ok(Ok(()));
    }
    Ok(match looked.reference_behind(data)? {
        Some(at) => Err(looked.cut(at)),
        None => Ok(()),
    })
}

impl Looked<'_> {
    fn cut(&self, at: u64) -> Unfit {
        Unfit {
            what: format!(
                "a part of it is missing: its tables refer to what lies at byte {at}, and it ends before that (the image has {} bytes)",
                self.len
            ),
            hint: "Copy it again from where it came from. readonly=on and snapshot=on show what is left; with force=on \
                   the guest may write to it all the same.",
        }
    }

    fn ends_behind(&self, table: Table) -> bool {
        table.bytes > 0 && table.at.checked_add(table.bytes).is_none_or(|end| end > self.len)
    }

    fn cluster(&self) -> u64 {
        self.header.layout.cluster()
    }

    /// Reads what may lie anywhere; what is behind the end reads as zeroes.
    fn read(&self, at: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let there = self.len.saturating_sub(at).min(bytes) as usize;
        let mut read = vec![0; bytes as usize];
        self.file.read_exact_at(&mut read[..there], at)?;
        Ok(read)
    }

    /// Whether clusters behind the end are counted as used, or counts lie there themselves; or whether so many blocks count
    /// nothing that the rest is not looked at.
    fn counts_behind(&self) -> io::Result<bool> {
        let table = self.header.layout.counts;
        if table.bytes > LONGEST_TABLE || self.ends_behind(table) {
            return Ok(true);
        }
        let blocks = self.read(table.at, table.bytes)?;
        // A hostile image may name one block often, or many that are empty.
        let (mut empty, most) = (HashSet::new(), (MOST_BYTES >> self.header.layout.cluster_bits) as usize);
        for (number, place) in entries(&blocks).enumerate().rev().filter(|(_, place)| *place != 0) {
            if place >= self.len || empty.len() >= most {
                return Ok(true);
            }
            if empty.contains(&place) {
                continue;
            }
            let block = self.read(place, self.cluster())?;
            if let Some(last) = last_counted(&block, self.header.layout.count_order) {
                let per_block = (self.cluster() * 8) >> self.header.layout.count_order;
                return Ok(number as u64 * per_block + last >= self.len.div_ceil(self.cluster()));
            }
            empty.insert(place);
        }
        Ok(false)
    }

    /// The first place behind the end that a table refers to. Very large tables are not looked through to their end.
    fn reference_behind(&self, data: Option<u64>) -> io::Result<Option<u64>> {
        let first = self.read(self.header.layout.clusters.at, self.header.layout.clusters.bytes)?;
        let mut tables: Vec<u64> = words(&first).map(|entry| entry & PLACE).filter(|at| *at != 0).collect();
        // A hostile image may name one table often.
        tables.sort_unstable();
        tables.dedup();
        if let Some(at) = tables.iter().find(|at| **at + self.cluster() > self.len) {
            return Ok(Some(*at));
        }
        let most = (MOST_BYTES >> self.header.layout.cluster_bits) as usize;
        for table in tables.into_iter().take(most) {
            let table = self.read(table, self.cluster())?;
            let behind = |entry| self.data_place(entry).filter(|at| *at >= data.unwrap_or(self.len));
            if let Some(at) = words(&table).find_map(behind) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Where an entry of the second level says that data is.
    fn data_place(&self, entry: u64) -> Option<u64> {
        let place = match entry {
            compressed if compressed & COMPRESSED != 0 => {
                compressed & ((1 << (62 - (self.header.layout.cluster_bits - 8))) - 1)
            }
            zeroes if zeroes & ZEROES != 0 => 0,
            entry => entry & PLACE,
        };
        (place != 0).then_some(place)
    }
}

fn words(table: &[u8]) -> impl Iterator<Item = u64> {
    table.chunks_exact(8).map(|entry| entry.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// The last cluster of a block that is counted as used. Counts of less than a byte begin at its lowest bits.
fn last_counted(block: &[u8], order: u32) -> Option<u64> {
    let byte = block.iter().rposition(|byte| *byte != 0)?;
    let within = u64::from(block[byte].ilog2()) >> order.min(3);
    Some(match order {
        0..3 => byte as u64 * (8 >> order) + within,
        _ => byte as u64 >> (order - 3),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::super::qcow2_header::Layout;
    use super::*;
    use crate::kernel::{self, FileOptions};
    use crate::options::DiskOptions;

    /// As many blocks of counts as a table has room for, none of which counts anything, of 2 MiB each.
    #[test]
    fn counts_that_a_hostile_image_names_without_end_are_not_looked_through_to_their_end() {
        const BITS: u32 = 21;
        for is_one in [true, false] {
            let (told, hears) = channel();
            thread::spawn(move || {
                let file = tempfile::NamedTempFile::new().unwrap();
                let blocks = LONGEST_TABLE / 8;
                file.as_file().set_len((blocks + 16) << BITS).unwrap();
                let place = |block: u64| if is_one { 8u64 << BITS } else { (8 + block) << BITS };
                let table: Vec<u8> = (0..blocks).flat_map(|block| place(block).to_be_bytes()).collect();
                file.as_file().write_all_at(&table, 1 << BITS).unwrap();
                let options = DiskOptions::new(file.path());
                let image = kernel::open(&FileOptions::new(file.path(), &options)).unwrap().handle;
                let header = Header {
                    layout: Layout {
                        cluster_bits: BITS,
                        clusters: Table { at: 6 << BITS, bytes: 8 },
                        counts: Table { at: 1 << BITS, bytes: LONGEST_TABLE },
                        count_order: 4,
                    },
                    size: 1 << 30,
                    marks: 0,
                    backing: None,
                    data_file: None,
                };
                told.send(missing(&image, &header, None).unwrap()).unwrap();
            });
            assert_eq!(hears.recv_timeout(Duration::from_secs(60)).expect("it ends"), Ok(()), "{is_one}");
        }
    }

    #[test]
    fn the_last_counted_cluster_is_found_with_counts_of_every_size() {
        let mut block = [0; 64];
        assert_eq!(last_counted(&block, 4), None);
        block[2] = 0b100;
        assert_eq!(
            [0, 1, 2, 3].map(|order| last_counted(&block, order)),
            [Some(18), Some(9), Some(4), Some(2)]
        );
        block[31] = 1;
        assert_eq!([4, 5, 6].map(|order| last_counted(&block, order)), [Some(15), Some(7), Some(3)]);
    }
}
