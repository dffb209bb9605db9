//! What a file looks like: the marks that formats of images leave at their beginning or end.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A format of disk images that is not raw.
#[derive(Debug)]
pub(crate) struct Signature {
    /// With its article, in the middle of a sentence.
    pub(crate) name: &'static str,
    /// How to use such a file.
    pub(crate) hint: &'static str,
    marks: &'static [(Place, &'static [u8])],
}

/// Where a mark is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// So many bytes behind the file's beginning.
    Start(usize),
    /// In the last sector, at its beginning.
    LastSector,
}

use Place::{LastSector, Start};

/// Bytes at a file's beginning in which marks are.
const LOOKED_AT: usize = 512;

/// All that are known, with all their forms.
const SIGNATURES: &[Signature] = &[
    Signature {
        name: "a qcow image of version 1",
        hint: "Copy it with `qemu-img convert -f qcow -O qcow2 IMAGE COPY`; format=raw gives the guest the file as it is.",
        marks: &[(Start(0), b"QFI\xfb\0\0\0\x01")],
    },
    Signature {
        name: "a qcow2 image",
        hint: "Say which it is: format=qcow2 to use the disk in it, format=raw to give the guest the file as it is.",
        marks: &[(Start(0), b"QFI\xfb")],
    },
    Signature {
        name: "a vmdk image",
        hint: "Say which it is: format=vmdk to read a flat one, format=raw to give the guest the file as it is. Copy any \
               other with `qemu-img convert -f vmdk -O qcow2 IMAGE COPY`.",
        marks: &[
            (Start(0), b"KDMV"),
            (Start(0), b"COWD"),
            (Start(0), &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0]),
            (Start(0), b"# Disk DescriptorFile"),
        ],
    },
    Signature {
        name: "a vhdx image",
        hint: "Copy it with `qemu-img convert -f vhdx -O qcow2 IMAGE COPY`; format=raw gives the guest the file as it is.",
        marks: &[(Start(0), b"vhdxfile")],
    },
    Signature {
        name: "a vhd image",
        hint: "Copy it with `qemu-img convert -f vpc -O qcow2 IMAGE COPY`; format=raw gives the guest the file as it is.",
        marks: &[(Start(0), b"conectix"), (LastSector, b"conectix")],
    },
    Signature {
        name: "a vdi image",
        hint: "Copy it with `qemu-img convert -f vdi -O qcow2 IMAGE COPY`; format=raw gives the guest the file as it is.",
        marks: &[(Start(64), &[0x7f, 0x10, 0xda, 0xbe])],
    },
    Signature {
        name: "a qed image",
        hint: "Copy it with `qemu-img convert -f qed -O qcow2 IMAGE COPY`; format=raw gives the guest the file as it is.",
        marks: &[(Start(0), b"QED\0")],
    },
    Signature {
        name: "a Parallels image",
        hint: "Copy it with `qemu-img convert -f parallels -O qcow2 IMAGE COPY`; format=raw gives the guest the file as it is.",
        marks: &[(Start(0), b"WithoutFreeSpace"), (Start(0), b"WithouFreSpacExt")],
    },
    Signature {
        name: "a dmg image",
        hint: "Copy it with `qemu-img convert -f dmg -O qcow2 IMAGE COPY`; format=raw gives the guest the file as it is.",
        marks: &[(LastSector, b"koly")],
    },
    Signature {
        name: "an encrypted image (LUKS)",
        hint: "Open it with `cryptsetup open IMAGE NAME` and give /dev/mapper/NAME; format=raw gives the guest the \
               encrypted bytes, which it can read only with the key.",
        marks: &[
            (Start(0), b"LUKS\xba\xbe\0\x01"),
            (Start(0), b"LUKS\xba\xbe\0\x02"),
            (Start(0), b"SKUL\xba\xbe"),
        ],
    },
];

/// What a file looks like, by its first bytes or its last sector. Devices, and files that cannot be read, look like
/// nothing.
pub(crate) fn of(path: &Path) -> Option<&'static Signature> {
    // A pipe would keep the caller waiting.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let facts = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let read = |at| {
        let mut bytes = [0; LOOKED_AT];
        let len = file.read_at(&mut bytes, at).ok()?;
        Some((bytes, len))
    };
    let (start, len) = read(0)?;
    // A file cut off in the middle of its footer has it at no multiple of a sector.
    let (last, _) = facts.len().checked_sub(LOOKED_AT as u64).and_then(read).unwrap_or(([0; LOOKED_AT], 0));
    let has = |(place, mark): &(Place, &[u8])| match place {
        Start(at) => start[..len].get(*at..).is_some_and(|bytes| bytes.starts_with(mark)),
        // Old programs wrote a footer of 511 bytes.
        LastSector => last.starts_with(mark) || last[1..].starts_with(mark),
    };
    SIGNATURES.iter().find(|known| known.marks.iter().any(has))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_every_format_is_known_by_its_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        for known in SIGNATURES {
            for (place, mark) in known.marks {
                for len in [1 << 20, (1 << 20) + 100] {
                    let mut bytes = vec![0; len];
                    let at = match place {
                        Start(at) => *at,
                        LastSector => len - 512,
                    };
                    bytes[at..at + mark.len()].copy_from_slice(mark);
                    std::fs::write(&path, bytes).unwrap();
                    assert_eq!(of(&path).unwrap().name, known.name);
                    assert!(known.hint.contains("format=raw"), "the user's word goes: {}", known.hint);
                }
            }
        }
        for nothing in [&b""[..], b"QFI", &[0; 600]] {
            std::fs::write(&path, nothing).unwrap();
            assert!(of(&path).is_none());
        }
    }

    #[test]
    fn what_is_no_file_looks_like_nothing_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(of(&path).is_none() && of(folder.path()).is_none() && of(&folder.path().join("x")).is_none());
    }
}
