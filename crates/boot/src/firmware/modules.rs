//! What a firmware was built with, by the modules that it holds. A build of OVMF that needs System Management Mode has one that opens
//! that mode's memory (EDK II, OvmfPkg/SmmAccess/SmmAccessPei.inf); one that can do Secure Boot has the page of its settings
//! (SecurityPkg/VariableAuthenticated/SecureBootConfigDxe). Most builds have them within a section that is compressed by LZMA (UEFI
//! Platform Initialization 1.7, volume 3, 3.2.4 and "EFI_SECTION_GUID_DEFINED"; EDK II, MdeModulePkg/Include/Guid/LzmaDecompress.h).

use std::io::Read;

use lzma_rust2::LzmaReader;

type Guid = [u8; 16];

/// 6C0E75B4-B0B9-44D1-8210-3377D7B4E066: the file of that module.
const SMM_ACCESS: Guid =
    [0xb4, 0x75, 0x0e, 0x6c, 0xb9, 0xb0, 0xd1, 0x44, 0x82, 0x10, 0x33, 0x77, 0xd7, 0xb4, 0xe0, 0x66];
/// F0E6A44F-7195-41C3-AC64-54F202CD0A21: that of SecureBootConfigDxe.
const SECURE_BOOT_CONFIG: Guid =
    [0x4f, 0xa4, 0xe6, 0xf0, 0x95, 0x71, 0xc3, 0x41, 0xac, 0x64, 0x54, 0xf2, 0x02, 0xcd, 0x0a, 0x21];
/// EE4E5898-3914-4259-9D6E-DC7BD79403CF: a section whose data is an LZMA archive.
const LZMA: Guid =
    [0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf];
/// What comes before such a section's GUID: the size in three bytes, and the type.
const SECTION_HEAD: usize = 4;
const GUID_DEFINED: u8 = 0x02;

/// A firmware has one such section, or two.
const SECTIONS_MAX: usize = 8;
/// The volume of the first phase (PEI) comes first and has 896 KiB in OVMF.
const FIRST_PHASE: u64 = 1 << 20;
/// So much is unpacked at most. OVMF has 14 MiB, which takes a third of a second.
const UNPACKED_MAX: u64 = 64 << 20;
/// What the archive may look back.
const WINDOW_MAX: u64 = 64 << 20;

/// Whether this code of a firmware needs System Management Mode. What cannot be unpacked needs nothing.
pub(super) fn needs_smm(code: &[u8]) -> bool {
    has_module(code, SMM_ACCESS, FIRST_PHASE)
}

/// Whether this code of a firmware can do Secure Boot. What cannot be unpacked cannot.
pub(super) fn can_secure_boot(code: &[u8]) -> bool {
    has_module(code, SECURE_BOOT_CONFIG, UNPACKED_MAX)
}

/// Whether the module of this name is there, packed or not, in so many bytes of each archive.
fn has_module(code: &[u8], name: Guid, unpacked_max: u64) -> bool {
    if has_file(code, name) {
        return true;
    }
    sections(code).take(SECTIONS_MAX).any(|archive| {
        let mut unpacked = Vec::new();
        if let Ok(reader) = LzmaReader::new_mem_limit(archive, (WINDOW_MAX >> 10) as u32, None) {
            // What came before damage counts as well.
            drop(reader.take(unpacked_max).read_to_end(&mut unpacked));
        }
        has_file(&unpacked, name)
    })
}

/// Files in firmware volumes begin at multiples of eight bytes, with their names (volume 3, 3.2.3).
fn has_file(bytes: &[u8], name: Guid) -> bool {
    (0..bytes.len()).step_by(8).any(|at| bytes[at..].starts_with(&name))
}

/// The archives of all LZMA sections. Sections begin at multiples of four bytes (volume 3, 3.2.4).
fn sections(code: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..code.len()).step_by(4).filter_map(|at| {
        let section = &code[at..];
        let (head, rest) = section.split_at_checked(SECTION_HEAD)?;
        if head[3] != GUID_DEFINED || !rest.starts_with(&LZMA) {
            return None;
        }
        let offset = rest.get(LZMA.len()..LZMA.len() + 2)?;
        section.get(usize::from(u16::from_le_bytes([offset[0], offset[1]]))..)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::packed_by;

    /// A section with a volume in it that has a file of this name.
    fn section(name: Guid) -> Vec<u8> {
        let volume = [&[0; 64][..], &name, &[0x55; 40]].concat();
        // As EDK II's tool makes it.
        let archive = packed_by(&["xz", "--format=lzma", "--stdout"], &volume);
        let size = (archive.len() as u32 + 24).to_le_bytes();
        [&size[..3], &[GUID_DEFINED], &LZMA, &24u16.to_le_bytes(), &1u16.to_le_bytes(), &archive].concat()
    }

    static SECTION: LazyLock<Vec<u8>> = LazyLock::new(|| section(SMM_ACCESS));

    #[test]
    fn a_build_with_a_module_for_smm_needs_it_packed_or_not_and_others_do_not() {
        let within = |part: &[u8]| [&[0xff; 64][..], part, &[0xff; 64]].concat();
        assert!(needs_smm(&within(&SMM_ACCESS)));
        assert!(needs_smm(&within(&section(SMM_ACCESS))));
        assert!(!needs_smm(&within(&section([7; 16]))));
        let mut two = within(&section([7; 16]));
        two.resize(two.len().next_multiple_of(4), 0xff);
        two.extend(section(SMM_ACCESS));
        assert!(needs_smm(&two), "in the second section");
        assert!(can_secure_boot(&within(&section(SECURE_BOOT_CONFIG))));
        assert!(!can_secure_boot(&within(&section(SMM_ACCESS))));
    }

    proptest! {
        #[test]
        fn no_code_makes_it_panic(at: prop::sample::Index, byte: u8, len: prop::sample::Index) {
            let mut code = [&[0xff; 8][..], &*SECTION].concat();
            let at = at.index(code.len());
            code[at] = byte;
            needs_smm(&code);
            code.truncate(len.index(code.len()));
            needs_smm(&code);
        }
    }
}
