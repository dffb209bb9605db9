//! Kernel images: the ELF kernel out of a bzImage, and modules out of their compression.

use std::io::Read;

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

const ELF: &[u8] = b"\x7fELF";
const XZ: &[u8] = b"\xfd7zXZ\0";
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// No kernel unpacks to more than this, in bytes.
const LIMIT: u64 = 1 << 30;

/// Whether these bytes are an ELF file.
pub fn is_elf(image: &[u8]) -> bool {
    image.starts_with(ELF)
}

/// The uncompressed ELF kernel inside a bzImage.
///
/// Layout: Documentation/arch/x86/boot.rst of Linux, fields `setup_sects` (0x1f1), `header` (0x202),
/// `payload_offset` (0x248) and `payload_length` (0x24c).
pub fn elf_of_bzimage(image: &[u8]) -> Result<Vec<u8>, String> {
    let field = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it is neither a bzImage nor an ELF kernel".into());
    }
    let setup = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let payload = field(0x248)
        .zip(field(0x24c))
        .and_then(|(offset, length)| {
            let start = ((setup + 1) * 512).checked_add(offset)?;
            image.get(start..start.checked_add(length)?)
        })
        .ok_or("its payload lies outside the file")?;
    let elf = unpack(payload)?;
    if is_elf(&elf) { Ok(elf) } else { Err("its payload is no ELF kernel".into()) }
}

/// What `packed` holds: unpacked when it is gzip, xz or zstd, as it is when it is ELF.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    if packed.starts_with(ELF) {
        plain.extend_from_slice(packed);
    } else if packed.starts_with(XZ) {
        let reader = XzReader::new(packed, false);
        reader.take(LIMIT).read_to_end(&mut plain).map_err(|e| format!("its xz data is damaged: {e}"))?;
    } else if packed.starts_with(GZIP) {
        let reader = GzDecoder::new(packed);
        reader.take(LIMIT).read_to_end(&mut plain).map_err(|e| format!("its gzip data is damaged: {e}"))?;
    } else if packed.starts_with(ZSTD) {
        let damaged = |e: &dyn std::fmt::Display| format!("its zstd data is damaged: {e}");
        let reader = StreamingDecoder::new_with_max_window_size(packed, LIMIT).map_err(|e| damaged(&e))?;
        reader.take(LIMIT).read_to_end(&mut plain).map_err(|e| damaged(&e))?;
    } else {
        return Err("its compression is none of gzip, xz and zstd".into());
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_an_error() {
        for bytes in [&b""[..], &[0; 0x300], b"#!/bin/sh"] {
            assert!(elf_of_bzimage(bytes).is_err());
        }
    }

    #[test]
    fn a_payload_outside_the_file_is_an_error() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x250].fill(0xff);
        assert!(elf_of_bzimage(&image).unwrap_err().contains("outside"));
    }

    #[test]
    fn an_uncompressed_payload_is_taken_as_it_is() {
        let mut image = vec![0; 0xa00];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c] = 8;
        image.extend(b"\x7fELFabcd");
        assert_eq!(elf_of_bzimage(&image).unwrap(), b"\x7fELFabcd");
    }
}
