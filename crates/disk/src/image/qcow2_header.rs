//! The header of a qcow2 image: hostile bytes, copied once into a plain value and judged before anything else is
//! opened or written (QEMU, docs/interop/qcow2, "Header" and "Header extensions").

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::features::{self, Field};
use super::unfit::Unfit;
use crate::options::Format;

/// Bytes of a header of version 2, and of the part that every version has.
const SHORTEST: usize = 72;
/// Bytes of the shortest header of version 3.
const SHORTEST_OF_3: usize = 104;
/// Bits of a cluster's size ("cluster_bits", with QEMU's limit).
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Bytes of the longest first level of the table of clusters: QEMU's limit.
pub(super) const LONGEST_CLUSTER_TABLE: u64 = 32 << 20;
/// Bytes of the longest name of a backing file.
const LONGEST_NAME: usize = 1023;
/// Where the mask of marks is that hold only until somebody else writes ("autoclear_features").
pub(super) const MARKS: Range<usize> = 88..96;
/// The mark that the image's bitmaps show what has changed ("Bitmaps extension bit").
pub(super) const BITMAPS: u64 = 1;
/// The mark that the data file is the disk's raw image ("Raw external data bit").
pub(super) const DATA_IS_RAW: u64 = 1 << 1;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;
const FEATURE_NAMES: u32 = 0x6803_f857;

/// A table in the image file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Table {
    /// Where it begins, in bytes.
    pub(super) at: u64,
    /// Its length in bytes.
    pub(super) bytes: u64,
}

/// The image that this one stands on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Backing {
    /// Its name, as the header has it.
    pub(super) name: String,
    /// Its format, if the header says it.
    pub(super) format: Option<String>,
}

/// The file that holds the data of this image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DataFile {
    /// Its name, if the header has one.
    pub(super) name: Option<String>,
    /// Whether it is to be a raw image of the disk at any time.
    pub(super) raw: bool,
}

/// Where the tables of an image are, and how long their entries: what changes of a header while the image is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Binary logarithm of a cluster's size in bytes.
    pub(super) cluster_bits: u32,
    /// The first level of the table of clusters.
    pub(super) clusters: Table,
    /// The table of blocks of reference counts.
    pub(super) counts: Table,
    /// Binary logarithm of a count's size in bits.
    pub(super) count_order: u32,
}

impl Layout {
    /// Bytes of the part of a header that says this.
    pub(super) const BYTES: usize = SHORTEST_OF_3;
    /// Where it has the length and the place of the first level of the table of clusters.
    pub(super) const CLUSTERS: Range<usize> = 36..48;

    /// Reads the beginning of a header of version 2 or 3. What lies behind the end of `bytes` counts as zeroes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Layout, Unfit> {
        if !bytes.starts_with(b"QFI\xfb") {
            return Err(Unfit::no_image(Format::Qcow2));
        }
        let bytes = Bytes(bytes);
        let cluster_bits = bytes.word(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Unfit::damaged(format!("its header says that a cluster has 2^{cluster_bits} bytes")));
        }
        let count_order = if bytes.word(4) == 2 { 4 } else { bytes.word(96) };
        if count_order > 6 {
            return Err(Unfit::damaged(format!(
                "its header says that a reference count has 2^{count_order} bits"
            )));
        }
        Ok(Layout {
            cluster_bits,
            clusters: Table { at: bytes.long(40), bytes: u64::from(bytes.word(36)) * 8 },
            counts: Table { at: bytes.long(48), bytes: u64::from(bytes.word(56)) << cluster_bits },
            count_order,
        })
    }

    /// Bytes of a cluster.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// What a header says. Nothing of it is true but its lengths, which are within bounds.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) layout: Layout,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Marks that hold only until somebody writes who does not keep them true.
    pub(super) marks: u64,
    pub(super) backing: Option<Backing>,
    pub(super) data_file: Option<DataFile>,
}

/// The bytes in which all of a header is.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn word(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).map_or(0, |word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }

    fn text(&self, range: Range<usize>) -> Result<String, Unfit> {
        let bytes = self.0.get(range).ok_or_else(|| Unfit::damaged("its header ends within a name"))?;
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
        Ok(text.ok_or_else(|| Unfit::damaged("a name in its header is no UTF-8 text"))?.to_owned())
    }
}

/// Another descriptor of an image's file, without direct I/O, which would have to be aligned.
pub(super) fn unaligned(image: &File, options: &mut std::fs::OpenOptions) -> io::Result<File> {
    options.open(PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd())))
}

/// Reads and judges the header of an image.
pub(super) fn read(image: &File) -> io::Result<Result<Header, Unfit>> {
    let file = unaligned(image, File::options().read(true))?;
    let mut start = vec![0; SHORTEST];
    let read = read_at_most(&file, &mut start)?;
    start.truncate(read);
    if !start.starts_with(b"QFI\xfb") {
        return Ok(Err(Unfit::no_image(Format::Qcow2)));
    }
    // The whole header lies in the first cluster.
    let bits = Bytes(&start).word(20);
    let mut all = vec![0; if CLUSTER_BITS.contains(&bits) { 1 << bits } else { SHORTEST }];
    let read = read_at_most(&file, &mut all)?;
    all.truncate(read);
    Ok(parse(&Bytes(&all)))
}

fn read_at_most(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn parse(bytes: &Bytes<'_>) -> Result<Header, Unfit> {
    let version = bytes.word(4);
    // Others have other headers.
    if let Some(unfit) = features::judge(&[(Field::Version, version)], |_| None) {
        return Err(unfit);
    }
    let layout = Layout::parse(bytes.0)?;
    // What the longest first level of the table of clusters covers: the arithmetic on places is safe below that.
    let (size, most) = (bytes.long(24), (LONGEST_CLUSTER_TABLE / 8) << (2 * layout.cluster_bits - 3));
    if size > most {
        let what = format!(
            "its header says that the disk has {size} bytes, and images of its kind have at most {most}"
        );
        return Err(Unfit::damaged(what));
    }
    let newer = version >= 3;
    let len = if newer { bytes.word(100) as usize } else { SHORTEST };
    if len < if newer { SHORTEST_OF_3 } else { SHORTEST } || len > bytes.0.len() {
        return Err(Unfit::damaged(format!("its header says that it has {len} bytes itself")));
    }
    let (backing_at, backing_len) = (bytes.long(8), bytes.word(16) as usize);
    let end = if backing_at == 0 { u64::MAX } else { backing_at };
    let extensions = Extensions::read(bytes, len, end)?;
    let incompatible = if newer { bytes.long(72) } else { 0 };
    let compression = if len > SHORTEST_OF_3 { bytes.0[SHORTEST_OF_3] } else { 0 };
    let mut said = vec![(Field::Encryption, bytes.word(32))];
    said.extend(
        (0..u64::BITS).filter(|bit| incompatible >> bit & 1 != 0).map(|bit| (Field::Incompatible, bit)),
    );
    said.push((Field::Compression, compression.into()));
    if let Some(unfit) = features::judge(&said, |bit| extensions.feature(bit)) {
        return Err(unfit);
    }
    let backing = match usize::try_from(backing_at) {
        Ok(0) => None,
        Ok(at) if backing_len <= LONGEST_NAME && at < bytes.0.len() => {
            let name = bytes.text(at..at + backing_len)?;
            (!name.is_empty()).then_some(Backing { name, format: extensions.backing_format })
        }
        _ => return Err(Unfit::damaged("the name of its backing file lies outside its header")),
    };
    let marks = if newer { bytes.long(MARKS.start) } else { 0 };
    let raw = marks & DATA_IS_RAW != 0;
    let data_file = (incompatible & features::DATA_FILE != 0)
        .then_some(DataFile { name: extensions.data_file_name, raw });
    if backing.is_some() && data_file.as_ref().is_some_and(|file| file.raw) {
        return Err(Unfit::damaged(
            "it stands on another image, but says that its data file is the whole disk",
        ));
    }
    Ok(Header { layout, size, marks, backing, data_file })
}

/// What is behind the header's fields, as far as it matters here.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file_name: Option<String>,
    /// Kind of feature, bit and name.
    names: Vec<(u8, u8, String)>,
}

impl Extensions {
    /// They follow the header, also in version 2, and end with one of type 0 or before the name of the backing file.
    fn read(bytes: &Bytes<'_>, start: usize, end: u64) -> Result<Extensions, Unfit> {
        let mut found = Extensions::default();
        let end = bytes.0.len().min(usize::try_from(end).unwrap_or(usize::MAX));
        let mut at = start;
        while at + 8 <= end {
            let (kind, len) = (bytes.word(at), bytes.word(at + 4) as usize);
            let data = at + 8..at + 8 + len;
            if kind == 0 {
                break;
            }
            if data.end > end {
                return Err(Unfit::damaged("an extension of its header lies outside of it"));
            }
            match kind {
                BACKING_FORMAT => found.backing_format = Some(bytes.text(data.clone())?),
                DATA_FILE_NAME => found.data_file_name = Some(bytes.text(data.clone())?),
                FEATURE_NAMES => found.names = names(&bytes.0[data.clone()]),
                _ => {}
            }
            at = data.end.next_multiple_of(8);
        }
        Ok(found)
    }

    /// The image's own name for an incompatible feature.
    fn feature(&self, bit: u32) -> Option<String> {
        let named = self.names.iter().find(|(kind, number, _)| *kind == 0 && u32::from(*number) == bit);
        named.map(|(_, _, name)| name.clone())
    }
}

/// Entries of 48 bytes: kind, bit, name. Only what can be printed goes into messages.
fn names(table: &[u8]) -> Vec<(u8, u8, String)> {
    let entry = |entry: &[u8]| {
        let name = entry[2..].split(|byte| *byte == 0).next().unwrap_or_default();
        let name = name.iter().map(|byte| char::from(*byte)).filter(|c| (' '..='~').contains(c)).collect();
        (entry[0], entry[1], name)
    };
    table.chunks_exact(48).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 3, or of version 2, with these extensions and this backing file.
    fn header(version: u32, extensions: &[(u32, &[u8])], backing: Option<&str>) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        let mut at = if version == 2 { 72 } else { 104 };
        let mut put = |at: usize, some: &[u8]| bytes[at..at + some.len()].copy_from_slice(some);
        put(0, b"QFI\xfb");
        put(4, &version.to_be_bytes());
        put(20, &9u32.to_be_bytes());
        put(24, &(1u64 << 20).to_be_bytes());
        if version == 3 {
            put(96, &4u32.to_be_bytes());
            put(100, &104u32.to_be_bytes());
        }
        for (kind, data) in extensions {
            put(at, &kind.to_be_bytes());
            put(at + 4, &(data.len() as u32).to_be_bytes());
            put(at + 8, data);
            at += 8 + data.len().next_multiple_of(8);
        }
        if let Some(name) = backing {
            put(8, &400u64.to_be_bytes());
            put(16, &(name.len() as u32).to_be_bytes());
            put(400, name.as_bytes());
        }
        bytes
    }

    fn parsed(bytes: &[u8]) -> Result<Header, Unfit> {
        parse(&Bytes(bytes))
    }

    #[test]
    fn extensions_are_read_in_both_versions() {
        for version in [2, 3] {
            let bytes = header(version, &[(BACKING_FORMAT, b"raw"), (7, b"unknown")], Some("below"));
            let backing = Backing { name: "below".to_owned(), format: Some("raw".to_owned()) };
            assert_eq!(parsed(&bytes).unwrap().backing, Some(backing));
        }
        let mut bytes = header(3, &[(DATA_FILE_NAME, b"data")], None);
        bytes[79] = 4;
        bytes[95] = 2;
        let data_file = DataFile { name: Some("data".to_owned()), raw: true };
        assert_eq!(parsed(&bytes).unwrap().data_file, Some(data_file));
    }

    #[test]
    fn every_bit_of_the_incompatible_features_is_done_or_refused_by_its_name() {
        let name = [&[0, 40][..], b"time travel", &[0; 35]].concat();
        for bit in 0..64 {
            let mut bytes = header(3, &[(FEATURE_NAMES, &name)], None);
            bytes[72 + 7 - bit / 8] |= 1 << (bit % 8);
            let expected = match bit {
                0 => "was not closed",
                1 => "damaged",
                2 => "",
                3 => "type 0",
                4 => "extended L2",
                40 => "\"time travel\"",
                _ => &format!("incompatible feature {bit}"),
            };
            match parsed(&bytes) {
                Ok(header) => assert_eq!((bit, header.data_file.is_some()), (2, true)),
                Err(Unfit { what, .. }) => {
                    assert!(!expected.is_empty() && what.contains(expected), "{bit}: {what}");
                }
            }
        }
    }

    #[test]
    fn what_else_changes_how_data_is_read_is_refused_by_its_name() {
        let with = |at: usize, value: &[u8], expected: &str| {
            let mut bytes = header(3, &[], None);
            bytes[at..at + value.len()].copy_from_slice(value);
            let Unfit { what, hint } = parsed(&bytes).unwrap_err();
            assert!(what.contains(expected) && !hint.is_empty(), "{what} {hint}");
        };
        with(32, &1u32.to_be_bytes(), "encrypted with AES");
        with(32, &2u32.to_be_bytes(), "encrypted with LUKS");
        with(32, &3u32.to_be_bytes(), "encryption 3");
        with(4, &1u32.to_be_bytes(), "version 1");
        with(4, &4u32.to_be_bytes(), "version 4");
        with(20, &8u32.to_be_bytes(), "2^8 bytes");
        with(24, &((1u64 << 37) + 512).to_be_bytes(), "at most 137438953472");
        with(24, &(u64::MAX - 511).to_be_bytes(), "at most");
        with(96, &7u32.to_be_bytes(), "2^7 bits");
        with(100, &96u32.to_be_bytes(), "96 bytes");
        with(100, &513u32.to_be_bytes(), "513 bytes");
        for (kind, expected) in [(1, "zstd"), (2, "type 2"), (255, "type 255")] {
            let mut bytes = header(3, &[], None);
            bytes[103] = 112;
            bytes[79] |= 8;
            bytes[104] = kind;
            let Unfit { what, .. } = parsed(&bytes).unwrap_err();
            assert!(what.contains(expected), "{what}");
            bytes[79] = 0;
            assert!(parsed(&bytes).unwrap_err().what.contains(expected), "also without its mark");
        }
    }

    #[test]
    fn the_layout_alone_is_read_from_the_beginning_and_what_is_none_is_refused() {
        let mut bytes = header(3, &[], None);
        bytes[36..40].copy_from_slice(&3u32.to_be_bytes());
        bytes[46] = 8;
        let layout = Layout::parse(&bytes[..Layout::BYTES]).unwrap();
        assert_eq!((layout.cluster(), layout.count_order), (512, 4));
        assert_eq!(layout.clusters, Table { at: 2048, bytes: 24 });
        assert_eq!(parsed(&bytes).unwrap().layout, layout);
        bytes[..4].copy_from_slice(b"QFI!");
        assert_eq!(Layout::parse(&bytes), Err(Unfit::no_image(Format::Qcow2)));
    }

    #[test]
    fn whatever_lies_outside_the_header_is_an_error() {
        let mut bytes = header(3, &[], Some("x"));
        bytes[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        assert!(parsed(&bytes).unwrap_err().what.contains("outside its header"));
        let mut bytes = header(3, &[], Some("x"));
        bytes[8..16].copy_from_slice(&511u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&2u32.to_be_bytes());
        assert!(parsed(&bytes).unwrap_err().what.contains("ends within a name"));
        let mut bytes = header(3, &[(9, b"data")], None);
        bytes[108..112].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(parsed(&bytes).unwrap_err().what.contains("extension"));
        for end in 0..104 {
            assert!(parsed(&header(3, &[], None)[..end]).is_err());
        }
    }
}
