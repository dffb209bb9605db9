//! What a vmdk descriptor asks for, judged before any file that it names is opened (VMware, "Virtual Disk Format 5.0").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::qcow2_header::unaligned;
use super::unfit::Unfit;
use crate::contract::Sectors;
use crate::kernel::Handle;
use crate::options::Format;

/// Bytes of the longest descriptor.
const LONGEST: u64 = 2 << 20;
/// Content ID of no parent.
const NO_PARENT: &str = "ffffffff";

const CONVERT: &str = "Copy it with `qemu-img convert -f vmdk -O qcow2 IMAGE COPY`.";
const EXPORT: &str = "Have VMware take the encryption away, or export the disk.";

/// What files of the format begin with that are no descriptor.
const MAGICS: &[(&[u8], &str)] = &[
    (b"KDMV", "it is a sparse vmdk image (monolithicSparse, streamOptimized, or a part of a split one)"),
    (b"COWD", "it is a sparse vmdk image of an ESX host (vmfsSparse)"),
    (&[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0], "it is a sparse vmdk image of an ESXi host (seSparse)"),
];

/// Kinds of extents, and why the data of some cannot be read.
const KINDS: &[(&str, Option<&str>)] = &[
    ("FLAT", None),
    ("ZERO", None),
    ("SPARSE", Some("its extents are sparse (SPARSE)")),
    ("VMFS", Some("its extents are files of an ESX host (VMFS)")),
    ("VMFSSPARSE", Some("its extents are sparse files of an ESX host (VMFSSPARSE)")),
    ("SESPARSE", Some("its extents are sparse files of an ESXi host (SESPARSE)")),
    ("VMFSTHIN", Some("its extents are thin files of an ESX host (VMFSTHIN)")),
    ("VMFSRDM", Some("its extents are devices of an ESX host (VMFSRDM)")),
    ("VMFSRAW", Some("its extents are devices of an ESX host (VMFSRAW)")),
];

/// Reads and judges a descriptor. What it gives is, in order, how many bytes each file of data must have at least.
pub(super) fn read(image: &Handle) -> io::Result<Result<Vec<u64>, Unfit>> {
    let file = unaligned(&image.file, File::options().read(true))?;
    let len = image.bytes()?;
    let mut bytes = vec![0; len.min(LONGEST) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(judge(&bytes))
}

fn judge(bytes: &[u8]) -> Result<Vec<u64>, Unfit> {
    let unfit = |what: &str, hint| Unfit { what: what.to_owned(), hint };
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Err(unfit(&format!("{what}, and only flat ones can be read"), CONVERT));
    }
    if std::str::from_utf8(bytes).is_err() && !bytes.starts_with(b"# Disk DescriptorFile") {
        return Err(Unfit::no_image(Format::Vmdk));
    }
    let mut needed = Vec::new();
    for line in String::from_utf8_lossy(bytes).lines() {
        let line = line.trim();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("RW" | "RDONLY") => {
                let sectors: Option<u64> = words.next().and_then(|count| count.parse().ok());
                let kind = words.next().unwrap_or_default();
                match KINDS.iter().find(|(known, _)| *known == kind) {
                    Some((_, None)) if kind == "FLAT" => {
                        let offset = line.rsplit('"').next().unwrap_or_default().trim();
                        let offset = if offset.is_empty() { Some(0) } else { offset.parse::<u64>().ok() };
                        // What is no number the library refuses.
                        let end =
                            sectors.zip(offset).and_then(|(sectors, offset)| sectors.checked_add(offset));
                        needed.push(end.and_then(|end| Sectors(end).bytes()).unwrap_or(0));
                    }
                    Some((_, None)) => {}
                    Some((_, Some(what))) => return Err(unfit(what, CONVERT)),
                    None => {
                        return Err(unfit(
                            &format!("its extents are of the kind {kind:?}, which is not known here"),
                            CONVERT,
                        ));
                    }
                }
            }
            Some(word) if word.starts_with("encryption") => return Err(unfit("it is encrypted", EXPORT)),
            _ => {}
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        if key == "parentFileNameHint" || key == "parentCID" && !value.eq_ignore_ascii_case(NO_PARENT) {
            return Err(unfit("it only holds what differs from another image (its parent)", CONVERT));
        }
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_descriptor_says_how_long_its_files_are() {
        let text = "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\nRW 8 FLAT \"a b\" 16\nRW 8 ZERO\n\
                    RDONLY 2 FLAT \"c\"\nNOACCESS 8 SPARSE \"d\"\nRW 18446744073709551615 FLAT \"e\" 1\n";
        assert_eq!(judge(text.as_bytes()).unwrap(), [24 * 512, 1024, 0]);
    }

    #[test]
    fn every_other_kind_is_refused_by_its_name() {
        let refused = |text: &[u8], expected: &str| {
            let Unfit { what, hint } = judge(text).unwrap_err();
            assert!(what.contains(expected) && hint.ends_with('.'), "{what}");
        };
        for (kind, why) in KINDS.iter().filter(|(_, why)| why.is_some()) {
            refused(format!("RW 8 {kind} \"x\"").as_bytes(), why.unwrap());
        }
        refused(b"RW 8 NEW \"x\"", "\"NEW\"");
        refused(b"QFI\xfb\0\0\0\x03", "does not begin like one");
        refused(b"KDMV\x01", "streamOptimized");
        refused(b"COWD", "vmfsSparse");
        refused(&[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0, 1], "seSparse");
        refused(b"CID=1\nparentCID=12345678\n", "parent");
        refused(b"parentFileNameHint=\"/etc/shadow\"\n", "parent");
        refused(b"encryption.keySafe = \"x\"\n", "encrypted");
    }
}
