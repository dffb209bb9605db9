//! The expansion ROM of a device, as the guest is to see it. PCI Firmware 3.3, chapter 5.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which expansion ROM a guest sees at its device.
#[derive(Debug, Clone, Default)]
pub enum Rom {
    /// That of the device, if it has one.
    #[default]
    Own,
    /// None.
    Hidden,
    /// Another one.
    Image(RomImage),
}

/// The largest ROM in bytes (PCI Local Bus 3.0, 6.2.5.2).
const MAX: u64 = 16 << 20;
/// Its first bytes, and those of the structure that it points to.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
const POINTER: usize = 0x18;
const STRUCTURE: [u8; 4] = *b"PCIR";

/// The bytes of an expansion ROM.
#[derive(Debug, Clone)]
pub struct RomImage(Arc<[u8]>);

/// Why a file is no expansion ROM.
#[derive(Debug, thiserror::Error)]
pub enum RomError {
    /// It could not be read.
    #[error("cannot read the ROM {}: {cause}. Check the path, and that you may read the file.", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// It is something else.
    #[error(
        "{} is no expansion ROM of a PCI device: {why}. Give a file with its bytes, as `cat /sys/bus/pci/devices/ADDRESS/rom` \
         prints them after `echo 1` was written to it, or rom=off.",
        .path.display()
    )]
    NotOne {
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
}

impl RomImage {
    /// Reads a file and looks whether it can be one.
    pub fn open(path: &Path) -> Result<RomImage, RomError> {
        let failed = |cause| RomError::Read { path: path.to_path_buf(), cause };
        let wrong = |why| RomError::NotOne { path: path.to_path_buf(), why };
        // Looked at before it is opened, for opening a pipe would wait for its writer.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(wrong("it is no regular file"));
        }
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
        RomImage::new(bytes).map_err(wrong)
    }

    fn new(bytes: Vec<u8>) -> Result<RomImage, &'static str> {
        if bytes.len() as u64 > MAX {
            return Err("it has more than 16 MiB");
        }
        if !bytes.starts_with(&SIGNATURE) {
            return Err("it does not begin with the bytes 55 aa");
        }
        let pointer = bytes.get(POINTER..POINTER + 2).ok_or("it is too short for one")?;
        let at = usize::from(u16::from_le_bytes([pointer[0], pointer[1]]));
        match bytes.get(at..at + STRUCTURE.len()) {
            Some(found) if found == STRUCTURE => Ok(RomImage(bytes.into())),
            _ => Err("its PCI data structure is not where it says"),
        }
    }

    /// How much room it takes, in bytes.
    pub(crate) fn size(&self) -> u64 {
        (self.0.len() as u64).max(2048).next_power_of_two()
    }

    /// Reads from it; ones behind its end.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(byte, there)| *byte = *there);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rom(len: usize) -> Vec<u8> {
        let mut bytes = vec![7; len];
        bytes[..2].copy_from_slice(&SIGNATURE);
        bytes[POINTER..POINTER + 2].copy_from_slice(&0x1cu16.to_le_bytes());
        bytes[0x1c..0x20].copy_from_slice(&STRUCTURE);
        bytes
    }

    #[test]
    fn an_image_takes_a_power_of_two_and_reads_as_ones_behind_its_end() {
        let image = RomImage::new(rom(5000)).unwrap();
        assert_eq!(image.size(), 8192);
        assert_eq!(RomImage::new(rom(64)).unwrap().size(), 2048);
        let mut data = [0; 4];
        image.read(4998, &mut data);
        assert_eq!(data, [7, 7, 0xff, 0xff]);
        image.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn what_is_no_rom_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |bytes: &[u8]| {
            let path = folder.path().join("rom");
            fs::write(&path, bytes).unwrap();
            RomImage::open(&path).unwrap_err().to_string()
        };
        assert!(refused(b"MZ").contains("does not begin with the bytes 55 aa"));
        assert!(refused(&SIGNATURE).contains("too short"));
        let mut apart = rom(64);
        apart[POINTER] = 0xf0;
        assert!(refused(&apart).contains("not where it says"));
        assert!(refused(&rom((16 << 20) + 1)).contains("more than 16 MiB"));
        assert!(RomImage::open(folder.path()).unwrap_err().to_string().contains("no regular file"));
        assert!(RomImage::open(&folder.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    }
}
