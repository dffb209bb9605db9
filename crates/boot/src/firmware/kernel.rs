//! A kernel that firmware starts: a program for UEFI, as Linux's bzImages and unified kernel images are.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::image::FirmwareError;
use crate::source::{Source, SourceError};

/// PE's machine numbers (PE format, "Machine Types").
const X86_64: u16 = 0x8664;
const ARM64: u16 = 0xaa64;
/// Linux's boot protocol: sectors of the setup part, and the header's letters (Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: u64 = 0x1f1;
const HEADER: u64 = 0x202;
const SECTOR: u64 = 512;

/// Why firmware cannot start a kernel.
#[derive(Debug, thiserror::Error)]
pub enum EfiKernelError {
    /// It cannot be opened or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is no program for this firmware.
    #[error("the kernel {} is {what}, which UEFI firmware for x86-64 cannot start. {hint}", .path.display())]
    NotForIt {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What would help.
        hint: &'static str,
    },
}

/// A kernel that firmware can start.
#[derive(Debug)]
pub struct EfiKernel {
    source: Source,
    setup: u64,
}

/// A part of a file.
#[derive(Debug)]
pub struct Part {
    /// The file.
    pub file: File,
    /// Where the part begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
}

impl Part {
    /// All of a file for the guest.
    pub fn of_file(path: &Path) -> Result<Part, FirmwareError> {
        const WHAT: &str = "file for the guest";
        let source = Source::open(WHAT, path)?;
        let path = path.to_path_buf();
        source.part(0, source.len()).map_err(|cause| match cause.kind() {
            io::ErrorKind::FileTooLarge => FirmwareError::Wrong {
                path,
                what: WHAT,
                why: "it has 4 GiB or more",
                hint: "The firmware's configuration takes smaller ones; give a disk instead.",
            },
            _ => SourceError::Open { what: WHAT, path, cause }.into(),
        })
    }
}

impl EfiKernel {
    /// Opens a kernel and looks whether it can be one.
    pub fn open(path: &Path) -> Result<EfiKernel, EfiKernelError> {
        let source = Source::open("kernel", path)?;
        let wrong = |what, hint| EfiKernelError::NotForIt { path: path.to_path_buf(), what, hint };
        let mut start = [0; 4];
        if source.has(0, 64) {
            source.read_at(0, &mut start)?;
        }
        match start {
            [b'M', b'Z', ..] => {}
            [0x1f, 0x8b, ..] => {
                return Err(wrong("packed by gzip", "Unpack it (gunzip), or give a bzImage."));
            }
            [0x7f, b'E', b'L', b'F'] => {
                return Err(wrong(
                    "an ELF file",
                    "Start it without firmware (--firmware none), or give a bzImage.",
                ));
            }
            _ => {
                return Err(wrong(
                    "no program for UEFI",
                    "Give a bzImage with an EFI stub, or a unified kernel image.",
                ));
            }
        }
        let mut at = [0; 4];
        source.read_at(0x3c, &mut at)?;
        let at = u64::from(u32::from_le_bytes(at));
        let mut header = [0; 6];
        if source.has(at, 6) {
            source.read_at(at, &mut header)?;
        }
        match (&header[..4], u16::from_le_bytes([header[4], header[5]])) {
            (b"PE\0\0", X86_64) => {}
            (b"PE\0\0", ARM64) => return Err(wrong("a program for 64-bit ARM", "Give a kernel for x86-64.")),
            (b"PE\0\0", _) => return Err(wrong("a program for another CPU", "Give a kernel for x86-64.")),
            _ => {
                let hint = "Start it without firmware (--firmware none), or give one that was built with CONFIG_EFI_STUB.";
                return Err(wrong("a kernel without an EFI stub", hint));
            }
        }
        let setup = if source.has(HEADER, 4) { setup(&source)? } else { 0 };
        Ok(EfiKernel { setup: setup.min(source.len()), source })
    }

    /// Its setup part, which is empty unless it is a bzImage, and the rest of it.
    pub fn parts(&self) -> io::Result<[Part; 2]> {
        Ok([self.source.part(0, self.setup)?, self.source.part(self.setup, self.source.len())?])
    }
}

fn setup(source: &Source) -> Result<u64, SourceError> {
    let (mut letters, mut sectors) = ([0; 4], [0]);
    source.read_at(HEADER, &mut letters)?;
    source.read_at(SETUP_SECTORS, &mut sectors)?;
    // 0 means 4.
    let sectors = if sectors[0] == 0 { 4 } else { u64::from(sectors[0]) };
    Ok(if letters == *b"HdrS" { (sectors + 1) * SECTOR } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(machine: u16) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..2].copy_from_slice(b"MZ");
        image[0x3c] = 0x80;
        image[0x80..0x84].copy_from_slice(b"PE\0\0");
        image[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
        image
    }

    fn open(bytes: &[u8]) -> Result<[Part; 2], String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        std::fs::write(&path, bytes).unwrap();
        EfiKernel::open(&path).map(|kernel| kernel.parts().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bzimage_has_a_setup_part_and_another_program_has_none() {
        let lengths = |bytes: &[u8]| open(bytes).unwrap().map(|part| (part.offset, part.len));
        assert_eq!(lengths(&image(X86_64)), [(0, 0), (0, 4096)]);
        let mut kernel = image(X86_64);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x1f1] = 3;
        assert_eq!(lengths(&kernel), [(0, 2048), (2048, 2048)]);
        kernel[0x1f1] = 200;
        assert_eq!(lengths(&kernel), [(0, 4096), (4096, 0)]);
    }

    #[test]
    fn what_firmware_cannot_start_is_named_with_the_way_out() {
        for (bytes, word) in [
            (image(ARM64), "64-bit ARM"),
            (image(0x14c), "another CPU"),
            (b"MZ".repeat(100), "without an EFI stub"),
            ([b"\x7fELF", &[0; 96][..]].concat(), "--firmware none"),
            ([b"\x1f\x8b", &[0; 96][..]].concat(), "gunzip"),
            (b"text".to_vec(), "no program for UEFI"),
            (vec![], "no program for UEFI"),
        ] {
            let said = open(&bytes).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
    }
}
