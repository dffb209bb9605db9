//! The headers by which firmware files are known. UEFI Platform Initialization 1.7, volume 3, 3.2 ("Firmware Volume
//! Format"), and EDK II, MdeModulePkg/Include/Guid/VariableFormat.h.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// EFI_SYSTEM_NV_DATA_FV_GUID: a volume that holds variables.
const VARIABLES: [u8; 16] =
    [0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50];
/// gEfiVariableGuid and gEfiAuthenticatedVariableGuid: the store in it.
const STORES: [[u8; 16]; 2] = [
    [0x16, 0x36, 0xcf, 0xdd, 0x75, 0x32, 0x64, 0x41, 0x98, 0xb6, 0xfe, 0x85, 0x70, 0x7f, 0xfe, 0x7d],
    [0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92],
];
const SIGNATURE: [u8; 4] = *b"_FVH";

/// EFI_FIRMWARE_VOLUME_HEADER, up to its block map.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    zero_vector: [u8; 16],
    file_system: [u8; 16],
    len: U64,
    signature: [u8; 4],
    attributes: U32,
    header_len: U16,
    checksum: U16,
    ext_header: U16,
    reserved: u8,
    revision: u8,
}

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Volume {
    /// Variables of the firmware.
    Variables,
    /// Anything else of firmware.
    Other,
}

/// How long the volume at the beginning of these bytes says that it is.
pub(super) fn volume_len(bytes: &[u8]) -> Option<u64> {
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    (header.signature == SIGNATURE).then(|| header.len.get())
}

/// Whether OVMF keeps the volume of variables that these bytes begin with. It formats anew what has another revision, length or
/// length of blocks than its own (OvmfPkg/QemuFlashFvbServicesRuntimeDxe, ValidateFvHeader and InitializeVariableFvHeader).
pub(super) fn is_kept(bytes: &[u8]) -> bool {
    let Ok((header, blocks)) = Header::ref_from_prefix(bytes) else { return false };
    // The first entry of the block map: how many blocks, and how long each is.
    let block_len = blocks.get(4..8).and_then(|len| len.first_chunk()).map(|len| u32::from_le_bytes(*len));
    header.revision == 2 && header.len.get() == bytes.len() as u64 && block_len == Some(BLOCK as u32)
}

/// Flash memory of firmware has blocks so long.
pub(super) const BLOCK: usize = 4096;
/// How many bytes from a file's beginning on [`volume`] looks at.
pub(super) const HEAD: usize = 4096;

/// The volume that a file of `file_len` bytes begins with, by its first [`HEAD`] bytes; why there is none, if there is none.
pub(super) fn volume(head: &[u8], file_len: u64) -> Result<Volume, &'static str> {
    let Ok((header, _)) = Header::ref_from_prefix(head) else { return Err("it is too short for one") };
    if header.signature != SIGNATURE {
        return Err("it does not begin with a firmware volume");
    }
    let header_len = usize::from(header.header_len.get());
    let whole = head.get(..header_len).filter(|_| header_len >= size_of::<Header>() && header_len % 2 == 0);
    let Some(whole) = whole else { return Err("the header of its firmware volume is damaged") };
    let words = whole.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    if words.fold(0, u16::wrapping_add) != 0 {
        return Err("the header of its firmware volume is damaged (its checksum is wrong)");
    }
    if header.len.get() > file_len {
        return Err("its firmware volume is longer than the file");
    }
    if header.file_system != VARIABLES {
        return Ok(Volume::Other);
    }
    let store = head.get(header_len..header_len + 16).unwrap_or_default();
    if STORES.iter().any(|guid| guid == store) {
        Ok(Volume::Variables)
    } else {
        Err("it has no variable store")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The beginning of a volume of so many bytes.
    pub(crate) fn head(variables: bool, len: u64) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[16..32].copy_from_slice(if variables { &VARIABLES } else { &[7; 16] });
        head[32..40].copy_from_slice(&len.to_le_bytes());
        head[40..44].copy_from_slice(&SIGNATURE);
        head[48..50].copy_from_slice(&72u16.to_le_bytes());
        // Revision 2, and blocks of 4 KiB.
        head[55] = 2;
        head[56..60].copy_from_slice(&(len as u32 / 4096).to_le_bytes());
        head[60..64].copy_from_slice(&4096u32.to_le_bytes());
        let sum = head[..72]
            .chunks(2)
            .fold(0u16, |sum, word| sum.wrapping_add(u16::from_le_bytes([word[0], word[1]])));
        head[50..52].copy_from_slice(&0u16.wrapping_sub(sum).to_le_bytes());
        head[72..88].copy_from_slice(&STORES[1]);
        head
    }

    #[test]
    fn a_variable_store_and_code_are_told_apart_and_damage_is_named() {
        assert_eq!(volume(&head(true, 8192), 8192), Ok(Volume::Variables));
        assert_eq!(volume(&head(false, 8192), 8192), Ok(Volume::Other));
        assert!(volume(&head(true, 8192), 8191).unwrap_err().contains("longer than the file"));
        assert!(volume(&[0; HEAD], 8192).unwrap_err().contains("does not begin"));
        assert!(volume(&[0; 20], 20).unwrap_err().contains("too short"));
        let damaged = |at: usize| {
            let mut head = head(true, 8192);
            head[at] ^= 1;
            volume(&head, 8192).unwrap_err()
        };
        assert!(damaged(60).contains("checksum"));
        assert!(damaged(80).contains("no variable store"));
        let mut long = head(true, 8192);
        long[48..50].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(volume(&long, 8192).unwrap_err().contains("damaged"));
    }
}
