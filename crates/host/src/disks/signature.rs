//! What is on a disk or partition, by the marks that file systems and the like leave at known places (as
//! libblkid knows them).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;

/// Something that a disk or partition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Content {
    /// What it is: "ext4", "LVM member", "GPT".
    pub kind: &'static str,
    /// The name that it has given itself.
    pub label: Option<String>,
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.label {
            Some(label) => write!(f, "{} {label:?}", self.kind),
            None => f.write_str(self.kind),
        }
    }
}

/// A mark: these bytes at this place.
struct Mark {
    at: u64,
    bytes: &'static [u8],
    kind: &'static str,
    /// Where a label is, and how long it may be.
    label: Option<(u64, usize)>,
}

const fn mark(at: u64, bytes: &'static [u8], kind: &'static str) -> Mark {
    Mark { at, bytes, kind, label: None }
}

const fn labelled(at: u64, bytes: &'static [u8], kind: &'static str, label: (u64, usize)) -> Mark {
    Mark { at, bytes, kind, label: Some(label) }
}

const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const BCACHE: &[u8] =
    &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];

/// The marks that are bytes at a fixed place. ext, md at the end, LVM and ZFS need a closer look.
const MARKS: &[Mark] = &[
    labelled(0, b"XFSB", "xfs", (0x6c, 12)),
    labelled(0x1_0040, b"_BHRfS_M", "btrfs", (0x1_012b, 256)),
    mark(0x400, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    labelled(0x36, b"FAT1", "vfat", (0x2b, 11)),
    labelled(0x52, b"FAT32", "vfat", (0x47, 11)),
    mark(3, b"EXFAT   ", "exfat"),
    mark(3, b"NTFS    ", "ntfs"),
    mark(3, b"-FVE-FS-", "BitLocker"),
    labelled(4086, b"SWAPSPACE2", "swap", (0x41c, 16)),
    mark(0, b"LUKS\xba\xbe", "LUKS"),
    labelled(0, MD, "md member", (0x20, 32)),
    labelled(4096, MD, "md member", (0x1020, 32)),
    labelled(0x1018, BCACHE, "bcache member", (0x1048, 32)),
    labelled(0x8001, b"CD001", "iso9660", (0x8028, 32)),
    mark(0, b"hsqs", "squashfs"),
    mark(0x400, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    mark(512, b"EFI PART", "GPT"),
    mark(4096, b"EFI PART", "GPT"),
];

/// A disk that is looked at.
struct Looked {
    file: File,
}

impl Looked {
    fn bytes<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    fn has(&self, at: u64, bytes: &[u8]) -> bool {
        let mut there = vec![0; bytes.len()];
        self.file.read_exact_at(&mut there, at).is_ok() && there == bytes
    }

    /// Text that ends with its first zero or its room; only what can be printed.
    fn text(&self, (at, room): (u64, usize)) -> Option<String> {
        let mut bytes = vec![0; room];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        let text = String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next()?).into_owned();
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let text = text.trim();
        (!text.is_empty() && text != "NO NAME").then(|| text.to_owned())
    }

    /// ext2 to ext4 (the kernel's documentation, filesystems/ext4, "The Super Block").
    fn ext(&self) -> Option<Content> {
        let [0x53, 0xef] = self.bytes::<2>(0x438)? else { return None };
        let word = |at| self.bytes::<4>(at).map_or(0, u32::from_le_bytes);
        let (compatible, incompatible) = (word(0x45c), word(0x460));
        let kind = match () {
            // Extents, 64 bit, flexible groups, metadata checksums and whatever came later.
            () if incompatible & !0x1f != 0 => "ext4",
            () if compatible & 4 != 0 => "ext3",
            () => "ext2",
        };
        Some(Content { kind, label: self.text((0x478, 16)) })
    }

    /// An LVM physical volume has its label in one of the first four sectors.
    fn lvm(&self) -> Option<Content> {
        let label =
            |sector: u64| self.has(sector * 512, b"LABELONE") && self.has(sector * 512 + 24, b"LVM2 001");
        (0..4).any(label).then_some(Content { kind: "LVM member", label: None })
    }

    /// One of the uberblocks in the first label of a ZFS device, of either byte order (ZFS On-Disk Specification,
    /// 1.3).
    fn zfs(&self) -> Option<Content> {
        let uberblock = |number: u64| {
            let at = (128 << 10) + number * 1024;
            self.has(at, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0])
                || self.has(at, &[0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c])
        };
        (0..128).any(uberblock).then_some(Content { kind: "ZFS member", label: None })
    }

    /// md's older super blocks lie at the end: format 1.0 eight KiB before it, 0.90 in the last whole 64 KiB.
    fn md_at_end(&self, bytes: u64) -> Option<Content> {
        let one = ((bytes / 512).checked_sub(16)? & !7) * 512;
        let old = (bytes & !0xffff).checked_sub(0x1_0000)?;
        if self.has(one, MD) {
            return Some(Content { kind: "md member", label: self.text((one + 0x20, 32)) });
        }
        self.has(old, MD).then_some(Content { kind: "md member", label: None })
    }

    /// A table of partitions in the first sector, which file systems of DOS's kind have the mark of, too.
    fn mbr(&self) -> Option<Content> {
        let sector = self.bytes::<512>(0)?;
        let entries = || sector[446..510].chunks_exact(16);
        let is_table = sector[510..] == [0x55, 0xaa]
            && entries().all(|entry| matches!(entry[0], 0 | 0x80))
            && entries().any(|entry| entry[4] != 0);
        is_table.then_some(Content { kind: "MBR", label: None })
    }
}

/// What is on the disk at `path`, which has so many bytes. `None` if it cannot be read.
pub(super) fn of(path: &Path, bytes: u64) -> Option<Vec<Content>> {
    let disk = Looked { file: File::open(path).ok()? };
    let mut found: Vec<Content> = MARKS
        .iter()
        .filter(|mark| disk.has(mark.at, mark.bytes))
        .map(|mark| Content { kind: mark.kind, label: mark.label.and_then(|label| disk.text(label)) })
        .collect();
    found.extend([disk.ext(), disk.lvm(), disk.zfs(), disk.md_at_end(bytes)].into_iter().flatten());
    if found.is_empty() {
        found.extend(disk.mbr());
    }
    found.dedup_by_key(|content| content.kind);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(marks: &[(u64, &[u8])]) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        for (at, bytes) in marks {
            file.as_file().write_all_at(bytes, *at).unwrap();
        }
        of(file.path(), 1 << 20).unwrap().iter().map(Content::to_string).collect()
    }

    #[test]
    fn file_systems_are_known_with_their_labels() {
        let ext: &[(u64, &[u8])] = &[(0x438, &[0x53, 0xef]), (0x45c, &[4]), (0x478, b"root")];
        assert_eq!(found(ext), ["ext3 \"root\""]);
        assert_eq!(found(&[ext, &[(0x460, &[0xc2, 2])]].concat()), ["ext4 \"root\""]);
        assert_eq!(found(&[(0, b"XFSB"), (0x6c, b"data\x1b")]), ["xfs \"data\""]);
        assert_eq!(found(&[(0x52, b"FAT32   "), (0x47, b"NO NAME    "), (510, &[0x55, 0xaa])]), ["vfat"]);
        assert_eq!(found(&[(4086, b"SWAPSPACE2")]), ["swap"]);
        assert_eq!(found(&[]), [""; 0]);
    }

    #[test]
    fn members_of_something_larger_are_known() {
        assert_eq!(found(&[(512, b"LABELONE"), (536, b"LVM2 001")]), ["LVM member"]);
        assert_eq!(found(&[(4096, MD), (4128, b"host:0")]), ["md member \"host:0\""]);
        assert_eq!(found(&[((1 << 20) - 8192, MD)]), ["md member"]);
        assert_eq!(found(&[((1 << 20) - (64 << 10), MD)]), ["md member"]);
        assert_eq!(found(&[((128 << 10) + 4096, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0])]), ["ZFS member"]);
        assert_eq!(found(&[(0x1018, BCACHE)]), ["bcache member"]);
    }

    #[test]
    fn tables_of_partitions_are_told_from_file_systems_of_dos() {
        assert_eq!(found(&[(450, &[0x83]), (510, &[0x55, 0xaa])]), ["MBR"]);
        // A GPT has an MBR that protects it.
        assert_eq!(found(&[(450, &[0xee]), (510, &[0x55, 0xaa]), (512, b"EFI PART")]), ["GPT"]);
        assert_eq!(found(&[(510, &[0x55, 0xaa])]), [""; 0]);
    }
}
